"""Arrays and tables cross unaltered or are refused; forged ones are invalid and nothing worse."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import base64
import copy
import datetime as dt
import decimal
import json
import random
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pandas
import pyarrow
import pytest

from py_code_mode.guest.errors import ValueNotPortable
from py_code_mode.guest.values import InvalidValue, MissingHere, decode, encode

# Their stubs know less than these tests ask of them.
np: Any = numpy
pd: Any = pandas
pa: Any = pyarrow


def wire(value: object) -> tuple[Any, list[bytes]]:
    segments: list[Any] = []
    tree = encode(value, segments)
    return msgspec.json.decode(json.dumps(tree)), [bytes(segment) for segment in segments]


def round_trip(value: object, *, writable: bool = False) -> Any:
    tree, segments = wire(value)
    return decode(tree, segments, writable=writable)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(
            a, b, check_index_type="exact", check_column_type="exact", check_freq=True
        )
        assert list(a.dtypes) == list(b.dtypes)
        assert type(a.index) is type(b.index)
        assert type(a.columns) is type(b.columns)
        assert a.columns.dtype == b.columns.dtype
        assert a.attrs == b.attrs
        assert a.flags.allows_duplicate_labels == b.flags.allows_duplicate_labels
        for label in a.columns:
            if a[label].dtype == object:
                assert list(map(type, a[label])) == list(map(type, b[label]))
    elif isinstance(a, pd.Series):
        pd.testing.assert_series_equal(a, b, check_index_type="exact", check_freq=True)
        assert (a.dtype, a.attrs) == (b.dtype, b.attrs)
    elif isinstance(a, pd.Index):
        pd.testing.assert_index_equal(a, b, exact=True)
        assert a.dtype == b.dtype
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # The bytes, so that nan equals nan; those between the fields of records mean nothing.
        assert (a == b).all() if a.dtype.names else a.tobytes() == b.tobytes()
    else:
        assert a.equals(b)


def frame(column: Any, **options: Any) -> Any:
    return pd.DataFrame({"a": column}, **options)


def with_attrs(**attrs: Any) -> Any:
    made = frame([1])
    made.attrs.update(attrs)
    return made


def categories(values: Any) -> Any:
    return pd.Categorical(values)


ROWS = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", None])
DAYS = pd.date_range("2020", periods=2)
BARE_DAYS = pd.DatetimeIndex(list(DAYS))

CROSS: dict[str, Any] = {
    "range index": pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0]}),
    "range index of its own": frame([1, 2], index=pd.RangeIndex(10, 4, -3, name="k")),
    "named index": frame([1, 2], index=pd.Index([5, 6], name="k")),
    "index with repeats": frame([1, 2], index=["r", "r"]),
    "MultiIndex rows": frame(range(4), index=ROWS),
    "MultiIndex columns": pd.DataFrame(np.ones((2, 4)), columns=ROWS),
    "tuple as index name": frame([1, 2], index=pd.Index([5, 6], name=("k", 1))),
    "int column names": pd.DataFrame([[1, 2]], columns=[0, 1]),
    "None as column name": pd.DataFrame([[1, 2]], columns=[None, "a"]),
    "days as column names": pd.DataFrame([[1, 2]], columns=BARE_DAYS),
    "objects: text and None": frame(np.array(["x", None], dtype=object), dtype=object),
    "objects: text and nan": frame(pd.Series(["x", np.nan], dtype=object)),
    "objects: none at all": frame(pd.Series([], dtype=object)),
    "str": frame(pd.array(["x", None, "é🐍"], dtype="str")),
    "string[python]": frame(pd.array(["x", None], dtype="string[python]")),
    "string[pyarrow]": frame(pd.array(["x", None], dtype="string[pyarrow]")),
    "str in pieces": pd.concat([frame(["x"]), frame(["y", "z"])]),
    "Int64": frame(pd.array([1, None, 2**62], dtype="Int64")),
    "UInt8": frame(pd.array([1, None], dtype="UInt8")),
    "Float64": frame(pd.array([1.5, None], dtype="Float64")),
    "boolean": frame(pd.array([True, None], dtype="boolean")),
    "bool": frame([True, False]),
    "Arrow int": frame(pd.array([1, None], dtype="int64[pyarrow]")),
    "Arrow list": frame(pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int64())))),
    "category": frame(categories(["x", "y", None])),
    "category, ordered, unused": frame(
        pd.Categorical(["x"], categories=["y", "x", "z"], ordered=True)
    ),
    "category of ints": frame(categories([1, 2])),
    "category of intervals": frame(pd.cut([1, 2, 3], 2)),
    "category of days": frame(categories(list(DAYS))),
    "interval": frame(pd.interval_range(0, 2)),
    "interval of days": frame(pd.arrays.IntervalArray.from_breaks(BARE_DAYS, closed="left")),
    "period": frame(pd.period_range("2020-01", periods=2, freq="M")),
    "period of weeks": frame(pd.period_range("2020-01", periods=2, freq="2W-SUN")),
    "zone by name": frame(pd.date_range("2020-10-25", periods=9, freq="h", tz="Europe/Berlin")),
    "zone by offset": frame(pd.to_datetime(["2020-01-01T00:00:00+05:30"])),
    "UTC": frame(pd.to_datetime(["2020-01-01T00:00:00Z", None])),
    "datetime64[s]": frame(np.array(["2020-01-01", "NaT"], dtype="M8[s]")),
    "datetime64[ns]": frame(np.array(["2020-01-01T00:00:00.123456789"], dtype="M8[ns]")),
    "timedelta": frame(pd.to_timedelta([1, None], "s")),
    "PeriodIndex": frame([1, 2], index=pd.period_range("2020-01", periods=2, freq="M")),
    "IntervalIndex": frame([1, 2], index=pd.interval_range(0, 2)),
    "CategoricalIndex": frame([1, 2], index=pd.CategoricalIndex(["x", "y"])),
    "columns.name": pd.DataFrame([[1, 2]], columns=pd.Index(["a", "b"], name="cn")),
    "attrs": with_attrs(src="x", nested={"k": [1, (2, 3)]}),
    "flags": frame([1]).set_flags(allows_duplicate_labels=False),
    "float16": frame(np.array([1], dtype="f2")),
    "uint64 max": frame(np.array([2**64 - 1], dtype="u8")),
    "empty": pd.DataFrame(),
    "no rows": pd.DataFrame({"a": pd.Series([], dtype="float64"), "b": pd.Series([], dtype="str")}),
    "no columns": pd.DataFrame(index=[1, 2, 3]),
    "no columns, range": pd.DataFrame(index=range(5)),
    "inf, nan, -0.0": frame([np.inf, np.nan, -0.0]),
    "wide": pd.DataFrame(np.arange(3000.0).reshape(3, 1000)),
    "strided": pd.DataFrame(np.arange(40000.0).reshape(200, 200)).iloc[::2, ::3],
    "Series": pd.Series([1, 2], name="s"),
    "Series, unnamed": pd.Series(["a", "b"]),
    "Series, tuple name": pd.Series([1.5], name=(1, "x"), index=BARE_DAYS[:1]),
    "RangeIndex": pd.RangeIndex(5),
    "Index": pd.Index(["a", "b"], name="n"),
    "DatetimeIndex": BARE_DAYS.tz_localize("Asia/Tokyo"),
    "MultiIndex": ROWS,
    "array": np.arange(12).reshape(3, 4),
    "array 0-d": np.array(1.5),
    "array, empty": np.empty((0, 3)),
    "array, Fortran": np.asfortranarray(np.arange(10000.0).reshape(100, 100)),
    "array, strided": np.arange(20000)[::-2],
    "array, big endian": np.arange(5, dtype=">i4"),
    "array of bools": np.array([True, False]),
    "array of text": np.array(["a", "é🐍"]),
    "array of bytes": np.array([b"a", b"bc"]),
    "array of days": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "array of 25 s": np.array([1, 2], dtype="m8[25s]"),
    "array, complex": np.array([1 + 2j, np.nan]),
    "array, structured": np.array(
        [(1, "a", (1, 2))], dtype=[("x", "i4"), ("y", "U2"), ("z", "f8", (2,))]
    ),
    "array, aligned": np.zeros(3, dtype=np.dtype([("x", "i1"), ("y", "f8")], align=True)),
    "array, nested records": np.zeros(2, dtype=[("p", [("x", "i1"), ("y", "?")])]),
    "pa.Table": pa.table({"a": [1, None], "b": [["x"], []], "c": [{"k": 1.5}, None]}),
    "pa.Table, no rows": pa.table({"a": pa.array([], pa.int8())}),
    "pa.Table, metadata": pa.table({"a": [1]}).replace_schema_metadata({"k": "v"}),
    "pa.Table, in pieces": pa.table({"a": pa.chunked_array([["x"], [], ["y", None]])}),
    "pa.Table, sliced": pa.table({"a": list(range(1000))}).slice(10, 5),
    "pa.Table, nulls": pa.table({"a": pa.nulls(10)}),
    "pa.RecordBatch": pa.record_batch({"a": [1.5, None]}),
    "pa.Array": pa.array(["x", None]),
    "pa.Array, dictionary": pa.array(["x", "y", "x"]).dictionary_encode(),
    "pa.Array, decimals": pa.array([decimal.Decimal("1.10"), None]),
    "pa.Array, zoned": pa.array([1, 2], pa.timestamp("us", "Europe/Berlin")),
    "pa.ChunkedArray": pa.chunked_array([[1], [2, None]]),
    "pa.ChunkedArray, empty": pa.chunked_array([], pa.int64()),
}

STAY: dict[str, tuple[Any, str]] = {
    "repeated column names": (pd.DataFrame([[1, 2]], columns=["a", "a"]), "more than once"),
    "mixed column names": (pd.DataFrame([[1, 2]], columns=[0, "a"]), "column names"),
    "column names with freq": (pd.DataFrame([[1, 2]], columns=DAYS), "freq"),
    "mixed objects": (frame([1, "x", None], dtype=object), r"'a'.*int"),
    "None and nan": (frame(pd.Series(["a", None, np.nan], dtype=object)), "'a'"),
    "floats among text": (frame(pd.Series(["a", 1.5], dtype=object)), r"'a'.*float"),
    "lists": (frame([[1, 2], [3]]), r"'a'.*list"),
    "dicts": (frame([{"k": 1}, {"j": "x"}]), r"'a'.*dict"),
    "sets": (frame([{1}, {2}]), r"'a'.*set"),
    "tuples": (frame([(1, 2), (3, 4)]), r"'a'.*tuple"),
    "Decimals": (frame([decimal.Decimal("1.10")]), r"'a'.*Decimal"),
    "dates": (frame([dt.date(2020, 1, 1)]), r"'a'.*date"),
    "UUIDs": (frame([uuid.UUID(int=1)]), r"'a'.*UUID"),
    "bytes": (frame([b"x"]), r"'a'.*bytes"),
    "ints beyond 64 bits": (frame([2**70, 1], dtype=object), r"'a'.*int"),
    "bools and None": (frame([True, None], dtype=object), r"'a'.*bool"),
    "frames": (frame([pd.DataFrame({"q": [1]})]), r"'a'.*DataFrame"),
    "lone surrogate": (frame(pd.Series(["\ud800"], dtype=object)), r"'a'.*Unicode"),
    "freq": (frame([1, 2], index=DAYS), "index has freq='D'"),
    "attrs that hold a class": (with_attrs(src=int), "type"),
    "sparse": (frame(pd.arrays.SparseArray([0, 0, 1])), r"'a'.*Sparse"),
    "complex": (frame([1 + 2j]), r"'a'.*complex"),
    "long double": (frame(np.array([1], dtype="g")), r"'a'.*float128|'a'.*longdouble"),
    "object array": (np.array([1, "x"], dtype=object), "tolist"),
    "long double array": (np.ones(2, dtype="g"), "float64"),
    "array subclass": (np.ma.masked_array([1, 2], [0, 1]), "MaskedArray"),
    "records": (np.rec.array([(1, 2)]), "recarray"),
    "records in disguise": (np.asarray(np.rec.array([(1, 2)])), "record"),
    "variable-width text": (np.array(["a"], dtype=np.dtypes.StringDType()), "dtype"),
    "items of no size": (np.zeros(3, dtype="V0"), "dtype"),
    "frame subclass": (type("Mine", (pd.DataFrame,), {})({"a": [1]}), "Mine"),
    "run-end encoded": (pa.RunEndEncodedArray.from_arrays([3], ["a"]), "run_end"),
    "string views": (pa.array(["x"], pa.string_view()), "string_view"),
    "extension type": (
        pa.ExtensionArray.from_storage(pa.opaque(pa.int8(), "t", "v"), pa.array([1], pa.int8())),
        "extension",
    ),
    "structs of nothing": (pa.array([{}], pa.struct([])), "struct"),
    "lists of nulls": (pa.array([[None]], pa.list_(pa.null())), "null"),
}


@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("writable", [False, True])
def test_it_comes_back_exactly(name: str, writable: bool) -> None:
    value = CROSS[name]
    before = copy.deepcopy(value)
    assert_same(round_trip(value, writable=writable), value)
    assert_same(value, before)


@pytest.mark.parametrize("name", STAY)
def test_what_would_change_is_refused_and_says_what(name: str) -> None:
    value, said = STAY[name]
    with pytest.raises(ValueNotPortable, match=said):
        encode(value, [])
    with pytest.raises(ValueNotPortable):
        encode({"in": [value]}, [])


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5), np.float32("nan"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True),
        np.complex64(1 + 2j), np.str_("é"), np.str_(""), np.bytes_(b"x"), np.float16(1),
        np.datetime64("2020-01-01", "D"), np.datetime64("NaT"), np.timedelta64(5, "ms"),
        np.array([(1, 2.5)], dtype=[("x", "i4"), ("y", "f8")])[0],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_numpy_scalars_come_back(value: Any) -> None:
    back = round_trip(value)
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2020-01-01"), pd.Timestamp(1, unit="ns"), pd.Timestamp("2020-01-01",
        tz="UTC"),
        pd.Timestamp("2020-10-25 05:30", tz="Europe/Berlin"), pd.Timestamp("1-01-01").as_unit("s"),
        pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert("Europe/Berlin"),
        pd.Timedelta(-5), pd.Timedelta(5, "s").as_unit("s"),
    ],
    ids=str,
)  # fmt: skip
def test_pandas_scalars_come_back(value: Any) -> None:
    back = round_trip(value)
    assert type(back) is type(value)
    assert (back, back.unit) == (value, value.unit)
    if isinstance(value, pd.Timestamp):
        assert (back.tz, back.fold) == (value.tz, value.fold)


def test_missing_values_are_the_singletons() -> None:
    assert round_trip([pd.NaT, pd.NA])[0] is pd.NaT
    assert round_trip(pd.NA) is pd.NA


def test_scalars_of_a_subclass_or_a_long_double_are_refused() -> None:
    class Mine(numpy.float64): ...

    for value in (Mine(1.0), np.longdouble(1), np.clongdouble(1)):
        with pytest.raises(ValueNotPortable):
            encode(value, [])


def test_a_subclass_of_tzinfo_is_refused() -> None:
    from dateutil import tz

    for value in (
        pd.Timestamp("2020", tz=tz.gettz("Europe/Berlin")),
        frame(pd.DatetimeIndex(["2020"], tz=tz.gettz("Europe/Berlin"))),
    ):
        with pytest.raises(ValueNotPortable, match="time zone"):
            encode(value, [])


def test_padding_does_not_leak_memory() -> None:
    dtype = np.dtype([("x", "i1"), ("y", "f8")], align=True)
    dirty = np.frombuffer(b"\xaa" * (dtype.itemsize * 500), dtype)
    tree, segments = wire(dirty)
    assert decode(tree, segments).tolist()[0][0] == dirty.tolist()[0][0]
    assert segments[0][1:8] == b"\0" * 7


def test_writable_frames_can_be_changed_in_place() -> None:
    made = pd.DataFrame({"i": [1, 2], "f": [1.5, 2.5], "d": DAYS, "s": ["x", "y"]})
    for many in (made, pd.DataFrame(np.ones((3, 200)))):
        back = round_trip(many, writable=True)
        for column in back.columns:
            back.loc[0, column] = back.loc[1, column]
        back.iloc[:, 0] += 1
        assert_same(round_trip(back), back)


def test_numbers_are_views_of_a_writable_segment() -> None:
    tree, segments = wire(frame(np.arange(10_000.0)))
    shared = bytearray(segments[0])
    back = decode(tree, [shared], writable=True)
    back.loc[0, "a"] = 42.5
    assert decode(tree, [shared])["a"][0] == 42.5


def test_many_frames_in_one_value() -> None:
    value = {"frames": [CROSS["range index"], CROSS["array"]], "table": CROSS["pa.Table"]}
    back = round_trip(value)
    assert_same(back["frames"][0], CROSS["range index"])
    assert_same(back["table"], CROSS["pa.Table"])


def test_the_limit_holds_before_anything_is_copied() -> None:
    for value in (np.ones(10_000), frame(np.ones(10_000)), pa.table({"a": np.ones(10_000)})):
        segments: list[Any] = []
        with pytest.raises(ValueNotPortable, match="too large"):
            encode(value, segments, limit=50_000)
        assert not segments


def test_without_pyarrow_arrays_cross_and_frames_say_what_is_missing() -> None:
    code = """
import sys
sys.modules["pyarrow"] = None
import numpy, pandas
from py_code_mode.guest.values import encode, decode
segments = []
assert decode(encode(numpy.arange(9999), segments), segments)[5] == 5
assert encode(pandas.Timestamp("2020"), [])
try:
    encode(pandas.DataFrame({"a": [1]}), [])
except TypeError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "pyarrow is missing" in found.stdout


def test_polars_comes_back() -> None:
    polars = pytest.importorskip("polars")
    pl: Any = polars
    for value in (
        pl.DataFrame({"a": [1, None], "b": ["x", "é"], "c": [[1, 2], []], "d": [{"k": 1}, None]}),
        pl.DataFrame({"a": pl.Series(["x", "y"], dtype=pl.Categorical)}),
        pl.DataFrame({"a": pl.Series(["p"], dtype=pl.Enum(["p", "q"]))}),
        pl.DataFrame({"a": [decimal.Decimal("1.1")], "b": [dt.time(1)], "c": [dt.timedelta(1)]}),
        pl.DataFrame({"a": [dt.datetime(2020, 1, 1, tzinfo=dt.UTC)], "b": [None]}),
        pl.DataFrame(),
        pl.DataFrame({"a": []}, schema={"a": pl.Int8}),
        pl.Series("s", [1, 2, None]),
    ):
        back = round_trip(value)
        assert type(back) is type(value)
        assert back.equals(value)
        assert getattr(back, "schema", None) == getattr(value, "schema", None)
    with pytest.raises(ValueNotPortable, match=r"'a'.*objects"):
        encode(pl.DataFrame({"a": pl.Series([{1}], dtype=pl.Object)}), [])
    with pytest.raises(ValueNotPortable, match="does not have polars"):
        encode(pl.DataFrame({"a": [1]}), [], accepts=frozenset({"numpy", "pandas", "pyarrow"}))


# -- forged input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        ["array", "O", [1], "C", "AAAAAAAAAAA="], ["array", "|O", [1], "C", "AAAAAAAAAAA="],
        ["array", "<f8", [2], "C", "AAAAAAAAAAA="], ["array", "<f8", [-1], "C", "AAAAAAAAAAA="],
        ["array", "<f8", [2**62, 2**62], "C", ""], ["array", "<f8", [0, 2**46], "C", "AA=="],
        ["array", "<f8", [1] * 70, "C", "AAAAAAAAAAA="], ["array", "<f8", [1], "K", "AAAAAAAAAAA="],
        ["array", "<f8", [1.0], "C", "AAAAAAAAAAA="], ["array", "<f8", [True], "C", "AAAAAAAAAAA="],
        ["array", "i4,i4", [1], "C", "AAAAAAAAAAA="], ["array", "<U0", [2**40], "C", ""],
        ["array", "|V0", [2**40], "C", ""], ["array", "<f16", [1], "C", "AAAA"],
        ["array", "|b1", [1], "C", "Bw=="], ["array", "<U1", [1], "C", "/////w=="],
        ["array", ">U1", [1], "C", "/////w=="], ["array", "<M8[parsec]", [1], "C", "AAAAAAAAAAA="],
        ["array", "<M8[xs]", [1], "C", "AAAAAAAAAAA="], ["array", "<f8", 1, "C", "AAAAAAAAAAA="],
        ["array", ["fields", [["x", "|O", 0]], 8, False], [1], "C", "AAAAAAAAAAA="],
        ["array", ["fields", [["x", "<f8", 100]], 8, False], [1], "C", "AAAAAAAAAAA="],
        ["array", ["fields", [["x", "|b1", 0]], 8, False], [1], "C", "BwAAAAAAAAA="],
        ["array", ["fields", [["x", "<f8", 0], ["x", "<f8", 0]], 8, False], [1], "C", ""],
        ["array", ["fields", [], 8, False], [1], "C", "AAAAAAAAAAA="],
        ["array", ["fields", [["x", "<f8", 0]], 2**46, False], [0], "C", ""],
        ["array", ["array", "<f8", [2**40, 2**40]], [0], "C", ""],
        ["array", ["array", "<f8", [0]], [1], "C", ""], ["array", [], [1], "C", ""],
        ["scalar", "<f8", [1], "C", "AAAAAAAAAAA="], ["scalar", "<f8", [], "C", ""], ["str", 1],
        ["bytes", 5], ["table", "AAAA"], ["batch", "AAAA"], ["values", ""], ["chunks", None],
        ["NaT", 1], ["Timestamp"], ["Timestamp", "D", 1, None, 0], ["Timedelta", "ns", 1.5],
        ["Timestamp", "ns", 1, None, 7], ["Timestamp", "ns", 1, None, True],
        ["Timestamp", "ns", 1, ["pytz", "/etc/passwd"], 0],
        ["Index", 3, ["range", [0, 3, 0], None], [], [], None],
        ["Index", 2**40, ["range", [0, 2**40, 1], None], [], [0], None],
        ["Index", 4, ["range", [0, 3, 1], None], [], [], None],
        ["Index", 3, ["range", [0, 3, 1], []], [], [], None],
        ["Index", 3, ["index", ["plain", "<i8", None], None], [], [], None],
        ["Index", 1, ["index", ["plain", "|O", "AAAAAAAAAAA="], None], [], [], None],
        ["Series", 3, ["range", [0, 3, 1], None], [], [None, {}, True], None],
        ["DataFrame", 0, ["range", [0, 0, 1], None], [],
         [["range", [0, 2**62, 1], None], {}, True], None],
        ["DataFrame", 0, ["range", [0, 0, 1], None], [], [["range", [0, 2, 1], None], {}, True],
        None],
        ["DataFrame", 2**60, ["range", [0, 2**60, 1], None], [],
         [["range", [0, 0, 1], None], {}, True], None],
        ["DataFrame", 0, ["range", [0, 0, 1], None], [], [["range", [0, 0, 1], None], [], True],
        None],
        ["polars.DataFrame", [], "AAAA", 0],
    ],
    ids=lambda payload: ascii(payload)[:60],
)  # fmt: skip
def test_forged_frames_are_invalid(payload: Any) -> None:
    with pytest.raises(InvalidValue):
        decode({"$frame": payload}, [])


def stream(batch: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_streams_are_refused_unread(codec: str) -> None:
    batch = pa.record_batch({"a": np.zeros(1_000_000)})
    body = stream(batch, compression=codec)
    with pytest.raises(InvalidValue, match="compressed"):
        decode({"$frame": ["table", 0]}, [body])
    words = pa.record_batch({"a": pa.array(["x" * 10_000] * 9).dictionary_encode()})
    with pytest.raises(InvalidValue, match="compressed"):
        decode({"$frame": ["table", 0]}, [stream(words, compression=codec)])


# Functions, for pytest looks at parameters and would read an array out.
FREE: dict[str, Any] = {
    "nulls": lambda: pa.nulls(2**28),
    "run-end encoded": lambda: pa.RunEndEncodedArray.from_arrays(pa.array([2**30]), ["a"]),
    "structs of nothing": lambda: pa.array([{}] * 9, pa.struct([])),
    "lists of nulls": lambda: pa.array([[None]], pa.list_(pa.null())),
    "string views": lambda: pa.array(["x" * 20] * 9, pa.string_view()),
    "extension type": lambda: pa.ExtensionArray.from_storage(
        pa.opaque(pa.int8(), "t", "v"), pa.array([1], pa.int8())
    ),
    "long words": lambda: pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(9000, "i1")), ["x" * 1_000_000]
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_arrays_that_are_long_for_free_are_refused(name: str) -> None:
    array = FREE[name]()
    body = stream(pa.record_batch({"a": array}))
    assert len(body) < 2_000_000
    with pytest.raises(InvalidValue):
        decode({"$frame": ["table", 0]}, [body])
    with pytest.raises(ValueNotPortable):
        encode(pa.table({"a": array}), [])


def test_codes_that_point_outside_are_invalid() -> None:
    one, two = ((base64.b64encode(np.arange(1, 1 + n).tobytes()).decode()) for n in (1, 2))
    for value in (frame(categories([1, 2])), pd.MultiIndex.from_arrays([[1, 2], [1.5, 2.5]])):
        tree, segments = wire(value)
        text = json.dumps(tree)
        assert two in text
        with pytest.raises(InvalidValue):
            decode(json.loads(text.replace(two, one)), segments)


def test_a_polars_frame_where_there_is_no_polars_is_no_attack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree, segments = wire(pa.table({"a": [1]}))
    blob = tree["$frame"][1]
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingHere, match="polars is not installed"):
        decode({"$frame": ["polars.DataFrame", ["Int64"], blob, 1]}, segments)


def flip(rng: random.Random, body: bytes) -> bytes:
    spoilt = bytearray(body)
    for _ in range(rng.randrange(1, 6)):
        if spoilt:
            spoilt[rng.randrange(len(spoilt))] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
    return bytes(spoilt[: rng.randrange(len(spoilt) + 1)] if rng.random() < 0.1 else spoilt)


def spoil(rng: random.Random, node: Any) -> Any:
    """Change one leaf or drop one branch of a tree."""
    if isinstance(node, dict) and node:
        table: dict[str, Any] = dict(node)  # pyright: ignore[reportUnknownArgumentType]
        key = rng.choice(list(table))
        table[key] = spoil(rng, table[key])
        return table
    if isinstance(node, list) and node:
        items: list[Any] = list(node)  # pyright: ignore[reportUnknownArgumentType]
        place = rng.randrange(len(items))
        if rng.random() < 0.1:
            del items[place]
        else:
            items[place] = spoil(rng, items[place])
        return items
    junk = [None, True, -1, 0, 3, 2**40, 1.5, "", "a", "<f8", "|O", "ns", "AAAA", [], {}, [None]]
    if isinstance(node, str) and node and rng.random() < 0.5:
        return flip(rng, node.encode()).decode("latin-1")
    return rng.choice(junk)


def test_mutated_frames_are_valid_or_invalid_and_nothing_else() -> None:
    rng = random.Random(5)
    sources = [wire(value) for value in CROSS.values()]
    # Large enough that their streams are segments, to be spoilt byte by byte.
    sources += [
        wire(pd.DataFrame({"n": range(900), "s": ["text"] * 900, "c": categories(["x"] * 900)})),
        wire(pa.table({"l": [["a", "b"]] * 500, "d": pa.array(["q"] * 500).dictionary_encode()})),
        wire(frame(pd.period_range("2020", periods=900, freq="D"),
        index=[f"k{i}" for i in range(900)])),
    ]  # fmt: skip
    invalid = 0
    for _ in range(1500):
        tree, segments = rng.choice(sources if rng.random() < 0.5 else sources[-3:])
        if rng.random() < 0.5 or not segments:
            tree = spoil(rng, tree)
        else:
            segments = [flip(rng, body) for body in segments]
        try:
            decode(tree, segments)
        except InvalidValue:
            invalid += 1
    assert invalid > 500
