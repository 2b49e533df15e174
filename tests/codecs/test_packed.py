"""Values as one piece of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from py_code_mode.codecs.packed import pack_value, unpack_value
from py_code_mode.errors import ValueNotPortable

LIMIT = 1 << 20


@pytest.mark.parametrize(
    "value",
    [
        None,
        (1, [2], {3: "\ud800"}),
        b"\0" * 100_000,
        "x" * 200_000,
        {"a": np.arange(12.0).reshape(3, 4), "b": {1, 2}},
        np.asfortranarray(np.arange(20_000).reshape(100, 200)),
        pd.DataFrame({"a": range(5000), "b": ["x", None] * 2500}),
        pd.DataFrame(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_as_they_were(value: Any) -> None:
    again: Any = unpack_value(pack_value(value, limit=LIMIT))
    assert type(again) is type(value)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(again, value)
    elif isinstance(value, np.ndarray):
        assert again.flags.writeable
        assert (again == value).all()
    elif isinstance(value, dict):
        assert again["b"] == value["b"]  # pyright: ignore[reportUnknownVariableType]
        assert (again["a"] == value["a"]).all()
    else:
        assert again == value


@pytest.mark.parametrize("value", [object(), np.zeros(LIMIT), lambda: 1])
def test_what_does_not_cross_is_refused(value: object) -> None:
    with pytest.raises(ValueNotPortable):
        pack_value(value, limit=LIMIT)


def test_damage_is_found() -> None:
    packed = pack_value(pd.DataFrame({"a": range(5000)}), limit=LIMIT)
    for end in (0, 5, 9, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ValueNotPortable):
            unpack_value(packed[:end])
    with pytest.raises(ValueNotPortable):
        unpack_value(packed + b"more")
    for head in (b"[1]", b"{}", b'[1, ["x"]]', b"[1, [-5]]", b"[" * 100_000):
        with pytest.raises(ValueNotPortable):
            unpack_value(len(head).to_bytes(8, "little") + head)
