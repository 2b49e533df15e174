"""The contract between a session and the place where its code runs.

An executor decides only *where* the guest runs and how bytes reach it. It knows nothing of tools,
artifacts or dependencies: they come as one `Call` and a table of names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, TypeAlias

from anyio.abc import AsyncResource

from py_code_mode.errors import CapabilityMissing, ConfigError
from py_code_mode.results import Display, Event, Failure, Late, State

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.environments.base import Environment


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


#: What the guest is told of one namespace: its doc, methods (name, signature, doc) and errors.
NamespaceTable: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """What every executor is told at its making, and the session reads.

    Attributes:
        tools_path: folder of tool definitions, instead of the storage's own.
        default_timeout: seconds a run may take; None means no limit.
        extra_deps: packages beyond those of requirements.txt, installed by a sync.
        allow_runtime_deps: whether `deps.add` and `deps.remove` work.
    """

    tools_path: Path | None = None
    default_timeout: float | None = 60.0
    extra_deps: tuple[str, ...] | None = None
    allow_runtime_deps: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a guest needs before its first run.

    Attributes:
        session_id: for names and messages.
        namespaces: the table the guest builds its proxies from.
        workdir: the guest's current directory; it exists, and its maker removes it.
        overlay: folder with the session's own packages, put at the end of ``sys.path``.
    """

    session_id: str
    namespaces: NamespaceTable
    workdir: Path
    overlay: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run. `timeout` is in seconds from the start of execution; None means no limit."""

    run_id: int
    code: str
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What a run gave; the fields are those of `ExecutionResult`."""

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


#: Receives events while a run goes on; may be sync or async. Slow means that the guest waits; an
#: exception interrupts the run and is raised from it.
OnEvent: TypeAlias = Callable[[Event], object]


@dataclass(frozen=True, slots=True)
class Bind:
    """Make `value` a variable of the guest."""

    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Fetch:
    """Give the value of a variable, or of a `Handle` by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Release:
    """Let go of a value that is held for a `Handle`."""

    name: str


Exchange: TypeAlias = Bind | Fetch | Release


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

    #: what became of the variables in the latest run, also one that was cancelled
    state: State = "kept"

    @property
    def capabilities(self) -> frozenset[str]:
        """Before `start`: what the class offers; after it: what holds here."""
        return self.offers

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
        """Bind, fetch or release a value between runs.

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
