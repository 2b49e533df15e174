"""What is known of a handle besides its value."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from py_code_mode.errors import InvalidCall, InvalidName

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: Characters of a name that an error tells; handles of a cache may be called anything.
MAX_SHOWN = 80

#: Descriptions of a value's columns: text, or ``{"description": ..., "unit": ...}``.
Semantics: TypeAlias = "Mapping[str, object]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What made a value.

    Attributes:
        kind: the host's own ``put``, guest code of a run, or a call of a namespace.
        run_id: of the run that made it or made the call.
        call: namespace and method, such as ``tools.curl.get``.
        parents: handles it was made from, as far as the code names them.
    """

    kind: Literal["put", "run", "call"] = "put"
    run_id: int | None = None
    call: str | None = None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleInfo:
    """One handle.

    Attributes:
        type_name: qualified name of the value's class.
        nbytes: its size in memory, estimated where it holds Python objects.
        is_hot: whether it counts among those kept in memory.
        in_use: it was moved to its file, but other code still holds the object, so that it is kept
            for `SessionCache.get` to give the same one.
        created: when it was put, with its time zone.
        origin: where it came from, as far as it was told.
        semantics: what was told of its columns.
        stored_as: the format of its file, such as ``arrow``; None where it has none yet.
        stays: why it cannot be moved to a file now, and so stays in memory beyond the limits.
    """

    name: str
    type_name: str
    nbytes: int
    is_hot: bool
    created: datetime
    in_use: bool = False
    origin: Origin | None = None
    semantics: Semantics | None = field(default=None)
    stored_as: str | None = None
    stays: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a storage directory that cannot be read; it is left as it is.

    Attributes:
        name: the handle, where the file still tells.
        file: its path.
    """

    name: str | None
    file: str
    reason: str


def is_name(name: object) -> bool:
    """Whether something can name a handle: a Python identifier, and no keyword."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def check_name(name: object) -> str:
    """The name, as a plain str.

    Raises:
        InvalidName: (a ValueError) it cannot name a handle.
    """
    if not isinstance(name, str):
        raise InvalidName(shown(name), "a handle", f"a name is a str, not {type(name).__name__}")
    if not is_name(name):
        reason = "it must be a valid Python identifier, and no keyword"
        raise InvalidName(shown(name), "a handle", reason)
    return str.__str__(name)


def key_of(name: object) -> str:
    """A name to look a handle up by; for what is no text the empty one, which no handle has."""
    return name if isinstance(name, str) else ""


def shown(name: object) -> str:
    """A name as errors tell it."""
    if not isinstance(name, str):
        return f"<{type(name).__name__}>"
    return name if len(name) <= MAX_SHOWN else name[: MAX_SHOWN - 1] + "…"


def check_origin(origin: object) -> None:
    """See that it is an `Origin` that can be stored.

    Raises:
        InvalidCall: (a TypeError) it is not.
    """
    if not isinstance(origin, Origin):
        raise InvalidCall("put", f"origin must be an Origin, not {type(origin).__name__}")
    try:
        msgspec.convert(msgspec.to_builtins(origin), Origin)
    except (TypeError, ValueError) as error:
        raise InvalidCall("put", f"origin cannot be stored: {error}") from error
