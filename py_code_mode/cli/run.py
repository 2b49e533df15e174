"""``py-code-mode run``: a script, or code from the command line, in a session of its own."""

import io
import sys
import tokenize
from pathlib import Path
from typing import Annotated

import typer

from py_code_mode.cli.cell import Cell, run_cell
from py_code_mode.cli.options import Figures, Json, option
from py_code_mode.cli.place import Place, takes_place

EPILOG = """\
\b
Examples:
  py-code-mode run script.py
  py-code-mode run -c "1 + 1"
  echo "print(tools.list())" | py-code-mode run -
  py-code-mode run -c "open('/data/big.csv').read()" --read /data
  py-code-mode run fetch.py --allow-host api.github.com --memory 2GiB
  py-code-mode run script.py --timeout 60 --json

\b
Exit status:
  0    the code succeeded
  1    it raised an exception, or its worker died
  n    it called sys.exit(n)
  2    wrong usage, or it could not be run at all
  124  it took longer than --timeout
  130  Ctrl-C
"""


@takes_place
def run(
    place: Place,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A Python file; `-` is stdin.", show_default=False),
    ] = None,
    code: Annotated[
        str | None,
        option("-c", "CODE", "Python code."),
    ] = None,
    figures: Figures = Path(),
    as_json: Json = False,
) -> None:
    """Run Python in a session: with tools, workflows, artifacts and deps at hand.

    Output appears as it is written, then the value of the last expression. Figures and images are
    saved as files; their names are told on stderr. With --json, stdout is one JSON object instead.

    The code runs in a worker process with an environment of its own (numpy, pandas and pyarrow
    are there), in the best sandbox that this machine has; `py-code-mode doctor` tells which. It
    may write to its own directory, read the folder of FILE, and reach no network, unless options
    or the workspace's `policy` say more. With any of --read, --write, --allow-host and --memory
    the sandbox is required.
    """
    raise typer.Exit(run_cell(cell_of(file, code), place, figures=figures, as_json=as_json))


def cell_of(file: str | None, code: str | None) -> Cell:
    """What a command was given to run: one of both, or it is a usage error."""
    if (file is None) == (code is None):
        raise typer.BadParameter("give a FILE, `-` for stdin, or -c CODE", param_hint="FILE")
    if code is not None:
        return Cell(code=code)
    assert file is not None
    if file == "-":
        return Cell(code=decode_source(sys.stdin.buffer.read(), "stdin"))
    path = Path(file).expanduser()
    return Cell(code=decode_source(path.read_bytes(), file), file=path.absolute())


def decode_source(data: bytes, name: str) -> str:
    """Python source as text, by its encoding declaration (PEP 263); a usage error if it fails."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()  # line ends become \n
    except (SyntaxError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{name} is not Python source: {error}") from error
