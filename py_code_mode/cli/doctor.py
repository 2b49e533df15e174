"""``py-code-mode doctor``: what this machine has, and what to do about what it lacks.

What is told is found by trying: a worker is started, an index is asked.
"""

import errno
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
import anyio.to_thread
import typer

from py_code_mode.cli.cell import tell_of_first_environment
from py_code_mode.cli.loop import complete
from py_code_mode.cli.options import Base, Json, workspace
from py_code_mode.cli.terminal import has_colours, printable, say, show_json, show_text
from py_code_mode.errors import CodeModeError, UnsandboxedWarning, WorkspaceNotTrusted
from py_code_mode.execution.executor import Capability

if TYPE_CHECKING:
    from py_code_mode.environments import Environment

#: Seconds that a package index may take to answer.
NETWORK_TIMEOUT = 20.0
#: Seconds that the first worker may take; the first on a machine installs its environment.
WORKER_TIMEOUT = 600.0
DISTRIBUTION = "py-code-mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report; `remedy` says what to do, unless all is well."""

    name: str
    level: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


def doctor(
    base: Base = None,
    network: Annotated[
        bool, typer.Option("--network", help="Ask the package index too, for a few seconds.")
    ] = False,
    escapes: Annotated[
        bool,
        typer.Option("--escapes/--no-escapes", help="Attack the sandbox, for 10 to 20 seconds."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Tell what this machine has, and what to do about what it lacks.

    Starts a worker, and attacks its sandbox. Exit status: 1 where code cannot be run, or gets out.
    """
    checks = complete(_examine, workspace(base), network, as_json)
    attacked: dict[str, object] | None = None
    if escapes and all(check.level != "problem" for check in checks if check.name == "worker"):
        tried, attacked = complete(_escapes, as_json)
        checks.append(tried)
    works = all(check.level != "problem" for check in checks)
    if as_json:
        shown: dict[str, object] = {"ok": works, "checks": [asdict(check) for check in checks]}
        show_json({**shown, "escapes": attacked} if attacked is not None else shown)
    raise typer.Exit(0 if works else 1)


async def _examine(base: Path, network: bool, quiet: bool) -> list[Check]:
    used: list[Environment] = []
    steps: list[Callable[[], Awaitable[list[Check]]]] = [
        _blocking(_python),
        _blocking(_uv),
        _blocking(_cache),
        _blocking(_executors),
        lambda: _worker(quiet, used),
        _blocking(lambda: layer_checks(*used)),
        lambda: _workspace(base, base.is_dir()),
        _blocking(_extras),
    ]
    if network:
        steps.append(_index)
    found: list[Check] = []
    for step in steps:
        checks = await step()
        found += checks
        if not quiet:
            for check in checks:
                _show(check)
    return found


async def _escapes(quiet: bool) -> tuple[Check, dict[str, object] | None]:
    """Attack sandboxes of this machine in every way that is known."""
    from py_code_mode.cli.escapes import run_escapes

    if not quiet:
        say("attacking the sandbox, for 10 to 20 seconds; --no-escapes leaves it out")
    try:
        report = await run_escapes()
    except (CodeModeError, OSError) as error:
        check = Check(name="escape suite", level="problem", text=str(error), remedy="see above")
        report = None
    else:
        got_out = [f"{verdict.name}: {verdict.text}" for verdict in report.escaped]
        text = "; ".join([str(report), *got_out])
        if report.left_out:
            needs = " and ".join(sorted(set(report.left_out.values())))
            text += f"; {len(report.left_out)} not tried, which only {needs} would withstand"
        check = Check(
            name="escape suite",
            level="problem" if got_out else "ok" if report.verdicts else "warning",
            text=text,
            remedy="run nothing here that you do not trust, and report it" if got_out else "",
        )
    if not quiet:
        _show(check)
    return check, None if report is None else report.to_json()


def _blocking(check: Callable[[], Iterator[Check]]) -> Callable[[], Awaitable[list[Check]]]:
    async def run() -> list[Check]:
        return await anyio.to_thread.run_sync(lambda: list(check()))

    return run


_COLOURS = {"ok": "32", "warning": "33", "problem": "31"}


def _show(check: Check) -> None:
    level = f"{check.level:<8}"
    if sys.stdout.isatty() and has_colours():
        level = f"\x1b[{_COLOURS[check.level]}m{level}\x1b[0m"
    remedy = f"\n         -> {check.remedy}" if check.remedy else ""
    # names and errors come from files that anybody may have written
    show_text(level + printable(f" {check.name}: {check.text}{remedy}", colours=False))


def _python() -> Iterator[Check]:
    from py_code_mode.environments import available_interpreters

    yield Check(
        name="host",
        level="ok",
        text=f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}",
    )
    try:
        found = available_interpreters()
    except CodeModeError as error:
        yield Check(name="interpreters", level="problem", text=str(error), remedy="install Python")
        return
    shown = ", ".join(f"{'.'.join(map(str, each.version))} ({each.path})" for each in found)
    yield Check(name="interpreters", level="ok", text=f"for python_version: {shown}")


def _uv() -> Iterator[Check]:
    from py_code_mode.environments.uv import run_uv_blocking

    remedy = f"install it beside {DISTRIBUTION}: {sys.executable} -m pip install uv"
    try:
        answer = run_uv_blocking("--version", timeout=NETWORK_TIMEOUT)
        import uv

        where = uv.find_uv_bin()
    except (CodeModeError, OSError) as error:
        yield Check(name="uv", level="problem", text=str(error), remedy=remedy)
        return
    if answer.is_ok:
        yield Check(name="uv", level="ok", text=f"{answer.stdout.strip()} ({where})")
    else:
        text = f"{where} fails: {answer.stderr.strip()[-200:]}"
        yield Check(name="uv", level="problem", text=text, remedy=remedy)


def _cache() -> Iterator[Check]:
    from py_code_mode.environments import cache_root

    root = cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        remedy = "set PY_CODE_MODE_CACHE to a folder that you may write"
        text = f"{root} cannot be written"
        yield Check(name="environments", level="problem", text=text, remedy=remedy)
        return
    try:
        kept = [folder for folder in root.iterdir() if folder.is_dir()]
    except FileNotFoundError:
        text = f"none yet in {root}; the first worker installs one from the package index"
        yield Check(name="environments", level="ok", text=text)
        return
    text = f"{len(kept)} in {root}, {_size(root) / 1e6:,.0f} MB"
    yield Check(name="environments", level="ok", text=text)


def _size(folder: Path) -> int:
    total, waiting = 0, [os.fspath(folder)]
    seen: set[tuple[int, int]] = set()  # uv makes hard links: count a file once
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    stat = entry.stat(follow_symlinks=False)
                    if (stat.st_dev, stat.st_ino) not in seen:
                        seen.add((stat.st_dev, stat.st_ino))
                        total += stat.st_size
        except OSError:
            continue  # removed meanwhile, or not ours to read: what is left is a good estimate
    return total


def _executors() -> Iterator[Check]:
    from py_code_mode.execution.registry import executor_class, executor_names

    for name in executor_names():
        try:
            offers = ", ".join(sorted(executor_class(name).offers))
        except CodeModeError as error:
            remedy = "update or remove the package that it comes from"
            yield Check(name=f"executor {name}", level="warning", text=str(error), remedy=remedy)
        else:
            yield Check(name=f"executor {name}", level="ok", text=f"offers {offers}")


async def _worker(quiet: bool, used: "list[Environment]") -> list[Check]:
    """Start one, run something, and add its environment to `used`."""
    from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
    from py_code_mode.session import Session
    from py_code_mode.storage import MemoryStorage

    remedy = "see the lines above, and try again with --network where a package could not be had"
    if not quiet:
        tell_of_first_environment()
    began = time.perf_counter()
    try:
        with anyio.fail_after(WORKER_TIMEOUT):
            executor = SubprocessExecutor(SubprocessConfig(default_timeout=30.0))
            session = Session(MemoryStorage(), executor)
            with warnings.catch_warnings():  # it is told below, as a check
                warnings.simplefilter("ignore", UnsandboxedWarning)
                await session.start()
            async with session:
                started = time.perf_counter() - began
                result = await session.run("1 + 1")
                environment = executor.environment
                isolation, holds = executor.isolation, executor.capabilities
    except TimeoutError:
        text = f"did not start within {WORKER_TIMEOUT:g} s"
        return [Check(name="worker", level="problem", text=text, remedy=remedy)]
    except (CodeModeError, OSError) as error:
        return [Check(name="worker", level="problem", text=str(error), remedy=remedy)]
    used.append(environment)
    if result.value != 2:
        text = f"1 + 1 gave {result.error or result.value!r}"
        return [Check(name="worker", level="problem", text=text, remedy=remedy)]
    version = ".".join(map(str, environment.version))
    text = (
        f"started in {started * 1e3:,.0f} ms, Python {version}, {len(environment.packages)} "
        f"packages; 1 + 1 took {result.duration * 1e3:.1f} ms"
    )
    return [Check(name="worker", level="ok", text=text), sandbox_check(isolation, holds)]


#: What a sandbox may enforce, in words; what every worker has is not told.
_ENFORCED = {
    Capability.FILE_ISOLATION: "files of the host are hidden",
    Capability.NETWORK_ISOLATION: "no network",
    Capability.NETWORK_ALLOW_LIST: "single hosts can be allowed",
    Capability.MEMORY_LIMIT: "memory is limited",
    Capability.DISK_LIMIT: "disk space is limited",
}


def sandbox_check(isolation: str, holds: frozenset[str]) -> Check:
    """What stands between this machine and the worker that has just run."""
    held = [words for capability, words in _ENFORCED.items() if capability in holds]
    if Capability.MEMORY_GROUP in holds:
        held.append("a control group holds the memory")
    lacks = [words for capability, words in _ENFORCED.items() if capability not in holds]
    if isolation == "none":
        return Check(
            name="sandbox",
            level="warning",
            text="none: the worker may do whatever your user may",
            remedy="see the layers below; or run code that you do not trust as another user",
        )
    text = f"{isolation}: {', '.join(held)}"
    if lacks:
        remedy = "for the rest, see the layers below"
        text += f"; not enforced here: {', '.join(lacks)}"
        return Check(name="sandbox", level="warning", text=text, remedy=remedy)
    return Check(name="sandbox", level="ok", text=text)


#: What namespaces do without: they are what bubblewrap makes, and give workers a uid that limits
#: bind.
_UNNEEDED = ("bubblewrap", "rlimit_processes")


def layer_checks(environment: "Environment | None" = None) -> Iterator[Check]:
    """What a sandbox can be built from on this machine, found by trying.

    Args:
        environment: that guests run with, which some could not get at.
    """
    from py_code_mode.execution.sandbox import out_of_reach
    from py_code_mode.sandbox.probe import probe

    found = probe()
    best, *others = found.backends
    hidden = {
        name: reasons[0]
        for name in others
        if environment is not None and (reasons := out_of_reach(name, environment))
    }
    also = ", ".join(name for name in others if name not in hidden)
    text = f"{best}{'; also: ' if also else ''}{also}"
    text += f" (tried in {found.duration * 1e3:,.0f} ms, uid {found.uid})"
    for name, reason in hidden.items():
        text += f"; not {name}: {reason}"
    yield Check(name="sandbox backend", level="ok" if best != "none" else "warning", text=text)
    for layer in found.layers:
        name = f"layer {layer.name}"
        if layer.is_ok:
            yield Check(name=name, level="ok", text=layer.detail or "works")
            continue
        code = f" [{errno.errorcode.get(layer.error, str(layer.error))}]" if layer.error else ""
        text = f"failed{code}: {layer.detail}"
        if layer.name in _UNNEEDED and best == "namespaces":
            yield Check(name=name, level="ok", text=f"{text}; not needed here")
        else:
            yield Check(name=name, level="warning", text=text, remedy=layer.remedy)
    for gap in found.landlock_gaps:
        yield Check(name="layer landlock", level="ok", text=f"leaves open: {gap}")


async def _workspace(base: Path, exists: bool) -> list[Check]:
    from py_code_mode.deps import parse
    from py_code_mode.storage import FileStorage
    from py_code_mode.tools.registry import ToolRegistry
    from py_code_mode.trust import check_trusted
    from py_code_mode.workspace import read_config

    name = f"workspace {base}"
    if not exists:
        return [Check(name=name, level="ok", text="is not there yet; it is made when written to")]
    storage = FileStorage(base)
    try:
        said = read_config(storage.base_path)
        gate = partial(check_trusted, storage.base_path)
        folder = storage.base_path / "tools"
        tools = ToolRegistry(storage.get_tool_store(), folder=folder, gate=gate)
        count = len(await tools.names())
        faults = [f"tools/{problem}" for problem in await tools.problems()]
        workflows = await anyio.to_thread.run_sync(storage.get_workflow_library().list)
        requirements = storage.get_deps_store()
        faults += [
            f"workflows/{each['name']}.py: {each['error']}" for each in workflows if "error" in each
        ]
        faults += map(str, await anyio.to_thread.run_sync(requirements.problems))
        wanted = await anyio.to_thread.run_sync(requirements.origins)
    except WorkspaceNotTrusted as error:
        remedy = f"py-code-mode trust {shlex.quote(error.folder)}"
        return [Check(name=name, level="problem", text=str(error), remedy=remedy)]
    except (CodeModeError, OSError) as error:
        return [Check(name=name, level="problem", text=str(error), remedy="correct that file")]
    usable = sum("error" not in each for each in workflows)
    has_policy = "; its policy is required" if said.policy is not None else ""
    text = f"{count} tools, {usable} workflows{has_policy}"
    found = [Check(name=name, level="ok", text=text)]
    left = [
        (
            f"workflow {each['name']} was written by sandboxed code ({each['origin']})",
            f"py-code-mode workflows approve {each['name']}, once you have read it",
        )
        for each in workflows
        if "origin" in each
    ]
    left += [
        (
            f"the requirement {text} was added by sandboxed code ({origin})",
            f"py-code-mode deps approve {parse(text).name}, if you want it",
        )
        for text, origin in wanted.items()
        if origin is not None
    ]
    found += [Check(name=name, level="warning", text=text, remedy=to_do) for text, to_do in left]
    found += [
        Check(name=name, level="warning", text=fault, remedy="correct that file; it is left out")
        for fault in faults
    ]
    return found


def _extras() -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, metadata, requires, version

    from packaging.requirements import Requirement

    try:
        extras = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
        needs = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return  # run from a source tree that is not installed: there is nothing to compare with
    for extra in sorted(set(extras) - {"test"}):
        missing: list[str] = []
        for need in needs:
            marker = need.marker
            if marker is None or marker.evaluate({"extra": ""}):
                continue
            if marker.evaluate({"extra": extra}):
                try:
                    if not need.specifier.contains(version(need.name), prereleases=True):
                        missing.append(str(need.name))
                except PackageNotFoundError:
                    missing.append(need.name)
        if missing:
            yield Check(
                name=f"extra {extra}",
                level="warning",
                text=f"not installed: {', '.join(missing)}",
                remedy=f"if you want it: {sys.executable} -m pip install '{DISTRIBUTION}[{extra}]'",
            )
        else:
            yield Check(name=f"extra {extra}", level="ok", text="installed")


async def _index() -> list[Check]:
    """Ask the index for a package, without the cache and without installing it."""
    from tempfile import TemporaryDirectory

    from py_code_mode.environments.uv import run_uv

    began = time.perf_counter()
    with TemporaryDirectory(prefix="code-mode-") as folder:
        options = ["--dry-run", "--no-cache", "--no-deps", "--target", folder]
        options += ["--python", sys.executable]
        try:
            answer = await run_uv("pip", "install", *options, "--", "pip", timeout=NETWORK_TIMEOUT)
        except (CodeModeError, OSError) as error:
            reason = str(error)
        else:
            reason = "" if answer.is_ok else (answer.stderr.strip().splitlines() or ["?"])[-1]
    if not reason:
        text = f"packages can be found; it took {time.perf_counter() - began:.1f} s"
        return [Check(name="package index", level="ok", text=text)]
    return [
        Check(
            name="package index",
            level="warning",
            text=f"cannot be reached: {reason[:300]}",
            remedy="connect to the network, or set UV_DEFAULT_INDEX or PIP_INDEX_URL to an index; "
            "what is in uv's cache works without",
        )
    ]
