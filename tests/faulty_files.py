"""File systems that fail on purpose, and one whose power can be cut."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from py_code_mode.stores.files import FileSystem

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

Call: TypeAlias = Literal[
    "open", "write", "truncate", "fsync", "fdatasync", "rename", "link", "unlink"
]
CALLS: tuple[Call, ...] = get_args(Call)


class FaultyFiles(FileSystem):
    """The real file system, which counts its calls and fails those it is told to.

    Attributes:
        log: the calls so far, by name.
        plan: error by number of the call, counted from 0; 0 is a short write.
    """

    def __init__(self, plan: dict[int, int] | None = None, only: Iterable[Call] = CALLS) -> None:
        self.plan = plan or {}
        self.only = frozenset(only)
        self.log: list[Call] = []

    def fail_next(self, name: Call, error: int, times: int = 1) -> None:
        """Fail the next calls of this kind; only these are counted from now on."""
        self.only, self.log = frozenset({name}), []
        self.plan = dict.fromkeys(range(times), error)

    def heal(self) -> None:
        self.plan = {}

    def _count(self, name: Call) -> int | None:
        if name not in self.only:
            return None
        self.log.append(name)
        error = self.plan.get(len(self.log) - 1)
        if error:
            raise OSError(error, os.strerror(error))
        return error

    def open(self, name: str, flags: int, *, folder: int | None = None) -> int:
        self._count("open")
        return super().open(name, flags, folder=folder)

    def write(self, file: int, data: bytes | memoryview) -> int:
        if self._count("write") == 0:
            data = data[: max(1, len(data) // 3)]
        return super().write(file, data)

    def truncate(self, file: int, size: int) -> None:
        self._count("truncate")
        super().truncate(file, size)

    def fsync(self, file: int) -> None:
        self._count("fsync")
        super().fsync(file)

    def fdatasync(self, file: int) -> None:
        self._count("fdatasync")
        super().fdatasync(file)

    def rename(self, old: str, new: str, *, folder: int, to_folder: int | None = None) -> None:
        self._count("rename")
        super().rename(old, new, folder=folder, to_folder=to_folder)

    def link(self, old: str, new: str, *, folder: int) -> None:
        self._count("link")
        super().link(old, new, folder=folder)

    def unlink(self, name: str, *, folder: int) -> None:
        self._count("unlink")
        super().unlink(name, folder=folder)


class HalfWritten(FaultyFiles):
    """Writes a part of what it is given, and then has no room for the rest."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part, self.is_full = part, False

    def write(self, file: int, data: bytes | memoryview) -> int:
        if not self.is_full:
            return super().write(file, data)
        if self.part:
            done, self.part = os.write(file, data[: self.part]), 0
            return done
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_Change: TypeAlias = tuple[int, bytes] | int  # a write, or a size


@dataclass
class _File:
    """A file: what is on the disk for sure, and what has been done since."""

    durable: bytes = b""
    pending: list[tuple[int, bytes] | int] = field(
        default_factory=list[tuple[int, bytes] | int]
    )  # a write, or a size


@dataclass
class _Folder:
    """A folder: its durable entries, and the changes since, in order."""

    durable: dict[str, int] = field(default_factory=dict[str, int])
    pending: list[tuple[str, int | None]] = field(default_factory=list[tuple[str, int | None]])


class PowerCut(FileSystem):
    """The real file system, which knows what a power cut could leave of what was done with it.

    Of a file: what was synced, and any of the writes and sizes since, each in part or not at all;
    of a folder: the entries when it was synced, and the first so many changes since.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.stat().st_ino
        self.folders: dict[int, _Folder] = {self.root: _Folder()}
        self.files: dict[int, _File] = {}

    def open(self, name: str, flags: int, *, folder: int | None = None) -> int:
        is_new = bool(flags & os.O_CREAT) and not self._exists(name, folder)
        file = super().open(name, flags, folder=folder)
        if is_new and folder is not None:
            number = os.fstat(file).st_ino
            self.files[number] = _File()
            self._folder(folder).pending.append((name, number))
        return file

    def make_folder(self, name: str | Path, *, folder: int | None = None) -> None:
        super().make_folder(name, folder=folder)
        number = os.stat(name, dir_fd=folder).st_ino
        self.folders[number] = _Folder()
        above = os.fstat(folder).st_ino if folder is not None else Path(name).parent.stat().st_ino
        self.folders[above].pending.append((Path(name).name, number))

    def write(self, file: int, data: bytes | memoryview) -> int:
        status = os.fstat(file)
        done = super().write(file, data)
        if status.st_ino in self.files:
            pending = self.files[status.st_ino].pending
            pending.append((os.fstat(file).st_size - done, bytes(data[:done])))
        return done

    def truncate(self, file: int, size: int) -> None:
        super().truncate(file, size)
        self.files[os.fstat(file).st_ino].pending.append(size)

    def fsync(self, file: int) -> None:
        number = os.fstat(file).st_ino
        if number in self.folders:
            folder = self.folders[number]
            folder.durable, folder.pending = _changed(folder.durable, folder.pending), []
        else:
            self.fdatasync(file)

    def fdatasync(self, file: int) -> None:
        known = self.files[os.fstat(file).st_ino]
        known.durable = os.pread(file, os.fstat(file).st_size, 0)
        known.pending = []

    def rename(self, old: str, new: str, *, folder: int, to_folder: int | None = None) -> None:
        number = os.stat(old, dir_fd=folder).st_ino
        super().rename(old, new, folder=folder, to_folder=to_folder)
        # One change: it is never seen half.
        self._folder(folder).pending.append((f"{old}\0{new}", number))

    def link(self, old: str, new: str, *, folder: int) -> None:
        super().link(old, new, folder=folder)
        number = os.stat(new, dir_fd=folder).st_ino
        self._folder(folder).pending.append((new, number))

    def unlink(self, name: str, *, folder: int) -> None:
        super().unlink(name, folder=folder)
        self._folder(folder).pending.append((name, None))

    def cut(self, into: Path, chance: random.Random) -> None:
        """Write what is left after a power cut at this moment into an empty folder."""
        self._write_folder(self.root, into, chance)

    def _write_folder(self, number: int, into: Path, chance: random.Random) -> None:
        into.mkdir(exist_ok=True)
        folder = self.folders[number]
        kept = folder.pending[: chance.randint(0, len(folder.pending))]
        for name, child in _changed(folder.durable, kept).items():
            if child in self.folders:
                self._write_folder(child, into / name, chance)
            else:
                (into / name).write_bytes(_left(self.files[child], chance))

    def _folder(self, file: int) -> _Folder:
        return self.folders[os.fstat(file).st_ino]

    def _exists(self, name: str, folder: int | None) -> bool:
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def _changed(entries: dict[str, int], changes: list[tuple[str, int | None]]) -> dict[str, int]:
    found = dict(entries)
    for name, number in changes:
        if number is None:
            found.pop(name, None)
        elif "\0" in name:
            old, _, new = name.partition("\0")
            found.pop(old, None)
            found[new] = number
        else:
            found[name] = number
    return found


def _left(file: _File, chance: random.Random) -> bytes:
    content = bytearray(file.durable)
    for change in file.pending:
        kind = chance.random()
        if isinstance(change, int):
            if kind < 0.7:
                del content[change:]
            continue
        offset, data = change
        if kind < 0.3:
            continue  # lost
        if kind < 0.5:
            data = data[: chance.randint(0, len(data))]
        if kind > 0.9:
            data = bytes(len(data))  # the size is there, and the content is not
        if len(content) < offset:
            content += bytes(offset - len(content))
        content[offset : offset + len(data)] = data
    return bytes(content)
