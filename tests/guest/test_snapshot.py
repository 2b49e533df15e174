"""A snapshot is JSON, within its bytes and never an error, whatever it describes."""

# hypothesis' strategies of mixed types are what pyright calls unknown
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import io
import json
import math
import pathlib
import sys
import threading
import time
import types
import uuid
from typing import Any, NamedTuple

import attrs
import msgspec
import numpy
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py_code_mode.guest.snapshot import LEAST_BYTES, snapshot, snapshot_text

np: Any = numpy
pd: Any = pandas
pa: Any = pyarrow

BUDGETS = (64, 120, 200, 300, 600, 1200, 4000)


def checked(value: object, **options: Any) -> dict[str, Any]:
    """The snapshot, once it has been shown to be what is promised of any."""
    found = snapshot(value, **options)
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    assert len(text.encode("utf-8")) <= options.get("max_bytes", 1200)
    assert json.loads(text) == found
    assert found["type"]
    assert "undescribed" not in found
    assert snapshot_text(value, **options).startswith('{"type":"')
    return found


class Raises:
    def __repr__(self) -> str:
        raise SystemExit("no repr")


class Endless:
    def __repr__(self) -> str:
        return repr(self)


class Long:
    def __repr__(self) -> str:
        return "long " * 1_000_000


class Once:
    asked = 0

    def __repr__(self) -> str:
        Once.asked += 1
        return "x" * 5000


class LyingList(list[Any]):
    def __len__(self) -> int:
        raise AssertionError("user code was called")

    __iter__ = __getitem__ = __class__ = __len__  # type: ignore[assignment]


class LyingDict(dict[Any, Any]):
    def __len__(self) -> int:
        raise AssertionError("user code was called")

    __iter__ = __getitem__ = items = keys = values = get = __len__  # type: ignore[assignment]


class LyingText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise AssertionError("user code was called")

    __str__ = __iter__ = __getitem__ = encode = __hash__ = __eq__ = __len__  # type: ignore[assignment]


class Loud(type):
    """A metaclass all of whose code is a mistake to run."""

    def __hash__(cls) -> int:
        raise AssertionError("a metaclass was asked")

    __eq__ = __instancecheck__ = __subclasscheck__ = __hash__  # type: ignore[assignment]

    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError(f"a metaclass was asked for {name}")


def quiet_instance(kind: type) -> Any:
    return object.__new__(kind)


Shouting = Loud("Shouting", (), {"__repr__": lambda self: "quiet"})


class Pretends:
    """Its __class__ lies."""

    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Pretends()"


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Order:
    number: int
    lines: list[Any]


@dataclasses.dataclass(slots=True)
class Slotted:
    number: int = 1


@attrs.define
class Attrs:
    number: int = 1


class Struct(msgspec.Struct):
    number: int = 1


class Plain:
    def __init__(self) -> None:
        self.number, self._private = 1, 2

    def act(self, n: int, *, k: float = 1.5, **more: Any) -> str:
        """Act."""
        return f"{n}{k}{more}"


def function(a: int, b: Any = 2, /, c: Any = Raises, *args: Any, d: Any, e: str = "x") -> None:
    """Say what it does.

    More.
    """


async def coroutine() -> None: ...


LOOP: list[Any] = []
LOOP.append(LOOP)
TABLE: dict[str, Any] = {}
TABLE["me"] = [TABLE]


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


SURROGATES = pd.DataFrame(
    np.array([["\ud800"], ["\ud800"]], dtype=object),
    columns=pd.Index(["\udfff"], dtype=object),
    dtype=object,
)

EVERYTHING: list[Any] = [
    None, True, 5, -(2**70), 1 << 100_000, 1.5, -0.0, math.nan, math.inf, 1 + 2j, "", "text",
    "é" * 10_000, "\ud800" * 50, "\0\n" * 2000, '"\\' * 500, "😀" * 300, LyingText("x" * 500),
    b"", b"\xff" * 9000, bytearray(b"x"), memoryview(b"abc" * 100)[::2], [], [1, 2, 3],
    list(range(100_000)), [[[[[[1]]]]]], [{"a": [1, {"b": 2}]}] * 50, ("a",), {1, 2},
    frozenset("ab"), [math.nan] * 50, [1, math.nan, -math.inf, 2.5] * 20, [1 << 5000] * 30,
    {}, {"k": 1}, {1: "a", None: 2, (1, 2): 3, b"x": 4, 1.5: 5, Raises(): 7}, {True: 1},
    {"…": 1, **{str(i): [i] for i in range(50)}}, {"k" * 5000: "v" * 5000},
    {"\ud800": "\udfff"}, {str(i): i for i in range(999)}, {str(i): {"a": i} for i in range(99)},
    collections.OrderedDict(a=1), collections.Counter("abc"), collections.deque([1]), range(5),
    collections.defaultdict(list, a=[1]), types.MappingProxyType({"a": 1}),
    dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
    dt.timedelta(1), decimal.Decimal("1.50"), uuid.UUID(int=5), pathlib.PurePosixPath("/a"),
    object(), int, len, json, Exception("x", Raises()), lambda: None, function, coroutine,
    Plain().act, Plain, Colour, Colour.RED, Level.LOW, [Colour.RED, Level.LOW], Loud, Shouting,
    Raises(), Endless(), Long(), Pretends(), [Pretends()] * 3, quiet_instance(Shouting),
    [quiet_instance(Shouting), 1, None] * 9, LyingList([1, 2]), LyingDict(a=1), LOOP, TABLE,
    nest(5000),
    [Raises()] * 3, {"a": Long()}, [Endless()], {"a": LyingDict(b=LyingList([LyingText("c")]))},
    Point(1, 2), Order(1, [Raises(), LOOP]), Slotted(), Attrs(), Struct(), Plain(),
    types.SimpleNamespace(a=1), iter([1]), (x for x in "ab"), type("Ünï", (), {})(),
    type("X" * 5000, (), {})(), np.arange(10), np.ones((50, 50)), np.array([], dtype="f8"),
    np.array(["a", None, Raises()], dtype=object), np.array([1, np.nan]), np.ones((2, 3, 4)).T,
    np.array("2020", dtype="M8[D]"), np.array(["2020", "NaT"], dtype="M8[s]"), np.array(5),
    np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]), np.float64(1.5), np.longdouble(1),
    np.array(["a", "b"]), np.array([b"a"]), np.array([True, False]), np.array([1 + 2j]),
    np.ma.masked_array([1, 2], [0, 1]), np.int8(1), np.datetime64("2020"),
    np.zeros(0, dtype=[]), np.zeros((0, 5)), np.array([np.nan] * 3), np.float16(1),
    pd.DataFrame(), pd.DataFrame({"a": [1, None], "b": ["x", Long()]}),
    pd.DataFrame(np.ones((3, 2000))), pd.DataFrame([[1, 2]], columns=["a", "a"]),
    pd.DataFrame([[1, 2, 3]], columns=["a", ("b", 1), None]),
    pd.DataFrame(np.ones((2, 40)), columns=["same"] * 40),
    pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
    pd.DataFrame({"d": pd.date_range("2020", periods=3), "c": pd.Categorical(["x"] * 3)}),
    pd.DataFrame({"a": [{1}, [Raises()]]}), pd.DataFrame({"a": [np.nan, np.nan]}),
    pd.DataFrame({"a": [np.inf, -np.inf]}), SURROGATES,
    pd.DataFrame(index=range(5)), pd.DataFrame(columns=["a", "b"]),
    pd.DataFrame({f"column {i}": [f"text {i}" * 50] * 3 for i in range(30)}),
    pd.DataFrame({Raises(): [1], Long(): [2]}), pd.Series([1, None, 3], name="s"),
    pd.Series(dtype="f8"), pd.Series([1, 2], name=Raises()), pd.Series(["a", None, 1, Raises()]),
    pd.Index(["a"]), pd.MultiIndex.from_product([[1, 2], ["a", "b"]]), pd.Timestamp("2020"),
    pd.interval_range(0, 3), pd.array([1, None], dtype="Int64"), pd.Categorical(["a"]),
    pd.NaT, pd.NA, pd.Timedelta(1), pd.Period("2020-01"), pd.Series(pd.arrays.SparseArray([0, 1])),
    pa.table({"a": [1]}), pa.array([1]), [pd.DataFrame({"a": [1]})], pa.table({}), pa.nulls(3),
    pa.table([[1], [2]], names=["a", "a"]), pa.array([[1], None]), pa.array([{"a": 1}]),
    pa.scalar(1), pa.schema([("a", pa.int64())]), pa.record_batch({"a": ["x", "x"]}),
]  # fmt: skip


@pytest.mark.parametrize("value", range(len(EVERYTHING)), ids=lambda at: f"{at}")
def test_any_value_has_a_description_within_any_budget(value: int) -> None:
    for max_bytes in BUDGETS:
        checked(EVERYTHING[value], max_bytes=max_bytes)
    checked(EVERYTHING[value], sample_size=0)
    checked(EVERYTHING[value], sample_size=1000, max_bytes=3000)


def test_all_of_them_in_one_container() -> None:
    cells = np.empty(len(EVERYTHING), dtype=object)
    for at, item in enumerate(EVERYTHING):
        cells[at] = item
    for max_bytes in (120, 1200, 20_000):
        checked(EVERYTHING, max_bytes=max_bytes)
        checked({f"k{at}": item for at, item in enumerate(EVERYTHING)}, max_bytes=max_bytes)
        checked(pd.Series(cells, dtype=object), max_bytes=max_bytes)
        checked(cells, max_bytes=max_bytes)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None))
    | st.binary() | st.dates() | st.decimals() | st.uuids() | st.complex_numbers()
)  # fmt: skip
keys = st.text() | st.integers() | st.none() | st.floats() | st.tuples(st.integers())
nested = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=30)
        | st.dictionaries(keys, inner, max_size=30)
        | st.tuples(inner, inner)
        | st.lists(st.fixed_dictionaries({"a": inner}, optional={"b": inner}), max_size=30)
    ),
    max_leaves=60,
)
columns = st.text(max_size=30) | st.integers() | st.tuples(st.text(), st.integers())


@settings(max_examples=200)
@given(nested, st.integers(LEAST_BYTES, 4000), st.integers(0, 20))
def test_nested_values(value: object, max_bytes: int, sample_size: int) -> None:
    checked(value, max_bytes=max_bytes, sample_size=sample_size)


@settings(max_examples=100)
@given(st.lists(columns, max_size=40), st.integers(0, 8), st.data())
def test_frames(names: list[Any], height: int, data: st.DataObject) -> None:
    kinds = [st.floats(), st.integers(-9, 9), st.text(max_size=50), scalars, st.booleans()]
    cells = [
        data.draw(st.lists(kinds[at % 5], min_size=height, max_size=height))
        for at in range(len(names))
    ]
    frame = pd.DataFrame(dict(enumerate(cells)), index=range(height))
    frame.columns = pd.Index(names, tupleize_cols=False, dtype=object)
    found = checked(frame, max_bytes=data.draw(st.integers(LEAST_BYTES, 4000)))
    assert found.get("shape", [height, len(names)]) == [height, len(names)]


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        snapshot(1, max_bytes=63)


def test_small_values_are_told_in_full() -> None:
    assert snapshot(5) == {"type": "int", "value": 5}
    assert snapshot([1, "a"]) == {"type": "list", "length": 2, "items": [1, "a"]}
    assert snapshot({"a": {"b": 1}})["items"] == {"a": {"b": 1}}
    assert snapshot("text") == {"type": "str", "length": 4, "head": "text"}
    assert snapshot(math.nan)["value"] == "nan"
    assert snapshot(2**70)["value"] == str(2**70)
    assert str(snapshot(-0.0)["value"]) == "-0.0"
    assert snapshot(dt.date(2020, 1, 2)) == {"type": "datetime.date", "value": "2020-01-02"}
    assert "left_out" not in snapshot([{"a": [1, (2, 3)], "b": None}])


def test_a_long_text_shows_both_ends_and_counts() -> None:
    found = checked("é\n" * 9000 + "end")
    assert (found["length"], found["lines"]) == (18_003, 9001)
    assert found["head"].startswith("é\né")
    assert found["tail"].endswith("end")
    shown = len(found["head"]) + len(found["tail"])
    assert found["left_out"] == {"characters": 18_003 - shown, "how": "[i:j]"}


def test_bytes_are_told_by_what_they_begin_with() -> None:
    found = checked(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes([0, 0, 2, 128, 0, 0, 1, 224]) * 9)
    assert found["kind"] == "PNG 640x480"
    assert found["head"].startswith("89504e47")
    assert checked(b"hello")["text"] == "hello"


def test_a_list_of_records_is_told_by_its_keys() -> None:
    records = [{"id": at, "name": "x"} if at % 3 else {"id": str(at)} for at in range(300)]
    found = checked(records)
    assert found["item_types"] == {"dict": 300}
    assert found["keys"] == {"id": "str|int", "name": "str in 200 of 300"}
    assert found["items"][:2] == [{"id": "0"}, {"id": 1, "name": "x"}]
    assert found["tail"][-1] == {"id": 299, "name": "x"}
    assert found["left_out"] == {"items": 300 - len(found["items"]) - 2, "how": "[i:j]"}


def test_nested_records_show_one_and_tell_of_the_others() -> None:
    value: Any = {"meta": {"n": 1}, "rows": [{"id": at, "tags": ["a"] * at} for at in range(100)]}
    found = checked(value, max_bytes=300)
    assert found["items"]["meta"] == {"n": 1}
    assert found["items"]["rows"][0] == {"id": 0, "tags": []}
    assert found["items"]["rows"][-1].endswith("more, all with these keys")
    assert found["left_out"]["parts"] > 0
    value["rows"][7]["extra"] = 1
    assert "extra 1" in json.dumps(checked(value, max_bytes=400))


def test_numbers_in_a_list_have_extremes() -> None:
    found = checked([3, 1.5, -7] * 100)
    assert (found["min"], found["max"]) == (-7, 3)
    assert found["item_types"] == {"int": 200, "float": 100}


def test_what_is_sampled_is_said() -> None:
    found = checked(list(range(1_000_000)))
    assert found["sampled"] == 1000
    assert (found["min"], found["max"]) == (0, 999_999)
    assert "sampled" not in checked(list(range(100_000)))
    assert checked(dict.fromkeys(range(5000)))["sampled"] == 1000


def test_more_keys_are_preferred_to_more_of_each() -> None:
    value = {f"key {at}": {"inner": list(range(50))} for at in range(20)}
    found = checked(value, max_bytes=900)
    assert len(found["items"]) == 20
    assert "left_out" in found


def test_a_dict_of_many_alike_shows_some() -> None:
    found = checked({f"k{at}": at for at in range(500)})
    assert found["key_types"] == {"str": 500}
    assert found["value_types"] == {"int": 500}
    assert len(found["items"]) == 10
    assert found["left_out"]["items"] == 490


def test_objects_are_told_by_their_fields() -> None:
    assert checked(Point(1, 2))["fields"] == {"x": 1, "y": 2}
    assert checked(Order(1, ["a"]))["fields"] == {"number": 1, "lines": ["a"]}
    for value in (Slotted(), Attrs(), Struct()):
        assert checked(value)["fields"] == {"number": 1}
    assert checked(Plain())["attributes"] == {"number": 1}
    assert checked([Point(1, 2)])["items"] == [{"type": "Point", "x": 1, "y": 2}]
    found = checked(Colour.RED)
    assert (found["name"], found["value"]) == ("RED", 1)
    assert checked(Colour)["members"] == {"RED": 1, "BLUE": "b"}


def test_pydantic_models_are_told_by_their_fields() -> None:
    pydantic: Any = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", number=(int, ...), text=(str, "x"))
    assert checked(model(number=1))["fields"] == {"number": 1, "text": "x"}


def test_code_is_told_by_how_it_is_called() -> None:
    found = checked(function)
    assert found["signature"] == (
        "function(a: int, b: Any=2, /, c: Any=…, *args, d: Any, e: str='x')"
    )
    assert found["doc"] == "Say what it does."
    assert checked(coroutine)["signature"].startswith("async coroutine(")
    assert checked(Plain().act)["signature"].startswith("Plain.act(self, n")
    found = checked(Plain)
    assert found["methods"] == ["act"]
    assert checked(len)["signature"] == "len(obj, /)"
    assert checked(json)["name"] == "json"


def test_an_exception_is_told_with_where_it_was_raised() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer", 5) from error
    except ValueError as error:
        found = checked(error)
    assert found["args"] == ["outer", 5]
    assert found["cause"] == "KeyError"
    assert found["raised_in"].startswith("test_an_exception_is_told")


def test_cycles_are_said() -> None:
    assert checked(LOOP)["items"] == ["<cycle: list of 1>"]
    assert checked(TABLE)["items"] == {"me": ["<cycle: dict of 1>"]}


def test_user_code_is_asked_once() -> None:
    Once.asked = 0
    value = Once()
    found = checked([value, value], max_bytes=1000)
    assert Once.asked == 2  # snapshot and snapshot_text
    assert "xxx" in found["items"][0]


def test_hanging_reprs_cost_a_moment_together() -> None:
    asked = threading.Event()

    class Hangs:
        def __repr__(self) -> str:
            asked.set()
            while True:
                pass

    began = time.monotonic()
    found = snapshot({"a": [Hangs(), Hangs()], "b": Hangs()})
    assert asked.is_set()
    assert time.monotonic() - began < 5
    assert "did not end" in json.dumps(found)


def test_semantics_stand_beside_what_they_explain() -> None:
    frame = pd.DataFrame({"t": [1.5], "p": [2]})
    semantics = {"t": {"description": "temperature", "unit": "K"}, "p": "pressure", "none": "x"}
    found = checked(frame, semantics=semantics)
    assert found["columns"][0]["description"] == "temperature"
    assert found["columns"][0]["unit"] == "K"
    assert found["columns"][1]["description"] == "pressure"
    wide = pd.DataFrame(np.ones((3, 30)), columns=[f"column {at} here" for at in range(30)])
    found = checked(wide, semantics={"column 7 here": {"description": "seven", "unit": "m"}})
    assert found["semantics"] == {"column 7 here": "seven (m)"}
    assert checked({"a": 1}, semantics={"a": "first"})["semantics"] == {"a": "first"}
    assert checked(Order(1, []), semantics={"number": "no."})["semantics"] == {"number": "no."}
    series = pd.Series([1], name="s")
    assert checked(series, semantics={"s": {"unit": "m"}})["unit"] == "m"
    hostile = {"t": "\ud800" * 5000, "p": {"unit": 5, "description": Long()}}
    for max_bytes in BUDGETS:
        checked(frame, semantics=hostile, max_bytes=max_bytes)


def test_models_are_told_by_what_was_set_and_learnt() -> None:
    linear: Any = pytest.importorskip("sklearn.linear_model")

    class Own(linear.LogisticRegression):
        def get_params(self, deep: bool = True) -> Any:
            raise AssertionError("user code was called")

        __repr__ = get_params

    for kind in (linear.LogisticRegression, Own):
        model = kind(C=2.0)
        found = checked(model)
        assert found["fitted"] is False
    assert checked(linear.LogisticRegression(C=2.0))["params"] == {"C": 2.0}
    model = linear.LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    found = checked(model)
    assert found["fitted"] is True
    assert found["attributes"]["coef_"] == "<numpy.ndarray 1 x 1>"


def test_pictures_are_told_by_size_and_figures_by_what_is_drawn() -> None:
    pillow: Any = pytest.importorskip("PIL.Image")
    picture = pillow.new("RGB", (64, 48))
    found = checked(picture)
    assert (found["size"], found["mode"]) == ([64, 48], "RGB")
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    assert checked(stream.getvalue())["kind"] == "JPEG 64x48"
    figures: Any = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    axes = figure.subplots()
    axes.plot([1, 2], label="line")
    axes.set_title("T")
    axes.set_xlabel("x")
    axes.legend()
    found = checked(figure)
    assert found["axes_count"] == 1
    assert found["axes"][0]["title"] == "T"
    assert found["axes"][0]["drawn"] == {"Line2D": 1}
    assert found["axes"][0]["legend"] == ["line"]
    assert checked(axes)["x"] == "x"


def test_a_library_that_only_looks_like_one_is_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("polars")
    vars(fake)["DataFrame"] = 5
    monkeypatch.setitem(sys.modules, "polars", fake)
    assert checked(Raises())["repr"].endswith("raises SystemExit>")
