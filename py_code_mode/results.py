"""Frozen data that crosses every layer: what a run gave, and how it failed.

Nothing here does I/O or knows where code ran.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

#: What became of the interpreter's variables: still there, put back to an earlier run, or gone.
State: TypeAlias = Literal["kept", "restored", "lost"]

_NO_METADATA: Mapping[str, JsonValue] = MappingProxyType({})


#: What made a run fail: its own code, its deadline, somebody's interrupt, or the guest's death.
Cause: TypeAlias = Literal["code", "timeout", "interrupt", "death"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run did not succeed.

    Attributes:
        type: name of the exception's class, or of the event: ``TimeoutError``, ``Interrupted``,
            ``GuestDied``.
        message: what the exception says, without its type.
        traceback: as Python prints it, the user's own lines only; empty where there is none.
        lineno: line of the run's own code that failed, counted from 1.
        cause: ``code``, or what came from outside it: ``timeout``, ``interrupt``, ``death``.
    """

    type: str
    message: str
    traceback: str = ""
    lineno: int | None = None
    cause: Cause = "code"

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """One rich output: a figure, an image, HTML, or what ``display()`` was given.

    Attributes:
        data: the same thing by MIME type; text types are `str`, all others `bytes`.
        metadata: as Jupyter's display metadata.
    """

    data: Mapping[str, str | bytes]
    metadata: Mapping[str, JsonValue] = field(default_factory=lambda: _NO_METADATA)

    @property
    def text(self) -> str:
        """The plain text form, or a note of what there is instead."""
        plain = self.data.get("text/plain")
        return plain if isinstance(plain, str) else f"<{', '.join(self.data)}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            kind: base64.b64encode(body).decode() if isinstance(body, bytes) else body
            for kind, body in self.data.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The bounded description of a value that a model may see: always valid JSON."""

    data: Mapping[str, JsonValue]

    def to_text(self) -> str:
        """The description as compact JSON."""
        return json.dumps(dict(self.data), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """A name for a value that stayed where it is; `snapshot` describes it.

    Attributes:
        name: by which the session finds the value again.
        type_name: qualified name of the value's class.
    """

    name: str
    type_name: str
    snapshot: Snapshot

    def __repr__(self) -> str:
        return f"<Handle {self.name}: {self.type_name}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """What threads and children did between two runs; delivered with the later one."""

    stdout: str = ""
    stderr: str = ""
    displays: tuple[Display, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stdout or self.stderr or self.displays)


@dataclass(frozen=True, slots=True)
class Output:
    """Text that guest code wrote; an event."""

    kind: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure, image, HTML or other rich output; an event."""

    display: Display
    kind: Literal["display"] = "display"


@dataclass(frozen=True, slots=True)
class Called:
    """Guest code called a method of a namespace; an event."""

    namespace: str
    method: str
    kind: Literal["call"] = "call"


#: What `Session.run` tells its `on_output` while a run goes on.
Event: TypeAlias = Output | Shown | Called

_NO_HANDLES: Mapping[str, Snapshot] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """What one run gave.

    Attributes:
        value: the value of the last expression: the object itself where it crosses without loss,
            else a `Handle`. None where the last statement is not an expression.
        stdout: captured standard output, bounded; what was left out is said in the text.
        stderr: the same for standard error.
        error: one line that says what failed; None on success. `failure` has the traceback.
        displays: figures, images, HTML and what ``display()`` was given, in order.
        handles: new or changed large variables by name, as snapshots.
        state: what became of the variables.
        restored_to: the run whose variables are back, where state is ``restored``.
        duration: seconds from the start of execution to its end; waiting in the queue not counted.
        run_id: counted from 1 within a session; the traceback's file is ``<run N>``.
        late: output of threads and children since the previous run.
        notes: what the user should know besides: tasks cancelled, calls cut off.
        recorded: whether this run is in the session's journal.
    """

    value: object = None
    stdout: str = ""
    error: str | None = None
    stderr: str = ""
    displays: tuple[Display, ...] = ()
    handles: Mapping[str, Snapshot] = field(default_factory=lambda: _NO_HANDLES)
    state: State = "kept"
    restored_to: int | None = None
    failure: Failure | None = None
    duration: float = 0.0
    run_id: int = 0
    late: Late = field(default_factory=Late)
    notes: tuple[str, ...] = ()
    recorded: bool = False

    @property
    def is_ok(self) -> bool:
        """True if no error."""
        return self.error is None

    def to_text(self, max_tokens: int = 4000) -> str:
        """What a model should see: output, value, error and state, within a budget.

        Args:
            max_tokens: bound of the text, in tokens of four UTF-8 bytes. What is left out is said.
        """
        parts: list[str] = []
        if self.late:
            parts += _section("output since the previous run", self.late.stdout + self.late.stderr)
        parts += [self.stdout.rstrip("\n")] if self.stdout.strip() else []
        parts += _section("stderr", self.stderr)
        for display in self.displays:
            parts.append(_describe_display(display))
        if self.value is not None:
            parts.append(_describe_value(self.value))
        if self.failure is not None:
            if self.failure.traceback:
                parts.append(self.failure.traceback.rstrip())
            if self.failure.cause != "code" or not self.failure.traceback:
                parts.append(str(self.failure))
        parts += [f"[{note}]" for note in self.notes]
        if self.state == "restored":
            parts.append(f"[variables are those after run {self.restored_to}]")
        elif self.state == "lost":
            parts.append("[all variables are lost; define again what you need]")
        text = "\n".join(parts) or "[no output]"
        return shorten(text, 4 * max_tokens)

    def _repr_markdown_(self) -> str:
        return f"```\n{self.to_text()}\n```"


def _section(title: str, text: str) -> list[str]:
    return [f"[{title}]\n{text.rstrip()}"] if text.strip() else []


def _describe_display(display: Display) -> str:
    kinds = [kind for kind in display.data if kind != "text/plain"]
    plain = display.data.get("text/plain")
    shown = f"[display: {', '.join(kinds)}]" if kinds else ""
    return "\n".join(part for part in (shown, plain if isinstance(plain, str) else "") if part)


def _describe_value(value: object) -> str:
    if isinstance(value, Handle):
        return f"<{value.type_name}> {value.snapshot.to_text()}"
    if isinstance(value, str):
        return repr(value) if len(value) < 200 and "\n" not in value else value
    try:
        return repr(value)
    except Exception as error:  # a live object of user code, in an in-process session
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"


def shorten(text: str, max_bytes: int) -> str:
    """Cut the middle out of a text that is too long, and say how much is gone."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= max_bytes:
        return text
    note = f"\n… {len(data) - max_bytes} bytes left out …\n"
    room = max(max_bytes - len(note.encode()), 0)
    head = data[: room * 2 // 3].decode("utf-8", "ignore")
    tail = data[len(data) - room // 3 :].decode("utf-8", "ignore") if room >= 3 else ""
    return f"{head}{note}{tail}"
