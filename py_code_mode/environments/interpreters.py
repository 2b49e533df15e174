"""Finds the Python that a guest is to run on; every candidate has been run before it is chosen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from py_code_mode.environments.uv import run_uv_blocking
from py_code_mode.errors import ConfigError, EnvironmentFailed, InterpreterNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

Version: TypeAlias = "tuple[int, int, int]"

#: The oldest Python that a guest runs on.
OLDEST = (3, 10)

#: Seconds that a candidate may take to say what it is. A cold start from a slow disk takes a few.
PROBE_TIMEOUT = 15.0

#: Seconds that `uv python install` may take.
DOWNLOAD_TIMEOUT = 900.0

# Old and foreign interpreters run this too, so that the refusal can name what they are.
_PROBE = """
import json, platform, sys, sysconfig
v = sys.version_info
print(json.dumps({
    "path": getattr(sys, "_base_executable", None) or sys.executable,
    "prefix": getattr(sys, "base_prefix", sys.prefix),
    "version": [v[0], v[1], v[2]],
    "implementation": platform.python_implementation().lower(),
    "platform": sysconfig.get_platform(),
    "build": sys.version,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python on this machine that a guest can run on.

    Attributes:
        path: its executable, never one of a virtual environment.
        implementation: as `sys.implementation.name`; always ``cpython``.
        platform: as `sysconfig.get_platform`: ``linux-x86_64``.
        build: as `sys.version`; two builds of one version share no environment.
        is_free_threaded: a build without the GIL; chosen only by its path.
    """

    path: Path
    version: Version
    implementation: str
    platform: str
    build: str
    is_free_threaded: bool = False


def find_interpreter(wanted: str | None = None, *, allow_downloads: bool = False) -> Interpreter:
    """The interpreter to use for `wanted`; blocks while candidates are run.

    Searched in this order: the one this process runs on, PATH, pyenv's versions, those uv has
    installed, and only with `allow_downloads` what uv can download.

    Args:
        wanted: ``"3"``, ``"3.13"``, ``"3.13.0"`` or the path of an interpreter; None is the one
            this process runs on, without its virtual environment.

    Raises:
        ConfigError: `wanted` is neither a version nor a path, or a Python no guest can run on.
        InterpreterNotFound: there is none; the message lists those that are.
    """
    if wanted is None:
        return _own()
    if not isinstance(wanted, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        reason = f"must be text such as '3.12', or a path, not {wanted!r}"
        raise ConfigError("python_version", reason)
    if os.sep in wanted or wanted.startswith("~"):
        return _at_path(wanted)
    parts = parse_version(wanted)
    found = _first_match(parts)
    if found is None and allow_downloads:
        install = run_uv_blocking(
            "python", "install", wanted, timeout=DOWNLOAD_TIMEOUT, allow_downloads=True
        )
        if not install.is_ok:
            raise install.failure(f"Python {wanted}", "uv could not download it")
        found = _first_match(parts)
    if found is None:
        raise InterpreterNotFound(wanted, _available())
    return found


def parse_version(wanted: str) -> tuple[int, ...]:
    """``"3.13"`` as ``(3, 13)``; a `ConfigError` for what is no version a guest can run on."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", wanted):
        raise ConfigError(
            "python_version",
            f'{wanted!r} is neither a version ("3", "3.13", "3.13.0") nor the path of an '
            "interpreter",
        )
    parts = tuple(int(part) for part in wanted.split("."))
    if parts[:2] < OLDEST[: len(parts)]:
        raise ConfigError("python_version", _too_old(wanted))
    return parts


def _too_old(version: str) -> str:
    return f"Python {version} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest a guest runs on"


# --- candidates ---------------------------------------------------------------------------------


def _first_match(parts: tuple[int, ...]) -> Interpreter | None:
    def fits(found: Interpreter) -> bool:
        return found.version[: len(parts)] == parts and _refusal(found) is None

    own = _own()
    if fits(own):
        return own
    for path in _candidates(parts):
        found = _probe(path)
        if isinstance(found, Interpreter) and not found.is_free_threaded and fits(found):
            return found
    return None


def _candidates(parts: tuple[int, ...]) -> Iterator[Path]:
    names = ["python3", "python"]
    if len(parts) > 1:
        names.insert(0, f"python{parts[0]}.{parts[1]}")
    for name in names:
        for folder in _path_folders():
            yield folder / name
    for folder in (*_pyenv_versions(), *_uv_versions()):
        # A folder of another version need not be run to know that.
        if _version_in_name(folder)[: len(parts)] == parts:
            yield folder / "bin" / "python3"


def _path_folders() -> list[Path]:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    # pyenv's shims only start what is among its versions, slowly, or fail.
    skipped = str(_pyenv_root() / "shims")
    # A relative entry would mean another program in every folder.
    return [
        Path(folder)
        for folder in dict.fromkeys(folders)
        if os.path.isabs(folder) and os.path.normpath(folder) != skipped
    ]


def _pyenv_root() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()


def _pyenv_versions() -> list[Path]:
    return _version_folders(_pyenv_root() / "versions")


def _uv_versions() -> list[Path]:
    try:
        answer = run_uv_blocking("python", "dir", timeout=PROBE_TIMEOUT)
    except EnvironmentFailed:
        return []  # no uv: those it installed cannot be found, all others can
    return _version_folders(Path(answer.stdout.strip())) if answer.is_ok else []


def _version_folders(root: Path) -> list[Path]:
    try:
        folders = [folder for folder in root.iterdir() if _version_in_name(folder)]
    except OSError:
        return []
    return sorted(folders, key=_version_in_name, reverse=True)


def _version_in_name(folder: Path) -> tuple[int, ...]:
    # pyenv: 3.13.0; uv: cpython-3.13.0-linux-x86_64-gnu. Others (pypy3.10-…, 3.13t) fit no guest.
    found = re.match(r"(?:cpython-)?([0-9]+(?:\.[0-9]+){1,2})(?=$|-|\+)", folder.name)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def available_interpreters() -> tuple[Interpreter, ...]:
    """Every interpreter here that a guest can run on, oldest first; blocks while they are run."""
    paths = [
        path
        for folder in _path_folders()
        for path in sorted(folder.glob("python3*"))
        if re.fullmatch(r"python3(\.[0-9]+)?", path.name)
    ]
    paths += [
        folder / "bin" / "python3"
        for folder in (*_pyenv_versions(), *_uv_versions())
        if _version_in_name(folder)[:2] >= OLDEST
    ]
    found = {own.path: own for own in (_own(),)}
    for path in paths:
        answer = _probe(path)
        if isinstance(answer, Interpreter) and _refusal(answer) is None:
            found.setdefault(answer.path, answer)
    return tuple(sorted(found.values(), key=lambda each: (each.version, str(each.path))))


def _available() -> tuple[str, ...]:
    return tuple(
        f"{'.'.join(map(str, each.version))} ({each.path})" for each in available_interpreters()
    )


# --- one interpreter ----------------------------------------------------------------------------


def _own() -> Interpreter:
    base = getattr(sys, "_base_executable", None) or sys.executable
    path = _real(base, sys.base_prefix, sys.version_info[:3])
    if path is None:  # a program that embeds Python may have none
        raise EnvironmentFailed(
            "Python", "this process has no interpreter of its own; give python_version a path"
        )
    return Interpreter(
        path=path,
        version=sys.version_info[:3],
        implementation=sys.implementation.name,
        platform=sysconfig.get_platform(),
        build=sys.version,
        is_free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    )


def _at_path(wanted: str) -> Interpreter:
    path = Path(wanted).expanduser().absolute()
    if not path.is_file():
        raise InterpreterNotFound(wanted, _available())
    found = _probe(path)
    if isinstance(found, str):
        raise EnvironmentFailed(f"Python {wanted}", found)
    refusal = _refusal(found)
    if refusal is not None:
        raise ConfigError("python_version", f"{wanted}: {refusal}")
    return found


def _refusal(found: Interpreter) -> str | None:
    if found.implementation != "cpython":
        return f"it is {found.implementation}, and a guest runs on CPython"
    if found.version[:2] < OLDEST:
        return _too_old(".".join(map(str, found.version)))
    return None


def _real(executable: str, prefix: str, version: Version) -> Path | None:
    name = f"python{version[0]}.{version[1]}"
    for path in (Path(executable), Path(prefix) / "bin" / name):
        if executable and path.is_file() and os.access(path, os.X_OK):
            return Path(os.path.realpath(path))
    return None


_probed: dict[Path, tuple[int, Interpreter, int]] = {}
_probed_lock = threading.Lock()


def _probe(path: Path) -> Interpreter | str:
    """What `path` says it is, or why it cannot be used. A success is kept while no file changed."""
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        return error.strerror or "cannot be read"
    with _probed_lock:
        kept = _probed.get(path)
    if kept is not None and kept[0] == stamp and _stamp(kept[1].path) == kept[2]:
        return kept[1]
    answer = _ask(path)
    if isinstance(answer, Interpreter):
        with _probed_lock:
            _probed[path] = (stamp, answer, _stamp(answer.path))
    return answer


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _ask(path: Path) -> Interpreter | str:
    said = _run(path, "-I")
    if isinstance(said, str):
        return said
    code, out, err = said
    if code == 2 and "-I" in err:
        said = _run(path)  # Python 2: only to be able to name its version
        if isinstance(said, str):
            return said
        code, out, err = said
    if code != 0:
        return f"it does not run (exit status {code}): {err.strip()[-300:] or 'it says nothing'}"
    try:
        facts = json.loads(out.strip().splitlines()[-1])
        major, minor, micro = (int(part) for part in facts["version"])
        version = (major, minor, micro)
        real = _real(str(facts["path"]), str(facts["prefix"]), version)
        if real is None:
            return f"its executable {facts['path']} does not exist"
        return Interpreter(
            path=real,
            version=version,
            implementation=str(facts["implementation"]),
            platform=str(facts["platform"]),
            build=str(facts["build"]),
            is_free_threaded=bool(facts["free_threaded"]),
        )
    except (ValueError, KeyError, TypeError, IndexError):
        return "it does not answer as a Python interpreter does"


def _run(path: Path, *options: str) -> tuple[int, str, str] | str:
    try:
        child = subprocess.Popen(
            [path, *options, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A version file in the user's current folder must not decide what a pyenv shim is.
            cwd="/",
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return f"it cannot be run: {error.strerror}"
    with child:
        try:
            out, err = child.communicate(timeout=PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"it gave no answer within {PROBE_TIMEOUT:g} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, out, err
