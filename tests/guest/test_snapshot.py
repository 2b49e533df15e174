"""A snapshot is JSON, bounded and never an error, whatever it describes."""

import collections
import datetime as dt
import json
import math
import time
from typing import Any

import numpy
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py_code_mode.guest.snapshot import bounded_repr, snapshot

np: Any = numpy
pd: Any = pandas
pa: Any = pyarrow


class Raises:
    def __repr__(self) -> str:
        raise SystemExit("no repr")


class Endless:
    def __repr__(self) -> str:
        return repr(self)


class Long:
    def __repr__(self) -> str:
        return "long " * 1_000_000


class NotText:
    def __repr__(self) -> Any:
        return 5


class LyingList(list[Any]):
    def __len__(self) -> int:
        raise AssertionError("user code was called")

    def __iter__(self) -> Any:
        raise AssertionError("user code was called")


class Once:
    asked = 0

    def __repr__(self) -> str:
        Once.asked += 1
        return "x" * 5000


LOOP: list[Any] = []
LOOP.append(LOOP)
TABLE: dict[str, Any] = {}
TABLE["me"] = TABLE

EVERYTHING: list[Any] = [
    None, True, 5, -(2**70), 1 << 100_000, 1.5, math.nan, math.inf, 1 + 2j, "", "text",
    "é" * 10_000,
    "\ud800" * 50, "\0\n" * 2000, b"", b"\xff" * 9000, bytearray(b"x"), [], [1, 2, 3],
    list(range(100_000)), [[[[[[1]]]]]], [{"a": [1, {"b": 2}]}] * 50, ("a",), {1, 2},
    frozenset("ab"),
    {}, {"k": 1}, {1: "a", None: 2, (1, 2): 3}, {"k" * 5000: "v" * 5000},
    {str(i): i for i in range(999)},
    collections.OrderedDict(a=1), collections.Counter("abc"), collections.deque([1]), range(5),
    dt.datetime(2020, 1, 1), object(), int, len, json, Exception("x"), lambda: None,
    Raises(), Endless(), Long(), NotText(), LyingList([1, 2]), LOOP, TABLE, [Raises()] * 3,
    {"a": Long()}, [Endless()], np.arange(10), np.ones((50, 50)), np.array([], dtype="f8"),
    np.array(["a", None], dtype=object), np.array([1, np.nan]), np.array("2020", dtype="M8[D]"),
    np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]), np.float64(1.5), np.longdouble(1),
    pd.DataFrame(), pd.DataFrame({"a": [1, None], "b": ["x", Long()]}),
    pd.DataFrame(np.ones((3, 2000))), pd.DataFrame([[1, 2]], columns=["a", "a"]),
    pd.DataFrame({"d": pd.date_range("2020", periods=3), "c": pd.Categorical(["x"] * 3)}),
    pd.DataFrame({"a": [{1}, [Raises()]]}), pd.Series([1, None, 3], name="s"),
    pd.Series(dtype="f8"),
    pd.Index(["a"]), pd.MultiIndex.from_product([[1, 2], ["a", "b"]]), pd.Timestamp("2020"),
    pd.NaT, pd.NA,
    pa.table({"a": [1]}), pa.array([1]), [pd.DataFrame({"a": [1]})],
]  # fmt: skip


@pytest.mark.parametrize(
    "value", range(len(EVERYTHING)), ids=lambda i: type(EVERYTHING[i]).__name__
)
@pytest.mark.parametrize("max_bytes", [1200, 300])
def test_any_value_has_a_bounded_description(value: int, max_bytes: int) -> None:
    found = snapshot(EVERYTHING[value], max_bytes=max_bytes)
    text = json.dumps(found, allow_nan=False, ensure_ascii=False)
    assert len(text) <= max_bytes
    text.encode("utf-8")
    assert found["type"]
    assert "undescribed" not in found


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=50,
    )
)
def test_nested_values_have_a_bounded_description(value: object) -> None:
    found = snapshot(value, max_bytes=500)
    assert len(json.dumps(found, allow_nan=False)) <= 6 * 500  # escapes


def test_small_values_are_told_in_full() -> None:
    assert snapshot(5) == {"type": "int", "value": 5}
    assert snapshot([1, "a"])["items"] == [1, "a"]
    assert snapshot({"a": {"b": 1}})["items"] == {"a": {"b": 1}}
    assert snapshot("text") == {"type": "str", "length": 4, "head": "text"}
    assert snapshot(math.nan)["value"] == "nan"


def test_a_long_text_shows_both_ends() -> None:
    found = snapshot("a" * 9000 + "end")
    assert found["length"] == 9003
    assert found["head"].startswith("aaa")
    assert found["tail"].endswith("end")


def test_a_frame_is_told_by_shape_columns_and_head() -> None:
    found = snapshot(pd.DataFrame({"a": [1, 2], "b": ["x", None]}))
    assert found["shape"] == [2, 2]
    assert found["columns"][0] == {"name": "a", "dtype": "int64"}
    assert found["columns"][1]["nulls"] == 1
    assert found["head"][0] == [1, "x"]
    wide = snapshot(pd.DataFrame(np.ones((3, 500))))
    assert len(wide["columns"]) + wide["more_columns"] == 500


def test_an_array_is_told_by_its_extremes() -> None:
    found = snapshot(np.arange(6).reshape(2, 3))
    assert (found["shape"], found["dtype"]) == ([2, 3], "int64")
    assert (found["min"], found["max"], found["head"]) == (0, 5, [0, 1, 2, 3, 4, 5])


def test_user_code_is_asked_once() -> None:
    found = snapshot(Once(), max_bytes=200)
    assert Once.asked == 1
    assert "xxx" in found["repr"] or "repr" in found


def test_an_interrupt_passes_through() -> None:
    class Stops:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    for value in (Stops(), [Stops()], {"a": Stops()}):
        with pytest.raises(KeyboardInterrupt):
            snapshot(value)
    with pytest.raises(KeyboardInterrupt):
        bounded_repr(Stops())


def test_what_a_repr_does_wrong_is_said() -> None:
    assert "raises SystemExit" in snapshot(Raises())["repr"]
    assert "raises RecursionError" in snapshot(Endless())["repr"]
    assert "raises TypeError" in snapshot(NotText())["repr"]
    assert "characters" in bounded_repr(Long(), 100)
    assert len(bounded_repr(Long(), 100)) < 160


def test_large_values_are_described_at_once() -> None:
    values = (
        [{"a": i} for i in range(1_000_000)],
        pd.DataFrame(np.ones((2_000_000, 4))),
        np.ones(20_000_000),
        "x" * 50_000_000,
    )
    for value in values:
        start = time.perf_counter()
        snapshot(value)
        assert time.perf_counter() - start < 1
