"""Stores of sessions: the contract over each of them, and what files add to it."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from py_code_mode.errors import (
    CorruptRecordError,
    InvalidName,
    JournalWriteError,
    PersistenceError,
    SchemaVersionError,
    SessionClosedError,
    SessionExistsError,
    SessionNotFoundError,
)
from py_code_mode.journal import (
    AgentTransitionRecord,
    FileSessionStore,
    InMemorySessionStore,
    SessionManager,
    SessionRecord,
    SessionStore,
    TurnRecord,
    file_store,
)
from py_code_mode.journal.store import check_ids, check_workspace
from py_code_mode.stores.files import FileSystem
from py_code_mode.stores.log import seal
from py_code_mode.testing.session_stores import SessionStoreContract, a_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIMEOUT = 60.0
FULL = os.environ.get("PY_CODE_MODE_FULL") == "1"


class FourMethodStore(SessionStore):
    """As somebody writes one who knows the four abstract methods only."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionRecord] = {}

    def save_session(self, session: SessionRecord) -> None:
        check_ids(session)
        self.sessions[session.session_id] = copy.deepcopy(session)

    def load_session(self, session_id: str) -> SessionRecord | None:
        check_ids(SessionRecord(session_id))
        return copy.deepcopy(self.sessions.get(session_id))

    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        check_workspace(workspace_id)
        found = [
            (session.updated_at, name)
            for name, session in self.sessions.items()
            if workspace_id is None or session.workspace_id == workspace_id
        ]
        return [name for _, name in sorted(found)]

    def delete_session(self, session_id: str) -> bool:
        check_ids(SessionRecord(session_id))
        return self.sessions.pop(session_id, None) is not None


class TestInMemorySessionStore(SessionStoreContract):
    def make_store(self, folder: Path) -> SessionStore:
        return InMemorySessionStore()


class TestFileSessionStore(SessionStoreContract):
    def make_store(self, folder: Path) -> SessionStore:
        return FileSessionStore(folder / "sessions")


class TestFileSessionStoreThatNeverWaits(SessionStoreContract):
    def make_store(self, folder: Path) -> SessionStore:
        return FileSessionStore(folder / "sessions", durability="process")


class TestFourMethodStore(SessionStoreContract):
    def make_store(self, folder: Path) -> SessionStore:
        return FourMethodStore()


class FreshFileStore(SessionStore):
    """A file store that is made anew for each call: nothing is known but the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def fresh(self) -> FileSessionStore:
        return FileSessionStore(self.folder)

    def save_session(self, session: SessionRecord) -> None:
        self.fresh.save_session(session)

    def load_session(self, session_id: str) -> SessionRecord | None:
        return self.fresh.load_session(session_id)

    def list_sessions(self, workspace_id: str | None = None) -> list[str]:
        return self.fresh.list_sessions(workspace_id)

    def delete_session(self, session_id: str) -> bool:
        return self.fresh.delete_session(session_id)

    def create_session(self, session: SessionRecord) -> None:
        self.fresh.create_session(session)

    def append_record(self, session_id: str, record: Any, *, updated_at: str) -> None:
        self.fresh.append_record(session_id, record, updated_at=updated_at)

    def end_session(self, session_id: str, *, updated_at: str) -> None:
        self.fresh.end_session(session_id, updated_at=updated_at)

    def list_page(self, *args: Any, **kwargs: Any) -> Any:
        return self.fresh.list_page(*args, **kwargs)


class TestFilesAlone(SessionStoreContract):
    def make_store(self, folder: Path) -> SessionStore:
        return FreshFileStore(folder)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def manager(base: Path) -> SessionManager:
    return SessionManager(FileSessionStore(base))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def turn_ids(manager: SessionManager | SessionStore, session_id: str = "s") -> list[str]:
    load = manager.load_session if isinstance(manager, SessionStore) else manager.get_session
    session = load(session_id)
    assert session is not None
    return [turn.turn_id for turn in session.turns]


# What is where.


def test_the_document_is_where_it_is_documented_and_complete(
    base: Path, manager: SessionManager
) -> None:
    for workspace, path in ((None, "s-1.json"), ("w", "w/s-1.json")):
        session = a_session()
        session.workspace_id = workspace
        manager.store.save_session(session)
        assert names(base) == sorted({"w", path} if workspace else {path})
        data = json.loads((base / path).read_text("utf-8"))
        assert {key: data[key] for key in session.to_dict()} == session.to_dict()
        assert stat.S_IMODE((base / path).stat().st_mode) == 0o600
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert stat.S_IMODE((base / "w").stat().st_mode) == 0o700


def test_a_started_session_is_a_complete_document(base: Path, manager: SessionManager) -> None:
    session = manager.start_session("w", "a", metadata={"x": 1})
    data = json.loads((base / "w" / f"{session.session_id}.json").read_text("utf-8"))
    assert SessionRecord.from_dict(data).metadata == {"x": 1}
    assert names(base) == ["w", f"w/{session.session_id}.json"]


def test_recorded_turns_are_beside_the_document_until_it_is_saved(
    base: Path, manager: SessionManager
) -> None:
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t"))
    assert names(base) == ["s.json", "s.json.tail"]
    session = manager.get_session("s")
    assert session is not None
    manager.store.save_session(session)
    assert names(base) == ["s.json"]
    assert turn_ids(manager) == ["t"]
    manager.record_turn("s", TurnRecord("u"))
    manager.end_session("s")
    assert names(base) == ["s.json"]
    data = json.loads((base / "s.json").read_text("utf-8"))
    assert [turn["turn_id"] for turn in data["turns"]] == ["t", "u"]


def test_a_document_that_another_program_wrote_is_read(base: Path) -> None:
    base.mkdir()
    data = {
        "session_id": "s",
        "turns": [{"turn_id": "t", "metadata": {"$set": [1]}}],
        "metadata": {"query": {"$float": "nan"}},
    }
    (base / "s.json").write_text(json.dumps(data, indent=2) + "\n\n", "utf-8")
    manager = SessionManager(FileSessionStore(base))
    for _ in range(2):
        session = manager.get_session("s")
        assert session is not None
        assert session.metadata["query"] == {"$float": "nan"}
        assert session.turns[0].metadata == {"$set": [1]}
        manager.store.save_session(session)
    manager.record_turn("s", TurnRecord("u"))
    assert turn_ids(manager) == ["t", "u"]


def test_a_document_changed_by_hand_is_read_once_its_checksum_is_gone(
    base: Path, manager: SessionManager
) -> None:
    manager.start_session(session_id="s", agent_id="before")
    path = base / "s.json"
    path.write_text(path.read_text("utf-8").replace("before", "after!"), "utf-8")
    with pytest.raises(CorruptRecordError, match="changed it by hand"):
        manager.get_session("s")
    data = json.loads(path.read_text("utf-8"))
    del data["crc"]
    path.write_text(json.dumps(data, indent=2), "utf-8")
    session = manager.get_session("s")
    assert session is not None
    assert session.agent_id == "after!"


def test_the_tail_becomes_part_of_the_document_when_it_is_long(
    base: Path, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "COMPACT_SIZE", 2000)
    manager.start_session("w", session_id="s")
    manager.store.save_session(SessionRecord("s", "w"))
    rounds = 0
    previous = -1
    for number in range(300):
        manager.record_turn("s", TurnRecord(f"t{number}"))
        size = (base / "w" / "s.json.tail").stat().st_size
        rounds += size < previous
        previous = size
        if number % 50 == 0:
            assert turn_ids(manager) == [f"t{n}" for n in range(number + 1)]
    assert 3 <= rounds <= 8  # the document doubles each time
    assert turn_ids(FileSessionStore(base)) == [f"t{number}" for number in range(300)]
    [meta] = manager.list_page().sessions
    assert meta.turn_count == 300


def test_two_stores_of_one_folder_see_what_the_other_did(base: Path) -> None:
    one, two = (SessionManager(FileSessionStore(base)) for _ in range(2))
    one.start_session(session_id="s")
    for number in range(10):
        (one, two)[number % 2].record_turn("s", TurnRecord(f"t{number}"))
        assert one.list_page() == two.list_page()
    assert turn_ids(one) == turn_ids(two) == [f"t{number}" for number in range(10)]
    one.store.save_session(SessionRecord("s", "w"))
    two.record_turn("s", TurnRecord("u"))
    assert turn_ids(one) == ["u"]
    two.end_session("s")
    with pytest.raises(SessionClosedError):
        one.record_turn("s", TurnRecord("late"))
    assert two.store.delete_session("s")
    with pytest.raises(SessionNotFoundError):
        one.record_turn("s", TurnRecord("late"))
    assert one.get_session("s") is None
    assert one.list_sessions() == []
    two.start_session(session_id="s")
    one.record_turn("s", TurnRecord("anew"))
    assert turn_ids(two) == ["anew"]
    assert one.list_page() == two.list_page()


def test_a_crash_between_document_and_tail_adds_nothing_twice(
    base: Path, manager: SessionManager
) -> None:
    manager.start_session(session_id="s")
    for number in range(3):
        manager.record_turn("s", TurnRecord(f"t{number}"))
    tail = (base / "s.json.tail").read_bytes()
    manager.end_session("s")
    (base / "s.json.tail").write_bytes(tail)  # as if the process had died before
    assert turn_ids(FileSessionStore(base)) == ["t0", "t1", "t2"]
    session = manager.get_session("s")
    assert session is not None
    del session.metadata["ended"]
    manager.store.save_session(session)
    (base / "s.json.tail").write_bytes(tail)
    again = SessionManager(FileSessionStore(base))
    again.record_turn("s", TurnRecord("t3"))
    assert turn_ids(again) == ["t0", "t1", "t2", "t3"]


def test_a_tail_that_a_crash_left_of_a_deleted_session_is_nobodys(
    base: Path, manager: SessionManager
) -> None:
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("old"))
    (base / "s.json").unlink()
    fresh = SessionManager(FileSessionStore(base))
    assert fresh.list_sessions() == []
    fresh.start_session(session_id="s")
    fresh.record_turn("s", TurnRecord("new"))
    assert turn_ids(fresh) == ["new"]


# Workspaces.


def test_a_crash_while_a_session_moves_leaves_one_session(
    base: Path, manager: SessionManager
) -> None:
    manager.start_session("w", session_id="s")
    manager.record_turn("s", TurnRecord("t"))
    before = (base / "w" / "s.json").read_bytes(), (base / "w" / "s.json.tail").read_bytes()
    session = manager.get_session("s")
    assert session is not None
    session.workspace_id = None
    manager.store.save_session(session)
    for path, content in zip(("w/s.json", "w/s.json.tail"), before, strict=True):
        (base / path).write_bytes(content)
    fresh = SessionManager(FileSessionStore(base))
    assert fresh.list_sessions() == ["s"]
    assert fresh.list_sessions("w") == []
    fresh.record_turn("s", TurnRecord("u"))
    assert turn_ids(fresh) == ["t", "u"]
    assert names(base) == ["s.json", "s.json.tail", "w"]


def test_one_id_in_two_workspaces_is_reported(base: Path, manager: SessionManager) -> None:
    manager.start_session("w", session_id="s")
    (base / "v").mkdir()
    (base / "v" / "s.json").write_bytes((base / "w" / "s.json").read_bytes())
    store = FileSessionStore(base)
    uses: list[Callable[[], object]] = [
        lambda: store.load_session("s"),
        lambda: store.delete_session("s"),
        lambda: store.save_session(SessionRecord("s")),
        lambda: store.create_session(SessionRecord("s")),
        lambda: store.append_record("s", TurnRecord("t"), updated_at=""),
    ]
    for use in uses:
        with pytest.raises(PersistenceError, match="two places"):
            use()
    assert store.list_sessions() == ["s"]
    [meta] = store.list_page().sessions
    assert "two places" in meta.problem
    (base / "v" / "s.json").unlink()
    assert store.load_session("s") is not None


# Ids and paths.


@pytest.mark.parametrize("make", [InMemorySessionStore, None], ids=["memory", "file"])
def test_ids_that_differ_in_case_only_are_refused(
    base: Path, make: Callable[[], SessionStore] | None
) -> None:
    manager = SessionManager(make() if make else FileSessionStore(base))
    manager.start_session(session_id="Name")
    with pytest.raises(SessionExistsError):
        manager.start_session(session_id="nAME")
    with pytest.raises(SessionExistsError):
        manager.store.save_session(SessionRecord("name"))
    assert manager.get_session("name") is None
    assert manager.list_sessions() == ["Name"]


def test_nothing_outside_is_read_written_or_removed(base: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.json"
    victim.write_text('{"session_id": "victim"}', "utf-8")
    store = FileSessionStore(base)
    store.save_session(SessionRecord("kept"))
    uses: list[Callable[[], object]] = [
        lambda: store.load_session("../victim"),
        lambda: store.delete_session("../victim"),
        lambda: store.save_session(SessionRecord("../victim")),
        lambda: store.save_session(SessionRecord("victim", "..")),
        lambda: store.load_session(str(victim.with_suffix(""))),
    ]
    for use in uses:
        with pytest.raises(InvalidName):
            use()
    assert victim.read_text("utf-8") == '{"session_id": "victim"}'
    assert names(tmp_path) == ["sessions", "sessions/kept.json", "victim.json"]


def test_a_link_is_not_followed_and_deleting_removes_the_link(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text('{"session_id": "s"}', "utf-8")
    base.mkdir()
    (base / "s.json").symlink_to(target)
    store = FileSessionStore(base)
    assert store.list_sessions() == []
    with pytest.raises(PersistenceError, match="link"):
        store.load_session("s")
    with pytest.raises(PersistenceError):
        store.append_record("s", TurnRecord("t"), updated_at="")
    assert store.delete_session("s")
    assert target.read_text("utf-8") == '{"session_id": "s"}'
    assert names(base) == []


def test_a_linked_tail_is_not_followed(base: Path, tmp_path: Path, manager: SessionManager) -> None:
    target = tmp_path / "target"
    target.write_text("theirs", "utf-8")
    manager.start_session(session_id="s")
    (base / "s.json.tail").symlink_to(target)
    with pytest.raises(PersistenceError, match="link"):
        manager.record_turn("s", TurnRecord("t"))
    assert target.read_text("utf-8") == "theirs"


def test_a_linked_workspace_is_none(base: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "s.json").write_text('{"session_id": "s"}', "utf-8")
    base.mkdir()
    (base / "w").symlink_to(outside)
    store = FileSessionStore(base)
    assert store.list_sessions() == store.list_sessions("w") == []
    assert store.load_session("s") is None
    with pytest.raises(PersistenceError):
        store.save_session(SessionRecord("new", "w"))
    assert names(outside) == ["s.json"]


def test_a_base_that_is_a_link_is_the_callers_own_choice(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    manager = SessionManager(FileSessionStore(tmp_path / "link"))
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t"))
    assert names(tmp_path / "real") == ["s.json", "s.json.tail"]


def test_pipes_and_folders_named_like_sessions_block_and_break_nothing(base: Path) -> None:
    base.mkdir()
    os.mkfifo(base / "pipe.json")
    (base / "folder.json").mkdir()
    store = FileSessionStore(base)
    store.save_session(SessionRecord("s"))
    assert store.list_sessions() == ["s"]
    for name in ("pipe", "folder"):
        assert store.load_session(name) is None
        assert store.delete_session(name) is False
        with pytest.raises(SessionExistsError):
            store.create_session(SessionRecord(name))


def test_what_is_not_a_session_is_not_listed(base: Path, manager: SessionManager) -> None:
    manager.start_session("w", session_id="s")
    for name in ("notes.txt", ".hidden.json", "bad name.json", "s.jsonl", "w/x.json.bak"):
        (base / name).write_text("{}", "utf-8")
    (base / ".blobs").mkdir()
    (base / ".blobs" / "b.json").write_text("{}", "utf-8")
    assert manager.list_sessions() == ["s"]
    assert FileSessionStore(base).list_sessions() == ["s"]


# What crashes and bad disks leave.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        b"[]",
        b"{",
        b"{}",
        b'{"session_id": 1}',
        b'{"session_id": "s", "turns": 1}',
        b'{"session_id": "s", "turns": [{}]}',
        b'{"session_id": "s", "turns": [[]]}',
        b'{"session_id": "s", "metadata": []}',
        b'{"session_id": "s"\xff}',
        b"[" * 100_000,
    ],
    ids=lambda content: ascii(content[:40]),
)
def test_a_broken_document_is_an_error_of_that_session_only(base: Path, content: bytes) -> None:
    store = FileSessionStore(base)
    store.save_session(SessionRecord("other", updated_at="1"))
    (base / "s.json").write_bytes(content)
    with pytest.raises(CorruptRecordError, match=r"s\.json"):
        store.load_session("s")
    assert store.list_sessions() == ["s", "other"] or content.startswith(b'{"session_id": "s"')
    assert store.load_session("other") is not None
    store.save_session(SessionRecord("s"))
    assert store.load_session("s") == SessionRecord("s")
    (base / "s.json").write_bytes(content)
    assert store.delete_session("s")


def test_a_newer_document_is_refused_and_left_alone(base: Path) -> None:
    base.mkdir()
    content = seal(b'{"schema_version":99,"seq":3,"session_id":"s","turns":{}}')
    (base / "s.json").write_bytes(content)
    store = FileSessionStore(base)
    uses: list[Callable[[], object]] = [
        lambda: store.load_session("s"),
        lambda: store.append_record("s", TurnRecord("t"), updated_at=""),
        lambda: store.end_session("s", updated_at=""),
    ]
    for use in uses:
        with pytest.raises(PersistenceError):
            use()
    with pytest.raises(SchemaVersionError, match="99"):
        FileSessionStore(base).load_session("s")
    assert (base / "s.json").read_bytes() == content


def test_every_cut_of_a_tail_leaves_the_turns_before_it(base: Path) -> None:
    manager = SessionManager(FileSessionStore(base, durability="process"))
    manager.start_session(session_id="s")
    ends = [0]
    for number in range(4):
        manager.record_turn("s", TurnRecord(f"t{number}", prompt="é\u2028"))
        ends.append((base / "s.json.tail").stat().st_size)
    whole = (base / "s.json.tail").read_bytes()
    for cut in range(len(whole) + 1):
        (base / "s.json.tail").write_bytes(whole[:cut])
        count = sum(end <= cut for end in ends) - 1
        kept = [f"t{number}" for number in range(count)]
        fresh = SessionManager(FileSessionStore(base, durability="process"))
        assert turn_ids(fresh) == kept
        fresh.record_turn("s", TurnRecord("new"))
        assert turn_ids(FileSessionStore(base)) == [*kept, "new"]


def test_no_flipped_bit_alters_a_session_silently(base: Path) -> None:
    manager = SessionManager(FileSessionStore(base, durability="process"))
    manager.start_session(session_id="s", agent_id="agent")
    manager.record_turn("s", TurnRecord("t0", prompt="p"))
    manager.record_turn("s", TurnRecord("t1", metadata={"a": 1}))
    session = manager.get_session("s")
    for name in ("s.json", "s.json.tail"):
        path = base / name
        whole = path.read_bytes()
        for at in range(len(whole)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << at % 8
            path.write_bytes(flipped)
            try:
                found = FileSessionStore(base).load_session("s")
            except PersistenceError as error:
                # Either is right: an error that names the file, or nothing altered.
                assert name in str(error)  # noqa: PT017
            else:
                assert found is not None
                found.extra.clear()  # the checksum's own key may have got another name
                assert found == session
        path.write_bytes(whole)


def test_a_line_missing_from_the_tail_is_an_error(base: Path, manager: SessionManager) -> None:
    manager.start_session(session_id="s")
    for number in range(3):
        manager.record_turn("s", TurnRecord(f"t{number}"))
    path = base / "s.json.tail"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    fresh = FileSessionStore(base)
    with pytest.raises(CorruptRecordError, match="2 is missing"):
        fresh.load_session("s")
    with pytest.raises(CorruptRecordError, match="2 is missing"):
        fresh.append_record("s", TurnRecord("t"), updated_at="")
    [meta] = fresh.list_page().sessions
    assert "missing" in meta.problem
    fresh.save_session(SessionRecord("s"))
    assert fresh.load_session("s") == SessionRecord("s")


@pytest.mark.parametrize(
    "filler", [b"\0" * 4096, b'{"seq":3', b"\xff\xfe"], ids=["nul", "json", "x"]
)
def test_garbage_after_the_last_line_is_cut(
    base: Path, manager: SessionManager, filler: bytes
) -> None:
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t"))
    with (base / "s.json.tail").open("ab") as tail:
        tail.write(filler)
    assert turn_ids(manager) == ["t"]
    manager.record_turn("s", TurnRecord("u"))
    assert turn_ids(manager) == ["t", "u"]
    assert b"\0" not in (base / "s.json.tail").read_bytes()


class Failing(FileSystem):
    """Fails the n-th call of a kind."""

    def __init__(self) -> None:
        self.fails: dict[str, OSError] = {}
        self.short = False

    def _check(self, kind: str) -> None:
        error = self.fails.pop(kind, None)
        if error is not None:
            raise error

    def write(self, file: int, data: bytes | memoryview) -> int:
        if self.short:
            self.short = False
            return super().write(file, memoryview(data)[: len(data) // 2])
        self._check("write")
        return super().write(file, data)

    def fsync(self, file: int) -> None:
        self._check("fsync")
        super().fsync(file)

    def fdatasync(self, file: int) -> None:
        self._check("fdatasync")
        super().fdatasync(file)

    def rename(self, old: str, new: str, *, folder: int, to_folder: int | None = None) -> None:
        self._check("rename")
        super().rename(old, new, folder=folder, to_folder=to_folder)

    def truncate(self, file: int, size: int) -> None:
        self._check("truncate")
        super().truncate(file, size)


def test_a_write_in_two_parts_and_an_interrupted_one_are_one_line(base: Path) -> None:
    files = Failing()
    manager = SessionManager(FileSessionStore(base, files=files))
    manager.start_session(session_id="s")
    for number in range(4):
        files.short = True
        files.fails["write"] = InterruptedError()
        manager.record_turn("s", TurnRecord(f"t{number}"))
    assert turn_ids(FileSessionStore(base)) == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("truncate_fails", [False, True])
def test_a_turn_that_finds_no_room_leaves_nothing_behind(
    base: Path, code: int, truncate_fails: bool
) -> None:
    files = Failing()
    manager = SessionManager(FileSessionStore(base, files=files))
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t0"))
    files.short = True
    files.fails["write"] = OSError(code, os.strerror(code))
    if truncate_fails:
        files.fails["truncate"] = OSError(errno.EIO, "worse")
    with pytest.raises(JournalWriteError) as caught:
        manager.record_turn("s", TurnRecord("lost"))
    assert not caught.value.is_final
    assert turn_ids(manager) == turn_ids(FileSessionStore(base)) == ["t0"]
    manager.record_turn("s", TurnRecord("t1"))
    assert turn_ids(manager) == turn_ids(FileSessionStore(base)) == ["t0", "t1"]


@pytest.mark.parametrize("kind", ["write", "fsync", "rename"])
def test_a_document_that_cannot_be_written_leaves_the_old_one(base: Path, kind: str) -> None:
    files = Failing()
    # nothing is synced later, by another thread, which could meet the failure instead
    manager = SessionManager(FileSessionStore(base, files=files, durability="power"))
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("t0"))
    for use in (
        lambda: manager.store.save_session(SessionRecord("s")),
        lambda: manager.end_session("s"),
        lambda: manager.start_session(session_id="new"),
    ):
        files.fails[kind] = OSError(errno.ENOSPC, "no space left")
        with pytest.raises(JournalWriteError):
            use()
        assert turn_ids(manager) == ["t0"]
        assert manager.list_sessions() == ["s"]
        assert names(base) == ["s.json", "s.json.tail"]
    manager.record_turn("s", TurnRecord("t1"))
    assert turn_ids(manager) == ["t0", "t1"]


def test_compaction_that_fails_costs_no_turn(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_store, "COMPACT_SIZE", 1000)
    files = Failing()
    manager = SessionManager(FileSessionStore(base, files=files))
    manager.start_session(session_id="s")
    for number in range(40):
        files.fails = {"fsync": OSError(errno.ENOSPC, "no space left")}
        manager.record_turn("s", TurnRecord(f"t{number}"))
    files.fails = {}
    assert turn_ids(manager) == [f"t{number}" for number in range(40)]


def test_a_sync_that_fails_stops_the_session_until_it_is_saved(base: Path) -> None:
    files = Failing()
    store = FileSessionStore(base, files=files)
    manager = SessionManager(store)
    manager.start_session(session_id="s")
    files.fails["fdatasync"] = OSError(errno.EIO, "I/O error")
    manager.record_turn("s", TurnRecord("t0"))
    with pytest.raises(JournalWriteError) as caught:
        store.flush()
    assert caught.value.is_final
    for _ in range(2):
        with pytest.raises(JournalWriteError, match="I/O error"):
            manager.record_turn("s", TurnRecord("t1"))
    session = manager.get_session("s")
    assert session is not None
    store.save_session(session)
    manager.record_turn("s", TurnRecord("t1"))
    store.flush()
    assert turn_ids(manager) == ["t0", "t1"]


def test_what_killed_writers_left_is_removed(base: Path, manager: SessionManager) -> None:
    base.mkdir()
    (base / ".new-0123456789abcdef").write_bytes(b"{")
    manager.start_session(session_id="s")
    assert names(base) == ["s.json"]


def test_a_full_disk_says_so_and_is_survived(base: Path) -> None:
    code = """
import resource, signal, sys
from py_code_mode.errors import JournalWriteError
from py_code_mode.journal import FileSessionStore, SessionManager, TurnRecord
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
manager = SessionManager(FileSessionStore(sys.argv[1]))
manager.start_session(session_id="s")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
kept = 0
try:
    while True:
        manager.record_turn("s", TurnRecord(f"t{kept}", prompt="x" * 100))
        kept += 1
except JournalWriteError as error:
    assert not error.is_final
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
manager.record_turn("s", TurnRecord("after"))
print(kept)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    kept = int(done.stdout)
    assert kept > 5
    wanted = [f"t{number}" for number in range(kept)] + ["after"]
    assert turn_ids(FileSessionStore(base)) == wanted


# Many at once.

RECORD = """
import sys
from py_code_mode.journal import FileSessionStore, SessionManager, TurnRecord
manager = SessionManager(FileSessionStore(sys.argv[1]))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    manager.record_turn("s", TurnRecord(f"{sys.argv[2]}-{number}"))
    print(number, flush=True)
"""


def recorder(base: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RECORD, str(base), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("workspace", [None, "w"])
def test_processes_lose_no_turn(base: Path, workspace: str | None) -> None:
    manager = SessionManager(FileSessionStore(base))
    manager.start_session(workspace, session_id="s")
    processes = [recorder(base, str(number), 40) for number in range(4)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for number in range(40):
        manager.record_turn("s", TurnRecord(f"here-{number}"))
        found = turn_ids(manager)  # a reader meanwhile sees whole turns only
        assert f"here-{number}" in found
    for process in processes:
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0
    found = turn_ids(manager)
    assert len(found) == len(set(found)) == 200
    [meta] = manager.list_page().sessions
    assert meta.turn_count == 200


def test_a_killed_writer_costs_no_acknowledged_turn(base: Path) -> None:
    manager = SessionManager(FileSessionStore(base))
    manager.start_session(session_id="s")
    acknowledged: list[str] = []
    for kill in range(200 if FULL else 12):
        process = recorder(base, str(kill), 1_000_000)
        assert process.stdin
        assert process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(kill * 7 % 40)]
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
        acknowledged += [f"{kill}-{line.strip()}" for line in lines if line.endswith("\n")]
        process.stdin.close()
        process.stdout.close()
        process.wait(TIMEOUT)
        found = turn_ids(manager)
        assert len(found) == len(set(found))
        missing = set(acknowledged).difference(found)
        assert not missing
        assert len(found) - len(acknowledged) <= kill + 1  # one each may be under way


def test_starting_one_session_many_times_succeeds_once(base: Path) -> None:
    def start(number: int) -> bool:
        manager = SessionManager(FileSessionStore(base))
        try:
            manager.start_session(f"w{number % 3}", session_id="s")
        except SessionExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(16), timeout=TIMEOUT)) == 1
    assert SessionManager(FileSessionStore(base)).list_sessions() == ["s"]


def test_readers_see_every_saved_session_whole(base: Path) -> None:
    store = FileSessionStore(base)
    store.save_session(SessionRecord("s"))
    over = threading.Event()

    def read(mine: FileSessionStore) -> int:
        seen = count = 0
        while not over.is_set() or not count:
            found = turn_ids(mine)
            assert found == [str(number) for number in range(len(found))]
            assert len(found) >= seen
            seen = len(found)
            assert mine.list_sessions() == ["s"]
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, reader) for reader in (store, FileSessionStore(base))]
        try:
            for number in range(60):
                if number % 4:
                    store.append_record("s", TurnRecord(str(number)), updated_at=f"{number:03}")
                    continue
                session = store.load_session("s")
                assert session is not None
                session.turns.append(TurnRecord(str(number)))
                store.save_session(session)
        finally:
            over.set()
        assert all(reader.result(TIMEOUT) for reader in readers)


def test_lists_meanwhile_have_all_that_stay(base: Path) -> None:
    store = FileSessionStore(base, durability="process")
    for number in range(20):
        store.save_session(SessionRecord(f"stays{number}", "w"))
    over = threading.Event()

    def come_and_go(thread: int) -> None:
        for number in range(100):
            name = f"goes{thread}.{number}"
            store.save_session(SessionRecord(name, f"v{thread}"))
            store.append_record(name, TurnRecord("t"), updated_at=f"{number}")
            assert store.delete_session(name)

    def look(mine: FileSessionStore) -> int:
        count = 0
        while not over.is_set() or not count:
            assert len(mine.list_sessions("w")) == 20
            rows = [meta for meta in mine.list_page(500).sessions if meta.workspace_id == "w"]
            assert len(rows) == 20
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        lookers = [pool.submit(look, one) for one in (store, FileSessionStore(base))]
        try:
            for done in [pool.submit(come_and_go, thread) for thread in range(2)]:
                done.result(TIMEOUT)
        finally:
            over.set()
        assert all(looker.result(TIMEOUT) for looker in lookers)
    assert len(store.list_sessions()) == 20


def test_a_folder_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = FileSessionStore(tmp_path / "file")
    uses: list[Callable[[], object]] = [
        store.list_sessions,
        store.list_page,
        lambda: store.load_session("s"),
        lambda: store.save_session(SessionRecord("s")),
    ]
    for use in uses:
        with pytest.raises(PersistenceError, match="file"):
            use()


def test_a_forked_child_may_use_the_store(base: Path, manager: SessionManager) -> None:
    manager.start_session(session_id="s")
    manager.record_turn("s", TurnRecord("parent"))
    child = os.fork()
    if child == 0:
        try:
            manager.record_turn("s", TurnRecord("child"))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    manager.record_turn("s", TurnRecord("after"))
    assert turn_ids(manager) == ["parent", "child", "after"]


# Against a model.


class Stores(RuleBasedStateMachine):
    """Memory and files, used alike, agree with a dict of sessions."""

    folder: Path

    sessions = Bundle("sessions")

    @initialize()
    def begin(self) -> None:
        machine = type(self)
        base = machine.folder / str(len(list(machine.folder.iterdir())))
        base.mkdir()
        self.base = base
        self.stores: list[SessionStore] = [
            InMemorySessionStore(),
            FileSessionStore(base, durability="process"),
            FourMethodStore(),
        ]
        self.model: dict[str, SessionRecord] = {}
        self.clock = 0

    def time(self) -> str:
        self.clock += 1
        return f"{self.clock:06}"

    def both(self, use: Callable[[SessionStore], object]) -> object:
        found: list[object] = []
        for store in self.stores:
            try:
                found.append(use(store))
            except (SessionExistsError, SessionNotFoundError, SessionClosedError) as error:
                found.append(type(error))
        assert all(one == found[0] for one in found), found
        return found[0]

    @rule(target=sessions, name=st.integers(0, 5), workspace=st.sampled_from([None, "v", "w"]))
    def create(self, name: int, workspace: str | None) -> str:
        session = SessionRecord(f"s{name}", workspace, updated_at=self.time())
        found = self.both(lambda store: store.create_session(session))
        if session.session_id in self.model:
            assert found is SessionExistsError
        else:
            self.model[session.session_id] = session
        return session.session_id

    @rule(name=sessions, text=st.text(st.characters(), max_size=5))
    def record(self, name: str, text: str) -> None:
        now = self.time()
        turn = TurnRecord(f"t{now}", prompt=text)
        found = self.both(lambda store: store.append_record(name, turn, updated_at=now))
        session = self.model.get(name)
        if session is None:
            assert found is SessionNotFoundError
        elif "ended" in session.metadata:
            assert found is SessionClosedError
        else:
            session.turns.append(turn)
            session.updated_at = now

    @rule(name=sessions)
    def move_on(self, name: str) -> None:
        now = self.time()
        part = AgentTransitionRecord(None, now)
        found = self.both(lambda store: store.append_record(name, part, updated_at=now))
        if found is None:
            self.model[name].agent_transitions.append(part)
            self.model[name].updated_at = now

    @rule(name=sessions, workspace=st.sampled_from([None, "v", "w"]))
    def save(self, name: str, workspace: str | None) -> None:
        session = copy.deepcopy(self.model.get(name)) or SessionRecord(name)
        session.workspace_id, session.updated_at = workspace, self.time()
        session.turns = session.turns[1:]
        session.metadata.pop("ended", None)
        self.both(lambda store: store.save_session(session))
        self.model[name] = session

    @rule(name=sessions)
    def end(self, name: str) -> None:
        now = self.time()
        found = self.both(lambda store: store.end_session(name, updated_at=now))
        session = self.model.get(name)
        assert (found is SessionNotFoundError) == (session is None)
        if session is not None and "ended" not in session.metadata:
            session.metadata["ended"] = True
            session.updated_at = now

    @rule(name=consumes(sessions))
    def delete(self, name: str) -> None:
        found = self.both(lambda store: store.delete_session(name))
        assert found == (self.model.pop(name, None) is not None)

    @rule()
    def begin_anew(self) -> None:
        self.stores[1] = FileSessionStore(self.base, durability="process")

    @rule(name=sessions, cut=st.integers(1, 30))
    def crash(self, name: str, cut: int) -> None:
        """A part of another line is left at the end of the tail."""
        for tail in self.base.rglob(f"{name}.json.tail"):
            with tail.open("ab") as file:
                file.write(seal(b'{"seq":1,"ts":"","record_type":"turn"}')[:cut])

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for name in [f"s{number}" for number in range(6)]:
            assert self.both(lambda store: store.load_session(name)) == self.model.get(name)  # noqa: B023
        for workspace in (None, "v", "w"):
            wanted = sorted(
                (session.updated_at, name)
                for name, session in self.model.items()
                if workspace is None or session.workspace_id == workspace
            )
            listed = self.both(lambda store: store.list_sessions(workspace))  # noqa: B023
            assert listed == [name for _, name in wanted]
        self.both(lambda store: store.list_page(3))


def test_all_stores_agree_with_a_model(tmp_path: Path) -> None:
    class Here(Stores):
        folder = tmp_path

    run_state_machine_as_test(
        Here,
        settings=settings(max_examples=200 if FULL else 30, stateful_step_count=40, database=None),
    )
