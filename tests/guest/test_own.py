"""What a process learns of itself, with /proc and without."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from py_code_mode.guest import own

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture(params=["/proc", "no /proc"])
def view(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no /proc":
        list_folder = cast("Any", os.listdir)
        really_open = cast("Any", open)

        def refuse(path: Any = ".") -> Any:
            if str(path).startswith("/proc/"):
                raise PermissionError(13, "Permission denied", path)
            return list_folder(path)

        def refuse_to_open(path: Any, *args: Any, **named: Any) -> Any:
            if str(path).startswith("/proc/"):
                raise PermissionError(13, "Permission denied", path)
            return really_open(path, *args, **named)

        monkeypatch.setattr(os, "listdir", refuse)
        monkeypatch.setattr(own, "open", refuse_to_open, raising=False)
    return str(request.param)


def test_open_descriptors_are_found(view: str) -> None:
    reading, writing = os.pipe()
    try:
        assert {reading, writing} <= set(own.descriptors())
    finally:
        os.close(reading)
        os.close(writing)
    assert writing not in own.descriptors()


def test_threads_are_counted_or_at_least_noticed(view: str) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        counted = own.count_threads()
        assert counted is None if view == "no /proc" else (counted or 0) > 1
    finally:
        stop.set()
        thread.join()


def test_a_single_thread_is_told(view: str) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if own.count_threads() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_resident_memory_is_not_told_too_low(view: str) -> None:
    held = bytearray(b"x") * (32 << 20)
    assert own.resident_bytes() >= len(held)


def test_a_lock_for_writing_is_noticed(view: str, tmp_path: Path) -> None:
    path = tmp_path / "database"
    path.write_text("x")
    with path.open() as reading, path.open("r+") as writing:
        assert not own.holds_write_lock(reading.fileno())
        # where locks cannot be seen, whatever may be written to may be locked
        assert own.holds_write_lock(writing.fileno()) == (view == "no /proc")
        fcntl.lockf(writing, fcntl.LOCK_EX)
        assert own.holds_write_lock(writing.fileno())


def test_too_many_descriptors_to_look_for_are_an_error(
    view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_MOST_DESCRIPTORS", 2)
    if view == "no /proc":
        with pytest.raises(OSError, match="too many"):
            own.descriptors()
    else:
        assert own.descriptors()
