"""A guest in a process of its own, as the host sees it: one socket, two pipes, one process.

How the process came to be is the executor's affair; everything from the first frame to the last is
here. A cancelled caller can neither leak the process nor hang on it.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.util import find_spec
from itertools import islice
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    Protocol,
    TypeAlias,
    assert_never,
    cast,
)

import anyio
import msgspec

from py_code_mode.codecs.values import (
    EXCHANGE_LIMIT,
    SharedValue,
    decode_value,
    encode_value,
    share_value,
)
from py_code_mode.errors import (
    CallFailed,
    CodeModeError,
    GuestDied,
    HandleNotFound,
    NoActiveRun,
    ProtocolViolation,
    ValueNotPortable,
)
from py_code_mode.execution import messages
from py_code_mode.execution.activity import (
    GRACE,
    MAX_OPEN_CALL_BYTES,
    MAX_OPEN_CALLS,
    Activity,
    Fate,
    StopReason,
    Stream,
    between_runs,
    stopped_failure,
)
from py_code_mode.execution.executor import (
    Bind,
    Call,
    Exchange,
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
from py_code_mode.execution.process import describe_exit
from py_code_mode.execution.sleepers import Sleeper
from py_code_mode.guest.errors import GUEST_ERRORS, from_facts, to_facts
from py_code_mode.guest.segments import size_of
from py_code_mode.guest.values import LIBRARIES
from py_code_mode.guest.variables import MAX_GONE, MAX_TOLD, is_large
from py_code_mode.guest.wire import Frame, WireError, pack
from py_code_mode.results import Called, Display, Failure, Handle, Late, Limit, Snapshot, shorten

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from py_code_mode.execution.channel import Channel
    from py_code_mode.execution.output import OutputPipe
    from py_code_mode.execution.supervisor import Supervisor

#: The incarnation of a session's first worker.
FIRST = 1
#: From the start of the process to its first frame.
START_TIMEOUT = 60.0
#: An exchange runs no user code to speak of.
EXCHANGE_TIMEOUT = 60.0
#: From the end of the socket to the exit of the process.
HANG_UP_TIMEOUT = 1.0
#: From the request to close to the end of the interpreter's own clean-up.
CLOSE_TIMEOUT = 2.0
#: Bytes of a value from which it is encoded and decoded on a thread.
HEAVY = 256 << 10
#: Bytes of a reply that need not wait for its turn.
SMALL_REPLY = 4 << 10
#: Bytes of an error that a call gives back.
MAX_ERROR = 1 << 20
#: Variables that a saved state may tell of.
MAX_LISTED = 10_000
#: Characters of the reason why there is no copy.
MAX_REFUSAL = 500
#: From SIGKILL to the exit of a process; only a broken kernel takes longer.
KILL_TIMEOUT = 10.0


#: When a copy of the guest is kept without being asked for: in the pauses between runs, before each
#: run too, or never.
Protect: TypeAlias = Literal["idle", "always", "off"]
#: Bytes of private memory above which there is no such copy.
PROTECT_BYTES = 256 << 20

#: Signals by which the kernel ends a process at a limit.
_LIMITS: dict[int, Limit] = {-int(signal.SIGXCPU): "cpu", -int(signal.SIGXFSZ): "file_size"}
_LIMIT_TEXTS: dict[Limit, str] = {
    "memory": "it held more memory than the policy allows",
    "cpu": "it used more processor time than the policy allows",
    "processes": "it started more processes than the policy allows",
    "disk": "it wrote more than the policy allows",
    "file_size": "it wrote a larger file than the policy allows",
    "open_files": "it opened more files than the policy allows",
}


class Process(Protocol):
    """What a worker needs of its process.

    A process in a sandbox is one incarnation of its guest: to kill it is not to end the sandbox.
    """

    status: int | None

    def interrupt(self) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> None: ...


class Worker:
    """One incarnation of a guest.

    Made by its executor, which connects `channel`, `pipes` and `process` to it (`attach`) before it
    calls `start`, or `awake` for a copy that was woken.

    Args:
        incarnation: which it is, counted from 1 within a session.
        call: carries out what the guest asks of the host.
        supervisor: owns what it does in the background.
        on_asleep: called when there is another `sleeper` than before.
    """

    def __init__(
        self,
        incarnation: int,
        call: Call,
        supervisor: Supervisor,
        on_asleep: Callable[[], None] = lambda: None,
    ) -> None:
        self.incarnation = incarnation
        #: why there is no guest any more; None while it lives
        self.death: str | None = None
        #: the limit that was the reason of it
        self.limit: Limit | None = None
        #: the newest copy of the guest, to go on with should it die
        self.sleeper: Sleeper | None = None
        #: why there is no newer one
        self.refusal: str | None = None
        #: the newest run whose effects the guest has; 0 for none
        self.last_run = 0
        self._on_asleep = on_asleep
        self._asked: dict[int, asyncio.Future[Sleeper | str]] = {}
        self._call = call
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._ready = anyio.Event()
        self._violation: str | None = None
        self._activity: Activity | None = None
        self._done: tuple[messages.Done, Sequence[Any]] | None = None
        self._late = between_runs()
        self._answers: dict[int, asyncio.Future[tuple[messages.Answer, Sequence[Any]]]] = {}
        self._next_exchange = 0
        self._replying = anyio.Lock(fast_acquire=True)
        self._closing = False
        self._resetting = False

    def attach(self, channel: Channel, pipes: Sequence[OutputPipe], process: Process) -> None:
        """Connect the guest; all of it is closed by the worker from now on."""
        self._channel = channel
        self._pipes = pipes
        self._process = process

    # -- what arrives

    def on_output(self, stream: Stream, data: bytes) -> None:
        """The guest wrote to its stdout or stderr."""
        if self._activity is not None:
            self._activity.write(stream, data)
        else:
            self._late.write(stream, data)

    def on_frame(self, frame: Frame) -> None:
        """The guest sent a frame.

        Raises:
            ProtocolViolation: it is not one that a guest may send.
        """
        try:
            message = messages.decode(frame.header)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ProtocolViolation(str(error)) from error
        if message.inc != self.incarnation and not isinstance(message, messages.Ready):
            return
        if frame.fds and not isinstance(message, messages.Asleep):
            raise ProtocolViolation("a descriptor that nobody asked for")
        match message:
            case messages.Done():
                activity = self._activity
                if activity is None or activity.is_over:
                    return  # the first end of a run counts
                if message.run == activity.request.run_id:
                    self._done = (message, frame.segments)
                    self._drain_pipes()
                    activity.finish()
            case messages.CallMessage():
                self._on_call(message, frame)
            case messages.DisplayMessage():
                self._on_display(message, frame)
            case messages.Answer():
                answer = self._answers.pop(message.id, None)
                if answer is not None and not answer.done():
                    answer.set_result((message, frame.segments))
            case messages.Ready():
                self._ready.set()
            case messages.Asleep():
                self._take_sleeper(message, frame)

    def _take_sleeper(self, message: messages.Asleep, frame: Frame) -> None:
        # it stays there until its asker has it: the end of the guest may be the answer yet
        asked = self._asked.get(message.id) if message.id is not None else None
        if message.refused is not None:
            refusal = shorten(message.refused, MAX_REFUSAL)
            if message.id is None:
                self.refusal = refusal
            elif asked is not None and not asked.done():
                asked.set_result(refusal)
            return
        if not frame.fds or message.pid is None or message.pid <= 1:
            raise ProtocolViolation("a sleeper without its socket or its pid")
        if not 0 <= message.run <= self.last_run:
            raise ProtocolViolation(f"a sleeper of run {message.run}, which there was not")
        is_unwanted = self._resetting if message.id is None else asked is None or asked.done()
        if self._closing or is_unwanted:
            return  # nobody wants it any more: it ends when the frame is closed
        sleeper = Sleeper(frame.fds.pop(), message.pid, message.run)
        if asked is not None:
            asked.set_result(sleeper)
            return
        before, self.sleeper, self.refusal = self.sleeper, sleeper, None
        if before is not None:
            before.close()
        self._on_asleep()

    def _on_display(self, message: messages.DisplayMessage, frame: Frame) -> None:
        try:
            display = _display(decode_value(message.data, frame.segments))
        except ValueNotPortable as error:
            raise ProtocolViolation(str(error)) from error
        activity = self._activity
        if activity is not None and message.run == activity.request.run_id:
            activity.show(display)
        else:
            self._late.show(display)

    def _on_call(self, message: messages.CallMessage, frame: Frame) -> None:
        target = f"{message.ns[:100]}.{message.method[:100]}"
        activity = self._activity
        if activity is None or activity.is_over or message.run != activity.request.run_id:
            self._reply_error(message.id, NoActiveRun(target))
            return
        if message.id in activity.calls:
            raise ProtocolViolation(f"call id {message.id} is used twice")
        if len(activity.calls) >= MAX_OPEN_CALLS:
            reason = f"more than {MAX_OPEN_CALLS} calls at once"
            self._reply_error(message.id, CallFailed(target, reason))
            return
        size = len(frame.header)
        if frame.segments:
            size += sum(map(size_of, frame.segments))
        if activity.call_bytes + size > MAX_OPEN_CALL_BYTES:
            reason = f"more than {MAX_OPEN_CALL_BYTES} bytes of arguments at once"
            self._reply_error(message.id, CallFailed(target, reason))
            return
        try:
            arguments = decode_value(message.args, frame.segments, writable=True)
        except ValueNotPortable as error:
            self._reply_error(message.id, error)
            return
        parts = cast("list[Any]", arguments) if isinstance(arguments, list) else []
        if not parts or not isinstance(parts[-1], dict):
            raise ProtocolViolation("a call's arguments do not end with a dict")
        *positional, named = parts
        activity.call_bytes += size

        async def serve() -> None:
            try:
                await activity.caught_up()
                if activity.is_listened_to:
                    activity.tell(Called(message.ns, message.method))
                result = await self._call(message.ns, message.method, positional, named)
                if not is_large(result, SMALL_REPLY):
                    tree, segments = encode_value(result)
                    self._reply(message.id, tree, segments)
                    await self._channel.drain()
                    return
                # one at a time: descriptors and copies of large replies are not made ahead
                async with self._replying, _shared(result) as shared:
                    self._reply(message.id, shared.tree, shared.segments)
                    await self._channel.drain()
            except CodeModeError as error:
                self._reply_error(message.id, error)
            except (Exception, SystemExit) as error:  # a border: the guest gets it as an exception
                reason = f"{type(error).__name__}: {error}"
                self._reply_error(message.id, CallFailed(target, reason))
            except BaseException:
                # a thread of the guest may wait for it beyond the end of the run
                self._reply_error(message.id, CallFailed(target, "cancelled, as its run ended"))
                raise
            finally:
                activity.call_bytes -= size

        activity.serve(self._supervisor, message.id, target, serve)

    def _reply(self, identity: int, tree: object, segments: Sequence[Any]) -> None:
        self._channel.send(messages.encode({"t": "reply", "id": identity, "value": tree}), segments)

    def _reply_error(self, identity: int, error: CodeModeError) -> None:
        if type(error).__name__ not in GUEST_ERRORS:
            error = CallFailed("the host", str(error))
        fact: dict[str, Any] = {"type": type(error).__name__, "facts": to_facts(error)}
        header = _encode_text({"t": "reply", "id": identity, "error": fact})
        if len(header) > MAX_ERROR:
            # it quotes what the guest has sent: nothing may be raised from here
            fact["facts"] = {name: _short(value) for name, value in fact["facts"].items()}
            header = _encode_text({"t": "reply", "id": identity, "error": fact})
        self._channel.send(header)

    # -- the end

    def on_channel_end(self, reason: str | None) -> None:
        """The socket is closed, or the guest broke the protocol: there is no way back."""
        if reason is not None:
            self._violation = reason
        if self._process.status is not None:
            return
        if reason is not None:
            self._process.kill()
        elif not self._closing:
            # a process that dies closes its socket on the way: its own status tells more
            self._loop.call_later(HANG_UP_TIMEOUT, self._end_hung_up)

    def _end_hung_up(self) -> None:
        if self._process.status is None:
            self._violation = "it closed its connection to the host"
            self._process.kill()

    def on_exit(self, status: int, limit: Limit | None = None) -> None:
        """The process has exited.

        Args:
            status: its exit code, or the negative number of the signal that ended it.
            limit: that for which it was ended, where that is known.
        """
        if self._violation is None:
            self._channel.read_available()  # the last frames may still be in the socket
        self._drain_pipes()
        self._channel.close()
        for pipe in self._pipes:
            pipe.close()
        if self._violation is not None:
            self.death = f"was ended: {self._violation}"
        else:
            self.limit = limit or _LIMITS.get(status)
            self.death = describe_exit(status)
            if self.limit is not None:
                self.death = f"was ended: {_LIMIT_TEXTS[self.limit]}"
        if self._activity is not None:
            self._activity.finish()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(GuestDied(self.death))
        self._answers.clear()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(GuestDied(self.death))
        self._asked.clear()
        self._ready.set()

    def _drain_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.read_available()

    # -- what the executor asks for

    async def start(
        self, setup: Setup, protect: Protect = "off", protect_bytes: int = PROTECT_BYTES
    ) -> None:
        """Set the guest up.

        Args:
            setup: what it needs.
            protect: when it makes a copy without being asked; only where its process has somebody
                else for a parent than us.
            protect_bytes: private memory above which it makes none.

        Raises:
            GuestDied: it ended, or said nothing in time.
        """
        self._channel.send(_setup(self.incarnation, setup, protect, protect_bytes))
        await self._until_ready()

    async def greeted(self) -> None:
        """Wait for a guest that was sent its `setup_frame` beforehand.

        Raises:
            GuestDied: as `start`.
        """
        await self._until_ready()

    async def awake(self, run: int) -> None:
        """Wait until a copy that was woken says so.

        Args:
            run: the newest one whose effects it has.

        Raises:
            GuestDied: it ended, or said nothing in time.
        """
        self.last_run = run
        await self._until_ready()

    async def _until_ready(self) -> None:
        with anyio.move_on_after(START_TIMEOUT):
            await self._ready.wait()
        if self.death is not None:
            said = self._late.text("stderr").strip()[-2000:]
            raise GuestDied(f"{self.death} while it started{': ' + said if said else ''}")
        if not self._ready.is_set():
            raise GuestDied(f"said nothing for {START_TIMEOUT:g} s while it started")

    async def run(self, request: RunRequest, on_event: OnEvent | None) -> EndedRun:
        """Evaluate one cell; see `Executor.run`.

        Where the guest has died the executor decides what becomes of the variables.
        """
        self._drain_pipes()
        late, self._late = self._late.as_late(), between_runs()
        activity = self._activity = Activity(
            request,
            on_event,
            hold_back=self._hold_back,
            interrupt=self._process.interrupt,
            end=self._process.kill,
        )
        self._done = None
        self.last_run = request.run_id
        header = {"t": "run", "run": request.run_id, "code": request.code}
        try:
            self._channel.send(_encode_text(header))
            if self.death is not None:
                activity.finish()
            notes = await activity.follow()
            if self._violation is not None or self.death is not None:
                with anyio.CancelScope(shield=True):
                    await self._process.wait()
        finally:
            self._activity = None
        done, self._done = self._done, None
        return self._end_run(activity, late, notes, done)

    def _end_run(
        self,
        activity: Activity,
        late: Late,
        notes: list[str],
        ended: tuple[messages.Done, Sequence[Any]] | None,
    ) -> EndedRun:
        value: object = None
        failure: Failure | None = None
        made: tuple[Handle, ...] = ()
        gone: tuple[str, ...] = ()
        if ended is not None:
            done, segments = ended
            notes = [*(note[:1000] for note in done.notes[:20]), *notes]
            try:
                value = _value(done, segments)
                made = tuple(_variable(message) for message in done.made[:MAX_TOLD])
                gone = tuple(done.gone[:MAX_GONE])
            except ProtocolViolation as error:
                self.on_channel_end(error.reason)
                self.death = f"was ended: {error.reason}"
            except ValueNotPortable as error:
                failure = Failure(type="ValueNotPortable", message=str(error))
            if done.failure is not None:
                failure = Failure(
                    type=done.failure.type,
                    message=done.failure.message,
                    traceback=done.failure.traceback,
                    lineno=done.failure.lineno,
                )
        if activity.gathered.left_out:
            notes.append(f"{activity.gathered.left_out} display(s) left out: too large in all")
        return EndedRun(self, activity, late, notes, value, failure, made, gone)

    def stop(self, reason: StopReason) -> bool:
        """Make the run that is going on stop; False where there is none."""
        return self._activity is not None and self._activity.stop(reason)

    @property
    def is_running(self) -> bool:
        """Whether a run is going on."""
        return self._activity is not None and not self._activity.is_over

    def _hold_back(self, wait: bool) -> None:
        for pipe in self._pipes:
            if wait:
                pipe.pause()
            else:
                pipe.resume()

    async def exchange(self, message: Exchange) -> object:
        """Bind, fetch or release a value; see `Executor.exchange`."""
        match message:
            case Bind(name, value, version) | Offer(name, value, version):
                kind = "bind" if isinstance(message, Bind) else "offer"
                header: dict[str, Any] = {"t": kind, "name": name, "version": version}
                async with _shared(value) as shared:
                    return await self._ask({**header, "value": shared.tree}, shared.segments)
            case Fetch(name):
                return await self._ask({"t": "fetch", "name": name, "limit": EXCHANGE_LIMIT})
            case Release(name):
                return await self._ask({"t": "release", "name": name})
            case Save(limit):
                told, parts = await self._hear({"t": "save", "limit": limit})
                try:
                    return _saved(told, parts, limit)
                except ProtocolViolation as error:
                    self.on_channel_end(error.reason)
                    await self.kill()
                    raise
            case Load(state):
                return await self._ask({"t": "load"}, state.parts)
            case _:
                assert_never(message)

    async def reset(self) -> None:
        """Forget the user's variables."""
        self.forget_sleeper()
        self._resetting = True  # a copy that was on its way has what is to be forgotten
        try:
            await self._ask({"t": "reset"})
        finally:
            self._resetting = False

    async def checkpoint(self) -> Sleeper | str:
        """Have the guest make a copy; gives it, the caller's, or why there can be none."""
        if self.death is not None:
            raise GuestDied(self.death)
        self._next_exchange += 1
        identity = self._next_exchange
        asked = self._asked[identity] = self._loop.create_future()
        try:
            self._channel.send(messages.encode({"t": "checkpoint", "id": identity}))
            with anyio.move_on_after(EXCHANGE_TIMEOUT):
                return await asked
        except BaseException:
            if asked.done() and not asked.cancelled() and not asked.exception():
                copy = asked.result()
                if isinstance(copy, Sleeper):
                    copy.close()
            raise
        finally:
            self._asked.pop(identity, None)
        return await self._give_up()

    def forget_sleeper(self) -> None:
        """Let go of the copy: there is no way back behind what comes now."""
        sleeper = self.take_sleeper()
        if sleeper is not None:
            sleeper.close()

    def take_sleeper(self) -> Sleeper | None:
        """The copy to go on with, which is the caller's from now on."""
        sleeper, self.sleeper = self.sleeper, None
        return sleeper

    async def _ask(self, header: dict[str, Any], segments: Sequence[Any] = ()) -> object:
        told, received = await self._hear(header, segments)
        return await _answer(told, received)

    async def _hear(
        self, header: dict[str, Any], segments: Sequence[Any] = ()
    ) -> tuple[object, Sequence[Any]]:
        """Ask the guest; gives its answer as it came.

        Raises:
            CodeModeError: it answered with an error.
        """
        if self.death is not None:
            raise GuestDied(self.death)
        self._next_exchange += 1
        identity = self._next_exchange
        answered = self._answers[identity] = self._loop.create_future()
        try:
            self._channel.send(_encode_text({**header, "id": identity}), segments)
            with anyio.move_on_after(EXCHANGE_TIMEOUT):
                answer, received = await answered
                _check_answer(answer, str(header.get("name")))
                return answer.value, received
        finally:
            self._answers.pop(identity, None)
        return await self._give_up()

    async def _give_up(self) -> NoReturn:
        """End a guest that does not answer: user code (a __del__, a __hash__) hangs in it."""
        self.on_channel_end(f"it did not answer for {EXCHANGE_TIMEOUT:g} s")
        await self.kill()
        raise GuestDied(self.death or "did not answer")

    async def close(self) -> None:
        """End the guest and its `sleeper`; bounded whatever it does."""
        self._closing = True
        self.forget_sleeper()
        with anyio.CancelScope(shield=True):
            if self.is_running:
                self.stop("closed")
                if self._activity is not None:
                    with anyio.move_on_after(GRACE + KILL_TIMEOUT):
                        await self._activity.wait_over()
            if self._process.status is None:
                try:
                    self._channel.send(messages.encode({"t": "close"}))
                except WireError:
                    self._process.kill()
                with anyio.move_on_after(CLOSE_TIMEOUT):
                    await self._process.wait()
            await self.kill()

    async def kill(self) -> None:
        """End the guest at once, and wait until it is reaped; its `sleeper` is left."""
        self._closing = True
        with anyio.CancelScope(shield=True):
            if self._process.status is None:
                self._process.kill()
                with anyio.move_on_after(KILL_TIMEOUT):
                    await self._process.wait()


class EndedRun:
    """A run that is over, while it is not known yet what became of the variables."""

    def __init__(
        self,
        worker: Worker,
        activity: Activity,
        late: Late,
        notes: list[str],
        value: object,
        failure: Failure | None,
        made: tuple[Handle, ...],
        gone: tuple[str, ...],
    ) -> None:
        self._worker = worker
        self._activity = activity
        self._late = late
        self._notes = notes
        self._value = value
        self._failure = failure
        self._made, self._gone = made, gone

    @property
    def was_stopped(self) -> bool:
        """Whether it did not end by itself."""
        return self._activity.stop_reason is not None

    @property
    def duration(self) -> float:
        """Seconds from its start to its end."""
        return self._activity.duration

    def outcome(self, fate: Fate) -> RunOutcome:
        """What the run gave."""
        activity, value, failure = self._activity, self._value, self._failure
        death, limit = self._worker.death, self._worker.limit
        if activity.stop_reason is not None:
            failure = stopped_failure(activity, failure, fate)
            value = None
        elif death is not None:
            told = GuestDied(death) if fate.state == "lost" else GuestDied(death, fate.text)
            failure = Failure(
                type="GuestDied",
                message=str(told),
                cause="limit" if limit is not None else "death",
                limit=limit,
            )
            value = None
        return RunOutcome(
            value=value,
            failure=failure,
            stdout=activity.gathered.text("stdout"),
            stderr=activity.gathered.text("stderr"),
            displays=tuple(activity.gathered.displays),
            state=fate.state,
            restored_to=fate.restored_to,
            duration=activity.duration,
            late=self._late,
            notes=(*self._notes, *fate.notes),
            handles=self._made if fate.state == "kept" else (),
            gone=self._gone,
        )


def _short(fact: object) -> object:
    if isinstance(fact, str):
        return shorten(fact, 2000)
    if isinstance(fact, list):
        return [_short(item) for item in cast("list[object]", fact)[:20]]
    return fact


def _saved(told: object, parts: Sequence[Any], limit: int) -> SavedState:
    size = sum(memoryview(part).nbytes for part in parts)
    try:
        types, skipped = msgspec.convert(told, tuple[dict[str, str], dict[str, str]])
    except msgspec.ValidationError as error:
        raise ProtocolViolation(f"no saved state: {error}") from error
    if not parts or size > limit + MAX_ERROR:
        raise ProtocolViolation(f"a saved state of {size} bytes; {limit} were asked for")
    return SavedState(parts=tuple(parts), types=_listed(types), skipped=_listed(skipped))


def _listed(facts: dict[str, str]) -> dict[str, str]:
    """What a guest says of its variables, as much as is worth keeping."""
    return {shorten(name, 1000): shorten(facts[name], 1000) for name in islice(facts, MAX_LISTED)}


@asynccontextmanager
async def _shared(value: object) -> AsyncGenerator[SharedValue]:
    """A value ready to be sent: as it was given, or made for this and let go of afterwards."""
    if isinstance(value, SharedValue):
        yield value
        return
    share = partial(share_value, value)
    shared = await anyio.to_thread.run_sync(share) if is_large(value, HEAVY) else share()
    try:
        yield shared
    finally:
        shared.close()


def _check_answer(answer: messages.Answer, name: str) -> None:
    if answer.error is not None:
        if answer.error.type == "KeyError":
            raise HandleNotFound(name)
        raise from_facts(answer.error.type, answer.error.facts)


async def _answer(tree: object, segments: Sequence[Any]) -> object:
    decode = partial(decode_value, tree, segments, writable=True, limit=EXCHANGE_LIMIT)
    size = sum(map(size_of, segments))
    # what is heavy to check must not keep other sessions waiting
    return await anyio.to_thread.run_sync(decode) if size > HEAVY else decode()


def _setup(incarnation: int, setup: Setup, protect: Protect, protect_bytes: int) -> bytes:
    header = {
        "t": "setup",
        "inc": incarnation,
        "namespaces": setup.namespaces,
        "overlay": str(setup.overlay) if setup.overlay else None,
        "accepts": _held_libraries(),
        "protect": protect,
        "protect_bytes": protect_bytes,
        "shown": setup.shown,
    }
    return messages.encode(header)


def setup_frame(incarnation: int, setup: Setup, protect: Protect, protect_bytes: int) -> bytes:
    """What `Worker.start` sends, for a guest that finds it in its socket when it begins."""
    return _packed(_setup(incarnation, setup, protect, protect_bytes))


def empty_run() -> bytes:
    """A run of nothing, for a worker that waits for its session.

    A copy of a process pays for each page that it writes to first; the run does so while nobody
    waits, and nobody is told of it.
    """
    return _packed(messages.encode({"t": "run", "run": 0, "code": "None"}))


def _packed(header: bytes) -> bytes:
    return b"".join(bytes(part) for part in pack(header)[0])


@cache
def _held_libraries() -> list[str]:
    """Libraries whose values this side can hold; none is imported for it."""
    return sorted(name for name in LIBRARIES if find_spec(name) is not None)


_text_encoder = msgspec.json.Encoder()


def _encode_text(header: dict[str, Any]) -> bytes:
    """Encode a header that holds text of the user's: lone surrogates become escapes."""
    try:
        return _text_encoder.encode(header)
    except UnicodeEncodeError:
        import json

        return json.dumps(header).encode()


def _value(done: messages.Done, segments: Sequence[Any]) -> object:
    if done.handle is not None:
        if done.handle.name != f"_{done.run}":
            raise ProtocolViolation("a result of another run")
        return _handle(done.handle)
    return decode_value(done.value, segments, writable=True)


def _variable(message: messages.HandleMessage) -> Handle:
    if not message.name.isidentifier():
        raise ProtocolViolation("a variable whose name is none")
    return _handle(message)


def _handle(message: messages.HandleMessage) -> Handle:
    snapshot = Snapshot.from_guest(message.snapshot, message.type)
    return Handle(name=message.name, type_name=message.type, snapshot=snapshot)


def _display(bundle: object) -> Display:
    if not isinstance(bundle, dict):
        raise ProtocolViolation("a display is not a MIME bundle")
    data: dict[str, str | bytes] = {}
    for kind, body in cast("dict[object, object]", bundle).items():
        if not isinstance(kind, str) or not isinstance(body, str | bytes):
            raise ProtocolViolation("a display is not a MIME bundle")
        data[kind] = body
    return Display(data=data)
