"""What a guest writes: read from its pipes, bounded, turned into text."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import os
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes kept of each stream of one run: the first half and the last half.
MAX_OUTPUT = 10 << 20
#: The same for what comes between two runs.
MAX_LATE = 64 << 10
_CHUNK = 1 << 20
_SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ; Linux only
_READS_PER_TURN = 8


class BoundedText:
    """Keeps the beginning and the end of a stream of bytes; says what it left out."""

    def __init__(self, limit: int = MAX_OUTPUT) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def add(self, data: bytes) -> None:
        """Take more bytes."""
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            # trimmed rarely, so that many small pieces cost no more than one large one
            if len(self._tail) > 3 * self._half:
                self._trim()

    def _trim(self) -> None:
        surplus = len(self._tail) - self._half
        if surplus > 0:
            self._left_out += surplus
            del self._tail[:surplus]

    def text(self) -> str:
        """UTF-8 text, undecodable bytes replaced; a gap is told with its size."""
        if not self._tail:
            return self._head.decode("utf-8", "replace") if self._head else ""
        self._trim()
        if not self._left_out:
            return (self._head + self._tail).decode("utf-8", "replace")
        head = self._head.decode("utf-8", "replace")
        tail = self._tail.decode("utf-8", "replace")
        return f"{head}\n… {self._left_out} bytes of output left out …\n{tail}"


class OutputPipe:
    """The reading end of a guest's stdout or stderr, read by a callback of the event loop.

    Args:
        fd: the reading end; owned and closed by the pipe.
        on_data: called with bytes as they come.
    """

    def __init__(self, fd: int, on_data: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._open = True
        try:
            fcntl.fcntl(fd, _SET_PIPE_SIZE, _CHUNK)
        except OSError:
            pass  # a wish: over the user's quota of pipe pages, or not Linux
        self.resume()

    def _readable(self) -> None:
        for _ in range(_READS_PER_TURN):
            if not self._reading or self._read(_CHUNK) < _CHUNK:
                return

    def read_available(self) -> None:
        """Read what is in the pipe now; never waits.

        Not until it is empty: a child that never stops writing would hold the event loop for good.
        """
        if self._open:
            left = int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)
            while left > 0 and (size := self._read(left)):
                left -= size

    def _read(self, size: int) -> int:
        """Read once; the number of bytes that came."""
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        else:
            self.pause()  # every writer is gone
        return len(data)

    def pause(self) -> None:
        """Stop reading: writers will wait once the pipe is full."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Read again."""
        if self._open and not self._reading:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Close the reading end."""
        if self._open:
            self.pause()
            self._open = False
            os.close(self._fd)


def text_decoder() -> codecs.IncrementalDecoder:
    """Decodes UTF-8 that comes in pieces."""
    return codecs.getincrementaldecoder("utf-8")("replace")
