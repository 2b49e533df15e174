"""Where sessions come from: each names its parents, and nothing else holds the graph.

`fork`, `detach` and `merge` make a new conversation of one or two others. The walks take sessions
by id and find edges in `parent_session_ids`; they are loops, so that a chain of any length is fine,
and end on circles too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

from py_code_mode.arguments import check_type
from py_code_mode.errors import InvalidCall, LineageConsistencyError
from py_code_mode.journal.ids import new_session_id
from py_code_mode.journal.records import encode, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from py_code_mode.journal.chunks import Transcript

__all__ = [
    "LineageKind",
    "ancestors",
    "descendants",
    "detach",
    "export_lineage",
    "fork",
    "lineage_jsonl",
    "lineage_row",
    "merge",
    "validate_acyclic",
]


class LineageKind(StrEnum):
    """How a session came into being; what a file says otherwise reads as ``unknown``."""

    UNKNOWN = "unknown"
    LEAF_USER = "leaf_user"
    LEAF_SYSTEM = "leaf_system"
    OP_CREATE = "op_create"
    OP_SESSION_LOOP = "op_session_loop"
    OP_FORK = "op_fork"
    OP_DETACH = "op_detach"
    OP_MERGE = "op_merge"
    OP_SESSION_COMPRESS = "op_session_compress"

    @classmethod
    def _missing_(cls, value: object) -> LineageKind:
        return cls.UNKNOWN


class HasParents(Protocol):
    """What the walks need of a session."""

    @property
    def parent_session_ids(self) -> tuple[UUID, ...]: ...


_S = TypeVar("_S", bound=HasParents)


def fork(transcript: Transcript) -> Transcript:
    """The same conversation under a new id, with the original as its parent.

    What tokens the original took is not counted twice: the new one begins with no usage.
    """
    _check("fork", "transcript", transcript)
    return replace(
        transcript,
        id=UUID(new_session_id()),
        parent_session_ids=(transcript.id,),
        lineage_operator="fork",
        lineage_kind=LineageKind.OP_FORK,
        lineage_extras=(),
        cumulative_usage=None,
    )


def detach(transcript: Transcript) -> Transcript:
    """The same conversation under a new id, which knows of no parent."""
    return replace(
        fork(transcript),
        parent_session_ids=(),
        lineage_operator="detach",
        lineage_kind=LineageKind.OP_DETACH,
    )


def merge(first: Transcript, second: Transcript) -> Transcript:
    """Both conversations, one after the other, in the first one's sandbox.

    Usage is summed. Their order tells the order of the parents.

    Raises:
        ValueError: neither has a sandbox yet, and they are to have different kinds of them.
    """
    _check("merge", "first", first)
    _check("merge", "second", second)
    is_unbound = first.sandbox is None and second.sandbox is None
    if is_unbound and first.sandbox_backend != second.sandbox_backend:
        raise ValueError(
            "cannot merge unbound sessions targeting different backends: "
            f"{first.sandbox_backend!r} vs {second.sandbox_backend!r}"
        )
    used = [one.cumulative_usage for one in (first, second) if one.cumulative_usage is not None]
    return replace(
        first,
        id=UUID(new_session_id()),
        chunk_table=first.chunk_table.extend(*second.chunk_table),
        parent_session_ids=(first.id, second.id),
        lineage_operator="merge",
        lineage_kind=LineageKind.OP_MERGE,
        lineage_extras=(),
        cumulative_usage=used[0] + used[1] if len(used) == 2 else next(iter(used), None),
    )


def _check(target: str, name: str, value: object) -> None:
    from py_code_mode.journal.chunks import Transcript  # which has its kind of lineage from here

    check_type(target, name, value, Transcript)


def ancestors(sessions: Mapping[UUID, HasParents], start: UUID) -> tuple[UUID, ...]:
    """All sessions that one comes from, nearest first, each once.

    Raises:
        LineageConsistencyError: it, or an ancestor, is not among the sessions, or it is its own
            ancestor.
    """
    found: dict[UUID, None] = {}
    queue = deque(_one(sessions, start, start).parent_session_ids)
    while queue:
        parent = queue.popleft()
        if parent == start:
            raise LineageConsistencyError(f"session {start} is one of its own ancestors")
        if parent not in found:
            found[parent] = None
            queue.extend(_one(sessions, parent, start).parent_session_ids)
    return tuple(found)


def descendants(sessions: Mapping[UUID, HasParents], root: UUID) -> tuple[UUID, ...]:
    """All sessions that come from one: each before its own children, depth first, each once.

    Raises:
        LineageConsistencyError: it is not among the sessions.
    """
    _one(sessions, root, root)
    children: dict[UUID, list[UUID]] = {}
    for child, session in sessions.items():
        for parent in session.parent_session_ids:
            children.setdefault(parent, []).append(child)
    found: dict[UUID, None] = {}
    stack = children.get(root, [])[::-1]
    while stack:
        current = stack.pop()
        if current != root and current not in found:
            found[current] = None
            stack.extend(reversed(children.get(current, ())))
    return tuple(found)


def validate_acyclic(sessions: Mapping[UUID, HasParents]) -> None:
    """Return if every parent is there and no session is its own ancestor.

    Raises:
        LineageConsistencyError: the message names one session that is at fault.
    """
    # Kahn's algorithm: take away, again and again, what has no parents left.
    waiting: dict[UUID, int] = {}
    children: dict[UUID, list[UUID]] = {}
    for child, session in sessions.items():
        parents = set(session.parent_session_ids)
        for parent in parents:
            _one(sessions, parent, child)
            children.setdefault(parent, []).append(child)
        waiting[child] = len(parents)
    free = [session for session, count in waiting.items() if not count]
    while free:
        current = free.pop()
        del waiting[current]
        for child in children.get(current, ()):
            waiting[child] -= 1
            if not waiting[child]:
                free.append(child)
    if waiting:
        raise LineageConsistencyError(
            f"the lineage has a circle: {next(iter(waiting))} is one of its own ancestors, or "
            "comes from a session that is"
        )


def _one(sessions: Mapping[UUID, _S], wanted: UUID, asker: UUID) -> _S:
    try:
        return sessions[wanted]
    except KeyError:
        text = f"session {wanted} is not among the {len(sessions)} sessions given"
        if wanted != asker:
            text = f"session {asker} references missing parent {wanted}"
        raise LineageConsistencyError(text) from None


def lineage_row(transcript: Transcript) -> dict[str, Any]:
    """What an export tells of one session; edges follow from the parents."""
    usage = transcript.cumulative_usage
    return {
        "id": str(transcript.id),
        "parent_session_ids": [str(parent) for parent in transcript.parent_session_ids],
        "lineage_operator": transcript.lineage_operator,
        "lineage_kind": transcript.lineage_kind.value,
        "lineage_extras": [[key, plain(value)] for key, value in transcript.lineage_extras],
        "chunk_count": len(transcript.chunk_table),
        "cumulative_usage": usage.to_dict() if usage is not None else None,
    }


def lineage_jsonl(transcripts: Iterable[Transcript]) -> str:
    """One line of JSON for each session, each with its end; no text can break a line."""
    return b"".join(encode(lineage_row(one)) + b"\n" for one in transcripts).decode()


def export_lineage(transcripts: Iterable[Transcript], path: Path | str) -> None:
    """Write `lineage_jsonl` to a file, in UTF-8, and make its folders."""
    check_type("export_lineage", "path", path, (str, Path))
    target = Path(path)
    if target.is_dir():
        raise InvalidCall("export_lineage", f"{target} is a folder; path must be a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lineage_jsonl(transcripts).encode())
