"""Arrays and tables cross unaltered or are refused; forged ones are invalid and nothing worse."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import base64
import datetime as dt
import decimal
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py_code_mode.guest.errors import ValueNotPortable
from py_code_mode.guest.values import InvalidValue, MissingHere, decode, encode
from py_code_mode.guest.wire import FrameReader, pack

from ..sample_values import ONLY_IN_PYTHON, SAMPLES, same

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


def across(value: object) -> Any:
    """The value as it comes out of a frame, over sealed memory where it is large."""
    segments: list[Any] = []
    tree = encode(value, segments, for_wire=True)
    buffers, fds = pack(json.dumps(tree).encode(), segments)
    (frame,) = FrameReader().feed(b"".join(map(bytes, buffers)), fds)
    return decode(msgspec.json.decode(frame.header), frame.segments, writable=True)


def frame(column: Any, **options: Any) -> Any:
    return pd.DataFrame({"a": column}, **options)


CROSS = sorted(set(SAMPLES) - set(ONLY_IN_PYTHON))


def test_there_are_enough_kinds() -> None:
    assert len(CROSS) >= 67


@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("writable", [False, True])
def test_it_comes_back_exactly(name: str, writable: bool) -> None:
    value = SAMPLES[name]()
    assert same(round_trip(value, writable=writable), value)
    assert same(value, SAMPLES[name]())


@pytest.mark.parametrize("name", CROSS)
def test_it_comes_back_exactly_across_the_boundary(name: str) -> None:
    value = SAMPLES[name]()
    assert same(across(value), value)
    assert same(across([value, {"k": value}]), [value, {"k": value}])
    assert same(value, SAMPLES[name]())


@pytest.mark.parametrize("name", ONLY_IN_PYTHON)
@pytest.mark.parametrize("for_wire", [False, True])
def test_what_would_change_is_refused_and_says_what(name: str, for_wire: bool) -> None:
    value = SAMPLES[name]()
    with pytest.raises(ValueNotPortable, match=ONLY_IN_PYTHON[name]):
        encode(value, [], for_wire=for_wire)
    with pytest.raises(ValueNotPortable):
        encode({"in": [value]}, [], for_wire=for_wire)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.asarray(np.rec.array([(1, 2)])), "record"),
        (np.zeros(3, dtype="V0"), "dtype"),
        (type("Mine", (pd.DataFrame,), {})({"a": [1]}), "Mine"),
        (pa.RunEndEncodedArray.from_arrays([3], ["a"]), "run_end"),
        (pa.array(["x"], pa.string_view()), "string_view"),
        (
            pa.ExtensionArray.from_storage(
                pa.opaque(pa.int8(), "t", "v"), pa.array([1], pa.int8())
            ),
            "extension",
        ),
        (pa.array([{}], pa.struct([])), "struct"),
        (pa.array([[None]], pa.list_(pa.null())), "null"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_looks_like_the_known_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueNotPortable, match=said):
        encode(value, [])


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
    made = pd.DataFrame(
        {
            "i": [1, 2],
            "f": [1.5, 2.5],
            "d": pd.to_datetime(["2020-01-01", "2020-01-02"]),
            "s": ["x", "y"],
        }
    )
    for many in (made, pd.DataFrame(np.ones((3, 200)))):
        back = round_trip(many, writable=True)
        for column in back.columns:
            back.loc[0, column] = back.loc[1, column]
        back.iloc[:, 0] += 1
        assert same(round_trip(back), back)


def test_numbers_are_views_of_a_writable_segment() -> None:
    tree, segments = wire(frame(np.arange(10_000.0)))
    shared = bytearray(segments[0])
    back = decode(tree, [shared], writable=True)
    back.loc[0, "a"] = 42.5
    assert decode(tree, [shared])["a"][0] == 42.5


def test_frame_of_numbers_keeps_its_block_and_its_order() -> None:
    by_rows = np.arange(60_000.0).reshape(6000, 10)
    for made in (by_rows, np.asfortranarray(by_rows), by_rows[::2], by_rows[:, 2:9], by_rows[:1]):
        for kind in ("f8", "f4", "f2", "i8", "u2", "?"):
            value = pd.DataFrame(made).astype(kind)
            back = across(value)
            assert same(back, value)
            assert len(back._mgr.blocks) == 1
            if value.to_numpy().flags.c_contiguous:
                assert back.to_numpy().flags.c_contiguous


def test_frame_of_other_kinds_has_no_block() -> None:
    tree = encode(pd.DataFrame({"a": [1], "b": ["x"]}), [], for_wire=True)
    assert "block" not in json.dumps(tree)
    tree = encode(pd.DataFrame({"a": [1.5]}), [])
    assert "block" not in json.dumps(tree), "a file that other programs read"


def address(array: Any) -> int:
    return array.__array_interface__["data"][0]


def test_numbers_are_the_receivers_memory_and_can_be_written_to() -> None:
    rows = 1_000_000
    days = pd.Timestamp("2020") + pd.to_timedelta(np.arange(rows), "s")
    mixed = pd.DataFrame({"n": np.arange(rows), "f": np.ones(rows), "b": True, "d": days})
    for value in (pd.DataFrame(np.ones((rows, 3))), mixed, mixed["f"], np.ones(rows)):
        segments: list[Any] = []
        tree = encode(value, segments, for_wire=True)
        buffers, fds = pack(b"{}", segments)
        (received,) = FrameReader().feed(b"".join(map(bytes, buffers)), fds)
        memory = np.frombuffer(received.segments[0], "u1")
        back = decode(tree, received.segments, writable=True)
        columns = [back[c].to_numpy() for c in back] if isinstance(back, pd.DataFrame) else [back]
        for column in columns:
            assert address(memory) <= address(np.asarray(column)) < address(memory) + memory.nbytes
        if isinstance(back, pd.DataFrame):
            for column in back.columns:
                back.loc[0, column] = back.loc[rows - 1, column]
            assert back.iloc[0].tolist() == back.iloc[-1].tolist()
        elif isinstance(back, pd.Series):
            back.iloc[0] = 5.0
        else:
            back[0] = 5.0
        assert not same(back, value) or isinstance(value, pd.DataFrame)
    assert mixed["n"][0] == 0
    assert mixed["f"].sum() == rows


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
INSTANT = st.integers(-(2**62), 2**62)
COLUMNS: dict[str, tuple[Any, Any]] = {
    "int64": (st.integers(-(2**63), 2**63 - 1), lambda cells: np.array(cells, "i8")),
    "uint8": (st.integers(0, 255), lambda cells: np.array(cells, "u1")),
    "float64": (st.floats(), lambda cells: np.array(cells, "f8")),
    "float32": (st.floats(width=32), lambda cells: np.array(cells, "f4")),
    "bool": (st.booleans(), lambda cells: np.array(cells, "?")),
    "str": (st.none() | TEXT, lambda cells: pd.array(cells, dtype="str")),
    "objects": (st.none() | TEXT, lambda cells: pd.Series(cells, dtype=object).array),
    "string[python]": (st.none() | TEXT, lambda cells: pd.array(cells, dtype="string[python]")),
    "category": (
        st.none() | st.sampled_from("xyz"),
        lambda cells: pd.Categorical(cells, categories=["z", "y", "x"]),
    ),
    "Int64": (
        st.none() | st.integers(-(2**63), 2**63 - 1),
        lambda cells: pd.array(cells, dtype="Int64"),
    ),
    "boolean": (st.none() | st.booleans(), lambda cells: pd.array(cells, dtype="boolean")),
    "datetime64[ns]": (INSTANT, lambda cells: np.array(cells, "i8").view("M8[ns]")),
    "timedelta64[us]": (INSTANT, lambda cells: np.array(cells, "i8").view("m8[us]")),
    "zoned": (
        INSTANT,
        lambda cells: (
            pd.DatetimeIndex(np.array(cells, "i8").view("M8[ns]"), tz="UTC")
            .tz_convert("Asia/Tokyo")
            .array
        ),
    ),
}


@st.composite
def made_frames(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(0, 12))

    def cells(kind: str) -> Any:
        strategy, build = COLUMNS[kind]
        return build(draw(st.lists(strategy, min_size=rows, max_size=rows)))

    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), max_size=6))
    if draw(st.booleans()):
        kinds = kinds[:1] * len(kinds)
    names = draw(st.lists(TEXT, min_size=len(kinds), max_size=len(kinds), unique=True))
    indexes = draw(st.lists(st.sampled_from(("int64", "str", "category", "zoned")), max_size=2))
    levels = [cells(kind) for kind in indexes]
    value = pd.DataFrame(dict(enumerate(map(cells, kinds))), index=range(rows))
    value.columns = pd.Index(names, dtype="str")
    if len(levels) == 1:
        value.index = pd.Index(levels[0], name=draw(TEXT))
    elif levels:
        value.index = pd.MultiIndex.from_arrays(levels, names=draw(st.tuples(TEXT, st.none())))
    return value


@settings(max_examples=150)
@given(made_frames())
def test_made_frames_come_back_exactly(value: Any) -> None:
    assert same(across(value), value)
    assert same(round_trip(value), value)


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
        *(
            ["DataFrame", 1, ["range", [0, 1, 1], None], block, [labels, {}, True], None]
            for block, labels in (
                (["block", "<f8", "C", "AAAAAAAAAAA="], ["range", [0, 2, 1], None]),
                (["block", "<f8", "C", "AAAAAAAAAAA="], ["range", [0, 0, 1], None]),
                (["block", "<f8", "C", ""], ["range", [0, 0, 1], None]),
                (["block", "<f8", "K", "AAAAAAAAAAA="], ["range", [0, 1, 1], None]),
                (["block", "<f8", "C"], ["range", [0, 1, 1], None]),
                (["block", "<f8", "C", "AAAA"], ["range", [0, 1, 1], None]),
                (["block", "|O", "C", "AAAAAAAAAAA="], ["range", [0, 1, 1], None]),
                (["block", "<M8[ns]", "C", "AAAAAAAAAAA="], ["range", [0, 1, 1], None]),
                (["block", "|b1", "C", "Bw=="], ["range", [0, 1, 1], None]),
            )
        ),
        [
            "DataFrame", 2**40, ["range", [0, 2**40, 1], None], ["block", "<f8", "C", ""],
            [["range", [0, 1, 1], None], {}, True], None,
        ],
        ["Series", 1, ["range", [0, 1, 1], None], ["block", "<f8", "C", "AAAAAAAAAAA="],
         [None, {}, True], None],
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
    for value in (frame(pd.Categorical([1, 2])), pd.MultiIndex.from_arrays([[1, 2], [1.5, 2.5]])):
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
    sources = [wire(SAMPLES[name]()) for name in CROSS]
    # Large enough that their streams are segments, to be spoilt byte by byte.
    sources += [
        wire(frame(pd.Categorical(["x"] * 900)).assign(n=range(900), s="text")),
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


SPOILER = r"""
import json, pickle, random, sys, warnings
import numpy as np, pandas as pd, pyarrow as pa
from py_code_mode.guest.values import InvalidValue, decode, encode

warnings.simplefilter("ignore")
rng = random.Random(int(sys.argv[1]))
rows = 700
mixed = pd.DataFrame(
    {
        "n": np.arange(rows), "f": np.ones(rows), "b": np.arange(rows) % 2 == 0,
        "s": pd.array([f"text {n}" for n in range(rows)], dtype="str"),
        "o": pd.Series(["some text", None] * (rows // 2), dtype=object),
        "c": pd.Categorical(["x", "y"] * (rows // 2)),
        "d": pd.to_datetime(np.arange(rows), unit="s"),
        "i": pd.array([None, 1] * (rows // 2), dtype="Int64"),
    },
    index=pd.MultiIndex.from_product([range(rows // 2), ["a", "b"]]),
)
table = pa.table({
    "l": [["a", "b"], None] * 300, "d": pa.array(["q", "r"] * 300).dictionary_encode(),
    "t": [{"k": 1.5, "j": "x"}, None] * 300,
    "m": pa.array([[("k", 1)]] * 600, pa.map_("string", "int8")),
    "y": [b"bytes", None] * 300, "e": pa.array([1, None] * 300, pa.decimal128(10, 2)),
})
pieces = pa.table({"a": pa.chunked_array([["x"] * 500, [], ["y", None] * 300])})

def taken(value):
    segments = []
    tree = encode(value, segments)
    return json.loads(json.dumps(tree)), [bytes(segment) for segment in segments]

sources = [taken(value) for value in (mixed, table, pieces, mixed["s"], table.column("l").chunk(0))]
assert all(segments for _, segments in sources)

def spoil(body, other):
    spoilt = bytearray(body)
    kind = rng.random()
    if kind < 0.6:
        for _ in range(rng.choice((1, 1, 2, 4, 32))):
            # lengths and offsets sit in what comes first: half of the blows go there
            reach = len(spoilt) if rng.random() < 0.5 else min(len(spoilt), 3000)
            spoilt[rng.randrange(reach)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind < 0.8:
        del spoilt[rng.randrange(len(spoilt)):]
    else:
        at, size = rng.randrange(len(spoilt)), rng.randrange(1, 400)
        of = rng.randrange(len(other))
        spoilt[at:at + size] = other[of:of + rng.choice((size, rng.randrange(400)))]
    return bytes(spoilt)

counts = {"refused": 0, "taken": 0}
for _ in range(1000):
    tree, segments = rng.choice(sources)
    other = rng.choice(rng.choice(sources)[1])
    segments = [spoil(body, other) for body in segments]
    try:
        value = decode(tree, segments, writable=rng.random() < 0.5)
    except InvalidValue:
        counts["refused"] += 1
        continue
    counts["taken"] += 1
    try:
        repr(value)
        pickle.dumps(value)
        value.to_pylist() if hasattr(value, "to_pylist") else value.copy(deep=True)
    except Exception:
        pass  # what a valid value says of itself is its own affair; that it is read is not
print(json.dumps(counts))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_spoilt_arrow_segments_are_refused_or_safe_to_read(seed: int) -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SPOILER, str(seed)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.returncode == 0, finished.stderr
    counts = json.loads(finished.stdout)
    assert counts["refused"] + counts["taken"] == 1000
    assert counts["refused"] > 300
