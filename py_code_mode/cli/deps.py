"""``py-code-mode deps``: the packages that a workspace's sessions can import."""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from py_code_mode.cli.loop import complete
from py_code_mode.cli.options import Base, Json, workspace
from py_code_mode.cli.terminal import complain, say, show_json, show_origins, tell_approved

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from py_code_mode.deps.dependencies import Dependencies

app = typer.Typer(
    name="deps",
    short_help="Packages: list, add, approve, remove, sync.",
    help="List, add, approve, remove and sync the packages of a workspace (requirements.txt).",
    epilog="""\
\b
Examples:
  py-code-mode deps add "httpx>=0.27"
  py-code-mode deps list
  py-code-mode deps sync

Packages are installed for each session, beside its environment, from uv's cache. `add` and `sync`
install once to see that it works and to fill the cache; nothing else on this machine changes.
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Package = Annotated[str, typer.Argument(metavar="PACKAGE", show_default=False)]


@app.command("list")
def list_(base: Base = None, as_json: Json = False) -> None:
    """List the requirements; lines that cannot be used are told on stderr."""
    from py_code_mode.storage import FileStorage

    requirements = FileStorage(workspace(base)).get_deps_store()
    for problem in requirements.problems():
        complain(str(problem))
    wanted = requirements.origins()
    if as_json:
        show_json([*wanted])
    else:
        show_origins(
            ("requirement",),
            [([requirement], origin) for requirement, origin in wanted.items()],
            f"no requirements in {workspace(base) / 'requirements.txt'}",
        )


@app.command()
def add(package: Package, base: Base = None, as_json: Json = False) -> None:
    """Install a package, and remember it where that works."""
    report = complete(_add, workspace(base), package)
    _tell(report, as_json)


@app.command()
def remove(package: Package, base: Base = None, as_json: Json = False) -> None:
    """Remember a package no longer."""
    from py_code_mode.deps import parse
    from py_code_mode.storage import FileStorage

    name = parse(package).name
    removed = FileStorage(workspace(base)).get_deps_store().remove(name)
    if as_json:
        show_json({"removed_from_config": [name] if removed else []})
    elif removed:
        say(f"removed {name}; sessions that start from now on are without it")
    if not removed:
        complain(f"{name} is not among the requirements; `py-code-mode deps list` shows them")
        raise typer.Exit(1)


@app.command()
def approve(package: Package, base: Base = None, as_json: Json = False) -> None:
    """Let a package that sandboxed code added be installed without a sandbox, too."""
    from py_code_mode.deps import parse
    from py_code_mode.storage import FileStorage

    name = parse(package).name
    was_approved = FileStorage(workspace(base)).get_deps_store().approve(name)
    tell_approved("package", name, was_approved, as_json)


@app.command()
def sync(base: Base = None, as_json: Json = False) -> None:
    """Install every requirement, to see that it works and to fill uv's cache."""
    report = complete(_sync, workspace(base))
    _tell(report, as_json)


async def _add(base: Path, package: str) -> dict[str, Any]:
    async with _dependencies(base) as dependencies:
        return await dependencies.add(package)


async def _sync(base: Path) -> dict[str, Any]:
    async with _dependencies(base) as dependencies:
        return await dependencies.sync()


@asynccontextmanager
async def _dependencies(base: Path) -> "AsyncGenerator[Dependencies]":
    """The workspace's packages, installed into a folder as a session would have one."""
    from tempfile import TemporaryDirectory

    from py_code_mode.deps.dependencies import Dependencies
    from py_code_mode.environments import EnvironmentSpec, Overlay, realise
    from py_code_mode.storage import FileStorage

    requirements = FileStorage(base).get_deps_store()
    environment = await realise(EnvironmentSpec())
    with TemporaryDirectory(prefix="code-mode-") as folder:
        yield Dependencies(requirements, Overlay(Path(folder), environment), isolation=None)


def _tell(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(report)
    else:
        for key in ("installed", "already_present"):
            if report[key]:
                say(f"{key.replace('_', ' ')}: {', '.join(report[key])}")
        for failed in report["failed"]:
            complain(f"{failed}: {report['errors'].get(failed, 'could not be installed')}")
        if not any(report[key] for key in ("installed", "already_present", "failed")):
            say("nothing to install")
    if report["failed"]:
        raise typer.Exit(1)
