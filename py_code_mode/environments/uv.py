"""The one place that runs uv: bounded, killed with its children on cancellation, secrets removed.

uv has its own settings, and they win. Where it has none and pip has, pip's index and certificate
settings are handed to uv in the environment of that one child process, never in a file.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import anyio
import anyio.to_thread

from py_code_mode.errors import ConfigError, EnvironmentFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seconds that a step which talks to a package index may take.
INSTALL_TIMEOUT = 1800.0

#: Seconds to wait for a killed process group to be gone.
REAP_TIMEOUT = 10.0

#: Characters of uv's output that an error carries.
TAIL = 2000

_FLAGS = ("--no-progress", "--color", "never")


class IndexUnreachable(EnvironmentFailed):
    """No package index answered, so asking for another package would fail too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UvAnswer:
    """What a finished uv said, with the credentials in URLs removed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def is_ok(self) -> bool:
        """True if uv did what it was asked."""
        return self.returncode == 0

    @property
    def is_unreachable(self) -> bool:
        """True if uv failed because it could not reach, or was told not to ask, an index."""
        return not self.is_ok and bool(_UNREACHABLE.search(self.stderr))

    def failure(self, what: str, reason: str) -> EnvironmentFailed:
        """The error to raise for this answer; it says so where the network was the cause."""
        if self.is_unreachable:
            reason = (
                "needed packages are not in uv's cache and the package index cannot be reached; "
                "connect to the network once, or point uv or pip at an index that can be reached "
                "(UV_DEFAULT_INDEX, PIP_INDEX_URL)"
            )
            return IndexUnreachable(what, reason, self.stderr.strip()[-TAIL:])
        return EnvironmentFailed(what, reason, self.stderr.strip()[-TAIL:])


_UNREACHABLE = re.compile(
    r"network (?:was|is) disabled|network connectivity is disabled|request failed after"
    r"|error sending request|dns error|connect error|operation timed out",
    re.IGNORECASE,
)


async def run_uv(
    *arguments: str,
    timeout: float = INSTALL_TIMEOUT,
    keep_open: Sequence[int] = (),
    allow_downloads: bool = False,
) -> UvAnswer:
    """Run uv to its end. A cancelled caller kills uv and its children and waits for their end.

    Args:
        arguments: subcommand, options and operands; what a user wrote belongs after ``--``.
        keep_open: file descriptors that uv inherits: a lock held through one of them is held as
            long as uv lives, even if this process is killed.
        allow_downloads: let uv download interpreters.
    """
    settings = await anyio.to_thread.run_sync(uv_settings, os.environ, allow_downloads)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # Files, not pipes: a grandchild that outlives uv can neither block us nor be blocked.
        # Cancelled in here, asyncio itself kills and reaps what it has just started.
        process = await anyio.open_process(
            settings.command(_binary(), arguments),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd="/",
            env=settings.environment,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
        expired: float | None = timeout
        try:
            with anyio.move_on_after(timeout):
                await process.wait()
                expired = None
        finally:
            if process.returncode is None:
                _kill_group(process.pid)
                with anyio.move_on_after(REAP_TIMEOUT, shield=True):
                    await process.wait()
        return _answer(process.returncode, out, err, expired)


def run_uv_blocking(
    *arguments: str, timeout: float = INSTALL_TIMEOUT, allow_downloads: bool = False
) -> UvAnswer:
    """As `run_uv`, for synchronous callers."""
    settings = uv_settings(os.environ, allow_downloads)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            settings.command(_binary(), arguments),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd="/",
            env=settings.environment,
            start_new_session=True,
        )
        expired = None
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            expired = timeout
        finally:
            if process.poll() is None:
                _kill_group(process.pid)
                process.wait(REAP_TIMEOUT)
        return _answer(process.returncode, out, err, expired)


def _binary() -> str:
    try:
        import uv  # takes a few milliseconds, and a session whose environment exists needs none

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError) as error:
        raise EnvironmentFailed(
            "uv", "it is not installed beside py-code-mode; `pip install uv` brings it back"
        ) from error


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself meanwhile


def _answer(
    returncode: int | None, out: IO[bytes], err: IO[bytes], expired: float | None
) -> UvAnswer:
    said = _read(err)
    if expired is not None:
        said += f"\nuv did not finish within {expired:g} s and was stopped"
    return UvAnswer(
        returncode=-signal.SIGKILL if returncode is None else returncode,
        stdout=without_credentials(_read(out)),
        stderr=without_credentials(said),
    )


def _read(file: IO[bytes], limit: int = 1 << 20) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - limit))
    return file.read().decode("utf-8", "replace")


def without_credentials(text: str) -> str:
    """`text` with ``user:password@`` taken out of every URL."""
    return re.sub(r"(?<=://)[^/\s'\"`<>]*@", "", text)


# --- settings -----------------------------------------------------------------------------------

# fmt: off
# What uv and the programs it starts need of ours; everything else is none of their business.
_KEPT = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE",
    "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_BIN_HOME",
    "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "PYENV_ROOT",
})

# These choose another target or another Python, or add to what is asked: our arguments decide.
_DROPPED = frozenset({
    "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_MANAGED_PYTHON",
    "UV_NO_MANAGED_PYTHON", "UV_PYTHON_PREFERENCE", "UV_PROJECT", "UV_PROJECT_ENVIRONMENT",
    "UV_WORKING_DIR", "UV_WORKING_DIRECTORY", "UV_VENV_SEED", "UV_VENV_CLEAR",
    "UV_VENV_RELOCATABLE", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_REQUIRE_HASHES",
    "UV_NO_BINARY", "UV_NO_BUILD", "UV_ENV_FILE", "UV_ISOLATED", "UV_COMPILE_BYTECODE",
})
# fmt: on

_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
_CERTIFICATES = ("SSL_CERT_FILE", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS")
_TRUE = ("1", "true", "yes", "on", "y", "t")


@dataclass(frozen=True, slots=True, kw_only=True)
class UvSettings:
    """What uv is told besides its arguments.

    Attributes:
        environment: all its environment variables.
        no_index: whether it must ask no index; for that uv has an option, but no variable.
    """

    environment: dict[str, str]
    no_index: bool = False

    def command(self, binary: str, arguments: Sequence[str]) -> list[str]:
        """The command line of one run."""
        installs = tuple(arguments[:2]) == ("pip", "install")
        no_index = ("--no-index",) if self.no_index and installs else ()
        # Behind the subcommand, before any ``--``.
        return [binary, *_FLAGS, *arguments[:2], *no_index, *arguments[2:]]


def uv_settings(environ: Mapping[str, str], allow_downloads: bool = False) -> UvSettings:
    """The settings uv gets; `environ` are the environment variables of this process.

    Raises:
        ConfigError: uv has no index of its own and pip's configuration cannot be read.
    """
    result = {
        name: value
        for name, value in environ.items()
        if (name.upper() in _KEPT or name.startswith("UV_")) and name not in _DROPPED
    }
    for name in ("UV_FIND_LINKS", "UV_INDEX", "UV_CACHE_DIR", "UV_CONFIG_FILE"):
        if result.get(name):
            result[name] = _absolute(result[name], "," if name == "UV_FIND_LINKS" else " ")
    result["UV_PYTHON_DOWNLOADS"] = "automatic" if allow_downloads else "never"
    uv_has = _names_in_uv_config(environ)
    if any(result.get(name) for name in _INDEX) or uv_has & {
        "index",
        "index-url",
        "default-index",
        "extra-index-url",
        "no-index",
    }:
        uv_has = uv_has | {"any-index"}
    if result.get("UV_FIND_LINKS"):
        uv_has = uv_has | {"find-links"}
    if {"any-index", "find-links"} <= uv_has and any(result.get(name) for name in _CERTIFICATES):
        return UvSettings(environment=result)
    pip = pip_settings(environ)
    if "any-index" not in uv_has:
        _pass_index(pip, result)
        if "find-links" not in uv_has:
            links = [_as_url(link) for link in pip.get("find-links", "").split()]
            _set(result, "UV_FIND_LINKS", ",".join(filter(None, links)))
    if not any(result.get(name) for name in _CERTIFICATES):
        _set(result, "SSL_CERT_FILE", pip.get("cert", ""))
    if not result.get("SSL_CLIENT_CERT"):
        _set(result, "SSL_CLIENT_CERT", pip.get("client-cert", ""))
    if not result.get("UV_INSECURE_HOST") and "allow-insecure-host" not in uv_has:
        _set(result, "UV_INSECURE_HOST", " ".join(pip.get("trusted-host", "").split()))
    no_index = "any-index" not in uv_has and pip.get("no-index", "").lower() in _TRUE
    return UvSettings(environment=result, no_index=no_index)


def _pass_index(pip: Mapping[str, str], result: dict[str, str]) -> None:
    _set(result, "UV_DEFAULT_INDEX", _as_url(pip.get("index-url", "").strip()))
    extra = [_as_url(url) for url in pip.get("extra-index-url", "").split()]
    _set(result, "UV_INDEX", " ".join(filter(None, extra)))
    if result.get("UV_INDEX"):
        # pip looks for a package in every index. By default uv stops at the first that has its
        # name, so that a partial mirror would make installable packages unsatisfiable; this asks
        # the others too, but only for what the first has in no usable version.
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-first-match")


def _set(result: dict[str, str], name: str, value: str) -> None:
    if value:
        result[name] = value


def _as_url(location: str) -> str:
    """An index or a folder as a URL; empty for a folder that is not there (pip ignores those)."""
    if "://" in location and not location.startswith("file:"):
        return location
    if not location:
        return ""
    if location.startswith("file:"):
        from urllib.parse import unquote, urlsplit

        path = Path(unquote(urlsplit(location).path))
    else:
        path = Path(location).expanduser().absolute()
    return path.as_uri().replace(",", "%2C") if path.exists() else ""


def _absolute(value: str, separator: str) -> str:
    # uv runs in another folder than this process, so that no project's settings are found there.
    return separator.join(
        os.path.abspath(part) if part.startswith((".", "..")) or os.path.exists(part) else part
        for part in value.split(separator)
    )


def _names_in_uv_config(environ: Mapping[str, str]) -> frozenset[str]:
    """The names of settings in the user's and the system's ``uv.toml``."""
    if environ.get("UV_NO_CONFIG", "").lower() in _TRUE:
        return frozenset()
    if environ.get("UV_CONFIG_FILE"):
        paths = [Path(environ["UV_CONFIG_FILE"])]
    else:
        user = Path(environ.get("XDG_CONFIG_HOME") or _home(environ) / ".config")
        paths = [user / "uv" / "uv.toml", Path("/etc/uv/uv.toml")]
        paths += [
            Path(folder) / "uv" / "uv.toml"
            for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
            if folder
        ]
    names: set[str] = set()
    for path in paths:
        names |= _top_level_names(path)
    return frozenset(names)


def _top_level_names(path: Path) -> set[str]:
    import tomllib

    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return set()  # uv itself says what is wrong with it
    pip: object = settings.get("pip")
    return set(settings) | (set(cast("dict[str, object]", pip)) if isinstance(pip, dict) else set())


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings by name, from its configuration files and ``PIP_*`` variables; later wins."""
    found: dict[str, str] = {}
    for path in _pip_files(environ):
        found |= _pip_file(path)
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            found[name[len("PIP_") :].lower().replace("_", "-")] = value
    return found


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home = _home(environ)
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    shared = [
        Path(folder) / "pip" / "pip.conf"
        for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
        if folder
    ]
    if sys.platform == "darwin":
        shared = [Path("/Library/Application Support/pip/pip.conf")]
        library = home / "Library" / "Application Support" / "pip"
        user = library / "pip.conf" if library.is_dir() else home / ".config" / "pip" / "pip.conf"
    files = [*shared, Path("/etc/pip.conf")]
    if not (chosen and os.path.exists(chosen)):  # pip's own rule
        files += [home / ".pip" / "pip.conf", user]
    files.append(Path(sys.prefix) / "pip.conf")
    if chosen:
        files.append(Path(chosen).expanduser())
    return files


def _pip_file(path: Path) -> dict[str, str]:
    import configparser

    try:
        text = path.read_text("utf-8")
    except OSError:
        return {}
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "pip's configuration is not UTF-8 text") from error
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Its own message quotes the line, which may hold a password.
        raise ConfigError(
            str(path), f"pip's configuration cannot be read ({type(error).__name__})"
        ) from None
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found |= {
                name.lower().replace("_", "-").removeprefix("--"): value
                for name, value in parser.items(section)
                if value
            }
    return found


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))
