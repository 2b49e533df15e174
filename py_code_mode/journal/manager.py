"""What becomes of a session: it is started, recorded turn by turn, and ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from py_code_mode.arguments import check_type
from py_code_mode.journal.store import SessionStore, check_session
from py_code_mode.journal.turns import AgentTransitionRecord, SessionRecord, TurnRecord

if TYPE_CHECKING:
    from py_code_mode.journal.store import MetaPage

__all__ = ["SessionManager"]


class SessionManager:
    """Starts sessions, records what happens in them, and ends them, in a store.

    Thread-safe; its methods block. Every change sets `updated_at` and is stored when the method
    returns.
    """

    def __init__(self, store: SessionStore) -> None:
        check_type("SessionManager", "store", store, SessionStore)
        self._store = store

    @property
    def store(self) -> SessionStore:
        """Where the sessions are."""
        return self._store

    def start_session(
        self,
        workspace_id: str | None = None,
        agent_id: str | None = None,
        *,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> SessionRecord:
        """Store a new session and return it.

        Args:
            session_id: made up where None.

        Raises:
            SessionExistsError: a ValueError; there is a session of this id.
            InvalidName: a ValueError; an id cannot name a file.
            InvalidCall: a TypeError; an argument is of the wrong type.
        """
        check_type("start_session", "metadata", metadata, (Mapping, type(None)))
        now = _now()
        session = SessionRecord(
            session_id=uuid4().hex if session_id is None else session_id,
            workspace_id=workspace_id,
            created_at=now,
            updated_at=now,
            agent_id=agent_id,
            metadata=dict(metadata or {}),
        )
        check_session("start_session", session)
        self._store.create_session(session)
        return session

    def record_turn(self, session_id: str, turn: TurnRecord) -> None:
        """Add a turn to the end of a session.

        Raises:
            SessionNotFoundError: a ValueError; there is no such session.
            SessionClosedError: it has ended.
        """
        check_type("record_turn", "turn", turn, TurnRecord)
        self._store.append_record(session_id, turn, updated_at=_now())

    def record_agent_transition(self, session_id: str, transition: AgentTransitionRecord) -> None:
        """Add a hand-over to the end of a session.

        Raises:
            SessionNotFoundError: a ValueError; there is no such session.
            SessionClosedError: it has ended.
        """
        check_type("record_agent_transition", "transition", transition, AgentTransitionRecord)
        self._store.append_record(session_id, transition, updated_at=_now())

    def end_session(self, session_id: str) -> None:
        """End a session: ``metadata["ended"]`` is True, and no turn is taken any more.

        Ending it once more does nothing. To go on with it, load it, take the mark away and save it.

        Raises:
            SessionNotFoundError: a ValueError; there is no such session.
        """
        self._store.end_session(session_id, updated_at=_now())

    def get_session(self, session_id: str) -> SessionRecord | None:
        """The session as it is stored, or None if there is none."""
        return self._store.load_session(session_id)

    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        """Ids, of one workspace if it is given; by (`updated_at`, id)."""
        return self._store.list_sessions(workspace_id)

    def list_page(
        self, limit: int = 50, cursor: str | None = None, *, workspace_id: str | None = None
    ) -> MetaPage:
        """A page of the list, newest first; see `SessionStore.list_page`."""
        return self._store.list_page(limit, cursor, workspace_id=workspace_id)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
