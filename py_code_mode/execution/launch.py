"""Starts what stands in front of guests as a program of its own, and ends it.

Such a program is told what to do over a socket, which is also its life: when our end closes, by us
or with us, it ends and takes all of its session with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from py_code_mode import guest
from py_code_mode.errors import ConfinementFailed
from py_code_mode.execution.keeper import END_TIMEOUT, Keeper
from py_code_mode.execution.process import spawn
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.guest import walls
from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from py_code_mode.sandbox.cgroup import Group

GUEST = Path(guest.__file__).with_name("__main__.py")
#: Variables that say where a machine keeps the certificates it trusts.
CERTIFICATES = ("SSL_CERT_DIR", "SSL_CERT_FILE")
_SAID = 2000  # characters of what a program wrote that an error tells


async def start_keeper(
    step: str,
    command: Callable[[int], Sequence[str]],
    plan: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    user: int | None = None,
    pass_fds: Sequence[int] = (),
) -> tuple[Keeper, subprocess.Popen[bytes]]:
    """Start a keeper, and wait until its session is made.

    Args:
        step: named in errors: who is started.
        command: what to run, for the number of the keeper's socket.
        plan: what the keeper is told.
        environment: all its variables, which its workers have too.
        user: whom to become before; None stays who we are.
        pass_fds: descriptors that the command names.

    Raises:
        ConfinementFailed: it ended before, or could not be started; nothing was run.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said = os.memfd_create("keeper", os.MFD_CLOEXEC)
    process: subprocess.Popen[bytes] | None = None
    keeper: Keeper | None = None
    try:
        with theirs:
            given = [theirs.fileno(), *pass_fds]
            process = spawn(
                command(given[0]),
                environment=environment,
                stdout=said,
                stderr=said,
                pass_fds=given,
                user=user,
            )
        group = send_plan(ours, json.dumps(plan).encode(), plan["memory"])
        keeper = Keeper(ours, group)
        await keeper.made()
    except BaseException as error:
        text = text_of(said)
        if keeper is None:
            ours.close()
        await to_the_end(partial(_end, keeper, process))
        if isinstance(error, OSError | ConfinementFailed):
            reason = error.reason if isinstance(error, ConfinementFailed) else str(error)
            said_too = f": {text}" if text else ""
            raise ConfinementFailed(step, reason + said_too, error.errno) from error
        raise
    finally:
        os.close(said)
    return keeper, process


def send_plan(sock: socket.socket, body: bytes, memory: int | None) -> Group | None:
    """Tell a keeper its plan; gives the control group that it enters, where there can be one.

    Args:
        body: the plan.
        memory: limit of that group, in bytes.

    Raises:
        ConfinementFailed: there can be one, but it cannot be made.
    """
    place = probe().memory_groups
    if place is None or memory is None:
        sock.send(body)
        return None
    try:
        group = place.make(memory)
    except OSError as error:
        raise ConfinementFailed("control group", str(error), error.errno) from error
    try:
        with group.open() as doors:
            socket.send_fds(sock, [body], doors)
    except BaseException:
        group.remove()
        raise
    return group


async def _end(keeper: Keeper | None, process: subprocess.Popen[bytes] | None) -> None:
    if keeper is not None:
        await keeper.close()
    if process is not None:
        await end(process)


async def end(process: subprocess.Popen[bytes]) -> None:
    """See the end of a program whose socket is closed."""
    await anyio.to_thread.run_sync(end_blocking, process)


def end_blocking(process: subprocess.Popen[bytes], timeout: float = END_TIMEOUT) -> None:
    """The same for a caller without an event loop."""
    try:
        process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        # its group: bubblewrap stays outside of what it has made, which would outlive it
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def text_of(fd: int) -> str:
    """The end of what a process wrote to a file of ours."""
    size = os.fstat(fd).st_size
    return os.pread(fd, _SAID, max(0, size - _SAID)).decode(errors="replace").strip()


@contextmanager
def wall_files() -> Generator[Mapping[str, int]]:
    """Descriptors with the contents of `walls.FILES`, by name."""
    opened: dict[str, int] = {}
    try:
        for name, text in walls.FILES.items():
            opened[name] = os.memfd_create(name, os.MFD_CLOEXEC)
            os.write(opened[name], text.encode())
            os.lseek(opened[name], 0, os.SEEK_SET)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def closed_to(
    user: int, readable: Iterable[Path], writable: Iterable[Path] = ()
) -> tuple[str, ...]:
    """Which of these another user of this machine cannot get at, in words.

    Only modes are looked at: what an access control list (`man 5 acl`) allows besides is missed,
    what it forbids shows when it is tried.
    """
    found: dict[str, None] = {}
    for path, mode in (*((path, 4) for path in readable), *((path, 6) for path in writable)):
        try:
            real = path.resolve()
            steps = [*((folder, 1) for folder in reversed(real.parents)), (real, mode)]
            for place, wanted in steps:
                if not _allows(place.stat(), user, wanted):
                    what = "written to" if wanted == 6 else "read"
                    found[f"{path} cannot be {what} by user {user}, because of {place}"] = None
                    break
        except OSError as error:
            found[f"{path}: {error.strerror}"] = None
    return tuple(found)


def _allows(status: os.stat_result, user: int, wanted: int) -> bool:
    bits = stat.S_IMODE(status.st_mode)
    shift = 6 if status.st_uid == user else 3 if status.st_gid == user else 0
    return (bits >> shift) & wanted == wanted
