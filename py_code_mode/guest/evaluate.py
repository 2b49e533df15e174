"""Evaluates cells: written once for every executor.

An `Interpreter` owns one namespace. It knows nothing of processes, sockets or threads; whoever
drives it captures output, interrupts it (with a KeyboardInterrupt) and carries its values away.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType, TracebackType

from .holdings import Holdings, sketch
from .source import cell_mark, compile_cell, find_classes_of, forget, forget_module, remember
from .variables import Variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    import traceback
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from types import FrameType
    from typing import Any

    from .saving import Saved
    from .source import Cell

#: Folders whose frames no traceback shows: they are ours.
hidden_folders = [os.path.dirname(os.path.abspath(__file__)) + os.sep]
_OUR_ERRORS = f"{__name__.rpartition('.')[0]}.errors."
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 20_000
#: Frames shown of a traceback that has more than ten times as many: the innermost.
MAX_FRAMES = 200


class Outcome:
    """What a cell gave, still as live objects.

    Attributes:
        value: of the last expression; None where there is none.
        failure: what went wrong as JSON values (type, message, traceback, lineno), or None.
        notes: what the user should know besides.
        made: large variables that the cell made or changed, as `holdings.sketch` tells of them.
        gone: names of those that are no longer there, or no longer large.
    """

    __slots__ = ("failure", "gone", "made", "notes", "value")

    def __init__(self) -> None:
        self.value: object = None
        self.failure: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.gone: list[str] = []


class Interpreter:
    """A namespace that cells are evaluated in, one after the other.

    Args:
        module_name: ``sys.modules`` entry that owns the namespace, so that classes and functions
            of cells pickle. ``__main__`` where the process belongs to the session.
        reserved: names that every run finds and `reset` puts back (the namespaces, ``display``).
        holdings: what there is of the session's handles.
    """

    def __init__(
        self, module_name: str, reserved: Mapping[str, object], holdings: Holdings | None = None
    ) -> None:
        self.module = ModuleType(module_name)
        self._module_name = module_name
        self._owns_main = module_name == "__main__"
        self._reserved = dict(reserved)
        #: what a sandbox shows, by which its refusals are explained; None where there is none
        self.shown: Mapping[str, Any] | None = None
        self._flags = 0
        self._last: object = None
        self._variables = Variables()
        self.holdings = holdings or Holdings()
        self.holdings.variables = self.globals
        sys.modules[module_name] = self.module
        self._fill()
        find_classes_of(module_name)
        self._mark = cell_mark(module_name)

    @property
    def globals(self) -> dict[str, Any]:
        return self.module.__dict__

    @property
    def reserved(self) -> Mapping[str, object]:
        return self._reserved

    def reset(self) -> None:
        """Forget every user variable; put the reserved names back."""
        self.globals.clear()
        self.holdings.forget()
        self._variables.forget()
        self._last = None
        self._flags = 0
        self._fill()

    def _fill(self) -> None:
        import builtins

        self.globals.update(
            __name__=self._module_name, __builtins__=builtins, __doc__=None, __spec__=None
        )
        self.globals.update(self._reserved)

    def bind(self, name: str, value: object, version: int) -> None:
        """Make a handle's value a variable."""
        self.holdings.bind(name, value, version)
        self._variables.note(name, value)

    def save(self, limit: int) -> Saved:
        """The user's variables as bytes for another day."""
        from .saving import save

        return save(self.globals, self._reserved, limit)

    def load(self, parts: Sequence[Any]) -> list[str]:
        """Put saved variables back; gives their names.

        Raises:
            Unloadable: they cannot be; nothing has changed.
        """
        from .saving import load

        return load(self.globals, self._reserved, parts)

    def run(self, source: str, run_id: int) -> Outcome:
        """Evaluate one cell. Never raises, except when it is interrupted a second time."""
        outcome = Outcome()
        filename = f"<run {run_id}{self._mark}"
        cell: Cell | None = None
        try:
            cell = compile_cell(
                source,
                filename,
                flags=self._flags,
                main_name=None if self._owns_main else "__main__",
            )
            self._flags = cell.flags
            if cell.is_async:
                outcome.value = run_async(self._execute_async(cell), outcome.notes)
            else:
                if cell.body is not None:
                    exec(cell.body, self.globals)
                if cell.value is not None:
                    outcome.value = eval(cell.value, self.globals)
            self._remember_last(outcome.value)
        except SystemExit as error:
            if error.code not in (None, 0):
                outcome.failure = self._describe(error)
        except BaseException as error:
            outcome.failure = self._describe(error)
            if self.shown is not None:
                from .denied import explain

                explanation = explain(error, self.shown)
                if explanation is not None:
                    outcome.notes.append(explanation)
        made, outcome.gone = self._variables.after_run(self.globals, source)
        outcome.made = [sketch(name, value) for name, value in made.items()]
        # 10,000 small runs must not leave 10,000 sources behind
        if outcome.failure is None and (cell is None or not cell.defines):
            forget(filename)
        return outcome

    async def _execute_async(self, cell: Cell) -> object:
        value: object = None
        for code in cell.parts:
            if code is not None:
                value = eval(code, self.globals)
                if code.co_flags & 0x0080:  # inspect.CO_COROUTINE
                    coroutine: Any = value
                    value = await coroutine
        return value if cell.value is not None else None

    def _describe(self, error: BaseException) -> dict[str, Any]:
        failure = describe(error)
        if self._mark != ">":
            for part in ("message", "traceback"):
                failure[part] = failure[part].replace(self._mark, ">")
        return failure

    def load_workflow(self, name: str, source: str) -> Callable[..., object]:
        """Define a workflow's source in fresh globals; give its function ``run``."""
        filename = f"<workflow {name}{self._mark}"
        remember(filename, source)
        namespace: dict[str, Any] = {"__name__": f"workflow {name}", **self._reserved}
        exec(compile(source, filename, "exec", dont_inherit=True), namespace)
        return namespace["run"]

    def close(self) -> None:
        """Let go of what the whole process keeps for this namespace."""
        sys.modules.pop(self._module_name, None)
        forget_module(self._module_name)

    def _remember_last(self, value: object) -> None:
        """Bind ``_`` as a Python shell does, unless the user made a ``_`` of their own."""
        if value is not None and self.globals.get("_", self._last) is self._last:
            self.globals["_"] = self._last = value


def run_async(coroutine: Coroutine[Any, Any, object], notes: list[str]) -> object:
    """Run on a fresh event loop; cancel what is still pending at the end, and note its names."""
    import asyncio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    main = loop.create_task(coroutine, name="cell")
    try:
        return loop.run_until_complete(main)
    except KeyboardInterrupt as error:
        if main.done():
            raise
        # it hit the loop while it waited: say where the cell was
        raise error.with_traceback(_where(coroutine)) from None
    finally:
        try:
            _cancel_all(loop, main, notes)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _where(coroutine: Any) -> TracebackType | None:
    """The traceback of a coroutine that is suspended, outermost frame first."""
    frames: list[FrameType] = []
    while getattr(coroutine, "cr_frame", None) is not None:
        frames.append(coroutine.cr_frame)
        coroutine = coroutine.cr_await
    step = None
    for frame in reversed(frames):
        step = TracebackType(step, frame, frame.f_lasti, frame.f_lineno)
    return step


def _cancel_all(loop: Any, main: Any, notes: list[str]) -> None:
    import asyncio

    pending = asyncio.all_tasks(loop)
    if not pending:
        return
    names = sorted(task.get_name() for task in pending if task is not main)
    if names:
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        notes.append(f"cancelled {len(names)} asyncio task(s) still pending at the end: {shown}")
    for task in pending:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))


def describe(error: BaseException) -> dict[str, Any]:
    """A failure as JSON values: the user's own lines, none of ours."""
    import traceback  # here: a worker's start is quicker without it

    kind = type(error)
    try:
        message = _message(error)
        # a recursion may have left a million frames: reading the source of each takes seconds
        limit = -MAX_FRAMES if _is_deep(error) else None
        report = traceback.TracebackException(kind, error, error.__traceback__, limit=limit)
        _keep_user_frames(report, set(), outermost=limit is None)
        text = "".join(report.format()).replace(_OUR_ERRORS, "")
    except RecursionError:
        # formatting needs stack too; the exception itself has unwound most of it by now
        message, text = _message(error), ""
    return {
        "type": kind.__qualname__,
        "message": _shorten(_printable(message), MAX_MESSAGE),
        "traceback": _shorten(_printable(text), MAX_TRACEBACK),
        "lineno": _line_of(error),
    }


def _is_deep(error: BaseException) -> bool:
    step, depth = error.__traceback__, 0
    while step is not None and depth <= 10 * MAX_FRAMES:
        step, depth = step.tb_next, depth + 1
    return depth > 10 * MAX_FRAMES


def _message(error: BaseException) -> str:
    try:
        if isinstance(error, SyntaxError):
            where = f" ({error.filename}, line {error.lineno})" if error.lineno else ""
            return f"{error.msg}{where}"
        return str(error)
    except BaseException as second:  # a user's own __str__
        if isinstance(second, KeyboardInterrupt):
            raise
        return f"<{type(error).__name__}.__str__ raised {type(second).__name__}>"


def _printable(text: str) -> str:
    """Lone surrogates as print() would show them: they are not text that anyone could send on."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_cell(filename: str) -> bool:
    return filename.startswith(("<run ", "<workflow "))


def _keep_user_frames(
    report: traceback.TracebackException, seen: set[int], *, outermost: bool
) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    ours = tuple(hidden_folders)
    frames = [frame for frame in report.stack if not frame.filename.startswith(ours)]
    if outermost:
        # what lies before the user's first line (an event loop that we started) is ours too
        first = next((i for i, frame in enumerate(frames) if _is_cell(frame.filename)), None)
        frames = frames[first:] if first is not None else []
    report.stack[:] = frames
    for linked in (report.__cause__, report.__context__):
        if linked is not None:
            _keep_user_frames(linked, seen, outermost=False)
    for member in getattr(report, "exceptions", None) or ():
        _keep_user_frames(member, seen, outermost=False)


def _line_of(error: BaseException) -> int | None:
    if isinstance(error, SyntaxError) and error.filename and _is_cell(error.filename):
        return error.lineno
    line = None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename.startswith("<run "):
            line = step.tb_lineno
        step = step.tb_next
    return line


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    left_out = len(text) - limit
    return f"{text[: limit // 2]}\n… {left_out} characters left out …\n{text[-limit // 2 :]}"
