"""Large values to a worker and back, measured next to plain pickle through a pipe."""
# Frames of libraries whose stubs know less than what is asked of them.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import mmap
import os
import pickle
import statistics
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy
import pandas
import pytest

from py_code_mode import (
    Executor,
    InProcessExecutor,
    MemoryStorage,
    Policy,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.codecs.values import EXCHANGE_LIMIT, decode_value, encode_value, share_value
from py_code_mode.execution import Bind, Fetch, Release
from py_code_mode.guest.wire import FrameReader, pack

from .report import summarised

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from .report import Report

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="sealed memfds are Linux only"),
]

np: Any = numpy
pd: Any = pandas
ROUNDS = 5
MS, GB = 1e3, 1e9

PEER = r"""
import pickle, struct, sys
source, sink = sys.stdin.buffer, sys.stdout.buffer
sink.write(b"!"); sink.flush()
while size := source.read(8):
    value = pickle.loads(source.read(struct.unpack("<Q", size)[0]))
    body = pickle.dumps(value, protocol=5)
    sink.write(struct.pack("<Q", len(body))); sink.write(body); sink.flush()
"""


@contextmanager
def pickling_peer() -> Generator[Callable[[object], Any]]:
    """A process that takes a pickle through a pipe and gives it back through another."""
    with subprocess.Popen(
        [sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sink, source = process.stdin, process.stdout
        assert source.read(1) == b"!"

        def there_and_back(value: object) -> Any:
            body = pickle.dumps(value, protocol=5)
            sink.write(len(body).to_bytes(8, "little"))
            sink.write(body)
            sink.flush()
            del body
            return pickle.loads(source.read(int.from_bytes(source.read(8), "little")))

        yield there_and_back


@asynccontextmanager
async def worker() -> AsyncGenerator[SubprocessExecutor]:
    """An executor with a worker that has imported what frames need."""
    executor = SubprocessExecutor(
        SubprocessConfig(policy=Policy(memory=None, file_size=None, disk=None))
    )
    async with Session(MemoryStorage(), executor) as session:
        result = await session.run("import numpy, pandas, pyarrow.ipc")
        assert result.is_ok, result.error
        yield executor


async def there_and_back(executor: SubprocessExecutor, value: object) -> tuple[float, Any]:
    began = perf_counter()
    await executor.exchange(Bind("value", value))
    back = await executor.exchange(Fetch("value"))
    return perf_counter() - began, back


def numbers(size: float) -> Any:
    rows = int(size / 80)
    return pd.DataFrame(np.random.default_rng(1).random((rows, 10)), columns=list("abcdefghij"))


def texts(size: float, dtype: str) -> Any:
    """A column of texts of 10 to 90 characters, 50 on average, that takes about so many bytes."""
    rows = int(size / (107 if dtype == "object" else 58))
    filler = "of a table whose texts are of the length that people write to one another"
    cells = np.empty(rows, object)
    cells[:] = [f"row {n:06d}{filler[: n * 7919 % 81]}" for n in range(rows)]
    return pd.DataFrame({"text": pd.Series(cells, dtype=dtype)})


def size_of(value: Any) -> int:
    return int(value.memory_usage(deep=True).sum())


def moved_by_the_kernel(data: Any) -> float:
    """Seconds to write so many bytes to fresh memory of another twice, and to read them once.

    The least there and back can take: each way has its copy, and the host looks at what it gets.
    """
    files: list[int] = []
    began = perf_counter()
    try:
        for _ in range(2):
            files.append(os.memfd_create("floor", os.MFD_CLOEXEC))
            rest = memoryview(data)
            while rest.nbytes:
                rest = rest[os.write(files[-1], rest) :]
        mapped = mmap.mmap(files[-1], data.nbytes, access=mmap.ACCESS_READ)
        np.frombuffer(mapped, "u8").max()
        return perf_counter() - began
    finally:
        for fd in files:
            os.close(fd)


async def against_pickle(
    report: Report,
    name: str,
    value: Any,
    *,
    least: float | None,
    ratio: float | None,
) -> None:
    """Measure a value there and back; `least` in bytes moved a second, over 1e9."""
    ours: list[float] = []
    theirs: list[float] = []
    floors: list[float] = []
    size = size_of(value)
    data = np.ones(size // 8, "u8")
    async with worker() as executor:
        with pickling_peer() as pickled:
            for round in range(ROUNDS + 1):
                seconds, back = await there_and_back(executor, value)
                if not round:
                    pd.testing.assert_frame_equal(back, value, check_exact=True)
                del back
                await executor.exchange(Bind("value", None))
                ours.append(seconds)
                began = perf_counter()
                back = pickled(value)
                theirs.append(perf_counter() - began)
                del back
                floors.append(moved_by_the_kernel(data))
    ours, theirs, floors = ours[1:], theirs[1:], floors[1:]
    rates, peers, most = (
        [2 * size / GB / seconds for seconds in rounds] for rounds in (ours, theirs, floors)
    )
    ratios = [theirs / ours for ours, theirs in zip(ours, theirs, strict=True)]
    above = [ours / floor for ours, floor in zip(ours, floors, strict=True)]
    report.add(
        summarised(f"{name}, there and back", rates, "GB/s", bound=least, is_rate=True),
        summarised(f"{name}, plain pickle through pipes", peers, "GB/s", is_rate=True),
        summarised(f"{name}, ours / pickle", ratios, "x", bound=ratio, is_rate=True),
        summarised(f"{name}, floor: written twice, read once", most, "GB/s", is_rate=True),
        summarised(f"{name}, time of ours / time of the floor", above, "x"),
    )


async def test_a_gigabyte_of_numbers(report: Report) -> None:
    await against_pickle(report, "1 GB float64 frame", numbers(1 << 30), least=1.2, ratio=4.0)


@pytest.mark.parametrize(
    ("dtype", "least", "ratio"),
    [
        ("str", 1.2, 4.0),
        # a Python object for each text has to be made at the other end, whoever does it
        ("object", None, 1.2),
    ],
)
async def test_texts(report: Report, dtype: str, least: float | None, ratio: float) -> None:
    value = texts(0.6 * GB, dtype)
    await against_pickle(report, f"0.6 GB of texts, {dtype}", value, least=least, ratio=ratio)


def test_opening(report: Report) -> None:
    rows: list[Any] = []
    for name, value in (
        ("one block", numbers(1 << 30)),
        ("by columns", pd.DataFrame({f"c{n}": np.random.rand(1 << 24) for n in range(8)})),
    ):
        tree, segments = encode_value(value, limit=EXCHANGE_LIMIT)
        times: list[float] = []
        for _ in range(ROUNDS + 1):
            buffers, fds = pack(b"{}", segments)  # pyright: ignore[reportArgumentType]
            data = b"".join(map(bytes, buffers))
            began = perf_counter()
            (frame,) = FrameReader().feed(data, fds)
            back: Any = decode_value(tree, frame.segments, writable=True, limit=EXCHANGE_LIMIT)
            first = back.iloc[0, 0]
            times.append(perf_counter() - began)
            assert first == value.iloc[0, 0]
            del back, frame
        rows.append(
            summarised(
                f"1 GB float64 frame, {name}: opened, first cell", times[1:], "ms", scale=MS,
                bound=10,
            )
        )  # fmt: skip
        del value, segments
    report.add(*rows)


async def test_binding_what_is_shared_already(report: Report) -> None:
    rows: list[Any] = []
    async with worker() as executor:
        for name, size, bound in (("100 MB", 1e8, 1.0), ("1 GB", 1 << 30, 10.0)):
            shared = share_value(numbers(size))
            try:
                times: list[float] = []
                for _ in range(41):
                    began = perf_counter()
                    await executor.exchange(Bind("shared", shared))
                    times.append(perf_counter() - began)
            finally:
                shared.close()
            rows.append(
                summarised(f"{name} shared already, bound", times[1:], "ms", scale=MS, bound=bound)
            )
        await executor.exchange(Release("shared"))
    report.add(*rows)


@pytest.mark.parametrize("executor", [SubprocessExecutor, InProcessExecutor])
async def test_small_runs_beside_many_handles(report: Report, executor: type[Executor]) -> None:
    def session() -> Session:
        return Session(MemoryStorage(), executor())

    async def median(session: Session) -> float:
        times: list[float] = []
        for _ in range(200):
            began = perf_counter()
            await session.run("1+1")
            times.append(perf_counter() - began)
        return statistics.median(times)

    with_many: list[float] = []
    with_none: list[float] = []
    async with session() as many, session() as none:
        for number in range(50):
            await many.put(f"frame_{number}", numbers(100_000))
            await many.put(f"record_{number}", {"name": "x" * 1000, "number": number})
        assert len(many.handles.handle_names()) == 100
        for _ in range(16):
            with_many.append(await median(many))
            with_none.append(await median(none))
    with_many, with_none = with_many[1:], with_none[1:]
    ratios = [one / other for one, other in zip(with_many, with_none, strict=True)]
    name = f"`1+1`, {executor.name}"
    report.add(
        summarised(f"{name}, 100 handles", with_many, "µs", scale=1e6),
        summarised(f"{name}, no handles", with_none, "µs", scale=1e6),
        summarised(f"{name}, 100 handles / none", ratios, "x", bound=1.05),
    )
