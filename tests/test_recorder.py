"""The recorder: what happens while the disk is full, and to who is cancelled in between."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pandas as pd
import pytest

from py_code_mode import ConfigError, FileStorage, InProcessExecutor, MemoryStorage, Session
from py_code_mode import recorder as recorder_module
from py_code_mode.errors import InvalidRequirement, PersistenceError
from py_code_mode.journal.chunks import Transcript
from py_code_mode.journal.lineage import validate_acyclic
from py_code_mode.journal.persisted import load_session

from . import session_executors
from .session_executors import file_of, journal_of, sandboxed, with_copies
from .zygotes import executor_of, sandbox_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
storage = session_executors.storage


class Disk:
    """A disk that is full, or not."""

    is_full = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    from py_code_mode.stores.files import FileSystem

    disk, write = Disk(), FileSystem.write

    def writes(files: FileSystem, file: int, data: bytes | memoryview) -> int:
        if disk.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(files, file, data)

    monkeypatch.setattr(FileSystem, "write", writes)
    return disk


def with_tools(session: Session, disk: Disk) -> list[int]:
    """Give code a tool that fills the disk, and one that counts its calls."""
    calls: list[int] = []

    def fill() -> object:
        """Fill the disk."""
        disk.is_full = True
        return pd.DataFrame({"a": range(5000)})

    def count() -> int:
        """Count."""
        calls.append(1)
        return len(calls)

    session.add_tool(fill)
    session.add_tool(count)
    return calls


@contextmanager
def refused() -> Generator[None]:
    with pytest.raises(PersistenceError, match="flush"):
        yield


async def test_what_a_full_disk_kept_off_the_record_is_written_first_when_there_is_room(
    storage: FileStorage, disk: Disk
) -> None:
    async with Session(storage) as session:
        calls = with_tools(session, disk)
        result = await session.run("table = tools.fill(); n = tools.count(); print('done')")
        assert (result.is_ok, result.recorded) == (True, False)
        assert any("flush" in note for note in result.notes)
        with refused():
            await session.run("n = 100")
        with refused():
            await session.put("given", 1)
        with refused():
            await session.reset()
        with pytest.raises(PersistenceError):
            await session.flush()
        disk.is_full = False
        result = await session.run("n")  # which tries it first
        assert (result.value, result.recorded) == (1, True)
    journal = journal_of(storage, session)
    assert [(run.run_id, run.status) for run in journal.runs] == [(1, "ok"), (3, "ok")]
    assert [(call.tool_name, call.status) for call in journal.calls] == [
        ("tools.fill", "success"),
        ("tools.count", "success"),
    ]
    assert journal.runs[0].stdout == "done\n"
    again = Session.resume(session.id, storage=storage, mode="replay")
    async with again:
        assert (await again.run("n, len(table)")).value == (1, 5000)
    assert calls == [1]


async def test_a_change_that_could_not_be_recorded_is_an_error_and_recorded_later(
    storage: FileStorage, disk: Disk
) -> None:
    async with Session(storage) as session:
        await session.run("x = 1")
        for change in (session.put("given", 5), session.reset()):
            disk.is_full = True
            with pytest.raises(PersistenceError):
                await change
            disk.is_full = False
            await session.flush()
        assert (await session.run("given, 'x' in globals()")).value == (5, False)
    assert [event.kind for event in journal_of(storage, session).events] == ["put", "reset"]


@with_copies
async def test_copies_are_not_made_nor_gone_back_to_without_a_record(
    storage: FileStorage, disk: Disk
) -> None:
    async with Session(storage, sandboxed()) as session:
        with_tools(session, disk)
        with await session.checkpoint() as checkpoint:
            await session.run("x = 1; tools.fill(); None")
            with refused():
                await session.rollback(checkpoint)
            with refused():
                await session.checkpoint()
            with refused():
                await session.fork()
            disk.is_full = False
            await session.rollback(checkpoint)
        assert not (await session.run("'x' in globals()")).value
    assert [run.run_id for run in journal_of(storage, session).live_line] == [2]


async def test_calls_are_refused_where_too_much_waits_to_be_recorded(
    storage: FileStorage, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 7)
    async with Session(storage) as session:
        calls = with_tools(session, disk)
        result = await session.run("tools.fill()\nfor _ in range(100): tools.count()")
        assert not result.is_ok
        assert calls == [1, 1, 1]
        disk.is_full = False
    assert len(journal_of(storage, session).calls) == 4


async def test_a_session_that_is_closed_while_the_disk_is_full_counts_as_open(
    storage: FileStorage, disk: Disk
) -> None:
    async with Session(storage) as session:
        with_tools(session, disk)
        await session.run("x = 1")
        await session.run("x = 2; tools.fill(); None")
    disk.is_full = False
    journal = journal_of(storage, session)
    assert not journal.is_closed
    assert [run.status for run in journal.runs] == ["ok", "crashed"]


# -- cancelled in between


@with_copies
async def test_a_rollback_that_is_cancelled_when_it_is_done_is_on_record(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # was: the variables were those of the checkpoint, and nobody could tell
    async with Session(storage, sandboxed()) as session:
        await session.run("x = 1")
        with await session.checkpoint() as checkpoint:
            await session.run("x = 2")
            sandbox = sandbox_of(session)
            clear = sandbox.clear

            async def clear_and_cancel(*args: Any, **kwargs: Any) -> None:
                task.cancel()
                await clear(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(sandbox, "clear", clear_and_cancel)
                task = asyncio.ensure_future(session.rollback(checkpoint))
                with anyio.fail_after(TIMEOUT), pytest.raises(asyncio.CancelledError):
                    await task
        assert (await session.run("x")).value == 1
    assert [run.run_id for run in journal_of(storage, session).live_line] == [1, 3]


@with_copies
async def test_a_checkpoint_that_nobody_gets_is_let_go_of(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Session(storage, sandboxed()) as session:
        await session.run("x = 1")

        async def cancelled(*_: object, **__: object) -> None:
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(recorder_module.Recorder, "tell", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await session.checkpoint()
        assert not executor_of(session)._checkpoints


async def test_a_cancelled_change_of_the_dependencies_is_on_record_and_a_refused_one_is_not(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Session(storage) as session:
        deps = session._open_namespaces().deps  # pyright: ignore[reportPrivateUsage]

        async def added(*_: object) -> None:
            task.cancel()
            await anyio.sleep_forever()

        with monkeypatch.context() as patch:
            patch.setattr(type(deps), "add", added)
            task = asyncio.ensure_future(session.add_dep("six"))
            with anyio.fail_after(TIMEOUT), pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(InvalidRequirement):
            await session.add_dep("not a name!")
    (event,) = journal_of(storage, session).events
    assert (event.kind, event.data) == ("dep", {"op": "add", "package": "six"})


# -- what takes out what must not be written


@pytest.mark.parametrize(
    "given", [None, 5, {"code": 7}, {1: 2}, {"run_id": 9}], ids=["none", "int", "bad", "keys", "id"]
)
async def test_a_redact_that_gives_no_record_is_an_error_of_the_record(
    storage: FileStorage, given: Any
) -> None:
    is_wrong = False

    def redact(record: dict[str, Any]) -> Any:
        if not is_wrong or record["record_type"] != "run" or "status" not in record:
            return record
        changes: Any = given
        return {**record, **changes} if isinstance(given, dict) else changes

    async with Session(storage, redact=redact) as session:
        is_wrong = True
        result = await session.run("x = 1")
        assert (result.is_ok, result.recorded) == (True, False)
        assert any("redact" in note for note in result.notes)
        with refused():
            await session.run("x = 2")
        is_wrong = False
        assert (await session.run("x")).value == 1
    assert [run.status for run in journal_of(storage, session).runs] == ["ok", "ok"]


async def test_a_redact_that_never_gives_a_record_keeps_the_session_from_starting(
    storage: FileStorage,
) -> None:

    def nothing(_: dict[str, Any]) -> Any:
        return None

    with pytest.raises(PersistenceError, match="redact gave NoneType"):
        await Session(storage, redact=nothing).start()
    no_function: Any = 5
    with pytest.raises(TypeError, match="redact"):
        Session(storage, redact=no_function)


async def test_who_gives_a_redact_wants_a_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record"):
        Session(MemoryStorage(), redact=dict)
    async with Session(FileStorage(tmp_path / "new"), redact=dict) as session:
        assert (await session.run("1")).recorded


# -- where there is no workspace yet


async def test_a_session_tells_that_it_is_not_recorded_once_there_is_something_to_keep(
    tmp_path: Path,
) -> None:
    async with Session(FileStorage(tmp_path / "new")) as session:
        assert (await session.run("1")).notes == ()
        result = await session.run("artifacts.save('kept', 1)")
        assert not result.recorded
        assert any("record=True" in note for note in result.notes)
        assert (await session.run("1")).notes == ()


async def test_a_session_is_recorded_where_its_workspace_came_before_its_first_run(
    tmp_path: Path,
) -> None:
    storage = FileStorage(tmp_path / "new")
    async with Session(storage) as session:
        await session.save_artifact("kept", 1)
        assert (await session.run("x = 1")).recorded
    async with Session.resume(session.id, storage=storage) as again:
        assert (await again.run("x")).value == 1


# -- where a conversation comes from


@pytest.mark.parametrize("is_on_record", [True, False])
async def test_the_parents_of_a_session_that_takes_over_a_conversation_are_on_record(
    storage: FileStorage, is_on_record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PY_CODE_MODE_HOME", str(storage.base_path))
    first = Session.resume(
        Transcript.from_user_message("hello"), storage=storage, mode="transcript"
    )
    async with first:
        await first.run("1")
    before = load_session(first.id, path=file_of(storage, first))
    user = before.to_transcript() if is_on_record else before.to_resumable_pair()[0]
    async with Session.resume(user, storage=storage, mode="transcript") as second:
        await second.run("1")
    child = load_session(second.id).header
    assert child.parent_session_ids == (before.header.id,)
    validate_acyclic({one.id: one for one in (before.header, child)})


async def test_large_values_that_could_not_be_written_are_not_said_to_be_on_record(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch() -> object:
        """Fetch."""
        return pd.DataFrame({"a": range(5000)})

    def full(*_: object, **__: object) -> object:
        raise PersistenceError("the disk is full")

    async with Session(storage, InProcessExecutor()) as session:
        session.add_tool(fetch)
        with monkeypatch.context() as patch:
            patch.setattr("py_code_mode.journal.journal.SessionJournal.put_blob", full)
            assert not (await session.run("n = len(tools.fetch())")).recorded
    async with Session.resume(session.id, storage=storage, mode="replay") as again:
        assert (await again.run("n")).value == 5000
