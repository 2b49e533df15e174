"""What a session does, written into its journal while it happens.

A run is written before it executes and again after: what is not on record has not run, and a run
without an outcome was cut short. Small records are written at once, which takes microseconds; what
is large (pictures, results of tools) is written on a thread.

What `redact` cannot look into is not written where there is one: variables, and tables and arrays.
Of the arguments of a call a digest is written, which is that of what they were.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread

from py_code_mode.codecs.packed import MEDIA_TYPE, pack_value
from py_code_mode.errors import CodeModeError, PersistenceError, ValueNotPortable
from py_code_mode.execution.executor import Capability, Save
from py_code_mode.execution.executor import SavedState as GuestState
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.guest.errors import GUEST_ERRORS, to_facts
from py_code_mode.guest.snapshot import snapshot
from py_code_mode.guest.variables import is_large
from py_code_mode.journal.chunks import LineageKind
from py_code_mode.journal.journal import SessionJournal
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
from py_code_mode.results import Display, ExecutionResult, Handle, State, shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from py_code_mode.execution.executor import Executor
    from py_code_mode.journal.chunks import Transcript
    from py_code_mode.journal.records import Header

    Redact = Callable[[dict[str, Any]], dict[str, Any]]

#: Bytes of output of a run that are kept.
MAX_OUTPUT = MAX_INLINE
#: Bytes of a value that was put, or that a call gave, up to which it is kept whole; larger ones
#: are described.
MAX_KEPT = 16 << 20
#: Seconds after which variables are saved once more, for up to `SAVE_STEP` bytes of them, and as
#: long again for each more; bytes of them at most; and seconds that saving may take.
SAVE_AFTER, SAVE_STEP, SAVE_LIMIT, SAVE_TIMEOUT = 60.0, 64 << 20, 1 << 30, 10.0
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
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
        self._calls = 0
        self._run: int | None = None
        self._incarnation = 0
        #: the run whose variables these are; 0 for none
        self._at_run = 0
        self._is_saved = True
        self._save_next = time.monotonic() + SAVE_AFTER

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
            header = {"parent_session_ids": [str(transcript.id)], "lineage_operator": "resume"}
        journal = SessionJournal.create(
            folder,
            session_id,
            redact=redact,
            runtime=_runtime(),
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
        return made

    @classmethod
    def reopen(cls, folder: Path, session_id: str, redact: Redact | None, mode: str) -> Recorder:
        """Go on with a journal.

        Raises:
            SessionNotFoundError: there is none.
            SessionLockedError: another session writes it.
            PersistenceError: it cannot be read or written.
        """
        journal = SessionJournal.reopen(
            folder, session_id, reason="resume", mode=mode, redact=redact
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

    def begin_run(self, run_id: int, code: str, timeout: float | None) -> None:
        """Write that a run is about to execute.

        Raises:
            PersistenceError: it cannot be written: the run must not execute.
        """
        if self.broken is not None:
            raise self.broken
        self._run, self._calls = run_id, 0
        self._journal.append(Run(run_id=run_id, code=code, timeout=timeout, started_at=_now()))

    def take_up(self, last_run: int, *, is_saved: bool) -> None:
        """Know the variables that were brought back."""
        self._at_run, self._is_saved = last_run, is_saved

    def take_up_run(self, run_id: int, calls: int) -> None:
        """Go on with a run that had been cut short, and that is executed once more."""
        self._run, self._calls = run_id, calls

    async def end_run(self, result: ExecutionResult) -> bool:
        """Write how a run has ended; False, and `broken`, where not all of it is on record."""
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
        self._end_at(result.run_id, state, result.restored_to)
        outcome = Run(
            run_id=result.run_id,
            status=status,
            ended_at=_now(),
            duration_ms=round(1000 * result.duration, 3),
            state=state,
            restored_to=result.restored_to if state != "kept" else None,
            incarnation=self._incarnation,
            value=_value(result.value),
            stdout=shorten(result.stdout, MAX_OUTPUT),
            stderr=shorten(result.stderr, MAX_OUTPUT),
            error=error,
            displays=[_display(display) for display in result.displays],
            handles={name: dict(shown.data) for name, shown in result.handles.items()},
            notes=list(result.notes),
            late=_late(result),
        )
        is_heavy = bool(result.displays or result.late.displays)
        return await self._write(outcome, is_heavy=is_heavy) and self.broken is None

    async def cut_short(self, run_id: int, state: State | None, restored_to: int | None) -> None:
        """Write that a run was cancelled by its caller, or by the session's end (None)."""
        self._run = None
        if state is not None:
            self._end_at(run_id, state, restored_to)
        cancelled = Run(
            run_id=run_id,
            status="cancelled",
            ended_at=_now(),
            state=state or "kept",
            restored_to=restored_to if state == "restored" else None,
        )
        await self._write(cancelled)

    def _end_at(self, run_id: int, state: State, restored_to: int | None) -> None:
        self._at_run = {"kept": run_id, "restored": restored_to or 0, "lost": 0}[state]
        self._is_saved = False
        self._incarnation += state != "kept"

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
        """Write that guest code calls the host."""
        arguments = {"args": list(args), "kwargs": dict(kwargs)}
        digest = partial(call_digest, args, kwargs)
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
        ended = Call(
            call_id=call.call_id,
            run_id=call.run_id,
            index=call.index,
            tool_name=call.tool_name,
            args_sha256=call.args_sha256,
            result=await self._kept(result),
            status="success" if error is None else _call_status(error),
            error=None if error is None else _error(error),
            duration_ms=round(1000 * (time.monotonic() - began), 3),
        )
        await self._write(ended, is_heavy=is_large(ended.result, MAX_INLINE))

    async def tell(self, kind: str, run_id: int, **data: Any) -> None:
        """Write what happened between runs."""
        heavy = is_large(data, MAX_INLINE)
        await self._write(Event(kind=kind, run_id=run_id, data=data), is_heavy=heavy)

    async def go_back(self, kind: str, run_id: int, **data: Any) -> None:
        """Write that the variables are those of an earlier run, 0 for none."""
        self._at_run, self._is_saved = run_id, False
        self._incarnation += 1
        await self.tell(kind, run_id, **data)

    async def put(self, run_id: int, name: str, value: object, *, overwrite: bool) -> None:
        """Write that a value was put."""
        self._is_saved = False
        kept = await self._kept(value)
        await self.tell("put", run_id, name=name, value=kept, overwrite=overwrite)

    async def _kept(self, value: object) -> object:
        """A value as it is recorded: whole up to `MAX_KEPT`, else described."""
        if not is_large(value):
            return value

        def keep() -> object:
            if is_large(value, MAX_KEPT):
                return Tagged.snapshot(snapshot(value))
            if _is_text(value) or self._is_redacted:
                return value
            try:
                packed = pack_value(value, limit=MAX_KEPT)
                return Tagged(self._journal.put_blob(packed, MEDIA_TYPE, snapshot=snapshot(value)))
            except (ValueNotPortable, PersistenceError):
                return value  # described, in part or in whole

        return await anyio.to_thread.run_sync(keep)

    async def save_if_due(self, executor: Executor) -> None:
        """Write the variables to disk, if that was long ago."""
        if time.monotonic() > self._save_next:
            await self.save(executor)

    async def save(self, executor: Executor) -> None:
        """Write the variables to disk, where there are others than were written last.

        Large ones that have not changed are there already. Where it fails, that is written. It is
        not done where what must not be on the disk could not be taken out.
        """
        if self._is_saved or self._is_redacted or self.broken is not None:
            return
        if Capability.EXCHANGE not in executor.capabilities:
            return
        nbytes = 0
        reason = f"it took more than {SAVE_TIMEOUT:g} s"
        with anyio.move_on_after(SAVE_TIMEOUT):
            try:
                state = await executor.exchange(Save(SAVE_LIMIT))
                assert isinstance(state, GuestState)
                nbytes = sum(len(memoryview(part)) for part in state.parts)
                write = partial(self._save, state, executor)
                await self._write(await anyio.to_thread.run_sync(write))
                self._is_saved, reason = True, ""
            except CodeModeError as error:
                # runs go on: they are on record, which is what counts
                reason = str(error)
        self._save_next = time.monotonic() + SAVE_AFTER * (1 + nbytes // SAVE_STEP)
        if reason:
            await self.tell("unsaved", self._at_run, reason=reason)

    def _save(self, state: GuestState, executor: Executor) -> Record:
        policy = getattr(executor.config, "policy", None)
        parts = [
            self._journal.put_blob(bytes(part), "application/octet-stream") for part in state.parts
        ]
        return SavedState(
            saved_state_id=uuid.uuid4().hex,
            at_run=self._at_run,
            vars={name: {"type": kind} for name, kind in state.types.items()},
            blob=parts,
            skipped=dict(state.skipped),
            executor=executor.isolation,
            policy=str(policy) if policy is not None else None,
            python=".".join(map(str, executor.environment.version)),
        )

    async def flush(self) -> None:
        """Wait until everything is on the disk; runs go on where they were refused.

        Raises:
            PersistenceError: it cannot be written.
        """
        await anyio.to_thread.run_sync(self._journal.flush)
        self.broken = None

    async def close(self) -> None:
        """End the journal; where that cannot be, it stays as after a crash.

        One in which nothing happened is removed.
        """

        def close() -> None:
            try:
                if self._journal.last_seq > 0:
                    self._journal.close()
                    return
                Path(self._journal.path).unlink(missing_ok=True)
            except (PersistenceError, OSError):
                pass  # the next who opens it repairs it
            self._journal.abandon()

        await anyio.to_thread.run_sync(close)

    async def _write(self, record: Record, *, is_heavy: bool = False) -> bool:
        append = partial(self._journal.append, record)
        try:
            if is_heavy:
                # whole, whoever is cancelled meanwhile
                await to_the_end(partial(_on_a_thread, append))
            else:
                append()
        except PersistenceError as error:
            self.broken = error
            return False
        return True


async def _on_a_thread(append: Callable[[], int]) -> None:
    await anyio.to_thread.run_sync(append)


def _is_text(value: object) -> bool:
    """Whether JSON holds it as it is: models and people read it, and `redact` looks into it."""
    return plain(value) is value or isinstance(value, bytes)


def call_digest(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """What tells a call again by its arguments, in another process too.

    There a set has another order, and what is only described another address.
    """
    arguments = {"args": list(args), "kwargs": dict(kwargs)}
    tree: Any = plain(arguments)
    return args_sha256(tree if tree is arguments else _settled(tree))


def _settled(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_settled(item) for item in cast("list[Any]", tree)]
    if not isinstance(tree, dict):
        return tree
    found = {name: _settled(item) for name, item in cast("dict[str, Any]", tree).items()}
    for name in ("$set", "$frozenset"):
        if name in found:
            found[name] = sorted(found[name], key=partial(json.dumps, sort_keys=True))
    if "$repr" in found:
        found["$repr"] = _ADDRESS.sub("", str(found["$repr"]))
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _runtime() -> dict[str, str]:
    try:
        package = version("py-code-mode")
    except PackageNotFoundError:
        package = "unknown"
    return {"package": package, "python": platform.python_version(), "platform": sys.platform}


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


def _late(result: ExecutionResult) -> dict[str, Any] | None:
    late = result.late
    if not late:
        return None
    return {
        "stdout": shorten(late.stdout, MAX_OUTPUT),
        "stderr": shorten(late.stderr, MAX_OUTPUT),
        "displays": [_display(display) for display in late.displays],
    }
