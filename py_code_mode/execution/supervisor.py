"""One owner for background work: the only tasks that are not inside somebody's `async with`.

`start()` and `close()` may be called from different tasks, in any order, so no object may keep a
cancel scope of its caller open between the two. Work that goes on in between (serving a guest's
calls) belongs to the supervisor: one per event loop, there as long as somebody uses it. The last
user to go ends what is left and waits for it.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

#: The job that the current task is part of; tasks made in it belong to it too.
_current_job: ContextVar[Job | None] = ContextVar("current_job", default=None)
_supervisors: WeakKeyDictionary[asyncio.AbstractEventLoop, Supervisor] = WeakKeyDictionary()


class Job:
    """One piece of background work.

    A plain task with a cancel scope of its own: half of what a small call costs would be an anyio
    task group's bookkeeping, of which a job needs the scope alone (it keeps shields whole).
    """

    def __init__(self, context: Context, coroutine_of: Callable[[Job], Any]) -> None:
        self.scope = anyio.CancelScope()
        loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] = context.run(loop.create_task, coroutine_of(self))

    @property
    def is_current(self) -> bool:
        """Whether the caller is part of it: it cannot wait for itself."""
        return _current_job.get() is self

    def cancel(self) -> None:
        """Ask it to stop; `wait` tells when it has."""
        self.scope.cancel()

    async def wait(self) -> None:
        """Return when it has ended, whichever way."""
        await asyncio.wait([self._task])


class Supervisor:
    """The background work of one event loop; `acquire` it, and `release` it as often."""

    def __init__(self) -> None:
        self._users = 0
        self._jobs: set[Job] = set()

    @classmethod
    def acquire(cls) -> Supervisor:
        """The running loop's supervisor."""
        loop = asyncio.get_running_loop()
        supervisor = _supervisors.get(loop)
        if supervisor is None:
            supervisor = _supervisors[loop] = cls()
        supervisor._users += 1
        return supervisor

    async def release(self) -> None:
        """Give up one use; the last one ends what still runs and waits for it."""
        self._users -= 1
        if self._users:
            return
        loop = asyncio.get_running_loop()
        if _supervisors.get(loop) is self:
            del _supervisors[loop]
        with anyio.CancelScope(shield=True):
            jobs = [job for job in self._jobs if not job.is_current]
            for job in jobs:
                job.cancel()
            for job in jobs:
                await job.wait()

    def start(self, context: Context, function: Callable[..., Awaitable[None]], *args: Any) -> Job:
        """Start work in the background, with the context variables of `context`."""

        async def run(job: Job) -> None:
            _current_job.set(job)
            try:
                with job.scope:
                    await function(*args)
            finally:
                self._jobs.discard(job)

        job = Job(context, run)
        self._jobs.add(job)
        return job


async def to_the_end(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Carry clean-up out whole, however its caller is cancelled, and only then go on.

    A shielded scope holds off anyio's cancellation alone; ``asyncio.wait_for`` and
    ``asyncio.timeout`` cancel the task itself.
    """
    task = asyncio.get_running_loop().create_task(function())
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
