"""The saved states of a session: the newest one is kept, and those that somebody may go back to.

A state that is written names the older ones that nobody needs any more. Once it is on the disk
their blobs are removed, where no one else has put the same; what a crash leaves of them, a sweep
removes. So whoever wants a state and does not find it has a newer one, or executes runs again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from py_code_mode.errors import NotStored, PersistenceError, SessionNotFoundError, StoreError
from py_code_mode.journal.blobs import BlobStore, refs_in, stamps_in
from py_code_mode.journal.loader import Problem, find_journal, iter_records, read_header
from py_code_mode.journal.migrations import migrating
from py_code_mode.journal.paths import journal_files
from py_code_mode.journal.records import Header, SavedState, to_dict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from py_code_mode.journal.journal import SessionJournal
    from py_code_mode.journal.records import Foreign, Record

__all__ = [
    "Fork",
    "References",
    "SavedStates",
    "forks",
    "named_blobs",
    "read_parts",
    "superseded",
]

_MEDIA_TYPE = "application/octet-stream"


class Fork(NamedTuple):
    """A session that has the past of another one, up to and with its record `seq`."""

    parent: str
    seq: int
    child: str


def forks(folder: Path) -> Iterator[Fork]:
    """All sessions of a folder that were forked from others by reference."""
    for file in journal_files(folder):
        try:
            header = read_header(file.path, upgrade=migrating(file.path))
        except (PersistenceError, StoreError):
            continue  # nobody can read it, with its past or without
        if header is not None and header.fork_point is not None:
            point = header.fork_point
            seq = point.get("seq")
            yield Fork(str(point.get("id")), seq if type(seq) is int else -1, file.session_id)


def superseded(states: Iterable[SavedState]) -> set[str]:
    """The ids of those that newer ones supersede."""
    return {one for state in states for one in state.supersedes}


class SavedStates:
    """Writes the saved states of one journal. Blocks; used by one thread at a time.

    Args:
        states: those that there are already, of this journal.
    """

    def __init__(self, journal: SessionJournal, states: Sequence[SavedState] = ()) -> None:
        self._journal = journal
        old = superseded(states)
        self._kept = [state for state in states if state.saved_state_id not in old]

    def write(
        self,
        state: SavedState,
        parts: Iterable[bytes | bytearray | memoryview],
        *,
        needed: Collection[str] = (),
    ) -> SavedState:
        """Write a state, and when it is on the disk remove older ones.

        Args:
            state: without its blobs.
            parts: its bytes. Those that the states before it have, too, are not written again.
            needed: ids of older ones that have to stay. Those that sessions have been forked from
                stay anyway.

        Raises:
            PersistenceError: it could not be written; all older ones are there.
        """
        blobs = self._journal.blobs
        before = stamps_in(ref for one in self._kept for ref in _blobs_of(one))
        made: dict[str, int] = {}
        try:
            refs: list[Any] = []
            for part in parts:
                ref = self._journal.put_blob(bytes(part), _MEDIA_TYPE, stamps={**before, **made})
                made |= stamps_in([ref])
                refs.append(ref)
            old = self._superfluous(needed)
            ids = [one.saved_state_id for one in old]
            state = msgspec.structs.replace(state, blob=refs, supersedes=ids)
            state = msgspec.structs.replace(state, seq=self._journal.append(state))
        except BaseException:
            with suppress(StoreError):  # the first error tells more
                blobs.release({name: made[name] for name in made if name not in before})
            raise
        self._kept.append(state)
        self._journal.flush()
        self._kept = [one for one in self._kept if one not in old]
        stays = {digest for one in self._kept for digest in refs_in(_blobs_of(one))}
        goes = stamps_in(ref for one in old for ref in _blobs_of(one))
        with suppress(StoreError):  # a sweep does it
            blobs.release({name: goes[name] for name in goes if name not in stays})
        return state

    def _superfluous(self, needed: Collection[str]) -> list[SavedState]:
        left = [one for one in self._kept if one.saved_state_id not in needed]
        if left:
            mine = self._journal.id
            last = max((f.seq for f in forks(self._journal.folder) if f.parent == mine), default=-1)
            left = [one for one in left if one.seq > last]
        return left


class References:
    """The blobs that one journal names, for whoever reads its records one by one.

    Args:
        points: the records of this session up to which others have their past from it.
    """

    def __init__(self, points: Iterable[int] = ()) -> None:
        self._points = sorted(points)
        self._found: dict[str, tuple[int, int]] = {}
        self._states: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}

    def add(self, record: Record | Foreign, line: int = 0, offset: int = 0) -> None:
        """Take note of a record."""
        named = dict.fromkeys(refs_in(to_dict(record)), (line, offset))
        if not isinstance(record, SavedState):
            for digest, place in named.items():
                self._found.setdefault(digest, place)
            return
        self._states[record.saved_state_id] = record.seq, named
        for old in record.supersedes:
            seq = self._states[old][0] if old in self._states else record.seq
            # a session that was forked in between may go back to it
            if not any(seq <= point < record.seq for point in self._points):
                self._states.pop(old, None)

    def named(self) -> dict[str, tuple[int, int]]:
        """Line and offset, by digest of each blob that has to be there."""
        found = dict(self._found)
        for _, named in self._states.values():
            for digest, place in named.items():
                found.setdefault(digest, place)
        return found


def named_blobs(folder: Path, also: Iterable[Path] = ()) -> Iterator[str]:
    """The digests of all blobs that the sessions of a folder need, for `BlobStore.sweep`.

    Args:
        also: further files to read.

    Raises:
        PersistenceError: a journal cannot be read whole, so that nobody knows what it names.
    """
    points: dict[str, list[int]] = {}
    for fork in forks(folder):
        points.setdefault(fork.parent, []).append(fork.seq)
    for file in journal_files(folder):
        try:
            yield from _named_by(file.path, points)
        except (NotStored, FileNotFoundError):
            # Removed meanwhile, or renamed: then it is read by its other name.
            with suppress(SessionNotFoundError):
                yield from _named_by(find_journal(folder, file.session_id).path, points)
    for path in also:
        yield from _named_by(path, points)


def _named_by(path: Path, points: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    if not path.stat().st_size:
        return {}  # its writer died before it was begun
    problems: list[Problem] = []
    found = References()
    for entry in iter_records(path, on_error="skip", upgrade=migrating(path), problems=problems):
        if isinstance(entry.record, Header):
            found = References(points.get(entry.record.id, ()))
        found.add(entry.record)
    if any(not problem.is_accepted for problem in problems):
        raise PersistenceError(f"{path} has lines that cannot be read")
    return found.named()


def read_parts(state: SavedState, blobs: BlobStore) -> list[bytes]:
    """The bytes of a saved state.

    Raises:
        BlobMissing: they are not there.
        CorruptRecordError: they are not what was written.
    """
    return [blobs.get(part) for part in _blobs_of(state)]


def _blobs_of(state: SavedState) -> list[Any]:
    return cast("list[Any]", state.blob) if isinstance(state.blob, list) else []
