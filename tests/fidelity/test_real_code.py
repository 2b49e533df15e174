"""The interpreter's own tests end in a session as they do in plain Python.

In a worker as in ``python -I -c``; in-process as in a thread that is not the main one, of a program
with an event loop.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from py_code_mode import Session

from .differences import DIFFERENT, LEFT_OUT
from .modules import FULL, SAMPLE, TIMEOUT
from .ways import PAIRS, Bench, Way, differences

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 30.0
ALL = SAMPLE + (FULL if os.environ.get("PY_CODE_MODE_FULL") else ())


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.make()


@pytest.mark.timeout(4 * TIMEOUT + 60)
@pytest.mark.parametrize(("plain", "session"), PAIRS)
@pytest.mark.parametrize("module", ALL)
def test_real_code_has_the_same_outcome(
    bench: Bench, module: str, plain: Way, session: Way
) -> None:
    if not bench.has_tests(module):
        pytest.skip(f"the interpreter {bench.python} has no test.{module}")
    left_out = tuple(start for way, start, _ in LEFT_OUT.get(module, ()) if way == plain)

    def compare() -> dict[str, str]:
        expected = bench.run(plain, module, timeout=TIMEOUT, left_out=left_out)
        got = bench.run(session, module, timeout=TIMEOUT, left_out=left_out)
        assert expected.outcomes, expected.failure
        return {
            name: f"{plain}: {pair[0]}, {session}: {pair[1]}\n{got.details.get(name, '')}"
            for name, pair in differences(expected, got).items()
            if (session, name) not in DIFFERENT
        }

    found = compare()
    if found:  # some tests of CPython depend on the time: a difference must show twice
        again = compare()
        found = {name: text for name, text in again.items() if name in found}
    assert not found, "\n".join(f"{name}: {text}" for name, text in found.items())


@pytest.mark.anyio
async def test_argument_types_that_a_cell_declares_are_its_own(tmp_path: Path) -> None:
    # ctypes.pythonapi is shared: this made the thread of the session end without a word
    declare = """
import ctypes
ctypes.pythonapi.PyThreadState_SetAsyncExc.argtypes = ctypes.c_ulong, ctypes.py_object
"""
    try:
        async with Session.inprocess(tmp_path) as session:
            with anyio.fail_after(PATIENCE):
                assert (await session.run(declare)).error is None
                stopped = await session.run("while True: pass", timeout=0.2)
                assert stopped.state == "kept"
                assert (await session.run("1 + 1")).value == 2
    finally:
        del ctypes.pythonapi.PyThreadState_SetAsyncExc.argtypes


@pytest.mark.anyio
async def test_a_trace_function_for_all_threads_ends_with_its_session(tmp_path: Path) -> None:
    # it was called in the host's threads when its names were gone, and the close waited for good
    trace = "import threading\ndef nothing(*event): return nothing\nthreading.settrace(nothing)"
    with anyio.fail_after(PATIENCE):
        async with Session.inprocess(tmp_path) as session:
            assert (await session.run(trace)).error is None
        assert threading.gettrace() is None
        await anyio.to_thread.run_sync(int)
