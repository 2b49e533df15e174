"""A session's file as a value that may be shared: all that is in order in it, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import msgspec

from py_code_mode.errors import CorruptRecordError, StoreError
from py_code_mode.journal.loader import Problem, read_journal
from py_code_mode.journal.migrations import migrating
from py_code_mode.journal.paths import SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX
from py_code_mode.journal.records import (
    CURRENT_SCHEMA_VERSION,
    Call,
    Chunk,
    Event,
    Foreign,
    Header,
    InvalidRecord,
    Record,
    Run,
    SavedState,
    Transition,
    Turn,
    decode,
)
from py_code_mode.stores.log import LogReader

if TYPE_CHECKING:
    import os

    from py_code_mode.journal.loader import Journal

__all__ = ["ParsedSession", "Records", "parse_session"]


class Records(Sequence[Record | Foreign]):
    """Records of a session, in order, which never change: each that is given out is a copy.

    Longer ones, made by `and_more`, share what they have in common: what it costs to follow a file
    that grows does not depend on its size.
    """

    __slots__ = ("_all", "_count")

    def __init__(self, records: Iterable[Record | Foreign]) -> None:
        self._all = list(records)
        self._count = len(self._all)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Record | Foreign: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record | Foreign, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | Foreign | tuple[Record | Foreign, ...]:
        if isinstance(index, slice):
            return tuple(copied(self._all[at]) for at in range(*index.indices(self._count)))
        if not -self._count <= index < self._count:
            raise IndexError(f"there are {self._count} records, and none at {index}")
        return copied(self._all[index if index >= 0 else index + self._count])

    def __iter__(self) -> Iterator[Record | Foreign]:
        return map(copied, self._shared())

    def _shared(self) -> Iterator[Record | Foreign]:
        return islice(self._all, self._count)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records):
            return NotImplemented
        pairs = zip(self._shared(), other._shared(), strict=False)
        return len(self) == len(other) and all(one == another for one, another in pairs)

    __hash__ = None  # type: ignore[assignment] - the records have none either

    def __repr__(self) -> str:
        return f"<{self._count} records>"

    def and_more(self, records: Sequence[Record | Foreign]) -> Records:
        """These and further ones; these themselves stay as they are."""
        longer = Records(())
        with _extending:
            # What somebody else has added to the list behind ours is not what we add.
            longer._all = self._all if len(self._all) == self._count else self._all[: self._count]
            longer._all.extend(records)
            longer._count = self._count + len(records)
        return longer


_extending = threading.Lock()
_R = TypeVar("_R", bound=Record | Foreign)


def copied(record: _R) -> _R:
    """The record with lists and dicts of its own, which its owner may change."""
    changes = {
        name: _copied(value)
        for name in record.__struct_fields__
        if type(value := getattr(record, name)) in (dict, list)
    }
    return msgspec.structs.replace(record, **changes) if changes else record


def _copied(tree: Any) -> Any:
    if type(tree) is dict:
        return {key: _copied(item) for key, item in cast("dict[Any, Any]", tree).items()}
    if type(tree) is list:
        return [_copied(item) for item in cast("list[Any]", tree)]
    return tree


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedSession:
    """What a session's file tells. Frozen, and shared by all who ask: they get copies of records.

    Attributes:
        first: the header, shared; `header` is a copy of it.
        records: of this file, the header included.
        problems: what could not be read, line by line.
        is_closed: whether its trailer is the last record.
        end: offset after the last line that was read.
    """

    path: Path
    first: Header = field(repr=False)
    records: Records
    problems: tuple[Problem, ...]
    is_closed: bool
    end: int

    @property
    def id(self) -> str:
        """The session's id."""
        return self.first.id

    @property
    def header(self) -> Header:
        """What the session is, with patches applied."""
        return copied(self.first)

    def journal(self) -> Journal:
        """The same, folded: runs, calls, turns and the like.

        The file is read anew, so that it is the caller's own, and there may be more than in
        `records`.
        """
        return read_journal(self.path, on_error="skip", upgrade=migrating(self.path))

    def grown(self, path: str) -> ParsedSession | None:
        """The session with what was added to its file since; only that is read.

        None where it takes a look at the whole file: what was added tells of older records (a
        patch, a recovery, a trailer), or something is wrong with it.
        """
        if self.is_closed or not self.records or self.records[0].ts == "":
            return None
        added: list[Record | Foreign] = []
        end, seq = self.end, self.records[-1].seq
        problems = [one for one in self.problems if one.offset < end]
        try:
            with LogReader(path) as reader:
                for line in reader.lines(self.end):
                    if line.problem is not None:
                        return None
                    record = decode(line.data)
                    seq += 1
                    if record.seq != seq or not isinstance(record, _ADDED):
                        return None
                    added.append(record)
                    end = line.end
        except (StoreError, InvalidRecord):
            return None
        return replace(
            self,
            path=Path(path),
            records=self.records.and_more(added),
            problems=tuple(problems),
            end=end,
        )


_ADDED = (Run, Call, Event, Turn, Transition, Chunk, SavedState, Foreign)


def parse_session(path: str | os.PathLike[str]) -> ParsedSession:
    """Read a session's file, with all that is in order in it; the rest is in `problems`.

    Lines that are damaged, no objects, empty, or of a type that nobody knows are no errors, and
    neither is a file without a single good line.

    Raises:
        PersistenceError: there is no such file, it cannot be read, or a newer version wrote it.
    """
    path = Path(path)
    try:
        journal = read_journal(path, on_error="skip", upgrade=migrating(path))
    except CorruptRecordError as error:
        problem = Problem(str(path), error.line or 0, error.offset, error.reason)
        name = path.name.removesuffix(SESSION_PARTIAL_SUFFIX).removesuffix(SESSION_FILE_SUFFIX)
        header = Header(schema_version=CURRENT_SCHEMA_VERSION, id=name, created_at="")
        return ParsedSession(
            path=path,
            first=header,
            records=Records(()),
            problems=(problem,),
            is_closed=False,
            end=0,
        )
    return ParsedSession(
        path=path,
        first=journal.header,
        records=Records(journal.records),
        problems=journal.problems,
        is_closed=journal.is_closed,
        end=journal.end,
    )
