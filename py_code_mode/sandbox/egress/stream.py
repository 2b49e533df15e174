"""A connected socket, read and written on the event loop without a buffer of its own.

What the other side does not take stays with the kernel, and with it the sender: that is the whole
of the backpressure. Every piece that is read gives other tasks a turn first.
"""

from __future__ import annotations

import socket
import struct

import anyio
from anyio.lowlevel import checkpoint

#: Of one read; each connection holds at most two such pieces at a time.
CHUNK = 64 << 10
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: on, no seconds


class Stream:
    """Owns the socket; at most one task reads and one writes at a time.

    Attributes:
        sent: bytes that went out.
        received: bytes that came in.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._early = b""
        self.sent = 0
        self.received = 0

    def put_back(self, data: bytes) -> None:
        """Have `receive` give these bytes first."""
        self._early = data + self._early

    async def receive(self) -> bytes:
        """What has come; empty at the end.

        Raises:
            OSError: the connection broke.
        """
        if self._early:
            await checkpoint()
            data, self._early = self._early, b""
            return data
        has_waited = False
        while True:
            try:
                data = self._socket.recv(CHUNK)
                break
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                has_waited = True
        self.received += len(data)
        if not has_waited:
            await checkpoint()  # a sender that is never waited for must not own the event loop
        return data

    async def send(self, data: bytes) -> None:
        """Return when the kernel has all of it.

        Raises:
            OSError: the connection broke.
        """
        rest = memoryview(data)
        while rest:
            try:
                count = self._socket.send(rest)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
                continue
            self.sent += count
            rest = rest[count:]

    def end(self) -> None:
        """Say that nothing more will be sent; what comes can still be read."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side is gone already: reading says so

    async def wait_for_end(self) -> bool:
        """Wait until something can be read, and leave it there; whether that is the end."""
        if self._early:
            return False
        await anyio.wait_readable(self._socket)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def close(self, *, abort: bool = False) -> None:
        """Let go of it; `abort` lets the other side see that something is missing (a reset)."""
        if abort and self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._socket.close()
