"""A sandbox as the host sees it, where callers are cancelled and guests lie about their pids.

The keeper here is the test itself.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode.errors import GuestDied
from py_code_mode.execution.keeper import Keeper
from py_code_mode.guest.keeper import drain

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from py_code_mode.results import Limit

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are Linux's"),
]
PATIENCE = 30.0


class Inside:
    """The keeper's own end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def hear(self) -> dict[str, Any]:
        with anyio.fail_after(PATIENCE):
            await anyio.wait_readable(self._socket)
        body, control, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(16))
        fds = array.array("i")
        for _, _, data in control:
            fds.frombytes(data)
        for fd in fds:
            os.close(fd)
        return json.loads(body)

    def say(self, *fds: int, **message: Any) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        self._socket.sendmsg([json.dumps(message).encode()], [rights] if fds else [])


@pytest.fixture
async def kept() -> AsyncGenerator[tuple[Keeper, Inside]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = Keeper(ours)
    yield keeper, Inside(theirs)
    theirs.close()
    await keeper.close()


@contextmanager
def process() -> Generator[int]:
    """A pidfd: our own."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        yield pidfd
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("is_there", [False, True])
async def test_worker_of_a_cancelled_caller_is_not_the_next_ones(
    kept: tuple[Keeper, Inside], is_there: bool
) -> None:
    keeper, inside = kept
    with process() as pidfd:
        keeper.ask_for_worker((0, 1, 2))
        await inside.hear()
        with anyio.CancelScope() as scope:
            if is_there:
                inside.say(pidfd, t="started", pid=7)
            scope.cancel()
            await keeper.worker()
        assert scope.cancelled_caught
        keeper.ask_for_worker((0, 1, 2))
        await inside.hear()
        if not is_there:
            inside.say(pidfd, t="started", pid=7)
        inside.say(t="exited", pid=7, status=0, limit=None, files=0)
        inside.say(pidfd, t="started", pid=8)
        with anyio.fail_after(PATIENCE):
            pid, given = await keeper.worker()
        assert pid == 8
        os.close(given)


async def test_copy_cannot_pass_for_a_worker_that_there_is(kept: tuple[Keeper, Inside]) -> None:
    keeper, inside = kept
    ended: list[int] = []

    def on_exit(status: int, limit: Limit | None) -> None:
        ended.append(status)

    with process() as pidfd:
        worker = keeper.attach(7, os.dup(pidfd), on_exit)
    with anyio.fail_after(PATIENCE), pytest.raises(GuestDied, match="not woken"):
        await keeper.adopt(7)
    inside.say(t="exited", pid=7, status=3, limit=None, files=0)
    with anyio.fail_after(PATIENCE):
        await worker.wait()
    assert ended == [3]


@pytest.mark.parametrize("count", [0, 1, 4096, 5000])
def test_pipe_of_any_number_of_signals_is_read_away(count: int) -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)
        os.write(writing, b"x" * count)
        drain(reading)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)
