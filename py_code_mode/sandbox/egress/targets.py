"""Reads where a request goes, and writes the heads that go on; on requests alone, no connection.

Where two readers could differ (who is asked, where the body ends), the request is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py_code_mode.sandbox.egress.audit import denied
from py_code_mode.sandbox.egress.dialling import join_port
from py_code_mode.sandbox.hosts import canonical_host

if TYPE_CHECKING:
    import h11

Headers = list[tuple[bytes, bytes]]

HTTP, HTTPS = 80, 443
_OF_ONE_HOP = frozenset(
    {
        b"connection", b"http2-settings", b"keep-alive", b"proxy-authenticate",
        b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
        b"upgrade",
    }
)  # fmt: skip
#: A client cannot have these dropped on the way by naming them in `Connection`.
_NEVER_DROPPED = frozenset({b"host", b"content-length"})
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/?#\\]+)(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(r"http://([^/?#]*)([/?][^#]*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes: a canonical host, a port, and what is asked of it."""

    host: str
    port: int
    path: str = ""


def target_of(request: h11.Request, origin: Target | None) -> Target:
    """Where a request goes, by every rule there is on it.

    Raises:
        NotPassed: it names no host, or two.
    """
    text = request.target.decode("ascii")
    if request.http_version not in (b"1.0", b"1.1"):
        raise denied("bad_request", "this proxy speaks HTTP/1.1", 505)
    if request.method == b"CONNECT":
        if origin is not None:
            raise denied("bad_request", "a tunnel cannot be asked for inside a tunnel", 400)
        host, port = _authority(text, None)
        return Target(host=host, port=port)
    absolute = _ABSOLUTE.fullmatch(text)
    if absolute is not None:
        host, port = _authority(absolute[1], HTTP)
        path = absolute[2] or ("*" if request.method == b"OPTIONS" else "/")
        target = Target(host=host, port=port, path=path if path[0] in "/*" else f"/{path}")
    elif origin is not None and (
        text.startswith("/") or (text == "*" and request.method == b"OPTIONS")
    ):
        target = Target(host=origin.host, port=origin.port, path=text)
    elif text.lower().startswith("https://"):
        raise denied("bad_request", "https goes through this proxy by CONNECT", 400)
    else:
        raise denied(
            "bad_request", "this is a proxy: ask for http://host/path, or CONNECT host:port", 400
        )
    if origin is not None and (target.host, target.port) != (origin.host, origin.port):
        detail = f"the tunnel leads to {origin.host}, the request to {target.host}"
        raise denied("host_mismatch", detail, 400)
    hosts = (value.decode("latin-1") for name, value in request.headers if name == b"host")
    # a stricter reading than RFC 9112 §3.2.2, by which a proxy would go by the target alone
    if any(_authority(host, HTTP) != (target.host, target.port) for host in hosts):
        detail = f"the Host header is not the request's host, {target.host}"
        raise denied("host_mismatch", detail, 400)
    return target


def _authority(text: str, default: int | None) -> tuple[str, int]:
    """A canonical host and a port."""
    found = _AUTHORITY.fullmatch(text)
    port = int(found[2]) if found and found[2] else default
    if found is None or port is None or not 0 < port < 1 << 16:
        raise denied("bad_request", f"{text[:100]!r} is no host and port", 400)
    try:
        return canonical_host(found[1]), port
    except ValueError as error:
        raise denied("bad_request", str(error)[:200], 400) from error


def check_framing(request: h11.Request) -> None:
    """Refuse what two readers could take differently (RFC 9112 §6.1); h11 refuses the rest."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version != b"1.1"
    ):
        raise denied("bad_request", "the length of the request's body is ambiguous", 400)
    if request.method == b"CONNECT" and (
        b"transfer-encoding" in names or b"content-length" in names
    ):
        raise denied("bad_request", "a CONNECT has no body", 400)


def wants_websocket(request: h11.Request) -> bool:
    """Whether another protocol is asked for that may pass: h2c would carry requests unread."""
    asked = [value.strip().lower() for name, value in request.headers if name == b"upgrade"]
    return asked == [b"websocket"] and request.method == b"GET" and request.http_version == b"1.1"


def request_headers(request: h11.Request, target: Target, *, is_upgrade: bool) -> Headers:
    authority = target.host if target.port == HTTP else join_port(target.host, target.port)
    if target.port == HTTP and ":" in target.host:
        authority = f"[{target.host}]"
    headers: Headers = [(b"Host", authority.encode("ascii"))]
    headers += _end_to_end(request, {b"host"})
    if request.http_version != b"1.1":
        headers = [(name, value) for name, value in headers if name.lower() != b"expect"]
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        headers.append((b"Transfer-Encoding", b"chunked"))
    return headers + _connection(is_upgrade=is_upgrade)


def answer_headers(
    answer: h11.Response | h11.InformationalResponse, *, is_upgrade: bool
) -> Headers:
    is_chunked = any(name == b"transfer-encoding" for name, _ in answer.headers)
    headers = _end_to_end(answer, {b"content-length"} if is_chunked else set())
    return headers + (_connection(is_upgrade=True) if is_upgrade else [])


def _connection(*, is_upgrade: bool) -> Headers:
    if is_upgrade:
        return [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return [(b"Connection", b"close")]


def _end_to_end(
    message: h11.Request | h11.Response | h11.InformationalResponse, without: set[bytes]
) -> Headers:
    """The headers that are not of one hop (RFC 9110 §7.6.1).

    No `Via` is added: it would tell servers that a sandbox is asking, and some then send less.
    """
    named = {
        word.strip().lower()
        for name, value in message.headers
        if name == b"connection"
        for word in value.split(b",")
    }
    dropped = _OF_ONE_HOP | (named - _NEVER_DROPPED) | without
    items = message.headers.raw_items()
    return [(name, value) for name, value in items if name.lower() not in dropped]
