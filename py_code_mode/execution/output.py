"""What a guest writes: read from its pipes, bounded, turned into text."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import os
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
        self.read_available(_READS_PER_TURN)

    def read_available(self, turns: int | None = None) -> None:
        """Read until the pipe is empty (or for so many chunks); never waits."""
        while self._open and turns != 0:
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.pause()  # every writer is gone
                return
            self._on_data(data)
            if turns is not None:
                turns -= 1
                if not self._reading:
                    return

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
