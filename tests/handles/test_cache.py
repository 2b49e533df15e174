"""What seed 000 documents of `SessionCache`, and what it does beyond."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
import inspect
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas
import pytest

from py_code_mode.errors import (
    HandleNotFound,
    HandlesClosed,
    InvalidCall,
    InvalidName,
    StoreError,
)
from py_code_mode.handles import Origin, SessionCache

if TYPE_CHECKING:
    from collections.abc import Iterator

np: Any = numpy
pd: Any = pandas

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache() -> Iterator[SessionCache]:
    with SessionCache() as made:
        yield made


def files(folder: Path) -> list[str]:
    """Extensions of the data files in a storage directory."""
    found = [path.suffix for path in folder.rglob("*.*") if path.is_file()]
    return sorted(suffix for suffix in found if suffix != ".json")


# -- the constructor ----------------------------------------------------------------------------


def test_its_parameters_and_defaults_are_the_documented_ones() -> None:
    found = inspect.signature(SessionCache).parameters
    documented = [(name, found[name].default) for name in list(found)[:3]]
    assert documented == [("sample_size", 5), ("storage_dir", None), ("hot_limit", None)]
    assert [found[name].kind for name in list(found)[3:]] == [inspect.Parameter.KEYWORD_ONLY] * 2
    put = inspect.signature(SessionCache.put).parameters
    assert list(put)[1:4] == ["name", "value", "overwrite"]
    assert put["overwrite"].default is False


def test_without_arguments_everything_stays_in_memory(cache: SessionCache) -> None:
    assert (cache.sample_size, cache.hot_limit, cache.storage_dir) == (5, None, None)
    for number in range(200):
        cache.put(f"v{number}", [number])
    assert all(cache.info(name).is_hot for name in cache.handle_names())


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="hot_limit must be at least 1"):
        SessionCache(hot_limit=limit)
    with pytest.raises(ValueError, match="max_bytes"):
        SessionCache(max_bytes=limit)


def test_other_arguments_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="sample_size"):
        SessionCache(sample_size=-1)
    unknown: Any = "csv"
    with pytest.raises(ValueError, match="spill_format"):
        SessionCache(spill_format=unknown)


@pytest.mark.parametrize("what", ["sample_size", "hot_limit", "max_bytes"])
@pytest.mark.parametrize("wrong", ["5", 2.5, [3]])
def test_limits_that_are_no_whole_numbers_are_named(what: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{what} must be an int, not {type(wrong).__name__}$"):
        SessionCache(**{what: wrong})


def test_limits_may_be_of_any_integer_type() -> None:
    with SessionCache(np.int64(3), hot_limit=np.int8(2)) as cache:
        assert (cache.sample_size, cache.hot_limit) == (3, 2)


def test_a_storage_directory_is_made_and_bounds_the_cache(tmp_path: Path) -> None:
    for given in (tmp_path / "a" / "b", str(tmp_path / "c" / "d")):
        with SessionCache(storage_dir=given) as cache:
            assert Path(given).is_dir()
            assert cache.hot_limit == 10
            assert cache.storage_dir == Path(given)
    with SessionCache(storage_dir=tmp_path, hot_limit=3) as cache:
        assert cache.hot_limit == 3
    with SessionCache(storage_dir=tmp_path, max_bytes=1 << 20) as cache:
        assert cache.hot_limit is None


def test_a_storage_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        SessionCache(storage_dir=tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        SessionCache(storage_dir=tmp_path / "file" / "below")


def test_a_limit_alone_uses_a_temporary_directory_and_removes_it(own_temp_folder: Path) -> None:
    cache = SessionCache(hot_limit=1)
    cache.put("a", [1])
    cache.put("b", [2])
    assert len(os.listdir(own_temp_folder)) == 1
    assert not cache.info("a").is_hot
    assert cache.get("a") == [1]
    cache.close()
    assert os.listdir(own_temp_folder) == []


def test_formats_are_arrow_npy_and_pickle(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("frame", pd.DataFrame({"a": range(5000)}))
        cache.put("array", np.arange(5))
        cache.put("other", {"a": {1, 2}})
        cache.put("last", None)
        assert files(tmp_path) == [".arrow", ".npy", ".pickle"]
        stored = {name: cache.info(name).stored_as for name in ("frame", "array", "other")}
        assert stored == {"frame": "arrow", "array": "npy", "other": "pickle"}


# -- put ----------------------------------------------------------------------------------------


def test_put_gives_the_name_used_and_get_the_same_object(cache: SessionCache) -> None:
    value = [1]
    assert cache.put("rows", value) == "rows"
    assert cache.get("rows") is value


def test_a_taken_name_gets_a_number(cache: SessionCache) -> None:
    assert [cache.put("df", n) for n in range(4)] == ["df", "df_2", "df_3", "df_4"]
    assert [cache.get(name) for name in ("df", "df_2", "df_3", "df_4")] == [0, 1, 2, 3]
    assert cache.put("df_2", 9) == "df_2_2"


def test_the_first_free_number_is_taken(cache: SessionCache) -> None:
    for n in range(5):
        cache.put("df", n)
    cache.delete("df_3")
    assert cache.put("df", 9) == "df_3"
    assert cache.put("df", 9) == "df_6"
    cache.delete("df")
    assert cache.put("df", 9) == "df"


def test_numbers_begin_at_two_whatever_was_deleted(cache: SessionCache) -> None:
    for name in ("df", "df", "df_0", "df_1", "df_007", "df_" + "9" * 5000, "df_٣"):
        cache.put(name, 1)
    for name in ("df_0", "df_1", "df_007", "df_" + "9" * 5000, "df_٣"):
        cache.delete(name)
    assert cache.put("df", 1) == "df_3"


def test_a_cold_handle_is_taken_too(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("df", [1])
        cache.put("other", [2])
        assert cache.put("df", [3]) == "df_2"
        assert cache.get("df") == [1]


def test_overwrite_replaces(cache: SessionCache) -> None:
    cache.put("df", 1)
    assert cache.put("df", 2, overwrite=True) == "df"
    assert cache.put("new", 3, True) == "new"
    assert cache.handle_names() == ["new", "df"]
    assert cache.get("df") == 2


def test_overwriting_a_cold_handle_by_another_type_leaves_one_file(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("x", pd.DataFrame({"a": range(5000)}))
        cache.put("other", None)
        cache.put("x", np.arange(3), overwrite=True)
        cache.get("other")
        assert files(tmp_path) == [".npy", ".pickle"]
        assert cache.get("x").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1a",
        "a b",
        "a-b",
        "a.b",
        "../a",
        "a/b",
        "x\n",
        "\nx",
        "a\0",
        "class",
        "None",
        "True",
        " a",
    ],
)
def test_what_is_no_identifier_is_refused(cache: SessionCache, name: str) -> None:
    with pytest.raises(ValueError, match="valid Python identifier"):
        cache.put(name, 1)
    assert cache.handle_names() == []


def test_what_is_no_text_is_refused_as_a_name(cache: SessionCache) -> None:
    for name in (1, None, b"a", ["a"]):
        wrong: Any = name
        with pytest.raises(InvalidName, match=f"a name is a str, not {type(name).__name__}"):
            cache.put(wrong, 1)


@pytest.mark.parametrize(
    "name", ["_", "match", "größe", "数据", "𝒳", "e\u0301", "\u00e9", "x" * 5000]
)
def test_every_identifier_is_a_name(tmp_path: Path, name: str) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        assert cache.put(name, [name]) == name
        cache.put("other", None)
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.get(name) == [name]


def test_names_that_file_systems_take_for_one_are_two(tmp_path: Path) -> None:
    names = ["data", "Data", "DATA", "e\u0301", "\u00e9", "con", "nul", "recency", "lock"]
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        for name in names:
            cache.put(name, [name])
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        assert {name: cache.get(name) for name in names} == {name: [name] for name in names}


@pytest.mark.parametrize(
    "origin",
    [
        "x",
        {"kind": "run"},
        Origin(kind="odd"),  # pyright: ignore[reportArgumentType]
        Origin(run_id="1"),  # pyright: ignore[reportArgumentType]
        Origin(parents=(1,)),  # pyright: ignore[reportArgumentType]
        Origin(call=object()),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_origin_that_could_not_be_read_again_is_refused(tmp_path: Path, origin: Any) -> None:
    with SessionCache(storage_dir=tmp_path) as cache:
        with pytest.raises(InvalidCall, match="origin"):
            cache.put("a", 1, origin=origin)
        assert cache.handle_names() == []


def test_every_origin_that_is_taken_is_read_again(tmp_path: Path) -> None:
    origins = [
        Origin(kind="call", run_id=3, call="tools.a\ud800", parents=("b", "c")),
        Origin(run_id=1 << 80, call=""),
    ]
    with SessionCache(storage_dir=tmp_path) as cache:
        for number, origin in enumerate(origins):
            cache.put(f"a{number}", 1, origin=origin)
    with SessionCache(storage_dir=tmp_path) as cache:
        assert [cache.info(f"a{n}").origin for n in range(len(origins))] == origins


def test_a_put_that_raises_leaves_nothing(cache: SessionCache) -> None:
    cache.put("kept", 1)
    wrong: Any
    for wrong in ({"a": object()}, {"a": math.nan}, 5, "text", {1: {2}}):
        with pytest.raises(InvalidCall):
            cache.put("kept", 2, overwrite=True, semantics=wrong)
        with pytest.raises(TypeError, match="semantics"):
            cache.put("new", 2, semantics=wrong)
    assert cache.handle_names() == ["kept"]
    assert cache.get("kept") == 1


def test_an_interrupt_while_room_is_made_leaves_nothing(tmp_path: Path) -> None:
    class Slow:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        slow = Slow()
        cache.put("slow", slow)
        with pytest.raises(KeyboardInterrupt):
            cache.put("new", 1)
        assert cache.handle_names() == ["slow"]
        assert cache.get("slow") is slow
        assert cache.info("slow").is_hot
        cache.delete("slow")


# -- get, delete, names -------------------------------------------------------------------------


def test_an_unknown_name_is_a_key_error_that_names_the_others(cache: SessionCache) -> None:
    cache.put("known", 1)
    for ask in (cache.get, cache.snapshot, cache.delete, cache.info):
        with pytest.raises(KeyError) as caught:
            ask("nope")
        assert isinstance(caught.value, HandleNotFound)
        assert "known" in str(caught.value)


@pytest.mark.parametrize("wrong", [[], {}, 5, None, b"x"])
def test_what_is_no_text_names_no_handle(cache: SessionCache, wrong: Any) -> None:
    cache.put("x", 1)
    for ask in (cache.get, cache.snapshot, cache.info, cache.delete):
        with pytest.raises(HandleNotFound, match=f"'<{type(wrong).__name__}>'; handles: x"):
            ask(wrong)
    assert not cache.has_handle(wrong)


def test_errors_quote_long_names_in_part(cache: SessionCache) -> None:
    cache.put("x" * 100_000, 1)
    with pytest.raises(HandleNotFound) as raised:
        cache.get("y" * 100_000)
    assert len(str(raised.value)) < 300
    with pytest.raises(InvalidName) as refused:
        cache.put("-" * 100_000, 1)
    assert len(str(refused.value)) < 300


def test_get_promotes_a_cold_handle(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
        cache.put("b", [2])
        assert [cache.info(name).is_hot for name in "ab"] == [False, True]
        assert cache.get("a") == [1]
        assert [cache.info(name).is_hot for name in "ab"] == [True, False]


def test_names_come_most_recently_used_first(cache: SessionCache) -> None:
    for name in "abc":
        cache.put(name, name)
    assert cache.handle_names() == ["c", "b", "a"]
    cache.get("a")
    assert cache.handle_names() == ["a", "c", "b"]
    cache.put("c", 1, overwrite=True)
    assert cache.handle_names() == ["c", "a", "b"]
    cache.snapshot("b")
    cache.info("b")
    cache.has_handle("b")
    assert cache.handle_names() == ["c", "a", "b"]
    assert list(cache.list_handles()) == ["c", "a", "b"]


def test_the_least_recently_used_is_spilled_first() -> None:
    with SessionCache(hot_limit=2) as cache:
        cache.put("a", [1])
        cache.put("b", [2])
        cache.get("a")
        cache.put("c", [3])
        assert [cache.info(name).is_hot for name in "abc"] == [True, False, True]


def test_has_handle_knows_hot_and_cold(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
        cache.put("b", [2])
        assert [cache.has_handle(name) for name in "abc"] == [True, True, False]


def test_delete_removes_the_handle_and_its_files(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
        cache.put("b", [2])
        cache.delete("a")
        cache.delete("b")
        assert cache.handle_names() == []
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]
        with pytest.raises(KeyError):
            cache.delete("a")
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.handle_names() == []


# -- snapshots ----------------------------------------------------------------------------------


def test_a_snapshot_is_json_that_tells_type_shape_and_a_sample(cache: SessionCache) -> None:
    cache.put("df", pd.DataFrame({"a": range(100), "b": 0.5}))
    found = json.loads(cache.snapshot("df"))
    assert found["type"] == "pandas.DataFrame"
    assert found["shape"] == [100, 2]
    cache.put("n", 5)
    assert json.loads(cache.list_handles()["n"])["value"] == 5


def test_sample_size_is_how_many_rows_are_told() -> None:
    rows = [{"n": n} for n in range(50)]
    with SessionCache(sample_size=1) as few, SessionCache(sample_size=8) as many:
        few.put("a", rows)
        many.put("a", rows)
        assert len(few.snapshot("a")) < len(many.snapshot("a"))


def test_semantics_are_told_and_replaced_with_the_value(tmp_path: Path) -> None:
    frame = pd.DataFrame({"w": [1.5]})
    told = {"w": {"description": "mass of the bird", "unit": "kg"}}
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("birds", frame, semantics=told)
        assert "mass of the bird" in cache.snapshot("birds")
        assert cache.info("birds").semantics == told
        cache.put("other", None)
        assert "mass of the bird" in cache.snapshot("birds")
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        assert "mass of the bird" in cache.snapshot("birds")
        cache.put("birds", frame, overwrite=True)
        assert "mass of the bird" not in cache.snapshot("birds")
        assert cache.info("birds").semantics is None


def test_a_cold_snapshot_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from py_code_mode.handles import cache as module

    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1, 2, 3])
        hot = cache.snapshot("a")
        cache.put("b", None)
        monkeypatch.setattr(module, "decode", None)
        assert cache.snapshot("a") == hot
        assert not cache.info("a").is_hot


# -- info ---------------------------------------------------------------------------------------


def test_info_tells_what_is_known(tmp_path: Path) -> None:
    origin = Origin(kind="call", run_id=3, call="tools.curl.get", parents=("a", "b"))
    before = datetime.now(UTC)
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("x", np.zeros(1000), origin=origin)
        found = cache.info("x")
        assert (found.name, found.type_name, found.nbytes) == ("x", "numpy.ndarray", 8000)
        assert (found.is_hot, found.origin, found.stored_as) == (True, origin, None)
        assert before <= found.created <= datetime.now(UTC)
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        again = cache.info("x")
        assert (again.nbytes, again.type_name, again.is_hot) == (8000, "numpy.ndarray", False)
        assert (again.created, again.origin) == (found.created, origin)


# -- bytes --------------------------------------------------------------------------------------


def test_max_bytes_bounds_what_is_in_memory() -> None:
    with SessionCache(max_bytes=1_000_000) as cache:
        for number in range(20):
            cache.put(f"a{number}", np.zeros(25_000))
            hot = [cache.info(name) for name in cache.handle_names() if cache.info(name).is_hot]
            assert sum(info.nbytes for info in hot) <= 1_000_000
        assert sum(cache.info(name).is_hot for name in cache.handle_names()) == 5


def test_a_value_beyond_max_bytes_is_kept_until_the_next_use() -> None:
    with SessionCache(max_bytes=1000) as cache:
        cache.put("large", np.zeros(1000))
        assert cache.info("large").is_hot
        cache.put("small", 1)
        assert not cache.info("large").is_hot
        assert cache.get("large").sum() == 0


def test_what_grew_is_measured_when_it_is_used() -> None:
    with SessionCache(max_bytes=100_000) as cache:
        cache.put("list", [])
        cache.put("other", np.zeros(1000))
        cache.get("list").extend(float(n) for n in range(10_000))
        cache.get("list")
        assert [cache.info(name).is_hot for name in ("list", "other")] == [True, False]


# -- aliasing -----------------------------------------------------------------------------------


def test_an_evicted_object_that_is_alive_is_given_again() -> None:
    value = [1]
    with SessionCache(hot_limit=1) as cache:
        cache.put("a", value)
        cache.put("b", None)
        info = cache.info("a")
        assert (info.is_hot, info.in_use) == (False, True)
        value.append(2)
        assert json.loads(cache.snapshot("a"))["length"] == 2
        assert cache.get("a") is value


def test_a_change_after_eviction_is_not_lost_with_the_last_reference() -> None:
    value = {"n": 1}
    with SessionCache(hot_limit=1) as cache:
        cache.put("a", value)
        cache.put("b", None)
        value["n"] = 2
        del value
        cache.put("c", None)
        assert not cache.info("a").in_use
        assert cache.get("a") == {"n": 2}


def test_memory_is_freed_once_nobody_else_holds_the_object() -> None:
    with SessionCache(hot_limit=1) as cache:
        array = np.zeros(100_000)
        alive = weakref.ref(array)
        cache.put("a", array)
        del array
        cache.put("b", None)
        assert alive() is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.DataFrame({"a": np.arange(10_000.0), "s": ["x"] * 10_000}),
        lambda: pd.DataFrame({"a": [1, "x"]}, dtype=object),
        lambda: np.asfortranarray(np.zeros((100, 100))),
        lambda: {"a": np.zeros(10_000), "b": [set[int]()]},
        lambda: list(range(10_000)),
    ],
)
def test_storing_leaves_no_reference_behind(make: Any) -> None:
    gc.disable()
    try:
        with SessionCache(hot_limit=1) as cache:
            cache.put("a", make())
            cache.put("b", None)
            assert not cache.info("a").in_use
            cache.get("a")
            cache.get("b")
            assert not cache.info("a").in_use
    finally:
        gc.enable()


def test_two_names_of_one_object_go_on_naming_one(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        value = [1]
        cache.put("a", value)
        cache.put("b", value)
        del value
        cache.put("other", None)
        assert [cache.info(name).is_hot for name in ("a", "b")] == [False, False]
        cache.get("a").append(2)
        assert cache.get("b") is cache.get("a")
        assert cache.get("b") == [1, 2]
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        assert cache.get("a") is cache.get("b")
        cache.delete("a")
        cache.get("other")
        assert cache.get("b") == [1, 2]
    with SessionCache(storage_dir=tmp_path) as cache:
        assert sorted(cache.handle_names()) == ["b", "other"]


def test_overwriting_one_of_two_names_leaves_the_other(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        value = [1]
        cache.put("a", value)
        cache.put("b", value)
        del value
        cache.put("other", None)
        cache.put("a", [2], overwrite=True)
        cache.put("a", cache.get("a"), overwrite=True)
        assert (cache.get("a"), cache.get("b")) == ([2], [1])


# -- what cannot be stored ----------------------------------------------------------------------


def test_what_no_format_keeps_stays_in_memory_and_says_why() -> None:
    with SessionCache(hot_limit=1) as cache, open(os.devnull) as file:
        values: dict[str, Any] = {
            "function": lambda: 1,
            "generator": (n for n in range(3)),
            "file": file,
            "nested": {"a": [lambda: 2]},
            "sentinel": object(),
            "map": np.memmap(tempfile.NamedTemporaryFile(), shape=(3,)),  # noqa: SIM115
        }
        for name, value in values.items():
            cache.put(name, value)
        for number in range(20):
            cache.put(f"v{number}", [number])
        for name, value in values.items():
            info = cache.info(name)
            assert info.is_hot, name
            assert info.stays, name
            assert cache.get(name) is value
        assert [n for n in range(20) if cache.info(f"v{n}").is_hot] == [19]


class Picky(Exception):
    """Can be pickled, and not be read back."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Forgetful:
    """Leaves a part of itself out of its pickle."""

    def __init__(self) -> None:
        self.kept, self.dropped = 1, 2

    def __getstate__(self) -> dict[str, int]:
        return {"kept": self.kept}


@pytest.mark.parametrize("make", [lambda: Picky(1, 2), Forgetful])
def test_what_would_not_come_back_whole_stays_in_memory(make: Any, tmp_path: Path) -> None:
    value = make()
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("x", value)
        cache.put("other", None)
        assert "come back" in (cache.info("x").stays or "")
        assert cache.get("x") is value
        assert files(tmp_path) == []


def test_what_could_not_be_stored_is_tried_again() -> None:
    value: dict[str, object] = {"f": lambda: 1}
    with SessionCache(hot_limit=1) as cache:
        cache.put("x", value)
        cache.put("other", None)
        assert cache.info("x").stays
        value["f"] = 1
        for _ in range(10):
            cache.put("other", None, overwrite=True)
        assert cache.info("x").stays is None
        assert cache.info("x").in_use


def test_a_value_that_uses_the_cache_while_it_is_stored_does_no_harm() -> None:
    class Meddler:
        cache: SessionCache
        calls = 0

        def __reduce__(self) -> Any:
            Meddler.calls += 1
            self.cache.get("meddler")
            self.cache.put("made", [1])
            self.cache.delete("other")
            return list, ()

    with SessionCache(hot_limit=1) as cache:
        Meddler.cache = cache
        meddler = Meddler()
        cache.put("meddler", meddler)
        cache.put("other", [2])
        cache.put("new", [3])
        assert cache.get("meddler") is meddler
        assert cache.get("new") == [3]
        assert Meddler.calls < 5


# -- closing and coming back --------------------------------------------------------------------


def test_close_is_idempotent_and_final(cache: SessionCache) -> None:
    cache.put("a", 1)
    cache.close()
    cache.close()
    for use in (
        lambda: cache.put("a", 1), lambda: cache.get("a"), lambda: cache.snapshot("a"),
        lambda: cache.delete("a"), lambda: cache.has_handle("a"), lambda: cache.info("a"),
        cache.handle_names, cache.list_handles, cache.flush, cache.__enter__,
    ):  # fmt: skip
        with pytest.raises(HandlesClosed, match="closed"):
            use()


def test_handles_survive_a_restart(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=2) as cache:
        for name in "abcd":
            cache.put(name, [name])
        cache.get("b")
        names, told = cache.handle_names(), cache.list_handles()
    with SessionCache(storage_dir=tmp_path, hot_limit=2) as cache:
        assert cache.handle_names() == names == ["b", "d", "c", "a"]
        assert cache.list_handles() == told
        assert not any(cache.info(name).is_hot for name in names)
        assert cache.put("a", 1) == "a_2"
        assert {name: cache.get(name) for name in names} == {name: [name] for name in names}
        assert cache.problems == ()


def test_close_says_what_it_cannot_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), SessionCache(storage_dir=tmp_path) as cache:
        cache.put("f", lambda: 1)
        cache.put("a", [1])
        assert set(cache.flush()) == {"f"}
    assert "'f' cannot be stored and is lost" in caplog.text
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.handle_names() == ["a"]


def test_flush_stores_everything_and_keeps_it_hot(tmp_path: Path) -> None:
    cache = SessionCache(storage_dir=tmp_path)
    value = [1]
    cache.put("a", value)
    assert cache.flush() == {}
    assert cache.info("a").is_hot
    # a second cache sees nothing of it; one after a crash of this one does
    code = "import sys; from py_code_mode.handles import SessionCache\n"
    code += "print(SessionCache(storage_dir=sys.argv[1]).handle_names())"
    assert run(code, tmp_path) == "[]"
    cache.close()
    assert run(code, tmp_path) == "['a']"


def test_a_cache_that_nobody_closes_leaves_no_folder_and_no_lock(
    tmp_path: Path, own_temp_folder: Path
) -> None:
    cache = SessionCache(hot_limit=1)
    cache.put("a", [1])
    cache.put("b", [1])
    assert len(os.listdir(own_temp_folder)) == 1
    stored = tmp_path / "stored"
    other = SessionCache(storage_dir=stored)
    del cache, other
    gc.collect()
    assert os.listdir(own_temp_folder) == []
    with SessionCache(storage_dir=stored):
        assert os.listdir(stored) == ["handles-1"]


def test_a_program_that_ends_without_closing_leaves_no_folder(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from py_code_mode.handles import SessionCache\n"
        "c = SessionCache(hot_limit=1); c.put('a', [1]); c.put('b', [2]); print(c.get('a'))"
    )
    assert run(code, tmp_path) == "[1]"
    assert list(tmp_path.iterdir()) == []


def run(code: str, *arguments: object) -> str:
    """What a Python program prints."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout.strip()


def test_a_fork_neither_writes_nor_removes_what_is_its_parents(tmp_path: Path) -> None:
    code = (
        "import os, sys; from py_code_mode.handles import SessionCache\n"
        "c = SessionCache(storage_dir=sys.argv[1], hot_limit=1)\n"
        "t = SessionCache(hot_limit=1)\n"
        "for s in c, t: s.put('a', [1]); s.put('b', [2])\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    assert c.get('a') == [1] and t.get('a') == [1]\n"
        "    assert 'fork' in c.info('b').stays\n"
        "    c.put('c', [3]); sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert t.get('a') == [1] and c.handle_names() == ['b', 'a']\n"
        "c.close(); t.close(); print('ok')"
    )
    assert run(code, tmp_path) == "ok"
