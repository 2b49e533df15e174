"""A session: one stateful interpreter with its namespaces and storage.

`Session` composes the parts and owns their order: what may overlap, what queues, and what is left
when a caller goes away.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast

import anyio
from anyio.abc import AsyncResource

from py_code_mode.admission import Admission, check_enforceable
from py_code_mode.agent import RunPython, describe, make_tool
from py_code_mode.arguments import (
    check,
    check_callable,
    check_choice,
    check_count,
    check_flag,
    path_of,
)
from py_code_mode.errors import (
    CapabilityMissing,
    ConfigError,
    EnvironmentFailed,
    ExecutorClosed,
    ExecutorInUse,
    ForeignCheckpoint,
    ForeignEventLoop,
    GuestDied,
    InvalidCall,
    ReentrantRun,
    SessionClosed,
    WorkspaceNotTrusted,
)
from py_code_mode.execution.executor import (
    BranchingExecutor,
    Capability,
    Checkpoint,
    Executor,
    OnEvent,
    RunRequest,
    Setup,
    seconds_of,
)
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.results import ExecutionResult, Handle, Snapshot, State
from py_code_mode.scratch import Scratch
from py_code_mode.storage import FileStorage, StorageBackend
from py_code_mode.trust import check_trusted
from py_code_mode.workspace import SESSIONS, WorkspaceConfig, read_config

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )
    from pathlib import Path

    from py_code_mode.bindings import Bindings
    from py_code_mode.execution.sandbox import BackendChoice
    from py_code_mode.handles import SessionHandles
    from py_code_mode.journal.chunks import Transcript
    from py_code_mode.namespaces import Namespaces
    from py_code_mode.recorder import Recorder, Redact
    from py_code_mode.results import JsonValue
    from py_code_mode.resume import OnAmbiguous, Resumed, ResumeMode, Resumption
    from py_code_mode.sandbox.egress import EgressRecord
    from py_code_mode.sandbox.policy import Policy
    from py_code_mode.tools.registry import ToolRegistry

_Phase: TypeAlias = Literal["not started", "starting", "open", "closed"]

#: Seconds that a run has, once its guest is closed, to be written down.
RECORD_TIMEOUT = 5.0
#: Characters of code that one run may have.
MAX_CODE = 8 << 20
#: The runs that the current task serves a call of: (session id, run id).
_serving: ContextVar[frozenset[tuple[str, int]]] = ContextVar("serving", default=frozenset())


class _Default(float):
    """A default that can be told from the same number passed by a caller."""


_IN_PROCESS_TIMEOUT = _Default(30.0)
_SUBPROCESS_TIMEOUT = _Default(60.0)


class Session(AsyncResource):
    """Runs Python in an interpreter that keeps its state, with the storage's tools as functions.

    Use it with ``async with``, or call `start` and `close`. Runs queue in order; a session may be
    used from many tasks.

    Args:
        storage: where tools, workflows, artifacts and requirements are.
        executor: where code runs; None means in this process, with no isolation at all.
        sync_deps_on_start: install the configured requirements at the start.
        workdir: the guest's current directory; None means a private one, removed at the close.
        record: write what happens into a journal in the storage's folder ``sessions``; None means
            yes, where there is such a folder and it can be written. The folder may be a link that
            you made. A link of another user's is not followed, and in a workspace that sandboxed
            code could write to nothing is recorded: it could be led elsewhere, or altered.
        redact: is given every record as a dict before it is written, and gives what is written:
            for what must not be on the disk. Bytes, and small tables, are base64 in it. What it
            cannot look into is not written then: variables (a resumed session executes its runs
            again), and large tables and arrays. A digest of each call's arguments is written, of
            what they were. Given, it means ``record=True`` unless that is False.
    """

    def __init__(
        self,
        storage: StorageBackend,
        executor: Executor | None = None,
        sync_deps_on_start: bool = False,
        *,
        workdir: str | Path | None = None,
        record: bool | None = None,
        redact: Redact | None = None,
    ) -> None:
        check("storage", storage, StorageBackend, "a storage, such as FileStorage(path)")
        check(
            "executor",
            executor,
            (Executor, NoneType),
            "an executor, such as one made by SubprocessExecutor()",
        )
        check_flag("sync_deps_on_start", sync_deps_on_start)
        check("record", record, (bool, NoneType), "True, False or None")
        check_callable("redact", redact)
        if executor is None:
            from py_code_mode.execution.in_process import InProcessExecutor

            executor = InProcessExecutor()
        self._storage = storage
        self._executor = executor
        self._sync_deps_on_start = sync_deps_on_start
        # resolved now, as a policy's paths: a link that comes later is not followed
        self._given_workdir = None if workdir is None else path_of("workdir", workdir).resolve()
        self._id = str(uuid.uuid4())
        self._phase: _Phase = "not started"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = anyio.Event()
        self._turn = anyio.Lock(fast_acquire=True)
        self._scratch: Scratch | None = None
        self._registry: ToolRegistry | None = None
        self._namespaces: Namespaces | None = None
        self._runs = 0
        self._running: int | None = None
        self._said = WorkspaceConfig()
        self._admission = Admission(storage, executor, self._given_workdir)
        self._handles: SessionHandles | None = None
        self._bindings: Bindings | None = None
        if redact is not None and record is None:
            record = True
        if record and not isinstance(storage, FileStorage):
            raise ConfigError("record", "only sessions with FileStorage can be recorded")
        self._is_recorded = record
        self._redact = redact
        self._recorder: Recorder | None = None
        self._resumption: Resumption | None = None
        self._resumed: Resumed | None = None
        self._transcript: Transcript | None = None
        #: there was no workspace when it started, so that it is not recorded
        self._has_no_record_yet = False
        self._notes: list[str] = []

    # -- making one

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        *,
        timeout: float | None = _IN_PROCESS_TIMEOUT,
        extra_deps: tuple[str, ...] | None = None,
        allow_runtime_deps: bool = True,
        sync_deps_on_start: bool = False,
        policy: Policy | None = None,
        workdir: str | Path | None = None,
        record: bool | None = None,
        redact: Redact | None = None,
    ) -> Session:
        """A session for a workspace folder; its ``config.yaml`` may choose the executor.

        Args:
            base: the folder with tools/, workflows/, artifacts/ and requirements.txt; what is
                missing is empty.
            timeout: seconds a run may take; None means no limit. Where neither this nor the file
                says it, it is 30 in this process and 60 with any other executor.
            extra_deps: packages beyond requirements.txt.
            allow_runtime_deps: whether ``deps.add`` and ``deps.remove`` work.
            sync_deps_on_start: install the configured packages when the session starts.
            policy: what the sandbox allows, required; the file may make it stronger, never weaker.
            workdir: the code's current directory; None means a private one, removed at the close.
            record: whether to write a journal, in the folder's ``sessions``; None means where it
                can be written.
            redact: takes out of the journal what must not be on the disk; see `Session`.

        Raises:
            ConfigError: ``config.yaml`` does not hold, or asks for a policy where none can be
                enforced.
            ExecutorNotFound: it names an executor that is not installed.
        """
        return cls._for_workspace(
            base,
            executor=None,
            timeout=timeout,
            policy=policy,
            options={"extra_deps": extra_deps, "allow_runtime_deps": allow_runtime_deps},
            sync_deps_on_start=sync_deps_on_start,
            workdir=workdir,
            record=record,
            redact=redact,
        )

    @classmethod
    def subprocess(
        cls,
        base_path: str | Path,
        *,
        timeout: float | None = _SUBPROCESS_TIMEOUT,
        extra_deps: tuple[str, ...] | None = None,
        allow_runtime_deps: bool = True,
        sync_deps_on_start: bool = False,
        python_version: str | None = None,
        cache_venv: bool = True,
        policy: Policy | None = None,
        backend: BackendChoice = "auto",
        protect: Literal["idle", "always", "off"] = "idle",
        pool: int = 0,
        workdir: str | Path | None = None,
        record: bool | None = None,
        redact: Redact | None = None,
    ) -> Session:
        """A session for a workspace folder, in a worker process with an environment of its own.

        See `from_base` for the other arguments.

        Args:
            base_path: the workspace folder.
            python_version: such as ``"3.13"``; None means the version that runs this.
            cache_venv: share one immutable environment; else a private one is made and removed.
            policy: what the sandbox allows, required; None means the default policy, as far as
                this machine can enforce it.
            backend: of the sandbox: ``namespaces``, ``bubblewrap``, ``landlock``, ``none``, or
                ``auto``, the best that this machine has.
            protect: when variables are kept safe from what a run may do to the worker.
            pool: sessions that are kept ready.
        """
        options = {
            "extra_deps": extra_deps,
            "allow_runtime_deps": allow_runtime_deps,
            "python_version": python_version,
            "cache_venv": cache_venv,
            "backend": backend,
            "protect": protect,
            "pool": pool,
        }
        return cls._for_workspace(
            base_path,
            executor="subprocess",
            timeout=timeout,
            policy=policy,
            options=options,
            sync_deps_on_start=sync_deps_on_start,
            workdir=workdir,
            record=record,
            redact=redact,
        )

    @classmethod
    def inprocess(
        cls,
        base_path: str | Path,
        *,
        timeout: float | None = _IN_PROCESS_TIMEOUT,
        extra_deps: tuple[str, ...] | None = None,
        allow_runtime_deps: bool = True,
        sync_deps_on_start: bool = False,
        workdir: str | Path | None = None,
        record: bool | None = None,
        redact: Redact | None = None,
    ) -> Session:
        """A session for a workspace folder, in this process: fastest, no isolation.

        See `from_base` for the arguments.
        """
        return cls._for_workspace(
            base_path,
            executor="in_process",
            timeout=timeout,
            policy=None,
            options={"extra_deps": extra_deps, "allow_runtime_deps": allow_runtime_deps},
            sync_deps_on_start=sync_deps_on_start,
            workdir=workdir,
            record=record,
            redact=redact,
        )

    @classmethod
    def _for_workspace(
        cls,
        base: str | Path,
        *,
        executor: str | None,
        timeout: float | None,
        policy: Policy | None,
        options: dict[str, Any],
        **of_session: Any,
    ) -> Session:
        if policy is not None:
            from py_code_mode.sandbox.policy import Policy

            check("policy", policy, Policy, "a Policy, such as Policy(network='none')")
        storage = FileStorage(base)
        said = read_config(storage.base_path)
        name = executor or said.executor or "in_process"
        required = said.required_policy(policy)
        if required is not None:
            check_enforceable(name, "policy" if said.policy is None else str(said.path))
            options["policy"] = required
        if isinstance(timeout, _Default):
            if said.timeout is not None:
                timeout = None if math.isinf(said.timeout) else said.timeout
            elif name != "in_process":
                timeout = float(_SUBPROCESS_TIMEOUT)
            else:
                timeout = float(timeout)
        options["default_timeout"] = timeout
        return cls(storage, _make_executor(name, options), **of_session)

    @classmethod
    def resume(
        cls,
        session: str | Transcript,
        *,
        storage: StorageBackend,
        executor: Executor | None = None,
        mode: ResumeMode = "restore",
        on_ambiguous: OnAmbiguous = "skip",
        trusted: bool = False,
        **options: Any,
    ) -> Session:
        """A session that goes on where a recorded one ended; enter it with ``async with``.

        Its variables are back, no tool is called for it, and what comes is recorded behind what
        there is. `resumed` tells what came back. An array that was a view of another's memory, and
        was saved, comes back as an array of its own.

        Args:
            session: the id of a session in the storage; for ``transcript`` a `Transcript`.
            storage: where it was recorded.
            executor: as for a new session.
            mode: ``restore`` loads the newest saved state and executes the runs after it again,
                ``replay`` executes all runs again; calls are answered from the record.
                ``transcript`` takes over a conversation, in a new session.
            on_ambiguous: what to do about runs that were cut short, so that nobody knows what they
                had done: leave them out, refuse, or execute them again.
            trusted: also where the code would have more rights than it had.
            options: of `Session`.

        Its `start` raises:
            SessionNotFoundError: there is no such session.
            SessionLockedError: it is still written to.
            StateNotTrusted: it was written in stronger isolation.
            ReplayDivergenceError: the code does not do again what it did.
        """
        check_choice("mode", mode, ("restore", "replay", "transcript"))
        check_flag("trusted", trusted)
        if not isinstance(storage, FileStorage):
            raise ConfigError("resume", "only sessions with FileStorage are recorded")
        made = cls(storage, executor, **options)
        if made._is_recorded is False:
            raise ConfigError("record", "a session that is resumed goes on with its record")
        if isinstance(session, str):
            from py_code_mode.journal.ids import check_session_id
            from py_code_mode.resume import Resumption

            if mode == "transcript":
                raise InvalidCall(
                    "Session.resume",
                    "mode='transcript' takes a Transcript: load_session(id).to_transcript()",
                )
            made._id = check_session_id(session)
            made._resumption = Resumption(
                made._id, mode=mode, on_ambiguous=on_ambiguous, trusted=trusted
            )
            return made
        from py_code_mode.journal.chunks import Transcript

        if not isinstance(session, Transcript):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidCall(
                "Session.resume",
                f"session must be the id of a session, or a Transcript, not {session!r}",
            )
        if mode != "transcript":
            raise InvalidCall("Session.resume", f"mode={mode!r} takes the id of a session")
        made._transcript = session
        return made

    # -- facts

    @property
    def resumed(self) -> Resumed | None:
        """What came back, of a session that was resumed and has started."""
        return self._resumed

    @property
    def transcript(self) -> Transcript | None:
        """The conversation that was taken over by `resume`."""
        return self._transcript

    @property
    def id(self) -> str:
        """Identifies the session in its record and in messages."""
        return self._id

    @property
    def storage(self) -> StorageBackend:
        """The storage backend."""
        return self._storage

    @property
    def state(self) -> State:
        """What became of the variables in the latest run, also one that was cancelled."""
        return self._executor.state

    @property
    def network_log(self) -> tuple[EgressRecord, ...]:
        """What the guest asked of the network, where a policy lists hosts; the latest thousand."""
        return self._executor.network_log

    def supports(self, capability: str) -> bool:
        """Whether the session has a capability; after the start: whether it holds here."""
        return capability in self._executor.capabilities

    def supported_capabilities(self) -> set[str]:
        """All capabilities of the executor: before the start what it offers, then what holds."""
        return set(self._executor.capabilities)

    def __repr__(self) -> str:
        return f"<Session {self._id} ({self._executor.name}, {self._phase})>"

    # -- life

    async def start(self) -> None:
        """Prepare for runs; ``async with`` does it.

        Cancelled or failed, nothing is left behind, and the session is closed.

        Raises:
            SessionClosed: the session was closed, before or meanwhile.
            ExecutorInUse: the executor is, or was, another session's.
            EnvironmentFailed: the interpreter, its packages or the requirements cannot be had.
            ConfigError: the workspace's file and the executor do not agree.
            ConfinementFailed: a layer of the sandbox, which this machine should have, failed.
            SandboxUnavailable: this machine cannot enforce the policy, or lacks the backend.
            WorkspaceNotTrusted: somebody else may have written what would run here.
        """
        if self._phase == "starting":
            await self._started.wait()
        if self._phase == "open":
            return
        if self._phase == "closed":
            raise SessionClosed(self._id, self._phase)
        self._phase = "starting"
        self._loop = asyncio.get_running_loop()
        self._started = anyio.Event()
        try:
            await self._start()
            # close() may have come meanwhile
            if cast("_Phase", self._phase) == "closed":
                raise SessionClosed(self._id, "closed")
            self._phase = "open"
        except BaseException as error:
            by_close, self._phase = cast("_Phase", self._phase) == "closed", "closed"
            await to_the_end(self._free)
            if by_close and isinstance(error, ExecutorClosed):
                raise SessionClosed(self._id, self._phase) from error
            raise
        finally:
            self._started.set()

    async def _start(self) -> None:
        from py_code_mode.handles import SessionHandles
        from py_code_mode.namespaces import Namespaces

        is_new = not (isinstance(self._storage, FileStorage) and self._storage.base_path.exists())
        self._said = said = self._admission.check_workspace()
        registry = self._tools()
        try:
            self._scratch = scratch = Scratch.make()
            workdir = self._given_workdir or scratch.workdir
            workdir.mkdir(exist_ok=True, parents=True)
        except OSError as error:
            raise EnvironmentFailed("the session's folder", str(error)) from error
        setup = Setup(
            session_id=self._id,
            namespaces=Namespaces.describe(),
            workdir=workdir,
            is_workdir_private=self._given_workdir is None,
            overlay=scratch.packages,
        )
        await self._start_executor(setup)
        await self._expose(is_new=is_new)
        await anyio.to_thread.run_sync(self._admission.check_settings)
        self._namespaces = self._compose(registry, scratch, said, SessionHandles())
        await self._begin_record()
        if self._sync_deps_on_start:
            report = await self._namespaces.dependencies.sync()
            if report["failed"]:
                reasons = "; ".join(report["errors"].values())
                raise EnvironmentFailed("the configured requirements", reasons)

    async def _expose(self, *, is_new: bool) -> None:
        note = await self._admission.expose(self._id, is_new=is_new)
        if note is not None:
            self._notes.append(note)

    async def _start_executor(self, setup: Setup) -> None:
        if self._executor.session_id is not None:
            raise ExecutorInUse(self._executor.name, self._executor.session_id)
        self._executor.session_id = self._id  # close() may come from now on
        await self._executor.start(setup, self._answer)

    @property
    def _has_executor(self) -> bool:
        """Whether the executor is this session's to close: it may be another's."""
        return self._executor.session_id == self._id

    def _compose(
        self,
        registry: ToolRegistry,
        scratch: Scratch,
        said: WorkspaceConfig,
        handles: SessionHandles,
    ) -> Namespaces:
        """The services behind the guest's names, for an executor that has started."""
        from py_code_mode.bindings import Bindings
        from py_code_mode.deps.dependencies import Dependencies
        from py_code_mode.environments.overlay import Overlay
        from py_code_mode.namespaces import Namespaces

        self._handles = handles
        self._bindings = Bindings(handles, self._executor)
        config = self._executor.config
        dependencies = Dependencies(
            self._storage.get_deps_store(),
            Overlay(self._executor.overlay or scratch.packages, self._executor.environment),
            extra=config.extra_deps or (),
            allow_runtime=config.allow_runtime_deps,
            isolation=self._executor.isolation,
            gate=self._admission.gate,
        )
        return Namespaces(
            tools=registry,
            workflows=self._storage.get_workflow_library(),
            artifacts=self._storage.get_artifact_store(),
            deps=dependencies,
            handles=handles,
            isolation=self._executor.isolation,
            allowed_deps=said.allowed_deps,
            gate=self._admission.gate,
        )

    async def close(self) -> None:
        """End the guest and remove what the session made; a run that is going on is interrupted.

        Idempotent; bounded, whatever the guest does. Cancelled, it finishes first.
        """
        self._check_loop()
        before, self._phase = self._phase, "closed"
        is_serving = self._is_serving()

        async def end() -> None:
            if before == "open" and self._running is None and self._recorder is not None:
                await self._recorder.save(self._executor)
            if self._has_executor:
                await self._executor.close()
            if self._recorder is not None and not is_serving:
                # a run that was interrupted is written down as that
                with anyio.move_on_after(RECORD_TIMEOUT):
                    async with self._turn:
                        pass
            if before == "starting":
                await self._started.wait()
            await self._free()

        await to_the_end(end)

    async def _free(self) -> None:
        if self._has_executor:
            await self._executor.close()
        if self._recorder is not None:
            await self._recorder.close()
        if self._bindings is not None:
            self._bindings.close()
        if self._handles is not None:
            await anyio.to_thread.run_sync(self._handles.close)
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            await anyio.to_thread.run_sync(scratch.remove)
        await self._admission.unexpose()

    async def aclose(self) -> None:
        """The same as `close`."""
        await self.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    # -- running code

    async def run(
        self, code: str, timeout: float | None = None, on_output: OnEvent | None = None
    ) -> ExecutionResult:
        """Execute Python code and return its result; what the code does wrong is in the result.

        Cancelled, the code is interrupted first; the session stays usable and `state` tells what
        became of the variables.

        Args:
            code: one or more statements; the value of a last expression is the result's value.
            timeout: seconds from the start of execution; None means the session's default,
                `math.inf` no limit. Waiting for earlier runs does not count.
            on_output: called with each `Output`, `Shown` and `Called` as it happens; may be a
                coroutine function. While it is slow the code waits; if it raises, the run is
                interrupted and the error raised from here.

        Raises:
            SessionClosed: the session is not open.
            ReentrantRun: called by a tool that a run of this session is waiting for.
            PersistenceError: the run, or what came before it, cannot be written into the record; it
                was not executed. `flush` tells when runs go on.
            ValueError: the timeout is not above zero.
        """
        code = _checked(code)
        limit = self._limit(timeout)
        check_callable("on_output", on_output)
        self._check_loop()
        self._check_not_serving()
        async with self._turn:
            self._check_open()
            if self._has_no_record_yet:
                await self._begin_record_late()
            self._runs += 1
            self._running = self._runs
            # seen by the calls that this run makes, and by its callback
            serving = _serving.set(_serving.get() | {(self._id, self._runs)})
            request = RunRequest(run_id=self._runs, code=code, timeout=limit)
            handles = self._open_handles()
            handles.run_id = self._runs
            is_begun = False
            try:
                await self._renew_bindings()
                if self._recorder is not None:
                    await self._recorder.begin_run(self._runs, code, limit)
                    is_begun = True
                outcome = await self._executor.run(request, on_output)
            except BaseException as error:
                if is_begun:
                    await to_the_end(partial(self._cut_short, request.run_id))
                if isinstance(error, ExecutorClosed):
                    self._check_open()
                raise
            finally:
                self._running = handles.run_id = None
                _serving.reset(serving)
                if self._executor.state != "kept":
                    self._expire_bindings(self._restored_to)
            made: Mapping[str, Snapshot] = {}
            if self._phase == "open":  # else a tool that the run has called closed it
                handles.forget(outcome.gone)
                held = [outcome.value] if isinstance(outcome.value, Handle) else []
                handles.note([*outcome.handles, *held], request.run_id, code)
                made = handles.take_made()
            if self._has_no_record_yet and self._phase == "open":
                await self._begin_record_late()  # of which the run's own result tells
            notes, is_recorded = self._take_notes(), False
            if self._phase != "open":
                await to_the_end(partial(self._cut_short, request.run_id))
            elif self._recorder is not None:
                is_recorded = await self._recorder.end_run(
                    request.run_id, outcome, made=made, notes=notes
                )
                if not is_recorded:
                    notes.append(
                        f"not on record: {self._recorder.broken}; nothing more is run until "
                        "`await session.flush()` works"
                    )
                await self._recorder.save_if_due(self._executor)
            return outcome.to_result(
                request.run_id, made=made, notes=notes, is_recorded=is_recorded
            )

    @property
    def _restored_to(self) -> int:
        """The run whose variables there are after one that did not keep them; 0 for none."""
        executor = self._executor
        return executor.restored_to or 0 if executor.state == "restored" else 0

    async def _cut_short(self, run_id: int) -> None:
        """Write that a run was cancelled, or interrupted by the session's end."""
        if self._recorder is not None:
            # what becomes of the guest of a session that is closed undoes no run
            state = self._executor.state if self._phase == "open" else None
            await self._recorder.cut_short(run_id, state, self._restored_to)

    def _take_notes(self) -> list[str]:
        notes, self._notes = self._notes, []
        return notes

    def _limit(self, timeout: float | None) -> float | None:
        if timeout is None:
            timeout = self._executor.config.default_timeout
            if timeout is None:
                return None
        return seconds_of(timeout)

    def _check_open(self) -> None:
        if self._phase != "open":
            raise SessionClosed(self._id, self._phase)
        self._check_loop()

    def _check_loop(self) -> None:
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise ForeignEventLoop(self._id)

    def _is_serving(self) -> bool:
        """Whether a run of this session waits for the caller."""
        return self._running is not None and (self._id, self._running) in _serving.get()

    def _check_not_serving(self) -> None:
        if self._is_serving():
            raise ReentrantRun(self._id)

    async def interrupt(self) -> bool:
        """Interrupt the run that is going on; its variables are kept where the executor can.

        Returns:
            False where no run is going on.
        """
        self._check_open()
        return await self._executor.interrupt()

    async def reset(self) -> None:
        """Clear user-defined variables, keep namespaces and handles; waits for a run.

        What was `put` is a variable again afterwards.

        Raises:
            PersistenceError: it is not on record; it may have been done. See `flush`.
        """

        async def go_back() -> None:
            self._expire_bindings(0)
            try:
                await self._executor.reset()
            finally:  # a guest that has ended meanwhile has forgotten them, too
                if self._recorder is not None:
                    await self._recorder.go_back("reset", 0)

        async with self._exclusive(), self._on_record():
            # cancelled, the guest does it all the same
            await to_the_end(go_back)
            await self._open_namespaces().dependencies.apply_removals()
            await self._renew_bindings()

    # -- copies of the interpreter

    async def checkpoint(self) -> Checkpoint:
        """Freeze a copy of the interpreter, to `rollback` to; waits for a run that is going on.

        It takes milliseconds, whatever the variables hold. What is copied is memory: variables,
        imported modules, random state. Files of the workdir are not, nor effects of tools; threads
        and processes that code started do not come along.

        Raises:
            CapabilityMissing: the executor cannot do it on this machine.
            CheckpointRefused: it cannot be done now: threads are running, a socket or a pipe is
                open, a database is in a transaction, or the limit on processes leaves no room for
                what is kept to wake again.
            PersistenceError: what came before is not on record; see `flush`.
        """
        executor = self._branching()
        async with self._exclusive():
            await self._settle_record()
            checkpoint = await executor.checkpoint()
            try:
                if self._recorder is not None:
                    self._recorder.take_checkpoint(checkpoint)
                await self._tell("checkpoint")
            except BaseException:
                checkpoint.close()  # nobody gets it
                raise
            return checkpoint

    async def rollback(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of this session, as often as one likes.

        Waits for a run that is going on. Runs that come after it are counted on. Cancelled, it has
        either done nothing, or all of it, the record included.

        Raises:
            CheckpointClosed: it is closed, or its sandbox has ended; nothing has changed.
            CheckpointRefused: there is no room for one more process now; nothing has changed.
            ForeignCheckpoint: another session took it.
            PersistenceError: it is not on record; it may have been done. See `flush`.
        """
        executor = self._branching()
        check("checkpoint", checkpoint, Checkpoint, "what Session.checkpoint has given")
        if checkpoint.session_id != self._id:
            raise ForeignCheckpoint(self._id, checkpoint.session_id)

        async def go_back() -> None:
            await executor.rollback(checkpoint)
            self._expire_bindings(checkpoint.run_id)
            if self._recorder is not None:
                await self._recorder.go_back("rollback", checkpoint.run_id, to=checkpoint)

        async with self._exclusive(), self._on_record():
            await to_the_end(go_back)
            await self._renew_bindings()

    async def fork(self) -> Session:
        """Copy the interpreter into a session of its own; waits for a run that is going on.

        The copy has this one's variables and tools, storage, workdir and packages, and counts its
        runs on; from here on the two differ. They share one sandbox and its limits, and nothing
        keeps the code of one from reaching into the other: for code that does not trust its
        sibling use sessions made afresh. What `checkpoint` says of copies holds.

        Returns:
            an open session; close it, or use it with ``async with``. Either may be closed first.

        Raises:
            CapabilityMissing: the executor cannot do it on this machine.
            CheckpointRefused: it cannot be done now.
            PersistenceError: what came before is not on record; see `flush`.
        """
        executor = self._branching()
        async with self._exclusive():
            await self._settle_record()
            other = Session(
                self._storage,
                executor,
                workdir=self._given_workdir,
                record=self._is_recorded,
                redact=self._redact,
            )
            try:
                await other._start_as_copy(self, executor)
            except BaseException:
                other._phase = "closed"
                await to_the_end(other._free)
                raise
            return other

    async def _start_as_copy(self, origin: Session, executor: BranchingExecutor) -> None:
        assert origin._scratch is not None
        self._said = origin._said
        registry = self._tools()
        registry.add_those_of(origin._tools())
        self._scratch = origin._scratch.share()  # at once: the origin may be closed meanwhile
        self._executor = await executor.fork(self._id, self._answer)
        self._executor.session_id = self._id
        await self._expose(is_new=True)
        self._loop = origin._loop
        self._runs = origin._runs
        self._has_no_record_yet = origin._has_no_record_yet
        if origin._recorder is not None:
            await origin._recorder.catch_up()
        handles = await anyio.to_thread.run_sync(origin._open_handles().copy)
        self._namespaces = self._compose(registry, self._scratch, self._said, handles)
        assert self._bindings is not None
        assert origin._bindings is not None
        self._bindings.take_over(origin._bindings)
        if origin._recorder is not None:
            await self._begin_record(origin._recorder)
            await origin._tell("fork", session_id=self._id)
        self._phase = "open"
        self._started.set()

    def _branching(self) -> BranchingExecutor:
        self._executor.require(Capability.CHECKPOINT)
        if not isinstance(self._executor, BranchingExecutor):
            raise CapabilityMissing(Capability.CHECKPOINT, self._executor.name)
        return self._executor

    @asynccontextmanager
    async def _exclusive(self) -> AsyncGenerator[None]:
        self._check_not_serving()
        async with self._turn:
            self._check_open()
            try:
                yield
            except (ExecutorClosed, GuestDied):
                self._check_open()  # close() has ended it
                self._expire_bindings(0)
                raise

    # -- the record

    async def flush(self) -> None:
        """Wait until everything on record so far is on the disk.

        Where a record could not be written, it is kept in memory, and runs and changes of the
        variables are refused until this works; each tries it first.

        Raises:
            PersistenceError: it cannot be written.
        """
        self._check_open()
        if self._recorder is not None:
            await self._recorder.flush()

    async def _settle_record(self) -> None:
        """See that what has happened is on record, before something else happens."""
        if self._recorder is not None:
            await self._recorder.settle()

    @asynccontextmanager
    async def _on_record(self) -> AsyncGenerator[None]:
        """Do what nobody may do without its record.

        Raises:
            PersistenceError: what came before is not on record, so that it was not done; or it was,
                and is not on record itself.
        """
        await self._settle_record()
        yield
        if self._recorder is not None and self._recorder.broken is not None:
            raise self._recorder.broken

    async def _begin_record(self, origin: Recorder | None = None) -> None:
        """Open the journal, and bring back what is to be resumed from it."""
        if self._is_recorded is False or not isinstance(self._storage, FileStorage):
            return
        is_wanted = bool(self._is_recorded or self._resumption or self._transcript)
        if not is_wanted and not self._storage.base_path.is_dir():
            self._has_no_record_yet = True
            return  # there is no workspace, and a session alone makes none
        from py_code_mode.errors import PersistenceError
        from py_code_mode.recorder import Recorder

        folder = self._storage.base_path / SESSIONS
        try:
            is_resumed = self._resumption is not None
            check = partial(self._admission.check_record, folder, is_resumed=is_resumed)
            await anyio.to_thread.run_sync(check)
        except (WorkspaceNotTrusted, ConfigError) as error:
            if is_wanted:
                raise
            self._notes.append(f"the session is not recorded: {error}")
            return
        if self._resumption is not None:
            reopen = partial(Recorder.reopen, folder, self._id, self._redact, self._resumption.mode)
            self._recorder = await anyio.to_thread.run_sync(reopen)
            self._follow_handles(self._recorder)
            await self._bring_back(self._recorder)
            return
        create = partial(
            Recorder.create,
            folder,
            self._id,
            self._redact,
            isolation=self._executor.isolation,
            origin=origin,
            transcript=self._transcript,
        )
        try:
            self._recorder = await anyio.to_thread.run_sync(create)
        except PersistenceError as error:
            if is_wanted:
                raise
            self._notes.append(f"the session is not recorded: {error}")
            return
        self._follow_handles(self._recorder)

    async def _begin_record_late(self) -> None:
        """Record from here on, where there is a workspace now, and nothing has happened yet."""
        if not cast("FileStorage", self._storage).base_path.is_dir():
            return
        self._has_no_record_yet = False
        if self._runs or self._open_handles().handle_names():
            self._notes.append(
                "the session is not recorded: there was no workspace when it started; "
                "record=True makes one"
            )
        else:
            await self._begin_record()

    def _follow_handles(self, recorder: Recorder) -> None:
        assert self._bindings is not None
        recorder.follow(self._open_handles(), self._bindings)

    async def _bring_back(self, recorder: Recorder) -> None:
        from py_code_mode.resume import Guest

        assert self._resumption is not None
        assert self._bindings is not None
        guest = Guest(
            executor=self._executor,
            handles=self._open_handles(),
            bindings=self._bindings,
            dependencies=self._open_namespaces().dependencies,
        )
        self._resumed = resumed = await self._resumption.carry_out(guest, recorder)
        self._runs = resumed.last_run
        self._notes += resumed.notes()
        if resumed.skipped:
            await self._tell("skip", run_ids=list(resumed.skipped))

    async def _tell(self, kind: str, **data: Any) -> None:
        if self._recorder is not None:
            await self._recorder.tell(kind, self._runs, **data)

    # -- values by name

    @property
    def handles(self) -> SessionHandles:
        """The session's handles: what was `put`, and large values that runs have made.

        Raises:
            SessionClosed: it is not open.
        """
        return self._open_handles()

    async def put(
        self,
        name: str,
        value: object,
        overwrite: bool = False,
        *,
        semantics: Mapping[str, JsonValue] | None = None,
    ) -> str:
        """Keep a value under a name, and make it a variable of the guest; waits for a run.

        The handle outlives a reset and a crash: the variable is bound again. Large numeric data is
        shared with the guest, not copied; the guest's is its own to change. What cannot cross as
        data is pickled, which needs its class in the guest.

        Cancelled, it has either done nothing, or all of it, the record included.

        Args:
            name: of the handle, and of the variable where guest code has none of this name; else
                the guest finds it as ``handles[name]``.
            value: what the session holds from now on; not to be changed any more.
            overwrite: replace the handle, and the variable, of this name.
            semantics: descriptions of columns, or ``{"description", "unit"}`` of each: models see
                them in the snapshot.

        Returns:
            the name of the handle: with a suffix (``name_2``) where it is taken.

        Raises:
            InvalidName: (a ValueError) the name is not an identifier, or belongs to a namespace.
            ValueNotPortable: the value would not cross unaltered; nothing has changed.
            GuestDied: the guest ended meanwhile; the next one finds the value.
            PersistenceError: it is not on record; it may have been done. See `flush`.
        """
        from py_code_mode.namespaces import check_name

        self._executor.require(Capability.EXCHANGE)
        check_flag("overwrite", overwrite)
        check_name(name)
        async with self._exclusive(), self._on_record():
            bindings = await self._renew_bindings()
            try:
                return await bindings.put(name, value, overwrite=overwrite, semantics=semantics)
            finally:  # cancelled, it may have been done all the same
                if self._recorder is not None:
                    await self._recorder.catch_up()

    async def get(self, name: str | Handle) -> object:
        """Give the value of a guest's variable or of a handle; waits for a run.

        A variable comes first: what code has done to a value that was `put` is seen. Data that
        comes from the guest is validated in full, and shared, not copied.

        Raises:
            HandleNotFound: (a KeyError) there is none by this name.
            ValueNotPortable: the value would not cross unaltered; it says how to convert it.
        """
        self._executor.require(Capability.EXCHANGE)
        async with self._exclusive():
            bindings = await self._renew_bindings()
            return await bindings.get(name.name if isinstance(name, Handle) else name)

    def _open_handles(self) -> SessionHandles:
        if self._handles is None or self._phase == "closed":
            raise SessionClosed(self._id, self._phase)
        return self._handles

    def _expire_bindings(self, run_id: int) -> None:
        """Take note that the guest's variables are those of an earlier run, 0 for none."""
        if self._handles is not None and self._bindings is not None:
            self._handles.forget_since(run_id)
            self._bindings.expire()

    async def _renew_bindings(self) -> Bindings:
        """Make variables again of handles that were, where the guest has lost them."""
        assert self._bindings is not None
        self._notes += await self._bindings.renew()
        return self._bindings

    async def _answer(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """The one way from the guest to the host."""
        call = partial(self._open_namespaces().call, namespace, method, args, kwargs)
        resumption, recorder = self._resumption, self._recorder
        if resumption is not None and resumption.is_replaying:
            is_answered, answer = resumption.answer(namespace, method, args, kwargs)
            if is_answered:
                return answer
            is_recorded = resumption.is_rerun
        else:
            is_recorded = self._running is not None
        if recorder is None or namespace == "handles" or not is_recorded:
            return await call()
        return await recorder.around(call, namespace, method, args, kwargs)

    def _open_namespaces(self) -> Namespaces:
        if self._namespaces is None or self._phase == "closed":
            raise SessionClosed(self._id, self._phase)
        return self._namespaces

    # -- tools

    def _tools(self) -> ToolRegistry:
        if self._registry is None:
            from py_code_mode.stores import FileStore
            from py_code_mode.tools.registry import ToolRegistry

            folder, store, gate = self._executor.config.tools_folder, None, None
            if folder is not None:
                store, gate = FileStore(folder), partial(check_trusted, folder, (folder,))
            elif isinstance(self._storage, FileStorage):
                base = self._storage.base_path
                folder, gate = base / "tools", partial(check_trusted, base)
            store = store or self._storage.get_tool_store()
            self._registry = ToolRegistry(store, folder=folder, gate=gate)
        return self._registry

    def add_tool(
        self,
        function: Callable[..., object],
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        """Make a Python function a tool of this session; it runs here, not in the guest.

        Args:
            function: sync (run on a worker thread) or async (run on the event loop).
            name: under which guest code finds it; None means the function's own.
            description: None means the first line of the docstring.
            tags: for listings.

        Raises:
            InvalidName: the name cannot be used, or is taken.
        """
        self._tools().add(function, name=name, description=description, tags=tags)

    async def list_tools(self) -> list[dict[str, Any]]:
        """All tools: dicts with name, description, tags, and more."""
        return await self._open_namespaces().tools.list()

    async def search_tools(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """The tools that fit the words of a query, best first."""
        return await self._open_namespaces().tools.search(query, limit)

    # -- workflows

    async def list_workflows(self) -> list[dict[str, Any]]:
        """All workflows: name, description, parameters; no source."""
        return await self._open_namespaces().workflows.list()

    async def search_workflows(self, query: str, limit: int = 5) -> list[dict[str, Any]]:
        """The workflows that fit the words of a query, best first."""
        return await self._open_namespaces().workflows.search(query, limit)

    async def get_workflow(self, name: str) -> dict[str, Any] | None:
        """A workflow with its source, or None."""
        return await self._open_namespaces().workflows.get(name)

    async def add_workflow(self, name: str, source: str, description: str) -> dict[str, Any]:
        """Create and persist a workflow; `source` defines ``run(...)`` or ``async run(...)``."""
        return await self._open_namespaces().workflows.create(name, source, description)

    async def remove_workflow(self, name: str) -> bool:
        """Remove a workflow; False if there is none."""
        return await self._open_namespaces().workflows.delete(name)

    # -- artifacts

    async def list_artifacts(self) -> list[dict[str, Any]]:
        """All artifacts: name, path, description, metadata, created_at, and more."""
        return await self._open_namespaces().artifacts.list()

    async def save_artifact(
        self,
        name: str,
        data: Any,
        description: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Save data as an artifact, replacing one of the same name."""
        return await self._open_namespaces().artifacts.save(name, data, description, metadata)

    async def load_artifact(self, name: str) -> Any:
        """Load an artifact's data; `ArtifactNotFound` if there is none."""
        return await self._open_namespaces().artifacts.load(name)

    async def delete_artifact(self, name: str) -> None:
        """Delete an artifact; `ArtifactNotFound` if there is none."""
        await self._open_namespaces().artifacts.delete(name)

    # -- dependencies

    async def list_deps(self) -> list[str]:
        """The configured dependencies."""
        return await self._open_namespaces().deps.list()

    async def add_dep(self, package: str) -> dict[str, Any]:
        """Add and install a dependency: keys installed, already_present, failed."""
        return await self._change_deps("add", package, self._open_namespaces().deps.add)

    async def remove_dep(self, package: str) -> dict[str, Any]:
        """Remove a dependency: keys removed, not_found, failed, removed_from_config."""
        return await self._change_deps("remove", package, self._open_namespaces().deps.remove)

    async def _change_deps(
        self, op: str, package: str, change: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        is_refused = False
        async with self._on_record():
            try:
                return await change(package)
            except Exception:
                is_refused = True
                raise
            finally:  # cancelled, it may have been done, in part or in whole
                if not is_refused:
                    await to_the_end(partial(self._tell, "dep", op=op, package=package))

    async def sync_deps(self) -> dict[str, Any]:
        """Install all configured dependencies: keys installed, already_present, failed."""
        return await self._open_namespaces().deps.sync()

    # -- for agents

    async def instructions(self, *, max_tokens: int = 1500) -> str:
        """What a model should be told about this session, within a budget.

        Args:
            max_tokens: of four UTF-8 bytes each.
        """
        check_count("max_tokens", max_tokens)
        return await describe(self._open_namespaces(), self._open_handles(), max_tokens)

    def as_tool(self) -> RunPython:
        """An async function of one text, for any agent framework.

        It runs the code in this session and gives `ExecutionResult.to_text`. Its attribute
        ``json_schema`` has name, description and parameters as most model APIs take them.
        """

        return make_tool(self.run)


def _checked(code: object) -> str:
    """The code as a plain `str`."""
    if not isinstance(code, str):
        raise TypeError(f"code must be a str, not {type(code).__name__}")
    if len(code) > MAX_CODE:
        raise ValueError(f"code has {len(code)} characters, the limit is {MAX_CODE}: use a file")
    return str.__str__(code)


def _make_executor(name: str, options: dict[str, Any]) -> Executor:
    from py_code_mode.execution.registry import executor_class

    made = executor_class(name).from_options
    try:
        return made(**options)
    except TypeError as error:
        if "policy" not in options or "'policy'" not in str(error):
            raise
        # a promise that a plug-in does not know of cannot be kept
        raise ConfigError(f"executor {name!r}", f"it takes no policy: {error}") from error
