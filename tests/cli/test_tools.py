"""``py-code-mode tools``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Invoke

ECHO = """\
name: echo
description: Print its words
command: echo
tags: [text]
schema:
  positional: [{name: text, type: string, required: true, description: What to say}]
recipes:
  hello: {description: Greet, preset: {text: hello}}
"""
PYTHON = '''\
import time


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def join(words: list[str]) -> dict[str, str]:
    """Join words."""
    return {"joined": "-".join(words)}
'''


@pytest.fixture(autouse=True)
def tools(base: Path) -> Path:
    folder = base / "tools"
    folder.mkdir(parents=True)
    (folder / "echo.yaml").write_text(ECHO)
    (folder / "numbers.py").write_text(PYTHON)
    return folder


def test_list_has_a_line_for_each_tool(invoke: Invoke) -> None:
    lines = invoke("tools", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["add", "echo", "join"]
    assert lines[1] == "echo\tPrint its words\ttext\thello"


def test_list_as_json(invoke: Invoke) -> None:
    found = json.loads(invoke("tools", "list", "--json").stdout)
    assert [entry["name"] for entry in found] == ["add", "echo", "join"]


def test_broken_file_is_told_by_name_and_line_and_hides_no_other(
    invoke: Invoke, tools: Path
) -> None:
    (tools / "bad.yaml").write_text("name: bad\ndescription: x\ncommand: [\n")
    done = invoke("tools", "list")
    assert "tools/bad.yaml, line " in done.stderr
    assert "echo" in done.stdout


def test_search_finds_by_words(invoke: Invoke) -> None:
    assert invoke("tools", "search", "add", "numbers").stdout.startswith("add\t")
    done = invoke("tools", "search", "zebra")
    assert (done.stdout, done.stderr) == ("", "no tool fits\n")


def test_show_tells_parameters_and_recipes(invoke: Invoke) -> None:
    shown = invoke("tools", "show", "echo").stdout
    assert "text (string, required)  What to say" in shown
    assert "echo.hello: Greet" in shown
    assert json.loads(invoke("tools", "show", "add", "--json").stdout)["name"] == "add"


def test_call_prints_what_the_tool_gives(invoke: Invoke) -> None:
    assert invoke("tools", "call", "echo", "text=good morning").stdout == "good morning\n"
    assert invoke("tools", "call", "echo.hello").stdout == "hello\n"
    assert invoke("tools", "call", "add", "a=2", "b=5").stdout == "7\n"


def test_call_takes_json_and_gives_json(invoke: Invoke) -> None:
    done = invoke("tools", "call", "join", 'words=["a", "b"]', "--json")
    assert json.loads(done.stdout) == {"joined": "a-b"}


def test_call_gives_a_text_parameter_its_digits_as_text(invoke: Invoke) -> None:
    assert invoke("tools", "call", "echo", "text=007").stdout == "007\n"
    assert invoke("tools", "call", "echo", "text=1e3").stdout == "1e3\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "not found"),
        (["echo.nope"], "not found"),
        (["echo", "word=x"], "word"),
        (["echo", "x"], "KEY=VALUE"),
        (["echo", "text=a", "text=b"], "given twice"),
    ],
)
def test_wrong_call_is_a_usage_error(invoke: Invoke, arguments: list[str], told: str) -> None:
    done = invoke("tools", "call", *arguments, status=2)
    assert told in done.stderr
    assert done.stdout == ""


def test_tool_that_fails_has_status_1(invoke: Invoke, tools: Path) -> None:
    (tools / "false.yaml").write_text("name: fail\ndescription: Fail\ncommand: 'false'\n")
    assert "fail" in invoke("tools", "call", "fail", status=1).stderr


def test_tool_that_takes_too_long_has_status_124(invoke: Invoke, tools: Path) -> None:
    (tools / "slow.yaml").write_text(
        "name: slow\ndescription: Wait\ncommand: sleep\ntimeout: 0.2\n"
        "schema:\n  positional: [{name: seconds, type: integer, required: true}]\n"
    )
    assert "slow" in invoke("tools", "call", "slow", "seconds=60", status=124).stderr


def test_empty_workspace_is_told(invoke: Invoke, tools: Path) -> None:
    for path in tools.iterdir():
        path.unlink()
    done = invoke("tools", "list")
    assert done.stdout == ""
    assert done.stderr.startswith("no tools in ")
    assert invoke("tools", "list", "--json").stdout == "[]\n"
