"""The command line: ``py-code-mode``, ``python -m py_code_mode``."""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from py_code_mode.cli import artifacts, deps, doctor, run, tools, trust, workflows
from py_code_mode.cli.terminal import complain
from py_code_mode.errors import CodeModeError

USAGE = 2
INTERRUPTED = 130
#: What a shell shows for a program that SIGPIPE ended.
PIPE_CLOSED = 141

EPILOG = """\
\b
Examples:
  py-code-mode run -c "1 + 1"
  py-code-mode run script.py
  py-code-mode tools list
  py-code-mode tools call curl.get url=https://example.org
  py-code-mode workflows call fetch_json url=https://example.org
  py-code-mode deps add "httpx>=0.27"
  py-code-mode doctor

A workspace is a folder named .code-mode with tools/, workflows/, artifacts/, requirements.txt and
config.yaml, all optional. The nearest one is used, here or in a folder above; --base names another.
"""


class Commands(TyperGroup):
    """All commands; the one place where an error becomes a sentence and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            status = PIPE_CLOSED
        except KeyboardInterrupt:
            status = INTERRUPTED
        except (CodeModeError, OSError) as error:
            complain(_sentence(error))
            status = USAGE
        raise typer.Exit(status)


def _sentence(error: CodeModeError | OSError) -> str:
    if isinstance(error, CodeModeError) or error.strerror is None:
        return str(error)
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{place}{error.strerror}"


app = typer.Typer(
    name="py-code-mode",
    cls=Commands,
    help="Run Python in a session, with your tools as functions and your data at hand.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(epilog=run.EPILOG, short_help="Run a file or a piece of code.")(run.run)
app.add_typer(tools.app)
app.add_typer(workflows.app)
app.add_typer(artifacts.app)
app.add_typer(deps.app)
app.command(epilog=trust.EPILOG, short_help="Trust a workspace that others can write.")(trust.trust)
app.command(short_help="Tell what this machine has, and lacks.")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"py-code-mode {version(doctor.DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


def main() -> None:
    """Run the command line and exit with its status."""
    status: object = 0
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with the descriptor closed, as by cron
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the end
    try:
        app(prog_name="py-code-mode")
    except SystemExit as end:
        status = end.code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        # nobody reads what is left, and the interpreter would complain when it flushes at its end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        status = status or PIPE_CLOSED
    sys.exit(status if isinstance(status, int) else 1 if status else 0)
