"""What only an in-process session can get wrong: it shares an interpreter with its host."""

from __future__ import annotations

import sys
import textwrap
import threading

import anyio
import pytest

from py_code_mode import MemoryStorage, Session

PATIENCE = 30.0

PROFILED = """
import anyio, cProfile
from py_code_mode import MemoryStorage, Session

async def main():
    async with Session(MemoryStorage()) as session:
        await session.run({before!r}, timeout=0.2)
        with cProfile.Profile() as profile:
            result = await session.run("1 + 1")
        assert result.value == 2
        assert profile.getstats()

anyio.run(main)
"""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "before",
    [
        pytest.param("1 + 1", id="after a run"),
        pytest.param("while True: pass", id="after a run that was interrupted"),
        pytest.param(
            "try:\n    while True: pass\nexcept KeyboardInterrupt:\n    pass",
            id="after a run that swallowed its interrupt",
        ),
    ],
)
async def test_the_thread_of_the_event_loop_can_be_profiled(before: str) -> None:
    # Taking an exception back from a thread left the interpreter looking for one for ever; CPython
    # 3.11 then never got past a function's first instruction in a thread with a profiler on. Not
    # to be tried in this process, which would hang as well.
    with anyio.fail_after(60):
        code = PROFILED.format(before=before)
        done = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.anyio
async def test_abandoned_code_is_interrupted_until_it_stops() -> None:
    """Each of these interrupts was lost, as where the stack is nearly full; its thread went on."""
    code = """
        swallowed = 0
        while swallowed < 8:
            try:
                while True:
                    pass
            except KeyboardInterrupt:
                swallowed += 1
    """
    async with Session(MemoryStorage()) as session:
        name = f"session {session.id}"
        (thread,) = (each for each in threading.enumerate() if each.name == name)
        result = await session.run(textwrap.dedent(code), timeout=0.1)
        assert result.state == "lost"
        await anyio.to_thread.run_sync(thread.join, PATIENCE)
        assert not thread.is_alive()
        assert (await session.run("1 + 1")).value == 2
