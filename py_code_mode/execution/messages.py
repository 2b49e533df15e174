"""What a guest may say, as types: unknown fields and kinds are refused while decoding."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec


class _Message(msgspec.Struct, tag_field="t", forbid_unknown_fields=True, frozen=True):
    inc: int


class Ready(_Message, tag="ready", frozen=True):
    """The guest has set itself up."""

    pid: int
    python: tuple[int, int, int]


class CallMessage(_Message, tag="call", frozen=True):
    """The guest calls a host method.

    `args` is one encoded list: the arguments, then a dict of those by name.
    """

    id: int
    run: int
    ns: str
    method: str
    args: Any


class DisplayMessage(_Message, tag="display", frozen=True):
    """A MIME bundle, encoded."""

    run: int
    data: Any


class FailureMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Why a run failed."""

    type: str
    message: str
    traceback: str
    lineno: int | None


#: A name of a variable, or of a handle.
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=1000)]


class HandleMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A value that stays in the guest: a result (``_3``), or a variable."""

    name: Name
    type: Annotated[str, msgspec.Meta(max_length=1000)]
    snapshot: dict[str, Any]


class Done(_Message, tag="done", frozen=True):
    """The end of a run."""

    run: int
    notes: list[str]
    value: Any = None
    handle: HandleMessage | None = None
    failure: FailureMessage | None = None
    made: list[HandleMessage] = []
    gone: list[Name] = []


class ErrorMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An error by class name and facts."""

    type: str
    facts: dict[str, Any]


class Answer(_Message, tag="answer", frozen=True):
    """The end of an exchange."""

    id: int
    value: Any = None
    error: ErrorMessage | None = None


class Asleep(_Message, tag="asleep", frozen=True):
    """A copy of the guest sleeps; the socket that wakes it is passed with the frame.

    `id` is that of the request for it; None where the guest made it by itself. `run` is the latest
    run whose effects it has, 0 for none. Where there is no copy, `refused` says why.
    """

    run: int
    id: int | None = None
    pid: int | None = None
    refused: str | None = None


Message: TypeAlias = Ready | CallMessage | DisplayMessage | Done | Answer | Asleep

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_encoder = msgspec.json.Encoder()


def decode(header: bytes) -> Message:
    """Decode a frame's header.

    Raises:
        msgspec.MsgspecError: it is not one of these messages.
        RecursionError: it is nested too deeply.
    """
    return _decoder.decode(header)


def encode(message: dict[str, Any]) -> bytes:
    """A frame's header, for the guest: which trusts its host, so any JSON will do."""
    return _encoder.encode(message)
