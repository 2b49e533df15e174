"""Runs one cell in a session of its own, and tells how it went: output, value, exit status."""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, assert_never, cast

import anyio

from py_code_mode.cli.figures import FigureFolder
from py_code_mode.cli.loop import complete
from py_code_mode.cli.terminal import Screen, say, show_json, show_text
from py_code_mode.cli.values import as_json, show_value
from py_code_mode.execution.executor import Capability
from py_code_mode.results import Called, Output, Shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from py_code_mode.cli.place import Place
    from py_code_mode.results import Event, ExecutionResult, JsonValue
    from py_code_mode.sandbox.policy import Policy
    from py_code_mode.session import Session

OK: Final = 0
FAILED: Final = 1
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130
TERMINATED: Final = 143


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Code to run; `file` is where it was read from, absolute."""

    code: str
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comeback:
    """A session to go on with; the rest as `Session.resume` takes it."""

    session_id: str
    mode: Literal["restore", "replay"]
    on_ambiguous: Literal["skip", "raise", "rerun"]
    trusted: bool


class Terminated(BaseException):
    """SIGTERM came: everything is closed on the way out."""


def run_cell(
    cell: Cell, place: Place, *, figures: Path, as_json: bool, comeback: Comeback | None = None
) -> int:
    """Run a cell and print what it gave; the exit status.

    Args:
        comeback: run it in this session, instead of a new one.

    Raises:
        CodeModeError: the session could not be had.
        KeyboardInterrupt: Ctrl-C came before or after the run.
    """
    folder = FigureFolder(figures, quiet=as_json)
    session, policy = _session(place, cell.file, comeback)
    if not as_json and session.supports("process_isolation"):
        tell_of_first_environment()
    try:
        result, was_interrupted = complete(_run, session, policy, cell, folder, not as_json)
    except Terminated:
        return TERMINATED
    status = INTERRUPTED if was_interrupted and not result.is_ok else _status(result)
    if as_json:
        show_json(_report(result, folder))
        return status
    if result.is_ok:
        if result.value is not None and result.stdout and not result.stdout.endswith("\n"):
            print()
        show_value(result.value)
    _tell(result, status)
    return status


def tell_of_first_environment() -> None:
    """Say why the first worker on a machine takes so long to come."""
    from py_code_mode.environments import cache_root

    if not cache_root().is_dir():
        say("installing the worker's packages; this happens once and takes a while")


def _session(
    place: Place, file: Path | None, comeback: Comeback | None
) -> tuple[Session, Policy | None]:
    """The session, and the policy that is required of it."""
    from py_code_mode.execution.registry import executor_class
    from py_code_mode.session import Session
    from py_code_mode.storage import FileStorage
    from py_code_mode.workspace import read_config

    storage = FileStorage(place.base)
    said = read_config(storage.base_path)
    name, options = place.executor_options(said, file)
    if name == "in_process" and place.executor is None:
        say(f"note: {said.path} says `executor: in_process`: the code may do whatever you may")
    if name == "subprocess" and comeback is None:
        options["protect"] = "off"  # no run follows that a copy could be kept for
    executor = executor_class(name).from_options(**options)
    if comeback is None:
        session = Session(
            storage, executor, sync_deps_on_start=place.sync, workdir=place.workdir
        )  # fmt: skip
    else:
        session = Session.resume(
            comeback.session_id,
            storage=storage,
            executor=executor,
            mode=comeback.mode,
            on_ambiguous=comeback.on_ambiguous,
            trusted=comeback.trusted,
            sync_deps_on_start=place.sync,
            workdir=place.workdir,
        )
    return session, options.get("policy")


def _unheld(session: Session, policy: Policy | None) -> tuple[str, ...]:
    """What of a policy, required where it says so, this machine does not hold."""
    if policy is None or policy.disk is None or session.supports(Capability.DISK_LIMIT):
        return ()
    return ("disk space is not limited on this machine; `py-code-mode doctor` tells why",)


async def _run(
    session: Session, policy: Policy | None, cell: Cell, folder: FigureFolder, live: bool
) -> tuple[ExecutionResult, bool]:
    """The result, and whether it was Ctrl-C that ended the code."""
    out, err = Screen(sys.stdout), Screen(sys.stderr)

    async def on_output(event: Event) -> None:
        match event:
            case Output():
                if live:
                    await (out if event.kind == "stdout" else err).write(event.text)
            case Shown():
                folder.show(event.display)
            case Called():
                pass
            case _:
                assert_never(event)

    is_running = was_interrupted = False

    async def run() -> ExecutionResult:
        nonlocal is_running
        async with session:
            if cell.file is not None and session.supports("exchange"):
                await session.put("__file__", str(cell.file))
            is_running = True
            try:
                result = await session.run(cell.code, on_output=on_output)
                came_back = session.resumed.notes() if session.resumed is not None else ()
                notes = (*came_back, *_unheld(session, policy), *result.notes)
                return replace(result, notes=notes)
            finally:
                is_running = False
                if live:
                    await out.finish()
                    await err.finish()

    async def interrupt() -> bool:
        nonlocal was_interrupted
        was_interrupted = is_running and await session.interrupt()
        return was_interrupted

    result = await _with_signals(run, interrupt)
    return result, was_interrupted


async def _with_signals(
    run: Callable[[], Awaitable[ExecutionResult]], interrupt: Callable[[], Awaitable[bool]]
) -> ExecutionResult:
    """Await `run`; Ctrl-C interrupts what it runs, and the second one, or SIGTERM, cancels it."""
    stopped_by: type[BaseException] | None = None
    result: ExecutionResult | None = None
    failure: Exception | None = None

    async def watch(scope: anyio.CancelScope) -> None:
        nonlocal stopped_by
        interrupted = False
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for received in signals:
                if received == signal.SIGINT and not interrupted and await interrupt():
                    interrupted = True
                    continue
                stopped_by = KeyboardInterrupt if received == signal.SIGINT else Terminated
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, tasks.cancel_scope)
        try:
            result = await run()
        except Exception as error:  # given on below: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if result is None:
        raise stopped_by or KeyboardInterrupt
    return result


def _status(result: ExecutionResult) -> int:
    failure = result.failure
    if failure is None:
        return OK
    match failure.type:
        case "SystemExit":
            code = re.fullmatch(r"-?[0-9]{1,18}", failure.message)
            return int(code[0]) & 0xFF if code else FAILED
        case _:
            return TIMED_OUT if failure.cause == "timeout" else FAILED


def _tell(result: ExecutionResult, status: int) -> None:
    failure = result.failure
    if failure is not None and failure.type == "SystemExit":
        if not re.fullmatch(r"-?[0-9]{1,18}", failure.message):
            show_text(failure.message, sys.stderr)  # sys.exit("why"), as Python does
    elif failure is not None:
        was_stopped = status in (TIMED_OUT, INTERRUPTED)
        if failure.traceback:
            show_text(
                _without_last(failure.traceback) if was_stopped else failure.traceback, sys.stderr
            )
        if was_stopped or not failure.traceback:
            show_text(str(failure), sys.stderr)
    for note in result.notes:
        say(f"note: {note}")
    if result.state == "lost":
        say("note: all variables are lost")


def _without_last(traceback: str) -> str:
    """Without its last line, the KeyboardInterrupt by which the run was stopped."""
    lines = traceback.rstrip("\n").split("\n")
    return "\n".join(lines[:-1] if lines[-1].startswith("KeyboardInterrupt") else lines)


def _report(result: ExecutionResult, folder: FigureFolder) -> dict[str, JsonValue]:
    value, kind = as_json(result.value)
    failure = result.failure
    return {
        "ok": result.is_ok,
        "value": value,
        "value_kind": kind,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "error": result.error,
        "failure": None
        if failure is None
        else {
            "type": failure.type,
            "message": failure.message,
            "traceback": failure.traceback,
            "lineno": failure.lineno,
        },
        "state": result.state,
        "notes": list(result.notes),
        "duration": result.duration,
        "displays": cast("list[JsonValue]", folder.shown),
        "run_id": result.run_id,
    }
