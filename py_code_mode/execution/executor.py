"""The contract between a session and the place where its code runs.

An executor decides only *where* the guest runs and how bytes reach it. It knows nothing of tools,
artifacts or dependencies: they come as one `Call` and a table of names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, TypeAlias, cast

from anyio.abc import AsyncResource

from py_code_mode.arguments import check_flag, path_of, texts_of
from py_code_mode.errors import CapabilityMissing, ConfigError
from py_code_mode.results import (
    Display,
    Event,
    ExecutionResult,
    Failure,
    Handle,
    Late,
    Snapshot,
    State,
)

if TYPE_CHECKING:
    from py_code_mode.environments.base import Environment
    from py_code_mode.sandbox.egress import EgressRecord
    from py_code_mode.sandbox.policy import Policy


class Capability:
    """Names of what an executor can do; plain strings, so that plug-ins may add their own."""

    TIMEOUT: Final = "timeout"
    PROCESS_ISOLATION: Final = "process_isolation"
    CONTAINER_ISOLATION: Final = "container_isolation"
    NETWORK_ISOLATION: Final = "network_isolation"
    RESET: Final = "reset"
    DEPS_INSTALL: Final = "deps_install"
    #: a run can be interrupted, and its variables are kept
    INTERRUPT: Final = "interrupt"
    #: code that cannot be interrupted is ended, and uses no processor afterwards
    KILL: Final = "kill"
    #: output of C code and child processes is captured, not only Python's own
    DESCRIPTOR_OUTPUT: Final = "descriptor_output"
    #: `ExecutionResult.value` is the live object itself
    LIVE_VALUES: Final = "live_values"
    #: values can be bound and fetched between runs
    EXCHANGE: Final = "exchange"
    #: where a run has to be ended, the variables of an earlier one are put back
    RESTORE: Final = "restore"
    #: `checkpoint`, `rollback` and `fork` work
    CHECKPOINT: Final = "checkpoint"
    #: files of the host that no policy grants cannot be seen
    FILE_ISOLATION: Final = "file_isolation"
    #: only the hosts of the policy can be reached
    NETWORK_ALLOW_LIST: Final = "network_allow_list"
    #: the limits of the policy hold for the session as a whole
    MEMORY_LIMIT: Final = "memory_limit"
    DISK_LIMIT: Final = "disk_limit"
    #: a control group holds the memory: what no process maps counts too
    MEMORY_GROUP: Final = "memory_group"
    #: memory with a name (/dev/shm): the locks, queues and pools of multiprocessing
    SHARED_MEMORY: Final = "shared_memory"


class Call(Protocol):
    """The only way from guest to host: one method of one namespace."""

    async def __call__(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object], /
    ) -> object:
        """Carry the call out.

        Raises:
            CodeModeError: those of `py_code_mode.guest.errors` reach the guest as they are.
        """
        ...


def seconds_of(timeout: object) -> float | None:
    """A timeout in seconds; None where it is infinite.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above zero.
    """
    if not isinstance(timeout, int | float) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be seconds, not {type(timeout).__name__}")
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds) or seconds <= 0:
        raise ValueError(f"timeout must be above 0 seconds (math.inf: no limit), not {seconds}")
    return None if math.isinf(seconds) else seconds


#: What the guest is told of one namespace: its doc, methods (name, signature, doc) and errors.
NamespaceTable: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """What every executor is told at its making, and the session reads.

    Attributes:
        tools_path: folder of tool definitions, instead of the storage's own; see `tools_folder`.
        default_timeout: seconds a run may take; None means no limit.
        extra_deps: packages beyond those of requirements.txt, installed by a sync.
        allow_runtime_deps: whether `deps.add` and `deps.remove` work.
    """

    tools_path: str | Path | None = None
    default_timeout: float | None = 60.0
    extra_deps: tuple[str, ...] | None = None
    allow_runtime_deps: bool = True

    def __post_init__(self) -> None:
        if self.default_timeout is not None:
            seconds_of(self.default_timeout)
        if self.tools_path is not None:
            # absolute: it stays the same folder when the process changes its own
            tools_path = path_of("tools_path", self.tools_path).absolute()
            object.__setattr__(self, "tools_path", tools_path)
        if self.extra_deps is not None:
            object.__setattr__(self, "extra_deps", texts_of("extra_deps", self.extra_deps))
        check_flag("allow_runtime_deps", self.allow_runtime_deps)

    @property
    def tools_folder(self) -> Path | None:
        """`tools_path` as a path."""
        return None if self.tools_path is None else Path(self.tools_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a guest needs before its first run.

    Attributes:
        session_id: for names and messages.
        namespaces: the table the guest builds its proxies from.
        workdir: the guest's current directory, absolute, without symbolic links; it exists, and
            its maker removes it.
        is_workdir_private: it was made for this session only, so that an executor may give the
            guest another one that nobody else sees.
        overlay: folder with the session's own packages, put at the end of ``sys.path``.
        shown: what a sandbox shows of the host, by which the guest explains what it refuses.
    """

    session_id: str
    namespaces: NamespaceTable
    workdir: Path
    is_workdir_private: bool = False
    overlay: Path | None = None
    shown: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run. `timeout` is in seconds from the start of execution; None means no limit."""

    run_id: int
    code: str
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What a run gave; the fields are those of `ExecutionResult`, and:

    Attributes:
        handles: large variables that the run has made or changed.
        gone: those told of earlier that are no longer there, or no longer large.
    """

    value: object = None
    failure: Failure | None = None
    stdout: str = ""
    stderr: str = ""
    displays: tuple[Display, ...] = ()
    state: State = "kept"
    restored_to: int | None = None
    duration: float = 0.0
    late: Late = field(default_factory=Late)
    notes: tuple[str, ...] = ()
    handles: tuple[Handle, ...] = ()
    gone: tuple[str, ...] = ()

    def to_result(
        self,
        run_id: int,
        *,
        made: Mapping[str, Snapshot],
        notes: Sequence[str],
        is_recorded: bool,
    ) -> ExecutionResult:
        """The result of a run that gave this.

        Args:
            made: handles that its calls have made.
            notes: what there is to be told besides.
        """
        return ExecutionResult(
            value=self.value,
            stdout=self.stdout,
            error=str(self.failure) if self.failure is not None else None,
            stderr=self.stderr,
            displays=self.displays,
            handles={**{handle.name: handle.snapshot for handle in self.handles}, **made},
            state=self.state,
            restored_to=self.restored_to,
            failure=self.failure,
            duration=self.duration,
            run_id=run_id,
            late=self.late,
            notes=(*notes, *self.notes),
            recorded=is_recorded,
        )


#: Receives events while a run goes on; may be sync or async. Slow means that the guest waits; an
#: exception interrupts the run and is raised from it.
OnEvent: TypeAlias = Callable[[Event], object]


@dataclass(frozen=True, slots=True)
class Bind:
    """Make `value` a variable of the guest, whatever had the name before; answered by True.

    Attributes:
        value: an object; or a `py_code_mode.codecs.values.SharedValue`, which is ready to be sent,
            for an executor without `Capability.LIVE_VALUES`.
        version: tells the values of one name apart, for an `Offer` that comes later.
    """

    name: str
    value: object
    version: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """The same where that takes no variable from the user; answered by whether it was done.

    It is not done where there is one of this name, unless that still is what was bound to it
    earlier, in another version.
    """

    name: str
    value: object
    version: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """Give the value of a variable, or of a `Handle` by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Release:
    """Let go of a value that is held for a `Handle`."""

    name: str


@dataclass(frozen=True, slots=True)
class Save:
    """Give the user's variables as a `SavedState` of at most `limit` bytes."""

    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """Variables as bytes that a guest wrote and a guest may load: no host reads them.

    Attributes:
        parts: bytes-like.
        types: of the variables, by name.
        skipped: why the others could not be saved.
    """

    parts: Sequence[bytes | bytearray | memoryview]
    types: Mapping[str, str]
    skipped: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Load:
    """Put saved variables back; answered by their names. It runs what the bytes say."""

    state: SavedState


Exchange: TypeAlias = Bind | Offer | Fetch | Release | Save | Load


class Checkpoint:
    """A frozen copy of a session's interpreter, to go back to any number of times.

    It holds memory, as far as variables were changed since; it ends with `close`, or with its
    session.

    Attributes:
        session_id: of the session that took it, and can be rolled back to it.
        run_id: the newest run whose effects it has; 0 where it was taken before any.
    """

    def __init__(self, session_id: str, run_id: int, release: Callable[[Checkpoint], None]) -> None:
        self.session_id = session_id
        self.run_id = run_id
        self._release: Callable[[Checkpoint], None] | None = release

    @property
    def is_open(self) -> bool:
        """Whether there is a way back to it."""
        return self._release is not None

    def close(self) -> None:
        """Let go of it; idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Checkpoint after run {self.run_id} of session {self.session_id} ({state})>"


class Executor(AsyncResource, ABC):
    """Runs the guest of one session.

    Life: `start` once, then `run`, `exchange`, `reset`, `interrupt` in any number, then `close`
    (as often as one likes). `start` and `close` may be called from different tasks. Calls are not
    overlapped by the caller, except `interrupt` and `close`, which may come during a `run`.
    """

    #: the name it is registered under
    name: ClassVar[str]
    #: what the class offers; what holds on this machine is known after `start`
    offers: ClassVar[frozenset[str]]

    @property
    @abstractmethod
    def config(self) -> ExecutorConfig:
        """What it was told at its making."""

    #: the session that it runs for, which closes it; None before there is one
    session_id: str | None = None
    #: what became of the variables in the latest run, also one that was cancelled
    state: State = "kept"
    #: the run whose variables are back, where the state is ``restored``
    restored_to: int | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        """Before `start`: what the class offers; after it: what holds here."""
        return self.offers

    @property
    def isolation(self) -> str:
        """What stands between guest code and this machine, known after `start`.

        A backend of the sandbox (``namespaces``, ``bubblewrap``, ``landlock``), ``none``,
        ``in_process``, or a plug-in's own word.
        """
        return "none"

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Make one from the options of `ExecutorConfig`, and those of its own configuration.

        Raises:
            ConfigError: it has no such option.
        """
        raise ConfigError(f"executor {cls.name!r}", "it cannot be made from a configuration")

    def require(self, capability: str) -> None:
        """Raise `CapabilityMissing` where this executor lacks a capability."""
        if capability not in self.capabilities:
            raise CapabilityMissing(capability, self.name)

    @property
    def policy(self) -> Policy | None:
        """What guest code may do, as it was passed; None where it was not.

        What the configuration calls ``policy``, unless an executor keeps it elsewhere.
        """
        return cast("Policy | None", getattr(self.config, "policy", None))

    @property
    def granted(self) -> tuple[Path, ...]:
        """Files and folders of the host that guest code may see or change."""
        return (*self.policy.read, *self.policy.write) if self.policy is not None else ()

    @property
    def network_log(self) -> tuple[EgressRecord, ...]:
        """What the guest asked of the network, where a policy lists hosts; the latest, in order."""
        return ()

    @property
    def overlay(self) -> Path | None:
        """Where the session's packages go instead of `Setup.overlay`; known after `start`."""
        return None

    @property
    @abstractmethod
    def environment(self) -> Environment:
        """The interpreter and packages the guest runs with; known after `start`."""

    @abstractmethod
    async def start(self, setup: Setup, call: Call) -> frozenset[str]:
        """Make the guest ready; give the capabilities that hold here.

        Cancelled or failed, it leaves nothing behind.
        """

    @abstractmethod
    async def run(self, request: RunRequest, on_event: OnEvent | None = None) -> RunOutcome:
        """Evaluate one cell.

        Whatever guest code does is in the outcome: exceptions, timeouts, the death of its process.
        Cancelled, the cell is interrupted (and, where it does not stop, ended) before the
        cancellation goes on; the executor stays usable.

        Raises:
            ExecutorClosed: not between start and close.
            Exception: what `on_event` raised.
        """

    @abstractmethod
    async def exchange(self, message: Exchange) -> object:
        """Bind, fetch, release or save values between runs.

        Raises:
            ValueNotPortable: the value would not cross unaltered.
            HandleNotFound: there is no value by that name.
            CapabilityMissing: this executor does not exchange values.
        """

    @abstractmethod
    async def interrupt(self) -> bool:
        """Interrupt the run that is going on; False where there is none."""

    @abstractmethod
    async def reset(self) -> None:
        """Forget the user's variables; keep the namespaces."""

    @abstractmethod
    async def close(self) -> None:
        """End the guest and everything it started; bounded, idempotent, interrupts a run."""

    async def aclose(self) -> None:
        """The same as `close`."""
        await self.close()


class BranchingExecutor(Executor):
    """An executor whose guest can be copied while it lives; see `Capability.CHECKPOINT`.

    Memory is copied, as by `os.fork`: variables, imported modules, random state. Files are not, nor
    what is outside; threads and processes that guest code started do not come along. Like `run`,
    these calls are not overlapped by the caller.
    """

    @abstractmethod
    async def checkpoint(self) -> Checkpoint:
        """Freeze a copy of the guest.

        Raises:
            CapabilityMissing: it cannot be done on this machine.
            CheckpointRefused: it cannot be done now, such as while threads run.
            GuestDied: there is no guest to copy.
        """

    @abstractmethod
    async def rollback(self, checkpoint: Checkpoint) -> None:
        """Have a copy of the checkpoint in the guest's place; the checkpoint is kept.

        Raises:
            CheckpointClosed: there is no way back to it any more; the guest is as it was.
            CheckpointRefused: there is no room for one more process now; both are as they were.
        """

    @abstractmethod
    async def fork(self, session_id: str, call: Call) -> BranchingExecutor:
        """Copy the guest, as a started executor of its own; the caller closes it.

        The two share a sandbox and its limits, the workdir and the folder of packages; nothing
        keeps one from reaching into the other.

        Args:
            session_id: of the session that the copy is for.
            call: where the copy's calls go.

        Raises:
            CapabilityMissing: it cannot be done on this machine.
            CheckpointRefused: it cannot be done now, such as while threads run.
            GuestDied: there is no guest to copy.
        """
