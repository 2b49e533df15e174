"""One run in progress: what it has given so far, and who is told.

Shared by every executor: collects output within bounds, hands events to the session's callback with
backpressure, and serves the calls of the guest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context, copy_context
from dataclasses import dataclass
from inspect import isawaitable
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

from py_code_mode.execution.output import MAX_LATE, BoundedText, text_decoder
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.results import Display, Event, Failure, Late, Output, Shown, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from py_code_mode.execution.executor import OnEvent, RunRequest
    from py_code_mode.execution.supervisor import Job, Supervisor

#: From the first interrupt to the end of patience, where code does not stop.
GRACE = 1.0
#: The interrupt is sent again at this pace: code may have swallowed the first one.
INTERRUPT_AGAIN = 0.25
#: How long calls that are still open when their run ends may take to be cancelled.
CALL_CANCEL_TIMEOUT = 1.0
#: Calls a guest may have open at once.
MAX_OPEN_CALLS = 1000
#: Bytes of arguments that calls open at once may hold.
MAX_OPEN_CALL_BYTES = 256 << 20
#: Bytes of displays kept of one run.
MAX_DISPLAY_BYTES = 64 << 20
#: What a display takes besides its data, so that many empty ones count too.
_DISPLAY_COST = 1 << 10
#: Events waiting for a slow callback before the guest has to wait.
MAX_WAITING_EVENTS = 64

Stream: TypeAlias = Literal["stdout", "stderr"]
#: Why a run was told to stop.
StopReason: TypeAlias = Literal["timeout", "interrupted", "closed", "cancelled", "callback"]


class Gathered:
    """Output and displays, within bounds."""

    def __init__(self, limit: int | None = None) -> None:
        self._texts = {
            "stdout": BoundedText(limit) if limit else BoundedText(),
            "stderr": BoundedText(limit) if limit else BoundedText(),
        }
        self.displays: list[Display] = []
        self._display_bytes = 0
        self.left_out = 0

    def write(self, stream: Stream, data: bytes) -> None:
        """Take bytes of a stream."""
        self._texts[stream].add(data)

    def show(self, display: Display) -> bool:
        """Take a display; False where it is over the bound."""
        size = _DISPLAY_COST + sum(len(kind) + len(body) for kind, body in display.data.items())
        if self._display_bytes + size > MAX_DISPLAY_BYTES:
            self.left_out += 1
            return False
        self._display_bytes += size
        self.displays.append(display)
        return True

    def text(self, stream: Stream) -> str:
        """What was written to a stream."""
        return self._texts[stream].text()

    def as_late(self) -> Late:
        """The same as what came between two runs."""
        return Late(
            stdout=self.text("stdout"), stderr=self.text("stderr"), displays=tuple(self.displays)
        )


def between_runs() -> Gathered:
    """A place for what threads and children give while no run is active."""
    return Gathered(MAX_LATE)


class Activity:
    """A run in progress, from the host's side.

    The executor feeds it (`write`, `show`, `finish`) from callbacks of the event loop; the task
    that called ``run`` waits in `follow`, which delivers events and climbs the ladder where the run
    must stop: interrupt, again while it does not help, end it after the grace.

    Args:
        request: what is run.
        on_event: told of what happens, or None.
        hold_back: called with True when the callback is slow, with False when it caught up.
        interrupt: makes the guest's code stop, if it can be.
        end: makes it stop whatever it does; `finish` must follow.
    """

    def __init__(
        self,
        request: RunRequest,
        on_event: OnEvent | None,
        *,
        hold_back: Callable[[bool], None],
        interrupt: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self.request = request
        self.gathered = Gathered()
        self.context: Context = copy_context()
        self.stop_reason: StopReason | None = None
        self.is_over = False
        self.started = perf_counter()
        self.ended = self.started
        self.calls: dict[int, tuple[str, Job]] = {}
        #: bytes of arguments that calls hold now
        self.call_bytes = 0
        self._on_event = on_event
        self._hold_back = hold_back
        self._interrupt = interrupt
        self._end = end
        self._timers: list[asyncio.TimerHandle] = []
        self._waiting: deque[Event] = deque()
        self._decoders = {"stdout": text_decoder(), "stderr": text_decoder()} if on_event else {}
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._paused = False
        self._onlookers: list[asyncio.Future[None]] = []
        self._held_back: list[asyncio.Future[None]] = []

    # -- fed by the executor

    def write(self, stream: Stream, data: bytes) -> None:
        """Take output."""
        self.gathered.write(stream, data)
        if self._on_event is not None:
            text = self._decoders[stream].decode(data)
            if text:
                self.tell(Output(stream, text))

    def show(self, display: Display) -> None:
        """Take a display."""
        if self.gathered.show(display):
            self.tell(Shown(display))

    def tell(self, event: Event) -> None:
        """Queue an event for the callback; the guest waits where the callback is slow."""
        if self._on_event is None:
            return
        self._waiting.append(event)
        if len(self._waiting) > MAX_WAITING_EVENTS and not self._paused:
            self._paused = True
            self._hold_back(True)
        self._notify()

    async def caught_up(self) -> None:
        """Return when the callback is no longer behind; for calls, which tell of themselves."""
        while self._paused:
            onlooker: asyncio.Future[None] = self._loop.create_future()
            self._held_back.append(onlooker)
            await onlooker

    @property
    def is_listened_to(self) -> bool:
        """Whether there is anybody to tell."""
        return self._on_event is not None

    @property
    def is_behind(self) -> bool:
        """Whether the callback has more waiting than it should."""
        return len(self._waiting) > MAX_WAITING_EVENTS

    def finish(self) -> None:
        """The run is over: nothing more will come."""
        if not self.is_over:
            self.is_over = True
            self.ended = perf_counter()
            # a slow callback may take its time now: nothing is left to be stopped
            self._cancel_timers()
            self._notify()
            for onlooker in self._onlookers:
                if not onlooker.done():
                    onlooker.set_result(None)

    async def wait_over(self) -> None:
        """Return when the run is over; for others than the task that runs."""
        if not self.is_over:
            onlooker: asyncio.Future[None] = self._loop.create_future()
            self._onlookers.append(onlooker)
            await onlooker

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # -- used by the task that runs

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.ended - self.started

    async def follow(self) -> list[str]:
        """Deliver events until the run is over, stopping it at its deadline.

        Cancelled, or where the callback raises, the run is stopped first.

        Returns:
            notes on calls that were cut off.

        Raises:
            Exception: what the callback raised.
        """
        if self.request.timeout is not None:
            self._later(self.request.timeout, self.stop, "timeout")
        notes: list[str] = []
        try:
            await self._until_over()
        except BaseException as error:
            self._mute()
            self.stop("callback" if isinstance(error, Exception) else "cancelled")
            await to_the_end(self.wait_over)
            raise
        finally:
            self._cancel_timers()
            if self.calls:
                with anyio.CancelScope(shield=True):
                    notes = await self._end_calls()
        return notes

    def stop(self, reason: StopReason) -> bool:
        """Climb the ladder; False where the run is over, or being stopped already."""
        if self.is_over or self.stop_reason is not None:
            return False
        self.stop_reason = reason
        self._cancel_timers()
        self._later(GRACE, self._end)
        self._interrupt_again()
        return True

    def _interrupt_again(self) -> None:
        if not self.is_over:
            self._interrupt()
            self._later(INTERRUPT_AGAIN, self._interrupt_again)

    def _later(self, delay: float, function: Callable[..., object], *args: object) -> None:
        self._timers.append(self._loop.call_later(delay, function, *args))

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def _until_over(self) -> None:
        while not self.is_over or self._waiting:
            if self._waiting:
                await self._deliver()
            else:
                self._wake = self._loop.create_future()
                try:
                    await self._wake
                finally:
                    self._wake = None

    async def _deliver(self) -> None:
        assert self._on_event is not None
        while self._waiting:
            given = self._on_event(self._waiting.popleft())
            if isawaitable(given):
                await given
        self._let_go()

    def _let_go(self) -> None:
        if self._paused:
            self._paused = False
            self._hold_back(False)
            for onlooker in self._held_back:
                if not onlooker.done():
                    onlooker.set_result(None)
            self._held_back.clear()

    def _mute(self) -> None:
        """Deliver nothing more: the callback failed, or its task is cancelled."""
        self._on_event = None
        self._waiting.clear()
        self._let_go()

    # -- calls

    def serve(
        self,
        supervisor: Supervisor,
        identity: int,
        target: str,
        function: Callable[[], Awaitable[None]],
    ) -> None:
        """Carry a call out in the background, as part of this run."""

        async def serve() -> None:
            try:
                await function()
            finally:
                self.calls.pop(identity, None)

        self.calls[identity] = (target, supervisor.start(self.context, serve))

    async def _end_calls(self) -> list[str]:
        """Cancel calls that are still open; give a note of them. Bounded."""
        open_calls = list(self.calls.values())
        for _, job in open_calls:
            job.cancel()
        with anyio.move_on_after(CALL_CANCEL_TIMEOUT):
            for _, job in open_calls:
                await job.wait()
        names = ", ".join(sorted({target for target, _ in open_calls}))
        return [f"{len(open_calls)} call(s) cut off at the end of the run, effect unknown: {names}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of the variables at the end of a run.

    Attributes:
        state: still there, put back to an earlier run, or gone.
        restored_to: the run whose variables are back.
        notes: why there was no better way.
    """

    state: State = "kept"
    restored_to: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The same as the end of a sentence."""
        if self.state == "restored":
            when = f"after run {self.restored_to}" if self.restored_to else "before any run"
            return f"variables are as they were {when}"
        return "variables are kept" if self.state == "kept" else "its variables are lost"


KEPT = Fate()
LOST = Fate(state="lost")


def stopped_failure(activity: Activity, failure: Failure | None, fate: Fate) -> Failure:
    """The failure of a run that was told to stop, with the place where it was."""
    how = "interrupted" if fate.state == "kept" else "ended"
    timeout = activity.request.timeout
    texts: dict[StopReason | None, tuple[str, str]] = {
        "timeout": (
            "TimeoutError",
            f"the run took longer than {timeout} s and was {how}; {fate.text}",
        ),
        "interrupted": ("Interrupted", f"the run was {how} by interrupt(); {fate.text}"),
        "closed": ("Interrupted", "the session was closed during the run"),
    }
    other = ("Interrupted", f"the run was {how}: its caller no longer waits; {fate.text}")
    kind, message = texts.get(activity.stop_reason, other)
    return Failure(
        type=kind,
        message=message,
        traceback=failure.traceback if failure else "",
        lineno=failure.lineno if failure else None,
        cause="timeout" if activity.stop_reason == "timeout" else "interrupt",
    )
