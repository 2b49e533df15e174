"""What a session does, written into its journal while it happens.

A run is written before it executes and again after: what is not on record has not run, and a run
without an outcome was cut short. Small records are written at once, which takes microseconds; what
is large (pictures, results of tools) is written on a thread.

What `redact` cannot look into is not written where there is one: variables, and tables and arrays.
Of the arguments of a call a digest is written, which is that of what they were.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

from py_code_mode.codecs.packed import MEDIA_TYPE, pack_value
from py_code_mode.errors import (
    CodeModeError,
    HandleNotFound,
    PersistenceError,
    SessionNotFoundError,
    ValueNotPortable,
)
from py_code_mode.execution.executor import Capability, Save
from py_code_mode.execution.executor import SavedState as GuestState
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.guest.errors import GUEST_ERRORS, to_facts
from py_code_mode.guest.snapshot import snapshot
from py_code_mode.guest.variables import is_large
from py_code_mode.journal.chunks import LineageKind
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.loader import find_journal
from py_code_mode.journal.records import (
    MAX_INLINE,
    Call,
    Chunk,
    ErrorInfo,
    Event,
    Record,
    Run,
    RunStatus,
    SavedState,
    Tagged,
    args_sha256,
    plain,
)
from py_code_mode.journal.states import SavedStates
from py_code_mode.results import Display, Handle, Late, Snapshot, State, shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from py_code_mode.bindings import Bindings
    from py_code_mode.execution.executor import Checkpoint, Executor, RunOutcome
    from py_code_mode.handles import SessionHandles
    from py_code_mode.journal.chunks import Transcript
    from py_code_mode.journal.loader import Journal
    from py_code_mode.journal.records import Header

    Redact = Callable[[dict[str, Any]], dict[str, Any]]

#: Bytes of output of a run that are kept.
MAX_OUTPUT = MAX_INLINE
#: Bytes of a value that was put, or that a call gave, up to which it is kept whole; larger ones
#: are described.
MAX_KEPT = 16 << 20
#: Records that wait in memory until they can be written, and large ones among them; no call is
#: carried out beyond.
MAX_WAITING, MAX_WAITING_LARGE = 1000, 20
#: Seconds after which variables are saved once more, for up to `SAVE_STEP` bytes of them, and as
#: long again for each more; bytes of them at most; and seconds that saving may take.
SAVE_AFTER, SAVE_STEP, SAVE_LIMIT, SAVE_TIMEOUT = 60.0, 64 << 20, 1 << 30, 10.0
_CAUSES: Mapping[str, RunStatus] = {
    "code": "error",
    "timeout": "timeout",
    "interrupt": "cancelled",
    "limit": "error",
    "death": "error",
}


class Recorder:
    """Writes one session's records. Used from its event loop; closed by the session.

    Args:
        is_redacted: there is a function that takes out what must not be written.
    """

    def __init__(self, journal: SessionJournal, *, is_redacted: bool = False) -> None:
        self._journal = journal
        self._is_redacted = is_redacted
        #: why what happened is not on record; runs are refused until `flush` works
        self.broken: PersistenceError | None = None
        #: what could not be written, in its order
        self._waiting: deque[Record | Callable[[], Record]] = deque()
        self._waiting_large = 0
        self._flushing = anyio.Lock()
        self._calls = 0
        self._run: int | None = None
        self._newest_run = 0
        self._incarnation = 0
        self._handles: SessionHandles | None = None
        self._bindings: Bindings | None = None
        #: the run whose variables these are; 0 for none
        self._at_run = 0
        self._is_saved = True
        self._saving = anyio.Lock()
        self._save_next = time.monotonic() + SAVE_AFTER
        self._states = SavedStates(journal)
        #: the saved state from which a resumed session would go on to these variables, and the
        #: one for those of each checkpoint
        self._state: SavedState | None = None
        self._state_at: WeakKeyDictionary[Checkpoint, SavedState | None] = WeakKeyDictionary()

    @classmethod
    def create(
        cls,
        folder: Path,
        session_id: str,
        redact: Redact | None,
        *,
        isolation: str,
        origin: Recorder | None = None,
        transcript: Transcript | None = None,
    ) -> Recorder:
        """Begin a journal in a folder of sessions.

        Args:
            redact: see `Session`.
            isolation: what the code runs in.
            origin: of the session that this one is a fork of.
            transcript: a conversation that it begins with.

        Raises:
            PersistenceError: it cannot be written there.
        """
        header: dict[str, Any] = {}
        if origin is not None:
            header = {
                "fork_point": {"id": origin.header.id, "seq": origin.last_seq},
                "parent_session_ids": [origin.header.id],
                "lineage_operator": "fork",
                "lineage_kind": LineageKind.OP_FORK.value,
            }
        elif transcript is not None:
            header = {
                "parent_session_ids": _origins(folder, transcript),
                "lineage_operator": "resume",
            }
        journal = SessionJournal.create(
            folder,
            session_id,
            redact=redact,
            sandbox_backend=isolation,
            **header,
        )
        rows = transcript.chunk_table.rows if transcript is not None else ()
        try:
            for index, row in enumerate(rows):
                journal.append(Chunk(kind=row.kind.value, payload=dict(row.payload), index=index))
        except BaseException:
            journal.abandon()
            raise
        made = cls(journal, is_redacted=redact is not None)
        if origin is not None:
            made._at_run, made._is_saved = origin._at_run, False
            made._newest_run = origin._newest_run
        return made

    @classmethod
    def reopen(cls, folder: Path, session_id: str, redact: Redact | None, mode: str) -> Recorder:
        """Go on with a journal, in which nothing is written until something happens, or `begin`.

        Raises:
            SessionNotFoundError: there is none.
            SessionLockedError: another session writes it.
            PersistenceError: it cannot be read or written.
        """
        journal = SessionJournal.reopen(
            folder, session_id, reason="resume", mode=mode, is_lazy=True, redact=redact
        )
        return cls(journal, is_redacted=redact is not None)

    @property
    def path(self) -> Path:
        """The journal's file."""
        return Path(self._journal.path)

    @property
    def header(self) -> Header:
        return self._journal.header

    @property
    def last_seq(self) -> int:
        """The place of the latest record."""
        return self._journal.last_seq

    def follow(self, handles: SessionHandles, bindings: Bindings) -> None:
        """Write what becomes of the session's handles from now on."""
        self._handles, self._bindings = handles, bindings
        handles.take_changes()

    def expect(self, kind: str, **data: Any) -> None:
        """Have it written, before what happens next, that this did."""
        self._journal.append_later(Event(kind=kind, run_id=0, data=data))

    async def begin(self) -> None:
        """Write that a session goes on with its journal.

        Raises:
            PersistenceError: it cannot be written.
        """
        await anyio.to_thread.run_sync(self._journal.begin)

    async def begin_run(self, run_id: int, code: str, timeout: float | None) -> None:
        """Write that a run is about to execute.

        Raises:
            PersistenceError: it cannot be written, or what came before cannot: the run must not
                execute.
        """
        await self.settle()
        self._journal.append(Run(run_id=run_id, code=code, timeout=timeout))
        self._run, self._calls, self._newest_run = run_id, 0, run_id

    def take_up(
        self, journal: Journal, loaded: SavedState | None, *, at_run: int, is_saved: bool
    ) -> None:
        """Know the variables that were brought back, and the saved states that there are."""
        self._at_run, self._is_saved = at_run, is_saved
        self._newest_run = journal.last_run
        mine = [one for one in journal.records if isinstance(one, SavedState)]
        self._states = SavedStates(self._journal, mine)
        self._state = loaded

    def take_up_run(self, run_id: int, calls: int) -> None:
        """Go on with a run that had been cut short, and that is executed once more."""
        self._run, self._calls = run_id, calls

    async def end_run(
        self,
        run_id: int,
        result: RunOutcome,
        *,
        made: Mapping[str, Snapshot] | None = None,
        notes: Sequence[str] = (),
    ) -> bool:
        """Write how a run has ended; False, and `broken`, where not all of it is on record.

        Args:
            made: handles that its calls have made.
            notes: what its user is told besides.
        """
        await self.catch_up()
        failure = result.failure
        status: RunStatus = "ok"
        state = result.state
        if state != "kept" and (failure is None or failure.cause == "code"):
            # the guest had ended before the run, whose own effects are there
            await self.go_back("rollback", result.restored_to or 0, reason="the guest had ended")
            state = "kept"
        error: ErrorInfo | None = None
        if failure is not None:
            status = _CAUSES[failure.cause]
            error = ErrorInfo(
                type=failure.type,
                message=failure.message,
                traceback=failure.traceback,
                lineno=failure.lineno,
                cause=failure.cause,
                limit=failure.limit,
            )
        self._run = None
        self._end_at(run_id, state, result.restored_to)
        handles = {handle.name: handle.snapshot for handle in result.handles}
        if made:
            handles |= made
        outcome = Run(
            run_id=run_id,
            status=status,
            duration_ms=round(1000 * result.duration, 3),
            state=state,
            restored_to=result.restored_to if state != "kept" else None,
            incarnation=self._incarnation,
            value=_value(result.value),
            stdout=shorten(result.stdout, MAX_OUTPUT),
            stderr=shorten(result.stderr, MAX_OUTPUT),
            error=error,
            displays=[_display(display) for display in result.displays],
            handles={name: dict(shown.data) for name, shown in handles.items()},
            notes=[*notes, *result.notes],
            late=_late(result.late),
        )
        is_heavy = bool(result.displays or result.late.displays)
        return await self._write(outcome, is_heavy=is_heavy) and self.broken is None

    async def cut_short(self, run_id: int, state: State | None, restored_to: int | None) -> None:
        """Write that a run was cancelled by its caller, or by the session's end (None)."""
        await self.catch_up()
        self._run = None
        if state is not None:
            self._end_at(run_id, state, restored_to)
        cancelled = Run(
            run_id=run_id,
            status="cancelled",
            state=state or "kept",
            restored_to=restored_to if state == "restored" else None,
        )
        await self._write(cancelled)

    def _end_at(self, run_id: int, state: State, restored_to: int | None) -> None:
        self._at_run = {"kept": run_id, "restored": restored_to or 0, "lost": 0}[state]
        self._is_saved = False
        if state != "kept":
            self._incarnation += 1
            self._forget_state(self._at_run)

    def _forget_state(self, run_id: int) -> None:
        """The variables are those of an earlier run: a later saved state has others."""
        if self._state is not None and self._state.at_run > run_id:
            self._state = None

    async def around(
        self,
        carry_out: Callable[[], Awaitable[object]],
        namespace: str,
        method: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> object:
        """Carry out a call of guest code, and write it before and after."""
        call, began = await self._begin_call(namespace, method, args, kwargs), time.monotonic()
        try:
            result = await carry_out()
        except BaseException as error:
            await to_the_end(partial(self._end_call, call, began, None, error))
            raise
        await self._end_call(call, began, result, None)
        return result

    async def _begin_call(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Call:
        """Write that guest code calls the host.

        Raises:
            PersistenceError: so much waits to be written that this call must not be carried out.
        """
        if self.broken is not None and (
            len(self._waiting) >= MAX_WAITING or self._waiting_large >= MAX_WAITING_LARGE
        ):
            raise self.broken
        arguments = arguments_of(args, kwargs)
        digest = partial(args_sha256, arguments)
        is_heavy = is_large(arguments, MAX_INLINE)
        run_id, index = self._run, self._calls
        self._calls += 1
        call = Call(
            call_id=uuid.uuid4().hex,
            run_id=run_id,
            index=index,
            tool_name=f"{namespace}.{method}",
            arguments=arguments,
            args_sha256=await anyio.to_thread.run_sync(digest) if is_heavy else digest(),
            status="running",
        )
        await self._write(call, is_heavy=is_heavy)
        return call

    async def _end_call(
        self, call: Call, began: float, result: object, error: BaseException | None
    ) -> None:
        """Write what a call gave."""
        duration = round(1000 * (time.monotonic() - began), 3)

        def ended() -> Call:
            return Call(
                call_id=call.call_id,
                run_id=call.run_id,
                index=call.index,
                tool_name=call.tool_name,
                args_sha256=call.args_sha256,
                result=self._kept(result),
                status="success" if error is None else _call_status(error),
                error=None if error is None else _error(error),
                duration_ms=duration,
            )

        await self._write(ended, is_heavy=is_large(result))

    async def tell(self, kind: str, run_id: int, **data: Any) -> None:
        """Write what happened between runs."""
        await self.catch_up()
        await self._tell(kind, run_id, data)

    async def _tell(self, kind: str, run_id: int, data: dict[str, Any]) -> None:
        heavy = is_large(data, MAX_INLINE)
        await self._write(Event(kind=kind, run_id=run_id, data=data), is_heavy=heavy)

    def take_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep the saved state that belongs to a checkpoint, as long as that is open."""
        self._state_at[checkpoint] = self._state

    async def go_back(
        self, kind: str, run_id: int, *, to: Checkpoint | None = None, **data: Any
    ) -> None:
        """Write that the variables are those of an earlier run, 0 for none.

        Args:
            to: the checkpoint that they are of.
        """
        self._at_run, self._is_saved = run_id, False
        self._incarnation += 1
        self._forget_state(run_id)
        if to is not None:
            self._state = self._state_at.get(to)
        await self.tell(kind, run_id, **data)

    async def catch_up(self) -> None:
        """Write what has become of the handles since; whole, whoever is cancelled meanwhile."""
        if self._handles is not None and (changes := self._handles.take_changes()):
            await to_the_end(partial(self._write_changes, self._handles, changes))

    async def _write_changes(self, handles: SessionHandles, changes: Mapping[str, bool]) -> None:
        assert self._bindings is not None
        for name, is_replaced in changes.items():
            try:
                info = handles.info(name) if handles.is_here(name) else None
                if info is None:
                    raise HandleNotFound(name)
                value = await anyio.to_thread.run_sync(handles.get, name)
            except HandleNotFound:  # perhaps since just now
                await self._tell("delete", self._newest_run, {"name": name})
                continue
            except CodeModeError as error:
                info, value = None, Tagged({"$repr": f"<{name}: {error}>"})
            is_bound = self._bindings.is_bound(name)
            facts: dict[str, Any] = {"overwrite": is_replaced, "is_bound": is_bound}
            if info is not None and info.semantics is not None:
                facts["semantics"] = dict(info.semantics)
            self._is_saved = self._is_saved and not is_bound
            put = partial(self._put, name, value, self._newest_run, facts)
            await self._write(put, is_heavy=is_large(value))

    def _put(self, name: str, value: object, run_id: int, facts: Mapping[str, Any]) -> Event:
        data = {"name": name, "value": self._kept(value), **facts}
        return Event(kind="put", run_id=run_id, data=data)

    def _kept(self, value: object) -> object:
        """A value as it is recorded: whole up to `MAX_KEPT`, else described.

        Raises:
            PersistenceError: it cannot be written.
        """
        if not is_large(value):
            return value
        if is_large(value, MAX_KEPT):
            return Tagged.snapshot(snapshot(value))
        if _is_text(value) or self._is_redacted:
            return value
        try:
            packed = pack_value(value, limit=MAX_KEPT)
        except ValueNotPortable:
            return value  # described, in part or in whole
        return Tagged(self._journal.put_blob(packed, MEDIA_TYPE, snapshot=snapshot(value)))

    async def save_if_due(self, executor: Executor) -> None:
        """Write the variables to disk, if that was long ago."""
        if time.monotonic() > self._save_next:
            await self.save(executor)

    async def save(self, executor: Executor) -> None:
        """Write the variables to disk, where there are others than were written last.

        Large ones that have not changed are there already. Where it fails, that is written. It is
        not done where what must not be on the disk could not be taken out.
        """
        await self.catch_up()
        if self._is_redacted or Capability.EXCHANGE not in executor.capabilities:
            return
        async with self._saving:
            if self._is_saved or self.broken is not None:
                return
            nbytes = 0
            reason = f"it took more than {SAVE_TIMEOUT:g} s"
            with anyio.move_on_after(SAVE_TIMEOUT):
                try:
                    state = await executor.exchange(Save(SAVE_LIMIT))
                    assert isinstance(state, GuestState)
                    nbytes = sum(len(memoryview(part)) for part in state.parts)
                    needed = {
                        one.saved_state_id
                        for checkpoint, one in self._state_at.items()
                        if one is not None and checkpoint.is_open
                    }
                    write = partial(self._save, state, executor, needed)
                    await anyio.to_thread.run_sync(write)
                except CodeModeError as error:
                    # runs go on: they are on record, which is what counts
                    reason = str(error)
            self._save_next = time.monotonic() + SAVE_AFTER * (1 + nbytes // SAVE_STEP)
            if not self._is_saved:
                await self.tell("unsaved", self._at_run, reason=reason)

    def _save(self, state: GuestState, executor: Executor, needed: set[str]) -> None:
        policy = executor.policy
        described = SavedState(
            saved_state_id=uuid.uuid4().hex,
            at_run=self._at_run,
            vars={name: {"type": kind} for name, kind in state.types.items()},
            skipped=dict(state.skipped),
            executor=executor.isolation,
            policy=str(policy) if policy is not None else None,
            python=".".join(map(str, executor.environment.version)),
        )
        # told here, as a caller that is cancelled meanwhile does not see the end
        self._state = self._states.write(described, state.parts, needed=needed)
        self._is_saved = True

    async def flush(self) -> None:
        """Wait until everything is on the disk; runs go on where they were refused.

        Raises:
            PersistenceError: it cannot be written.
        """
        await self.catch_up()
        async with self._flushing:
            # whole, whoever is cancelled meanwhile: nothing is written twice
            await to_the_end(partial(_on_a_thread, self._flush))

    def _flush(self) -> None:
        while self._waiting:
            self._append(self._waiting[0])
            self._waiting.popleft()
        self._waiting_large = 0
        self._journal.flush()
        self.broken = None

    async def settle(self) -> None:
        """See that all that has happened is on record, before something else happens.

        Raises:
            PersistenceError: it cannot be written.
        """
        await self.catch_up()
        if self.broken is None:
            return
        try:
            await self.flush()
        except PersistenceError as error:
            raise PersistenceError(
                f"what happened before is not on record: {error}; nothing is run or changed until "
                "`await session.flush()` works"
            ) from error

    async def close(self) -> None:
        """End the journal; where that cannot be, it stays as after a crash.

        One in which nothing happened is removed.
        """

        def close() -> None:
            try:
                if self._waiting:
                    self._flush()
                if self._journal.last_seq > 0:
                    self._journal.close()
                    return
                Path(self._journal.path).unlink(missing_ok=True)
            except (PersistenceError, OSError):
                pass  # the next who opens it repairs it
            self._journal.abandon()

        with anyio.move_on_after(SAVE_TIMEOUT):
            await self.catch_up()
        await anyio.to_thread.run_sync(close)

    async def _write(
        self, record: Record | Callable[[], Record], *, is_heavy: bool = False
    ) -> bool:
        """Write a record, or have it wait until `flush`; whether it is written.

        Args:
            record: or what makes it, of values that are to be written themselves.
        """
        if self._waiting:
            self._wait_with(record, is_heavy)  # behind what came before it
            return False
        try:
            if is_heavy:
                # whole, whoever is cancelled meanwhile
                await to_the_end(partial(_on_a_thread, partial(self._append, record)))
            else:
                self._append(record)
        except PersistenceError as error:
            self.broken = error
            self._wait_with(record, is_heavy)
            return False
        return True

    def _wait_with(self, record: Record | Callable[[], Record], is_heavy: bool) -> None:
        self._waiting.append(record)
        self._waiting_large += is_heavy

    def _append(self, record: Record | Callable[[], Record]) -> None:
        self._journal.append(record if isinstance(record, Record) else record())


async def _on_a_thread(write: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(write)


def _origins(folder: Path, transcript: Transcript) -> list[str]:
    """The ids of the sessions that a conversation is from: itself, where it is on record."""
    try:
        find_journal(folder, str(transcript.id))
    except SessionNotFoundError:
        return [str(parent) for parent in transcript.parent_session_ids]
    return [str(transcript.id)]


def _is_text(value: object) -> bool:
    """Whether JSON holds it as it is: models and people read it, and `redact` looks into it."""
    return plain(value) is value or isinstance(value, bytes)


def arguments_of(args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of a call, as they are recorded."""
    return {"args": list(args), "kwargs": dict(kwargs)}


def _call_status(error: BaseException) -> Any:
    if isinstance(error, TimeoutError):
        return "timeout"
    return "error" if isinstance(error, Exception) else "cancelled"


def _error(error: BaseException) -> dict[str, Any]:
    told: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if type(error).__name__ in GUEST_ERRORS and isinstance(error, CodeModeError):
        told["facts"] = to_facts(error)  # from which a replay builds it anew
    return told


def _value(value: object) -> object:
    """A result as it is recorded: whole where it is small, else described."""
    if isinstance(value, Handle):
        return Tagged.snapshot(value.snapshot.data)
    return Tagged.snapshot(snapshot(value)) if is_large(value) else value


def _display(display: Display) -> dict[str, Any]:
    return {"data": dict(display.data), "metadata": dict(display.metadata)}


def _late(late: Late) -> dict[str, Any] | None:
    if not late:
        return None
    return {
        "stdout": shorten(late.stdout, MAX_OUTPUT),
        "stderr": shorten(late.stderr, MAX_OUTPUT),
        "displays": [_display(display) for display in late.displays],
    }
