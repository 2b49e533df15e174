"""What a session promises beyond its reference: order, time, cancellation, and leaving nothing."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import tempfile
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio
import anyio.lowlevel
import psutil
import pytest

from py_code_mode import (
    Capability,
    CapabilityMissing,
    ConfigError,
    ExecutionResult,
    FileStorage,
    InProcessConfig,
    InProcessExecutor,
    MemoryStorage,
    ReentrantRun,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import (
    ExecutorNotFound,
    ForeignEventLoop,
    HandleNotFound,
    InvalidName,
    InvalidWorkflow,
    SessionClosed,
)
from py_code_mode.testing import FakeExecutor

from .session_executors import cancel_at_first_output
from .zygotes import executor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from pathlib import Path

    from py_code_mode.execution.executor import Executor

pytestmark = pytest.mark.anyio

NewExecutor: TypeAlias = "Callable[[], Executor]"

TIMEOUT = 60.0
IS_FULL = os.environ.get("PY_CODE_MODE_FULL") == "1"
RUNS = 10_000 if IS_FULL else 1_000
SESSIONS = 200 if IS_FULL else 30
#: Awaits after which a cancelled start, run or close must have ended by itself.
MAX_AWAITS = 200


@pytest.fixture(params=[InProcessExecutor, SubprocessExecutor])
def new_executor(request: pytest.FixtureRequest) -> NewExecutor:
    return request.param


def session_of(new_executor: NewExecutor, **options: Any) -> Session:
    return Session(MemoryStorage(), new_executor(), **options)


# -- order


async def test_runs_at_once_queue_in_order(new_executor: NewExecutor) -> None:
    results: list[ExecutionResult] = []
    async with session_of(new_executor) as session:
        await session.run("seen = []")

        async def run(number: int) -> None:
            results.append(await session.run(f"seen.append({number}); list(seen)"))

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(run, number)
        assert [result.value for result in results] == [list(range(n + 1)) for n in range(20)]
        assert [result.run_id for result in results] == list(range(2, 22))


async def test_reset_waits_for_the_run(new_executor: NewExecutor) -> None:
    arrived, go = anyio.Event(), anyio.Event()

    async def wait() -> None:
        arrived.set()
        await go.wait()

    async with session_of(new_executor) as session:
        session.add_tool(wait)
        results: list[ExecutionResult] = []

        async def run() -> None:
            results.append(await session.run("x = 5\ntools.wait()\nx"))

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await arrived.wait()
                tasks.start_soon(session.reset)
                await anyio.wait_all_tasks_blocked()
                go.set()
        assert results[0].value == 5
        assert (await session.run("x")).error == "NameError: name 'x' is not defined"


async def test_waiting_in_the_queue_does_not_count_as_time(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        results: list[ExecutionResult] = []

        async def run(code: str, timeout: float) -> None:
            results.append(await session.run(code, timeout))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "while True: pass", 1.5)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(run, "'quick'", 1.4)
        assert results[1].value == "quick"
        assert results[1].duration < 1.4


# -- time


@pytest.mark.parametrize("timeout", [0, -1, -math.inf, math.nan])
async def test_timeout_must_be_above_zero(timeout: float) -> None:
    async with session_of(FakeExecutor) as session:
        with pytest.raises(ValueError, match="above 0"):
            await session.run("1", timeout)


@pytest.mark.parametrize("timeout", [True, "5"])
async def test_timeout_must_be_a_number(timeout: Any) -> None:
    async with session_of(FakeExecutor) as session:
        with pytest.raises(TypeError, match="seconds"):
            await session.run("1", timeout)


async def test_code_must_be_text() -> None:
    async with session_of(FakeExecutor) as session:
        code: Any = b"1"
        with pytest.raises(TypeError, match="code must be a str, not bytes"):
            await session.run(code)


async def test_no_timeout_means_the_default_and_inf_means_none() -> None:
    config = InProcessConfig(default_timeout=0.2)
    async with Session(MemoryStorage(), InProcessExecutor(config)) as session:
        code = "import time\nuntil = time.monotonic() + 0.4\nwhile time.monotonic() < until: pass"
        assert not (await session.run("while True: pass")).is_ok
        assert not (await session.run("while True: pass", None)).is_ok
        assert (await session.run(code, math.inf)).is_ok
        assert (await session.run(code, 30)).is_ok


async def test_default_of_none_means_no_limit() -> None:
    config = InProcessConfig(default_timeout=None)
    async with Session(MemoryStorage(), InProcessExecutor(config)) as session:
        assert (await session.run("'x'")).value == "x"


# -- calls of tools


@pytest.mark.parametrize("is_async", [True, False])
async def test_tool_that_runs_code_on_its_own_session_is_refused(
    new_executor: NewExecutor, is_async: bool
) -> None:
    async with session_of(new_executor) as session:

        async def again() -> object:
            return (await session.run("1")).value

        loop = asyncio.get_running_loop()

        def again_from_a_thread() -> object:
            return asyncio.run_coroutine_threadsafe(session.run("1"), loop).result(TIMEOUT).value

        session.add_tool(again if is_async else again_from_a_thread, name="again")
        with anyio.fail_after(TIMEOUT):
            result = await session.run("tools.again()")
        assert result.error is not None
        assert "use another session" in result.error
        assert (await session.run("1 + 1")).value == 2
        for other in (session.reset, lambda: session.put("x", 1), lambda: session.get("x")):
            session.add_tool(other, name=f"t{id(other)}")
            result = await session.run(f"tools.t{id(other)}()")
            assert result.error is not None
            assert "use another session" in result.error


async def test_tool_may_run_code_on_another_session(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as inner, session_of(new_executor) as outer:

        async def ask(code: str) -> object:
            return (await inner.run(code)).value

        outer.add_tool(ask)
        with anyio.fail_after(TIMEOUT):
            assert (await outer.run("tools.ask('6 * 7') + 1")).value == 43


async def test_task_started_by_a_tool_may_run_code_once_its_run_is_over() -> None:
    async with session_of(InProcessExecutor) as session, anyio.create_task_group() as tasks:
        over = anyio.Event()
        results: list[object] = []

        async def later() -> None:
            await over.wait()
            results.append((await session.run("2")).value)

        async def plan() -> None:
            tasks.start_soon(later)

        session.add_tool(plan)
        assert (await session.run("tools.plan()")).is_ok
        over.set()
        with anyio.fail_after(TIMEOUT):
            while not results:
                await anyio.lowlevel.checkpoint()
        assert results == [2]


async def test_reentrant_run_is_a_runtime_error() -> None:
    assert issubclass(ReentrantRun, RuntimeError)


# -- cancellation at every await


#: anyio cancels a scope, again and again; asyncio.timeout and wait_for cancel the task, once.
KINDS_OF_CANCELLATION = ["scope", "task"]


class CancelAt:
    """Awaits a coroutine, and cancels the scope around it, or its task, at its n-th await."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], number: int, kind: str) -> None:
        self._kind = kind
        self._steps = coroutine.__await__()
        self._number = number
        self._scope = anyio.CancelScope()
        self.awaits = 0

    async def run(self) -> bool:
        """Whether the coroutine ended before its n-th await."""
        with anyio.fail_after(TIMEOUT), self._scope:
            try:
                await self
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                if self._kind == "scope" or not task.uncancel() == 0:
                    raise
        return self.awaits < self._number

    def _cancel(self) -> None:
        if self._kind == "scope":
            self._scope.cancel()
        else:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    def __await__(self) -> Generator[Any, Any, object]:
        go_on: Callable[[Any], Any] = self._steps.send
        given: Any = None
        while True:
            try:
                waiting = go_on(given)
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits == self._number:
                self._cancel()
            try:
                given = yield waiting
                go_on = self._steps.send
            except BaseException as error:
                given = error
                go_on = self._steps.throw


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("kind", KINDS_OF_CANCELLATION)
async def test_start_cancelled_at_any_await_leaves_nothing(
    new_executor: NewExecutor, kind: str
) -> None:
    before = children()
    for number in range(1, MAX_AWAITS):
        session = session_of(new_executor)
        has_ended = await CancelAt(session.start(), number, kind).run()
        if has_ended:
            assert (await session.run("1 + 1")).value == 2
            await session.close()
            return
        if "open" not in repr(session):
            assert children() == before
            with pytest.raises(SessionClosed):
                await session.run("1")
        await session.close()
        assert children() == before
    pytest.fail("start() does not end")


@pytest.mark.parametrize(
    "code", ["x = 2\ntools.short()\nprint('hello')\nx", "x = 2\nwhile True: tools.short()"]
)
@pytest.mark.parametrize("kind", KINDS_OF_CANCELLATION)
async def test_run_cancelled_at_any_await_leaves_a_usable_session(
    new_executor: NewExecutor, code: str, kind: str
) -> None:
    async def short() -> int:
        await anyio.lowlevel.checkpoint()
        return 1

    async with session_of(new_executor) as session:
        session.add_tool(short)
        await session.run("kept_name = 1")
        for number in range(1, MAX_AWAITS):
            run = session.run(code, None if "while" not in code else 20.0, _slow)
            has_ended = await CancelAt(run, number, kind).run()
            assert session.state == "kept"
            assert (await session.run("kept_name")).value == 1
            if has_ended or ("while" in code and number == 4):
                return
        pytest.fail("run() does not end")


@pytest.mark.parametrize("act", ["checkpoint", "rollback", "fork", "run"])
@pytest.mark.parametrize("kind", KINDS_OF_CANCELLATION)
async def test_copying_cancelled_at_any_await_leaves_a_usable_session(kind: str, act: str) -> None:
    protected = partial(SubprocessExecutor, SubprocessConfig(protect="always"))
    async with session_of(protected) as session:
        if not session.supports(Capability.CHECKPOINT):
            pytest.skip("no copies can be made on this machine")
        await session.run("kept_name = 1")
        origin = await session.checkpoint()

        async def fork() -> None:
            other = await session.fork()
            await other.close()

        for number in range(1, MAX_AWAITS):
            coroutine: Coroutine[Any, Any, object] = {
                "checkpoint": session.checkpoint,
                "rollback": partial(session.rollback, origin),
                "fork": fork,
                "run": partial(session.run, "import os; os._exit(1)"),
            }[act]()
            has_ended = await CancelAt(coroutine, number, kind).run()
            assert session.state != "lost"
            assert await session.get("kept_name") == 1
            assert (await session.run("kept_name")).value == 1
            if has_ended:
                return
    pytest.fail(f"{act}() does not end")


async def _slow(event: object) -> None:
    await anyio.lowlevel.checkpoint()


async def test_queued_run_that_is_cancelled_never_runs(new_executor: NewExecutor) -> None:
    arrived, go = anyio.Event(), anyio.Event()

    async def wait() -> None:
        arrived.set()
        await go.wait()

    async with session_of(new_executor) as session:
        session.add_tool(wait)
        await session.run("ran = []")
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def run() -> None:
                with scope:
                    await session.run("ran.append(2)")

            tasks.start_soon(session.run, "ran.append(1)\ntools.wait()")
            await arrived.wait()
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            go.set()
        assert (await session.run("ran")).value == [1]


@pytest.mark.parametrize("kind", KINDS_OF_CANCELLATION)
async def test_close_cancelled_at_any_await_finishes_all_the_same(
    new_executor: NewExecutor, kind: str
) -> None:
    before = children()
    for number in range(1, MAX_AWAITS):
        session = session_of(new_executor)
        await session.start()
        has_ended = await CancelAt(session.close(), number, kind).run()
        assert children() == before
        with pytest.raises(SessionClosed):
            await session.run("1")
        if has_ended:
            return
    pytest.fail("close() does not end")


# -- life


async def test_close_during_start_from_another_task(new_executor: NewExecutor) -> None:
    for pauses in range(12):
        session = session_of(new_executor)
        outcome: list[str] = []

        async def start(session: Session = session, outcome: list[str] = outcome) -> None:
            try:
                await session.start()
                outcome.append("started")
            except SessionClosed:
                outcome.append("closed")

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(start)
                for _ in range(pauses):
                    await anyio.lowlevel.checkpoint()
                tasks.start_soon(session.close)
        assert outcome in (["closed"], ["started"])
        with pytest.raises(SessionClosed):
            await session.run("1")


async def test_start_from_two_tasks_starts_once(new_executor: NewExecutor) -> None:
    session = session_of(new_executor)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.start)
        tasks.start_soon(session.start)
    assert (await session.run("1")).value == 1
    await session.close()


async def test_close_ends_runs_that_wait(new_executor: NewExecutor) -> None:
    arrived = anyio.Event()
    async with session_of(new_executor) as session:
        session.add_tool(arrived.set, name="arrived", description="Tell")
        ended: list[str] = []

        async def run(code: str) -> None:
            try:
                result = await session.run(code)
                ended.append(str(result.error))
            except SessionClosed:
                ended.append("SessionClosed")

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, "tools.arrived()\nwhile True: pass")
                await arrived.wait()
                tasks.start_soon(run, "1")
                await anyio.wait_all_tasks_blocked()
                await session.close()
        assert "closed during the run" in ended[0]
        assert ended[1] == "SessionClosed"


async def test_failed_start_leaves_nothing_and_closes(tmp_path: Path) -> None:
    executor = SubprocessExecutor(SubprocessConfig(python_version="/no/such/python"))
    session = Session(MemoryStorage(), executor)
    with pytest.raises(Exception, match="/no/such/python"):
        await session.start()
    with pytest.raises(SessionClosed):
        await session.start()


async def test_close_while_a_dead_worker_is_replaced_leaves_no_process() -> None:
    async with session_of(SubprocessExecutor):
        pass  # there is a zygote now, which stays
    before = children()
    for pauses in range(0, 40, 4):
        session = session_of(SubprocessExecutor)
        await session.start()
        await session.run("import os; os._exit(1)")

        async def run(session: Session = session) -> None:
            try:
                await session.run("1")
            except SessionClosed:
                pass  # close() came first

        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                for _ in range(pauses):
                    await anyio.lowlevel.checkpoint()
                await session.close()
        assert children() == before


async def test_given_workdir_is_kept_and_a_private_one_removed(tmp_path: Path) -> None:
    given = tmp_path / "given"
    async with session_of(SubprocessExecutor, workdir=given) as session:
        await session.run("open('made.txt', 'w').close()")
    assert (given / "made.txt").exists()
    async with session_of(SubprocessExecutor) as session:
        await session.run("import os; open('made.txt', 'w').close(); os.chmod('.', 0o500)")
        private = str((await session.run("os.getcwd()")).value)
    # in a sandbox it never was on this machine
    assert not await anyio.Path(private, "made.txt").exists()


# -- values


async def test_values_are_put_and_got(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        await session.put("given", [1, {"a": (2,)}])
        assert (await session.run("given[1]['a']")).value == (2,)
        await session.run("made = {'x': b'y'}")
        assert await session.get("made") == {"x": b"y"}
        with pytest.raises(HandleNotFound):
            await session.get("missing")
        for name in ("tools", "display", "not a name", ""):
            with pytest.raises(InvalidName):
                await session.put(name, 1)


async def test_what_the_executor_lacks_is_refused() -> None:
    class Bare(FakeExecutor):
        offers = frozenset[str]()

    async with session_of(Bare) as session:
        with pytest.raises(CapabilityMissing):
            await session.put("x", 1)
        with pytest.raises(CapabilityMissing):
            await session.get("x")


# -- workspaces


def configured(base: Path, text: str) -> Path:
    base.mkdir(exist_ok=True)
    (base / "config.yaml").write_text(text)
    return base


@pytest.mark.parametrize(
    ("text", "options", "kind", "timeout"),
    [
        ("", {}, InProcessExecutor, 30.0),
        ("# nothing said\n", {}, InProcessExecutor, 30.0),
        ("executor: subprocess\n", {}, SubprocessExecutor, 60.0),
        ("executor: in_process\n", {}, InProcessExecutor, 30.0),
        ("timeout: 5\n", {}, InProcessExecutor, 5.0),
        ("timeout: null\n", {}, InProcessExecutor, None),
        ("timeout: 5\n", {"timeout": 7.0}, InProcessExecutor, 7.0),
        ("timeout: 5\n", {"timeout": 30.0}, InProcessExecutor, 30.0),
        ("timeout: 5\n", {"timeout": None}, InProcessExecutor, None),
        ("executor: subprocess\ntimeout: 9\n", {}, SubprocessExecutor, 9.0),
        ("executor: subprocess\n", {"timeout": 30.0}, SubprocessExecutor, 30.0),
    ],
)
def test_argument_wins_over_the_file_which_wins_over_the_default(
    tmp_path: Path,
    text: str,
    options: dict[str, Any],
    kind: type[Executor],
    timeout: float | None,
) -> None:
    executor = executor_of(Session.from_base(configured(tmp_path / "base", text), **options))
    assert type(executor) is kind
    assert executor.config.default_timeout == timeout


def test_executor_asked_for_by_method_is_not_weakened_by_the_file(tmp_path: Path) -> None:
    base = configured(tmp_path / "base", "executor: in_process\ntimeout: 5\n")
    executor = executor_of(Session.subprocess(base))
    assert type(executor) is SubprocessExecutor
    assert executor.config.default_timeout == 5.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timeout: soon\n", "timeout"),
        ("timeout: 0\n", "timeout"),
        ("timeout: true\n", "timeout"),
        ("executor: [a]\n", "executor"),
        ("- a list\n", "mapping"),
        ("a: [\n", "not YAML"),
        ("colour: red\n", "colour"),
        ("policy: {}\n", "policy"),
        ("tools: {}\n", "tools"),
    ],
)
def test_bad_configuration_is_an_error_that_names_file_and_key(
    tmp_path: Path, text: str, says: str
) -> None:
    base = configured(tmp_path / "base", text)
    with pytest.raises(ConfigError, match=says) as caught:
        Session.from_base(base)
    assert str(base / "config.yaml") in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_unknown_executor_is_an_error_that_lists_those_installed(tmp_path: Path) -> None:
    base = configured(tmp_path / "base", "executor: moon\n")
    with pytest.raises(ExecutorNotFound, match=r"moon.*in_process, subprocess"):
        Session.from_base(base)


# -- for agents


async def test_as_tool_runs_code_and_gives_text() -> None:
    async with session_of(InProcessExecutor) as session:
        tool = session.as_tool()
        assert await tool("print('hi')\n6 * 7") == "hi\n42"
        assert "ZeroDivisionError" in await tool("1 / 0")
        schema = tool.json_schema
        assert schema["parameters"]["required"] == ["code"]
        assert schema["description"] == tool.__doc__


async def test_instructions_name_what_there_is_within_the_budget(tmp_path: Path) -> None:
    async with Session(FileStorage(tmp_path), FakeExecutor()) as session:
        for number in range(300):
            session.add_tool(lambda: None, name=f"tool_{number}", description="Do things")
        await session.add_workflow("flow", "def run(): pass", "Flow along\nand more")
        text = await session.instructions()
        assert "tools.tool_0: Do things" in text
        assert "left out" in text
        assert len(text.encode()) <= 4 * 1500
        assert len((await session.instructions(max_tokens=50)).encode()) <= 200
        assert "workflows.flow: Flow along" in await session.instructions(max_tokens=100_000)


async def test_fake_executor_answers_from_its_script() -> None:
    executor = FakeExecutor({"1 + 1": 3, "boom": KeyError("x")}, default=len)
    async with Session(MemoryStorage(), executor) as session:
        assert (await session.run("1 + 1")).value == 3
        assert (await session.run("boom")).error == "KeyError: 'x'"
        assert (await session.run("abc")).value == 3
        await session.put("x", 5)
        assert await session.get("x") == 5
        await session.reset()
    assert executor.seen == ["1 + 1", "boom", "abc"]


# -- leaving nothing


def _comes(process: psutil.Process) -> bool:
    """Whether it comes and goes by itself: a session's sleeping copy, what a zygote makes ahead."""
    try:
        return process.name() in ("sleeper", "pcm-zygote", "pcm-spare")
    except psutil.NoSuchProcess:
        return True


def _present() -> dict[str, int]:
    gc.collect()
    me = psutil.Process()
    # anyio's own pool of threads grows to a bound, and shrinks when it idles
    threads = [t for t in threading.enumerate() if not t.name.startswith("AnyIO worker")]
    return {
        "fds": me.num_fds(),
        "threads": len(threads),
        "processes": len([child for child in me.children(recursive=True) if not _comes(child)]),
        "tasks": len(asyncio.all_tasks()),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def grown_since(before: dict[str, int]) -> dict[str, int]:
    """What there is more of; pools of threads may have shrunk, a copy may have been made."""
    spare = {"fds": 1}
    return {
        name: now for name, now in _present().items() if now > before[name] + spare.get(name, 0)
    }


@pytest.mark.timeout(600)
async def test_many_runs_in_one_session_leave_nothing(new_executor: NewExecutor) -> None:
    async with session_of(new_executor) as session:
        session.add_tool(abs, name="absolute", description="The absolute value")

        async def run(number: int) -> None:
            result = await session.run(f"print({number})\nx = tools.absolute(-{number})\nx")
            assert (result.value, result.stdout) == (number, f"{number}\n")

        for number in range(200):
            await run(number)
        before = _present()
        blocks = sys.getallocatedblocks()
        for number in range(RUNS):
            await run(number)
        gc.collect()
        growth = sys.getallocatedblocks() - blocks
        assert grown_since(before) == {}
        assert growth < RUNS // 2, f"{growth} objects more after {RUNS} runs"


@pytest.mark.timeout(600)
async def test_many_sessions_in_a_row_leave_nothing(new_executor: NewExecutor) -> None:
    async def use() -> None:
        async with session_of(new_executor) as session:
            assert (await session.run("import json\nx = 'x' * 100_000\nlen(x)")).value == 100_000

    for _ in range(5):
        await use()
    before = _present()
    blocks = sys.getallocatedblocks()
    for _ in range(SESSIONS):
        await use()
    gc.collect()
    growth = sys.getallocatedblocks() - blocks
    assert grown_since(before) == {}
    assert growth < 100 * SESSIONS, f"{growth} objects more after {SESSIONS} sessions"


async def test_twenty_sessions_start_at_once(new_executor: NewExecutor) -> None:
    async def use(number: int) -> None:
        async with session_of(new_executor) as session:
            result = await session.run(f"print({number})\n{number}")
            assert (result.value, result.stdout) == (number, f"{number}\n")

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(use, number)


# -- what a review found


async def test_slow_callback_does_not_cost_the_variables(new_executor: NewExecutor) -> None:
    """The grace went on while the callback took its time, and ended a run that was over."""
    released = anyio.Event()

    async def slow(event: object) -> None:
        if getattr(event, "kind", "") == "stdout":
            await released.wait()

    async with session_of(new_executor) as session, anyio.create_task_group() as tasks:
        await session.run("x = 1")
        results: list[Any] = []
        ended = anyio.Event()

        async def run() -> None:
            results.append(await session.run("print(1)\nwhile True: pass", 0.2, slow))
            ended.set()

        tasks.start_soon(run)
        with anyio.fail_after(TIMEOUT):
            await anyio.sleep(
                0.2 + 1.5
            )  # the deadline, the grace and some more: real time is the point
            released.set()
            await ended.wait()
        assert results[0].state == "kept"
        assert (await session.run("x")).value == 1


async def test_tool_may_close_its_own_session(new_executor: NewExecutor) -> None:
    """The call waited for the close, and the close for the call."""
    session = session_of(new_executor)

    async def finish() -> None:
        await session.close()

    session.add_tool(finish)
    await session.start()
    with anyio.fail_after(TIMEOUT):
        result = await session.run("tools.finish()")
        assert not result.is_ok
        await session.close()
    with pytest.raises(SessionClosed):
        await session.run("1")


async def test_loss_between_runs_is_told_after_a_cancelled_run() -> None:
    """The cancelled run took the notice of the loss with it."""
    plain = partial(SubprocessExecutor, SubprocessConfig(backend="none"))
    async with session_of(plain) as session:
        pid = (await session.run("import os; x = 1; os.getpid()")).value
        assert isinstance(pid, int)
        worker = psutil.Process(pid)
        worker.kill()
        await anyio.to_thread.run_sync(worker.wait, TIMEOUT)
        with anyio.fail_after(TIMEOUT):
            await cancel_at_first_output(session, "print(1, flush=True)\nwhile True: pass")
        assert session.state == "lost"
        result = await session.run("'x' in globals()")
        assert (result.value, result.state) == (False, "lost")
        assert (await session.run("1")).state == "kept"


async def test_second_close_waits_for_the_code_to_end() -> None:
    """It came back at once, and took the workdir from under the code."""
    session = session_of(InProcessExecutor)
    still_there: list[str] = []
    before = set(threading.enumerate())
    await session.start()
    begun = anyio.Event()

    async def tell(event: object) -> None:
        begun.set()

    async def run() -> None:
        await session.run("import time\nprint('begun')\ntime.sleep(0.9)", on_output=tell)

    async def close() -> None:
        await session.close()
        new = set(threading.enumerate()) - before
        still_there.extend(one.name for one in new if one.name.startswith("session"))

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await begun.wait()
            tasks.start_soon(close)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(close)
    # a thread that sleeps cannot be interrupted, so both have to wait for it
    assert still_there == []


async def test_exit_with_an_unread_reply_tells_its_own_status() -> None:
    """A reset connection was told instead of how the worker had ended."""
    async with session_of(SubprocessExecutor) as session:

        async def big() -> str:
            return "x" * 100_000

        session.add_tool(big)
        result = await session.run(
            "import asyncio, os, time\n"
            "asyncio.ensure_future(tools.big.call_async())\n"
            "await asyncio.sleep(0)\n"
            "await asyncio.sleep(0)\n"
            "time.sleep(0.3)\n"
            "os._exit(7)"
        )
        assert result.failure is not None
        assert "exited with status 7" in result.failure.message


async def test_kept_arrays_hold_no_descriptors() -> None:
    """Each one that came through shared memory kept a descriptor open."""
    uncopied = partial(SubprocessExecutor, SubprocessConfig(protect="off"))
    async with session_of(uncopied) as session:
        await session.run("import numpy")
        before = psutil.Process().num_fds()
        kept = [(await session.run("numpy.ones(100_000)")).value for _ in range(5)]
        assert psutil.Process().num_fds() == before
        assert len(kept) == 5


async def test_another_event_loop_is_refused_at_once(new_executor: NewExecutor) -> None:
    """Both loops hung."""
    async with session_of(new_executor) as session:

        def elsewhere() -> None:
            asyncio.run(session.run("1"))

        with anyio.fail_after(TIMEOUT), pytest.raises(ForeignEventLoop):
            await anyio.to_thread.run_sync(elsewhere)
        assert (await session.run("2")).value == 2


async def test_callback_that_runs_its_own_session_is_refused(new_executor: NewExecutor) -> None:
    """The lock's own error came instead."""
    async with session_of(new_executor) as session:

        async def again(event: object) -> None:
            await session.run("1")

        with pytest.raises(ReentrantRun):
            await session.run("print(1)", on_output=again)
        assert (await session.run("2")).value == 2


async def test_keyboard_interrupt_of_a_repr_leaves_the_next_run_interruptible() -> None:
    """The deferring handler was taken for the user's own."""
    async with session_of(SubprocessExecutor) as session:
        await session.run("class K:\n    def __repr__(self): raise KeyboardInterrupt\nkeep = 1")
        await session.run("K()")
        assert (await session.run("while True: pass", 0.3)).state == "kept"
        assert (await session.run("keep")).value == 1


async def test_error_of_a_call_has_no_frames_of_the_host(new_executor: NewExecutor) -> None:
    """In process, the host's frames and paths were shown."""

    def odd(a: int) -> int:
        raise ValueError("x" * 3_000_000)

    async with session_of(new_executor) as session:
        session.add_tool(odd)
        for code in ("tools.odd('x')", "tools.nothere()", "tools.odd(1)"):
            failure = (await session.run(code)).failure
            assert failure is not None
            assert failure.type in ("ToolArgumentError", "ToolNotFound", "ToolFailed")
            assert "py_code_mode" not in failure.traceback
            assert failure.traceback.count('File "') == 1


async def test_odd_texts_are_taken_as_plain_ones(new_executor: NewExecutor) -> None:
    class Text(str):
        pass

    async with session_of(new_executor) as session:
        assert (await session.run(Text("1 + 1"))).value == 2
        text = (await session.run("x = (")).to_text()
        assert text.count("SyntaxError") == 1
        with pytest.raises(InvalidWorkflow):
            await session.add_workflow("odd", cast("Any", 5), "")
