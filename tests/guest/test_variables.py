"""Which large variables a run has made or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from py_code_mode.guest.variables import LARGE, MAX_TOLD, Variables, is_large

if TYPE_CHECKING:
    from collections.abc import Callable

BIG = 10 * LARGE


def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": range(BIG), "b": 0.5})


LARGE_VALUES: dict[str, Callable[[], object]] = {
    "frame": frame,
    "series": lambda: frame()["a"],
    "index": lambda: pd.Index(["x"] * BIG),
    "array": lambda: np.zeros(BIG),
    "table": lambda: cast("object", pa.table({"a": range(BIG)})),
    "chunks": lambda: cast("object", pa.chunked_array([range(BIG)])),
    "text": lambda: "x" * BIG,
    "bytes": lambda: bytes(BIG),
    "list": lambda: [1] * BIG,
    "set": lambda: set(range(BIG)),
    "dict": lambda: dict.fromkeys(range(BIG)),
    "nested": lambda: {"items": [{"id": n, "tags": ["a", "b"]} for n in range(500)]},
    "of texts": lambda: ["x" * LARGE],
}


def cell(memory: Variables, names: dict[str, Any], source: str) -> tuple[set[str], list[str]]:
    exec(source, names)
    names.pop("__builtins__", None)
    made, gone = memory.after_run(names, source)
    assert all(names[name] is value for name, value in made.items())
    return set(made), gone


@pytest.mark.parametrize("make", LARGE_VALUES.values(), ids=LARGE_VALUES)
def test_large_values_are_told_once(make: Callable[[], object]) -> None:
    memory = Variables()
    names: dict[str, Any] = {"make": make}
    assert cell(memory, names, "x = make()") == ({"x"}, [])
    assert cell(memory, names, "y = 1") == (set(), [])
    assert cell(memory, names, "z = type(x)") == (set(), [])
    assert cell(memory, names, "x = make()") == ({"x"}, [])


@pytest.mark.parametrize("value", [1, 1.5, None, "short", [1, 2], {"a": 1}, object(), len, pd])
def test_small_values_are_not_told(value: object) -> None:
    assert not is_large(value)
    assert Variables().after_run({"x": value}, "x") == ({}, [])


def test_cycles_and_hostile_values_are_weighed_in_bounded_time() -> None:
    loop: list[Any] = []
    loop.append(loop)
    forked: Any = []
    for _ in range(200):
        forked = [forked, forked]

    class Liar(np.ndarray[Any, Any]):
        @property
        def nbytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
            raise RuntimeError

    assert not is_large(loop)
    is_large(forked)
    assert not is_large(np.zeros(BIG).view(Liar))


@pytest.mark.parametrize(
    "source",
    [
        "x['c'] = 1",
        "x.loc[0, 'a'] = 7",
        "x += 1",
        "x.a[0] = 7\nNone",
        "del x['a']",
        "x.drop(columns='a', inplace=True)",
        "x.pop('a')\nNone",
        "x.attrs['k'] = 1",
        "y, x[0] = 1, 2",
    ],
)
def test_changes_of_a_value_where_it_is_are_told(source: str) -> None:
    memory = Variables()
    names: dict[str, Any] = {"x": frame()}
    memory.after_run(names, "x = 1")
    made, _ = memory.after_run(names, source)
    assert set(made) == {"x"}


@pytest.mark.parametrize("source", ["x.head()", "y = x['a'].mean()", "print(x.shape)", "1 + 1"])
def test_reading_a_value_does_not_tell_of_it_again(source: str) -> None:
    memory = Variables()
    names: dict[str, Any] = {"x": frame()}
    memory.after_run(names, "x = 1")
    assert memory.after_run(names, source) == ({}, [])


def test_growth_by_a_function_is_told() -> None:
    memory = Variables()
    names: dict[str, Any] = {"x": [0] * BIG, "y": frame()}
    memory.after_run(names, "x = y = 1")
    names["x"].append(1)
    names["y"]["new"] = 1
    made, _ = memory.after_run(names, "change()")
    assert set(made) == {"x", "y"}


def test_what_is_gone_or_has_become_small_is_told_once() -> None:
    memory = Variables()
    names: dict[str, Any] = dict.fromkeys("abcd", "x" * BIG)
    memory.after_run(names, "a = b = c = d = 1")
    assert cell(memory, names, "del a\nb = 1\nc = 'short'") == (set(), ["a", "b", "c"])
    assert cell(memory, names, "e = 1") == (set(), [])


def test_names_of_the_host_and_private_names_are_not_told() -> None:
    memory = Variables()
    bound = frame()
    memory.note("bound", bound)
    names = {"bound": bound, "_private": frame(), "__file__": "x" * BIG}
    assert memory.after_run(names, "len(bound)") == ({}, [])


def test_many_variables_are_told_within_bounds() -> None:
    names = {f"x{number}": "x" * BIG for number in range(3 * MAX_TOLD)}
    made, _ = Variables().after_run(names, "x")
    assert len(made) == MAX_TOLD


def test_a_cleared_namespace_is_told_anew() -> None:
    memory = Variables()
    names: dict[str, Any] = {"x": "x" * BIG}
    memory.after_run(names, "x")
    memory.forget()
    assert set(memory.after_run(names, "x")[0]) == {"x"}
    assert memory.after_run({}, "x") == ({}, ["x"])
