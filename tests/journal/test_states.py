"""Saved states: the newest stays, and what somebody may go back to; nobody else's blobs go."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import PersistenceError
from py_code_mode.journal import blobs as blobs_module
from py_code_mode.journal import states as states_module
from py_code_mode.journal.blobs import BlobStore, refs_in, stamps_in
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.loader import read_journal
from py_code_mode.journal.records import Run, SavedState
from py_code_mode.journal.states import SavedStates, named_blobs, read_parts
from py_code_mode.journal.upkeep import check_sessions, fork_session, sweep_blobs

from ..faulty_files import Call, FaultyFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BIG = b"x" * 100_000  # a variable that does not change


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SessionJournal]:
    with SessionJournal.create(tmp_path, "one") as journal:
        yield journal


def state(number: int) -> SavedState:
    return SavedState(saved_state_id=f"s{number}", at_run=number)


def contents(folder: Path) -> list[bytes]:
    """What all blobs hold, by length and content."""
    blobs = BlobStore(folder)
    return sorted((blobs.get(digest) for digest in blobs.digests()), key=lambda b: (len(b), b))


def age(folder: Path) -> None:
    for blob in (folder / ".blobs").glob("??/*"):
        before = time.time() - 100_000
        os.utime(blob, (before, before))


def killed(*_: object) -> list[str]:
    """Of a process that ends before it removes anything."""
    return []


def no_forks(_: Path) -> Iterator[Any]:
    return iter(())


def run(journal: SessionJournal, number: int) -> None:
    journal.append(Run(run_id=number, code=f"{number}"))
    journal.append(Run(run_id=number, status="ok"))


def test_a_newer_state_takes_the_place_of_the_older(
    tmp_path: Path, journal: SessionJournal
) -> None:
    states = SavedStates(journal)
    saved = states.write(state(0), [b"0", BIG])
    for number in range(1, 4):
        saved = states.write(state(number), [b"%d" % number, BIG])
        assert contents(tmp_path) == [b"%d" % number, BIG]
    assert saved.supersedes == ["s2"]
    assert read_parts(saved, journal.blobs) == [b"3", BIG]
    assert list(check_sessions(tmp_path)) == []
    assert set(named_blobs(tmp_path)) == set(refs_in(saved.blob))


def test_what_another_process_saved_before_is_removed_too(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "one") as journal:
        SavedStates(journal).write(state(1), [b"1", BIG])
    with SessionJournal.reopen(tmp_path, "one") as journal:
        before = read_journal(journal.path).saved_states
        SavedStates(journal, before).write(state(2), [b"2", BIG])
    assert contents(tmp_path) == [b"2", BIG]


def test_states_that_are_needed_stay(tmp_path: Path, journal: SessionJournal) -> None:
    states = SavedStates(journal)
    states.write(state(1), [b"1"])
    states.write(state(2), [b"2"], needed={"s1"})
    assert states.write(state(3), [b"3"], needed={"s1"}).supersedes == ["s2"]
    assert contents(tmp_path) == [b"1", b"3"]
    assert states.write(state(4), [b"4"]).supersedes == ["s1", "s3"]


def test_a_state_that_a_session_was_forked_from_stays(
    tmp_path: Path, journal: SessionJournal
) -> None:
    states = SavedStates(journal)
    run(journal, 1)
    states.write(state(1), [b"1"])
    run(journal, 2)
    fork = fork_session(tmp_path, "one", at=2)
    run(journal, 3)
    states.write(state(3), [b"3"])
    states.write(state(4), [b"4"])
    assert contents(tmp_path) == [b"1", b"4"]
    (kept,) = read_journal(tmp_path / f"{fork}.jsonl").saved_states
    assert read_parts(kept, journal.blobs) == [b"1"]
    (tmp_path / f"{fork}.jsonl").unlink()
    states.write(state(5), [b"5"])
    assert contents(tmp_path) == [b"5"]


def test_a_fork_made_just_before_the_removal_keeps_its_state_from_sweeps(
    tmp_path: Path, journal: SessionJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = SavedStates(journal)
    states.write(state(1), [b"1"])
    run(journal, 2)
    fork_session(tmp_path, "one", at=2)
    monkeypatch.setattr(states_module, "forks", no_forks)  # it is made after the look
    monkeypatch.setattr(BlobStore, "release", killed)
    states.write(state(3), [b"3"])
    monkeypatch.undo()
    age(tmp_path)
    assert sweep_blobs(tmp_path) == ()
    assert contents(tmp_path) == [b"1", b"3"]


def test_what_a_crash_left_of_older_states_is_swept(
    tmp_path: Path, journal: SessionJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = SavedStates(journal)
    states.write(state(1), [b"1", BIG])
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "release", killed)
        states.write(state(2), [b"2", BIG])
    assert contents(tmp_path) == [b"1", b"2", BIG]
    assert sweep_blobs(tmp_path) == ()  # somebody may just be about to name it
    age(tmp_path)
    assert len(sweep_blobs(tmp_path) or ()) == 1
    assert contents(tmp_path) == [b"2", BIG]
    assert list(check_sessions(tmp_path)) == []


def test_a_newest_state_that_lost_its_blob_is_a_problem(
    tmp_path: Path, journal: SessionJournal
) -> None:
    states = SavedStates(journal)
    states.write(state(1), [b"1"])
    journal.blobs.release(stamps_in(states.write(state(2), [b"2"]).blob))
    (problem,) = check_sessions(tmp_path)
    assert "blob" in problem.reason


def test_content_that_somebody_else_has_put_stays(tmp_path: Path, journal: SessionJournal) -> None:
    states = SavedStates(journal)
    journal.append(Run(run_id=1, status="ok", value=journal.put_blob(b"before", "x/y")))
    states.write(state(1), [b"before", b"after", b"mine"])
    with SessionJournal.create(tmp_path, "two") as other:
        SavedStates(other).write(state(1), [b"after"])
        states.write(state(2), [b"new"])
        assert contents(tmp_path) == [b"new", b"after", b"before"]
        SavedStates(other, read_journal(other.path).saved_states).write(state(2), [b"new"])
    assert b"new" in contents(tmp_path)
    assert list(check_sessions(tmp_path)) == []


@pytest.mark.parametrize("call", ["write", "fsync", "fdatasync", "link", "unlink", "rename"])
def test_a_failing_disk_costs_no_state_that_was_there(tmp_path: Path, call: Call) -> None:
    files = FaultyFiles()
    journal = SessionJournal.create(tmp_path, "one", files=files)
    states = SavedStates(journal)
    states.write(state(1), [b"1", BIG])
    files.fail_next(call, errno.EIO, times=50)
    try:
        states.write(state(2), [b"2", BIG])
    except PersistenceError:
        assert call != "link"
    files.heal()
    journal.abandon()
    found = read_journal(tmp_path / "one.jsonl.__partial__").saved_states
    assert read_parts(found[-1], journal.blobs) == [b"%d" % len(found), BIG]
    if call == "write":
        assert contents(tmp_path) == [b"1", BIG]


def test_of_many_who_put_the_same_at_most_one_may_remove_it(tmp_path: Path) -> None:
    count = 4
    for number in range(30):
        data, start = b"%d" % number, threading.Barrier(count)
        given: list[Any] = []

        def put(data: bytes = data, start: Any = start, given: list[Any] = given) -> None:
            start.wait(30)
            given.append(BlobStore(tmp_path).put(data, stamps={}))

        threads = [threading.Thread(target=put) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        stamps = [ref["stamp"] for ref in given if "stamp" in ref]
        assert len(stamps) <= 1
        # all of them need it, so whoever made it may not remove it
        assert BlobStore(tmp_path).release(stamps_in(given)) == []


def test_removal_waits_for_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "_PATIENCE", 0.02)
    blobs = BlobStore(tmp_path)
    mine = stamps_in([blobs.put(b"x", stamps={})])
    with blobs.naming():
        assert blobs.release(mine) == []
    assert len(blobs.release(mine)) == 1


def test_nothing_is_removed_where_times_are_kept_less_exactly(tmp_path: Path) -> None:
    class Coarse(FaultyFiles):
        def date(self, file: int, modified_ns: int) -> None:
            super().date(file, modified_ns // 10**9 * 10**9)

    blobs = BlobStore(tmp_path, files=Coarse())
    assert "stamp" not in blobs.put(b"x", stamps={})
