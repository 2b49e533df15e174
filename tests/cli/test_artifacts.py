"""``py-code-mode artifacts``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from py_code_mode import Display, FileStorage

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Invoke


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_added_listed_shown_and_removed(invoke: Invoke, here: Path) -> None:
    (here / "prices.json").write_text('{"apple": [1, 2.5]}')
    invoke("artifacts", "add", "prices", "prices.json", "--description", "Of May")
    (entry,) = json.loads(invoke("artifacts", "list", "--json").stdout)
    assert (entry["name"], entry["description"]) == ("prices", "Of May")
    assert invoke("artifacts", "list").stdout.endswith("\tOf May\n")
    assert invoke("artifacts", "show", "prices").stdout == "{'apple': [1, 2.5]}\n"
    shown = json.loads(invoke("artifacts", "show", "prices", "--json").stdout)
    assert shown == {"name": "prices", "value": {"apple": [1, 2.5]}, "value_kind": "json"}
    invoke("artifacts", "remove", "prices")
    assert invoke("artifacts", "list").stderr.startswith("no artifacts in ")


def test_text_is_printed_as_it_is(invoke: Invoke, here: Path) -> None:
    (here / "notes.md").write_text("# Naïve\n")
    invoke("artifacts", "add", "notes", "notes.md")
    assert invoke("artifacts", "show", "notes").stdout == "# Naïve\n"


def test_bytes_come_out_unchanged(invoke: Invoke, here: Path) -> None:
    data = bytes(range(256))
    (here / "model.bin").write_bytes(data)
    invoke("artifacts", "add", "model", "model.bin")
    assert invoke("artifacts", "show", "model").stdout_bytes == data
    invoke("artifacts", "show", "model", "--output", "copy.bin")
    assert (here / "copy.bin").read_bytes() == data
    assert invoke("artifacts", "show", "model", "--output", "-").stdout_bytes == data


def test_a_file_that_is_there_is_not_replaced_unless_forced(invoke: Invoke, here: Path) -> None:
    (here / "notes.md").write_text("new")
    invoke("artifacts", "add", "notes", "notes.md")
    (here / "mine.md").write_text("mine")
    show = ("artifacts", "show", "notes", "--output", "mine.md")
    assert "mine.md exists; --force replaces it" in invoke(*show, status=2).stderr
    assert (here / "mine.md").read_text() == "mine"
    invoke(*show, "--force")
    assert (here / "mine.md").read_text() == "new"


def test_figure_is_saved_as_a_file(invoke: Invoke, here: Path, base: Path) -> None:
    picture = Display(data={"image/png": b"\x89PNG", "text/plain": "<Figure>"})
    FileStorage(base).get_artifact_store().save("chart", picture)
    assert invoke("artifacts", "show", "chart").stderr == "saved figure-1.png\n"
    assert (here / "figure-1.png").read_bytes() == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nope"], "no artifact named 'nope'"),
        (["remove", "nope"], "no artifact named 'nope'"),
        (["add", "../x", "file.txt"], "cannot name an artifact"),
        (["add", "x", "gone.txt"], "gone.txt: No such file"),
        (["add", "x", "bad.json"], "bad.json"),
        (["show", "number", "--output", "x"], "neither text nor bytes"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    invoke: Invoke, here: Path, arguments: list[str], told: str
) -> None:
    (here / "file.txt").write_text("x")
    (here / "bad.json").write_text("{")
    (here / "number.json").write_text("5")
    invoke("artifacts", "add", "number", "number.json")
    done = invoke("artifacts", *arguments, status=2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
