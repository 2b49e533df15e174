"""The host's end of a guest's socket: frames in, frames out, nothing believed.

Reading is a callback of the event loop, not a task: there is nothing to cancel or to leak. Whatever
the guest sends that is not a frame within the limits ends the channel, and with it that guest only.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING

from py_code_mode.guest import wire
from py_code_mode.guest.segments import advance

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

#: Chunks read per turn of the event loop, so that one flooding guest leaves time for the others.
_READS_PER_TURN = 4
#: Chunks read of what a guest has left in its socket: more than a socket holds. Others may hold
#: the guest's end too, and go on writing.
_LAST_READS = 64
#: Bytes waiting to be sent, beyond which a guest that does not read is given up.
MAX_QUEUED = 64 << 20


class Channel:
    """A non-blocking Unix socket to one guest.

    Args:
        sock: the host's end; owned and closed by the channel.
        on_frame: called with each frame, on the event loop; what it raises ends the channel. It
            takes out what descriptors it wants.
        on_end: called once, with the reason: None at an orderly end, else what was wrong.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[wire.Frame], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_frame = on_frame
        self._on_end = on_end
        self._reader = wire.FrameReader(most_passed=1)
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[tuple[list[wire.Buffer], list[int]]] = deque()
        self._queued = 0
        self._drained: asyncio.Future[None] | None = None
        self._open = True
        self._is_writing = False
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        return self._open

    def _readable(self) -> None:
        self._read(_READS_PER_TURN, until_empty=False)

    def read_available(self) -> None:
        """Handle what has arrived; for the end, when nothing more is sent."""
        self._read(_LAST_READS, until_empty=True)

    def _read(self, turns: int, *, until_empty: bool) -> None:
        for _ in range(turns):
            if not self._open:
                return
            try:
                data, fds = wire.receive(self._socket)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self._end(None)  # it is gone, and had not read all: its exit tells why
                return
            except (OSError, wire.WireError) as error:
                self._end(str(error))
                return
            if not data:
                self._end(None)
                return
            frames: list[wire.Frame] = []
            try:
                frames = self._reader.feed(data, fds)
                for frame in frames:
                    self._on_frame(frame)
            except Exception as error:  # a border: nothing a guest sends may hurt the host
                self._end(str(error) or type(error).__name__)
                return
            finally:
                for frame in frames:
                    frame.close()
            if len(data) < wire.RECEIVE_SIZE and not until_empty:
                return  # most likely all there is; the loop calls again if not

    def send(self, header: bytes, segments: Sequence[wire.Segment] = ()) -> None:
        """Send a frame, or queue what the socket does not take at once; see `drain`.

        Raises:
            wire.WireError: the frame is beyond the limits; nothing was sent.
        """
        if not self._open:
            return
        if self._queued > MAX_QUEUED:
            # not at once: the caller may be reading a frame, and counts on a channel that is open
            self._loop.call_soon(self._end, "it does not read what it is sent")
            return
        buffers, fds = wire.pack(header, segments)
        if self._outgoing:
            self._queued += len(header)
        self._outgoing.append((buffers, fds))
        if len(self._outgoing) == 1:
            self._flush()

    async def drain(self) -> None:
        """Wait until everything queued has been sent, or the channel has ended."""
        if self._outgoing and self._open:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                buffers, fds = self._outgoing[0]
                try:
                    sent = wire.send_some(self._socket, buffers, fds)
                except BlockingIOError:
                    if not self._is_writing:
                        self._is_writing = True
                        self._loop.add_writer(self._socket.fileno(), self._flush)
                    return
                self._outgoing.popleft()
                for fd in fds:
                    os.close(fd)
                rest = advance(buffers, sent)
                if rest:
                    self._outgoing.appendleft((rest, []))
        except (BrokenPipeError, ConnectionResetError):
            self._end(None)
            return
        except OSError as error:
            self._end(str(error))
            return
        if self._is_writing:
            self._is_writing = False
            self._queued = 0
            self._loop.remove_writer(self._socket.fileno())
        self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def _end(self, reason: str | None) -> None:
        if self._open:
            self.close()
            self._on_end(reason)

    def close(self) -> None:
        """Stop reading and close the socket; `on_end` is not called."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._reader.close()
        for _, fds in self._outgoing:
            for fd in fds:
                os.close(fd)
        self._outgoing.clear()
        self._wake_drained()
