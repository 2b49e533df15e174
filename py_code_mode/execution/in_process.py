"""Runs a session's guest on a thread of the host's own process: fast, and no isolation at all.

Honest about what a thread cannot do: code that cannot be interrupted is abandoned, with its calls
revoked and its output dropped, and the session goes on with a new thread and a new namespace.
"""

from __future__ import annotations

import _thread
import asyncio
import ctypes
import os
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import SimpleQueue
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, assert_never

import anyio
import anyio.to_thread

from py_code_mode.arguments import check
from py_code_mode.errors import (
    CallFailed,
    CodeModeError,
    ExecutorClosed,
    HandleNotFound,
    InvalidCall,
    NoActiveRun,
)
from py_code_mode.execution import thread_streams
from py_code_mode.execution.activity import (
    GRACE,
    KEPT,
    LOST,
    MAX_OPEN_CALLS,
    Activity,
    Gathered,
    StopReason,
    between_runs,
    stopped_failure,
)
from py_code_mode.execution.executor import (
    Bind,
    Call,
    Capability,
    Exchange,
    Executor,
    ExecutorConfig,
    Fetch,
    Load,
    Offer,
    OnEvent,
    Release,
    RunOutcome,
    RunRequest,
    Save,
    SavedState,
    Setup,
)
from py_code_mode.execution.supervisor import Supervisor, to_the_end
from py_code_mode.guest import displays, evaluate, proxies
from py_code_mode.guest.errors import GUEST_ERRORS, from_facts, to_facts
from py_code_mode.guest.evaluate import Interpreter, Outcome
from py_code_mode.guest.holdings import Holdings
from py_code_mode.results import Called, Display, Failure, Handle, Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from py_code_mode.environments.base import Environment

#: A thread that waits for a lock cannot be interrupted, so ours wait in slices of this length.
_SLICE = 0.05
#: Seconds for which code that has not stopped is interrupted, once its session goes on without it.
_PRESSING = 5.0
#: Characters a session may be ahead of the event loop before its thread waits.
_MAX_BUFFERED = 4 << 20
#: Characters of one line that may wait for its end.
_MAX_LINE = 64 << 10
_PLAIN_MODULES = ("builtins", "numpy", "pandas", "polars", "pyarrow")

_module_numbers = count(1)
evaluate.hidden_folders.append(os.path.dirname(os.path.abspath(__file__)) + os.sep)
#: A prototype of our own: `ctypes.pythonapi` is everybody's, and so are the argument types that
#: user code declares on its functions.
_set_exception = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessConfig(ExecutorConfig):
    """How an in-process session is made; see `ExecutorConfig` for the fields."""

    default_timeout: float | None = 30.0


class InProcessExecutor(Executor):
    """A daemon thread per session, in this process."""

    name = "in_process"
    offers = frozenset(
        {
            Capability.TIMEOUT,
            Capability.RESET,
            Capability.DEPS_INSTALL,
            Capability.INTERRUPT,
            Capability.LIVE_VALUES,
            Capability.EXCHANGE,
        }
    )

    def __init__(self, config: InProcessConfig | None = None) -> None:
        check("config", config, (InProcessConfig, NoneType), "an InProcessConfig")
        self._config = config or InProcessConfig()
        self._state = "not started"
        self._closed = anyio.Event()
        self._supervisor: Supervisor | None = None
        self._guest: _Guest | None = None
        self._setup: Setup | None = None
        self._call: Call | None = None

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        return cls(InProcessConfig(**options))

    @property
    def config(self) -> InProcessConfig:
        return self._config

    @property
    def isolation(self) -> str:
        return self.name

    @property
    def environment(self) -> Environment:
        # not needed before the start, and what makes environments takes long to import
        from py_code_mode.environments.base import host_environment

        return host_environment()

    async def start(self, setup: Setup, call: Call) -> frozenset[str]:
        if self._state != "not started":
            raise ExecutorClosed(self.name, self._state)
        self._setup, self._call = setup, call
        self._supervisor = Supervisor.acquire()
        # no await from here on
        thread_streams.acquire()
        if setup.overlay is not None:
            # appended: what the host itself imports stays what it was
            sys.path.append(str(setup.overlay))
        self._guest = _Guest(setup, call, self._supervisor)
        self._state = "started"
        return self.capabilities

    def _live(self) -> _Guest:
        if self._guest is None:
            raise ExecutorClosed(self.name, self._state)
        return self._guest

    async def run(self, request: RunRequest, on_event: OnEvent | None = None) -> RunOutcome:
        guest = self._live()
        try:
            return await guest.run(request, on_event)
        finally:
            self.state = "lost" if guest.is_abandoned else "kept"
            if guest.is_abandoned and self._guest is guest:
                assert self._setup is not None
                assert self._call is not None
                assert self._supervisor is not None
                self._guest = _Guest(self._setup, self._call, self._supervisor)

    async def exchange(self, message: Exchange) -> object:
        interpreter = self._live().interpreter
        match message:
            case Bind(name, value, version):
                interpreter.bind(name, value, version)
                return True
            case Offer(name, value, version):
                has_room = interpreter.holdings.has_room(name, version)
                if has_room:
                    interpreter.bind(name, value, version)
                return has_room
            case Fetch(name):
                try:
                    return interpreter.holdings.find(name)
                except KeyError:
                    raise HandleNotFound(name) from None
            case Release(name):
                interpreter.holdings.release(name)
                return None
            case Save(limit):
                return await _on_a_thread("save", partial(_save, interpreter, limit))
            case Load(state):
                return await _on_a_thread("load", partial(_load, interpreter, state))
            case _:
                assert_never(message)

    async def interrupt(self) -> bool:
        return self._live().stop("interrupted")

    async def reset(self) -> None:
        self._live().interpreter.reset()

    async def close(self) -> None:
        guest, self._guest = self._guest, None
        before, self._state = self._state, "closed"
        if guest is None:
            if before == "closed":
                await to_the_end(self._closed.wait)
            self._closed.set()
            return

        async def free() -> None:
            try:
                await end()
            finally:
                self._closed.set()

        async def end() -> None:
            await guest.close()
            thread_streams.release()
            overlay = self._setup.overlay if self._setup else None
            if overlay is not None and str(overlay) in sys.path:
                sys.path.remove(str(overlay))
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is not None:
                await supervisor.release()

        await to_the_end(free)


async def _on_a_thread(what: str, function: Callable[[], object]) -> object:
    """Have code of the variables' classes run where it keeps no other session waiting.

    Cancelled, it is left to itself: it cannot be interrupted.

    Raises:
        CallFailed: it raised.
    """
    try:
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
    except (Exception, SystemExit) as error:  # a border, as the other side of a worker's socket
        raise CallFailed(what, f"{type(error).__name__}: {error}") from error


def _save(interpreter: Interpreter, limit: int) -> SavedState:
    saved = interpreter.save(limit)
    parts = [bytes(part) for part in saved.parts]  # copies: the variables live on
    return SavedState(parts=parts, types=saved.types, skipped=saved.skipped)


def _load(interpreter: Interpreter, state: SavedState) -> list[str]:
    return interpreter.load([bytearray(part) for part in state.parts])


def _handle(sketch: Mapping[str, Any]) -> Handle:
    snapshot = Snapshot(data=sketch["snapshot"])
    return Handle(name=sketch["name"], type_name=sketch["type"], snapshot=snapshot)


def _ends_line(text: str) -> bool:
    return "\n" in text or "\r" in text


class _Guest:
    """One thread and its namespace; used from the event loop, except where it says otherwise."""

    def __init__(self, setup: Setup, call: Call, supervisor: Supervisor) -> None:
        self.is_abandoned = False
        self._call = call
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._activity: Activity | None = None
        self._result: Outcome | None = None
        self._between: Gathered = between_runs()
        self._call_ids = count(1)
        self._trace, self._profile = threading.gettrace(), threading.getprofile()
        # guards what both threads touch
        self._lock = threading.Lock()
        self._is_evaluating = False
        self._is_interrupted = False
        self._buffer: list[tuple[str, str]] = []
        self._buffered = 0
        self._pauses: list[_thread.LockType] = []
        self._flush_scheduled = False
        self._shown: list[Display] = []
        caller = _Caller(self)
        holdings = Holdings()
        reserved = proxies.build(caller, setup.namespaces, self._load_workflow, holdings)
        self.interpreter = Interpreter(
            f"_code_mode_session_{next(_module_numbers)}",
            {**reserved, "display": self._display},
            holdings,
        )
        self._requests: SimpleQueue[RunRequest | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._serve, name=f"session {setup.session_id}", daemon=True
        )
        self._unhook = displays.hook_pyplot(self._pyplot_sink)
        self._thread.start()

    def _load_workflow(self, name: str, source: str) -> Callable[..., object]:
        return self.interpreter.load_workflow(name, source)

    # -- on the guest's thread

    def _serve(self) -> None:
        thread_streams.bind(self)
        try:
            while not self.is_abandoned:
                try:
                    request = self._requests.get()
                except KeyboardInterrupt:
                    continue  # meant for a run that had just ended
                if request is None:
                    return
                self._evaluate(request)
        finally:
            thread_streams.unbind()

    def _evaluate(self, request: RunRequest) -> None:
        outcome = Outcome()
        try:
            try:
                with self._lock:
                    self._is_evaluating = True
                outcome = self.interpreter.run(request.code, request.run_id)
                self._add_displays(outcome)
            finally:
                self._stop_evaluating()
        except KeyboardInterrupt:
            # a second one, while the first or the value was being described
            self._stop_evaluating()
            outcome.failure = {
                "type": "KeyboardInterrupt",
                "message": "interrupted",
                "traceback": "",
                "lineno": None,
            }
        self._post(self._on_done, outcome)

    def _stop_evaluating(self) -> None:
        is_quiet = False
        while not is_quiet:
            try:
                with self._lock:
                    self._is_evaluating = False
                    is_quiet = not self._is_interrupted
                if not is_quiet:
                    # One that is set may not be raised yet. To take it back is not enough: up to
                    # Python 3.12 the interpreter would go on looking for it, in every thread and
                    # for ever, and a thread with a profiler on would do nothing else. So it is
                    # set again and raised here.
                    self._is_interrupted = False
                    _set_exception(threading.get_ident(), id(KeyboardInterrupt))
                    while True:
                        pass
            except KeyboardInterrupt:
                continue

    def _add_displays(self, outcome: Outcome) -> None:
        value = outcome.value
        is_plain = type(value).__module__.split(".")[0] in _PLAIN_MODULES
        for bundle in displays.of_result(None if is_plain else value):
            self._show(bundle)

    def _pyplot_sink(self) -> Callable[[Mapping[str, str | bytes]], None] | None:
        """Where ``plt.show()`` goes: other threads' figures are none of ours."""
        return self._show if threading.get_ident() == self._thread.ident else None

    def _display(self, *objects: object) -> None:
        """Show objects richly: figures, images, HTML, or their text."""
        for object in objects:
            self._show(displays.display_bundle(object))

    def _show(self, bundle: Mapping[str, str | bytes]) -> None:
        self._post(self._on_display, Display(data=dict(bundle)))

    def write(self, stream: str, text: str) -> None:
        """Take what the session's threads print (any thread); passed on by the line."""
        with self._lock:
            self._buffer.append((stream, text))
            self._buffered += len(text)
            is_due = _ends_line(text) or self._buffered > _MAX_LINE
            schedule = is_due and not self._flush_scheduled
            self._flush_scheduled |= is_due
        if schedule:
            self._post(self._flush)
        # the loop may be slow, or its callback may be: wait, but let interrupts in
        while self._buffered > _MAX_BUFFERED and not self.is_abandoned:
            pause = _thread.allocate_lock()
            pause.acquire()
            self._pauses.append(pause)
            pause.acquire(timeout=_SLICE)

    def flush(self) -> None:
        """Pass on what there is, also a part of a line (any thread)."""
        self._post(self._flush_all)

    def _post(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            self.is_abandoned = True  # the loop is closed: nobody listens any more

    # -- on the event loop

    def _flush(self) -> None:
        activity = self._activity
        if activity is not None and activity.is_behind:
            self._loop.call_later(_SLICE, self._flush)  # the guest's thread waits meanwhile
        else:
            self._pass_on(self._take_lines())

    def _flush_all(self) -> None:
        with self._lock:
            pieces, self._buffer = self._buffer, []
            self._buffered = 0
            self._flush_scheduled = False
        self._pass_on(pieces)

    def _take_lines(self) -> list[tuple[str, str]]:
        with self._lock:
            pieces = self._buffer
            end = len(pieces)
            # print() writes a line in pieces; its rest stays here, unless it has grown long
            while end and not _ends_line(pieces[end - 1][1]):
                end -= 1
            if self._buffered > _MAX_LINE:
                end = len(pieces)
            taken, self._buffer = pieces[:end], pieces[end:]
            self._buffered = sum(len(text) for _, text in self._buffer)
            self._flush_scheduled = False
        return taken

    def _pass_on(self, pieces: list[tuple[str, str]]) -> None:
        activity = self._activity
        with self._lock:
            pauses, self._pauses = self._pauses, []
        for pause in pauses:
            pause.release()
        if self.is_abandoned:
            return
        for stream in ("stdout", "stderr"):
            text = "".join(text for name, text in pieces if name == stream)
            if text:
                data = text.encode("utf-8", "backslashreplace")
                target = activity if activity is not None else self._between
                target.write(stream, data)

    def _on_display(self, display: Display) -> None:
        self._flush_all()
        if not self.is_abandoned:
            (self._activity or self._between).show(display)

    def _on_done(self, outcome: Outcome) -> None:
        activity = self._activity
        if activity is None or self.is_abandoned:
            return
        self._flush_all()
        self._result = outcome
        activity.finish()

    async def run(self, request: RunRequest, on_event: OnEvent | None) -> RunOutcome:
        thread_streams.refresh()
        self._flush_all()
        late, self._between = self._between.as_late(), between_runs()
        activity = self._activity = Activity(
            request,
            on_event,
            hold_back=_nothing_to_hold_back,
            interrupt=self._raise_in_thread,
            end=self._abandon,
        )
        self._result = None
        try:
            self._requests.put(request)
            notes = await activity.follow()
        finally:
            self._activity = None
        outcome = self._result or Outcome()
        failure = Failure(**outcome.failure) if outcome.failure is not None else None
        if activity.stop_reason is not None:
            failure = stopped_failure(activity, failure, LOST if self.is_abandoned else KEPT)
        if self.is_abandoned:
            notes.append(
                "the code could not be interrupted: its thread goes on, cut off from the session"
            )
        return RunOutcome(
            value=outcome.value if failure is None else None,
            failure=failure,
            stdout=activity.gathered.text("stdout"),
            stderr=activity.gathered.text("stderr"),
            displays=tuple(activity.gathered.displays),
            state="lost" if self.is_abandoned else "kept",
            duration=activity.duration,
            late=late,
            notes=(*outcome.notes, *notes),
            handles=tuple(map(_handle, outcome.made)),
            gone=tuple(outcome.gone),
        )

    def stop(self, reason: StopReason) -> bool:
        """Make the run that is going on stop; False where there is none."""
        return self._activity is not None and self._activity.stop(reason)

    def _raise_in_thread(self) -> None:
        ident = self._thread.ident
        with self._lock:
            if self._is_evaluating and ident is not None:
                self._is_interrupted = True
                _set_exception(ident, id(KeyboardInterrupt))
                _wake_event_loop(ident)

    def _press(self) -> None:
        """Interrupt abandoned code again and again for a while: it has the interpreter's lock.

        One interrupt may be lost without the code's doing: where the stack is nearly full the
        interpreter raises RecursionError instead.
        """
        until = time.monotonic() + _PRESSING
        while self._thread.is_alive() and time.monotonic() < until:
            self._raise_in_thread()
            self._thread.join(_SLICE)

    def _abandon(self) -> None:
        self._flush_all()
        self.is_abandoned = True
        threading.Thread(target=self._press, name=f"{self._thread.name}: end", daemon=True).start()
        self._requests.put(None)
        self._let_go()
        if self._activity is not None:
            self._activity.finish()

    def _let_go(self) -> None:
        """Take back what this guest has put into the process."""
        self._unhook()
        self.interpreter.close()

    async def close(self) -> None:
        activity = self._activity
        if activity is not None and not activity.is_over:
            self.stop("closed")
            with anyio.move_on_after(2 * GRACE):
                await activity.wait_over()
        self._requests.put(None)
        # what a cell had traced in every thread would be called in the host's from now on
        if threading.gettrace() is not self._trace:
            threading.settrace(self._trace)
        if threading.getprofile() is not self._profile:
            threading.setprofile(self._profile)
        self._let_go()
        if not self.is_abandoned:
            # it has nothing to do any more, so this is short
            await anyio.to_thread.run_sync(self._thread.join, GRACE)

    # -- calls

    def begin_call(
        self,
        target: tuple[str, str],
        args: Sequence[object],
        kwargs: Mapping[str, object],
        answer: Callable[[object, BaseException | None], None],
    ) -> None:
        """Carry a call of the guest out (on the event loop); `answer` is called with the result."""
        activity = self._activity
        name = ".".join(target)
        if activity is None or activity.is_over or self.is_abandoned:
            answer(None, NoActiveRun(name))
            return
        if len(activity.calls) >= MAX_OPEN_CALLS:
            answer(None, CallFailed(name, f"more than {MAX_OPEN_CALLS} calls at once"))
            return

        async def serve() -> None:
            try:
                await activity.caught_up()
                if activity.is_listened_to:
                    activity.tell(Called(*target))
                result = await self._call(*target, args, kwargs)
            except CodeModeError as error:
                # built anew: the host's frames and causes are not the guest's to see
                name_of_error = type(error).__name__
                if name_of_error in GUEST_ERRORS:
                    answer(None, from_facts(name_of_error, to_facts(error)))
                else:
                    answer(None, CallFailed("the host", str(error)))
            except (Exception, SystemExit) as error:  # a border: the guest gets it as an exception
                answer(None, CallFailed(name, f"{type(error).__name__}: {error}"))
            except BaseException:
                answer(None, CallFailed(name, "cancelled at the end of the run"))
                raise
            else:
                answer(result, None)

        activity.serve(self._supervisor, next(self._call_ids), name, serve)

    def post_call(
        self,
        target: tuple[str, str],
        args: Sequence[object],
        kwargs: Mapping[str, object],
        answer: Callable[[object, BaseException | None], None],
    ) -> None:
        """The same, from any thread."""
        if self.is_abandoned:
            raise NoActiveRun(".".join(target))
        if threading.get_ident() == self._loop_thread:
            # the answer is made by the event loop, which this thread would keep waiting
            raise InvalidCall(".".join(target), "it cannot be called from the host's event loop")
        self._post(self.begin_call, target, args, kwargs, answer)


def _wake_event_loop(ident: int) -> None:
    """Wake a thread that waits in an event loop: only running code notices an exception."""
    frame = sys._current_frames().get(ident)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_name == "run_forever":
            loop = frame.f_locals.get("self")
            if isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running():
                loop.call_soon_threadsafe(_do_nothing)
            return
        frame = frame.f_back


def _do_nothing() -> None:
    """What a woken event loop has to do."""


def _nothing_to_hold_back(wait: bool) -> None:
    """Nothing to pause: the thread waits in `write` while its buffer is full."""


class _Caller:
    """How the proxies of an in-process guest reach the host."""

    def __init__(self, guest: _Guest) -> None:
        self._guest = guest

    def call(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """Block until the host has answered."""
        answered = _thread.allocate_lock()
        answered.acquire()
        result: list[Any] = [None, None]

        def answer(value: object, error: BaseException | None) -> None:
            result[:] = value, error
            answered.release()

        self._guest.post_call((namespace, method), args, kwargs, answer)
        while not answered.acquire(timeout=_SLICE):
            pass
        if result[1] is not None:
            raise result[1]
        return result[0]

    def call_async(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Awaitable[object]:
        """The same on the running event loop of the guest's thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()

        def resolve(value: object, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        def answer(value: object, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(resolve, value, error)
            except RuntimeError:
                return  # the cell and its loop are over

        self._guest.post_call((namespace, method), args, kwargs, answer)
        return future
