"""Runs command line tools: no shell, an empty directory, next to no environment.

Promises: no value that a caller gives is ever read as an option or by a shell; when a call is over,
however it ended, its processes, descriptors and files are gone; output is bounded, and what was
left out is said.

A command sees PATH, HOME and TMPDIR (its own empty directory, which is also its current one and is
removed afterwards), LANG and LC_ALL (C.UTF-8), the variables that say how this host reaches the
network (proxies without passwords, certificates), and what its definition lists under ``env``.
A child that the command leaves behind is killed with it, unless it made a session of its own.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anyio
import anyio.lowlevel
import anyio.to_thread

from py_code_mode.errors import ToolArgumentError, ToolError, ToolFailed, ToolTimeout
from py_code_mode.stores.folders import remove_tree
from py_code_mode.tools.schema import ArgumentCheck, Command, Parameter, object_schema
from py_code_mode.tools.tool import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from py_code_mode.results import JsonValue

#: Seconds a command has to end after it was asked to, before it is killed.
TERMINATE_GRACE = 1.0
#: Seconds to wait for a killed process; only one stuck in the kernel takes longer.
KILL_GRACE = 5.0
#: Seconds that children of a command that has ended may still write to its pipes.
DRAIN_GRACE = 0.5
#: Bytes of standard error that an error shows.
STDERR_TAIL = 2048
#: Commands that run at the same time in one event loop; more wait their turn.
MAX_RUNNING = 32

_READ_SIZE = 1 << 18
#: Only where there is no pidfd: how often to look whether the command has ended.
_POLL = 0.02
_NETWORK = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")

_log = logging.getLogger(__name__)
_slots: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("command slots")


class CommandTool(Tool):
    """A command line tool.

    Args:
        command: what its file says.
        folder: what a program given as a relative path is relative to; None: such a path is
            refused at the call.
    """

    def __init__(self, command: Command, folder: Path | None = None) -> None:
        self.name = command.name
        self.description = command.description
        self.tags = command.tags
        self.recipes = {recipe.name: recipe.description for recipe in command.recipes}
        self.source, self.line = command.source, command.line
        self._command, self._folder = command, folder
        self._forms: dict[str | None, _Form] = {
            None: _Form(command.parameters, {}),
            **{recipe.name: _Form(recipe.parameters, recipe.fixed) for recipe in command.recipes},
        }

    def parameters(self, recipe: str | None = None) -> dict[str, JsonValue]:
        """The JSON Schema of its arguments, or of a recipe's."""
        return object_schema(self._forms[recipe].parameters)

    async def call(
        self, recipe: str | None, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> str:
        """Run the command and return its standard output.

        Cancelled, it returns when the command's processes are gone: within `TERMINATE_GRACE` plus
        `KILL_GRACE` seconds.
        """
        label = self.name if recipe is None else f"{self.name}.{recipe}"
        form = self._forms[recipe]

        def work(cancelled: int) -> str:
            values = form.complete(label, args, kwargs)
            argv = command_line(label, self._command, values)
            argv[0] = self._program(label)
            return _run(label, self._command, argv, cancelled)

        async with _limiter():
            return await _in_thread(work)

    def _program(self, label: str) -> str:
        program = os.path.expanduser(self._command.program[0])
        if os.sep in program and not os.path.isabs(program):
            if self._folder is None:
                raise ToolError(
                    label, f"the command {program!r} must be an absolute path or a name"
                )
            program = os.path.join(os.path.abspath(self._folder), program)
        found = shutil.which(program, path=_search_path())
        if found is None:
            where = "is not there, or not executable" if os.sep in program else "is not on the PATH"
            raise ToolError(
                label, f"the command {program!r} {where}; install it, or correct 'command'"
            )
        return found


class _Form:
    """The arguments that one way to call a command takes, made complete."""

    def __init__(self, parameters: Sequence[Parameter], fixed: Mapping[str, object]) -> None:
        self.parameters = parameters
        self._order = [parameter for parameter in parameters if parameter.is_positional]
        self._hidden = dict(fixed)
        self._defaults = {p.name: p.default for p in parameters if p.default is not None}
        self._check = ArgumentCheck(parameters)

    def complete(
        self, label: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> dict[str, object]:
        """Every value that the command gets, by parameter name.

        None means not given.
        """
        given = self._by_name(label, args)
        for name, value in kwargs.items():
            if name in given:
                raise ToolArgumentError(label, f"argument {name!r} is given twice")
            given[name] = value
        # A tuple is a list to whoever calls; JSON Schema knows lists only.
        plain = {
            name: list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
            for name, value in given.items()
            if value is not None or name not in self._names
        }
        self._check.check(label, plain)
        return self._hidden | self._defaults | plain

    @property
    def _names(self) -> set[str]:
        return {parameter.name for parameter in self.parameters}

    def _by_name(self, label: str, args: Sequence[object]) -> dict[str, object]:
        order = self._order
        if order and order[-1].type == "array" and len(args) >= len(order):
            rest = args[len(order) - 1 :]
            if len(rest) > 1 or not isinstance(rest[0], list | tuple):
                args = [*args[: len(order) - 1], list(rest)]
        if len(args) > len(order):
            takes = ", ".join(parameter.name for parameter in order) or "none"
            raise ToolArgumentError(
                label,
                f"{len(args)} positional arguments were given; it takes {takes} by position, "
                "others by name",
            )
        return {parameter.name: value for parameter, value in zip(order, args, strict=False)}


def command_line(tool: str, command: Command, values: Mapping[str, object]) -> list[str]:
    """The words that are run: the program, options, then positional values.

    Args:
        tool: what errors call it.
        values: by parameter name, already checked against the schema.

    Raises:
        ToolArgumentError: a value cannot be passed without being taken for something else.
    """
    words = list(command.program)
    positional: list[str] = []
    skipped: str | None = None
    for parameter in command.parameters:
        value = values.get(parameter.name)
        if parameter.is_positional:
            if value is None:
                skipped = skipped or parameter.name
                continue
            if skipped is not None:
                raise ToolArgumentError(
                    tool, f"{parameter.name!r} needs {skipped!r} too, which comes before it"
                )
            positional += _positional(tool, command, parameter, value)
        elif parameter.type == "boolean":
            if value is True:
                words.append(_spelling(parameter))
        elif value is not None:
            for item in _listed(value):
                words += _option(tool, parameter, _word(tool, parameter, item))
    if positional and command.takes_dashdash:
        words.append("--")
    return words + positional


def _positional(tool: str, command: Command, parameter: Parameter, value: object) -> list[str]:
    texts = [_word(tool, parameter, item) for item in _listed(value)]
    for text in texts:
        if text.startswith("-") and not command.takes_dashdash:
            raise ToolArgumentError(
                tool,
                f"{parameter.name!r} cannot begin with '-': {text[:40]!r} would be taken for an "
                "option (if the command understands `--`, its definition can say `dashdash: true`)",
            )
    return texts


def _spelling(parameter: Parameter) -> str:
    if parameter.long is not None:
        return "--" + parameter.long.removesuffix("=")
    return f"-{parameter.short}"


def _option(tool: str, parameter: Parameter, value: str) -> list[str]:
    spelling = _spelling(parameter)
    if parameter.long is not None:
        if parameter.long.endswith("=") or value.startswith("-"):
            return [f"{spelling}={value}"]
    elif value.startswith("-"):
        # getopt, argparse and the like take what is attached to be the value, whatever it is.
        if len(spelling) != 2:
            raise ToolArgumentError(
                tool,
                f"{parameter.name!r} cannot begin with '-': {value[:40]!r} would be taken for an "
                "option",
            )
        return [spelling + value]
    return [spelling, value]


def _listed(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]


def _word(tool: str, parameter: Parameter, value: object) -> str:
    if parameter.type == "integer" and isinstance(value, float):
        value = int(value)  # 2.0 is an integer to JSON Schema
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolArgumentError(tool, f"{parameter.name!r} must be a finite number, not {value}")
    text = str(value)
    if "\0" in text:
        raise ToolArgumentError(tool, f"{parameter.name!r} cannot hold a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ToolArgumentError(
            tool, f"{parameter.name!r} holds a lone surrogate, which no command can be given"
        ) from None
    return text


# --- the process --------------------------------------------------------------------------------


def _limiter() -> anyio.CapacityLimiter:
    limiter = _slots.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(MAX_RUNNING)
        _slots.set(limiter)
    return limiter


async def _in_thread(work: Callable[[int], str]) -> str:
    """Run `work` in a thread; cancelled, tell it by a readable descriptor and wait until it ends.

    All of a command's life is in one thread that cannot itself be cancelled, so there is no await
    between starting a process and being sure to end it. It also does not depend on how the event
    loop watches children, which differs between versions and hangs on inherited pipes in some.
    """
    results: list[str] = []
    failures: list[Exception] = []
    is_wanted = True
    done = anyio.Event()
    reader, writer = os.pipe()

    def guarded() -> None:
        try:
            if is_wanted:
                results.append(work(reader))
        except Exception as error:
            failures.append(error)

    async def thread() -> None:
        with anyio.CancelScope(shield=True):
            try:
                await anyio.to_thread.run_sync(guarded, limiter=anyio.CapacityLimiter(1))
            finally:
                done.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(thread)
            try:
                await done.wait()
            except anyio.get_cancelled_exc_class():
                is_wanted = False
                os.write(writer, b"x")
                raise
    finally:
        os.close(reader)
        os.close(writer)
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()  # the traceback would hold the frame that holds it
    return results[0]


@dataclass(slots=True, kw_only=True)
class _Output:
    """What is kept of a stream: its beginning or its end."""

    limit: int
    keeps_end: bool = False
    total: int = 0
    kept: bytearray

    def add(self, data: bytes) -> None:
        self.total += len(data)
        if self.keeps_end:
            self.kept += data
            if len(self.kept) > self.limit:
                del self.kept[: -self.limit]
        elif len(self.kept) < self.limit:
            self.kept += data[: self.limit - len(self.kept)]

    def text(self) -> str:
        if self.total <= self.limit:
            return self.kept.decode("utf-8", "replace")
        if self.keeps_end:
            # The first bytes may be the rest of a character.
            start = next((n for n, byte in enumerate(self.kept[:4]) if byte & 0xC0 != 0x80), 0)
            return self.kept[start:].decode("utf-8", "replace")
        # Without `final`, a character that was cut is left out rather than replaced.
        return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self.kept))


def _run(label: str, command: Command, argv: list[str], cancelled: int) -> str:
    """The command's standard output; `cancelled` becomes readable when nobody wants it any more."""
    out = _Output(limit=command.max_output, kept=bytearray())
    err = _Output(limit=STDERR_TAIL, keeps_end=True, kept=bytearray())
    folder = tempfile.mkdtemp(prefix="py-code-mode-tool-")
    try:
        ending, code = _converse(label, command, argv, folder, cancelled, out, err)
    finally:
        _remove(folder)
    if ending == "timeout":
        assert command.timeout is not None
        raise ToolTimeout(label, command.timeout)
    if ending == "cancelled":
        return ""  # nobody reads it
    text = out.text()
    if code != 0:
        raise ToolFailed(label, _exit_reason(code, text, err), code, err.text())
    if out.total > out.limit:
        left = out.total - out.limit
        text += f"\n[{left:,} bytes left out; the first {out.limit:,} are kept]"
    return text


def _exit_reason(code: int, stdout: str, err: _Output) -> str:
    if code < 0:
        try:
            reason = f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            reason = f"was ended by signal {-code}"
    else:
        reason = f"exited with status {code}"
    if not err.kept.strip() and stdout.strip():
        # Not a few programs report what went wrong on standard output.
        reason += f"; its output ends: {stdout.rstrip()[-500:]}"
    return reason


def _converse(
    label: str,
    command: Command,
    argv: list[str],
    folder: str,
    cancelled: int,
    out: _Output,
    err: _Output,
) -> tuple[str, int]:
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
            env=_environment(command, folder),
            start_new_session=True,
        )
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise ToolArgumentError(
                label, "the arguments are longer than the system allows"
            ) from error
        raise ToolError(label, f"{argv[0]} could not be started: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        assert process.stdout is not None
        assert process.stderr is not None
        stack.enter_context(process.stdout)
        stack.enter_context(process.stderr)
        # Last in, first out: whatever happens below, first the group is ended.
        stack.callback(_end, process)
        streams = {process.stdout.fileno(): out, process.stderr.fileno(): err}
        watch = stack.enter_context(_Watch(process, streams, cancelled))
        ending = watch.until_exit(command.timeout)
        if ending != "exit":
            _signal(process, signal.SIGTERM)
            watch.until_exit(TERMINATE_GRACE, heeds_cancel=False)
        else:
            watch.drain(DRAIN_GRACE)
        _end(process)
        watch.drain(0)
    return ending, process.returncode if process.returncode is not None else -signal.SIGKILL


class _Watch:
    """Reads a process's pipes while it waits for the process, a deadline and a cancellation."""

    def __init__(
        self, process: subprocess.Popen[bytes], streams: Mapping[int, _Output], cancelled: int
    ) -> None:
        self._process, self._streams, self._cancelled = process, streams, cancelled
        self._open = set(streams)
        self._selector = selectors.PollSelector()
        self._exit_fd = _pidfd(process)
        for descriptor in streams:
            os.set_blocking(descriptor, False)
            self._selector.register(descriptor, selectors.EVENT_READ)
        if self._exit_fd is not None:
            self._selector.register(self._exit_fd, selectors.EVENT_READ)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        if self._exit_fd is not None:
            os.close(self._exit_fd)

    def until_exit(self, timeout: float | None, *, heeds_cancel: bool = True) -> str:
        """Read until the process ends (``exit``), the ``timeout``, or it is ``cancelled``.

        The ended process is left unreaped, so that its id, and with it its group's, stays taken.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if heeds_cancel:
            self._selector.register(self._cancelled, selectors.EVENT_READ)
        try:
            while True:
                if self._exit_fd is None and _has_ended(self._process):
                    return "exit"
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timeout"
                longest = left if self._exit_fd is not None else min(left, _POLL)
                ready = self._read(None if longest == math.inf else longest)
                if self._cancelled in ready:
                    return "cancelled"
                if self._exit_fd is not None and self._exit_fd in ready:
                    return "exit"
        finally:
            if heeds_cancel:
                self._selector.unregister(self._cancelled)

    def drain(self, grace: float) -> None:
        """Read what there is, and for at most `grace` seconds what still comes."""
        if self._exit_fd is not None and self._exit_fd in self._selector.get_map():
            self._selector.unregister(self._exit_fd)
        deadline = time.monotonic() + grace
        while self._open:
            left = max(0.0, deadline - time.monotonic())
            if not self._read(left) and left == 0:
                return
            if left == 0 and time.monotonic() > deadline + DRAIN_GRACE:
                return  # something that escaped the group keeps writing

    def _read(self, timeout: float | None) -> set[int]:
        ready = {key.fd for key, _ in self._selector.select(timeout)}
        for descriptor in ready & self._open:
            try:
                data = os.read(descriptor, _READ_SIZE)
            except BlockingIOError:
                continue
            if data:
                self._streams[descriptor].add(data)
            else:
                self._selector.unregister(descriptor)
                self._open.discard(descriptor)
        return ready


def _pidfd(process: subprocess.Popen[bytes]) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(process.pid)
    except OSError:  # an old kernel, or one that forbids it: look from time to time instead
        return None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended; where the system can tell, without reaping it."""
    if not hasattr(os, "waitid"):
        if process.poll() is None:
            return False
        # Reaped. A group that still has members keeps its id, so this reaches only them.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the command and all it started; its group is its own, as is its session."""
    if process.returncode is not None:
        return  # reaped: the id may belong to somebody else by now
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # nothing left of it, or only what is dead already (macOS says it that way)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the command and reap it."""
    _signal(process, signal.SIGKILL)
    try:
        process.wait(KILL_GRACE)
    except subprocess.TimeoutExpired:
        _log.warning("process %d was killed but has not ended; it is left behind", process.pid)


def _search_path() -> str:
    """The host's PATH without relative entries: a command's directory is not to be trusted."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if os.path.isabs(entry))


def _environment(command: Command, folder: str) -> dict[str, str]:
    environment = {
        "PATH": _search_path(),
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
    }
    for name in (*_NETWORK, *map(str.upper, _NETWORK)):
        value = os.environ.get(name)
        if value is not None and "@" not in value:  # else it holds a password
            environment[name] = value
    for name in (*_CERTIFICATES, *command.env):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _remove(folder: str) -> None:
    if not remove_tree(Path(folder)):
        _log.warning("the temporary directory %s could not be removed", folder)
