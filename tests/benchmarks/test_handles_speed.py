"""Handles, measured next to a raw sequential write and, where it is installed, the original."""
# pandas frames are Any here, and the original has no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy
import pandas
import pytest

from py_code_mode.handles import SessionCache

from .report import summarised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .report import Report

np: Any = numpy
pd: Any = pandas

try:
    from data_harness.data.cache import (  # pyright: ignore[reportMissingImports]
        SessionCache as _Original,
    )

    Original: Any = _Original
except ImportError:
    Original = None

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]

ROUNDS = 7
US, MS = 1e6, 1e3
ROWS = 12_500_000  # of five float64: 0.5 GB


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is: a disk's own moods would be all there is to see."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 4 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


def timed(function: Callable[[], object]) -> float:
    began = perf_counter()
    function()
    return perf_counter() - began


def write_raw(path: Path, data: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        while data.nbytes:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def floats() -> Any:
    numbers = np.random.default_rng(1)
    return pd.DataFrame({name: numbers.standard_normal(ROWS) for name in "abcde"})


def test_spilling_half_a_gigabyte(report: Report, folder: Path) -> None:
    times: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)

    made = floats()
    raw = memoryview(np.ones(ROWS * 5)).cast("B")
    gigabytes = raw.nbytes / 1e9
    with SessionCache(storage_dir=folder / "ours", hot_limit=1) as cache:
        cache.put("other", None)
        for _ in range(ROUNDS + 1):
            note("raw", timed(lambda: write_raw(folder / "raw", raw)))
            (folder / "raw").unlink()
            cache.put("x", made.copy())
            note("spill", timed(lambda: cache.get("other")))
            info = cache.info("x")
            assert not info.is_hot
            assert not info.in_use
            note("reload", timed(lambda: cache.get("x").iat[5, 3]))
            note("clean", timed(lambda: cache.get("other")))
            assert cache.info("x").stored_as == "arrow"
            cache.delete("x")
    # the first round is the warm-up
    ratios = [one / two for one, two in zip(times["raw"][1:], times["spill"][1:], strict=True)]
    rates = {name: [gigabytes / one for one in all_of[1:]] for name, all_of in times.items()}
    rows = [
        summarised("spill 0.5 GB of floats / raw write", ratios, "x", bound=0.5, is_rate=True),
        summarised("spill 0.5 GB of floats", rates["spill"], "GB/s", is_rate=True),
        summarised("raw sequential write of as many bytes", rates["raw"], "GB/s", is_rate=True),
        summarised("reload them, to the first cell", times["reload"][1:], "ms", scale=MS, bound=20),
        summarised("move them out again, unchanged", rates["clean"], "GB/s", is_rate=True),
    ]
    if Original is not None:
        original = Original(storage_dir=folder / "original", hot_limit=1)
        spilled: list[float] = []
        loaded: list[float] = []
        for _ in range(2):
            original.put("x", made)
            spilled.append(gigabytes / timed(lambda: original.put("other", 1, True)))
            loaded.append(timed(lambda: original.get("x")))
        rows += [
            summarised("data-harness: spill the same", spilled, "GB/s", is_rate=True),
            summarised("data-harness: reload", loaded, "ms", scale=MS),
        ]
    report.add(*rows)


def test_spilling_text_and_other_values(report: Report, folder: Path) -> None:
    words = [f"word number {n % 9973}" for n in range(2_000_000)]
    values: dict[str, Any] = {
        "text (pandas str)": lambda: pd.DataFrame({"a": pd.array(words, dtype="str")}),
        "text in objects": lambda: pd.DataFrame({"a": pd.Series(words, dtype=object)}),
        "an array": lambda: np.random.default_rng(1).standard_normal(25_000_000),
        "a dict of arrays": lambda: {str(n): np.zeros(1_000_000) + n for n in range(25)},
        "a frame with freq": lambda: pd.DataFrame(
            {"a": np.zeros(10_000_000)}, index=pd.date_range("2000", periods=10_000_000, freq="s")
        ),
    }
    rows: list[Any] = []
    with SessionCache(storage_dir=folder, hot_limit=1) as cache:
        cache.put("other", None)
        for name, make in values.items():
            rates: list[float] = []
            reloads: list[float] = []
            gigabytes = 0.0
            for _ in range(3):
                cache.put("x", make())
                gigabytes = cache.info("x").nbytes / 1e9
                rates.append(gigabytes / timed(lambda: cache.get("other")))
                reloads.append(timed(lambda: cache.get("x")))
                cache.delete("x")
            rows += [
                summarised(f"spill {name}, {gigabytes:.2f} GB", rates, "GB/s", is_rate=True),
                summarised(f"reload {name}", reloads, "ms", scale=MS),
            ]
    report.add(*rows)


def test_small_values(report: Report) -> None:
    def rounds(use: Callable[[], object]) -> list[float]:
        found: list[float] = []
        for _ in range(ROUNDS + 1):
            began = perf_counter()
            for _ in range(2000):
                use()
            found.append((perf_counter() - began) / 2000)
        return found[1:]

    value = {"a": 1, "b": [1, 2, 3]}
    rows: list[Any] = []
    with SessionCache() as cache, SessionCache(hot_limit=10, max_bytes=1 << 30) as bounded:
        for name, ours in (("", cache), (", with limits", bounded)):

            def use(ours: SessionCache = ours) -> None:
                ours.put("x", value, True)
                ours.get("x")

            rows.append(
                summarised(
                    f"put + get of a small value{name}", rounds(use), "µs", scale=US, bound=20
                )
            )
    if Original is not None:
        original = Original()
        theirs = rounds(lambda: (original.put("x", value, True), original.get("x")))
        rows.append(summarised("data-harness: put + get (and snapshot)", theirs, "µs", scale=US))
    report.add(*rows)


def test_a_frame_of_ten_million_rows(report: Report) -> None:
    made = pd.DataFrame({name: np.zeros(10_000_000) for name in "abcde"})
    puts: list[float] = []
    snapshots: list[float] = []
    with SessionCache(max_bytes=8 << 30) as cache:
        for _ in range(ROUNDS + 1):
            puts.append(timed(lambda: cache.put("x", made, True)))
            snapshots.append(timed(lambda: cache.snapshot("x")))
    report.add(
        summarised("put a frame of 10 million rows", puts[1:], "ms", scale=MS, bound=2),
        summarised("its snapshot", snapshots[1:], "ms", scale=MS),
    )


def test_many_handles(report: Report, folder: Path) -> None:
    count = 10_000
    with SessionCache(storage_dir=folder, hot_limit=1) as cache:
        began = perf_counter()
        for number in range(count):
            cache.put(f"v{number}", {"n": number})
        spilled = perf_counter() - began
        names = [timed(cache.handle_names) for _ in range(ROUNDS)]
    opened: list[float] = []
    for _ in range(3):
        began = perf_counter()
        with SessionCache(storage_dir=folder) as cache:
            opened.append(perf_counter() - began)
            assert len(cache.handle_names()) == count
    report.add(
        summarised("put and spill one of 10,000 small values", [spilled / count], "µs", scale=US),
        summarised("names of 10,000 handles", names, "µs", scale=US),
        summarised("open a directory of 10,000 handles", opened, "ms", scale=MS),
    )
