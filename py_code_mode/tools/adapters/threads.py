"""Runs blocking functions of tools in threads that cannot keep the process alive.

Not `anyio.to_thread`, for two reasons: its threads are waited for when the interpreter ends, so one
tool that hangs would keep a finished program running for ever; and a call through it takes half as
long again, which is most of what a small tool costs.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from py_code_mode.errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Seconds after which a thread without work ends.
MAX_IDLE = 10.0
#: Calls of one `Threads` that run at the same time; more wait their turn.
MAX_RUNNING = 64


class Threads:
    """Runs functions in daemon threads, shared by the whole process; limits its own share of them.

    A call that is cancelled is abandoned: its thread runs on until the function returns, and counts
    towards the limit until then.
    """

    def __init__(self, limit: int = MAX_RUNNING) -> None:
        self._limit = limit
        self._abandoned = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(limit)

    async def run(self, name: str, function: Callable[[], T]) -> T:
        """What `function` returns or raises; it sees the caller's context variables.

        Raises:
            ToolError: so many abandoned calls still run that there is no thread for `name`.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # What an earlier loop borrowed cannot be given back to it any more.
            self._loop, self._slots, self._abandoned = loop, asyncio.Semaphore(self._limit), 0
        if self._abandoned >= self._limit:
            raise ToolError(
                name,
                f"{self._abandoned} earlier calls of tools were cancelled, but their functions "
                "still run; some must return before more can be called",
            )
        slots = self._slots
        await slots.acquire()
        future: asyncio.Future[T] = loop.create_future()
        try:
            _submit(_Job(self, slots, loop, future, function, _context()))
        except RuntimeError as error:
            slots.release()
            raise ToolError(name, f"no thread could be started: {error}") from error
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._abandoned += 1
            raise

    def finish(self, job: _Job[T]) -> None:
        """Hand over what a job gave; called in the loop when its function has returned."""
        future, failure = job.future, job.failure
        job.slots.release()
        if future.cancelled():
            if job.slots is self._slots:
                self._abandoned -= 1
        elif failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(cast("T", job.result))


@dataclass(slots=True)
class _Job(Generic[T]):
    owner: Threads
    slots: asyncio.Semaphore
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[T]
    function: Callable[[], T]
    context: contextvars.Context
    result: T | None = None
    failure: BaseException | None = None

    def run(self) -> None:
        if self.future.cancelled():
            return
        try:
            self.result = self.context.run(self.function)
        except StopIteration as error:
            # A future refuses it: it would end the coroutine that awaits.
            self.failure = RuntimeError("the function raised StopIteration")
            self.failure.__cause__ = error
        except BaseException as error:
            self.failure = error

    def deliver(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.owner.finish, self)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits any more


_lock = threading.Lock()
_jobs: queue.SimpleQueue[_Job[object]] = queue.SimpleQueue()
_idle = 0


def _submit(job: _Job[T]) -> None:
    global _idle
    with _lock:
        is_new_needed = _idle == 0
        if not is_new_needed:
            _idle -= 1
    if is_new_needed:
        threading.Thread(target=_work, name="py-code-mode tool", daemon=True).start()
    _jobs.put(job)  # pyright: ignore[reportArgumentType]


def _context() -> contextvars.Context:
    context = contextvars.copy_context()
    # What tells anyio and httpx that a loop runs: not in that thread, which may start its own.
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context


def _work() -> None:
    global _idle
    while True:
        try:
            job = _jobs.get(timeout=MAX_IDLE)
        except queue.Empty:
            with _lock:
                if _idle:
                    _idle -= 1
                    return
            continue  # a job was put just now and counts on this thread
        job.run()
        # Before delivery: whoever gets the result and calls again must find this thread.
        with _lock:
            _idle += 1
        job.deliver()
        del job  # its result must not live until the next one comes
