"""The way to the network of a session that may reach listed hosts only.

The guest has a network of its own with nothing in it but this: an HTTP proxy (RFC 9112 absolute
form, and CONNECT) that listens *inside* the guest's network and runs in the host's event loop.
Whatever the guest does to go around it, there is no other way out. Which hosts, which addresses
and what is checked of the traffic: `py_code_mode.sandbox.egress.dialling` and `.conversation`.

Every tunnel and every plain request leaves one `EgressRecord`.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING

import anyio

from py_code_mode.sandbox.egress.audit import EgressRecord, failed, mistake
from py_code_mode.sandbox.egress.stream import Stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup

    from py_code_mode.sandbox.egress.dialling import Dialler
    from py_code_mode.sandbox.hosts import HostPattern

__all__ = ["Egress", "EgressRecord", "guest_variables"]

#: Connections of one guest at a time; each takes two descriptors of the host.
MAX_CONNECTIONS = 256
#: More than these are told so; while as many are being told, nobody is let in.
MAX_REFUSALS = 32
#: Records that are kept; the callback sees all.
MAX_RECORDS = 1000
_ACCEPTED_AT_ONCE = 16  # then others have a turn
#: Seconds until accepting is tried again when the host has no descriptor or memory left.
_ACCEPT_PAUSE = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: What the connection did that was to be accepted (man 2 accept), and not the listener.
_PASSING = frozenset(
    {
        errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.EPROTO, errno.ENETDOWN,
        errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOPROTOOPT,
        errno.EOPNOTSUPP, errno.EAGAIN,
    }
)  # fmt: skip

_LOCAL = ("localhost", "127.0.0.1", "::1")


def guest_variables(port: int, network: Iterable[HostPattern] = ()) -> dict[str, str]:
    """The environment variables by which the guest's programs find the proxy.

    There is no ``ALL_PROXY``: it would send what is neither http nor https here, where such a
    program gets a less clear answer than from having no network. Servers that the guest itself
    runs are reached directly, but for a name of the loopback that the policy lists: by that one
    clients reach what listens on the *host's*.
    """
    proxy = f"http://127.0.0.1:{port}"
    listed = {pattern.host for pattern in network}
    direct = ",".join(name for name in _LOCAL if name not in listed)
    variables = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": direct}
    return variables | {name.upper(): value for name, value in variables.items()}


class Egress:
    """The proxy of one session.

    Args:
        listener: a listening stream socket, made in the guest's network; owned from now on.
        network: what the policy lists.
        log: is given each record as soon as there is one. It must be quick. If it raises, the
            proxy ends: there is no traffic without its record.
        connections: how many at a time.
        idle_timeout: seconds in which nothing moves before a connection is closed.
        head_timeout: seconds for the head of a request, and between two requests.
        dialler: what makes the connections to servers; by default one for `network`.
    """

    def __init__(
        self,
        listener: socket.socket,
        network: tuple[HostPattern, ...],
        *,
        log: Callable[[EgressRecord], None] | None = None,
        connections: int = MAX_CONNECTIONS,
        idle_timeout: float | None = None,
        head_timeout: float | None = None,
        dialler: Dialler | None = None,
    ) -> None:
        from py_code_mode.sandbox.egress import dialling  # h11 is loaded only now

        listener.setblocking(False)
        self._listener = listener
        self._network = network
        self._dialler = dialling.Dialler(network) if dialler is None else dialler
        timeouts = {"idle_timeout": idle_timeout, "head_timeout": head_timeout}
        self._timeouts = {name: value for name, value in timeouts.items() if value is not None}
        self._log = log
        self._most = connections
        self._open: set[Stream] = set()
        self._has_room = anyio.Event()
        self._records: deque[EgressRecord] = deque(maxlen=MAX_RECORDS)
        self._problem: Exception | None = None
        self._scope: anyio.CancelScope | None = None  # of `serve`, while it runs

    @property
    def records(self) -> tuple[EgressRecord, ...]:
        """The latest records, oldest first."""
        return tuple(self._records)

    @property
    def connections(self) -> int:
        """How many connections of the guest are open."""
        return len(self._open)

    async def serve(self) -> None:
        """Serve the guest until cancelled; then everything is closed, without waiting for anybody.

        Raises:
            Exception: what `log` raised.
            OSError: the listener cannot accept any more.
        """
        try:
            async with anyio.create_task_group() as group:
                self._scope = group.cancel_scope
                try:
                    await self._accept(group)
                except OSError as error:
                    self._fail(error)
        finally:
            self._scope = None
            self._listener.close()
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        """Have `serve` end, which closes everything; where it does not run, close the listener."""
        if self._scope is not None:
            self._scope.cancel()
        else:
            self._listener.close()

    async def _accept(self, group: TaskGroup) -> None:
        while True:
            await anyio.wait_readable(self._listener)
            for _ in range(_ACCEPTED_AT_ONCE):
                try:
                    connected, _ = self._listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        await anyio.sleep(_ACCEPT_PAUSE)
                        break
                    if error.errno in _PASSING:
                        continue
                    raise
                stream = Stream(connected)
                is_welcome = len(self._open) < self._most
                self._open.add(stream)
                # a task that has not begun is not cancelled before it has: it closes the stream
                group.start_soon(self._hold, stream, is_welcome)
                while len(self._open) >= self._most + MAX_REFUSALS:
                    self._has_room = anyio.Event()
                    await self._has_room.wait()

    async def _hold(self, stream: Stream, is_welcome: bool) -> None:
        from py_code_mode.sandbox.egress.conversation import Conversation

        conversation = Conversation(
            stream, self._network, self._dialler, self._note, **self._timeouts
        )
        try:
            if is_welcome:
                await conversation.hold()
            else:
                detail = f"the session has {self._most} connections open, the most it may have"
                await conversation.refuse(failed("busy", detail, 503))
        except Exception as error:
            # A mistake of ours must not cost the guest's other connections, nor go unseen.
            self._note(mistake(error))
        finally:
            self._open.discard(stream)
            self._has_room.set()

    def _note(self, record: EgressRecord) -> None:
        self._records.append(record)
        if self._log is None:
            return
        try:
            self._log(record)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._problem = self._problem or error
        if self._scope is not None:
            self._scope.cancel()
