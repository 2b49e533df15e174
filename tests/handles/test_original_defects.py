"""Each defect that was measured in the original `SessionCache` (data-harness 1.3.4).

What is asserted here fails there.
"""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy
import pandas
import pytest

from py_code_mode.handles import SessionCache

from ..sample_values import same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

np: Any = numpy
pd: Any = pandas


def cells(*values: Any) -> Any:
    return pd.DataFrame({"a": pd.Series(values, dtype=object)})


LOST_INDEX: dict[str, Callable[[], Any]] = {
    "named": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.Index([5, 6], name="k")),
    "text": lambda: pd.DataFrame({"a": [1, 2]}, index=["x", "y"]),
    "datetime": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.to_datetime(["2020", "2021"])),
    "gaps": lambda: pd.DataFrame({"a": range(10)}).query("a % 3 == 0"),
    "groupby": lambda: pd.DataFrame({"k": [1, 1, 2], "v": [1, 2, 3]}).groupby("k").sum(),
    "freq": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.date_range("2020", periods=2)),
    "MultiIndex without columns": lambda: pd.DataFrame(
        index=pd.MultiIndex.from_tuples([(1, 2), (3, 4)])
    ),
}
CHANGED: dict[str, Callable[[], Any]] = {
    "int columns": lambda: pd.DataFrame([[1, 2]], columns=[0, 1]),
    "mixed columns": lambda: pd.DataFrame([[1, 2]], columns=[0, "a"]),
    "name of the columns": lambda: pd.DataFrame([[1]], columns=pd.Index(["a"], name="n")),
    "categories of ints": lambda: pd.DataFrame({"a": pd.Categorical([1, 2])}),
    "objects: zones": lambda: cells(pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2020", tz="CET")),
    "objects: ints": lambda: cells(1, 2),
    "objects: text and nan": lambda: cells("x", float("nan")),
    "objects: dicts": lambda: cells({"a": 1}, {"b": 2}),
    "objects: sets": lambda: cells({1}, {2}),
    "objects: lists": lambda: cells([1], [2, 3]),
    "matrix": lambda: np.asarray([[1, 2]]).view(np.matrix),
}
VALUE_LOST: dict[str, Callable[[], Any]] = {
    "complex column": lambda: pd.DataFrame({"a": [1 + 2j]}),
    "big ints": lambda: cells(2**70, 1),
    "masked array": lambda: np.ma.masked_array([1, 2], [0, 1]),
    "lambda": lambda: lambda: 1,
    "generator": lambda: (n for n in range(3)),
}
PUT_RAISES: dict[str, Callable[[], Any]] = {
    "MultiIndex columns": lambda: pd.DataFrame(
        [[1]], columns=pd.MultiIndex.from_tuples([("a", 1)])
    ),
    "Timestamp columns": lambda: pd.DataFrame([[1]], columns=pd.to_datetime(["2020"])),
    "complex array": lambda: np.array([1 + 2j]),
    "datetime array": lambda: np.array(["2020-01-01"], "M8[D]"),
    "bytes array": lambda: np.array([b"x"]),
    "tuple keys": lambda: {(1, 2): 3},
    "bytes keys": lambda: {b"x": 1},
    "Timestamp keys": lambda: {pd.Timestamp("2020"): 1},
}


@pytest.mark.parametrize(
    "make",
    [*LOST_INDEX.values(), *CHANGED.values(), *PUT_RAISES.values()],
    ids=[*LOST_INDEX, *CHANGED, *PUT_RAISES],
)
def test_it_is_put_told_spilled_and_given_back_as_it_was(make: Any) -> None:
    with SessionCache(hot_limit=1) as cache:
        cache.put("value", make())
        json.loads(cache.snapshot("value"))
        cache.put("other", None)
        assert not cache.info("value").is_hot
        assert same(cache.get("value"), make())


@pytest.mark.parametrize("name", VALUE_LOST)
def test_a_value_that_cannot_be_written_is_not_lost(name: str) -> None:
    value = VALUE_LOST[name]()
    with SessionCache(hot_limit=1) as cache:
        cache.put("value", value)
        assert cache.put("other", [1]) == "other"
        assert cache.put("another", [2]) == "another"
        assert cache.get("value") is value


class Unspeakable:
    """Its repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_repr_that_raises_is_no_reason_to_refuse() -> None:
    with SessionCache() as cache:
        cache.put("value", Unspeakable())
        assert "Unspeakable" in json.loads(cache.snapshot("value"))["type"]


def test_a_snapshot_is_never_stale() -> None:
    values: dict[str, tuple[Any, Callable[[Any], object]]] = {
        "frame": (pd.DataFrame({"a": [1]}), lambda frame: frame.insert(0, "new", [5])),
        "array": (np.zeros(3), lambda array: array.__setitem__(0, 77.0)),
        "list": ([1], lambda items: items.append(2)),
        "dict": ({}, lambda pairs: pairs.update(new=1)),
    }
    with SessionCache() as cache:
        for name, (value, change) in values.items():
            cache.put(name, value)
            before = cache.snapshot(name)
            assert cache.snapshot(name) == before
            change(cache.get(name))
            assert cache.snapshot(name) != before


def test_columns_of_one_name_are_all_told() -> None:
    with SessionCache() as cache:
        cache.put("df", pd.DataFrame([[1, 2]], columns=["a", "a"]))
        found = json.loads(cache.snapshot("df"))
        assert found["shape"] == [1, 2]
        assert "[1, 2]" in json.dumps(found["head"])


@pytest.mark.parametrize(
    "value",
    [float("nan"), {"a": float("inf")}, [float("-inf")], lambda: pd.DataFrame({"a": [np.nan]})],
    ids=repr,
)
def test_a_snapshot_is_valid_json(value: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    with SessionCache() as cache:
        cache.put("x", value() if callable(value) else value)
        json.loads(cache.snapshot("x"), parse_constant=refuse)


@pytest.mark.parametrize(
    "make",
    [
        lambda: "x" * 5_000_000,
        lambda: {"a": list(range(1_000_000))},
        lambda: set(range(1_000_000)),
        lambda: ["y" * 1_000_000] * 5,
        lambda: pd.DataFrame(np.zeros((1000, 5000))),
    ],
)
def test_a_snapshot_is_bounded(make: Any) -> None:
    with SessionCache(hot_limit=1) as cache:
        cache.put("x", make())
        assert len(cache.snapshot("x").encode()) <= 1200
        cache.put("other", None)
        assert len(cache.snapshot("x").encode()) <= 1200


def test_overwriting_drops_what_was_told_of_the_old_value() -> None:
    with SessionCache() as cache:
        cache.put("df", pd.DataFrame({"w": [1]}), semantics={"w": "weight of the old one"})
        cache.put("df", pd.DataFrame({"w": [2]}), overwrite=True)
        assert "old one" not in cache.snapshot("df")


def test_a_change_is_seen_whether_hot_or_cold() -> None:
    for others in (0, 3):
        with SessionCache(hot_limit=1) as cache:
            value = [1]
            cache.put("a", value)
            for number in range(others):
                cache.put(f"b{number}", [number])
            value.append(2)
            assert cache.get("a") == [1, 2]


def test_two_handles_of_one_object_do_not_diverge() -> None:
    with SessionCache(hot_limit=1) as cache:
        frame = pd.DataFrame({"a": [1, 2]})
        cache.put("one", frame)
        cache.put("two", frame)
        del frame
        cache.put("other", None)
        cache.get("one").loc[0, "a"] = 9
        assert cache.get("two").loc[0, "a"] == 9


def test_two_caches_on_one_directory_are_apart(tmp_path: Path) -> None:
    with (
        SessionCache(storage_dir=tmp_path, hot_limit=1) as one,
        SessionCache(storage_dir=tmp_path, hot_limit=1) as two,
    ):
        for cache, text in ((one, "one"), (two, "two")):
            cache.put("x", [text])
            cache.put("y", None)
        assert (one.get("x"), two.get("x")) == (["one"], ["two"])


def test_getting_a_cold_value_keeps_its_file(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", {"n": 1})
        cache.put("b", None)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pickle")}
        cache.get("a")
        cache.get("b")
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pickle")}
        assert before.items() <= after.items()


def test_the_map_of_cold_handles_survives(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.get("a") == [1]


def test_names_are_most_recently_used_first() -> None:
    with SessionCache() as cache:
        cache.put("a", 1)
        cache.put("b", 2)
        assert cache.handle_names() == ["b", "a"]


def test_a_name_with_a_line_break_is_refused_and_unicode_is_not() -> None:
    with SessionCache() as cache:
        with pytest.raises(ValueError, match="identifier"):
            cache.put("x\n", 1)
        assert cache.put("größe", 1) == "größe"


def test_bytes_count(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, max_bytes=1_000_000) as cache:
        cache.put("large", np.zeros(1_000_000))
        cache.put("small", 1)
        assert not cache.info("large").is_hot


def test_threads_do_not_get_the_same_name() -> None:
    with SessionCache(hot_limit=2) as cache:
        names: list[str] = []
        threads = [
            threading.Thread(target=lambda: names.extend(cache.put("x", [n]) for n in range(50)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(set(names)) == 400
