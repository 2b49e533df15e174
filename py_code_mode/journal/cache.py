"""Parsed files kept in memory, and given out only while the file is what was parsed.

Promises: nothing out of date is given out, however coarse the clock of the file system is; a hit
on a file that has aged costs one `os.stat`; a file is parsed once for all who wait for it, and
where it grew, only what is new is. The sessions it gives are frozen, and shared by all who ask:
nobody can change what others get.

This holds *recorded* sessions, as text. It is not `py_code_mode.handles.SessionCache`, which holds
the live values of a running one.
"""

from __future__ import annotations

import os
import stat as modes
import threading
import time
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from py_code_mode.arguments import check_type
from py_code_mode.journal.parsed import ParsedSession, parse_session
from py_code_mode.stores.log import Signature, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DEFAULT_MAX_ENTRIES",
    "StatCache",
    "clear_cache",
    "get_cached_session",
    "parse_session",
    "set_max_entries",
]

#: Files whose values are kept.
DEFAULT_MAX_ENTRIES = 200
#: Bytes of those files together; their values take about twice as many.
DEFAULT_MAX_BYTES = 128 << 20
#: The coarsest file times in use are of 2 s (FAT); the rest is for a kernel's clock, which ticks.
RACY_WINDOW_NS = 2_100_000_000

_TAIL = 64  # bytes before the end that tell whether a file only grew
_BLOCK = 1 << 20
# Opening a pipe would wait for its other end otherwise.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

V = TypeVar("V")
_Key: TypeAlias = tuple[int, int]


class _Entry(Generic[V]):
    """A value, and what the file was like when it was parsed.

    Attributes:
        is_settled: a change of the file is sure to show in its status.
        crc: of the whole content; `crc_at_end` of the content up to `end`.
        end: offset up to which the value tells the content; -1 where the value cannot grow.
        tail: the bytes before `end`.
    """

    __slots__ = (
        "changed", "crc", "crc_at_end", "end", "is_settled", "key", "modified", "path", "size",
        "tail", "value",
    )  # fmt: skip

    def __init__(self, value: V, path: str, signature: Signature) -> None:
        self.value, self.path = value, path
        self.key: _Key = signature[:2]
        _, _, self.size, self.modified, self.changed = signature
        self.is_settled = False
        self.crc = self.crc_at_end = 0
        self.end, self.tail = -1, b""

    def fits(self, status: os.stat_result) -> bool:
        """Whether the file looks as it did."""
        return (
            self.size == status.st_size
            and self.modified == status.st_mtime_ns
            and self.changed == status.st_ctime_ns
        )

    def settles(self, now: int) -> bool:
        """Whether a change after `now` could not have the times that the file has.

        Git's rule for files that change as its index is written (Documentation/technical/racy-git).
        """
        return max(self.modified, self.changed) <= now - RACY_WINDOW_NS


class _Flight(Generic[V]):
    """Somebody parses a file, and others wait for it."""

    __slots__ = ("entry", "error", "is_over")

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.entry: _Entry[V] | None = None
        self.error: Exception | None = None


class StatCache(Generic[V]):
    """Values of files, each made by `parse` and valid until the file changes. Thread-safe.

    What is kept is known by the file itself (device and inode), whatever path leads to it. Beyond
    either bound, what was not asked for the longest time goes first.

    Args:
        parse: the value of a file; given an absolute path. What it raises is not kept.
        grow: the value of a file that has more bytes than its old value tells, and the same ones
            up to there; None where it cannot be had so. Given the path and the old value.
        end_of: the offset up to which a value tells the file's content; negative where it cannot
            grow.
        max_bytes: of the files, not of the values.
        stat, fstat, clock: as `os.stat`, `os.fstat` and `time.time_ns`.
    """

    def __init__(
        self,
        parse: Callable[[str], V],
        *,
        grow: Callable[[str, V], V | None] | None = None,
        end_of: Callable[[V], int] | None = None,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        max_bytes: int = DEFAULT_MAX_BYTES,
        stat: Callable[[str | os.PathLike[str]], os.stat_result] = os.stat,
        fstat: Callable[[int], os.stat_result] = os.fstat,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._parse, self._grow, self._end_of = parse, grow, end_of
        self._stat, self._fstat, self._clock = stat, fstat, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry[V]] = OrderedDict()
        self._keys: dict[str, _Key] = {}  # by the path that an entry was made from
        self._flights: dict[Signature, _Flight[V]] = {}
        self._bytes = 0
        self._max_entries, self._max_bytes = _bound(max_entries), max_bytes

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the files whose values are kept."""
        return self._bytes

    def get(self, path: str | os.PathLike[str], *, admit: bool = True) -> V:
        """The value of a file as it is now.

        Args:
            admit: whether what is parsed may push out something else. Who reads all there is, once,
                passes False.

        Raises:
            OSError: there is no such file, or it cannot be read; or whatever `parse` raises.
        """
        try:
            status = self._stat(path)
        except OSError:
            self._forget(path)
            raise
        key = (status.st_dev, status.st_ino)
        entry = self._entries.get(key)
        if (
            entry is not None
            and entry.is_settled
            and entry.size == status.st_size
            and entry.modified == status.st_mtime_ns
            and entry.changed == status.st_ctime_ns
        ):
            if admit:
                self._touch(key)
            return entry.value
        return self._get_slowly(os.path.abspath(path), status, admit)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._keys.clear()
            self._bytes = 0

    def set_max_entries(self, max_entries: int) -> None:
        """Keep at most so many from now on; with 0 nothing is kept, and each access parses.

        Raises:
            ValueError: it is negative.
        """
        max_entries = _bound(max_entries)
        with self._lock:
            self._max_entries = max_entries
            self._evict()

    def _get_slowly(self, path: str, status: os.stat_result, admit: bool) -> V:
        while True:
            if self._max_entries == 0:
                return self._parse(path)
            signature = signature_of(status)
            with self._lock:
                entry = self._entries.get(signature[:2])
                if entry is not None and entry.fits(status):
                    flight = mine = None
                else:
                    flight, mine = self._flights.get(signature), None
                    if flight is None:
                        mine = self._flights[signature] = _Flight()
            if mine is not None:
                return self._fly(mine, signature, path, entry, admit)
            if flight is not None:
                flight.is_over.wait()
                if flight.error is not None:
                    raise flight.error
                entry = flight.entry
            if entry is not None:
                if entry.is_settled or self._is_current(entry, path):
                    if admit:
                        self._touch(entry.key)
                    return entry.value
                self._drop(entry)  # it changed, and its status does not tell
            status = self._stat(path)

    def _touch(self, key: _Key) -> None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)

    def _fly(
        self,
        flight: _Flight[V],
        signature: Signature,
        path: str,
        old: _Entry[V] | None,
        admit: bool,
    ) -> V:
        try:
            value, entry = self._load(path, old)
            flight.entry = entry
            if entry is not None:
                self._keep(entry, admit)
            return value
        except Exception as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                self._flights.pop(signature, None)
            flight.is_over.set()

    def _load(self, path: str, old: _Entry[V] | None) -> tuple[V, _Entry[V] | None]:
        """The value, and an entry for it unless the file changed meanwhile."""
        began = self._clock()
        file = os.open(path, _FLAGS)
        try:
            before = self._fstat(file)
            if not modes.S_ISREG(before.st_mode):
                return self._parse(path), None
            signature = signature_of(before)
            # Before it is parsed: if it changes in between, the checksum is that of the older
            # content, does not fit later on, and the file is parsed again.
            found = self._grown(file, path, signature, old) if old is not None else None
            if found is None:
                found = self._parsed(file, path, signature)
            try:
                after = (self._fstat(file), self._stat(path))
            except OSError:
                return found.value, None  # it is gone, which does not make the value wrong
            if any(signature_of(status) != signature for status in after):
                return found.value, None
            found.is_settled = found.settles(began)
            return found.value, found
        finally:
            os.close(file)

    def _parsed(self, file: int, path: str, signature: Signature) -> _Entry[V]:
        crc = _crc(file, 0, signature.size)
        entry = _Entry(self._parse(path), path, signature)
        entry.crc = crc
        self._note_end(entry, file, 0, 0)
        return entry

    def _grown(
        self, file: int, path: str, signature: Signature, old: _Entry[V]
    ) -> _Entry[V] | None:
        if self._grow is None or old.end < 0 or signature.size <= old.size:
            return None
        if os.pread(file, len(old.tail), old.end - len(old.tail)) != old.tail:
            return None
        crc = _crc(file, old.end, signature.size, old.crc_at_end)
        value = self._grow(path, old.value)
        if value is None:
            return None
        entry = _Entry(value, path, signature)
        entry.crc = crc
        self._note_end(entry, file, old.end, old.crc_at_end)
        return entry

    def _note_end(self, entry: _Entry[V], file: int, start: int, crc: int) -> None:
        """Keep what a later, longer content is compared with; `crc` is that up to `start`."""
        end = self._end_of(entry.value) if self._end_of is not None else -1
        if not start <= end <= entry.size:
            return
        entry.end = end
        entry.crc_at_end = entry.crc if end == entry.size else _crc(file, start, end, crc)
        entry.tail = os.pread(file, min(_TAIL, end), max(0, end - _TAIL))

    def _is_current(self, entry: _Entry[V], path: str) -> bool:
        """Whether the content is what was parsed, although the status could not tell."""
        now = self._clock()
        try:
            file = os.open(path, _FLAGS)
        except OSError:
            return False
        try:
            before = self._fstat(file)
            if not entry.fits(before) or _crc(file, 0, entry.size) != entry.crc:
                return False
            if not entry.fits(self._fstat(file)):
                return False
        finally:
            os.close(file)
        if entry.settles(now):
            entry.is_settled = True
        return True

    def _keep(self, entry: _Entry[V], admit: bool) -> None:
        key = entry.key
        with self._lock:
            former = self._keys.get(entry.path)
            if former is not None and former != key:
                self._remove(former)  # another file has taken its name
            if key in self._entries:
                self._remove(key)
            elif not admit:
                return
            if entry.size > self._max_bytes:
                return
            self._entries[key] = entry
            self._keys[entry.path] = key
            self._bytes += entry.size
            self._evict()

    def _forget(self, path: str | os.PathLike[str]) -> None:
        path = os.path.abspath(path)
        with self._lock:
            key = self._keys.get(path)
            if key is not None:
                self._remove(key)

    def _drop(self, entry: _Entry[V]) -> None:
        with self._lock:
            if self._entries.get(entry.key) is entry:
                self._remove(entry.key)

    def _remove(self, key: _Key) -> None:
        entry = self._entries.pop(key)
        self._bytes -= entry.size
        if self._keys.get(entry.path) == key:
            del self._keys[entry.path]

    def _evict(self) -> None:
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))


def _bound(max_entries: int) -> int:
    check_type("set_max_entries", "max_entries", max_entries, int)
    if max_entries < 0:
        raise ValueError(f"max_entries must be non-negative, got {max_entries}")
    return max_entries


def _crc(file: int, start: int, end: int, crc: int = 0) -> int:
    while start < end:
        block = os.pread(file, min(_BLOCK, end - start), start)
        if not block:
            break  # it was cut meanwhile, which the status tells
        crc = zlib.crc32(block, crc)
        start += len(block)
    return crc


def get_cached_session(path: str | os.PathLike[str], *, admit: bool = True) -> ParsedSession:
    """What `parse_session` gives for a file as it is now, from memory where that is the same.

    Relative paths, absolute ones and links to folders lead to one entry for one file.

    Args:
        admit: see `StatCache.get`: pass False to go through many sessions once.

    Raises:
        OSError: there is no such file, or it cannot be read.
        PersistenceError: as for `parse_session`.
    """
    return _cache.get(path, admit=admit)


def clear_cache() -> None:
    """Forget all parsed sessions."""
    _cache.clear()


def set_max_entries(max_entries: int) -> None:
    """Keep at most so many sessions; with 0 none, and every access parses.

    Raises:
        ValueError: it is negative.
    """
    _cache.set_max_entries(max_entries)


def _grow(path: str, old: ParsedSession) -> ParsedSession | None:
    # What another parser gave is that one's to make.
    return old.grown(path) if parse_session is _own_parser else None


def _end_of(value: ParsedSession) -> int:
    return value.end if parse_session is _own_parser else -1


_own_parser = parse_session
_cache = StatCache(
    lambda path: parse_session(path),  # found anew each time, so that it can be replaced
    grow=_grow,
    end_of=_end_of,
)
