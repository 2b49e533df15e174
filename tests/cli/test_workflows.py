"""``py-code-mode workflows``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from py_code_mode import FileStorage

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.workflows import WorkflowLibrary

    from .conftest import Invoke

SOURCE = '''"""Double a number."""


async def run(x: int, name: str = "n") -> dict:
    print("working")
    return {name: 2 * x}
'''


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "double.py"
    path.write_text(SOURCE)
    return path


def test_added_listed_found_shown_and_removed(invoke: Invoke, base: Path) -> None:
    assert "added" in invoke("workflows", "add", "double", "double.py").stderr
    assert (base / "workflows" / "double.py").is_file()
    assert invoke("workflows", "list").stdout == "double\tDouble a number.\tx, [name]\n"
    assert invoke("workflows", "search", "double").stdout.startswith("double\t")
    assert "2 * x" in invoke("workflows", "show", "double").stdout
    assert json.loads(invoke("workflows", "show", "double", "--json").stdout)["name"] == "double"
    assert "removed" in invoke("workflows", "remove", "double").stderr
    assert invoke("workflows", "list").stderr.startswith("no workflows in ")
    assert "no workflow named" in invoke("workflows", "remove", "double", status=2).stderr


def test_added_from_stdin_with_a_description(invoke: Invoke) -> None:
    done = invoke("workflows", "add", "w", "-", "--description", "Mine", "--json", stdin=SOURCE)
    assert json.loads(done.stdout)["description"] == "Mine"


def test_call_runs_it_in_a_worker(invoke: Invoke) -> None:
    invoke("workflows", "add", "double", "double.py")
    done = invoke("workflows", "call", "double", "x=4", "name=it's")
    assert done.stdout == 'working\n{"it\'s": 8}\n'
    done = invoke("workflows", "call", "double", "x=4", "--json")
    assert json.loads(done.stdout)["value"] == {"n": 8}


def test_failure_of_a_workflow_shows_its_own_lines(invoke: Invoke) -> None:
    invoke("workflows", "add", "bad", "-", stdin="def run():\n    return 1 / 0\n")
    done = invoke("workflows", "call", "bad", status=1)
    assert '"<workflow bad>", line 2' in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["call", "nope"], "no workflow named 'nope'"),
        (["show", "nope"], "no workflow named 'nope'"),
        (["add", "not-a-name", "double.py"], "not-a-name"),
        (["add", "w", "gone.py"], "gone.py: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    invoke: Invoke, arguments: list[str], told: str
) -> None:
    done = invoke("workflows", *arguments, status=2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_workflow_is_told_and_hides_no_other(invoke: Invoke, base: Path) -> None:
    invoke("workflows", "add", "double", "double.py")
    (base / "workflows" / "broken.py").write_text("def run(:\n")
    done = invoke("workflows", "list")
    assert "workflows/broken.py: " in done.stderr
    assert done.stdout.startswith("double\t")
    assert "broken" in invoke("workflows", "call", "broken", status=2).stderr


ANSWER = "def run() -> int:\n    return 42\n"


@pytest.fixture
def theirs(base: Path) -> WorkflowLibrary:
    """A library with a workflow that sandboxed code wrote."""
    library = FileStorage(base).get_workflow_library()
    library.create("answer", ANSWER, "An answer", origin="namespaces")
    return library


def test_origin_is_shown(invoke: Invoke, theirs: WorkflowLibrary) -> None:
    assert "not approved (namespaces)" in invoke("workflows", "list").stdout
    done = invoke("workflows", "show", "answer")
    assert done.stdout == ANSWER
    assert "written by sandboxed code (namespaces), and not approved" in done.stderr
    theirs.create("mine", ANSWER, "")
    assert invoke("workflows", "list").stdout.count("approved") == 1


def test_workflow_of_sandboxed_code_runs_elsewhere_once_it_is_approved(
    invoke: Invoke, theirs: WorkflowLibrary
) -> None:
    call = ("workflows", "call", "answer", "--executor", "in_process")
    assert "py-code-mode workflows approve answer" in invoke(*call, status=1).stderr
    done = invoke("workflows", "approve", "answer", stdin="y\n")
    assert ANSWER in done.stderr
    assert "let it run with your rights?" in done.stderr
    assert invoke(*call).stdout == "42\n"
    assert "needs no approval" in invoke("workflows", "approve", "answer").stderr


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_workflow_is_not_approved_without_a_yes(
    invoke: Invoke, theirs: WorkflowLibrary, answer: str
) -> None:
    invoke("workflows", "approve", "answer", stdin=answer, status=1)
    assert theirs.load("answer").origin == "namespaces"


def test_workflow_is_approved_without_a_question(invoke: Invoke, theirs: WorkflowLibrary) -> None:
    done = invoke("workflows", "approve", "answer", "--yes", "--json")
    assert json.loads(done.stdout) == {"approved": ["answer"]}
    assert theirs.load("answer").origin is None
    invoke("workflows", "approve", "gone", status=2)
