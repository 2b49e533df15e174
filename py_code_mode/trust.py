"""Whether what a workspace makes this machine run was written by its user, or somebody trusted.

A workspace's tools run on the host, with the user's rights. A folder that another user owns or may
write to is therefore not used until its user has said so once (``py-code-mode trust``), as with
git's ``safe.directory`` (CVE-2022-24765) and ssh's ``StrictModes``.

What is looked at: the workspace folder and what is used of it: ``config.yaml`` and the tools
always; workflows, requirements and recorded sessions where they would act outside of a sandbox.
Root may own it, as root may do everything anyway. The sticky bit excuses nothing: it keeps others
from replacing files, not from adding some. Systems without POSIX owners have none to look at.

Sandboxed code acts with its user's uid, so its files are told by place and time: the folders of
this machine that it could write to are remembered, and what was changed there since is doubted. The
time is the inode's (``st_ctime``), which no code can set: a rename changes it too.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from py_code_mode.errors import ConfigError, NotStored, WorkspaceNotTrusted
from py_code_mode.stores import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Doubt", "Exposed", "Trusted", "check_link", "check_trusted", "check_unexposed",
           "distrust", "doubts", "expose", "exposed", "record_file", "trust", "trusted",
           "unexpose"]  # fmt: skip

#: What a workspace has that is used here whatever the isolation of code.
_ALWAYS = ("config.yaml", "tools")
#: And what is used by code, or by what it asks for.
_BY_CODE = ("workflows", "requirements.txt", "sessions")
#: Folders that are remembered; with more, the deepest are remembered as the folder above.
MAX_EXPOSED = 128

_FILE = "trusted.json"
_HAS_OWNERS = hasattr(os, "geteuid")
_ACL = "system.posix_acl_access"
#: Nanoseconds by which a file's time may be behind: kernels take it from a clock that ticks, and
#: some file systems round it to two seconds.
_MARGIN = 2_000_000_000
#: Seconds that no tick of that clock takes (10 ms where a kernel's CONFIG_HZ is 100).
_TICK = 0.02
_MAX_LINKS = 40  # as the kernel follows
_NOBODY: Mapping[str, int] = MappingProxyType({})


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
        at: when it was said; nanoseconds since 1970.
    """

    folder: Path
    owners: frozenset[int] = frozenset()
    is_shared: bool = False
    at: int = 0

    def covers(self, doubt: Doubt) -> bool:
        """Whether the doubt was there, in this kind, when the folder was trusted."""
        if doubt.is_exposed:
            return False
        return self.is_shared if doubt.owner is None else doubt.owner in self.owners


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """A folder that sandboxed code could write to; times are nanoseconds since 1970.

    Attributes:
        folder: absolute, without symbolic links.
        since: when that began.
        until: when it ended, as far as it has.
        open: the sessions that may write there still, and the processes that have them.
    """

    folder: Path
    since: int
    until: int
    open: Mapping[str, int] = field(default_factory=lambda: _NOBODY, hash=False)

    def joined(self, other: Exposed) -> Exposed:
        """The time that both span; the folder is this one's."""
        return replace(
            self,
            since=min(self.since, other.since),
            until=max(self.until, other.until),
            open=MappingProxyType({**self.open, **other.open}),
        )


class _Places:
    """Since when what lies where is doubted.

    Args:
        at: when the workspace in question was trusted, 0 if it never was: what was changed earlier
            is not doubted.
    """

    def __init__(self, found: Iterable[Exposed], at: int) -> None:
        self._at = at
        self._found = {each.folder: each for each in found if each.open or each.until > at}

    def __bool__(self) -> bool:
        return bool(self._found)

    def _above(self, path: Path) -> list[Exposed]:
        return [self._found[each] for each in (path, *path.parents) if each in self._found]

    def are_open(self, path: Path) -> bool:
        """Whether sandboxed code may write there now."""
        return any(each.open for each in self._above(path))

    def is_changed(self, path: Path) -> bool:
        """Whether it may be the work of sandboxed code; what is not there is nobody's.

        Args:
            path: its folder is without symbolic links; itself it may be one.
        """
        since = min((each.since for each in self._above(path)), default=None)
        if since is None:
            return False
        try:
            changed = path.lstat().st_ctime_ns
        except OSError:
            return False
        return changed >= max(since - _MARGIN, self._at)


def check_trusted(folder: Path, parts: Sequence[Path] | None = None) -> None:
    """See that nobody else wrote what this workspace runs here, unless the user trusts it.

    Args:
        folder: the workspace, or a folder of tools; one that does not exist is nobody's.
        parts: what is used of it; None means a workspace's ``config.yaml`` and tools.

    Raises:
        WorkspaceNotTrusted: somebody may have.
        ConfigError: the record of what is trusted cannot be used.
    """
    used = _there(parts if parts is not None else [folder / name for name in _ALWAYS])
    if not used:
        return
    known, places = _read_record()
    place = _resolved(folder)
    record = _said_of(place, known)
    looked_at = _looked_at(folder, used)
    planted = _planted(folder, looked_at, _Places(places, record.at))
    left = [str(doubt) for doubt in (*_owned(looked_at), *planted) if not record.covers(doubt)]
    if left:
        raise WorkspaceNotTrusted(str(place), tuple(left))


def check_unexposed(folder: Path, part: Path) -> None:
    """See that no sandboxed code may write to a part of a workspace, or did.

    Raises:
        WorkspaceNotTrusted: it may, or might have.
        ConfigError: the record of what is trusted cannot be used.
    """
    known, exposures = _read_record()
    if not exposures:
        return
    place = _resolved(folder)
    places = _Places(exposures, _said_of(place, known).at)
    if any(map(places.are_open, (place, _resolved(part)))):
        reason = f"{part} can be written by sandboxed code"
        raise WorkspaceNotTrusted(str(place), (reason,))
    left = _planted(folder, [place, _real(part)], places)
    if left:
        raise WorkspaceNotTrusted(str(place), tuple(map(str, left)))


def check_link(path: Path) -> None:
    """See that a link, if it is one, was made by us or by root: it says where we write.

    Raises:
        WorkspaceNotTrusted: another user has made it.
    """
    if not _HAS_OWNERS or not path.is_symlink():
        return
    owner = path.lstat().st_uid
    if owner not in (os.geteuid(), 0):
        reason = f"{path} is a link that belongs to {_user(owner)}, and is not followed"
        raise WorkspaceNotTrusted(str(path.parent), (reason,))


def doubts(folder: Path, parts: Sequence[Path] | None = None) -> tuple[Doubt, ...]:
    """What somebody else may have written of a folder since it was trusted, if it ever was.

    Args:
        folder: a workspace, or a folder of tools.
        parts: what is used of it; None means everything that `check_trusted` may be asked about.

    Raises:
        ConfigError: the record of what is trusted cannot be used.
    """
    if parts is None:
        parts = [folder / name for name in (*_ALWAYS, *_BY_CODE)]
        parts = _there(parts) or [folder]
    used = _there(parts)
    if not used:
        return ()  # a folder of which nothing is used may be anybody's
    known, places = _read_record()
    at = _said_of(_resolved(folder), known).at
    looked_at = _looked_at(folder, used)
    return (*_owned(looked_at), *_planted(folder, looked_at, _Places(places, at)))


def _said_of(place: Path, known: Iterable[Trusted]) -> Trusted:
    """What the user said of a folder; nothing, if nothing was said."""
    return next((each for each in known if each.folder == place), Trusted(folder=place))


def _owned(paths: Iterable[Path]) -> tuple[Doubt, ...]:
    """What other users own, or may write to."""
    return tuple(doubt for path in paths for doubt in _doubts(path)) if _HAS_OWNERS else ()


def _planted(folder: Path, paths: Iterable[Path], places: _Places) -> tuple[Doubt, ...]:
    """What sandboxed code may have made, or changed, or led elsewhere."""
    if not places:
        return ()
    found = list(_links(folder.absolute()))
    for path in paths:
        found.append(path)
        if path.is_symlink():
            found += [*_links(path), _resolved(path)]
    reason = "was made while sandboxed code could write there, or changed since"
    return tuple(
        Doubt(path=path, reason=reason, is_exposed=True)
        for path in dict.fromkeys(found)
        if places.is_changed(path)
    )


def _there(parts: Sequence[Path]) -> list[Path]:
    return [part for part in parts if os.path.lexists(part)]


def _resolved(path: Path) -> Path:
    """Without symbolic links; of links that lead in a circle, which code may leave, as it is."""
    return Path(os.path.realpath(path))


def _real(path: Path) -> Path:
    """The path without links on the way to it; itself it may be one."""
    return _resolved(path.parent) / path.name


def _looked_at(folder: Path, used: Sequence[Path]) -> list[Path]:
    found = [_resolved(folder)]
    for part in used:
        part = _real(part)
        found += [*_between(found[0], part), part, *_tree(_resolved(part))]
    return list(dict.fromkeys(found))


def _between(folder: Path, part: Path) -> list[Path]:
    """The folders on the way from a folder to a part of it."""
    return [each for each in part.parents if each != folder and each.is_relative_to(folder)]


def _links(path: Path) -> list[Path]:
    """The links on the way to what a path means, each by where it really is."""
    waiting, found = [path], list[Path]()
    while waiting and len(found) < _MAX_LINKS:
        each = waiting.pop()
        for step in (*reversed(each.parents), each):
            link = _real(step)
            if link not in found and link.is_symlink():
                found.append(link)
                waiting.append(Path(os.path.normpath(link.parent / link.readlink())))
    return found


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
    elif status.st_mode & stat.S_IWGRP and not has_group_of_one(path, status.st_gid):
        yield Doubt(path=path, reason=f"can be written by {_group(status.st_gid)}")


def has_group_of_one(path: Path, gid: int) -> bool:
    """Whether a path's group has only us in it, as on systems that give every user one."""
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
    again; so is what is changed where sandboxed code may write, or may so later. Trusting once more
    replaces what was said before. Folders in it that sandboxed code could write to are forgotten.

    Raises:
        ConfigError: the folder does not exist, or the record cannot be used.
        StoreError: the record cannot be written.
    """
    folder = _resolved(folder.expanduser())
    if not folder.is_dir():
        raise ConfigError(str(folder), "is not a folder, so there is nothing to trust")
    found = doubts(folder)
    store = _store(is_written=True)
    with store.lock():
        new = Trusted(
            folder=folder,
            owners=frozenset(doubt.owner for doubt in found if doubt.owner is not None),
            is_shared=any(doubt.owner is None and not doubt.is_exposed for doubt in found),
            at=time.time_ns(),
        )
        known, places = _read_record()
        left = [each for each in known if each.folder != folder]
        lasting = [_without_dead(each, new.at) for each in places]
        kept = [each for each in lasting if each.open or not each.folder.is_relative_to(folder)]
        _write(store, [*left, new], kept)
    time.sleep(_TICK)  # what is changed from now on must not have a time before this
    return new


def expose(folders: Iterable[Path], by: str) -> None:
    """Remember, before it runs, where the code of a sandboxed session may write.

    Args:
        by: the session.

    Raises:
        ConfigError: the record cannot be used.
        StoreError: the record cannot be written.
    """
    now = time.time_ns()
    of_session = MappingProxyType({by: os.getpid()})
    new = [
        Exposed(folder=_resolved(each), since=now, until=now, open=of_session) for each in folders
    ]
    _change_exposed(lambda known: _coalesced([*known, *new]))


def unexpose(by: str) -> None:
    """Remember that a session may write nowhere any more; what it could write stays doubted.

    Raises:
        ConfigError: the record cannot be used.
        StoreError: the record cannot be written.
    """
    now = time.time_ns()

    def ended(each: Exposed) -> Exposed:
        if by not in each.open:
            return each
        left = {session: pid for session, pid in each.open.items() if session != by}
        return replace(each, until=now, open=MappingProxyType(left))

    _change_exposed(lambda known: _coalesced(map(ended, known)))


def _change_exposed(change: Callable[[tuple[Exposed, ...]], list[Exposed]]) -> None:
    store = _store(is_written=True)
    with store.lock():
        known, places = _read_record()
        _write(store, list(known), change(places))


def _coalesced(places: Iterable[Exposed]) -> list[Exposed]:
    """One for each folder, and not too many."""
    found: dict[Path, Exposed] = {}
    for each in places:
        _add(found, each)
    if len(found) > MAX_EXPOSED:
        # most are temporary folders; not earlier, as a disk that is away comes back
        found = {path: each for path, each in found.items() if each.open or path.exists()}
    while len(found) > MAX_EXPOSED:
        above = max(found, key=lambda path: len(path.parts)).parent
        for path in [path for path in found if path.parent == above != path]:
            _add(found, replace(found.pop(path), folder=above))
    return list(found.values())


def _add(found: dict[Path, Exposed], place: Exposed) -> None:
    known = found.get(place.folder)
    found[place.folder] = place if known is None else place.joined(known)


def _without_dead(place: Exposed, now: int) -> Exposed:
    """Without the sessions of processes that were killed before they could say that they ended."""
    alive = {session: pid for session, pid in place.open.items() if _is_alive(pid)}
    if len(alive) == len(place.open):
        return place
    return replace(place, until=now, open=MappingProxyType(alive))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def exposed() -> tuple[Exposed, ...]:
    """The folders that sandboxed code could write to, sorted.

    Raises:
        ConfigError: the record cannot be used.
    """
    return tuple(sorted(_read_record()[1], key=lambda each: each.folder))


def distrust(folder: Path) -> bool:
    """Take back what `trust` said; False where nothing was said. The folder need not exist.

    Raises:
        ConfigError: the record cannot be used.
        StoreError: the record cannot be written.
    """
    folder = _resolved(folder.expanduser())
    if all(each.folder != folder for each in trusted()):
        return False
    store = _store(is_written=True)
    with store.lock():
        known, places = _read_record()
        _write(store, [each for each in known if each.folder != folder], places)
    return True


def trusted() -> tuple[Trusted, ...]:
    """All trusted folders, sorted.

    Raises:
        ConfigError: the record cannot be read, or others may have written it.
    """
    return _read_record()[0]


def _read_record() -> tuple[tuple[Trusted, ...], tuple[Exposed, ...]]:
    file = record_file()
    try:
        data = _store().read(_FILE)
    except NotStored:
        return (), ()
    others = [doubt for path in (file.parent, file) for doubt in _doubts(path)]
    if others:
        raise ConfigError(str(file), f"is not used: {others[0]}; it says what you trust")
    try:
        record = cast("dict[str, Any]", json.loads(data))
        known = sorted(map(_read, record["folders"]), key=lambda each: each.folder)
        return tuple(known), tuple(map(_read_exposed, record["exposed"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    owners, is_shared, at = entry["owners"], entry["shared"], entry["at"]
    if not isinstance(is_shared, bool) or not all(type(uid) is int for uid in (*owners, at)):
        raise ValueError("not an entry")
    return Trusted(
        folder=Path(entry["folder"]), owners=frozenset(owners), is_shared=is_shared, at=at
    )


def _read_exposed(entry: dict[str, Any]) -> Exposed:
    since, until = entry["since"], entry["until"]
    sessions = cast("dict[str, Any]", entry["open"])
    if not all(type(number) is int for number in (since, until, *sessions.values())):
        raise ValueError("not an entry")
    return Exposed(
        folder=Path(entry["folder"]),
        since=since,
        until=until,
        open=MappingProxyType(sessions),
    )


def _write(store: FileStore, entries: Sequence[Trusted], places: Sequence[Exposed]) -> None:
    folders = [
        {"folder": str(each.folder), "owners": sorted(each.owners), "shared": each.is_shared,
         "at": each.at}
        for each in sorted(entries, key=lambda each: each.folder)
    ]  # fmt: skip
    written = [
        {"folder": str(each.folder), "since": each.since, "until": each.until,
         "open": dict(each.open)}
        for each in places
    ]  # fmt: skip
    store.write(_FILE, json.dumps({"folders": folders, "exposed": written}, indent=2).encode())
    os.chmod(record_file(), 0o600)
