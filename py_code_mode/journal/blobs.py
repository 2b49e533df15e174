"""Large values beside the journals of a folder, each a file named by its own content.

A blob is written whole or not at all, the same content once, and checked whenever it is read.
A sweep removes those that no journal names; one that somebody is about to name is never removed.

Whoever made a blob may remove it again without a look at all journals (`BlobStore.release`), as
long as nobody else has put the same content: every `put` of what is there already sets the file's
time, so that it differs from the stamp that its maker gave it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import stat as modes
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from py_code_mode.errors import CorruptRecordError, LogFull, PersistenceError, StoreError
from py_code_mode.journal.paths import BLOB_FOLDER
from py_code_mode.journal.records import Tagged
from py_code_mode.stores.file import lock_before
from py_code_mode.stores.files import DISK, FileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

__all__ = ["GRACE", "MAX_BLOB", "BlobMissing", "BlobStore", "is_ref", "refs_in", "stamps_in"]

#: Seconds for which a sweep leaves a new blob alone, should a clock be set back.
GRACE = 3600.0
#: Bytes of the largest blob.
MAX_BLOB = 4 << 30

_PREFIX = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NEW = ".new-"
_LOCK = ".lock"
_BLOCK = 1 << 20
_PATIENCE = 1.0  # seconds that `release` waits for those who are putting blobs


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
        stamps: Mapping[str, int] | None = None,
    ) -> Tagged:
        """Store the bytes, durably, and return the reference that stands for them in a record.

        Args:
            snapshot: what the reference shall tell of the content by itself.
            stamps: those that the caller has been given, by digest. Where this is a mapping, the
                reference has a ``stamp`` if the caller alone has put this content.

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
                stamp = None if stamps is None else stamps.get(digest)
                if stamp is None or not self._is_stamped(folder, name, stamp):
                    stamp = None
                    if not self._is_renewed(folder, name, view.nbytes):
                        stamp = self._write(folder, name, view, is_stamped=stamps is not None)
            finally:
                self._files.close(folder)
        reference: dict[str, Any] = {"$blob": _PREFIX + digest, "size": view.nbytes}
        reference["media_type"] = media_type
        if stamp is not None:
            reference["stamp"] = stamp
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

    def release(self, stamps: Mapping[str, int]) -> list[str]:
        """Remove blobs that the caller made and no longer names; returns the digests of those gone.

        One that somebody else has put meanwhile stays. Bounded: where others are putting blobs all
        the while nothing is removed, and a later sweep does it.

        Args:
            stamps: by digest, as `put` gave them.
        """
        removed: list[str] = []
        if not stamps or not self.folder.is_dir():
            return removed
        with self._opened(makes=False) as base, self._locked_soon(base) as is_locked:
            for digest, stamp in stamps.items() if is_locked else ():
                with suppress(FileNotFoundError):
                    folder = self._files.open_folder(digest[:2], folder=base)
                    try:
                        if self._is_stamped(folder, digest[2:], stamp):
                            self._files.unlink(digest[2:], folder=folder)
                            removed.append(digest)
                    finally:
                        self._files.close(folder)
        return removed

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

    def _is_stamped(self, folder: int, name: str, stamp: int) -> bool:
        """Whether nobody has put it since it got this stamp."""
        try:
            return self._files.stat(name, folder=folder).st_mtime_ns == stamp
        except FileNotFoundError:
            return False

    def _is_renewed(self, folder: int, name: str, size: int) -> bool:
        """Whether it is there; sweeps, and who made it, see that somebody needs it from now on."""
        try:
            self._files.touch(name, folder=folder)
            return self._files.stat(name, folder=folder).st_size == size
        except FileNotFoundError:
            return False

    def _write(self, folder: int, name: str, view: memoryview, *, is_stamped: bool) -> int | None:
        """Write a blob; gives its stamp where this made it, and the system can tell."""
        new = _NEW + os.urandom(8).hex()
        files = self._files
        stamp: int | None = None
        file = files.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder=folder)
        try:
            try:
                while view.nbytes:
                    try:
                        view = view[files.write(file, view) :]
                    except InterruptedError:
                        continue
                if is_stamped:
                    stamp = self._stamped(file)
                files.fsync(file)
            finally:
                files.close(file)
            if stamp is None or not self._is_first(folder, new, name):
                stamp = None
                files.rename(new, name, folder=folder)
            files.fsync(folder)
            return stamp
        except BaseException:
            with suppress(OSError):  # the first error tells more
                files.unlink(new, folder=folder)
            raise

    def _stamped(self, file: int) -> int | None:
        # Not a time that the system gives by itself: those are of its clock's ticks.
        stamp = time.time_ns() - random.randrange(1, 1_000_000)
        self._files.date(file, stamp)
        # None where the system keeps times less exactly.
        return stamp if self._files.fstat(file).st_mtime_ns == stamp else None

    def _is_first(self, folder: int, new: str, name: str) -> bool:
        """Give a new file its name, unless there is one; two who try know which of them made it."""
        try:
            self._files.link(new, name, folder=folder)
        except OSError:  # there is one, or a file has one name only on this system
            return False
        self._files.unlink(new, folder=folder)
        return True

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
        with self._lock_file(base) as file:
            self._files.lock(file, is_shared=is_shared, waits=True)
            yield

    @contextmanager
    def _locked_soon(self, base: int) -> Generator[bool, None, None]:
        """The lock, alone; gives False where it cannot be had in `_PATIENCE`."""
        with self._lock_file(base) as file:
            yield lock_before(time.monotonic() + _PATIENCE, partial(self._files.lock, file))

    @contextmanager
    def _lock_file(self, base: int) -> Generator[int, None, None]:
        # One descriptor each time: threads lock each other out as processes do.
        file = self._files.open(_LOCK, os.O_RDWR | os.O_CREAT, folder=base)
        try:
            yield file
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


def stamps_in(references: Iterable[object]) -> dict[str, int]:
    """The stamps of references that have one, by digest; see `BlobStore.release`."""
    return {
        digest: stamp
        for reference in references
        if is_ref(reference) and type(stamp := reference.get("stamp")) is int
        for digest in refs_in(reference)
    }


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
