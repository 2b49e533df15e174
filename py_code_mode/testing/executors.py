"""What every executor has to do: inherit `ExecutorContract` in a test class, say how to make one.

```python
class TestMyExecutor(ExecutorContract):
    def make_executor(self) -> Executor:
        return MyExecutor()
```

A test that needs what the executor does not offer is skipped, and says which capability is missing.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import tempfile
import uuid
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from dataclasses import replace
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode.errors import (
    CallFailed,
    CapabilityMissing,
    CheckpointClosed,
    CheckpointRefused,
    ExecutorClosed,
    HandleNotFound,
    ToolNotFound,
    ValueNotPortable,
)
from py_code_mode.execution.executor import (
    Bind,
    BranchingExecutor,
    Capability,
    Executor,
    Fetch,
    Load,
    Offer,
    OnEvent,
    Release,
    RunOutcome,
    RunRequest,
    Save,
    SavedState,
    Setup,
)
from py_code_mode.namespaces import Namespaces
from py_code_mode.results import Called, Event, Handle, Output, Shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

__all__ = ["ExecutorContract", "OpenGuest"]

#: Seconds until a run that hangs fails its test.
RUN_TIMEOUT = 60.0
#: Seconds for a whole test.
_PATIENCE = 100.0
#: Seconds within which control must be back after a timeout of a fraction of a second.
_BACK_WITHIN = 8.0
_POLL = 0.01

#: Code that cannot be stopped politely; it ends by itself, so that a thread does not stay for ever.
STUBBORN = """
import time
until = time.monotonic() + 4
while time.monotonic() < until:
    try:
        while time.monotonic() < until:
            pass
    except BaseException:
        pass
"""


class OpenGuest:
    """A started executor, driven as a session would.

    Attributes:
        answers: what stands behind ``tools.<name>(...)``: sync or async functions.
        calls: ``(namespace, method)`` of every call, in order.
    """

    def __init__(self, executor: Executor, workdir: Path) -> None:
        self.executor = executor
        self.workdir = workdir
        self.answers: dict[str, Callable[..., object]] = {}
        self.calls: list[tuple[str, str]] = []
        self._runs = 0

    async def start(self) -> None:
        """Start the executor."""
        setup = Setup(
            session_id=f"contract-{id(self):x}",
            namespaces=Namespaces.describe(),
            workdir=self.workdir,
        )
        await self.executor.start(setup, self._call)

    async def _call(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        self.calls.append((namespace, method))
        if namespace != "tools" or method in ("list", "search", "names", "recipes"):
            return [method, list(args), dict(kwargs)]
        answer = self.answers.get(method)
        if answer is None:
            raise ToolNotFound(method, sorted(self.answers))
        result = answer(*args, **kwargs)
        return await result if isawaitable(result) else result

    async def run(
        self, code: str, timeout: float | None = RUN_TIMEOUT, on_event: OnEvent | None = None
    ) -> RunOutcome:
        """Run a cell."""
        self._runs += 1
        return await self.executor.run(
            RunRequest(run_id=self._runs, code=code, timeout=timeout), on_event
        )

    async def value(self, code: str) -> Any:
        """Run a cell that must succeed; give its value."""
        outcome = await self.run(code)
        assert outcome.failure is None, outcome.failure.traceback or outcome.failure
        return outcome.value

    async def failure(self, code: str) -> Any:
        """Run a cell that must fail; give its failure."""
        outcome = await self.run(code)
        assert outcome.failure is not None, f"no failure, but {outcome}"
        return outcome.failure

    @property
    def branching(self) -> BranchingExecutor:
        """The executor, which can copy its guest."""
        assert isinstance(self.executor, BranchingExecutor)
        return self.executor

    def needs(self, *capabilities: str) -> None:
        """Skip the test where the executor lacks one of these."""
        for capability in capabilities:
            if capability not in self.executor.capabilities:
                pytest.skip(f"the {self.executor.name} executor does not offer {capability}")

    def path(self, name: str) -> str:
        """How guest code finds a file of the workdir."""
        if Capability.PROCESS_ISOLATION in self.executor.capabilities:
            return name
        return str(self.workdir / name)

    async def ended_by(
        self, code: str, timeout: float = RUN_TIMEOUT, before: str = "kept_name = 1"
    ) -> RunOutcome:
        """Run a cell that ends the guest's process, when a copy of the guest is there for it.

        The copy has the variables that `before` makes; the cell sets ``kept_name`` to 2.
        """
        with anyio.fail_after(_PATIENCE):
            while True:
                await self.value(before)
                run = self._runs
                await anyio.sleep(_POLL)  # a copy is made in a pause
                outcome = await self.run(f"kept_name = 2\n{code}", timeout=timeout)
                assert outcome.failure is not None
                if outcome.state == "restored" and outcome.restored_to == run:
                    return outcome

    async def appears(self, name: str) -> str:
        """Wait for a file of the workdir, made by the guest in one step; give its text."""
        path = self.workdir / name
        with anyio.fail_after(_PATIENCE / 2):
            while not path.exists():  # noqa: ASYNC110  another process makes it
                await anyio.sleep(_POLL)
        return path.read_text("utf-8")

    async def check_state(self, outcome: RunOutcome, name: str = "kept_name") -> None:
        """Check that what a run said of the variables is true."""
        assert self.executor.state == outcome.state
        after = await self.run(name)
        if outcome.state == "lost":
            assert after.failure is not None
            assert after.failure.type == "NameError"
        else:
            assert after.failure is None, after.failure
        assert after.state == "kept"


def add(a: int, b: int = 1) -> int:
    """A tool."""
    return a + b


def meeting(count: int) -> Callable[[int], Awaitable[int]]:
    """A tool that gives minus its argument once so many callers wait for it."""
    arrived: list[int] = []
    everybody = anyio.Event()

    async def meet(number: int) -> int:
        arrived.append(number)
        if len(arrived) == count:
            everybody.set()
        await everybody.wait()
        return -number

    return meet


def show_when_told(guest: OpenGuest, statement: str) -> str:
    """Code with a thread that waits for the file ``go``, does `statement`, and writes ``done``."""
    go, new, done = (guest.path(name) for name in ("go", "done.new", "done"))
    body = "\n".join(f"        {line}" for line in statement.splitlines())
    return f"""
import os, sys, threading, time
def wait_and_act():
    until = time.monotonic() + 60
    while not os.path.exists({go!r}) and time.monotonic() < until:
        time.sleep(0.01)
    said = ""
    try:
{body}
    except Exception as error:
        said = type(error).__name__ + ": " + str(error)
    with open({new!r}, "w") as file:
        file.write(said)
    os.rename({new!r}, {done!r})
threading.Thread(target=wait_and_act).start()
"""


@pytest.mark.anyio
class ExecutorContract(ABC):
    """Behaviour that a `Session` relies on, whatever the executor."""

    @abstractmethod
    def make_executor(self) -> Executor:
        """A new executor that has not been started."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @asynccontextmanager
    async def open(self, **answers: Callable[..., object]) -> AsyncGenerator[OpenGuest]:
        """A started guest whose tools are `answers`; closed at the end."""
        with (
            anyio.fail_after(_PATIENCE),
            tempfile.TemporaryDirectory(prefix="contract-", ignore_cleanup_errors=True) as folder,
        ):
            guest = OpenGuest(self.make_executor(), Path(folder))
            guest.answers.update(answers)
            await guest.start()
            try:
                yield guest
            finally:
                await guest.executor.close()

    # -- capabilities and life

    async def test_capabilities_after_start_are_among_those_offered(self) -> None:
        offered = self.make_executor().capabilities
        async with self.open() as guest:
            assert guest.executor.capabilities <= offered
            assert all(isinstance(name, str) for name in guest.executor.capabilities)

    async def test_configuration_and_environment_are_known_after_start(self) -> None:
        async with self.open() as guest:
            config = guest.executor.config
            assert config.default_timeout is None or config.default_timeout > 0
            environment = guest.executor.environment
            version = await guest.value("import sys; tuple(sys.version_info[:3])")
            assert tuple(version) == tuple(environment.version)

    async def test_run_before_start_and_after_close_is_an_error(self) -> None:
        executor = self.make_executor()
        with pytest.raises(ExecutorClosed):
            await executor.run(RunRequest(run_id=1, code="1"))
        await executor.close()
        with pytest.raises(ExecutorClosed):
            await executor.run(RunRequest(run_id=1, code="1"))
        async with self.open() as guest:
            await guest.executor.close()
            for use in (
                guest.run("1"),
                guest.executor.reset(),
                guest.executor.interrupt(),
                guest.executor.exchange(Fetch("x")),
            ):
                with pytest.raises(ExecutorClosed):
                    await use

    async def test_start_happens_once(self) -> None:
        async with self.open() as guest:
            with pytest.raises(ExecutorClosed):
                await guest.start()
            assert await guest.value("1 + 1") == 2

    async def test_closed_executor_cannot_be_started(self, tmp_path: Path) -> None:
        executor = self.make_executor()
        await executor.close()
        with pytest.raises(ExecutorClosed):
            await OpenGuest(executor, tmp_path).start()

    async def test_close_is_idempotent_and_may_be_called_twice_at_once(self) -> None:
        async with self.open() as guest:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(guest.executor.close)
            await guest.executor.aclose()

    async def test_start_and_close_happen_in_different_tasks_in_any_order(
        self, tmp_path: Path
    ) -> None:
        guests: list[OpenGuest] = []
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
            guests.append(OpenGuest(self.make_executor(), tmp_path / name))
        with anyio.fail_after(_PATIENCE):
            for guest in guests:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(guest.start)
            for closing in (0, 2, 1):
                assert await guests[1].value("1 + 1") == 2
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(guests[closing].executor.close)

    async def test_close_during_start_leaves_nothing(self, tmp_path: Path) -> None:
        guest = OpenGuest(self.make_executor(), tmp_path)

        async def start() -> None:
            try:
                await guest.start()
            except ExecutorClosed:
                pass  # close() came first

        with anyio.fail_after(_PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(start)
                await anyio.lowlevel.checkpoint()
                tasks.start_soon(guest.executor.close)
        with pytest.raises(ExecutorClosed):
            await guest.run("1")

    async def test_close_during_a_run_ends_it(self) -> None:
        arrived = anyio.Event()
        async with self.open(arrived=arrived.set) as guest:
            outcomes: list[RunOutcome] = []

            async def run() -> None:
                outcomes.append(await guest.run("tools.arrived()\nwhile True: pass"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await arrived.wait()
                await guest.executor.close()
            assert outcomes[0].failure is not None
            assert outcomes[0].failure.type == "Interrupted"

    async def test_two_executors_do_not_hear_each_other(self) -> None:
        async with self.open() as one, self.open() as other:
            outcomes: dict[str, RunOutcome] = {}

            async def run(guest: OpenGuest, name: str) -> None:
                code = f"import time\nfor i in range(300): print({name!r}, i); time.sleep(0)\n"
                outcomes[name] = await guest.run(code)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, one, "one")
                tasks.start_soon(run, other, "other")
            for name, outcome in outcomes.items():
                assert outcome.stdout == "".join(f"{name} {i}\n" for i in range(300))

    # -- cells

    @pytest.mark.parametrize(
        ("code", "value"),
        [
            ("1 + 1", 2),
            ("x = 1\nx + 1", 2),
            ("x = 1", None),
            ("1 + 1;", None),
            ("", None),
            ("# only a comment", None),
            ("None", None),
            ("if True:\n    5", None),
            ("'''a\nb'''", "a\nb"),
            ("def f(): return 3\nf()", 3),
            ("(lambda: 4)()", 4),
            ("import math; math.floor(2.5)", 2),
            ("__name__", "__main__"),
            ("'é\\u20ac\\U0001f600'", "é€😀"),
            ("'\\ud800'", "\ud800"),
            ("1 + 1\n\n\n  # the end", 2),
            ("1\r\n2\r\n", 2),
        ],
    )
    async def test_value_is_that_of_the_last_expression(self, code: str, value: object) -> None:
        async with self.open() as guest:
            assert await guest.value(code) == value

    async def test_variables_stay_between_runs(self) -> None:
        async with self.open() as guest:
            await guest.value("import math\nx = [1]\ndef f(): return len(x)\nclass A: pass")
            await guest.value("x.append(2)\na = A()")
            assert await guest.value("f(), math.pi > 3, type(a) is A") == (2, True, True)

    async def test_last_value_is_called_underscore(self) -> None:
        async with self.open() as guest:
            await guest.value("41")
            assert await guest.value("_ + 1") == 42
            await guest.value("_ = 'mine'")
            await guest.value("7")
            assert await guest.value("_") == "mine"

    async def test_future_imports_stay(self) -> None:
        async with self.open() as guest:
            await guest.value("from __future__ import annotations")
            await guest.value("def f(x: no_such_name): pass")
            assert await guest.value("f.__annotations__") == {"x": "no_such_name"}

    async def test_failed_cell_keeps_what_it_did_before(self) -> None:
        async with self.open() as guest:
            failure = await guest.failure("y = 5\n1 / 0\ny = 6")
            assert (failure.type, failure.message) == ("ZeroDivisionError", "division by zero")
            assert failure.lineno == 2
            assert await guest.value("y") == 5

    async def test_top_level_await(self) -> None:
        async with self.open() as guest:
            code = "import asyncio\nasync def f(): await asyncio.sleep(0); return 3\nawait f()"
            assert await guest.value(code) == 3
            assert await guest.value("x = await f()\nx + await f()") == 6
            code = "async with asyncio.Lock() as lock: y = 1\n[i async for i in g()]"
            await guest.value("async def g():\n    yield 1\n    yield 2")
            assert await guest.value(code) == [1, 2]

    async def test_without_await_there_is_no_event_loop(self) -> None:
        async with self.open() as guest:
            code = "import asyncio\nasync def f(): return 5\nasyncio.run(f())"
            assert await guest.value(code) == 5
            failure = await guest.failure("asyncio.get_running_loop()")
            assert failure.type == "RuntimeError"
            assert await guest.value("await f()") == 5
            assert await guest.value("asyncio.run(f())") == 5

    async def test_pending_tasks_are_cancelled_and_named(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run(
                "import asyncio\n"
                "ends = []\n"
                "async def forever():\n"
                "    try: await asyncio.sleep(600)\n"
                "    finally: ends.append('cancelled')\n"
                "task = asyncio.create_task(forever(), name='left alone')\n"
                "await asyncio.sleep(0)\n"
            )
            assert outcome.failure is None
            assert any("left alone" in note for note in outcome.notes)
            assert await guest.value("ends, task.cancelled()") == (["cancelled"], True)

    async def test_classes_and_functions_of_a_cell_pickle(self) -> None:
        async with self.open() as guest:
            await guest.value(
                "import pickle, dataclasses\n"
                "@dataclasses.dataclass\nclass P:\n    x: int\n"
                "def f(): return 1\n"
                "class Outer:\n    class Inner: pass"
            )
            code = "pickle.loads(pickle.dumps(P(3))) == P(3), pickle.loads(pickle.dumps(f)) is f"
            assert await guest.value(code) == (True, True)
            assert await guest.value("pickle.loads(pickle.dumps(Outer.Inner)) is Outer.Inner")

    async def test_source_of_functions_and_classes_is_found(self) -> None:
        async with self.open() as guest:
            await guest.value("import inspect\ndef f():\n    return 1\n")
            await guest.value("class Plain:\n    a = 1\n")
            await guest.value(
                "import dataclasses\n@dataclasses.dataclass\nclass Data:\n    x: int = 3\n"
            )
            await guest.value("class Methods:\n    def m(self):\n        return 'old'\n")
            get = "inspect.getsource({})"
            assert await guest.value(get.format("f")) == "def f():\n    return 1\n"
            assert await guest.value(get.format("Plain")) == "class Plain:\n    a = 1\n"
            assert "class Data:\n    x: int = 3\n" in await guest.value(get.format("Data"))
            assert "'old'" in await guest.value(get.format("Methods"))
            await guest.value("class Methods:\n    def m(self):\n        return 'new'\n")
            await guest.value("class Plain:\n    a = 2\n")
            assert "'new'" in await guest.value(get.format("Methods"))
            assert "a = 2" in await guest.value(get.format("Plain"))

    # -- tracebacks

    async def check_lines(self, failure: Any, *wanted: str) -> None:
        for text in wanted:
            assert text in failure.traceback
        for ours in ("_code_mode_guest", "py_code_mode", "evaluate.py", "in_process.py"):
            assert ours not in failure.traceback

    async def test_traceback_shows_the_users_lines_and_none_of_ours(self) -> None:
        async with self.open() as guest:
            await guest.value("1")
            await guest.value("def f(x):\n    return 1 / x")
            failure = await guest.failure("\nf(0)\n")
            await self.check_lines(
                failure, 'File "<run 3>", line 2', "f(0)", '"<run 2>", line 2, in f', "return 1 / x"
            )
            assert failure.traceback.startswith("Traceback (most recent call last):\n")
            assert failure.traceback.rstrip().endswith("ZeroDivisionError: division by zero")
            assert failure.lineno == 2

    async def test_chained_exceptions_are_shown(self) -> None:
        async with self.open() as guest:
            failure = await guest.failure(
                "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('bad') from e"
            )
            await self.check_lines(
                failure, "KeyError: 'a'", "direct cause", "ValueError: bad", "line 2", "line 4"
            )
            failure = await guest.failure("try:\n    {}['a']\nfinally:\n    1/0")
            await self.check_lines(failure, "During handling", "ZeroDivisionError")

    async def test_exception_groups_are_shown(self) -> None:
        async with self.open() as guest:
            if not await guest.value("import sys; sys.version_info >= (3, 11)"):
                pytest.skip("exception groups need Python 3.11 in the guest")
            failure = await guest.failure(
                "import asyncio\n"
                "async def f(): raise KeyError('inner')\n"
                "async with asyncio.TaskGroup() as group:\n"
                "    group.create_task(f())\n"
            )
            assert failure.type == "ExceptionGroup"
            await self.check_lines(failure, "KeyError: 'inner'", '"<run 2>", line 2, in f')

    async def test_traceback_of_async_code_begins_with_the_users_line(self) -> None:
        async with self.open() as guest:
            failure = await guest.failure("async def f():\n    1/0\nawait f()")
            first = failure.traceback.splitlines()[1]
            assert first.strip().startswith('File "<run 1>", line 3')
            await self.check_lines(failure, "line 2, in f")
            assert "base_events" not in failure.traceback

    @pytest.mark.parametrize(
        ("code", "line", "says"),
        [
            ("x = 1\nx = = 2", 2, "invalid syntax"),
            ("def f(:\n    pass", 1, "invalid syntax"),
            ("if True:\npass", 2, "indented"),
            ("x = (1,\n", 1, "never closed"),
            ("return 5", 1, "return"),
            ("x = 'abc", 1, "unterminated"),
            ("a\0b", None, "null"),
        ],
    )
    async def test_syntax_error_points_at_the_place(
        self, code: str, line: int | None, says: str
    ) -> None:
        async with self.open() as guest:
            failure = await guest.failure(code)
            assert failure.type in ("SyntaxError", "IndentationError", "ValueError")
            assert says in failure.message
            if line is not None:
                assert failure.lineno == line
                await self.check_lines(failure, f'File "<run 1>", line {line}')
            assert await guest.value("1") == 1

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("!pip install six", "deps.add('six')"),
            ("%pip install six", "deps.add('six')"),
            ("!ls -l", "subprocess"),
            ("x = 1\n%timeit x", "magics"),
        ],
    )
    async def test_magics_are_refused_with_what_to_do_instead(self, code: str, says: str) -> None:
        async with self.open() as guest:
            failure = await guest.failure(code)
            assert failure.type == "SyntaxError"
            assert says in failure.message

    async def test_matplotlib_magic_is_ignored(self) -> None:
        async with self.open() as guest:
            assert await guest.value("%matplotlib inline\nx = 5\nx") == 5
            failure = await guest.failure("%matplotlib\n\n1/0")
            assert failure.lineno == 3

    async def test_deep_recursion_is_a_clear_failure(self) -> None:
        async with self.open() as guest:
            await guest.value("x = 1")
            failure = await guest.failure("def f(n): return f(n + 1)\nf(0)")
            assert failure.type == "RecursionError"
            assert "recursion" in failure.message
            assert len(failure.traceback) < 30_000
            assert await guest.value("x") == 1

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("class E(Exception):\n    def __str__(self): 1/0\nraise E()", "__str__"),
            ("raise ValueError('x' * 1_000_000)", "left out"),
            ("raise ValueError('\\ud800')", "\\ud800"),
            ("raise ValueError('\\U0001f600 \\ud800')", "\U0001f600 \\ud800"),
            ("x = '\ud800'", "surrogates"),
            ("raise type('E', (BaseException,), {})('odd')", "odd"),
        ],
    )
    async def test_odd_exceptions_are_told(self, code: str, message: str) -> None:
        async with self.open() as guest:
            failure = await guest.failure(code)
            assert message in failure.message
            assert len(failure.message) < 20_000
            assert await guest.value("1") == 1

    # -- how code ends

    @pytest.mark.parametrize("code", ["raise SystemExit", "import sys; sys.exit(0)", "exit()"])
    async def test_orderly_exit_is_a_success(self, code: str) -> None:
        async with self.open() as guest:
            await guest.value("x = 1")
            outcome = await guest.run(f"x = 2\n{code}\nx = 3")
            assert outcome.failure is None
            assert outcome.state == "kept"
            assert await guest.value("x") == 2

    @pytest.mark.parametrize("status", ["3", "'went wrong'", "True"])
    async def test_exit_with_a_status_is_a_failure(self, status: str) -> None:
        async with self.open() as guest:
            await guest.value("x = 1")
            failure = await guest.failure(f"import sys\nsys.exit({status})")
            assert failure.type == "SystemExit"
            assert failure.message == str(eval(status))
            assert await guest.value("x") == 1

    async def test_keyboard_interrupt_of_the_code_itself_is_a_failure(self) -> None:
        async with self.open() as guest:
            await guest.value("x = 1")
            failure = await guest.failure("raise KeyboardInterrupt('mine')")
            assert failure.type == "KeyboardInterrupt"
            assert await guest.value("x") == 1

    @pytest.mark.parametrize("code", ["input()", "input('name? ')", "import sys; next(sys.stdin)"])
    async def test_input_fails_at_once_and_says_why(self, code: str) -> None:
        async with self.open() as guest:
            failure = await guest.failure(code)
            assert failure.type in ("EOFError", "StopIteration")
            if "input" in code:
                assert "input() is not available" in failure.message

    # -- values

    async def test_plain_values_keep_their_type(self) -> None:
        async with self.open() as guest:
            values = (
                "[None, True, 1, 10**40, 1.5, 'é', b'\\0\\xff', (1, (2,)), {3}, {'a': [1]}, "
                "{(1, 2): 'tuple key'}, 1j, datetime.date(2020, 1, 2), decimal.Decimal('1.10'), "
                "datetime.timedelta(1), uuid.UUID(int=5), pathlib.PurePosixPath('/a')]"
            )
            await guest.value("import datetime, decimal, uuid, pathlib")
            names = [type(item).__name__ for item in await guest.value(values)]
            assert names == await guest.value(f"[type(item).__name__ for item in {values}]")
            nan, infinity = await guest.value("float('nan'), float('-inf')")
            assert math.isnan(nan)
            assert infinity == -math.inf

    async def test_value_that_cannot_cross_stays_behind_a_handle(self) -> None:
        async with self.open() as guest:
            value = await guest.value("class A:\n    def __repr__(self): return '1'\nA()")
            if Capability.LIVE_VALUES in guest.executor.capabilities:
                assert type(value).__name__ == "A"
            else:
                assert isinstance(value, Handle)
                assert value.type_name.endswith("A")
                assert "1" in value.snapshot.to_text()

    @pytest.mark.parametrize(
        "code",
        [
            "x = []\nfor _ in range(100_000): x = [x]\nx",
            "x = []\nx.append(x)\nx",
            "x = {}\nx['self'] = x\nx",
            "class A:\n    def __repr__(self): 1/0\nA()",
            "class A:\n    def __getattr__(self, name): raise RuntimeError\nA()",
            "lambda: 1",
            "(i for i in range(3))",
            "type('T', (), {})",
            "import sys; sys.modules",
            "[1, object()]",
        ],
        ids=[
            "deep",
            "cyclic",
            "cyclic dict",
            "bad repr",
            "bad getattr",
            "lambda",
            "generator",
            "class",
            "modules",
            "mixed",
        ],
    )
    async def test_odd_values_end_in_a_clear_result(self, code: str) -> None:
        async with self.open() as guest:
            outcome = await guest.run(code)
            assert outcome.failure is None
            assert outcome.state == "kept"
            if Capability.LIVE_VALUES not in guest.executor.capabilities:
                assert isinstance(outcome.value, Handle)
                assert len(outcome.value.snapshot.to_text()) < 100_000
            assert await guest.value("1 + 1") == 2

    async def test_values_are_bound_and_fetched(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.EXCHANGE)
            executor = guest.executor
            await executor.exchange(Bind("given", {"a": [1, (2,)], "b": b"\0"}))
            assert await guest.value("given['a'].append(3)\ngiven['a']") == [1, (2,), 3]
            assert await executor.exchange(Fetch("given")) == {"a": [1, (2,), 3], "b": b"\0"}
            with pytest.raises(HandleNotFound):
                await executor.exchange(Fetch("no_such"))
            await executor.exchange(Release("no_such"))
            assert await guest.value("given['b']") == b"\0"

    async def test_offered_values_take_no_variable_from_the_user(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.EXCHANGE)
            exchange = guest.executor.exchange
            await guest.value("mine = 1\nmine")
            assert not await exchange(Offer("mine", "theirs", 1))
            assert await exchange(Offer("free", "first", 1))
            assert not await exchange(Offer("free", "first", 1))  # it is there already
            assert await exchange(Offer("free", "second", 2))
            assert await guest.value("mine, free") == (1, "second")
            await guest.value("free = 'changed'\nfree")
            assert not await exchange(Offer("free", "third", 3))
            assert await exchange(Bind("free", "fourth", 4))
            assert await guest.value("mine, free") == (1, "fourth")
            await guest.executor.reset()
            assert await exchange(Offer("free", "fourth", 4))

    async def test_saved_variables_come_back_in_another_guest(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.EXCHANGE)
            await guest.run(
                "import threading\nshared = [1]; pair = (shared, shared); lock = threading.Lock()"
            )
            state = await guest.executor.exchange(Save(1 << 20))
            assert isinstance(state, SavedState)
            assert {name: state.types[name] for name in ("shared", "pair")} == {
                "shared": "list",
                "pair": "tuple",
            }
            assert set(state.skipped) == {"lock"}
            assert await guest.value("shared") == [1]  # it lives on
            parts = [bytes(part) for part in state.parts]
        async with self.open() as guest:
            loaded: Any = await guest.executor.exchange(Load(replace(state, parts=parts)))
            assert set(loaded) == set(state.types)
            assert await guest.value("shared.append(2)\npair") == ([1, 2], [1, 2])

    async def test_saved_variables_are_within_the_limit(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.EXCHANGE)
            await guest.run("small = 1\nlarge = 'x' * 100_000")
            state = await guest.executor.exchange(Save(10_000))
            assert isinstance(state, SavedState)
            assert (set(state.types), set(state.skipped)) == ({"small"}, {"large"})
            assert sum(memoryview(part).nbytes for part in state.parts) <= 10_000

    async def test_what_cannot_be_loaded_is_an_error_and_changes_nothing(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.EXCHANGE)
            await guest.run("x = 1")
            for parts in ([b"garbage"], [b""]):
                with pytest.raises(CallFailed):
                    await guest.executor.exchange(
                        Load(SavedState(parts=parts, types={}, skipped={}))
                    )
            assert await guest.value("x") == 1

    async def test_large_variables_are_told_of(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.EXCHANGE)
            outcome = await guest.run("text = 'x' * 100_000\nsmall = 1")
            assert [(handle.name, handle.type_name) for handle in outcome.handles] == [
                ("text", "str")
            ]
            assert outcome.handles[0].snapshot.data["length"] == 100_000
            assert len(outcome.handles[0].snapshot.to_text()) < 2000
            assert (await guest.run("small + 1")).handles == ()
            assert (await guest.run("del text")).gone == ("text",)
            await guest.executor.exchange(Bind("given", "y" * 100_000))
            assert (await guest.run("given = given\nlen(given)")).handles == ()

    async def test_values_are_not_exchanged_where_that_is_not_offered(self) -> None:
        async with self.open() as guest:
            if Capability.EXCHANGE in guest.executor.capabilities:
                pytest.skip("it exchanges values")
            with pytest.raises(CapabilityMissing):
                await guest.executor.exchange(Fetch("x"))

    async def test_data_frames_and_arrays_come_back(self) -> None:
        pandas = pytest.importorskip("pandas")
        async with self.open() as guest:
            probe = await guest.run("import numpy, pandas")
            if probe.failure is not None:
                pytest.skip("the guest's environment has no pandas")
            frame = await guest.value("pandas.DataFrame({'a': [1, 2], 'b': ['x', None]})")
            pandas.testing.assert_frame_equal(
                frame, pandas.DataFrame({"a": [1, 2], "b": ["x", None]})
            )
            array = await guest.value("numpy.arange(12.0).reshape(3, 4)")
            assert array.shape == (3, 4)
            assert array.sum() == 66

    # -- output

    async def test_output_is_kept_in_order_within_each_stream(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run(
                "import sys\n"
                "for i in range(1000):\n"
                "    print('out', i)\n"
                "    print('err', i, file=sys.stderr)\n"
                "print('no newline', end='')\n"
            )
            assert outcome.stdout == "".join(f"out {i}\n" for i in range(1000)) + "no newline"
            assert outcome.stderr == "".join(f"err {i}\n" for i in range(1000))

    async def test_output_of_many_quick_runs_is_never_lost_or_moved(self) -> None:
        async with self.open() as guest:
            for number in range(200):
                outcome = await guest.run(f"print({number})\n{number}")
                assert (outcome.stdout, outcome.value) == (f"{number}\n", number)
                assert not outcome.late

    async def test_output_before_a_failure_is_there(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run("print('before', end='')\n1/0")
            assert outcome.stdout == "before"
            assert outcome.failure is not None

    async def test_unicode_and_lone_surrogates_are_printed(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run("print('é€😀', '\\ud800', 'a\\0b')")
            assert outcome.stdout == "é€😀 \\ud800 a\0b\n"

    async def test_binary_output_is_replaced_where_it_is_not_text(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.DESCRIPTOR_OUTPUT)
            outcome = await guest.run(
                "import os, sys\nn = sys.stdout.buffer.write(b'a\\xffb')\nsys.stdout.flush()\n"
                "n = os.write(1, b'\\xc3\\xa9\\x00')"
            )
            assert outcome.stdout == "a\ufffdbé\0"

    async def test_endless_output_is_bounded_and_says_so(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run(
                "print('first')\nfor _ in range(30): print('x' * 1_000_000)\nprint('last')"
            )
            assert len(outcome.stdout) < 15_000_000
            assert outcome.stdout.startswith("first\n")
            assert outcome.stdout.endswith("last\n")
            assert "bytes of output left out" in outcome.stdout

    async def test_threads_print_into_the_run_that_started_them(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run(
                "import threading\n"
                "def say(i): print(f'thread {i}\\n', end='')\n"
                "threads = [threading.Thread(target=say, args=(i,)) for i in range(5)]\n"
                "for t in threads: t.start()\n"
                "for t in threads: t.join()\n"
            )
            lines = sorted(outcome.stdout.splitlines())
            assert lines == [f"thread {i}" for i in range(5)]

    async def test_output_between_runs_comes_with_the_next(self) -> None:
        async with self.open() as guest:
            first = await guest.run(show_when_told(guest, "print('late', flush=True)"))
            assert first.failure is None
            (guest.workdir / "go").touch()
            assert await guest.appears("done") == ""
            outcome = await guest.run("print('now')")
            assert outcome.stdout == "now\n"
            assert outcome.late.stdout == "late\n"
            assert not (await guest.run("1")).late

    async def test_output_of_c_code_and_child_processes_is_captured(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.DESCRIPTOR_OUTPUT)
            outcome = await guest.run(
                "import ctypes, os, subprocess, sys\n"
                "libc = ctypes.CDLL(None)\n"
                "n = libc.printf(b'from C\\n')\n"
                "print('from Python')\n"
                "n = libc.puts(b'from C again')\n"
                "n = os.write(2, b'to the descriptor\\n')\n"
                "n = subprocess.run([sys.executable, '-c', 'print(\"from a child\")'])\n"
            )
            assert sorted(outcome.stdout.splitlines()) == [
                "from C",
                "from C again",
                "from Python",
                "from a child",
            ]
            assert outcome.stderr == "to the descriptor\n"

    @pytest.mark.parametrize(
        "code",
        [
            "import sys; sys.stdout.close()",
            "import sys; sys.stderr.close(); sys.stdout.close()",
            "import sys; sys.stdout = None",
            "import sys, io; sys.stdout = io.StringIO()",
            "import os; os.close(1)",
            "import os; os.close(1); os.close(2)",
            "import sys; sys.stdin.close()",
        ],
    )
    async def test_code_that_breaks_its_streams_breaks_no_run(self, code: str) -> None:
        async with self.open() as guest:
            guest.needs(Capability.DESCRIPTOR_OUTPUT)
            await guest.value("kept_name = 1")
            outcome = await guest.run(code)
            assert outcome.state == "kept"
            assert await guest.value("kept_name + 1") == 2
            if "None" not in code and "StringIO" not in code and "os" not in code:
                assert (await guest.run("print('again')")).stdout == "again\n"

    # -- events

    async def test_events_tell_what_happens_as_it_happens(self) -> None:
        async with self.open(add=add) as guest:
            events: list[Event] = []
            outcome = await guest.run(
                "import sys\nprint('one')\nprint('two', file=sys.stderr)\n"
                "tools.add(1, b=2)\ndisplay('three')\n",
                on_event=events.append,
            )
            assert outcome.failure is None
            text = "".join(e.text for e in events if isinstance(e, Output) and e.kind == "stdout")
            assert text == "one\n"
            text = "".join(e.text for e in events if isinstance(e, Output) and e.kind == "stderr")
            assert text == "two\n"
            assert [e for e in events if isinstance(e, Called)] == [Called("tools", "add")]
            assert [e.display.text for e in events if isinstance(e, Shown)] == ["three"]
            assert {e.kind for e in events} == {"stdout", "stderr", "call", "display"}

    async def test_printed_lines_come_whole(self) -> None:
        async with self.open() as guest:
            events: list[Event] = []
            await guest.run(
                "for number in range(300): print('line', number, 'of', 300)", on_event=events.append
            )
            texts = [event.text for event in events if isinstance(event, Output)]
            assert "".join(texts).count("\n") == 300
            assert all(text.endswith("\n") for text in texts)

    async def test_events_come_before_the_run_ends(self) -> None:
        seen = anyio.Event()

        def notice(event: Event) -> None:
            if isinstance(event, Output):
                seen.set()

        async with self.open(wait=seen.wait) as guest:
            outcome = await guest.run(
                "print('hello', flush=True)\ntools.wait()\n'answered'", on_event=notice
            )
            assert outcome.value == "answered"

    async def test_slow_asynchronous_callback_gets_everything_in_order(self) -> None:
        async with self.open() as guest:
            pieces: list[str] = []

            async def take(event: Event) -> None:
                assert isinstance(event, Output)
                await anyio.sleep(0.001)
                pieces.append(event.text)

            code = "for i in range(20_000): print(i, 'x' * 100)"
            outcome = await guest.run(code, on_event=take)
            assert outcome.failure is None
            assert "".join(pieces) == "".join(f"{i} {'x' * 100}\n" for i in range(20_000))

    @pytest.mark.parametrize("code", ["while True: print('x')", "print('x')", "print(1); 1/0"])
    async def test_callback_that_raises_interrupts_the_run(self, code: str) -> None:
        async with self.open() as guest:
            await guest.value("kept_name = 1")

            def refuse(event: Event) -> None:
                raise LookupError("the callback failed")

            with pytest.raises(LookupError, match="the callback failed"):
                await guest.run(code, on_event=refuse)
            assert guest.executor.state == "kept"
            assert await guest.value("kept_name") == 1
            assert (await guest.run("print('after')")).stdout == "after\n"

    # -- displays

    async def test_display_shows_what_objects_say_of_themselves(self) -> None:
        async with self.open() as guest:
            outcome = await guest.run(
                "class Html:\n    def _repr_html_(self): return '<b>x</b>'\n"
                "class Png:\n    def _repr_png_(self): return b'\\x89PNG'\n"
                "display(Html(), Png())\ndisplay(1)\nHtml()\n"
            )
            assert outcome.failure is None
            kinds = [set(display.data) - {"text/plain"} for display in outcome.displays]
            assert kinds == [{"text/html"}, {"image/png"}, set(), {"text/html"}]
            assert outcome.displays[0].data["text/html"] == "<b>x</b>"
            assert outcome.displays[1].data["image/png"] == b"\x89PNG"
            assert outcome.displays[2].text == "1"

    async def test_figures_are_shown(self) -> None:
        async with self.open() as guest:
            probe = await guest.run(
                "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt"
            )
            if probe.failure is not None:
                pytest.skip("the guest's environment has no matplotlib")
            outcome = await guest.run("plt.plot([1, 2]);")
            assert [set(d.data) >= {"image/png"} for d in outcome.displays] == [True]
            outcome = await guest.run("f = plt.figure(); plt.plot([2]); plt.show()\nprint('x')")
            assert len(outcome.displays) == 1
            assert not (await guest.run("1")).displays

    async def test_too_many_displays_are_bounded(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            outcome = await guest.run("for i in range(5000): display(i)")
            assert outcome.failure is None
            assert 0 < len(outcome.displays) < 5000
            assert "left out" in outcome.stdout + " ".join(outcome.notes)

    # -- calls

    async def test_calls_block_and_give_the_value(self) -> None:
        async def later(**kwargs: object) -> object:
            await anyio.lowlevel.checkpoint()
            return kwargs

        async with self.open(add=add, later=later) as guest:
            assert await guest.value("tools.add(1), tools.add(1, b=5)") == (2, 6)
            assert await guest.value("tools.add.call_sync(2)") == 3
            assert await guest.value("tools.later(x=(1, b'2'))") == {"x": (1, b"2")}
            assert await guest.value("tools['add'](3)") == 4

    async def test_calls_work_in_asynchronous_code_and_side_by_side(self) -> None:
        async with self.open(meet=meeting(5), add=add) as guest:
            code = (
                "import asyncio\n"
                "await asyncio.gather(*(tools.meet.call_async(i) for i in range(5)))"
            )
            assert await guest.value(code) == [0, -1, -2, -3, -4]
            assert await guest.value("await asyncio.sleep(0)\ntools.add(1)") == 2

    async def test_threads_of_a_cell_call_side_by_side(self) -> None:
        async with self.open(meet=meeting(4)) as guest:
            code = (
                "from concurrent.futures import ThreadPoolExecutor\n"
                "with ThreadPoolExecutor(4) as pool: r = list(pool.map(tools.meet, range(4)))\nr"
            )
            assert await guest.value(code) == [0, -1, -2, -3]

    async def test_errors_of_calls_can_be_caught(self) -> None:
        def broken() -> None:
            raise OSError("the disk is on fire")

        async with self.open(broken=broken) as guest:
            assert await guest.value(
                "try: tools.missing()\nexcept tools.ToolNotFound as e: x = (e.tool, e.available)\nx"
            ) == ("missing", ["broken"])
            failure = await guest.failure("tools.broken()")
            assert failure.type == "CallFailed"
            assert "the disk is on fire" in failure.message
            assert 'File "<run' in failure.traceback
            assert "py_code_mode" not in failure.traceback
            assert "_code_mode_guest" not in failure.traceback

    async def test_private_names_never_reach_the_host(self) -> None:
        async with self.open() as guest:
            code = "[hasattr(tools, n) for n in ('_x', '__wrapped__', '_repr_html_', '__len__')]"
            assert await guest.value(code) == [False] * 4
            assert await guest.value("import copy; callable(copy.copy)")
            assert "tools" in await guest.value("repr(tools)")
            assert guest.calls == []

    async def test_other_namespaces_reach_the_host(self) -> None:
        async with self.open() as guest:
            assert await guest.value("artifacts.load('a', b=1)") == ["load", ["a"], {"b": 1}]
            assert guest.calls == [("artifacts", "load")]

    async def test_call_after_its_run_is_refused(self) -> None:
        async with self.open(add=lambda: 1) as guest:
            await guest.value(show_when_told(guest, "tools.add()"))
            (guest.workdir / "go").touch()
            said = await guest.appears("done")
            assert said.startswith("NoActiveRun: ")
            assert guest.calls == []

    async def test_calls_open_at_the_end_are_cancelled_and_told(self) -> None:
        hanging, cancelled = anyio.Event(), anyio.Event()

        async def hang() -> None:
            hanging.set()
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.set()

        async with self.open(hang=hang, arrived=hanging.wait) as guest:
            outcome = await guest.run(
                "import threading\n"
                "def call():\n"
                "    try: tools.hang()\n"
                "    except Exception: pass\n"
                "thread = threading.Thread(target=call)\nthread.start()\ntools.arrived()\n'end'"
            )
            assert outcome.value == "end"
            assert any("effect unknown" in n and "tools." in n for n in outcome.notes)
            assert cancelled.is_set()
            assert await guest.value("thread.join(30); thread.is_alive()") is False

    # -- time

    @pytest.mark.parametrize(
        "code",
        [
            "while True: pass",
            "while True: print('x')",
            "import time\ntime.sleep(4)",
            STUBBORN,
            "tools.hang()",
            "import asyncio\nawait asyncio.sleep(600)",
            "import threading\nthreading.Event().wait(4)",
            "await tools.hang.call_async()",
            "def f():\n    try: f()\n    except RecursionError: f()\nf()",
        ],
        ids=[
            "loop",
            "printing",
            "sleep",
            "stubborn",
            "call",
            "await",
            "wait",
            "await call",
            "recursion",
        ],
    )
    async def test_timeout_returns_control_and_tells_the_truth(self, code: str) -> None:
        async with self.open(hang=anyio.sleep_forever) as guest:
            guest.needs(Capability.TIMEOUT)
            await guest.value("kept_name = 1")
            with anyio.fail_after(_BACK_WITHIN):
                outcome = await guest.run(code, timeout=0.3)
            assert outcome.failure is not None
            assert outcome.failure.type == "TimeoutError"
            assert "0.3 s" in outcome.failure.message
            assert 0.3 <= outcome.duration < _BACK_WITHIN
            await guest.check_state(outcome)

    @pytest.mark.parametrize(
        "code",
        ["while True: pass", "tools.hang()", "import asyncio\nawait asyncio.sleep(600)"],
    )
    async def test_timeout_keeps_the_variables_where_code_can_be_interrupted(
        self, code: str
    ) -> None:
        async with self.open(hang=anyio.sleep_forever) as guest:
            guest.needs(Capability.TIMEOUT, Capability.INTERRUPT)
            await guest.value("kept_name = 1")
            outcome = await guest.run(f"kept_name = 2\n{code}", timeout=0.3)
            assert outcome.state == "kept"
            assert outcome.failure is not None
            assert "variables are kept" in outcome.failure.message
            assert "line " in outcome.failure.traceback
            assert await guest.value("kept_name") == 2

    async def test_output_before_a_timeout_is_there(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.TIMEOUT)
            outcome = await guest.run("print('so far')\nwhile True: pass", timeout=0.3)
            assert outcome.stdout == "so far\n"

    async def test_interrupt_ends_the_run_and_keeps_the_variables(self) -> None:
        arrived = anyio.Event()
        async with self.open(arrived=arrived.set) as guest:
            guest.needs(Capability.INTERRUPT)
            assert await guest.executor.interrupt() is False
            await guest.value("kept_name = 1")
            outcomes: list[RunOutcome] = []

            async def run() -> None:
                outcomes.append(await guest.run("tools.arrived()\nwhile True: pass"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await arrived.wait()
                assert await guest.executor.interrupt() is True
            assert outcomes[0].failure is not None
            assert outcomes[0].failure.type == "Interrupted"
            assert outcomes[0].state == "kept"
            assert await guest.value("kept_name") == 1

    async def test_code_may_catch_an_interrupt_and_clean_up(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.TIMEOUT, Capability.INTERRUPT)
            outcome = await guest.run(
                "try:\n    for i in iter(int, 1): x = i\nfinally:\n    cleaned = True", timeout=0.3
            )
            assert outcome.failure is not None
            assert outcome.failure.type == "TimeoutError"
            assert await guest.value("cleaned") is True

    @pytest.mark.parametrize("code", ["while True: pass", "tools.hang()", "while True: print('x')"])
    async def test_cancelled_run_leaves_a_usable_executor(self, code: str) -> None:
        async with self.open(hang=anyio.sleep_forever) as guest:
            guest.needs(Capability.INTERRUPT)
            await guest.value("kept_name = 1")
            with anyio.fail_after(_BACK_WITHIN), anyio.move_on_after(0.3) as scope:
                await guest.run(code)
            assert scope.cancelled_caught
            assert guest.executor.state == "kept"
            assert await guest.value("kept_name") == 1
            assert (await guest.run("print('after')")).stdout == "after\n"

    # -- reset

    async def test_reset_clears_variables_and_keeps_namespaces(self) -> None:
        async with self.open(add=lambda: 5) as guest:
            guest.needs(Capability.RESET)
            await guest.value("x = 1\nimport math\ndel artifacts\ntools = 'mine'\n5")
            await guest.executor.reset()
            for name in ("x", "math", "_"):
                assert (await guest.failure(name)).type == "NameError"
            assert await guest.value("tools.add()") == 5
            assert await guest.value("'load' in dir(artifacts), __name__") == (True, "__main__")

    # -- processes of their own

    async def test_workdir_is_the_current_directory_and_importable(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            (guest.workdir / "my_module.py").write_text("answer = 42\n")
            assert await guest.value("import my_module; my_module.answer") == 42
            await guest.value("with open('made.txt', 'w') as file: n = file.write('x')")
            assert (guest.workdir / "made.txt").read_text() == "x"

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("import os; os._exit(7)", "status 7"),
            ("import os; os._exit(0)", "status 0"),
            ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
            ("import os; os.abort()", "SIGABRT"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ],
    )
    async def test_death_of_the_process_is_told_and_the_next_run_has_a_new_one(
        self, code: str, says: str
    ) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            await guest.value("kept_name = 1")
            outcome = await guest.run(f"print('before', flush=True)\n{code}")
            assert outcome.failure is not None
            assert outcome.failure.type == "GuestDied"
            assert says in outcome.failure.message
            assert outcome.state != "kept"
            assert outcome.stdout == "before\n"
            await guest.check_state(outcome)
            assert await guest.value("1 + 1") == 2

    async def test_death_between_runs_is_told_with_the_next(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            await guest.value("kept_name = 1\n" + show_when_told(guest, "os._exit(5)"))
            (guest.workdir / "go").touch()
            outcome = await guest.run("1")
            with anyio.fail_after(30):
                while outcome.state == "kept":
                    outcome = await guest.run("1")
            assert outcome.state == "lost"  # a thread ran: no copy could be kept
            (guest.workdir / "done").touch()
            assert (await guest.failure("kept_name")).type == "NameError"

    async def test_stopped_process_is_ended_at_the_timeout(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION, Capability.TIMEOUT)
            await guest.value("kept_name = 1")
            with anyio.fail_after(_BACK_WITHIN):
                outcome = await guest.run(
                    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", timeout=0.3
                )
            assert outcome.state != "kept"
            assert outcome.failure is not None
            assert outcome.failure.type == "TimeoutError"
            await guest.check_state(outcome)

    async def test_stopped_process_does_not_hold_up_close(self) -> None:
        arrived = anyio.Event()
        async with self.open(arrived=arrived.set) as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            async with anyio.create_task_group() as tasks:
                code = "tools.arrived()\nimport os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
                tasks.start_soon(guest.run, code)
                await arrived.wait()
                with anyio.fail_after(_BACK_WITHIN):
                    await guest.executor.close()

    async def test_memory_error_is_a_failure_like_any_other(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            await guest.value("kept_name = 1")
            outcome = await guest.run("x = bytearray(1 << 60)")
            assert outcome.failure is not None
            assert outcome.failure.type == "MemoryError"
            await guest.check_state(outcome)

    # -- copies

    @pytest.mark.parametrize(
        ("code", "timeout", "failure"),
        [
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", RUN_TIMEOUT, "GuestDied"),
            ("import ctypes; ctypes.string_at(0)", RUN_TIMEOUT, "GuestDied"),
            ("import os; os.abort()", RUN_TIMEOUT, "GuestDied"),
            ("import os; os._exit(0)", RUN_TIMEOUT, "GuestDied"),
            (STUBBORN, 0.2, "TimeoutError"),
            ("sum(range(10**12))", 0.2, "TimeoutError"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", 0.2, "TimeoutError"),
        ],
    )
    async def test_run_that_ends_its_process_costs_the_run_only(
        self, code: str, timeout: float, failure: str
    ) -> None:
        async with self.open(add=lambda: 5) as guest:
            guest.needs(Capability.RESTORE)
            outcome = await guest.ended_by(code, timeout)
            assert outcome.failure is not None
            assert outcome.failure.type == failure
            assert f"after run {outcome.restored_to}" in outcome.failure.message
            assert guest.executor.state == "restored"
            after = await guest.run("print(kept_name); tools.add()")
            assert (after.stdout, after.value, after.state) == ("1\n", 5, "kept")

    async def test_restored_variables_can_be_restored_again_at_once(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.RESTORE)
            first = await guest.ended_by("import os; os._exit(1)")
            for _ in range(3):
                outcome = await guest.run("import os; os._exit(1)")
                assert (outcome.state, outcome.restored_to) == ("restored", first.restored_to)
            assert await guest.value("kept_name") == 1

    async def test_children_of_a_run_that_was_ended_are_ended_too(self) -> None:
        mark = f"child-{uuid.uuid4()}"
        async with self.open() as guest:
            guest.needs(Capability.RESTORE)
            if Capability.CONTAINER_ISOLATION in guest.executor.capabilities:
                pytest.skip("the guest's processes cannot be seen from here")
            await guest.ended_by(
                "import os, subprocess, sys\n"
                "code = 'import time; time.sleep(600)'\n"
                f"command = [sys.executable, '-c', code, {mark!r}]\n"
                "subprocess.Popen(command, start_new_session=True)\n"
                "os._exit(1)"
            )
            assert not _is_running(mark)

    async def test_copies_are_not_children_of_the_guest(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.RESTORE)
            before = (
                "import os, signal\nheard = []\n"
                "h = signal.signal(signal.SIGCHLD, lambda *a: heard.append(1))"
            )
            await guest.ended_by("import os; os._exit(1)", before=before)
            await anyio.sleep(_POLL)
            code = "try: os.wait()\nexcept ChildProcessError: r = True\n(r, heard)"
            assert await guest.value(code) == (True, [])

    async def test_copies_do_not_alter_random_numbers(self) -> None:
        expected = random.Random(42)
        async with self.open() as guest:
            guest.needs(Capability.RESTORE)
            before = "import random; random.seed(42)"
            await guest.ended_by("random.random(); import os; os._exit(1)", before=before)
            assert await guest.value("random.random()") == expected.random()
            await anyio.sleep(_POLL)
            assert await guest.value("random.random()") == expected.random()

    async def test_checkpoint_is_gone_back_to_any_number_of_times(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.CHECKPOINT)
            executor = guest.branching
            await guest.value("x = [1]; it = iter(range(9)); next(it)")
            with await executor.checkpoint() as checkpoint:
                assert checkpoint.run_id == 1
                for _ in range(3):
                    assert await guest.value("x.append(2); (x, next(it))") == ([1, 2], 1)
                    await executor.rollback(checkpoint)
                await guest.run("import os; os._exit(1)")
                await executor.rollback(checkpoint)
                assert await guest.value("x") == [1]
            with pytest.raises(CheckpointClosed):
                await executor.rollback(checkpoint)
            assert await guest.value("x") == [1]

    async def test_values_behind_handles_come_along(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.CHECKPOINT, Capability.EXCHANGE)
            outcome = await guest.run("object()")
            assert isinstance(outcome.value, Handle)
            checkpoint = await guest.branching.checkpoint()
            await guest.executor.reset()
            with pytest.raises(HandleNotFound):
                await guest.executor.exchange(Fetch(outcome.value.name))
            await guest.branching.rollback(checkpoint)
            with pytest.raises(ValueNotPortable):  # it is there, and cannot cross
                await guest.executor.exchange(Fetch(outcome.value.name))

    async def test_fork_and_its_origin_go_separate_ways(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.CHECKPOINT)
            await guest.value("x = [1]")
            asked: list[str] = []

            async def call(
                namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
            ) -> object:
                asked.append(method)
                return 7

            other = await guest.branching.fork("other", call)
            try:
                said = await other.run(RunRequest(run_id=2, code="x.append(tools.add()); x"), None)
                assert (said.value, asked, guest.calls) == ([1, 7], ["add"], [])
                assert await guest.value("x") == [1]
                await other.run(RunRequest(run_id=3, code="import os; os._exit(1)"), None)
                assert await guest.value("x") == [1]
                await guest.executor.close()
                said = await other.run(RunRequest(run_id=4, code="1 + 1"), None)
                assert said.value == 2
            finally:
                await other.close()

    async def test_reset_is_not_undone_by_a_copy(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.RESTORE, Capability.RESET)
            await guest.ended_by("import os; os._exit(1)")
            await guest.executor.reset()
            outcome = await guest.run("import os; os._exit(1)")
            assert outcome.state != "kept"
            assert (await guest.failure("kept_name")).type == "NameError"

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            (
                "import threading, time\n"
                "t = threading.Thread(target=time.sleep, args=(60,), name='napper', daemon=True)\n"
                "t.start()",
                "napper",
            ),
            ("import socket; pair = socket.socketpair()", "socket"),
            ("import os; ends = os.pipe()", "pipe"),
            (
                "import subprocess, sys\n"
                "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)",
                "variable child",
            ),
            (
                "import sqlite3; db = sqlite3.connect('x.db')\n"
                "db.execute('create table t (a)'); db.execute('insert into t values (1)')",
                "x.db",
            ),
        ],
    )
    async def test_what_cannot_be_copied_is_told(self, code: str, says: str) -> None:
        async with self.open() as guest:
            guest.needs(Capability.CHECKPOINT)
            await guest.value("kept_name = 1")
            assert (await guest.run(code)).failure is None
            with pytest.raises(CheckpointRefused, match=says):
                await guest.branching.checkpoint()
            assert await guest.value("kept_name") == 1
            outcome = await guest.run("import os; os._exit(1)")
            if Capability.RESTORE in guest.executor.capabilities:
                assert outcome.restored_to != 2

    @pytest.mark.parametrize("end", ["", "import os; os._exit(1)", "while True: pass"])
    async def test_children_do_not_outlive_their_guest(self, end: str) -> None:
        # found by its arguments: its number may be one of a namespace of its own
        mark = f"child-{uuid.uuid4()}"
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            if Capability.CONTAINER_ISOLATION in guest.executor.capabilities:
                pytest.skip("the guest's processes cannot be seen from here")
            events: list[Event] = []
            await guest.run(
                "import subprocess, sys\n"
                "code = 'import time; print(1, flush=True); time.sleep(600)'\n"
                f"child = subprocess.Popen([sys.executable, '-c', code, {mark!r}])\n"
                f"print('started', flush=True)\n{end}",
                timeout=1.0,
                on_event=events.append,
            )
            assert "started" in "".join(e.text for e in events if isinstance(e, Output))
        with anyio.fail_after(30):
            while _is_running(mark):  # noqa: ASYNC110  nobody tells when it ends
                await anyio.sleep(_POLL)

    async def test_output_pipes_held_by_children_hold_up_nothing(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            with anyio.fail_after(30):
                outcome = await guest.run(
                    "import subprocess, sys\n"
                    "child = subprocess.Popen([sys.executable, '-c', 'import time; "
                    "time.sleep(600)'])\nprint('at once')"
                )
                assert outcome.stdout == "at once\n"
                assert await guest.value("1") == 1

    async def test_forked_child_cannot_call(self) -> None:
        async with self.open(add=lambda: 1) as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            outcome = await guest.run(
                "import os, warnings\n"
                "warnings.simplefilter('ignore')\n"
                "pid = os.fork()\n"
                "if pid == 0:\n"
                "    status = 1\n"
                "    try: tools.add()\n"
                "    except BaseException as e: status = 7 if 'forked' in str(e) else 2\n"
                "    finally: os._exit(status)\n"
                "(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), tools.add())"
            )
            assert outcome.failure is None
            assert outcome.value == (7, 1)

    async def test_forked_child_that_runs_on_harms_nobody(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            with anyio.fail_after(60):
                await guest.run("import os\npid = os.fork()\nprint('here')", timeout=5)
                outcome = await guest.run("1 + 1")
                assert outcome.value == 2

    async def test_multiprocessing_works(self) -> None:
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION, Capability.SHARED_MEMORY)
            code = (
                "import math, multiprocessing\n"
                "with multiprocessing.get_context({!r}).Pool(2) as pool:\n"
                "    r = pool.map(math.factorial, range(5))\nr"
            )
            assert await guest.value(code.format("fork")) == [1, 1, 2, 6, 24]
            assert await guest.value(code.format("spawn")) == [1, 1, 2, 6, 24]

    async def test_environment_variables_of_the_host_stay_there(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_API_KEY", "hunter2")
        monkeypatch.setenv("https_proxy", "http://user:hunter2@127.0.0.1:9")
        monkeypatch.setenv("PYTHONPATH", "/nowhere/hunter2")
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            code = (
                "import os\nwith open('/proc/self/environ', 'rb') as file: raw = file.read()\n"
                "repr(dict(os.environ)) + repr(raw) + repr(os.sys.path)"
            )
            assert "hunter2" not in await guest.value(code)

    async def test_descriptors_of_the_host_stay_there(self, tmp_path: Path) -> None:
        with (tmp_path / "secret.txt").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            async with self.open() as guest:
                guest.needs(Capability.PROCESS_ISOLATION)
                if not await guest.value("import os; os.path.isdir('/proc/self/fd')"):
                    pytest.skip("descriptors cannot be listed here")
                found = await guest.value(
                    "x = []\n"
                    "for n in os.listdir('/proc/self/fd'):\n"
                    "    try: x.append(os.readlink('/proc/self/fd/' + n))\n"
                    "    except OSError: pass\nx"
                )
                assert not [target for target in found if "secret" in target]

    async def test_changed_directory_and_path_are_the_guests_own(self) -> None:
        before = Path.cwd()
        async with self.open() as guest:
            guest.needs(Capability.PROCESS_ISOLATION)
            assert await guest.value("import os; os.chdir('/'); os.getcwd()") == "/"
            assert Path.cwd() == before


def _is_running(mark: str) -> bool:
    """Whether a process has this among its arguments."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True
    )
    return mark in listed.stdout
