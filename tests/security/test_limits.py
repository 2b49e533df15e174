"""What attacks have found about limits, each pinned."""

from __future__ import annotations

import sys

import pytest

from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.policy import Policy
from py_code_mode.sandbox.probe import probe
from py_code_mode.session import Session
from py_code_mode.storage import MemoryStorage

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.platform != "linux" or probe().backends[0] != "namespaces", reason="no namespaces here"
    ),
]


def _session() -> Session:
    policy = Policy(memory="128MiB", disk="16MiB")
    return Session(MemoryStorage(), SubprocessExecutor(SubprocessConfig(policy=policy)))


@pytest.mark.parametrize("sessions", [1, 3])  # the first one, and some with libraries preloaded
async def test_a_low_memory_limit_leaves_room_beside_what_libraries_reserve(sessions: int) -> None:
    """An allocator's gigabyte of reserved addresses had left a low limit no room for anything."""
    for _ in range(sessions):
        async with _session() as session:
            assert (await session.run("len(bytearray(20 << 20))")).value == 20 << 20
            too_much = await session.run("len(bytearray(2 << 30))")
            assert "MemoryError" in (too_much.error or "")


async def test_a_machine_without_memory_ends_the_guest_before_all_others() -> None:
    async with _session() as session:
        told = await session.run("open('/proc/self/oom_score_adj').read()")
        taken_back = await session.run("open('/proc/self/oom_score_adj', 'w')")
    assert told.value == "1000\n"
    assert "PermissionError" in (taken_back.error or "")


async def test_children_that_share_their_memory_count_it_once() -> None:
    """Copies of a large worker hold little of their own: being exact must not be given up."""
    code = """
import os, time
kept = bytearray(b"x") * (40 << 20)
children = []
for _ in range(6):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    children.append(child)
time.sleep(0.5)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
len(children)
"""
    async with _session() as session:
        assert (await session.run(code)).value == 6
