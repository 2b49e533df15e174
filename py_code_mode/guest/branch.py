"""Sleeping copies of a worker: what a crash goes back to, what checkpoints are, what forks run on.

A copy is made between runs, sleeps on a socket of its own, and is there as long as the host holds
the other end. It becomes the worker when the host sends it a socket and pipes. Its parent is the
worker's own, so guest code that waits for its children never meets it.

What a copy would break is refused and told: threads do not come along, a copy of a pipe's end keeps
the reader waiting, a lock on a file stays with the process that took it.
"""

from __future__ import annotations

import _socket
import array
import errno
import gc
import json
import os
import stat
import sys

from . import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from .port import Port
    from .streams import Streams
else:
    import _signal

#: Seconds without a request after which a copy is made of a worker that has changed.
IDLE_DELAY = 0.005
_MAX_MESSAGE = 4096
_SET_NAME, _GET_NAME = 15, 16
_NAME = b"sleeper"


class Branches:
    """Makes copies of this worker; in a copy that is woken, the same goes on.

    Args:
        port: gets the woken copy's socket.
        streams: get its pipes.
        names: the user's variables, to say whose a descriptor is.
    """

    def __init__(self, port: Port, streams: Streams, names: Callable[[], Mapping[str, object]]):
        self._port = port
        self._streams = streams
        self._names = names
        self._protects = "off"
        self._most_bytes = 0
        self._run = 0
        self._is_stale = False
        self._refused: str | None = None

    def set_up(self, protect: str, most_bytes: int) -> None:
        """Be told when copies are made without being asked for, and up to which size."""
        self._protects = protect
        self._most_bytes = most_bytes

    def changed(self, run: int | None = None) -> None:
        """The variables are others than before: by a run, by a reset (0), or between runs."""
        if run is not None:
            self._run = run
        self._is_stale = run != 0

    def rest(self) -> None:
        """Make a copy, if one is due and the host has nothing to do for us."""
        if self._is_stale and self._protects != "off" and self._port.is_quiet(IDLE_DELAY):
            self.make()

    def before_run(self) -> bool:
        """Make a copy where no run may go without; True in the copy, woken."""
        return self._is_stale and self._protects == "always" and self.make()

    def make(self, identity: int | None = None) -> bool:
        """Make a copy and tell the host of it, or why there is none.

        Args:
            identity: of the host's request, if it asked.

        Returns:
            True in the copy, when it is woken.
        """
        if identity is None:
            self._is_stale = False
        said: dict[str, Any] = {"t": "asleep", "id": identity, "run": self._run}
        try:
            refused = self._refusal(identity is not None)
            if refused is None:
                self._streams.flush()
                ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
                try:
                    pid = self._copy(ours, theirs)
                    if pid == 0:
                        return True
                    self._port.send({**said, "pid": pid}, passing=[theirs.fileno()])
                    self._refused = None
                    return False
                finally:
                    ours.close()
                    theirs.close()
        except OSError as error:
            refused = _refusal_of(error)
        if identity is not None or refused != self._refused:
            self._port.send({**said, "refused": refused})
        if identity is None:
            self._refused = refused
        return False

    # -- the copy

    def _copy(self, ours: _socket.socket, theirs: _socket.socket) -> int:
        """Make the copy: gives its pid here, and 0 in it once it is woken."""
        from .clone import PARENT, clone

        state = _random_state()
        masked = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        collects = gc.isenabled()
        try:
            pid = clone(PARENT)
            if pid:
                return pid
            try:
                # nor may a collection run the user's finalizers a second time, here
                gc.disable()
                theirs.close()
                self._port.close()
                _restore_random(state)
                self._wake(*_sleep(ours))
                _forget_signals()
            except BaseException:
                os._exit(1)  # nobody may take this for the worker
            if collects:
                gc.enable()
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, masked)
        return 0

    def _wake(self, incarnation: int, is_kept: bool, guest: int, out: int, err: int) -> None:
        self._streams.reconnect(out, err)
        self._port.reconnect(guest, incarnation)
        self._is_stale = not is_kept
        self._refused = None
        self._port.send_ready()

    # -- what forbids one

    def _refusal(self, is_asked_for: bool) -> str | None:
        if not is_asked_for and own.resident_bytes() > self._most_bytes:
            return (
                f"the worker holds more than the {self._most_bytes >> 20} MiB of memory up to "
                "which a copy is kept"
            )
        if own.count_threads() != 1:
            return f"threads are running: {', '.join(_thread_names())}"
        return next(self._obstacles(), None)

    def _obstacles(self) -> Iterator[str]:
        """What of the open descriptors a copy would break."""
        known = {self._port.identity, *self._streams.identities, *_of_multiprocessing()}
        for fd in own.descriptors():
            if fd == 0:
                continue
            try:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) in known:
                    continue
                what = _obstacle(fd, status.st_mode)
            except OSError:
                continue  # it was the one that listed the folder
            if what is not None:
                owner = _owner(fd, self._names())
                yield what + (f" ({owner})" if owner else f" (descriptor {fd})")


def _obstacle(fd: int, mode: int) -> str | None:
    if stat.S_ISSOCK(mode):
        return "a socket is open"
    if stat.S_ISFIFO(mode):
        return "a pipe is open"
    if stat.S_ISREG(mode):
        # A copy would think that it holds a lock which is its origin's alone (`man 2 fcntl`). A
        # shared one guards no change: sqlite has one as long as a database with a log is open.
        if own.holds_write_lock(fd):
            path = os.readlink(f"/proc/self/fd/{fd}")
            return f"a lock is held on {path}, as by an open transaction"
        return None
    if stat.S_ISDIR(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return None
    kind = os.readlink(f"/proc/self/fd/{fd}").rpartition(":")[2].strip("[]")
    return None if kind in ("pidfd", "eventfd", "timerfd") else f"an {kind} is open"


def _owner(fd: int, names: Mapping[str, object]) -> str | None:
    """The variable that a descriptor belongs to; asks only objects whose answer is not code."""
    io: Any = sys.modules["io"]
    kinds = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)
    process: Any = getattr(sys.modules.get("subprocess"), "Popen", None)
    for name, value in list(names.items()):
        parts: list[Any] = [value]
        if process is not None and type(value) is process:
            process_of: Any = value
            parts = [process_of.stdin, process_of.stdout, process_of.stderr]
        for part in parts:
            try:
                if isinstance(part, _socket.socket):
                    found = _socket.socket.fileno(part)
                elif type(part) in kinds:
                    found = part.fileno()
                else:
                    continue
            except (OSError, ValueError):
                continue  # closed
            if found == fd:
                return f"variable {name}"
    return None


def _of_multiprocessing() -> Iterator[tuple[int, int]]:
    """The pipes by which helper processes see that this one lives: a copy may hold them too."""
    tracker = getattr(
        sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None
    )
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    for helper, name in ((tracker, "_fd"), (server, "_forkserver_alive_fd")):
        fd = getattr(helper, name, None)
        if isinstance(fd, int):
            try:
                status = os.fstat(fd)
            except OSError:
                continue  # it is closed
            yield status.st_dev, status.st_ino


def _thread_names() -> list[str]:
    """Python's names where it has them, which say more than the kernel's."""
    from .clone import thread_names

    threading: Any = sys.modules["threading"]
    main = threading.main_thread()
    of_python = sorted(thread.name for thread in threading.enumerate() if thread is not main)
    count = own.count_threads()
    if count is None:  # they cannot be seen
        return of_python or ["of libraries"]
    others = count - 1 - len(of_python)
    if others <= 0:
        return of_python
    if not of_python:
        return thread_names()
    return [*of_python, f"{others} of libraries"]


def _refusal_of(error: OSError) -> str:
    """Why the kernel makes no copy, in words."""
    if error.errno == errno.EAGAIN:  # man 2 clone
        return "the limit on processes leaves no room for a copy of the worker"
    return f"no copy of the worker could be made: {error}"


# -- the sleep


def _sleep(sock: _socket.socket) -> tuple[int, bool, int, int, int]:
    """Wait to be woken; the process ends where the host lets go of it.

    Returns:
        the incarnation it is, whether the host keeps a copy of the same, and the descriptors of its
        socket, output and error.
    """
    from .clone import PARENT, clone

    name = _rename(_NAME)
    _leave_group()
    while True:
        body, fds = _receive(sock)
        if not body:
            os._exit(0)
        message = json.loads(body)
        if not message["keep"]:
            _answer(sock, {"inc": message["inc"], "pid": os.getpid()})
            break
        state = _random_state()
        try:
            pid = clone(PARENT)
        except OSError as error:
            _answer(sock, {"inc": message["inc"], "refused": _refusal_of(error)})
        else:
            if pid == 0:
                _leave_group()
                _restore_random(state)
                break
            _answer(sock, {"inc": message["inc"], "pid": pid})
        for fd in fds:
            os.close(fd)
    sock.close()
    _rename(name)
    guest, out, err = fds
    return message["inc"], message["kept"], guest, out, err


def _leave_group() -> None:
    """What ends the worker's process group must not end what the worker is saved by."""
    try:
        os.setpgid(0, 0)
    except OSError:
        return  # the same group, then


def _receive(sock: _socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    size = _socket.CMSG_SPACE(3 * fds.itemsize)
    try:
        body, control, _, _ = sock.recvmsg(_MAX_MESSAGE, size, _socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return b"", []
    for level, kind, data in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return body, list(fds)


def _answer(sock: _socket.socket, message: dict[str, Any]) -> None:
    try:
        sock.send(json.dumps(message).encode())
    except OSError:
        os._exit(0)  # the host has let go


def _rename(name: bytes) -> bytes:
    """Give the process a name, as ps shows it; gives the one it had."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    before = ctypes.create_string_buffer(16)
    prctl(_GET_NAME, before, 0, 0, 0)
    prctl(_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)
    return before.value


def _forget_signals() -> None:
    """Drop the signals that came during the sleep: they were meant for another process."""
    pending = _signal.sigpending()
    while pending:
        _signal.sigtimedwait(pending, 0)
        pending = _signal.sigpending()


def _random_state() -> object:
    """What the random module would make anew in a copy (it registers that with os)."""
    try:
        return sys.modules["random"]._inst.getstate()
    except (KeyError, AttributeError):
        return None  # not imported, or a module of the user's by this name


def _restore_random(state: object) -> None:
    if state is not None:
        sys.modules["random"]._inst.setstate(state)
