"""What of the host's files a wall shows: the system, an environment, and what a policy grants.

Everything else does not exist inside. Built without looking into any folder that is granted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from py_code_mode.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from py_code_mode.sandbox.policy import Policy

#: Read-only wherever they exist.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store",
    "/etc/alternatives", "/etc/ca-certificates", "/etc/fonts", "/etc/ld.so.cache",
    "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/magic", "/etc/mime.types",
    "/etc/os-release", "/etc/pki", "/etc/protocols", "/etc/services", "/etc/ssl", "/etc/timezone",
)  # fmt: skip
_NAME_SERVICE = ("/etc/resolv.conf", "/etc/hosts", "/etc/gai.conf")
#: What a session has of its own; grants beneath them are shown on top.
OWN_FOLDERS = ("/dev/shm", "/home/user", "/packages", "/tmp", "/work")
_NEVER = ("/dev", "/overlays", "/proc", "/session")
_MOST_LINKS = 40  # as the kernel follows

_NOBODY: Mapping[str, tuple[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Folders and files to show, in the order of their places.

    Attributes:
        trees: where it is, where it is shown, whether it can be written to.
        links: symbolic links, place and target.
        owners: uid and gid by place, of what is granted; a host that is root maps them.
    """

    trees: tuple[tuple[str, str, bool], ...]
    links: tuple[tuple[str, str], ...]
    owners: Mapping[str, tuple[int, int]] = field(default_factory=lambda: _NOBODY, hash=False)

    @property
    def writable(self) -> tuple[str, ...]:
        """The places that can be written to."""
        return tuple(place for _, place, is_writable in self.trees if is_writable)

    @property
    def covered(self) -> tuple[str, ...]:
        """The places that a session's own folders would cover."""
        return tuple(place for _, place, _ in self.trees if _is_beneath(place, OWN_FOLDERS))


def view_of(
    needed: Iterable[Path], policy: Policy, workdir: Path | None = None, *, names: bool = False
) -> View:
    """The view for a policy.

    Args:
        needed: what the guest runs with: the interpreter, its packages, the guest's own code.
        policy: whose `read` and `write` are granted.
        workdir: a folder of the host to work in, absolute, without symbolic links; None where the
            session has one of its own.
        names: show how the host resolves names.

    Raises:
        ConfigError: a path that is granted does not exist, became a link, or cannot be granted.
    """
    shown, links = _read_only(tuple(dict.fromkeys(str(path) for path in needed)))
    found = dict(shown)
    if names:
        for path in _NAME_SERVICE:
            if os.path.exists(path):
                found[path] = (os.path.realpath(path), False)
    owners: dict[str, tuple[int, int]] = {}
    writable = {*policy.write, *([workdir] if workdir is not None else [])}
    for path in (*policy.read, *writable):
        _check(path)
        status = path.stat()
        if path in writable or not _is_shown(str(path), found):
            found[str(path)] = (str(path), path in writable)
            owners[str(path)] = (status.st_uid, status.st_gid)
    trees = tuple(
        (source, place, is_writable)
        for place, (source, is_writable) in sorted(found.items())
        if is_writable or not _is_shown(place, found)
    )
    return View(trees=trees, links=tuple(sorted(links.items())), owners=MappingProxyType(owners))


@lru_cache(maxsize=16)  # a session costs milliseconds; this would be one of them
def _read_only(
    needed: tuple[str, ...],
) -> tuple[dict[str, tuple[str, bool]], dict[str, str]]:
    found: dict[str, tuple[str, bool]] = {}
    links: dict[str, str] = {}
    for path in (*_SYSTEM, *needed):
        _show(path, found, links)
    return found, links


def _show(path: str, found: dict[str, tuple[str, bool]], links: dict[str, str]) -> None:
    """Show what is at `path`, with the symbolic links on the way to it."""
    for _ in range(_MOST_LINKS):
        link = _first_link(path)
        if link is None:
            if os.path.exists(path):
                found.setdefault(path, (path, False))
            return
        target = os.readlink(link)
        if not _is_shown(link, found):
            links.setdefault(link, target)
        rest = os.path.relpath(path, link)
        path = os.path.normpath(os.path.join(os.path.dirname(link), target, rest))


def _first_link(path: str) -> str | None:
    walked = "/"
    for part in Path(path).parts[1:]:
        walked = os.path.join(walked, part)
        if os.path.islink(walked):
            return walked
    return None


def _is_beneath(place: str, folders: Iterable[str]) -> bool:
    return any(place == folder or place.startswith(f"{folder}/") for folder in folders)


def _is_shown(place: str, found: Mapping[str, tuple[str, bool]]) -> bool:
    """Whether a folder above it is shown, read-only as it would be."""
    return any(
        place.startswith(f"{folder}/") and source == folder and not is_writable
        for folder, (source, is_writable) in found.items()
    )


def _check(path: Path) -> None:
    if not path.exists():
        raise ConfigError("policy", f"{path} is granted but does not exist")
    real = os.path.realpath(path)
    if real != str(path):
        # by whoever may write above it, such as the code of another session
        raise ConfigError(
            "policy", f"{path} became a link since it was granted; it leads to {real} now"
        )
    if path == Path("/"):
        raise ConfigError("policy", "the whole file system cannot be granted; name folders")
    if str(path) in OWN_FOLDERS:
        raise ConfigError(
            "policy", f"{path} cannot be granted: a session has its own; name folders in it"
        )
    inside = [folder for folder in OWN_FOLDERS if _is_beneath(folder, [str(path)])]
    if inside:
        raise ConfigError(
            "policy",
            f"{path} cannot be granted as a whole: {inside[0]} in it is the session's own; name "
            "folders in it",
        )
    if _is_beneath(str(path), _NEVER):
        raise ConfigError("policy", f"{path} cannot be granted: it is the sandbox's own")
