"""Which Python a guest gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from py_code_mode.environments import find_interpreter, interpreters
from py_code_mode.errors import ConfigError, EnvironmentFailed, InterpreterNotFound

pytestmark = pytest.mark.usefixtures("clean_settings")


def fake_python(path: Path, version: tuple[int, int, int], /, **facts: object) -> Path:
    """A program that answers as Python of this version does."""
    answer: dict[str, object] = {
        "path": str(path),
        "prefix": str(path.parent.parent),
        "version": version,
        "implementation": "cpython",
        "platform": "linux-x86_64",
        "build": "fake",
        "free_threaded": False,
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/bin/sh\necho ran >> {path}.log\n/bin/cat <<'END'\n{json.dumps(answer)}\nEND\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no Python but this process's."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/nowhere{os.pathsep}relative")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    return tmp_path


def test_no_wish_gives_this_process_interpreter_without_its_virtual_environment() -> None:
    found = find_interpreter(None)
    assert found.version == sys.version_info[:3]
    assert found.implementation == "cpython"
    asked = "import sys; print(sys.prefix == sys.base_prefix, sys.version)"
    said = subprocess.run(
        [found.path, "-I", "-c", asked], capture_output=True, text=True, timeout=30, check=True
    )
    assert said.stdout.strip() == f"True {sys.version}"


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_own_interpreter_serves_a_version_it_has(parts: int, machine: Path) -> None:
    wanted = ".".join(map(str, sys.version_info[:parts]))
    assert find_interpreter(wanted) == find_interpreter(None)


def test_path_comes_before_pyenv_and_pyenv_before_uv(machine: Path) -> None:
    in_uv = fake_python(machine / "uv/cpython-3.99.3-linux-x86_64-gnu/bin/python3", (3, 99, 3))
    assert find_interpreter("3.99").path == in_uv
    older = fake_python(machine / "pyenv/versions/3.99.1/bin/python3", (3, 99, 1))
    newer = fake_python(machine / "pyenv/versions/3.99.10/bin/python3", (3, 99, 10))
    assert find_interpreter("3.99").path == newer
    assert find_interpreter("3.99.1").path == older
    on_path = fake_python(machine / "bin/python3.99", (3, 99, 0))
    assert find_interpreter("3.99").path == on_path
    assert find_interpreter("3.99.3").path == in_uv


def test_a_name_is_not_believed(machine: Path) -> None:
    fake_python(machine / "bin/python3.99", (3, 12, 0))
    with pytest.raises(InterpreterNotFound):
        find_interpreter("3.99")


def test_a_failing_shim_is_skipped(machine: Path) -> None:
    shim = machine / "bin/python3.99"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    good = fake_python(machine / "pyenv/versions/3.99.0/bin/python3", (3, 99, 0))
    assert find_interpreter("3.99").path == good


@pytest.mark.parametrize("facts", [{"implementation": "pypy"}, {"free_threaded": True}])
def test_other_kinds_of_python_are_not_chosen_by_version(
    facts: dict[str, object], machine: Path
) -> None:
    fake_python(machine / "bin/python3.99", (3, 99, 0), **facts)
    with pytest.raises(InterpreterNotFound):
        find_interpreter("3.99")


def test_hanging_candidate_is_killed_and_skipped(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "PROBE_TIMEOUT", 0.3)
    hanging = machine / "bin/python3.99"
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    hanging.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(EnvironmentFailed, match=r"no answer within 0\.3 s"):
        find_interpreter(str(hanging))
    assert time.monotonic() - started < 10


def test_nothing_found_lists_what_exists(machine: Path) -> None:
    fake_python(machine / "bin/python3.98", (3, 98, 7))
    fake_python(machine / "pyenv/versions/3.97.2/bin/python3", (3, 97, 2))
    with pytest.raises(InterpreterNotFound) as caught:
        find_interpreter("3.99")
    own = ".".join(map(str, sys.version_info[:3]))
    for version in ("3.98.7", "3.97.2", own):
        assert version in str(caught.value)
    assert len(caught.value.available) == 3


@pytest.mark.parametrize(
    "wanted", ["", "python3.13", "3.", "3.13.0.1", "3.13rc1", ">=3.11", "--help", "3 13", "٣.13"]
)
def test_text_that_is_no_version_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="neither a version"):
        find_interpreter(wanted)


@pytest.mark.parametrize("wanted", ["2", "2.7", "3.9", "3.6.15"])
def test_too_old_version_is_refused_with_the_reason(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"older than 3\.10"):
        find_interpreter(wanted)


def test_too_old_interpreter_is_refused_by_what_it_says(tmp_path: Path) -> None:
    old = fake_python(tmp_path / "python", (3, 9, 18))
    with pytest.raises(ConfigError, match=r"3\.9\.18 is older than 3\.10"):
        find_interpreter(str(old))


def test_path_that_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterpreterNotFound):
        find_interpreter(str(tmp_path / "missing"))
    with pytest.raises(EnvironmentFailed, match="does not answer as a Python"):
        find_interpreter("/bin/echo")


def test_virtual_environment_by_path_gives_its_base() -> None:
    found = find_interpreter(sys.executable)
    assert found == find_interpreter(None)


def test_answer_is_kept_until_the_file_changes(machine: Path) -> None:
    python = fake_python(machine / "bin/python3.99", (3, 99, 0))
    log = Path(f"{python}.log")
    for _ in range(3):
        assert find_interpreter("3.99").version == (3, 99, 0)
    assert log.read_text() == "ran\n"
    fake_python(python, (3, 99, 1))
    os.utime(python, ns=(1, 1))
    assert find_interpreter("3.99").version == (3, 99, 1)


def test_downloads_are_off_unless_allowed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import uv

    log, program = machine / "log", machine / "uv-program"
    new = machine / "uv/cpython-3.99.0-linux-x86_64-gnu/bin/python3"
    made = fake_python(machine / "made", (3, 99, 0), path=str(new)).read_text()
    program.write_text(
        f"#!/bin/sh\necho $UV_PYTHON_DOWNLOADS >> {log}\n"
        f'case "$*" in *"python dir"*) echo {machine}/uv; exit;; esac\n'
        f"mkdir -p {new.parent}; cat > {new} <<'EOF'\n{made}EOF\nchmod 755 {new}\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(program))
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{machine}/bin")
    with pytest.raises(InterpreterNotFound):
        find_interpreter("3.99")
    assert set(log.read_text().split()) == {"never"}
    assert find_interpreter("3.99", allow_downloads=True).path == new


def test_real_interpreters_of_this_machine_are_found_by_version() -> None:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [path.name for path in root.glob("3.1[0-9].*") if (path / "bin/python3").exists()]
    others = [name for name in found if name != ".".join(map(str, sys.version_info[:3]))]
    if not others:
        pytest.skip("only one Python on this machine")
    for name in others:
        assert ".".join(map(str, find_interpreter(name).version)) == name
