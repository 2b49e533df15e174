"""What a stored session is in bytes: a snapshot, and the lines that were added to it since.

A snapshot is one line of JSON: the session's dict with `seq`, `schema_version` and a checksum. A
line of the tail is a record as in a journal, a turn or a transition; it counts where its `seq` is
greater than the snapshot's, so that a crash between writing a snapshot and dropping the tail adds
nothing twice.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from py_code_mode.errors import CorruptRecordError, SchemaVersionError
from py_code_mode.journal.records import (
    CURRENT_SCHEMA_VERSION,
    InvalidRecord,
    decode_dict,
    encode,
    plain,
    restore,
)
from py_code_mode.journal.turns import AgentTransitionRecord, SessionRecord, TurnRecord
from py_code_mode.stores.log import problem_of, seal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Added",
    "Known",
    "Order",
    "Part",
    "added",
    "body_of",
    "ended",
    "head",
    "session_of",
    "snapshot",
    "tree",
]

#: What is added to a session.
Part = TurnRecord | AgentTransitionRecord

_ENVELOPE = frozenset({"schema_version", "seq", "moved_from", "crc"})
_LINE_ENVELOPE = frozenset({"record_type", "seq", "ts", "crc"})
_TAG = b'"$'  # how the key of an object with a tag begins
_LISTS = {"turn": "turns", "transition": "agent_transitions"}


@dataclass(slots=True)
class Known:
    """What is known of a stored session without its turns.

    Attributes:
        seq: of the newest record.
        moved_from: the workspace whose copy this one replaces, ``.`` for none; empty where it was
            not moved just now.
    """

    session_id: str
    workspace_id: str | None = None
    agent_id: str | None = None
    created_at: str = ""
    updated_at: str = ""
    turn_count: int = 0
    is_ended: bool = False
    seq: int = 0
    moved_from: str = ""

    def add(self, line: Added) -> None:
        """Count a line of the tail."""
        self.seq, self.updated_at = line.seq, line.ts
        self.turn_count += line.kind == "turn"


@dataclass(frozen=True, slots=True)
class Added:
    """A line of a tail.

    Attributes:
        kind: its `record_type`.
        fields: of the record, plain.
    """

    kind: str
    seq: int
    ts: str
    fields: dict[str, Any]


class _Head(msgspec.Struct):
    session_id: str
    workspace_id: str | None = None
    agent_id: str | None = None
    created_at: str = ""
    updated_at: str = ""
    turns: list[msgspec.Raw] = []
    metadata: dict[str, Any] = {}
    seq: int = 0
    schema_version: int = 1
    moved_from: str = ""


_HEAD = msgspec.json.Decoder(_Head)
_HEAD_FIELDS = frozenset(_Head.__struct_fields__) - {"turns"}


def body_of(part: Part, seq: int, ts: str) -> bytes:
    """The line of a tail, without checksum and end."""
    kind = "turn" if isinstance(part, TurnRecord) else "transition"
    fields = part.to_dict()
    if part.extra:
        for name in _LINE_ENVELOPE & fields.keys():
            del fields[name]
    return encode({"seq": seq, "ts": ts, "record_type": kind, **plain(fields)})


def snapshot(session: SessionRecord | dict[str, Any], seq: int, moved_from: str = "") -> bytes:
    """The content of a snapshot.

    Args:
        session: a dict is plain already.
    """
    fields = plain(session.to_dict()) if isinstance(session, SessionRecord) else session
    envelope: dict[str, Any] = {"schema_version": CURRENT_SCHEMA_VERSION, "seq": seq}
    if moved_from:
        envelope["moved_from"] = moved_from
    rest = {key: item for key, item in fields.items() if key not in _ENVELOPE}
    return seal(encode({**envelope, **rest}))


def head(data: bytes, path: str) -> Known:
    """What a snapshot tells without its turns.

    Raises:
        CorruptRecordError: it is not what was written.
        SchemaVersionError: a newer version wrote it.
    """
    _check(data, path)
    try:
        found = _HEAD.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = _slow_head(data, path)
    if found.schema_version > CURRENT_SCHEMA_VERSION:
        raise _newer(path, found.schema_version)
    return known_of(found, seq=found.seq, moved_from=found.moved_from)


def known_of(session: SessionRecord | _Head, *, seq: int = 0, moved_from: str = "") -> Known:
    """What is known of a session when its turns are counted."""
    return Known(
        session_id=session.session_id,
        workspace_id=session.workspace_id,
        agent_id=session.agent_id,
        created_at=session.created_at,
        updated_at=session.updated_at,
        turn_count=len(session.turns),
        is_ended=session.metadata.get("ended") is True,
        seq=seq,
        moved_from=moved_from,
    )


def _slow_head(data: bytes, path: str) -> _Head:
    fields = _decoded(data, path)
    found = _head_of(fields, path)
    turns: object = fields.get("turns")
    if isinstance(turns, list):
        found.turns = [msgspec.Raw()] * len(cast("list[object]", turns))
    return found


def _head_of(fields: dict[str, Any], path: str) -> _Head:
    known = {name: fields[name] for name in _HEAD_FIELDS & fields.keys()}
    try:
        return msgspec.convert(known, _Head)
    except msgspec.ValidationError as error:
        raise CorruptRecordError(path, None, 0, f"it is no session ({error})") from None


def tree(data: bytes, path: str, lines: Iterable[Added] = ()) -> tuple[dict[str, Any], int]:
    """The session as plain data, lines added, and the `seq` of the newest record.

    Keys that nobody knows are in it.

    Raises:
        CorruptRecordError: snapshot or lines are not what was written, or lines are missing.
        SchemaVersionError: a newer version wrote it.
    """
    _check(data, path)
    fields = _decoded(data, path)
    version, seq = fields.get("schema_version", 1), fields.get("seq", 0)
    if type(version) is not int or type(seq) is not int:
        raise CorruptRecordError(path, None, 0, f"{version=!r} or {seq=!r} of a session")
    if version > CURRENT_SCHEMA_VERSION:
        raise _newer(path, version)
    if version < 2:  # no tags then: what looks like one is somebody's data
        fields = plain(fields)
    for line in lines:
        if line.seq <= seq:
            continue
        name = _LISTS.get(line.kind)
        held = fields.setdefault(name, []) if name else None
        if held is not None and not isinstance(held, list):
            raise CorruptRecordError(path, None, 0, f"its {name} are no list")
        if line.seq != seq + 1:
            raise CorruptRecordError(path, None, 0, f"record {seq + 1} is missing from its tail")
        if held is not None:
            held.append(line.fields)
        fields["updated_at"], seq = line.ts, line.seq
    return fields, seq


def session_of(data: bytes, tail: bytes, path: str) -> SessionRecord:
    """The session that a document and a tail are; what a crash left of a last line is ignored.

    Raises:
        CorruptRecordError: they are not what was written.
        SchemaVersionError: a newer version wrote them.
    """
    lines, _ = lines_of(tail, f"{path}.tail") if tail else ([], 0)
    fields, _ = tree(data, path, lines)
    _head_of(fields, path)
    version = fields.get("schema_version")
    for name in _ENVELOPE & fields.keys():
        del fields[name]
    try:
        if version != CURRENT_SCHEMA_VERSION or _TAG in data or _TAG in tail:
            fields = restore(fields)
        return SessionRecord.from_dict(fields)
    except KeyError as error:
        raise CorruptRecordError(path, None, 0, f"it has no {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CorruptRecordError(path, None, 0, f"it is no session ({error})") from None


def ended(fields: dict[str, Any], updated_at: str) -> dict[str, Any]:
    """The session, which is plain data, marked as ended."""
    metadata: object = fields.get("metadata")
    known = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    return {**fields, "metadata": {**known, "ended": True}, "updated_at": updated_at}


def added(data: bytes, path: str, offset: int) -> Added:
    """A line of a tail, given without its end.

    Raises:
        CorruptRecordError: it is not what was written.
    """
    if problem_of(data) is not None:
        raise CorruptRecordError(path, None, offset, "the line is not what was written")
    fields = _decoded(data, path)
    kind, seq, ts = (fields.pop(name, None) for name in ("record_type", "seq", "ts"))
    fields.pop("crc", None)
    if kind not in _LISTS or type(seq) is not int or type(ts) is not str:
        raise CorruptRecordError(path, None, offset, f"unknown record_type={kind!r}, or no order")
    return Added(str(kind), seq, ts, fields)


def lines_of(data: bytes, path: str, offset: int = 0) -> tuple[list[Added], int]:
    """The lines of a tail, and the offset of what a crash left of another one.

    Args:
        offset: of the first byte.

    Raises:
        CorruptRecordError: a line is not what was written.
    """
    *whole, rest = data.split(b"\n")
    found: list[Added] = []
    for line in whole:
        found.append(added(line, path, offset))
        offset += len(line) + 1
    if problem_of(rest[:-1]) is None:  # whole, but for its end: that was written, and is damaged
        raise CorruptRecordError(path, None, offset, "the line's end is not what was written")
    return found, offset


class Order:
    """Ids by (`updated_at`, id). A change costs little, however many there are."""

    def __init__(self) -> None:
        self._times: dict[str, str] = {}
        self._sorted: list[tuple[str, str]] = []

    def put(self, session_id: str, updated_at: str) -> None:
        """Take an id in, or give it another time."""
        before = self._times.get(session_id)
        if before != updated_at:
            self.drop(session_id)
            self._times[session_id] = updated_at
            insort(self._sorted, (updated_at, session_id))

    def drop(self, session_id: str) -> None:
        """Forget an id, if it is known."""
        before = self._times.pop(session_id, None)
        if before is not None:
            del self._sorted[bisect_left(self._sorted, (before, session_id))]

    def replace(self, times: dict[str, str]) -> None:
        """Forget all, and take these."""
        self._times = dict(times)
        self._sorted = sorted((time, name) for name, time in times.items())

    def ids(self) -> list[str]:
        """Oldest first."""
        return [name for _, name in self._sorted]

    def before(self, place: tuple[str, str] | None) -> Iterable[str]:
        """Newest first, those before a place in the order only."""
        end = len(self._sorted) if place is None else bisect_left(self._sorted, place)
        return (self._sorted[at][1] for at in range(end - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._sorted)


def _check(data: bytes, path: str) -> None:
    if problem_of(data.rstrip()) == "damaged":
        raise CorruptRecordError(
            path,
            None,
            0,
            "the file is not what was written (if you changed it by hand, remove its last key, "
            "crc)",
        )


def _decoded(data: bytes, path: str) -> dict[str, Any]:
    try:
        return decode_dict(data)
    except InvalidRecord as error:
        raise CorruptRecordError(path, None, 0, str(error)) from None


def _newer(path: str, version: int) -> SchemaVersionError:
    return SchemaVersionError(
        path,
        f"it has schema version {version}, and {CURRENT_SCHEMA_VERSION} is the newest that is "
        "known here; it was left as it is",
    )
