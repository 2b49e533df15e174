"""Variables as bytes: what comes back, what is left out, and what it is told."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

from py_code_mode.guest import saving
from py_code_mode.guest.saving import Saved, Unloadable, load, save

LIMIT = 64 << 20
ECHO: Any = threading.Lock()  # what the session gives: it is not saved, and cannot be


def namespace(source: str = "") -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__", "tools": ECHO}
    exec(source, names)
    return names


def there_and_back(source: str) -> tuple[Saved, dict[str, Any]]:
    saved = save(namespace(source), {"tools": ECHO}, LIMIT)
    again = namespace()
    names = load(again, {"tools": ECHO}, [bytearray(part) for part in saved.parts])
    assert sorted(names) == sorted(saved.types)
    return saved, again


def test_what_variables_share_stays_shared() -> None:
    _, again = there_and_back("a = [1]; b = {'a': a}; c = (a, b)")
    again["a"].append(2)
    assert again["c"] == ([1, 2], {"a": [1, 2]})


def test_functions_see_the_variables_of_the_session_that_loads_them() -> None:
    pytest.importorskip("cloudpickle")
    _, again = there_and_back(
        "x = 1\ndef f(): return x\nclass A:\n    def g(self): return f() + x\na = A()"
    )
    again["x"] = 5
    assert again["f"]() == 5
    assert again["a"].g() == 10
    assert isinstance(again["a"], again["A"])


def test_modules_and_what_the_session_gives_are_named_only() -> None:
    saved, again = there_and_back("import math, os.path as place; mine = [tools, math]")
    assert again["mine"] == [ECHO, sys.modules["math"]]
    assert again["place"] is sys.modules["posixpath"]
    assert "tools" not in saved.types


def test_a_name_of_the_session_that_the_user_took_is_the_users() -> None:
    saved, again = there_and_back("tools = [1]")
    assert again["tools"] == [1]
    assert saved.types["tools"] == "list"


@pytest.mark.parametrize(
    "source",
    [
        "import threading; bad = threading.Lock()",
        "class T:\n    def __reduce__(self): raise ValueError('no')\nbad = T()",
        "bad = (n for n in 'abc')",
        "bad = []\nfor _ in range(100_000): bad = [bad]",
    ],
)
def test_what_cannot_be_saved_is_left_out_and_said(source: str) -> None:
    saved = save(namespace(source + "\nkept = [1]"), {"tools": ECHO}, LIMIT)
    assert set(saved.skipped) == {"bad"}
    assert len(saved.skipped["bad"]) <= 300
    again = namespace()
    load(again, {"tools": ECHO}, saved.parts)
    assert again["kept"] == [1]


def test_a_module_made_by_hand_keeps_nothing_from_coming_back() -> None:
    _, again = there_and_back("import types; made = types.ModuleType('made'); kept = [1]")
    assert again["kept"] == [1]


def test_what_goes_beyond_the_limit_is_left_out() -> None:
    names = namespace("small = 1; text = 'x' * 200_000")
    names["array"] = np.zeros(100_000)
    saved = save(names, {"tools": ECHO}, 100_000)
    assert set(saved.skipped) == {"text", "array"}
    assert set(saved.types) == {"small"}
    assert sum(memoryview(part).nbytes for part in saved.parts) <= 100_000


def test_the_limit_holds_for_all_together_with_their_names() -> None:
    names = namespace()
    names |= {f"{'n' * 200}{number}": number for number in range(100)}
    for limit in (200, 2000, 10_000):
        saved = save(names, {"tools": ECHO}, limit)
        assert sum(memoryview(part).nbytes for part in saved.parts) <= limit
        assert len(saved.types) + len(saved.skipped) == 100


def test_large_arrays_are_parts_of_their_own() -> None:
    names = namespace()
    names["array"] = np.arange(100_000)
    saved = save(names, {"tools": ECHO}, LIMIT)
    assert [memoryview(part).nbytes for part in saved.parts[1:]] == [800_000]
    assert np.shares_memory(np.frombuffer(saved.parts[1], dtype=np.int64), names["array"])
    again = namespace()
    load(again, {"tools": ECHO}, [bytearray(part) for part in saved.parts])
    again["array"][0] = 7  # what comes back can be changed
    assert names["array"][0] == 0


@pytest.mark.parametrize("source", ["x = 1\ndel __name__", "x = 1\n__name__ = 7"])
def test_the_users_hold_on_the_namespace_is_survived(source: str) -> None:
    names = namespace()
    exec(source, names)
    assert save(names, {"tools": ECHO}, LIMIT).types == {"x": "int"}


@pytest.mark.parametrize("damage", ["cut", "other version", "garbage", "none", "no dict"])
def test_what_cannot_be_loaded_changes_nothing(
    damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bytes(save(namespace("x = [1] * 100"), {"tools": ECHO}, LIMIT).parts[0])
    if damage == "cut":
        first = first[:-20]
    elif damage == "garbage":
        first = first[:12] + b"\xff" * 100
    elif damage == "none":
        first = b""
    elif damage == "no dict":
        first = first.partition(b"\n")[0] + b"\nI1\n."
    else:
        monkeypatch.setattr(saving, "_VERSION", b"Python 3.99\n")
    again = namespace()
    before = dict(again)
    with pytest.raises(Unloadable):
        load(again, {"tools": ECHO}, [first])
    assert again == before
