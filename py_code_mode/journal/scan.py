"""Which sessions a folder has, and which of their records hold some words: read from the journals.

This is what is true; `index` gives the same, faster.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from py_code_mode.errors import CodeModeError, PersistenceError, StoreError
from py_code_mode.journal import records
from py_code_mode.journal.loader import find_journal, meta
from py_code_mode.journal.migrations import migrating
from py_code_mode.journal.pages import Page
from py_code_mode.journal.paths import JournalFile, journal_files
from py_code_mode.journal.words import Words, fold, text_of
from py_code_mode.stores.log import LogReader, has_checksum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from py_code_mode.stores.log import Line

__all__ = ["MAX_RESULTS", "Hit", "SessionPage", "SessionSummary", "list_summaries",
           "search_sessions"]  # fmt: skip

#: Of one search or page, at most; asked for more, they give this many.
MAX_RESULTS = 500
MAX_UNREADABLE = 100  # told of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A run, or a record that belongs to none, which has all the words of a query.

    Attributes:
        record_type: of the record that has them.
        seq: of that record.
        run_id: the run, for records of runs and their calls.
        snippet: some of its text around the first word; a guest may have written it.
    """

    session_id: str
    record_type: str
    seq: int
    run_id: int | None
    ts: str
    snippet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSummary:
    """What a listing tells of a session.

    Attributes:
        created_at, updated_at: when it began, and when its last record was written; RFC 3339.
        status: ``open`` where its journal is not closed: it is live, or its process has died.
        records: in its own journal.
        size: of that journal, in bytes.
        parent_session_ids: sessions it was forked or merged from.
    """

    session_id: str
    path: Path
    created_at: str
    updated_at: str
    status: str
    is_closed: bool
    title: str | None
    workspace_id: str | None
    agent_id: str | None
    records: int
    size: int
    parent_session_ids: tuple[str, ...]


#: Some sessions of a folder, the newest first.
SessionPage: TypeAlias = Page[SessionSummary]


class Mark(NamedTuple):
    """By which a file is known to be as it was: not its device, which a reboot may change."""

    name: str
    inode: int
    size: int
    modified: int
    changed: int


class File(NamedTuple):
    """A session in the folder."""

    journal: JournalFile
    mark: Mark


class Facts(NamedTuple):
    """What a journal says of its session; `problem` says why it says nothing."""

    created: int
    summary: SessionSummary | None
    problem: str | None


def search_sessions(folder: str | Path, query: str, limit: int = 50) -> list[Hit]:
    """What `SessionIndex.search` finds, by reading the journals: slow where there are many."""
    words, limit = Words.of(query), checked_limit(limit)
    return scan(Path(folder), words, limit)


def list_summaries(
    folder: str | Path,
    limit: int = 50,
    cursor: str | None = None,
    *,
    workspace_id: str | None = None,
) -> SessionPage:
    """What `SessionIndex.page` gives, by reading both ends of each journal."""
    limit, after = checked_limit(limit), position_of(cursor)
    readable: list[tuple[int, SessionSummary]] = []
    unreadable: dict[str, str] = {}
    for file in files_of(Path(folder)).values():
        facts = facts_of(file)
        if facts.summary is None:
            unreadable[file.journal.session_id] = facts.problem or ""
        elif workspace_id is None or facts.summary.workspace_id == workspace_id:
            readable.append((facts.created, facts.summary))
    readable.sort(key=lambda each: (each[0], each[1].session_id), reverse=True)
    rest = [each for each in readable if after is None or (each[0], each[1].session_id) < after]
    told = dict(sorted(unreadable.items())[:MAX_UNREADABLE]) if after is None else {}
    return page_of([each[1] for each in rest[: limit + 1]], limit, told)


def checked_limit(limit: object) -> int:
    if type(limit) is not int or limit < 1:
        raise ValueError(f"a limit is an int above 0, got {limit!r}")
    return min(limit, MAX_RESULTS)


def position_of(cursor: object) -> tuple[int, str] | None:
    if cursor is None:
        return None
    if isinstance(cursor, str):
        created, _, name = cursor.partition("~")
        if name and len(created) < 20 and created.removeprefix("-").isdecimal():
            return int(created), name
    raise ValueError("the cursor is not one that a page gave")


def page_of(found: list[SessionSummary], limit: int, told: Mapping[str, str]) -> SessionPage:
    shown = tuple(found[:limit])
    cursor = None
    if len(found) > limit:
        cursor = f"{_microseconds(shown[-1].created_at)}~{shown[-1].session_id}"
    return Page(sessions=shown, cursor=cursor, unreadable=told)


def mark_of(name: str, status: os.stat_result) -> Mark:
    return Mark(name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def files_of(folder: Path) -> dict[str, File]:
    """The journals of a folder by session; one for each that has two."""
    found: dict[str, File] = {}
    for journal in journal_files(folder):
        name = journal.session_id
        if name in found:
            with suppress(PersistenceError, StoreError):
                journal = find_journal(folder, name)
        with suppress(FileNotFoundError):  # closed or deleted in this moment
            found[name] = File(journal, mark_of(journal.path.name, os.lstat(journal.path)))
    return found


def file_of(folder: Path, session_id: str) -> File | None:
    try:
        journal = find_journal(folder, session_id)
        return File(journal, mark_of(journal.path.name, os.lstat(journal.path)))
    except (FileNotFoundError, PersistenceError):
        return None


def facts_of(file: File) -> Facts:
    """What a journal's head and tail say; never raises for what is wrong with it."""
    journal = file.journal
    try:
        found = meta(journal.path, upgrade=migrating(journal.path))
    except CodeModeError as error:
        return Facts(0, None, str(error))
    header = found.header
    summary = SessionSummary(
        session_id=journal.session_id,
        path=journal.path,
        created_at=found.created_at,
        updated_at=found.updated_at,
        status=found.status if found.is_closed else "open",
        is_closed=found.is_closed,
        title=header.title,
        workspace_id=header.workspace_id,
        agent_id=header.agent_id,
        records=found.last_seq + 1,
        size=found.size,
        parent_session_ids=tuple(str(each) for each in header.parent_session_ids),
    )
    return Facts(_microseconds(found.created_at), summary, None)


def _microseconds(moment: str) -> int:
    """Since 1970; 0 for what is no time. Without a zone it is UTC."""
    try:
        when = datetime.fromisoformat(moment)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return round((when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    except (ValueError, OverflowError):
        return 0


def _decoded(line: Line) -> records.Record | records.Foreign | None:
    data = line.data
    if line.problem is not None:
        if line.problem in ("torn", "long") or has_checksum(data):
            return None
        data = data.removeprefix(b"\xef\xbb\xbf").strip()  # an old file, which has none
    try:
        return records.decode(data)
    except records.InvalidRecord:
        return None


def text_in(line: Line) -> str:
    record = _decoded(line)
    return "" if record is None else text_of(record)


def hit_in(session_id: str, line: Line | None, words: Words) -> Hit | None:
    """What a line is found as; None where it does not have the words."""
    if line is None or not words.may_be_in(line.data):
        return None
    record = _decoded(line)
    if record is None:
        return None
    text = text_of(record)
    if not words.are_in(fold(text)):
        return None
    return Hit(
        session_id=session_id,
        record_type=record.record_type,
        seq=record.seq,
        run_id=record.run_id if isinstance(record, records.Run | records.Call) else None,
        ts=record.ts,
        snippet=words.snippet(text),
    )


def is_new(hit: Hit, runs: set[tuple[str, int]]) -> bool:
    if hit.run_id is None:
        return True
    run = hit.session_id, hit.run_id
    if run in runs:
        return False
    runs.add(run)
    return True


def scan(folder: Path, words: Words, limit: int) -> list[Hit]:
    described = [(facts_of(file), file) for file in files_of(folder).values()]
    readable = [each for each in described if each[0].problem is None]
    readable.sort(key=lambda each: (each[0].created, each[1].journal.session_id), reverse=True)
    found: list[Hit] = []
    for _, file in readable:
        with suppress(StoreError):  # deleted meanwhile, or not ours to read
            found += _matches(file.journal, words, limit - len(found))
        if len(found) >= limit:
            break
    return found


def _matches(journal: JournalFile, words: Words, limit: int) -> list[Hit]:
    """The last hits of one session, in little memory."""
    hits: list[Hit] = []
    with LogReader(journal.path) as reader:
        for line in reader.lines():
            hit = hit_in(journal.session_id, line, words)
            if hit is not None:
                if hit.run_id is not None:
                    # of a run, its last record
                    hits = [each for each in hits if each.run_id != hit.run_id]
                hits.append(hit)
                del hits[:-limit]
    return hits[::-1]
