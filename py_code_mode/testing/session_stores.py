"""What every store of sessions has to do: inherit `SessionStoreContract` in a test class.

```python
class TestMyStore(SessionStoreContract):
    def make_store(self, folder: Path) -> SessionStore:
        return MyStore(folder)
```
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import (
    InvalidName,
    SessionClosedError,
    SessionExistsError,
    SessionNotFoundError,
)
from py_code_mode.journal.manager import SessionManager
from py_code_mode.journal.turns import (
    AgentTransitionRecord,
    SessionRecord,
    ToolCallRecord,
    TurnRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from py_code_mode.journal.store import SessionStore

__all__ = ["UNFIT_IDS", "VALUES", "SessionStoreContract", "a_session"]

_TIMEOUT = 60.0

#: Ids that no store takes.
UNFIT_IDS = (
    "",
    ".",
    "..",
    ".hidden",
    "../outside",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "nul\0byte",
    "line\nbreak",
    "line break",
    "dots..inside",
    "dot-at-end.",
    "con",
    "COM1.txt",
    "é",
    "x" * 129,
    "x" * 300,
)


#: Values that JSON does not know, or that look like what stands for them.
VALUES: tuple[object, ...] = (
    math.inf,
    -math.inf,
    b"\x00\xff",
    (1, 2),
    {1, 2},
    {1: "a", None: "b"},
    {"$float": "nan"},
    2**70,
    "\ud800 \u2028 \u2029 \x85 \0 😀",
    [[[()]]],
    datetime(2026, 1, 1, tzinfo=UTC),
)


class SessionStoreContract(ABC):
    """What holds of every store of sessions, whoever wrote it."""

    @abstractmethod
    def make_store(self, folder: Path) -> SessionStore:
        """A new, empty store; `folder` is an empty folder that it may use."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> SessionStore:
        return self.make_store(tmp_path)

    @pytest.fixture
    def manager(self, store: SessionStore) -> SessionManager:
        return SessionManager(store)

    def test_an_empty_store_has_nothing(self, store: SessionStore) -> None:
        assert store.list_sessions() == []
        assert store.list_sessions("nowhere") == []
        assert store.load_session("a") is None
        assert store.delete_session("a") is False
        assert store.list_page().sessions == ()

    def test_what_is_saved_is_loaded(self, store: SessionStore) -> None:
        session = a_session()
        store.save_session(session)
        assert store.load_session("s-1") == session
        assert store.list_sessions() == ["s-1"]

    def test_saving_again_replaces(self, store: SessionStore) -> None:
        store.save_session(a_session())
        store.save_session(SessionRecord("s-1", agent_id="other"))
        assert store.load_session("s-1") == SessionRecord("s-1", agent_id="other")
        assert store.list_sessions() == ["s-1"]

    def test_a_session_that_changes_its_workspace_is_in_the_new_one_only(
        self, store: SessionStore
    ) -> None:
        session = a_session()
        for workspace in ("w", None, "v"):
            session.workspace_id = workspace
            store.save_session(session)
            assert store.load_session("s-1") == session
            assert store.list_sessions() == ["s-1"]
            for name in ("w", "v"):
                assert store.list_sessions(name) == (["s-1"] if name == workspace else [])
        assert store.delete_session("s-1")
        assert store.load_session("s-1") is None

    def test_what_is_deleted_is_gone(self, store: SessionStore, manager: SessionManager) -> None:
        store.save_session(a_session())
        manager.record_turn("s-1", TurnRecord("t"))
        assert store.delete_session("s-1") is True
        assert store.delete_session("s-1") is False
        assert store.load_session("s-1") is None
        assert store.list_sessions() == []
        with pytest.raises(SessionNotFoundError):
            manager.record_turn("s-1", TurnRecord("t"))
        store.save_session(SessionRecord("s-1"))
        assert store.load_session("s-1") == SessionRecord("s-1")

    def test_a_loaded_session_is_the_callers_own(self, store: SessionStore) -> None:
        session = a_session()
        store.save_session(session)
        session.turns[0].metadata["later"] = True
        loaded = store.load_session("s-1")
        assert loaded is not None
        loaded.metadata["later"] = True
        loaded.turns.clear()
        assert store.load_session("s-1") == a_session()

    def test_a_recorded_turn_is_not_changed_afterwards(
        self, store: SessionStore, manager: SessionManager
    ) -> None:
        manager.start_session(session_id="s-1")
        turn = TurnRecord("t", metadata={"a": 1})
        manager.record_turn("s-1", turn)
        turn.metadata["a"] = 2
        loaded = store.load_session("s-1")
        assert loaded is not None
        assert loaded.turns == [TurnRecord("t", metadata={"a": 1})]

    @pytest.mark.parametrize("value", VALUES, ids=ascii)
    def test_values_come_back_as_they_were(
        self, store: SessionStore, manager: SessionManager, value: object
    ) -> None:
        call = ToolCallRecord("c", "tools.x", {"value": value}, result=value)
        turn = TurnRecord("t", prompt="\ud800\u2028", tool_calls=[call], metadata={"value": value})
        manager.start_session(session_id="s-1", metadata={"value": value})
        manager.record_turn("s-1", turn)
        loaded = store.load_session("s-1")
        assert loaded is not None
        assert loaded.turns == [turn]
        assert loaded.metadata == {"value": value}
        store.save_session(loaded)
        assert store.load_session("s-1") == loaded

    def test_not_a_number_comes_back_as_that(
        self, store: SessionStore, manager: SessionManager
    ) -> None:
        manager.start_session(session_id="s-1", metadata={"value": math.nan})
        manager.record_turn("s-1", TurnRecord("t", metadata={"value": math.nan}))
        loaded = store.load_session("s-1")
        assert loaded is not None
        assert math.isnan(loaded.metadata["value"])
        assert math.isnan(loaded.turns[0].metadata["value"])

    def test_unknown_keys_are_kept(self, store: SessionStore, manager: SessionManager) -> None:
        data: dict[str, Any] = {**a_session().to_dict(), "later": 1}
        data["turns"][0]["later"] = {"a": 2}
        data["turns"][0]["tool_calls"][0]["later"] = 3
        data["agent_transitions"][0]["later"] = 4
        store.save_session(SessionRecord.from_dict(data))
        manager.record_turn("s-1", TurnRecord.from_dict({"turn_id": "t", "later": 5}))
        manager.end_session("s-1")
        loaded = store.load_session("s-1")
        assert loaded is not None
        found = loaded.to_dict()
        assert found["later"] == 1
        assert found["turns"][0] == data["turns"][0]
        assert found["agent_transitions"] == data["agent_transitions"]
        assert found["turns"][-1]["later"] == 5

    @pytest.mark.parametrize("unfit", UNFIT_IDS, ids=ascii)
    def test_an_unfit_id_is_refused_by_every_method(self, store: SessionStore, unfit: str) -> None:
        manager = SessionManager(store)
        store.save_session(SessionRecord("kept"))
        uses: list[Callable[[str], object]] = [
            store.load_session,
            store.delete_session,
            store.list_sessions,
            manager.end_session,
            lambda name: store.save_session(SessionRecord(name)),
            lambda name: store.save_session(SessionRecord("s", workspace_id=name)),
            lambda name: store.create_session(SessionRecord(name)),
            lambda name: manager.start_session(name),
            lambda name: manager.start_session(session_id=name),
            lambda name: manager.record_turn(name, TurnRecord("t")),
            lambda name: manager.list_page(workspace_id=name),
        ]
        for use in uses:
            with pytest.raises(InvalidName):
                use(unfit)
        assert store.list_sessions() == ["kept"]

    def test_starting_an_existing_session_is_refused(self, manager: SessionManager) -> None:
        manager.start_session("w", session_id="s-1")
        manager.record_turn("s-1", TurnRecord("t"))
        for workspace in ("w", "v", None):
            with pytest.raises(SessionExistsError):
                manager.start_session(workspace, session_id="s-1")
        loaded = manager.get_session("s-1")
        assert loaded is not None
        assert (loaded.workspace_id, len(loaded.turns)) == ("w", 1)

    def test_an_ended_session_takes_no_more(self, manager: SessionManager) -> None:
        manager.start_session(session_id="s-1")
        manager.record_turn("s-1", TurnRecord("t"))
        manager.end_session("s-1")
        ended = manager.get_session("s-1")
        assert ended is not None
        assert ended.metadata["ended"] is True
        with pytest.raises(SessionClosedError, match="s-1"):
            manager.record_turn("s-1", TurnRecord("late"))
        with pytest.raises(SessionClosedError):
            manager.record_agent_transition("s-1", AgentTransitionRecord(None, "late"))
        manager.end_session("s-1")
        assert manager.get_session("s-1") == ended
        del ended.metadata["ended"]
        manager.store.save_session(ended)
        manager.record_turn("s-1", TurnRecord("again"))
        after = manager.get_session("s-1")
        assert after is not None
        assert [turn.turn_id for turn in after.turns] == ["t", "again"]

    def test_ids_come_by_time_and_id(self, store: SessionStore) -> None:
        for name, time in (("b", "2"), ("a", "2"), ("c", "1"), ("d", "3")):
            workspace = "w" if name in "ad" else None
            store.save_session(SessionRecord(name, workspace, updated_at=time))
        assert store.list_sessions() == ["c", "a", "b", "d"]
        assert store.list_sessions("w") == ["a", "d"]
        session = store.load_session("c")
        assert session is not None
        session.updated_at = "4"
        store.save_session(session)
        assert store.list_sessions() == ["a", "b", "d", "c"]

    def test_a_recorded_turn_moves_its_session_to_the_end(self, manager: SessionManager) -> None:
        for name in "abc":
            manager.start_session(session_id=name)
        assert manager.list_sessions() == ["a", "b", "c"]
        manager.record_turn("a", TurnRecord("t"))
        assert manager.list_sessions() == ["b", "c", "a"]
        manager.record_agent_transition("b", AgentTransitionRecord(None, "x"))
        assert manager.list_sessions() == ["c", "a", "b"]
        manager.end_session("c")
        assert manager.list_sessions() == ["a", "b", "c"]

    def test_pages_show_every_session_once_newest_first(self, store: SessionStore) -> None:
        for number in range(23):
            workspace = "w" if number % 3 == 0 else None
            store.save_session(
                SessionRecord(f"s{number:02}", workspace, updated_at=f"{number // 2:02}")
            )
        for workspace in (None, "w"):
            wanted = store.list_sessions(workspace)[::-1]
            for limit in (1, 4, 23, 1000):
                found: list[str] = []
                cursor = None
                while True:
                    page = store.list_page(limit, cursor, workspace_id=workspace)
                    assert 0 < len(page.sessions) <= limit
                    found += [meta.session_id for meta in page.sessions]
                    cursor = page.cursor
                    if cursor is None:
                        break
                assert found == wanted

    def test_a_row_of_a_page_tells_what_the_session_is(self, manager: SessionManager) -> None:
        session = manager.start_session("w", "agent", session_id="s-1")
        manager.record_turn("s-1", TurnRecord("t"))
        manager.end_session("s-1")
        [meta] = manager.list_page().sessions
        ended = manager.get_session("s-1")
        assert ended is not None
        assert (meta.session_id, meta.workspace_id, meta.agent_id) == ("s-1", "w", "agent")
        assert (meta.created_at, meta.updated_at) == (session.created_at, ended.updated_at)
        assert (meta.turn_count, meta.is_ended, meta.problem) == (1, True, "")

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_is_positive(self, store: SessionStore, limit: int) -> None:
        with pytest.raises(ValueError, match="positive"):
            store.list_page(limit)

    @pytest.mark.parametrize("cursor", ["", "x", "é", "W10=", "WzEsMl0="])
    def test_a_foreign_cursor_is_refused(self, store: SessionStore, cursor: str) -> None:
        with pytest.raises(ValueError, match="no cursor"):
            store.list_page(cursor=cursor)

    def test_threads_lose_no_turn(self, manager: SessionManager) -> None:
        manager.start_session("w", session_id="s-1")

        def record(thread: int) -> None:
            for number in range(40):
                manager.record_turn("s-1", TurnRecord(f"{thread}-{number}"))

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(record, thread) for thread in range(8)]:
                done.result(_TIMEOUT)
        session = manager.get_session("s-1")
        assert session is not None
        assert len(session.turns) == 320
        for thread in range(8):
            its = [t.turn_id for t in session.turns if t.turn_id.startswith(f"{thread}-")]
            assert its == [f"{thread}-{number}" for number in range(40)]

    def test_a_session_that_ends_meanwhile_has_the_turns_that_were_taken(
        self, manager: SessionManager
    ) -> None:
        manager.start_session(session_id="s-1")

        def record(thread: int) -> int:
            for number in range(1000):
                try:
                    manager.record_turn("s-1", TurnRecord(f"{thread}-{number}"))
                except SessionClosedError:
                    return number
                if thread == number == 5:
                    manager.end_session("s-1")
            return 1000

        with ThreadPoolExecutor(6) as pool:
            taken = [pool.submit(record, thread) for thread in range(6)]
            counts = [done.result(_TIMEOUT) for done in taken]
        session = manager.get_session("s-1")
        assert session is not None
        assert len(session.turns) == sum(counts)


def a_session() -> SessionRecord:
    """One with something in every field."""
    return SessionRecord(
        session_id="s-1",
        workspace_id="w",
        created_at="2026-01-01T00:00:00+00:00",
        updated_at="2026-01-02T00:00:00+00:00",
        agent_id="a",
        turns=[
            TurnRecord(
                turn_id="t-1",
                agent_id="a",
                prompt="What is 6 × 7?",
                response_content="42",
                tool_calls=[
                    ToolCallRecord(
                        call_id="c-1",
                        tool_name="tools.calc",
                        arguments={"x": [6, 7]},
                        result={"value": 42.5},
                        status="error",
                        error="rounded",
                        duration_ms=1.5,
                        sandbox_context="box",
                        metadata={"m": None},
                    )
                ],
                started_at="2026-01-01T00:00:01+00:00",
                ended_at="2026-01-01T00:00:02+00:00",
                status="cancelled",
                error="no time",
                audit_event_ids=["e-1"],
                metadata={"m": True},
            ),
            TurnRecord("t-2"),
        ],
        agent_transitions=[AgentTransitionRecord("a", "b", "why", "t-1", "2026-01-01")],
        metadata={"title": "sums"},
    )
