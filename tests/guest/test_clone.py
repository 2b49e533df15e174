"""A copy of a process is a whole one: its sibling, with threads, forks and finalizers that work."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from py_code_mode.environments import find_interpreter
from py_code_mode.errors import InterpreterNotFound
from py_code_mode.guest import clone

SOURCE = Path(clone.__file__)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

_LOAD = f"""
import runpy, os, sys, threading, signal, gc
names = runpy.run_path({str(SOURCE)!r})
clone, PARENT, thread_names = names["clone"], names["PARENT"], names["thread_names"]
"""
_SIBLING = """
import ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # a subreaper, as a keeper is
reading, writing = os.pipe()
worker = os.fork()
if worker == 0:
    pid = clone(PARENT)
    if pid == 0:
        said = []
        thread = threading.Thread(target=said.append, args=("thread",))
        thread.start(); thread.join()
        while len(os.listdir("/proc/self/task")) > 1: pass  # the kernel's end of it comes later
        child = os.fork()
        if child == 0: os._exit(7)
        said.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        said.append(threading.get_native_id() == os.getpid())
        said.append(threading.current_thread() is threading.main_thread())
        os.write(writing, repr(said).encode()); os._exit(5)
    try: os.wait()
    except ChildProcessError: os._exit(3)
    os._exit(4)
ends = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
print(ends, os.read(reading, 1000).decode())
"""


def run(code: str, python: str = sys.executable) -> str:
    done = subprocess.run(
        [python, "-I", "-c", _LOAD + code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_copy_is_a_sibling_with_threads_and_children_of_its_own(version: str) -> None:
    try:
        python = find_interpreter(version)
    except InterpreterNotFound as error:
        pytest.skip(str(error))
    assert run(_SIBLING, str(python.path)) == "[3, 5] ['thread', 7, True, True]"


def test_fork_handlers_run_and_signals_stay_as_they_were() -> None:
    code = """
seen = []
os.register_at_fork(before=lambda: seen.append("before"),
    after_in_parent=lambda: seen.append("parent"), after_in_child=lambda: seen.append("child"))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
pid = clone(0)
if pid == 0:
    good = seen == ["before", "child"] and gc.isenabled()
    os._exit(0 if good and signal.pthread_sigmask(0, []) == {signal.SIGUSR1} else 1)
masked = signal.pthread_sigmask(0, [])
print(os.waitpid(pid, 0)[1], seen, gc.isenabled(), masked == {signal.SIGUSR1})
"""
    assert run(code) == "0 ['before', 'parent'] True True"


def test_copy_that_cannot_be_made_is_an_error_and_changes_nothing() -> None:
    code = """
try: clone(PARENT | 0x10000)  # CLONE_THREAD without CLONE_VM
except OSError as error: print(error)
import os.path  # the import lock is free
print(os.waitstatus_to_exitcode(os.waitpid(clone(0) or os._exit(9), 0)[1]))
"""
    assert run(code) == "[Errno 22] clone: Invalid argument\n9"


def test_unknown_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clone, "_CLONE", {})
    with pytest.raises(OSError, match="not known how"):
        clone.clone(0)


def test_other_threads_are_named() -> None:
    code = """
assert thread_names() == []
go = threading.Event()
thread = threading.Thread(target=go.wait); thread.start()
print(len(thread_names())); go.set(); thread.join()
"""
    assert run(code) == "1"


def test_constants_are_those_of_the_kernel() -> None:
    headers = Path("/usr/include/linux/sched.h")
    if not headers.exists():
        pytest.skip("no kernel headers here")
    text = headers.read_text()
    defined = {
        words[1]: int(words[2], 0)
        for words in map(str.split, text.splitlines())
        if words[:1] == ["#define"]
        and len(words) > 2
        and words[1].startswith("CLONE_")
        and words[2].startswith("0x")
        and "U" not in words[2]
    }
    found = runpy.run_path(str(SOURCE))
    assert found["PARENT"] == defined["CLONE_PARENT"]
    assert found["_CHILD_CLEARTID"] == defined["CLONE_CHILD_CLEARTID"]
    assert found["_CHILD_SETTID"] == defined["CLONE_CHILD_SETTID"]


def test_memory_in_large_pages_says_the_same_here_and_in_copies() -> None:
    code = """
import mmap
held = mmap.mmap(-1, 9 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held[:] = bytes(range(256)) * (9 << 12)
several = [bytes([number]) * 100_000 for number in range(100)]
before = hash(bytes(held))
names["use_large_pages"]()
pid = clone(0)
if pid == 0:
    same = hash(bytes(held)) == before
    held[:] = bytes(len(held))
    same = same and all(each == bytes([number]) * 100_000 for number, each in enumerate(several))
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), hash(bytes(held)) == before)
"""
    assert run(code) == "0 True"
