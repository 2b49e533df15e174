"""FileStore keeps the contract, stays inside its folder, survives crashes and other processes."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import NotStored, StoreError
from py_code_mode.stores import FileStore, Store, file
from py_code_mode.testing.stores import StoreContract

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 60


class TestFileStore(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return FileStore(folder / "made at the first write")


class TestFileStoreInSubfolder(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return FileStore(folder / "base", "inner")


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> str:
    output, _ = child.communicate(timeout=TIMEOUT)
    assert child.returncode == 0, output
    return output


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def test_missing_folder_is_made_at_the_first_write_only(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    store = FileStore(root)
    assert store.names() == []
    assert store.delete("x") is False
    assert not (tmp_path / "a").exists()
    store.write("x", b"1")
    assert (root / "x").read_bytes() == b"1"


def test_deleting_nothing_makes_no_lock(tmp_path: Path) -> None:
    assert FileStore(tmp_path).delete("x") is False
    assert os.listdir(tmp_path) == []


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    FileStore("~/data").write("x", b"1")
    assert (tmp_path / "data" / "x").read_bytes() == b"1"


def test_folder_stays_the_same_when_the_process_changes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileStore("data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.write("x", b"1")
    assert (tmp_path / "data" / "x").exists()


def test_removed_folder_is_an_empty_store_again(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "base", "inner")
    store.write("x", b"1")
    for name in os.listdir(store.root):
        (store.root / name).unlink()
    store.root.rmdir()
    assert store.names() == []
    store.write("x", b"2")
    assert store.read("x") == b"2"


def test_files_put_there_by_hand_are_stored(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    (tmp_path / "x").write_bytes(b"by hand")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / "cafe\u0301").write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"")
    assert store.names() == ["x"]
    assert store.read("x") == b"by hand"
    assert store.stat("folder") is None


def test_edit_in_place_changes_the_version_even_at_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    path = tmp_path / "x"
    for turn in range(200):
        path.write_bytes(b"%03d" % turn)
        before = store.version("x")
        path.write_bytes(b"%03d" % (turn + 1))
        assert store.version("x") != before


def test_copied_modification_time_does_not_hide_a_change(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    path = tmp_path / "x"
    path.write_bytes(b"1")
    os.utime(path, (1, 1))
    before = store.version("x")
    path.write_bytes(b"2")
    os.utime(path, (1, 1))
    assert store.version("x") != before


def test_mode_of_a_replaced_file_stays_and_umask_holds_for_new_ones(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "old").chmod(0o640)
    umask = os.umask(0o027)
    try:
        store.write("old", b"1")
        store.write("new", b"1")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "inside", "nowhere"])
def test_link_is_not_followed(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "inside").write_bytes(b"inside")
    (tmp_path / "outside").write_bytes(b"outside")
    (root / "link").symlink_to(target)
    store = FileStore(root)
    assert "link" in store.names()
    with pytest.raises(StoreError, match=r"root/link: it is a symbolic link"):
        store.read("link")
    store.stat("link")
    store.write("link", b"new")  # replaces the link, not what it leads to
    assert store.read("link") == b"new"
    (root / "other").symlink_to(target)
    assert store.delete("other") is True
    assert (tmp_path / "outside").read_bytes() == b"outside"
    assert (root / "inside").read_bytes() == b"inside"


def test_subfolder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"1")
    base = tmp_path / "base"
    base.mkdir()
    (base / "inner").symlink_to(tmp_path / "outside")
    store = FileStore(base, "inner")
    for act in (
        store.names,
        lambda: store.read("secret"),
        lambda: store.stat("secret"),
        lambda: store.write("secret", b"2"),
        lambda: store.delete("secret"),
    ):
        with pytest.raises(StoreError, match="links are not followed"):
            act()
    assert os.listdir(tmp_path / "outside") == ["secret"]
    assert (tmp_path / "outside" / "secret").read_bytes() == b"1"


def test_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="symbolic link"):
        FileStore(root).write("x", b"1")
    assert not (tmp_path / "outside").exists()


def test_pipe_does_not_block_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = FileStore(tmp_path)
    assert store.names() == []
    with pytest.raises(StoreError, match="not a regular file"):
        store.read("pipe")
    store.stat("pipe")


def test_folder_in_the_way_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    store = FileStore(tmp_path)
    for act in (
        lambda: store.read("x"),
        lambda: store.write("x", b"1"),
        lambda: store.delete("x"),
    ):
        with pytest.raises(StoreError, match=r"/x: ") as caught:
            act()
        assert not isinstance(caught.value, NotStored)
    assert hidden(tmp_path) == [".lock"]


def test_file_in_place_of_the_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    store = FileStore(tmp_path / "root")
    for act in (store.names, lambda: store.read("x"), lambda: store.write("x", b"1")):
        with pytest.raises(StoreError, match="root"):
            act()


def test_full_disk_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    FileStore(tmp_path).write("x", b"old")
    child = python(
        """
import resource, sys
from py_code_mode.errors import StoreError
from py_code_mode.stores import FileStore
store = FileStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name in ("x", "new"):
    try:
        store.write(name, b"n" * 1_000_000)
    except StoreError as error:
        print(error)
store.write("small", b"1")
""",
        tmp_path,
    )
    output = finish(child)
    too_large = os.strerror(errno.EFBIG)
    assert output.splitlines() == [f"{tmp_path}/x: {too_large}", f"{tmp_path}/new: {too_large}"]
    assert FileStore(tmp_path).read("x") == b"old"
    assert FileStore(tmp_path).names() == ["small", "x"]
    assert hidden(tmp_path) == [".lock"]


def test_failure_in_the_middle_of_a_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)
    store.write("x", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in ("fsync", "rename", "fchmod"):
        with monkeypatch.context() as patch:
            patch.setattr(file.os, step, fail)
            with pytest.raises(StoreError, match=r"/x: No space left"):
                store.write("x", b"new")
        assert store.read("x") == b"old"
        assert hidden(tmp_path) == [".lock"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_forbidden_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            FileStore(tmp_path).write("x", b"1")
    finally:
        tmp_path.chmod(0o700)


WRITER = """
import sys
from py_code_mode.stores import FileStore
store = FileStore(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        store.write("x", letter * 2_000_000)
        print("wrote", flush=True)
"""


def test_killed_writer_leaves_a_whole_content_and_no_lock(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    contents = [letter * 2_000_000 for letter in (b"a", b"b")]
    left = 0
    for turn in range(8):
        child = python(WRITER, tmp_path)
        assert child.stdout is not None
        for _ in range(2 + turn % 3):
            assert child.stdout.readline()
        while turn % 2 and not any(name.startswith(".new-") for name in os.listdir(tmp_path)):
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=TIMEOUT)
        assert store.read("x") in contents
        assert store.names() == ["x"]
        left += any(name.startswith(".new-") for name in os.listdir(tmp_path))
        FileStore(tmp_path).write("x", contents[0])  # the lock is free, the rest is cleared
        assert hidden(tmp_path) == [".lock"]
    assert left, "no writer was killed in the middle of a write"


def test_processes_counting_under_the_lock_lose_nothing(tmp_path: Path) -> None:
    FileStore(tmp_path).write("count", b"0")
    code = """
import sys
from py_code_mode.stores import FileStore
store = FileStore(sys.argv[1])
for _ in range(50):
    with store.lock():
        store.write("count", b"%d" % (int(store.read("count")) + 1))
"""
    for child in [python(code, tmp_path) for _ in range(3)]:
        finish(child)
    assert FileStore(tmp_path).read("count") == b"150"


def test_removed_lock_file_is_made_again(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write("x", b"1")
    (tmp_path / ".lock").unlink()
    with store.lock():
        assert (tmp_path / ".lock").exists()


def test_lock_held_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LOCK_TIMEOUT", 0.05)
    code = """
import sys
from py_code_mode.stores import FileStore
with FileStore(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    child = python(code, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "held"
    store = FileStore(tmp_path)
    with pytest.raises(StoreError, match="another writer has held its lock"):
        store.write("x", b"1")
    assert store.names() == []
    finish(child)
    store.write("x", b"1")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    store = FileStore(tmp_path, "inner")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for turn in range(50):
        store.write("x", b"%d" % turn)
        store.read("x")
        store.version("x")
        store.names()
        store.delete("x")
        with pytest.raises(NotStored):
            store.read("x")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
