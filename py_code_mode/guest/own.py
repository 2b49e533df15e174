"""What a process can learn of itself, also where it cannot read /proc.

Where Landlock alone confines a worker, that reads some of its own folder of /proc and none of any
other process's: neither of its children's nor, since they have other numbers, of its copies'.
"""

from __future__ import annotations

import errno
import os

_CLONE_THREAD = 0x10000
#: The highest descriptor that is looked for one by one.
_MOST_DESCRIPTORS = 1 << 16


def descriptors() -> list[int]:
    """The open descriptors, perhaps with one that is closed by now.

    Raises:
        OSError: there may be too many to look for.
    """
    try:
        return [int(entry) for entry in os.listdir("/proc/self/fd")]
    except PermissionError:
        return _descriptors_one_by_one()


def _descriptors_one_by_one() -> list[int]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not 0 <= limit <= _MOST_DESCRIPTORS:
        raise OSError("/proc cannot be read, and too many files may be open to look for each")
    found: list[int] = []
    for fd in range(limit):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return found


def count_threads() -> int | None:
    """The number of threads; None for more than one, where how many cannot be seen.

    Raises:
        OSError: nothing tells.
    """
    try:
        return len(os.listdir("/proc/self/task"))
    except PermissionError:
        return _one_thread()


def _one_thread() -> int | None:
    import ctypes

    # unshare() of what a single thread has alone changes nothing, and fails where there are more
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_THREAD) == 0:
        return 1
    number = ctypes.get_errno()
    if number == errno.EINVAL:
        return None
    raise OSError(number, f"unshare(CLONE_THREAD): {os.strerror(number)}")


def resident_bytes() -> int:
    """Memory that no file is behind; where that cannot be seen, at most that much."""
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except PermissionError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def holds_write_lock(fd: int) -> bool:
    """Whether a POSIX lock for writing is held on a file; True where that cannot be seen."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            return any(line.startswith(b"lock:") and b" WRITE " in line for line in file)
    except PermissionError:
        import fcntl

        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
