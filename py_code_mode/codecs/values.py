"""Values as trees and segments, on the host: what comes from a guest is hostile until decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from py_code_mode.errors import ProtocolViolation, ValueNotPortable
from py_code_mode.guest import values
from py_code_mode.guest.values import DEFAULT_LIMIT, LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from py_code_mode.guest.wire import Buffer

__all__ = ["DEFAULT_LIMIT", "LIBRARIES", "decode_value", "encode_value"]


def decode_value(tree: object, segments: Sequence[object], *, writable: bool = False) -> object:
    """Return the value a guest sent, validated in full.

    Args:
        segments: the message's bytes-like segments; every one must belong to this value. Arrays
            and frames may be views of them, so a mapping must stay sealed and open.
        writable: whether arrays and frames must be writable, copied where need be.

    Raises:
        ProtocolViolation: it is nothing an honest guest sends.
        ValueNotPortable: an honest value that this side cannot hold: polars is not installed
            here, pandas is older, a time zone is unknown.
    """
    size = sum(memoryview(cast("Buffer", segment)).nbytes for segment in segments)
    if size > DEFAULT_LIMIT:
        # a memfd that is nothing but holes costs its sender nothing, and whoever reads it its size
        raise ProtocolViolation(f"a value of {size} bytes; the limit is {DEFAULT_LIMIT}")
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

    Args:
        limit: bytes above which it is refused.
        accepts: third-party libraries the guest has.

    Raises:
        ValueNotPortable: it cannot cross without being altered, or is too large.
    """
    segments: list[object] = []
    return values.encode(value, segments, limit=limit, accepts=accepts), segments
