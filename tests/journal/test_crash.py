"""Crashes: what was acknowledged is there afterwards, once, and the journal can be gone on with."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import PersistenceError, SessionNotFoundError
from py_code_mode.journal.journal import SessionJournal, recover
from py_code_mode.journal.loader import find_journal, read_journal
from py_code_mode.journal.paths import journal_files
from py_code_mode.journal.records import Recovery, Run

from ..faulty_files import FaultyFiles, PowerCut

if TYPE_CHECKING:
    from py_code_mode.stores.log import Durability

KILLS = 200 if os.environ.get("PY_CODE_MODE_FULL") else 20


def test_cut_at_every_byte_keeps_what_was_written_and_goes_on(tmp_path: Path) -> None:
    journal = SessionJournal.create(tmp_path, "a", durability="process")
    for n in range(3):
        journal.append(Run(run_id=n, code=f"é {n}"))
    path = Path(journal.path)
    journal.abandon()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        left = sum(end <= size for end in ends)
        if not left:
            with pytest.raises(SessionNotFoundError):
                SessionJournal.reopen(tmp_path, "a", durability="process")
            continue
        again = SessionJournal.reopen(tmp_path, "a", durability="process")
        again.append(Run(run_id=99))
        again.abandon()
        found = read_journal(path)
        assert [run.run_id for run in found.runs] == [*range(left - 1), 99]
        assert [record.seq for record in found.records] == list(range(left + 3))
        assert sum(isinstance(record, Recovery) for record in found.records) == 1
        assert found.problems == ()


WRITER = """
import sys
from py_code_mode.errors import SessionNotFoundError
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.records import Run
folder, level, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
try:
    journal = SessionJournal.reopen(folder, "a", durability=level)
except SessionNotFoundError:
    journal = SessionJournal.create(folder, "a", durability=level)
print("ready", flush=True)
while True:
    journal.append(Run(run_id=start, code="x" * (start % 3000)))
    print(start, flush=True)  # acknowledged
    start += 1
"""


def test_killed_writer_loses_nothing_and_writes_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(5)
    acknowledged: list[int] = []
    start = 0
    for kill in range(KILLS):
        level = ("process", "group", "power")[kill % 3]
        command = [sys.executable, "-c", WRITER, str(tmp_path), level, str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            until = time.monotonic() + chance.random() * 0.02
            while time.monotonic() < until:
                acknowledged.append(int(writer.stdout.readline()))
            writer.send_signal(signal.SIGKILL)
            # what it said before it died counts, too; the last word may be half
            said = writer.stdout.read().splitlines(keepends=True)
            acknowledged += [int(word) for word in said if word.endswith("\n")]
        # one more may be there, also of a writer that was killed before it said anything
        start = max([start, *acknowledged[-1:]]) + 2
    path = find_journal(tmp_path, "a").path
    runs = [record.run_id for record in read_journal(path).records if isinstance(record, Run)]
    assert len(set(runs)) == len(runs)
    assert runs == sorted(runs)
    missing = set(acknowledged) - set(runs)
    assert not missing
    # of each writer, at most the record that it was killed over was not acknowledged
    assert len(set(runs) - set(acknowledged)) <= KILLS


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("durability", ["process", "group", "power"])
def test_power_cut_keeps_what_was_flushed(
    tmp_path: Path, seed: int, durability: Durability
) -> None:
    chance = random.Random(seed)
    root, left = tmp_path / "root", tmp_path / "left"
    root.mkdir()
    files = PowerCut(root)
    journal = SessionJournal.create(root, "a", durability=durability, files=files)
    flushed = 0
    for n in range(1, chance.randint(2, 12)):
        journal.append(Run(run_id=n, code="x" * chance.randint(0, 300)))
        if durability == "power":
            flushed = n
        elif chance.random() < 0.3:
            journal.flush()
            _sync_folder(files, root)
            flushed = n
    is_closing = chance.random() < 0.3
    if is_closing:
        journal.close()
        flushed = journal.last_seq - 1
    files.cut(left, chance)
    journal.abandon()
    if flushed == 0 and not any(file.path.stat().st_size for file in journal_files(left)):
        return  # of what was never flushed nothing need be left
    try:
        recover(left, "a")
        SessionJournal.reopen(left, "a").close()
    except PersistenceError:
        assert flushed == 0
        assert durability == "process"
        return
    found = read_journal(left / "a.jsonl")
    runs = [run.run_id for run in found.runs]
    assert runs[:flushed] == list(range(1, flushed + 1))
    assert runs == sorted(set(runs))
    assert len(list(journal_files(left))) == 1


def _sync_folder(files: PowerCut, root: Path) -> None:
    """What `process` leaves to the system."""
    folder = files.open_folder(root)
    files.fsync(folder)
    files.close(folder)


def test_crash_at_every_call_of_a_close_leaves_one_session(tmp_path: Path) -> None:
    """Between trailer, sync, rename and sync of the folder; recovering may be interrupted, too."""

    class Dead(Exception):
        pass

    class Dying(FaultyFiles):
        left = 1_000_000

        def _count(self, name: object) -> None:
            self.left -= 1
            if self.left < 0:
                raise Dead

    number = 0
    is_over = False
    while not is_over:
        folder = tmp_path / str(number)
        files = Dying()
        journal = SessionJournal.create(folder, "a", files=files)
        journal.append(Run(run_id=1, code="1"))
        journal.flush()
        files.left = number
        try:
            journal.close()
            is_over = True
        except Dead:
            pass
        files.left = 1_000_000
        journal.abandon()
        assert len(list(journal_files(folder))) == 1
        before = read_journal(find_journal(folder, "a").path)
        assert recover(folder, "a") == recover(folder, "a")
        after = read_journal(find_journal(folder, "a").path)
        assert after.records == before.records
        assert find_journal(folder, "a").is_closed is after.is_closed
        again = SessionJournal.reopen(folder, "a")
        again.close()
        assert read_journal(folder / "a.jsonl").is_closed
        number += 1
    assert number > 3


def test_crash_while_recovering_can_be_recovered(tmp_path: Path) -> None:
    class Dead(Exception):
        pass

    class Dying(FaultyFiles):
        left = 0

        def _count(self, name: object) -> None:
            self.left -= 1
            if self.left < 0:
                raise Dead

    journal = SessionJournal.create(tmp_path, "a")
    journal.append(Run(run_id=1, code="1"))
    path = Path(journal.path)
    journal.abandon()
    whole = path.read_bytes() + b'{"torn'
    number = 0
    for number in range(20):
        path.write_bytes(whole)
        files = Dying()
        files.left = number
        try:
            SessionJournal.reopen(tmp_path, "a", files=files).abandon()
            break
        except Dead:
            pass
        SessionJournal.reopen(tmp_path, "a").abandon()
        assert [run.code for run in read_journal(path).runs] == ["1"]
    assert number >= 3


def test_damaged_session_does_not_harm_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        SessionJournal.create(tmp_path, name).close()
    (tmp_path / "b.jsonl").write_bytes(b"\0" * 500)
    readable: list[str] = []
    for file in sorted(journal_files(tmp_path)):
        try:
            readable.append(read_journal(file.path).id)
        except PersistenceError:
            continue
    assert readable == ["a", "c"]
