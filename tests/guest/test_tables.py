"""Tables, columns and arrays are told by their library's facts, from few of their cells."""

import datetime as dt
import mmap
import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pytest

from py_code_mode.guest.snapshot import snapshot
from py_code_mode.guest.tables import EXACT_ROWS, SAMPLE_ROWS, runs

np: Any = numpy
pd: Any = pandas
pa: Any = pyarrow


if find_spec("polars") is not None:
    # its threads and their descriptors stay: they are there before any test that looks for leaks
    import_module("polars").DataFrame({"a": [1]}).lazy().collect_schema()


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {column["name"]: column for column in found["columns"]}


def test_a_frame_is_told_by_its_columns_and_both_ends() -> None:
    frame = pd.DataFrame(
        {
            "number": [1.5, None, -3.0] * 4,
            "count": range(12),
            "text": ["x", "y", "x"] * 4,
            "when": pd.date_range("2020", periods=12),
            "is": [True, False, True] * 4,
            "kind": pd.Categorical(["k"] * 12, categories=["k", "l"]),
            "some": pd.array([1, None, 3] * 4, dtype="Int64"),
        }
    )
    found = snapshot(frame, max_bytes=1600)
    assert found["type"].endswith(".DataFrame")
    assert found["shape"] == [12, 7]
    columns = by_name(found)
    assert columns["number"] == {
        **{"name": "number", "dtype": "float64", "nulls": 4, "min": -3.0, "max": 1.5}
    }
    assert columns["count"]["distinct"] == 12
    assert columns["text"]["top"] == {"x": 8, "y": 4}
    assert (columns["when"]["min"], columns["when"]["max"]) == ("2020-01-01", "2020-01-12")
    assert columns["is"]["top"] == {"True": 8, "False": 4}
    assert (columns["kind"]["top"], columns["kind"]["categories"]) == ({"k": 12}, 2)
    assert (columns["some"]["nulls"], columns["some"]["max"]) == (4, 3)
    assert found["head"][:2] == [
        [1.5, 0, "x", "2020-01-01", True, "k", 1],
        [None, 1, "y", "2020-01-02", False, "k", None],
    ]
    assert found["tail"][-1] == [-3.0, 11, "x", "2020-01-12", True, "k", 3]
    assert found["left_out"] == {
        "rows": 12 - len(found["head"]) - len(found["tail"]),
        "how": ".iloc[i:j]",
    }
    assert "index" not in found
    assert found["bytes_at_least"] > 0


def test_a_small_frame_is_told_whole() -> None:
    found = snapshot(pd.DataFrame({"a": [1, 2]}, index=["r", "s"]))
    assert found["head"] == [[1], [2]]
    assert found["index"] == "Index: r … s"
    assert "left_out" not in found


def test_the_index_is_told_unless_it_counts() -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    assert "index" not in snapshot(frame)
    assert snapshot(frame.set_axis([5, 6]))["index"] == "Index: 5 … 6"
    dates = pd.date_range("2020", periods=2, name="day")
    assert snapshot(frame.set_axis(dates))["index"] == "DatetimeIndex day: 2020-01-01 … 2020-01-02"
    two = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["l", "n"])
    assert snapshot(frame.set_axis(two))["index"] == "MultiIndex l, n: (a, 1) … (b, 2)"


def test_the_sample_size_is_the_wish() -> None:
    frame = pd.DataFrame({"a": range(100)})
    for wish in (0, 1, 3, 20):
        found = snapshot(frame, sample_size=wish)
        assert len(found.get("head", ())) == wish
        assert len(found.get("tail", ())) == min(2, wish)
    found = snapshot(frame, sample_size=1000, max_bytes=400)
    assert 20 < len(found["head"]) < 100
    assert found["left_out"]["rows"] == 100 - len(found["head"]) - len(found.get("tail", ()))


def test_every_column_is_named_before_any_is_described() -> None:
    frame = pd.DataFrame({f"measure {at} of this": np.arange(9.0) for at in range(30)})
    for max_bytes in (900, 1200, 2000, 4000):
        found = snapshot(frame, max_bytes=max_bytes)
        names = found.get("columns_by_dtype", {}).get("float64") or by_name(found)
        assert list(names) == list(frame.columns)
    found = snapshot(frame, max_bytes=2000)
    assert "0…8" in found["columns_by_dtype"]["float64"]["measure 3 of this"]


def test_a_very_wide_frame_counts_what_it_cannot_name() -> None:
    names = [f"{(at * 7919) % 10007}x" for at in range(5000)]
    frame = pd.DataFrame(np.ones((10, 5000)), columns=names)
    frame[names[7]] = "text"
    found = snapshot(frame)
    groups = found["columns_by_dtype"]
    text = str(frame.dtypes.iloc[7])
    assert {dtype: group["count"] for dtype, group in groups.items()} == {"float64": 4999, text: 1}
    assert groups[text]["names"] == [names[7]]
    told = sum(len(group["names"]) for group in groups.values())
    assert found["left_out"]["columns"] == 5000 - told
    assert ".columns" in found["left_out"]["how"]
    assert found["first_row"][names[0]] == 1.0


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([f"c{at}" for at in range(3000)], ["c0 … c2999"]),
        (list(range(3000)), ["0 … 2999"]),
        ([f"c{at:04}" for at in range(3000)], ["c0000 … c2999"]),
        (["id", *(f"x{at}" for at in range(998, 3000))], ["id", "x998 … x2999"]),
    ],
)
def test_numbered_names_are_told_by_their_ends(names: list[Any], told: list[str]) -> None:
    found = snapshot(pd.DataFrame(np.ones((2, len(names))), columns=names))
    assert found["columns_by_dtype"]["float64"]["names"] == told
    assert "columns" not in found["left_out"]


def test_duplicate_and_mixed_names_are_kept_apart() -> None:
    found = snapshot(pd.DataFrame([[1, "x", 2.5]], columns=["a", "a", ("b", 1)]))
    assert [column["name"] for column in found["columns"]] == ["a", "a", '["b",1]']
    found = snapshot(pd.DataFrame(np.ones((2, 200)), columns=["same"] * 200))
    assert found["columns_by_dtype"]["float64"]["count"] == 200


def test_cells_of_any_objects_are_told_without_comparing_them() -> None:
    class Cell:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("user code was called")

        __hash__ = __lt__ = __bool__ = __len__ = __eq__  # type: ignore[assignment]

    frame = pd.DataFrame({"o": pd.Series([Cell(), None, [1], "x", Cell()], dtype=object)})
    column = snapshot(frame)["columns"][0]
    assert column["nulls"] == 1
    assert sum(column["types"].values()) == 4


def test_a_subclass_of_a_frame_is_read_as_a_frame() -> None:
    def refuse(self: object, *args: object, **options: object) -> Any:
        raise AssertionError("user code was called")

    raising = {
        name: property(refuse)
        for name in ("shape", "dtypes", "columns", "index", "iloc", "attrs", "empty", "values")
    }
    methods = dict.fromkeys(
        ("__len__", "__getitem__", "__iter__", "memory_usage", "head", "isna", "__repr__"), refuse
    )
    frame = pd.DataFrame({"a": [1, 2]})
    Hostile = type("Hostile", (pd.DataFrame,), {**methods, **raising})
    hostile = Hostile.__new__(Hostile)
    vars(hostile).update(vars(frame))
    found = snapshot(hostile)
    assert found["type"].endswith("Hostile")
    assert (found["shape"], found["head"]) == ([2, 1], [[1], [2]])
    HostileSeries = type("HostileSeries", (pd.Series,), {**methods, "dtype": property(refuse)})
    series = HostileSeries.__new__(HostileSeries)
    vars(series).update(vars(pd.Series([1, 2], name="n")))
    found = snapshot(series)
    assert (found["name"], found["head"]) == ("n", [1, 2])
    Array = type("Array", (np.ndarray,), {**methods, "shape": property(refuse)})
    assert snapshot(np.arange(3).view(Array))["head"] == [0, 1, 2]


def test_a_series_is_told_like_a_column() -> None:
    found = snapshot(pd.Series([2, 1, 1] * 10, name="s"))
    assert (found["length"], found["dtype"], found["name"]) == (30, "int64", "s")
    assert (found["head"], found["tail"]) == ([2, 1, 1, 2, 1], [1, 1])
    assert (found["min"], found["max"], found["distinct"]) == (1, 2, 2)
    found = snapshot(pd.date_range("2020", periods=40))
    assert (found["min"], found["max"]) == ("2020-01-01", "2020-02-09")
    assert snapshot(pd.Categorical(["a", "b", "a"]))["top"] == {"a": 2, "b": 1}


def test_an_array_is_told_by_its_extremes() -> None:
    found = snapshot(np.arange(6).reshape(2, 3))
    assert (found["shape"], found["dtype"]) == ([2, 3], "int64")
    assert (found["min"], found["max"], found["head"]) == (0, 5, [0, 1, 2, 3, 4, 5])
    assert snapshot(np.array([1.0, np.nan, 3.0]))["nulls"] == 1
    assert snapshot(np.array(5))["value"] == 5
    structured = np.array([(1, 2.5)] * 20, dtype=[("x", "i4"), ("y", "f8")])
    assert snapshot(structured)["head"][0] == [1, 2.5]
    assert snapshot(np.array(["2020-05-01", "NaT"], dtype="M8[D]"))["max"] == "2020-05-01"
    masked = np.ma.masked_array([1, 900, 3], [0, 1, 0])
    found = snapshot(masked)
    assert (found["head"], found["max"], found["nulls"]) == ([1, None, 3], 3, 1)
    assert snapshot(np.array(["a", None, 5], dtype=object))["types"] == {"str": 1, "int": 1}


def test_arrow_is_told_like_a_frame() -> None:
    table = pa.table(
        {
            "a": [1, 2, None],
            "s": ["x", "y", "x"],
            "d": pa.array(["u", "v", "u"]).dictionary_encode(),
            "l": [[1], None, [2, 3]],
        }
    )
    for value in (table, table.to_batches()[0]):
        found = snapshot(value)
        columns = by_name(found)
        assert found["shape"] == [3, 4]
        assert columns["a"] == {"name": "a", "dtype": "int64", "nulls": 1, "min": 1, "max": 2}
        assert columns["s"]["top"] == {"x": 2, "y": 1}
        assert columns["d"]["top"] == {"u": 2, "v": 1}
        assert found["head"][2] == [None, "x", "u", [2, 3]]
    found = snapshot(table["a"])
    assert (found["length"], found["head"], found["nulls"]) == (3, [1, 2, None], 1)
    assert snapshot(pa.array([1.5] * 50))["left_out"]["how"] == ".slice(i, n)"


def test_polars_is_told_like_a_frame_and_a_query_is_not_run() -> None:
    pl: Any = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, 2, None], "s": ["x", "y", "x"], "d": [dt.date(2020, 1, 1)] * 3})
    found = snapshot(frame)
    columns = by_name(found)
    assert columns["a"] == {"name": "a", "dtype": "Int64", "nulls": 1, "min": 1, "max": 2}
    assert columns["s"]["top"] == {"x": 2, "y": 1}
    assert columns["d"]["min"] == "2020-01-01"
    assert found["head"][0] == [1, "x", "2020-01-01"]
    assert snapshot(frame["s"])["distinct"] == 2

    def refuse(batch: Any) -> Any:
        raise AssertionError("the query was run")

    query = frame.lazy().map_batches(refuse, schema={"z": pl.Int64})
    found = snapshot(query)
    assert found["columns"] == [{"name": "z", "dtype": "Int64"}]
    assert "not run" in found["lazy"]


def test_somebodys_own_array_type_is_not_asked() -> None:
    class OwnType(pd.api.extensions.ExtensionDtype):
        name = "own"
        type = object

        @classmethod
        def construct_array_type(cls) -> Any:
            return OwnArray

    class OwnArray(pd.api.extensions.ExtensionArray):
        dtype = OwnType()

        def __len__(self) -> int:
            return 3

        def __getitem__(self, item: Any) -> Any:
            if isinstance(item, slice):
                return self  # pandas itself takes views
            raise AssertionError("user code was asked for a value")

        def copy(self) -> Any:
            return self

        def view(self, dtype: Any = None) -> Any:
            return self

        def isna(self) -> Any:
            raise AssertionError("user code was asked")

        @property
        def nbytes(self) -> int:
            raise AssertionError("user code was asked")

    found = snapshot(pd.DataFrame({"a": OwnArray(), "b": [1, 2, 3]}))
    assert found["columns"][0]["dtype"].endswith("OwnType")
    assert found["columns"][1]["max"] == 3
    assert found["head"][0] == ["<…>", 1]


def test_statistics_are_exact_up_to_a_hundred_thousand_rows() -> None:
    values = np.zeros(EXACT_ROWS)
    values[12_345] = 7
    assert by_name(snapshot(pd.DataFrame({"a": values})))["a"]["max"] == 7
    assert "sampled" not in snapshot(values)
    found = snapshot(pd.DataFrame({"a": np.zeros(EXACT_ROWS + 1)}))
    assert found["sampled"] == SAMPLE_ROWS
    for length in (EXACT_ROWS + 1, 10_000_000):
        spread = runs(length)
        assert (spread[0][0], spread[-1][1]) == (0, length)
        assert sum(stop - start for start, stop in spread) == SAMPLE_ROWS
    for value in (
        pa.table({"a": np.arange(200_000)}),
        pa.table({"a": np.arange(200_000)})["a"],
        pd.Series(np.arange(200_000)),
        np.arange(200_000),
    ):
        found = snapshot(value)
        facts = found["columns"][0] if "columns" in found else found
        assert found["sampled"] == SAMPLE_ROWS
        assert (facts["min"], facts["max"]) == (0, 199_999)


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s*(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux tells touched pages")
@pytest.mark.parametrize("kind", ["frame", "array", "arrow"])
def test_few_cells_of_a_large_table_are_touched(tmp_path: Path, kind: str) -> None:
    height = 40_000_000
    path = tmp_path / "numbers"
    with path.open("wb") as file:
        file.truncate(8 * height)  # nothing is on the disk
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        mapped.madvise(mmap.MADV_RANDOM)  # no pages beside those that are asked for
    numbers = np.frombuffer(mapped, dtype="f8")
    value: Any = numbers
    if kind == "frame":
        value = pd.DataFrame(numbers.reshape(-1, 1), columns=["a"], copy=False)
    elif kind == "arrow":
        value = pa.table({"a": pa.Array.from_buffers(pa.float64(), height, [None, pa.py_buffer(mapped)])})  # fmt: skip  # noqa: E501
    assert resident(path) < 1_000_000
    assert snapshot(value)["sampled"] == SAMPLE_ROWS
    # 64 runs of three pages, and both ends
    assert resident(path) < 4_000_000


def test_only_told_columns_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    own = pd.DataFrame._ixs

    def count(self: Any, i: int, axis: int = 0) -> Any:
        taken.append(i)
        return own(self, i, axis=axis)

    monkeypatch.setattr(pd.DataFrame, "_ixs", count)
    snapshot(pd.DataFrame(np.ones((1000, 5000))))
    assert len(taken) <= 20


def test_nothing_is_imported_for_it() -> None:
    loaded = set(sys.modules)
    snapshot(pd.DataFrame({"a": [1]}))
    snapshot(np.arange(3))
    assert {name.partition(".")[0] for name in set(sys.modules) - loaded} <= {"pandas", "numpy"}
