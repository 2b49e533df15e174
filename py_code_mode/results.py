"""Frozen data that crosses every layer: what a run gave, and how it failed.

Nothing here does I/O or knows where code ran.
"""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from py_code_mode.arguments import check_count
from py_code_mode.guest.snapshot import snapshot
from py_code_mode.guest.values import type_name
from py_code_mode.guest.variables import is_large

if TYPE_CHECKING:
    from collections.abc import Mapping

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

#: What became of the interpreter's variables: still there, put back to an earlier run, or gone.
State: TypeAlias = Literal["kept", "restored", "lost"]

_NO_METADATA: Mapping[str, JsonValue] = MappingProxyType({})


_MAX_SNAPSHOT = 8 << 10  # characters; models read it
_HTML, _SVG = "text/html", "image/svg+xml"
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
#: Applies to the frames of a page, too; those that show a text of the page itself are ``about:``.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; font-src data:; style-src 'unsafe-inline';"
    " frame-src about:; form-action 'none'; base-uri 'none'"
)
#: How a page that we write begins: nothing in it acts, or loads what is not in it.
PAGE_HEAD = (
    '<!doctype html><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
)

#: What made a run fail: its own code, its deadline, somebody's interrupt, a limit of the policy for
#: which the guest was ended, or the guest's death by itself.
Cause: TypeAlias = Literal["code", "timeout", "interrupt", "limit", "death"]
#: A limit of the policy.
Limit: TypeAlias = Literal["memory", "cpu", "processes", "disk", "file_size", "open_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run did not succeed.

    Attributes:
        type: name of the exception's class, or of the event: ``TimeoutError``, ``Interrupted``,
            ``GuestDied``.
        message: what the exception says, without its type.
        traceback: as Python prints it, the user's own lines only; empty where there is none.
        lineno: line of the run's own code that failed, counted from 1.
        cause: ``code``, or what came from outside it: ``timeout``, ``interrupt``, ``limit``,
            ``death``.
        limit: which one was hit, where the cause is ``limit``.
    """

    type: str
    message: str
    traceback: str = ""
    lineno: int | None = None
    cause: Cause = "code"
    limit: Limit | None = None

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

    def to_bundle(self) -> dict[str, str]:
        """What a notebook may show of a guest's output: nothing that could act in its page.

        Pictures and plain text are given as they are, HTML and SVG in a frame. Other forms (scripts
        and widgets, but Markdown and LaTeX too, which may hold HTML) are left out.
        """
        found = {"text/plain": self.text}
        for kind, body in self.data.items():
            if kind in _PICTURES and isinstance(body, bytes):
                found[kind] = base64.b64encode(body).decode()
        if _HTML in self.data or _SVG in self.data:
            found[_HTML] = self.to_html()
        return found

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self.to_bundle()

    def to_html(self) -> str:
        """The richest form as a part of a page, in which it can do nothing but be looked at."""
        for kind in (_HTML, _SVG):
            if kind in self.data:
                return frame(self.data[kind], kind)
        for kind in _PICTURES:
            body = self.data.get(kind)
            if isinstance(body, bytes):
                return f'<img src="{_data_url(kind, body)}" alt="{html.escape(self.text)}">'
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The bounded description of a value that a model may see: always valid JSON."""

    data: Mapping[str, JsonValue]

    @classmethod
    def from_guest(cls, data: Mapping[str, JsonValue], type_name: str) -> Snapshot:
        """What a guest says of a value; only its type, where it says more than an honest one."""
        found = cls(data=data)
        return found if len(found.to_text()) <= _MAX_SNAPSHOT else cls(data={"type": type_name})

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
        restored_to: the run whose variables are back, where state is ``restored``; 0 where they
            are those from before any run since the start or a reset.
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

        Frames, arrays and containers that are large are described, with a sample; texts are not.

        Args:
            max_tokens: bound of the text, in tokens of four UTF-8 bytes. What is left out is said.
        """
        check_count("max_tokens", max_tokens)
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
            when = f"after run {self.restored_to}" if self.restored_to else "before any run"
            parts.append(f"[variables are as they were {when}]")
        elif self.state == "lost":
            parts.append("[all variables are lost; define again what you need]")
        text = "\n".join(parts) or "[no output]"
        return shorten(text, 4 * max_tokens)

    def _repr_markdown_(self) -> str:
        text = self.to_text()
        # longer than any in the text, which could otherwise end the block and go on as HTML
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        return f"{fence}\n{text}\n{fence}"

    def _repr_html_(self) -> str:
        shown = [display.to_html() for display in self.displays]
        return "\n".join([f"<pre>{html.escape(self.to_text())}</pre>", *shown])


def frame(markup: str | bytes, kind: str, *, is_page: bool = False) -> str:
    """A guest's HTML or SVG as HTML that can neither run scripts, load anything, nor reach out.

    The frame is sandboxed (HTML Standard, section 4.8.5) with nothing allowed, so it has an origin
    of its own; a content-security policy allows only what is inside it. Without scripts, charts
    that are drawn by one stay empty.

    Args:
        kind: ``text/html`` or ``image/svg+xml``.
        is_page: give a whole page, for a file, instead of a part of one.
    """
    text = markup.decode("utf-8", "replace") if isinstance(markup, bytes) else markup
    rows = text.count("<tr")
    height = min(480, max(120, 60 + 26 * rows)) if rows else 360
    if kind == _SVG:  # as an image it is no part of the document, whatever is in it
        url = _data_url(kind, text.encode("utf-8", "replace"))
        text = f'<img src="{url}" alt="" style="max-width:100%">'
    inner = f"{PAGE_HEAD}<base target=_blank>{text}"
    style = "border:0;background:#fff;width:100%;"
    style += "height:100%" if is_page else f"height:{height}px;resize:vertical;overflow:auto"
    framed = (
        f'<iframe sandbox="" referrerpolicy="no-referrer" style="{style}" '
        f'srcdoc="{html.escape(inner)}"></iframe>'
    )
    if not is_page:
        return framed
    return f'{PAGE_HEAD}<body style="margin:0;height:100vh;overflow:hidden">{framed}\n'


def _data_url(kind: str, body: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"


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
    if is_large(value):
        return f"<{type_name(type(value))}> {Snapshot(data=snapshot(value)).to_text()}"
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
