"""The folder a session makes for itself: its workdir and its packages.

Removed at the close. Of a host that was killed nobody removes it, so each folder holds a lock that
ends with its host, and the first session of a process removes the folders that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from functools import cache
from pathlib import Path

from py_code_mode.stores.folders import remove_tree

PREFIX = "code-mode-"
_LOCK = ".alive"
#: A folder without a lock file is being made right now, unless it is older than this (seconds).
_MAKING = 3600.0


class Scratch:
    """A private folder (0700) that exists until `remove`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self._folder = folder
        self._lock = lock
        self._users = 1

    def share(self) -> Scratch:
        """The same for another user: each of them has to `remove` it, and the last one does."""
        self._users += 1
        return self

    @classmethod
    def make(cls) -> Scratch:
        """Make one; blocking, short.

        Raises:
            OSError: the temporary folder cannot be written to.
        """
        _sweep_once(os.getpid())
        while True:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()  # walls follow no links
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _try_lock(lock):
                break
            os.close(lock)  # taken for an abandoned one, in the moment before this
        scratch = cls(folder, lock)
        scratch.workdir.mkdir()
        scratch.packages.mkdir()
        return scratch

    @property
    def workdir(self) -> Path:
        """The guest's current directory, where none was given."""
        return self._folder / "work"

    @property
    def packages(self) -> Path:
        """The session's own packages."""
        return self._folder / "packages"

    def remove(self) -> None:
        """Give up one use of it; the last one removes everything. Blocking.

        Each user calls it once. Once all have, more calls do nothing.
        """
        self._users -= 1
        if self._users > 0 or self._lock < 0:
            return
        remove_tree(self._folder)
        os.close(self._lock)
        self._lock = -1


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@cache
def _sweep_once(process: int) -> None:
    sweep(Path(tempfile.gettempdir()))


def sweep(parent: Path) -> list[Path]:
    """Remove the folders of sessions whose host is gone; give those that were removed."""
    removed: list[Path] = []
    with os.scandir(parent) as entries:
        folders = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
    for folder in folders:
        try:
            is_ours = folder.lstat().st_uid == os.geteuid()
            if is_ours and _is_abandoned(folder) and remove_tree(folder):
                removed.append(folder)
        except OSError:
            continue  # gone meanwhile, or not a folder of ours
    return removed


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return time.time() - folder.lstat().st_mtime > _MAKING
    try:
        return _try_lock(lock)
    finally:
        os.close(lock)
