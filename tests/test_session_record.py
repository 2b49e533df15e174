"""A session's record: what is written, when runs are refused, and how a session comes back."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pandas as pd
import pytest

from py_code_mode import (
    ConfigError,
    FileStorage,
    InProcessExecutor,
    MemoryStorage,
    Policy,
    Session,
    SessionClosed,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode import recorder as recorder_module
from py_code_mode.errors import (
    PersistenceError,
    ReplayDivergenceError,
    SessionLockedError,
    SessionNotFoundError,
    StateNotTrusted,
    WorkspaceNotTrusted,
)
from py_code_mode.execution.executor import RunOutcome
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.records import Event
from py_code_mode.journal.upkeep import check_sessions, fork_session
from py_code_mode.testing import FakeExecutor

from . import session_executors
from .session_executors import (
    NewExecutor,
    cancel_at_first_output,
    journal_of,
    plain,
    sandboxed,
    value,
    with_copies,
)
from .zygotes import executor_of

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.execution.executor import Executor

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
new_executor, storage = session_executors.new_executor, session_executors.storage


def resume(storage: FileStorage, session: Session, executor: Executor, **options: Any) -> Session:
    return Session.resume(session.id, storage=storage, executor=executor, **options)


# -- what is written


async def test_runs_are_on_record(storage: FileStorage, new_executor: NewExecutor) -> None:
    async with Session(storage, new_executor()) as session:
        first = await session.run("x = 1\nprint('hello')\nx + 1")
        await session.run("import sys; print('oops', file=sys.stderr); 1 / 0")
        await session.run("import pandas as pd; df = pd.DataFrame({'a': range(5000)})\ndf")
        assert first.recorded
    journal = journal_of(storage, session)
    assert journal.is_closed
    one, two, three = journal.runs
    assert (one.code, one.value, one.stdout, one.status) == (
        "x = 1\nprint('hello')\nx + 1",
        2,
        "hello\n",
        "ok",
    )
    assert (two.status, two.error and two.error.type, two.stderr) == (
        "error",
        "ZeroDivisionError",
        "oops\n",
    )
    assert three.outcome is not None
    assert three.outcome.value["$snapshot"]["shape"] == [5000, 1]
    assert three.outcome.handles["df"]["shape"] == [5000, 1]


async def test_calls_and_what_happens_between_runs_are_on_record(storage: FileStorage) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    async with Session(storage) as session:
        session.add_tool(add)
        await session.put("given", [1, 2])
        await session.run("tools.add(a=1, b=2)")
        await session.run("try: tools.none()\nexcept Exception: pass")
        await session.reset()
    journal = journal_of(storage, session)
    good, bad = journal.calls
    assert (good.tool_name, good.run_id, good.result, good.status) == ("tools.add", 1, 3, "success")
    assert (bad.tool_name, bad.status, bad.error["type"]) == ("tools.none", "error", "ToolNotFound")
    assert [event.kind for event in journal.events] == ["put", "reset"]
    assert journal.live_line == ()


async def test_intent_is_written_before_the_run_executes(storage: FileStorage) -> None:
    async with Session(storage) as session:
        seen: list[int] = []

        def look() -> None:
            seen.extend(run.run_id for run in journal_of(storage, session).runs)

        session.add_tool(look)
        await session.run("tools.look()")
        assert seen == [1]


async def test_a_cancelled_run_is_on_record(storage: FileStorage) -> None:
    async with Session(storage, plain()) as session:
        with anyio.fail_after(TIMEOUT):
            await cancel_at_first_output(session, "print(1, flush=True)\nwhile True: pass")
        await session.run("1")
        assert [run.status for run in journal_of(storage, session).runs] == ["cancelled", "ok"]


async def test_redacted_texts_reach_no_disk(storage: FileStorage) -> None:
    def redact(record: dict[str, Any]) -> dict[str, Any]:
        cleaned = json.dumps(record).replace("hunter2", "***")
        return dict(json.loads(cleaned))

    async with Session(storage, redact=redact) as session:
        await session.run("password = 'hunter2'; print(password); password")
    for path in (storage.base_path / "sessions").rglob("*.jsonl"):
        assert b"hunter2" not in path.read_bytes()
        assert b"***" in path.read_bytes()


async def test_only_sessions_with_a_folder_are_recorded(storage: FileStorage) -> None:
    async with Session(MemoryStorage()) as session:
        assert not (await session.run("1")).recorded
    async with Session(storage, record=False) as session:
        assert not (await session.run("1")).recorded
    assert not (storage.base_path / "sessions").exists()
    with pytest.raises(ConfigError):
        Session(MemoryStorage(), record=True)


async def test_a_session_in_which_nothing_happened_leaves_nothing(storage: FileStorage) -> None:
    async with Session(storage):
        pass
    assert list((storage.base_path / "sessions").glob("*.jsonl*")) == []


async def test_a_session_makes_no_workspace_unless_told(tmp_path: Path) -> None:
    async with Session(FileStorage(tmp_path / "none")) as session:
        assert not (await session.run("1")).recorded
    assert not (tmp_path / "none").exists()
    async with Session(FileStorage(tmp_path / "none"), record=True) as session:
        assert (await session.run("1")).recorded


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
async def test_a_folder_that_cannot_be_written_is_said(storage: FileStorage) -> None:
    storage.base_path.chmod(0o500)
    async with Session(storage) as session:
        result = await session.run("1")
        assert not result.recorded
        assert any("not recorded" in note for note in result.notes)
    with pytest.raises(PersistenceError):
        await Session(storage, record=True).start()


# -- when it cannot be written


async def test_a_run_that_cannot_be_recorded_is_refused(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Session(storage) as session:
        await session.run("x = 1")
        with monkeypatch.context() as broken:

            def full(*_: object) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            broken.setattr("py_code_mode.stores.files.os.write", full)
            with pytest.raises(PersistenceError):
                await session.run("x = 2")
        assert await value(session, "x") == 1
    assert [run.status for run in journal_of(storage, session).runs] == ["ok", "ok"]


# -- coming back


SCRIPT = """
import math
import numpy as np
import pandas as pd
x = 5
shared = [1]
pair = (shared, shared)
frame = pd.DataFrame({"a": range(1000)})
class Point:
    def __init__(self, n): self.n = n
    def scaled(self): return self.n * x
p = Point(3)
def later(): return x + len(shared)
"""
CHECK = "(x, pair[0] is shared, int(frame.a.sum()), p.scaled(), later(), math.pi > 3)"


@pytest.mark.parametrize("mode", ["restore", "replay"])
async def test_variables_come_back(
    storage: FileStorage, new_executor: NewExecutor, mode: Any
) -> None:
    async with Session(storage, new_executor()) as session:
        await value(session, SCRIPT)
        await value(session, "x = 7; shared.append(2)")
    async with resume(storage, session, new_executor(), mode=mode) as again:
        assert again.id == session.id
        assert again.resumed is not None
        assert again.resumed.replayed == ((1, 2) if mode == "replay" else ())
        assert await value(again, CHECK) == (7, True, 499500, 21, 9, True)
        result = await again.run("x = 10; later()")
        assert (result.value, result.run_id) == (12, 4)
    assert [run.run_id for run in journal_of(storage, session).runs] == [1, 2, 3, 4]


async def test_what_could_not_be_saved_is_listed(
    storage: FileStorage, new_executor: NewExecutor
) -> None:
    async with Session(storage, new_executor()) as session:
        await value(session, "import threading; lock = threading.Lock(); x = 1; lock.locked()")
    async with resume(storage, session, new_executor()) as again:
        assert again.resumed is not None
        assert set(again.resumed.lost) == {"lock"}
        result = await again.run("x")
        assert result.value == 1
        assert any("lock" in note for note in result.notes)


async def test_a_replay_calls_no_tool(storage: FileStorage, new_executor: NewExecutor) -> None:
    calls: list[int] = []

    def roll(sides: int) -> int:
        """Roll."""
        calls.append(sides)
        if sides == 0:
            raise ValueError("no sides")
        return 4

    async with Session(storage, new_executor()) as session:
        session.add_tool(roll)
        await value(session, "found = [tools.roll(sides=6), tools.roll(sides=8)]\nfound")
        await value(
            session, "try: tools.roll(sides=0)\nexcept Exception as error: said = str(error)"
        )
        await session.save_artifact("kept", frame())
        await value(session, "total = int(artifacts.load('kept').a.sum())\ntotal")
    await anyio.Path(storage.base_path, "artifacts").rename(storage.base_path / "moved")
    async with resume(storage, session, new_executor(), mode="replay") as again:
        assert await value(again, "found, 'no sides' in said, total") == ([4, 4], True, 45)
    assert calls == [6, 8, 0]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(10)})


async def test_other_calls_than_recorded_are_a_divergence(storage: FileStorage) -> None:
    def give() -> int:
        """Give."""
        return 1

    async with Session(storage) as session:
        session.add_tool(give)
        await session.run(
            "import os\nif os.environ.get('PCM_TEST_MODE'): tools.give()\nelse: x = 1"
        )
    os.environ["PCM_TEST_MODE"] = "1"
    try:
        with pytest.raises(ReplayDivergenceError):
            await resume(storage, session, InProcessExecutor(), mode="replay").start()
    finally:
        del os.environ["PCM_TEST_MODE"]
    # nothing is lost by it
    async with resume(storage, session, InProcessExecutor()) as again:
        assert await value(again, "x") == 1


async def test_handles_come_back(storage: FileStorage, new_executor: NewExecutor) -> None:
    async with Session(storage, new_executor()) as session:
        await session.put("given", {"a": [1, 2]})
        await session.put("table", frame())
        await value(session, "given['a'].append(3); len(table)")
    for mode in ("restore", "replay"):
        async with resume(storage, session, new_executor(), mode=mode) as again:
            assert await value(again, "given, len(table)") == ({"a": [1, 2, 3]}, 10)
            if not again.supports("live_values"):
                assert again.handles.get("given") == {"a": [1, 2]}


@with_copies
async def test_what_was_undone_is_not_executed_again(storage: FileStorage) -> None:
    async with Session(storage, sandboxed()) as session:
        await value(session, "log = ['one']")
        with await session.checkpoint() as checkpoint:
            await value(session, "log.append('undone'); open('/work/undone', 'w').close()")
            await session.rollback(checkpoint)
        await value(session, "log.append('three')")
    journal = journal_of(storage, session)
    assert [run.run_id for run in journal.live_line] == [1, 3]
    async with resume(storage, session, sandboxed(), mode="replay") as again:
        assert await value(again, "import os; log, os.path.exists('/work/undone')") == (
            ["one", "three"],
            False,
        )


@with_copies
async def test_a_fork_has_a_record_of_its_own(storage: FileStorage) -> None:
    async with Session(storage, sandboxed()) as session:
        await value(session, "x = 1")
        async with await session.fork() as branch:
            await value(branch, "x += 10")
        await value(session, "x += 100")
    async with resume(storage, branch, sandboxed(), mode="replay") as again:
        assert await value(again, "x") == 11
    async with resume(storage, session, sandboxed(), mode="replay") as again:
        assert await value(again, "x") == 101


@with_copies
async def test_state_of_sandboxed_code_is_not_loaded_without_a_sandbox(
    storage: FileStorage,
) -> None:
    async with Session(storage, sandboxed()) as session:
        await value(session, "x = 1")
    for mode in ("restore", "replay"):
        with pytest.raises(StateNotTrusted):
            await resume(storage, session, InProcessExecutor(), mode=mode).start()
    async with resume(storage, session, InProcessExecutor(), trusted=True) as again:
        assert await value(again, "x") == 1


async def test_a_session_is_written_by_one_at_a_time(storage: FileStorage) -> None:
    async with Session(storage) as session:
        await session.run("x = 1")
        with pytest.raises(SessionLockedError):
            await resume(storage, session, InProcessExecutor()).start()
        assert await value(session, "x") == 1
    with pytest.raises(SessionNotFoundError):
        await Session.resume("nobody", storage=storage).start()


KILLED = """
import sys, anyio
from py_code_mode import FileStorage, Session, InProcessExecutor
async def main():
    session = Session(FileStorage(sys.argv[1]), InProcessExecutor())
    await session.start()
    def stop() -> None:
        "Stop."
        print(session.id, flush=True)
        import threading
        threading.Event().wait()
    session.add_tool(stop)
    for number in range(5):
        await session.run(f"x = {number}")
    await session.run("x = 'half'; tools.stop()")
anyio.run(main)
"""


def killed_in_a_run(base: Path) -> str:
    """Have another process run a session, and kill it; gives the session's id."""
    command = [sys.executable, "-c", KILLED, str(base)]
    place = {**os.environ, "TMPDIR": str(base.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=place) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        process.kill()
    return name


@pytest.mark.parametrize("mode", ["restore", "replay"])
async def test_a_session_killed_in_a_run_comes_back_without_it(
    storage: FileStorage, mode: Any
) -> None:
    name = await anyio.to_thread.run_sync(killed_in_a_run, storage.base_path)
    with pytest.raises(ReplayDivergenceError):
        await Session.resume(name, storage=storage, mode=mode, on_ambiguous="raise").start()
    async with Session.resume(name, storage=storage, mode=mode) as again:
        assert again.resumed is not None
        assert again.resumed.skipped == (6,)
        result = await again.run("x")
        assert (result.value, result.run_id) == (4, 7)
        assert any("run 6" in note for note in result.notes)


async def test_a_conversation_is_taken_over(storage: FileStorage) -> None:
    from py_code_mode.journal.chunks import Transcript

    transcript = Transcript.from_agent_prompt("Be brief.")
    session = Session.resume(transcript, storage=storage, mode="transcript")
    async with session:
        assert session.transcript is transcript
        await session.run("1")
    journal = journal_of(storage, session)
    assert [(chunk.kind, chunk.payload["content"]) for chunk in journal.chunks] == [
        ("system", "Be brief.")
    ]
    with pytest.raises(TypeError):
        Session.resume(transcript, storage=storage)
    with pytest.raises(TypeError):
        Session.resume("some-id", storage=storage, mode="transcript")


async def test_a_long_session_saves_its_variables_now_and_then(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)
    async with Session(storage) as session:
        for number in range(3):
            await session.run(f"x = {number}")
        assert [state.at_run for state in journal_of(storage, session).saved_states] == [1, 2, 3]


def blobs_of(storage: FileStorage) -> int:
    """Bytes of all large values on record."""
    folder = storage.base_path / "sessions" / ".blobs"
    return sum(path.stat().st_size for path in folder.glob("??/*"))


LARGE = 1_000_000  # bytes of a variable


async def test_saving_again_and_again_keeps_one_copy_of_the_variables(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)
    session = Session(storage)
    await session.start()
    for number in range(5):
        await session.run(f"import os; x, n = os.urandom({LARGE}), {number}")
        assert blobs_of(storage) < 1.5 * LARGE
    await session.close()
    for number in range(3):  # and each time it is taken up
        async with resume(storage, session, InProcessExecutor()) as again:
            assert again.resumed is not None
            assert again.resumed.replayed == ()
            assert await value(again, "len(x), n") == (LARGE, 4 + number)
            await again.run(f"x, n = os.urandom({LARGE}), n + 1")
        assert blobs_of(storage) < 1.5 * LARGE
    assert list(check_sessions(storage.base_path / "sessions")) == []


@with_copies
async def test_the_variables_of_an_open_checkpoint_stay_saved(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)
    async with Session(storage, sandboxed()) as session:
        await session.run("x = 1")
        with await session.checkpoint() as checkpoint:
            for number in range(2, 5):
                await session.run(f"x = {number}")
            await session.rollback(checkpoint)
            monkeypatch.setattr(recorder_module, "SAVE_LIMIT", 0)  # and then it is killed
            await session.close()
    async with resume(storage, session, sandboxed()) as again:
        assert again.resumed is not None
        assert (again.resumed.replayed, again.resumed.at_run) == ((), 1)
        assert await value(again, "x") == 1


async def test_a_session_forked_by_reference_keeps_the_variables_of_its_origin(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)
    folder = storage.base_path / "sessions"
    async with Session(storage) as session:
        await session.run("x = 1")
        await session.run("x = 2")
        early, late = (fork_session(folder, session.id, at=run) for run in (1, 2))
        await session.run("x = 3")
        await session.run("x = 4")
    expected = {early: ((1,), 1), late: ((), 2)}  # the first one's had gone before
    for name, (replayed, x) in expected.items():
        async with Session.resume(name, storage=storage) as again:
            assert again.resumed is not None
            assert again.resumed.replayed == replayed
            assert await value(again, "x") == x
            await again.put("own", 5)
        async with Session.resume(name, storage=storage) as again:
            assert await value(again, "x, own") == (x, 5)
    assert list(check_sessions(folder)) == []


async def test_a_put_into_a_fork_is_bound_though_its_origin_has_more_records(
    storage: FileStorage,
) -> None:
    async with Session(storage) as session:
        for _ in range(5):
            await session.run("x = 1")
    fork = fork_session(storage.base_path / "sessions", session.id)
    journal = SessionJournal.reopen(storage.base_path / "sessions", fork)
    data = {"name": "own", "value": 5, "overwrite": False}
    journal.append(Event(kind="put", run_id=5, data=data))
    journal.close()
    async with Session.resume(fork, storage=storage) as again:
        assert await value(again, "own") == 5


# -- handles


@pytest.mark.parametrize("mode", ["restore", "replay"])
async def test_handles_that_host_and_guest_put_and_delete_come_back(
    storage: FileStorage, new_executor: NewExecutor, mode: Any
) -> None:
    told = {"n": {"description": "how many"}}
    async with Session(storage, new_executor()) as session:
        await session.put("variable", 1)
        await session.put("gone", 2)
        session.handles.put("only_here", [1, 2], semantics=told)
        session.handles.put("gone_too", 3)
        await session.run("handles.put('of_guest', 4); handles.put('brief', 5)")
        session.handles.delete("gone")
        session.handles.delete("gone_too")
        session.handles.put("only_here", [3], overwrite=True, semantics=told)
        await session.run("handles.delete('brief')")
        session.handles.put("late", 6)
        names = sorted(session.handles.handle_names())
    assert names == ["late", "of_guest", "only_here", "variable"]
    async with resume(storage, session, new_executor(), mode=mode) as again:
        assert sorted(again.handles.handle_names()) == names
        kept = {name: again.handles.get(name) for name in names}
        assert kept == {"late": 6, "of_guest": 4, "only_here": [3], "variable": 1}
        assert again.handles.info("only_here").semantics == told
        assert await value(again, "handles['only_here'], variable") == ([3], 1)
        assert not await value(again, "'only_here' in globals() or 'late' in globals()")
    async with resume(storage, session, new_executor(), mode=mode) as again:
        assert sorted(again.handles.handle_names()) == names
    events = [event for event in journal_of(storage, session).events if event.kind != "resume"]
    assert len(events) == 11  # nothing is told twice


async def test_a_name_that_was_deleted_and_put_again_comes_back_once(storage: FileStorage) -> None:
    async with Session(storage) as session:
        session.handles.put("x", 1)
        await session.flush()
        session.handles.delete("x")
        session.handles.put("x", 2)
        await session.put("y", 1)
        await session.run("1")
        session.handles.delete("y")
        await session.put("y", 2)
    async with resume(storage, session, InProcessExecutor()) as again:
        assert sorted(again.handles.handle_names()) == ["x", "y"]
        assert (again.handles.get("x"), again.handles.get("y")) == (2, 2)


async def test_a_deletion_is_on_record_with_the_next_flush(storage: FileStorage) -> None:
    async with Session(storage) as session:
        await session.put("x", 1)
        session.handles.delete("x")
        await session.flush()
        events = journal_of(storage, session).events
        assert [(event.kind, event.data["name"]) for event in events] == [
            ("put", "x"),
            ("delete", "x"),
        ]


@with_copies
async def test_a_fork_has_the_handles_of_its_origin_on_record(storage: FileStorage) -> None:
    async with Session(storage, sandboxed()) as session:
        session.handles.put("x", 1)
        async with await session.fork() as branch:
            branch.handles.put("y", 2)
    async with resume(storage, branch, sandboxed()) as again:
        assert sorted(again.handles.handle_names()) == ["x", "y"]


# -- odd orders, bad luck


@with_copies
async def test_a_fork_redacts_as_its_origin(storage: FileStorage) -> None:
    def redact(record: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(json.dumps(record).replace("hunter2", "***")))

    async with Session(storage, sandboxed(), redact=redact) as session:
        await session.run("x = 1")
        async with await session.fork() as branch:
            await branch.run("password = 'hunter2'")
    for path in (storage.base_path / "sessions").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


async def test_what_redact_cannot_look_into_is_not_written(storage: FileStorage) -> None:
    secret = "hunter2" * 2000

    def redact(record: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(json.dumps(record).replace("hunter2", "***")))

    async with Session(storage, redact=redact) as one:
        await one.put("table", pd.DataFrame({"a": [secret]}))
        await one.run(f"password = {secret!r}")
    files = [path for path in (storage.base_path / "sessions").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


async def test_a_run_that_the_close_interrupts_is_on_record_as_cancelled(
    storage: FileStorage, new_executor: NewExecutor
) -> None:
    session = Session(storage, new_executor())
    await session.start()
    await session.run("x = 1")
    running = anyio.Event()

    async def run() -> None:
        with suppress(SessionClosed):  # or it is a result
            await session.run(
                "print(1, flush=True)\nwhile True: pass", None, lambda _: running.set()
            )

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await running.wait()
            await session.close()
    assert [run.status for run in journal_of(storage, session).runs] == ["ok", "cancelled"]
    async with resume(storage, session, new_executor()) as again:
        assert again.resumed is not None
        assert again.resumed.skipped == (2,)
        assert await value(again, "x") == 1


@with_copies
async def test_a_cancelled_run_that_was_undone_undoes_no_other(storage: FileStorage) -> None:
    hang = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print(1, flush=True)\nwhile True: pass"
    )
    always = SubprocessExecutor(SubprocessConfig(backend="namespaces", protect="always"))
    async with Session(storage, always) as session:
        await value(session, "x = 1")
        with anyio.fail_after(TIMEOUT):
            await cancel_at_first_output(session, hang)
        assert session.state == "restored"
        assert [run.run_id for run in journal_of(storage, session).live_line] == [1]
        assert await value(session, "x") == 1
    async with resume(storage, session, sandboxed()) as again:
        assert again.resumed is not None
        assert again.resumed.replayed == ()  # the state at the end is that after run 3
        assert await value(again, "x") == 1


@with_copies
async def test_a_saved_state_is_used_also_where_the_last_run_was_undone(
    storage: FileStorage,
) -> None:
    async with Session(storage, sandboxed()) as session:
        await value(session, "x = 1")
        with await session.checkpoint() as checkpoint:
            await value(session, "x = 2")
            await session.rollback(checkpoint)
    async with resume(storage, session, sandboxed()) as again:
        assert again.resumed is not None
        assert (again.resumed.replayed, again.resumed.at_run) == ((), 1)
        assert await value(again, "x") == 1


async def test_a_guest_that_ended_between_runs_undoes_not_the_next_one(
    storage: FileStorage,
) -> None:
    outcomes = {
        "restored": RunOutcome(state="restored", restored_to=1),
        "lost": RunOutcome(state="lost"),
    }
    async with Session(storage, FakeExecutor(outcomes)) as session:
        lines: list[list[int]] = []
        for code in ("1", "2", "restored", "lost"):
            await session.run(code)
            lines.append([run.run_id for run in journal_of(storage, session).live_line])
    assert lines == [[1], [1, 2], [1, 3], [4]]


async def test_what_was_put_after_the_variables_were_saved_comes_back(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)
    async with Session(storage) as session:
        await session.put("before", 1)
        await session.run("before = 5")
        await session.put("after", 2)
        await session.put("before", 7)  # the user has one of this name
        monkeypatch.setattr(recorder_module, "SAVE_LIMIT", 0)  # and then it is killed
    async with resume(storage, session, InProcessExecutor()) as again:
        assert await value(again, "before, after") == (5, 2)
        await again.reset()
        assert await value(again, "after, before") == (2, 1)  # it is bound again, as any handle


async def test_large_tables_of_tools_and_puts_are_on_record_whole(
    storage: FileStorage, new_executor: NewExecutor
) -> None:
    table = pd.DataFrame({"a": np.arange(100_000), "b": ["x"] * 100_000})

    def fetch() -> object:
        """Fetch."""
        return table

    async with Session(storage, new_executor()) as session:
        session.add_tool(fetch)
        await session.put("given", table)
        await value(session, "got = tools.fetch(); len(got)")
    for mode in ("restore", "replay"):
        async with resume(storage, session, new_executor(), mode=mode) as again:
            assert await value(again, "len(got), len(given)") == (100_000, 100_000)
            given: Any = again.handles.get("given")
            pd.testing.assert_frame_equal(given, table)


async def test_what_is_too_large_to_be_on_record_is_a_divergence(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_KEPT", 10_000)

    def fetch() -> str:
        """Fetch."""
        return "x" * 50_000

    async with Session(storage) as session:
        session.add_tool(fetch)
        await session.put("given", "y" * 50_000)
        await value(session, "n = len(tools.fetch()); n")
    for path in (storage.base_path / "sessions").glob("*.jsonl"):
        assert path.stat().st_size < 20_000
    with pytest.raises(ReplayDivergenceError, match="in whole"):
        await resume(storage, session, InProcessExecutor(), mode="replay").start()
    async with resume(storage, session, InProcessExecutor()) as again:
        assert await value(again, "n, len(given)") == (50_000, 50_000)


SETS = """
import sys, anyio
from py_code_mode import FileStorage, Session
async def main():
    async with Session(FileStorage(sys.argv[1])) as session:
        def count(words: set, thing: object) -> int:
            "Count."
            return len(words)
        session.add_tool(count)
        result = await session.run("n = tools.count({'a', 'b', 'c', 'd', 'e'}, object())")
        assert result.is_ok, result.failure
        print(session.id)
anyio.run(main)
"""


async def test_sets_and_addresses_of_arguments_are_no_divergence(storage: FileStorage) -> None:
    for seed in "123":
        place = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(storage.base_path.parent)}
        command = [sys.executable, "-c", SETS, str(storage.base_path)]
        done = await anyio.run_process(command, env=place)
        name = done.stdout.decode().strip()
        async with Session.resume(name, storage=storage, mode="replay") as again:
            assert await value(again, "n") == 5


async def test_a_run_that_was_cut_short_is_executed_again_where_that_is_wanted(
    storage: FileStorage,
) -> None:
    name = await anyio.to_thread.run_sync(killed_in_a_run, storage.base_path)
    calls: list[str] = []

    def stop() -> None:
        """Stop."""
        calls.append("stop")

    session = Session.resume(name, storage=storage, on_ambiguous="rerun")
    session.add_tool(stop)
    async with session as again:
        assert again.resumed is not None
        assert again.resumed.replayed == (1, 2, 3, 4, 5, 6)
        assert await value(again, "x") == "half"
    assert calls == ["stop"]
    # it has an outcome now, and what its calls gave is on record
    async with Session.resume(name, storage=storage, mode="replay", on_ambiguous="raise") as again:
        assert await value(again, "x") == "half"
    assert calls == ["stop"]


async def test_large_variables_of_runs_that_were_executed_again_are_handles(
    storage: FileStorage, new_executor: NewExecutor
) -> None:
    async with Session(storage, new_executor()) as session:
        await value(session, "text = 'x' * 10_000; len(text)")
    async with resume(storage, session, new_executor(), mode="replay") as again:
        assert "text" in again.handles.handle_names()
        await again.reset()
        assert "text" not in again.handles.handle_names()


@with_copies
async def test_what_sandboxed_code_did_in_a_resumed_session_is_not_run_without_a_sandbox(
    storage: FileStorage,
) -> None:
    async with Session(storage) as session:
        await session.run("x = 1")
    async with resume(storage, session, sandboxed(), mode="replay") as again:
        await again.run("y = 2")
    with pytest.raises(StateNotTrusted):
        await resume(storage, session, InProcessExecutor(), mode="replay").start()


async def test_a_session_is_resumed_only_with_its_record(storage: FileStorage) -> None:
    async with Session(storage) as session:
        await session.run("x = 1")
    with pytest.raises(ConfigError):
        Session.resume(session.id, storage=storage, record=False)


async def test_saving_variables_keeps_no_other_session_waiting(storage: FileStorage) -> None:
    reached, may_go_on = threading.Event(), threading.Event()
    others_ran: list[bool] = []

    def save_slowly() -> type:
        reached.set()
        others_ran.append(may_go_on.wait(TIMEOUT / 3))
        return int

    async def run_meanwhile() -> None:
        async with Session(MemoryStorage()) as other:
            assert await anyio.to_thread.run_sync(reached.wait, TIMEOUT)
            assert await value(other, "1") == 1
            may_go_on.set()

    async with Session(storage) as session:
        await session.put("save_slowly", save_slowly)
        await session.run(
            "class Slow:\n    def __reduce__(self): return save_slowly(), ()\nslow = Slow()"
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_meanwhile)
            await session.close()
    assert others_ran
    assert all(others_ran)


async def test_variables_that_cannot_be_saved_refuse_no_run(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)

    def full(*_: object, **__: object) -> object:
        raise PersistenceError("the disk is full")

    monkeypatch.setattr("py_code_mode.journal.journal.SessionJournal.put_blob", full)
    async with Session(storage) as session:
        assert (await session.run("x = 1")).recorded
        assert (await session.run("x += 1")).recorded
    events = [event for event in journal_of(storage, session).events if event.kind == "unsaved"]
    assert events
    assert "disk is full" in events[0].data["reason"]


async def test_variables_that_take_too_long_to_save_are_told_of(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_TIMEOUT", 0.1)
    async with Session(storage) as session:
        await session.run(
            "import threading\n"
            "class Slow:\n    def __reduce__(self): threading.Event().wait(1); return int, ()\n"
            "slow = Slow()"
        )
    (event,) = journal_of(storage, session).events
    assert (event.kind, "took more" in event.data["reason"]) == ("unsaved", True)


async def test_a_state_that_cannot_be_loaded_says_how_to_go_on(storage: FileStorage) -> None:
    async with Session(storage) as session:
        await session.run("x = 1")
    for blob in (storage.base_path / "sessions" / ".blobs").rglob("*"):
        if blob.is_file() and blob.name != ".lock":
            blob.unlink()
    with pytest.raises(PersistenceError, match="replay"):
        await resume(storage, session, InProcessExecutor()).start()
    async with resume(storage, session, InProcessExecutor(), mode="replay") as again:
        assert await value(again, "x") == 1


@pytest.mark.parametrize("kind", ["file", "broken link"])
async def test_a_folder_of_sessions_that_is_none_is_said(storage: FileStorage, kind: str) -> None:
    place = storage.base_path / "sessions"
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(storage.base_path / "nowhere" / "else")
    async with Session(storage) as session:
        result = await session.run("1")
        assert (result.value, result.recorded) == (1, False)
        assert any("not recorded" in note for note in result.notes)
    with pytest.raises(PersistenceError):
        await Session(storage, record=True).start()


async def test_a_link_of_the_users_own_is_followed(storage: FileStorage, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    (storage.base_path / "sessions").symlink_to(place)
    async with Session(storage) as session:
        assert (await session.run("x = 1")).recorded
    assert (place / f"{session.id}.jsonl").is_file()
    async with resume(storage, session, InProcessExecutor()) as again:
        assert await value(again, "x") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to somebody else")
async def test_a_link_of_another_users_is_not_followed(
    storage: FileStorage, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = storage.base_path / "sessions"
    link.symlink_to(tmp_path / "elsewhere")
    os.chown(link, 12345, 12345, follow_symlinks=False)
    async with Session(storage) as session:
        result = await session.run("1")
        assert (result.value, result.recorded) == (1, False)
        assert any("12345" in note for note in result.notes)
    with pytest.raises(WorkspaceNotTrusted):
        await Session(storage, record=True).start()
    assert not list((tmp_path / "elsewhere").iterdir())


PLANT = """
import os, pathlib
base, elsewhere = pathlib.Path({base!r}), {elsewhere!r}
base.mkdir(exist_ok=True)
os.symlink(elsewhere, base / "sessions")
"""


@with_copies
async def test_what_sandboxed_code_plants_is_neither_followed_nor_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own, elsewhere, place = (tmp_path / name for name in ("own", "elsewhere", "place"))
    for folder in (own, elsewhere, place):
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    async with Session(FileStorage(elsewhere)) as victim:
        await victim.run("x = 1")
    before = sorted(elsewhere.rglob("*"))
    storage = FileStorage(place / "base")
    config = SubprocessConfig(backend="namespaces", policy=Policy(write=(place,)))
    with pytest.raises(WorkspaceNotTrusted):
        await Session(storage, SubprocessExecutor(config), record=True).start()
    async with Session(storage, SubprocessExecutor(config)) as session:
        code = PLANT.format(base=str(place / "base"), elsewhere=str(elsewhere / "sessions"))
        result = await session.run(code)
        assert result.is_ok, result.failure
    async with Session(storage) as after:
        result = await after.run("1")
        assert (result.value, result.recorded) == (1, False)
        assert any("sandboxed code" in note for note in result.notes)
    with pytest.raises(WorkspaceNotTrusted):
        await resume(storage, victim, InProcessExecutor()).start()
    assert sorted(elsewhere.rglob("*")) == before


async def test_a_record_of_trust_that_cannot_be_read_keeps_no_session_from_running(
    storage: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "py-code-mode").mkdir(mode=0o700)
    (tmp_path / "py-code-mode" / "trusted.json").write_text("nonsense")
    async with Session(storage) as session:
        result = await session.run("1")
        assert (result.value, result.recorded) == (1, False)
        assert any("trusted.json" in note for note in result.notes)
    with pytest.raises(ConfigError):
        await Session(storage, record=True).start()


async def test_a_cancelled_reset_is_on_record(storage: FileStorage) -> None:
    async with Session(storage, plain()) as session:
        await session.run("x = 1")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.reset()
        await session.run("y = 'x' in globals()")
        there = await value(session, "y")
        assert there == bool(len(journal_of(storage, session).live_line) == 3)


async def test_odd_text_is_recorded(storage: FileStorage, new_executor: NewExecutor) -> None:
    async with Session(storage, new_executor()) as session:
        result = await session.run("print('\\ud800\\x00'); {'\\udfff': float('nan'), 1: 2**100}")
        assert result.recorded
        result = await session.run("try: tools['\\ud800' * 70_000]()\nexcept Exception: pass")
        assert result.recorded
    assert len(journal_of(storage, session).calls) == 1


LIE = """
import gc
for found in gc.get_objects():
    if isinstance(found, type) and "load_workflow" in vars(found) and "save" in vars(found):
        found.save = lambda self, limit: type("Saved", (), SAID)()
"""


@pytest.mark.parametrize(
    "said",
    [
        '{"types": {"x": 1}, "skipped": {}, "parts": [b"x"]}',
        '{"types": {}, "skipped": {}, "parts": []}',
        '{"types": [], "skipped": {}, "parts": [b"x"]}',
        '{"types": {}, "skipped": {}, "parts": [b"x" * (4 << 20)]}',
    ],
)
async def test_a_guest_that_lies_of_its_variables_is_ended_and_harms_nobody(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(recorder_module, "SAVE_LIMIT", 1 << 20)
    async with Session(storage, plain()) as session:
        assert (await session.run(LIE.replace("SAID", said))).is_ok
        monkeypatch.setattr(recorder_module, "SAVE_AFTER", 0.0)
        session_recorder = session._recorder  # pyright: ignore[reportPrivateUsage]
        assert session_recorder is not None
        await session_recorder.save(executor_of(session))
        result = await session.run("'LIE' in globals()")
        assert (result.value, result.state) == (False, "lost")
    journal = journal_of(storage, session)
    assert [event.kind for event in journal.events][:1] == ["unsaved"]
    assert [run.run_id for run in journal.live_line] == [2]


async def test_what_a_guest_says_of_its_variables_is_bounded(storage: FileStorage) -> None:
    types = '{str(n) * 2000: "t" * 9999 for n in range(300)}'
    said = f'{{"types": {types}, "skipped": {{}}, "parts": [b"x"]}}'
    async with Session(storage, plain()) as session:
        await session.run(LIE.replace("SAID", said))
    journal = journal_of(storage, session)
    told: Any = journal.expand(journal.saved_states[0].vars)
    assert len(told) > 200
    assert all(len(name) <= 1010 and len(kind["type"]) <= 1010 for name, kind in told.items())
