"""The real command in a process of its own."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Protocol

import pytest
from typer.testing import CliRunner

from py_code_mode.cli.main import app
from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

LIMIT = 90.0
COMMAND = [sys.executable, "-m", "py_code_mode"]


class Run(Protocol):
    """Runs the command in an empty folder and gives what it said."""

    def __call__(
        self, *arguments: str, stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]: ...


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    if probe().backends[0] == "none":  # which commands would tell
        kept["PYTHONWARNINGS"] = "ignore::UserWarning"
    return {**kept, **variables}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder that the command runs in."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def run(here: Path) -> Run:
    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=here,
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=LIMIT,
            env=environment(**variables),
        )

    return run


class OnTerminal(Protocol):
    """Runs the command on a terminal and gives its status and what the terminal got."""

    def __call__(self, *arguments: str, **variables: str) -> tuple[int, str]: ...


@pytest.fixture
def on_terminal(here: Path) -> OnTerminal:
    def on_terminal(*arguments: str, **variables: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        try:
            child = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=here,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=environment(**{"TERM": "xterm-256color", "COLUMNS": "100", **variables}),
            )
            os.close(theirs)
            return _read_all(child, ours)
        finally:
            os.close(ours)

    return on_terminal


def _read_all(child: subprocess.Popen[bytes], fd: int) -> tuple[int, str]:
    end = time.monotonic() + LIMIT
    received = b""
    try:
        while select.select([fd], [], [], max(end - time.monotonic(), 0))[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:  # Linux says EIO when the last writer is gone
                data = b""
            if not data:
                return child.wait(LIMIT), received.decode().replace("\r\n", "\n")
            received += data
        raise AssertionError(f"still running after {LIMIT} s; so far: {received!r}")
    finally:
        child.kill()
        child.wait()


class Invoke(Protocol):
    """Runs a command in this process, on the workspace of the test, and gives what it said."""

    def __call__(self, *arguments: str, stdin: str = "", status: int = 0) -> Result: ...


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A workspace folder that does not exist yet."""
    return tmp_path / "base"


@pytest.fixture
def invoke(base: Path) -> Invoke:
    def invoke(*arguments: str, stdin: str = "", status: int = 0) -> Result:
        done = CliRunner().invoke(app, [*arguments, "--base", str(base)], input=stdin)
        assert done.exit_code == status, (done.stdout, done.stderr, done.exception)
        return done

    return invoke


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No package index, whatever this machine's settings are."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
