"""``py-code-mode workflows``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

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
