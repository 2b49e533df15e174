"""An index of a folder's sessions and of the words in their records.

Promise: the journals are the truth. What is listed and found is the same with an index and without
one (`scan`); the index, a file beside the journals, only makes it fast. It can be deleted at any
time, and where it is damaged, of another version, locked by somebody, or cannot be made at all, it
is made anew or left out.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat as modes
import threading
import time
import zlib
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, cast
from urllib.parse import quote

from py_code_mode.errors import PersistenceError, StoreError
from py_code_mode.journal.paths import JournalFile
from py_code_mode.journal.scan import (
    MAX_UNREADABLE,
    Facts,
    File,
    Hit,
    Mark,
    SessionPage,
    SessionSummary,
    checked_limit,
    facts_of,
    file_of,
    files_of,
    hit_in,
    is_new,
    list_summaries,
    mark_of,
    page_of,
    position_of,
    scan,
    text_in,
)
from py_code_mode.journal.words import Words, fold
from py_code_mode.stores.log import LogReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator


__all__ = ["INDEX_FILE", "SessionIndex"]

#: In the sessions folder; two more are beside it while it is used, and a checksum afterwards.
INDEX_FILE = ".index.sqlite"
_VERSION = 1
_BUSY = 0.25  # seconds to wait for another process; a search without the index is better than more
#: Whatever took a file's time within so short a time of a change may not have seen the change.
_SETTLED = 2_000_000_000  # ns; FAT's clock
# Newer sessions, and later records, have greater rows, so that a search reads results in order and
# stops when it has enough. Between two sessions so many rows are free, for what comes later; more
# would make the index larger, which stores distances.
_GAP = 4096
_BATCH = 20_000  # records between two commits
_BLOCK = 1 << 20
_TAIL = 64  # bytes before the indexed end, by which a file is known again
_MAX_MISSES = 5_000  # records read in vain; reading all may be quicker
_FEW = 20_000  # records that are indexed in a second
_HASH = 16 << 20  # bytes that FTS5 gathers before it writes
_INDEXED_LENGTH = 3  # characters of a word that FTS5's trigrams can find
_NETWORKED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "ceph", "9p", "afs", "beegfs",
     "fuse.sshfs", "fuse.glusterfs", "virtiofs"}
)  # fmt: skip
#: What SQLite says of others' doings, and of the disk; all else means that the file is no good.
_PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
})  # fmt: skip

_TABLES = f"""
CREATE TABLE sessions(
    first INTEGER PRIMARY KEY, next INTEGER NOT NULL, id TEXT NOT NULL, created INTEGER NOT NULL,
    is_gone INTEGER NOT NULL DEFAULT 0, is_closed INTEGER NOT NULL DEFAULT 0,
    name TEXT NOT NULL DEFAULT '', inode INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0, modified INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL DEFAULT 0, indexed INTEGER NOT NULL DEFAULT 0,
    tail BLOB NOT NULL DEFAULT x'', problem TEXT, summary TEXT);
CREATE INDEX by_time ON sessions(created, id, first);
CREATE UNIQUE INDEX by_id ON sessions(id) WHERE is_gone = 0;
CREATE INDEX open ON sessions(first) WHERE is_gone = 0 AND is_closed = 0;
CREATE INDEX unreadable ON sessions(id) WHERE is_gone = 0 AND problem IS NOT NULL;
CREATE TABLE places(row INTEGER PRIMARY KEY, start INTEGER NOT NULL);
CREATE VIRTUAL TABLE records USING fts5(
    text, content='', columnsize=0, tokenize='trigram case_sensitive 1');
INSERT INTO records(records, rank) VALUES ('hashsize', {_HASH});
PRAGMA user_version = {_VERSION};
"""
_COLUMNS: Final = (
    "first, next, id, is_closed, name, inode, size, modified, changed, indexed, tail, problem"
)


class _Row(NamedTuple):
    """A session in the index: it has the rows from `first` up to `next`; the first has no text."""

    first: int
    next: int
    id: str
    is_closed: bool
    mark: Mark
    indexed: int
    tail: bytes
    problem: str | None


class _Crowded(Exception):
    """There is no row left between two sessions: all get new ones."""


class _Bypass(Exception):
    """The index cannot answer: it is left out."""


class SessionIndex:
    """Finds sessions and records fast. Thread-safe; its methods block; closed by `close` or `with`.

    Several processes may use one folder. Nothing is made where there are no sessions.
    What was removed from the folder stays in the index for a while where that is large; `rebuild`
    makes sure that it does not.

    Args:
        folder: the sessions folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).absolute()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode = -1
        self._owner = os.getpid()
        self._is_hopeless = False
        self._seen: int | None = None  # the folder's time when all of it was compared

    @property
    def path(self) -> Path:
        """Where the index is; it may not exist."""
        return self._folder / INDEX_FILE

    def search(self, query: str, limit: int = 50) -> list[Hit]:
        """The runs and records that have all words of a query, at most `limit`.

        Those of the session that began last come first, within a session the latest. A run is
        found once. Words are found inside others. What only blobs hold is not found.

        Args:
            query: words, separated by white space; at most 500 characters.
            limit: 1 to `MAX_RESULTS`; more gives `MAX_RESULTS`.

        Raises:
            ValueError: the query is empty or too long, or the limit is no number above 0.
        """
        words, limit = Words.of(query), checked_limit(limit)
        if any(len(word) >= _INDEXED_LENGTH for word in words.words):
            with suppress(_Bypass), self._current() as connection:
                return self._search(connection, words, limit)
        return scan(self._folder, words, limit)

    def page(
        self, limit: int = 50, cursor: str | None = None, *, workspace_id: str | None = None
    ) -> SessionPage:
        """Some sessions, those that began last first.

        Args:
            limit: as for `search`.
            cursor: that of the page before.
            workspace_id: only sessions of this one.

        Raises:
            ValueError: the limit is no number above 0, or the cursor is none of ours.
        """
        limit, after = checked_limit(limit), position_of(cursor)
        with suppress(_Bypass), self._current() as connection:
            return self._page(connection, limit, after, workspace_id)
        return list_summaries(self._folder, limit, cursor, workspace_id=workspace_id)

    def reconcile(self, *, is_full: bool = False) -> bool:
        """Bring the index up to the journals; False where it cannot be had now.

        Every search and page does so. It costs a look at each journal that is not closed, and at
        all of them where files were added, renamed or removed since.

        Args:
            is_full: look at all of them, whatever the folder's time says.
        """
        with self._lock:
            if is_full:
                self._seen = None
            try:
                with self._current():
                    return True
            except _Bypass:
                return False

    def add(self, session_id: str) -> bool:
        """Index what the journal of one session has got since; False where that cannot be now.

        For whoever writes it, from time to time, in a thread: it spares the next search the work.
        """
        try:
            with self._lock, self._opened() as connection:
                row = next(self._rows(connection, "id = ? AND is_gone = 0", session_id), None)
                file = file_of(self._folder, session_id)
                if row is not None and file is not None:
                    if row.mark != file.mark:
                        self._apply(connection, {session_id: file}, is_all=False)
                    return True
                self._seen = None
                return self.reconcile()
        except (_Bypass, StoreError, PersistenceError):
            return False

    def rebuild(self) -> bool:
        """Make the index anew, from nothing; False where that cannot be now."""
        with self._lock:
            self._is_hopeless = False
            self._let_go()
            self._discard()
            return self.reconcile(is_full=True)

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        with self._lock:
            is_used = self._connection is not None and self._owner == os.getpid()
            self._let_go()
            if is_used:
                self._seal()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _search(self, connection: sqlite3.Connection, words: Words, limit: int) -> list[Hit]:
        # quoted, so that AND, NEAR, * and : are characters like any other
        terms = (word.replace('"', '""') for word in words.words if len(word) >= _INDEXED_LENGTH)
        query = " AND ".join(f'"{term}"' for term in terms)
        rows = connection.execute(
            "SELECT row, start FROM records CROSS JOIN places ON row = records.rowid "
            "WHERE records MATCH ? ORDER BY records.rowid DESC", (query,)
        )  # fmt: skip
        found: list[Hit] = []
        misses = 0
        with closing(rows), _Journals(connection, self._folder) as journals:
            runs: set[tuple[str, int]] = set()
            for row, start in cast("Iterable[tuple[int, int]]", rows):
                opened = journals.find(row)
                if opened is None:
                    continue
                session_id, reader = opened
                hit = hit_in(session_id, reader.at(start), words)
                if hit is None:
                    misses += 1
                    if misses > _MAX_MISSES:
                        raise _Bypass
                elif is_new(hit, runs):
                    found.append(hit)
                    if len(found) == limit:
                        break
        return found

    def _page(
        self,
        connection: sqlite3.Connection,
        limit: int,
        after: tuple[int, str] | None,
        workspace_id: str | None,
    ) -> SessionPage:
        wanted = ["is_gone = 0", "summary IS NOT NULL"]
        given: list[object] = []
        if after is not None:
            wanted.append("(created, id) < (?, ?)")
            given += after
        if workspace_id is not None:
            wanted.append("summary ->> '$.workspace_id' = ?")
            given.append(workspace_id)
        found = connection.execute(
            f"SELECT name, summary FROM sessions WHERE {' AND '.join(wanted)} "
            "ORDER BY created DESC, id DESC LIMIT ?",
            (*given, limit + 1),
        ).fetchall()
        told: dict[str, str] = {}
        if after is None:
            told = dict(connection.execute(
                "SELECT id, problem FROM sessions WHERE is_gone = 0 AND problem IS NOT NULL "
                "ORDER BY id LIMIT ?", (MAX_UNREADABLE,)
            ).fetchall())  # fmt: skip
        return page_of([_loaded(self._folder / name, text) for name, text in found], limit, told)

    @contextmanager
    def _current(self) -> Generator[sqlite3.Connection, None, None]:
        """The index, up to date. Raises `_Bypass` where it cannot be had, or what it says is wrong.

        One that is damaged is made anew, once.
        """
        with self._lock, self._opened() as connection:
            self._update(connection)
            yield connection

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection, None, None]:
        try:
            connection = self._connect()
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if code & 0xFF not in _PASSING or code == sqlite3.SQLITE_IOERR_SHORT_READ:
                self._let_go()
                self._discard()
            raise _Bypass from error
        except (OSError, StoreError, PersistenceError) as error:
            # a journal has just been renamed, or the folder is not ours to write in
            self._seen = None
            raise _Bypass from error

    def _connect(self) -> sqlite3.Connection:
        if self._owner != os.getpid():
            # SQLite forbids its use in a forked child, and closing it as well
            _of_parents.append(self._connection)
            self._connection, self._owner, self._seen = None, os.getpid(), None
        if self._is_hopeless:
            raise _Bypass
        if self._connection is not None:
            with suppress(FileNotFoundError):
                if os.lstat(self.path).st_ino == self._inode:
                    return self._connection
            self._let_go()
        for is_last in (False, True):
            try:
                return self._open()
            except sqlite3.DatabaseError as error:
                self._let_go()
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
                    raise
                self._is_hopeless = is_last  # such as an SQLite that has no trigrams
                self._discard()
        raise _Bypass

    def _open(self) -> sqlite3.Connection:
        if not self._folder.is_dir():
            raise _Bypass
        is_networked = _is_networked(self._folder)
        is_sound = is_networked or self._is_sound()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        # not by SQLite, which follows links; for its owner only, as the journals are
        file = os.open(self.path, flags, 0o600)
        try:
            status = os.fstat(file)
            if not modes.S_ISREG(status.st_mode):
                raise _Bypass
        finally:
            os.close(file)
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False,
        )  # fmt: skip
        self._connection, self._inode, self._seen = connection, status.st_ino, None
        # shared memory, which it needs, is not shared by machines (https://sqlite.org/wal.html)
        mode = "TRUNCATE" if is_networked else "WAL"
        connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = FAST")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            self._let_go()
            raise _Bypass  # a newer version of us uses it
        if not is_sound:
            raise sqlite3.DatabaseError("the index is not what was written")
        if version < _VERSION:
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < _VERSION:
                self._wipe(connection)
            connection.execute("COMMIT")
        return connection

    def _let_go(self) -> None:
        connection, self._connection, self._seen = self._connection, None, None
        if connection is not None:
            with suppress(sqlite3.DatabaseError):  # it was deleted, or is damaged
                connection.close()

    def _seal(self) -> None:
        """Note the checksum of the file, if nobody uses it any more.

        SQLite has none: a few wrong bytes, and words would no longer be found.
        """
        with suppress(OSError):
            if os.path.lexists(f"{self.path}-wal"):
                return
            found = _sum_of(self.path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            # not by renaming, which would alter the folder
            with open(os.open(f"{self.path}-sum", flags, 0o600), "w") as file:
                file.write(found)

    def _is_sound(self) -> bool:
        """Whether the file is as the last user left it; True where that cannot be told."""
        try:
            if os.path.lexists(f"{self.path}-wal") or not os.lstat(self.path).st_size:
                return True  # it is in use, or its last user was killed; or there is none
            with open(f"{self.path}-sum", opener=_opener) as file:
                return file.read(100) == _sum_of(self.path)
        except FileNotFoundError:
            return not os.path.lexists(self.path)

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal", "-sum"):
            with suppress(OSError):
                os.unlink(f"{self.path}{suffix}")

    @staticmethod
    def _wipe(connection: sqlite3.Connection) -> None:
        for name in ("records", "places", "sessions"):
            connection.execute(f"DROP TABLE IF EXISTS {name}")
        for statement in _TABLES.split(";"):
            if statement.strip():
                connection.execute(statement)

    def _update(self, connection: sqlite3.Connection) -> None:
        """Have the index say what the journals do."""
        try:
            before = os.stat(self._folder).st_mtime_ns
        except OSError as error:
            raise _Bypass from error
        if before == self._seen and self._live_ones_are_current(connection):
            return
        began = time.time_ns()
        self._apply(connection, files_of(self._folder), is_all=True)
        self._seen = before if began - before >= 0 and began - before > _SETTLED else None

    def _live_ones_are_current(self, connection: sqlite3.Connection) -> bool:
        """Bring up what may have grown; False where a look at the whole folder is needed."""
        grown: dict[str, File] = {}
        for row in self._rows(connection, "is_gone = 0 AND is_closed = 0"):
            path = self._folder / row.mark.name
            try:
                mark = mark_of(row.mark.name, os.lstat(path))
            except FileNotFoundError:
                return False
            if mark != row.mark:
                grown[row.id] = File(JournalFile(row.id, path, False), mark)
        if grown:
            self._apply(connection, grown, is_all=False)
        return True

    def _apply(
        self, connection: sqlite3.Connection, files: dict[str, File], *, is_all: bool
    ) -> None:
        """Index what is new in files; with `is_all` there are no others."""
        known: dict[str, Facts] = {}
        try:
            while self._apply_some(connection, files, known, is_all=is_all):
                pass
        except _Crowded:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            self._wipe(connection)
            connection.execute("COMMIT")
            self._apply(connection, files_of(self._folder), is_all=True)

    def _apply_some(
        self,
        connection: sqlite3.Connection,
        files: dict[str, File],
        known: dict[str, Facts],
        *,
        is_all: bool,
    ) -> bool:
        """One transaction; whether there is more to do."""
        if not self._differs(connection, files, is_all=is_all):
            return False
        connection.execute("BEGIN IMMEDIATE")
        rows = self._known(connection, files, is_all=is_all)
        if is_all:
            gone = [row.first for row in rows.values() if row.id not in files]
            self._forget(connection, gone)
            self._purge(connection)
        due = [
            file for name, file in files.items()
            if name not in rows or rows[name].mark != file.mark
        ]  # fmt: skip
        for file in due:
            if file.journal.session_id not in known:
                known[file.journal.session_id] = facts_of(file)
        due.sort(key=lambda file: (known[file.journal.session_id].created, file.journal.session_id))
        done = 0
        for position, file in enumerate(due):
            name = file.journal.session_id
            done += self._index(connection, rows.get(name), file, known[name])
            if done > _BATCH:
                connection.execute("COMMIT")
                return position + 1 < len(due)
        connection.execute("COMMIT")
        return False

    def _differs(
        self, connection: sqlite3.Connection, files: dict[str, File], *, is_all: bool
    ) -> bool:
        rows = self._known(connection, files, is_all=is_all)
        if is_all and len(rows) != len(files):
            return True
        return any(name not in rows or rows[name].mark != file.mark for name, file in files.items())

    def _known(
        self, connection: sqlite3.Connection, files: dict[str, File], *, is_all: bool
    ) -> dict[str, _Row]:
        """The sessions of the index by id: all, or those of some files."""
        if is_all:
            return {row.id: row for row in self._rows(connection, "is_gone = 0")}
        return {
            row.id: row
            for name in files
            for row in self._rows(connection, "id = ? AND is_gone = 0", name)
        }

    def _index(
        self, connection: sqlite3.Connection, row: _Row | None, file: File, facts: Facts
    ) -> int:
        """Index one session, or what it has got since; how many records that were."""
        with LogReader(file.journal.path) as reader:
            if row is None or not _goes_on(row, file, reader):
                if row is not None:
                    self._forget(connection, [row.first])
                first = _free_block(connection, facts.created, file.journal.session_id)
                connection.execute(
                    "INSERT INTO sessions(first, next, id, created) VALUES (?, ?, ?, ?)",
                    (first, first + 1, file.journal.session_id, facts.created),
                )
                start, at = 0, first + 1
            else:
                first, start, at = row.first, row.indexed, row.next
            end, rows = start, list[tuple[int, int, str]]()
            if facts.problem is None:
                for line in reader.lines(start, file.mark.size):
                    if line.problem == "torn":
                        break
                    end = line.end
                    text = text_in(line)
                    if text:
                        rows.append((at + len(rows), line.offset, fold(text)))
                        if len(rows) == _BATCH:
                            _insert(connection, first, rows)
                            at += len(rows)
                            rows.clear()
            _insert(connection, first, rows)
            tail = _tail_of(file.journal.path, end)
        summary = None if facts.summary is None else _dumped(facts.summary)
        connection.execute(
            "UPDATE sessions SET next = ?, is_closed = ?, name = ?, inode = ?, size = ?, "
            "modified = ?, changed = ?, indexed = ?, tail = ?, problem = ?, summary = ? "
            "WHERE first = ?",
            (
                at + len(rows), file.journal.is_closed, *file.mark, end, tail, facts.problem,
                summary, first,
            ),
        )  # fmt: skip
        return at + len(rows) - (row.next if row is not None else first) + 1

    @staticmethod
    def _forget(connection: sqlite3.Connection, firsts: Iterable[int]) -> None:
        connection.executemany(
            "UPDATE sessions SET is_gone = 1, summary = NULL, problem = NULL, tail = x'' "
            "WHERE first = ?",
            ((first,) for first in firsts),
        )

    @staticmethod
    def _purge(connection: sqlite3.Connection) -> None:
        """Start anew where what is gone weighs more than the work, so that it is really gone."""
        gone, kept = connection.execute(
            "SELECT coalesce(sum(next - first - 1) FILTER (WHERE is_gone), 0), "
            "coalesce(sum(next - first - 1) FILTER (WHERE NOT is_gone), 0) FROM sessions"
        ).fetchone()
        if gone and (kept <= _FEW or gone > kept // 8):
            raise _Crowded

    @staticmethod
    def _rows(connection: sqlite3.Connection, where: str, *given: object) -> Iterator[_Row]:
        for found in connection.execute(f"SELECT {_COLUMNS} FROM sessions WHERE {where}", given):
            first, after, name, is_closed, *mark, indexed, tail, problem = found
            yield _Row(first, after, name, bool(is_closed), Mark(*mark), indexed, tail, problem)


class _Journals:
    """The journals that a search reads in, one open at a time: its results go session by session.

    A journal that is not where it was has been renamed since: then the index is not current.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._connection, self._folder = connection, folder
        self._rows = range(0)
        self._found: tuple[str, LogReader] | None = None

    def find(self, row: int) -> tuple[str, LogReader] | None:
        """The id and the journal of a row's session; None where it is gone or unreadable."""
        if row not in self._rows:
            self._close()
            first, after, name, file, is_there = self._connection.execute(
                "SELECT first, next, id, name, is_gone = 0 AND problem IS NULL FROM sessions "
                "WHERE first <= ? ORDER BY first DESC LIMIT 1", (row,)
            ).fetchone()  # fmt: skip
            self._rows = range(first, after)
            self._found = (name, LogReader(self._folder / file)) if is_there else None
        return self._found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        found, self._found = self._found, None
        if found is not None:
            found[1].close()


#: Connections of the process that this one was forked from.
_of_parents: list[sqlite3.Connection | None] = []


def _insert(connection: sqlite3.Connection, first: int, rows: list[tuple[int, int, str]]) -> None:
    """Add rows to a session, as ``(row, start, text)``."""
    if not rows:
        return
    (bound,) = connection.execute(
        "SELECT min(first) FROM sessions WHERE first > ?", (first,)
    ).fetchone()
    if bound is not None and rows[-1][0] >= bound:
        raise _Crowded
    connection.executemany(
        "INSERT INTO places(row, start) VALUES (?, ?)", ((row, start) for row, start, _ in rows)
    )
    connection.executemany(
        "INSERT INTO records(rowid, text) VALUES (?, ?)", ((row, text) for row, _, text in rows)
    )


def _free_block(connection: sqlite3.Connection, created: int, name: str) -> int:
    """The first of some free rows between those of the sessions that began before and after."""
    before = connection.execute(
        "SELECT next FROM sessions WHERE (created, id) <= (?, ?) "
        "ORDER BY created DESC, id DESC, first DESC LIMIT 1", (created, name)
    ).fetchone()  # fmt: skip
    after = connection.execute(
        "SELECT first FROM sessions WHERE (created, id) > (?, ?) "
        "ORDER BY created, id, first LIMIT 1", (created, name)
    ).fetchone()  # fmt: skip
    low: int = before[0] if before else 0
    if after is None:
        return low + _GAP
    if low >= after[0] - 1:
        raise _Crowded
    return (low + after[0]) // 2


def _dumped(summary: SessionSummary) -> str:
    names = (name for name in SessionSummary.__dataclass_fields__ if name != "path")
    return json.dumps({name: getattr(summary, name) for name in names})


def _loaded(path: Path, text: str) -> SessionSummary:
    found: dict[str, Any] = json.loads(text)
    found["parent_session_ids"] = tuple(found["parent_session_ids"])
    return SessionSummary(path=path, **found)


def _goes_on(row: _Row, file: File, reader: LogReader) -> bool:
    """Whether a file is the one that was indexed, with more at its end at most."""
    if row.problem is not None or row.mark.inode != file.mark.inode:
        return False
    if reader.signature.inode != file.mark.inode or file.mark.size < row.indexed:
        return False
    return _tail_of(file.journal.path, row.indexed) == row.tail


def _tail_of(path: Path, end: int) -> bytes:
    start = max(0, end - _TAIL)
    with open(path, "rb", opener=_opener) as file:
        file.seek(start)
        return file.read(end - start)


def _sum_of(path: Path) -> str:
    """What tells a file and its content, as a text."""
    crc = 0
    with open(path, "rb", opener=_opener) as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
        status = os.fstat(file.fileno())
    return f"{status.st_size} {status.st_mtime_ns} {crc:08x}\n"


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_networked(folder: Path) -> bool:
    """Whether other machines may have the folder, too; False where that cannot be told."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    place = os.path.realpath(folder)
    best = ("", "")
    for mount in mounts:
        _, point, kind, *_ = mount.split(" ")
        point = point.encode("ascii", "surrogateescape").decode("unicode_escape")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = point, kind
    return best[1] in _NETWORKED
