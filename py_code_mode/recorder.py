"""What a session does, written into its journal while it happens.

A run is written before it executes and again after: what is not on record has not run, and a run
without an outcome was cut short. Small records are written at once, which takes microseconds; what
is large (pictures, results of tools) is written on a thread.
"""

from __future__ import annotations

import platform
import sys
import time
import uuid
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from py_code_mode.errors import CodeModeError, PersistenceError
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
)
from py_code_mode.results import Display, ExecutionResult, Handle, shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from py_code_mode.execution import executor
    from py_code_mode.journal.chunks import Transcript
    from py_code_mode.journal.records import Header

    Redact = Callable[[dict[str, Any]], dict[str, Any]]

#: Bytes of output of a run that are kept.
MAX_OUTPUT = MAX_INLINE
#: Bytes of a value that was put, up to which it is kept, and not only described.
MAX_PUT = 16 << 20
_CAUSES: Mapping[str, RunStatus] = {
    "code": "error",
    "timeout": "timeout",
    "interrupt": "cancelled",
    "limit": "error",
    "death": "error",
}


class Recorder:
    """Writes one session's records. Used from its event loop; closed by the session."""

    def __init__(self, journal: SessionJournal) -> None:
        self._journal = journal
        #: why what happened is not on record; runs are refused until `flush` works
        self.broken: PersistenceError | None = None
        self._calls = 0
        self._run: int | None = None
        self._incarnation = 0

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
        for index, row in enumerate(rows):
            journal.append(Chunk(kind=row.kind.value, payload=dict(row.payload), index=index))
        return cls(journal)

    @classmethod
    def reopen(cls, folder: Path, session_id: str, redact: Redact | None, mode: str) -> Recorder:
        """Go on with a journal.

        Raises:
            SessionNotFoundError: there is none.
            SessionLockedError: another session writes it.
            PersistenceError: it cannot be read or written.
        """
        return cls(
            SessionJournal.reopen(folder, session_id, reason="resume", mode=mode, redact=redact)
        )

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

    async def end_run(self, result: ExecutionResult) -> bool:
        """Write how a run has ended; False, and `broken`, where that cannot be."""
        failure = result.failure
        status: RunStatus = "ok"
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
        self._incarnation += result.state != "kept"
        outcome = Run(
            run_id=result.run_id,
            status=status,
            ended_at=_now(),
            duration_ms=round(1000 * result.duration, 3),
            state=result.state,
            restored_to=result.restored_to,
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
        return await self._write(outcome, is_heavy=bool(result.displays or result.late.displays))

    async def cut_short(self, run_id: int, state: executor.State) -> None:
        """Write that a run was cancelled by its caller."""
        self._run = None
        await self._write(Run(run_id=run_id, status="cancelled", ended_at=_now(), state=state))

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
        call = Call(
            call_id=uuid.uuid4().hex,
            run_id=self._run,
            index=self._calls,
            tool_name=f"{namespace}.{method}",
            arguments=arguments,
            args_sha256=args_sha256(arguments),
            status="running",
        )
        self._calls += 1
        await self._write(call, is_heavy=is_large(arguments, MAX_INLINE))
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
            result=result,
            status="success" if error is None else _call_status(error),
            error=None if error is None else _error(error),
            duration_ms=round(1000 * (time.monotonic() - began), 3),
        )
        await self._write(ended, is_heavy=is_large(result, MAX_INLINE))

    async def tell(self, kind: str, run_id: int, **data: Any) -> None:
        """Write what happened between runs."""
        heavy = is_large(data, MAX_INLINE)
        await self._write(Event(kind=kind, run_id=run_id, data=data), is_heavy=heavy)

    async def put(self, run_id: int, name: str, value: object, *, overwrite: bool) -> None:
        """Write that a value was put: whole up to `MAX_PUT`, else described."""
        kept = Tagged.snapshot(snapshot(value)) if is_large(value, MAX_PUT) else value
        await self.tell("put", run_id, name=name, value=kept, overwrite=overwrite)

    async def save(
        self, state: executor.SavedState, at_run: int, isolation: str, policy: object
    ) -> None:
        """Write the variables to disk; large ones that have not changed are there already."""

        def write() -> Record:
            parts = [
                self._journal.put_blob(bytes(part), "application/octet-stream")
                for part in state.parts
            ]
            return SavedState(
                saved_state_id=uuid.uuid4().hex,
                at_run=at_run,
                vars={name: {"type": kind} for name, kind in state.types.items()},
                blob=parts,
                skipped=dict(state.skipped),
                executor=isolation,
                policy=policy,
                python=platform.python_version(),
            )

        try:
            record = await anyio.to_thread.run_sync(write)
        except PersistenceError as error:
            self.broken = error
            return
        await self._write(record)

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
                await anyio.to_thread.run_sync(append)
            else:
                append()
        except PersistenceError as error:
            self.broken = error
            return False
        return True


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
