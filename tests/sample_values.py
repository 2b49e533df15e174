"""Values of every kind that people hold, and a comparison that sees any difference.

For whatever carries values: across the boundary, to a file, into a store. Each is made anew by
its function, since pytest would read out what it finds among parameters.
"""
# Values of any shape, of libraries whose stubs know less than what is asked of them.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import collections
import datetime as dt
import enum
import fractions
import math
import pathlib
import uuid
import zoneinfo
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import pandas
import pyarrow

if TYPE_CHECKING:
    from collections.abc import Callable

np: Any = numpy
pd: Any = pandas
pa: Any = pyarrow
try:
    import polars  # pyright: ignore[reportMissingImports]

    pl: Any = polars
except ImportError:
    pl = None

__all__ = ["ONLY_IN_PYTHON", "SAMPLES", "same"]


@dataclass
class Point:
    """A value of a class of one's own."""

    x: float
    label: str


class Colour(enum.Enum):
    """A value of an enumeration."""

    RED = 1


class Pair(NamedTuple):
    """A tuple of a class of one's own."""

    left: int
    right: str


def _frame(column: Any, **options: Any) -> Any:
    return pd.DataFrame({"a": column}, **options)


def _with_attrs(**attrs: Any) -> Any:
    made = _frame([1])
    made.attrs.update(attrs)
    return made


def _product() -> Any:
    return pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", None])


def _days() -> Any:
    return pd.DatetimeIndex(["2020-01-01", "2020-01-02"])


def _mixed(rows: int) -> Any:
    numbers = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "value": numbers.standard_normal(rows),
            "flag": numbers.random(rows) > 0.5,
            "at": _days()[0] + pd.to_timedelta(np.arange(rows), "s"),
            "name": pd.array([f"name {n % 97}" for n in range(rows)], dtype="str"),
            "kind": pd.Categorical([("x", "y", "z")[n % 3] for n in range(rows)]),
            "count": pd.array([None if n % 7 == 0 else n for n in range(rows)], dtype="Int64"),
        }
    )


_BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
_RECORD = [("x", "i4"), ("y", "U2"), ("z", "f8", (2,))]

_PLAIN: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "bool": lambda: [True, False],
    "int": lambda: [0, -1, 2**53 + 1, -(2**63), 2**64, 7**900],
    "float": lambda: [0.0, -0.0, 1.5, 5e-324, 1e22],
    "float, not finite": lambda: [math.inf, -math.inf, math.nan],
    "complex": lambda: complex(math.nan, -0.0),
    "str": lambda: "text, é, 🐍, \0 and \u2028",
    "str, long": lambda: "é" * 100_000,
    "str, lone surrogate": lambda: "\ud800",
    "bytes": lambda: b"\0\xff",
    "bytes, long": lambda: bytes(range(256)) * 4000,
    "bytearray": lambda: bytearray(b"abc"),
    "list": lambda: [1, "a", None, [2.5, []]],
    "list of many ints": lambda: list(range(10_000)),
    "list of many floats": lambda: [n / 7 for n in range(10_000)],
    "tuple": lambda: ((1, "a"), [()]),
    "set": lambda: {1, "a", (2, 3)},
    "frozenset": lambda: frozenset({frozenset({1}), frozenset[int]()}),
    "dict": lambda: {"b": 1, "a": {"$int": "7", "": None}},
    "dict, keys of all kinds": lambda: {1: "int", "1": "str", None: 1, (1, 2): [3], 1.5: {}},
    "range": lambda: range(10, 0, -3),
    "slice": lambda: slice(1, "a", 2.5),
    "Ellipsis": lambda: ...,
    "date": lambda: dt.date(1, 1, 1),
    "time": lambda: dt.time(1, 2, tzinfo=dt.UTC, fold=1),
    "datetime": lambda: dt.datetime(2024, 2, 29, 12, 30, 1, 5),
    "datetime, zone": lambda: dt.datetime(2024, 10, 27, 2, 30, tzinfo=_BERLIN, fold=1),
    "datetime, offset": lambda: dt.datetime(
        2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "named")
    ),
    "timedelta": lambda: dt.timedelta(-1, 5, 7),
    "time zone": lambda: [dt.UTC, _BERLIN],
    "Decimal": lambda: [Decimal("1.10"), Decimal("NaN"), Decimal("-0"), Decimal("1E+999999")],
    "Fraction": lambda: fractions.Fraction(-1, 3),
    "UUID": lambda: uuid.UUID(int=1),
    "Path": lambda: pathlib.Path("/tmp/x"),
    "PurePath": lambda: [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:\\x")],
}

_NUMPY: dict[str, Callable[[], object]] = {
    "numpy scalars": lambda: [
        np.float64(1.5), np.float32("nan"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True),
        np.complex64(1 + 2j), np.str_("é"), np.bytes_(b"x"), np.float16(1),
        np.datetime64("2020-01-01", "D"), np.datetime64("NaT"), np.timedelta64(5, "ms"),
    ],
    "record scalar": lambda: np.array([(1, 2.5)], dtype=[("x", "i4"), ("y", "f8")])[0],
    "array": lambda: np.arange(12).reshape(3, 4),
    "array 0-d": lambda: np.array(1.5),
    "array, empty": lambda: np.empty((0, 3)),
    "array, large": lambda: np.random.default_rng(2).standard_normal((500, 300)),
    "array, Fortran": lambda: np.asfortranarray(np.arange(10000.0).reshape(100, 100)),
    "array, strided": lambda: np.arange(20000)[::-2],
    "array, big endian": lambda: np.arange(5, dtype=">i4"),
    "array, float16": lambda: np.array([1, np.inf], dtype="f2"),
    "array of bools": lambda: np.array([True, False]),
    "array of text": lambda: np.array(["a", "é🐍"]),
    "array of bytes": lambda: np.array([b"a", b"bc"]),
    "array of days": lambda: np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "array of 25 s": lambda: np.array([1, 2], dtype="m8[25s]"),
    "array, complex": lambda: np.array([1 + 2j, np.nan]),
    "array, not a number": lambda: np.array([0x7FF8000000000001, 2**63], dtype="u8").view("f8"),
    "array, structured": lambda: np.array([(1, "a", (1, 2))], dtype=_RECORD),
    "array, aligned": lambda: np.zeros(3, dtype=np.dtype([("x", "i1"), ("y", "f8")], align=True)),
    "array, nested records": lambda: np.zeros(2, dtype=[("p", [("x", "i1"), ("y", "?")])]),
    "arrays in containers": lambda: {"w": [np.ones(3), (np.zeros((2, 2), "f4"),)]},
}  # fmt: skip

_PANDAS: dict[str, Callable[[], object]] = {
    "Timestamp": lambda: pd.Timestamp(1, unit="ns"),
    "Timestamp, zone": lambda: pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert(_BERLIN),
    "Timestamp, seconds": lambda: pd.Timestamp("1-01-01").as_unit("s"),
    "Timedelta": lambda: pd.Timedelta(-5),
    "NaT and NA": lambda: [pd.NaT, pd.NA],
    "frame": lambda: pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0]}),
    "frame of many kinds": lambda: _mixed(3000),
    "frame of one kind, by rows": lambda: pd.DataFrame(np.arange(6000.0).reshape(1000, 6)),
    "frame of one kind, by columns": lambda: pd.DataFrame(np.arange(6000.0).reshape(6, 1000).T),
    "frame of one kind, grown": lambda: pd.DataFrame(np.ones((500, 2)), columns=["a", "b"]).assign(
        c=np.zeros(500)
    ),
    "range index of its own": lambda: _frame([1, 2], index=pd.RangeIndex(10, 4, -3, name="k")),
    "named index": lambda: _frame([1, 2], index=pd.Index([5, 6], name="k")),
    "index with repeats": lambda: _frame([1, 2], index=["r", "r"]),
    "MultiIndex rows": lambda: _frame(range(4), index=_product()),
    "MultiIndex columns": lambda: pd.DataFrame(np.ones((2, 4)), columns=_product()),
    "tuple as index name": lambda: _frame([1, 2], index=pd.Index([5, 6], name=("k", 1))),
    "int column names": lambda: pd.DataFrame([[1, 2]], columns=[0, 1]),
    "None as column name": lambda: pd.DataFrame([[1, 2]], columns=[None, "a"]),
    "days as column names": lambda: pd.DataFrame([[1, 2]], columns=_days()),
    "objects: text and None": lambda: _frame(np.array(["x", None], dtype=object), dtype=object),
    "objects: text and nan": lambda: _frame(pd.Series(["x", np.nan], dtype=object)),
    "objects: none at all": lambda: _frame(pd.Series([], dtype=object)),
    "objects: much text": lambda: _frame(pd.Series(["some text"] * 5000 + [None], dtype=object)),
    "str column": lambda: _frame(pd.array(["x", None, "é🐍"], dtype="str")),
    "string[python] column": lambda: _frame(pd.array(["x", None], dtype="string[python]")),
    "string[pyarrow] column": lambda: _frame(pd.array(["x", None], dtype="string[pyarrow]")),
    "str column in pieces": lambda: pd.concat([_frame(["x"]), _frame(["y", "z"])]),
    "Int64": lambda: _frame(pd.array([1, None, 2**62], dtype="Int64")),
    "UInt8": lambda: _frame(pd.array([1, None], dtype="UInt8")),
    "Float64": lambda: _frame(pd.array([1.5, None], dtype="Float64")),
    "boolean": lambda: _frame(pd.array([True, None], dtype="boolean")),
    "bool column": lambda: _frame([True, False]),
    "Arrow int column": lambda: _frame(pd.array([1, None], dtype="int64[pyarrow]")),
    "Arrow list column": lambda: _frame(
        pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int64())))
    ),
    "category": lambda: _frame(pd.Categorical(["x", "y", None])),
    "category, ordered, unused": lambda: _frame(
        pd.Categorical(["x"], categories=["y", "x", "z"], ordered=True)
    ),
    "category of ints": lambda: _frame(pd.Categorical([1, 2])),
    "category of intervals": lambda: _frame(pd.cut([1, 2, 3], 2)),
    "category of days": lambda: _frame(pd.Categorical(list(_days()))),
    "interval": lambda: _frame(pd.interval_range(0, 2)),
    "interval of days": lambda: _frame(
        pd.arrays.IntervalArray.from_breaks(_days(), closed="left")
    ),
    "period": lambda: _frame(pd.period_range("2020-01", periods=2, freq="M")),
    "period of weeks": lambda: _frame(pd.period_range("2020-01", periods=2, freq="2W-SUN")),
    "zone by name": lambda: _frame(
        pd.date_range("2020-10-25", periods=9, freq="h", tz="Europe/Berlin")
    ),
    "zone by offset": lambda: _frame(pd.to_datetime(["2020-01-01T00:00:00+05:30"])),
    "UTC": lambda: _frame(pd.to_datetime(["2020-01-01T00:00:00Z", None])),
    "datetime64[s]": lambda: _frame(np.array(["2020-01-01", "NaT"], dtype="M8[s]")),
    "datetime64[ns]": lambda: _frame(np.array(["2020-01-01T00:00:00.123456789"], "M8[ns]")),
    "timedelta column": lambda: _frame(pd.to_timedelta([1, None], "s")),
    "PeriodIndex": lambda: _frame(
        [1, 2], index=pd.period_range("2020-01", periods=2, freq="M")
    ),
    "IntervalIndex": lambda: _frame([1, 2], index=pd.interval_range(0, 2)),
    "CategoricalIndex": lambda: _frame([1, 2], index=pd.CategoricalIndex(["x", "y"])),
    "columns.name": lambda: pd.DataFrame([[1, 2]], columns=pd.Index(["a", "b"], name="cn")),
    "attrs": lambda: _with_attrs(src="x", nested={"k": [1, (2, 3)]}),
    "flags": lambda: _frame([1]).set_flags(allows_duplicate_labels=False),
    "float16 column": lambda: _frame(np.array([1], dtype="f2")),
    "uint64 max": lambda: _frame(np.array([2**64 - 1], dtype="u8")),
    "frame, empty": lambda: pd.DataFrame(),
    "no rows": lambda: pd.DataFrame(
        {"a": pd.Series([], dtype="float64"), "b": pd.Series([], dtype="str")}
    ),
    "no columns": lambda: pd.DataFrame(index=[1, 2, 3]),
    "no columns, range": lambda: pd.DataFrame(index=range(5)),
    "inf, nan, -0.0": lambda: _frame([np.inf, np.nan, -0.0]),
    "wide": lambda: pd.DataFrame(np.arange(3000.0).reshape(3, 1000)),
    "strided": lambda: pd.DataFrame(np.arange(40000.0).reshape(200, 200)).iloc[::2, ::3],
    "Series": lambda: pd.Series([1, 2], name="s"),
    "Series, unnamed": lambda: pd.Series(["a", "b"]),
    "Series, tuple name": lambda: pd.Series([1.5], name=(1, "x"), index=_days()[:1]),
    "RangeIndex": lambda: pd.RangeIndex(5),
    "Index": lambda: pd.Index(["a", "b"], name="n"),
    "DatetimeIndex": lambda: _days().tz_localize("Asia/Tokyo"),
    "MultiIndex": _product,
}  # fmt: skip

_ARROW: dict[str, Callable[[], object]] = {
    "pa.Table": lambda: pa.table({"a": [1, None], "b": [["x"], []], "c": [{"k": 1.5}, None]}),
    "pa.Table, no rows": lambda: pa.table({"a": pa.array([], pa.int8())}),
    "pa.Table, large": lambda: pa.table({"n": np.arange(5000), "s": ["text"] * 5000}),
    "pa.Table, metadata": lambda: pa.table({"a": [1]}).replace_schema_metadata({"k": "v"}),
    "pa.Table, in pieces": lambda: pa.table({"a": pa.chunked_array([["x"], [], ["y", None]])}),
    "pa.Table, sliced": lambda: pa.table({"a": list(range(1000))}).slice(10, 5),
    "pa.Table, nulls": lambda: pa.table({"a": pa.nulls(10)}),
    "pa.RecordBatch": lambda: pa.record_batch({"a": [1.5, None]}),
    "pa.Array": lambda: pa.array(["x", None]),
    "pa.Array, dictionary": lambda: pa.array(["x", "y", "x"]).dictionary_encode(),
    "pa.Array, decimals": lambda: pa.array([Decimal("1.10"), None]),
    "pa.Array, zoned": lambda: pa.array([1, 2], pa.timestamp("us", "Europe/Berlin")),
    "pa.ChunkedArray": lambda: pa.chunked_array([[1], [2, None]]),
    "pa.ChunkedArray, empty": lambda: pa.chunked_array([], pa.int64()),
}

_POLARS: dict[str, Callable[[], object]] = {
    "pl.DataFrame": lambda: pl.DataFrame({"a": [1, None], "b": ["x", "é"], "c": [[1], []]}),
    "pl.DataFrame, category": lambda: pl.DataFrame({"a": pl.Series(["x"], dtype=pl.Categorical)}),
    "pl.DataFrame, enum": lambda: pl.DataFrame({"a": pl.Series(["p"], dtype=pl.Enum(["p", "q"]))}),
    "pl.Series": lambda: pl.Series("s", [1, 2, None]),
}

_ONLY: dict[str, tuple[str, Callable[[], object]]] = {
    "repeated column names": (
        "more than once", lambda: pd.DataFrame([[1, 2]], columns=["a", "a"])
    ),
    "mixed column names": ("column names", lambda: pd.DataFrame([[1, 2]], columns=[0, "a"])),
    "column names with freq": (
        "freq", lambda: pd.DataFrame([[1, 2]], columns=pd.date_range("2020", periods=2))
    ),
    "mixed objects": (r"'a'.*int", lambda: _frame([1, "x", None], dtype=object)),
    "None and nan": ("'a'", lambda: _frame(pd.Series(["a", None, np.nan], dtype=object))),
    "floats among text": (r"'a'.*float", lambda: _frame(pd.Series(["a", 1.5], dtype=object))),
    "lists in cells": (r"'a'.*list", lambda: _frame([[1, 2], [3]])),
    "dicts in cells": (r"'a'.*dict", lambda: _frame([{"k": 1}, {"j": "x"}])),
    "sets in cells": (r"'a'.*set", lambda: _frame([{1}, {2}])),
    "tuples in cells": (r"'a'.*tuple", lambda: _frame([(1, 2), (3, 4)])),
    "Decimals in cells": (r"'a'.*Decimal", lambda: _frame([Decimal("1.10")])),
    "dates in cells": (r"'a'.*date", lambda: _frame([dt.date(2020, 1, 1)])),
    "UUIDs in cells": (r"'a'.*UUID", lambda: _frame([uuid.UUID(int=1)])),
    "bytes in cells": (r"'a'.*bytes", lambda: _frame([b"x"])),
    "ints beyond 64 bits": (r"'a'.*int", lambda: _frame([2**70, 1], dtype=object)),
    "bools and None": (r"'a'.*bool", lambda: _frame([True, None], dtype=object)),
    "frames in cells": (r"'a'.*DataFrame", lambda: _frame([pd.DataFrame({"q": [1]})])),
    "lone surrogate in a column": (
        r"'a'.*Unicode", lambda: _frame(pd.Series(["\ud800"], dtype=object))
    ),
    "freq": (
        "index has freq='D'", lambda: _frame([1, 2], index=pd.date_range("2020", periods=2))
    ),
    "attrs that hold a class": ("type", lambda: _with_attrs(src=int)),
    "sparse": (r"'a'.*Sparse", lambda: _frame(pd.arrays.SparseArray([0, 0, 1]))),
    "complex column": (r"'a'.*complex", lambda: _frame([1 + 2j])),
    "long double column": (
        r"'a'.*(float128|longdouble)", lambda: _frame(np.array([1], dtype="g"))
    ),
    "object array": ("tolist", lambda: np.array([1, "x"], dtype=object)),
    "long double array": ("float64", lambda: np.ones(2, dtype="g")),
    "masked array": ("MaskedArray", lambda: np.ma.masked_array([1, 2], [0, 1])),
    "record array": ("recarray", lambda: np.rec.array([(1, 2)])),
    "text of any length": ("dtype", lambda: np.array(["a"], dtype=np.dtypes.StringDType())),
    "a Period": ("Period", lambda: pd.Period("2020-01", "M")),
    "an Interval": ("Interval", lambda: pd.Interval(0, 1)),
    "a dtype": ("dtype", lambda: np.dtype("f8")),
    "an instance": ("Point", lambda: Point(1.5, "a")),
    "an enum": ("Colour", lambda: Colour.RED),
    "a named tuple": ("Pair", lambda: Pair(1, "a")),
    "a Counter": ("Counter", lambda: collections.Counter("abca")),
    "an OrderedDict": ("OrderedDict", lambda: collections.OrderedDict(b=1, a=2)),
    "a defaultdict": ("defaultdict", lambda: collections.defaultdict(list, a=[1])),
    "a deque": ("deque", lambda: collections.deque([1, 2], maxlen=3)),
    "an exception": ("ValueError", lambda: ValueError("text", 1)),
    "a class": ("type", lambda: Point),
}  # fmt: skip

#: Names among `SAMPLES` of what is refused at the boundary, and what the refusal says (a regular
#: expression). Pickle keeps them.
ONLY_IN_PYTHON: dict[str, str] = {name: said for name, (said, _) in _ONLY.items()}
#: A function that makes the value, by the name of its kind.
SAMPLES: dict[str, Callable[[], object]] = {
    **_PLAIN,
    **_NUMPY,
    **_PANDAS,
    **_ARROW,
    **(_POLARS if pl is not None else {}),
    **{name: make for name, (_, make) in _ONLY.items()},
}


def same(a: Any, b: Any) -> bool:
    """Whether nobody could tell the two apart: types at every level, nan, -0.0, order, zones.

    nan is the same as nan, bit by bit in arrays. Memory layout is compared as far as numpy shows
    it (C or Fortran order); whether an array can be written to is not.
    """
    if type(a) is not type(b):
        return False
    for kinds, compare in _COMPARED:
        if isinstance(a, kinds):
            return bool(compare(a, b))
    if a is b:
        return True
    if isinstance(a, BaseException):
        return same(a.args, b.args)
    return bool(a == b)


def _same_float(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def _same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def _same_members(a: Any, b: Any) -> bool:
    return a == b and _same_items(sorted(a, key=repr), sorted(b, key=repr))


def _same_dict(a: Any, b: Any) -> bool:
    return (
        _same_items(list(a.items()), list(b.items()))
        and getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
    )  # fmt: skip


def _same_time(a: Any, b: Any) -> bool:
    zones = a.tzinfo, b.tzinfo
    return (
        a.replace(tzinfo=None) == b.replace(tzinfo=None)
        and a.fold == b.fold
        and same(*zones)
        and getattr(a, "unit", None) == getattr(b, "unit", None)
        and repr(a) == repr(b)
    )


def _same_array(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or a.dtype.isalignedstruct != b.dtype.isalignedstruct:
        return False
    if a.shape != b.shape or (a.size > 1 and a.flags.fnc != b.flags.fnc):
        return False
    if isinstance(a, np.ma.MaskedArray):
        return _same_array(a.mask, b.mask) and _same_array(np.asarray(a), np.asarray(b))
    if a.dtype.names is not None:
        # what lies between the fields of a record means nothing
        return all(_same_array(np.asarray(a[name]), np.asarray(b[name])) for name in a.dtype.names)
    if a.dtype.hasobject or a.dtype.char in "gGT":
        return _same_items(a.reshape(-1).tolist(), b.reshape(-1).tolist())
    return a.tobytes() == b.tobytes()


def _same_scalar(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and (
        all(_same_scalar(a[name], b[name]) for name in a.dtype.names)
        if a.dtype.names is not None
        else np.asarray(a).tobytes() == np.asarray(b).tobytes()
    )


def _same_frame(a: Any, b: Any) -> bool:
    return (
        a.shape == b.shape
        and same(a.index, b.index)
        and same(a.columns, b.columns)
        and all(_same_column(a.iloc[:, n].array, b.iloc[:, n].array) for n in range(a.shape[1]))
        and _same_extras(a, b)
    )


def _same_series(a: Any, b: Any) -> bool:
    return (
        same(a.index, b.index)
        and same(a.name, b.name)
        and _same_column(a.array, b.array)
        and _same_extras(a, b)
    )


def _same_extras(a: Any, b: Any) -> bool:
    flags = a.flags.allows_duplicate_labels, b.flags.allows_duplicate_labels
    return flags[0] == flags[1] and same(a.attrs, b.attrs)


def _same_index(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or len(a) != len(b) or not same(list(a.names), list(b.names)):
        return False
    if getattr(a, "freq", None) != getattr(b, "freq", None):
        return False
    if isinstance(a, pd.RangeIndex):
        return (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
    if isinstance(a, pd.MultiIndex):
        return _same_items(list(a.levels), list(b.levels)) and _same_items(
            [np.asarray(codes) for codes in a.codes], [np.asarray(codes) for codes in b.codes]
        )
    return _same_column(a.array, b.array)


def _same_column(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or a.dtype != b.dtype or repr(a.dtype) != repr(b.dtype):
        return False
    if isinstance(a, pd.Categorical):
        # the numbers of categories may come in a wider type
        return same(a.categories, b.categories) and a.codes.tolist() == b.codes.tolist()
    if isinstance(a.dtype, pd.StringDtype) and a.dtype.storage != b.dtype.storage:
        return False
    if isinstance(a.dtype, np.dtype) or isinstance(a, pd.arrays.NumpyExtensionArray):
        # what a column's place in its frame makes of its layout means nothing
        return _same_array(np.ascontiguousarray(a), np.ascontiguousarray(b))
    return _same_items(list(a), list(b))


def _same_arrow(a: Any, b: Any) -> bool:
    kinds = ("schema", "type")
    if any(getattr(a, kind, None) != getattr(b, kind, None) for kind in kinds):
        return False
    schema = getattr(a, "schema", None)
    if schema is not None and not schema.equals(b.schema, check_metadata=True):
        return False
    return len(a) == len(b) and same(a.to_pylist(), b.to_pylist())


def _same_polars(a: Any, b: Any) -> bool:
    if isinstance(a, pl.Series):
        return a.dtype == b.dtype and a.name == b.name and bool(a.equals(b))
    return a.schema == b.schema and bool(a.equals(b))


_COMPARED: list[tuple[Any, Callable[[Any, Any], object]]] = [
    ((np.generic,), _same_scalar),
    ((float,), _same_float),
    ((complex,), lambda a, b: _same_float(a.real, b.real) and _same_float(a.imag, b.imag)),
    ((collections.deque,), lambda a, b: a.maxlen == b.maxlen and _same_items(a, b)),
    ((list, tuple), _same_items),
    ((set, frozenset), _same_members),
    ((dict,), _same_dict),
    ((Decimal,), lambda a, b: repr(a) == repr(b)),
    ((type(pd.NaT), type(pd.NA)), lambda a, b: a is b),
    ((zoneinfo.ZoneInfo,), lambda a, b: a.key == b.key),
    ((dt.timezone,), lambda a, b: repr(a) == repr(b)),
    ((dt.datetime, dt.time), _same_time),
    ((pd.Timedelta,), lambda a, b: a == b and a.unit == b.unit),
    ((np.ndarray,), _same_array),
    ((pd.DataFrame,), _same_frame),
    ((pd.Series,), _same_series),
    ((pd.Index,), _same_index),
    ((pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray), _same_arrow),
]
if pl is not None:
    _COMPARED.append(((pl.DataFrame, pl.Series), _same_polars))
