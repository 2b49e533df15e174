"""Where stored values are: one folder (a *slot*) for one cache at a time, private to its owner.

A slot is locked while a cache has it; the lock ends with its process, however that ends. Each value
is a JSON file, replaced atomically, and a data file beside it, written before and never changed:
so whatever moment a process dies at, what is found later is whole. Handle names are in the JSON
only, never part of a path. What no JSON file speaks of is removed when the slot is opened.

There is no fsync: what is stored survives the end of the process, not that of the machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import stat
import zlib
from contextlib import suppress
from datetime import datetime  # noqa: TC003 - msgspec reads it
from typing import TYPE_CHECKING, Any

import msgspec

from py_code_mode.errors import StorageNotPrivate, StoreError
from py_code_mode.guest.segments import advance, map_private
from py_code_mode.handles.info import Origin, Problem, is_name
from py_code_mode.trust import has_group_of_one

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Files", "Name", "Record", "Slot", "text_of"]

#: Version of the JSON files.
FORMAT = 1

_LOCK = "lock"
_RECENCY = "recency.json"
_NEW = ".new-"
_ENVELOPE = re.compile(rb'\{"format":([0-9]{1,9}),"crc32":([0-9]{1,10}),"value":')
_DATA = re.compile(r"([0-9a-f]{16})\.[0-9a-f]{8}\.[a-z]+")
_SLOTS = 1000
_MAPPED = 1 << 20  # bytes from which a file is mapped, not read
_CHUNK = 1 << 18  # bytes compared at a time: both sides stay in the processor's cache
_VECTORS = 512  # buffers given to one call; IOV_MAX is 1024 everywhere
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ABOVE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = _ABOVE | os.O_NOFOLLOW


class Name(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One name of a stored value.

    Attributes:
        used: larger is more recent.
        snapshot: JSON text.
        replaces: key of the value that had the name before, if its file may still say so.
    """

    name: str
    created: datetime
    used: int
    snapshot: str
    semantics: dict[str, Any] | None = None
    origin: Origin | None = None
    replaces: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the JSON file of a value says.

    Attributes:
        data: file with its content; None where it has none (an empty content).
        size: bytes of that file.
        detail: what the codec needs besides.
    """

    names: list[Name]
    type: str
    nbytes: int
    codec: str
    data: str | None
    size: int
    detail: dict[str, Any]


_decoder = msgspec.json.Decoder(Record)


class Files:
    """Every change of a slot's folder, so that tests can have any of them fail."""

    def __init__(self, folder: int) -> None:
        self.folder = folder

    def create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self.folder)

    def write(self, fd: int, parts: Sequence[memoryview]) -> int:
        """Write some of it; give the number of bytes."""
        return os.writev(fd, parts)

    def replace(self, old: str, new: str) -> None:
        os.replace(old, new, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self.folder)


class Slot:
    """A locked folder of stored values. Blocking; not safe for use by several threads at once."""

    def __init__(self, path: Path, folder: int, lock: int) -> None:
        self.path = path
        self._folder, self._lock = folder, lock
        self._process = os.getpid()
        self.files = Files(folder)

    @classmethod
    def open(cls, directory: Path) -> Slot:
        """Take the first slot of a directory that nobody has, with what is stored in it.

        Raises:
            StorageNotPrivate: others may write there.
            StoreError: it cannot be made or written to.
        """
        try:
            directory.mkdir(0o700, parents=True, exist_ok=True)
            above = os.open(directory, _ABOVE)
            try:
                _check_place(above, directory)
                for number in range(1, _SLOTS + 1):
                    slot = cls._try(directory / f"handles-{number}", above)
                    if slot is not None:
                        return slot
            finally:
                os.close(above)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(str(directory), _reason(error)) from error
        raise StoreError(str(directory), f"all its {_SLOTS} slots are in use")

    @classmethod
    def _try(cls, path: Path, above: int) -> Slot | None:
        with suppress(FileExistsError):
            os.mkdir(path.name, 0o700, dir_fd=above)
        try:
            folder = os.open(path.name, _FOLDER, dir_fd=above)
        except NotADirectoryError:
            raise StorageNotPrivate(str(path), "it is no folder, or a link to one") from None
        try:
            _check_private(folder, path)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(_LOCK, flags, 0o600, dir_fd=folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                os.close(folder)
                return None
            except BaseException:
                os.close(lock)
                raise
            return cls(path, folder, lock)
        except BaseException:
            os.close(folder)
            raise

    def close(self) -> None:
        """Let go of the slot; idempotent."""
        if self._folder < 0:
            return
        if self._process == os.getpid():
            # By name: a process forked meanwhile shares the lock until it is given up.
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        os.close(self._folder)
        self._folder = self._lock = -1

    # -- reading ----------------------------------------------------------------------------

    def records(self) -> tuple[dict[str, Record], list[Problem]]:
        """What is stored, by key, and what of it cannot be read; sweeps what belongs to nothing."""
        found: dict[str, Record] = {}
        problems: list[Problem] = []
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise StoreError(str(self.path), _reason(error)) from error
        kept: set[str] = set()
        for name in names:
            if not name.endswith(".json") or name == _RECENCY:
                continue
            key = name.removesuffix(".json")
            kept.add(key)
            file = str(self.path / name)
            try:
                found[key] = self._record(name)
            # Somebody's torn, edited or newer file must not hide the others.
            except Exception as error:
                problems += [
                    Problem(name=handle, file=file, reason=str(error))
                    for handle in _names_in(error) or [None]
                ]
                continue
            doubt = self._doubt(found[key])
            if doubt is not None:
                problems += [
                    Problem(name=handle.name, file=file, reason=doubt)
                    for handle in found[key].names
                ]
        self._sweep(names, kept, found)
        return found, problems

    def _doubt(self, record: Record) -> str | None:
        """Why a value's data file cannot be what it was, as far as its size tells."""
        if record.data is None:
            return None
        try:
            status = os.stat(record.data, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            return f"its data file {record.data}: {_reason(error)}"
        if status.st_size == record.size:
            return None
        return f"its data file {record.data} has {status.st_size} bytes, not {record.size}"

    def _record(self, name: str) -> Record:
        data = bytes(self._read(name, None))
        text = data[:-1]
        envelope = _ENVELOPE.match(text)
        if envelope is None or int(envelope[1]) != FORMAT:
            raise _unreadable(data)
        text = text[envelope.end() :]
        if zlib.crc32(text) != int(envelope[2]):
            raise _Unreadable("it was altered", _parsed(data))
        try:
            # The standard library's reader takes what the faster one refuses: lone surrogates.
            record = (
                msgspec.convert(json.loads(text), Record)
                if b"\\ud" in text
                else _decoder.decode(text)
            )
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Unreadable(f"it is malformed: {error}", _parsed(data)) from error
        file = _DATA.fullmatch(record.data or "")
        is_its_own = file is not None and f"{file[1]}.json" == name
        if not all(is_name(handle.name) for handle in record.names) or not (
            is_its_own or (record.data is None and not record.size)
        ):
            raise _Unreadable("it is malformed", _parsed(data))
        return record

    def _sweep(self, names: list[str], kept: set[str], found: Mapping[str, Record]) -> None:
        """Remove what processes that ended in the middle of a change have left."""
        for name in names:
            data = _DATA.fullmatch(name)
            # Data of a file that cannot be read is not touched, nor what is not of our making.
            is_left = name.startswith(_NEW) or (
                data is not None
                and (data[1] not in kept or (data[1] in found and found[data[1]].data != name))
            )
            if is_left:
                with suppress(OSError):  # it only takes space
                    self.files.unlink(name)

    def read(self, record: Record) -> memoryview:
        """The content of a value's data file: writable, and private to whoever reads it.

        Raises:
            StorageNotPrivate: others may write there.
            StoreError: the file is gone or cut off, or cannot be read.
        """
        if record.data is None:
            return memoryview(bytearray())
        return self._read(record.data, record.size)

    def _read(self, name: str, size: int | None) -> memoryview:
        place = self.path / name
        _check_private(self._folder, self.path)
        try:
            fd = os.open(name, _READ, dir_fd=self._folder)
        except OSError as error:
            raise StoreError(str(place), _reason(error)) from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise StorageNotPrivate(str(place), "it is not a file of yours")
            if size is not None and status.st_size != size:
                raise StoreError(str(place), f"it has {status.st_size} bytes, not {size}")
            if status.st_size >= _MAPPED:
                # A file system that maps nothing, too many mappings: it is read then.
                with suppress(OSError):
                    return map_private(fd, status.st_size)
            data = memoryview(bytearray(status.st_size))
            done = 0
            while done < data.nbytes:
                count = os.preadv(fd, [data[done:]], done)
                if not count:
                    raise StoreError(str(place), "it was cut off while it was read")
                done += count
            return data
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(str(place), _reason(error)) from error
        finally:
            os.close(fd)

    def holds(self, name: str, parts: Sequence[memoryview]) -> bool:
        """Whether a file holds exactly these bytes."""
        try:
            fd = os.open(name, _READ, dir_fd=self._folder)
        except OSError:
            return False
        try:
            if os.fstat(fd).st_size != sum(part.nbytes for part in parts):
                return False
            at = 0
            chunk = bytearray(_CHUNK)
            for part in parts:
                for start in range(0, part.nbytes, _CHUNK):
                    piece = part[start : start + _CHUNK]
                    there = chunk if piece.nbytes == _CHUNK else bytearray(piece.nbytes)
                    # in this order: bytes are compared at once, a memoryview one by one
                    if os.preadv(fd, [there], at) != piece.nbytes or not there.__eq__(piece):
                        return False
                    at += piece.nbytes
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    # -- changing ---------------------------------------------------------------------------

    def new_key(self) -> str:
        """A name for the files of a value."""
        return secrets.token_hex(8)

    def write_data(self, key: str, extension: str, parts: Sequence[memoryview]) -> str:
        """Write a value's content to a new file; give its name.

        Raises:
            StoreError: it could not be written whole; nothing of it is left.
        """
        name = f"{key}.{secrets.token_hex(4)}{extension}"
        self._write(name, parts)
        return name

    def write_record(self, key: str, record: Record) -> None:
        """Replace a value's JSON file.

        Raises:
            StoreError: it could not be written; what was there before still is.
        """
        self._replace(f"{key}.json", text_of(record))

    def write_recency(self, used: Mapping[str, int]) -> None:
        """Say how recently each handle was used; what the JSON files say may be older.

        Raises:
            StoreError: as for `write_record`.
        """
        self._replace(_RECENCY, _compact({"used": dict(used)}))

    def recency(self) -> dict[str, int]:
        """What `write_recency` was told; empty where nothing can be read: it orders names only."""
        try:
            envelope = json.loads(bytes(self._read(_RECENCY, None)))
            return msgspec.convert(envelope["value"]["used"], dict[str, int])
        except (StoreError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def remove(self, *names: str) -> None:
        """Remove files; those that are not there are no error.

        Raises:
            StoreError: one cannot be removed.
        """
        self._check_process()
        for name in names:
            try:
                self.files.unlink(name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(str(self.path / name), _reason(error)) from error

    def discard(self, name: str | None) -> None:
        """Remove a data file that nothing speaks of any more; if that fails, the sweep will."""
        if name is not None:
            with suppress(StoreError):
                self.remove(name)

    def _replace(self, name: str, text: bytes) -> None:
        # As `_ENVELOPE` has it.
        envelope = b'{"format":%d,"crc32":%d,"value":%b}' % (FORMAT, zlib.crc32(text), text)
        new = _NEW + secrets.token_hex(8)
        self._write(new, [memoryview(envelope)])
        try:
            self.files.replace(new, name)
        except BaseException as error:
            self.discard(new)
            if isinstance(error, OSError):
                raise StoreError(str(self.path / name), _reason(error)) from error
            raise

    def _write(self, name: str, parts: Sequence[memoryview]) -> None:
        self._check_process()
        try:
            fd = self.files.create(name)
            try:
                self._write_all(fd, parts)
            except BaseException:
                self.discard(name)
                raise
            finally:
                os.close(fd)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(str(self.path / name), _reason(error)) from error

    def _write_all(self, fd: int, parts: Sequence[memoryview]) -> None:
        waiting: list[Any] = [part for part in parts if part.nbytes]
        while waiting:
            written = self.files.write(fd, waiting[:_VECTORS])
            if written <= 0:
                raise StoreError(str(self.path), "nothing could be written")
            waiting = advance(waiting, written)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(str(self.path), "it belongs to the process that this one is a fork of")


class _Unreadable(Exception):
    """A JSON file that is not what it should be; `body` is what there is of it."""

    def __init__(self, reason: str, body: object) -> None:
        super().__init__(reason)
        self.body = body


def _parsed(data: bytes) -> Any:
    """What a JSON file that cannot be trusted says of its value; None where it is no JSON."""
    try:
        return json.loads(data)["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _unreadable(data: bytes) -> _Unreadable:
    """Why a JSON file is not one of this version's."""
    try:
        version = json.loads(data)["format"]
    except (ValueError, RecursionError):
        return _Unreadable("it is torn or altered", None)
    except (KeyError, TypeError):
        return _Unreadable("it is not a file of this program", None)
    if type(version) is int and version > FORMAT:
        reason = f"a newer version of this program wrote it (format {version})"
        return _Unreadable(reason, _parsed(data))
    return _Unreadable("it was altered", _parsed(data))


def _names_in(error: Exception) -> list[str]:
    body: Any = getattr(error, "body", None)
    try:
        names = [name["name"] for name in body["names"]]
    except (TypeError, KeyError):
        return []
    return [name for name in names if is_name(name)]


def text_of(record: Record) -> bytes:
    """What the JSON file says, as JSON: unlike the objects, 1 and True differ there."""
    return _compact(msgspec.to_builtins(record))


def _compact(body: Mapping[str, Any]) -> bytes:
    # The standard library's: msgspec refuses lone surrogates, and makes null of nan.
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _check_place(directory: int, path: Path) -> None:
    """See that nobody else decides which folder a slot's name is of.

    In a sticky directory (``/tmp``) people cannot rename what belongs to others.
    """
    status = os.fstat(directory)
    if status.st_uid not in (os.geteuid(), 0):
        raise StorageNotPrivate(str(path), f"it belongs to another user ({status.st_uid})")
    if status.st_mode & stat.S_ISVTX:
        return
    is_ours_alone = status.st_mode & 0o002 == 0 and has_group_of_one(path, status.st_gid)
    if status.st_mode & 0o022 and not is_ours_alone:
        raise _written_by_others(path, status.st_mode)


def _check_private(folder: int, path: Path) -> None:
    status = os.fstat(folder)
    if status.st_uid != os.geteuid():
        raise StorageNotPrivate(str(path), f"it belongs to another user ({status.st_uid})")
    if status.st_mode & 0o022:
        raise _written_by_others(path, status.st_mode)


def _written_by_others(path: Path, mode: int) -> StorageNotPrivate:
    return StorageNotPrivate(str(path), f"others may write to it (mode {stat.S_IMODE(mode):o})")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
