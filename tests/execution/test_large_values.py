"""Large values in a real worker: mapped, not copied; its own to write to; nothing stays behind."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy
import pandas
import pytest

from py_code_mode import CodeModeError, Policy, Session
from py_code_mode.codecs.values import share_value
from py_code_mode.execution import Bind, Fetch
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.storage import MemoryStorage

from ..sample_values import ONLY_IN_PYTHON, SAMPLES, same

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="sealed memory is Linux only"),
]
np: Any = numpy
pd: Any = pandas
PATIENCE = 60.0
MIB = 1 << 20

HELD = """
import gc, os
def held():
    gc.collect()
    return len(os.listdir('/proc/self/fd')), open('/proc/self/maps').read().count('memfd:')
held()
"""


class Guest:
    """A session, and the executor beneath it."""

    def __init__(self, session: Session, executor: SubprocessExecutor) -> None:
        self._session = session
        self.exchange = executor.exchange

    async def value(self, code: str) -> Any:
        """What the code's last expression gives."""
        with anyio.fail_after(PATIENCE):
            result = await self._session.run(code)
        assert result.is_ok, result.error
        return result.value


@pytest.fixture
async def guest() -> AsyncGenerator[Guest]:
    policy = Policy(memory=1 << 30)
    executor = SubprocessExecutor(SubprocessConfig(policy=policy, backend="auto"))
    async with Session(MemoryStorage(), executor) as session:
        yield Guest(session, executor)


def held() -> tuple[int, int]:
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:code-mode")
    return len(os.listdir("/proc/self/fd")), maps


async def test_every_kind_is_bound_and_fetched_or_refused(guest: Guest) -> None:
    for name, make in SAMPLES.items():
        value = make()
        with anyio.fail_after(PATIENCE):
            if name in ONLY_IN_PYTHON:
                with pytest.raises(CodeModeError, match=ONLY_IN_PYTHON[name]):
                    await guest.exchange(Bind("value", value))
                continue
            await guest.exchange(Bind("value", value))
            assert same(await guest.exchange(Fetch("value")), value), name


async def test_what_only_python_knows_is_bound_where_it_was_shared_so(guest: Guest) -> None:
    bound = 0
    refused: list[str] = []
    for name in sorted(ONLY_IN_PYTHON):
        shared = share_value(SAMPLES[name](), allow_pickle=True)
        try:
            with anyio.fail_after(PATIENCE):
                await guest.exchange(Bind("value", shared))
        except CodeModeError as error:
            # the classes of these tests are not there, and pandas may be another
            refused.append(str(error))
            continue
        finally:
            shared.close()
        bound += 1
        assert await guest.value("type(value).__name__") == type(SAMPLES[name]()).__name__
    assert bound > 25
    assert all("on this side" in text for text in refused)


async def test_the_guest_writes_to_its_own_copy(guest: Guest) -> None:
    value = pd.DataFrame(np.ones((1_000_000, 4)), columns=list("abcd"))
    shared = share_value(value)
    try:
        await guest.exchange(Bind("first", shared))
        await guest.exchange(Bind("second", shared))
        code = "first.loc[0, 'a'] = 5.0; first['b'] += 1; float(second.sum().sum())"
        assert await guest.value(code) == 4_000_000
        assert await guest.value("float(first.sum().sum())") == 5_000_004
        await guest.exchange(Bind("third", shared))
        assert await guest.value("float(third.sum().sum())") == 4_000_000
    finally:
        shared.close()
    assert value.sum().sum() == 4_000_000
    back: Any = await guest.exchange(Fetch("first"))
    back.loc[0, "a"] = 7.0
    assert await guest.value("float(first.loc[0, 'a'])") == 5.0


async def test_neither_side_keeps_descriptors_or_mappings(guest: Guest) -> None:
    await guest.value("import numpy, pandas, pyarrow.ipc")
    value = {"array": np.ones(1 << 20), "frame": pd.DataFrame({"a": range(1 << 20), "s": "text"})}

    async def go() -> None:
        shared = share_value(value)
        try:
            for _ in range(10):
                await guest.exchange(Bind("value", shared))
                await guest.exchange(Fetch("value"))
        finally:
            shared.close()
        await guest.exchange(Bind("value", None))

    await go()
    before, there = held(), await guest.value(HELD)
    await go()
    assert await guest.value(HELD) == there
    assert held() == before


async def test_a_value_beyond_the_guests_memory_costs_nothing_but_itself(guest: Guest) -> None:
    await guest.value("kept = 42")
    shared = share_value(np.zeros(1200 * MIB // 8))
    try:
        with anyio.fail_after(PATIENCE), pytest.raises(CodeModeError, match="memory"):
            await guest.exchange(Bind("value", shared))
    finally:
        shared.close()
    assert await guest.value("kept, 'value' in globals()") == (42, False)
