"""Large values beside the journals of a folder, each a file named by its own content.

A blob is written whole or not at all, the same content once, and checked whenever it is read.
A sweep removes those that no journal names; one that somebody is about to name is never removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat as modes
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from py_code_mode.errors import CorruptRecordError, LogFull, PersistenceError, StoreError
from py_code_mode.journal.paths import BLOB_FOLDER
from py_code_mode.journal.records import Tagged
from py_code_mode.stores.files import DISK, FileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

__all__ = ["GRACE", "MAX_BLOB", "BlobMissing", "BlobStore", "is_ref", "refs_in"]

#: Seconds for which a sweep leaves a new blob alone, should a clock be set back.
GRACE = 3600.0
#: Bytes of the largest blob.
MAX_BLOB = 4 << 30

_PREFIX = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NEW = ".new-"
_LOCK = ".lock"
_BLOCK = 1 << 20


class BlobMissing(PersistenceError):
    """A journal names a blob that is not there."""

    def __init__(self, digest: str, folder: str) -> None:
        super().__init__(
            f"the blob {digest[:12]}… is not in {folder}: it was deleted, or the journal was "
            "copied without it"
        )
        self.digest, self.folder = digest, folder


class BlobStore:
    """The blobs of one sessions folder. Thread-safe, and shared by processes; its methods block.

    Nothing is made before the first `put`.

    Args:
        folder: the sessions folder; the blobs are in its `BLOB_FOLDER`.
    """

    def __init__(self, folder: str | Path, *, files: FileSystem = DISK) -> None:
        self._sessions = Path(folder)
        self._files = files

    @property
    def folder(self) -> Path:
        """Where they are; it may not exist yet."""
        return self._sessions / BLOB_FOLDER

    @contextmanager
    def naming(self) -> Generator[None, None, None]:
        """Keep sweeps out from before a blob is put until a journal names it.

        Without it a blob that is put is safe for `GRACE` seconds.
        """
        with self._opened(makes=True) as base, self._locked(base, is_shared=True):
            yield

    def put(
        self,
        data: bytes | bytearray | memoryview,
        media_type: str = "application/json",
        *,
        snapshot: object = None,
    ) -> Tagged:
        """Store the bytes, durably, and return the reference that stands for them in a record.

        Args:
            snapshot: what the reference shall tell of the content by itself.

        Raises:
            LogFull: there is no room.
            StoreError: writing failed otherwise.
        """
        view = memoryview(data).cast("B")
        digest = hashlib.sha256(view).hexdigest()
        # The lock keeps a sweep from the file that is being written.
        with self._opened(makes=True) as base, self._locked(base, is_shared=True):
            name = digest[2:]
            folder = self._subfolder(base, digest[:2])
            try:
                try:
                    # Also a sign for sweeps that somebody needs it from now on.
                    self._files.touch(name, folder=folder)
                    is_there = self._files.stat(name, folder=folder).st_size == view.nbytes
                except FileNotFoundError:
                    is_there = False
                if not is_there:
                    self._write(folder, name, view)
            finally:
                self._files.close(folder)
        reference: dict[str, Any] = {"$blob": _PREFIX + digest, "size": view.nbytes}
        reference["media_type"] = media_type
        if snapshot is not None:
            reference["snapshot"] = snapshot
        return Tagged(reference)

    def get(self, reference: str | dict[str, Any]) -> bytes:
        """The content that a reference, or a digest, stands for.

        Raises:
            BlobMissing: it is not there.
            CorruptRecordError: its file holds something else, or it is no reference.
        """
        digest = self._digest(reference)
        path = self.folder / digest[:2] / digest[2:]
        try:
            file = self._files.open(str(path), os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobMissing(digest, str(self.folder)) from None
        except OSError as error:
            raise StoreError(str(path), error.strerror or str(error)) from error
        try:
            status = self._files.fstat(file)
            if not modes.S_ISREG(status.st_mode) or status.st_size > MAX_BLOB:
                raise CorruptRecordError(str(path), None, 0, "it is no blob")
            pieces: list[bytes] = []
            at = 0
            while block := self._files.read(file, _BLOCK, at):
                pieces.append(block)
                at += len(block)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(str(path), error.strerror or str(error)) from error
        finally:
            self._files.close(file)
        data = b"".join(pieces)
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptRecordError(str(path), None, 0, "the blob is not what was written")
        return data

    def has(self, reference: str | dict[str, Any]) -> bool:
        """Whether there is a file for it; its content is not looked at."""
        digest = self._digest(reference)
        return (self.folder / digest[:2] / digest[2:]).is_file()

    def digests(self) -> Iterator[str]:
        """Of all blobs, in no order."""
        with suppress(FileNotFoundError, NotADirectoryError):
            for first in os.listdir(self.folder):
                if len(first) == 2:
                    with suppress(FileNotFoundError, NotADirectoryError):
                        for rest in os.listdir(self.folder / first):
                            if _DIGEST.fullmatch(first + rest):
                                yield first + rest

    def sweep(self, referenced: Callable[[], Iterable[str]], *, grace: float = GRACE) -> list[str]:
        """Remove the blobs that nobody names, and return their digests.

        Args:
            referenced: gives the digests that the journals name (`refs_in`). It is called once,
                after everybody who was about to name a blob has done so.
            grace: seconds for which a blob is left alone after its last `put`.
        """
        if not self.folder.is_dir():
            return []
        removed: list[str] = []
        with self._opened(makes=False) as base:
            # Whoever puts a blob after this moment gives it a newer time than `began`; whoever
            # did before has named it when the lock is had, so that it is found below.
            with self._locked(base, is_shared=False):
                self._files.touch(_LOCK, folder=base)
                began = self._files.stat(_LOCK, folder=base).st_mtime_ns
            named = set(referenced())
            until = min(began, time.time_ns() - int(grace * 1e9))
            with self._locked(base, is_shared=False):
                for first in self._files.names(base):
                    if len(first) == 2:
                        removed += self._sweep_folder(base, first, named, until)
        return removed

    def _sweep_folder(self, base: int, first: str, named: set[str], until: int) -> list[str]:
        removed: list[str] = []
        folder = self._files.open_folder(first, folder=base)
        try:
            for name in self._files.names(folder):
                is_blob = _DIGEST.fullmatch(first + name) is not None
                if (first + name in named) or not (is_blob or name.startswith(_NEW)):
                    continue
                with suppress(FileNotFoundError):
                    if self._files.stat(name, folder=folder).st_mtime_ns < until:
                        self._files.unlink(name, folder=folder)
                        removed += [first + name] if is_blob else []
        finally:
            self._files.close(folder)
        return removed

    def _write(self, folder: int, name: str, view: memoryview) -> None:
        new = _NEW + os.urandom(8).hex()
        files = self._files
        file = files.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder=folder)
        try:
            try:
                while view.nbytes:
                    try:
                        view = view[files.write(file, view) :]
                    except InterruptedError:
                        continue
                files.fsync(file)
            finally:
                files.close(file)
            files.rename(new, name, folder=folder)
            files.fsync(folder)
        except BaseException:
            with suppress(OSError):  # the first error tells more
                files.unlink(new, folder=folder)
            raise

    def _subfolder(self, base: int, name: str) -> int:
        try:
            return self._files.open_folder(name, folder=base)
        except FileNotFoundError:
            with suppress(FileExistsError):
                self._files.make_folder(name, folder=base)
                self._files.fsync(base)
            return self._files.open_folder(name, folder=base)

    @contextmanager
    def _opened(self, *, makes: bool) -> Generator[int, None, None]:
        """A descriptor of the folder; errors of the system become ours."""
        try:
            sessions = self._files.open_folder(self._sessions)
            try:
                if makes and not self.folder.is_dir():
                    with suppress(FileExistsError):
                        self._files.make_folder(BLOB_FOLDER, folder=sessions)
                        self._files.fsync(sessions)
                base = self._files.open_folder(BLOB_FOLDER, folder=sessions)
            finally:
                self._files.close(sessions)
            try:
                yield base
            finally:
                self._files.close(base)
        except StoreError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = error.strerror or str(error)
            raise (LogFull if full else StoreError)(str(self.folder), reason) from error

    @contextmanager
    def _locked(self, base: int, *, is_shared: bool) -> Generator[None, None, None]:
        # One descriptor each time: threads lock each other out as processes do.
        file = self._files.open(_LOCK, os.O_RDWR | os.O_CREAT, folder=base)
        try:
            self._files.lock(file, is_shared=is_shared, waits=True)
            yield
        finally:
            # Given up by name, or a child forked meanwhile would keep it.
            with suppress(OSError):
                self._files.unlock(file)
            self._files.close(file)

    def _digest(self, reference: object) -> str:
        found: object = reference
        if isinstance(reference, dict):
            found = cast("dict[str, object]", reference).get("$blob")
        digest = found.removeprefix(_PREFIX) if isinstance(found, str) else ""
        if not _DIGEST.fullmatch(digest):
            raise CorruptRecordError(
                str(self.folder), None, 0, f"{str(found)[:100]!r} names no blob"
            )
        return digest


def is_ref(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value of a record is a reference to a blob."""
    return isinstance(value, dict) and "$blob" in value


def refs_in(tree: object) -> Iterator[str]:
    """The digests of all blobs that a record's values name; a `to_dict` of it will do."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            fields = cast("dict[str, object]", item)
            found = fields.get("$blob")
            if isinstance(found, str):
                yield found.removeprefix(_PREFIX)
            waiting += fields.values()
        elif isinstance(item, list):
            waiting += cast("list[object]", item)
