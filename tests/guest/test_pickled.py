"""Pickle goes from a host to a guest that trusts it, and in no other direction."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from py_code_mode.guest.errors import ValueNotPortable
from py_code_mode.guest.values import InvalidValue, MissingHere, decode, encode, encode_pickled

from ..sample_values import ONLY_IN_PYTHON, SAMPLES, same

np: Any = numpy
pd: Any = pandas


def taken(value: object) -> tuple[Any, list[bytearray]]:
    segments: list[Any] = []
    tree = encode_pickled(value, segments)
    return json.loads(json.dumps(tree)), [bytearray(segment) for segment in segments]


# numpy itself brings big-endian arrays back in the machine's order
@pytest.mark.parametrize("name", sorted(set(SAMPLES) - {"array, big endian"}))
def test_what_can_be_pickled_comes_back(name: str) -> None:
    value = SAMPLES[name]()
    assert same(decode(*taken(value), trusts_sender=True), value)


def test_there_are_values_that_need_it() -> None:
    assert len(ONLY_IN_PYTHON) > 20


def test_large_buffers_are_segments_and_can_be_written_to() -> None:
    array = np.arange(100_000.0)
    tree, segments = taken({"array": array, "other": {1: array[:10]}})
    assert len(segments) == 1
    back = decode(tree, segments, trusts_sender=True)
    back["array"][0] = 5.0
    assert bytes(segments[0][:8]) == np.float64(5.0).tobytes()
    assert array[0] == 0.0


class Marker:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writable", [False, True])
def test_it_is_refused_unread_unless_the_sender_is_trusted(writable: bool, tmp_path: Path) -> None:
    tree, segments = taken(Marker(str(tmp_path / "trace")))
    for wrapped in (tree, [tree], {"a": tree}):
        with pytest.raises(InvalidValue, match="unknown tag"):
            decode(wrapped, segments, writable=writable)
    assert not list(tmp_path.iterdir())


def test_it_is_taken_as_a_whole_value_only(tmp_path: Path) -> None:
    tree, segments = taken(Marker(str(tmp_path / "trace")))
    for wrapped in ([tree], {"a": tree}, {"$tuple": [tree]}, {"a": 1, **tree}):
        with pytest.raises(InvalidValue):
            decode(wrapped, segments, trusts_sender=True)
    assert not list(tmp_path.iterdir())


def test_a_dict_with_such_a_key_is_data() -> None:
    parts: list[Any] = ["builtins.int", "AAAA", []]
    value = {"$pickle": parts}
    assert decode(encode(value, []), [], trusts_sender=True) == value


@pytest.mark.parametrize(
    "payload",
    [None, 1, [], ["x"], ["x", 0], ["x", 0, []], ["x", "AAAA", [0]], [1, "AAAA", []],
     ["x", "AAAA", None]],
    ids=str,
)  # fmt: skip
def test_a_malformed_one_is_invalid(payload: Any) -> None:
    with pytest.raises(InvalidValue):
        decode({"$pickle": payload}, [], trusts_sender=True)


def test_a_module_or_a_class_missing_here_is_told_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Local:
        pass

    Local.__qualname__ = "Local"
    Local.__module__ = __name__
    monkeypatch.setitem(globals(), "Local", Local)
    tree, segments = taken(Local())
    monkeypatch.delitem(globals(), "Local")
    with pytest.raises(MissingHere, match=r"Local.*cannot be built on this side"):
        decode(tree, segments, trusts_sender=True)
    made = pickle.dumps(Marker("x")).replace(b"posix", b"posiy")
    parts: list[Any] = ["some.Type", base64.b64encode(made).decode(), []]
    with pytest.raises(MissingHere, match=r"some\.Type: the module 'posiy' is not installed"):
        decode({"$pickle": parts}, [], trusts_sender=True)


nameless: Any = [lambda: 1][0]


@pytest.mark.parametrize(
    "value", [nameless, (n for n in [1]), sys.stderr, {"a": [object, nameless]}]
)
def test_what_cannot_be_pickled_is_refused(value: Any) -> None:
    with pytest.raises(ValueNotPortable, match="pickled"):
        encode_pickled(value, [])


@pytest.mark.parametrize(
    "value",
    [np.ones(10_000), b"x" * 80_000, ["text" * 10] * 3000, pd.DataFrame({"a": range(10_000)})],
    ids=lambda value: type(value).__name__,
)
def test_the_limit_holds(value: Any) -> None:
    encode_pickled(value, [])
    if type(value) is list:
        value = [f"{n:40}" for n in range(3000)]
    with pytest.raises(ValueNotPortable, match="too large"):
        encode_pickled(value, [], limit=50_000)


def test_pickle_is_loaded_when_it_is_needed_only() -> None:
    code = "import sys, py_code_mode.guest.values; print('pickle' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.stdout.strip() == "False"
