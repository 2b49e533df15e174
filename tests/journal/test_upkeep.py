"""Checking, mending and forking recorded sessions."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import CorruptRecordError, SessionNotFoundError
from py_code_mode.journal import (
    SessionIndex,
    SessionJournal,
    check_sessions,
    fork_session,
    read_journal,
    repair_sessions,
)
from py_code_mode.journal.records import Run
from py_code_mode.journal.upkeep import CUT_SUFFIX

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


def write(folder: Path, name: str, *texts: str, closes: bool = True) -> Path:
    journal = SessionJournal.create(folder, name)
    for number, text in enumerate(texts, 1):
        journal.append(Run(run_id=number, code=text))
        journal.append(Run(run_id=number, status="ok", value=text))
    if closes:
        journal.close()
    else:
        journal.flush()
        journal.abandon()
    return folder / journal.path


def test_sound_sessions_have_no_problem(folder: Path) -> None:
    write(folder, "one", "x", "y" * 100_000)
    write(folder, "crashed", "x", closes=False)
    assert list(check_sessions(folder)) == []


def test_check_tells_where_what_is_wrong(folder: Path) -> None:
    write(folder, "good", "x")
    path = write(folder, "bad", "first", "second")
    data = bytearray(path.read_bytes())
    place = data.index(b"second")
    data[place] ^= 1
    path.write_bytes(data)
    problems = list(check_sessions(folder))
    assert {problem.path for problem in problems} == {str(path)}
    start = data.rindex(b"\n", 0, place) + 1
    assert (problems[0].line, problems[0].offset) == (4, start)
    assert list(check_sessions(folder, "good")) == []
    with pytest.raises(SessionNotFoundError):
        list(check_sessions(folder, "nobody"))


@pytest.mark.parametrize("harm", ["missing", "altered"])
def test_check_reads_blobs_too(folder: Path, harm: str) -> None:
    write(folder, "one", "y" * 100_000)
    for blob in (folder / ".blobs").glob("??/*"):
        if harm == "missing":
            blob.unlink()
        else:
            blob.write_bytes(b"x")
    assert ["blob" in problem.reason for problem in check_sessions(folder)] == [True]


def test_check_misses_the_past_of_a_fork(folder: Path) -> None:
    path = write(folder, "one", "x")
    made = fork_session(folder, "one")
    path.unlink()
    (problem,) = check_sessions(folder)
    assert made in problem.path
    assert "forked from" in problem.reason


def test_damage_that_a_recovery_knows_of_is_no_problem(folder: Path) -> None:
    path = write(folder, "one", "first", "second", closes=False)
    data = bytearray(path.read_bytes())
    data[data.index(b"first")] ^= 1
    path.write_bytes(data)
    assert list(check_sessions(folder))
    SessionJournal.reopen(folder, "one").close()
    assert list(check_sessions(folder)) == []


def test_repair_keeps_what_it_cuts(folder: Path) -> None:
    path = write(folder, "one", "first", "second", closes=False)
    whole = path.read_bytes()
    torn = b'{"seq":9,"record_type":"run","code":"lost'
    path.write_bytes(whole + torn)
    done = repair_sessions(folder)
    assert set(done.cut) == {"one"}
    assert done.cut["one"].read_bytes() == torn
    assert done.cut["one"].name == f"one-{len(whole)}{CUT_SUFFIX}"
    assert done.cut["one"].stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(whole)
    assert len(read_journal(path).runs) == 2
    assert list(check_sessions(folder)) == []
    assert repair_sessions(folder).cut == {}


def test_repair_finishes_a_close_that_was_interrupted(folder: Path) -> None:
    path = write(folder, "one", "x")
    path = path.rename(folder / "one.jsonl.__partial__")
    assert repair_sessions(folder).closed == ("one",)
    assert (folder / "one.jsonl").exists()


def test_repair_leaves_live_sessions_alone(folder: Path) -> None:
    with SessionJournal.create(folder, "live") as journal:
        journal.append(Run(run_id=1, code="x"))
        journal.flush()
        with open(journal.path, "ab") as file:
            file.write(b'{"half')
        done = repair_sessions(folder)
        assert (done.in_use, done.cut) == (("live",), {})
        assert not list(folder.glob(f"*{CUT_SUFFIX}"))


def test_repair_sweeps_blobs_that_nobody_names(folder: Path) -> None:
    write(folder, "one", "a" * 100_000)
    write(folder, "two", "b" * 100_000).unlink()
    assert repair_sessions(folder).blobs == ()  # somebody may just be about to name it
    for blob in (folder / ".blobs").glob("??/*"):
        age(blob)
    removed = repair_sessions(folder).blobs
    assert removed is not None
    assert len(removed) == 1
    assert list(check_sessions(folder)) == []


def age(path: Path) -> None:
    before = time.time() - 100_000
    os.utime(path, (before, before))


def test_no_blob_is_removed_where_a_journal_cannot_be_read(folder: Path) -> None:
    write(folder, "one", "a" * 100_000).write_bytes(b"garbage\n")
    for blob in (folder / ".blobs").glob("??/*"):
        age(blob)
    assert repair_sessions(folder).blobs is None
    assert len(list((folder / ".blobs").glob("??/*"))) == 1


@pytest.mark.parametrize("closes", [True, False])
def test_a_session_that_is_damaged_further_up_goes_on_once_it_was_repaired(
    folder: Path, closes: bool
) -> None:
    path = write(folder, "one", "first", "second", "x" * 2_000_000, closes=closes)
    data = bytearray(path.read_bytes())
    data[data.index(b"first")] ^= 1
    data[data.index(b"second")] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptRecordError, match="py-code-mode sessions repair"):
        read_journal(path)
    assert repair_sessions(folder).passed_over == {}  # it is asked for by name
    assert repair_sessions(folder, "one").passed_over == {"one": 2}
    assert repair_sessions(folder, "one").passed_over == {}
    found = read_journal(path)
    assert [run.status for run in found.runs] == ["ok", "ok", "ok"]
    assert found.run(1).code == ""  # its intent was damaged
    assert found.is_closed is closes
    assert list(check_sessions(folder)) == []
    with pytest.raises(SessionNotFoundError):
        repair_sessions(folder, "nobody")


def test_repair_makes_the_index_anew(folder: Path) -> None:
    write(folder, "one", "word")
    with SessionIndex(folder) as index:
        index.path.write_bytes(b"garbage" * 100)
    assert repair_sessions(folder).is_indexed
    with SessionIndex(folder) as index:
        assert len(index.search("word")) == 1


def test_nothing_is_done_where_there_are_no_sessions(folder: Path) -> None:
    assert repair_sessions(folder).is_indexed
    assert list(check_sessions(folder)) == []
    assert not folder.exists()


def test_fork_has_the_same_past_and_copies_nothing(folder: Path) -> None:
    write(folder, "one", "first", "second", "third")
    made = fork_session(folder, "one", at=2)
    path = folder / f"{made}.jsonl"
    journal = read_journal(path)
    assert [run.code for run in journal.live_line] == ["first", "second"]
    assert b"second" not in path.read_bytes()
    assert journal.header.parent_session_ids == ["one"]
    again = fork_session(folder, made, at=1)
    runs = read_journal(folder / f"{again}.jsonl").live_line
    assert [run.code for run in runs] == ["first"]
    whole = read_journal(folder / f"{fork_session(folder, 'one')}.jsonl")
    assert len(whole.live_line) == 3


def test_fork_keeps_what_confined_the_code(folder: Path) -> None:
    SessionJournal.create(folder, "one", sandbox_backend="namespaces", title="t").close()
    header = json.loads(
        (folder / f"{fork_session(folder, 'one')}.jsonl").read_text().splitlines()[0]
    )
    assert (header["sandbox_backend"], header["title"]) == ("namespaces", "t")


def test_fork_at_what_is_no_end_of_a_run_is_refused(folder: Path) -> None:
    write(folder, "one", "first")
    with SessionJournal.reopen(folder, "one") as journal:
        journal.append(Run(run_id=2, code="never ended"))
    with pytest.raises(ValueError, match="no run 7"):
        fork_session(folder, "one", at=7)
    with pytest.raises(ValueError, match="not ended"):
        fork_session(folder, "one", at=2)
    with pytest.raises(SessionNotFoundError, match="Session not found: two"):
        fork_session(folder, "two")


def test_a_record_that_is_there_twice_behind_the_trailer_is_told_of(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a") as journal:
        journal.append(Run(run_id=1))
    path = tmp_path / "a.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[1]]))
    (problem,) = check_sessions(tmp_path)
    assert "once more" in problem.reason
