"""Makes the connections that a policy's network list allows, to addresses that were checked.

**Which addresses.** The host resolves the name, once, and the connection goes to what was checked:
a name that means something else a moment later gains nothing. Three rules:

* A *public* address is dialled, unless it is one of this machine's own.
* An address that the policy lists *itself* is dialled whatever it is, also for a listed name that
  leads to it: ``[db.example.com, 10.0.0.7]``. Naming ``10.0.0.7`` can mean nothing else.
* A listed name that can only be private is a grant of what it means. ``localhost`` (and what is
  below it) is this machine's loopback and is not even looked up. A single label, or a name below
  ``internal``, ``local``, ``lan``, ``home.arpa`` …, may lead to private networks; not to this
  machine, and not to link-local addresses, where clouds keep their credentials.

If one address of a name fails, all of it does: an answer that mixes them is an attack.

**The host's own proxy** (``https_proxy``, ``http_proxy``, ``all_proxy``, ``no_proxy``). Where the
host cannot reach the world itself, public names go through it by CONNECT. Then that proxy resolves
the name, and which address it takes can be neither checked nor pinned here. What is granted as
private is never asked of it.
"""

from __future__ import annotations

import base64
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

import anyio
import h11

from py_code_mode.sandbox.egress.addresses import (
    Address,
    as_address,
    is_inside,
    is_inside_name,
    is_local_name,
    is_own,
    is_public,
)
from py_code_mode.sandbox.egress.audit import denied, failed
from py_code_mode.sandbox.egress.stream import Stream
from py_code_mode.sandbox.hosts import HostPattern, is_allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: From a name and a port to addresses as text. Raises OSError where there are none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

#: From an address and a port to a connected socket. Raises OSError.
Connect = Callable[[str, int], Awaitable[socket.socket]]

CONNECT_TIMEOUT = 20.0
#: Seconds that one address has before the next is tried beside it (RFC 8305 §5).
ATTEMPT_DELAY = 0.25
_MOST_ADDRESSES = 8
#: Resolving takes threads that the whole process shares.
_MOST_LOOKUPS = 8
_MOST_HEADERS = 16 << 10
_LOOPBACK = ("127.0.0.1", "::1")


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, in the order the host's resolver prefers them."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(entry[4][0] for entry in found))


def may_be_dialled(address: Address) -> bool:
    """Whether a public name may lead to it: public, and not this machine."""
    return is_public(address) and not is_own(address)


class Dialler:
    """The ways out of one session.

    Args:
        network: what the policy lists.
        resolve: how names become addresses.
        connect: how one checked address and a port become a connection; only tests, whose servers
            are on the loopback interface, have reason to give another.
        variables: the host's environment, for its proxy.
        timeout: seconds for finding and reaching a server.
    """

    def __init__(
        self,
        network: tuple[HostPattern, ...],
        *,
        resolve: Resolve = resolve,
        connect: Connect | None = None,
        variables: Mapping[str, str] | None = None,
        timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._network = network
        self._resolve = resolve
        self._connect = connect_to if connect is None else connect
        self._proxies = _proxies(variables)
        self._timeout = timeout
        self._lookups = anyio.Semaphore(_MOST_LOOKUPS)

    def check(self, host: str, port: int) -> None:
        """Ask the policy alone.

        Raises:
            NotPassed: it does not list this host and port.
        """
        if not is_allowed(self._network, host, port):
            where = join_port(host, port)
            raise denied("not_listed", f"{where} is not in the session's network policy")

    async def dial(self, host: str, port: int, *, is_secure: bool) -> Stream:
        """A connection to a canonical host; the caller closes it.

        Args:
            is_secure: which of the host's proxies to use: that for https, or that for http.

        Raises:
            NotPassed: the policy does not allow it, or there is no way.
        """
        self.check(host, port)
        try:
            with anyio.fail_after(self._timeout):
                proxy = self._proxy_for(host, port, "https" if is_secure else "http")
                if proxy is not None:
                    return await _through(proxy, host, port)
                addresses = await self._addresses(host, port)
                return Stream(await _first(self._connect, addresses, port, join_port(host, port)))
        except TimeoutError:
            detail = f"{join_port(host, port)} did not answer within {self._timeout:g} seconds"
            raise failed("unreachable", detail, 504) from None

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Where the host is, every address checked.

        Raises:
            NotPassed: one may not be dialled, or there is none.
        """
        literal = as_address(host)
        if literal is not None:
            if literal.is_multicast or literal.is_unspecified:
                raise denied("private_address", f"{host} is no address of one host")
            return (host,)  # listed as it is
        if is_local_name(host):
            return _LOOPBACK
        try:
            async with self._lookups:
                found = await self._resolve(host, port)
        except OSError as error:
            # the resolver's codes are no errno; its words say what is wrong
            raise failed("unresolved", f"{host}: {error.strerror or error}") from error
        is_inner = is_inside_name(host)
        for text in found:
            address = as_address(text)
            if address is None or not (
                may_be_dialled(address)
                or (is_inner and is_inside(address))
                or is_allowed(self._network, text, port)
            ):
                raise denied(
                    "private_address",
                    f"{host} leads to {text}, which is not a public address; to allow that, list "
                    f"{join_port(text, port)} in the network policy too",
                )
        if not found:
            raise failed("unresolved", f"{host} has no address")
        return found[:_MOST_ADDRESSES]

    def _proxy_for(self, host: str, port: int, scheme: str) -> str | None:
        if as_address(host) is not None or is_local_name(host) or is_inside_name(host):
            return None
        proxy = self._proxies.get(scheme) or self._proxies.get("all")
        if not proxy or _is_excepted(host, port, self._proxies.get("no", "")):
            return None
        return proxy


def _proxies(variables: Mapping[str, str] | None) -> dict[str, str]:
    """The proxy settings by scheme; those of this process as urllib reads them."""
    if variables is None:
        return dict(getproxies_environment())
    return {
        name.lower().removesuffix("_proxy"): value
        for name, value in sorted(variables.items())  # lower case comes last, and wins
        if name.lower().endswith("_proxy")
    }


def _is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Whether a list as ``no_proxy`` has it names the host: ``*``, or names and those below."""
    for word in exceptions.replace(",", " ").split():
        name, _, only = word.lower().removeprefix("*").removeprefix(".").partition(":")
        is_meant = word == "*" or host == name or host.endswith("." + name)
        if is_meant and only in ("", str(port)):
            return True
    return False


def join_port(host: str, port: int) -> str:
    """An authority, as requests and patterns write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- the host's own proxy


async def _through(proxy: str, host: str, port: int) -> Stream:
    """A tunnel that the host's proxy makes (RFC 9110 §9.3.6)."""
    where = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        name, proxy_port = where.hostname, where.port or 80
    except ValueError:
        name, proxy_port = None, 0
    if where.scheme != "http" or name is None:
        raise failed(
            "upstream_proxy",
            f"the host's proxy is of the kind {where.scheme!r}; only http:// ones can be used",
        )
    try:
        # it is the host's own setting, and may lead anywhere
        found = (name,) if as_address(name) else await resolve(name, proxy_port)
    except OSError as error:
        detail = f"the host's proxy {name}: {error.strerror or error}"
        raise failed("upstream_proxy", detail) from error
    stream = Stream(await _first(connect_to, found, proxy_port, f"the host's proxy {name}"))
    is_made = False
    try:
        await _ask(stream, join_port(host, port), _credentials(where.username, where.password))
        is_made = True
    except (OSError, h11.RemoteProtocolError) as error:
        raise failed("upstream_proxy", f"the host's proxy {name} broke off: {error}") from error
    finally:
        if not is_made:
            stream.close()
    stream.sent = stream.received = 0
    return stream


async def _ask(stream: Stream, target: str, headers: list[tuple[str, str]]) -> None:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADERS)
    request = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *headers])
    await stream.send(http.send(request) or b"")
    await stream.send(http.send(h11.EndOfMessage()) or b"")
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive())
        elif isinstance(event, h11.Response):
            if 200 <= event.status_code < 300:
                stream.put_back(http.trailing_data[0])
                return
            reason = event.reason.decode("latin-1")
            raise failed(
                "upstream_proxy", f"the host's proxy refused {target}: {event.status_code} {reason}"
            )
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("it ended without an answer")


def _credentials(user: str | None, password: str | None) -> list[tuple[str, str]]:
    if user is None:
        return []
    both = f"{unquote(user)}:{unquote(password or '')}".encode()
    return [("Proxy-Authorization", f"Basic {base64.b64encode(both).decode('ascii')}")]


# -- connecting


async def _first(connect: Connect, addresses: Sequence[str], port: int, what: str) -> socket.socket:
    """The first connection that comes about, families in turn (RFC 8305 §4 and §5).

    Raises:
        NotPassed: none does.
    """
    won: list[socket.socket] = []
    problems: list[OSError] = []

    async def attempt(address: str, over: anyio.Event) -> None:
        try:
            connected = await connect(address, port)
        except OSError as error:
            problems.append(error)
            over.set()
            return
        if won:
            connected.close()
            return
        won.append(connected)
        group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for address in _in_turn(addresses):
                over = anyio.Event()
                group.start_soon(attempt, address, over)
                with anyio.move_on_after(ATTEMPT_DELAY):
                    await over.wait()
    except BaseException:
        for connected in won:
            connected.close()
        raise
    if won:
        return won[0]
    first = problems[0]
    raise failed("unreachable", f"{what}: {first.strerror or first}") from first


def _in_turn(addresses: Iterable[str]) -> list[str]:
    """The families interleaved, the one that comes first in front."""
    listed = list(addresses)
    first = [text for text in listed if (":" in text) == (":" in listed[0])]
    second = [text for text in listed if text not in first]
    both = chain.from_iterable(zip_longest(first, second))
    return [text for text in both if text is not None]


async def connect_to(address: str, port: int) -> socket.socket:
    """Connect to an address; no name is ever looked up here."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    is_made = False
    try:
        made.setblocking(False)
        problem = made.connect_ex((address, port))
        if problem == errno.EINPROGRESS:
            await anyio.wait_writable(made)
            problem = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            raise OSError(problem, os.strerror(problem))
        is_made = True
        return made
    finally:
        if not is_made:
            made.close()
