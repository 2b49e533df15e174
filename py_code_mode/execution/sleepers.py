"""Sleeping copies of a guest, as the host holds them: a socket each.

The guest makes a copy and passes one end of its socket. The copy is there as long as that end is
open; a message on it, with a socket and two pipes, makes it a worker. Nothing that comes over it is
believed: the other end is guest code's, if it wants.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from py_code_mode.errors import GuestDied, ProtocolViolation
from py_code_mode.guest.wire import discard

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds from the message to a copy's answer.
WAKE_TIMEOUT = 10.0
_MAX_ANSWER = 4096


class _Awake(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    inc: int
    pid: int | None = None
    refused: str | None = None


_answers = msgspec.json.Decoder(_Awake)


class WakeRefused(GuestDied):
    """A sleeping copy could not be copied again; it sleeps on."""


class Sleeper:
    """One sleeping copy; closed, it ends.

    Args:
        fd: the end of its socket that the guest passed; owned by this, also where it is refused.
        pid: inside the sandbox, as the guest says.
        run: the latest run whose effects it has, as the guest says; 0 for none.

    Raises:
        ProtocolViolation: the descriptor is no such socket.
    """

    def __init__(self, fd: int, pid: int, run: int) -> None:
        self.pid = pid
        self.run = run
        try:
            self._socket = socket.socket(fileno=fd)
        except OSError as error:
            discard(fd)
            raise ProtocolViolation("a sleeper without its socket") from error
        kind = (self._socket.family, self._socket.type)
        if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            discard(self._socket.detach())
            raise ProtocolViolation("a sleeper without its socket")

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    async def wake(
        self, incarnation: int, fds: Sequence[int], *, keep: bool, protects: bool = False
    ) -> int:
        """Make it a worker; gives that worker's pid inside, as the guest says.

        Args:
            incarnation: what the worker is from now on.
            fds: its socket, output and error; they stay the caller's.
            keep: a copy of it wakes, and it sleeps on.
            protects: that worker need not make a copy of itself before it changes.

        Raises:
            WakeRefused: with `keep`, it cannot make the copy that was to wake.
            GuestDied: it does not answer, or is not there any more.
        """
        order = {"t": "wake", "inc": incarnation, "keep": keep, "kept": keep and protects}
        message = json.dumps(order).encode()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        try:
            # each time: whoever has the other end can let this one block (not socket.send_fds,
            # which takes flags and drops them)
            self._socket.sendmsg([message], [rights], socket.MSG_DONTWAIT)
            with anyio.fail_after(WAKE_TIMEOUT):
                answer = _answers.decode(await self._answer())
                while answer.inc != incarnation:  # for one who was cancelled
                    await checkpoint()  # whoever sends without an end must not own the event loop
                    answer = _answers.decode(await self._answer())
        except TimeoutError as error:
            raise GuestDied(f"was not woken: no answer for {WAKE_TIMEOUT:g} s") from error
        except (OSError, msgspec.MsgspecError) as error:
            raise GuestDied("was not woken: its copy is gone") from error
        finally:
            if not keep:
                self.close()
        if answer.pid is None:
            raise WakeRefused(f"was not woken: {(answer.refused or '')[:500]}")
        return answer.pid

    async def _answer(self) -> bytes:
        while True:
            try:
                return self._socket.recv(_MAX_ANSWER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                await _readable(self._socket.fileno())

    def close(self) -> None:
        """Let go of it; idempotent."""
        self._socket.close()


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await readable
    finally:
        loop.remove_reader(fd)
