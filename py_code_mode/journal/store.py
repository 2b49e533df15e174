"""Where sessions are stored as records: the contract, and the store in memory.

Promises: a turn that was recorded is there, once, whoever else records at the same time; a session
that is loaded is the caller's own copy; an id never leads out of the store.
"""

from __future__ import annotations

import base64
import json
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from py_code_mode.arguments import check_type
from py_code_mode.errors import (
    SessionClosedError,
    SessionExistsError,
    SessionNotFoundError,
)
from py_code_mode.journal import folding
from py_code_mode.journal.folding import Known, Order, Part
from py_code_mode.journal.ids import check_session_id, check_workspace_id
from py_code_mode.journal.pages import Page
from py_code_mode.journal.turns import SessionRecord, TurnRecord
from py_code_mode.stores.log import seal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ENDED",
    "MAX_PAGE",
    "InMemorySessionStore",
    "MetaPage",
    "SessionMeta",
    "SessionStore",
    "check_ids",
    "check_page",
    "check_session",
    "check_workspace",
    "meta_of",
    "page_of",
]

#: Sessions on one page, at most.
MAX_PAGE = 500
#: Why a session takes no more records.
ENDED = "it has ended; to go on, load it, set metadata['ended'] to False, and save it"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMeta:
    """A session in a list.

    Attributes:
        problem: why nothing else is known of it; empty where all is well.
    """

    session_id: str
    workspace_id: str | None = None
    agent_id: str | None = None
    created_at: str = ""
    updated_at: str = ""
    turn_count: int = 0
    is_ended: bool = False
    problem: str = ""


#: Some sessions of a store.
MetaPage: TypeAlias = Page[SessionMeta]


class SessionStore(ABC):
    """Sessions by id. Thread-safe; its methods block.

    A store of one's own needs the four abstract methods. The others work on them, one caller at a
    time in this process; override those that the store can do better, or for several processes.

    Every method raises `InvalidName`, a ValueError, for an id that cannot name a file, and
    `PersistenceError` where the medium fails or holds something else than was written.
    """

    _changing: threading.RLock

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Not in __init__, which a subclass need not call.
        store = super().__new__(cls)
        store._changing = threading.RLock()
        return store

    @abstractmethod
    def save_session(self, session: SessionRecord) -> None:
        """Store a session, in place of what its id stands for."""

    @abstractmethod
    def load_session(self, session_id: str) -> SessionRecord | None:
        """The session, or None if there is none."""

    @abstractmethod
    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        """Ids, of one workspace if it is given; by (`updated_at`, id)."""

    @abstractmethod
    def delete_session(self, session_id: str) -> bool:
        """Remove a session; False if there was none."""

    def create_session(self, session: SessionRecord) -> None:
        """Store a new session.

        Raises:
            SessionExistsError: there is one of this id, in whatever workspace.
        """
        with self._changing:
            if self.load_session(session.session_id) is not None:
                raise SessionExistsError(session.session_id, type(self).__name__)
            self.save_session(session)

    def append_record(self, session_id: str, record: Part, *, updated_at: str) -> None:
        """Add a turn or a transition to the end of a session.

        Raises:
            SessionNotFoundError: there is none.
            SessionClosedError: it has ended.
        """
        with self._changing:
            session = self._existing(session_id)
            if session.metadata.get("ended") is True:
                raise SessionClosedError(session_id, ENDED)
            if isinstance(record, TurnRecord):
                session.turns.append(record)
            else:
                session.agent_transitions.append(record)
            session.updated_at = updated_at
            self.save_session(session)

    def end_session(self, session_id: str, *, updated_at: str) -> None:
        """Mark a session as ended: ``metadata["ended"]`` is True. Once more does nothing.

        Raises:
            SessionNotFoundError: there is none.
        """
        with self._changing:
            session = self._existing(session_id)
            if session.metadata.get("ended") is not True:
                session.metadata["ended"] = True
                session.updated_at = updated_at
                self.save_session(session)

    def list_page(
        self, limit: int = 50, cursor: str | None = None, *, workspace_id: str | None = None
    ) -> MetaPage:
        """A page of the list, newest first, by (`updated_at`, id).

        A session that changes meanwhile moves to the front; no other is left out for that, or
        shown twice.

        Args:
            limit: at most `MAX_PAGE` are given.
            cursor: of the page before; None for the first.

        Raises:
            ValueError: `limit` is not positive, or the cursor is none of ours.
        """
        place = check_page(limit, cursor)
        found: list[SessionMeta] = []
        for session_id in self.list_sessions(workspace_id):
            session = self.load_session(session_id)
            if session is not None:
                found.append(meta_of(folding.known_of(session)))
        found.sort(key=_place, reverse=True)
        return page_of([meta for meta in found if place is None or _place(meta) < place], limit)

    def _existing(self, session_id: str) -> SessionRecord:
        session = self.load_session(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session


@dataclass(slots=True)
class _Kept:
    """A session in memory: as a file would have it, so that no two share an object."""

    known: Known
    snapshot: bytes
    tail: list[bytes]

    @property
    def place(self) -> str:
        """For messages."""
        return f"memory:{self.known.session_id}"

    def fields(self) -> dict[str, Any]:
        """The session as plain data."""
        lines, _ = folding.lines_of(b"".join(self.tail), self.place)
        return folding.tree(self.snapshot, self.place, lines)[0]


class InMemorySessionStore(SessionStore):
    """Sessions in this process; what is saved and what is loaded are copies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, _Kept] = {}
        self._twins: dict[str, str] = {}  # ids by themselves in small letters
        self._order = Order()

    def save_session(self, session: SessionRecord) -> None:
        check_session("save_session", session)
        with self._lock:
            kept = self._sessions.get(session.session_id)
            if kept is None:
                self._refuse_twin(session.session_id)
            self._keep(session, kept.known.seq + 1 if kept else 0)

    def load_session(self, session_id: str) -> SessionRecord | None:
        check_session_id(session_id)
        with self._lock:
            kept = self._sessions.get(session_id)
            if kept is None:
                return None
            snapshot, tail, place = kept.snapshot, b"".join(kept.tail), kept.place
        return folding.session_of(snapshot, tail, place)

    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        check_workspace(workspace_id)
        with self._lock:
            return [
                name
                for name in self._order.ids()
                if workspace_id is None or self._sessions[name].known.workspace_id == workspace_id
            ]

    def delete_session(self, session_id: str) -> bool:
        check_session_id(session_id)
        with self._lock:
            if self._sessions.pop(session_id, None) is None:
                return False
            self._order.drop(session_id)
            del self._twins[session_id.lower()]
            return True

    def create_session(self, session: SessionRecord) -> None:
        check_session("create_session", session)
        with self._lock:
            if session.session_id in self._sessions:
                raise SessionExistsError(session.session_id, repr(self))
            self._refuse_twin(session.session_id)
            self._keep(session, 0)

    def append_record(self, session_id: str, record: Part, *, updated_at: str) -> None:
        check_session_id(session_id)
        with self._lock:
            kept = self._sessions.get(session_id)
            if kept is None:
                raise SessionNotFoundError(session_id)
            known = kept.known
            if known.is_ended:
                raise SessionClosedError(session_id, ENDED)
            body = folding.body_of(record, known.seq + 1, updated_at)
            kept.tail.append(seal(body))
            known.seq += 1
            known.updated_at = updated_at
            known.turn_count += isinstance(record, TurnRecord)
            self._order.put(session_id, updated_at)

    def end_session(self, session_id: str, *, updated_at: str) -> None:
        check_session_id(session_id)
        with self._lock:
            kept = self._sessions.get(session_id)
            if kept is None:
                raise SessionNotFoundError(session_id)
            if not kept.known.is_ended:
                fields = folding.ended(kept.fields(), updated_at)
                self._keep(fields, kept.known.seq + 1)

    def list_page(
        self, limit: int = 50, cursor: str | None = None, *, workspace_id: str | None = None
    ) -> MetaPage:
        check_workspace(workspace_id)
        place = check_page(limit, cursor)
        with self._lock:
            metas = (meta_of(self._sessions[name].known) for name in self._order.before(place))
            return page_of(metas, limit, workspace_id)

    def __repr__(self) -> str:
        return f"InMemorySessionStore({len(self._sessions)} sessions)"

    def _keep(self, session: SessionRecord | dict[str, Any], seq: int) -> None:
        data = folding.snapshot(session, seq)
        known = folding.head(data, "memory")
        self._sessions[known.session_id] = _Kept(known, data, [])
        self._twins[known.session_id.lower()] = known.session_id
        self._order.put(known.session_id, known.updated_at)

    def _refuse_twin(self, session_id: str) -> None:
        """As in files: where a name's case makes no difference, two such ids were one."""
        twin = self._twins.get(session_id.lower(), session_id)
        if twin != session_id:
            raise SessionExistsError(twin, repr(self))


def check_session(target: str, session: SessionRecord) -> None:
    """Refuse what is no session, or has a field that could not be read back, or an unfit id.

    Args:
        target: what was called.

    Raises:
        InvalidCall: a TypeError; the message names the field.
        InvalidName: a ValueError; an id cannot name a file and a folder.
    """
    check_type(target, "session", session, SessionRecord)
    check_ids(session)
    for name, kind in _KINDS:
        check_type(target, name, getattr(session, name), kind)


_KINDS: Final = (
    ("agent_id", (str, type(None))),
    ("created_at", str),
    ("updated_at", str),
    ("turns", list),
    ("agent_transitions", list),
    ("metadata", dict),
)


def check_ids(session: SessionRecord) -> None:
    """Refuse a session whose ids cannot name a file and a folder."""
    check_session_id(session.session_id)
    check_workspace(session.workspace_id)


def check_workspace(workspace_id: str | None) -> None:
    """Refuse an id that cannot name a folder."""
    if workspace_id is not None:
        check_workspace_id(workspace_id)


def check_page(limit: int, cursor: str | None) -> tuple[str, str] | None:
    """The place in the order that a cursor stands for.

    Raises:
        ValueError: it is none of ours, or `limit` is not positive.
    """
    check_type("list_page", "limit", limit, int)
    check_type("list_page", "cursor", cursor, (str, type(None)))
    if limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    if cursor is None:
        return None
    try:
        place: object = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except ValueError:
        place = None
    match place:
        case [str(updated_at), str(session_id)]:
            return updated_at, session_id
        case _:
            raise ValueError(f"{cursor!r} is no cursor; pass the one of the page before")


def page_of(metas: Iterable[SessionMeta], limit: int, workspace_id: str | None = None) -> MetaPage:
    """The first of these, which come in order."""
    limit = min(limit, MAX_PAGE)
    found: list[SessionMeta] = []
    for meta in metas:
        if workspace_id is None or meta.workspace_id == workspace_id:
            if len(found) == limit:
                cursor = base64.urlsafe_b64encode(json.dumps(_place(found[-1])).encode())
                return Page(sessions=tuple(found), cursor=cursor.decode())
            found.append(meta)
    return Page(sessions=tuple(found))


def meta_of(known: Known, problem: str = "") -> SessionMeta:
    """The row of a session."""
    return SessionMeta(
        session_id=known.session_id,
        workspace_id=known.workspace_id,
        agent_id=known.agent_id,
        created_at=known.created_at,
        updated_at=known.updated_at,
        turn_count=known.turn_count,
        is_ended=known.is_ended,
        problem=problem,
    )


def _place(meta: SessionMeta) -> tuple[str, str]:
    return meta.updated_at, meta.session_id
