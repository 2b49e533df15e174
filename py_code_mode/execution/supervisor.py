"""One owner for background work: the only task that is not inside somebody's `async with`.

`start()` and `close()` may be called from different tasks, in any order, so no object may keep a
cancel scope of its caller open between the two. Work that goes on in between (serving a guest's
calls) lives in this task group: one task per event loop, there as long as somebody uses it.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

_supervisors: WeakKeyDictionary[asyncio.AbstractEventLoop, Supervisor] = WeakKeyDictionary()


class Job:
    """One piece of background work."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._finished = anyio.Event()

    def cancel(self) -> None:
        """Ask it to stop; `wait` tells when it has."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Return when it has ended, whichever way."""
        await self._finished.wait()

    async def run(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Carry the work out, in the task that this call is made in."""
        try:
            with self._scope:
                await function(*args)
        finally:
            self._finished.set()


class Supervisor:
    """The task group of one event loop; `acquire` it, and `release` it as often."""

    def __init__(self) -> None:
        self._users = 0
        self._ready = anyio.Event()
        self._stop = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._owner: asyncio.Task[None] | None = None

    @classmethod
    async def acquire(cls) -> Supervisor:
        """The running loop's supervisor, started where needed."""
        loop = asyncio.get_running_loop()
        supervisor = _supervisors.get(loop)
        if supervisor is None:
            supervisor = _supervisors[loop] = cls()
            # a task of its own, not of the caller: the caller may end before the last user does
            supervisor._owner = Context().run(loop.create_task, supervisor._serve())
        supervisor._users += 1
        try:
            await supervisor._ready.wait()
        except BaseException:
            await supervisor.release()
            raise
        return supervisor

    async def release(self) -> None:
        """Give up one use; the last one ends the task and waits for it."""
        self._users -= 1
        if self._users:
            return
        loop = asyncio.get_running_loop()
        if _supervisors.get(loop) is self:
            del _supervisors[loop]
        self._stop.set()
        owner = self._owner
        if owner is not None and owner is not asyncio.current_task():
            with anyio.CancelScope(shield=True):
                await asyncio.wait([owner])

    async def _serve(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._ready.set()
            await self._stop.wait()
            tasks.cancel_scope.cancel()

    def start(self, context: Context, function: Callable[..., Awaitable[None]], *args: Any) -> Job:
        """Start work in the background, with the context variables of `context`.

        `function` handles its own errors: what it raises would end everybody's work.
        """
        assert self._tasks is not None, "acquire() comes first"
        job = Job()
        context.run(self._tasks.start_soon, job.run, function, *args)
        return job
