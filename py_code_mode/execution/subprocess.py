"""Runs a session's guest in a process of its own, with an environment of its own, in a sandbox.

What guest code does to its process (crash, exit, exhaust memory, hang) never hurts the host. What
stands between the two is chosen at the start: the best that this machine has, or what was asked
for, which is then an error where it cannot be had.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, get_args

import anyio

from py_code_mode.arguments import check, check_choice, check_count, check_flag, path_of
from py_code_mode.environments.base import Environment, EnvironmentSpec, realise
from py_code_mode.errors import (
    CheckpointClosed,
    CheckpointRefused,
    EnvironmentFailed,
    ExecutorClosed,
    ForeignCheckpoint,
    GuestDied,
)
from py_code_mode.execution.activity import KEPT, LOST, Fate
from py_code_mode.execution.channel import Channel
from py_code_mode.execution.ends import Ends, open_ends, pipe
from py_code_mode.execution.executor import (
    BranchingExecutor,
    Call,
    Capability,
    Checkpoint,
    Exchange,
    ExecutorConfig,
    OnEvent,
    RunOutcome,
    RunRequest,
    Setup,
)
from py_code_mode.execution.launch import CERTIFICATES, GUEST
from py_code_mode.execution.output import OutputPipe
from py_code_mode.execution.process import GuestProcess, spawn
from py_code_mode.execution.sandbox import (
    MISSING,
    BackendChoice,
    Sandbox,
    choose,
    examine_machine,
    open_sandbox,
    session_variables,
)
from py_code_mode.execution.sleepers import Sleeper, WakeRefused
from py_code_mode.execution.supervisor import Supervisor, to_the_end
from py_code_mode.execution.worker import (
    FIRST,
    PROTECT_BYTES,
    Protect,
    Worker,
    empty_run,
    setup_frame,
)
from py_code_mode.sandbox.policy import Policy
from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path
    from subprocess import Popen

    from py_code_mode.execution.keeper import KeptProcess
    from py_code_mode.execution.worker import Process
    from py_code_mode.sandbox.egress import EgressRecord
    from py_code_mode.sandbox.probe import Backend

_OF_THE_USER = ("HOME", "LOGNAME", "TMPDIR", "USER")

#: Seconds after which a run's memory is looked at often.
_LONG_RUN = 0.02
#: Seconds after a start until the next ones are prepared, which takes a processor.
_PREPARE_AFTER = 0.03
#: A zygote that is killed may take requests until the last process of its walls has ended; only
#: then there is another one.
_TRIES = 3
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubprocessConfig(ExecutorConfig):
    """How a session's worker is made; see `ExecutorConfig` for the other fields.

    Attributes:
        python_version: ``"3.13"`` or the path of an interpreter; None means the host's version.
        cache_venv: share one immutable environment between sessions; else a private one is made
            and removed at close.
        policy: what the guest may do; what cannot be enforced here is an error. None means the
            defaults of `Policy`, as far as this machine can enforce them.
        backend: what the sandbox is built from: ``namespaces``, ``bubblewrap``, ``landlock``, or
            ``none`` for a plain process; ``auto`` is the best of this machine.
        protect: when a copy of the interpreter is kept for the case that a run has to be killed:
            ``idle`` in the pauses between runs, ``always`` before each run too, or ``off``.
        protect_bytes: no copy is kept of an interpreter with more private memory than this, since
            writing to memory that is shared with a copy costs many times more.
        pool: sandboxes of this configuration that are kept ready for the next sessions.
        also_read: shown besides what a policy names where there is a sandbox, such as the folder
            of a script that is run; without one nothing is missing.
    """

    python_version: str | None = None
    cache_venv: bool = True
    policy: Policy | None = None
    backend: BackendChoice = "auto"
    protect: Protect = "idle"
    protect_bytes: int = PROTECT_BYTES
    pool: int = 0
    also_read: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        # not super(): a class with slots is made anew, and is not the one that super() means
        ExecutorConfig.__post_init__(self)
        check("python_version", self.python_version, (str, NoneType), 'a str such as "3.13"')
        check_flag("cache_venv", self.cache_venv)
        check("policy", self.policy, (Policy, NoneType), "a Policy")
        check_choice("backend", self.backend, get_args(BackendChoice))
        check_choice("protect", self.protect, get_args(Protect))
        check_count("protect_bytes", self.protect_bytes)
        check_count("pool", self.pool)
        check("also_read", self.also_read, (tuple, list), "a tuple of paths")
        also_read = tuple(path_of("also_read", path) for path in self.also_read)
        object.__setattr__(self, "also_read", also_read)


class SubprocessExecutor(BranchingExecutor):
    """A worker process per session.

    Forks of a session share its sandbox, which ends with the last of them.

    Args:
        config: `SubprocessConfig`; its environment is made at the first start on a machine.
    """

    name = "subprocess"
    offers = frozenset(
        {
            Capability.TIMEOUT,
            Capability.PROCESS_ISOLATION,
            Capability.RESET,
            Capability.DEPS_INSTALL,
            Capability.INTERRUPT,
            Capability.KILL,
            Capability.DESCRIPTOR_OUTPUT,
            Capability.EXCHANGE,
            Capability.NETWORK_ISOLATION,
            Capability.NETWORK_ALLOW_LIST,
            Capability.FILE_ISOLATION,
            Capability.MEMORY_LIMIT,
            Capability.MEMORY_GROUP,
            Capability.DISK_LIMIT,
            Capability.SHARED_MEMORY,
            Capability.CHECKPOINT,
            Capability.RESTORE,
        }
    )

    def __init__(self, config: SubprocessConfig | None = None) -> None:
        check("config", config, (SubprocessConfig, NoneType), "a SubprocessConfig")
        self._config = config or SubprocessConfig()
        self._state = "not started"
        self._environment: Environment | None = None
        self._supervisor: Supervisor | None = None
        self._worker: Worker | None = None
        self._setup: Setup | None = None
        self._call: Call | None = None
        self._backend: Backend = "none"
        self._sandbox: Sandbox | None = None
        self._incarnation = 0
        self._processes: dict[int, KeptProcess] = {}
        self._kills = 0
        self._told_of_death = False
        self._owed: Fate | None = None
        self._told_of_refusal: str | None = None
        self._checkpoints: dict[Checkpoint, Sleeper] = {}
        self._sharers = {id(self)}  # those of a private environment: this one and its forks
        self._starting: anyio.CancelScope | None = None
        self._started = anyio.Event()
        self._closed = anyio.Event()

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        return cls(SubprocessConfig(**options))

    @property
    def config(self) -> SubprocessConfig:
        return self._config

    @property
    def environment(self) -> Environment:
        if self._environment is None:
            raise ExecutorClosed(self.name, self._state)
        return self._environment

    @property
    def isolation(self) -> str:
        return self._backend

    @property
    def granted(self) -> tuple[Path, ...]:
        return (*super().granted, *self.config.also_read)

    @property
    def network_log(self) -> tuple[EgressRecord, ...]:
        egress = self._sandbox.egress if self._sandbox is not None else None
        return egress.records if egress is not None else ()

    @property
    def overlay(self) -> Path | None:
        return self._sandbox.packages if self._sandbox is not None else None

    @property
    def capabilities(self) -> frozenset[str]:
        if self._state != "started":
            return self.offers
        missing = set(MISSING[self._backend])
        if self.config.protect == "off":
            missing.add(Capability.RESTORE)
        if probe().memory_groups is None:
            missing.add(Capability.MEMORY_GROUP)
        return self.offers - missing

    async def start(self, setup: Setup, call: Call) -> frozenset[str]:
        if self._state != "not started":
            raise ExecutorClosed(self.name, self._state)
        self._state = "starting"
        self._setup, self._call = setup, call
        self._started = anyio.Event()
        try:
            with anyio.CancelScope() as self._starting:
                self._supervisor = Supervisor.acquire()
                spec = EnvironmentSpec(
                    python=self.config.python_version, private=not self.config.cache_venv
                )
                self._environment = await realise(spec)
                found = await examine_machine()
                self._backend = choose(
                    self.config.backend, self.config.policy, found, self._environment
                )
                try:
                    self._worker = await self._new_worker()
                except (GuestDied, OSError) as error:
                    raise EnvironmentFailed(
                        "the worker could not be started", _reason(error)
                    ) from error
                self._state = "started"
                self._prepare_next_soon()
            if self._starting.cancelled_caught:  # by close()
                raise ExecutorClosed(self.name, "closed")
        finally:
            try:
                if self._state != "started":
                    self._state = "not started"
                    await to_the_end(self._free)
            finally:
                self._starting = None
                self._started.set()
        return self.capabilities

    def _prepare_next_soon(self) -> None:
        """Get ready for the next sessions, when this one's first run has most likely been."""
        sandbox = self._sandbox

        def prepare() -> None:
            if sandbox is not None and sandbox is self._sandbox:
                assert sandbox.inside is not None
                assert sandbox.shown is not None
                greeting = self._greeting(sandbox.inside, sandbox.shown)
                sandbox.prepare_next(greeting, self.config.pool)

        if sandbox is not None:
            asyncio.get_running_loop().call_later(_PREPARE_AFTER, prepare)

    def _setup_frame(
        self, incarnation: int, packages: Path | None, shown: Mapping[str, object] | None
    ) -> bytes:
        """What a worker is sent that finds its packages there, and is shown that."""
        assert self._setup is not None
        setup = replace(self._setup, overlay=packages, shown=shown)
        return setup_frame(incarnation, setup, self.config.protect, self.config.protect_bytes)

    def _greeting(self, packages: Path, shown: Mapping[str, object]) -> bytes:
        """What a worker is sent that waits for a session like this."""
        return self._setup_frame(FIRST, packages, shown) + empty_run()

    async def _new_worker(self) -> Worker:
        assert self._setup is not None
        assert self._call is not None
        assert self._supervisor is not None
        self._incarnation += 1
        worker = Worker(self._incarnation, self._call, self._supervisor, self._spare)
        sandbox: Sandbox | None = None
        if self._backend == "none":
            self._connect(worker, self._setup, self.environment)
        else:
            sandbox = await self._open_and_enter(worker)
        try:
            if sandbox is None:
                await worker.start(self._setup)
            else:
                await worker.greeted()
                await sandbox.keeper.admitted()
        except BaseException:
            await to_the_end(worker.kill)
            raise
        return worker

    async def _open_and_enter(self, worker: Worker) -> Sandbox:
        left = _TRIES
        while True:
            sandbox = await self._open()
            try:
                await self._enter(worker, sandbox)
            except GuestDied:
                left -= 1
                if sandbox.zygote is None or not sandbox.keeper.is_over or not left:
                    raise
            else:
                return sandbox

    async def _open(self) -> Sandbox:
        """The session's sandbox, made anew where it has ended."""
        assert self._setup is not None
        if self._sandbox is not None:
            await self._sandbox.clear()
            if not self._sandbox.keeper.is_over:
                return self._sandbox
            await to_the_end(partial(self._sandbox.leave, self))
        self._sandbox = None
        self._kills = 0
        self._sandbox = await open_sandbox(
            self._backend,
            self.config.policy or Policy(),
            self.environment,
            workdir=None if self._setup.is_workdir_private else self._setup.workdir,
            also_read=self.config.also_read,
            greet=self._greeting if self._incarnation == FIRST else None,
        )
        self._sandbox.join(self)
        return self._sandbox

    async def _enter(self, worker: Worker, sandbox: Sandbox) -> None:
        """Start a worker in the sandbox, which holds everything of it that needs closing."""
        waiting, sandbox.waiting = sandbox.waiting, None
        if waiting is not None:
            ours = waiting.ends
        else:
            with open_ends() as (ours, theirs):
                # it finds this when it begins: nobody waits for the other
                ours.guest.sendall(
                    self._setup_frame(self._incarnation, sandbox.inside, sandbox.shown)
                )
                sandbox.keeper.ask_for_worker(theirs.fds)
        with ExitStack() as held:
            held.callback(ours.close)
            if sandbox.admits is not None:
                # behind the worker, which is being made meanwhile; waited for in _new_worker
                sandbox.keeper.admit(sandbox.admits)
                sandbox.admits = None
            pid, pidfd = await sandbox.keeper.worker()
            assert self._supervisor is not None
            sandbox.open_egress(self._supervisor)
            self._follow(worker, sandbox, pid, pidfd, ours)
            held.pop_all()

    async def _wake(self, sleeper: Sleeper, *, keep: bool = True, protects: bool = False) -> Worker:
        """Make a sleeping copy a worker, or with `keep` a copy of it.

        With `protects` it becomes that worker's own sleeper, should it be ended.

        Raises:
            GuestDied: it does not wake.
        """
        assert self._sandbox is not None
        assert self._call is not None
        assert self._supervisor is not None
        self._incarnation += 1
        worker = Worker(self._incarnation, self._call, self._supervisor, self._spare)
        with open_ends() as (ours, theirs):
            self._spare()  # a limit ends it like any worker from now on
            async with self._sandbox.waking:
                pid = await sleeper.wake(
                    self._incarnation, theirs.fds, keep=keep, protects=protects
                )
                pidfd = await self._sandbox.keeper.adopt(pid)
                self._follow(worker, self._sandbox, pid, pidfd, ours)
        try:
            await worker.awake(sleeper.run)
        except BaseException:
            await to_the_end(worker.kill)
            raise
        if protects:
            worker.sleeper = sleeper
        return worker

    def _follow(self, worker: Worker, sandbox: Sandbox, pid: int, pidfd: int, ends: Ends) -> None:
        """Hand everything of a worker that needs closing to it."""

        def follow() -> KeptProcess:
            process = self._processes[pid] = sandbox.keeper.attach(pid, pidfd, worker.on_exit)
            return process

        _attach(worker, ends, follow)

    def _connect(self, worker: Worker, setup: Setup, environment: Environment) -> None:
        """Start the process and hand everything that needs closing to the worker."""
        with open_ends() as (ours, theirs), ExitStack() as given, ExitStack() as held:
            lifeline, ours_alive = pipe(given, held)
            guest, stdout, stderr = theirs.fds
            child = spawn(
                [str(environment.python), "-I", str(GUEST), "loop", str(guest), str(lifeline)],
                workdir=setup.workdir,
                environment=_environment_variables(environment),
                stdout=stdout,
                stderr=stderr,
                pass_fds=(guest, lifeline),
            )
            held.callback(_end, child)

            def on_exit(status: int) -> None:
                os.close(ours_alive)
                worker.on_exit(status)

            _attach(worker, ours, lambda: GuestProcess(child, on_exit))
            held.pop_all()  # the worker closes them from now on

    async def run(self, request: RunRequest, on_event: OnEvent | None = None) -> RunOutcome:
        worker = self._live()
        if worker.death is not None:
            worker = await self._replace(worker)
        self._told_of_death = False
        watch = self._watch_closely()
        fate = self._owed or KEPT
        before = worker.last_run

        async def settle() -> None:
            nonlocal fate
            fate = await self._settle(worker, before)
            self._told_of_death = True

        try:
            ended = await worker.run(request, on_event)
        finally:
            watch()
            if worker.death is not None:
                await to_the_end(settle)
            # what no outcome has told of yet is not forgotten by a cancelled run
            self.state, self.restored_to = fate.state, fate.restored_to
        self._owed = None
        if ended.was_stopped and worker.death is None and self._sandbox is not None:
            await self._sandbox.keeper.end_forks(ended.duration)
        if worker.refusal != self._told_of_refusal and worker.death is None:
            self._told_of_refusal = worker.refusal
            if worker.refusal is not None:
                fate = replace(fate, notes=(*fate.notes, f"not protected: {worker.refusal}"))
        kills = self._count_new_kills()
        if worker.limit == "memory":
            fate = replace(fate, notes=(*fate.notes, *self._told_of_files()))
        elif kills:
            fate = replace(fate, notes=(*fate.notes, self._told_of_kill()))
        return ended.outcome(fate)

    def _count_new_kills(self) -> int:
        """How many processes the kernel has ended for their memory since this was last asked."""
        if self._sandbox is None:
            return 0
        before, self._kills = self._kills, max(self._kills, self._sandbox.keeper.count_kills())
        return self._kills - before

    def _told_of_kill(self) -> str:
        """What a run says in whose time it happened, where the worker itself goes on."""
        assert self._sandbox is not None
        limit = (self._sandbox.policy.memory or 0) >> 20
        return f"a process of this session was ended: its memory limit of {limit} MiB was reached"

    def _told_of_files(self) -> Iterable[str]:
        """What a run says whose worker held too much memory, where files were a good part of it."""
        assert self._sandbox is not None
        files, memory = self._sandbox.keeper.files, self._sandbox.policy.memory or 0
        if files >= memory // 4:
            yield (
                f"its files, in the workdir, /tmp and /dev/shm, took {files >> 20} of the "
                f"{memory >> 20} MiB: remove those that are not needed"
            )

    def _watch_closely(self) -> Callable[[], None]:
        """Have memory looked at often if the run takes long; gives what ends that."""
        if self._sandbox is None:
            return lambda: None
        keeper = self._sandbox.keeper
        timer = asyncio.get_running_loop().call_later(_LONG_RUN, keeper.pace, True)

        def end() -> None:
            timer.cancel()
            if timer.when() <= asyncio.get_running_loop().time():
                keeper.pace(False)

        return end

    async def _replace(self, worker: Worker) -> Worker:
        """Another worker for one that has died: its copy, else one without variables."""
        fate = await self._settle(worker, worker.last_run)
        if not self._told_of_death:
            note = f"the worker had ended since the previous run: {fate.text}"
            self._owed = replace(fate, notes=(note, *fate.notes))
            self._told_of_death = True
        if fate.state == "restored":
            return self._live()
        try:
            return await self._install(self._new_worker)
        except (GuestDied, OSError) as error:
            raise EnvironmentFailed("a new worker could not be started", _reason(error)) from error

    async def _settle(self, worker: Worker, before: int) -> Fate:
        """Put the copy of a worker that has died in its place; what becomes of the variables.

        Args:
            before: the newest run whose effects there were to be kept; 0 for none.
        """
        await worker.kill()
        sandbox, sleeper = self._sandbox, worker.sleeper
        refusal = worker.refusal
        if sleeper is None or sandbox is None:
            return replace(LOST, notes=(self._told_of_no_copy(refusal),) if before else ())
        # what the dead worker had started must not go on beside its copy
        await sandbox.clear()
        worker.take_sleeper()
        try:
            try:
                await self._install(partial(self._wake, sleeper, protects=True))
            except GuestDied:
                # there may be room for one process only
                await self._install(partial(self._wake, sleeper, keep=False))
        except (GuestDied, OSError) as error:
            sleeper.close()
            return replace(LOST, notes=(f"their copy is lost too: {_reason(error)}",))
        except BaseException as error:
            sleeper.close()
            if isinstance(error, ExecutorClosed):
                return LOST
            raise
        why = (f"no newer copy could be kept: {refusal}",) if refusal else ()
        return Fate(state="restored", restored_to=sleeper.run, notes=why)

    def _told_of_no_copy(self, refusal: str | None) -> str:
        """Why variables that there were could not be kept."""
        if refusal is not None:
            return f"no copy could be kept: {refusal}"
        if self._sandbox is None:
            return "no copy is kept of a worker without a sandbox"
        if self.config.protect == "off":
            return "no copy was kept: protect is 'off'"
        advice = "" if self.config.protect == "always" else "; protect='always' makes one before it"
        return f"no copy had been made yet, as runs followed one another closely{advice}"

    async def _install(self, make: Callable[[], Awaitable[Worker]]) -> Worker:
        """Have a new worker in the place of the one there is."""
        if self._state != "started":  # close() came meanwhile
            raise ExecutorClosed(self.name, self._state)
        self._started = anyio.Event()
        try:
            # close() cancels this, as it does a start: the new worker would be nobody's
            with anyio.CancelScope() as self._starting:
                self._worker = await make()
            if self._starting.cancelled_caught:
                raise ExecutorClosed(self.name, "closed")
        finally:
            self._starting = None
            self._started.set()
        self._spare()
        return self._live()

    # -- copies

    def awake(self) -> Iterable[int]:
        """The pids of the workers, inside: of more than one while they change; for the sandbox."""
        processes = self._processes.items()
        self._processes = {pid: process for pid, process in processes if process.status is None}
        return tuple(self._processes)

    def asleep(self) -> Iterable[int]:
        """The pids of the sleeping copies, inside; for the sandbox."""
        worker = self._worker
        idle = (worker.sleeper,) if worker is not None and worker.sleeper is not None else ()
        return [sleeper.pid for sleeper in (*idle, *self._checkpoints.values())]

    def _spare(self) -> None:
        if self._sandbox is not None:
            self._sandbox.spare()

    async def checkpoint(self) -> Checkpoint:
        assert self._setup is not None
        sleeper = await self._copy(is_kept=True)
        checkpoint = Checkpoint(self._setup.session_id, sleeper.run, self._release)
        self._checkpoints[checkpoint] = sleeper
        self._spare()
        return checkpoint

    async def _copy(self, *, is_kept: bool = False) -> Sleeper:
        """A copy of the worker, the caller's; with `is_kept` one more can wake beside it."""
        assert self._setup is not None
        self.require(Capability.CHECKPOINT)
        worker = self._live()
        if worker.death is not None:
            worker = await self._replace(worker)
        if is_kept:
            self._check_room()
        copy = await worker.checkpoint()
        if isinstance(copy, str):
            raise CheckpointRefused(self._setup.session_id, copy)
        if self._state != "started":  # close() came meanwhile
            copy.close()
            raise ExecutorClosed(self.name, self._state)
        return copy

    def _check_room(self) -> None:
        """See that a copy more leaves room for what there is a copy for: that one of them wakes.

        What guest code has started besides is not known here. Where it is in the way nothing wakes,
        and a checkpoint is kept until there is room.

        Raises:
            CheckpointRefused: it does not.
        """
        assert self._setup is not None
        assert self._sandbox is not None
        allowed = self._sandbox.policy.processes
        held = sum(len({*each.awake(), *each.asleep()}) for each in self._sandbox.members)
        needed = held + 3  # with the keeper, the new copy, and one that wakes
        if self.config.protect != "off":
            needed += 1  # that one's own, which it may make before its predecessor has ended
            needed += self._live().sleeper is None  # and ours, which the next pause makes
        if allowed is not None and needed > allowed:
            raise CheckpointRefused(
                self._setup.session_id,
                "the limit on processes leaves no room for a copy of the worker: with it, and for "
                f"one to wake, there must be {needed}, and the policy allows {allowed}",
            )

    def _release(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.pop(checkpoint).close()

    async def rollback(self, checkpoint: Checkpoint) -> None:
        assert self._setup is not None
        self.require(Capability.CHECKPOINT)
        worker = self._live()
        if checkpoint.session_id != self._setup.session_id:
            raise ForeignCheckpoint(self._setup.session_id, checkpoint.session_id)
        sleeper = self._checkpoints.get(checkpoint)
        if sleeper is None:
            raise CheckpointClosed(checkpoint.run_id)
        try:
            await self._install(partial(self._wake, sleeper))
        except WakeRefused as error:
            raise CheckpointRefused(self._setup.session_id, error.reason) from error
        except GuestDied as error:
            checkpoint.close()
            raise CheckpointClosed(checkpoint.run_id) from error

        async def end() -> None:
            worker.forget_sleeper()
            await worker.kill()
            if self._sandbox is not None:
                await self._sandbox.clear()

        await to_the_end(end)
        self._owed = None

    async def fork(self, session_id: str, call: Call) -> SubprocessExecutor:
        assert self._setup is not None
        assert self._sandbox is not None
        other = SubprocessExecutor(self._config)
        sleeper = await self._copy()
        other._state = "started"
        other._environment = self._environment
        other._sharers = self._sharers
        other._sharers.add(id(other))
        other._backend = self._backend
        other._setup = replace(self._setup, session_id=session_id)
        other._call = call
        other._supervisor = Supervisor.acquire()
        other._sandbox = self._sandbox
        other._sandbox.join(other)
        other._count_new_kills()  # what was before it is none of its runs'
        try:
            other._worker = await other._wake(sleeper, keep=False)
        except BaseException:
            sleeper.close()
            await to_the_end(other.close)
            raise
        other._spare()
        return other

    # -- between runs

    async def exchange(self, message: Exchange) -> object:
        worker = self._live()
        if worker.death is not None:
            worker = await self._replace(worker)
        return await worker.exchange(message)

    async def interrupt(self) -> bool:
        return self._live().stop("interrupted")

    async def reset(self) -> None:
        worker = self._live()
        if worker.death is not None:
            worker.forget_sleeper()
            await self._replace(worker)
        else:
            await worker.reset()

    def _live(self) -> Worker:
        if self._worker is None or self._state != "started":
            raise ExecutorClosed(self.name, self._state)
        return self._worker

    async def close(self) -> None:
        if self._state == "closed":
            await self._closed.wait()
            return
        starting = self._starting
        if starting is not None:
            starting.cancel()
        await to_the_end(self._close)

    async def _close(self) -> None:
        if self._starting is not None:
            await self._started.wait()
        if self._state == "closed":
            await self._closed.wait()
            return
        self._state = "closed"
        try:
            await self._free()
        finally:
            self._closed.set()

    async def _free(self) -> None:
        for checkpoint in tuple(self._checkpoints):
            checkpoint.close()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.close()
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.leave(self)
        try:
            environment = self._environment
            self._sharers.discard(id(self))
            if environment is not None and environment.is_private and not self._sharers:
                await environment.remove()
        finally:
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is not None:
                await supervisor.release()


def _reason(error: GuestDied | OSError) -> str:
    """What happened, without what it would mean for a worker that had variables."""
    return f"it {error.reason}" if isinstance(error, GuestDied) else str(error)


def _attach(worker: Worker, ends: Ends, follow: Callable[[], Process]) -> None:
    """Connect a worker to its process, and to our ends, which are the worker's from now on."""

    def attach() -> None:
        process = follow()
        channel = Channel(ends.guest, worker.on_frame, worker.on_channel_end)
        pipes = (
            OutputPipe(ends.stdout, partial(worker.on_output, "stdout")),
            OutputPipe(ends.stderr, partial(worker.on_output, "stderr")),
        )
        worker.attach(channel, pipes, process)

    # in an empty context: callbacks must not keep one caller's context variables alive
    Context().run(attach)


def _end(child: Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _environment_variables(environment: Environment) -> dict[str, str]:
    """What a plain guest sees of the host's environment: nothing that may hold a secret."""
    passed = {name: os.environ[name] for name in _OF_THE_USER + CERTIFICATES if name in os.environ}
    path = os.environ.get("PATH", os.defpath)
    return {**passed, **_proxies(os.environ), **session_variables(environment, path)}


def _proxies(variables: Mapping[str, str]) -> dict[str, str]:
    """Proxy settings, except those that carry a password."""
    return {
        name: value
        for name, value in variables.items()
        if name.lower() in _PROXIES and "@" not in value
    }


if sys.platform == "win32":  # pragma: no cover
    raise ImportError("the subprocess executor needs Linux or macOS; on Windows use WSL2")
