"""What becomes of a session: started, recorded, ended."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from py_code_mode.errors import SessionClosedError, SessionExistsError, SessionNotFoundError
from py_code_mode.journal import (
    AgentTransitionRecord,
    FileSessionStore,
    InMemorySessionStore,
    SessionManager,
    SessionRecord,
    SessionStore,
    TurnRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class FourMethodStore(SessionStore):
    """Somebody's own, with the abstract methods only; it hands out its live objects."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionRecord] = {}

    def save_session(self, session: SessionRecord) -> None:
        self.sessions[session.session_id] = session

    def load_session(self, session_id: str) -> SessionRecord | None:
        return self.sessions.get(session_id)

    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        return [
            name
            for name, session in self.sessions.items()
            if workspace_id in (None, session.workspace_id)
        ]

    def delete_session(self, session_id: str) -> bool:
        return self.sessions.pop(session_id, None) is not None


@pytest.fixture(params=["memory", "file", "four methods"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> SessionManager:
    makers: dict[str, Callable[[], SessionStore]] = {
        "memory": InMemorySessionStore,
        "file": lambda: FileSessionStore(tmp_path),
        "four methods": FourMethodStore,
    }
    return SessionManager(makers[str(request.param)]())


def load(manager: SessionManager, session_id: str) -> SessionRecord:
    session = manager.get_session(session_id)
    assert session is not None
    return copy.deepcopy(session)


def test_a_started_session_is_stored_at_once(manager: SessionManager) -> None:
    began = datetime.now(UTC)
    session = manager.start_session("w", "a", metadata={"x": 1})
    assert UUID(session.session_id).version == 4
    assert session.session_id == UUID(session.session_id).hex
    assert (session.workspace_id, session.agent_id) == ("w", "a")
    assert (session.turns, session.metadata) == ([], {"x": 1})
    assert session.created_at == session.updated_at
    assert began <= datetime.fromisoformat(session.created_at) <= datetime.now(UTC)
    assert datetime.fromisoformat(session.created_at).tzinfo == UTC
    assert manager.get_session(session.session_id) == session
    assert manager.list_sessions() == manager.list_sessions("w") == [session.session_id]
    assert manager.list_sessions("v") == []


def test_a_session_has_the_id_and_nothing_else_by_default(manager: SessionManager) -> None:
    session = manager.start_session(session_id="mine")
    assert session == SessionRecord(
        "mine", created_at=session.created_at, updated_at=session.updated_at
    )


def test_metadata_given_at_the_start_stays_the_callers(manager: SessionManager) -> None:
    metadata = {"x": 1}
    session = manager.start_session(metadata=metadata)
    metadata["x"] = 2
    assert load(manager, session.session_id).metadata == {"x": 1}


def test_each_change_is_stored_and_dated(manager: SessionManager) -> None:
    name = manager.start_session().session_id
    times = [load(manager, name).updated_at]
    manager.record_turn(name, TurnRecord("t-1", prompt="p"))
    times.append(load(manager, name).updated_at)
    manager.record_agent_transition(name, AgentTransitionRecord(None, "b", "why"))
    times.append(load(manager, name).updated_at)
    manager.record_turn(name, TurnRecord("t-1"))
    times.append(load(manager, name).updated_at)
    manager.end_session(name)
    session = load(manager, name)
    times.append(session.updated_at)
    assert times == sorted(set(times))
    assert session.turns == [TurnRecord("t-1", prompt="p"), TurnRecord("t-1")]
    assert session.agent_transitions == [AgentTransitionRecord(None, "b", "why")]
    assert session.metadata == {"ended": True}
    assert session.created_at == times[0]


def test_a_missing_session_is_a_value_error_that_names_it(manager: SessionManager) -> None:
    uses: list[Callable[[], None]] = [
        lambda: manager.record_turn("missing", TurnRecord("t")),
        lambda: manager.record_agent_transition("missing", AgentTransitionRecord(None, "a")),
        lambda: manager.end_session("missing"),
    ]
    for use in uses:
        with pytest.raises(SessionNotFoundError, match=r"^Session not found: missing$") as caught:
            use()
        assert isinstance(caught.value, ValueError)
    assert manager.get_session("missing") is None
    assert manager.list_sessions() == []


def test_starting_an_existing_session_does_not_wipe_it(manager: SessionManager) -> None:
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t"))
    with pytest.raises(SessionExistsError) as caught:
        manager.start_session("w", session_id="s")
    assert isinstance(caught.value, ValueError)
    assert load(manager, "s").turns == [TurnRecord("t")]


def test_nothing_is_recorded_after_the_end(manager: SessionManager) -> None:
    manager.start_session(session_id="s")
    manager.end_session("s")
    ended = load(manager, "s")
    with pytest.raises(SessionClosedError):
        manager.record_turn("s", TurnRecord("t"))
    with pytest.raises(SessionClosedError):
        manager.record_agent_transition("s", AgentTransitionRecord(None, "a"))
    manager.end_session("s")
    assert load(manager, "s") == ended


def test_load_change_save(manager: SessionManager) -> None:
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t-1"))
    session = load(manager, "s")
    session.turns.append(TurnRecord("t-2"))
    session.metadata["title"] = "x"
    manager.store.save_session(session)
    manager.record_turn("s", TurnRecord("t-3"))
    after = load(manager, "s")
    assert [turn.turn_id for turn in after.turns] == ["t-1", "t-2", "t-3"]
    assert after.metadata == {"title": "x"}


def test_threads_of_several_managers_lose_nothing(manager: SessionManager) -> None:
    manager.start_session(session_id="s")
    managers = [manager, SessionManager(manager.store)]

    def record(thread: int) -> None:
        for number in range(40):
            managers[thread % 2].record_turn("s", TurnRecord(f"{thread}-{number}"))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(record, thread) for thread in range(8)]:
            done.result(60)
    found = [turn.turn_id for turn in load(manager, "s").turns]
    assert len(found) == len(set(found)) == 320


def test_pages_of_a_four_method_store_come_in_order_whatever_its_list_says() -> None:
    store = FourMethodStore()
    for name, time in (("b", "2"), ("a", "2"), ("c", "1"), ("d", "3")):
        store.save_session(SessionRecord(name, updated_at=time))
    page = SessionManager(store).list_page(3)
    assert [meta.session_id for meta in page.sessions] == ["d", "b", "a"]
    page = SessionManager(store).list_page(3, page.cursor)
    assert [meta.session_id for meta in page.sessions] == ["c"]
    assert page.cursor is None


def test_what_moves_to_the_front_meanwhile_hides_no_other(manager: SessionManager) -> None:
    for number in range(6):
        manager.start_session(session_id=f"s{number}")
    page = manager.list_page(2)
    manager.record_turn("s0", TurnRecord("t"))
    found = [meta.session_id for meta in page.sessions]
    while page.cursor:
        page = manager.list_page(2, page.cursor)
        found += [meta.session_id for meta in page.sessions]
    assert found == ["s5", "s4", "s3", "s2", "s1"]
    assert manager.list_page(1).sessions[0].session_id == "s0"
