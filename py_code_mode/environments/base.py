"""The environments guests run with: made once for an interpreter and its packages, then shared.

An environment is complete or it does not exist: ``environment.json`` is written last, a half-made
folder is made anew by the next who needs it, and one lock per environment, held by uv's own process
too, lets exactly one process make it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import anyio
import anyio.to_thread

from py_code_mode.environments.interpreters import (
    DOWNLOAD_TIMEOUT,
    Interpreter,
    Version,
    find_interpreter,
)
from py_code_mode.environments.uv import run_uv
from py_code_mode.errors import EnvironmentFailed, InterpreterNotFound, InvalidRequirement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packaging.requirements import Requirement

#: What every guest can import unless its session says otherwise.
DEFAULT_PACKAGES = ("numpy", "pandas", "pyarrow", "cloudpickle")

# Part of every key: raised when environments of an earlier release must not be used any more.
_FORMAT = 1
_MARKER = "environment.json"
_VENV_TIMEOUT = 120.0
_POLL_FIRST, _POLL_LAST = 0.005, 0.1
_NO_PACKAGES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a guest's environment must hold.

    Attributes:
        python: as in `find_interpreter`.
        packages: requirements, plain ``name[extras]`` with version bounds.
        private: a copy of its own, removed by `Environment.remove`.
        allow_downloads: uv may download an interpreter that is not here.
    """

    python: str | None = None
    packages: tuple[str, ...] = DEFAULT_PACKAGES
    private: bool = False
    allow_downloads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An interpreter with packages; the shared ones are never altered.

    Attributes:
        python: the executable to run guests with.
        site_packages: where its packages are.
        search_path: every folder in which its packages are found.
        key: names the environment; the same for the same interpreter and packages.
        packages: installed versions by normalized name.
        folder: what was made; None for the environment this process runs in.
    """

    python: Path
    site_packages: Path
    search_path: tuple[str, ...]
    version: Version
    key: str
    packages: Mapping[str, str] = field(default_factory=lambda: _NO_PACKAGES)
    folder: Path | None = None
    is_private: bool = False

    async def remove(self) -> None:
        """Remove a private environment's folder; a shared one stays, for the next session."""
        if not self.is_private or self.folder is None:
            return
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove_private, self.folder)


def cache_root() -> Path:
    """The folder of all environments: ``PY_CODE_MODE_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("PY_CODE_MODE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute() / "environments"
    import platformdirs  # only where an environment is looked up

    return Path(platformdirs.user_cache_dir("py-code-mode", appauthor=False)) / "environments"


def host_environment() -> Environment:
    """The environment this process runs in, as it is now; nothing is ever installed into it."""
    found = installed_versions(tuple(sys.path))
    return Environment(
        python=Path(sys.executable),
        site_packages=Path(sysconfig.get_path("purelib")),
        search_path=tuple(sys.path),
        version=sys.version_info[:3],
        key="host",
        packages=MappingProxyType(found),
    )


# What was realised here before, with the stamps of the two files that tell whether it still holds.
_realised: dict[tuple[Path, EnvironmentSpec], tuple[Environment, tuple[int, ...]]] = {}


async def realise(spec: EnvironmentSpec) -> Environment:
    """The environment of `spec`, made if this is its first use on this machine.

    The first use installs packages: from uv's cache if all are there, else from the package index.
    Later ones read one file, in the same process they check two time stamps. A cancelled caller
    leaves nothing half-made that anyone could use.

    Raises:
        ConfigError, InterpreterNotFound: as `find_interpreter`.
        InvalidRequirement: a package is not a plain requirement.
        EnvironmentFailed: the packages cannot be had; the message says whether the network or
            the requirements are the cause.
    """
    root = cache_root()
    remembered = None if spec.private else _realised.get((root, spec))
    if remembered is not None and _stamps(remembered[0]) == remembered[1]:
        return remembered[0]
    packages = sorted({str(plain_requirement(text)) for text in spec.packages})
    interpreter = await _interpreter(spec)
    key = _key(interpreter, packages)
    if spec.private:
        return await _make_private(root, key, interpreter, packages)
    folder = root / key
    environment = await anyio.to_thread.run_sync(_read, folder, key, interpreter.version)
    if environment is None:
        environment = await _make_shared(folder, key, interpreter, packages)
    _realised[root, spec] = (environment, _stamps(environment))
    return environment


def plain_requirement(text: str) -> Requirement:
    """`text` parsed; `InvalidRequirement` unless it is a plain ``name[extras]`` with bounds."""
    from packaging.requirements import InvalidRequirement as NotOne
    from packaging.requirements import Requirement

    if text.lstrip().startswith("-"):
        raise InvalidRequirement(text, "options are not requirements")
    try:
        parsed = Requirement(text)
    except NotOne as error:
        raise InvalidRequirement(text, str(error).splitlines()[0]) from error
    if parsed.url is not None:
        raise InvalidRequirement(text, "URLs are not installed from; name a package of the index")
    if parsed.marker is not None:
        raise InvalidRequirement(text, "environment markers are not supported here")
    return parsed


async def _interpreter(spec: EnvironmentSpec) -> Interpreter:
    try:
        return await anyio.to_thread.run_sync(find_interpreter, spec.python)
    except InterpreterNotFound:
        if not spec.allow_downloads or spec.python is None or os.sep in spec.python:
            raise
    # Here and not in find_interpreter, so that cancellation ends the download.
    answer = await run_uv(
        "python", "install", spec.python, timeout=DOWNLOAD_TIMEOUT, allow_downloads=True
    )
    if not answer.is_ok:
        raise answer.failure(f"Python {spec.python}", "uv could not download it")
    return await anyio.to_thread.run_sync(find_interpreter, spec.python)


def _key(interpreter: Interpreter, packages: list[str]) -> str:
    facts = [
        _FORMAT,
        str(interpreter.path),
        interpreter.version,
        interpreter.platform,
        interpreter.build,
        packages,
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return f"py{interpreter.version[0]}.{interpreter.version[1]}-{digest}"


def _stamps(environment: Environment) -> tuple[int, ...]:
    assert environment.folder is not None
    try:
        marker = os.stat(environment.folder / _MARKER)
        python = os.stat(environment.python)  # follows the link: an upgraded Python is noticed
    except OSError:
        return ()
    return (marker.st_ino, marker.st_mtime_ns, python.st_ino, python.st_mtime_ns)


# --- making one ---------------------------------------------------------------------------------


async def _make_shared(
    folder: Path, key: str, interpreter: Interpreter, packages: list[str]
) -> Environment:
    lock = _open_lock(folder.with_name(f"{key}.lock"))
    try:
        wait = _POLL_FIRST
        while True:
            is_ours = _try_lock(lock)
            # Another task or process may have made it; a whole one needs no lock to be read.
            made = await anyio.to_thread.run_sync(_read, folder, key, interpreter.version)
            if made is not None:
                return made
            if is_ours:
                break
            await anyio.sleep(wait)
            wait = min(wait * 2, _POLL_LAST)
        await _make(folder, key, interpreter, packages, lock, is_private=False)
        made = await anyio.to_thread.run_sync(_read, folder, key, interpreter.version)
        if made is None:
            raise _cannot_be_read(folder)
        return made
    finally:
        os.close(lock)


def _cannot_be_read(folder: Path) -> EnvironmentFailed:
    return EnvironmentFailed(
        str(folder), "the environment was made but cannot be read back; is the disk full?"
    )


async def _make_private(
    root: Path, key: str, interpreter: Interpreter, packages: list[str]
) -> Environment:
    await anyio.to_thread.run_sync(_sweep, root / "private")
    folder, lock = _claim_private(root / "private", key)
    try:
        await _make(folder, key, interpreter, packages, lock, is_private=True)
        made = await anyio.to_thread.run_sync(_read, folder, key, interpreter.version, True)
        if made is None:
            raise _cannot_be_read(folder)
        return made
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove_private, folder)
        raise


async def _make(
    folder: Path,
    key: str,
    interpreter: Interpreter,
    packages: list[str],
    lock: int,
    *,
    is_private: bool,
) -> None:
    """Make the environment at its final path: virtual environments hold absolute paths."""
    what = f"environment for Python {'.'.join(map(str, interpreter.version))}"
    is_done = False
    try:
        await anyio.to_thread.run_sync(_remove_tree, folder)
        answer = await run_uv(
            "venv",
            "--no-project",
            "--python",
            str(interpreter.path),
            "--",
            str(folder),
            timeout=_VENV_TIMEOUT,
            keep_open=(lock,),
        )
        if not answer.is_ok:
            raise answer.failure(what, "the virtual environment cannot be made")
        if packages:
            # A private copy may be written to, so it must not share files with uv's cache.
            mode = ("--link-mode", "copy") if is_private else ()
            await install_with_uv(
                *("--python", str(folder / "bin" / "python"), "--compile-bytecode", *mode),
                requirements=packages,
                what=what,
                keep_open=(lock,),
            )
        await anyio.to_thread.run_sync(_finish, folder, key, interpreter)
        is_done = True
    except OSError as error:
        raise EnvironmentFailed(str(folder), error.strerror or str(error)) from error
    finally:
        if not is_done:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove_tree, folder)


async def install_with_uv(
    *options: str, requirements: list[str], what: str, keep_open: tuple[int, ...] = ()
) -> str:
    """``uv pip install``, without the network if uv's cache has all, else with it.

    Returns:
        what uv said.

    Raises:
        EnvironmentFailed: neither way succeeded.
    """
    arguments = ("pip", "install", *options)
    answer = await run_uv(*arguments, "--offline", "--", *requirements, keep_open=keep_open)
    if not answer.is_ok:
        answer = await run_uv(*arguments, "--", *requirements, keep_open=keep_open)
    if not answer.is_ok:
        raise answer.failure(what, f"cannot install {', '.join(requirements)}")
    return answer.stderr


def _finish(folder: Path, key: str, interpreter: Interpreter) -> None:
    site = _site_packages(folder, interpreter.version)
    facts = {
        "format": _FORMAT,
        "key": key,
        "interpreter": str(interpreter.path),
        "build": interpreter.build,
        "version": interpreter.version,
        "packages": installed_versions((str(site),)),
    }
    partial = folder / f"{_MARKER}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / _MARKER)


def _read(folder: Path, key: str, version: Version, is_private: bool = False) -> Environment | None:
    """The finished environment in `folder`; None where it is missing or half-made."""
    try:
        facts: object = json.loads((folder / _MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict):
        return None
    facts = cast("dict[str, object]", facts)
    python = folder / "bin" / "python"
    site = _site_packages(folder, version)
    packages = facts.get("packages")
    if facts.get("format") != _FORMAT or facts.get("key") != key or not isinstance(packages, dict):
        return None
    if not python.exists() or not site.is_dir():
        return None
    versions = cast("dict[str, str]", packages)
    return Environment(
        python=python,
        site_packages=site,
        search_path=(str(site),),
        version=version,
        key=key,
        packages=MappingProxyType(versions),
        folder=folder,
        is_private=is_private,
    )


def _site_packages(folder: Path, version: Version) -> Path:
    return folder / "lib" / f"python{version[0]}.{version[1]}" / "site-packages"


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # nothing was made yet
    except OSError as error:
        raise EnvironmentFailed(str(folder), f"cannot be removed: {error.strerror}") from error


# --- locks --------------------------------------------------------------------------------------


# Each holder opens the lock file itself, so that the lock also excludes tasks and threads of one
# process. It is polled, never waited for in a thread: a waiting task can be cancelled at once. It
# is released by closing it: a child that inherited the descriptor, and outlived us, keeps it.


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise EnvironmentFailed(
            str(path.parent),
            f"cannot be written: {error.strerror}; PY_CODE_MODE_CACHE may name another folder",
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


# The lock of each private environment is held as long as this process lives, so that others can
# tell the folder of a living session from one whose process was killed.
_private_locks: dict[Path, int] = {}


def _claim_private(parent: Path, key: str) -> tuple[Path, int]:
    while True:
        folder = parent / f"{key}-{secrets.token_hex(4)}"
        lock = _lock_of(folder)
        descriptor = _open_lock(lock)
        # A sweep by another process may have taken and removed the file in between.
        if _try_lock(descriptor) and lock.exists():
            _private_locks[folder] = descriptor
            return folder, descriptor
        os.close(descriptor)


def _remove_private(folder: Path) -> None:
    descriptor = _private_locks.pop(folder, None)
    _remove_tree(folder)
    _lock_of(folder).unlink(missing_ok=True)
    if descriptor is not None:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the private environments of processes that are gone."""
    for lock in parent.glob("*.lock"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # its owner removed it just now
        try:
            if _try_lock(descriptor):
                _remove_tree(lock.with_suffix(""))
                lock.unlink(missing_ok=True)
        except EnvironmentFailed:
            continue  # another user's: theirs to remove
        finally:
            os.close(descriptor)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


# --- what is installed --------------------------------------------------------------------------


def installed_versions(search_path: tuple[str, ...]) -> dict[str, str]:
    """Versions by normalized name of all packages in the folders; the first folder wins."""
    return {name: found.version for name, found in installed(search_path).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One installed package: its metadata folder (or, from old installers, file)."""

    name: str
    version: str
    path: Path


def installed(search_path: tuple[str, ...]) -> dict[str, Installed]:
    """All packages in the folders by normalized name; the first folder wins, as in an import.

    Reads folders only. `importlib.metadata` would answer the same, from a cache that may not have
    seen what was installed a millisecond ago, and after parsing every package's metadata.
    """
    from packaging.utils import canonicalize_name

    found: dict[str, Installed] = {}
    for folder in search_path:
        try:
            entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
        except OSError:
            continue  # sys.path names folders that do not exist, and zip files
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix not in (".dist-info", ".egg-info"):
                continue
            name, version = _name_and_version(stem, Path(entry.path))
            if name and version:
                found.setdefault(
                    canonicalize_name(name),
                    Installed(name=name, version=version, path=Path(entry.path)),
                )
    return found


def _name_and_version(stem: str, path: Path) -> tuple[str, str]:
    name, _, version = stem.partition("-")
    if version and path.suffix == ".dist-info":
        return name, version
    import importlib.metadata  # slow to import, seldom needed

    facts = importlib.metadata.Distribution.at(path).metadata
    return str(facts["Name"] or name), str(facts["Version"] or version.partition("-")[0])
