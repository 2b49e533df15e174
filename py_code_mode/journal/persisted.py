"""Recorded sessions by id: read, listed, written down and removed.

These functions see the sessions whose id is a UUID, in the folder that `sessions_dir` names when
they are called. They stand on journals (see `loader` and `journal`), of which a conversation is one
part; what such a session ran is in `read_journal`.
"""

from __future__ import annotations

import logging
import os
import stat as modes
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast
from uuid import UUID

import msgspec

from py_code_mode.arguments import check_type
from py_code_mode.errors import (
    CorruptRecordError,
    LineageConsistencyError,
    PersistenceError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from py_code_mode.journal.chunks import (
    ChunkKind,
    ChunkRow,
    ChunkTable,
    SandboxSpec,
    TokenUsage,
    Transcript,
)
from py_code_mode.journal.ids import as_uuid, new_session_id
from py_code_mode.journal.journal import SUPERSEDED_SUFFIX, SessionJournal, Writer
from py_code_mode.journal.lineage import LineageKind
from py_code_mode.journal.loader import (
    Problem,
    find_journal,
    iter_records,
    meta,
    read_journal,
)
from py_code_mode.journal.migrations import CURRENT_SCHEMA_VERSION, migrating
from py_code_mode.journal.paths import (
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    journal_files,
    session_file,
    session_partial_file,
    sessions_dir,
)
from py_code_mode.journal.records import (
    Chunk,
    Header,
    InvalidRecord,
    Trailer,
    decode_dict,
    restore,
)
from py_code_mode.journal.states import forks
from py_code_mode.stores.files import DISK
from py_code_mode.stores.log import LogReader, are_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from py_code_mode.journal.loader import Entry, Journal, JournalMeta
    from py_code_mode.stores.log import Durability

__all__ = [
    "PersistedSession",
    "PersistedSessionHeader",
    "PersistedSessionMeta",
    "SessionWriter",
    "delete_session",
    "list_persisted_sessions",
    "load_session",
    "prune_sessions",
]

logger = logging.getLogger(__name__)

_ATOMS = frozenset({type(None), bool, int, float, str})
_CONVERSATION = msgspec.json.Decoder(Header | Chunk | Trailer)
_QUICK = 1 << 20  # bytes of a session that is read at once
_ATTEMPTS = 3  # to find a file that is renamed all the time
_KINDS = {kind.value: kind for kind in ChunkKind}


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistedSessionHeader:
    """What a session's first record tells, with later patches of it.

    Attributes:
        schema_version: after migration, so the current one.
        created_at: aware; a time without a zone is UTC.
        lineage_operator, lineage_kind, lineage_extras: how it came into being. Kinds that nobody
            knows read as unknown, and parents that are no UUIDs are left out.
    """

    schema_version: int
    id: UUID
    created_at: datetime
    parent_session_ids: tuple[UUID, ...]
    lineage_operator: str
    lineage_kind: LineageKind
    lineage_extras: tuple[tuple[str, Any], ...]
    sandbox_backend: str | None
    sandbox_spec: SandboxSpec | None
    sandbox_handle_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistedSessionMeta:
    """What a listing tells of a session; made from the head and the tail of its file.

    Attributes:
        closed: whether it ends with a trailer.
    """

    id: UUID
    path: Path
    created_at: datetime
    lineage_operator: str
    lineage_kind: LineageKind
    chunk_count: int
    closed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistedSession:
    """A recorded conversation.

    Attributes:
        cumulative_usage: as the trailer tells it; None where there is none.
        closed: whether it ends with a trailer.
        trailer_raw: the trailer as it stands in the file.
        problems: what is wrong with the file, and no error: an unfinished last line, for instance.
    """

    header: PersistedSessionHeader
    chunk_table: ChunkTable
    cumulative_usage: TokenUsage | None
    closed: bool
    path: Path
    trailer_raw: dict[str, Any] | None = field(default=None, repr=False)
    problems: tuple[Problem, ...] = field(default=(), repr=False)

    def to_transcript(self) -> Transcript:
        """The same session as a transcript: its id, where it comes from, and all messages."""
        header = self.header
        return Transcript(
            id=header.id,
            chunk_table=self.chunk_table,
            sandbox_backend=header.sandbox_backend,
            sandbox_spec=header.sandbox_spec,
            sandbox_handle_id=_uuid_or_none(header.sandbox_handle_id),
            parent_session_ids=header.parent_session_ids,
            lineage_operator=header.lineage_operator,
            lineage_kind=header.lineage_kind,
            lineage_extras=header.lineage_extras,
            cumulative_usage=self.cumulative_usage,
        )

    def to_resumable_pair(
        self,
        *,
        agent_prompt: str | None = None,
        reattach: Callable[[UUID], object] | None = None,
    ) -> tuple[Transcript, Transcript]:
        """``(user, agent)``, to go on from here.

        The user's transcript has all messages as they are, the sandbox's kind and spec, and the
        usage so far. It is a new session, whose parent is this one. The agent's has a system prompt
        only: `agent_prompt`, else the first one recorded, else none. As the first one recorded is
        among the user's messages as well, `Transcript.conversation` has those without it.

        Args:
            reattach: comes back to a running sandbox by its handle; its result is `user.sandbox`.
                Not called where no handle, or a malformed one, was recorded. It may raise.
        """
        user = replace(
            self.to_transcript(),
            id=UUID(new_session_id()),
            parent_session_ids=(self.header.id,),
            lineage_operator="to_resumable_pair",
            lineage_kind=LineageKind.OP_FORK,
            lineage_extras=(),
        )
        if reattach is not None and user.sandbox_handle_id is not None:
            user = replace(user, sandbox=reattach(user.sandbox_handle_id))
        prompt = user.system_prompt if agent_prompt is None else agent_prompt
        agent = Transcript() if prompt is None else Transcript.from_agent_prompt(prompt)
        return user, agent


def load_session(session_id: UUID | str, *, path: Path | None = None) -> PersistedSession:
    """Read a session, closed or not.

    A last line without an end is one that is being written, or that a crash cut off: it is left
    out. Anything else that is wrong is an error, which names the line.

    Args:
        path: this file, whatever the id says.

    Raises:
        ValueError: the id is no UUID.
        PersistenceError: there is no such session, or it cannot be read; its cause tells more.
    """
    if path is None:
        wanted = as_uuid(session_id)
        folder, name = sessions_dir(), str(wanted)
        target = f"{folder}/{name}{SESSION_FILE_SUFFIX}"  # texts are much quicker than paths
        if not os.path.lexists(f"{folder}/{name}{SESSION_PARTIAL_SUFFIX}"):
            plain = _plain(target, wanted)
            if plain is not None:
                return plain
        try:
            target = find_journal(folder, name).path
        except SessionNotFoundError as error:
            target = os.path.abspath(target)
            raise PersistenceError(f"persisted session file not found: {target}") from error
    else:
        target = path
        if not os.path.isfile(target):
            target = os.path.abspath(target)
            raise PersistenceError(f"persisted session file not found: {target}")
    target = Path(target).absolute()
    try:
        journal = read_journal(target, upgrade=migrating(target))
    except CorruptRecordError as error:
        raise error from error.__cause__ or InvalidRecord(error.reason)
    header = _header(journal.header, str(target))
    trailer, offset = _trailer(journal)
    return PersistedSession(
        header=header,
        chunk_table=ChunkTable(
            tuple(
                ChunkRow(_KINDS[chunk.kind], _payload(chunk, journal)) for chunk in journal.chunks
            )
        ),
        cumulative_usage=TokenUsage.from_dict(trailer.cumulative_usage) if trailer else None,
        closed=trailer is not None,
        path=target,
        trailer_raw=_raw(target, offset) if trailer else None,
        problems=journal.problems,
    )


def _plain(path: str, wanted: UUID) -> PersistedSession | None:
    """A small session of today that is a conversation and nothing else: the quick way.

    None for any other, and for one with whatever is to be looked at closely; the long way then
    gives the same, or the error.
    """
    try:
        file = DISK.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        status = DISK.fstat(file)
        if status.st_size > _QUICK or not modes.S_ISREG(status.st_mode):
            return None
        data = DISK.read(file, status.st_size + 1, 0)
    except OSError:
        return None
    finally:
        DISK.close(file)
    if b"$" in data and b'"$' in data:
        return None  # values that have another form in the file
    lines = data.split(b"\n")
    if lines.pop() or not lines or not are_whole(lines):
        return None
    try:
        header, *chunks = _CONVERSATION.decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if type(header) is not Header or header.fork_point is not None:
        return None
    if header.seq or header.schema_version != CURRENT_SCHEMA_VERSION:
        return None
    trailer = chunks.pop() if chunks and type(chunks[-1]) is Trailer else None
    count = len(chunks)
    if trailer is not None and (trailer.seq, trailer.final_seq, trailer.final_chunk_count) != (
        count + 1,
        count,
        count,
    ):
        return None
    rows: list[ChunkRow] = []
    for seq, chunk in enumerate(chunks, 1):
        if type(chunk) is not Chunk or chunk.seq != seq:
            return None
        rows.append(ChunkRow(_KINDS[chunk.kind], chunk.payload))
    return PersistedSession(
        header=_header(header, path, wanted),
        chunk_table=ChunkTable(tuple(rows)),
        cumulative_usage=TokenUsage.from_dict(trailer.cumulative_usage) if trailer else None,
        closed=trailer is not None,
        path=Path(path).absolute(),
        trailer_raw=decode_dict(lines[-1]) if trailer else None,
    )


def list_persisted_sessions() -> list[PersistedSessionMeta]:
    """All sessions, the oldest first; those of one moment by id. A folder that is missing has none.

    A file that cannot be read is left out, with a warning in the log.
    """
    found = [_meta(one) for one in _metas(sessions_dir())]
    return sorted(
        (one for one in found if one is not None), key=lambda one: (one.created_at, one.id)
    )


def delete_session(session_id: UUID | str, *, path: Path | None = None) -> bool:
    """Remove a session from the disk; whether there was one.

    A link is removed itself, not what it points to. The session's sandbox, and large values beside
    the journals, are left alone.

    Args:
        path: remove this file only, whatever the id says.

    Raises:
        ValueError: the id is no UUID.
        SessionLockedError: somebody is writing it.
        LineageConsistencyError: another session was forked from it by reference, and would lose
            its past.
        PersistenceError: it could not be removed.
    """
    if path is not None:
        folder, names = Path(path).parent, [Path(path).name]
        owner = names[0].removesuffix(SESSION_FILE_SUFFIX).removesuffix(SESSION_PARTIAL_SUFFIX)
    else:
        # The open one first: if it is being written, nothing is removed.
        partial, final = session_partial_file(session_id), session_file(session_id)
        folder, owner = final.parent, str(as_uuid(session_id))
        names = [partial.name, final.name, f"{owner}{SUPERSEDED_SUFFIX}"]
    if not any(os.path.lexists(folder / name) for name in names):
        return False
    children = _forks(folder).get(owner, set())
    if children:
        raise LineageConsistencyError(
            f"session {owner} was not removed: session {min(children)} was forked from it and has "
            "its past from there; remove that one first"
        )
    removed = [_remove(folder, name, owner) for name in names]
    return any(removed)


def prune_sessions(
    *,
    older_than: timedelta,
    by: Literal["created_at", "updated_at"] = "created_at",
    dry_run: bool = False,
    folder: Path | None = None,
) -> list[UUID]:
    """Remove sessions that are older than that, and return their ids in the order of removal.

    Kept, whatever their age: files that cannot be read to their end, sessions that are being
    written, and those that another session, which is kept, was forked from by reference.

    Args:
        by: what the age is counted from: when the session began, or its last record.
        dry_run: only tell which ones would be removed.
        folder: where they are; `sessions_dir` unless given.
    """
    if by not in ("created_at", "updated_at"):
        raise ValueError(f"by must be 'created_at' or 'updated_at', got {by!r}")
    check_type("prune_sessions", "older_than", older_than, timedelta)
    folder = sessions_dir() if folder is None else folder
    try:
        cutoff = datetime.now(UTC) - older_than
    except OverflowError:  # before the year 1
        return []
    old: dict[str, PersistedSessionMeta] = {}
    for one in _metas(folder):
        found = _meta(one)
        if found is None:
            continue
        name = found.path.name.partition(SESSION_FILE_SUFFIX)[0]
        if name != str(found.id):
            logger.warning("a session was not pruned: %s tells of session %s", found.path, found.id)
            continue
        moment = found.created_at
        if by == "updated_at":
            try:
                moment = _utc(one.updated_at)
            except ValueError:
                pass  # it does not tell, so its beginning has to do
        if moment < cutoff:
            old[str(found.id)] = found
    children_of = _forks(folder)
    removed: list[UUID] = []
    is_removed: dict[str, bool] = {}
    # Children before their parents, so that whatever stops us, no session loses its past.
    stack = sorted(old, key=lambda one: (old[one].created_at, one), reverse=True)
    while stack:
        current = stack[-1]
        children = children_of.get(current, set())
        waiting = [one for one in sorted(children) if one in old and one not in is_removed]
        if current not in is_removed and waiting:
            is_removed[current] = False  # should the lineage be a circle
            stack.extend(waiting)
            continue
        stack.pop()
        if is_removed.get(current):
            continue
        is_removed[current] = all(is_removed.get(child, False) for child in children) and (
            _prune(old[current], dry_run)
        )
        if is_removed[current]:
            removed.append(old[current].id)
    return removed


def _prune(found: PersistedSessionMeta, dry_run: bool) -> bool:
    """Remove a session that may go; False if it may not after all."""
    folder, session_id = found.path.parent, str(found.id)
    names = [
        f"{session_id}{suffix}"
        for suffix in (SESSION_PARTIAL_SUFFIX, SESSION_FILE_SUFFIX, SUPERSEDED_SUFFIX)
    ]
    try:
        for _ in iter_records(found.path, upgrade=migrating(found.path)):
            pass  # whatever is wrong with it is an error
        removed = [_remove(folder, name, session_id, dry_run=dry_run) for name in names]
        return any(removed)
    except SessionLockedError:
        return False
    except (PersistenceError, StoreError) as error:
        logger.warning("a session was not pruned: %s", error)
        return False


class SessionWriter(Writer):
    """Writes a conversation down as it happens: the header at once, then message by message.

    What `write_chunk` returned for survives the end of this process. One writer at a time; as a
    context manager it is closed at the end, and abandoned if the block raises.

    Args:
        session: gives the id, where it comes from, and the sandbox. Its messages are not written.
        folder: of the sessions; `sessions_dir()` where None. It is made where it is missing.

    Raises:
        PersistenceError: the session is on record already (`reopen` it), somebody else is writing
            it, or the disk fails.

    Attributes:
        cumulative_usage: goes into the trailer; may be set until then.
    """

    def __init__(
        self,
        session: Transcript,
        *,
        sandbox_handle_id: str | None = None,
        folder: Path | None = None,
        durability: Durability = "group",
    ) -> None:
        check_type("SessionWriter", "session", session, Transcript)
        spec, handle = session.sandbox_spec, session.sandbox_handle_id
        if sandbox_handle_id is None and handle is not None:
            sandbox_handle_id = str(handle)
        self.cumulative_usage = session.cumulative_usage
        self._written = 0
        self._journal = SessionJournal.create(
            sessions_dir() if folder is None else Path(folder),
            str(session.id),
            durability=durability,
            parent_session_ids=[str(parent) for parent in session.parent_session_ids],
            lineage_operator=session.lineage_operator,
            lineage_kind=session.lineage_kind.value,
            lineage_extras=[[key, value] for key, value in session.lineage_extras],
            sandbox_backend=session.sandbox_backend,
            sandbox_spec=spec.to_dict() if spec is not None else None,
            sandbox_handle_id=sandbox_handle_id,
        )

    @classmethod
    def reopen(
        cls,
        session_id: UUID | str,
        *,
        folder: Path | None = None,
        durability: Durability = "group",
    ) -> Self:
        """Go on with a session that was closed, or whose writer died.

        Raises:
            ValueError: the id is no UUID.
            PersistenceError: there is none, somebody is writing it, or it cannot be read.
        """
        folder = sessions_dir() if folder is None else Path(folder)
        writer = cls.__new__(cls)
        writer._journal = SessionJournal.reopen(
            folder, str(as_uuid(session_id)), durability=durability
        )
        try:
            journal = read_journal(writer._journal.path)
            trailers = [one for one in journal.records if isinstance(one, Trailer)]
        except BaseException:
            writer.abandon()
            raise
        writer._written = sum(isinstance(one, Chunk) for one in journal.records)
        writer.cumulative_usage = (
            TokenUsage.from_dict(trailers[-1].cumulative_usage) if trailers else None
        )
        return writer

    @property
    def path(self) -> Path:
        """Where the file is once it is closed."""
        return self._journal.folder.absolute() / f"{self._journal.id}{SESSION_FILE_SUFFIX}"

    @property
    def partial_path(self) -> Path:
        """Where it is until then."""
        return self._journal.folder.absolute() / f"{self._journal.id}{SESSION_PARTIAL_SUFFIX}"

    @property
    def chunks_written(self) -> int:
        """Messages that are in the file."""
        return self._written

    def write_chunk(self, index: int, row: ChunkRow) -> None:
        """Add a message.

        Args:
            index: its number, counted from 0: as many as there were before.

        Raises:
            ValueError: it is not the next index.
            InvalidCall: the row is none.
            PersistenceError: nothing of it was written; or the writer is closed.
        """
        check_type("SessionWriter.write_chunk", "row", row, ChunkRow)
        if index != self._written and not self._journal.is_closed:
            raise ValueError(f"the next chunk has index {self._written}, not {index}")
        self._journal.append(Chunk(index=index, kind=row.kind.value, payload=row.payload))
        self._written += 1

    def close(self) -> None:
        """Write the trailer, and give the file its final name; a second call does nothing.

        Raises:
            PersistenceError: it could not be, and can be tried again.
        """
        usage = self.cumulative_usage
        self._journal.close(cumulative_usage=usage.to_dict() if usage is not None else None)

    def abandon(self) -> None:
        """Leave the file as it is, as one whose writer died; a second call does nothing."""
        self._journal.abandon()


def _header(header: Header, path: str, wanted: UUID | None = None) -> PersistedSessionHeader:
    try:
        return PersistedSessionHeader(
            schema_version=CURRENT_SCHEMA_VERSION,
            id=wanted if header.id == str(wanted) and wanted else as_uuid(header.id),
            created_at=_utc(header.created_at),
            parent_session_ids=tuple(
                one for one in map(_uuid_or_none, header.parent_session_ids) if one is not None
            ),
            lineage_operator=header.lineage_operator,
            lineage_kind=LineageKind(header.lineage_kind),
            lineage_extras=tuple(_pairs(header)),
            sandbox_backend=header.sandbox_backend,
            sandbox_spec=SandboxSpec.from_dict(header.sandbox_spec),
            sandbox_handle_id=header.sandbox_handle_id,
        )
    except ValueError as error:
        raise CorruptRecordError(path, 1, 0, f"malformed header record: {error}") from error


def _payload(chunk: Chunk, journal: Journal) -> dict[str, Any]:
    """A message as it was given to be written."""
    payload = chunk.payload
    if all(type(value) in _ATOMS and key[:1] != "$" for key, value in payload.items()):
        return payload
    if not chunk.ts:  # of version 1, in which nothing was tagged
        return payload
    return cast("dict[str, Any]", restore(journal.expand(payload)))


def _trailer(journal: Journal) -> tuple[Trailer | None, int]:
    """The trailer, and its offset.

    A session of version 1 is closed once it has one, whatever a writer added behind it.
    """
    if journal.trailer is None and journal.records[0].ts:
        return None, 0
    for record, offset in zip(reversed(journal.records), reversed(journal.offsets), strict=True):
        if isinstance(record, Trailer):
            return record, offset
    return None, 0


def _raw(path: Path, offset: int) -> dict[str, Any]:
    with LogReader(path) as reader:
        line = reader.at(offset)
    assert line is not None
    return decode_dict(line.data)


def _metas(folder: Path) -> Iterator[JournalMeta]:
    """What can be told of each session cheaply; each once, though it may have two files."""
    files: dict[str, Path] = {}
    for file in journal_files(folder):
        if file.session_id in files:
            files[file.session_id] = find_journal(folder, file.session_id).path
        elif _is_uuid(file.session_id):
            files[file.session_id] = file.path
    for session_id, path in files.items():
        for _ in range(_ATTEMPTS):
            try:
                yield meta(path, upgrade=migrating(path))
                break
            except (PersistenceError, ValueError) as error:
                if path.exists():
                    logger.warning("a session was left out: %s", error)
                    break
            try:  # it was closed, or reopened, or removed, since the folder was read
                path = find_journal(folder, session_id).path
            except SessionNotFoundError:
                break


def _meta(found: JournalMeta) -> PersistedSessionMeta | None:
    try:
        header = _header(found.header, str(found.path))
        count = found.chunk_count
        if count is None:
            count = sum(isinstance(one.record, Chunk) for one in _records(found.path))
    except (PersistenceError, StoreError) as error:
        logger.warning("a session was left out: %s", error)
        return None
    return PersistedSessionMeta(
        id=header.id,
        path=found.path.absolute(),
        created_at=header.created_at,
        lineage_operator=header.lineage_operator,
        lineage_kind=header.lineage_kind,
        chunk_count=count,
        closed=found.is_closed,
    )


def _records(path: Path) -> Iterator[Entry]:
    return iter_records(path, on_error="skip", upgrade=migrating(path))


def _forks(folder: Path) -> dict[str, set[str]]:
    """By session, those that were forked from it by reference, of all sessions in a folder."""
    found: dict[str, set[str]] = {}
    for fork in forks(folder):
        found.setdefault(fork.parent, set()).add(fork.child)
    return found


def _remove(folder: Path, name: str, session_id: str, *, dry_run: bool = False) -> bool:
    """Remove a file or a link; whether it was there. Nothing is followed, nothing else touched."""
    path = folder / name
    try:
        directory = DISK.open_folder(folder)
    except FileNotFoundError:
        return False
    try:
        status = DISK.stat(name, folder=directory)
        if modes.S_ISREG(status.st_mode):
            file = DISK.open(name, os.O_RDONLY, folder=directory)
            try:
                DISK.lock(file)  # its writer has it locked until it is closed
                if not dry_run:
                    DISK.unlink(name, folder=directory)
            finally:
                DISK.close(file)
        elif modes.S_ISLNK(status.st_mode):
            if not dry_run:
                DISK.unlink(name, folder=directory)
        else:
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        raise SessionLockedError(session_id, str(path)) from None
    except OSError as error:
        raise PersistenceError(f"{path} could not be removed: {error.strerror}") from error
    finally:
        DISK.close(directory)
    return True


def _is_uuid(session_id: str) -> bool:
    return str(_uuid_or_none(session_id)) == session_id


def _uuid_or_none(value: object) -> UUID | None:
    try:
        return as_uuid(value)
    except ValueError:
        return None


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _pairs(header: Header) -> Iterator[tuple[str, Any]]:
    """Pairs of a name and a value; all else is left out."""
    extras = header.lineage_extras
    for entry in cast("list[Any]", extras) if isinstance(extras, list) else ():
        if isinstance(entry, list) and len(cast("list[Any]", entry)) == 2:
            name, value = cast("list[Any]", entry)
            if isinstance(name, str):
                yield name, restore(value) if header.ts else value  # version 1 tagged nothing
