"""Each bound of the core, measured next to its floor and its peer."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import AsyncExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode import MemoryStorage, Session, SubprocessExecutor

from ..memory import PEAK
from .floors import bare_socket, ipykernel
from .report import summarised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .report import Report

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    # a peer's deprecations are its own affair
    pytest.mark.filterwarnings("ignore:::(zmq|jupyter_client|tornado)"),
]

ROUNDS = 9
US, MS = 1e6, 1e3


def worker() -> Session:
    return Session(MemoryStorage(), SubprocessExecutor())


async def median(function: Callable[[], Awaitable[Any]], count: int) -> float:
    """Seconds of one call, the median of so many."""
    times: list[float] = []
    for _ in range(count):
        began = perf_counter()
        await function()
        times.append(perf_counter() - began)
    return statistics.median(times)


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round: what disturbed one side disturbed the other."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


async def test_small_runs(report: Report, tmp_path: Path) -> None:
    in_worker: list[float] = []
    in_process: list[float] = []
    in_kernel: list[float] = []
    bare: list[float] = []
    async with (
        worker() as apart,
        Session(MemoryStorage()) as here,
        ipykernel(tmp_path) as kernel,
        bare_socket() as sock,
    ):
        assert (await apart.run("1+1")).value == (await here.run("1+1")).value == 2
        assert await kernel.run("1+1") == "2"
        for _ in range(ROUNDS + 1):
            in_worker.append(await median(lambda: apart.run("1+1"), 300))
            in_kernel.append(await median(lambda: kernel.run("1+1"), 30))
            in_process.append(await median(lambda: here.run("1+1"), 300))
            bare.append(await sock.echo(300))
    # the first round is the warm-up
    in_worker, in_process, in_kernel, bare = (
        rounds[1:] for rounds in (in_worker, in_process, in_kernel, bare)
    )
    against = ratios(in_worker, in_kernel)
    report.add(
        summarised("warm `1+1`, worker", in_worker, "ms", scale=MS, bound=0.25),
        summarised("warm `1+1`, ipykernel", in_kernel, "ms", scale=MS),
        summarised("warm `1+1`, worker / ipykernel", against, "x", bound=0.1),
        summarised("warm `1+1`, in-process", in_process, "µs", scale=US, bound=150),
        summarised("bare socket: 80 bytes there, 40 back", bare, "µs", scale=US),
    )


async def test_a_megabyte_of_text(report: Report, tmp_path: Path) -> None:
    in_worker: list[float] = []
    in_kernel: list[float] = []
    code = "'x' * 1_000_000"
    async with worker() as apart, ipykernel(tmp_path) as kernel:
        assert (await apart.run(code)).value == "x" * 1_000_000
        assert len(await kernel.run(code) or "") == 1_000_002
        for _ in range(ROUNDS):
            in_worker.append(await median(lambda: apart.run(code), 10))
            in_kernel.append(await median(lambda: kernel.run(code), 3))
    report.add(
        summarised("1 MB text result, worker", in_worker, "ms", scale=MS, bound=6),
        summarised("1 MB text result, ipykernel", in_kernel, "ms", scale=MS),
        summarised("1 MB text result, worker / ipykernel", ratios(in_worker, in_kernel), "x"),
    )


ASK = """
def ask(tool, count):
    import time
    from statistics import median
    times = []
    for _ in range(count):
        began = time.perf_counter()
        tool(a=2, b=5)
        times.append(time.perf_counter() - began)
    return median(times)
"""


async def test_tool_calls(report: Report) -> None:
    def add(a: int, b: int = 1) -> int:
        return a + b

    async def add_async(a: int, b: int = 1) -> int:
        return a + b

    plain: list[float] = []
    coroutine: list[float] = []
    bare: list[float] = []
    echo: list[float] = []
    async with worker() as session, bare_socket() as sock:
        session.add_tool(add)
        session.add_tool(add_async)
        assert (await session.run("tools.add(a=2, b=5), tools.add_async(a=2, b=5)")).value == (7, 7)
        await session.run(ASK)

        async def ask(tool: str) -> float:
            value = (await session.run(f"ask(tools.{tool}, 500)")).value
            assert isinstance(value, float)
            return value

        for _ in range(ROUNDS + 1):
            coroutine.append(await ask("add_async"))
            bare.append(await sock.call(500))
            echo.append(await sock.echo(500))
            plain.append(await ask("add"))
    plain, coroutine, bare, echo = plain[1:], coroutine[1:], bare[1:], echo[1:]
    report.add(
        summarised("tool call, async function", coroutine, "µs", scale=US, bound=150),
        summarised("tool call, plain function (a thread)", plain, "µs", scale=US, bound=150),
        summarised("bare request and reply (JSON)", bare, "µs", scale=US),
        summarised("bare socket: 80 bytes there, 40 back", echo, "µs", scale=US),
        summarised(
            "tool call, async / bare request and reply", ratios(coroutine, bare), "x", bound=6
        ),
        summarised("tool call, plain / bare request and reply", ratios(plain, bare), "x", bound=6),
        summarised("tool call, async / bare socket", ratios(coroutine, echo), "x"),
        summarised("tool call, plain / bare socket", ratios(plain, echo), "x"),
    )


async def test_many_small_runs_side_by_side(report: Report) -> None:
    rates: list[float] = []
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(worker()) for _ in range(8)]

        async def run_many(session: Session) -> None:
            for _ in range(125):
                await session.run("1+1")

        for _ in range(ROUNDS + 1):
            began = perf_counter()
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(run_many, session)
            rates.append(1000 / (perf_counter() - began))
    report.add(
        summarised("1,000 runs over 8 workers", rates[1:], "runs/s", bound=5000, is_rate=True)
    )


async def test_second_session_of_an_environment(report: Report) -> None:
    ours: list[float] = []
    bare: list[float] = []
    executor = SubprocessExecutor()
    async with Session(MemoryStorage(), executor) as session:
        await session.run("1+1")
        python = str(executor.environment.python)
    for _ in range(2 * ROUNDS):
        began = perf_counter()
        # blocking, with nothing else on the loop: the floor gets the machine to itself
        subprocess.run([python, "-I", "-c", "pass"], check=True)  # noqa: ASYNC221
        bare.append(perf_counter() - began)
        session = worker()
        began = perf_counter()
        await session.start()
        try:
            assert (await session.run("1+1")).value == 2
            ours.append(perf_counter() - began)
        finally:
            await session.close()
    report.add(
        summarised("second session: start to first `1+1`", ours, "ms", scale=MS),
        summarised("`python -I -c pass` of the same environment", bare, "ms", scale=MS),
        summarised("second session / bare interpreter", ratios(ours, bare), "x", bound=3),
    )


CONSTRUCT = f"""{PEAK}
import json, time
before, began = peak(), time.perf_counter()
{{code}}
print(json.dumps([time.perf_counter() - began, (peak() - before) / 2**20, peak() / 2**20]))
"""


async def test_import_and_construction(report: Report, tmp_path: Path) -> None:
    code = f"from py_code_mode import Session, FileStorage\nSession(FileStorage({str(tmp_path)!r}))"
    rounds: list[list[float]] = []
    for _ in range(ROUNDS + 1):
        finished = await anyio.run_process(
            [sys.executable, "-c", CONSTRUCT.replace("{code}", code)]
        )
        rounds.append(json.loads(finished.stdout))
    times, added, total = (list(column) for column in zip(*rounds[1:], strict=True))
    report.add(
        summarised("import and construct", times, "ms", scale=MS, bound=120),
        summarised("import and construct: memory above a bare interpreter", added, "MB", bound=20),
        summarised("import and construct: memory in all", total, "MB"),
    )


@pytest.mark.parametrize(
    ("name", "line", "bound"),
    [
        ("one print", 20_000_000, 200.0),
        ("lines of 64 kB", 64_000, None),
        ("lines of 1 kB", 1_000, None),
        ("lines of 100 bytes", 100, None),
    ],
)
async def test_twenty_megabytes_of_output(
    report: Report, name: str, line: int, bound: float | None
) -> None:
    in_worker: list[float] = []
    in_process: list[float] = []
    code = f"for _ in range({20_000_000 // line}): print(line)"
    async with worker() as apart, Session(MemoryStorage()) as here:
        for session, rates in ((apart, in_worker), (here, in_process)) * 5:
            await session.run(f"line = 'x' * {line - 1}")
            began = perf_counter()
            result = await session.run(code)
            rates.append(20 / (perf_counter() - began))
            assert result.is_ok
            assert len(result.stdout) > 10_000_000
    report.add(
        summarised(
            f"20 MB of output, {name}, worker", in_worker, "MB/s", bound=bound, is_rate=True
        ),
        summarised(f"20 MB of output, {name}, in-process", in_process, "MB/s", is_rate=True),
    )
