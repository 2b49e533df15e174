"""The reader: what a journal comes to, and what is wrong with it, by line and byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import (
    CorruptRecordError,
    LineageConsistencyError,
    PersistenceError,
    SchemaVersionError,
)
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.loader import iter_records, meta, read_journal
from py_code_mode.journal.records import (
    Call,
    Chunk,
    ErrorInfo,
    Event,
    InvalidRecord,
    Patch,
    Record,
    Reopen,
    Run,
    SavedState,
    Trailer,
    Transition,
    Turn,
    decode_dict,
    encode,
    from_dict,
)
from py_code_mode.stores.log import seal

from ..memory import PEAK

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = {"record_type": "header", "schema_version": 2, "id": "a", "created_at": "2026-01-01"}


def line(record: Record | dict[str, Any], seq: int) -> bytes:
    return seal(encode(record, seq=seq, ts="2026-01-01T00:00:00Z"))


def written(path: Path, *records: Record | dict[str, Any]) -> Path:
    """A journal of these records, numbered as they come; the header is put before them."""
    every = [HEADER, *records]
    path.write_bytes(b"".join(line(record, seq) for seq, record in enumerate(every)))
    return path


def ran(run_id: int, **outcome: Any) -> list[Record]:
    return [
        Run(run_id=run_id, code=f"run {run_id}"),
        Run(run_id=run_id, status=outcome.pop("status", "ok"), **outcome),
    ]


def live(path: Path, *records: Record | Sequence[Record]) -> list[int]:
    flat = [r for some in records for r in ([some] if isinstance(some, Record) else some)]
    return [run.run_id for run in read_journal(written(path, *flat)).live_line]


# --- what records come to


def test_run_is_folded_from_its_intent_and_outcome(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        Run(run_id=1, code="f()", started_at="then", turn_id="t"),
        Call(call_id="c", tool_name="tools.get", run_id=1, arguments={"a": 1}, status="running"),
        Call(call_id="c", tool_name="tools.get", run_id=1, result=5, duration_ms=2.0),
        Run(run_id=1, status="error", error=ErrorInfo(type="E"), stdout="out", value=3),
        Run(run_id=2, code="crash()"),
    )
    found = read_journal(path)
    run = found.run(1)
    assert (run.code, run.started_at, run.turn_id) == ("f()", "then", "t")
    assert (run.status, run.stdout, run.value, run.error) == (
        "error",
        "out",
        3,
        ErrorInfo(type="E"),
    )
    assert [(call.arguments, call.result, call.status) for call in run.calls] == [
        ({"a": 1}, 5, "success")
    ]
    crashed = found.run(2)
    assert crashed.status == "crashed"
    assert crashed.outcome is None
    assert [run.run_id for run in found.live_line] == [1, 2]
    with pytest.raises(KeyError):
        found.run(3)


def test_other_records_are_gathered_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        Turn(turn_id="t1", prompt="first"),
        Transition(to_agent="b"),
        Turn(turn_id="t2"),
        Turn(turn_id="t1", prompt="again"),
        Chunk(kind="user", payload={"content": "hi"}, index=0),
        SavedState(saved_state_id="s", at_run=0),
        {"record_type": "x-mine", "a": 1},
        Event(kind="put", data={"name": "x"}),
        Patch(patch={"title": "new", "metadata": {"a": 1, "b": 2}}),
        Patch(patch={"metadata": {"a": None}, "id": "other", "schema_version": 9}),
    )
    found = read_journal(path)
    assert [(turn.turn_id, turn.prompt) for turn in found.turns] == [("t1", "again"), ("t2", "")]
    assert len(found.transitions) == len(found.chunks) == len(found.saved_states) == 1
    assert found.events[0].data == {"name": "x"}
    assert (found.id, found.header.title, found.header.metadata) == ("a", "new", {"b": 2})
    assert found.original_header.title is None
    assert found.last_seq == 10
    assert [record.seq for record in found.records] == list(range(11))
    assert found.offsets[3] == path.read_bytes().index(b'{"seq":3,')
    assert found.end == path.stat().st_size


def test_live_line_leaves_out_what_was_undone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    three = [record for n in (1, 2, 3) for record in ran(n)]
    assert live(path, three) == [1, 2, 3]
    assert live(path, three, Event(kind="rollback", run_id=1), ran(4)) == [1, 4]
    assert live(path, three, Event(kind="rollback", run_id=0), ran(4)) == [4]
    assert live(path, three, Event(kind="reset"), ran(4)) == [4]
    timed_out = ran(4, status="timeout", state="restored", restored_to=2)
    assert live(path, three, timed_out, ran(5)) == [1, 2, 5]
    from_start = ran(4, status="timeout", state="restored", restored_to=0)
    assert live(path, three, from_start, ran(5)) == [5]
    assert live(path, three, ran(4, status="error", state="lost"), ran(5)) == [5]
    assert live(path, three, ran(4, status="error"), ran(5)) == [1, 2, 3, 4, 5]
    crashed = [Run(run_id=4, code="x"), Reopen()]
    assert live(path, three, crashed, ran(5)) == [1, 2, 3, 4, 5]
    skipped = Event(kind="skip", data={"run_ids": [4]})
    assert live(path, three, crashed, skipped, ran(5)) == [1, 2, 3, 5]
    assert live(path, three, Event(kind="put"), Event(kind="dep"), ran(4)) == [1, 2, 3, 4]


def test_rollback_to_a_branch_that_was_left_brings_its_runs_back(tmp_path: Path) -> None:
    first = [ran(1), ran(2), Event(kind="rollback", run_id=1), ran(3)]
    path = tmp_path / "a.jsonl"
    assert live(path, *first) == [1, 3]
    assert live(path, *first, Event(kind="rollback", run_id=2), ran(4)) == [1, 2, 4]


# --- forks


def test_fork_has_the_past_of_its_parents_up_to_the_fork(tmp_path: Path) -> None:
    written(tmp_path / "p.jsonl", *ran(1), *ran(2), *ran(3), Patch(patch={"title": "parent"}))
    (tmp_path / "p.jsonl").rename(tmp_path / "a.jsonl")
    with SessionJournal.create(tmp_path, "b", fork_point={"id": "a", "seq": 4}) as journal:
        for record in ran(3):
            journal.append(record)
    with SessionJournal.create(tmp_path, "c", fork_point={"id": "b", "seq": 2}) as journal:
        journal.append(Event(kind="rollback", run_id=1))
        for record in ran(4):
            journal.append(record)
    found = read_journal(tmp_path / "c.jsonl")
    assert [(run.run_id, run.session_id) for run in found.runs] == [
        (1, "a"),
        (2, "a"),
        (3, "b"),
        (4, "c"),
    ]
    assert [run.run_id for run in found.live_line] == [1, 4]
    assert found.header.title is None
    assert len(found.prefix) == 6
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(LineageConsistencyError, match="forked from a"):
        read_journal(tmp_path / "c.jsonl")
    assert read_journal(tmp_path / "c.jsonl", on_error="skip").problems


def test_fork_of_itself_is_an_error(tmp_path: Path) -> None:
    SessionJournal.create(tmp_path, "a", fork_point={"id": "b", "seq": 0}).close()
    SessionJournal.create(tmp_path, "b", fork_point={"id": "a", "seq": 0}).close()
    with pytest.raises(LineageConsistencyError):
        read_journal(tmp_path / "a.jsonl")


def test_long_chain_of_forks_is_read(tmp_path: Path) -> None:
    for n in range(1200):
        point = {"id": f"s{n - 1}", "seq": 1} if n else None
        header = {**HEADER, "id": f"s{n}", "fork_point": point}
        (tmp_path / f"s{n}.jsonl").write_bytes(line(header, 0) + line(Run(run_id=n), 1))
    assert len(read_journal(tmp_path / "s1199.jsonl").runs) == 1200


# --- what is wrong


def parts(*records: Record) -> list[bytes]:
    return [line(HEADER, 0), *(line(record, seq) for seq, record in enumerate(records, 1))]


ONE, TWO, THREE = (Run(run_id=n, code=f"run {n}") for n in (1, 2, 3))
GOOD = parts(ONE, TWO, THREE)
END = line(Trailer(final_seq=3, final_chunk_count=0), 4)
WRONG: dict[str, tuple[list[bytes], int, str]] = {
    "a block of zeros": ([*GOOD[:2], b"\0" * 99 + b"\n", *GOOD[2:]], 3, "not what was written"),
    "garbage": ([*GOOD[:2], b"garbage\n", *GOOD[2:]], 3, "not what was written"),
    "bytes that are no text": ([*GOOD[:2], b"\xff\xfe\n", *GOOD[2:]], 3, "not what was written"),
    "an empty line": ([*GOOD[:2], b"\n", *GOOD[2:]], 3, "not what was written"),
    "no checksum": ([*GOOD[:2], b'{"seq":2,"record_type":"run","run_id":2}\n'], 3, "no checksum"),
    "no object": ([*GOOD[:2], b"[1]\n", *GOOD[2:]], 3, "not what was written"),
    "a missing record": ([*GOOD[:2], GOOD[3]], 3, "missing before it: 2 to 2"),
    "a number twice": ([*GOOD, line(Run(run_id=9), 2)], 5, "it has seq 2 of another"),
    "a second header": ([*GOOD[:2], line(HEADER, 2)], 3, "duplicate header"),
    "an unknown type": ([*GOOD[:2], seal(b'{"seq":2,"ts":"","record_type":"y"}')], 3, "unknown"),
    "a wrong field": (
        [*GOOD[:2], seal(b'{"seq":2,"ts":"","record_type":"run","run_id":[]}')],
        3,
        "run",
    ),
    "no header": (GOOD[1:], 1, "run record before header"),
    "a damaged header": ([b"x" + GOOD[0], *GOOD[1:]], 1, "not what was written"),
    "a record after the trailer": ([*GOOD, END, line(Event(kind="x"), 5)], 6, "after the trailer"),
    "a wrong final number": ([*GOOD, line(Trailer(final_seq=7), 4)], 5, "final_seq is 7"),
    "a wrong count": ([*GOOD, line(Trailer(final_chunk_count=7), 4)], 5, "final_chunk_count is 7"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_an_error_with_its_place_or_a_problem(tmp_path: Path, what: str) -> None:
    content, number, words = WRONG[what]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(content))
    offset = sum(map(len, content[: number - 1]))

    def stream() -> None:
        assert len(list(iter_records(path))) == 0

    for read in (lambda: read_journal(path), stream):
        with pytest.raises(CorruptRecordError, match=words) as caught:
            read()
        assert (caught.value.line, caught.value.offset) == (number, offset)
        assert f"{path}:{number}: " in str(caught.value)
    found = read_journal(path, on_error="skip")
    assert found.id == "a"
    assert any((p.line, p.offset) == (number, offset) for p in found.problems)
    expected = {int(run["run_id"]) for part in content if (run := _run_of(part))}
    assert {run.run_id for run in found.runs} | {9} == expected | {9}


def _run_of(part: bytes) -> dict[str, Any] | None:
    try:
        found = decode_dict(part)
        record = from_dict(found)
    except InvalidRecord:
        return None
    return found if isinstance(record, Run) and "crc" in found else None


def test_same_record_twice_is_dropped_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join([*GOOD[:3], GOOD[2], GOOD[3]]))
    found = read_journal(path)
    assert [run.run_id for run in found.runs] == [1, 2, 3]
    assert [problem.is_accepted for problem in found.problems] == [True]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_every_flipped_bit_is_an_error_and_alters_nothing(tmp_path: Path, at: int) -> None:
    path = tmp_path / "a.jsonl"
    start = sum(map(len, GOOD[:at]))
    whole = b"".join([*GOOD, END])
    path.write_bytes(whole)
    clean = {record.seq: record for record in read_journal(path).records}
    for position in range(start, start + len(GOOD[at])):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(PersistenceError):
            read_journal(path)
        try:
            found = read_journal(path, on_error="skip")
        except PersistenceError:
            continue
        assert found.problems
        for record in found.records[1:] if at == 0 else found.records:
            assert clean[record.seq] == record


def test_line_that_is_being_written_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = b"".join(GOOD)
    for size in range(len(GOOD[0]), len(whole)):
        path.write_bytes(whole[:size])
        found = read_journal(path)
        assert len(found.records) == whole[:size].count(b"\n")
        assert all(problem.is_accepted for problem in found.problems)
        assert len(list(iter_records(path))) == len(found.records)


def test_damage_that_a_recovery_knows_is_no_error(tmp_path: Path) -> None:
    """After a power cut: lines that were not synced are gone, and later ones are there."""
    path = tmp_path / "a.jsonl.__partial__"
    later = line(Run(run_id=4, code="run 4"), 4)
    path.write_bytes(GOOD[0] + GOOD[1] + b"\0" * len(GOOD[2]) + GOOD[3] + later)
    with pytest.raises(CorruptRecordError):
        read_journal(path)
    SessionJournal.reopen(tmp_path, "a").close()
    found = read_journal(tmp_path / "a.jsonl")
    assert [run.run_id for run in found.runs] == [1, 4]
    assert [problem.is_accepted for problem in found.problems] == [True]


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 50, GOOD[0][:-5], b"text\n", b"[]\n"])
def test_file_without_a_header_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for on_error in ("raise", "skip"):
        with pytest.raises(PersistenceError):
            read_journal(path, on_error=on_error)
    with pytest.raises(PersistenceError):
        meta(path)
    with pytest.raises(PersistenceError):
        read_journal(tmp_path / "missing.jsonl")


# --- versions


def old(*records: dict[str, Any], **header: Any) -> bytes:
    first = {"record_type": "header", "schema_version": 1, "id": "a", "created_at": "2026-01-01"}
    return b"".join(json.dumps(r).encode() + b"\n" for r in [{**first, **header}, *records])


CHUNK = {"record_type": "chunk", "index": 0, "kind": "user", "payload": {"content": "é\u2028"}}
OLD_TRAILER = {"record_type": "trailer", "closed_at": "2026-01-02", "final_chunk_count": 1}


VERSION_1 = old(CHUNK, OLD_TRAILER)


@pytest.mark.parametrize(
    "content",
    [
        VERSION_1,
        VERSION_1.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + VERSION_1,
        VERSION_1.replace(b"\n", b"\n\n"),
        VERSION_1 + b'{"record_ty',
    ],
    ids=["as it is", "other line ends", "byte order mark", "blank lines", "torn"],
)
def test_file_of_version_1_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    found = read_journal(path)
    assert found.chunks[0].payload == {"content": "é\u2028"}
    assert [record.seq for record in found.records] == [0, 1, 2]
    assert found.is_closed
    assert meta(path).chunk_count == 1
    assert meta(path).is_closed


def test_malformed_line_of_version_1_is_told_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for bad, words in [
        (b'{"a":}\n', r"a.jsonl:2: invalid JSON \(col 6\)"),
        (b"[]\n", "must be a JSON object, got list"),
        (b"\xff\n", "invalid JSON"),
        (b'{"record_type":"chunk","kind":"x","payload":{}}\n', "chunk"),
        (b'{"record_type":"y"}\n', "unknown record_type='y'"),
        (old(), "duplicate header"),
    ]:
        path.write_bytes(old() + bad + old(CHUNK).splitlines()[1] + b"\n")
        with pytest.raises(CorruptRecordError, match=words):
            read_journal(path)
        assert len(read_journal(path, on_error="skip").chunks) == 1


@pytest.mark.parametrize("version", [3, 99, 0, -1])
def test_other_versions_are_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content := old(CHUNK, schema_version=version))
    for on_error in ("raise", "skip"):
        with pytest.raises(SchemaVersionError):
            read_journal(path, on_error=on_error)
    assert path.read_bytes() == content
    path.write_bytes(old(CHUNK, schema_version="x"))
    with pytest.raises(PersistenceError, match="schema_version='x'"):
        read_journal(path)


def test_records_of_old_versions_go_through_the_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(old({"record_type": "chunk", "role": "user"}, schema_version=0))

    def upgrade(record: dict[str, Any], version: int) -> dict[str, Any]:
        assert version == 0
        if record["record_type"] == "header":
            return {**record, "title": "upgraded"}
        return {"record_type": "chunk", "kind": record["role"], "payload": {}}

    found = read_journal(path, upgrade=upgrade)
    assert found.header.title == "upgraded"
    assert found.chunks[0].kind == "user"


# --- the head and the tail


def test_meta_agrees_with_the_whole(tmp_path: Path) -> None:
    for n, size in enumerate((10, 100_000)):
        name = f"s{n}"
        journal = SessionJournal.create(tmp_path, name)
        for index in range(3):
            journal.append(Chunk(kind="user", payload={"content": "x" * size}, index=index))
        for is_closed in (False, True):
            if is_closed:
                journal.close("done")
            path = Path(journal.path)
            found, whole = meta(path), read_journal(path)
            assert found.id == whole.id == name
            assert found.is_closed is whole.is_closed is is_closed
            assert found.status == ("done" if is_closed else "open")
            assert found.last_seq == whole.last_seq
            assert found.chunk_count == 3
            assert found.updated_at == whole.updated_at
            assert found.size == path.stat().st_size


def test_meta_finds_a_last_line_that_is_longer_than_its_window(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a")
    journal.append(Run(run_id=1, code="x" * 300_000))
    found = meta(journal.path)
    journal.abandon()
    assert (found.last_seq, found.chunk_count) == (1, None)


STREAMED = f"""{PEAK}
import sys
from py_code_mode.journal.loader import iter_records
before = peak()
count = sum(1 for _ in iter_records(sys.argv[1]))
print(count, (peak() - before) >> 20)
"""


def test_records_are_streamed_in_little_memory(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a", durability="process") as journal:
        for n in range(1000):
            journal.append(Run(run_id=n, code="x" * 50_000))
    command = [sys.executable, "-c", STREAMED, str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    count, mebibytes = map(int, done.stdout.split())
    assert count == 1002
    assert mebibytes < 32
