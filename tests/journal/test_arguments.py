"""Arguments that are none: each is named, and nothing is said to be corrupt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import pytest

from py_code_mode.errors import InvalidCall
from py_code_mode.journal import (
    AgentTransitionRecord,
    FileSessionStore,
    InMemorySessionStore,
    SessionManager,
    SessionRecord,
    SessionStore,
    TurnRecord,
    lineage,
    to_html,
    to_json,
    to_markdown,
    to_notebook,
)
from py_code_mode.journal.cache import set_max_entries
from py_code_mode.journal.chunks import ChunkKind, ChunkRow, Transcript
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.loader import iter_records, read_journal
from py_code_mode.journal.migrations import register_chunk_migration, register_header_migration
from py_code_mode.journal.persisted import SessionWriter, prune_sessions
from py_code_mode.stores.log import Log

if TYPE_CHECKING:
    from collections.abc import Callable

Calls: TypeAlias = "list[tuple[str, Callable[[Any], object]]]"
#: What nothing takes.
WRONG: Any = 5.5
POWER: Any = "Power"
NONSENSE: Any = "zz"
OF_MANAGERS: Calls = [
    ("agent_id", lambda manager: manager.start_session(agent_id=WRONG)),
    ("metadata", lambda manager: manager.start_session(metadata=WRONG)),
    ("session", lambda manager: manager.store.save_session({})),
    ("turn", lambda manager: manager.record_turn("one", WRONG)),
    ("turn", lambda manager: manager.record_turn("one", AgentTransitionRecord(None, "b"))),
    ("transition", lambda manager: manager.record_agent_transition("one", TurnRecord("t"))),
    ("limit", lambda manager: manager.list_page("x")),
    ("cursor", lambda manager: manager.list_page(cursor=WRONG)),
]
OF_FUNCTIONS: Calls = [
    ("store", SessionManager),
    ("older_than", lambda wrong: prune_sessions(older_than=wrong)),
    ("max_entries", set_max_entries),
    ("kind", lambda wrong: ChunkRow(kind=wrong, payload={})),
    ("kind", lambda _: ChunkRow(kind=NONSENSE, payload={})),
    ("payload", lambda wrong: ChunkRow(kind=ChunkKind.USER, payload=wrong)),
    ("session", SessionWriter),
    ("journal", to_markdown),
    ("journal", to_json),
    ("journal", to_html),
    ("journal", to_notebook),
    ("transcript", lineage.fork),
    ("transcript", lineage.detach),
    ("second", lambda wrong: lineage.merge(Transcript(), wrong)),
    ("path", lambda wrong: lineage.export_lineage([], wrong)),
    ("path", lambda _: lineage.export_lineage([], Path())),
    ("fn", lambda wrong: register_header_migration(0, wrong)),
    ("fn", lambda wrong: register_chunk_migration(0, wrong)),
]
OF_WORDS: Calls = [
    ("durability", lambda folder: SessionJournal.create(folder, "b", durability=POWER)),
    ("durability", lambda folder: Log.create(folder, "b", durability=POWER)),
    ("durability", lambda folder: FileSessionStore(folder, durability=POWER)),
    ("on_error", lambda folder: read_journal(folder / "a.jsonl", on_error=NONSENSE)),
    ("on_error", lambda folder: list(iter_records(folder / "a.jsonl", on_error=NONSENSE))),
]


@pytest.fixture(params=[InMemorySessionStore, FileSessionStore])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SessionStore:
    return (
        InMemorySessionStore()
        if request.param is InMemorySessionStore
        else FileSessionStore(tmp_path)
    )


@pytest.mark.parametrize(
    "field", ["agent_id", "created_at", "updated_at", "turns", "agent_transitions", "metadata"]
)
def test_a_field_of_a_session_that_does_not_fit_is_named(store: SessionStore, field: str) -> None:
    # was: an error that called the session corrupt
    for save in (store.save_session, store.create_session):
        with pytest.raises(InvalidCall, match=f"{field} must be"):
            save(SessionRecord("one", **{field: WRONG}))
    assert store.list_sessions() == []


@pytest.mark.parametrize(("what", "call"), OF_MANAGERS)
def test_what_a_manager_cannot_take_is_named(
    store: SessionStore, what: str, call: Callable[[Any], object]
) -> None:
    manager = SessionManager(store)
    manager.start_session(session_id="one")
    with pytest.raises(InvalidCall, match=f"{what} must be"):
        call(manager)
    assert manager.get_session("one") == manager.get_session("one")
    assert len(manager.list_sessions()) == 1


@pytest.mark.parametrize(("what", "call"), OF_FUNCTIONS)
def test_an_argument_of_the_wrong_type_is_named(what: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(InvalidCall, match=f"{what} must be"):
        call(WRONG)


def test_what_is_no_record_and_no_message_is_named(tmp_path: Path) -> None:
    with (
        SessionJournal.create(tmp_path, "one") as journal,
        pytest.raises(InvalidCall, match="record must be"),
    ):
        journal.append(WRONG)
    name = UUID("0199c2a4-5f0e-7c1b-9d53-6d2f7e0c8a11")
    with SessionWriter(Transcript(id=name), folder=tmp_path) as writer:
        with pytest.raises(InvalidCall, match="row must be"):
            writer.write_chunk(0, WRONG)
        writer.write_chunk(0, ChunkRow.user("hello"))


def test_a_folder_that_is_no_path_is_refused() -> None:
    with pytest.raises(InvalidCall, match="is no path"):
        FileSessionStore("a\0b")


@pytest.mark.parametrize(("what", "call"), OF_WORDS)
def test_a_word_that_means_nothing_is_refused(
    tmp_path: Path, what: str, call: Callable[[Any], object]
) -> None:
    # was: with durability="Power" nothing was ever synced
    SessionJournal.create(tmp_path, "a").close()
    with pytest.raises(ValueError, match=f"{what}: must be one of"):
        call(tmp_path)
    assert not list(tmp_path.glob("b*"))
