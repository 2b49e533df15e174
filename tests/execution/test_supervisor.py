"""Background work: whose it is, how it ends, and what it sees."""

from __future__ import annotations

from contextvars import ContextVar, copy_context

import anyio
import pytest

from py_code_mode.execution.supervisor import Supervisor

PATIENCE = 30.0
pytestmark = pytest.mark.anyio

_who: ContextVar[str] = ContextVar("who", default="nobody")


async def test_job_sees_the_context_it_was_started_with_and_changes_nothing_in_it() -> None:
    supervisor = Supervisor.acquire()
    seen: list[str] = []

    async def work() -> None:
        seen.append(_who.get())
        _who.set("the job")

    _who.set("the caller")
    context = copy_context()
    _who.set("somebody else")
    for _ in range(2):
        await supervisor.start(context, work).wait()
    await supervisor.release()
    assert seen == ["the caller", "the caller"]


async def test_last_release_ends_what_still_runs_and_waits_for_it() -> None:
    first, second = Supervisor.acquire(), Supervisor.acquire()
    assert first is second
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                ended.set()

    first.start(copy_context(), work)
    await anyio.wait_all_tasks_blocked()
    await first.release()
    assert not ended.is_set()
    with anyio.fail_after(PATIENCE):
        await second.release()
    assert ended.is_set()


async def test_cancelling_a_job_does_not_cut_into_its_shielded_clean_up() -> None:
    supervisor = Supervisor.acquire()
    cleaning, go_on, cleaned = anyio.Event(), anyio.Event(), anyio.Event()

    async def work() -> None:
        with anyio.CancelScope(shield=True):
            cleaning.set()
            await go_on.wait()
            cleaned.set()

    job = supervisor.start(copy_context(), work)
    with anyio.fail_after(PATIENCE):
        await cleaning.wait()
        job.cancel()
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await job.wait()
        await supervisor.release()
    assert cleaned.is_set()


async def test_job_that_releases_its_supervisor_does_not_wait_for_itself() -> None:
    supervisor = Supervisor.acquire()
    job = supervisor.start(copy_context(), supervisor.release)
    with anyio.fail_after(PATIENCE):
        await job.wait()
    other = Supervisor.acquire()
    assert other is not supervisor
    await other.release()
