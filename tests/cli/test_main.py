"""The command as a whole: help, version, what it imports."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from .conftest import COMMAND, LIMIT

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import OnTerminal, Run


def test_help_names_every_command_and_shows_examples(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("run", "tools", "workflows", "artifacts", "deps", "sessions", "doctor"):
        assert f"\n  {command} " in done.stdout
    assert '  py-code-mode run -c "1 + 1"\n' in done.stdout


@pytest.mark.parametrize("group", ["tools", "workflows", "artifacts", "deps", "sessions"])
def test_help_of_a_group_shows_examples(run: Run, group: str) -> None:
    assert f"Examples:\n    py-code-mode {group} " in run(group, "--help").stdout


def test_help_of_run_tells_the_exit_status(run: Run) -> None:
    assert "  124  it took longer" in run("run", "--help").stdout


def test_version_is_the_distributions(run: Run) -> None:
    assert run("--version").stdout == f"py-code-mode {version('py-code-mode')}\n"


def test_unknown_command_is_a_usage_error(run: Run) -> None:
    done = run("dance")
    assert done.returncode == 2
    assert "dance" in done.stderr


def test_no_command_shows_the_help(run: Run) -> None:
    done = run()
    assert "Usage: py-code-mode" in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "-c", "print('y')\n5"]])
def test_reader_that_does_not_read_is_no_error(here: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=here, stdout=writer, stderr=subprocess.PIPE, timeout=LIMIT
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (1, 141)  # 1: the help is printed by a library with a view of its own


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 1),
        (["--version"], 1),
        (["tools", "--help"], 2),
        (["tools", "list", "--json"], 2),
    ],
)
def test_output_that_cannot_be_written_is_told_in_one_line(
    here: Path, arguments: list[str], status: int
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=here, stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT,
        )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert re.fullmatch("py-code-mode: .*No space left on device\\n", done.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_nothing_can_be_told_where_nothing_can_be_written(here: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "--help"], cwd=here, stdout=full, stderr=full, timeout=LIMIT
        )
    assert done.returncode == 1


def test_interrupt_while_it_is_imported_is_quiet(tmp_path: Path, here: Path) -> None:
    """A traceback of imports was shown."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [*COMMAND, "--help"],
        cwd=here, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_output_survives_a_stream_that_cannot_say_it(run: Run) -> None:
    done = run("run", "-c", "print('é')\n'漢'", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, "\\xe9\n'\\u6f22'\n")


def test_help_comes_at_once(run: Run) -> None:
    took: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 1.0  # processor time, which others on the machine hardly lengthen


def test_library_does_not_import_what_the_command_line_needs() -> None:
    code = (
        "import sys, py_code_mode; from py_code_mode import Session, FileStorage\n"
        "print(sorted({'typer', 'rich', 'click', 'py_code_mode.cli'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_help_does_not_import_what_it_does_not_need() -> None:
    code = (
        "import sys, py_code_mode.cli.main\n"
        "heavy = {'pandas', 'numpy', 'pyarrow', 'yaml', 'rich', 'jsonschema', 'uv'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_listings_are_tables_on_a_terminal(on_terminal: OnTerminal, here: Path) -> None:
    folder = here / ".code-mode" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "[b]notes.txt").write_text("12345")
    status, shown = on_terminal("artifacts", "list", NO_COLOR="1")
    header, rule, row = re.sub(r"\x1b\[[0-9;]*m", "", shown).strip().splitlines()
    assert status == 0
    assert header.split() == ["name", "type", "size", "created_at", "description"]
    assert set(rule.strip()) == {"─"}
    assert row.split()[:3] == ["[b]notes.txt", "file", "5"]
