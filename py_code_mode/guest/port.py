"""The worker's end of the socket, and which signals may cut in.

One thread at a time reads (the leader) and hands each frame to whoever waits for it: so threads of
a cell may call tools side by side, and no thread is needed while none does.
"""

from __future__ import annotations

import _socket
import json
import os
import select
import sys
import threading

from . import errors, values, wire
from .segments import advance

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Mapping, Sequence
    from typing import Any
else:
    import _signal  # signal's own functions spend microseconds on enums

_SIGINT = int(_signal.SIGINT)

# json.dumps and json.loads find out anew each time what they were asked for
_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_from_json = json.JSONDecoder().raw_decode


class HostGone(BaseException):
    """The host closed the socket, or died."""


class Interrupts:
    """SIGINT reaches user code only: never the reading or writing of a frame.

    While user code runs, the handler is Python's own or the user's; around frame I/O it is one
    that remembers the signal and delivers it afterwards. Only the main thread's matter.
    """

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._users: Any = _signal.default_int_handler
        self._pending = False
        _signal.signal(_SIGINT, self._defer)

    def _defer(self, signum: int, frame: object) -> None:
        self._pending = True

    def begin_run(self) -> None:
        """From here on SIGINT interrupts; what came before is forgotten."""
        self._pending = False
        _signal.signal(_SIGINT, self._users if callable(self._users) else _signal.SIG_IGN)

    def end_run(self) -> None:
        """From here on SIGINT is ignored; a handler the user installed is kept for the next run."""
        while True:
            try:
                before = _signal.signal(_SIGINT, self._defer)
                if before != self._defer:  # else the run is over already
                    self._users = before
                return
            except KeyboardInterrupt:
                continue  # it came just before the swap: the run is over anyway

    def hold(self) -> Any:
        """Defer SIGINT; give what `release` needs."""
        if threading.get_ident() != self._main:
            return None
        return _signal.signal(_SIGINT, self._defer)

    def release(self, held: Any) -> None:
        """Let SIGINT through again; deliver one that came meanwhile."""
        if threading.get_ident() != self._main:
            return
        _signal.signal(_SIGINT, held)
        if self._pending and held != self._defer:
            self._pending = False
            if callable(held):
                held(_SIGINT, None)


class Port:
    """The worker's end of the socket."""

    def __init__(self, fd: int, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._next_id = 0
        self.run_id = 0
        #: libraries whose values the host can hold
        self.accepts: frozenset[str] = frozenset()
        self.reconnect(fd, 0)

    def reconnect(self, fd: int, incarnation: int) -> None:
        """Speak over another socket, as another incarnation; between runs, of one thread."""
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(True)
        status = os.fstat(fd)
        self.identity = status.st_dev, status.st_ino
        self._pid = os.getpid()
        self._reader = wire.FrameReader()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._turn = threading.Condition()
        self._leading = False
        self._followers = 0
        self._send_lock = threading.Lock()
        self._requests: list[tuple[dict[str, Any], list[wire.Buffer]]] = []
        self._replies: dict[int, Any] = {}
        self.incarnation = incarnation

    def close(self) -> None:
        """Let go of the socket; for a copy of the process that is to sleep."""
        self._socket.close()

    @property
    def is_ours(self) -> bool:
        """False in a child that guest code forked: the socket is its parent's."""
        return os.getpid() == self._pid

    # -- sending

    def send_ready(self) -> None:
        """Tell the host that it may send requests."""
        self.send({"t": "ready", "pid": os.getpid(), "python": list(sys.version_info[:3])})

    def send(
        self,
        header: dict[str, Any],
        segments: Sequence[wire.Segment] = (),
        passing: Sequence[int] = (),
    ) -> None:
        """Send one frame whole; blocks while the host does not read.

        Args:
            header: of JSON values.
            segments: what the header's value refers to.
            passing: descriptors to pass; they stay the caller's.
        """
        if not self.is_ours:
            raise errors.InvalidCall(
                "the session", "only its own process can reach the host, not a forked child"
            )
        header["inc"] = self.incarnation
        text = _to_json(header).encode()
        if b"\\ud" in text:
            # values tag lone surrogates; elsewhere (names, notes) they make JSON that nobody reads
            dumped = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
            text = dumped.encode("utf-8", "replace")
        buffers, fds = wire.pack(text, segments, passing)
        held = self._interrupts.hold()
        try:
            with self._send_lock:
                first = fds
                while buffers:
                    buffers = advance(buffers, wire.send_some(self._socket, buffers, first))
                    first = []
        except (BrokenPipeError, ConnectionResetError) as error:
            raise HostGone from error
        finally:
            for fd in fds:
                os.close(fd)
            self._interrupts.release(held)

    # -- receiving

    def next_request(self) -> tuple[dict[str, Any], list[wire.Buffer]]:
        """Block for the host's next request."""
        self._wait(lambda: bool(self._requests))
        return self._requests.pop(0)

    def is_quiet(self, delay: float) -> bool:
        """Wait for so many seconds; True where no request came."""
        with self._turn:
            if self._requests or self._leading:
                return not self._requests
            self._leading = True
        try:
            return not self._poll.poll(1000 * delay)
        finally:
            self._stop_leading()

    def _wait(self, ready: Any) -> None:
        """Read frames, or let another thread read them, until `ready()`."""
        while True:
            leads = False
            try:
                with self._turn:
                    while not ready() and self._leading:
                        self._follow()
                    if ready():
                        return
                    # in this order: an interrupt may come between any two steps
                    leads = self._leading = True
                while not ready():
                    self._poll.poll()  # the one place where waiting can be interrupted
                    self._read()
            finally:
                if leads:
                    self._stop_leading()

    def _follow(self) -> None:
        """Wait until the leader has something for others, or gives up leading."""
        self._followers += 1
        try:
            self._turn.wait()
        finally:
            self._followers -= 1

    def _stop_leading(self) -> None:
        with self._turn:
            self._leading = False
            if self._followers:
                self._turn.notify_all()

    def _read(self) -> None:
        held = self._interrupts.hold()
        try:
            try:
                data, fds = wire.receive(self._socket)
            except ConnectionResetError as error:
                raise HostGone from error
            if not data:
                raise HostGone
            for frame in self._reader.feed(data, fds):
                self._dispatch(_from_json(frame.header.decode())[0], frame.segments)
        finally:
            self._interrupts.release(held)

    def _dispatch(self, header: dict[str, Any], segments: list[wire.Buffer]) -> None:
        with self._turn:
            if header["t"] != "reply":
                self._requests.append((header, segments))
            else:
                waiting = self._replies.get(header["id"])
                if waiting is None:
                    return  # its caller was interrupted
                if isinstance(waiting, _AsyncReply):
                    del self._replies[header["id"]]
                    waiting.resolve(header, segments)
                    return
                self._replies[header["id"]] = (header, segments)
            if self._followers:
                # it may be for another thread than the one that reads, which may go on reading
                self._turn.notify_all()

    # -- calls

    def _send_call(
        self,
        namespace: str,
        method: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        slot: Any,
    ) -> int:
        segments: list[wire.Buffer] = []
        header: dict[str, Any] = {
            "t": "call",
            "run": self.run_id,
            "ns": namespace,
            "method": method,
            "args": values.encode(
                [*args, dict(kwargs)], segments, accepts=self.accepts, for_wire=True
            ),
        }
        with self._turn:
            self._next_id += 1
            identity = header["id"] = self._next_id
            self._replies[identity] = slot
        self.send(header, segments)
        return identity

    def call(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """Ask the host and block for its answer; raises what the host raised."""
        identity = self._send_call(namespace, method, args, kwargs, False)
        try:
            self._wait(lambda: self._replies[identity] is not False)
            header, segments = self._replies[identity]
        finally:
            self._replies.pop(identity, None)
        return _result(namespace, header, segments)

    async def call_async(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """The same on the running event loop, which reads the socket while calls are open."""
        import asyncio

        loop = asyncio.get_running_loop()
        slot = _AsyncReply(loop)
        identity = self._send_call(namespace, method, args, kwargs, slot)
        loop.add_reader(self._socket.fileno(), self._read_if_ready)
        try:
            header, segments = await slot.future
        finally:
            self._replies.pop(identity, None)
            if not any(isinstance(other, _AsyncReply) for other in self._replies.values()):
                loop.remove_reader(self._socket.fileno())
        return _result(namespace, header, segments)

    def _read_if_ready(self) -> None:
        with self._turn:
            if self._leading:
                return  # a thread reads already, and will resolve our futures
            self._leading = True
        try:
            if self._poll.poll(0):
                self._read()
        finally:
            self._stop_leading()


class _AsyncReply:
    """A reply awaited on an event loop."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self.future = loop.create_future()

    def resolve(self, header: dict[str, Any], segments: list[wire.Buffer]) -> None:
        def deliver() -> None:
            if not self.future.done():
                self.future.set_result((header, segments))

        self._loop.call_soon_threadsafe(deliver)


def _result(namespace: str, header: dict[str, Any], segments: list[wire.Buffer]) -> object:
    error = header.get("error")
    if error is not None:
        raise errors.from_facts(error["type"], error["facts"])
    if namespace == "deps":
        import importlib

        importlib.invalidate_caches()  # a package may just have been installed
    return values.decode(header.get("value"), segments, writable=True)
