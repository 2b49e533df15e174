"""What a model is told of a session, and the tool that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from py_code_mode.results import ExecutionResult, shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from py_code_mode.handles import SessionHandles
    from py_code_mode.namespaces import Namespaces


class RunPython(Protocol):
    """What `Session.as_tool` gives: an async function with its description as data.

    Attributes:
        json_schema: name, description and parameters, as most model APIs take them.
    """

    json_schema: dict[str, Any]

    async def __call__(self, code: str) -> str:
        """Run code; give what a model should see."""
        ...


async def describe(namespaces: Namespaces, handles: SessionHandles, max_tokens: int) -> str:
    """What a model should be told, within a budget; see `Session.instructions`."""
    lines = [_INTRODUCTION]
    for title, entries in (
        ("Tools", await namespaces.tools.list()),
        ("Workflows", await namespaces.workflows.list()),
    ):
        if entries:
            lines.append(f"\n{title}:")
            lines += [_one_line(title.lower(), entry) for entry in entries]
    if handles.handle_names():
        lines.append("\nVariables and handles:")
        lines += [f"- {name}: {handles.snapshot(name)}" for name in handles.handle_names()]
    return shorten("\n".join(lines), 4 * max_tokens)


def make_tool(run: Callable[[str], Awaitable[ExecutionResult]]) -> RunPython:
    """The tool of a session whose `run` this is; see `Session.as_tool`."""

    async def run_python(code: str) -> str:
        return (await run(code)).to_text()

    run_python.__doc__ = _TOOL_DESCRIPTION
    tool = cast("RunPython", run_python)
    tool.json_schema = {
        "name": "run_python",
        "description": _TOOL_DESCRIPTION,
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "Python source code"}},
            "required": ["code"],
            "additionalProperties": False,
        },
    }
    return tool


def _one_line(namespace: str, entry: Mapping[str, Any]) -> str:
    description = str(entry.get("description") or "").strip().partition("\n")[0]
    return f"- {namespace}.{entry['name']}: {description}".rstrip(": ")


_INTRODUCTION = """\
You can run Python in a session that keeps its variables between runs. The value of the last
expression is returned. Available without import:
- tools.<name>(...) calls a tool; tools.list() and tools.search(query) find them
- workflows.<name>(...) runs a stored workflow, also an async one, without await
- workflows.create(name, source, description) stores one: source defines run(...)
- artifacts.save(name, data), artifacts.load(name), artifacts.list() keep data beyond the session
- handles.put(name, value), handles.get(name) keep large values beyond a reset
- deps.add(package) installs a package
- display(object) shows figures, images and HTML"""

_TOOL_DESCRIPTION = """\
Run Python code in a session that keeps its variables, and return its output and the value of the \
last expression. The names tools, workflows, artifacts and deps are available without import."""
