"""The packages that one session adds to its environment, in a folder of its own.

What is added never changes what the environment below already has: its versions bind the resolver,
its folder is not written to. A package is in the folder whole or not at all: everything is
installed beside it first and then moved in, last the metadata by which a package counts as
installed.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import anyio
import anyio.to_thread

from py_code_mode.environments.base import (
    Environment,
    Installed,
    install_with_uv,
    installed,
    plain_requirement,
)
from py_code_mode.environments.uv import IndexUnreachable, run_uv
from py_code_mode.errors import EnvironmentFailed, InvalidRequirement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from packaging.requirements import Requirement

_WOULD_INSTALL = re.compile(r"^ \+ (?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)", re.MULTILINE)


class InstallReport(TypedDict):
    """What became of each requirement, as it was given; `errors` says why some failed."""

    installed: list[str]
    already_present: list[str]
    failed: list[str]
    errors: dict[str, str]


class RemovalReport(TypedDict):
    """What became of a package to remove; `errors` says why it cannot be."""

    removed: list[str]
    not_found: list[str]
    failed: list[str]
    errors: dict[str, str]


class Overlay:
    """A folder of packages on top of an environment; one session owns it and removes it.

    Put `folder` behind the environment's own folders on ``sys.path``. Calls queue; all of them may
    be cancelled, and then what was not finished has not happened.
    """

    def __init__(self, folder: Path, environment: Environment) -> None:
        self.folder = folder.absolute()
        self.environment = environment
        self._marked: set[str] = set()
        self._turn = anyio.Lock()

    async def install(
        self, requirements: Sequence[str], *, allow_builds: bool = False
    ) -> InstallReport:
        """Add what is not there yet; importable at once. One that fails does not stop the others.

        Args:
            requirements: plain ``name[extras]`` with version bounds.
            allow_builds: accept packages without a wheel, which run their own code to be built.
        """
        report = InstallReport(installed=[], already_present=[], failed=[], errors={})
        wanted: dict[str, Requirement] = {}
        for text in dict.fromkeys(requirements):
            try:
                wanted[text] = plain_requirement(text)
            except InvalidRequirement as error:
                _fail(report, text, error.reason)
        async with self._turn:
            missing = await anyio.to_thread.run_sync(self._missing, wanted)
            report["already_present"] = [text for text in wanted if text not in missing]
            await self._install_missing(missing, report, allow_builds)
        report["failed"].sort(key=list(dict.fromkeys(requirements)).index)
        return report

    async def remove(self, package: str) -> RemovalReport:
        """Mark a package of this overlay for removal, which `apply_removals` carries out.

        A live interpreter may have it imported, so its files stay until then. ``removed`` means
        marked.
        """
        report = RemovalReport(removed=[], not_found=[], failed=[], errors={})
        try:
            name = _normal(plain_requirement(package).name)
        except InvalidRequirement as error:
            report["failed"].append(package)
            report["errors"][package] = error.reason
            return report
        async with self._turn:
            own = await anyio.to_thread.run_sync(self._own)
            if name in own and name not in self._marked:
                self._marked.add(name)
                report["removed"].append(package)
            elif name in await anyio.to_thread.run_sync(self._below):
                report["failed"].append(package)
                report["errors"][package] = "it belongs to the environment below, which is shared"
            else:
                report["not_found"].append(package)
        return report

    async def apply_removals(self) -> list[str]:
        """Remove what is marked; call it at reset, while no interpreter uses the folder.

        Returns:
            the names of the packages that are gone. If one file cannot be moved, all stay.
        """
        async with self._turn:
            if not self._marked:
                return []
            gone: list[str] = []
            with anyio.CancelScope(shield=True):
                gone = await anyio.to_thread.run_sync(self._remove_marked)
                self._marked.clear()
            return gone

    def list(self) -> list[tuple[str, str]]:
        """Name and version of each package in the folder, those marked for removal left out."""
        own = self._own()
        return [
            (name, found.version) for name, found in sorted(own.items()) if name not in self._marked
        ]

    # --- what is there ---

    def _own(self) -> dict[str, Installed]:
        return installed((str(self.folder),))

    def _below(self) -> dict[str, Installed]:
        own = os.path.realpath(self.folder)
        folders = self.environment.search_path
        return installed(tuple(path for path in folders if os.path.realpath(path) != own))

    def _visible(self) -> dict[str, Installed]:
        # What is marked for removal is as good as gone: nothing new may come to rely on it.
        own = {name: found for name, found in self._own().items() if name not in self._marked}
        return {**own, **self._below()}

    def _missing(self, wanted: dict[str, Requirement]) -> dict[str, Requirement]:
        visible = self._visible()
        facts = _marker_facts(self.environment)
        return {
            text: requirement
            for text, requirement in wanted.items()
            if not _is_satisfied(requirement, visible, facts, set())
        }

    # --- adding ---

    async def _install_missing(
        self, missing: dict[str, Requirement], report: InstallReport, allow_builds: bool
    ) -> None:
        if not missing:
            return
        try:
            await self._add(list(missing.values()), allow_builds)
        except IndexUnreachable as error:
            for text in missing:  # asking again for each would only take long
                _fail(report, text, error.message)
            return
        except EnvironmentFailed as error:
            if len(missing) == 1:
                _fail(report, next(iter(missing)), error.message)
                return
        else:
            report["installed"] += missing
            return
        for text, requirement in missing.items():
            await self._install_missing({text: requirement}, report, allow_builds)

    async def _add(self, requirements: list[Requirement], allow_builds: bool) -> None:
        """Install the requirements and what they need, or raise and change nothing."""
        work = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
        what = ", ".join(map(str, requirements))
        try:
            await anyio.to_thread.run_sync(self._prepare, work)
            builds = () if allow_builds else ("--only-binary", ":all:")
            python = ("--python", str(self.environment.python))
            pins = await self._resolve([*python, *builds], requirements, work, what)
            if not pins:
                return
            staging = work / "staging"
            await install_with_uv(
                *(*python, *builds, "--target", str(staging), "--no-deps", "--compile-bytecode"),
                # A session may write into its own copy, so it shares no files with uv's cache.
                *("--link-mode", "copy"),
                requirements=pins,
                what=what,
            )
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._move_in, staging, work / "replaced")
        except OSError as error:
            raise EnvironmentFailed(what, f"cannot be written: {error.strerror}") from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove_tree, work)

    def _prepare(self, work: Path) -> None:
        """Describe for uv what is visible: metadata only, so that it looks into no other folder.

        uv is shown this mirror instead of the environment because it locks what it looks at, and
        because the running process may see packages (``PYTHONPATH``, plug-ins) that uv cannot.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mirror = work / "mirror"
        mirror.mkdir(parents=True)
        for name, found in self._visible().items():
            text = _metadata(found)
            if text is not None:
                folder = mirror / f"{name.replace('-', '_')}-{found.version}.dist-info"
                folder.mkdir()
                (folder / "METADATA").write_text(text, "utf-8")
                (folder / "INSTALLER").write_text("py-code-mode\n", "utf-8")
                (folder / "RECORD").touch()
        below = "".join(
            f"{name}=={found.version}\n"
            for name, found in self._below().items()
            if _is_version(found.version)
        )
        (work / "constraints.txt").write_text(below, "utf-8")

    async def _resolve(
        self, options: list[str], requirements: list[Requirement], work: Path, what: str
    ) -> list[str]:
        """The exact versions to add: what is visible stays as it is wherever it fits."""
        arguments = (
            *("pip", "install", "--dry-run", *options, "--target", str(work / "mirror")),
            *("--constraint", str(work / "constraints.txt")),
        )
        texts = [str(requirement) for requirement in requirements]
        answer = await run_uv(*arguments, "--offline", "--", *texts)
        if not answer.is_ok:
            answer = await run_uv(*arguments, "--", *texts)
        if not answer.is_ok:
            raise answer.failure(what, "cannot be installed")
        below = await anyio.to_thread.run_sync(self._below)
        return [
            f"{found['name']}=={found['version']}"
            for found in _WOULD_INSTALL.finditer(answer.stderr)
            if _normal(found["name"]) not in below
        ]

    def _move_in(self, staging: Path, replaced: Path) -> None:
        new = installed((str(staging),))
        own = self._own()
        with _Moves() as moves:
            for name in new.keys() & own.keys():
                _take_out(own[name], self.folder, replaced / "packages", moves)
            files = [path for path in _files(staging) if path != staging / ".lock"]
            # A package counts as installed once its metadata is there.
            files.sort(key=lambda path: ".dist-info" in path.relative_to(staging).parts[0])
            for path in files:
                target = self.folder / path.relative_to(staging)
                if os.path.lexists(target):
                    moves.move(target, replaced / "others" / path.relative_to(staging))
                moves.move(path, target)
        self._marked -= new.keys()

    # --- removing ---

    def _remove_marked(self) -> list[str]:
        own = self._own()
        work = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
        gone = sorted(self._marked & own.keys())
        try:
            with _Moves() as moves:
                for name in gone:
                    _take_out(own[name], self.folder, work / name, moves)
        except OSError as error:
            raise EnvironmentFailed(
                ", ".join(gone), f"cannot be removed: {error.strerror}"
            ) from error
        finally:
            _remove_tree(work)
        return gone


def _fail(report: InstallReport, text: str, reason: str) -> None:
    report["failed"].append(text)
    report["errors"][text] = reason


# --- files --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Moves:
    """File moves that are all undone if one fails."""

    done: list[tuple[Path, Path]] = field(default_factory=list[tuple[Path, Path]])

    def move(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        self.done.append((source, target))

    def __enter__(self) -> _Moves:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for source, target in reversed(self.done):
                source.parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, source)


def _take_out(package: Installed, folder: Path, away: Path, moves: _Moves) -> None:
    """Move a package's files out of `folder`; those of others in the same folders stay."""
    # Metadata first: a package of which something is missing must not count as installed.
    files = [*_files(package.path), *_recorded(package, folder)]
    for path in dict.fromkeys(files):
        if os.path.lexists(path):
            moves.move(path, away / path.relative_to(folder))
    for parent in sorted({path.parent for path in files}, reverse=True):
        while parent != folder and parent.is_relative_to(folder):
            try:
                parent.rmdir()
            except OSError:
                break  # another package's files are in it
            parent = parent.parent


def _recorded(package: Installed, folder: Path) -> Iterator[Path]:
    import csv

    try:
        lines = (package.path / "RECORD").read_text("utf-8").splitlines()
    except OSError:
        return
    for row in csv.reader(lines):
        # A wheel's author wrote these names: none may lead out of the folder.
        path = Path(os.path.normpath(folder / row[0])) if row else folder
        if path == folder or not path.is_relative_to(folder):
            continue
        if path.is_relative_to(package.path):
            continue
        yield path
        if path.suffix == ".py":
            yield from path.parent.glob(f"__pycache__/{glob.escape(path.stem)}.*.pyc")


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                yield Path(parent, name)


def _remove_tree(folder: Path) -> None:
    # Never seen by a guest; what cannot be removed goes with the session's folder.
    shutil.rmtree(folder, ignore_errors=True)


# --- metadata -----------------------------------------------------------------------------------


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _is_version(text: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        Version(text)
    except InvalidVersion:
        return False  # installed before versions were checked; it binds nothing
    return True


def _metadata(package: Installed) -> str | None:
    for path in (package.path / "METADATA", package.path / "PKG-INFO", package.path):
        try:
            return path.read_text("utf-8", "replace")
        except OSError:
            continue  # the next layout
    return None


def _requires(package: Installed) -> list[Requirement]:
    from email.parser import HeaderParser

    from packaging.requirements import InvalidRequirement as NotOne
    from packaging.requirements import Requirement

    found: list[Requirement] = []
    headers = HeaderParser().parsestr(_metadata(package) or "")
    for text in headers.get_all("Requires-Dist", []):
        try:
            found.append(Requirement(str(text)))
        except NotOne:
            continue  # uv, which installed it, could read it; it is only not looked into here
    return found


def _marker_facts(environment: Environment) -> dict[str, str]:
    """The guest's own answers to environment markers; the machine is the same as ours."""
    from packaging.markers import default_environment

    full = ".".join(map(str, environment.version))
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": f"{environment.version[0]}.{environment.version[1]}",
        "python_full_version": full,
        "implementation_version": full,
    }


def _is_satisfied(
    requirement: Requirement,
    visible: dict[str, Installed],
    facts: dict[str, str],
    seen: set[tuple[str, str]],
) -> bool:
    """Whether what is visible fulfils it, and for each extra what that extra asks for."""
    package = visible.get(_normal(requirement.name))
    if package is None:
        return False
    if requirement.specifier and not (
        _is_version(package.version)
        and requirement.specifier.contains(package.version, prereleases=True)
    ):
        return False
    for extra in requirement.extras:
        if (package.name, extra) in seen:
            continue  # extras that ask for each other
        seen.add((package.name, extra))
        for needed in _requires(package):
            marker = needed.marker
            if marker is None or marker.evaluate({**facts, "extra": ""}):
                continue  # asked for without the extra: whoever installed the package saw to it
            if marker.evaluate({**facts, "extra": extra}) and not _is_satisfied(
                needed, visible, facts, seen
            ):
                return False
    return True
