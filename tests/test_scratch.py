"""A session's own folder: private, removed at the end, and not left behind by a killed host."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from py_code_mode.scratch import Scratch, sweep

HOST = """
import sys
from py_code_mode.scratch import Scratch
scratch = Scratch.make()
print(scratch.workdir.parent, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def start_host() -> tuple["subprocess.Popen[str]", Path]:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    return host, Path(host.stdout.readline().strip())


def finish(host: "subprocess.Popen[str]") -> None:
    host.kill()
    host.communicate(timeout=20)


def test_folder_is_private_and_gone_after_remove(temporary: Path) -> None:
    scratch = Scratch.make()
    folder = scratch.workdir.parent

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert scratch.packages.is_dir()

    scratch.remove()
    scratch.remove()
    assert list(temporary.iterdir()) == []


def test_folder_of_a_killed_host_is_swept(temporary: Path) -> None:
    host, folder = start_host()
    finish(host)
    assert folder.is_dir()

    assert sweep(temporary) == [folder]
    assert not folder.exists()


def test_folder_of_a_living_host_stays(temporary: Path) -> None:
    host, folder = start_host()
    try:
        assert sweep(temporary) == []
        assert folder.is_dir()
    finally:
        finish(host)


def test_folder_that_is_being_made_stays_until_it_is_old(temporary: Path) -> None:
    folder = temporary / "code-mode-new"
    folder.mkdir()

    assert sweep(temporary) == []

    os.utime(folder, (0, 0))
    assert sweep(temporary) == [folder]


def test_link_in_the_place_of_the_lock_is_not_followed(temporary: Path) -> None:
    folder = temporary / "code-mode-odd"
    folder.mkdir()
    target = temporary / "elsewhere"
    target.touch()
    (folder / ".alive").symlink_to(target)

    assert sweep(temporary) == []
    assert target.exists()
