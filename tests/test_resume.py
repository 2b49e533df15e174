"""Coming back: what is a divergence, what is told, and what a resume that fails leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode import FileStorage, Session
from py_code_mode import recorder as recorder_module
from py_code_mode.errors import InvalidCall, ReplayDivergenceError, StateNotTrusted
from py_code_mode.journal.chunks import Transcript
from py_code_mode.journal.loader import read_journal
from py_code_mode.journal.upkeep import check_sessions

from . import session_executors
from .session_executors import file_of, journal_of, sandboxed, with_copies

if TYPE_CHECKING:
    from .session_executors import NewExecutor

pytestmark = pytest.mark.anyio

new_executor, storage = session_executors.new_executor, session_executors.storage


async def test_fewer_calls_than_recorded_are_a_divergence(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give() -> int:
        """Give."""
        return 1

    async with Session(storage) as session:
        session.add_tool(give)
        await session.run("import os\nif not os.environ.get('PCM_TEST_MODE'): tools.give()")
    monkeypatch.setenv("PCM_TEST_MODE", "1")
    again = Session.resume(session.id, storage=storage, mode="replay")
    with pytest.raises(ReplayDivergenceError, match=r"did not call tools\.give"):
        await again.start()


@pytest.mark.parametrize("mode", ["restore", "replay"])
async def test_a_put_that_was_too_large_for_the_record_is_told_of(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_KEPT", 10_000)
    async with Session(storage) as session:
        await session.put("given", "y" * 50_000)
        await session.put("again", "y" * 50_000)
        await session.run("x = 1")
        await session.put("again", 1, overwrite=True)
    async with Session.resume(session.id, storage=storage, mode=mode) as resumed:
        assert resumed.resumed is not None
        assert set(resumed.resumed.lost) == {"given"}
        result = await resumed.run("x, again, 'given' in globals()")
        assert result.value == (1, 1, mode == "restore")
        assert any("given did not come back" in note for note in result.notes)


async def test_a_variable_that_a_restore_lost_is_lost_in_a_later_replay(
    storage: FileStorage, new_executor: NewExecutor
) -> None:
    async with Session(storage, new_executor()) as session:
        await session.run("found = (n for n in range(3)); x = next(found)")
    code = "x = next(found) if 'found' in globals() else -1\nx"
    for _ in range(2):  # it is told of once
        async with Session.resume(session.id, storage=storage, executor=new_executor()) as again:
            assert again.resumed is not None
            assert set(again.resumed.lost) <= {"found"}
            assert (await again.run(code)).value == -1
    again = Session.resume(session.id, storage=storage, executor=new_executor(), mode="replay")
    async with again:
        result = await again.run("x, 'found' in globals()")
        assert result.value == (-1, False)
    journal = journal_of(storage, session)
    assert [event.kind for event in journal.events].count("lost") == 1


async def test_what_was_lost_and_made_again_is_there_after_a_replay(storage: FileStorage) -> None:
    async with Session(storage) as session:
        await session.run("found = (n for n in range(3))")
    async with Session.resume(session.id, storage=storage) as again:
        await again.run("found = [5]")
    async with Session.resume(session.id, storage=storage, mode="replay") as again:
        assert (await again.run("found")).value == [5]


@with_copies
async def test_a_resume_that_is_refused_or_diverges_leaves_the_record_as_it_was(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Session(storage, sandboxed()) as session:
        await session.run("import os\nif os.environ.get('PCM_TEST_MODE'): 1/0\nx = 1")
    before = file_of(storage, session)
    content = before.read_bytes()
    with pytest.raises(StateNotTrusted):
        await Session.resume(session.id, storage=storage).start()
    assert (file_of(storage, session), before.read_bytes()) == (before, content)
    monkeypatch.setenv("PCM_TEST_MODE", "1")
    again = Session.resume(session.id, storage=storage, mode="replay", trusted=True)
    with pytest.raises(ReplayDivergenceError):
        await again.start()
    monkeypatch.delenv("PCM_TEST_MODE")
    assert (file_of(storage, session), before.read_bytes()) == (before, content)
    async with Session.resume(session.id, storage=storage, executor=sandboxed()) as again:
        assert (await again.run("x")).value == 1
    journal = read_journal(before)
    assert [event.kind for event in journal.events] == ["resume"]
    assert list(check_sessions(storage.base_path / "sessions")) == []


@pytest.mark.parametrize(
    "options", [{"mode": "zz"}, {"on_ambiguous": "zz"}], ids=["mode", "on_ambiguous"]
)
def test_words_that_mean_nothing_are_refused(storage: FileStorage, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: must be one of"):
        Session.resume("some-id", storage=storage, **options)


@pytest.mark.parametrize("mode", ["restore", "transcript"])
def test_what_is_no_session_is_refused(storage: FileStorage, mode: Any) -> None:
    number: Any = 5
    with pytest.raises(InvalidCall, match="session must be"):
        Session.resume(number, storage=storage, mode=mode)
    with pytest.raises(InvalidCall, match="takes"):
        Session.resume("x" if mode == "transcript" else Transcript(), storage=storage, mode=mode)
