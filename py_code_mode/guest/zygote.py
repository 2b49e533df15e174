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
from .clone import clone, thread_names
from .errors import ConfinementFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: Seconds without a request and without a session, after which it ends by itself.
IDLE_LIFE = 300.0


def main(fd: int) -> None:
    """Serve requests for sessions until the host closes the socket."""
    host = socket.socket(fileno=fd)
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
    while True:
        ready = {number for number, _ in poll.poll(1000 * IDLE_LIFE)}
        if successor in ready:
            if os.read(successor, 1):
                has_taken_over = True
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
            if monotonic() - last_used > IDLE_LIFE and not _has_children():
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
                    successor = _make_successor(host, modules)
                    poll.register(successor, select.POLLIN)
                    if waits:
                        poll.unregister(host)
            else:
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


def _copy(host: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    """Start a session's keeper."""
    (channel,) = fds
    threads = thread_names()
    if threads:
        # a copy has only the one thread that asked for it, and whatever the others held locked
        _refuse(channel, "threads", f"the zygote has threads of its own: {', '.join(threads)}")
        return
    # once, for all that follow; the plan itself comes over the session's own socket, since what
    # passes through here may be found in the memory of every later copy
    confine.prepare(confine.Confinement(**request["confinement"]))
    uid, gid = os.geteuid(), os.getegid()
    try:
        child = clone(walls.NAMESPACES | (0 if request["shares_network"] else walls.NEWNET))
    except OSError as error:
        _refuse(channel, "namespaces", str(error))
        return
    if child:
        return
    host.close()
    # with the pipe by which the zygote before this one sees that this one has ended
    keeper.close_all_but(channel)
    try:
        walls.map_own_user(uid, gid)
        socket.sethostname("sandbox")
    except (ConfinementFailed, OSError) as error:
        _refuse(channel, "namespaces", str(error))
        os._exit(1)
    keeper.main(channel)


def _refuse(channel: int, step: str, reason: str) -> None:
    with socket.socket(fileno=os.dup(channel)) as sock:
        keeper.tell(sock, {"t": "failed", "step": step, "reason": reason})
