"""``py-code-mode trust``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from py_code_mode.cli.main import app
from py_code_mode.trust import expose, unexpose

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from .conftest import Invoke

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners here")


@pytest.fixture
def doubted(base: Path) -> Path:
    """A workspace that everybody may write to."""
    tools = base / "tools"
    tools.mkdir(parents=True)
    (tools / "text.py").write_text("def shout(text: str) -> str:\n    return text.upper()\n")
    tools.chmod(0o777)
    return base


def trust(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, ["trust", *arguments])
    assert done.exit_code == status, (done.stdout, done.stderr, done.exception)
    return done


@pytest.mark.parametrize(
    "command",
    [
        ["tools", "list"],
        ["tools", "call", "shout", "text=x"],
        ["run", "-c", "1", "--executor", "in_process"],
    ],
)
def test_commands_refuse_a_doubted_workspace_until_it_is_trusted(
    invoke: Invoke, doubted: Path, command: list[str]
) -> None:
    done = invoke(*command, status=2)
    assert "can be written by everybody" in done.stderr
    assert f"py-code-mode trust {doubted}" in done.stderr
    told = trust(str(doubted))
    assert f"trusted: {doubted}" in told.stderr
    assert "can be written by everybody" in told.stderr
    invoke(*command)
    trust("--remove", str(doubted))
    invoke(*command, status=2)


def test_trusted_folders_are_listed(doubted: Path) -> None:
    assert "nothing is trusted" in trust("--list").stderr
    trust(str(doubted))
    assert trust("--list").stdout == f"{doubted}\n"
    listed = json.loads(trust("--list", "--json").stdout)
    assert listed == [{"folder": str(doubted), "owners": [], "written by others": True}]


def test_results_as_json(doubted: Path) -> None:
    told = json.loads(trust(str(doubted), "--json").stdout)
    assert told["trusted"] == str(doubted)
    assert len(told["doubts"]) == 1
    told = json.loads(trust("--remove", str(doubted), "--json").stdout)
    assert told == {"removed": str(doubted)}


def test_nearest_workspace_is_meant(doubted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = doubted.parent / "project"
    (project / ".code-mode").mkdir(parents=True)
    monkeypatch.chdir(project)
    assert f"trusted: {project / '.code-mode'}" in trust().stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gone"], "is not a folder"),
        (["file"], "is not a folder"),
        ([""], "FOLDER: it is empty"),
        (["--remove", ""], "FOLDER: it is empty"),
        (["--remove", "gone"], "is not trusted"),
        (["--list", "--remove"], "it takes no folder"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert reason in trust(*arguments, status=2).stderr


def test_folders_that_sandboxed_code_could_write_to_are_told(tmp_path: Path) -> None:
    expose([tmp_path], "a session")
    assert f"sandboxed code can write to {tmp_path}" in trust("--list").stderr
    unexpose("a session")
    told = trust("--list")
    assert f"sandboxed code could write to {tmp_path}" in told.stderr
    assert told.stdout == ""
    trust(str(tmp_path))
    assert "sandboxed code" not in trust("--list").stderr


def test_doctor_tells_of_a_doubted_workspace(invoke: Invoke, doubted: Path) -> None:
    checks = json.loads(invoke("doctor", "--no-escapes", "--json", status=1).stdout)["checks"]
    found = next(check for check in checks if check["name"].startswith("workspace"))
    assert found["level"] == "problem"
    assert found["remedy"] == f"py-code-mode trust {doubted}"
