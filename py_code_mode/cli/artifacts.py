"""``py-code-mode artifacts``: the data that sessions keep."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from py_code_mode.cli.figures import FigureFolder
from py_code_mode.cli.files import write_file
from py_code_mode.cli.options import Base, Figures, Force, Json, Name, workspace
from py_code_mode.cli.terminal import complain, facts, say, show_json, show_table, show_text
from py_code_mode.cli.values import as_json as value_as_json
from py_code_mode.cli.values import show_value
from py_code_mode.results import Display

if TYPE_CHECKING:
    from py_code_mode.artifacts import Artifacts

app = typer.Typer(
    name="artifacts",
    short_help="Artifacts: list, show, add, remove.",
    help="List, show, add and remove artifacts: data that outlives sessions (artifacts/).",
    epilog="""\
\b
Examples:
  py-code-mode artifacts list
  py-code-mode artifacts show report.md
  py-code-mode artifacts show model.bin --output model.bin
  py-code-mode artifacts add prices prices.json --description "Prices of May"
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def artifacts(base: Path | None) -> "Artifacts":
    """The artifacts of a workspace."""
    from py_code_mode.storage import FileStorage

    return FileStorage(workspace(base)).get_artifact_store()


@app.command("list")
def list_(base: Base = None, as_json: Json = False) -> None:
    """List the artifacts; those that cannot be read are told on stderr."""
    entries = artifacts(base).list()
    for entry in entries:
        if "error" in entry:
            complain(f"artifact {entry['name']!r}: {entry['error']}")
    if as_json:
        show_json(entries)
        return
    columns = ("name", "type", "size", "created_at", "description")
    rows = [facts(entry, *columns) for entry in entries]
    show_table(columns, rows, f"no artifacts in {workspace(base) / 'artifacts'}")


@app.command()
def show(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write text or bytes to this file instead; `-` is stdout.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    figures: Figures = Path(),
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Print an artifact's data; a figure is saved as a file.

    Text is printed as it is, tables as tables, other values as Python shows them. A file that is
    there already is not replaced.
    """
    value = artifacts(base).load(name)
    is_stdout = output == Path("-")
    if output is not None and not is_stdout:
        if not isinstance(value, str | bytes):
            reason = f"{name} is neither text nor bytes; `artifacts list --json` tells its path"
            raise typer.BadParameter(reason, param_hint="--output")
        path = output.expanduser()
        write_file(path, value if isinstance(value, bytes) else value.encode(), force=force)
        say(f"saved {path}")
    elif as_json:
        data, kind = value_as_json(value)
        show_json({"name": name, "value": data, "value_kind": kind})
    elif isinstance(value, Display):
        FigureFolder(figures).show(value)
    elif isinstance(value, bytes):
        if sys.stdout.isatty() and not is_stdout:
            reason = f"{name} holds {len(value):,} bytes; name a file, or redirect stdout"
            raise typer.BadParameter(reason, param_hint="--output")
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    elif isinstance(value, str):
        show_text(value)
    else:
        show_value(value)


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    description: Annotated[str, typer.Option(help="What it is.")] = "",
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Keep a file's data: JSON, .npy and Arrow files by their extension, text, or bytes."""
    from py_code_mode.codecs.artifacts import Part, decode, guess

    data = file.expanduser().read_bytes()
    value = decode(file.name, guess(file.name, data), [Part(data=data, extension="")], {})
    entry = artifacts(base).save(name, value, description)
    if as_json:
        show_json(entry)
    else:
        say(f"added artifact {name}: {entry['path']}")


@app.command()
def remove(name: Name, base: Base = None, as_json: Json = False) -> None:
    """Remove an artifact."""
    artifacts(base).delete(name)
    if as_json:
        show_json({"removed": name})
    else:
        say(f"removed artifact {name}")
