"""Zygotes where several look for one, where one cannot start, and where parts of one are killed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from py_code_mode import MemoryStorage, Session, SubprocessConfig, SubprocessExecutor
from py_code_mode.errors import ConfinementFailed
from py_code_mode.execution import zygote
from py_code_mode.execution.ends import open_ends
from py_code_mode.sandbox.probe import probe

from ..zygotes import sandbox_of, spares, templates, wall_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        "namespaces" not in probe().backends, reason="this machine allows no namespaces"
    ),
]
PATIENCE = 60.0


def sandboxed(pool: int = 0) -> Session:
    config = SubprocessConfig(backend="namespaces", pool=pool)
    return Session(MemoryStorage(), SubprocessExecutor(config))


@pytest.fixture
def being_started() -> Iterator[Any]:
    yield vars(zygote)["_being_started"]
    zygote.close_zygotes()


async def test_zygote_that_was_just_found_is_not_ended_for_being_idle(
    monkeypatch: pytest.MonkeyPatch, being_started: Any
) -> None:
    """The count of its users used to follow the search in another step."""
    find_or_start = vars(zygote)["_find_or_start"]
    async with sandboxed() as guest:
        used = wall_of(guest)
        other = replace(used.spec, preload=())

        def find_while_others_leave(*arguments: Any) -> zygote.Zygote:
            found = find_or_start(*arguments)
            used.users += 1
            anyio.from_thread.run(zygote.release, used)
            return found

        monkeypatch.setattr(zygote, "_find_or_start", find_while_others_leave)
        monkeypatch.setattr(zygote, "MOST_IDLE", 0)
        found = await zygote.acquire(other)
        assert found.is_alive
        assert found.users == 1
        await zygote.release(found)
        assert not found.is_alive


async def test_caller_who_goes_away_leaves_no_use_behind(
    monkeypatch: pytest.MonkeyPatch, being_started: Any
) -> None:
    start = vars(zygote)["_start"]
    reached, go_on, made = anyio.Event(), threading.Event(), anyio.Event()
    async with sandboxed() as guest:
        other = replace(wall_of(guest).spec, preload=())

    def start_slowly(spec: zygote.ZygoteSpec) -> zygote.Zygote:
        anyio.from_thread.run_sync(reached.set)
        go_on.wait(PATIENCE)
        found = start(spec)
        loop.call_soon_threadsafe(made.set)
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(zygote, "_start", start_slowly)
    caller = loop.create_task(zygote.acquire(other))
    with anyio.fail_after(PATIENCE):
        await reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        go_on.set()
        await made.wait()
        while other not in vars(zygote)["_zygotes"]:
            await anyio.lowlevel.checkpoint()
    found = await zygote.acquire(other)
    assert found.users == 1
    await zygote.release(found)


async def test_failed_start_leaves_nothing_to_wait_for(
    monkeypatch: pytest.MonkeyPatch, being_started: Any
) -> None:
    async with sandboxed() as guest:
        spec = replace(wall_of(guest).spec, preload=())

    def fail(spec: zygote.ZygoteSpec) -> zygote.Zygote:
        assert list(being_started) == [spec]
        raise ConfinementFailed("wall", "it fell")

    with monkeypatch.context() as patched:
        patched.setattr(zygote, "_start", fail)
        with pytest.raises(ConfinementFailed):
            await zygote.acquire(spec)
    await zygote.release(await zygote.acquire(spec))
    gc.collect()  # the error's frames
    assert not list(being_started)


@pytest.mark.parametrize("said", [b"", b'{"t": "kept"}', b'{"t": "failed"}'])
@pytest.mark.parametrize("is_there", [False, True])
def test_sandbox_that_waits_is_alive_as_long_as_its_keeper_is(said: bytes, is_there: bool) -> None:
    keeper, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open_ends() as (ours, _):
        waiting = zygote.Waiting(keeper=keeper, group=None, ends=ours)
    with its_end:
        if said:
            its_end.send(said)
        if not is_there:
            its_end.close()
        assert waiting.is_alive is is_there
        waiting.close()


async def test_session_goes_on_where_a_zygote_is_killed_in_a_wall_that_stays(
    monkeypatch: pytest.MonkeyPatch, being_started: Any
) -> None:
    monkeypatch.setattr(zygote, "END_TIMEOUT", 0.2)  # so long the wall may take to follow
    async with sandboxed() as guest:
        assert (await guest.run("x = 1; x")).value == 1
        wall = wall_of(guest)
        keeper = sandbox_of(guest).keeper
        os.kill(wall.process.pid, signal.SIGSTOP)
        templates(wall)[0].kill()
        with anyio.fail_after(PATIENCE):
            while not keeper.is_over:  # noqa: ASYNC110  the kernel takes its time
                await anyio.sleep(0.001)
            assert (await guest.run("1 + 1")).value == 2
            assert wall_of(guest) is not wall
            async with sandboxed() as another:
                assert (await another.run("1 + 1")).value == 2


async def test_zygote_that_took_over_and_was_killed_is_made_again(being_started: Any) -> None:
    async def has_pandas() -> bool:
        async with sandboxed() as guest:
            return bool((await guest.run("import sys; 'pandas' in sys.modules")).value)

    async with sandboxed() as guest:
        wall = wall_of(guest)
        for _ in range(2):
            with anyio.fail_after(PATIENCE):
                while not await has_pandas():  # noqa: ASYNC110  it is importing
                    await anyio.sleep(0.02)
            _, successor = templates(wall)
            successor.kill()
            result = await guest.run("1 + 1")
            if result.failure is not None:  # it was made by the one that was killed
                assert result.failure.type == "GuestDied"
                result = await guest.run("1 + 1")
            assert result.value == 2
        assert wall.is_alive


@pytest.fixture
def nothing_is_preloaded(monkeypatch: pytest.MonkeyPatch, being_started: Any) -> None:
    """A zygote stays the one that serves, so what it has made is not given up for a successor's."""
    monkeypatch.setattr("py_code_mode.execution.sandbox._PRELOADED", ())


async def until_spare(wall: zygote.Zygote) -> int:
    """The pid of what waits for the next session."""
    with anyio.fail_after(PATIENCE):
        while not (found := spares(wall)):  # noqa: ASYNC110  it is made when nobody asks for a while
            await anyio.sleep(0.005)
    (spare,) = found
    return spare.pid


def keeper_of(guest: Session) -> int:
    pidfd = sandbox_of(guest).keeper._pidfd
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        facts = dict(line.split(":") for line in file)
    return int(facts["Pid"])


@pytest.mark.usefixtures("nothing_is_preloaded")
async def test_next_session_is_kept_by_what_waits_for_it() -> None:
    async with sandboxed() as first:
        spare = await until_spare(wall_of(first))
        async with sandboxed() as second:
            assert keeper_of(second) == spare
            assert (await second.run("open('/tmp/own', 'w').close(); 1 + 1")).value == 2
            assert await until_spare(wall_of(first)) != spare
            async with sandboxed() as third:
                assert (await third.run("import os; os.path.exists('/tmp/own')")).value is False


@pytest.mark.usefixtures("nothing_is_preloaded")
async def test_session_does_without_what_waited_and_was_killed() -> None:
    async with sandboxed() as first:
        spare = await until_spare(wall_of(first))
        os.kill(spare, signal.SIGKILL)
        async with sandboxed() as second:
            assert keeper_of(second) != spare
            assert (await second.run("1 + 1")).value == 2


@pytest.mark.usefixtures("nothing_is_preloaded")
async def test_what_waits_ends_with_its_zygote() -> None:
    async with sandboxed() as first:
        wall = wall_of(first)
        spare = os.pidfd_open(await until_spare(wall))
    try:
        zygote.close_zygotes()
        with anyio.fail_after(PATIENCE):
            await anyio.wait_readable(spare)
    finally:
        os.close(spare)
