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
    PersistenceError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from py_code_mode.journal import records
from py_code_mode.journal.blobs import BlobStore, refs_in
from py_code_mode.journal.index import SessionIndex
from py_code_mode.journal.journal import SUPERSEDED_SUFFIX, SessionJournal, recover
from py_code_mode.journal.lineage import LineageKind
from py_code_mode.journal.loader import Problem, find_journal, iter_records, read_journal
from py_code_mode.journal.migrations import migrating
from py_code_mode.journal.paths import JournalFile, journal_files
from py_code_mode.stores.log import LogReader

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CUT_SUFFIX", "Repair", "check_sessions", "fork_session", "repair_sessions"]

#: Of a file with what was cut off a journal, named by the session and the offset.
CUT_SUFFIX = ".__cut__"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What `repair_sessions` did.

    Attributes:
        closed: ids of sessions whose close had been interrupted, and is finished.
        cut: where what was cut off is now, by id.
        in_use: ids of sessions that are being written, and were left alone.
        failed: why, by id of sessions that could not be mended.
        blobs: digests of those that nobody named, and that were removed; None where some journals
            cannot be read, so that nobody knows what they name.
        is_indexed: whether the index could be made anew.
    """

    closed: tuple[str, ...] = ()
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
    lines: dict[str, tuple[int, int]] = {}  # by digest of a blob, where it is named first
    known: set[int] = set()  # offsets of damage that a recovery tells of
    try:
        entries = iter_records(
            path, on_error="skip", upgrade=migrating(path), problems=problems
        )  # fmt: skip
        for entry in entries:
            record = entry.record
            for digest in refs_in(records.to_dict(record)):
                lines.setdefault(digest, (entry.line, entry.offset))
            if isinstance(record, records.Recovery):
                known |= {place[0] for place in record.damaged if place}
            if isinstance(record, records.Header) and record.fork_point is not None:
                problems += _wrong_with_parent(folder, path, record.fork_point)
    except (PersistenceError, StoreError, records.InvalidRecord) as error:
        if path.exists():  # else it was closed or removed meanwhile
            problems.append(Problem(str(path), 1, 0, str(error)))
    for digest, (line, offset) in lines.items():
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


def repair_sessions(folder: str | Path) -> Repair:
    """Mend what crashes have left in a folder of sessions.

    Closes that were interrupted are finished. What follows the last whole line of a journal is
    moved to a file beside it. Blobs that no journal names any more are removed, after an hour of
    grace, and the index is made anew. Sessions that are being written are left alone.
    Lines that are damaged further up stay, and are passed over by whoever reads.
    """
    folder = Path(folder)
    closed: list[str] = []
    in_use: list[str] = []
    cut: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for journal in list(_journals(folder, None)):
        name = journal.session_id
        try:
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
    removed = _sweep(folder)
    with SessionIndex(folder) as index:
        is_indexed = index.rebuild() or not folder.is_dir()
    return Repair(
        closed=tuple(closed), cut=cut, in_use=tuple(in_use), failed=failed, blobs=removed,
        is_indexed=is_indexed,
    )  # fmt: skip


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


def _sweep(folder: Path) -> tuple[str, ...] | None:
    """Remove the blobs that nobody names; None where that cannot be known."""

    def named() -> Iterator[str]:
        for path in _all_files(folder):
            problems: list[Problem] = []
            for entry in iter_records(
                path, on_error="skip", upgrade=migrating(path), problems=problems
            ):
                yield from refs_in(records.to_dict(entry.record))
            if any(not problem.is_accepted for problem in problems):
                raise PersistenceError(f"{path} has lines that cannot be read")

    try:
        return tuple(BlobStore(folder).sweep(named))
    except (PersistenceError, StoreError, records.InvalidRecord):
        return None


def _all_files(folder: Path) -> Iterator[Path]:
    for journal in journal_files(folder):
        if journal.path.stat().st_size:
            yield journal.path
    yield from folder.glob(f"*{SUPERSEDED_SUFFIX}")


def _journals(folder: Path, session_id: str | None) -> Iterator[JournalFile]:
    if session_id is not None:
        yield find_journal(folder, session_id)
        return
    yield from sorted(journal_files(folder))


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
        origin, seq = run.session_id, run.outcome.seq
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
