"""A journal as Markdown, JSON, a page of HTML, or a Jupyter notebook.

Promises: what is given is bounded, however large the journal and its blobs are, and says what was
left out. What a guest wrote stays text: in Markdown it is fenced, in HTML escaped, its own HTML and
SVG stand in sandboxed frames. Nothing needs the session, its tools, or the network.
"""

# Values of records are Any: trees of JSON.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import ast
import html
import json
import keyword
import re
from typing import TYPE_CHECKING, Any, Final

from py_code_mode.arguments import check_type
from py_code_mode.errors import CodeModeError
from py_code_mode.journal import records
from py_code_mode.journal.blobs import is_ref
from py_code_mode.journal.loader import Journal
from py_code_mode.results import PAGE_HEAD, Display, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from py_code_mode.journal.loader import RecordedRun

__all__ = ["MAX_EXPORT", "to_html", "to_json", "to_markdown", "to_notebook"]

#: Bytes of one text.
MAX_TEXT: Final = 200_000
#: Bytes of one value or picture that is in a blob.
MAX_VALUE: Final = 16 << 20
#: Bytes of all that is in blobs, and of all texts, together.
MAX_EXPORT: Final = 256 << 20
_MAX_RECORDED = 1 << 20  # characters of one tool's result in a notebook

#: A run of these may have gone on for ever, or have ended its process: it is not for executing.
_UNSAFE = frozenset({"timeout", "cancelled", "crashed"})
_CRASHED = "[the process died during this run: how it ended is unknown]"
_STYLE = """
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:2rem 0 .4rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{color:#666}dd{margin:0}
pre{background:#f6f6f6;padding:.6rem .8rem;overflow:auto;margin:.4rem 0;white-space:pre-wrap;
overflow-wrap:anywhere}
pre.code{background:#eef3f8}pre.error{background:#fdf0ee}
.undone{opacity:.55}.note{color:#666;font-size:.9rem}img{max-width:100%}
</style>
"""


class _Room:
    """How much may still be given."""

    def __init__(self, journal: Journal) -> None:
        check_type("export", "journal", journal, Journal)
        self._journal = journal
        self._left = MAX_EXPORT

    def takes(self, size: int) -> bool:
        """Whether there is room for so many bytes; they are taken then."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def text(self, text: str) -> str:
        """A text that can be encoded, cut in its middle where it is too long."""
        text = text.encode("utf-8", "backslashreplace").decode()
        text = shorten(text, MAX_TEXT)
        return text if self.takes(len(text)) else f"[{len(text)} characters left out]"

    def value(self, tree: Any) -> Any:
        """A recorded value with what its blobs hold; what they do not is described."""
        if isinstance(tree, list | tuple):
            return [self.value(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if not is_ref(tree):
            return {key: self.value(item) for key, item in tree.items()}
        size = tree.get("size")
        if not isinstance(size, int) or size > MAX_VALUE or not self.takes(size):
            return {"$repr": f"<{size} bytes left out>"}
        try:
            found = self._journal.expand(tree)
        except CodeModeError:
            return {"$repr": "<a blob that is damaged, or cannot be read>"}
        return records.plain(found) if isinstance(found, bytes) else found

    def shown(self, tree: Any) -> str | None:
        """A value as Python shows it; None for None."""
        found = self.value(tree)
        if found is None:
            return None
        if isinstance(found, dict) and len(found) == 1:
            for tag in ("$repr", "$snapshot"):
                if tag in found:
                    told = found[tag]
                    return self.text(told if isinstance(told, str) else json.dumps(told))
        return self.text(repr(records.restore(found)))

    def displays(self, raw: Any) -> Iterator[Display]:
        """Recorded displays; what is wrong with one is told in its place."""
        for each in raw if isinstance(raw, list | tuple) else ():
            data = each.get("data") if isinstance(each, dict) else None
            found: dict[str, str | bytes] = {}
            for kind, body in data.items() if isinstance(data, dict) else ():
                tree = self.value(body)
                value = records.restore(tree)
                if isinstance(value, str):
                    found[kind] = self.text(value) if kind == "text/plain" else _clean(value)
                elif isinstance(value, bytes):
                    found[kind] = value
                elif isinstance(tree, dict) and isinstance(tree.get("$repr"), str):
                    found.setdefault("text/plain", f"{kind}: {_clean(tree['$repr'])}")
            yield Display(data=found or {"text/plain": "<an empty display>"})


def to_markdown(journal: Journal) -> str:
    """The session for people, and models, to read: all runs in order, undone ones marked."""
    room = _Room(journal)
    lines = [f"# {_inline(_title(journal))}", ""]
    lines += [f"- {name}: {_inline(value)}" for name, value in _facts(journal)]
    for item in _story(journal):
        lines.append("")
        if isinstance(item, records.Record):
            title, text = _told(item, room)
            lines.append(f"## {_inline(title)}" if text else f"*{_inline(title)}*")
            lines += ["", _fenced(text)] if text else []
            continue
        lines += [f"## {_inline(_heading(item))}", "", _fenced(room.text(item.code), "python")]
        lines += [""] if item.calls else []
        lines += [f"- called {_inline(_called(call))}" for call in item.calls]
        for label, text in _texts(item, room):
            lines += ["", f"{label}:", "", _fenced(text)]
        for display in room.displays(item.displays):
            kinds = ", ".join(sorted(display.data))
            lines += ["", f"displayed ({_inline(kinds)}):", "", _fenced(room.text(display.text))]
    return "\n".join(lines) + "\n"


def to_json(journal: Journal) -> str:
    """The session as one JSON object: its facts, runs, calls, messages, and what is wrong with it.

    Values are as the journal has them (see `records.plain`), with what their blobs hold.
    """
    room = _Room(journal)

    def told(record: records.Record | records.Foreign) -> Any:
        return room.value(records.to_dict(record))

    found: dict[str, Any] = {
        "format": "py-code-mode session",
        "version": 1,
        "id": journal.id,
        "status": _status(journal),
        "updated_at": journal.updated_at,
        "header": told(journal.header),
        "runs": [
            {
                "run_id": run.run_id,
                "session_id": run.session_id,
                "status": run.status,
                "is_live": run.is_live,
                "intent": None if run.intent is None else told(run.intent),
                "outcome": None if run.outcome is None else told(run.outcome),
                "calls": [told(call) for call in run.calls],
            }
            for run in journal.runs
        ],
        "events": [told(event) for event in journal.events],
        "turns": [told(turn) for turn in journal.turns],
        "transitions": [told(transition) for transition in journal.transitions],
        "chunks": [told(chunk) for chunk in journal.chunks],
        "saved_states": [
            {"saved_state_id": state.saved_state_id, "at_run": state.at_run, "ts": state.ts}
            for state in journal.saved_states
        ],
        "trailer": None if journal.trailer is None else told(journal.trailer),
        "problems": [
            {"line": each.line, "offset": each.offset, "reason": each.reason}
            for each in journal.problems
            if not each.is_accepted
        ],
    }
    return json.dumps(found, indent=2, allow_nan=False, default=records.plain) + "\n"


def to_html(journal: Journal) -> str:
    """The session as one page, with its pictures, that loads nothing and runs no script."""
    room = _Room(journal)
    title = html.escape(_clean(_title(journal)))
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(_clean(value))}</dd>"
        for name, value in _facts(journal)
    )
    parts = [PAGE_HEAD, f"<title>{title}</title>{_STYLE}<h1>{title}</h1><dl>{facts}</dl>"]
    for item in _story(journal):
        if isinstance(item, records.Record):
            title, text = _told(item, room)
            parts.append(
                f"<h2>{html.escape(_clean(title))}</h2>{_pre(text)}"
                if text
                else f'<p class="note">{html.escape(_clean(title))}</p>'
            )
            continue
        kind = "run" if item.is_live else "run undone"
        parts.append(f'<section class="{kind}"><h2>{html.escape(_clean(_heading(item)))}</h2>')
        parts.append(_pre(room.text(item.code), "code"))
        parts += [
            f'<p class="note">called {html.escape(_clean(_called(call)))}</p>'
            for call in item.calls
        ]
        for label, text in _texts(item, room):
            parts.append(f'<p class="note">{label}</p>{_pre(text, label)}')
        for display in room.displays(item.displays):
            size = sum(len(body) for body in display.data.values())
            parts.append(display.to_html() if room.takes(size) else _pre(_clean(display.text)))
        parts.append("</section>")
    return "\n".join(parts) + "\n"


def to_notebook(journal: Journal) -> dict[str, Any]:
    """The session as a notebook (nbformat 4.5): one code cell per run of the live line.

    Undone runs are left out. Cells that raised are tagged ``raises-exception``; those that were
    stopped, or during which the process died, ``skip-execution``, so that executing the notebook
    does the rest. Where code called tools and the like, a cell before the first, tagged ``setup``,
    gives it what they answered then: nothing is called again. What was put into the session gets a
    cell in its place, tagged ``put``.
    """
    room = _Room(journal)
    facts = "\n".join(f"- {name}: {_inline(value)}" for name, value in _facts(journal))
    cells: list[dict[str, Any]] = [
        {
            "cell_type": "markdown",
            "id": "session",
            "metadata": {},
            "source": f"# {_inline(_title(journal))}\n\n{facts}",
        }
    ]
    if any(run.calls for run in journal.live_line):
        source = _setup(journal.live_line, room)
        cells.append(_cell("setup", source, tags=["setup"]))
    number = 0
    for item in _story(journal):
        if isinstance(item, records.Event) and item.kind == "put":
            source = _assignment(item.data, room)
            if source:
                cells.append(_cell(f"put-{len(cells)}", source, tags=["put"]))
        if isinstance(item, records.Record) or not item.is_live:
            continue
        number += 1
        tags = (
            ["skip-execution"] if item.status in _UNSAFE or _was_ended(item)
            else ["raises-exception"] if item.status == "error"
            else []
        )  # fmt: skip
        cell = _cell(f"run-{number}", room.text(item.code), tags=tags)
        cell["execution_count"] = number
        cell["outputs"] = list(_outputs(item, number, room))
        cell["metadata"]["py_code_mode"] = {"run_id": item.run_id, "status": item.status}
        cells.append(cell)
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "py_code_mode": {"session_id": journal.id, "status": _status(journal)},
        },
        "cells": cells,
    }


def _cell(name: str, source: str, *, tags: list[str]) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": name,
        "metadata": {"tags": tags} if tags else {},
        "execution_count": None,
        "source": source,
        "outputs": [],
    }


def _outputs(run: RecordedRun, number: int, room: _Room) -> Iterator[dict[str, Any]]:
    streams = [("stdout", _late(run, "stdout")), ("stdout", run.stdout), ("stderr", run.stderr)]
    if run.status == "crashed":
        streams.append(("stderr", f"{_CRASHED}\n"))
    for name, text in streams:
        if text:
            yield {"output_type": "stream", "name": name, "text": room.text(text)}
    for display in room.displays(run.displays):
        bundle = display.to_bundle()
        if not room.takes(sum(map(len, bundle.values()))):
            bundle = {"text/plain": display.text}
        yield {"output_type": "display_data", "data": bundle, "metadata": {}}
    value = room.shown(run.value)
    if value is not None:
        yield {
            "output_type": "execute_result",
            "execution_count": number,
            "data": {"text/plain": value},
            "metadata": {},
        }
    if run.error is not None:
        yield {
            "output_type": "error",
            "ename": _clean(run.error.type),
            "evalue": room.text(run.error.message),
            "traceback": room.text(run.error.traceback or str(run.error.message)).splitlines(),
        }


def _assignment(data: Any, room: _Room) -> str:
    """Code that does what `Session.put` did; none for what cannot be written as code."""
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        return ""
    value = records.restore(room.value(data.get("value")))
    source = repr(value)
    try:
        is_told = len(source) <= MAX_TEXT and ast.literal_eval(source) == value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        is_told = False
    if not is_told or (isinstance(value, dict) and len(value) == 1 and "$snapshot" in value):
        return f"# {name} was put here from outside; the record only describes it."
    return f"{name} = {source}"


def _setup(runs: Iterable[RecordedRun], room: _Room) -> str:
    calls: list[dict[str, Any]] = []
    for run in runs:
        for call in run.calls:
            arguments = _arguments(call.arguments)
            result = room.value(call.result)
            text = json.dumps(result, default=repr)
            if len(text) > _MAX_RECORDED or not room.takes(len(text)):
                result = {"$repr": f"<{len(text)} characters left out>"}
            failure = None if call.status == "success" else _failure(call)
            calls.append(
                {"name": call.tool_name, "arguments": arguments, "result": result, "error": failure}
            )
    text = json.dumps(calls, default=repr)
    return _SETUP.replace("@CALLS@", repr(text))


def _arguments(arguments: Any) -> str:
    """What tells two calls of a name apart, as the notebook's own code makes it."""
    if isinstance(arguments, dict) and set(arguments) <= {"args", "kwargs"}:
        both = [arguments.get("args", []), arguments.get("kwargs", {})]
    else:
        both = [[], arguments]
    return json.dumps(both, sort_keys=True, default=repr)


def _failure(call: records.Call) -> list[str]:
    """The type and the message of what a call raised."""
    error = call.error
    if isinstance(error, dict):
        return [str(error.get("type", "RuntimeError")), _clean(str(error.get("message", "")))]
    if error is None:
        return ["RuntimeError", f"{call.tool_name}: {call.status}"]
    kind, colon, message = _clean(str(error)).partition(": ")
    return [kind, message] if colon and kind.isidentifier() else ["RuntimeError", str(error)]


#: Plain Python, for where py-code-mode is not installed.
_SETUP = """\
# What tools, workflows, artifacts and deps answered when this session ran. Nothing is called again.
import base64 as _base64
import json as _json

_calls = _json.loads(@CALLS@)
_errors = {}


def _value(tree):
    if isinstance(tree, list):
        return [_value(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((tag, body),) = tree.items()
        if tag == "$float":
            return float(body)
        if tag == "$int":
            return int(body, 16)
        if tag == "$bytes":
            return _base64.b64decode(body)
        if tag == "$dict":
            return {_value(key): _value(item) for key, item in zip(*body)}
        if tag in ("$tuple", "$set", "$frozenset"):
            kind = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}[tag]
            return kind(_value(item) for item in body)
        if tag in ("$repr", "$snapshot"):
            raise RuntimeError(f"the record only describes this value: {body}")
    return {key: _value(item) for key, item in tree.items()}


def _answer(name, args, kwargs):
    same = _json.dumps([args, kwargs], sort_keys=True, default=repr)
    named = [call for call in _calls if call["name"] == name]
    found = [call for call in named if call["arguments"] == same] or named
    if not found:
        raise RuntimeError(f"{name} was not called like this when the session ran")
    _calls.remove(found[0])
    if found[0]["error"] is not None:
        kind, message = found[0]["error"]
        raise _error(kind)(message)
    return _value(found[0]["result"])


def _error(name):
    return _errors.setdefault(name, type(name, (Exception,), {}))


class _Recorded:
    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return _error(name) if name[0].isupper() else _Recorded(f"{self._name}.{name}")

    __getitem__ = __getattr__

    def __call__(self, *args, **kwargs):
        return _answer(self._name, args, kwargs)

    call_sync = __call__

    async def call_async(self, *args, **kwargs):
        return _answer(self._name, args, kwargs)


class _Workflows(_Recorded):
    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        if name[0].isupper():
            return _error(name)
        if name in ("list", "search", "get", "create", "delete"):
            return _Recorded(f"workflows.{name}")
        return lambda *args, **kwargs: self.invoke(name, *args, **kwargs)

    def invoke(self, name, /, *args, **kwargs):
        space = {"__name__": name, "tools": tools, "workflows": self, "artifacts": artifacts}
        exec(compile(_answer("workflows.source", [name], {}), name, "exec"), space)
        return space["run"](*args, **kwargs)


class _Handles(dict):
    def put(self, name, value, overwrite=False):
        self[name] = value
        return name

    def __missing__(self, name):
        return _answer("handles.fetch", [name], {})

    get = dict.__getitem__

    def delete(self, name):
        self.pop(name, None)


tools, artifacts, deps = _Recorded("tools"), _Recorded("artifacts"), _Recorded("deps")
workflows, handles = _Workflows("workflows"), _Handles()
"""


def _story(journal: Journal) -> Iterator[RecordedRun | records.Record]:
    """Runs and what else people would read, each once, in order."""
    runs = {run.run_id: run for run in journal.runs}
    turns = {turn.turn_id: turn for turn in journal.turns}
    for record in (*journal.prefix, *journal.records):
        match record:
            case records.Run():
                run = runs.pop(record.run_id, None)
                if run is not None:
                    yield run
            case records.Turn():
                turn = turns.pop(record.turn_id, None)
                if turn is not None:
                    yield turn
            case records.Event() | records.Transition() | records.Chunk() | records.Reopen():
                yield record
            case _:
                pass


def _told(record: records.Record, room: _Room) -> tuple[str, str]:
    """A title and a text for a record that is no run; the text may be empty."""
    match record:
        case records.Turn():
            asked = f"{record.prompt}\n\n" if record.prompt else ""
            who = f" of {record.agent_id}" if record.agent_id else ""
            text = f"{asked}{record.response_content or ''}"
            if record.error:
                text += f"\n\n{record.error}"
            return f"Turn {record.turn_id}{who}: {record.status}", room.text(text.strip())
        case records.Chunk():
            content = record.payload.get("content", record.payload)
            text = content if isinstance(content, str) else json.dumps(room.value(content))
            return record.kind, room.text(text)
        case records.Transition():
            return f"{record.from_agent or 'nobody'} handed over to {record.to_agent}", room.text(
                record.reason
            )
        case records.Event():
            data = "" if not record.data else f": {json.dumps(room.value(record.data))}"
            return shorten(f"{record.kind}{data}", 1000), ""
        case records.Reopen():
            return f"reopened{': ' if record.reason else ''}{record.reason}", ""
        case _:
            return record.record_type, ""


def _texts(run: RecordedRun, room: _Room) -> Iterator[tuple[str, str]]:
    """What a run gave, as labels and texts that are not empty."""
    if _late(run, "stdout") or _late(run, "stderr"):
        yield "late", room.text(_late(run, "stdout") + _late(run, "stderr"))
    for label, text in (("stdout", run.stdout), ("stderr", run.stderr)):
        if text:
            yield label, room.text(text)
    value = room.shown(run.value)
    if value is not None:
        yield "value", value
    if run.error is not None:
        message = f"{run.error.type}: {run.error.message}"
        yield "error", room.text(run.error.traceback or message)
    if run.status == "crashed":
        yield "error", _CRASHED
    if run.outcome is not None and run.outcome.notes:
        yield "notes", room.text("\n".join(run.outcome.notes))


def _late(run: RecordedRun, name: str) -> str:
    late = run.outcome.late if run.outcome is not None else None
    found = late.get(name) if isinstance(late, dict) else None
    return found if isinstance(found, str) else ""


def _was_ended(run: RecordedRun) -> bool:
    return run.error is not None and run.error.cause in ("limit", "death", "timeout", "interrupt")


def _title(journal: Journal) -> str:
    return journal.header.title or f"Session {journal.id}"


def _status(journal: Journal) -> str:
    return journal.trailer.status if journal.is_closed and journal.trailer is not None else "open"


def _facts(journal: Journal) -> list[tuple[str, str]]:
    header = journal.header
    undone = len(journal.runs) - len(journal.live_line)
    facts = [
        ("session", journal.id),
        ("created", header.created_at),
        ("updated", journal.updated_at),
        ("status", _status(journal)),
        ("runs", f"{len(journal.runs)}" + (f", {undone} of them undone" if undone else "")),
        ("workspace", header.workspace_id or ""),
        ("agent", header.agent_id or ""),
        ("executor", header.sandbox_backend or ""),
        ("parents", ", ".join(str(each) for each in header.parent_session_ids)),
    ]
    wrong = sum(not problem.is_accepted for problem in journal.problems)
    if wrong:
        facts.append(("problems", f"{wrong} lines could not be read"))
    return [(name, value) for name, value in facts if value]


def _heading(run: RecordedRun) -> str:
    words = [f"Run {run.run_id}: {run.status}"]
    if run.duration_ms:
        words.append(f"{run.duration_ms:,.0f} ms")
    if run.outcome is not None and run.outcome.state == "lost":
        words.append("all variables lost")
    if run.outcome is not None and run.outcome.state == "restored":
        words.append(f"variables as after run {run.outcome.restored_to or 0}")
    if not run.is_live:
        words.append("undone")
    return ", ".join(words)


def _called(call: records.Call) -> str:
    ended = "" if call.status == "success" else f": {call.status}"
    return f"{call.tool_name} ({call.duration_ms:,.0f} ms){ended}"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _inline(text: str) -> str:
    """A text as part of a line of Markdown, in which none of it is markup."""
    plain = html.escape(" ".join(_clean(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|!~])", r"\\\1", plain)


def _fenced(text: str, language: str = "") -> str:
    # longer than any in the text, which could otherwise end the block and go on as HTML
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.removesuffix(chr(10))}\n{fence}"


def _pre(text: str, kind: str = "") -> str:
    return f'<pre class="{kind}">{html.escape(text)}</pre>'
