"""``py-code-mode tools``: what a session finds as ``tools``."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from py_code_mode.cli.cell import TIMED_OUT
from py_code_mode.cli.loop import complete
from py_code_mode.cli.options import (
    Arguments,
    Base,
    Json,
    Limit,
    Name,
    Query,
    key_values,
    workspace,
)
from py_code_mode.cli.terminal import complain, facts, show_json, show_table, show_text
from py_code_mode.cli.values import as_json as value_as_json
from py_code_mode.cli.values import show_value
from py_code_mode.errors import ToolFailed, ToolTimeout

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.tools.registry import ToolRegistry

app = typer.Typer(
    name="tools",
    help="List, show, search and call tools: programs (tools/*.yaml) and functions (tools/*.py).",
    short_help="Tools: list, show, search, call.",
    epilog="""\
\b
Examples:
  py-code-mode tools list
  py-code-mode tools show curl
  py-code-mode tools call curl.get url=https://example.org
  py-code-mode tools call grep pattern=TODO 'files=["a.py", "b.py"]'
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def registry(base: "Path | None") -> "ToolRegistry":
    """The tools of a workspace."""
    from py_code_mode.storage import FileStorage
    from py_code_mode.tools.registry import ToolRegistry
    from py_code_mode.trust import check_trusted

    storage = FileStorage(workspace(base))
    folder = storage.base_path
    gate = partial(check_trusted, folder)
    return ToolRegistry(storage.get_tool_store(), folder=folder / "tools", gate=gate)


@app.command("list")
def list_(base: Base = None, as_json: Json = False) -> None:
    """List the tools; definitions that cannot be used are told on stderr."""
    tools = registry(base)
    entries = complete(tools.list)
    for problem in complete(tools.problems):
        complain(f"tools/{problem}")
    _show(entries, as_json, f"no tools in {workspace(base) / 'tools'}")


@app.command()
def search(words: Query, base: Base = None, limit: Limit = 10, as_json: Json = False) -> None:
    """List the tools that fit some words, best first."""
    entries = complete(registry(base).search, " ".join(words), limit)
    _show(entries, as_json, "no tool fits")


def _show(entries: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    if as_json:
        show_json(entries)
        return
    rows = [
        [
            *facts(entry, "name", "description"),
            ", ".join(entry["tags"]),
            ", ".join(recipe["name"] for recipe in entry["recipes"]),
        ]
        for entry in entries
    ]
    show_table(("name", "description", "tags", "recipes"), rows, empty)


@app.command()
def show(name: Name, base: Base = None, as_json: Json = False) -> None:
    """Show a tool: what it does, its parameters, its recipes."""
    entry = cast("dict[str, Any]", complete(registry(base).describe, name))
    if as_json:
        show_json(entry)
        return
    lines = [f"{name}: {entry['description']}"]
    if entry["tags"]:
        lines.append(f"tags: {', '.join(entry['tags'])}")
    lines += _parameters(entry["parameters"], "")
    for recipe in entry["recipes"]:
        lines.append(f"\n{name}.{recipe['name']}: {recipe['description']}")
        lines += _parameters(recipe["parameters"], "")
    show_text("\n".join(lines))


def _parameters(schema: dict[str, Any], indent: str) -> list[str]:
    required = schema.get("required", ())
    lines: list[str] = []
    for name, parameter in schema.get("properties", {}).items():
        kind = parameter.get("type", "any")
        kind = kind if isinstance(kind, str) else "|".join(kind)
        notes = [kind, "required" if name in required else ""]
        if "enum" in parameter:
            notes.append(f"one of {parameter['enum']}")
        if "default" in parameter:
            notes.append(f"default {parameter['default']!r}")
        shown = ", ".join(note for note in notes if note)
        lines.append(f"{indent}  {name} ({shown})  {parameter.get('description', '')}".rstrip())
    return lines


@app.command()
def call(
    name: Annotated[str, typer.Argument(metavar="NAME[.RECIPE]", show_default=False)],
    arguments: Arguments = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Call a tool, or one of its recipes, and print what it gives.

    Exit status: 1 where the tool failed, 124 where it took too long.
    """
    tool, _, recipe = name.partition(".")
    given = key_values(arguments)
    try:
        value = complete(_call, registry(base), tool, recipe or None, given, arguments or ())
    except (ToolFailed, ToolTimeout) as error:
        complain(str(error))
        raise typer.Exit(TIMED_OUT if isinstance(error, ToolTimeout) else 1) from None
    if as_json:
        show_json(value_as_json(value)[0])
    elif isinstance(value, str):
        show_text(value)
    else:
        show_value(value)


async def _call(
    tools: "ToolRegistry",
    tool: str,
    recipe: str | None,
    given: dict[str, Any],
    written: "list[str] | tuple[()]",
) -> object:
    texts = dict(text.split("=", 1) for text in written)
    for name in given.keys() & await _texts(tools, tool, recipe):
        if not isinstance(given[name], str):
            given[name] = texts[name]  # the tool wants a text, and "123" is one
    return await tools.call(tool, recipe, (), given)


async def _texts(tools: "ToolRegistry", tool: str, recipe: str | None) -> set[str]:
    """The parameters that take a text and nothing else."""
    entry = cast("dict[str, Any]", await tools.describe(tool))
    schemas = [each["parameters"] for each in entry["recipes"] if each["name"] == recipe]
    schema = schemas[0] if schemas else entry["parameters"]
    properties = schema.get("properties", {})
    return {name for name, parameter in properties.items() if parameter.get("type") == "string"}
