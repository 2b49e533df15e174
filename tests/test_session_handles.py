"""Values by name, as the user of a session and the code in it see them."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pandas as pd
import pytest

from py_code_mode import (
    FileStorage,
    Handle,
    InProcessExecutor,
    MemoryStorage,
    Session,
    SessionClosed,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import (
    CodeModeError,
    HandleNotFound,
    HandlesClosed,
    HandlesFull,
    InvalidName,
    ValueNotPortable,
)
from py_code_mode.guest.holdings import HELD_RESULTS
from py_code_mode.guest.variables import LARGE, MAX_TOLD
from py_code_mode.handles import SessionCache
from py_code_mode.handles import session as session_handles
from py_code_mode.journal.loader import read_journal

from . import session_executors
from .session_executors import WORKERS, NewExecutor, plain, sandboxed, value, with_copies

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
new_executor = session_executors.new_executor


@pytest.fixture(params=WORKERS)
def new_worker(request: pytest.FixtureRequest) -> NewExecutor:
    return request.param


def session_of(new_executor: NewExecutor) -> Session:
    return Session(MemoryStorage(), new_executor())


def frame(rows: int = 1000) -> pd.DataFrame:
    return pd.DataFrame({"id": np.arange(rows), "price": np.linspace(0, 1, rows)})


# -- put


async def test_put_values_are_variables_and_handles(new_executor: NewExecutor) -> None:
    sales = frame()
    async with session_of(new_executor) as session:
        assert await session.put("sales", sales) == "sales"
        assert await value(session, "len(sales), float(sales.price.sum())") == (1000, 500.0)
        assert isinstance(session.handles, SessionCache)
        assert session.handles.handle_names() == ["sales"]
        assert session.handles.get("sales") is sales
        told = json.loads(session.handles.snapshot("sales"))
        assert told["shape"] == [1000, 2]
        pd.testing.assert_frame_equal(await value(session, "handles['sales']"), sales)


async def test_a_name_that_is_taken_gets_a_suffix(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        names = [await session.put("x", number) for number in range(3)]
        assert names == ["x", "x_2", "x_3"]
        assert await value(session, "x, x_2, x_3") == (0, 1, 2)
        assert await session.put("x", 7, overwrite=True) == "x"
        assert await value(session, "x") == 7


async def test_put_takes_no_variable_from_the_user(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        await session.run("x = 'mine'")
        assert await session.put("x", "theirs") == "x"
        assert await value(session, "x, handles['x']") == ("mine", "theirs")
        assert await session.get("x") == "theirs"
        await session.put("x", "now theirs", overwrite=True)
        assert await value(session, "x, handles.get('x')") == ("now theirs", "now theirs")


async def test_names_that_cannot_be_variables_are_refused(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        for name in ("tools", "handles", "display", "len", "print", "class", "a b", "", "x\n"):
            with pytest.raises(InvalidName):
                await session.put(name, 1)
        assert session.handles.handle_names() == []


async def test_what_cannot_cross_as_data_is_pickled_to_the_guest(new_worker: NewExecutor) -> None:
    from fractions import Fraction
    from statistics import NormalDist

    async with session_of(new_worker) as session:
        await session.put("dist", [NormalDist(1, 2), Fraction(1, 3)])
        assert await value(session, "dist[0].stdev, dist[1].denominator") == (2.0, 3)


async def test_what_cannot_cross_at_all_changes_nothing(new_worker: NewExecutor) -> None:
    async with session_of(new_worker) as session:
        await session.put("x", 1)
        for bad in (lambda: 1, threading.Lock(), (number for number in range(3))):
            with pytest.raises(ValueNotPortable):
                await session.put("x", bad, overwrite=True)
        assert await value(session, "x") == 1
        assert session.handles.get("x") == 1


async def test_the_guests_copy_is_its_own_to_change(new_worker: NewExecutor) -> None:
    numbers = np.arange(3_000_000, dtype=np.int64)
    sales = frame(3_000_000)
    async with session_of(new_worker) as session:
        await session.put("numbers", numbers)
        await session.put("sales", sales)
        code = "numbers[0] = -1; sales.loc[0, 'id'] = -1; int(numbers[0]), int(sales.id[0])"
        assert await value(session, code) == (-1, -1)
        assert numbers[0] == 0
        assert sales.id[0] == 0
        assert session.handles.get("numbers") is numbers
        changed: Any = await session.get("sales")
        assert changed.id[0] == -1


async def test_semantics_are_part_of_the_snapshot(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        await session.put("sales", frame(), semantics={"price": "in cents"})
        assert "in cents" in session.handles.snapshot("sales")


# -- what outlives the variables


async def test_a_reset_binds_handles_again(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        await session.put("kept", frame())
        await session.run("gone = 1; kept.loc[0, 'id'] = 99")
        await session.reset()
        assert await value(session, "len(kept), 'gone' in globals()") == (1000, False)


async def test_a_crash_binds_handles_again(new_worker: NewExecutor) -> None:
    async with session_of(new_worker) as session:
        await session.put("kept", frame())
        result = await session.run("import os; os._exit(3)")
        assert result.state in ("lost", "restored")
        assert await value(session, "len(kept)") == 1000
        await session.run("import os; os._exit(3)")
        assert await value(session, "len(kept)") == 1000


@with_copies
async def test_a_restored_variable_is_left_as_the_code_had_it() -> None:
    executor = SubprocessExecutor(SubprocessConfig(backend="namespaces", protect="always"))
    async with Session(MemoryStorage(), executor) as session:
        await session.put("kept", [1])
        await session.run("kept.append(2)")
        result = await session.run("import os; os._exit(3)")
        assert result.state == "restored"
        assert await value(session, "kept") == [1, 2]
        await session.put("kept", [3], overwrite=True)
        assert await value(session, "kept") == [3]


@with_copies
async def test_rollback_brings_back_a_newer_handle() -> None:
    async with session_of(sandboxed) as session:
        await session.put("a", 1)
        with await session.checkpoint() as checkpoint:
            await session.put("a", 2, overwrite=True)
            await session.put("b", 3)
            await session.rollback(checkpoint)
        assert await value(session, "a, b") == (2, 3)


@with_copies
async def test_a_fork_has_handles_of_its_own() -> None:
    async with session_of(sandboxed) as session:
        await session.put("shared", frame())
        await session.run("made = list(range(100_000))")
        async with await session.fork() as branch:
            assert set(branch.handles.handle_names()) == {"shared", "made"}
            await branch.put("only", 1)
            await branch.reset()
            assert await value(branch, "len(shared), only") == (1000, 1)
        assert not session.handles.has_handle("only")
        assert await value(session, "len(shared), len(made)") == (1000, 100_000)


# -- what runs make


async def test_large_variables_of_a_run_are_in_its_result(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        result = await session.run("import pandas as pd; df = pd.DataFrame({'a': range(5000)})")
        assert set(result.handles) == {"df"}
        assert result.handles["df"].data["shape"] == [5000, 1]
        assert (await session.run("small = 1; df.a.sum()")).handles == {}
        assert set((await session.run("df['b'] = 1")).handles) == {"df"}
        info = session.handles.info("df")
        assert info.origin is not None
        assert (info.origin.kind, info.origin.run_id) == ("run", 3)
        with pytest.raises(HandleNotFound, match=r"await session\.get\('df'\)"):
            session.handles.get("df")
        assert isinstance(await session.get("df"), pd.DataFrame)
        await session.run("del df")
        assert not session.handles.has_handle("df")


async def test_a_failed_run_tells_of_what_it_had_made(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        result = await session.run("text = 'x' * 100_000\n1 / 0")
        assert result.error == "ZeroDivisionError: division by zero"
        assert set(result.handles) == {"text"}


async def test_handles_tell_from_what_they_were_made(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        await session.put("sales", frame(5000))
        await session.run("top = sales.sort_values('price').head(3000)")
        info = session.handles.info("top")
        assert info.origin is not None
        assert info.origin.parents == ("sales",)
        told = await value(session, "handles.info('top')")
        assert (told["kind"], told["run_id"], told["parents"]) == ("run", 1, ("sales",))


async def test_results_that_stay_in_the_guest_are_handles(new_worker: NewExecutor) -> None:
    async with session_of(new_worker) as session:
        held = await value(session, "object()")
        assert isinstance(held, Handle)
        assert session.handles.has_handle(held.name)
        for _ in range(HELD_RESULTS):
            await session.run("object()")
        assert not session.handles.has_handle(held.name)
        with pytest.raises(HandleNotFound):
            await session.get(held)


async def test_what_is_lost_is_no_handle_any_more(new_worker: NewExecutor) -> None:
    async with session_of(new_worker) as session:
        await session.run("big = 'x' * 100_000")
        assert session.handles.has_handle("big")
        await session.reset()
        assert not session.handles.has_handle("big")


@with_copies
async def test_what_a_rollback_undoes_is_no_handle_any_more() -> None:
    async with session_of(sandboxed) as session:
        await session.run("before = 'x' * 100_000")
        with await session.checkpoint() as checkpoint:
            await session.run("after = 'x' * 100_000")
            await session.rollback(checkpoint)
        assert session.handles.handle_names() == ["before"]


# -- results of calls


async def test_large_results_of_tools_are_handles(new_executor: NewExecutor) -> None:
    def rows(count: int) -> list[dict[str, int]]:
        """Rows."""
        return [{"id": number} for number in range(count)]

    async with session_of(new_executor) as session:
        session.add_tool(rows)
        result = await session.run("found = tools.rows(2); len(found)")
        assert result.handles == {}
        result = await session.run("found = tools.rows(5000); len(found)")
        assert result.value == 5000
        assert set(result.handles) == {"found", "rows"}
        info = session.handles.info("rows")
        assert info.origin is not None
        assert (info.origin.kind, info.origin.call) == ("call", "tools.rows")
        assert await value(session, "len(handles['rows'])") == 5000


async def test_old_results_of_calls_are_let_go(
    new_executor: NewExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_handles, "MAX_RESULTS", 3)

    def text() -> str:
        """Text."""
        return "x" * (2 * LARGE)

    async with session_of(new_executor) as session:
        session.add_tool(text)
        await session.run("for _ in range(5): tools.text()")
        assert len(session.handles.handle_names()) == 3


async def test_large_artifacts_are_handles(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        await session.save_artifact("report", frame(5000))
        result = await session.run("len(artifacts.load('report'))")
        assert (result.value, set(result.handles)) == (5000, {"report"})


# -- in the guest


async def test_guest_code_puts_gets_and_deletes(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        code = """
import numpy as np
name = handles.put("grid", np.ones((100, 100)))
again = handles.put("grid", [1])
(name, again, float(handles.get("grid").sum()), handles[again], "grid" in handles, list(handles))
"""
        assert await value(session, code) == (
            *("grid", "grid_2", 10000.0, [1], True),
            ["grid_2", "grid"],
        )
        assert session.handles.get("grid_2") == [1]
        await session.run("handles.delete('grid_2')")
        assert session.handles.handle_names() == ["grid"]
        assert await value(session, "handles.snapshot('grid')['shape']") == [100, 100]
        await session.reset()
        assert await value(session, "float(handles.get('grid').sum())") == 10000.0


async def test_what_cannot_cross_stays_in_the_guest_as_a_handle(new_worker: NewExecutor) -> None:
    async with session_of(new_worker) as session:
        code = "class Model: size = 3\nhandles.put('model', Model()), handles['model'].size"
        assert await value(session, code) == ("model", 3)
        with pytest.raises(HandleNotFound, match=r"await session\.get"):
            session.handles.get("model")
        with pytest.raises(ValueNotPortable):
            await session.get("model")
        assert "Model" in session.handles.snapshot("model")
        await session.run("handles.put('model', [1, 2], overwrite=True)")
        assert session.handles.get("model") == [1, 2]
        assert await value(session, "handles['model']") == [1, 2]


async def test_errors_of_handles_can_be_caught_by_name(new_executor: NewExecutor) -> None:
    code = """
found = []
for name, act in [("a b", handles.put), ("none", lambda name, _: handles.get(name)),
                  ("none", lambda name, _: handles.delete(name)), ("tools", handles.put)]:
    try:
        act(name, 1)
    except (handles.HandleNotFound, handles.InvalidName) as error:
        found.append(type(error).__name__)
found
"""
    async with session_of(new_executor) as session:
        expected = ["InvalidName", "HandleNotFound", "HandleNotFound", "InvalidName"]
        assert await value(session, code) == expected


async def test_guest_code_cannot_fill_the_host(
    new_executor: NewExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_handles, "MAX_GUEST_HANDLES", 3)
    monkeypatch.setattr(session_handles, "MAX_GUEST_BYTES", 1_000_000)
    async with session_of(new_executor) as session:
        result = await session.run("handles.put('big', bytes(2_000_000))")
        assert result.failure is not None
        assert result.failure.type.endswith("HandlesFull")
        result = await session.run("for number in range(5): handles.put('x', number)")
        assert result.failure is not None
        assert result.failure.type.endswith("HandlesFull")
        assert len(session.handles.handle_names()) == 3
        assert HandlesFull.__mro__[1].__name__ == "HandleError"


# -- order and end


async def test_handles_are_used_only_while_the_session_is_open(new_executor: NewExecutor) -> None:
    session = session_of(new_executor)
    with pytest.raises(SessionClosed):
        _ = session.handles
    async with session:
        handles = session.handles
        await session.put("x", 1)
    with pytest.raises(SessionClosed):
        _ = session.handles
    with pytest.raises(HandlesClosed):
        handles.get("x")


async def test_many_puts_and_runs_at_once_keep_their_order(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(session.put, f"x{number}", frame(10 * number + 1))
                    tasks.start_soon(session.run, f"y{number} = {number}")
        total = await value(session, "sum(len(globals()[f'x{n}']) for n in range(20))")
        assert total == sum(10 * number + 1 for number in range(20))


async def test_a_cancelled_put_leaves_a_usable_session(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        for checkpoints in range(8):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def put() -> None:
                        await session.put("x", frame(200_000), overwrite=True)

                    tasks.start_soon(put)
                    for _ in range(checkpoints):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            assert await value(session, "1 + 1") == 2
        await session.put("x", frame(5), overwrite=True)
        assert await value(session, "len(x)") == 5


async def test_a_cancelled_put_is_done_and_on_record_or_not_at_all(
    new_executor: NewExecutor, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    values = [[1], frame(200_000)]
    async with Session(FileStorage(tmp_path / "base"), new_executor()) as session:
        bindings = session._bindings  # pyright: ignore[reportPrivateUsage]
        assert bindings is not None
        shared = bindings._shared  # pyright: ignore[reportPrivateUsage]

        async def put(name: str, checkpoints: int) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.put, name, values[checkpoints % 2])
                for _ in range(checkpoints // 2):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()

        def on_record() -> set[str]:
            (path,) = (tmp_path / "base" / "sessions").glob(f"{session.id}.jsonl*")
            events = read_journal(path).events
            return {event.data["name"] for event in events if event.kind == "put"}

        here: set[str] = set()
        for number in range(24):
            with anyio.fail_after(TIMEOUT):
                await put(f"x{number}", number)
            here = set(session.handles.handle_names())
            assert on_record() == here
            assert {*shared} == (here if new_executor is not InProcessExecutor else set())
        assert 0 < len(here) < 24
        found = await value(session, "sorted(n for n in globals() if n[:1] == 'x')")
        assert found == sorted(here)


async def test_a_task_that_is_cancelled_in_its_put_leaves_no_handle_unrecorded(
    new_worker: NewExecutor, tmp_path: Path
) -> None:
    # as `asyncio.wait_for` does, which no shielded scope holds off
    (tmp_path / "base").mkdir()
    async with Session(FileStorage(tmp_path / "base"), new_worker()) as session:
        for checkpoints in range(12):
            task = asyncio.ensure_future(session.put(f"x{checkpoints}", frame(200_000)))
            for _ in range(checkpoints):
                await anyio.lowlevel.checkpoint()
            task.cancel()
            with anyio.fail_after(TIMEOUT), suppress(asyncio.CancelledError):
                await task
        (path,) = (tmp_path / "base" / "sessions").glob(f"{session.id}.jsonl*")
        events = read_journal(path).events
        here = session.handles.handle_names()
        assert {event.data["name"] for event in events} == set(here)


async def test_a_cancelled_renewal_is_gone_on_with(
    new_worker: NewExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with session_of(new_worker) as session:
        for name in ("a", "b", "c"):
            await session.put(name, [name])
        session.handles.put("a", Unbuildable(), True)
        bindings = session._bindings  # pyright: ignore[reportPrivateUsage]
        assert bindings is not None
        send = bindings._send  # pyright: ignore[reportPrivateUsage]

        async def send_some(name: str, ready: object, *, replaces: bool) -> bool:
            if name == "b":
                monkeypatch.undo()
                scope.cancel()
            return await send(name, ready, replaces=replaces)

        monkeypatch.setattr(bindings, "_send", send_some)
        with anyio.fail_after(TIMEOUT), anyio.CancelScope() as scope:
            await session.reset()
        assert scope.cancelled_caught
        result = await session.run("b, c, 'a' in globals()")
        assert result.value == (["b"], ["c"], False)
        assert any("handle a" in note for note in result.notes)


async def test_a_put_costs_the_same_however_many_handles_there_are(
    new_executor: NewExecutor,
) -> None:
    async with session_of(new_executor) as session:

        async def calls_of_a_put(name: str) -> int:
            calls = 0

            def count(*_: object) -> None:
                nonlocal calls
                calls += 1

            await session.put(name, [1])
            sys.setprofile(count)
            try:
                await session.put(f"{name}_more", [1])
            finally:
                sys.setprofile(None)
            return calls

        first = [await calls_of_a_put(f"few{number}") for number in range(5)]
        for number in range(300):
            await session.put(f"x{number}", [1])
        last = [await calls_of_a_put(f"many{number}") for number in range(5)]
        assert min(last) < min(first) + 50


async def test_guest_code_has_room_again_for_what_it_deleted_or_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_handles, "MAX_GUEST_HANDLES", 3)
    monkeypatch.setattr(session_handles, "MAX_GUEST_BYTES", 300_000)
    async with session_of(InProcessExecutor) as session:
        code = """
for number in range(20):
    handles.put("big", bytes(200_000), overwrite=True)
handles.delete("big")
for number in range(20):
    handles.put("x", bytes(100_000))
    handles.put("y", bytes(100_000))
    handles.delete("x")
    handles.delete("y")
handles.put("x", bytes(200_000))
"""
        result = await session.run(code)
        assert result.is_ok, result.failure
        session.handles.put("x", b"the host's own now", True)
        result = await session.run("handles.put('y', bytes(250_000))")
        assert result.is_ok, result.failure
        assert not (await session.run("handles.put('z', bytes(250_000))")).is_ok


@pytest.mark.parametrize("wrong", [[], {}, 5, None])
async def test_what_is_no_text_names_no_value(new_executor: NewExecutor, wrong: Any) -> None:
    async with session_of(new_executor) as session:
        await session.run("big = 'x' * 100_000")
        for ask in (session.handles.get, session.handles.snapshot, session.handles.info):
            with pytest.raises(HandleNotFound):
                ask(wrong)
        with pytest.raises(HandleNotFound):
            session.handles.delete(wrong)
        with pytest.raises(HandleNotFound):
            await session.get(wrong)
        assert not session.handles.has_handle(wrong)
        assert session.handles.handle_names() == ["big"]


async def test_parents_are_what_the_code_names_and_nothing_else(new_executor: NewExecutor) -> None:
    code = """
# sales is not used
msg = 'other'
q = np.zeros(10**6)
p = sales * 2
r = [n for n in p] + list(handles["other"])
"""
    async with session_of(new_executor) as session:
        for name in ("sales", "other"):
            await session.put(name, np.zeros(10_000))
        result = await session.run(f"import numpy as np\n{code}")
        assert result.is_ok, result.failure
        origins = {name: session.handles.info(name).origin for name in ("q", "p", "r")}
        parents = {name: origin and origin.parents for name, origin in origins.items()}
        assert parents == {"q": (), "p": ("sales",), "r": ("other", "sales")}


async def test_instructions_tell_of_handles(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        assert "Variables and handles" not in await session.instructions()
        await session.put("sales", frame())
        text = await session.instructions()
        assert '- sales: {"type":"pandas.DataFrame","shape":[1000,2]' in text


# -- odd orders


class Unbuildable:
    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


async def test_what_the_guest_cannot_build_changes_nothing(new_worker: NewExecutor) -> None:
    async with session_of(new_worker) as session:
        await session.put("x", [1], semantics={"a": "of x"})
        for name, overwrite in (("x", True), ("y", False)):
            with pytest.raises(CodeModeError):
                await session.put(name, Unbuildable(), overwrite)
        assert session.handles.handle_names() == ["x"]
        assert session.handles.get("x") == [1]
        await session.reset()  # and keeps nothing from going on
        assert await value(session, "x, 'y' in globals()") == ([1], False)


async def test_a_handle_that_cannot_be_bound_again_is_said(
    new_worker: NewExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with session_of(new_worker) as session:
        await session.put("x", [1])
        await session.put("y", [2])
        session.handles.put("x", Unbuildable(), True)
        await session.reset()
        result = await session.run("y, 'x' in globals()")
        assert result.value == ([2], False)
        assert any("handle x" in note for note in result.notes)
        assert (await session.run("1")).notes == ()


@pytest.mark.parametrize("who", ["guest", "host", "deleted"])
async def test_a_handle_that_was_replaced_is_bound_with_its_new_value(
    new_executor: NewExecutor, who: str
) -> None:
    async with session_of(new_executor) as session:
        await session.put("x", [1])
        if who == "guest":
            await value(session, "handles.put('x', [2], overwrite=True)")
        elif who == "host":
            session.handles.put("x", [2], True)
        else:
            session.handles.delete("x")
            await value(session, "handles.put('x', [2])")
        await session.reset()
        assert await value(session, "x, handles.get('x')") == ([2], [2])


async def test_shared_memory_of_handles_that_are_gone_is_given_back(
    new_worker: NewExecutor,
) -> None:
    async with session_of(new_worker) as session:
        await session.put("x", np.zeros(1_000_000))
        bindings = session._bindings  # pyright: ignore[reportPrivateUsage]
        assert bindings is not None
        shared = bindings._shared  # pyright: ignore[reportPrivateUsage]
        assert list(shared) == ["x"]
        await value(session, "handles.delete('x')")
        await session.reset()
        assert not shared


async def test_code_that_puts_much_is_told_of_within_bounds(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        result = await session.run(
            "for n in range(100): handles.put(f'n{n}', n)\n"
            "for n in range(100): handles.put('same', n, overwrite=True)"
        )
        assert result.is_ok
        assert len(result.handles) <= MAX_TOLD
        assert "same" in result.handles
        assert len(session.handles.handle_names()) == 101


async def test_names_that_runs_leave_are_known_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_handles, "MAX_AWAY", 30)
    async with session_of(plain) as session:
        for run in range(3):
            await session.run(f"for n in range(20): globals()[f'v{run}_{{n}}'] = 'x' * 9999")
        assert len(session.handles.handle_names()) == 30
        assert len(await value(session, "v0_0")) == 9999


@pytest.mark.parametrize("name", ["ﬁx", "x" * 201, "tools", "list", "class", "1x", "", "a.b"])
async def test_names_that_code_could_not_say_are_refused(name: str) -> None:
    async with session_of(InProcessExecutor) as session:
        with pytest.raises(InvalidName):
            await session.put(name, 1)
        assert not (await session.run(f"handles.put({name!r}, 1)")).is_ok
        assert session.handles.handle_names() == []


async def test_results_of_calls_get_a_name_whatever_they_are_called() -> None:
    async with session_of(InProcessExecutor) as session:
        for name in ("class", "_x", "a-b", "9"):
            await session.save_artifact(name, "x" * 100_000)
            assert await value(session, f"len(artifacts.load({name!r}))") == 100_000
        assert len(session.handles.handle_names()) == 4


@with_copies
async def test_a_fork_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SessionCache] = []

    def broken(self: Any, origin: Any) -> None:
        made.append(self._handles)
        raise OSError("no room")

    monkeypatch.setattr("py_code_mode.bindings.Bindings.take_over", broken)
    async with session_of(sandboxed) as session:
        await session.put("x", [1])
        with pytest.raises(OSError, match="no room"):
            await session.fork()
        with pytest.raises(HandlesClosed):
            made[0].get("x")
        assert await value(session, "x") == [1]
