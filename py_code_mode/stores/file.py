"""A store in a folder: one plain file per name, which people may read and edit.

Everything happens relative to a descriptor of the folder, and links are never followed, so nothing
outside it can be read, written or deleted, even while somebody exchanges files for links.
Files whose names begin with a dot belong to this module: the lock and files being written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from py_code_mode.errors import InvalidName, NotStored, StoreError
from py_code_mode.stores.store import Stat, Store, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["LOCK_TIMEOUT", "FileStore", "lock_before"]

#: Seconds to wait for other writers.
LOCK_TIMEOUT = 60.0

_LOCK_NAME = ".lock"
_NEW_PREFIX = ".new-"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.01  # seconds between two tries for a lock
# File times tick with the kernel's clock (1 to 10 ms; 2 s is FAT's, which has no inodes either):
# a file changed this recently may change once more without getting another time.
_SETTLED = 100_000_000  # ns
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def lock_before(deadline: float, lock: Callable[[], object]) -> bool:
    """Try for a lock until it is had; False once the monotonic clock is at the deadline.

    Args:
        lock: takes it; a BlockingIOError says that somebody else has it.
    """
    pause = _SHORTEST_PAUSE
    while True:
        try:
            lock()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return True


def _lock(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileStore(Store):
    """Bytes by name, as files of one folder.

    A folder that is missing is an empty store; it is made at the first write. Subfolders and hidden
    files are not part of the store.

    Args:
        base: a folder; links on the way to it are followed, for it is the caller's own choice.
        folder: a subfolder of `base` to use instead. It must not be a link: a workspace that
            came from somewhere else could lead out of itself.
    """

    def __init__(self, base: str | Path, folder: str | None = None) -> None:
        self._base = Path(base).expanduser().absolute()
        self._folder = check_name(folder) if folder is not None else None
        self._threads = threading.RLock()
        self._depth = 0
        self._lock_file = -1
        self._is_tidy = False

    @property
    def root(self) -> Path:
        """The folder with the files, absolute; it may not exist yet."""
        return self._base / self._folder if self._folder else self._base

    def __repr__(self) -> str:
        return f"FileStore({str(self.root)!r})"

    def location(self, name: str) -> str:
        return str(self.root / check_name(name))

    def read(self, name: str) -> bytes:
        check_name(name)
        with self._translated(name), self._opened() as folder:
            if folder is None:
                raise NotStored(self.location(name))
            try:
                # Not blocking, or a named pipe would wait for a writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = os.open(name, flags, dir_fd=folder)
            except FileNotFoundError:
                raise NotStored(self.location(name)) from None
            try:
                if not modes.S_ISREG(os.fstat(file).st_mode):
                    raise StoreError(self.location(name), "it is not a regular file")
                with open(file, "rb", closefd=False) as stream:
                    return stream.read()
            finally:
                os.close(file)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        check_name(name)
        with self.lock(), self._translated(name), self._opened() as folder:
            if folder is None:
                raise StoreError(self.location(name), "its folder was removed meanwhile")
            self._replace(folder, name, data)

    def _replace(self, folder: int, name: str, data: bytes | bytearray | memoryview) -> None:
        self._tidy(folder)
        new = _NEW_PREFIX + os.urandom(8).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(new, flags, 0o666, dir_fd=folder)  # less the umask, as any new file
        try:
            with open(file, "wb", buffering=0) as stream:
                view = memoryview(data).cast("B")
                while view.nbytes:
                    view = view[stream.write(view) :]
                old = _status(folder, name)
                if old is not None and modes.S_ISREG(old.st_mode):
                    os.fchmod(file, old.st_mode & 0o777)
                os.fsync(file)
            os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):  # the first error tells more
                os.unlink(new, dir_fd=folder)
            raise
        _sync(folder)

    def delete(self, name: str) -> bool:
        check_name(name)
        with self._translated(name):
            with self._opened() as folder:
                if folder is None or _status(folder, name) is None:
                    return False  # nothing is made or locked for it
            with self.lock(), self._opened() as folder:
                if folder is None:
                    return False
                try:
                    os.unlink(name, dir_fd=folder)
                except FileNotFoundError:
                    return False
                _sync(folder)
                return True

    def names(self) -> list[str]:
        found: list[str] = []
        with self._translated(None), self._opened() as folder:
            if folder is None:
                return found
            with os.scandir(folder) as entries:
                for entry in entries:
                    # Links are listed, so that reading them says why they are refused.
                    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                        with suppress(InvalidName):  # hidden, or named by other rules than ours
                            found.append(check_name(entry.name))
        return sorted(found)

    def stat(self, name: str) -> Stat | None:
        check_name(name)
        with self._translated(name), self._opened() as folder:
            status = _status(folder, name) if folder is not None else None
        if status is None or modes.S_ISDIR(status.st_mode):
            return None
        # The change time too: tools that copy files set the modification time back.
        version = f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_size:x}"
        version += f"-{status.st_ino:x}"
        is_regular = modes.S_ISREG(status.st_mode)
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if is_regular and abs(time.time_ns() - changed) < _SETTLED:
            try:
                version += f"-{zlib.crc32(self.read(name)):x}"
            except NotStored:
                return None
        return Stat(size=status.st_size, modified=status.st_mtime, version=version)

    @contextmanager
    def lock(self) -> Generator[None, None, None]:
        if not self._threads.acquire(timeout=LOCK_TIMEOUT):
            raise self._busy()
        try:
            if self._depth == 0:
                with self._translated(None):
                    self._lock_file = self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    file, self._lock_file = self._lock_file, -1
                    try:
                        # A process forked meanwhile shares the lock until it is given up by name.
                        fcntl.flock(file, fcntl.LOCK_UN)
                    finally:
                        os.close(file)
        finally:
            self._threads.release()

    def _acquire(self) -> int:
        deadline = time.monotonic() + LOCK_TIMEOUT
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        while True:
            self._make()
            with self._opened() as folder:
                if folder is None:  # removed again at this moment
                    if time.monotonic() >= deadline:
                        raise self._busy()
                    continue
                file = os.open(_LOCK_NAME, flags, 0o666, dir_fd=folder)
                try:
                    if lock_before(deadline, partial(_lock, file)):
                        # Somebody may have removed the file: then others lock another one.
                        named = _status(folder, _LOCK_NAME)
                        if named is not None and named.st_ino == os.fstat(file).st_ino:
                            return file
                    elif time.monotonic() >= deadline:
                        raise self._busy()
                except BaseException:
                    os.close(file)
                    raise
                os.close(file)

    def _busy(self) -> StoreError:
        return StoreError(
            str(self.root), f"another writer has held its lock for {LOCK_TIMEOUT:g} s"
        )

    def _make(self) -> None:
        os.makedirs(self._base, exist_ok=True)
        if self._folder:
            with suppress(FileExistsError):  # what it is, opening it tells
                os.mkdir(self.root)

    def _tidy(self, folder: int) -> None:
        """Remove what writers that were killed left: whoever holds the lock is the only one."""
        if self._is_tidy:
            return
        for name in os.listdir(folder):
            if name.startswith(_NEW_PREFIX):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        self._is_tidy = True

    @contextmanager
    def _opened(self) -> Generator[int | None, None, None]:
        """A descriptor of the folder, or None where it is missing."""
        try:
            folder = os.open(self._base, _FOLDER_FLAGS)
            if self._folder:
                base = folder
                try:
                    folder = os.open(self._folder, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=base)
                except NotADirectoryError as error:
                    raise StoreError(
                        str(self.root), "it is not a folder of its own; links are not followed"
                    ) from error
                finally:
                    os.close(base)
        except FileNotFoundError:
            yield None
            return
        try:
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _translated(self, name: str | None) -> Generator[None, None, None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            place = str(self.root) if name is None else self.location(name)
            raise StoreError(place, _reason(error)) from error


def _sync(folder: int) -> None:
    with suppress(OSError):  # the change is made; some file systems cannot sync a folder
        os.fsync(folder)


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _reason(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.EMLINK):  # EMLINK is what FreeBSD says
        return "it is a symbolic link; links are not followed"
    return error.strerror or str(error)
