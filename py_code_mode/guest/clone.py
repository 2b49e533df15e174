"""fork() with flags: a copy of this process as its sibling, or in namespaces of its own.

`os.fork` offers neither. The system call itself is made here, with what CPython does around a fork
(PyOS_BeforeFork and its companions are public C API), and with the thread id that the C library
keeps put right: `man 2 clone`, CLONE_CHILD_SETTID. The C library's own fork handlers do not run,
so a process must have one thread only.
"""

from __future__ import annotations

import _thread
import ctypes
import gc
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # the signal module itself takes milliseconds to import

PARENT = 0x8000
_CHILD_CLEARTID, _CHILD_SETTID, _SIGCHLD = 0x00200000, 0x01000000, 17
_GET_TID_ADDRESS = 40
#: Bytes of a large page, and the advice to make such of what is there (Linux 6.1, <linux/mman.h>).
_LARGE, _COLLAPSE = 2 << 20, 25
#: System call numbers, and whether the thread area comes before the child's thread id.
_CLONE = {"x86_64": (56, False), "aarch64": (220, True)}

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # holds the interpreter's lock throughout
_syscall.restype = ctypes.c_long
_python = ctypes.pythonapi
_before, _in_child = _python.PyOS_BeforeFork, _python.PyOS_AfterFork_Child
_in_parent = _python.PyOS_AfterFork_Parent
_address: int | None = None


def tid_address() -> int:
    """Where the C library keeps the main thread's id; found once, also for all copies.

    Raises:
        OSError: the kernel does not tell (CONFIG_CHECKPOINT_RESTORE), or another C library keeps
            something else there.
    """
    global _address
    if _address is None:
        found = ctypes.c_void_p()
        if _libc.prctl(_GET_TID_ADDRESS, ctypes.byref(found), 0, 0, 0) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"PR_GET_TID_ADDRESS: {os.strerror(number)}")
        address = found.value or 0
        # musl gives the kernel the address of a lock
        if not address or ctypes.c_int.from_address(address).value != _thread.get_native_id():
            raise OSError("the C library keeps its thread id elsewhere")
        _address = address
    return _address


def clone(flags: int) -> int:
    """Copy this process, which must have one thread only, as `os.fork` does.

    Args:
        flags: CLONE_* bits: `PARENT` for a sibling, CLONE_NEW* for new namespaces.

    Returns:
        0 in the copy, its pid here.

    Raises:
        OSError: there is no copy.
    """
    machine = os.uname().machine
    if machine not in _CLONE:
        raise OSError(f"not known how to copy a process on {machine}")
    number, area_first = _CLONE[machine]
    address = ctypes.c_void_p(tid_address())
    nothing = ctypes.c_void_p()
    last = (nothing, address) if area_first else (address, nothing)
    words = (
        ctypes.c_long(number),
        ctypes.c_ulong(flags | _SIGCHLD | _CHILD_CLEARTID | _CHILD_SETTID),
        nothing,
        nothing,
        *last,
    )
    # os.fork does all this in one C function. Between these calls the interpreter's locks are held
    # (from Python 3.13 on all of them): no handler of a signal may run, and no collection.
    masked = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    collects = gc.isenabled()
    gc.disable()
    try:
        _before()
        pid: int = _syscall(*words)
        problem = ctypes.get_errno()
        if pid == 0:
            _in_child()
        else:
            _in_parent()
    finally:
        if collects:
            gc.enable()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, masked)
    if pid < 0:
        raise OSError(problem, f"clone: {os.strerror(problem)}")
    return pid


def use_large_pages() -> None:
    """Move this process's own memory into large pages, where the kernel can, for its copies.

    A copy has a table entry of its own for each page, which is made, counted and undone: with one
    for 2 MiB instead of 512 a process with pandas is copied, and ends, in two thirds of the time.
    What a copy writes to is still a small page of its own.
    """
    with open("/proc/self/maps") as file:
        areas = [line.split() for line in file]
    for area, access, *_, name in areas:
        if not access.startswith("rw") or name not in ("0", "[heap]"):
            continue  # without a name the last word is the inode, 0
        begin, end = (int(word, 16) for word in area.split("-"))
        for place in range(-(-begin // _LARGE) * _LARGE, end - _LARGE + 1, _LARGE):
            # whether or not: it is there already, hardly used, or the kernel cannot
            _libc.madvise(ctypes.c_void_p(place), ctypes.c_size_t(_LARGE), _COLLAPSE)


def thread_names() -> list[str]:
    """The names of this process's threads other than the main one."""
    own = str(os.getpid())
    found: list[str] = []
    for thread in os.listdir("/proc/self/task"):
        if thread != own:
            try:
                with open(f"/proc/self/task/{thread}/comm") as file:
                    found.append(file.read().strip())
            except OSError:
                continue  # it has just ended
    return sorted(found)
