"""Each bound of the sandbox, measured next to its floor: a spawned bubblewrap, a bare process."""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
from contextlib import AsyncExitStack
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode import MemoryStorage, Policy, Session, SubprocessConfig, SubprocessExecutor
from py_code_mode.execution import zygote
from py_code_mode.sandbox.probe import probe

from ..zygotes import executor_of
from .floors import bare_answerer, bare_forker, ipykernel
from .report import summarised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .report import Report, Row

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:::(zmq|jupyter_client|tornado)"),
    pytest.mark.skipif(
        "namespaces" not in probe().backends, reason="this machine allows no namespaces"
    ),
]

ROUNDS = 9
MS = 1e3
PANDAS = "import pandas; int(pandas.DataFrame({'a': [1, 2]})['a'].sum())"


def sandboxed(**options: Any) -> Session:
    policy = options.pop("policy", Policy())
    config = SubprocessConfig(backend="namespaces", policy=policy, **options)
    return Session(MemoryStorage(), SubprocessExecutor(config))


async def warm(**options: Any) -> str:
    """Have a zygote with pandas imported; give its environment's interpreter."""
    pid = "import os, sys; 'pandas' in sys.modules"
    with anyio.fail_after(60):
        while True:
            session = sandboxed(**options)
            async with session:
                is_warm = (await session.run(pid)).value
                if is_warm:
                    return str(executor_of(session).environment.python)


async def first_answer(**options: Any) -> float:
    session = sandboxed(**options)
    began = perf_counter()
    await session.start()
    try:
        assert (await session.run(PANDAS)).value == 3
        return perf_counter() - began
    finally:
        await session.close()


async def test_a_new_session_with_pandas(report: Report) -> None:
    python = await warm()
    ours: list[float] = []
    spawned: list[float] = []
    forked: list[float] = []
    bubblewrap = shutil.which("bwrap")
    walls = [bubblewrap or "", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/",
             "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # fmt: skip
    async with bare_forker(python) as forker:
        await forker.ask(PANDAS.encode())
        for _ in range(2 * ROUNDS):
            ours.append(await first_answer())
            began = perf_counter()
            await forker.ask(PANDAS.encode())
            forked.append(perf_counter() - began)
            if bubblewrap:
                began = perf_counter()
                subprocess.run([*walls, python, "-I", "-c", PANDAS], check=True)  # noqa: ASYNC221
                spawned.append(perf_counter() - began)
    floors = [one / other for one, other in zip(ours, forked, strict=True)]
    rows = [
        summarised("new sandboxed session, pandas, to its answer", ours, "ms", scale=MS, bound=20),
        summarised("floor: fork into bare namespaces, pandas", forked, "ms", scale=MS),
        summarised("new sandboxed session / floor", floors, "x"),
    ]
    if spawned:
        ratios = [one / other for one, other in zip(ours, spawned, strict=True)]
        rows += [
            summarised("bubblewrap + python + import pandas", spawned, "ms", scale=MS),
            summarised("new sandboxed session / bubblewrap", ratios, "x", bound=0.1),
        ]
    report.add(*rows)


async def test_a_session_from_the_pool(report: Report) -> None:
    await warm(pool=2)
    times: list[float] = []
    for _ in range(2 * ROUNDS):
        session = sandboxed(pool=2)
        began = perf_counter()
        await session.start()
        try:
            assert (await session.run("1+1")).value == 2
            times.append(perf_counter() - began)
            await anyio.sleep(0.1)  # think: the pool is filled again meanwhile
        finally:
            await session.close()
    zygote.close_zygotes()
    report.add(summarised("session from the pool, to its answer", times, "ms", scale=MS, bound=2))


async def test_small_runs_in_the_sandbox(report: Report) -> None:
    await warm()
    plain = SubprocessExecutor(SubprocessConfig(backend="none"))
    rows: list[Row] = []
    for pause, kinds in ((0.02, ("idle", "off", "plain process")), (0.0, ("always", "off"))):
        rounds: dict[str, list[float]] = {kind: [] for kind in (*kinds, "floor")}
        async with AsyncExitStack() as stack:
            floor = await stack.enter_async_context(bare_answerer())
            asks: dict[str, Callable[[], Awaitable[object]]] = {"floor": floor.ask}
            for kind in kinds:
                is_plain = kind == "plain process"
                session = Session(MemoryStorage(), plain) if is_plain else sandboxed(protect=kind)
                await (await stack.enter_async_context(session)).run("x = 1")
                asks[kind] = partial(session.run, "1+1")
            for _ in range(ROUNDS):
                for kind, medians in rounds.items():
                    times: list[float] = []
                    for _ in range(20):
                        await anyio.sleep(pause)
                        began = perf_counter()
                        await asks[kind]()
                        times.append(perf_counter() - began)
                    medians.append(statistics.median(times))
        for kind, medians in rounds.items():
            apart = f"{1000 * pause:g} ms apart"
            if kind == "floor":
                name = f"floor: a request and its reply, {apart}"
            else:
                name = f"`1+1`, {apart}, protect={kind}"
            bound = {"idle": 0.4, "always": 6.0}.get(kind)
            rows.append(summarised(name, medians, "ms", scale=MS, bound=bound))
    report.add(*rows)


async def rate(count: int, clients: int) -> float:
    limiter = anyio.CapacityLimiter(clients)

    async def one() -> None:
        async with limiter, sandboxed() as session:
            assert (await session.run("1+1")).value == 2

    began = perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return count / (perf_counter() - began)


async def test_sessions_a_second(report: Report, tmp_path: Path) -> None:
    await warm()
    single = [await rate(20, 1) for _ in range(ROUNDS)]
    four = [await rate(40, 4) for _ in range(ROUNDS)]
    report.add(
        summarised("sessions, one at a time", single, "/s", bound=45, is_rate=True),
        summarised("sessions, 4 clients", four, "/s", bound=70, is_rate=True),
    )


async def test_twenty_sessions_at_once_and_as_many_kernels(report: Report, tmp_path: Path) -> None:
    await warm()
    ours: list[float] = []
    theirs: list[float] = []

    async def kernel(folder: Path) -> None:
        async with ipykernel(folder) as one:
            assert await one.run("1+1") == "2"

    for turn in range(3):
        ours.append(await rate(20, 20))
        began = perf_counter()
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(kernel, tmp_path / f"{turn}-{number}")
        theirs.append(20 / (perf_counter() - began))
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    report.add(
        summarised("20 sessions at once", ours, "/s", is_rate=True),
        summarised("20 kernels at once", theirs, "/s", is_rate=True),
        summarised("20 at once, sessions / kernels", ratios, "x", bound=8, is_rate=True),
    )


def available() -> int:
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) << 10


async def test_memory_of_idle_sessions(report: Report) -> None:
    await warm()
    async with AsyncExitStack() as stack:
        await (await stack.enter_async_context(sandboxed())).run(PANDAS)
        gc.collect()
        before = available()
        for _ in range(100):
            session = await stack.enter_async_context(sandboxed())
            await session.run(PANDAS)
        await anyio.sleep(0.5)  # the last ones' snapshots
        each = (before - available()) / 100
    report.add(summarised("memory of an idle session, 100 alive", [each / 1e6], "MB", bound=15))


GIGABYTE = "import numpy; x = numpy.ones(1 << 27); float(x[0])"
REWRITE = """
def rewrite():
    import time
    began = time.perf_counter()
    x[:] = 2.0
    return time.perf_counter() - began
"""


async def test_branches_of_a_session_with_a_gigabyte(report: Report) -> None:
    await warm()
    forks: list[float] = []
    rollbacks: list[float] = []
    async with sandboxed(policy=Policy(memory="8GiB")) as session:
        assert (await session.run(GIGABYTE)).value == 1.0
        for _ in range(ROUNDS):
            began = perf_counter()
            branch = await session.fork()
            try:
                assert (await branch.run("float(x[-1])")).value == 1.0
                forks.append(perf_counter() - began)
            finally:
                await branch.close()
        checkpoint = await session.checkpoint()
        for _ in range(ROUNDS):
            await session.run("y = 1")
            began = perf_counter()
            await session.rollback(checkpoint)
            assert (await session.run("float(x[-1])")).value == 1.0
            rollbacks.append(perf_counter() - began)
    report.add(
        summarised("fork() of 1 GB until the branch answers", forks, "ms", scale=MS, bound=20),
        summarised("rollback() of 1 GB until it answers", rollbacks, "ms", scale=MS, bound=20),
    )


async def test_rewriting_a_gigabyte(report: Report) -> None:
    await warm()
    rounds: dict[str, list[float]] = {"idle": [], "off": []}
    async with AsyncExitStack() as stack:
        sessions = {
            protect: await stack.enter_async_context(
                sandboxed(protect=protect, policy=Policy(memory="8GiB"))
            )
            for protect in rounds
        }
        for session in sessions.values():
            await session.run(GIGABYTE + REWRITE)
        for _ in range(ROUNDS):
            for protect, session in sessions.items():
                await anyio.sleep(0.05)  # time for a snapshot, were there to be one
                seconds = (await session.run("rewrite()")).value
                assert isinstance(seconds, float)
                rounds[protect].append(seconds)
    ratios = [one / other for one, other in zip(rounds["idle"], rounds["off"], strict=True)]
    report.add(
        summarised("rewriting 1 GB, default settings", rounds["idle"], "ms", scale=MS),
        summarised("rewriting 1 GB, unprotected", rounds["off"], "ms", scale=MS),
        summarised("rewriting 1 GB, default / unprotected", ratios, "x", bound=1.5),
    )


STUCK = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(100)",
    "big power": "x = 10**10**8; len(str(x))",
    "regular expression": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "socket": "import socket; a, b = socket.socketpair(); a.recv(1)",
    "lock": "import threading; l = threading.Lock(); l.acquire(); l.acquire()",
    "queue": "import queue; queue.Queue().get()",
    "pipe": "import os; r, w = os.pipe(); os.read(r, 1)",
    "groupby": (
        "import pandas; pandas.DataFrame({'a': range(10**6)}).groupby('a')"
        ".apply(lambda g: sum(range(1000)))"
    ),
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(100))",
    "json": "import json; x = [list(range(1000))] * 100000; json.dumps(x)",
    "swallowed": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "subprocess": "import subprocess; subprocess.run(['sleep', '100'])",
    "sort with key": (
        "import random; sorted((random.random() for _ in range(10**7)), key=lambda v: -v)"
    ),
    "join": "''.join('x' for _ in range(10**10))",
    "numpy sort": "import numpy; numpy.sort(numpy.random.rand(200_000_000))",
    "matrix product": (
        "import numpy; a = numpy.ones((6000, 6000))\nfor _ in range(100): a = a @ a / 6000"
    ),
    "sum of range": "sum(range(10**12))",
    "itertools": "import collections, itertools; collections.deque(itertools.count(), maxlen=0)",
    "int of text": ("import sys; sys.set_int_max_str_digits(0); int('7' * 5_000_000)"),
    "pandas merge": (
        "import pandas, numpy\n"
        "f = pandas.DataFrame({'k': numpy.zeros(30000, int)}); f.merge(f, on='k')"
    ),
    "arrow sort": (
        "import pyarrow, pyarrow.compute, numpy\n"
        "pyarrow.compute.sort_indices(pyarrow.array(numpy.random.rand(100_000_000)))"
    ),
    "sqlite": (
        "import sqlite3; sqlite3.connect(':memory:').execute('with recursive c(x) as "
        "(select 1 union all select x + 1 from c) select count(*) from c').fetchall()"
    ),
    "interrupt ignored": (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    ),
    "thread waits": (
        "import threading; t = threading.Thread(target=lambda: threading.Event().wait(), "
        "daemon=True); t.start(); t.join()"
    ),
    "compile": "compile('+'.join(['1'] * 3_000_000), 'x', 'eval')",
}


async def test_control_comes_back_after_a_timeout(report: Report) -> None:
    from py_code_mode.execution.activity import GRACE

    await warm()
    timeout = 0.5
    beyond: list[float] = []
    worst = ("", 0.0)
    states: dict[str, str] = {}
    for name, code in STUCK.items():
        async with sandboxed(policy=Policy(memory="8GiB")) as session:
            await session.run("kept = 42")
            await anyio.sleep(0.1)
            began = perf_counter()
            result = await session.run(code, timeout=timeout)
            late = perf_counter() - began - timeout - GRACE
            if result.is_ok:
                continue  # a machine so quick that it was no test
            states[name] = result.state
            answer = await session.run("kept")
            assert answer.value == 42, (name, result.error, result.state)
            beyond.append(late)
            if late > worst[1]:
                worst = (name, late)
    assert set(states.values()) <= {"kept", "restored"}
    report.add(
        summarised(
            f"{len(beyond)} kinds of stuck code: control back after timeout + grace (worst: "
            f"{worst[0]})",
            [max(beyond)],
            "ms",
            scale=MS,
            bound=150,
        )
    )
