"""Whether what a workspace makes this machine run was written by its user, or somebody trusted.

A workspace's tools run on the host, with the user's rights. A folder that another user owns or may
write to is therefore not used until its user has said so once (``py-code-mode trust``), as with
git's ``safe.directory`` (CVE-2022-24765) and ssh's ``StrictModes``.

What is looked at: the workspace folder, ``config.yaml``, and everything in the tools folder. Root
may own it, as root may do everything anyway. The sticky bit excuses nothing: it keeps others from
replacing files, not from adding some. Systems without POSIX owners have nothing to look at.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from py_code_mode.errors import ConfigError, NotStored, WorkspaceNotTrusted
from py_code_mode.stores import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Doubt", "Trusted", "check_trusted", "distrust", "doubts", "expose", "exposed",
           "record_file", "trust", "trusted", "unexpose"]  # fmt: skip

_FILE = "trusted.json"
_HAS_OWNERS = hasattr(os, "geteuid")
_ACL = "system.posix_acl_access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A file or folder that somebody else may have written.

    Attributes:
        owner: the uid of somebody else who owns it; None where others may write to it.
        is_exposed: whether sandboxed code could make it; trusting the folder ends that.
    """

    path: Path
    owner: int | None = None
    reason: str
    is_exposed: bool = False

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """A folder that its user said is to be trusted.

    Attributes:
        folder: absolute, without symbolic links.
        owners: uids who may own files of it.
        is_shared: whether it may be writable by others.
    """

    folder: Path
    owners: frozenset[int] = frozenset()
    is_shared: bool = False

    def covers(self, doubt: Doubt) -> bool:
        """Whether the doubt was there, in this kind, when the folder was trusted."""
        if doubt.is_exposed:
            return False
        return self.is_shared if doubt.owner is None else doubt.owner in self.owners


def check_trusted(folder: Path, parts: Sequence[Path] | None = None) -> None:
    """See that nobody else wrote what this workspace runs here, unless the user trusts it.

    Args:
        folder: the workspace, or a folder of tools; one that does not exist is nobody's.
        parts: what is used of it; None means a workspace's ``config.yaml`` and tools.

    Raises:
        WorkspaceNotTrusted: somebody may have.
        ConfigError: the record of what is trusted cannot be used.
    """
    if not _used(folder, parts):
        return
    found = doubts(folder, parts)
    place = folder.resolve()
    if not found and place not in exposed():
        return
    if place in exposed():
        reason = "was made while sandboxed code could write there"
        found = (*found, Doubt(path=place, reason=reason, is_exposed=True))
    record = next((each for each in trusted() if each.folder == place), None)
    left = [str(doubt) for doubt in found if record is None or not record.covers(doubt)]
    if left:
        raise WorkspaceNotTrusted(str(place), tuple(left))


def doubts(folder: Path, parts: Sequence[Path] | None = None) -> tuple[Doubt, ...]:
    """What somebody else may have written of a folder, trusted or not; see `check_trusted`."""
    if not _HAS_OWNERS:
        return ()
    folder = folder.resolve()
    used = _used(folder, parts)
    # A folder of which nothing is used may be anybody's.
    looked_at = dict.fromkeys([folder, *(path for part in used for path in _tree(part))])
    return tuple(doubt for path in looked_at for doubt in _doubts(path)) if used else ()


def _used(folder: Path, parts: Sequence[Path] | None) -> list[Path]:
    """The parts that are there."""
    if parts is None:
        parts = (folder / "config.yaml", folder / "tools")
    return [part for part in parts if os.path.lexists(part)]


def _tree(folder: Path) -> Iterator[Path]:
    """The folder and everything in it; a link is not followed into a folder."""
    yield folder
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def _doubts(path: Path) -> Iterator[Doubt]:
    try:
        found = [path.lstat()]
        if stat.S_ISLNK(found[0].st_mode):
            found.append(path.stat())  # a program that is a link is run
    except OSError:
        return  # gone meanwhile, or a link to nothing: then nothing of it is run
    for status in found:
        if status.st_uid not in (os.geteuid(), 0):
            reason = f"belongs to {_user(status.st_uid)}"
            yield Doubt(path=path, owner=status.st_uid, reason=reason)
    status = found[-1]  # everybody may write a link's own bits, which nothing obeys
    if status.st_mode & stat.S_IWOTH:
        yield Doubt(path=path, reason="can be written by everybody")
    elif status.st_mode & stat.S_IWGRP and not _is_private(path, status.st_gid):
        yield Doubt(path=path, reason=f"can be written by {_group(status.st_gid)}")


def _is_private(path: Path, gid: int) -> bool:
    """Whether the group has only us in it, as on systems that give every user one of their own."""
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(gid)
        has_list = _ACL in os.listxattr(path) if hasattr(os, "listxattr") else False
    except (KeyError, OSError):
        return False
    # with an access control list the group's bits speak of whoever is on the list
    is_ours = gid == user.pw_gid and group.gr_name == user.pw_name
    return is_ours and not has_list and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return f"the group {grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"the group {gid}"


# --- what the user said -------------------------------------------------------------------------


def trust(folder: Path) -> Trusted:
    """Trust a folder as it is now: a workspace, or a folder of tools.

    Other owners than those it has now, or rights to write that others do not have now, are doubted
    again. Trusting once more replaces what was said before.

    Raises:
        ConfigError: the folder does not exist, or the record cannot be used.
        StoreError: the record cannot be written.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(str(folder), "is not a folder, so there is nothing to trust")
    is_workspace = (folder / "tools").is_dir() or (folder / "config.yaml").exists()
    found = doubts(folder, None if is_workspace else (folder,))
    new = Trusted(
        folder=folder,
        owners=frozenset(doubt.owner for doubt in found if doubt.owner is not None),
        is_shared=any(doubt.owner is None for doubt in found),
    )
    store = _store(is_written=True)
    with store.lock():
        left = [each for each in trusted() if each.folder != folder]
        _write(store, [*left, new], exposed() - {folder})
    return new


def expose(folder: Path) -> None:
    """Doubt a workspace until it is trusted: it came to be where sandboxed code could write.

    Raises:
        ConfigError: the record cannot be used.
        StoreError: the record cannot be written.
    """
    _change_exposed(lambda known: known | {folder.resolve()})


def unexpose(folder: Path) -> None:
    """Take back what `expose` said: nothing that would be run has come to be there.

    Raises:
        ConfigError: the record cannot be used.
        StoreError: the record cannot be written.
    """
    _change_exposed(lambda known: known - {folder.resolve()})


def _change_exposed(change: Callable[[frozenset[Path]], frozenset[Path]]) -> None:
    store = _store(is_written=True)
    with store.lock():
        _write(store, list(trusted()), change(exposed()))


def exposed() -> frozenset[Path]:
    """The workspaces that are doubted for that reason."""
    return _read_record()[1]


def distrust(folder: Path) -> bool:
    """Take back what `trust` said; False where nothing was said. The folder need not exist.

    Raises:
        ConfigError: the record cannot be used.
        StoreError: the record cannot be written.
    """
    folder = folder.expanduser().resolve()
    known = trusted()
    if all(each.folder != folder for each in known):
        return False
    store = _store(is_written=True)
    with store.lock():
        _write(store, [each for each in trusted() if each.folder != folder], exposed())
    return True


def trusted() -> tuple[Trusted, ...]:
    """All trusted folders, sorted.

    Raises:
        ConfigError: the record cannot be read, or others may have written it.
    """
    return _read_record()[0]


def _read_record() -> tuple[tuple[Trusted, ...], frozenset[Path]]:
    file = record_file()
    try:
        data = _store().read(_FILE)
    except NotStored:
        return (), frozenset()
    others = [doubt for path in (file.parent, file) for doubt in _doubts(path)]
    if others:
        raise ConfigError(str(file), f"is not used: {others[0]}; it says what you trust")
    try:
        record = cast("dict[str, Any]", json.loads(data))
        known = tuple(sorted(map(_read, record["folders"]), key=lambda each: each.folder))
        return known, frozenset(map(Path, record["exposed"]))
    except (ValueError, KeyError, TypeError) as error:
        reason = "cannot be read; remove it, and trust again what you trust"
        raise ConfigError(str(file), reason) from error


def record_file() -> Path:
    """Where the user's trust is kept: in the folder of the user's settings."""
    import platformdirs  # only where something is doubted

    return Path(platformdirs.user_config_dir("py-code-mode", appauthor=False)).absolute() / _FILE


def _store(*, is_written: bool = False) -> FileStore:
    folder = record_file().parent
    if is_written:  # before the store makes it as any folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FileStore(folder)


def _read(entry: dict[str, Any]) -> Trusted:
    owners, is_shared = entry["owners"], entry["shared"]
    if not isinstance(is_shared, bool) or not all(type(uid) is int for uid in owners):
        raise ValueError("not an entry")
    return Trusted(folder=Path(entry["folder"]), owners=frozenset(owners), is_shared=is_shared)


def _write(store: FileStore, entries: list[Trusted], doubted: frozenset[Path]) -> None:
    folders = [
        {"folder": str(each.folder), "owners": sorted(each.owners), "shared": each.is_shared}
        for each in sorted(entries, key=lambda each: each.folder)
    ]
    record = {"folders": folders, "exposed": sorted(map(str, doubted))}
    store.write(_FILE, json.dumps(record, indent=2).encode())
    os.chmod(record_file(), 0o600)
