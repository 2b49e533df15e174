"""Values of any kind that crosses, as one piece of bytes for the disk.

The same form as between host and guest, and validated in the same way when it is read: nothing is
unpickled.
"""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec

from py_code_mode.codecs.values import decode_value, encode_value
from py_code_mode.errors import ValueNotPortable

__all__ = ["MEDIA_TYPE", "pack_value", "unpack_value"]

MEDIA_TYPE = "application/x-py-code-mode-value"
_SIZE = 8  # bytes that tell the length of the head


def pack_value(value: object, *, limit: int) -> bytes:
    """The value as bytes.

    Args:
        limit: bytes above which it is refused.

    Raises:
        ValueNotPortable: it would not come back unaltered, or is too large.
    """
    tree, segments = encode_value(value, limit=limit)
    parts = [bytes(cast("Any", segment)) for segment in segments]
    head = json.dumps([tree, [*map(len, parts)]]).encode()  # lone surrogates are escaped
    return b"".join([len(head).to_bytes(_SIZE, "little"), head, *parts])


def unpack_value(data: bytes) -> object:
    """The value that was packed; what is large is writable.

    Raises:
        ValueNotPortable: the bytes are not what was written.
    """
    end = _SIZE + int.from_bytes(data[:_SIZE], "little")
    try:
        found = json.loads(data[_SIZE:end])
        tree, sizes = msgspec.convert(found, tuple[Any, list[int]])
    except (ValueError, RecursionError) as error:
        raise ValueNotPortable("a packed value", str(error)) from error
    segments: list[bytearray] = []
    for size in sizes:
        segments.append(bytearray(data[end : end + size]))
        end += size
    if end != len(data) or any(size < 0 for size in sizes):
        raise ValueNotPortable("a packed value", "it is not as long as it says")
    return decode_value(tree, segments, writable=True, limit=len(data))
