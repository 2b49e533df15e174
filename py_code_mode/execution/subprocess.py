"""Runs a session's guest in a process of its own, with an environment of its own.

What guest code does to its process (crash, exit, exhaust memory, hang) costs the variables, never
the host: the next run has a fresh worker. It is not a sandbox: the process may do whatever its user
may.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio

from py_code_mode import guest
from py_code_mode.environments.base import Environment, EnvironmentSpec, realise
from py_code_mode.errors import EnvironmentFailed, ExecutorClosed, GuestDied
from py_code_mode.execution.channel import Channel
from py_code_mode.execution.executor import (
    Call,
    Capability,
    Exchange,
    Executor,
    ExecutorConfig,
    OnEvent,
    RunOutcome,
    RunRequest,
    Setup,
)
from py_code_mode.execution.output import OutputPipe
from py_code_mode.execution.process import GuestProcess, spawn
from py_code_mode.execution.supervisor import Supervisor, to_the_end
from py_code_mode.execution.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from subprocess import Popen

_GUEST = str(Path(guest.__file__).with_name("__main__.py"))
_PASSED_ON = (
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
)
_CERTIFICATES = ("SSL_CERT_DIR", "SSL_CERT_FILE")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubprocessConfig(ExecutorConfig):
    """How a session's worker is made; see `ExecutorConfig` for the other fields.

    Attributes:
        python_version: ``"3.13"`` or the path of an interpreter; None means the host's version.
        cache_venv: share one immutable environment between sessions; else a private one is made
            and removed at close.
    """

    python_version: str | None = None
    cache_venv: bool = True


class SubprocessExecutor(Executor):
    """A worker process per session.

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
        }
    )

    def __init__(self, config: SubprocessConfig | None = None) -> None:
        self._config = config or SubprocessConfig()
        self._state = "not started"
        self._environment: Environment | None = None
        self._supervisor: Supervisor | None = None
        self._worker: Worker | None = None
        self._setup: Setup | None = None
        self._call: Call | None = None
        self._incarnation = 0
        self._told_of_death = False
        self._owes_notice = False
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
                try:
                    self._worker = await self._new_worker()
                except (GuestDied, OSError) as error:
                    raise EnvironmentFailed(
                        "the worker could not be started", str(error)
                    ) from error
                self._state = "started"
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

    async def _new_worker(self) -> Worker:
        assert self._setup is not None
        assert self._call is not None
        assert self._supervisor is not None
        self._incarnation += 1
        worker = Worker(self._incarnation, self._call, self._supervisor)
        self._connect(worker, self._setup, self.environment)
        try:
            await worker.start(self._setup)
        except BaseException:
            await to_the_end(worker.kill)
            raise
        return worker

    def _connect(self, worker: Worker, setup: Setup, environment: Environment) -> None:
        """Start the process and hand everything that needs closing to the worker."""
        with ExitStack() as given, ExitStack() as held:
            ours, theirs = socket.socketpair()
            held.callback(ours.close)
            given.callback(theirs.close)
            out_read, out_write = _pipe(held, given)
            err_read, err_write = _pipe(held, given)
            lifeline, ours_alive = _pipe(given, held)
            child = spawn(
                [str(environment.python), "-I", _GUEST, str(theirs.fileno()), str(lifeline)],
                workdir=setup.workdir,
                environment=_environment_variables(environment),
                stdout=out_write,
                stderr=err_write,
                pass_fds=(theirs.fileno(), lifeline),
            )
            held.callback(_end, child)

            def on_exit(status: int) -> None:
                os.close(ours_alive)
                worker.on_exit(status)

            def attach() -> None:
                process = GuestProcess(child, on_exit)
                channel = Channel(ours, worker.on_frame, worker.on_channel_end)
                stdout = OutputPipe(out_read, partial(worker.on_output, "stdout"))
                stderr = OutputPipe(err_read, partial(worker.on_output, "stderr"))
                worker.attach(channel, (stdout, stderr), process)

            # in an empty context: callbacks must not keep one caller's context variables alive
            Context().run(attach)
            held.pop_all()  # the worker closes them from now on

    async def run(self, request: RunRequest, on_event: OnEvent | None = None) -> RunOutcome:
        worker = self._live()
        if worker.death is not None:
            self._owes_notice |= not self._told_of_death
            worker = await self._replace(worker)
        self._told_of_death = False
        try:
            outcome = await worker.run(request, on_event)
        finally:
            # a loss that no outcome has told of yet is not forgotten by a cancelled run
            is_lost = worker.death is not None or self._owes_notice
            self.state = "lost" if is_lost else "kept"
            if worker.death is not None:
                self._told_of_death = True
                await to_the_end(worker.kill)
        if self._owes_notice:
            self._owes_notice = False
            if worker.death is None:
                note = (
                    "the worker had ended since the previous run: this run began without variables"
                )
                outcome = replace(outcome, state="lost", notes=(note, *outcome.notes))
        return outcome

    async def _replace(self, worker: Worker) -> Worker:
        await worker.kill()
        if self._state != "started":  # close() came meanwhile
            raise ExecutorClosed(self.name, self._state)
        self._started = anyio.Event()
        try:
            # close() cancels this, as it does a start: the new worker would be nobody's
            with anyio.CancelScope() as self._starting:
                worker = self._worker = await self._new_worker()
            if self._starting.cancelled_caught:
                raise ExecutorClosed(self.name, "closed")
        except (GuestDied, OSError) as error:
            raise EnvironmentFailed("a new worker could not be started", str(error)) from error
        finally:
            self._starting = None
            self._started.set()
        return worker

    async def exchange(self, message: Exchange) -> object:
        return await self._live().exchange(message)

    async def interrupt(self) -> bool:
        return self._live().stop("interrupted")

    async def reset(self) -> None:
        worker = self._live()
        if worker.death is not None:
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
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.close()
        try:
            environment = self._environment
            if environment is not None and environment.is_private:
                await environment.remove()
        finally:
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is not None:
                await supervisor.release()


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed by these."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _end(child: Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _environment_variables(environment: Environment) -> dict[str, str]:
    """What the guest sees of the host's environment: nothing that may hold a secret."""
    passed = {name: os.environ[name] for name in _PASSED_ON + _CERTIFICATES if name in os.environ}
    passed.update({name: value for name, value in os.environ.items() if name.startswith("LC_")})
    passed.update(_proxies(os.environ))
    passed.setdefault("LANG", "C.UTF-8")
    binaries = str(environment.python.parent)
    path = os.environ.get("PATH", os.defpath)
    return {
        **passed,
        "PATH": f"{binaries}{os.pathsep}{path}",
        "MPLBACKEND": "Agg",
        "VIRTUAL_ENV": str(Path(binaries).parent),
    }


def _proxies(variables: Mapping[str, str]) -> dict[str, str]:
    """Proxy settings, except those that carry a password."""
    return {
        name: value
        for name, value in variables.items()
        if name.lower() in _PROXIES and "@" not in value
    }


if sys.platform == "win32":  # pragma: no cover
    raise ImportError("the subprocess executor needs Linux or macOS; on Windows use WSL2")
