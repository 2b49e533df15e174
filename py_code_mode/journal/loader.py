"""The reader of journals: records in order, what they come to, and what is wrong with them.

Nothing is passed over in silence: what cannot be read is an error that names the line and its byte,
or, where the caller asks to go on without, a `Problem`.
"""

from __future__ import annotations

import bisect
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, get_args

import msgspec

from py_code_mode.arguments import check_choice
from py_code_mode.errors import (
    CorruptRecordError,
    LineageConsistencyError,
    NotStored,
    PersistenceError,
    SchemaVersionError,
    SessionNotFoundError,
    StoreError,
)
from py_code_mode.journal.blobs import BlobMissing, BlobStore, is_ref
from py_code_mode.journal.fold import Fold
from py_code_mode.journal.ids import check_session_id
from py_code_mode.journal.paths import (
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    JournalFile,
)
from py_code_mode.journal.records import (
    CURRENT_SCHEMA_VERSION,
    RECORD_TYPES,
    Call,
    Chunk,
    ErrorInfo,
    Event,
    Foreign,
    Header,
    InvalidRecord,
    Patch,
    Record,
    Recovery,
    Reopen,
    Run,
    RunStatus,
    SavedState,
    Trailer,
    Transition,
    Turn,
    decode,
    decode_dict,
    from_dict,
    merge_patch,
    to_dict,
)
from py_code_mode.stores.files import DISK, FileSystem
from py_code_mode.stores.log import Line, LogReader, are_whole, has_checksum

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Entry",
    "Journal",
    "JournalMeta",
    "OnError",
    "Problem",
    "RecordedRun",
    "Upgrade",
    "decode_line",
    "find_journal",
    "iter_records",
    "last_seq",
    "meta",
    "read_header",
    "read_journal",
]

#: Whether what cannot be read is an error, or left out and told as a `Problem`.
OnError: TypeAlias = Literal["raise", "skip"]
#: Gives a record (as a dict) of an older version, which is the second argument, as today's.
Upgrade: TypeAlias = Callable[[dict[str, Any], int], Mapping[str, Any]]

_TAIL = 64 << 10


class Problem(NamedTuple):
    """Something wrong with a journal.

    Attributes:
        line: counted from 1.
        offset: of the line's first byte.
        is_accepted: it is no error: a line that may still be written, or one that a recovery
            knows of.
    """

    path: str
    line: int
    offset: int
    reason: str
    is_accepted: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason} (byte {self.offset})"

    def as_error(self) -> CorruptRecordError:
        """The same as an error."""
        return CorruptRecordError(self.path, self.line, self.offset, self.reason)


class Entry(NamedTuple):
    """A record and where it is.

    Attributes:
        line: counted from 1.
        offset, size: of its line, in bytes, the line's end included.
    """

    record: Record | Foreign
    line: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run as its intent and its outcome tell it.

    Attributes:
        intent: None where only the outcome could be read.
        outcome: None for a run that never ended: the process died, and its effects are unknown.
        calls: in order of their beginning.
        is_live: whether the session's variables have come from it: it was not undone.
        session_id: in which journal it is; a fork has runs of its parents.
    """

    run_id: int
    intent: Run | None
    outcome: Run | None
    calls: tuple[Call, ...]
    is_live: bool
    session_id: str

    @property
    def status(self) -> RunStatus:
        """How it ended; ``crashed`` where it did not."""
        return self.outcome.status if self.outcome is not None else "crashed"

    @property
    def code(self) -> str:
        """What was run; empty where the intent could not be read."""
        return self._first.code or (self.outcome.code if self.outcome is not None else "")

    @property
    def turn_id(self) -> str | None:
        """The turn of an agent that it belongs to."""
        return self._first.turn_id or self._last.turn_id

    @property
    def started_at(self) -> str:
        """When it began."""
        return self._last.started_at or self._first.started_at or self._first.ts

    @property
    def ended_at(self) -> str:
        """When it ended; empty where it did not."""
        return (self.outcome.ended_at or self.outcome.ts) if self.outcome is not None else ""

    @property
    def duration_ms(self) -> float:
        """How long it took."""
        return self._last.duration_ms

    @property
    def value(self) -> Any:
        """Its value as recorded; see `Journal.expand`."""
        return self._last.value

    @property
    def stdout(self) -> str:
        """Its output."""
        return self._last.stdout

    @property
    def stderr(self) -> str:
        """Its other output."""
        return self._last.stderr

    @property
    def error(self) -> ErrorInfo | None:
        """What went wrong."""
        return self._last.error

    @property
    def displays(self) -> Any:
        """Its figures and the like as recorded; see `Journal.expand`."""
        return self._last.displays

    @property
    def _first(self) -> Run:
        return self.intent or self._last

    @property
    def _last(self) -> Run:
        found = self.outcome or self.intent
        assert found is not None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """All that a journal tells. Frozen, and shared freely; its records are not to be changed.

    Attributes:
        header: with all patches applied; `original_header` is as it was written.
        prefix: the records of the sessions that this one was forked from, up to the fork.
        records: its own, header included, in order of their `seq`.
        offsets: where each of `records` begins.
        end: offset after the last line that was read.
        runs: those of the prefix, too, in order of their beginning.
        live_line: the runs that were not undone: whoever runs them in this order has the session's
            variables. A run of which the outcome is missing is among them, as ``crashed``.
        turns: each once, as last told.
        is_closed: whether the trailer is the last record.
    """

    path: Path
    header: Header
    original_header: Header
    prefix: tuple[Record | Foreign, ...]
    records: tuple[Record | Foreign, ...]
    offsets: tuple[int, ...]
    end: int
    runs: tuple[RecordedRun, ...]
    live_line: tuple[RecordedRun, ...]
    calls: tuple[Call, ...]
    events: tuple[Event, ...]
    turns: tuple[Turn, ...]
    transitions: tuple[Transition, ...]
    chunks: tuple[Chunk, ...]
    saved_states: tuple[SavedState, ...]
    trailer: Trailer | None
    is_closed: bool
    problems: tuple[Problem, ...]
    last_seq: int

    @property
    def last_run(self) -> int:
        """The number of the newest run, also of one that was undone; 0 for none."""
        return max((run.run_id for run in self.runs), default=0)

    @property
    def blobs(self) -> BlobStore:
        """Where its large values are."""
        return BlobStore(self.path.parent)

    @property
    def id(self) -> str:
        """The session's id."""
        return self.header.id

    @property
    def updated_at(self) -> str:
        """When the last record was written."""
        return (self.records[-1].ts if self.records else "") or self.header.created_at

    def run(self, run_id: int) -> RecordedRun:
        """The run of this number.

        Raises:
            KeyError: there is none.
        """
        for run in reversed(self.runs):
            if run.run_id == run_id:
                return run
        raise KeyError(run_id)

    def expand(self, value: Any) -> Any:
        """A recorded value with the content of its blobs: JSON as such, all else as bytes.

        A blob that is missing is described: ``{"$repr": ...}``.

        Raises:
            CorruptRecordError: a blob is not what was written.
        """
        return expand(value, self.blobs)


class JournalMeta(NamedTuple):
    """What the head and the tail of a journal tell, without the rest of it.

    Attributes:
        header: as it was written, patches not applied.
        updated_at: when the last record was written.
        chunk_count: None where only the whole file would tell.
        status: of the trailer; ``open`` where there is none.
    """

    id: str
    path: Path
    header: Header
    created_at: str
    updated_at: str
    is_closed: bool
    status: str
    last_seq: int
    chunk_count: int | None
    size: int
    trailer: Trailer | None


def find_journal(folder: Path, session_id: str) -> JournalFile:
    """The journal of a session, closed or not.

    Where both files exist, which only copying can bring about, the one that got further counts.

    Raises:
        SessionNotFoundError: there is none; a link counts as none.
        InvalidName: the id is none.
    """
    check_session_id(session_id)
    found = [
        JournalFile(session_id, path, suffix == SESSION_FILE_SUFFIX)
        for suffix in (SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)
        if (path := folder / f"{session_id}{suffix}").is_file() and not path.is_symlink()
    ]
    if not found:
        raise SessionNotFoundError(session_id)
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda file: (last_seq(file.path), file.is_closed))


def last_seq(path: Path, *, files: FileSystem = DISK) -> int:
    """The number of the last record of a journal that can be read; -1 where there is none."""
    try:
        with LogReader(path, files=files) as reader:
            line = reader.last()
        return -1 if line is None else decode_line(str(path), None, line).seq
    except (StoreError, PersistenceError):
        return -1


def read_header(
    path: Path, *, upgrade: Upgrade | None = None, files: FileSystem = DISK
) -> Header | None:
    """The first record of a journal; None where its writer died before it was there.

    Raises:
        NotStored: there is no such file; StoreError: it cannot be read.
        SchemaVersionError: a newer version wrote it.
        CorruptRecordError: the first line is no header.
    """
    with LogReader(path, files=files) as reader:
        line = reader.at(0)
    if line is None or line.problem == "torn":
        return None
    return _header_of(str(path), line, upgrade)[0]


def decode_line(path: str, number: int | None, line: Line) -> Record | Foreign:
    """The record of a line that has its checksum.

    Raises:
        CorruptRecordError: it is none.
    """
    try:
        return decode(line.data)
    except InvalidRecord as error:
        raise CorruptRecordError(path, number, line.offset, str(error)) from error


def iter_records(
    path: str | Path,
    *,
    on_error: OnError = "raise",
    upgrade: Upgrade | None = None,
    problems: list[Problem] | None = None,
    files: FileSystem = DISK,
) -> Iterator[Entry]:
    """The records of a journal one by one, in little memory however long it is.

    Args:
        problems: is told what was wrong so far; with ``raise``, only what is accepted.

    Raises:
        CorruptRecordError: at the first problem, unless it is to be skipped. Damage that a later
            recovery tells of is an error here: `read_journal` looks ahead.
        SchemaVersionError: a newer version wrote it.
        NotStored, StoreError: there is no such file, or it cannot be read.
    """
    _check_on_error(on_error)
    with LogReader(path, files=files) as reader:
        scan = _Scan(reader, upgrade)
        for entry in scan:
            if scan.problems:
                _settle(scan.problems, on_error, problems)
            yield entry
        _settle(scan.problems, on_error, problems)


def read_journal(
    path: str | Path,
    *,
    on_error: OnError = "raise",
    upgrade: Upgrade | None = None,
    locate: Callable[[str], Path] | None = None,
    files: FileSystem = DISK,
) -> Journal:
    """Read a journal, open or closed, and fold it.

    Args:
        on_error: with ``skip``, what cannot be read is left out and told in `problems`.
        upgrade: for records of older versions; without it they are taken as they are.
        locate: where the journal of a session is that this one was forked from; the same folder,
            unless told otherwise.

    Raises:
        CorruptRecordError: a line is not what was written, or the records do not fit together.
        SchemaVersionError: a newer version wrote it; skipping does not help.
        LineageConsistencyError: the session it was forked from is missing, or is itself.
        PersistenceError: it cannot be read, or there is no such file.
    """
    _check_on_error(on_error)
    path = Path(path)
    loaded = _load(path, upgrade, files)
    problems = list(loaded.problems)

    def find(session_id: str) -> Path:
        return locate(session_id) if locate else find_journal(path.parent, session_id).path

    prefix: list[tuple[str, list[Record | Foreign]]] = []
    try:
        for home, records, bad in reversed([*_ancestors(loaded, find, upgrade, files)]):
            prefix.append((home, records))
            problems += bad
    except LineageConsistencyError as error:
        if on_error == "raise":
            raise
        problems.append(Problem(str(path), 1, 0, str(error)))
    if on_error == "raise":
        for problem in problems:
            if not problem.is_accepted:
                raise problem.as_error()
    return _fold(path, loaded, prefix, problems)


def meta(
    path: str | Path, *, upgrade: Upgrade | None = None, files: FileSystem = DISK
) -> JournalMeta:
    """What a listing shows of a journal; reads its first and last few kilobytes only.

    Raises:
        PersistenceError: it has no header, or cannot be read.
    """
    path = Path(path)
    try:
        with LogReader(path, files=files) as reader:
            size = reader.size
            head = reader.at(0)
            if head is None or head.problem == "torn":
                raise CorruptRecordError(str(path), 1, 0, "no header record found")
            header, version = _header_of(str(path), head, upgrade)
            last, lines = _ending(reader, header, version, upgrade)
    except StoreError as error:
        raise PersistenceError(str(error)) from error
    trailer = last if isinstance(last, Trailer) else None
    count = trailer.final_chunk_count if trailer is not None else None
    if count is None:
        chunks = [record for record in lines if type(record) is Chunk]
        if size <= _TAIL:
            count = len(chunks)
        elif chunks and chunks[-1].index >= 0:
            count = chunks[-1].index + 1
    return JournalMeta(
        id=header.id,
        path=path,
        header=header,
        created_at=header.created_at,
        updated_at=last.ts or (trailer.closed_at if trailer else "") or header.created_at,
        is_closed=trailer is not None,
        status=trailer.status if trailer is not None else "open",
        last_seq=last.seq,
        chunk_count=count,
        size=size,
        trailer=trailer,
    )


def _ending(
    reader: LogReader, header: Header, version: int, upgrade: Upgrade | None
) -> tuple[Record | Foreign, list[Record | Foreign]]:
    """The last record, and what there is in the tail where that is no trailer with a count."""
    found: list[Record | Foreign] = [header]
    if version == CURRENT_SCHEMA_VERSION:
        line = reader.last()
        if line is not None:
            found = [decode_line(reader.path, None, line)]
            last = found[0]
            if isinstance(last, Trailer) and last.final_chunk_count is not None:
                return last, found
    for line in reader.tail(_TAIL):
        if line.offset and _is_fine(line, version):
            with suppress(PersistenceError):
                found.append(_upgraded(line, version, upgrade))
    return found[-1], found[1:]


def expand(value: Any, blobs: BlobStore) -> Any:
    """As `Journal.expand`."""
    if isinstance(value, list):
        return [expand(item, blobs) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    if not is_ref(fields):
        return {key: expand(item, blobs) for key, item in fields.items()}
    try:
        data = blobs.get(fields)
    except BlobMissing as error:
        return {"$repr": f"<{error.message}>"}
    if fields.get("media_type") != "application/json":
        return data
    try:
        return _JSON.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return json.loads(data)  # lone surrogates


class _Loaded(NamedTuple):
    header: Header
    records: list[Record | Foreign]
    offsets: list[int]
    end: int
    problems: list[Problem]
    last_seq: int


class _Scan:
    """One pass over a journal, which knows what must follow what.

    Attributes:
        problems: those found so far; whoever iterates may take them out.
    """

    def __init__(self, reader: LogReader, upgrade: Upgrade | None) -> None:
        self._reader, self._upgrade = reader, upgrade
        self._path = reader.path
        self._number = 0  # of the line
        self._version = CURRENT_SCHEMA_VERSION
        self._chunks = 0
        self._is_ended = False  # by a trailer
        self._is_behind = False  # lines were left out since the last record
        self._is_usual = False  # it has a header of today's version, and no trailer yet
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        self._next = 0
        self.header: Header | None = None
        self.end = 0
        self.problems: list[Problem] = []

    def __iter__(self) -> Iterator[Entry]:
        for line in self._reader.lines():
            self._number += 1
            record = self._next_record(line) or self._record(line)
            if record is not None:
                self.end = line.end
                yield Entry(record, self._number, line.offset, line.end - line.offset)
        if self.header is None:
            raise CorruptRecordError(self._path, 1, 0, _first_reason(self.problems))

    def _next_record(self, line: Line) -> Record | Foreign | None:
        """The record of most lines: the next one, which nothing is to be said of."""
        if line.problem is not None or not self._is_usual:
            return None
        try:
            record = decode(line.data)
        except InvalidRecord:
            return None
        if record.seq != self._next or type(record) in _RARE:
            return None
        self._recent.append(line.data)
        self._next += 1
        self._is_behind = False
        return record

    def _record(self, line: Line) -> Record | Foreign | None:
        if line.problem == "torn":
            return self._leave(line, _WORDS["torn"], is_accepted=True)
        if self.header is None:
            record = self._first(line)
        elif self._version < CURRENT_SCHEMA_VERSION:
            record = self._old(line)
        elif line.problem is not None:
            return self._leave(line, _WORDS[line.problem])
        else:
            try:
                record = decode(line.data)
            except InvalidRecord as error:
                return self._leave(line, str(error))
            if record.seq != self._next and not self._follows(line, record.seq):
                return None
            self._recent.append(line.data)
        if record is None or (
            (type(record) in _RARE or self._is_ended) and not self._fits(line, record)
        ):
            return None
        self._next = record.seq + 1
        self._is_behind = False
        self._is_usual = self._version == CURRENT_SCHEMA_VERSION and not self._is_ended
        return record

    def _first(self, line: Line) -> Record | Foreign | None:
        if line.problem is not None and not _bare(line.data):
            return None  # a blank line, as old files may have
        try:
            self.header, self._version = _header_of(self._path, line, self._upgrade, self._number)
        except CorruptRecordError as error:
            self._leave(line, error.reason)
            if line.problem is not None:
                return None
            try:
                record = decode(line.data)
            except InvalidRecord:
                return None
            # For who skips problems: the file's name tells the session.
            self.header = _stand_in(self._path)
            self._next = record.seq
            return record
        if self.header.seq != 0:  # old ones have none
            self.header = msgspec.structs.replace(self.header, seq=0)
        return self.header

    def _old(self, line: Line) -> Record | Foreign | None:
        """A line of a file from before there were checksums and numbers."""
        if line.problem == "long":
            return self._leave(line, _WORDS["long"])
        if not _bare(line.data):
            return None
        try:
            record = _upgraded(line, self._version, self._upgrade)
        except PersistenceError as error:
            return self._leave(line, str(error))
        return msgspec.structs.replace(record, seq=self._next)

    def _follows(self, line: Line, seq: int) -> bool:
        """Whether a record with another number than the next is read all the same."""
        if seq > self._next:
            if not self._is_behind:  # else it has been told why
                self._tell(line, f"records are missing before it: {self._next} to {seq - 1}")
            return True
        is_same = line.data in self._recent
        what = "once more" if is_same else "of another record, too"
        # behind a trailer nobody tries to write a line again
        is_accepted = is_same and not self._is_ended
        self._leave(
            line, f"it has seq {seq} {what}; {self._next} comes next", is_accepted=is_accepted
        )
        return False

    def _fits(self, line: Line, record: Record | Foreign) -> bool:
        is_old = self._version < CURRENT_SCHEMA_VERSION
        match record:
            case Header():
                if record is not self.header:
                    self._leave(line, "duplicate header record")
                    return False
            case Reopen():
                self._is_ended = False
            case Recovery():
                known = {place[0] for place in record.damaged if place}
                self.problems = [
                    problem._replace(is_accepted=problem.is_accepted or problem.offset in known)
                    for problem in self.problems
                ]
            case Trailer():
                self._check_counts(line, record, is_old)
            case _:
                pass
        if self._is_ended:
            # Nobody has ever checked version 1.
            self._leave(
                line, f"a {record.record_type} record after the trailer", is_accepted=is_old
            )
            return is_old
        self._is_ended = isinstance(record, Trailer)
        self._chunks += isinstance(record, Chunk)
        return True

    def _check_counts(self, line: Line, trailer: Trailer, is_old: bool) -> None:
        final, count = trailer.final_seq, trailer.final_chunk_count
        if not is_old and final is not None and final != trailer.seq - 1:
            self._tell(line, f"it has seq {trailer.seq}, and final_seq is {final}")
        if count is not None and count != self._chunks:
            reason = f"final_chunk_count is {count}; there are {self._chunks} chunks"
            self._tell(line, reason, is_accepted=is_old)

    def _leave(self, line: Line, reason: str, *, is_accepted: bool = False) -> None:
        self._is_behind = True
        self._tell(line, reason, is_accepted=is_accepted)

    def _tell(self, line: Line, reason: str, *, is_accepted: bool = False) -> None:
        self.problems.append(Problem(self._path, self._number, line.offset, reason, is_accepted))


def _check_on_error(on_error: str) -> None:
    check_choice("on_error", on_error, get_args(OnError))


def _settle(found: list[Problem], on_error: OnError, problems: list[Problem] | None) -> None:
    if on_error == "raise":
        for problem in found:
            if not problem.is_accepted:
                raise problem.as_error()
    if problems is not None:
        problems += found
    found.clear()


def _header_of(
    path: str, line: Line, upgrade: Upgrade | None, number: int = 1
) -> tuple[Header, int]:
    """The header that a line is, as of today, and the version that it was written in."""

    def wrong(reason: str) -> CorruptRecordError:
        return CorruptRecordError(path, number, line.offset, reason)

    if line.problem is None:
        try:
            record = decode(line.data)
        except InvalidRecord:
            record = None  # a newer version may have other fields
        if isinstance(record, Header) and record.schema_version == CURRENT_SCHEMA_VERSION:
            return record, CURRENT_SCHEMA_VERSION
    if line.problem == "long" or (line.problem == "damaged" and has_checksum(line.data)):
        raise wrong(_WORDS[line.problem])
    try:
        found = decode_dict(_bare(line.data))
    except InvalidRecord as error:
        raise wrong(str(error)) from None
    kind = found.get("record_type")
    if kind != "header":
        is_known = isinstance(kind, str) and kind in RECORD_TYPES
        raise wrong(f"{kind} record before header" if is_known else f"unknown record_type={kind!r}")
    version = found.get("schema_version", 0)
    if type(version) is not int:
        raise wrong(f"schema_version={version!r} is no number")
    if version > CURRENT_SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path}:{number}",
            f"it has schema version {version}, and this library knows {CURRENT_SCHEMA_VERSION}: "
            "refusing to downgrade. Use a newer py-code-mode",
        )
    if version == CURRENT_SCHEMA_VERSION and line.problem is not None:
        raise wrong(_WORDS[line.problem])
    if version < CURRENT_SCHEMA_VERSION:
        if upgrade is not None:
            found = dict(upgrade(found, version))
        elif version < 1:
            raise SchemaVersionError(f"{path}:{number}", f"there is no schema version {version}")
    try:
        record = from_dict(found)
    except InvalidRecord as error:
        raise wrong(f"malformed header record: {error}") from None
    if not isinstance(record, Header):
        raise wrong("no header record found")
    return record, version


def _upgraded(line: Line, version: int, upgrade: Upgrade | None) -> Record | Foreign:
    if version == CURRENT_SCHEMA_VERSION:
        return decode(line.data)
    found = decode_dict(_bare(line.data))
    return from_dict(found if upgrade is None else upgrade(found, version))


def _is_fine(line: Line, version: int) -> bool:
    return line.problem is None or (
        version < CURRENT_SCHEMA_VERSION and line.problem in ("unchecked", "damaged")
    )


def _bare(data: bytes) -> bytes:
    """A line of an old file without what editors and other systems add to it."""
    return data.removeprefix(b"\xef\xbb\xbf").strip()


def _stand_in(path: str) -> Header:
    name = Path(path).name.partition(SESSION_FILE_SUFFIX)[0]
    return Header(schema_version=CURRENT_SCHEMA_VERSION, id=name, created_at="", seq=0)


def _first_reason(problems: Sequence[Problem]) -> str:
    for problem in problems:
        if not problem.is_accepted:
            return f"no header record found; line {problem.line}: {problem.reason}"
    return "no header record found"


def _load(path: Path, upgrade: Upgrade | None, files: FileSystem) -> _Loaded:
    records: list[Record | Foreign] = []
    offsets: list[int] = []
    try:
        with LogReader(path, files=files) as reader:
            quick = _quick(reader)
            if quick is not None:
                return quick
            scan = _Scan(reader, upgrade)
            for entry in scan:
                records.append(entry.record)
                offsets.append(entry.offset)
    except NotStored as error:
        raise PersistenceError(f"there is no journal {path}") from error
    except StoreError as error:
        raise PersistenceError(str(error)) from error
    assert scan.header is not None
    return _Loaded(scan.header, records, offsets, scan.end, scan.problems, records[-1].seq)


def _quick(reader: LogReader) -> _Loaded | None:
    """A journal of today's version in which nothing is wrong: the usual one, read in little time.

    None where there is anything to be looked at closely.
    """
    data = reader.all(_QUICK)
    if data is None or data[-1:] != b"\n":
        return None
    records: list[Record | Foreign] = []
    offsets: list[int] = []
    at = seq = chunks = 0
    is_ended = True  # nothing comes before the header, as nothing comes after a trailer
    lines = data.split(b"\n")
    lines.pop()
    if not are_whole(lines):
        return None
    for line in lines:
        try:
            record = decode(line)
        except InvalidRecord:
            return None
        kind = type(record)
        if kind is Chunk:
            chunks += 1
        elif kind in _RARE:
            if isinstance(record, Trailer):
                counts = (seq - 1, chunks)
                if (record.final_seq, record.final_chunk_count) != counts or is_ended:
                    return None
                is_ended = True
                records.append(record)
                offsets.append(at)
                at += len(line) + 1
                seq += 1
                continue
            if (kind is Header) is bool(seq):
                return None
            is_ended = False
        if record.seq != seq or is_ended:
            return None
        records.append(record)
        offsets.append(at)
        at += len(line) + 1
        seq += 1
    header = records[0]
    if not isinstance(header, Header) or header.schema_version != CURRENT_SCHEMA_VERSION:
        return None
    return _Loaded(header, records, offsets, at, [], seq - 1)


def _ancestors(
    loaded: _Loaded, find: Callable[[str], Path], upgrade: Upgrade | None, files: FileSystem
) -> Iterator[tuple[str, list[Record | Foreign], list[Problem]]]:
    """The part that a session has of its parent, that one of its own, and so on."""
    seen = {loaded.header.id}
    while loaded.header.fork_point is not None:
        child, point = loaded.header.id, loaded.header.fork_point
        parent, seq = point.get("id"), point.get("seq")
        if type(parent) is not str or type(seq) is not int:
            raise LineageConsistencyError(f"session {child} was forked from {point!r}")
        if parent in seen:
            raise LineageConsistencyError(
                f"session {child} was forked from {parent}, which is forked from it"
            )
        seen.add(parent)
        try:
            loaded = _load(find(parent), upgrade, files)
        except SchemaVersionError:
            raise
        except (PersistenceError, ValueError) as error:
            raise LineageConsistencyError(
                f"session {child} was forked from {parent}, which cannot be read: {error}"
            ) from error
        count = bisect.bisect_right(loaded.records, seq, key=lambda record: record.seq)
        if not count or loaded.records[count - 1].seq != seq:
            raise LineageConsistencyError(
                f"session {child} was forked from record {seq} of {parent}, which is missing"
            )
        end = loaded.offsets[count] if count < len(loaded.offsets) else loaded.end
        yield parent, loaded.records[1:count], [bad for bad in loaded.problems if bad.offset < end]


def _fold(
    path: Path,
    loaded: _Loaded,
    prefix: list[tuple[str, list[Record | Foreign]]],
    problems: list[Problem],
) -> Journal:
    fold = Fold()
    for home, records in prefix:
        fold.add(records, home)
    inherited = len(fold.patches)
    fold.add(loaded.records, loaded.header.id)
    calls: dict[int | None, list[Call]] = {}
    for call in fold.calls.values():
        calls.setdefault(call.run_id, []).append(call)
    live = fold.live_line()
    is_live = set(live)
    runs = {
        run_id: RecordedRun(
            run_id=run_id,
            intent=fold.intents.get(run_id),
            outcome=fold.outcomes.get(run_id),
            calls=tuple(calls.get(run_id, ())),
            is_live=run_id in is_live,
            session_id=home,
        )
        for run_id, home in fold.homes.items()
    }
    last = loaded.records[-1]
    return Journal(
        path=path,
        header=_patched(loaded.header, fold.patches[inherited:], problems, path),
        original_header=loaded.header,
        prefix=tuple(record for _, records in prefix for record in records),
        records=tuple(loaded.records),
        offsets=tuple(loaded.offsets),
        end=loaded.end,
        runs=tuple(runs.values()),
        live_line=tuple(runs[run_id] for run_id in live),
        calls=tuple(fold.calls.values()),
        events=tuple(fold.events),
        turns=tuple(fold.turns.values()),
        transitions=tuple(fold.transitions),
        chunks=tuple(fold.chunks),
        saved_states=tuple(fold.saved_states),
        trailer=last if isinstance(last, Trailer) else None,
        is_closed=isinstance(last, Trailer),
        problems=tuple(problems),
        last_seq=last.seq,
    )


def _patched(
    header: Header, patches: Sequence[Patch], problems: list[Problem], path: Path
) -> Header:
    for patch in patches:
        fields = merge_patch(to_dict(header), patch.patch)
        kept = {name: getattr(header, name) for name in ("id", "schema_version", "seq", "ts")}
        try:
            found = from_dict({**fields, **kept, "record_type": "header"})
            assert isinstance(found, Header)
            header = found
        except InvalidRecord as error:
            problems.append(Problem(str(path), 0, 0, f"a patch that does not fit: {error}"))
    return header


_JSON = msgspec.json.Decoder()
_RARE = frozenset({Header, Chunk, Reopen, Recovery, Trailer})
_QUICK = 64 << 20  # bytes of a journal that is read at once
_RECENT = 32  # lines that a second copy is looked for among
_WORDS = {
    "torn": "the last line has no end: it is being written, or its writer died",
    "unchecked": "it has no checksum",
    "damaged": "it is not what was written: its checksum differs",
    "long": "it is too long to be read",
}
