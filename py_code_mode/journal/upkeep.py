"""Looks after a folder of sessions: says what is wrong with it, and mends what can be mended.

Promise: nothing that could be read is lost, and nothing that could not be read is thrown away: what
is cut off a journal is kept beside it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from py_code_mode.errors import (
    CodeModeError,
    CorruptRecordError,
    PersistenceError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from py_code_mode.journal import records
from py_code_mode.journal.blobs import BlobStore
from py_code_mode.journal.index import SessionIndex
from py_code_mode.journal.journal import SUPERSEDED_SUFFIX, SessionJournal, recover
from py_code_mode.journal.lineage import LineageKind
from py_code_mode.journal.loader import Problem, find_journal, iter_records, read_journal
from py_code_mode.journal.migrations import migrating
from py_code_mode.journal.paths import JournalFile, journal_files
from py_code_mode.journal.states import References, named_blobs
from py_code_mode.stores.log import LogReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from py_code_mode.journal.loader import Journal

__all__ = [
    "CUT_SUFFIX",
    "Repair",
    "check_sessions",
    "fork_session",
    "repair_sessions",
    "sweep_blobs",
]

#: Of a file with what was cut off a journal, named by the session and the offset.
CUT_SUFFIX = ".__cut__"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What `repair_sessions` did.

    Attributes:
        closed: ids of sessions whose close had been interrupted, and is finished.
        passed_over: by id, how many places of a session are damaged, and left out from now on.
        cut: where what was cut off is now, by id.
        in_use: ids of sessions that are being written, and were left alone.
        failed: why, by id of sessions that could not be mended.
        blobs: digests of those that nobody named, and that were removed; None where some journals
            cannot be read, so that nobody knows what they name.
        is_indexed: whether the index could be made anew.
    """

    closed: tuple[str, ...] = ()
    passed_over: dict[str, int] = field(default_factory=dict[str, int])
    cut: dict[str, Path] = field(default_factory=dict[str, Path])
    in_use: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict[str, str])
    blobs: tuple[str, ...] | None = ()
    is_indexed: bool = True


def check_sessions(folder: str | Path, session_id: str | None = None) -> Iterator[Problem]:
    """All that is wrong with the sessions of a folder, or with one, one by one.

    Reads everything, blobs too, in little memory. A last line that is just being written is no
    problem, nor is damage that a recovery knows of.

    Raises:
        SessionNotFoundError: there is no such session.
    """
    folder = Path(folder)
    for journal in _journals(folder, session_id):
        yield from _wrong_with(folder, journal)


def _wrong_with(folder: Path, journal: JournalFile) -> Iterator[Problem]:
    path = journal.path
    blobs = BlobStore(folder)
    problems: list[Problem] = []
    references = References()
    known: set[int] = set()  # offsets of damage that a recovery tells of
    try:
        entries = iter_records(
            path, on_error="skip", upgrade=migrating(path), problems=problems
        )  # fmt: skip
        for entry in entries:
            record = entry.record
            references.add(record, entry.line, entry.offset)
            if isinstance(record, records.Recovery):
                known |= {place[0] for place in record.damaged if place}
            if isinstance(record, records.Header) and record.fork_point is not None:
                problems += _wrong_with_parent(folder, path, record.fork_point)
    except (PersistenceError, StoreError) as error:
        if path.exists():  # else it was closed or removed meanwhile
            told = error.reason if isinstance(error, CorruptRecordError) else str(error)
            problems.append(Problem(str(path), 1, 0, told))
    for digest, (line, offset) in references.named().items():
        try:
            blobs.get(digest)
        except CodeModeError as error:
            problems.append(Problem(str(path), line, offset, str(error)))
    for problem in problems:
        if not problem.is_accepted and problem.offset not in known:
            yield problem


def _wrong_with_parent(folder: Path, path: Path, point: dict[str, object]) -> Iterator[Problem]:
    parent = str(point.get("id"))
    try:
        find_journal(folder, parent)
    except (PersistenceError, ValueError):
        reason = f"session {parent}, which it was forked from, is missing"
        yield Problem(str(path), 1, 0, reason)


def repair_sessions(folder: str | Path, session_id: str | None = None) -> Repair:
    """Mend what crashes have left in a folder of sessions.

    Closes that were interrupted are finished. What follows the last whole line of a journal is
    moved to a file beside it. Blobs that no journal names any more are removed, after an hour of
    grace, and the index is made anew. Sessions that are being written are left alone.
    Lines that are damaged further up stay, and are an error to whoever reads.

    Args:
        session_id: mend this one, also where lines further up are damaged: they stay, but it is on
            record from now on that they are to be passed over, so that the session can be resumed.

    Raises:
        SessionNotFoundError: there is no such session.
    """
    folder = Path(folder)
    closed: list[str] = []
    passed_over: dict[str, int] = {}
    in_use: list[str] = []
    cut: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for journal in list(_journals(folder, session_id)):
        name = journal.session_id
        try:
            if session_id is not None and (places := _pass_over(folder, journal)):
                passed_over[name] = places
            if journal.is_closed:
                continue
            if recover(folder, name) != journal.path:
                closed.append(name)
                continue
            kept = _cut(folder, journal)
            if kept is not None:
                cut[name] = kept
        except SessionLockedError:
            in_use.append(name)
        except SessionNotFoundError:
            continue  # removed meanwhile, or its writer died before it was begun
        except (PersistenceError, StoreError, OSError) as error:
            failed[name] = str(error)
    removed = sweep_blobs(folder)
    with SessionIndex(folder) as index:
        is_indexed = index.rebuild() or not folder.is_dir()
    return Repair(
        closed=tuple(closed),
        passed_over=passed_over,
        cut=cut,
        in_use=tuple(in_use),
        failed=failed,
        blobs=removed,
        is_indexed=is_indexed,
    )


def _pass_over(folder: Path, journal: JournalFile) -> int:
    """Write down that what is damaged is known; the number of places."""
    problems: list[Problem] = []
    for entry in iter_records(
        journal.path, on_error="skip", upgrade=migrating(journal.path), problems=problems
    ):
        if isinstance(entry.record, records.Recovery):
            known = {place[0] for place in entry.record.damaged if place}
            problems[:] = [one for one in problems if one.offset not in known]
    damaged = sorted({one.offset for one in problems if not one.is_accepted})
    if not damaged:
        return 0
    opened = SessionJournal.reopen(folder, journal.session_id, reason="repair")
    try:
        told = records.Recovery(
            at_offset=opened.size,
            reason="what is damaged is passed over",
            damaged=[[offset, 0] for offset in damaged],
        )
        opened.append(told)
        if journal.is_closed:
            opened.close()
        else:
            opened.flush()
    finally:
        opened.abandon()
    return len(damaged)


def _cut(folder: Path, journal: JournalFile) -> Path | None:
    """Move what follows the last whole line to a file; None where nothing does."""
    with LogReader(journal.path) as reader:
        last = reader.last()
        if last is None or last.end >= reader.size:
            return None
    # A writer has the lock, and what follows its last line is its next one.
    with open(journal.path, "rb") as source:
        source.seek(last.end)
        kept = journal.path.with_name(f"{journal.session_id}-{last.end}{CUT_SUFFIX}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(kept, flags, 0o600), "wb") as target:
            while block := source.read(_BLOCK):
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    try:
        opened = SessionJournal.reopen(folder, journal.session_id, reason="repair")
    except BaseException:
        with suppress(OSError):  # the first error tells more
            kept.unlink()
        raise
    opened.flush()
    opened.abandon()
    return kept


def sweep_blobs(folder: str | Path) -> tuple[str, ...] | None:
    """Remove the blobs that no session of a folder needs, after an hour of grace.

    Among them are those of saved states that newer ones supersede.

    Returns:
        their digests; None where some journal cannot be read, so that it cannot be known.
    """
    folder = Path(folder)

    def named() -> Iterator[str]:
        return named_blobs(folder, also=folder.glob(f"*{SUPERSEDED_SUFFIX}"))

    try:
        return tuple(BlobStore(folder).sweep(named))
    except (PersistenceError, StoreError, OSError):
        return None


def _journals(folder: Path, session_id: str | None) -> Iterator[JournalFile]:
    if session_id is not None:
        yield find_journal(folder, session_id)
        return
    yield from sorted(journal_files(folder))


def _end_of(outcome: records.Run, journal: Journal) -> int:
    """The number of the last record of a run: of its variables, where they were saved at once."""
    seq = outcome.seq
    found = (*journal.prefix, *journal.records)
    for after in found[found.index(outcome) + 1 :]:
        is_of_run = isinstance(after, records.SavedState) and after.at_run == outcome.run_id
        if not is_of_run or after.seq != seq + 1:  # else it is of another session
            break
        seq = after.seq
    return seq


def fork_session(folder: str | Path, session_id: str, *, at: int | None = None) -> str:
    """Make a session with the past of another one, up to a run or to its end; its id.

    Nothing is copied: the new session names the other one, which cannot be removed before it. It
    is closed; resuming it goes on from there.

    Args:
        at: the last run of the past; it must have ended.

    Raises:
        SessionNotFoundError: there is no such session.
        ValueError: there is no such run, or it has not ended.
        PersistenceError: the session cannot be read, or the new one not written.
    """
    folder = Path(folder)
    path = find_journal(folder, session_id).path
    journal = read_journal(path, on_error="skip", upgrade=migrating(path))
    origin, seq = session_id, journal.last_seq
    if at is not None:
        try:
            run = journal.run(at)
        except KeyError:
            raise ValueError(f"session {session_id} has no run {at}") from None
        if run.outcome is None:
            raise ValueError(f"run {at} of session {session_id} has not ended: its effects are "
                             "unknown")  # fmt: skip
        origin, seq = run.session_id, _end_of(run.outcome, journal)
    header = journal.header
    with SessionJournal.create(
        folder,
        title=header.title,
        workspace_id=header.workspace_id,
        agent_id=header.agent_id,
        # what confined the code whose variables come back
        sandbox_backend=header.sandbox_backend,
        sandbox_spec=header.sandbox_spec,
        fork_point={"id": origin, "seq": seq},
        parent_session_ids=[session_id],
        lineage_operator="fork",
        lineage_kind=LineageKind.OP_FORK.value,
    ) as made:
        return made.header.id
