"""A worker process: whose end it shares, and what its environment is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from py_code_mode import (
    ConfigError,
    MemoryStorage,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import InvalidCall

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 30.0

HOST = """
import sys
import anyio
from py_code_mode import MemoryStorage, Session, SubprocessConfig, SubprocessExecutor

def tell(event):
    print(event.text, end="", flush=True)

async def main():
    plain = SubprocessExecutor(SubprocessConfig(backend="none"))
    async with Session(MemoryStorage(), plain) as session:
        await session.run(sys.argv[1], on_output=tell)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the lifeline needs Linux")
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "while True:\n    try: time.sleep(600)\n    except BaseException: pass",
        "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "pass",
    ],
    ids=["busy", "sleeping", "deaf", "idle"],
)
def test_worker_dies_with_a_host_that_is_killed(tmp_path: Path, code: str) -> None:
    start = "import os, signal, time\nprint(os.getpid(), flush=True)\n"
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, start + code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # it cannot tidy up
    )
    with host:
        assert host.stdout is not None
        worker = psutil.Process(int(host.stdout.readline()))
        assert worker.is_running()
        host.send_signal(signal.SIGKILL)
        host.wait(TIMEOUT)
        worker.wait(TIMEOUT)


@pytest.mark.anyio
@pytest.mark.usefixtures("small_environment")
async def test_private_environment_is_removed_at_close() -> None:
    config = SubprocessConfig(cache_venv=False)
    async with Session(MemoryStorage(), SubprocessExecutor(config)) as session:
        result = await session.run("import sys; sys.prefix")
        assert result.is_ok
        prefix = str(result.value)
        assert os.listdir(prefix)
    with pytest.raises(FileNotFoundError):
        os.listdir(prefix)


@pytest.mark.anyio
async def test_guest_needs_nothing_of_the_host_installed() -> None:
    async with Session(MemoryStorage(), SubprocessExecutor()) as session:
        result = await session.run("import py_code_mode")
        assert result.error == "ModuleNotFoundError: No module named 'py_code_mode'"
        result = await session.run("import sys; 'site' in sys.modules, sys.flags.isolated")
        assert result.value == (True, 1)


@pytest.mark.anyio
async def test_interrupt_during_the_answer_of_a_value_keeps_the_session() -> None:
    async with Session(MemoryStorage(), SubprocessExecutor()) as session:
        await session.run("x = 1\ndata = [list(range(1000)) for _ in range(2000)]")
        for step in range(12):
            result = await session.run("data", timeout=0.01 + 0.02 * step)
            assert result.state == "kept"
            assert result.is_ok or result.error is not None
        assert (await session.run("x")).value == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "docker"}, "backend: must be one of auto, .*, not 'docker'"),
        ({"protect": "sometimes"}, "protect: must be one of idle, always, off, not 'sometimes'"),
        ({"pool": -1}, "pool: must be a number from 0, not -1"),
        ({"pool": "3"}, "pool: must be a number from 0, not '3'"),
        ({"policy": {"network": "none"}}, "policy: must be a Policy, not {'network': 'none'}"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, InvalidCall), match=says):
        SubprocessConfig(**options)
