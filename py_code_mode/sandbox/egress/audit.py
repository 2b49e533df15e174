"""What the proxy decided, in the words that its records, answers and errors share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Decision = Literal["allowed", "denied", "failed"]
Reason = Literal[
    "",
    # denied
    "not_listed",  # the policy does not name this host and port
    "private_address",  # a public name that leads to an address that is not public
    "sni_mismatch",  # TLS is asked for another host than the connection was made to
    "sni_missing",  # TLS is asked for no host
    "not_tls",  # something else than TLS on the port of https
    "bad_tls",  # a ClientHello that is none
    "host_mismatch",  # the Host header names another host than the request's target
    "bad_request",  # not HTTP, or nothing that a proxy serves
    # failed
    "busy",  # more connections at once than one session may have
    "unresolved",  # the name has no address
    "unreachable",  # no address answers
    "upstream_proxy",  # the host's own proxy refuses, or cannot be spoken to
    "bad_response",  # what the server said is not HTTP
    "timeout",  # nothing came for too long
    "broken",  # one side broke the connection off
    # allowed, and cut short
    "closed",  # the session ended while it was open
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRecord:
    """One tunnel, or one plain request, that a guest asked for.

    Attributes:
        time: when it was asked for, in UTC.
        method: as sent: ``CONNECT`` for a tunnel; empty where no request could be read.
        host: a name or an address in its canonical form; empty where none could be read.
        port: 0 where none could be read.
        decision: ``allowed`` if a connection was made for it and not taken back.
        reason: why not, or what ended it early; empty where there is nothing to say.
        detail: the same for people, in one line.
        sent: bytes to the server.
        received: bytes from the server.
        duration: seconds.
    """

    time: datetime
    method: str
    host: str
    port: int
    decision: Decision
    reason: Reason
    detail: str
    sent: int
    received: int
    duration: float


def mistake(error: Exception) -> EgressRecord:
    """The record of a connection that ended because the proxy itself failed."""
    return EgressRecord(
        time=datetime.now(UTC),
        method="",
        host="",
        port=0,
        decision="failed",
        reason="broken",
        detail=f"the proxy failed: {error!r}",
        sent=0,
        received=0,
        duration=0.0,
    )


class NotPassed(Exception):
    """A request does not go through.

    Attributes:
        decision: ``denied`` by the policy or ``failed``.
        status: of the HTTP answer that says so.
    """

    def __init__(self, decision: Decision, reason: Reason, detail: str, status: int) -> None:
        super().__init__(detail)
        self.decision: Decision = decision
        self.reason: Reason = reason
        self.detail = detail
        self.status = status


def denied(reason: Reason, detail: str, status: int = 403) -> NotPassed:
    """What the policy says no to."""
    return NotPassed("denied", reason, detail, status)


def failed(reason: Reason, detail: str, status: int = 502) -> NotPassed:
    """What is allowed but cannot be had."""
    return NotPassed("failed", reason, detail, status)
