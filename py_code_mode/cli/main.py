"""The command line: ``py-code-mode``, ``python -m py_code_mode``."""

import contextlib
import os
import sys
import warnings
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from py_code_mode.cli import artifacts, deps, doctor, run, sessions, tools, trust, workflows
from py_code_mode.cli.terminal import complain, say
from py_code_mode.errors import CodeModeError, UnsandboxedWarning

UNWRITABLE = 1
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
  py-code-mode sessions list
  py-code-mode doctor

A workspace is a folder named .code-mode with tools/, workflows/, artifacts/, sessions/,
requirements.txt and config.yaml, all optional. The nearest one is used, here or in a folder above;
--base names another.
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
app.add_typer(sessions.app)
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


def _told(problem: OSError) -> int:
    """The status for output that could not be written, once it was told where it can be."""
    if isinstance(problem, BrokenPipeError):
        return PIPE_CLOSED
    with contextlib.suppress(OSError):  # stderr may be no better
        complain(f"the output cannot be written: {_sentence(problem)}")
    return UNWRITABLE


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Tell people, who know nothing of lines of Python, what they can do about a warning."""
    if isinstance(message, UnsandboxedWarning):
        say(f"note: there is no sandbox here: {message.reason}; --no-sandbox says that you know")
    else:
        to = file or sys.stderr
        to.write(warnings.formatwarning(message, category, filename, lineno, line))


def main() -> None:
    """Run the command line and exit with its status."""
    status: object = 0
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with the descriptor closed, as by cron
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the end
    warnings.showwarning = _show_warning
    problem: OSError | None = None
    try:
        app(prog_name="py-code-mode")
    except SystemExit as end:
        status = end.code
    except OSError as error:  # of the help, which no command prints
        problem = error
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        problem = problem or error
    if problem is not None:
        status = status or _told(problem)
        # nobody takes what is left, and the interpreter would complain when it flushes at its end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    sys.exit(status if isinstance(status, int) else 1 if status else 0)
