"""Getting past the list of hosts that a session may reach: its only way out is a proxy."""

from __future__ import annotations

import os
import socket

from .attempt import FACTS, OWN_FILES, Contained, add

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What the policy of the session under attack allows; nothing of it exists (RFC 6761).
ALLOWED = ("allowed.invalid:443", "*.allowed.invalid:443")
_PATIENCE = 0.8


def _talk(*requests: bytes) -> bytes:
    """What the proxy answers to bytes on one connection."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
    host, _, port = proxy.rpartition("//")[2].rstrip("/").rpartition(":")
    if not port:
        raise Contained("it has no way out at all")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE) as made:
        answer = b""
        for request in requests:
            made.sendall(request)
        try:
            while len(answer) < 65536:
                got = made.recv(65536)
                if not got:
                    break
                answer += got
                if b"\r\n\r\n" in answer:
                    break
        except TimeoutError:
            return answer
        return answer


def _judge(answer: bytes) -> object:
    words = answer[:200].split(b"\r\n")[0].decode("latin-1").split(" ", 2)
    if len(words) > 1 and words[0].startswith("HTTP/") and words[1][:1] in ("4", "5"):
        raise Contained(" ".join(words)[:80])
    if not answer:
        raise Contained("the connection was closed")
    return answer[:100]


def _request(name: str, make: Callable[[], tuple[bytes, ...]]) -> None:
    add(f"proxy_{name}", lambda: _judge(_talk(*make())), needs=OWN_FILES)


def _connect(name: str, make: Callable[[], str]) -> None:
    def request() -> tuple[bytes, ...]:
        target = make().encode("utf-8", "surrogateescape")
        return (b"CONNECT " + target + b" HTTP/1.1\r\nHost: allowed.invalid\r\n\r\n",)

    _request(f"connect_to_{name}", request)


def _port() -> int:
    return int(FACTS["port"])


_connect("the_hosts_loopback", lambda: f"127.0.0.1:{_port()}")
_connect("the_hosts_loopback_by_name", lambda: f"localhost:{_port()}")
_connect("the_hosts_loopback_by_name_with_a_dot", lambda: f"localhost.:{_port()}")
_connect("the_hosts_loopback_by_its_host_name", lambda: f"{FACTS['machine']}:{_port()}")
_connect("the_hosts_loopback_over_ipv6", lambda: f"[::1]:{FACTS['port6']}")
_connect("the_hosts_loopback_by_no_address", lambda: f"0.0.0.0:{_port()}")
_connect("the_hosts_loopback_in_short", lambda: f"127.1:{_port()}")
_connect("the_hosts_loopback_as_a_number", lambda: f"2130706433:{_port()}")
_connect("the_hosts_loopback_in_hexadecimal", lambda: f"0x7f000001:{_port()}")
_connect("the_hosts_loopback_in_octal", lambda: f"0177.0.0.1:{_port()}")
_connect("the_hosts_loopback_mapped", lambda: f"[::ffff:127.0.0.1]:{_port()}")
_connect("the_hosts_loopback_translated", lambda: f"[64:ff9b::7f00:1]:{_port()}")
_connect("the_hosts_loopback_in_6to4", lambda: f"[2002:7f00:1::]:{_port()}")
_connect("the_hosts_loopback_in_percent", lambda: f"%31%32%37.0.0.1:{_port()}")
_connect("the_hosts_loopback_in_wide_digits", lambda: f"１２７.0.0.1:{_port()}")
_connect("the_hosts_loopback_with_a_zone", lambda: f"[::1%25lo]:{FACTS['port6']}")
_connect("the_hosts_own_address", lambda: f"{FACTS['address']}:{_port()}")
_connect("the_proxy_itself", lambda: "127.0.0.1:3128")
_connect("cloud_metadata", lambda: "169.254.169.254:80")
_connect("cloud_metadata_by_name", lambda: "metadata.google.internal:80")
_connect("a_private_address", lambda: "10.0.0.1:443")
_connect("a_host_that_is_not_listed", lambda: "example.com:443")
_connect("an_address_that_is_not_listed", lambda: "1.1.1.1:443")
_connect("a_port_that_is_not_listed", lambda: "allowed.invalid:22")
_connect("a_name_that_ends_alike", lambda: "notallowed.invalid:443")
_connect("a_name_that_begins_alike", lambda: "allowed.invalid.example.com:443")
_connect("a_user_at_a_host", lambda: f"allowed.invalid@127.0.0.1:{_port()}")
_connect("a_password_at_a_host", lambda: f"allowed.invalid:443@127.0.0.1:{_port()}")
_connect("a_fragment", lambda: f"127.0.0.1:{_port()}#allowed.invalid:443")
_connect("a_path", lambda: f"127.0.0.1:{_port()}/allowed.invalid:443")
_connect("a_name_with_a_nul", lambda: "example.com\0.allowed.invalid:443")
_connect("a_name_with_a_tab", lambda: "example.com\t.allowed.invalid:443")
_connect("a_name_with_a_line_break", lambda: "allowed.invalid:443\r\nHost: example.com")
_connect("a_socket_of_the_host", lambda: f"unix:{FACTS['socket']}:443")
_connect("nothing", lambda: "")
_connect("no_port", lambda: "127.0.0.1")
_connect("port_0", lambda: "allowed.invalid:0")
_connect("a_port_too_high", lambda: f"127.0.0.1:{65536 + _port()}")
_connect("a_negative_port", lambda: "allowed.invalid:-1")

_request(
    "get_from_the_hosts_loopback_in_the_name_of_another",
    lambda: (
        f"GET http://127.0.0.1:{_port()}/ HTTP/1.1\r\nHost: allowed.invalid\r\n\r\n".encode(),
    ),
)
_request(
    "get_from_another_in_the_hosts_name",
    lambda: (
        f"GET http://allowed.invalid:443/ HTTP/1.1\r\nHost: 127.0.0.1:{_port()}\r\n\r\n".encode(),
    ),
)
_request(
    "get_by_the_host_line_only",
    lambda: (f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{_port()}\r\n\r\n".encode(),),
)
_request(
    "get_with_two_host_lines",
    lambda: (
        f"GET / HTTP/1.1\r\nHost: allowed.invalid\r\nHost: 127.0.0.1:{_port()}\r\n\r\n".encode(),
    ),
)
_request(
    "get_a_file", lambda: (f"GET file://{FACTS['secret']} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),)
)
_request("get_by_another_protocol", lambda: (b"GET ftp://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n",))
_request(
    "smuggle_a_second_request",
    lambda: (
        b"POST http://allowed.invalid/ HTTP/1.1\r\nHost: allowed.invalid\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + f"GET http://127.0.0.1:{_port()}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ),
)
_request(
    "send_a_second_request_at_once",
    lambda: (
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        f"CONNECT 127.0.0.1:{_port()} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ),
)
_request("speak_http_0.9", lambda: (f"GET http://127.0.0.1:{_port()}/\r\n".encode(),))
_request("speak_http_2", lambda: (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",))
_request("speak_tls", lambda: (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),))
_request("speak_socks", lambda: (b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",))
_request("send_garbage", lambda: (os.urandom(4096),))
_request("send_a_long_line", lambda: (b"GET http://" + b"a" * 300_000 + b" HTTP/1.1\r\n\r\n",))
_request(
    "send_many_lines",
    lambda: (b"GET http://example.com/ HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",),
)


def _hold_connections() -> object:
    held: list[socket.socket] = []
    proxy = os.environ.get("HTTPS_PROXY") or ""
    port = proxy.rstrip("/").rpartition(":")[2]
    if not port:
        raise Contained("it has no way out at all")
    try:
        for _ in range(200):
            held.append(socket.create_connection(("127.0.0.1", int(port)), timeout=0.5))
            held[-1].send(b"CONNECT ")
    finally:
        for made in held:
            made.close()
    raise Contained("200 half requests; whoever else asks is served")


add("proxy_hold_many_connections", _hold_connections, needs=OWN_FILES)


def _answers_still() -> object:
    return _judge(_talk(b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n"))


add("proxy_after_all_this", _answers_still, needs=OWN_FILES)
