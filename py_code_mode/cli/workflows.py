"""``py-code-mode workflows``: what a session finds as ``workflows``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from py_code_mode.cli.cell import Cell, run_cell
from py_code_mode.cli.options import (
    Arguments,
    Base,
    Figures,
    Json,
    Limit,
    Name,
    Query,
    key_values,
    workspace,
)
from py_code_mode.cli.place import Place, takes_place
from py_code_mode.cli.run import decode_source
from py_code_mode.cli.terminal import (
    complain,
    facts,
    say,
    show_json,
    show_origins,
    show_source,
    tell_approved,
)
from py_code_mode.errors import WorkflowNotFound

if TYPE_CHECKING:
    from py_code_mode.workflows import WorkflowLibrary

app = typer.Typer(
    name="workflows",
    short_help="Workflows: list, show, search, call, add, approve, remove.",
    help="List, show, search, call, add, approve and remove workflows (workflows/*.py).",
    epilog="""\
\b
Examples:
  py-code-mode workflows add fetch_json fetch.py --description "Fetch JSON from a URL"
  py-code-mode workflows call fetch_json url=https://example.org
  py-code-mode workflows show fetch_json
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def library(base: Path | None) -> "WorkflowLibrary":
    """The workflows of a workspace."""
    from py_code_mode.storage import FileStorage

    return FileStorage(workspace(base)).get_workflow_library()


@app.command("list")
def list_(base: Base = None, as_json: Json = False) -> None:
    """List the workflows; files that cannot be used are told on stderr."""
    _show(library(base).list(), as_json, f"no workflows in {workspace(base) / 'workflows'}")


@app.command()
def search(words: Query, base: Base = None, limit: Limit = 5, as_json: Json = False) -> None:
    """List the workflows that fit some words, best first."""
    _show(library(base).search(" ".join(words), limit), as_json, "no workflow fits")


def _show(entries: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    for entry in entries:
        if "error" in entry:
            complain(f"workflows/{entry['name']}.py: {entry['error']}")
    if as_json:
        show_json(entries)
        return
    rows = [
        (
            [
                *facts(entry, "name", "description"),
                ", ".join(map(_parameter, entry["parameters"])),
            ],
            entry.get("origin"),
        )
        for entry in entries
        if "error" not in entry
    ]
    if rows or not entries:
        show_origins(("name", "description", "parameters"), rows, empty)


def _parameter(parameter: dict[str, Any]) -> str:
    return parameter["name"] if parameter.get("required") else f"[{parameter['name']}]"


@app.command()
def show(name: Name, base: Base = None, as_json: Json = False) -> None:
    """Show a workflow's source."""
    entry = library(base).get(name)
    if entry is None:
        raise WorkflowNotFound(name)
    if as_json:
        show_json(entry)
    else:
        if "origin" in entry:
            say(f"note: written by sandboxed code ({entry['origin']}), and not approved")
        show_source(str(entry["source"]))


@app.command()
@takes_place
def call(
    place: Place,
    name: Name,
    arguments: Arguments = None,
    figures: Figures = Path(),
    as_json: Json = False,
) -> None:
    """Run a workflow in a session of its own; output and exit status are as of `run`."""
    given = key_values(arguments)
    library(place.base).load(name)  # what is wrong with it is told before a session starts
    cell = Cell(code=f"workflows.invoke({name!r}, **{given!r})")
    raise typer.Exit(run_cell(cell, place, figures=figures, as_json=as_json))


@app.command()
def approve(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Let a workflow that sandboxed code wrote run without a sandbox, too.

    Shows its source and asks first.
    """
    entry = library(base).get(name)
    if entry is None:
        raise WorkflowNotFound(name)
    source, origin = str(entry["source"]), entry.get("origin")
    if origin is not None and not yes:
        show_source(source, sys.stderr)
        question = f"written by sandboxed code ({origin}); let it run with your rights?"
        typer.confirm(question, abort=True, err=True)
    # not what somebody put there while it was read
    was_approved = library(base).approve(name, source)
    tell_approved("workflow", name, was_approved, as_json)


@app.command()
def add(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Defines run(...); `-` is stdin.")],
    description: Annotated[
        str, typer.Option(help="What it is for.  [default: the file's docstring]")
    ] = "",
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Keep a Python file as a workflow, in place of one by this name."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    entry = library(base).create(name, decode_source(data, file), description)
    if as_json:
        show_json(entry)
    else:
        say(f"added workflow {name} to {workspace(base)}")


@app.command()
def remove(name: Name, base: Base = None, as_json: Json = False) -> None:
    """Remove a workflow."""
    if not library(base).delete(name):
        raise WorkflowNotFound(name)
    if as_json:
        show_json({"removed": name})
    else:
        say(f"removed workflow {name}")
