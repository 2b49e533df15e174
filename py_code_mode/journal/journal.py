"""The writer of one session's journal.

Promises: what `append` returned for is there after a crash, in order, once; a failed append leaves
nothing behind; there is one writer at a time; nothing that `redact` takes out reaches the disk.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import msgspec

from py_code_mode.arguments import check_type
from py_code_mode.errors import (
    CorruptRecordError,
    JournalWriteError,
    LogFailed,
    LogLocked,
    NotStored,
    PersistenceError,
    SchemaVersionError,
    SessionClosedError,
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from py_code_mode.journal.blobs import BlobStore
from py_code_mode.journal.ids import as_uuid, check_session_id, new_session_id
from py_code_mode.journal.loader import decode_line, find_journal, read_header
from py_code_mode.journal.paths import (
    LAYOUT_FILE,
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    journal_files,
)
from py_code_mode.journal.records import (
    CURRENT_SCHEMA_VERSION,
    MAX_INLINE,
    Foreign,
    Header,
    InvalidRecord,
    Record,
    Recovery,
    Reopen,
    Trailer,
    decode,
    encode,
    from_dict,
    plain,
    stamp,
    to_dict,
)
from py_code_mode.stores.files import DISK, FileSystem
from py_code_mode.stores.log import Durability, Log, LogReader

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["LAYOUT_VERSION", "SUPERSEDED_SUFFIX", "Redact", "SessionJournal", "recover"]

#: Of the folder; one that a newer version made is left alone.
LAYOUT_VERSION = 1
#: Of a journal that another one of the same session got further than; nothing reads it.
SUPERSEDED_SUFFIX = ".jsonl.__superseded__"

#: Takes out of a record what must not be written; both are dicts of JSON.
Redact: TypeAlias = Callable[[dict[str, Any]], Mapping[str, Any]]

_SUSPECT = 1 << 20  # bytes before the end in which a power cut may have left damage
_COUNTED = 8 << 20  # bytes of a journal whose records are counted again for its trailer


class Writer(ABC):
    """What is closed at the end of a `with` block, and abandoned if the block raises."""

    @abstractmethod
    def close(self) -> None:
        """End it whole."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave it as it is, as one whose writer died; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class SessionJournal(Writer):
    """The one writer of a session's journal. Thread-safe; its methods block.

    Made by `create` and `reopen`, ended by `close` or `abandon`; as a context manager it is closed
    at the end, and abandoned if the block raises. A forked child cannot write to it.

    Every method raises `JournalWriteError` where the disk fails, and `SessionClosedError` after the
    end.

    Attributes:
        header: the first record, as it was written.
        recovered: what was found and cut when it was reopened after a crash.
    """

    def __init__(
        self,
        folder: Path,
        log: Log,
        header: Header,
        *,
        redact: Redact | None,
        clock: Callable[[], float],
        files: FileSystem,
    ) -> None:
        self.header = header
        self.recovered: Recovery | None = None
        self._folder, self._log = folder, log
        self._redact, self._clock, self._files = redact, clock, files
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._last = -1
        self._end = log.size
        self._counts: dict[str, int] | None = {}
        self._has_trailer = self._is_closed = False
        #: what goes before the next record; and whether the journal is still one that was closed
        self._due: list[Record] = []
        self._was_closed = False
        self._blobs = BlobStore(folder, files=files)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        session_id: str | None = None,
        *,
        durability: Durability = "group",
        redact: Redact | None = None,
        clock: Callable[[], float] = time.time,
        files: FileSystem = DISK,
        **header_fields: Any,
    ) -> Self:
        """Begin the journal of a new session; the folder is made where it is missing.

        Args:
            session_id: a new one where None.
            redact: is given every record as a dict of JSON before it is written, and returns what
                may be written; the record's type and ids must stay.
            clock: seconds since the epoch; what records say of time comes from it.
            header_fields: fields of `Header`.

        Raises:
            InvalidName: the id cannot name a file.
            SessionExistsError: there is a journal of this id, perhaps in other letters' case.
            SchemaVersionError: a newer version made the folder.
        """
        session_id = new_session_id() if session_id is None else check_session_id(session_id)
        folder = Path(folder)
        now = clock()
        fields: dict[str, Any] = {
            "created_at": stamp(now),
            "lineage_operator": "implicit",
            **header_fields,
        }
        fields |= {"schema_version": CURRENT_SCHEMA_VERSION, "id": session_id}
        fields |= {"runtime": _runtime(), "boot_id": _boot_id(), "mono_ns": time.monotonic_ns()}
        header = Header(**fields)
        path = folder / f"{session_id}{SESSION_PARTIAL_SUFFIX}"
        with _translated(session_id, str(path)):
            _prepare(folder, files)
            _refuse_twins(folder, session_id)
            log = cls._begun(folder, session_id, path.name, durability, files)
        journal = cls(folder, log, header, redact=redact, clock=clock, files=files)
        try:
            # Somebody may have closed this session between the look and the lock.
            if (folder / f"{session_id}{SESSION_FILE_SUFFIX}").exists():
                raise SessionExistsError(session_id, str(folder))
            journal.append(header)
            if durability != "process":
                journal.flush()  # without its header the rest of it would be nobody's
        except BaseException:
            with suppress(OSError):
                path.unlink()
            log.abandon()
            raise
        return journal

    @staticmethod
    def _begun(
        folder: Path, session_id: str, name: str, durability: Durability, files: FileSystem
    ) -> Log:
        try:
            return Log.create(folder, name, durability=durability, files=files)
        except StoreError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
        # One whose writer died in its first line is nobody's: it was never begun.
        taken = SessionExistsError(session_id, str(folder / name))
        with suppress(PersistenceError, StoreError):
            if read_header(folder / name, files=files) is None:
                log = Log.open(folder, name, durability=durability, files=files)
                if not log.size:
                    return log
                log.abandon()
        raise taken

    @classmethod
    def reopen(
        cls,
        folder: str | Path,
        session_id: str,
        *,
        reason: str = "",
        mode: str = "",
        is_lazy: bool = False,
        durability: Durability = "group",
        redact: Redact | None = None,
        clock: Callable[[], float] = time.time,
        files: FileSystem = DISK,
    ) -> Self:
        """Go on with a journal, closed or not.

        What a crash left of its last lines is cut off, which a `Recovery` tells; a `Reopen`
        follows. The time it takes does not depend on the journal's size.

        Args:
            is_lazy: these are written with the first record that is appended, and `begin`; ended
                before, the journal is as it was. What was cut off is told at once all the same.

        Raises:
            SessionNotFoundError: there is none of this id.
            SessionLockedError: another writer has it.
            SchemaVersionError: another version wrote it; it can be read, and forked.
            CorruptRecordError: it has no header, or none of its last lines is whole.
        """
        folder = Path(folder)
        found = find_journal(folder, session_id)
        path = str(found.path)
        with _translated(session_id, path):
            header = read_header(found.path, files=files)
            if header is None:
                raise SessionNotFoundError(session_id)  # its writer died before it was begun
            if header.schema_version != CURRENT_SCHEMA_VERSION:
                raise SchemaVersionError(
                    path,
                    f"it has schema version {header.schema_version}, and only version "
                    f"{CURRENT_SCHEMA_VERSION} is written here; fork the session to go on",
                )
            log = Log.open(folder, found.path.name, durability=durability, files=files)
        journal = cls(folder, log, header, redact=redact, clock=clock, files=files)
        try:
            with _translated(session_id, path):
                journal._take_up()
            again = Reopen(reason=reason, mode=mode, runtime=_runtime(), boot_id=_boot_id())
            journal.append_later(again)
            if not is_lazy or log.cut is not None:
                journal.begin()
        except BaseException:
            log.abandon()
            raise
        return journal

    def _take_up(self) -> None:
        """Find where the last writer stopped, and have the file named as one that is written."""
        live = f"{self.id}{SESSION_PARTIAL_SUFFIX}"
        if self._log.name != live:
            if (self._folder / live).exists():  # a copy that did not get as far
                _put_aside(self._folder, live, self.id, self._files)
            self._log.rename(live)
        elif (self._folder / f"{self.id}{SESSION_FILE_SUFFIX}").exists():
            _put_aside(self._folder, f"{self.id}{SESSION_FILE_SUFFIX}", self.id, self._files)
        with LogReader(self._folder / live, files=self._files) as reader:
            line = reader.last()
            tail = reader.tail(_SUSPECT)
        if line is None:
            raise CorruptRecordError(self.path, None, 0, "none of its last lines is whole")
        last = decode_line(self.path, None, line)
        self._last = last.seq
        if isinstance(last, Trailer):
            self._was_closed = True
            self._counts = {**last.counts, "trailer": last.counts.get("trailer", 0) + 1}
            if not last.counts:
                self._counts = None
            return
        self._counts = None
        cut = self._log.cut
        self.recovered = Recovery(
            at_offset=cut.offset if cut else self._log.size,
            dropped_bytes=cut.size if cut else 0,
            reason=cut.reason if cut else "its writer ended without closing it",
            sha256=cut.sha256 if cut else "",
            damaged=[[bad.offset, bad.end - bad.offset] for bad in tail if bad.problem],
        )
        self.append_later(self.recovered)

    @property
    def id(self) -> str:
        """The session's id."""
        return self.header.id

    @property
    def folder(self) -> Path:
        """The sessions folder."""
        return self._folder

    @property
    def path(self) -> str:
        """Where the journal is now."""
        return self._log.path

    @property
    def blobs(self) -> BlobStore:
        """Where large values go."""
        return self._blobs

    @property
    def last_seq(self) -> int:
        """Of the newest record."""
        return self._last

    @property
    def next_seq(self) -> int:
        """That the next record will have, if nobody is quicker."""
        return self._last + 1

    @property
    def size(self) -> int:
        """Of the journal, in bytes, blobs not counted."""
        return self._log.size

    @property
    def durability(self) -> Durability:
        """What an append promises."""
        return self._log.durability

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more records."""
        return self._is_closed or self._has_trailer or os.getpid() != self._owner

    def __repr__(self) -> str:
        return f"SessionJournal({self.path!r})"

    def append_later(self, record: Record) -> None:
        """Have a record written before the next one, if there is a next one."""
        with self._lock:
            self._due.append(record)

    def begin(self) -> None:
        """Write what is to be written before the next record."""
        with self._lock:
            while self._due:
                self._append(self._due[0])
                self._was_closed = False
                del self._due[0]

    def append(
        self,
        record: Record | Foreign | Mapping[str, Any],
        *,
        expected_seq: int | None = None,
        is_plain: bool = False,
    ) -> int:
        """Write a record and return its `seq`.

        A value of it that is larger than `MAX_INLINE` becomes a blob.

        Args:
            record: a mapping, as `decode_dict` gives, keeps the keys that nobody knows.
            expected_seq: refuse unless this is the record's number.
            is_plain: its values come from a journal, so that their tags are meant.

        Raises:
            InvalidCall: it is no record at all.
            InvalidRecord: a field holds what it cannot.
            JournalWriteError: nothing of it was written, which may be due to `redact`; where not
                `is_final`, try again.
        """
        check_type("SessionJournal.append", "record", record, (Record, Foreign, Mapping))
        if self._due:
            self.begin()
        return self._append(record, expected_seq=expected_seq, is_plain=is_plain)

    def _append(
        self,
        record: Record | Foreign | Mapping[str, Any],
        *,
        expected_seq: int | None = None,
        is_plain: bool = False,
    ) -> int:
        self._check_owner()
        ready = self._ready(record, is_plain=is_plain)
        with self._lock:
            body = self._body(ready, expected_seq)
            if len(body) <= MAX_INLINE:
                return self._write(ready, body)
        # Elsewhere, since storing a blob takes its time.
        with _translated(self.id, self.path):
            small, needs_blobs = self._measured(ready)
            with self._blobs.naming() if needs_blobs else nullcontext():
                if needs_blobs:
                    small = self._with_blobs(ready)
                with self._lock:
                    return self._write(small, self._body(small, expected_seq))

    def put_blob(
        self,
        data: bytes,
        media_type: str,
        *,
        snapshot: object = None,
        stamps: Mapping[str, int] | None = None,
    ) -> Any:
        """Store bytes beside the journal; the reference is a value for a record.

        It is for what is not JSON, such as an image, and is not given to `redact`. The arguments
        are those of `BlobStore.put`.
        """
        with _translated(self.id, self.path):
            return self._blobs.put(data, media_type, snapshot=snapshot, stamps=stamps)

    def flush(self) -> None:
        """Return when all records that were appended before are on the disk."""
        self._check_owner()
        self._check_open()
        with _translated(self.id, self.path):
            self._log.flush()

    def close(
        self, status: str = "closed", *, cumulative_usage: Any = None, metadata: Any = None
    ) -> None:
        """End the session: write the trailer, make all durable, give the file its final name.

        A second call does nothing. Where it raises, the journal is as it was, or has its trailer
        but not its name; it can be called again, and until then the session counts as open.
        One that was reopened, and in which nothing has begun since, is left as it was.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._is_closed:
                return
            if self._due:
                self.abandon()
                return
            if not self._has_trailer:
                counts = self._counted()
                trailer = Trailer(
                    closed_at=stamp(self._clock()),
                    status=status,
                    final_seq=self._last,
                    final_chunk_count=None if counts is None else counts.get("chunk", 0),
                    counts=counts or {},
                    cumulative_usage=cumulative_usage,
                    metadata={} if metadata is None else metadata,
                )
                self.append(trailer)
                self._has_trailer = True
            with _translated(self.id, self.path):
                self._log.flush()
                self._log.rename(f"{self.id}{SESSION_FILE_SUFFIX}")
                self._is_closed = True
                self._log.close()

    def abandon(self) -> None:
        """Stop writing, as if the writer had died; a second call does nothing."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._is_closed = True
            with suppress(StoreError):  # it is what would have been lost anyway
                if self._was_closed:
                    self._log.rename(f"{self.id}{SESSION_FILE_SUFFIX}")
            with suppress(StoreError):
                self._log.close()

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise SessionClosedError(self.id, "its journal belongs to the process it came from")

    def _check_open(self) -> None:
        if self._is_closed or self._has_trailer:
            raise SessionClosedError(self.id)

    def _ready(
        self, record: Record | Foreign | Mapping[str, Any], *, is_plain: bool
    ) -> Record | Mapping[str, Any]:
        """The record with plain values, and without what `redact` takes out."""
        if isinstance(record, Record):
            changes: dict[str, Any] = {}
            for name in record.FREE:
                value: object = getattr(record, name)
                kind = type(value)
                if value is None or ((kind is dict or kind is list) and not value):
                    continue
                found = plain(value, is_tagged=is_plain)
                if found is not value:
                    changes[name] = found
            if record.seq >= 0:
                changes |= {"seq": -1, "ts": ""}
            if changes:
                record = msgspec.structs.replace(record, **changes)
            if self._redact is None:
                return record
        else:
            given = to_dict(record) if isinstance(record, Foreign) else record
            record = {
                key: plain(value, is_tagged=is_plain)
                for key, value in given.items()
                if key not in ("seq", "ts", "crc")
            }
            from_dict(record)
        return record if self._redact is None else self._redacted(record)

    def _redacted(self, record: Record | Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._redact is not None
        before = to_dict(record) if isinstance(record, Record) else dict(record)
        kind, ids = before.get("record_type"), {name: before.get(name) for name in _IDS}

        def wrong(what: str) -> JournalWriteError:
            reason = f"redact {what} for a record of type {kind!r}, so it was not written"
            return JournalWriteError(self.path, reason, is_final=False)

        try:
            found = cast("object", self._redact(before))
        except Exception as error:
            raise wrong(f"raised {type(error).__name__}") from error
        if not isinstance(found, Mapping):
            raise wrong(f"gave {type(found).__name__} and no dict")
        given = cast("Mapping[object, object]", found)
        if not all(isinstance(key, str) for key in given):
            raise wrong("gave keys that are no texts")
        after: dict[str, Any] = {
            key: plain(value, is_tagged=True)
            for key, value in cast("Mapping[str, object]", given).items()
            if key not in ("seq", "ts", "crc")
        }
        if after.get("record_type") != kind or any(after.get(n) != ids[n] for n in ids):
            raise wrong("changed the type or an id")
        try:
            from_dict(after)
        except InvalidRecord as error:
            raise wrong(f"gave what is none ({error})") from error
        return after

    def _body(self, record: Record | Mapping[str, Any], expected_seq: int | None) -> bytes:
        self._check_open()
        if self._log.size != self._end:
            # The last append was interrupted after its line was written: it counts.
            self._last, self._end = self._last + 1, self._log.size
        seq = self._last + 1
        if expected_seq is not None and expected_seq != seq:
            raise JournalWriteError(
                self.path,
                f"the next record has seq {seq}, not {expected_seq}",
                is_final=False,
            )
        try:
            return encode(record, seq=seq, ts=stamp(self._clock()))
        except TypeError as error:
            raise InvalidRecord(f"a record that has no form in JSON: {error}") from error

    def _write(self, record: Record | Mapping[str, Any], body: bytes) -> int:
        if isinstance(record, Record):
            decode(body)  # what cannot be read must not be written
            kind = record.record_type
        else:
            kind = str(record["record_type"])
        try:
            self._log.append(body)
        except StoreError as error:
            raise _write_error(self.path, error) from error
        except ValueError as error:
            raise InvalidRecord(str(error)) from error
        self._last += 1
        self._end = self._log.size
        if self._counts is not None:
            self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._last

    def _measured(
        self, record: Record | Mapping[str, Any]
    ) -> tuple[Record | Mapping[str, Any], bool]:
        fields = to_dict(record) if isinstance(record, Record) else record
        return record, any(len(_json(fields[name])) > MAX_INLINE for name in _free(fields))

    def _with_blobs(self, record: Record | Mapping[str, Any]) -> Mapping[str, Any]:
        """The record with references in place of its large values."""
        fields = dict(to_dict(record) if isinstance(record, Record) else record)
        for name in _free(fields):
            body = _json(fields[name])
            if len(body) > MAX_INLINE:
                fields[name] = self._blobs.put(body, snapshot=_glimpse(fields[name]))
        return fields

    def _counted(self) -> dict[str, int] | None:
        """Records by type; None where nobody knows."""
        if self._counts is not None:
            return dict(self._counts)
        if self._log.size > _COUNTED:
            return None
        found: dict[str, int] = {}
        with suppress(StoreError), LogReader(self.path, files=self._files) as reader:
            for line in reader.lines(0, self._log.size):
                if line.problem is None:
                    try:
                        kind = decode(line.data).record_type
                    except InvalidRecord:
                        continue
                    found[kind] = found.get(kind, 0) + 1
            return found
        return None


def recover(folder: str | Path, session_id: str, *, files: FileSystem = DISK) -> Path:
    """Finish a close that was interrupted, and return where the journal is now.

    A journal that ends with its trailer but is named as an open one gets its final name. Any other
    is left as it is.

    Raises:
        SessionNotFoundError: there is no journal of this id.
        SessionLockedError: it is being written.
    """
    folder = Path(folder)
    found = find_journal(folder, session_id)
    if found.is_closed:
        return found.path
    with _translated(session_id, str(found.path)):
        with LogReader(found.path, files=files) as reader:
            line = reader.last()
        if line is None or not isinstance(decode_line(str(found.path), None, line), Trailer):
            return found.path
        with Log.open(folder, found.path.name, files=files) as log:
            final = f"{session_id}{SESSION_FILE_SUFFIX}"
            if (folder / final).exists():
                _put_aside(folder, final, session_id, files)
            log.rename(final)
    return folder / final


_IDS = ("id", "run_id", "call_id", "turn_id", "saved_state_id")


def _free(fields: Mapping[str, Any]) -> list[str]:
    """The fields whose values may be blobs."""
    record = from_dict(fields)
    if isinstance(record, Foreign):
        return [name for name in record.data if name not in _IDS]
    return [name for name in record.FREE if name in fields]


def _json(tree: object) -> bytes:
    return encode({"value": tree})[len(b'{"value":') : -1]


def _glimpse(tree: Any) -> dict[str, Any]:
    if isinstance(tree, str):
        return {"type": "str", "length": len(tree), "start": tree[:200]}
    found: dict[str, Any] = {"type": type(tree).__name__}
    if isinstance(tree, (list, dict)):
        found["length"] = len(tree)  # pyright: ignore[reportUnknownArgumentType]
    return found


def _prepare(folder: Path, files: FileSystem) -> None:
    """Make the folder, with what keeps its content out of version control, and know its layout."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            files.make_folder(folder)
            parent = files.open_folder(folder.parent)
            try:
                files.fsync(parent)
            finally:
                files.close(parent)
    try:
        layout = json.loads((folder / LAYOUT_FILE).read_text("utf-8"))["layout_version"]
    except FileNotFoundError:
        directory = files.open_folder(folder)
        try:
            _put_file(files, directory, ".gitignore", b"*\n")
            _put_file(files, directory, LAYOUT_FILE, b'{"layout_version":%d}\n' % LAYOUT_VERSION)
        finally:
            files.close(directory)
        return
    except (ValueError, KeyError, TypeError):
        return  # it only tells of newer ones
    if isinstance(layout, int) and layout > LAYOUT_VERSION:
        raise SchemaVersionError(
            str(folder), f"it has layout {layout}, and this version knows {LAYOUT_VERSION} only"
        )


def _put_file(files: FileSystem, directory: int, name: str, content: bytes) -> None:
    with suppress(FileExistsError):
        file = files.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder=directory)
        try:
            files.write(file, content)
        finally:
            files.close(file)


def _refuse_twins(folder: Path, session_id: str) -> None:
    """Some systems tell letters' case in names apart, and others do not."""
    for suffix in (SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX):
        path = folder / f"{session_id}{suffix}"
        if suffix == SESSION_FILE_SUFFIX and os.path.lexists(path):
            raise SessionExistsError(session_id, str(path))
    with suppress(ValueError):
        if str(as_uuid(session_id)) == session_id or as_uuid(session_id).hex == session_id:
            return  # nobody has the same one by chance, and looking costs time
    for file in journal_files(folder):
        if file.session_id != session_id and file.session_id.lower() == session_id.lower():
            raise SessionExistsError(session_id, str(file.path))


def _put_aside(folder: Path, name: str, session_id: str, files: FileSystem) -> None:
    directory = files.open_folder(folder)
    try:
        files.rename(name, f"{session_id}{SUPERSEDED_SUFFIX}", folder=directory)
    finally:
        files.close(directory)


@contextmanager
def _translated(session_id: str, path: str) -> Generator[None, None, None]:
    """Errors of the log and of the system, told as those of a session."""
    try:
        yield
    except LogLocked as error:
        raise SessionLockedError(session_id, path) from error
    except NotStored as error:
        raise SessionNotFoundError(session_id) from error
    except StoreError as error:
        raise _write_error(path, error) from error
    except OSError as error:
        raise JournalWriteError(path, error.strerror or str(error), is_final=False) from error


def _write_error(path: str, error: StoreError) -> JournalWriteError:
    return JournalWriteError(path, error.reason, is_final=isinstance(error, LogFailed))


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


@functools.cache
def _runtime() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        package = version("py-code-mode")
    except PackageNotFoundError:
        package = ""
    system = f"{platform.system()} {platform.machine()}"
    return {"package": package, "python": platform.python_version(), "platform": system}
