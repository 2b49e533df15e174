"""What the proxy says to one connection of a guest: requests, tunnels, and why not.

Everything that comes is read by h11 and written anew by h11, so that no two readers can differ on
where a request ends (RFC 9112 §11.2); headers that concern one hop only stay on it.

What a tunnel carries is checked by its port:

* 443 must be TLS. Its ClientHello must ask for the host that the tunnel was made to, so that a
  server of many sites does not serve another one. The second hello, which a server may ask for, is
  held to the same.
* 80 is read as plain HTTP, request by request, with the same rules as without a tunnel.
* On any other port what begins as TLS is checked as on 443, and everything else goes through: a
  port that a policy lists by hand is for the protocol that is spoken there.

What cannot be seen: the requests inside TLS, and the inner name of an encrypted ClientHello; the
outer one is compared, and records note that there was an inner one.
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

import anyio
import h11

from py_code_mode.sandbox.egress.addresses import as_address
from py_code_mode.sandbox.egress.audit import (
    Decision,
    EgressRecord,
    NotPassed,
    Reason,
    denied,
    failed,
)
from py_code_mode.sandbox.egress.client_hello import (
    HANDSHAKE,
    RETRY_LENGTH,
    ClientHelloReader,
    InvalidClientHello,
    asks_again,
)
from py_code_mode.sandbox.egress.targets import (
    HTTP,
    HTTPS,
    Target,
    answer_headers,
    check_framing,
    request_headers,
    target_of,
    wants_websocket,
)
from py_code_mode.sandbox.hosts import DEFAULT_PORTS, HostPattern, canonical_host, is_allowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from py_code_mode.sandbox.egress.dialling import Dialler
    from py_code_mode.sandbox.egress.stream import Stream

#: Bytes of a request's or an answer's head, as long as it is not whole: one piece more may come.
MOST_HEADERS = 32 << 10
#: Seconds for a whole head, and for which a connection may wait for its next request.
HEAD_TIMEOUT = 30.0
#: Seconds in which nothing moves in either direction.
IDLE_TIMEOUT = 300.0
#: The same, once the client has said that it sends nothing more: most are gone then.
HALF_CLOSED_TIMEOUT = 30.0
#: Seconds and pieces for which what a refused client still sends is thrown away. Without that its
#: kernel would throw our answer away (RFC 9112 §9.6).
LINGER = 1.0
_LINGER_PIECES = 32
_MOST_LISTED = 50  # patterns that an answer shows
_LONGEST_REASON = 200

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))  # a fatal alert: RFC 8446 §6.2


class Passage:
    """What becomes of one request; its record is made at the end."""

    def __init__(self, method: str = "") -> None:
        self.method = method
        self.host, self.port = "", 0
        self.decision: Decision = "failed"
        self.reason: Reason = ""
        self.detail = ""
        self.upstream: Stream | None = None
        self.is_over = False
        self._time, self._started = datetime.now(UTC), time.monotonic()

    def end(self, reason: Reason = "", detail: str = "", decision: Decision | None = None) -> None:
        """Settle what is told of it; the first reason stays."""
        self.is_over = True
        if not self.reason:
            self.reason, self.detail = reason, detail or self.detail
            self.decision = decision or self.decision

    def record(self) -> EgressRecord:
        return EgressRecord(
            time=self._time,
            method=self.method,
            host=self.host,
            port=self.port,
            decision=self.decision,
            reason=self.reason,
            detail=self.detail,
            sent=self.upstream.sent if self.upstream else 0,
            received=self.upstream.received if self.upstream else 0,
            duration=time.monotonic() - self._started,
        )


class Conversation:
    """One connection of a guest, which it owns.

    Args:
        note: is given the record of each request when that is over.
    """

    def __init__(
        self,
        client: Stream,
        network: tuple[HostPattern, ...],
        dialler: Dialler,
        note: Callable[[EgressRecord], None],
        *,
        idle_timeout: float = IDLE_TIMEOUT,
        head_timeout: float = HEAD_TIMEOUT,
    ) -> None:
        self._client = client
        self._network = network
        self._dialler = dialler
        self._note = note
        self._idle = idle_timeout
        self._head_timeout = head_timeout
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADERS)
        self._scope = anyio.CancelScope()
        self._touched = 0.0
        self._is_cut = False

    async def hold(self) -> None:
        """Answer requests until the connection ends."""
        try:
            with self._scope:
                self._touch()
                await self._serve(None)
        except OSError:
            self._is_cut = True  # the client is gone; the request it left has its record
        finally:
            self._client.close(abort=self._is_cut)

    async def refuse(self, why: NotPassed) -> None:
        """Say no, whatever the client wants."""
        passage = Passage()
        passage.end(why.reason, why.detail, why.decision)
        try:
            with anyio.move_on_after(2 * LINGER):
                await self._answer(passage, why)
        except OSError:
            self._is_cut = True
        finally:
            self._client.close(abort=self._is_cut)
            self._note(passage.record())

    # -- requests

    async def _serve(self, origin: Target | None) -> None:
        """Take requests, one after the other.

        Args:
            origin: where the tunnel leads that they come through.
        """
        while True:
            passage = Passage()
            try:
                request = await self._next_request()
            except NotPassed as no:
                passage.end(no.reason, no.detail, no.decision)
                self._note(passage.record())
                await self._answer(passage, no)
                return
            if request is None:
                return
            passage.method = request.method.decode("ascii")
            if not await self._pass(passage, request, origin):
                return
            self._http.start_next_cycle()

    async def _next_request(self) -> h11.Request | None:
        """The next request; None at the end of the connection.

        Raises:
            NotPassed: it is none, or does not come to its end.
        """
        has_begun = bool(self._http.trailing_data[0])
        with anyio.move_on_after(self._head_timeout):
            while True:
                try:
                    event = self._http.next_event()
                except h11.RemoteProtocolError as error:
                    raise denied("bad_request", str(error), error.error_status_hint) from error
                if isinstance(event, h11.Request):
                    return event
                if event is not h11.NEED_DATA:
                    return None
                data = await self._client.receive()
                has_begun = has_begun or bool(data)
                self._http.receive_data(data)
        if has_begun:
            raise failed("timeout", "the request did not come to its end", 408)
        return None

    async def _pass(self, passage: Passage, request: h11.Request, origin: Target | None) -> bool:
        """Do what is asked; whether another request may follow."""
        try:
            try:
                target = target_of(request, origin)
                passage.host, passage.port = target.host, target.port
                check_framing(request)
                if request.method == b"CONNECT":
                    await self._tunnel(passage, target)
                    return False
                return await self._exchange(passage, request, target)
            except NotPassed as no:
                passage.end(no.reason, no.detail, no.decision)
                await self._answer(passage, no)
                return False
            except (OSError, h11.ProtocolError) as error:
                passage.end("broken", f"the guest's side broke off: {error}")
                self._is_cut = True
                return False
        finally:
            if not passage.is_over:
                is_late = self._scope.cancel_called
                passage.end("timeout" if is_late else "closed")
                self._is_cut = True
            self._note(passage.record())

    async def _answer(self, passage: Passage, no: NotPassed) -> None:
        """Say why not, in a way that both clients' errors and a model's eyes show."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._is_cut = True  # in the middle of an answer: only a reset can be understood
            return
        body = self._explain(passage, no)
        phrase = f"{HTTPStatus(no.status).phrase}: {no.detail}"[:_LONGEST_REASON]
        answer = h11.Response(
            status_code=no.status,
            reason=re.sub(r"[^\x20-\x7e]", "?", phrase).encode("ascii"),
            headers=[
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ],
        )
        data = self._http.send(answer) or b""
        if passage.method != "HEAD":
            data += self._http.send(h11.Data(data=body)) or b""
        await self._client.send(data + (self._http.send(h11.EndOfMessage()) or b""))
        await self._linger()

    def _explain(self, passage: Passage, no: NotPassed) -> bytes:
        said: dict[str, object] = {"error": no.reason, "message": no.detail}
        if passage.host:
            said |= {"host": passage.host, "port": passage.port}
        if no.reason == "not_listed":
            pattern = HostPattern(
                host=passage.host,
                ports=DEFAULT_PORTS if passage.port in DEFAULT_PORTS else frozenset({passage.port}),
            )
            said["message"] = f"{no.detail}; to allow it, add to the policy: network: [{pattern}]"
            said["allowed"] = [str(listed) for listed in self._network[:_MOST_LISTED]]
            said["policy"] = {"network": [str(pattern)]}
        return json.dumps(said).encode() + b"\n"

    async def _linger(self) -> None:
        """Read away what still comes, for a moment."""
        self._client.end()
        with anyio.move_on_after(LINGER):
            for _ in range(_LINGER_PIECES):
                if not await self._client.receive():
                    return

    # -- plain requests

    async def _exchange(self, passage: Passage, request: h11.Request, target: Target) -> bool:
        upstream = await self._dialler.dial(target.host, target.port, is_secure=False)
        passage.upstream, passage.decision = upstream, "allowed"
        try:
            has_switched = await self._converse(passage, request, target, upstream)
            if has_switched:
                self._client.put_back(self._http.trailing_data[0])
                await self._relay(passage, upstream, None)
                return False
        finally:
            upstream.close(abort=not passage.is_over)
        passage.end()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            return True
        await self._linger()
        return False

    async def _converse(
        self, passage: Passage, request: h11.Request, target: Target, upstream: Stream
    ) -> bool:
        """One request and its answer; whether they have agreed on another protocol."""
        is_upgrade = wants_websocket(request)
        up = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEADERS)
        head = up.send(
            h11.Request(
                method=request.method,
                target=target.path,
                headers=request_headers(request, target, is_upgrade=is_upgrade),
            )
        )
        try:
            await upstream.send(head or b"")
        except OSError as error:
            raise failed("broken", f"{target.host} broke off: {error}") from error
        problem: Exception | None = None
        has_switched: bool | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._upload, up, upstream, group.cancel_scope)
            try:
                has_switched = await self._download(up, upstream, target.host)
            except (OSError, h11.ProtocolError, NotPassed) as error:
                problem = error
            group.cancel_scope.cancel()
        if problem is not None:
            raise problem
        if has_switched is None:
            raise ConnectionResetError("the request did not come to its end")
        return has_switched

    async def _upload(
        self, up: h11.Connection, upstream: Stream, exchange: anyio.CancelScope
    ) -> None:
        """The request's body, as it comes; its end, and that of the client."""
        while True:
            try:
                event = await self._next_event(self._http, self._client)
            except (OSError, h11.ProtocolError):
                exchange.cancel()
                return
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                exchange.cancel()
                return
            is_end = isinstance(event, h11.EndOfMessage)
            # trailers are of one hop as long as nobody asks for them
            piece = h11.EndOfMessage() if is_end else h11.Data(data=event.data)
            try:
                await upstream.send(up.send(piece) or b"")
            except (OSError, h11.LocalProtocolError):
                return  # the server wants no more; its answer may say why
            if is_end:
                break
        if await self._client.wait_for_end():
            self._idle = min(self._idle, HALF_CLOSED_TIMEOUT)
            self._touch(is_forced=True)

    async def _download(self, up: h11.Connection, upstream: Stream, host: str) -> bool:
        """The answer; whether it is another protocol from here on.

        Raises:
            NotPassed: the server did not answer as it should.
        """
        speaks_11 = self._http.their_http_version == b"1.1"
        while True:
            try:
                event = await self._next_event(up, upstream)
            except (OSError, h11.RemoteProtocolError) as error:
                raise failed(
                    "bad_response", f"{host} broke off or sent no HTTP: {error}"
                ) from error
            if isinstance(event, h11.InformationalResponse):
                has_switched = event.status_code == 101
                headers = answer_headers(event, is_upgrade=has_switched)
                told = h11.InformationalResponse(
                    status_code=event.status_code, headers=headers, reason=event.reason
                )
                if speaks_11:
                    await self._client.send(self._http.send(told) or b"")
                if has_switched:
                    upstream.put_back(up.trailing_data[0])
                    return True
            elif isinstance(event, h11.Response):
                answer = h11.Response(
                    status_code=event.status_code,
                    headers=answer_headers(event, is_upgrade=False),
                    reason=event.reason,
                )
                await self._client.send(self._http.send(answer) or b"")
            elif isinstance(event, h11.Data):
                await self._client.send(self._http.send(h11.Data(data=event.data)) or b"")
            elif isinstance(event, h11.EndOfMessage):
                await self._client.send(self._http.send(h11.EndOfMessage()) or b"")
                return False
            else:
                raise failed("bad_response", f"{host} closed the connection without an answer")

    async def _next_event(self, http: h11.Connection, stream: Stream) -> object:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(await stream.receive())
            self._touch()
        return event

    # -- tunnels

    async def _tunnel(self, passage: Passage, target: Target) -> None:
        if target.port == HTTP:
            self._dialler.check(target.host, target.port)
            passage.decision = "allowed"
            early = self._http.trailing_data[0]
            await self._client.send(_ESTABLISHED)
            passage.end()
            self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADERS)
            if early:
                self._http.receive_data(early)
            await self._serve(target)
            return
        upstream = await self._dialler.dial(target.host, target.port, is_secure=True)
        passage.upstream, passage.decision = upstream, "allowed"
        try:
            await self._client.send(_ESTABLISHED)
            self._client.put_back(self._http.trailing_data[0])
            await self._relay(passage, upstream, target)
        finally:
            upstream.close(abort=not passage.is_over or passage.reason != "")

    async def _relay(self, passage: Passage, upstream: Stream, target: Target | None) -> None:
        """Carry bytes both ways until both sides have ended.

        Args:
            target: where the tunnel leads; None where nothing of it needs to be checked.
        """
        answer = _Answer()
        no: NotPassed | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(
                self._carry, passage, upstream, self._client, group.cancel_scope, answer
            )
            try:
                if target is not None:
                    await self._check_start(passage, upstream, target, answer)
                await self._carry(passage, self._client, upstream, group.cancel_scope)
            except NotPassed as denial:
                no = denial
                group.cancel_scope.cancel()
            except OSError as error:
                passage.end("broken", str(error))
                group.cancel_scope.cancel()
        if no is not None:
            passage.end(no.reason, no.detail, no.decision)
            await self._client.send(_ACCESS_DENIED)
            await self._linger()
        elif passage.reason:
            self._is_cut = True
        passage.end()

    async def _carry(
        self,
        passage: Passage,
        source: Stream,
        sink: Stream,
        both: anyio.CancelScope,
        answer: _Answer | None = None,
    ) -> None:
        """One direction, until its end; where it breaks, the other ends as well."""
        try:
            while data := await source.receive():
                self._touch()
                await sink.send(data)
                if answer is not None:
                    answer.see(data)
                self._touch()
            sink.end()
        except OSError as error:
            passage.end("broken", str(error))
            both.cancel()
        finally:
            if answer is not None:
                answer.is_there.set()

    async def _check_start(
        self, passage: Passage, upstream: Stream, target: Target, answer: _Answer
    ) -> None:
        """Let a tunnel begin as it may.

        Raises:
            NotPassed: it may not begin so.
        """
        start = await self._client.receive()
        if not start:
            return
        if start[0] == HANDSHAKE and target.port != HTTPS:
            while len(start) < 2 and (more := await self._client.receive()):
                start += more
        if start[0] != HANDSHAKE or (target.port != HTTPS and start[1:2] != b"\x03"):
            if target.port == HTTPS:
                detail = f"what was sent to {target.host}:{HTTPS} is not TLS"
                raise denied("not_tls", detail)
            self._client.put_back(start)
            return
        self._client.put_back(start)
        for hello in (ClientHelloReader(), ClientHelloReader(after_retry=True)):
            records = await self._read_hello(hello, passage, target)
            if not records:
                return  # the client has ended: so does what goes up
            await upstream.send(records)
            # Nothing else goes up before it is known whether the server asks for another hello:
            # a client that sends one unasked could name another host in it. No server needs more
            # than the hello to answer, so nobody waits for nothing.
            await answer.is_there.wait()
            if not answer.asks_again:
                return

    async def _read_hello(
        self, reader: ClientHelloReader, passage: Passage, target: Target
    ) -> bytes:
        """A whole ClientHello that asks for the tunnel's own host; empty if the client ends."""
        try:
            while (hello := reader.feed(data := await self._client.receive())) is None:
                if not data:
                    return b""
                self._touch()
        except InvalidClientHello as error:
            raise denied("bad_tls", f"to {target.host}: {error}") from error
        records, rest = reader.take()
        self._client.put_back(rest)
        if hello.is_encrypted:
            passage.detail = "with an encrypted ClientHello, whose inner name cannot be seen"
        name, is_literal = hello.server_name, as_address(target.host) is not None
        if name is None:
            if is_literal:
                return records  # TLS names no addresses: RFC 6066 §3
            raise denied("sni_missing", f"TLS to {target.host} does not say which host it wants")
        if is_literal and is_allowed(self._network, name, target.port):
            return records
        try:
            is_same = canonical_host(name) == target.host
        except ValueError:
            is_same = False
        if not is_same:
            raise denied("sni_mismatch", f"TLS to {target.host} asks for {name!r}")
        return records

    # -- time

    def _touch(self, *, is_forced: bool = False) -> None:
        """Something moved. Moving a deadline costs a timer, so that small steps are left out."""
        now = anyio.current_time()
        if is_forced or now - self._touched > self._idle / 16:
            self._touched = now
            self._scope.deadline = now + self._idle


class _Answer:
    """The first bytes of what a server sends back.

    Attributes:
        is_there: enough of them are known, or no more will come.
    """

    def __init__(self) -> None:
        self.is_there = anyio.Event()
        self._start = b""

    def see(self, data: bytes) -> None:
        if self.is_there.is_set():
            return
        self._start += data[: RETRY_LENGTH - len(self._start)]
        if len(self._start) == RETRY_LENGTH or self._start[0] != HANDSHAKE:
            self.is_there.set()

    @property
    def asks_again(self) -> bool:
        return asks_again(self._start)
