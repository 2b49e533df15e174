"""Stored values come back as they were, type and all; what no format keeps is refused."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy
import pandas
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from py_code_mode.handles import SessionCache
from py_code_mode.handles.spill import Unspillable, decode, encode

from ..sample_values import SAMPLES, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Their stubs know less than these tests ask of them.
np: Any = numpy
pd: Any = pandas
pa: Any = pyarrow


def through_memory(value: object, spill_format: Any = "arrow") -> Any:
    content = encode(value, spill_format)
    data = memoryview(bytearray(b"".join(content.parts)))
    assert data.nbytes == content.size
    return decode(content.codec, data, content.detail)


@pytest.mark.parametrize("name", SAMPLES)
def test_it_comes_back_from_its_file_as_it_was(name: str, tmp_path: Path) -> None:
    made = SAMPLES[name]
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("value", made())
        cache.put("other", None)
        info = cache.info("value")
        assert not info.is_hot
        assert info.stays is None
        assert same(cache.get("value"), made())
        if not info.in_use:  # a copy: it can be changed in memory, and stored again as it is then
            cache.get("other")
            assert same(cache.get("value"), made())
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        assert same(cache.get("value"), made())


def test_there_are_at_least_67_kinds() -> None:
    assert len(SAMPLES) >= 67


# -- generated frames ---------------------------------------------------------------------------

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
_TEXT = st.text(max_size=5)
_ROWS = st.integers(0, 12)
_NANOSECONDS = st.integers(-(2**62), 2**62)


def _listed(cells: st.SearchStrategy[Any], count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(cells, min_size=count, max_size=count)


def _numbers(count: int) -> st.SearchStrategy[Any]:
    kinds = ["i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "bool", "M8[ns]", "M8[s]", "m8[ms]"]
    return st.sampled_from(kinds).flatmap(
        lambda kind: (
            arrays(kind, count)
            if kind[0] not in "Mm"
            else _listed(_NANOSECONDS, count).map(lambda at: np.array(at, "i8").view(kind))
        )
    )


def _columns(count: int) -> st.SearchStrategy[Any]:
    """A column of so many rows, of any kind that pandas has."""
    maybe_text = st.none() | _TEXT
    return st.one_of(
        _numbers(count),
        _listed(maybe_text, count).map(lambda cells: pd.array(cells, dtype="str")),
        _listed(maybe_text, count).map(lambda cells: pd.array(cells, dtype="string[python]")),
        _listed(maybe_text, count).map(lambda cells: pd.Series(cells, dtype=object).array),
        _listed(st.none() | st.integers(-128, 127), count).map(
            lambda cells: pd.array(cells, dtype="Int8")
        ),
        _listed(st.none() | st.booleans(), count).map(
            lambda cells: pd.array(cells, dtype="boolean")
        ),
        _listed(st.none() | st.floats(allow_nan=False), count).map(
            lambda cells: pd.array(cells, dtype="Float64")
        ),
        st.tuples(_listed(st.sampled_from([None, "x", "y", "z"]), count), st.booleans()).map(
            lambda made: pd.Categorical(made[0], ["z", "y", "x", "unused"], ordered=made[1])
        ),
        _listed(st.sampled_from([None, 1, 2]), count).map(pd.Categorical),
        _listed(st.datetimes(), count).map(
            lambda cells: pd.array(
                pd.DatetimeIndex(cells, dtype="datetime64[us]").tz_localize(
                    "Europe/Berlin", ambiguous="NaT", nonexistent="NaT"
                )
            )
        ),
        _listed(st.integers(-1000, 1000), count).map(
            lambda cells: pd.PeriodIndex.from_ordinals(cells, freq="M").array
        ),
        # what Arrow would alter
        _listed(st.none() | st.integers() | _TEXT | st.floats(), count).map(
            lambda cells: pd.Series(cells, dtype=object).array
        ),
        _listed(st.lists(st.integers(0, 5), max_size=2), count).map(
            lambda cells: pd.Series(cells, dtype=object).array
        ),
        _listed(st.complex_numbers(allow_nan=False), count).map(
            lambda cells: np.array(cells, "c16")
        ),
        _listed(st.dates(), count).map(lambda cells: pd.Series(cells, dtype=object).array),
    )


def _indexes(count: int) -> st.SearchStrategy[Any]:
    names = st.none() | _TEXT | st.integers() | st.tuples(_TEXT, st.integers())
    return st.one_of(
        names.map(lambda name: pd.RangeIndex(count, name=name)),
        st.tuples(_columns(count), names).map(lambda made: _index(*made)),
        st.sampled_from(["D", "h", "MS", "2W"]).map(
            lambda freq: pd.date_range("2020", periods=count, freq=freq)
        ),
        st.tuples(_listed(st.sampled_from("ab"), count), _listed(st.integers(0, 3), count)).map(
            lambda made: pd.MultiIndex.from_arrays(made, names=["x", None])
        ),
    )


def _index(array: Any, name: Any) -> Any:
    try:
        return pd.Index(array, name=name)
    except (TypeError, ValueError):  # what cannot be hashed, half floats
        return pd.RangeIndex(len(array), name=name)


@st.composite
def frames(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """DataFrames of all kinds of columns, indexes and labels."""
    count = draw(_ROWS)
    columns = draw(st.lists(_columns(count), max_size=4))
    made = pd.DataFrame(dict(enumerate(columns)), index=draw(_indexes(count)))
    width = len(columns)
    labels = draw(
        st.one_of(
            _listed(_TEXT, width).map(pd.Index),
            _listed(st.none() | st.integers() | _TEXT, width).map(lambda x: pd.Index(x, object)),
            st.just(pd.RangeIndex(width)),
            st.just(pd.date_range("2020", periods=width)),
            _listed(st.sampled_from([("a", 1), ("a", 2), ("b", 1)]), width).map(
                lambda pairs: (
                    pd.MultiIndex.from_tuples(pairs, names=["u", "v"]) if pairs else pd.Index([])
                )
            ),
        )
    )
    made.columns = labels
    if draw(st.booleans()):
        made.attrs = draw(st.dictionaries(_TEXT, st.integers() | _TEXT | st.booleans(), max_size=2))
    return made


def assert_equal(one: Any, two: Any) -> None:
    pd.testing.assert_frame_equal(
        one, two, check_index_type="exact", check_column_type="exact", check_freq=True,
        check_flags=True, check_exact=True,
    )  # fmt: skip
    assert same(one, two)


@pytest.mark.parametrize("spill_format", ["arrow", "parquet"])
@given(made=frames())
@settings(max_examples=60, suppress_health_check=_SLOW)
def test_any_frame_comes_back_as_it_was(made: Any, spill_format: str) -> None:
    before = made.copy(deep=True)
    back = through_memory(made, spill_format)
    assert_equal(back, made)
    assert_equal(made, before)
    assert_equal(through_memory(back, spill_format), made)


@given(made=arrays(scalar_dtypes(), array_shapes(min_dims=0, min_side=0)), fortran=st.booleans())
@settings(max_examples=150, suppress_health_check=_SLOW)
def test_any_array_comes_back_as_it_was(made: Any, fortran: bool) -> None:
    if fortran:
        made = np.asfortranarray(made)
    assert same(through_memory(made), made)


# -- Arrow and Parquet --------------------------------------------------------------------------


def frame(rows: int = 2000) -> Any:
    return pd.DataFrame({"n": np.arange(rows), "s": [f"row {n}" for n in range(rows)]})


def test_other_programs_can_read_the_arrow_file(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path) as cache:
        cache.put("df", frame().astype({"s": "category"}))
        cache.flush()
        (file,) = tmp_path.rglob("*.arrow")
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            assert stream.read_all().num_rows == 2000


def test_parquet_is_used_where_it_gives_the_same_back(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1, spill_format="parquet") as cache:
        cache.put("df", frame())
        cache.put("seconds", pd.DataFrame({"a": np.zeros(2000, "M8[s]")}))
        cache.put("kinds", pd.DataFrame({"a": pd.Categorical([1, 2] * 1000)}))
        cache.put("other", None)
        formats = {name: cache.info(name).stored_as for name in ("df", "seconds", "kinds")}
        assert formats == {"df": "parquet", "seconds": "arrow", "kinds": "arrow"}
        (file,) = tmp_path.rglob("*.parquet")
        assert_equal(pd.read_parquet(file), frame())
        back = cache.get("df")
        assert_equal(back, frame())
        back.loc[0, "n"] = 7
        del back
        cache.get("other")
        assert cache.get("df").loc[0, "n"] == 7


def test_a_loaded_frame_can_be_changed_and_its_file_stays(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("df", pd.DataFrame({"n": np.arange(500_000.0)}))
        cache.put("other", None)
        (file,) = tmp_path.rglob("*.arrow")
        before = file.read_bytes()
        back = cache.get("df")
        back.loc[3, "n"] = -1.0
        back.iloc[5:10, 0] += 0.5
        back.index = back.index + 1
        assert file.read_bytes() == before
        del back
        cache.get("other")
        (file,) = tmp_path.rglob("*.arrow")
        assert file.read_bytes() != before
        assert cache.get("df").iloc[3, 0] == -1.0
        assert cache.get("df").index[0] == 1


def test_rows_without_bytes_are_kept_however_many(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("rows", pd.DataFrame(index=range(5_000_000)))
        cache.put("nulls", pa.table({"a": pa.nulls(5_000_000)}))
        cache.put("other", None)
        assert cache.get("rows").shape == (5_000_000, 0)
        assert cache.get("nulls").num_rows == 5_000_000


# -- arrays -------------------------------------------------------------------------------------


def test_numpy_reads_the_npy_file(tmp_path: Path) -> None:
    made = np.asfortranarray(np.arange(600_000.0).reshape(300, 2000))
    with SessionCache(storage_dir=tmp_path) as cache:
        cache.put("a", made)
        cache.flush()
        (file,) = tmp_path.rglob("*.npy")
        again = np.load(file, mmap_mode="r")
        assert same(np.asarray(again), made)


def test_arrays_are_mapped_writable_and_their_file_stays(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", np.zeros(1_000_000))
        cache.put("other", None)
        (file,) = tmp_path.rglob("*.npy")
        before = file.read_bytes()
        cache.get("a")[7] = 1.0
        assert file.read_bytes() == before
        cache.get("other")
        assert cache.get("a")[7] == 1.0


def test_a_read_only_array_stays_read_only() -> None:
    made = np.arange(5)
    made.flags.writeable = False
    assert not through_memory(made).flags.writeable
    assert not through_memory({"a": made})["a"].flags.writeable
    assert through_memory(np.arange(5)).flags.writeable
    assert through_memory({"a": np.arange(5000)})["a"].flags.writeable


@pytest.mark.parametrize(
    "dtype",
    [
        [("x", "i4"), ("y", "U2")],
        np.dtype([("x", "i1"), ("y", "f8")], align=True),
        np.dtype([(("title", "x"), "i4")]),
        np.dtype("i4", metadata={"k": 1}),
        np.dtype((np.record, [("x", "i4")])),
        np.dtype({"names": ["é", "b"], "formats": ["i4", "i8"], "offsets": [8, 0]}),
        "V5",
        "S0",
        "g",
        "O",
        np.dtypes.StringDType(),
    ],
    ids=str,
)
def test_dtypes_keep_what_equality_does_not_see(dtype: Any) -> None:
    made = np.zeros(3, dtype)
    back = through_memory(made)
    assert back.dtype == made.dtype
    assert repr(back.dtype) == repr(made.dtype)
    assert back.dtype.type is made.dtype.type
    assert back.dtype.isalignedstruct == made.dtype.isalignedstruct
    assert back.tolist() == made.tolist()


# -- pickle -------------------------------------------------------------------------------------


def test_what_is_shared_inside_a_value_stays_shared() -> None:
    inner = [1]
    array = np.arange(10_000)
    cycle: list[Any] = [inner, inner, array, array]
    cycle.append(cycle)
    back = through_memory(cycle)
    assert back[0] is back[1]
    assert back[2] is back[3]
    assert back[4] is back


def test_large_buffers_lie_beside_the_pickle() -> None:
    made = {"a": np.zeros(100_000), "b": [np.ones((300, 300)).T, b"x" * 100_000]}
    content = encode(made)
    assert content.detail["size"] < 110_000  # type: ignore[operator]
    assert len(content.detail["buffers"]) == 2  # type: ignore[arg-type]
    assert same(through_memory(made), made)


def test_an_altered_pickle_is_not_loaded() -> None:
    content = encode({"a": [1, 2, 3]})
    data = bytearray(b"".join(content.parts))
    data[5] ^= 1
    with pytest.raises(ValueError, match="not those that were written"):
        decode("pickle", memoryview(data), content.detail)


class Registered:
    """Comes back by a function of its own."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registered) and self.n == other.n

    def __hash__(self) -> int:
        return self.n

    def __reduce__(self) -> Any:
        return Registered, (self.n,)


def test_ones_own_classes_are_stored() -> None:
    assert through_memory([Registered(3)]) == [Registered(3)]
    assert through_memory(Registered) is Registered


class Raises:
    """Its pickling raises what it is told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("x\ny"), MemoryError(), RecursionError(), pickle.PicklingError("no")]
)
def test_whatever_pickling_raises_is_a_refusal(error: BaseException) -> None:
    with pytest.raises(Unspillable, match=type(error).__name__):
        encode(Raises(error))


def test_deep_nesting_is_stored_or_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        content = encode(deep)
    except Unspillable:
        return
    again: Any = decode(
        content.codec, memoryview(bytearray(b"".join(content.parts))), content.detail
    )
    for _ in range(100_000):
        (again,) = again


def test_streams_of_the_standard_library_are_refused_or_whole() -> None:
    with pytest.raises(Unspillable):
        encode(memoryview(b"x"))
    assert through_memory(io.BytesIO(b"abc")).getvalue() == b"abc"
