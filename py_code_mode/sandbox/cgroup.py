"""Memory of a session as a whole, held by the kernel: a control group where we may make one.

A group counts what no process maps as well: files that only a descriptor on its way holds, shared
memory that was unmapped, buffers of sockets. Nobody is moved who does not belong to a session, so
groups are to be had where the kernel takes them beside or below this process's own: with version 1
by root, with version 2 where the folder above us was handed over to us with its controllers (`man 5
systemd.resource-control`, Delegate= and DelegateSubgroup=).

A keeper enters its group by itself, before it starts anything, through a descriptor of the host's.
Into ``tasks`` of version 1 that takes 50 µs. Every other way (a pid, ``cgroup.procs``) may have the
kernel wait until all processors have passed a point: 14 ms were measured, so with version 2 a start
takes that much longer, unless the groups are mounted with ``favordynmods`` or the session waited in
a pool.

Version 2 was tried against a folder that looks like it, on no machine: none with groups that were
handed over was at hand.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from os import mkdir, rmdir
from pathlib import Path
from typing import TYPE_CHECKING

from py_code_mode.guest.keeper import count_kills

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

ROOT = Path("/sys/fs/cgroup")
PREFIX = "code-mode-"
#: Seconds that processes of a group may take to end, before it is left to the next host.
END_TIMEOUT = 2.0
_PAUSE = 0.002
_TRIED = 64 << 20
_TRY_TIMEOUT = 2.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """The names of a version's files.

    Attributes:
        swap: what is written where swapping is limited, for a limit in bytes.
        entrance: takes "0" for the process itself.
        events: has a line ``oom_kill N``.
    """

    number: int
    limit: str
    swap_limit: str
    swap: str
    entrance: str
    events: str


_FIRST = _Version(
    number=1,
    limit="memory.limit_in_bytes",
    swap_limit="memory.memsw.limit_in_bytes",
    swap="{limit}",
    entrance="tasks",
    events="memory.oom_control",
)
_SECOND = _Version(
    number=2,
    limit="memory.max",
    swap_limit="memory.swap.max",
    swap="0",
    entrance="cgroup.procs",
    events="memory.events",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder of the kernel's in which we may make groups; found by `find`."""

    folder: Path
    version: _Version

    def __str__(self) -> str:
        return f"version {self.version.number}"

    def make(self, memory: int) -> Group:
        """A group with a limit in bytes, and nobody in it; blocks for 0.1 ms.

        Raises:
            OSError: it cannot be made any more.
        """
        sweep(self)
        folder = self.folder / f"{_own_prefix(os.getpid())}{next(_numbers)}"
        mkdir(folder)
        group = Group(folder, self.version)
        try:
            _write(folder / self.version.limit, str(memory))
            with contextlib.suppress(FileNotFoundError):  # the kernel does not count swap
                _write(folder / self.version.swap_limit, self.version.swap.format(limit=memory))
        except BaseException:
            group.remove()
            raise
        return group


class Group:
    """One session's group.

    A host's forked child has nothing to do with it: there `remove` does nothing.
    """

    def __init__(self, folder: Path, version: _Version) -> None:
        self._folder = folder
        self._version = version
        self._owner = os.getpid()

    @contextlib.contextmanager
    def open(self) -> Generator[tuple[int, int]]:
        """Descriptors for a keeper: to write "0" to, and to read the kernel's kills from."""
        entrance = os.open(self._folder / self._version.entrance, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with self._opened_events() as events:
                yield entrance, events
        finally:
            os.close(entrance)

    def count_kills(self) -> int:
        """How many of its processes the kernel has ended to keep the limit; takes 10 µs."""
        with self._opened_events() as events:
            return count_kills(events)

    @contextlib.contextmanager
    def _opened_events(self) -> Generator[int]:
        events = os.open(self._folder / self._version.events, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield events
        finally:
            os.close(events)

    def remove_now(self) -> bool:
        """Remove it, unless there is still a process in it; idempotent."""
        if os.getpid() != self._owner:
            return True
        try:
            rmdir(self._folder)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove it with all who are in it; blocking, at most `END_TIMEOUT`."""
        until = time.monotonic() + END_TIMEOUT
        while not self.remove_now():
            if time.monotonic() > until:
                return  # the kernel does not let go of them: what is left is swept one day
            self._kill()
            time.sleep(_PAUSE)

    def _kill(self) -> None:
        listed = self._members()
        pidfds: dict[int, int] = {}
        try:
            for pid in listed:
                with contextlib.suppress(ProcessLookupError):
                    pidfds[pid] = os.pidfd_open(pid)
            # who is still listed is whom the descriptor means
            for pid in listed & self._members() & pidfds.keys():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    def _members(self) -> set[int]:
        try:
            text = (self._folder / "cgroup.procs").read_text()
        except OSError:
            return set()
        return {int(word) for word in text.split()} - {0, os.getpid()}


def find(user: int | None = None, *, root: Path = ROOT, own: str | None = None) -> Place:
    """Where groups with a limit on memory can be made, by making one and entering it.

    Args:
        user: who enters, where that is another one than ours.
        root: where the kernel shows its groups.
        own: of which groups this process is, as in /proc/self/cgroup.

    Raises:
        OSError: nowhere; why not.
    """
    problem: OSError | None = None
    for place in _candidates(root, _reads(Path("/proc/self/cgroup")) if own is None else own):
        try:
            _try(place, user)
        except OSError as error:
            problem = problem or OSError(error.errno, f"{place}: {error.strerror or error}")
        else:
            return place
    raise problem or OSError(errno.ENOENT, "no control groups that count memory are mounted")


def _candidates(root: Path, own: str) -> Iterator[Place]:
    """Folders that may do: those of version 1 first, where that has the memory."""
    for line in sorted(own.splitlines(), reverse=True):
        number, controllers, path = line.split(":", 2)
        below = path.strip("/")
        if "memory" in controllers.split(",") and (root / "memory" / below).is_dir():
            yield Place(folder=root / "memory" / below, version=_FIRST)
        elif number == "0":
            for top in (root, root / "unified"):
                folder = top / below
                if (folder / "cgroup.controllers").exists():
                    yield Place(folder=folder, version=_SECOND)
                    if below:
                        yield Place(folder=folder.parent, version=_SECOND)


def _try(place: Place, user: int | None) -> None:
    if place.version is _SECOND:
        _hand_down(place.folder)
    group = place.make(_TRIED)
    try:
        with group.open() as (entrance, _):
            done = subprocess.run(
                ["/bin/sh", "-c", "echo 0"],
                stdin=subprocess.DEVNULL,
                stdout=entrance,
                stderr=subprocess.PIPE,
                timeout=_TRY_TIMEOUT,
                check=False,
                user=user,
                group=user,
                extra_groups=None if user is None else (),
            )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-200:]
            raise OSError(errno.EPERM, f"a group cannot be entered: {said}")
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, "a group was not entered in time") from error
    finally:
        group.remove()


def _hand_down(folder: Path) -> None:
    """Have the groups below this one count memory, which they do only if told so from above.

    Raises:
        OSError: they do not. The folder's own processes are in the way (`EBUSY`: they would have to
            be moved, which we do to nobody's), it is not ours, or has not the memory either.
    """
    if "memory" not in _reads(folder / "cgroup.controllers").split():
        raise OSError(errno.ENODEV, "memory is not counted in our own group")
    if "memory" in _reads(folder / "cgroup.subtree_control").split():
        return
    try:
        _write(folder / "cgroup.subtree_control", "+memory")
    except OSError as error:
        reason = f"not delegated: {error.strerror or error}"
        raise OSError(error.errno, reason) from error


# -- what hosts leave behind that were killed


def sweep(place: Place) -> None:
    """Remove the groups of hosts that have ended; once for a place in a process."""
    _sweep_once(place, os.getpid())


@cache
def _sweep_once(place: Place, process: int) -> None:
    try:
        names = [entry.name for entry in os.scandir(place.folder) if entry.is_dir()]
    except OSError:
        return  # what is wrong with it shows when a group is made
    for name in names:
        if _is_abandoned(name):
            with contextlib.suppress(OSError):  # it was just removed, or somebody lives in it
                rmdir(place.folder / name)


@cache
def _own_prefix(process: int) -> str:
    """How names of a process's groups begin: by when and where it was started too."""
    return f"{PREFIX}{_pid_namespace()}-{process}-{_start_of(process)}-"


def _is_abandoned(name: str) -> bool:
    words = name.removeprefix(PREFIX).split("-")
    if not name.startswith(PREFIX) or len(words) != 4 or not all(map(str.isdecimal, words)):
        return False
    namespace, process, start, _ = map(int, words)
    # of another pid namespace's processes nothing is known here
    return namespace == _pid_namespace() and _start_of(process) != start


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_of(process: int) -> int:
    """When a process was started, in ticks; -1 where there is none."""
    _, _, rest = _reads(Path(f"/proc/{process}/stat")).rpartition(")")
    return int(rest.split()[19]) if rest else -1


def _reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    # one write, and of a file that is there: what the kernel does not have it does not obey
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
