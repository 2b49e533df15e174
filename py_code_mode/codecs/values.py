"""Values as trees and segments, on the host: what comes from a guest is hostile until decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from py_code_mode.errors import ProtocolViolation, ValueNotPortable
from py_code_mode.guest import values
from py_code_mode.guest.segments import Sealed, seal, size_of
from py_code_mode.guest.values import DEFAULT_LIMIT, EXCHANGE_LIMIT, LIBRARIES
from py_code_mode.guest.wire import MAX_FDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from py_code_mode.guest.segments import Segment

__all__ = [
    "DEFAULT_LIMIT",
    "EXCHANGE_LIMIT",
    "LIBRARIES",
    "SharedValue",
    "decode_value",
    "encode_value",
    "share_value",
]


def decode_value(
    tree: object,
    segments: Sequence[object],
    *,
    writable: bool = False,
    limit: int = DEFAULT_LIMIT,
) -> object:
    """Return the value a guest sent, validated in full.

    Args:
        segments: the message's bytes-like segments; every one must belong to this value. Arrays
            and frames may be views of them, so a mapping must stay sealed and open.
        writable: whether arrays and frames must be writable. Received segments are the
            receiver's own copy of what it writes to; only those that are read-only are copied.
        limit: bytes in all.

    Raises:
        ProtocolViolation: it is nothing an honest guest sends.
        ValueNotPortable: an honest value that this side cannot hold: polars is not installed
            here, pandas is older, a time zone is unknown, there is no memory for it.
    """
    size = sum(map(size_of, segments))
    if size > limit:
        raise ProtocolViolation(f"a value of {size} bytes; the limit is {limit}")
    try:
        return values.decode(tree, segments, writable=writable)
    except values.MissingHere as error:
        raise ValueNotPortable(error.type_name, error.reason) from error
    except values.InvalidValue as error:
        raise ProtocolViolation(f"a value that cannot be: {error}") from error


def encode_value(
    value: object, *, limit: int = DEFAULT_LIMIT, accepts: frozenset[str] = LIBRARIES
) -> tuple[object, list[object]]:
    """Return `value` as a JSON-able tree and its binary segments, for a guest.

    The segments are for `wire.pack`, before the value changes: they may be views of it.

    Args:
        limit: bytes above which it is refused.
        accepts: third-party libraries the guest has.

    Raises:
        ValueNotPortable: it cannot cross without being altered, or is too large.
    """
    segments: list[object] = []
    tree = values.encode(value, segments, limit=limit, accepts=accepts, for_wire=True)
    return tree, segments


class SharedValue:
    """A value as it was when it was shared, kept in sealed memory: sent any number of times.

    Each guest it is sent to maps the same memory and has a private copy of what it writes to.
    Any thread may use or close it.

    Attributes:
        tree: what stands for it in a header.
        segments: what goes with the header, for any number of `wire.pack` calls, each in whole.
        nbytes: bytes of the segments.
        is_pickled: whether it is pickle, which a guest takes and a host never does.
    """

    __slots__ = ("is_pickled", "nbytes", "segments", "tree")

    def __init__(self, tree: object, segments: Sequence[Segment], *, is_pickled: bool) -> None:
        self.tree = tree
        self.segments = tuple(segments)
        self.nbytes = sum(map(size_of, segments))
        self.is_pickled = is_pickled

    def close(self) -> None:
        """Let go of the memory; guests keep what they have mapped. It cannot be sent any more."""
        for segment in self.segments:
            if isinstance(segment, Sealed):
                segment.memory.close()


def share_value(
    value: object,
    *,
    limit: int = EXCHANGE_LIMIT,
    accepts: frozenset[str] = LIBRARIES,
    allow_pickle: bool = False,
) -> SharedValue:
    """Encode a value once, for any number of guests; the caller closes what it gets.

    It copies every byte once, and lets other threads run meanwhile: for a worker thread where the
    value is large. The value must not change until it returns.

    Args:
        limit: bytes above which it is refused.
        accepts: third-party libraries the guests have.
        allow_pickle: share what cannot cross unaltered as pickle: `guest.values.decode` takes it
            with `trusts_sender` only, that is to say, in a guest.

    Raises:
        ValueNotPortable: it cannot cross without being altered, or is too large.
        OSError: there is no memory for it, or too many files are open.
    """
    segments: list[Any] = []
    is_pickled = False
    try:
        tree = values.encode(value, segments, limit=limit, accepts=accepts, for_wire=True)
    except ValueNotPortable:
        if not allow_pickle:
            raise
        segments.clear()
        is_pickled = True
        tree = values.encode_pickled(value, segments, limit=limit)
    sealed = seal(segments, MAX_FDS)
    # the small ones are views of the value as well
    kept = [one if isinstance(one, Sealed) else bytes(one) for one in sealed]
    return SharedValue(tree, kept, is_pickled=is_pickled)
