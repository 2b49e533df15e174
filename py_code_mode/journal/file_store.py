"""Sessions in files: one JSON document each, and beside it the turns recorded since it was written.

`{base}/{id}.json`, or `{base}/{workspace}/{id}.json`, is the session as it was saved; a reader
needs nothing else to make sense of it. `{id}.json.tail` holds one line for each turn and transition
that was recorded later, and is there only while there are such. When the tail has grown as long as
the document, both become a new document, so that recording a turn costs the same however many there
are.

Any number of threads and processes may share the folder. Who adds a line holds a lock on the tail
for that moment; who writes or removes a document holds one on the folder, too (taken first).
Readers hold none: a document is exchanged whole, and before its tail is dropped.
"""

from __future__ import annotations

import errno
import os
import re
import stat as modes
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from py_code_mode.errors import (
    CorruptRecordError,
    InvalidCall,
    InvalidName,
    JournalWriteError,
    PersistenceError,
    SessionClosedError,
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
)
from py_code_mode.journal import folding
from py_code_mode.journal.folding import Known, Order, Part
from py_code_mode.journal.ids import check_session_id, check_workspace_id
from py_code_mode.journal.store import (
    ENDED,
    MetaPage,
    SessionStore,
    check_page,
    check_session,
    check_workspace,
    meta_of,
    page_of,
)
from py_code_mode.journal.turns import SessionRecord, TurnRecord
from py_code_mode.stores.file import LOCK_TIMEOUT, lock_before
from py_code_mode.stores.files import DISK, FileSystem
from py_code_mode.stores.log import (
    MAX_LINE,
    Durability,
    Signature,
    check_durability,
    seal,
    signature_of,
)
from py_code_mode.stores.syncing import sync_later

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["COMPACT_SIZE", "FileSessionStore"]

#: Bytes of a tail that is left alone, however short the document is: writing one costs two syncs,
#: which may take as long as a thousand turns.
COMPACT_SIZE = 4 << 20

_SUFFIX = ".json"
_TAIL_SUFFIX = ".json.tail"
_NEW_PREFIX = ".new-"
_TRIES = 20  # to read or write a session that others exchange all the time
_ADDING = os.O_RDWR | os.O_APPEND
# A folder changed this recently may change once more without getting another time.
_SETTLED = 100_000_000  # ns
_MANY_TAILS = 100  # that are looked at for each list; more of them once a second
_RANDOM = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")
_BASE = ""  # the place of sessions without a workspace; a workspace's place is its id


@dataclass(slots=True, eq=False)
class _Slot:
    """What this process knows of a session's files. Changed with `lock` held.

    Attributes:
        signature: of the document that is told about here; None while nothing is known.
        end: bytes of the tail that are told about; `tail_inode` is that file's number.
        is_open: lines may be added to the tail as known here; found out anew where False.
        is_new: the tail was made here, and its name may not be on the disk yet.
    """

    known: Known
    place: str
    base: str
    files: FileSystem
    lock: threading.RLock = field(default_factory=threading.RLock)
    signature: Signature | None = None
    size: int = 0
    end: int = 0
    compact_at: int = COMPACT_SIZE
    is_open: bool = False
    is_new: bool = False
    tail_inode: int = -1
    is_due: bool = False
    problem: str = ""
    failure: str = ""
    folder: str = ""
    path: str = ""
    tail_path: str = ""

    def __post_init__(self) -> None:
        self.move(self.place)

    def move(self, place: str) -> None:
        """Be the slot of the same session in another place."""
        self.place = place
        self.folder = f"{self.base}/{place}" if place else self.base
        self.path = f"{self.folder}/{self.known.session_id}{_SUFFIX}"
        self.tail_path = f"{self.folder}/{self.known.session_id}{_TAIL_SUFFIX}"

    def sync_soon(self) -> None:
        """Have the tail on the disk; a failure is kept for the next one who writes."""
        self.is_due = False
        try:
            # A tail that is gone has become a document, which was synced.
            with suppress(FileNotFoundError):
                file = self.files.open(self.tail_path, os.O_RDONLY)
                try:
                    self.files.fdatasync(file)
                finally:
                    self.files.close(file)
                if self.is_new:
                    self.is_new = False
                    folder = self.files.open_folder(self.folder)
                    try:
                        self.files.fsync(folder)
                    finally:
                        self.files.close(folder)
        except OSError as error:
            self.failure = f"syncing it failed ({_words(error)}); save the session to go on"


class FileSessionStore(SessionStore):
    """Sessions as JSON files of a folder, which many processes may share.

    Args:
        base_dir: made when the first session is saved; links on the way to it are followed.
        durability: of a recorded turn. What is saved, started or ended is on the disk when the
            method returns, except with ``process``, which never waits for the disk.
    """

    def __init__(
        self,
        base_dir: str | Path,
        *,
        durability: Durability = "group",
        files: FileSystem = DISK,
    ) -> None:
        check_durability(durability)
        if "\0" in str(base_dir):
            raise InvalidCall("FileSessionStore", f"{str(base_dir)!r} is no path")
        self._base_dir = Path(base_dir).expanduser().absolute()
        self._base = str(self._base_dir)
        self._durability: Durability = durability
        self._files = files
        self._lock = threading.Lock()  # before that of a slot, where both are taken
        self._slots: dict[str, _Slot] = {}
        self._tidied: set[str] = set()
        self._listing = threading.Lock()
        self._order = Order()
        self._changed: set[str] = set()  # since the last list, by this process
        self._listed: tuple[tuple[str, int, int], ...] = ()
        self._tailed: set[str] = set()
        self._looked_at = 0.0
        self._workspaces_seen: tuple[tuple[int, int, int], float, list[str]] | None = None

    @property
    def base_dir(self) -> Path:
        """The folder, absolute; it may not exist yet."""
        return self._base_dir

    def __repr__(self) -> str:
        return f"FileSessionStore({self._base!r})"

    def save_session(self, session: SessionRecord) -> None:
        check_session("save_session", session)
        with self._alone(makes=True):
            old = self._find(session.session_id, tidies=True)
            self._save(session, old, session.workspace_id or _BASE)

    def create_session(self, session: SessionRecord) -> None:
        check_session("create_session", session)
        with self._alone(makes=True):
            old = self._find(session.session_id, tidies=True)
            if old is not None:
                raise SessionExistsError(session.session_id, self._path(old, session.session_id))
            self._save(session, None, session.workspace_id or _BASE)

    def load_session(self, session_id: str) -> SessionRecord | None:
        check_session_id(session_id)
        try:
            for _ in range(_TRIES):
                slot = self._slots.get(session_id)
                place = slot.place if slot and slot.signature else self._find(session_id)
                if place is None:
                    return None
                found = self._read(place, session_id)
                if found is not None:
                    return found if found.session_id == session_id else None
                if slot is not None:
                    self._forget(slot)
        except OSError as error:
            raise PersistenceError(
                f"{self._base}: session {session_id}: {_words(error)}"
            ) from error
        raise SessionLockedError(session_id, self._base)

    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        check_workspace(workspace_id)
        with self._looked_around():
            found = [(name, self._slots.get(name)) for name in self._order.ids()]
        return [name for name, slot in found if slot and workspace_id in (None, slot.place)]

    def list_page(
        self, limit: int = 50, cursor: str | None = None, *, workspace_id: str | None = None
    ) -> MetaPage:
        """As `SessionStore.list_page`.

        Where very many sessions have turns that are in no document yet, what other processes
        recorded in the last second may be missing in `updated_at` and `turn_count`.
        """
        check_workspace(workspace_id)
        place = check_page(limit, cursor)
        with self._looked_around():
            slots = (self._slots.get(name) for name in self._order.before(place))
            # None is one that is being deleted.
            return page_of(
                (meta_of(slot.known, slot.problem) for slot in slots if slot), limit, workspace_id
            )

    def delete_session(self, session_id: str) -> bool:
        check_session_id(session_id)
        if not self._base_dir.is_dir():
            return False
        with self._alone(makes=False):
            place = self._find(session_id, tidies=True)
            if place is None:
                return False
            slot = self._slot(session_id, place)
            with slot.lock, self._folder(place) as folder, self._tail(slot, folder):
                self._remove(folder, session_id + _SUFFIX)  # first: a tail alone is nothing
                self._remove(folder, session_id + _TAIL_SUFFIX)
                self._sync(folder)
                self._forget(slot)
                self._slots.pop(session_id, None)
            return True

    def append_record(self, session_id: str, record: Part, *, updated_at: str) -> None:
        for _ in range(_TRIES):
            slot = self._slots.get(session_id)
            if slot is None or not slot.is_open:
                slot = self._opened(session_id)
            with slot.lock:
                if self._append(slot, record, updated_at):
                    break
                slot.is_open = False
        else:
            raise SessionLockedError(session_id, self._base)
        self._changed.add(session_id)
        if slot.end >= slot.compact_at:
            self._compact(slot)

    def end_session(self, session_id: str, *, updated_at: str) -> None:
        check_session_id(session_id)
        if not self._base_dir.is_dir():
            raise SessionNotFoundError(session_id)
        with self._alone(makes=False):
            place = self._find(session_id, tidies=True)
            if place is None:
                raise SessionNotFoundError(session_id)
            slot = self._slot(session_id, place)
            with slot.lock, self._folder(place) as folder, self._tail(slot, folder) as tail:
                self._catch_up(slot, folder, tail)
                if slot.known.is_ended:
                    return
                fields, seq = self._fields(slot, folder, tail)
                self._write(slot, folder, folding.ended(fields, updated_at), seq + 1)
                self._remove(folder, session_id + _TAIL_SUFFIX)

    def flush(self) -> None:
        """Have all turns on the disk that this process recorded.

        Raises:
            JournalWriteError: some may not be.
        """
        for slot in list(self._slots.values()):
            if slot.is_due:
                slot.sync_soon()
            if slot.failure:
                raise JournalWriteError(slot.tail_path, slot.failure, is_final=True)

    # Adding a line.

    def _append(self, slot: _Slot, record: Part, ts: str) -> bool:
        """Add a line; False where the files are not those that are known."""
        files = self._files
        if slot.failure:
            raise JournalWriteError(slot.tail_path, slot.failure, is_final=True)
        file = -1
        try:
            try:
                file = files.open(slot.tail_path, _ADDING)
                self._take(file, slot.tail_path)
                document = files.stat(slot.path)
            except FileNotFoundError:
                return False
            tail = files.fstat(file)
            # The tail's number, too: a folder on the way may have become a link.
            if signature_of(document) != slot.signature or tail.st_ino != slot.tail_inode:
                return False
            if tail.st_size != slot.end:
                self._catch_up(slot, -1, file)
            known = slot.known
            line = seal(folding.body_of(record, known.seq + 1, ts))
            if len(line) > MAX_LINE:
                raise JournalWriteError(
                    slot.tail_path, f"a turn of {len(line)} bytes is too long", is_final=False
                )
            self._write_all(file, line, takes_back_to=slot.end)
            if self._durability == "power":
                files.fdatasync(file)
            slot.end += len(line)
            known.seq += 1
            known.updated_at = ts
            known.turn_count += isinstance(record, TurnRecord)
        except OSError as error:
            raise JournalWriteError(slot.tail_path, _words(error), is_final=False) from error
        finally:
            if file >= 0:
                self._let_go(file)
        if self._durability == "group" and not slot.is_due:
            slot.is_due = True
            sync_later(slot)
        return True

    def _opened(self, session_id: str) -> _Slot:
        """The slot of a session whose tail exists and whose newest record is known."""
        check_session_id(session_id)
        if not self._base_dir.is_dir():
            raise SessionNotFoundError(session_id)
        with self._alone(makes=False):
            place = self._find(session_id, tidies=True)
            if place is None:
                raise SessionNotFoundError(session_id)
            slot = self._slot(session_id, place)
            with slot.lock, self._folder(place) as folder:
                with self._tail(slot, folder, makes=True) as tail:
                    self._catch_up(slot, folder, tail)
                    slot.is_open = not slot.known.is_ended
                    slot.tail_inode = self._files.fstat(tail).st_ino
                    if slot.known.is_ended:
                        self._remove(folder, session_id + _TAIL_SUFFIX)
                        raise SessionClosedError(session_id, ENDED)
                slot.is_new = slot.end == 0
                if slot.is_new and self._durability == "power":
                    self._files.fsync(folder)
            return slot

    def _compact(self, slot: _Slot) -> None:
        """Make a document of document and tail."""
        session_id = slot.known.session_id
        try:
            with (
                self._alone(makes=False),
                slot.lock,
                self._folder(slot.place) as folder,
                self._tail(slot, folder) as tail,
            ):
                if tail < 0 or slot.signature is None:
                    return
                self._catch_up(slot, folder, tail)
                if slot.end < slot.compact_at:
                    return  # somebody else did
                fields, seq = self._fields(slot, folder, tail)
                self._write(slot, folder, fields, seq)
                self._files.truncate(tail, 0)
                slot.is_open = True  # the file is the same still
        except PersistenceError:
            # The turn is recorded all the same; another try when there is more to gain.
            slot.compact_at = 2 * slot.end
            self._changed.add(session_id)

    # Documents. The folder's lock is held.

    def _save(self, session: SessionRecord, old: str | None, place: str) -> None:
        session_id = session.session_id
        if old is None:
            self._refuse_twin(session_id, place)
        with self._made(place) as folder:
            slot = self._slot(session_id, place if old is None else old)
            with slot.lock:
                if old is None:
                    self._remove(folder, session_id + _TAIL_SUFFIX)  # of one deleted in a crash
                    self._write(slot, folder, session, 0)
                elif old == place:
                    with self._tail(slot, folder) as tail:
                        seq = self._next_seq(slot, folder, tail)
                        self._write(slot, folder, session, seq)
                        self._remove(folder, session_id + _TAIL_SUFFIX)
                else:
                    with self._folder(old) as before, self._tail(slot, before) as tail:
                        seq = self._next_seq(slot, before, tail)
                        self._remove(folder, session_id + _TAIL_SUFFIX)
                        slot.move(place)
                        self._write(slot, folder, session, seq, moved_from=old or ".")
                        self._remove(before, session_id + _SUFFIX)
                        self._remove(before, session_id + _TAIL_SUFFIX)
                        self._sync(before)

    def _next_seq(self, slot: _Slot, folder: int, tail: int) -> int:
        try:
            self._catch_up(slot, folder, tail)
        except CorruptRecordError:
            # It is replaced anyway. The tail goes first: its numbers are not known.
            self._remove(folder, slot.known.session_id + _TAIL_SUFFIX)
            return 0
        return slot.known.seq + 1

    def _write(
        self,
        slot: _Slot,
        folder: int,
        session: SessionRecord | dict[str, Any],
        seq: int,
        *,
        moved_from: str = "",
    ) -> None:
        """Exchange the document, durably; whoever reads sees the old one or the new one."""
        files = self._files
        data = folding.snapshot(session, seq, moved_from)
        known = folding.head(data, slot.path)
        self._tidy(slot.place, folder)
        new = _NEW_PREFIX + os.urandom(8).hex()
        file = files.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder=folder)
        try:
            try:
                self._write_all(file, data)
                self._sync(file)
                files.rename(new, known.session_id + _SUFFIX, folder=folder)
                status = files.fstat(file)  # after the rename, which changes its time
            finally:
                files.close(file)
        except BaseException:
            with suppress(OSError):  # the first error tells more
                files.unlink(new, folder=folder)
            raise
        slot.known, slot.signature = known, signature_of(status)
        slot.known.workspace_id = slot.place or None
        slot.size, slot.end, slot.problem, slot.failure = len(data), 0, "", ""
        slot.compact_at = max(COMPACT_SIZE, len(data))
        slot.is_open = False
        self._slots[known.session_id] = slot
        self._changed.add(known.session_id)
        self._sync(folder)

    def _fields(self, slot: _Slot, folder: int, tail: int) -> tuple[dict[str, Any], int]:
        data, _ = self._content(slot.known.session_id + _SUFFIX, folder, slot.path)
        lines, _ = folding.lines_of(self._bytes(tail, 0, slot.end), slot.tail_path)
        return folding.tree(data, slot.path, lines)

    # Looking at files.

    def _read(self, place: str, session_id: str) -> SessionRecord | None:
        """The session; None where it is not there, or changed meanwhile."""
        name, path = session_id + _SUFFIX, self._path(place, session_id)
        try:
            with self._folder(place) as folder:
                data, signature = self._content(name, folder, path)
                try:
                    added, _ = self._content(session_id + _TAIL_SUFFIX, folder, f"{path}.tail")
                except FileNotFoundError:
                    added = b""
                # The document is exchanged before its tail is dropped: where it is the same
                # still, the tail was its own.
                if signature_of(self._files.stat(name, folder=folder)) != signature:
                    return None
        except FileNotFoundError:
            return None
        # Its id is another one where the file system takes no notice of case.
        return folding.session_of(data, added, path)

    def _catch_up(self, slot: _Slot, folder: int, tail: int) -> None:
        """Learn what others did, and cut what a crash left of a line; the tail is locked.

        Args:
            folder: -1 where the document is known to be the same.
            tail: -1 where there is none.
        """
        if folder >= 0:
            name = slot.known.session_id + _SUFFIX
            status = self._files.stat(name, folder=folder)
            if signature_of(status) != slot.signature:
                data, slot.signature = self._content(name, folder, slot.path)
                self._know(slot, data)
        size = self._files.fstat(tail).st_size if tail >= 0 else 0
        if size < slot.end:  # not by us: begin again
            slot.signature, slot.end = None, 0
            raise CorruptRecordError(slot.tail_path, None, size, "its end was cut off")
        lines, end = folding.lines_of(self._bytes(tail, slot.end, size), slot.tail_path, slot.end)
        self._count(slot, lines, end)
        if end < size:
            self._files.truncate(tail, end)

    def _know(self, slot: _Slot, data: bytes) -> None:
        known = folding.head(data, slot.path)
        known.workspace_id = slot.place or None
        slot.known, slot.size, slot.end, slot.problem = known, len(data), 0, ""
        slot.compact_at = max(COMPACT_SIZE, len(data))

    def _count(self, slot: _Slot, lines: list[folding.Added], end: int) -> None:
        for line in lines:
            if line.seq > slot.known.seq + 1:
                raise CorruptRecordError(
                    slot.tail_path, None, slot.end, f"record {slot.known.seq + 1} is missing"
                )
            if line.seq > slot.known.seq:
                slot.known.add(line)
        slot.end = end

    def _find(self, session_id: str, *, tidies: bool = False) -> str | None:
        """Where a session is; None where there is none.

        Args:
            tidies: remove a copy that a crash while it was moved has left; the folder's lock is
                held.
        """
        name = session_id + _SUFFIX
        found = [place for place in (_BASE, *self._workspaces()) if self._exists(place, name)]
        if len(found) < 2:
            return found[0] if found else None
        for place in found:
            with suppress(PersistenceError, FileNotFoundError), self._folder(place) as folder:
                data, _ = self._content(name, folder, self._path(place, session_id))
                before = folding.head(data, self._path(place, session_id)).moved_from
                before = _BASE if before == "." else before or place
                if before != place and sorted(found) == sorted([before, place]):
                    if tidies:
                        with self._folder(before) as stale:
                            self._remove(stale, name)
                            self._remove(stale, session_id + _TAIL_SUFFIX)
                    return place
        raise PersistenceError(
            f"session {session_id} is in two places: "
            f"{', '.join(self._path(place, session_id) for place in found)}; an id stands for one "
            "session, so remove or rename all but one of these files"
        )

    def _workspaces(self) -> list[str]:
        """The folders that are workspaces; links are none."""
        try:
            status = os.stat(self._base)
        except (FileNotFoundError, NotADirectoryError):
            return []
        now, mark = time.monotonic(), (status.st_ino, status.st_nlink, status.st_mtime_ns)
        if self._workspaces_seen is not None:
            seen, at, names = self._workspaces_seen
            # Most file systems count a folder's subfolders in its links. So files that come and
            # go, as they do all the time, need no new look; a folder that somebody renames is
            # seen a second later.
            if seen == mark or (seen[:2] == mark[:2] and mark[1] > 1 and now - at < 1.0):
                return names
        is_settled = abs(time.time_ns() - status.st_mtime_ns) > _SETTLED
        found: list[str] = []
        with os.scandir(self._base) as entries:
            for entry in entries:
                if entry.name.endswith((_SUFFIX, _TAIL_SUFFIX)) and entry.is_file():
                    continue
                with suppress(InvalidName):
                    if entry.is_dir(follow_symlinks=False):
                        found.append(check_workspace_id(entry.name))
        # Without a time where the folder may change once more and not get another one.
        mark = mark if is_settled else (*mark[:2], 0)
        self._workspaces_seen = (mark, now, found)
        return found

    def _exists(self, place: str, name: str) -> bool:
        path = f"{self._base}/{place}/{name}" if place else f"{self._base}/{name}"
        try:
            mode = self._files.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        return modes.S_ISREG(mode) or modes.S_ISLNK(mode)  # reading a link tells why not

    def _content(self, name: str, folder: int, path: str) -> tuple[bytes, Signature]:
        file = self._files.open(name, os.O_RDONLY, folder=folder)
        try:
            status = self._files.fstat(file)
            if not modes.S_ISREG(status.st_mode):
                raise PersistenceError(f"{path}: it is not a regular file")
            return self._bytes(file, 0, status.st_size), signature_of(status)
        finally:
            self._files.close(file)

    def _bytes(self, file: int, start: int, end: int) -> bytes:
        pieces: list[bytes] = []
        while start < end:
            data = self._files.read(file, end - start, start)
            if not data:
                break
            pieces.append(data)
            start += len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # What is known.

    def _slot(self, session_id: str, place: str) -> _Slot:
        slot = self._slots.get(session_id)
        if slot is None or slot.place != place:
            slot = _Slot(Known(session_id), place, self._base, self._files)
            self._slots[session_id] = slot
        return slot

    def _forget(self, slot: _Slot) -> None:
        with slot.lock:
            slot.signature, slot.end, slot.is_open = None, 0, False
        self._changed.add(slot.known.session_id)

    @contextmanager
    def _looked_around(self) -> Generator[None, None, None]:
        """The order is that of the files, and nobody else changes it."""
        with self._listing:
            try:
                self._look_around()
            except OSError as error:
                raise PersistenceError(f"{self._base}: {_words(error)}") from error
            yield

    def _look_around(self) -> None:
        """Have the order and the slots be those of the files."""
        now = time.monotonic()
        places = [_BASE, *self._workspaces()]
        seen: list[tuple[str, int, int]] = []
        newest = 0
        for place in places:
            with suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(f"{self._base}/{place}" if place else self._base)
                seen.append((place, status.st_ino, status.st_mtime_ns))
                newest = max(newest, status.st_mtime_ns)
        changed = list(self._changed)
        self._changed.difference_update(changed)  # before looking, so that nothing is missed
        if tuple(seen) != self._listed:
            is_settled = abs(time.time_ns() - newest) > _SETTLED
            self._look_at_all(places)
            self._listed = tuple(seen) if is_settled else ()
            self._looked_at = now
            return
        if len(self._tailed) <= _MANY_TAILS or now - self._looked_at >= 1.0:
            changed += self._tailed.difference(changed)
            self._looked_at = now
        for session_id in changed:
            slot = self._slots.get(session_id)
            if slot is None:
                self._order.drop(session_id)
            else:
                self._look_at(slot, has_tail=True)
                self._order.put(session_id, slot.known.updated_at)

    def _look_at_all(self, places: list[str]) -> None:
        found: dict[str, list[str]] = {}
        self._tailed = set()
        for place in places:
            for name in self._names(place):
                if name.endswith(_TAIL_SUFFIX):
                    self._tailed.add(name.removesuffix(_TAIL_SUFFIX))
                elif name.endswith(_SUFFIX):
                    with suppress(InvalidName):
                        session_id = check_session_id(name.removesuffix(_SUFFIX))
                        found.setdefault(session_id, []).append(place)
        self._tailed &= found.keys()
        times: dict[str, str] = {}
        for session_id, its_places in found.items():
            if len(its_places) > 1:
                try:
                    its_places = [self._find(session_id) or its_places[0]]
                except PersistenceError as error:
                    slot = _Slot(Known(session_id), its_places[0], self._base, self._files)
                    slot.known.workspace_id, slot.problem = its_places[0] or None, str(error)
                    self._slots[session_id] = slot
                    times[session_id] = ""
                    continue
            slot = self._slot(session_id, its_places[0])
            self._look_at(slot, has_tail=session_id in self._tailed)
            times[session_id] = slot.known.updated_at
        for session_id in self._slots.keys() - found.keys():
            self._slots.pop(session_id, None)
        self._order.replace(times)

    def _names(self, place: str) -> list[str]:
        """Of the regular files."""
        try:
            entries = os.scandir(f"{self._base}/{place}" if place else self._base)
        except (FileNotFoundError, NotADirectoryError):
            return []
        with entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]

    def _look_at(self, slot: _Slot, *, has_tail: bool) -> None:
        """Learn what is new about a session, without a lock on its files."""
        with slot.lock:
            for _ in range(_TRIES):
                try:
                    if self._looked(slot, has_tail=has_tail):
                        return
                except FileNotFoundError:
                    return  # deleted just now; the next list is without it
                except (PersistenceError, OSError) as error:
                    slot.signature, slot.end, slot.is_open = None, 0, False
                    slot.known = Known(slot.known.session_id, slot.place or None)
                    slot.problem = str(error)
                    return

    def _looked(self, slot: _Slot, *, has_tail: bool) -> bool:
        signature = signature_of(self._files.stat(slot.path))
        if signature != slot.signature:
            with self._folder(slot.place) as folder:
                name = slot.known.session_id + _SUFFIX
                data, slot.signature = self._content(name, folder, slot.path)
            slot.is_open = False
            self._know(slot, data)
        if not has_tail:
            return True
        try:
            size = self._files.stat(slot.tail_path).st_size
        except FileNotFoundError:
            return True
        if size <= slot.end:
            return True
        with self._folder(slot.place) as folder:
            name = slot.known.session_id + _TAIL_SUFFIX
            file = self._files.open(name, os.O_RDONLY, folder=folder)
            try:
                data = self._bytes(file, slot.end, size)
            finally:
                self._files.close(file)
        if signature_of(self._files.stat(slot.path)) != slot.signature:
            return False  # that tail was another document's
        lines, end = folding.lines_of(data, slot.tail_path, slot.end)
        self._count(slot, lines, end)
        return True

    # Folders and locks.

    def _path(self, place: str, session_id: str) -> str:
        folder = f"{self._base}/{place}" if place else self._base
        return f"{folder}/{session_id}{_SUFFIX}"

    def _refuse_twin(self, session_id: str, place: str) -> None:
        """Where a name's case makes no difference, two such ids were one."""
        if _RANDOM.fullmatch(session_id):
            return  # made up, and nobody makes up the same one in other letters
        folder = f"{self._base}/{place}" if place else self._base
        wanted = (session_id + _SUFFIX).lower()
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower() == wanted:
                    path = f"{folder}/{entry.name}"
                    raise SessionExistsError(entry.name.removesuffix(_SUFFIX), path)

    @contextmanager
    def _alone(self, *, makes: bool) -> Generator[None, None, None]:
        """Keep everybody else from writing and removing documents."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise self._busy(self._base)
        try:
            folder = -1
            try:
                folder = self._locked_base(makes=makes)
                yield
            except OSError as error:
                raise JournalWriteError(self._base, _words(error), is_final=False) from error
            finally:
                if folder >= 0:
                    self._let_go(folder)
        finally:
            self._lock.release()

    def _locked_base(self, *, makes: bool) -> int:
        for _ in range(_TRIES):
            if makes and not self._base_dir.is_dir():
                self._base_dir.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    self._files.make_folder(self._base)
            folder = self._files.open_folder(self._base)
            try:
                self._take(folder, self._base)
                mine, named = self._files.fstat(folder), os.stat(self._base)
                if (mine.st_ino, mine.st_dev) == (named.st_ino, named.st_dev):
                    return folder
            except FileNotFoundError:
                pass  # removed at this moment
            except BaseException:
                self._files.close(folder)
                raise
            self._files.close(folder)
        raise self._busy(self._base)

    @contextmanager
    def _folder(self, place: str) -> Generator[int, None, None]:
        """A descriptor of a place; a workspace that is a link is refused."""
        if place:
            flags = os.O_RDONLY | os.O_DIRECTORY
            try:
                folder = self._files.open(f"{self._base}/{place}", flags)
            except NotADirectoryError:
                raise PersistenceError(
                    f"{self._base}/{place}: a workspace is a folder; links are not followed"
                ) from None
        else:
            folder = self._files.open_folder(self._base)
        try:
            yield folder
        finally:
            self._files.close(folder)

    @contextmanager
    def _made(self, place: str) -> Generator[int, None, None]:
        with self._folder(_BASE) as base:
            if not place:
                yield base
                return
            with suppress(FileExistsError):
                self._files.make_folder(place, folder=base)
                self._sync(base)
            with self._folder(place) as folder:
                yield folder

    @contextmanager
    def _tail(self, slot: _Slot, folder: int, *, makes: bool = False) -> Generator[int, None, None]:
        """The tail, locked; -1 where there is none."""
        flags = _ADDING | os.O_CREAT if makes else _ADDING
        try:
            tail = self._files.open(slot.known.session_id + _TAIL_SUFFIX, flags, folder=folder)
        except FileNotFoundError:
            yield -1
            return
        try:
            self._take(tail, slot.tail_path)
            yield tail
        finally:
            self._let_go(tail)

    def _take(self, file: int, path: str) -> None:
        if not lock_before(time.monotonic() + LOCK_TIMEOUT, partial(self._files.lock, file)):
            raise self._busy(path)

    def _let_go(self, file: int) -> None:
        try:
            # A process forked meanwhile shares the lock until it is given up by name.
            self._files.unlock(file)
        finally:
            self._files.close(file)

    def _busy(self, path: str) -> PersistenceError:
        return PersistenceError(f"{path}: others have held its lock for {LOCK_TIMEOUT:g} s")

    def _write_all(self, file: int, data: bytes, *, takes_back_to: int = -1) -> None:
        try:
            view = memoryview(data)
            while view.nbytes:
                try:
                    written = self._files.write(file, view)
                except InterruptedError:
                    continue
                if written <= 0:
                    raise OSError(errno.EIO, "the system took none of it")
                view = view[written:]
        except BaseException:
            if takes_back_to >= 0:
                with suppress(OSError):  # the next writer cuts it
                    self._files.truncate(file, takes_back_to)
            raise

    def _sync(self, file: int) -> None:
        if self._durability != "process":
            self._files.fsync(file)

    def _remove(self, folder: int, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.unlink(name, folder=folder)

    def _tidy(self, place: str, folder: int) -> None:
        """Remove what writers that were killed left: whoever holds the lock is the only one."""
        if place not in self._tidied:
            for name in self._files.names(folder):
                if name.startswith(_NEW_PREFIX):
                    self._remove(folder, name)
            self._tidied.add(place)


def _words(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.EMLINK):  # EMLINK is what FreeBSD says
        return "it is a symbolic link; links are not followed"
    return error.strerror or str(error)
