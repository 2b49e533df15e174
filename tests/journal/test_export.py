"""A journal as Markdown, JSON, HTML and notebooks."""
# nbformat and nbclient have no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.journal import (
    SessionJournal,
    read_journal,
    to_html,
    to_json,
    to_markdown,
    to_notebook,
)
from py_code_mode.journal import export as module
from py_code_mode.journal.records import Call, Chunk, ErrorInfo, Event, Run, Transition, Turn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from py_code_mode.journal import Journal

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


def ran(journal: SessionJournal, number: int, code: str, *calls: Call, **outcome: Any) -> None:
    journal.append(Run(run_id=number, code=code, started_at="2026-01-01T00:00:00Z"))
    for call in calls:
        journal.append(call)
    kept: dict[str, Any] = {"status": "ok", "duration_ms": 1.0, **outcome}
    journal.append(Run(run_id=number, **kept))


def make(folder: Path, fill: Callable[[SessionJournal], None], **header: Any) -> Journal:
    with SessionJournal.create(folder, "one", durability="process", **header) as journal:
        fill(journal)
    return read_journal(folder / "one.jsonl")


def everything(journal: SessionJournal) -> None:
    journal.append(Event(kind="put", run_id=0, data={"name": "seed", "value": 20}))
    ran(journal, 1, "x = seed + 1\nprint('hello')", stdout="hello\n")
    ran(journal, 2, "x = 0  # undone")
    journal.append(Event(kind="rollback", run_id=1))
    answer = Call(
        call_id="1", run_id=3, tool_name="tools.curl.get",
        arguments={"args": [], "kwargs": {"url": "u"}}, result={"body": ["a", 2.5]},
    )  # fmt: skip
    refused = Call(
        call_id="2", run_id=3, index=1, tool_name="tools.curl.get", status="error",
        arguments={"args": [], "kwargs": {"url": "v"}},
        error={"type": "ToolFailed", "message": "no such host"},
    )  # fmt: skip
    code = """
body = tools.curl.get(url="u")["body"]
try:
    tools.curl.get(url="v")
except tools.ToolFailed as error:
    failed = str(error)
assert (body, failed) == (["a", 2.5], "no such host")
"""
    ran(journal, 3, code, answer, refused)
    picture = {"data": {"image/png": PNG, "text/plain": "<Figure>"}, "metadata": {}}
    page = {"data": {"text/html": f"<b>{HOSTILE}</b>", "image/svg+xml": f"<svg>{HOSTILE}</svg>"}}
    ran(journal, 4, "plot()" and "'figure'", displays=[picture, page], value="figure")
    error = ErrorInfo(type="ZeroDivisionError", message="division by zero", traceback="T\n1/0")
    ran(journal, 5, "1 / 0", status="error", error=error, stderr="oh\n")
    ran(journal, 6, "while True: pass", status="timeout")
    ran(journal, 7, "assert x == 21\nx * 2", value=42)
    journal.append(Turn(turn_id="t1", agent_id="a", prompt="what?", response_content="that"))
    journal.append(Chunk(kind="user", payload={"content": "a message"}, index=0))
    journal.append(Transition(from_agent="a", to_agent="b", reason="because"))
    journal.append(Run(run_id=8, code="import os; os._exit(1)"))


def test_notebook_is_valid_and_has_a_cell_for_each_run_of_the_live_line(folder: Path) -> None:
    import nbformat

    notebook = to_notebook(make(folder, everything, title="An *analysis*"))
    nbformat.validate(nbformat.from_dict(notebook))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["id"].startswith("run-")]
    assert [cell["metadata"]["py_code_mode"]["run_id"] for cell in cells] == [1, 3, 4, 5, 6, 7, 8]
    assert "undone" not in json.dumps(cells)
    assert cells[0]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "hello\n"}]
    picture, page, value = cells[2]["outputs"]
    assert base64.b64decode(picture["data"]["image/png"]) == PNG
    assert "sandbox=" in page["data"]["text/html"]
    assert set(page["data"]) == {"text/html", "text/plain"}
    assert value["output_type"] == "execute_result"
    assert value["data"] == {"text/plain": "'figure'"}
    stream, error = cells[3]["outputs"]
    assert stream["name"] == "stderr"
    assert (error["ename"], error["traceback"]) == ("ZeroDivisionError", ["T", "1/0"])
    assert [cell["metadata"].get("tags") for cell in cells[3:]] == [
        ["raises-exception"], ["skip-execution"], None, ["skip-execution"],
    ]  # fmt: skip
    assert "died" in cells[-1]["outputs"][0]["text"]


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
nbformat.validate(notebook)
nbformat.write(notebook, sys.argv[1])
"""


def test_notebook_executes_with_no_tool_being_called(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "session.ipynb"
    path.write_text(json.dumps(to_notebook(make(folder, everything))))
    names = ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    own = {name: str(tmp_path / name) for name in names}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path)],
        cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = {cell["id"]: cell for cell in json.loads(path.read_text())["cells"]}
    assert cells["run-6"]["outputs"][0]["data"]["text/plain"] == ["42"]
    assert cells["run-4"]["outputs"][-1]["ename"] == "ZeroDivisionError"
    assert cells["run-4"]["outputs"][-1]["traceback"] != ["T", "1/0"]  # it was really executed


def test_session_without_calls_has_no_cell_that_was_not_run(folder: Path) -> None:
    def fill(journal: SessionJournal) -> None:
        ran(journal, 1, "1 + 1", value=2)

    notebook = to_notebook(make(folder, fill))
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", "code"]


def test_page_is_self_contained_and_nothing_in_it_acts(folder: Path) -> None:
    def fill(journal: SessionJournal) -> None:
        everything(journal)
        ran(journal, 9, HOSTILE, stdout=HOSTILE, stderr=HOSTILE, value=HOSTILE, notes=[HOSTILE])
        journal.append(Turn(turn_id=HOSTILE, prompt=HOSTILE))
        journal.append(Event(kind=HOSTILE, data={HOSTILE: HOSTILE}))

    page = to_html(make(folder, fill, title=HOSTILE, agent_id=HOSTILE))
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert page.count('<iframe sandbox=""') == 1  # of the HTML; the SVG is its other form
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert base64.b64encode(PNG).decode() in page
    assert 'class="run undone"' in page


def test_markdown_cannot_be_left_by_what_a_guest_wrote(folder: Path) -> None:
    def fill(journal: SessionJournal) -> None:
        ran(journal, 1, "```\n# no heading", stdout="````\n<b>no markup</b>\n")

    text = to_markdown(make(folder, fill, title="[a](b) <b> # *c*\n# d"))
    assert text.startswith(r"# \[a\](b) &lt;b&gt; \# \*c\* \# d" + "\n")
    assert "````python\n```\n# no heading\n````" in text
    assert "`````\n````\n<b>no markup</b>\n`````" in text


def test_markdown_tells_all_in_order_and_marks_what_was_undone(folder: Path) -> None:
    text = to_markdown(make(folder, everything))
    places = [text.index(part) for part in (
        "## Run 1: ok", "## Run 2: ok, 1 ms, undone", "rollback", "## Run 3", "tools.curl.get",
        "## Run 4", "displayed (image/png", "T\n1/0", "Run 6: timeout",
        "what?", "that", "a message", "handed over to b", "Run 8: crashed",
    )]  # fmt: skip
    assert places == sorted(places)


def test_json_has_everything_and_is_ascii(folder: Path) -> None:
    text = to_json(make(folder, everything, title="é"))
    assert text.isascii()
    found = json.loads(text)
    assert (found["id"], found["status"]) == ("one", "closed")
    assert [run["status"] for run in found["runs"]] == [
        "ok", "ok", "ok", "ok", "error", "timeout", "ok", "crashed",
    ]  # fmt: skip
    assert [run["run_id"] for run in found["runs"] if not run["is_live"]] == [2]
    assert found["runs"][2]["calls"][0]["result"] == {"body": ["a", 2.5]}
    assert [len(found[name]) for name in ("events", "turns", "chunks", "transitions")] == [
        2, 1, 1, 1,
    ]  # fmt: skip


EXPORTS = [to_markdown, to_json, to_html, lambda journal: json.dumps(to_notebook(journal))]  # pyright: ignore[reportUnknownLambdaType]
IDS = ["markdown", "json", "html", "notebook"]


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_what_is_in_blobs_is_given(folder: Path, export: Callable[[Journal], str]) -> None:
    journal = make(folder, lambda journal: ran(journal, 1, "x", value=["abc"] * 30_000))
    assert list((folder / ".blobs").glob("??/*"))
    assert "abc" in export(journal)
    if export is to_json:
        assert export(journal).count('"abc"') == 30_000


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
@pytest.mark.parametrize("harm", ["missing", "altered"])
def test_blob_that_cannot_be_had_is_described(
    folder: Path, export: Callable[[Journal], str], harm: str
) -> None:
    journal = make(folder, lambda journal: ran(journal, 1, "x", value=["abc"] * 30_000))
    for blob in (folder / ".blobs").glob("??/*"):
        if harm == "missing":
            blob.unlink()
        else:
            blob.write_bytes(b"[]")
    text = export(journal)
    assert "blob" in text
    assert "abc" not in text


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_what_is_given_is_bounded(
    folder: Path, export: Callable[[Journal], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TEXT", 2_000)
    monkeypatch.setattr(module, "MAX_EXPORT", 20_000)
    monkeypatch.setattr(module, "MAX_VALUE", 10_000)

    def fill(journal: SessionJournal) -> None:
        for number in range(1, 20):
            big = {"data": {"image/png": bytes(100_000)}}
            ran(journal, number, "x", stdout="y" * 10_000, value="z" * 100_000, displays=[big])

    text = export(make(folder, fill))
    assert "left out" in text
    if export is not to_json:  # what stands in the journal itself is bounded by the recorder
        assert len(text) < 80_000


@pytest.mark.parametrize("export", EXPORTS, ids=IDS)
def test_texts_of_any_kind_can_be_written(folder: Path, export: Callable[[Journal], str]) -> None:
    odd = "\ud800 \x00 \x1b[31m \u2028 𝔸 漢"

    def fill(journal: SessionJournal) -> None:
        error = ErrorInfo(type="E", message=odd, traceback=odd)
        ran(journal, 1, odd, stdout=odd, value={odd: odd}, error=error, status="error",
            displays=[{"data": {"text/plain": odd}}, {"data": {}}, 5, {"data": {"x/y": 7}}],
        )  # fmt: skip
        journal.append(Chunk(kind="user", payload={"content": [odd]}, index=0))

    assert export(make(folder, fill, title=odd)).encode()


def test_values_are_shown_as_python_shows_them(folder: Path) -> None:
    values = [(1, 2), {1: "a"}, b"x", float("nan"), {3}]

    def fill(journal: SessionJournal) -> None:
        for number, value in enumerate(values, 1):
            ran(journal, number, "x", value=value)

    cells = to_notebook(make(folder, fill))["cells"][1:]
    shown = [cell["outputs"][0]["data"]["text/plain"] for cell in cells]
    assert shown == ["(1, 2)", "{1: 'a'}", "b'x'", "nan", "{3}"]


def test_fork_has_the_runs_of_its_past(folder: Path) -> None:
    from py_code_mode.journal import fork_session

    make(folder, everything)
    made = fork_session(folder, "one", at=3)
    journal = read_journal(folder / f"{made}.jsonl")
    cells = [cell["id"] for cell in to_notebook(journal)["cells"]]
    assert [name for name in cells if name.startswith("run")] == ["run-1", "run-2"]
    assert "Run 3" in to_markdown(journal)
    assert "Run 4" not in to_markdown(journal)
