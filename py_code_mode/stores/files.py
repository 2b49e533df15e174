"""The calls to the system that logs, blobs and journals make, in one place.

So that a test can have any of them fail, and can lose what was not synced, as a power cut does.
Every call is relative to the descriptor of a folder, follows no link, and is the system's own:
nothing here retries, hides or translates an error.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DISK", "FileSystem"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ALWAYS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # or opening a pipe would wait for its peer
# What macOS has instead syncs more than the content, which is all that matters here.
_fdatasync = getattr(os, "fdatasync", os.fsync)


class FileSystem:
    """The real one. Its methods are those of `os` by the same names."""

    def open_folder(self, path: str | Path, *, folder: int | None = None) -> int:
        """A descriptor of a folder; inside `folder` a link is refused."""
        if folder is None:
            return os.open(path, _FOLDER)
        return os.open(path, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)

    def open(self, name: str, flags: int, *, folder: int | None = None) -> int:
        """A descriptor of a file; a new one is for its owner only (0600)."""
        return os.open(name, flags | _ALWAYS, 0o600, dir_fd=folder)

    def close(self, file: int) -> None:
        os.close(file)

    def read(self, file: int, size: int, offset: int) -> bytes:
        """At most `size` bytes from there; the position of the descriptor does not matter."""
        return os.pread(file, size, offset)

    def write(self, file: int, data: bytes | memoryview) -> int:
        return os.write(file, data)

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def fsync(self, file: int) -> None:
        """Of a file or a folder."""
        os.fsync(file)

    def fdatasync(self, file: int) -> None:
        """The content and what is needed to find it, such as the size."""
        _fdatasync(file)

    def fstat(self, file: int) -> os.stat_result:
        return os.fstat(file)

    def stat(self, name: str, *, folder: int | None = None) -> os.stat_result:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def lock(self, file: int, *, is_shared: bool = False, waits: bool = False) -> None:
        """Lock the file itself, by whatever name it was opened (man 2 flock).

        Raises:
            BlockingIOError: somebody else has it.
        """
        how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        fcntl.flock(file, how if waits else how | fcntl.LOCK_NB)

    def unlock(self, file: int) -> None:
        """Give it up for all processes that share the descriptor, forked children included."""
        fcntl.flock(file, fcntl.LOCK_UN)

    def rename(self, old: str, new: str, *, folder: int, to_folder: int | None = None) -> None:
        target = folder if to_folder is None else to_folder
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=target)

    def link(self, old: str, new: str, *, folder: int) -> None:
        """Give a file a second name; unlike a rename it replaces nothing.

        Raises:
            FileExistsError: there is a file of that name.
        """
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)

    def unlink(self, name: str, *, folder: int) -> None:
        os.unlink(name, dir_fd=folder)

    def make_folder(self, name: str | Path, *, folder: int | None = None) -> None:
        os.mkdir(name, 0o700, dir_fd=folder)

    def touch(self, name: str, *, folder: int) -> None:
        """Set its times to now."""
        os.utime(name, dir_fd=folder, follow_symlinks=False)

    def date(self, file: int, modified_ns: int) -> None:
        """Set the times of an open file, in nanoseconds since the epoch."""
        os.utime(file, ns=(modified_ns, modified_ns))

    def names(self, folder: int) -> list[str]:
        return os.listdir(folder)


#: The file system of this machine.
DISK = FileSystem()
