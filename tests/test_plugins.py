"""A separately installed executor is found by its entry point, and is as good as ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from py_code_mode.environments.uv import run_uv_blocking

SAMPLE = Path(__file__).parent / "fixtures" / "sample_executor"
ROOT = Path(__file__).parent.parent

PROGRAM = """
import logging, sys
import anyio
from py_code_mode import Session
from py_code_mode.execution.registry import executor_class, executor_names

assert "logged_executor" not in sys.modules
print(executor_names())
assert "logged_executor" not in sys.modules  # listing them imports none
print(executor_class("logged").__name__)
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")

async def main():
    async with Session.from_base(sys.argv[1]) as session:
        print("logged" in repr(session), session.supports("process_isolation"))
        print((await session.run("20 + 22")).value)
        print((await session.run("1 / 0")).error)

anyio.run(main)
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the sample executor's wheel is installed."""
    pytest.importorskip("hatchling", reason="the extra `test` is not installed")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SAMPLE, folder / "source")
    uv(
        "build",
        "--wheel",
        "--offline",
        "--no-build-isolation",
        *PYTHON,
        "--out-dir",
        *(str(folder), str(source)),
    )
    (wheel,) = folder.glob("*.whl")
    uv(
        "pip",
        "install",
        "--offline",
        "--no-deps",
        *PYTHON,
        "--target",
        str(folder / "target"),
        str(wheel),
    )
    return folder / "target"


PYTHON = ("--python", sys.executable)


def uv(*arguments: str) -> None:
    answer = run_uv_blocking(*arguments, timeout=120)
    assert answer.is_ok, answer.stderr


def run_python(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_executor_is_found_through_its_entry_point(target: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("executor: logged\n")
    finished = run_python(target, "-c", PROGRAM, str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0] == "('in_process', 'logged', 'subprocess')"
    assert lines[1] == "LoggedExecutor"
    assert lines[2] == "True True"
    assert lines[3].startswith("logged_executor run 1: ok after ")
    assert lines[4] == "42"
    assert lines[5].startswith("logged_executor run 2: ZeroDivisionError after ")
    assert lines[6] == "ZeroDivisionError: division by zero"


def test_unknown_executor_names_those_that_are_installed(target: Path) -> None:
    code = "from py_code_mode.execution.registry import executor_class; executor_class('docker')"
    finished = run_python(target, "-c", code)
    assert "in_process, logged, subprocess" in finished.stderr
