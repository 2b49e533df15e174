"""Records: whatever they hold becomes a line and comes back, and nothing is altered silently."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import pathlib
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py_code_mode.journal.records import (
    MAX_DEPTH,
    RECORD_TYPES,
    Call,
    Chunk,
    ErrorInfo,
    Event,
    Foreign,
    Header,
    InvalidRecord,
    Patch,
    Record,
    Run,
    SavedState,
    Tagged,
    Trailer,
    args_sha256,
    decode,
    decode_dict,
    encode,
    from_dict,
    merge_patch,
    plain,
    restore,
    stamp,
    to_dict,
)

EXAMPLES: list[Record] = [
    Header(schema_version=2, id="a", created_at="2026-01-01T00:00:00Z", metadata={"k": [1]}),
    Run(run_id=1, code="1 + 1", metadata={"b": 1.5}),
    Run(run_id=1, status="error", state="restored", restored_to=0, error=ErrorInfo(type="E")),
    Call(call_id="c", tool_name="tools.get", run_id=1, arguments={"url": "x"}, result=[1]),
    Event(kind="rollback", run_id=3),
    Chunk(kind="user", payload={"content": "hi"}, index=0),
    Patch(patch={"title": None}),
    SavedState(saved_state_id="s", at_run=2, skipped={"f": "a file"}),
    Trailer(closed_at="now", final_seq=3, final_chunk_count=0),
]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.record_type)
def test_record_comes_back_from_its_line(record: Record) -> None:
    line = encode(record, seq=7, ts="2026-01-01T00:00:00Z")
    found = decode(line)
    assert found.seq == 7
    assert found.ts == "2026-01-01T00:00:00Z"
    assert to_dict(found) == decode_dict(line)
    assert from_dict(to_dict(found)) == found
    assert encode(found) == encode(to_dict(found))


def test_every_type_has_its_name_once() -> None:
    names = "header run call event turn transition chunk patch saved_state reopen recovery trailer"
    assert sorted(RECORD_TYPES) == sorted(names.split())


def test_unknown_type_is_an_error_and_somebody_elses_is_kept() -> None:
    with pytest.raises(InvalidRecord, match="unknown record_type='note'"):
        decode(b'{"seq":1,"ts":"","record_type":"note"}')
    found = decode(b'{"seq":1,"ts":"t","record_type":"x-note","deep":{"a":[1]},"crc":"00000000"}')
    assert found == Foreign(record_type="x-note", data={"deep": {"a": [1]}}, seq=1, ts="t")
    assert json.loads(encode(found)) == to_dict(found)


def test_unknown_keys_are_read_over_and_stay_when_a_line_is_rewritten() -> None:
    line = b'{"seq":1,"ts":"t","record_type":"run","run_id":4,"future":{"a":1}}'
    assert decode(line) == Run(seq=1, ts="t", run_id=4)
    again = encode(decode_dict(line), seq=9, ts="u")
    assert json.loads(again) == {**json.loads(line), "seq": 9, "ts": "u"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"a":"\xff"}',
        b"{}",
        b'{"record_type":7}',
        b'{"record_type":["run"]}',
        b'{"record_type":"run"}',
        b'{"record_type":"run","run_id":"1"}',
        b'{"record_type":"run","run_id":1,"status":"perhaps"}',
        b'{"record_type":"x-a","seq":"1"}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"record_type":"chunk","kind":"user","payload":[]}',
    ],
)
def test_line_that_is_no_record_is_an_invalid_record(line: bytes) -> None:
    with pytest.raises(InvalidRecord):
        decode(line)


# --- values

VALUES: list[Any] = [
    None,
    True,
    -1,
    2**53 + 1,
    2**70,
    2**20000,
    1.5,
    math.inf,
    -math.inf,
    "",
    "é\N{GRINNING FACE}\0",
    "\u2028\u2029\x85",
    "\ud800",
    b"",
    b"\xff\0",
    b"x" * 10_000,
    (),
    (1, (2,)),
    {1, 2},
    frozenset("ab"),
    [1, [2, {"a": None}]],
    {"a": {"b": (1,)}},
    {1: "a", "1": "b", None: 2, (1, 2): 3},
    {"$float": "nan"},
    {"$blob": "sha256:00", "size": 1},
    {"$repr": "x", "y": b"z"},
    {"\ud800": 1},
    1j,
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    datetime.date(2026, 1, 2),
    datetime.timedelta(1, 2, 3),
    decimal.Decimal("1.10"),
    uuid.UUID(int=5),
    pathlib.PurePosixPath("/a/b"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_comes_back_with_its_type(value: Any) -> None:
    line = encode(Run(run_id=1, value=plain(value)), seq=1)
    assert len(line.decode().splitlines()) == 1
    record = decode(line)
    assert isinstance(record, Run)
    found = restore(record.value)
    assert found == value
    assert type(found) is type(value)


def test_nan_comes_back() -> None:
    assert math.isnan(restore(plain([float("nan")]))[0])


@pytest.mark.parametrize("value", [{"a": [1, 2.5, "x", None, True]}, [], {}, "text", 5])
def test_plain_value_stays_the_same_object(value: Any) -> None:
    assert plain(value) is value


def test_description_stands_for_what_has_no_form() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise SystemError("no")

    class Long:
        def __repr__(self) -> str:
            return "x" * 100_000

    assert plain(Loud()) == {"$repr": "<Loud: describing it raised SystemError>"}
    assert len(plain(Long())["$repr"]) == 1000
    assert plain([object])[0]["$repr"] == "<class 'object'>"


def test_subclass_is_taken_for_text_or_described() -> None:
    class Text(str):
        __slots__ = ()

    class Mapping(dict[str, int]):
        pass

    found = plain([Text("a"), Mapping(b=1)])
    assert found == ["a", {"$repr": "{'b': 1}"}]
    assert type(found[0]) is str


def test_what_contains_itself_is_described() -> None:
    circle: list[Any] = [1]
    circle.append({"again": circle})
    assert plain(circle) == [1, {"again": {"$repr": "<list: it contains itself>"}}]
    twice = [1]
    assert plain((twice, twice)) == {"$tuple": [[1], [1]]}


@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_deep_value_ends_in_a_description(kind: type) -> None:
    value: object = 1
    for _ in range(10_000):
        value = {"a": value} if kind is dict else [value] if kind is list else (value,)
    found = plain(value)
    line = encode(Run(run_id=1, value=found), seq=1)
    assert b"too deep" in line
    assert decode(line) == Run(run_id=1, value=found, seq=1)
    depth = max(line.count(b"["), line.count(b"{"))
    assert MAX_DEPTH <= depth <= 2 * MAX_DEPTH


def test_value_that_stands_for_very_many_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("py_code_mode.journal.records.MAX_NODES", 10_000)
    value: Any = [()]
    for _ in range(60):
        value = [value, value]
    assert len(json.dumps(plain(value))) < 10_000_000


def test_reference_is_kept_and_its_look_alike_is_data() -> None:
    reference = Tagged({"$blob": "sha256:00", "size": 5})
    assert plain({"a": reference, "b": (reference,)}) == {
        "a": reference,
        "b": {"$tuple": [reference]},
    }
    assert plain(dict(reference)) != dict(reference)
    assert plain(Tagged.snapshot({"rows": 5})) == {"$snapshot": {"rows": 5}}


def test_tree_from_a_journal_is_not_tagged_again() -> None:
    tree = plain({"a": (1, float("nan")), "$x": b"y"})
    assert plain(tree, is_tagged=True) == tree
    assert plain(tree) != tree


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.just("$float"), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(json_values)
def test_any_value_of_plain_types_comes_back(value: Any) -> None:
    record = decode(encode(Run(run_id=1, value=plain(value)), seq=1))
    assert isinstance(record, Run)
    assert repr(restore(record.value)) == repr(value)


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_an_invalid_one(line: bytes) -> None:
    try:
        decode(line)
    except InvalidRecord:
        pass


# --- the rest


def test_arguments_have_one_digest_whatever_their_order() -> None:
    assert args_sha256({"a": 1, "b": [2]}) == args_sha256({"b": [2], "a": 1})
    assert args_sha256({"a": (1,)}) != args_sha256({"a": [1]})
    assert len(args_sha256({"a": "\ud800", "b": float("nan"), "c": object})) == 64


# RFC 7396, appendix A
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_does_what_the_rfc_says(target: Any, patch: Any, result: Any) -> None:
    before = json.dumps(target)
    assert merge_patch(target, patch) == result
    assert json.dumps(target) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1.5, "1970-01-01T00:00:01.500000Z"),
        (-0.25, "1969-12-31T23:59:59.750000Z"),
        (4102444800, "2100-01-01T00:00:00.000000Z"),
        (math.nan, "1970-01-01T00:00:00.000000Z"),
        (1e300, "1970-01-01T00:00:00.000000Z"),
    ],
)
def test_moment_is_told_in_one_form_whatever_the_clock_says(seconds: float, text: str) -> None:
    assert stamp(seconds) == text
