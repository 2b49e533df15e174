"""The options that commands share, and the workspace they choose."""

# Without `from __future__ import annotations`: typer reads the annotations.
import json
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias, cast

import typer

from py_code_mode.workspace import FOLDER, find_workspace


def option(name: str, metavar: str, text: str) -> Any:
    """An option that need not be given, for `Annotated`; the default is told in the text."""
    return typer.Option(name, metavar=metavar, help=text, show_default=False)


Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Base: TypeAlias = Annotated[
    Path | None,
    option("--base", "DIR", "Workspace folder.  [default: the nearest .code-mode, else "
           "./.code-mode]"),
]  # fmt: skip
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Executor: TypeAlias = Annotated[
    str | None,
    option("--executor", "NAME", "Where the code runs: subprocess, in_process, or one that is "
           "installed.  [default: what the workspace says, else subprocess]"),
]  # fmt: skip
Timeout: TypeAlias = Annotated[
    float | None,
    option("--timeout", "SECONDS", "Stop the code after so many seconds.  [default: what the "
           "workspace says, else no limit]"),
]  # fmt: skip
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace FILE if there is one.")]
Figures: TypeAlias = Annotated[
    Path,
    typer.Option("--figures", metavar="DIR", help="Where figures and images are saved."),
]
Workdir: TypeAlias = Annotated[
    Path | None,
    option("--workdir", "DIR", "The code's current directory, which it may write to; not one that "
           "holds the workspace.  [default: a new one, removed at the end]"),
]  # fmt: skip
Sync: TypeAlias = Annotated[
    bool,
    typer.Option("--sync/--no-sync", help="Install the workspace's requirements.txt first."),
]
Read: TypeAlias = Annotated[
    list[Path] | None,
    option("--read", "PATH", "Let the code read this file or folder; may be repeated."),
]
Write: TypeAlias = Annotated[
    list[Path] | None,
    option("--write", "PATH", "Let the code read and write this file or folder; may be repeated."),
]
AllowHost: TypeAlias = Annotated[
    list[str] | None,
    option("--allow-host", "HOST", "Let the code reach this host: api.github.com, "
           "'*.wikipedia.org:443'; may be repeated.  [default: no network]"),
]  # fmt: skip
Memory: TypeAlias = Annotated[
    str | None,
    option("--memory", "SIZE", "Memory of the code and all its processes, such as 2GiB.  "
           "[default: 4GiB]"),
]  # fmt: skip
NoSandbox: TypeAlias = Annotated[
    bool,
    typer.Option("--no-sandbox", help="Run without a sandbox: the code may do whatever you may."),
]
Query: TypeAlias = Annotated[list[str], typer.Argument(metavar="WORDS...", show_default=False)]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]
Arguments: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="A value is JSON where it can be read as such, else text.",
        show_default=False,
    ),
]


def workspace(base: Path | None) -> Path:
    """The folder to use; it may not exist, and is empty then."""
    if base is not None:
        base = base.expanduser()
        if base.exists() and not base.is_dir():
            raise typer.BadParameter(f"{base} is not a folder", param_hint="--base")
        return base
    here = Path.cwd()
    return find_workspace(here) or here / FOLDER


def key_values(given: list[str] | None) -> dict[str, Any]:
    """``["a=1", "b=x"]`` as ``{"a": 1, "b": "x"}``; a usage error for anything else."""
    found: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="KEY=VALUE")
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint="KEY=VALUE")
        found[key] = _value(value)
    return found


def _value(text: str) -> object:
    try:
        return cast("object", json.loads(text, parse_constant=_not_json))
    except (ValueError, RecursionError):
        return text


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
