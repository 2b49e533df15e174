"""The zygote: imports what every session of an environment needs once, and is copied for each.

Runs inside the outer wall as its process 1, single-threaded, and runs no code of any user's. A
session is a copy of it in namespaces of its own, which becomes that session's keeper. It ends when
the host's end of its socket closes, and the kernel ends everything inside the wall with it.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from importlib import import_module
from time import monotonic

from . import confine, keeper, walls
from .clone import clone, thread_names, use_large_pages
from .errors import ConfinementFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: Seconds without a request and without a session, after which it ends by itself.
IDLE_LIFE = 300.0
#: Seconds after a request until a keeper is made for the next one, and that it then waits for it.
SPARE_DELAY, SPARE_LIFE = 0.02, 10.0


def main(fd: int) -> None:
    """Serve requests for sessions until the host closes the socket."""
    host = socket.socket(fileno=fd)
    walls.die_with_parent()  # which waits outside the wall: the host takes its end for ours
    sys.argv = [""]
    walls.name_process("pcm-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    # everything a session needs is imported once, here
    for name in ("denied", "displays", "frames", "loop"):
        import_module(f".{name}", __package__)
    gc.freeze()  # collections of the copies leave these objects, and the pages they lie in, alone
    keeper.tell(host, {"t": "ready"})
    _serve(host)


def _serve(host: socket.socket) -> NoReturn:
    poll = select.poll()
    poll.register(host, select.POLLIN)
    successor, waits, has_taken_over = -1, False, False
    modules: list[str] = []
    last_used = monotonic()
    spare = _Spare(host)
    while True:
        ready = {number for number, _ in poll.poll(1000 * spare.pause)}
        if successor in ready:
            if os.read(successor, 1):
                has_taken_over = True
                spare.close()
                if not waits:
                    poll.unregister(host)  # from now on it serves
            else:
                poll.unregister(successor)
                os.close(successor)
                successor, waits = -1, False
                poll.register(host, select.POLLIN)
                if has_taken_over:  # else the import itself has ended it, and would again
                    has_taken_over = False
                    successor = _make_successor(host, modules)
                    poll.register(successor, select.POLLIN)
        elif not ready:
            if not spare.turn() and monotonic() - last_used > IDLE_LIFE and not _has_children():
                os._exit(0)
        else:
            last_used = monotonic()
            body, fds = keeper.receive(host)
            if not body:
                os._exit(0)
            request = json.loads(body)
            if request["t"] == "preload":
                if successor < 0:
                    modules, waits = request["modules"], request["waits"]
                    spare.close()  # the successor would hold it too
                    successor = _make_successor(host, modules)
                    poll.register(successor, select.POLLIN)
                    if waits:
                        poll.unregister(host)
            else:
                # once, for all that follow; the plan itself comes over the session's own socket,
                # since what passes through here may be found in the memory of every later copy
                confine.prepare(confine.Confinement(**request["confinement"]))
                if not spare.give(fds, request["shares_network"]):
                    _copy(host, request, fds)
            for received in fds:
                os.close(received)


def _make_successor(host: socket.socket, modules: list[str]) -> int:
    """Start a zygote that takes over when it has imported modules.

    Gives the end of a pipe: a byte comes when it has taken over, the end when it has ended.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        _preload(modules)
        os.write(writing, b"x")
        _serve(host)
    os.close(writing)
    return reading


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _preload(names: list[str]) -> None:
    """Import modules, and touch what their first use would otherwise make each copy do."""
    # what a first run needs of the standard library, then the packages
    for name in ("ast", "asyncio", "importlib.machinery", "subprocess", "traceback", *names):
        try:
            import_module(name)
        except Exception as error:  # a package's own code: a session that imports it will be told
            print(f"{name} could not be imported beforehand: {error}", file=sys.stderr)
    if "pandas" in sys.modules:
        pandas: Any = sys.modules["pandas"]
        pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}).groupby("b").sum()
    gc.collect()
    gc.freeze()
    use_large_pages()


class _Spare:
    """A keeper made before its session is asked for: it waits in a session's own namespaces.

    A quarter of the time that a session takes to start is gone by then.
    """

    def __init__(self, host: socket.socket) -> None:
        self._host = host
        self._socket: socket.socket | None = None
        self._is_wanted = False
        self._shares_network = False

    @property
    def pause(self) -> float:
        """Seconds without a request after which it is its `turn`."""
        if self._is_wanted:
            return SPARE_DELAY
        return SPARE_LIFE if self._socket is not None else IDLE_LIFE

    def turn(self) -> bool:
        """Make it if it is wanted, else let go of it; False where there was nothing to do."""
        if self._is_wanted:
            self._make()
        elif self._socket is not None:
            self.close()
        else:
            return False
        return True

    def _make(self) -> None:
        """Have one wait, unless there can be none, which the next session is told."""
        self._is_wanted = False
        if thread_names():
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                kept = theirs.fileno()
                is_copy = _enter_namespaces(self._shares_network, self._host, ours, kept=kept)
            except OSError:
                ours.close()
                return
            if is_copy:
                walls.name_process("pcm-spare")
                _, fds = keeper.receive(theirs)
                if not fds:
                    os._exit(0)
                theirs.close()
                keeper.main(*fds)
        self._socket = ours

    def give(self, fds: list[int], shares_network: bool) -> bool:
        """Have it keep the session of this socket; False where none does. Wants another one."""
        if shares_network != self._shares_network:
            self.close()  # its namespaces are others
        self._is_wanted, self._shares_network = True, shares_network
        if self._socket is None:
            return False
        try:
            socket.send_fds(self._socket, [b"x"], fds)
        except OSError:
            return False  # it has ended
        finally:
            self._socket.close()
            self._socket = None
        return True

    def close(self) -> None:
        """Have it end, and make none."""
        self._is_wanted = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _copy(host: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    """Start a session's keeper."""
    (channel,) = fds
    threads = thread_names()
    if threads:
        # a copy has only the one thread that asked for it, and whatever the others held locked
        _refuse(channel, "threads", f"the zygote has threads of its own: {', '.join(threads)}")
        return
    try:
        is_copy = _enter_namespaces(request["shares_network"], host, kept=channel)
    except OSError as error:
        _refuse(channel, "namespaces", str(error))
        return
    if is_copy:
        keeper.main(channel)


def _enter_namespaces(shares_network: bool, *sockets: socket.socket, kept: int) -> bool:
    """Copy this process into a session's own namespaces; True in the copy.

    Args:
        sockets: closed in the copy, as all other descriptors but `kept` are: with the pipe by which
            the zygote before this one sees that this one has ended.
        kept: told of it, where the copy fails in them, with which it ends.

    Raises:
        OSError: there is no copy.
    """
    uid, gid = os.geteuid(), os.getegid()
    if clone(walls.NAMESPACES | (0 if shares_network else walls.NEWNET)):
        return False
    for sock in sockets:
        sock.close()
    keeper.close_all_but(kept)
    try:
        walls.map_own_user(uid, gid)
        socket.sethostname("sandbox")
    except (ConfinementFailed, OSError) as error:
        _refuse(kept, "namespaces", str(error))
        os._exit(1)
    return True


def _refuse(channel: int, step: str, reason: str) -> None:
    with socket.socket(fileno=os.dup(channel)) as sock:
        keeper.tell(sock, {"t": "failed", "step": step, "reason": reason})
