"""The proxy with real sockets: what passes, what does not and says why, and what cannot harm it.

Names resolve to public addresses, which are checked as ever; only the connection to a checked
address is led to a server on the loopback interface.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import traceback
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import anyio
import pytest
from anyio import to_thread
from anyio.abc import ByteStream, Listener, SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSListener

from py_code_mode.sandbox.egress import MAX_REFUSALS, Egress, EgressRecord, guest_variables
from py_code_mode.sandbox.egress.client_hello import RETRY_LENGTH
from py_code_mode.sandbox.egress.dialling import Dialler, connect_to, resolve
from py_code_mode.sandbox.hosts import HostPattern

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    Handler = Callable[[ByteStream], Awaitable[None]]

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class World:
    """What there is beyond the proxy, and the proxy."""

    def __init__(self) -> None:
        self.names: dict[str, Sequence[str]] = {}
        self.servers: dict[int, int] = {}
        self.dialled: list[tuple[str, int]] = []
        self.looked_up: list[str] = []
        self.unreachable: set[str] = set()
        self._serving: list[tuple[Listener[Any], Handler]] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        try:
            return self.names[host]
        except KeyError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    async def connect(self, address: str, port: int) -> socket.socket:
        self.dialled.append((address, port))
        if address in self.unreachable:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        return await connect_to("127.0.0.1", self.servers[port])

    async def serve(
        self, port: int, handler: Handler, certificate: tuple[Path, Path] | None = None
    ) -> int:
        """Have a server at a port of every address, while there is a proxy; its real port."""

        async def guarded(stream: ByteStream) -> None:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                async with stream:
                    await handler(stream)

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1024)
        self.servers[port] = listener.extra(SocketAttribute.local_port)
        if certificate is None:
            self._serving.append((listener, guarded))
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            secure = TLSListener(listener, context, standard_compatible=False)
            secure.handle_handshake_error = _ignore  # type: ignore[method-assign]
            self._serving.append((secure, guarded))
        return self.servers[port]

    @asynccontextmanager
    async def proxy(self, *network: str, **options: Any) -> AsyncGenerator[Proxy]:
        patterns = tuple(map(HostPattern.parse, network))
        options.setdefault("variables", {})
        given: dict[str, Any] = {"resolve": self.resolve, "connect": self.connect}
        given |= {name: options.pop(name) for name in ("variables", "timeout") if name in options}
        listener = options.pop("listener", None) or socket.create_server(
            ("127.0.0.1", 0), backlog=1024
        )
        log = options.pop("log", None)
        proxy = Proxy(listener.getsockname()[1])

        def note(record: EgressRecord) -> None:
            if log is not None:
                log(record)
            proxy.noted.set()

        dialler = Dialler(patterns, **given)
        proxy.egress = Egress(listener, patterns, log=note, dialler=dialler, **options)
        async with anyio.create_task_group() as group:
            for server, handler in self._serving:
                group.start_soon(server.serve, handler)
            group.start_soon(proxy.egress.serve)
            yield proxy
            group.cancel_scope.cancel()

    async def close(self) -> None:
        for server, _ in self._serving:
            await server.aclose()


async def _ignore(*_: object) -> None:
    return


class Proxy:
    egress: Egress

    def __init__(self, port: int) -> None:
        self.port = port
        self.noted = anyio.Event()

    async def say(self, *pieces: bytes) -> bytes:
        """Send pieces, and read to the end."""
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            for piece in pieces:
                await stream.send(piece)
            return await _rest(stream)

    async def tunnel(self, target: str) -> SocketStream:
        stream = await anyio.connect_tcp("127.0.0.1", self.port)
        await stream.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await _until(stream, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return stream

    async def record(self, count: int = 1) -> EgressRecord:
        """The latest record, once there are so many."""
        while len(self.egress.records) < count:
            self.noted = anyio.Event()
            await self.noted.wait()
        assert len(self.egress.records) == count
        return self.egress.records[-1]


async def _rest(stream: ByteStream) -> bytes:
    found = b""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            found += await stream.receive()
    return found


async def _until(stream: ByteStream, mark: bytes) -> bytes:
    found = b""
    while mark not in found:
        found += await stream.receive()
    return found


def _says(answer: bytes, seen: list[bytes] | None = None) -> Handler:
    """A server that reads one head, answers, and closes."""

    async def handle(stream: ByteStream) -> None:
        head = await _until(stream, b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        await stream.send(answer)

    return handle


async def _echo(stream: ByteStream) -> None:
    while True:
        await stream.send(await stream.receive())


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    made = World()
    made.names = {"api.example.org": [PUBLIC], "www.example.org": [PUBLIC]}
    yield made
    await made.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not here")
    folder = tmp_path_factory.mktemp("certificate")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=test", "-out", paths[0], "-keyout", paths[1],
            "-addext", "subjectAltName=DNS:api.example.org,DNS:*.example.net,IP:10.0.0.7",
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return paths


def _error(answer: bytes) -> dict[str, Any]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def _get(url: str, *headers: str, version: str = "1.1") -> bytes:
    host = url.split("/")[2]
    return "\r\n".join(
        [f"GET {url} HTTP/{version}", f"Host: {host}", *headers, "Connection: close", "", ""]
    ).encode()


# -- plain requests


async def test_listed_host_answers_a_plain_request(world: World) -> None:
    seen: list[bytes] = []
    await world.serve(80, _says(OK, seen))
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(_get("http://API.example.org/a?b=c", "X-One: 1"))
        assert answer.endswith(b"\r\n\r\nhello")
        record = await proxy.record()
    assert seen[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: api.example.org\r\nX-One: 1\r\n")
    assert world.dialled == [(PUBLIC, 80)]
    assert (record.method, record.host, record.port) == ("GET", "api.example.org", 80)
    assert (record.decision, record.reason) == ("allowed", "")
    assert (record.sent, record.received) == (len(seen[0]), len(OK))
    assert record.duration > 0


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("http://evil.example/", "evil.example"),
        ("http://xapi.example.org/", "xapi.example.org"),
        ("http://api.example.org:8080/", "api.example.org:8080"),
        ("http://169.254.169.254/latest/", "169.254.169.254"),
        ("http://[::1]:9/", "[::1]:9"),
        ("http://localhost/", "localhost"),
        ("http://api.example.org.evil.example/", "api.example.org.evil.example"),
    ],
)
async def test_what_is_not_listed_gets_403_that_says_how(
    world: World, url: str, pattern: str
) -> None:
    async with world.proxy("api.example.org", "*.example.net:443") as proxy:
        answer = await proxy.say(_get(url))
        record = await proxy.record()
    status = answer.partition(b"\r\n")[0].decode()
    assert status.startswith("HTTP/1.1 403 Forbidden: ")
    assert "is not in the session's network policy" in status
    said = _error(answer)
    assert said["error"] == "not_listed"
    assert f"network: [{pattern}]" in said["message"]
    assert said["policy"] == {"network": [pattern]}
    assert HostPattern.parse(pattern).matches(said["host"], said["port"])
    assert said["allowed"] == ["api.example.org", "*.example.net:443"]
    assert (record.decision, record.reason) == ("denied", "not_listed")
    assert world.looked_up == world.dialled == []


async def test_keep_alive_serves_many_requests_each_with_its_record(world: World) -> None:
    await world.serve(80, _says(OK))
    async with world.proxy("*.example.org") as proxy:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            for host in ("api", "www", "api"):
                url = f"{host}.example.org"
                await stream.send(f"GET http://{url}/ HTTP/1.1\r\nHost: {url}\r\n\r\n".encode())
                assert (await _until(stream, b"hello")).startswith(b"HTTP/1.1 200 OK")
        await proxy.record(3)
        assert [record.host[:3] for record in proxy.egress.records] == ["api", "www", "api"]


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    bodies = iter((b"first", b"other"))

    async def handle(stream: ByteStream) -> None:
        await _says(OK.replace(b"hello", next(bodies)))(stream)

    await world.serve(80, handle)
    async with world.proxy("api.example.org") as proxy:
        one = b"GET http://api.example.org/ HTTP/1.1\r\nHost: api.example.org\r\n\r\n"
        answer = await proxy.say(one + _get("http://api.example.org/"))
    assert answer.index(b"first") < answer.index(b"other")


async def test_headers_of_one_hop_stay_on_it(world: World) -> None:
    seen: list[bytes] = []
    told = (
        b"HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n"
    )
    await world.serve(80, _says(told, seen))
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(
            b"GET http://api.example.org/ HTTP/1.1\r\nHost: api.example.org\r\n"
            b"Connection: close, x-secret, host, content-length\r\nX-Secret: 1\r\nTE: trailers\r\n"
            b"Keep-Alive: 5\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nAuthorization: Bearer t\r\n\r\n"
        )
    assert b"x-hop" not in answer.lower()
    assert b"X-End: 2" in answer
    assert seen[0] == (
        b"GET / HTTP/1.1\r\nHost: api.example.org\r\nAuthorization: Bearer t\r\n"
        b"Connection: close\r\n\r\n"
    )


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_bodies_are_streamed_both_ways(world: World, is_chunked: bool) -> None:
    size = 300_000

    async def handle(stream: ByteStream) -> None:
        got = await _until(stream, b"\r\n\r\n")
        head, _, body = got.partition(b"\r\n\r\n")
        end = b"0\r\n\r\n" if is_chunked else b""
        while not (body.endswith(end) if is_chunked else len(body) == size):
            body += await stream.receive()
        framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 300000"
        assert framing in head
        assert body.count(b"x") == size
        await stream.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + body)

    await world.serve(80, handle)

    def post() -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE)
        body: Any = (b"x" * 10_000 for _ in range(30)) if is_chunked else b"x" * size
        connection.request("POST", "http://api.example.org/", body, encode_chunked=is_chunked)
        with contextlib.closing(connection), connection.getresponse() as response:
            return response.read()

    async with world.proxy("api.example.org") as proxy:
        assert await to_thread.run_sync(post) == b"x" * size
        record = await proxy.record()
    assert min(record.sent, record.received) > size


async def test_answer_without_a_length_is_framed_anew_and_a_broken_one_looks_broken(
    world: World,
) -> None:
    await world.serve(80, _says(b"HTTP/1.0 200 OK\r\n\r\nto the end"))
    await world.serve(8080, _says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"))
    async with world.proxy("api.example.org:*") as proxy:
        answer = await proxy.say(_get("http://api.example.org/"))
        assert b"Transfer-Encoding: chunked" in answer
        assert answer.endswith(b"a\r\nto the end\r\n0\r\n\r\n")
        old = await proxy.say(b"GET http://api.example.org/ HTTP/1.0\r\n\r\n")
        assert old.endswith(b"\r\n\r\nto the end")
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            await stream.send(_get("http://api.example.org:8080/"))
            with pytest.raises(anyio.BrokenResourceError):
                await _until(stream, b"never")
        assert (await proxy.record(3)).reason == "bad_response"


@pytest.mark.parametrize(
    "answer",
    [
        b"not http at all\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)
async def test_server_that_sends_no_http_gives_502(world: World, answer: bytes) -> None:
    await world.serve(80, _says(answer))
    async with world.proxy("api.example.org") as proxy:
        told = await proxy.say(_get("http://api.example.org/"))
        record = await proxy.record()
    assert told.startswith(b"HTTP/1.1 502 Bad Gateway: api.example.org ")
    assert (record.decision, record.reason) == ("failed", "bad_response")


async def test_head_and_empty_answers_have_no_body(world: World) -> None:
    await world.serve(80, _says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    async with world.proxy("api.example.org") as proxy:
        one = b"HEAD http://%b/ HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"
        answer = await proxy.say(one % (b"api.example.org", b"api.example.org"))
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length: 5" in answer
        answer = await proxy.say(one % (b"evil.example", b"evil.example"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("goes_on", [True, False])
async def test_expect_100_is_between_client_and_server(world: World, goes_on: bool) -> None:
    async def handle(stream: ByteStream) -> None:
        head = await _until(stream, b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        if goes_on:
            await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await _until(stream, b"body")
            await stream.send(OK)
        else:
            await stream.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")

    await world.serve(80, handle)
    async with (
        world.proxy("api.example.org") as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as stream,
    ):
        await stream.send(
            b"POST http://api.example.org/ HTTP/1.1\r\nHost: api.example.org\r\n"
            b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        told = await _until(stream, b"\r\n\r\n")
        if goes_on:
            assert told.startswith(b"HTTP/1.1 100 ")
            await stream.send(b"body")
            assert b"hello" in await _until(stream, b"hello")
        else:
            assert told.startswith(b"HTTP/1.1 417 No\r\n")


async def test_server_that_answers_before_the_body_is_heard(world: World) -> None:
    await world.serve(80, _says(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"))
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(
            b"POST http://api.example.org/ HTTP/1.1\r\nHost: api.example.org\r\n"
            b"Content-Length: 5000000\r\n\r\n" + b"x" * 1000
        )
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_websocket_becomes_a_tunnel(world: World) -> None:
    async def handle(stream: ByteStream) -> None:
        head = await _until(stream, b"\r\n\r\n")
        assert b"Connection: Upgrade\r\nUpgrade: websocket" in head
        assert b"Sec-WebSocket-Key: k" in head
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: a\r\n\r\nfirst"
        )
        await _echo(stream)

    await world.serve(80, handle)
    async with (
        world.proxy("api.example.org") as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as stream,
    ):
        await stream.send(
            b"GET http://api.example.org/ws HTTP/1.1\r\nHost: api.example.org\r\n"
            b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
        told = await _until(stream, b"first")
        assert told.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: a" in told
        await stream.send(b"\x81\5frame")
        assert await _until(stream, b"frame") == b"\x81\5frame"
        await stream.send_eof()
        assert await _rest(stream) == b""
        assert (await proxy.record()).sent > 7


# -- requests that two readers could take differently


_API = b"http://api.example.org/"
_HOST = b"Host: api.example.org\r\n"
_POST = b"POST " + _API + b" HTTP/1.1\r\n" + _HOST


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n", 400, "bad_request"),
        (b"GET https://api.example.org/ HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET ftp://api.example.org/ HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET " + _API + b" HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400, "host_mismatch"),
        (b"GET " + _API + b" HTTP/1.1\r\nHost: api.example.org:81\r\n\r\n", 400, "host_mismatch"),
        (b"GET " + _API + b" HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET " + _API + b" HTTP/1.1\r\n" + _HOST * 2 + b"\r\n", 400, "bad_request"),
        (b"GET http://u:p@api.example.org/ HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET http://api.example.org\\@e.org/ HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET http://0x7f.1/ HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", 400, "bad_request"),
        (b"GET http://api.example.org:0/ HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET http://api.example.org:99999/ HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET http:///x HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET  " + _API + b" HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"GET " + _API + b" HTTP/1.1\r\nHost : api.example.org\r\n\r\n", 400, "bad_request"),
        (b"GET " + _API + b" HTTP/2.0\r\n" + _HOST + b"\r\n", 505, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "bad_request"),
        (b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(600), 400, "bad_request"),
        (bytes(range(256)) * 4 + b"\r\n\r\n", 400, "bad_request"),
        (b"GET " + _API + b"x" * 200_000, 431, "bad_request"),
        (b"CONNECT api.example.org HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"CONNECT http://api.example.org:443 HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (b"CONNECT ::1:443 HTTP/1.1\r\n" + _HOST + b"\r\n", 400, "bad_request"),
        (
            b"CONNECT api.example.org:443 HTTP/1.1\r\n" + _HOST + b"Content-Length: 3\r\n\r\nabc",
            400,
            "bad_request",
        ),
    ],
)
async def test_what_a_proxy_does_not_serve_is_refused(
    world: World, request_: bytes, status: int, reason: str
) -> None:
    async with world.proxy("*.example.org:*") as proxy:
        answer = await proxy.say(request_)
        record = await proxy.record()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert _error(answer)["error"] == reason
    assert (record.decision, record.reason) == ("denied", reason)
    assert world.dialled == []


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: 4, 5\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"X: a\rTransfer-Encoding: chunked\r\n",
        b"X\0: a\r\n",
    ],
)
async def test_ambiguous_length_is_refused_and_no_server_sees_it(
    world: World, framing: bytes
) -> None:
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(_POST + framing + b"\r\n0\r\n\r\nGET /evil HTTP/1.1")
        assert (await proxy.record()).reason == "bad_request"
    assert answer.partition(b" ")[2][:3] in (b"400", b"501")
    assert world.dialled == []


async def test_chunks_are_written_anew_without_what_clung_to_them(world: World) -> None:
    got = b""

    async def handle(stream: ByteStream) -> None:
        nonlocal got
        got = await _until(stream, b"0\r\n\r\n")
        await stream.send(OK)

    await world.serve(80, handle)
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(
            _POST + b"Transfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n5;ext=1\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n"
        )
    assert answer.endswith(b"hello")
    assert got.partition(b"\r\n\r\n")[2] == b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "body", [b"5\r\nhelloXX0\r\n\r\n", b"zz\r\n", b"-1\r\nx\r\n", b"5\n\nhello\r\n"]
)
async def test_malformed_chunks_break_the_request_off(world: World, body: bytes) -> None:
    got: list[bytes] = []

    async def handle(stream: ByteStream) -> None:
        got.append(await _rest(stream))

    await world.serve(80, handle)
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(_POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        assert (await proxy.record()).reason == "broken"
    assert answer == b""
    assert b"0\r\n\r\n" not in b"".join(got)


# -- tunnels


async def test_tunnel_carries_bytes_and_half_closes(world: World) -> None:
    async def handle(stream: ByteStream) -> None:
        got = await _rest(stream)
        await stream.send(b"got %d" % len(got))

    await world.serve(5432, handle)
    async with world.proxy("api.example.org:5432") as proxy:
        async with await proxy.tunnel("api.example.org:5432") as stream:
            await stream.send(b"x" * 100_000)
            await stream.send_eof()
            assert await _rest(stream) == b"got 100000"
        record = await proxy.record()
    assert (record.method, record.host, record.port) == ("CONNECT", "api.example.org", 5432)
    assert (record.decision, record.reason) == ("allowed", "")
    assert (record.sent, record.received) == (100_000, 10)


async def test_server_may_speak_first(world: World) -> None:
    async def handle(stream: ByteStream) -> None:
        await stream.send(b"220 ready\r\n")
        await _echo(stream)

    await world.serve(2525, handle)
    async with (
        world.proxy("api.example.org:2525") as proxy,
        await proxy.tunnel("api.example.org:2525") as stream,
    ):
        assert await _until(stream, b"\n") == b"220 ready\r\n"
        await stream.send(b"EHLO me\r\n")
        assert await _until(stream, b"\n") == b"EHLO me\r\n"


async def test_what_comes_with_the_connect_is_not_lost(world: World) -> None:
    await world.serve(7, _echo)
    async with (
        world.proxy("api.example.org:7") as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as stream,
    ):
        await stream.send(b"CONNECT api.example.org:7 HTTP/1.0\r\n\r\nearly")
        assert (await _until(stream, b"early")).startswith(b"HTTP/1.1 200 ")


async def test_denied_tunnel_gets_403(world: World) -> None:
    async with world.proxy("api.example.org") as proxy:
        answer = await proxy.say(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 Forbidden: evil.example:443 is not in the session's")
    assert _error(answer)["policy"] == {"network": ["evil.example"]}


async def test_server_that_resets_is_seen_as_a_reset(world: World) -> None:
    async def handle(stream: ByteStream) -> None:
        await stream.receive()
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    await world.serve(7, handle)
    async with world.proxy("api.example.org:7") as proxy:
        async with await proxy.tunnel("api.example.org:7") as stream:
            await stream.send(b"x")
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        record = await proxy.record()
    assert (record.decision, record.reason) == ("allowed", "broken")


async def test_slow_reader_holds_the_server_back(world: World) -> None:
    sent = 0
    is_stuck = anyio.Event()

    async def handle(stream: ByteStream) -> None:
        nonlocal sent
        await stream.receive()
        piece = bytes(1 << 20)
        while sent < 1 << 30:
            with anyio.move_on_after(0.3) as scope:
                await stream.send(piece)
                sent += len(piece)
            if scope.cancelled_caught:
                is_stuck.set()
                return

    await world.serve(7, handle)
    async with (
        world.proxy("api.example.org:7") as proxy,
        await proxy.tunnel("api.example.org:7") as stream,
    ):
        await stream.send(b"go")
        await is_stuck.wait()
    assert sent < 64 << 20


async def test_tunnel_to_port_80_is_read_as_http(world: World) -> None:
    seen: list[bytes] = []
    await world.serve(80, _says(OK, seen))
    async with world.proxy("api.example.org", "www.example.org") as proxy:
        async with await proxy.tunnel("api.example.org:80") as stream:
            await stream.send(b"GET /in HTTP/1.1\r\n" + _HOST + b"\r\n")
            assert (await _until(stream, b"hello")).startswith(b"HTTP/1.1 200 OK")
            # allowed as such, but not through a tunnel to somebody else
            await stream.send(b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n")
            told = await _rest(stream)
            assert told.startswith(b"HTTP/1.1 400 ")
            assert _error(told)["error"] == "host_mismatch"
        async with await proxy.tunnel("api.example.org:80") as stream:
            await stream.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert (await _rest(stream)).startswith(b"HTTP/1.1 505 ")
        async with await proxy.tunnel("api.example.org:80") as stream:
            await stream.send(b"CONNECT www.example.org:443 HTTP/1.1\r\n" + _HOST + b"\r\n")
            assert (await _rest(stream)).startswith(b"HTTP/1.1 400 ")
        denied = await proxy.say(b"CONNECT evil.example:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert denied.startswith(b"HTTP/1.1 403 ")
    assert len(seen) == 1


# -- TLS


def _tls(port: int, target: str, name: str | None, certificate: Path) -> bytes:
    """A request through the proxy by CONNECT; what the client reads."""
    context = ssl.create_default_context(cafile=str(certificate))
    if name is None:
        context.check_hostname = False
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
        raw.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += raw.recv(1)
        assert head.startswith(b"HTTP/1.1 200 "), head
        with context.wrap_socket(raw, server_hostname=name) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nHost: whatever\r\n\r\n")
            found = b""
            while data := secure.recv(1000):
                found += data
            return found


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("api.example.org:443", "api.example.org"),
        ("API.example.org:443", "api.EXAMPLE.org"),
        ("www.example.net:8443", "www.example.net"),
        ("10.0.0.7:443", "10.0.0.7"),
        ("10.0.0.7:443", "api.example.org"),
    ],
)
async def test_tls_to_the_tunnels_own_host_passes(
    world: World, certificate: tuple[Path, Path], target: str, name: str
) -> None:
    for port in (443, 8443):
        await world.serve(port, _says(OK), certificate)
    world.names["www.example.net"] = [PUBLIC]
    async with world.proxy("api.example.org", "*.example.net:8443", "10.0.0.7") as proxy:
        ask = partial(_tls, proxy.port, target, name, certificate[0])
        assert (await to_thread.run_sync(ask)).endswith(b"hello")
        assert (await proxy.record()).decision == "allowed"


@pytest.mark.parametrize(
    ("target", "name", "reason"),
    [
        ("api.example.org:443", "evil.example", "sni_mismatch"),
        ("api.example.org:443", "www.example.org", "sni_mismatch"),
        ("api.example.org:443", "sub.api.example.org", "sni_mismatch"),
        ("api.example.org:8443", "evil.example", "sni_mismatch"),
        ("10.0.0.7:443", "evil.example", "sni_mismatch"),
        ("api.example.org:443", None, "sni_missing"),
    ],
)
async def test_tls_that_asks_for_another_host_is_cut_with_an_alert(
    world: World, certificate: tuple[Path, Path], target: str, name: str | None, reason: str
) -> None:
    got: list[bytes] = []

    async def handle(stream: ByteStream) -> None:
        got.append(await _rest(stream))

    for port in (443, 8443):
        await world.serve(port, handle)
    async with world.proxy("api.example.org:*", "www.example.org", "10.0.0.7") as proxy:
        with pytest.raises(ssl.SSLError, match="access denied"):
            await to_thread.run_sync(_tls, proxy.port, target, name, certificate[0])
        record = await proxy.record()
    assert (record.decision, record.reason) == ("denied", reason)
    assert b"".join(got) == b""
    assert record.sent == 0


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "not_tls"),
        (b"\x80\x2e\1\3\1", "not_tls"),
        (b"\x16\3\1\0\5\1\0\0\1\0", "bad_tls"),
        (b"\x16GET", "bad_tls"),
    ],
)
async def test_port_of_https_carries_tls_only(world: World, start: bytes, reason: str) -> None:
    got: list[bytes] = []

    async def handle(stream: ByteStream) -> None:
        got.append(await _rest(stream))

    await world.serve(443, handle)
    async with world.proxy("api.example.org") as proxy:
        async with await proxy.tunnel("api.example.org:443") as stream:
            await stream.send(start)
            await _rest(stream)
        assert (await proxy.record()).reason == reason
    assert b"".join(got) == b""


def _hello(name: str) -> bytes:
    context = ssl.create_default_context()
    written = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), written, server_hostname=name).do_handshake()
    return written.read()


@pytest.mark.parametrize("is_at_once", [True, False])
@pytest.mark.parametrize(("second", "is_cut"), [("api.example.org", False), ("evil.example", True)])
async def test_second_hello_is_held_to_the_same_name(
    world: World, second: str, is_cut: bool, is_at_once: bool
) -> None:
    random = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    again = (b"\x16\3\3\0\x58\2\0\0\x54\3\3" + random).ljust(93, b"\0")
    first, more = _hello("api.example.org"), b"\x14\3\3\0\1\1" + _hello(second)
    got = b""

    async def handle(stream: ByteStream) -> None:
        nonlocal got
        while len(got) < len(first):
            got += await stream.receive()
        await stream.send(again[:RETRY_LENGTH])
        await stream.send(again[RETRY_LENGTH:])
        got += await _rest(stream)

    await world.serve(443, handle)
    async with world.proxy("api.example.org") as proxy:
        async with await proxy.tunnel("api.example.org:443") as stream:
            await stream.send(first + more if is_at_once else first)
            assert (await stream.receive())[0] == 22
            if not is_at_once:
                await stream.send(more)
            if is_cut:
                assert (await _rest(stream)).endswith(b"\x15\3\3\0\2\2\x31")
            else:
                await stream.send(b"and so on")
                await stream.send_eof()
                await _rest(stream)
        record = await proxy.record()
    assert record.reason == ("sni_mismatch" if is_cut else "")
    assert got == (first if is_cut else first + more + b"and so on")


async def test_encrypted_hello_is_on_record(world: World) -> None:
    # the outer name is the tunnel's own; that there is an inner one is all that can be known
    plain = _hello("api.example.org")
    extra = b"\xfe\x0d\0\4\0\0\0\0"
    body = plain[9:]
    at = 2 + 32 + 1 + body[34]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    extensions = body[at + 2 :] + extra
    body = body[:at] + len(extensions).to_bytes(2, "big") + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    await world.serve(443, _echo)
    async with world.proxy("api.example.org") as proxy:
        async with await proxy.tunnel("api.example.org:443") as stream:
            await stream.send(b"\x16\3\1" + len(message).to_bytes(2, "big") + message)
            await stream.receive()
            await stream.send_eof()
            await _rest(stream)
        record = await proxy.record()
    assert (record.decision, record.reason) == ("allowed", "")
    assert "encrypted ClientHello" in record.detail


# -- where connections go


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.7"], ["169.254.169.254"], ["::1"], ["fd00::1"], ["fe80::1%1"],
        ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["0.0.0.0"], ["224.0.0.1"],
        [PUBLIC, "127.0.0.1"], ["10.0.0.7", PUBLIC],
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
async def test_public_name_that_leads_inside_is_denied(
    world: World, addresses: list[str], method: str
) -> None:
    world.names["rebind.example.org"] = addresses
    async with world.proxy("*.example.org") as proxy:
        request = _get("http://rebind.example.org/")
        if method == "CONNECT":
            request = b"CONNECT rebind.example.org:443 HTTP/1.1\r\nHost: rebind.example.org\r\n\r\n"
        answer = await proxy.say(request)
        record = await proxy.record()
    assert answer.startswith(b"HTTP/1.1 403 Forbidden: rebind.example.org leads to ")
    assert _error(answer)["error"] == "private_address"
    assert (record.decision, record.reason) == ("denied", "private_address")
    assert world.dialled == []


async def test_name_is_looked_up_once_and_the_checked_address_dialled(world: World) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers)

    world.resolve = resolve  # type: ignore[method-assign]
    await world.serve(80, _says(OK))
    async with world.proxy("api.example.org") as proxy:
        assert (await proxy.say(_get("http://api.example.org/"))).endswith(b"hello")
        assert b"403" in await proxy.say(_get("http://api.example.org/"))
    assert world.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("network", "host", "resolved", "dialled"),
    [
        (["10.0.0.7"], "10.0.0.7", [], "10.0.0.7"),
        (["127.0.0.1"], "127.0.0.1", [], "127.0.0.1"),
        (["[::1]"], "[::1]", [], "::1"),
        (["127.0.0.1"], "[::ffff:127.0.0.1]", [], "127.0.0.1"),
        (["localhost"], "localhost", ["8.8.8.8"], "127.0.0.1"),
        (["db.internal"], "db.internal", ["10.0.0.7"], "10.0.0.7"),
        (["db"], "db", ["fd00::7"], "fd00::7"),
        (["*.corp.internal"], "a.corp.internal", ["192.168.0.1"], "192.168.0.1"),
        (["in.example.org", "10.0.0.7"], "in.example.org", ["10.0.0.7"], "10.0.0.7"),
    ],
)
async def test_what_is_granted_as_private_is_dialled(
    world: World, network: list[str], host: str, resolved: list[str], dialled: str
) -> None:
    world.names[host] = resolved
    await world.serve(80, _says(OK))
    async with world.proxy(*network) as proxy:
        assert (await proxy.say(_get(f"http://{host}/"))).endswith(b"hello")
    assert world.dialled[0] == (dialled, 80)


@pytest.mark.parametrize(
    ("network", "host", "resolved"),
    [
        (["db.internal"], "db.internal", ["127.0.0.1"]),
        (["metadata.google.internal"], "metadata.google.internal", ["169.254.169.254"]),
        (["printer.local"], "printer.local", ["::1"]),
        (["in.example.org", "10.0.0.7:8080"], "in.example.org", ["10.0.0.7"]),
        (["0.0.0.0"], "0.0.0.0", []),
        (["224.0.0.1"], "224.0.0.1", []),
    ],
)
async def test_grants_of_private_hosts_go_no_further(
    world: World, network: list[str], host: str, resolved: list[str]
) -> None:
    world.names[host] = resolved
    async with world.proxy(*network) as proxy:
        assert _error(await proxy.say(_get(f"http://{host}/")))["error"] == "private_address"
    assert world.dialled == []


async def test_next_address_is_tried_and_families_take_turns(world: World) -> None:
    world.names["api.example.org"] = ["2606:4700::1", "2606:4700::2", "8.8.8.8", PUBLIC]
    world.unreachable = {"2606:4700::1", "2606:4700::2", "8.8.8.8"}
    await world.serve(80, _says(OK))
    async with world.proxy("api.example.org") as proxy:
        assert (await proxy.say(_get("http://api.example.org/"))).endswith(b"hello")
    tried = [address for address, _ in world.dialled]
    assert tried == ["2606:4700::1", "8.8.8.8", "2606:4700::2", PUBLIC]


async def test_address_that_hangs_does_not_hold_the_next_up(world: World) -> None:
    world.names["api.example.org"] = ["8.8.8.8", PUBLIC]
    connect = world.connect

    async def hang(address: str, port: int) -> socket.socket:
        if address == "8.8.8.8":
            await anyio.sleep_forever()
        return await connect(address, port)

    world.connect = hang  # type: ignore[method-assign]
    await world.serve(80, _says(OK))
    async with world.proxy("api.example.org") as proxy:
        assert (await proxy.say(_get("http://api.example.org/"))).endswith(b"hello")


@pytest.mark.parametrize(
    ("case", "status", "reason"),
    [
        ("unknown", 502, "unresolved"),
        ("refusing", 502, "unreachable"),
        ("silent", 504, "unreachable"),
    ],
)
async def test_host_that_cannot_be_had_says_why(
    world: World, case: str, status: int, reason: str
) -> None:
    world.names |= {"refusing.example.org": [PUBLIC], "silent.example.org": ["8.8.8.8"]}
    world.unreachable = {PUBLIC}
    connect = world.connect

    async def hang(address: str, port: int) -> socket.socket:
        if address == "8.8.8.8":
            await anyio.sleep_forever()
        return await connect(address, port)

    world.connect = hang  # type: ignore[method-assign]
    timeout = 0.2 if case == "silent" else PATIENCE
    async with world.proxy("*.example.org", timeout=timeout) as proxy:
        answer = await proxy.say(_get(f"http://{case}.example.org/"))
        record = await proxy.record()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (record.decision, record.reason) == ("failed", reason)


# -- the host's own proxy


async def _copy(source: ByteStream, sink: ByteStream) -> None:
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await sink.send(await source.receive())


async def _upstream_proxy(world: World, seen: list[bytes], answer: bytes | None = None) -> int:
    async def handle(stream: ByteStream) -> None:
        head = await _until(stream, b"\r\n\r\n")
        seen.append(head)
        if answer is not None:
            await stream.send(answer)
            return
        await stream.send(b"HTTP/1.1 200 OK\r\nX-Proxy: 1\r\n\r\n")
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        async with (
            await anyio.connect_tcp("127.0.0.1", world.servers[port]) as onward,
            anyio.create_task_group() as group,
        ):
            group.start_soon(_copy, stream, onward)
            await _copy(onward, stream)
            group.cancel_scope.cancel()

    return await world.serve(3128, handle)


async def test_public_names_go_through_the_hosts_own_proxy(
    world: World, certificate: tuple[Path, Path]
) -> None:
    seen: list[bytes] = []
    await world.serve(443, _says(OK), certificate)
    await world.serve(80, _says(OK))
    port = await _upstream_proxy(world, seen)
    address = f"http://user:pa%20ss@127.0.0.1:{port}"
    variables = {"HTTPS_PROXY": address, "http_proxy": address, "no_proxy": "www.example.org"}
    async with world.proxy("*.example.org", "10.0.0.7", "localhost", variables=variables) as proxy:
        ask = partial(_tls, proxy.port, "api.example.org:443", "api.example.org", certificate[0])
        assert (await to_thread.run_sync(ask)).endswith(b"hello")
        assert (await proxy.say(_get("http://api.example.org/"))).endswith(b"hello")
        record = await proxy.record(2)
        # its name is not looked up here; theirs are, or need not be
        assert world.looked_up == world.dialled == []
        for host in ("www.example.org", "10.0.0.7", "localhost"):
            assert (await proxy.say(_get(f"http://{host}/"))).endswith(b"hello")
        denied = await proxy.say(_get("http://evil.example/"))
        assert denied.startswith(b"HTTP/1.1 403 ")
    assert [head.split(b" ")[1] for head in seen] == [b"api.example.org:443", b"api.example.org:80"]
    assert all(b"Proxy-Authorization: Basic dXNlcjpwYSBzcw==" in head for head in seen)
    assert [address for address, _ in world.dialled][:2] == [PUBLIC, "10.0.0.7"]
    assert record.received == len(OK)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n", "407 Who are you"),
        (b"", "broke off"),
        (b"SSH-2.0-x\r\n\r\n", "broke off"),
    ],
)
async def test_hosts_proxy_that_refuses_is_named(world: World, answer: bytes, said: str) -> None:
    port = await _upstream_proxy(world, [], answer)
    variables = {"ALL_PROXY": f"127.0.0.1:{port}"}
    async with world.proxy("api.example.org", variables=variables) as proxy:
        told = _error(await proxy.say(_get("http://api.example.org/")))
        record = await proxy.record()
    assert said in told["message"]
    assert (record.decision, record.reason) == ("failed", "upstream_proxy")


@pytest.mark.parametrize("proxy_", ["socks5://127.0.0.1:1", "https://proxy:3", "http://x:99999"])
async def test_hosts_proxy_that_cannot_be_used_is_said(world: World, proxy_: str) -> None:
    async with world.proxy("api.example.org", variables={"http_proxy": proxy_}) as proxy:
        told = _error(await proxy.say(_get("http://api.example.org/")))
    assert told["error"] == "upstream_proxy"
    assert "only http:// ones" in told["message"]


# -- clients as people use them


async def test_urllib_and_curl_show_what_was_denied(world: World) -> None:
    await world.serve(80, _says(OK))
    async with world.proxy("api.example.org") as proxy:
        variables = guest_variables(proxy.port)
        opener = build_opener(
            ProxyHandler({"http": variables["http_proxy"], "https": variables["HTTPS_PROXY"]})
        )

        def ask(url: str) -> bytes:
            with opener.open(url, timeout=PATIENCE) as response:
                return response.read()

        def refusal_of_a_tunnel(url: str) -> str:
            with pytest.raises(URLError) as refused:
                ask(url)
            reason = refused.value.reason
            assert isinstance(reason, OSError)
            # CPython 3.11.2 leaves the response open, and a frame keeps it: where the collector of
            # garbage comes to its socket first, that warns
            traceback.clear_frames(reason.__traceback__)
            return str(reason)

        assert await to_thread.run_sync(ask, "http://api.example.org/") == b"hello"
        with pytest.raises(HTTPError, match="403") as denied:
            await to_thread.run_sync(ask, "http://evil.example/")
        with contextlib.closing(denied.value):
            assert b"network: [evil.example]" in denied.value.read()
        said = await to_thread.run_sync(refusal_of_a_tunnel, "https://evil.example/")
        assert "403 Forbidden: evil.example:443 is not in" in said
        if shutil.which("curl") is None:
            return
        for url, said in (
            ("http://api.example.org/", "hello"),
            ("http://evil.example/", "evil.ex"),
        ):
            done = await anyio.run_process(
                ["curl", "-sS", "--max-time", "10", url], env={**os.environ, **variables}
            )
            assert said in done.stdout.decode()


def test_guest_variables_are_there_in_both_cases() -> None:
    variables = guest_variables(3128)
    assert variables["HTTPS_PROXY"] == variables["http_proxy"] == "http://127.0.0.1:3128"
    assert variables["NO_PROXY"] == variables["no_proxy"] == "localhost,127.0.0.1,::1"
    assert set(map(str.upper, variables)) == {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}


def test_listed_names_of_the_loopback_are_reached_by_the_proxy() -> None:
    network = [HostPattern.parse(text) for text in ("127.0.0.1:8000", "LOCALHOST", "[::1]:80")]
    assert guest_variables(3128, network)["NO_PROXY"] == ""
    assert guest_variables(3128, network[:1])["no_proxy"].count(",") == 1


def test_h11_is_loaded_with_a_proxy_and_not_before() -> None:
    code = (
        "import sys, py_code_mode.sandbox.egress as e; assert 'h11' not in sys.modules; "
        "import socket; s = socket.create_server(('127.0.0.1', 0)); e.Egress(s, ()).close(); "
        "assert 'h11' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- limits, floods, ends


async def test_five_hundred_connections_at_once_are_served(world: World) -> None:
    await world.serve(7, _echo)
    count = 500
    async with world.proxy("api.example.org:7", connections=count) as proxy:
        done: list[bytes] = []
        all_open = anyio.Event()
        opened = 0

        async def one(number: int) -> None:
            nonlocal opened
            async with await proxy.tunnel("api.example.org:7") as stream:
                opened += 1
                if opened == count:
                    all_open.set()
                await all_open.wait()
                await stream.send(b"%d\n" % number)
                done.append(await _until(stream, b"\n"))

        with anyio.fail_after(PATIENCE * 2):
            async with anyio.create_task_group() as group:
                for number in range(count):
                    group.start_soon(one, number)
        assert sorted(done) == sorted(b"%d\n" % number for number in range(count))


async def test_one_connection_too_many_is_told_so(world: World) -> None:
    await world.serve(7, _echo)
    async with world.proxy("api.example.org:7", connections=2) as proxy:
        first = await proxy.tunnel("api.example.org:7")
        async with await proxy.tunnel("api.example.org:7"):
            answer = await proxy.say(b"CONNECT api.example.org:7 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable: ")
            assert "2 connections" in _error(answer)["message"]
            assert (await proxy.record()).reason == "busy"
            await first.aclose()
            await proxy.record(2)
            async with await proxy.tunnel("api.example.org:7") as again:
                await again.send(b"x\n")
                assert await _until(again, b"\n") == b"x\n"


async def test_flood_of_connections_leaves_the_event_loop_to_others(world: World) -> None:
    await world.serve(7, _echo)
    longest = 0.0
    async with (
        world.proxy("api.example.org:7", connections=4) as proxy,
        await proxy.tunnel("api.example.org:7") as stream,
    ):
        flood: list[socket.socket] = []
        for _ in range(400):
            made = socket.socket()
            made.setblocking(False)
            made.connect_ex(("127.0.0.1", proxy.port))
            flood.append(made)
        for number in range(20):
            started = anyio.current_time()
            await stream.send(b"%d\n" % number)
            assert await _until(stream, b"\n") == b"%d\n" % number
            longest = max(longest, anyio.current_time() - started)
            assert proxy.egress.connections <= 4 + MAX_REFUSALS
        for made in flood:
            made.close()
    assert longest < 2


async def test_listener_without_descriptors_left_is_tried_again(world: World) -> None:
    class Exhausted(socket.socket):
        problems: ClassVar = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE]

        def accept(self) -> tuple[socket.socket, Any]:
            if self.problems:
                raise OSError(self.problems.pop(), "out of order")
            return super().accept()

    listener = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    await world.serve(80, _says(OK))
    async with world.proxy("api.example.org", listener=listener) as proxy:
        assert (await proxy.say(_get("http://api.example.org/"))).endswith(b"hello")


async def test_listener_that_is_broken_ends_the_proxy_with_its_error() -> None:
    class Broken(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            raise OSError(errno.EINVAL, "Invalid argument")

    listener = Broken(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with (
        socket.create_connection(listener.getsockname()),
        anyio.fail_after(PATIENCE),
        pytest.raises(OSError, match="Invalid argument"),
    ):
        await Egress(listener, ()).serve()
    assert listener.fileno() == -1


@pytest.mark.parametrize("stage", ["nothing", "half a head", "tunnel", "hello", "answer"])
async def test_what_stands_still_is_closed(world: World, stage: str) -> None:
    async def silent(stream: ByteStream) -> None:
        await _rest(stream)

    for port in (7, 80, 443):
        await world.serve(port, silent)
    async with world.proxy("api.example.org:*", idle_timeout=0.3, head_timeout=0.2) as proxy:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            if stage == "half a head":
                await stream.send(b"GET http://api.ex")
            elif stage == "tunnel":
                await stream.send(b"CONNECT api.example.org:7 HTTP/1.1\r\nHost: x\r\n\r\n")
            elif stage == "hello":
                await stream.send(b"CONNECT api.example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16")
            elif stage == "answer":
                await stream.send(_get("http://api.example.org/"))
            told = await _rest(stream)
        if stage != "nothing":
            assert (await proxy.record()).reason == "timeout"
    assert (b" 408 " in told) == (stage == "half a head")


async def test_what_moves_now_and_then_stays_open(world: World) -> None:
    await world.serve(7, _echo)
    async with (
        world.proxy("api.example.org:7", idle_timeout=2.0) as proxy,
        await proxy.tunnel("api.example.org:7") as stream,
    ):
        until = anyio.current_time() + 2.5
        while anyio.current_time() < until:
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            with anyio.move_on_after(0.1):
                await stream.receive()


@pytest.mark.parametrize("stage", ["connecting", "tunnel", "upload", "download", "keep-alive"])
async def test_cancelling_closes_everything_and_keeps_the_record(world: World, stage: str) -> None:
    begun = anyio.Event()

    async def handle(stream: ByteStream) -> None:
        await _until(stream, b"\n")
        if stage == "download":
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nsome")
        elif stage == "keep-alive":
            await stream.send(OK)
        begun.set()
        await _rest(stream)

    async def hang(address: str, port: int) -> socket.socket:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    for port in (7, 80):
        await world.serve(port, handle)
    if stage == "connecting":
        world.connect = hang  # type: ignore[method-assign]
    seen: list[EgressRecord] = []
    async with world.proxy("api.example.org:*", log=seen.append) as proxy:
        stream = await anyio.connect_tcp("127.0.0.1", proxy.port)
        if stage == "tunnel":
            await stream.send(b"CONNECT api.example.org:7 HTTP/1.1\r\nHost: x\r\n\r\nx\n")
        elif stage == "upload":
            await stream.send(_POST + b"Content-Length: 9\r\n\r\nx")
        else:
            await stream.send(b"GET " + _API + b" HTTP/1.1\r\n" + _HOST + b"\r\n")
        await begun.wait()
        if stage == "keep-alive":
            await proxy.record()
    async with stream:
        await _rest(stream)
    assert proxy.egress.connections == 0
    decision = "failed" if stage == "connecting" else "allowed"
    reason = "" if stage == "keep-alive" else "closed"
    assert [(record.decision, record.reason) for record in seen] == [(decision, reason)]


async def test_without_its_log_there_is_no_traffic(world: World) -> None:
    def fail(record: EgressRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    egress = Egress(listener, (), log=fail)
    ended: list[Exception] = []

    async def serve() -> None:
        try:
            await egress.serve()
        except OSError as error:
            ended.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        async with await anyio.connect_tcp(*address) as stream:
            await stream.send(_get("http://evil.example/"))
            await _rest(stream)
    assert [str(error) for error in ended] == ["[Errno 28] No space left on device"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_client_that_goes_away_frees_its_connection(world: World) -> None:
    started = anyio.Event()

    async def handle(stream: ByteStream) -> None:
        started.set()
        await _rest(stream)

    await world.serve(80, handle)
    async with world.proxy("api.example.org") as proxy:
        stream = await anyio.connect_tcp("127.0.0.1", proxy.port)
        await stream.send(_POST + b"Content-Length: 9\r\n\r\nx")
        await started.wait()
        await stream.aclose()
        record = await proxy.record()
        assert (record.decision, record.reason) == ("allowed", "broken")
        while proxy.egress.connections:
            await checkpoint()


async def test_close_ends_the_proxy_whether_it_serves_or_not() -> None:
    for serves in (True, False):
        listener = socket.create_server(("127.0.0.1", 0))
        egress = Egress(listener, ())
        async with anyio.create_task_group() as group:
            if serves:
                group.start_soon(egress.serve)
                async with await anyio.connect_tcp(*listener.getsockname()) as stream:
                    await stream.send(_get("http://evil.example/"))
                    assert (await _rest(stream)).startswith(b"HTTP/1.1 403 ")
            egress.close()
            egress.close()
        assert listener.fileno() == -1


async def test_mistake_of_the_proxy_costs_one_connection_and_is_on_record(world: World) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if host == "www.example.org":
            raise RuntimeError("a mistake")
        return [PUBLIC]

    world.resolve = resolve  # type: ignore[method-assign]
    await world.serve(80, _says(OK))
    async with world.proxy("*.example.org") as proxy:
        assert await proxy.say(_get("http://www.example.org/")) == b""
        assert "RuntimeError('a mistake')" in (await proxy.record(2)).detail
        assert (await proxy.say(_get("http://api.example.org/"))).endswith(b"hello")


async def test_names_are_looked_up_as_the_host_does() -> None:
    assert set(await resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"."):
        await resolve("nothing.invalid", 80)
