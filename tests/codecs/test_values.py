"""The host's codec: errors of its own, and nothing of the guest's."""

from typing import Any

import pytest

from py_code_mode.codecs.values import decode_value, encode_value
from py_code_mode.errors import ProtocolViolation, ValueNotPortable


def test_values_come_back() -> None:
    value = {"rows": [(1, "a"), (2, "b")], 3: b"x" * 10_000}
    tree, segments = encode_value(value)
    assert decode_value(tree, segments) == value


def test_writable_arrays_are_copied_only_where_they_must_be() -> None:
    import numpy as np

    tree, segments = encode_value(np.arange(10_000))
    (segment,) = segments
    body: Any = segment
    frozen: Any = decode_value(tree, [bytes(body)])
    assert not frozen.flags.writeable
    owned: Any = decode_value(tree, [bytes(body)], writable=True)
    owned[0] = 7
    shared = bytearray(body)
    view: Any = decode_value(tree, [shared], writable=True)
    view[0] = 7
    assert shared[0] == 7


def test_garbage_is_a_violation() -> None:
    for tree in ({"$nope": 1}, {"$bytes": 0}, {"$frame": ["array"]}, object()):
        with pytest.raises(ProtocolViolation):
            decode_value(tree, [])


def test_what_this_side_lacks_is_no_violation() -> None:
    with pytest.raises(ValueNotPortable, match="Nowhere"):
        decode_value({"$zone": ["zone", "Nowhere/Land"]}, [])


def test_what_cannot_cross_is_refused() -> None:
    with pytest.raises(ValueNotPortable):
        encode_value(object())
    with pytest.raises(ValueNotPortable, match="too large"):
        encode_value(b"x" * 100, limit=10)


def test_a_library_the_guest_lacks_is_named() -> None:
    import numpy as np

    with pytest.raises(ValueNotPortable, match="does not have numpy"):
        encode_value(np.ones(2), accepts=frozenset())
