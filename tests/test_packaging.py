"""What is shipped: the wheel holds the package and no more, and runs where no checkout is."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from py_code_mode.environments.uv import run_uv_blocking

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent
PATIENCE = 300.0


def uv(*arguments: str) -> str:
    """Run uv as the library does, with the index settings of pip; skip if no index answers."""
    answer = run_uv_blocking(*arguments, timeout=PATIENCE)
    if answer.is_unreachable:
        pytest.skip("no package index can be reached, and uv's cache lacks a package")
    assert answer.is_ok, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    pytest.importorskip("hatchling", reason="the extra `test` is not installed")
    folder = tmp_path_factory.mktemp("dist")
    for kind in ("--wheel", "--sdist"):
        uv("build", kind, "--offline", "--no-build-isolation", *this_python(), *out(folder, ROOT))
    return folder


def this_python() -> tuple[str, str]:
    return "--python", sys.executable


def out(folder: Path, project: Path) -> tuple[str, str, str]:
    return "--out-dir", str(folder), str(project)


def wheel_of(dist: Path) -> Path:
    (wheel,) = dist.glob("py_code_mode-*.whl")
    return wheel


def first_parts(names: Iterable[str]) -> set[str]:
    return {name.partition("/")[0] for name in names}


def test_wheel_holds_the_package_and_its_metadata_only(dist: Path) -> None:
    wheel = wheel_of(dist)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert first_parts(names) == {"py_code_mode", info}
    sources = {
        f"py_code_mode/{path.relative_to(ROOT / 'py_code_mode')}" for path in package_files()
    }
    assert {name for name in names if name.startswith("py_code_mode/")} == sources
    assert "py_code_mode/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names


def package_files() -> Iterable[Path]:
    for path in (ROOT / "py_code_mode").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def test_wheel_says_what_it_needs_and_offers(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        (points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        message = email.message_from_bytes(archive.read(metadata))
        text = archive.read(points).decode()
    assert message["Requires-Python"] == ">=3.11"
    assert message["License-Expression"] == "MIT"
    assert "from py_code_mode import Session" in str(message.get_payload())
    assert "py-code-mode = py_code_mode.__main__:main" in text
    assert "subprocess = py_code_mode.execution.subprocess:SubprocessExecutor" in text


def test_source_distribution_can_be_tested(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        ".code-mode/tools/curl.yaml",
        "examples/main_job.py",
        "executors/README.md",
        "py_code_mode/py.typed",
        "tests/conftest.py",
        "tests/fixtures/sample_executor/pyproject.toml",
    } <= names
    assert not [name for name in names if name.startswith("examples/output/")]


@pytest.mark.timeout(PATIENCE + 60)
def test_installed_wheel_runs_where_no_checkout_is(dist: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    uv("venv", *this_python(), "--", str(venv))
    install = ("pip", "install", "--python", str(venv / "bin" / "python"))
    wheel = str(wheel_of(dist))
    if not run_uv_blocking(*install, "--offline", "--", wheel, timeout=PATIENCE).is_ok:
        uv(*install, "--", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        finished = subprocess.run(
            command,
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if finished.returncode != 0 and "index cannot be reached" in finished.stderr:
            pytest.skip("no package index can be reached for the worker's environment")
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    program = "import py_code_mode; print(py_code_mode.__file__)"
    assert str(venv) in run(str(venv / "bin" / "python"), "-c", program)
    assert run(str(venv / "bin" / "py-code-mode"), "run", "-c", "1+1") == "2\n"
    assert run(str(venv / "bin" / "python"), "-m", "py_code_mode", "run", "-c", "1+1") == "2\n"
    assert list(elsewhere.iterdir()) == []
