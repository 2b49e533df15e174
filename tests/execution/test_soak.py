"""Sessions by the thousand, used and ended in every way: nothing may be left, nothing may grow.

All 5,000 where ``PY_CODE_MODE_FULL=1``, else 200 of them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
from pathlib import Path

import anyio
import psutil
import pytest

from py_code_mode import MemoryStorage, Session, SubprocessConfig, SubprocessExecutor
from py_code_mode.execution import zygote
from py_code_mode.sandbox.probe import probe

from ..zygotes import sandbox_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        "namespaces" not in probe().backends, reason="this machine allows no namespaces"
    ),
]
COUNT = 5000 if os.environ.get("PY_CODE_MODE_FULL") == "1" else 200
#: Sessions alive at one time.
CLIENTS = 6
MIB = 1 << 20


def sandboxed() -> Session:
    return Session(MemoryStorage(), SubprocessExecutor(SubprocessConfig(backend="namespaces")))


async def closed_at_once(session: Session, chance: random.Random) -> None:
    """Opened and closed again."""


async def used(session: Session, chance: random.Random) -> None:
    """Some runs, files and children."""
    for number in range(chance.randint(1, 4)):
        assert (await session.run(f"x = {number}; x")).value == number
    await session.run("open('/work/a', 'wb').write(bytes(100_000))")
    await session.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")


async def crashed(session: Session, chance: random.Random) -> None:
    """The code ends its own process, in one way or another."""
    end = chance.choice(["os._exit(3)", "os.abort()", "os.kill(os.getpid(), 9)"])
    assert not (await session.run(f"import os; {end}")).is_ok
    assert (await session.run("1 + 1")).value == 2


async def killed(session: Session, chance: random.Random) -> None:
    """The whole sandbox is killed from outside, while it runs or between runs."""
    keeper = sandbox_of(session).keeper
    async with anyio.create_task_group() as tasks:
        if chance.random() < 0.5:
            tasks.start_soon(session.run, "while True: pass", 5.0)
            await anyio.lowlevel.checkpoint()
        keeper.end()
    result = await session.run("1 + 1")
    if not result.is_ok:  # it had begun before the end was known
        result = await session.run("1 + 1")
    assert result.value == 2


async def timed_out(session: Session, chance: random.Random) -> None:
    """A run that takes too long."""
    assert not (await session.run("import time; time.sleep(60)", timeout=0.02)).is_ok


async def cancelled(session: Session, chance: random.Random) -> None:
    """A caller that goes away."""
    with anyio.move_on_after(chance.random() * 0.02):
        await session.run("import time; time.sleep(60)")


WAYS = (closed_at_once, used, used, crashed, killed, timed_out, cancelled)


async def life(seed: int) -> None:
    chance = random.Random(seed)
    session = sandboxed()
    with anyio.fail_after(60):
        if chance.random() < 0.05:
            with anyio.move_on_after(chance.random() * 0.02):
                await session.start()
            await session.close()
            return
        async with session:
            await chance.choice(WAYS)(session, chance)


async def many(count: int) -> None:
    limiter = anyio.CapacityLimiter(CLIENTS)

    async def one(seed: int) -> None:
        async with limiter:
            await life(seed)

    async with anyio.create_task_group() as tasks:
        for seed in range(count):
            tasks.start_soon(one, seed)


def mounts() -> int:
    return len(Path("/proc/self/mounts").read_text().splitlines())


def processes() -> int:
    """Those that this one has started, and theirs."""
    return len(psutil.Process().children(recursive=True))


def control_groups() -> int:
    """Those that this process has made."""
    place = probe().memory_groups
    own = f"-{os.getpid()}-"
    return 0 if place is None else sum(own in name for name in os.listdir(place.folder))


def zygote_memory() -> int:
    found = 0
    for one in vars(zygote)["_zygotes"].values():
        for process in psutil.Process(one.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # what waited for a session may end
                held = process.memory_info()
                found += held.rss - held.shared
    return found


async def test_sessions_by_the_thousand_leave_nothing_and_zygotes_do_not_grow() -> None:
    await many(20)
    with anyio.fail_after(60):  # until the zygote has what it will ever have
        is_warm = False
        while not is_warm:
            async with sandboxed() as session:
                is_warm = bool((await session.run("import sys; 'pandas' in sys.modules")).value)
    gc.collect()
    before = (mounts(), control_groups(), processes(), len(os.listdir("/proc/self/fd")))
    memory = zygote_memory()

    await many(COUNT)

    gc.collect()
    with anyio.fail_after(20):
        while processes() > before[2]:  # noqa: ASYNC110  the last ones are ending
            await anyio.sleep(0.05)
    after = (mounts(), control_groups(), processes(), len(os.listdir("/proc/self/fd")))
    assert after[:2] == before[:2]
    assert after[3] <= before[3] + 2
    assert zygote_memory() < memory + 16 * MIB
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
