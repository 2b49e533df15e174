"""An append-only file of lines, each whole or not there.

Promises: a line is added by one write and checked by a checksum; one writer at a time, of all
processes; a writer that dies, or a disk that is full or broken, costs no line that was there
before; a reader meanwhile sees whole lines only. What a crash leaves of a line is cut off when the
log is opened again.

A line is a JSON object, whose last key the log adds: ``"crc"``, the CRC-32, in eight hex digits, of
the object without it. Lines end with a line feed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as modes
import struct
import threading
import weakref
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Final,
    Literal,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    get_args,
)

from py_code_mode.arguments import check_choice
from py_code_mode.errors import (
    LogDamaged,
    LogFailed,
    LogFull,
    LogLocked,
    NotStored,
    StoreError,
)
from py_code_mode.stores.files import DISK, FileSystem
from py_code_mode.stores.syncing import sync_later

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

__all__ = [
    "MAX_LINE",
    "Cut",
    "Durability",
    "Line",
    "Log",
    "LogReader",
    "Problem",
    "Signature",
    "are_whole",
    "check_durability",
    "has_checksum",
    "problem_of",
    "seal",
    "signature_of",
]

#: What an append promises when it returns: the line survives the death of this process; the same,
#: and the death of the machine after at most `syncing.GROUP_WINDOW`; both at once.
Durability: TypeAlias = Literal["process", "group", "power"]
#: Bytes of the longest line.
MAX_LINE = 256 << 20

#: ``torn``: the last line has no end (yet). ``unchecked``: it has no checksum. ``damaged``: it has
#: another one. ``long``: it is longer than `MAX_LINE`, and left out.
Problem: TypeAlias = Literal["torn", "unchecked", "damaged", "long"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_CRC: Final = b',"crc":"'
_CRC_SIZE = len(_CRC) + 8 + len(b'"}')
_BLOCK = 256 << 10  # bytes read at once
_TAIL = 64 << 10  # bytes that are looked at first for the last line
_GLANCE = 4 << 10  # the same for who only reads
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OPENINGS = 10  # tries to open a file that others exchange for another one meanwhile


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        offset: of its first byte.
        data: the line without its end; empty where it is too long.
        problem: None for a line that is what was written.
        end: offset of the byte after the line's end.
    """

    offset: int
    data: bytes
    problem: Problem | None
    end: int


class Cut(NamedTuple):
    """What was cut off a log when it was opened.

    Attributes:
        offset: where it was.
        size: in bytes.
        sha256: of those bytes.
        reason: in words.
    """

    offset: int
    size: int
    sha256: str
    reason: str


class Signature(NamedTuple):
    """What tells a file and its content: equal for a file that nobody changed."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def check_durability(durability: str) -> None:
    """Refuse what is none: nothing would be synced.

    Raises:
        ConfigError: a ValueError.
    """
    check_choice("durability", durability, get_args(Durability))


def seal(body: bytes) -> bytes:
    """The line of a JSON object: with its checksum and its end.

    Args:
        body: the object, compact, with at least one key; without a line feed.
    """
    return b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def problem_of(data: bytes) -> Problem | None:
    """What is wrong with a line, which is given without its end."""
    if data[-_CRC_SIZE : -_CRC_SIZE + len(_CRC)] != _CRC:
        return "unchecked" if data[:1] == b"{" and data[-1:] == b"}" else "damaged"
    # A copy costs less than a view of it, but for lines that are very long.
    body = data[:-_CRC_SIZE] if len(data) < _BLOCK else memoryview(data)[:-_CRC_SIZE]
    crc = zlib.crc32(b"}", zlib.crc32(body))
    return None if data[-10:] == b'%08x"}' % crc else "damaged"


def are_whole(lines: Sequence[bytes]) -> bool:
    """Whether all of these lines, which are given without their ends, are what was written.

    The same as `problem_of` for each, in less time.
    """
    if not lines:
        return True
    sums: list[int] = []
    told: list[bytes] = []
    crc32 = zlib.crc32
    for line in lines:
        if line[-_CRC_SIZE:-10] != _CRC:
            return False
        sums.append(crc32(b"}", crc32(line[:-_CRC_SIZE])))
        told.append(line[-10:])
    found = struct.pack(f">{len(sums)}I", *sums).hex(",", 4).encode() + b","
    return found.replace(b",", b'"}') == b"".join(told)


def has_checksum(data: bytes) -> bool:
    """Whether a line, which is given without its end, has one, right or wrong."""
    return data[-_CRC_SIZE : -_CRC_SIZE + len(_CRC)] == _CRC


class Log:
    """The one writer of a log file. Thread-safe; its methods block.

    Made by `create` and `open`. A forked child cannot use it: it is closed there, and the lock
    stays with the parent.
    Every method raises `StoreError` where the file cannot be had, and `LogFailed` for good after a
    sync, or putting the file in order, has failed.

    Attributes:
        cut: what was cut off when it was opened.
    """

    def __init__(
        self, folder: Path, name: str, durability: Durability, files: FileSystem, directory: int
    ) -> None:
        self._folder, self._name = folder, name
        self._files = files
        self._durability: Durability = durability
        self._directory = directory
        self._file = -1
        self._end = self._synced = 0
        self._failure: LogFailed | None = None
        self._owner = os.getpid()
        self._writing = threading.Lock()
        self._syncing = threading.Lock()  # taken before `_writing` where both are
        self._is_due = False
        self.cut: Cut | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        name: str,
        *,
        durability: Durability = "group",
        files: FileSystem = DISK,
    ) -> Self:
        """Make a new, empty log, for its owner only (0600), and lock it. The folder must exist.

        Raises:
            StoreError: its cause is a FileExistsError where a file has that name.
        """
        log = cls._prepared(Path(folder), name, durability, files)
        try:
            with log._translated():
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
                log._file = files.open(name, flags, folder=log._directory)
                if not log._takes_lock():
                    raise LogLocked(log.path)
                if durability != "process":
                    _again(files.fsync, log._directory)
        except BaseException as error:
            if log._file >= 0 and not isinstance(error, LogLocked):
                with suppress(OSError):  # the first error tells more
                    files.unlink(name, folder=log._directory)
            log._let_go()
            raise
        _logs.add(log)
        return log

    @classmethod
    def open(
        cls,
        folder: str | Path,
        name: str,
        *,
        durability: Durability = "group",
        files: FileSystem = DISK,
    ) -> Self:
        """Open a log to write on, and cut off what a crash left of its last lines.

        Only what follows the last whole line is cut.

        Raises:
            NotStored: there is none.
            LogLocked: another writer has it.
            LogDamaged: it has lines, but none of the last ones is whole.
        """
        log = cls._prepared(Path(folder), name, durability, files)
        try:
            with log._translated():
                log._open()
                log._repair()
        except BaseException:
            log._let_go()
            raise
        _logs.add(log)
        return log

    @classmethod
    def _prepared(cls, folder: Path, name: str, durability: Durability, files: FileSystem) -> Self:
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"{name!r} is not the name of a file")
        check_durability(durability)
        try:
            directory = files.open_folder(folder)
        except FileNotFoundError:
            raise NotStored(str(folder / name)) from None
        except OSError as error:
            raise StoreError(str(folder), _words(error)) from error
        return cls(folder, name, durability, files, directory)

    @property
    def path(self) -> str:
        """Where it is."""
        return str(self._folder / self._name)

    @property
    def name(self) -> str:
        """Of its file, in its folder."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes of all its lines."""
        return self._end

    @property
    def durability(self) -> Durability:
        """What an append promises."""
        return self._durability

    @property
    def is_open(self) -> bool:
        """Whether lines can be added."""
        return self._file >= 0 and self._failure is None

    def __repr__(self) -> str:
        return f"Log({self.path!r})"

    def append(self, body: bytes) -> int:
        """Add one line and return its offset.

        Args:
            body: as for `seal`.

        Raises:
            LogFull: there is no room; nothing of the line is in the file.
            StoreError: writing failed otherwise; nothing of the line is in the file.
            ValueError: it is longer than `MAX_LINE`, or no JSON object with a key.
        """
        line = seal(body)
        if len(line) > MAX_LINE or len(body) < 5 or b"\n" in body:
            raise ValueError(
                f"{self.path}: a line is a JSON object of at most {MAX_LINE} bytes without line "
                f"feeds; this one has {len(line)} bytes"
            )
        with self._writing:  # which a forked child has anew, and no file: see `leave_to_parent`
            if self._file < 0 or self._failure is not None:
                self._refuse()
            offset = self._end
            self._write(line)
            self._end = end = offset + len(line)
        if self._durability == "group":
            if not self._is_due:
                self._is_due = True
                sync_later(self)
        elif self._durability == "power":
            self._sync(end)
        return offset

    def _write(self, line: bytes) -> None:
        try:
            done = _again(self._files.write, self._file, line)
            while done < len(line):
                rest = memoryview(line)[done:]
                written = _again(self._files.write, self._file, rest)
                if written <= 0:
                    raise OSError(errno.EIO, "the system took none of it")
                done += written
        except BaseException as error:
            self._take_back()
            if not isinstance(error, OSError):
                raise
            kind = LogFull if error.errno in _FULL else StoreError
            raise kind(self.path, _words(error)) from error

    def _take_back(self) -> None:
        """Have the file end where it did before; a part of a line would spoil the next one."""
        try:
            _again(self._files.truncate, self._file, self._end)
        except OSError as error:
            self._failure = LogFailed(
                self.path, f"a part of a line could not be taken back ({_words(error)})"
            )
            raise self._failure from error

    def flush(self) -> None:
        """Return when all lines that were added before are on the disk."""
        if os.getpid() != self._owner or self._file < 0 or self._failure is not None:
            self._refuse()
        self._sync(self._end)

    def _sync(self, end: int) -> None:
        with self._syncing:
            if self._failure is not None:
                raise self._fresh_failure()
            if self._synced >= end:
                return  # somebody else's sync had it
            with self._writing:
                end, file = self._end, self._file
            if file < 0:
                return  # closed meanwhile, which syncs
            try:
                _again(self._files.fdatasync, file)
            except OSError as error:
                self._failure = LogFailed(self.path, f"syncing it failed ({_words(error)})")
                raise self._failure from error
            self._synced = end

    def sync_soon(self) -> None:
        """For the thread that syncs: errors are kept for the next one who writes."""
        self._is_due = False  # before the sync, so that a line added during it asks again
        with suppress(StoreError):
            self._sync(self._end)

    def rename(self, name: str) -> None:
        """Give the file another name in its folder, without letting go of the lock; durable.

        Raises:
            StoreError: it could not be; its cause is a FileExistsError where there is such a file.
        """
        if os.getpid() != self._owner or self._file < 0:
            self._refuse()
        with self._writing, self._translated():
            try:
                self._files.stat(name, folder=self._directory)
            except FileNotFoundError:
                pass
            else:
                raise FileExistsError(errno.EEXIST, f"there is a file {name!r} already")
            _again(self._files.rename, self._name, name, folder=self._directory)
            self._name = name
            self._files.fsync(self._directory)

    def close(self) -> None:
        """Sync, and let go of the lock; a second call does nothing.

        Raises:
            LogFailed: the last lines may not be on the disk. It is closed all the same.
        """
        if os.getpid() != self._owner or self._file < 0:
            return
        try:
            if self._failure is None and self._durability != "process":
                self._sync(self._end)
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Let go of the lock at once, without a sync; a second call does nothing."""
        if os.getpid() == self._owner:
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_directory", -1) >= 0 and os.getpid() == self._owner:
            self._let_go()

    def _let_go(self) -> None:
        with self._syncing, self._writing:
            file, self._file = self._file, -1
            directory, self._directory = self._directory, -1
        if file >= 0:
            with suppress(OSError):
                # By name: a child that is just being forked still shares it.
                self._files.unlock(file)
        for descriptor in (file, directory):
            if descriptor >= 0:
                with suppress(OSError):  # it is closed even where the system reports an error
                    self._files.close(descriptor)

    def leave_to_parent(self) -> None:
        """For a forked child: the file stays with the parent, and so does its lock."""
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._file = self._directory = -1

    def _refuse(self) -> NoReturn:
        if os.getpid() != self._owner:
            raise StoreError(self.path, "the log belongs to the process that this one came from")
        if self._failure is not None:
            raise self._fresh_failure()
        raise StoreError(self.path, "the log is closed")

    def _fresh_failure(self) -> LogFailed:
        assert self._failure is not None
        return LogFailed(self.path, str(self._failure.reason).partition("; nothing more")[0])

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND
        for _ in range(_OPENINGS):
            file = self._files.open(self._name, flags, folder=self._directory)
            self._file = file
            if not modes.S_ISREG(self._files.fstat(file).st_mode):
                raise StoreError(self.path, "it is not a regular file")
            if self._takes_lock():
                return
            self._file = -1
            self._files.close(file)
        raise LogLocked(self.path)  # whoever exchanges it all the time is another writer

    def _takes_lock(self) -> bool:
        """Whether the locked file is still the one of that name.

        Its writer may have renamed it, or somebody deleted it, before the lock was had.
        """
        try:
            self._files.lock(self._file)
        except BlockingIOError:
            raise LogLocked(self.path) from None
        mine = self._files.fstat(self._file)
        try:
            named = self._files.stat(self._name, folder=self._directory)
        except FileNotFoundError:
            return False
        return (mine.st_ino, mine.st_dev) == (named.st_ino, named.st_dev)

    def _repair(self) -> None:
        size = self._files.fstat(self._file).st_size
        last = _last_whole(self._files, self._file, size, self.path, _TAIL)
        good = 0 if last is None else last.end
        if good < size:
            digest = hashlib.sha256()
            ends = b"\n"
            for start in range(good, size, _BLOCK):
                block = self._files.read(self._file, min(_BLOCK, size - start), start)
                digest.update(block)
                ends = block[-1:] or ends
            whole = "lines that are not what was written" if ends == b"\n" else "a part of a line"
            _again(self._files.truncate, self._file, good)
            _again(self._files.fsync, self._file)
            self.cut = Cut(good, size - good, digest.hexdigest(), whole)
        self._end = self._synced = good

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise NotStored(self.path) from error
        except OSError as error:
            raise StoreError(self.path, _words(error)) from error


class LogReader:
    """A log as somebody else sees it, who may read it while it is written.

    Opened and closed with `with`, or by `close`. Takes no lock.

    Raises:
        NotStored: there is none.
        StoreError: it cannot be read, or is a link, a folder or a pipe.
    """

    def __init__(self, path: str | Path, *, files: FileSystem = DISK) -> None:
        self._path, self._files = str(path), files
        self._file = -1
        with self._translated():
            self._file = files.open(self._path, os.O_RDONLY)
            if not modes.S_ISREG(files.fstat(self._file).st_mode):
                self.close()
                raise StoreError(self._path, "it is not a regular file")

    @property
    def path(self) -> str:
        """Where it is."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes that there are now."""
        with self._translated():
            return self._files.fstat(self._file).st_size

    @property
    def signature(self) -> Signature:
        """Of the file that is open, whatever has its name now."""
        with self._translated():
            return signature_of(self._files.fstat(self._file))

    def lines(self, start: int = 0, end: int | None = None) -> Iterator[Line]:
        """The lines from an offset, at which one begins, to the end, in little memory.

        What is written meanwhile is left out. A last line without an end is ``torn``: somebody
        may be writing it just now.

        Args:
            end: offset of the byte to stop before.
        """
        size = self.size
        yield from self._lines(start, size if end is None else min(end, size), _BLOCK)

    def at(self, offset: int) -> Line | None:
        """The line that begins there; None at the end of the file."""
        return next(self._lines(offset, self.size, 4 << 10), None)

    def tail(self, size: int = _TAIL) -> list[Line]:
        """The lines that begin in the last `size` bytes."""
        end = self.size
        start = max(0, end - size)
        if start == 0:
            return list(self.lines(0, end))
        found = self._lines(start - 1, end, _BLOCK)
        next(found, None)  # the end of the line before, or only its line feed
        return list(found)

    def last(self) -> Line | None:
        """The last line that is what was written, read backwards; None where there is none."""
        with self._translated():
            try:
                return _last_whole(self._files, self._file, self.size, self._path, _GLANCE)
            except LogDamaged:
                return None

    def all(self, limit: int) -> bytes | None:
        """The whole file at once; None where it has more than `limit` bytes."""
        size = self.size
        if size > limit:
            return None
        with self._translated():
            return _read(self._files, self._file, 0, size)

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            self._files.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _lines(self, start: int, size: int, block: int) -> Iterator[Line]:
        pieces: list[bytes] = []  # of the line that began at `begin` and has no end yet
        begin = at = start
        held = 0
        while at < size:
            with self._translated():
                data = self._files.read(self._file, min(block, size - at), at)
            if not data:
                break  # it was cut meanwhile
            at += len(data)
            *ended, rest = data.split(b"\n")
            for part in ended:
                if pieces or held:
                    held += len(part)
                    pieces.append(part)
                    part = b"".join(pieces)
                    pieces.clear()
                else:
                    held = len(part)
                stop = begin + held + 1
                if held >= MAX_LINE:
                    yield Line(begin, b"", "long", stop)
                else:
                    problem = problem_of(part)
                    yield self._again(begin, stop) if problem else Line(begin, part, None, stop)
                begin, held = stop, 0
            if rest:
                held += len(rest)
                if held < MAX_LINE:
                    pieces.append(rest)
                else:
                    pieces.clear()
            block = max(block, min(_BLOCK, 2 * block))
        if held:
            yield Line(begin, b"".join(pieces), "torn", begin + held)

    def _again(self, begin: int, end: int) -> Line:
        """A line that is not as it should be, read once more.

        A writer who had to take a part of a line back may have written over what was read.
        """
        with self._translated():
            data = self._files.read(self._file, end - begin, begin).partition(b"\n")[0]
        return Line(begin, data, problem_of(data), begin + len(data) + 1)

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError:
            raise NotStored(self._path) from None
        except OSError as error:
            raise StoreError(self._path, _words(error)) from error


def signature_of(status: os.stat_result) -> Signature:
    """The signature of a file whose status this is."""
    return Signature(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _after_fork() -> None:
    for log in list(_logs):
        log.leave_to_parent()
    _logs.clear()


os.register_at_fork(after_in_child=_after_fork)


def _last_whole(files: FileSystem, file: int, size: int, path: str, window: int) -> Line | None:
    """The last line that is what was written, looked for from the end; None in an empty log.

    Empty is one whose writer died in the first line, too.
    """
    while True:
        start = max(0, size - window)
        data = _read(files, file, start, size)
        end = data.rfind(b"\n")
        is_empty = end < 0
        while end >= 0:
            begin = data.rfind(b"\n", 0, end) + 1
            if begin == 0 and start > 0:
                break  # it begins further up
            line = data[begin:end]
            if problem_of(line) is None:
                return Line(start + begin, line, None, start + end + 1)
            end = begin - 1
        if start == 0:
            if is_empty:
                return None
            raise LogDamaged(path, size)
        if window >= MAX_LINE:
            raise LogDamaged(path, window)
        window *= 2


def _read(files: FileSystem, file: int, start: int, end: int) -> bytes:
    """The bytes from `start`; fewer only where the file ends."""
    data = _again(files.read, file, end - start, start)
    while data and start + len(data) < end:
        more = _again(files.read, file, end - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def _again(call: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call until no signal interrupts it."""
    while True:
        try:
            return call(*args, **kwargs)
        except InterruptedError:
            continue


def _words(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.EMLINK):  # EMLINK is what FreeBSD says
        return "it is a symbolic link; links are not followed"
    return error.strerror or str(error)
