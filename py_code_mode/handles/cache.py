"""Values by name, in memory as long as there is room: the model sees names and snapshots.

(Not the journal's cache of session files, which shares the word only.)
"""

from __future__ import annotations

import json
import logging
import operator
import os
import sys
import threading
import weakref
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from py_code_mode.errors import (
    HandleNotFound,
    HandlesClosed,
    HandleUnreadable,
    InvalidCall,
    StorageNotPrivate,
    StoreError,
)
from py_code_mode.guest.snapshot import snapshot_text
from py_code_mode.guest.values import type_name
from py_code_mode.handles.info import (
    HandleInfo,
    Origin,
    Problem,
    check_name,
    check_origin,
    key_of,
    shown,
)
from py_code_mode.handles.size import size_of
from py_code_mode.handles.slot import Name, Record, Slot, text_of
from py_code_mode.handles.spill import Content, Unspillable, decode, encode, is_immutable, is_proven
from py_code_mode.scratch import Scratch

if TYPE_CHECKING:
    from types import TracebackType

    from py_code_mode.handles.info import Semantics
    from py_code_mode.handles.spill import SpillFormat

__all__ = ["SessionCache"]

_log = logging.getLogger(__name__)

_HOT_WITH_STORAGE = 10  # seed 000: a storage_dir alone bounds the cache, so that it is used
_ASIDE_CHECKED = 8  # values in use elsewhere that one call looks at
_LONGEST_WAIT = 1024  # calls until a value that could not be stored is tried again
_SHOWN = 20  # names told in an error


class _Gone:
    """Stands for an object that is in its file only."""


_GONE: Final = _Gone()


class _Value:
    """One object, under one or more names; in memory, in a file, or both."""

    __slots__ = ("entries", "key", "nbytes", "object", "problem", "record", "refused", "stays",
                 "type_name", "wait", "wake")  # fmt: skip

    def __init__(self, value: object, kind: str) -> None:
        self.object = value
        self.type_name = kind
        self.entries: list[_Entry] = []
        self.nbytes = 0
        self.key: str | None = None
        self.record: Record | None = None
        self.problem: str | None = None
        self.stays: str | None = None  # why it could not be stored
        self.refused = False  # by every format, not by the disk
        self.wait = self.wake = 0  # calls until the next try, and the call that makes it


class _Entry:
    """One name of a value, and what is known of it by this name."""

    __slots__ = ("created", "former", "name", "origin", "semantics", "snapshot", "used", "value")

    def __init__(
        self,
        name: str,
        value: _Value,
        *,
        created: datetime,
        used: int = 0,
        semantics: Semantics | None = None,
        origin: Origin | None = None,
        snapshot: str | None = None,
    ) -> None:
        self.name, self.value = name, value
        self.created, self.used = created, used
        self.semantics, self.origin = semantics, origin
        self.snapshot = snapshot  # of what is in the file
        # What had the name before, while a file still says so: it is the truth for whoever comes
        # after a crash, until the value that has the name now is in a file itself.
        self.former: _Value | None = None


class _Resources:
    """What has to be let go of, even if nobody closes the cache."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.slot: Slot | None = None
        self.scratch: Scratch | None = None

    def release(self) -> None:
        if self.process != os.getpid():
            return  # a fork's: the files are its parent's
        if self.slot is not None:
            self.slot.close()
        if self.scratch is not None:
            self.scratch.remove()
        self.slot = self.scratch = None


def _references(value: _Value) -> int:
    return sys.getrefcount(value.object)


_ALONE = _references(_Value([], "list"))  # what is counted when nobody else has the object


class SessionCache:
    """In-process store that exposes large values as named handles with snapshots.

    Large objects are stored by name; a model sees a snapshot of at most 300 tokens and works on the
    data by the handle's name. Beyond `hot_limit` or `max_bytes`, the values least recently used
    are moved to files: frames as Arrow streams (the original's Parquet alters them), arrays as
    ``.npy``, all else as pickles, whichever gives back the same value; one that no file can hold
    (a lambda, a generator, an open file) stays in memory, beyond the limits.

    A value is one object, not a copy: `get` gives the object that was put, or, once nobody else
    holds it and it has been moved to its file, one like it. Names of one object go on
    naming one object. What only parts of values share (two arrays over the same memory, a list
    in two dicts that are put one by one) is shared no more after it was in a file.

    With a `storage_dir`, what is stored survives: `close` (and `flush`) write all values, and the
    next cache on the directory has them again, without reading them before they are asked for.
    Two caches that are open on one directory never see each other's values: each takes the first
    of its numbered folders that is free.

    Safe for use by several threads: calls take turns, but `has_handle` and `handle_names` never
    wait for another call's files.

    Args:
        sample_size: rows or members to include in each snapshot, as far as there is room.
        storage_dir: directory for stored values, made if missing; its folders are readable by
            their owner only, since loading a pickle runs what it says. Without it a temporary one
            is used as soon as it is needed.
        hot_limit: number of values kept in memory; the one used last always is. None means
            unbounded, and 10 where a `storage_dir` but no `max_bytes` is given.
        max_bytes: the same in bytes of memory, estimated for Python objects.
        spill_format: ``parquet`` stores DataFrames as Parquet where that gives them back unaltered.

    Raises:
        ValueError: a limit is below 1, or `sample_size` below 0.
        TypeError: one of them is no whole number.
        StorageNotPrivate: others may rename or replace what is in the `storage_dir` (it is theirs,
            or they may write to it and it has no sticky bit), or write to its numbered folder.
        StoreError: the `storage_dir` cannot be made, read or written to.
    """

    def __init__(
        self,
        sample_size: int = 5,
        storage_dir: str | Path | None = None,
        hot_limit: int | None = None,
        *,
        max_bytes: int | None = None,
        spill_format: SpillFormat = "arrow",
    ) -> None:
        if hot_limit is not None:
            hot_limit = _whole("hot_limit", hot_limit, 1)
        if max_bytes is not None:
            max_bytes = _whole("max_bytes", max_bytes, 1)
        if spill_format not in ("arrow", "parquet"):
            raise ValueError(f"spill_format must be 'arrow' or 'parquet', not {spill_format!r}")
        if storage_dir is not None and hot_limit is None and max_bytes is None:
            hot_limit = _HOT_WITH_STORAGE
        self.sample_size = _whole("sample_size", sample_size, 0)
        self.hot_limit = hot_limit
        self.max_bytes = max_bytes
        self._spill_format: SpillFormat = spill_format
        self._storage_dir = Path(storage_dir) if storage_dir is not None else None
        self._is_closed = False
        self._lock = threading.RLock()
        # Of `_entries` alone, held for moments only: names can be asked for during others' I/O.
        self._names = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._suffixes: dict[str, int] = {}  # no smaller suffix of the name is free
        self._by_id: dict[int, _Value] = {}
        # Where a value is that is in memory: counted by the limits (least recently used first),
        # refused by every format or the disk, or in its file and held by others.
        self._hot: OrderedDict[_Value, None] = OrderedDict()
        self._stuck: OrderedDict[_Value, None] = OrderedDict()
        self._aside: OrderedDict[_Value, None] = OrderedDict()
        self._hot_bytes = 0
        self._is_making_room = False
        self._used = 0
        self._calls = 0
        self._problems: list[Problem] = []
        self._resources = _Resources()
        self._finalizer = weakref.finalize(self, self._resources.release)
        if self._storage_dir is not None:
            try:
                self._resources.slot = Slot.open(self._storage_dir)
                self._restore(self._resources.slot)
            except BaseException:
                self._finalizer()
                raise

    @property
    def storage_dir(self) -> Path | None:
        """The directory that was given; None where values do not outlive the cache."""
        return self._storage_dir

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found in the `storage_dir` and cannot be read; all else works."""
        return tuple(self._problems)

    def __enter__(self) -> Self:
        self._check_open("entering it")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{len(self._entries)} handles"
        return f"<SessionCache: {state}>"

    # -- the documented methods -------------------------------------------------------------

    def put(
        self,
        name: str,
        value: Any,
        overwrite: bool = False,
        *,
        semantics: Semantics | None = None,
        origin: Origin | None = None,
    ) -> str:
        """Store a value under `name` and return the handle actually used.

        If `name` is already taken and `overwrite` is False, a numeric suffix is appended
        (``name_2``, ``name_3``, …) and the new handle is returned. Nothing is copied. A put that
        raises has changed nothing. What an overwritten handle had in the `storage_dir` stays there
        until the new value is stored, too: whenever the process ends, one of them is found later.

        Args:
            name: desired handle name; must be a valid Python identifier, and no keyword.
            overwrite: replace the existing handle, and all that was told of it.
            semantics: what the columns mean: by name a text, or ``{"description", "unit"}``; part
                of the snapshot as far as there is room.
            origin: where the value comes from, for `info`.

        Raises:
            InvalidName: (a ValueError) `name` is not a valid Python identifier.
            InvalidCall: (a TypeError) `semantics` or `origin` is not what it should be.
            StoreError: the file of the value to overwrite cannot be removed.
        """
        name = check_name(name)
        meaning = _checked(semantics)
        if origin is not None:
            check_origin(origin)
        with self._lock:
            self._check_open(f"put({name!r})")
            held = self._held(value)
            is_new = held is None or held not in self._hot
            nbytes = size_of(value) if self.max_bytes is not None and is_new else 0
            old = self._entries.get(name) if overwrite else None
            leaves = old is not None and old.value in self._hot and old.value.entries == [old]
            # First, since it does what may fail, and calls what may call us.
            self._make_room(is_new - leaves, nbytes - (old.value.nbytes if old and leaves else 0))
            held = self._held(value)
            former: _Value | None = None
            if not overwrite:
                name = self._free_name(name)
            elif (old := self._entries.get(name)) is not None:
                if old.value is held:
                    former = old.former
                    old.value.entries.remove(old)
                else:
                    former = self._stand_in(old)
                    self._take_name(old)
            if held is None:
                held = _Value(value, _type_of(value))
                if not is_immutable(value):
                    self._by_id[id(value)] = held
            entry = _Entry(name, held, created=datetime.now(UTC), semantics=meaning, origin=origin)
            entry.former = former if former is not held else None
            held.entries.append(entry)
            self._touch(entry)
            self._keep(held, nbytes or held.nbytes)
            return name

    def get(self, name: str) -> Any:
        """Retrieve a value by handle name, promoting cold entries to hot.

        Its file stays where it is: unchanged, it need not be written again.

        Raises:
            HandleNotFound: (a KeyError) no handle with `name` exists.
            HandleUnreadable: its file is gone, cut off or altered; all other handles work.
            StorageNotPrivate: others may write where it is stored.
        """
        with self._lock:
            self._check_open(f"get({name!r})")
            entry = self._entry(name)
            held = entry.value
            if held.object is _GONE:
                loaded = self._load(held, name)
                # Code of the value's own may have deleted it meanwhile, or asked for it.
                if self._entries.get(name) is not entry:
                    return loaded
                if held.object is _GONE:
                    held.object = loaded
                    if not is_immutable(loaded):
                        self._by_id[id(loaded)] = held
            value = held.object
            self._touch(entry)
            if held not in self._stuck:
                nbytes = size_of(value) if self.max_bytes is not None else held.nbytes
                self._keep(held, nbytes)
                self._make_room(0, 0)
            return value

    def snapshot(self, handle: str) -> str:
        """Return the compact snapshot string for a stored handle.

        A JSON string describing the value's type, shape and a few sample elements, of at most 1200
        bytes. It is what the value is now, changes in place included; that of a cold value is
        kept beside its file, so that nothing is loaded.

        Raises:
            HandleNotFound: (a KeyError) no handle with this name exists.
        """
        with self._lock:
            self._check_open(f"snapshot({handle!r})")
            entry = self._entry(handle)
            held, semantics = entry.value, entry.semantics
            value = held.object
            if value is _GONE:
                if held.problem is not None or entry.snapshot is None:
                    reason = (held.problem or "")[:300]
                    return json.dumps({"type": held.type_name, "unreadable": reason})
                return entry.snapshot
        # Not under the lock: a repr may be slow.
        return self._describe(value, semantics)

    def list_handles(self) -> dict[str, str]:
        """Return a mapping of all handle names to their snapshot strings."""
        found: dict[str, str] = {}
        for name in self.handle_names():
            try:
                found[name] = self.snapshot(name)
            except HandleNotFound:
                continue  # deleted by another thread meanwhile
        return found

    def handle_names(self) -> list[str]:
        """Return all handle names in most-recently-used order; `put` and `get` are uses."""
        self._check_open("handle_names()")
        with self._names:
            names = list(self._entries)
        names.reverse()
        return names

    def has_handle(self, name: str) -> bool:
        """Return True if `name` is a registered handle (hot or cold)."""
        self._check_open(f"has_handle({name!r})")
        with self._names:
            return key_of(name) in self._entries

    def delete(self, name: str) -> None:
        """Remove a handle and its associated disk artefact (if any).

        Raises:
            HandleNotFound: (a KeyError) no handle with `name` exists.
            StoreError: its file cannot be removed; the handle is still there.
        """
        with self._lock:
            self._check_open(f"delete({name!r})")
            self._part(self._entry(name))

    def close(self) -> None:
        """Release the temporary storage directory, if one was created.

        With a `storage_dir`, all values are written to it first, as by `flush`, and its folder is
        free for the next cache. What no format can store is lost then; a line is logged.
        Idempotent; afterwards every other method raises `HandlesClosed`.

        Raises:
            StoreError: a value could not be written (a full disk). The cache is still open: make
                room and close it again, or delete the handle.
        """
        with self._lock:
            if self._is_closed:
                return
            if self._storage_dir is not None:
                for name, reason in self.flush().items():
                    entry = self._entries[name]
                    if not entry.value.refused:
                        raise StoreError(
                            f"handle {shown(name)!r}", f"{reason}; the cache is still open"
                        )
                    self._settle(entry)  # what it replaced is not to come back in its place
                    _log.warning("handle %r cannot be stored and is lost: %s", shown(name), reason)
            self._is_closed = True
            for kept in (self._hot, self._stuck, self._aside, self._by_id, self._suffixes):
                kept.clear()
            with self._names:
                self._entries.clear()
            self._finalizer()

    # -- beyond them ------------------------------------------------------------------------

    def flush(self) -> dict[str, str]:
        """Write every value that is in memory to the `storage_dir`; they stay in memory.

        Without a `storage_dir` there is nothing to do.

        Returns:
            Names of those that could not be written, and why. They are kept as they are.
        """
        failed: dict[str, str] = {}
        with self._lock:
            self._check_open("flush()")
            if self._storage_dir is None:
                return failed
            for held in [*self._hot, *self._aside, *self._stuck]:
                if not held.entries or held.object is _GONE:
                    continue
                if not self._try_to_store(held):
                    for entry in held.entries:
                        failed[entry.name] = held.stays or ""
                elif held in self._stuck:
                    del self._stuck[held]
                    self._keep(held, held.nbytes)
            try:
                self._slot().write_recency({name: e.used for name, e in self._entries.items()})
            except StoreError as error:
                # The order of names is all that would be lost.
                _log.warning("how recently handles were used was not stored: %s", str(error))
        return failed

    def info(self, name: str) -> HandleInfo:
        """What is known of a handle; not a use of it.

        Raises:
            HandleNotFound: (a KeyError) no handle with `name` exists.
        """
        with self._lock:
            self._check_open(f"info({name!r})")
            entry = self._entry(name)
            held = entry.value
            if held.object is not _GONE:
                nbytes = size_of(held.object)
            else:
                nbytes = held.record.nbytes if held.record is not None else 0
            return HandleInfo(
                name=name,
                type_name=held.type_name,
                nbytes=nbytes,
                is_hot=held in self._hot or held in self._stuck,
                in_use=held in self._aside,
                created=entry.created,
                origin=entry.origin,
                semantics=entry.semantics,
                stored_as=held.record.codec if held.record is not None else None,
                stays=held.stays,
            )

    @staticmethod
    def measure(value: object) -> int:
        """About how many bytes of memory a value takes, as `max_bytes` counts."""
        return size_of(value)

    # -- names ------------------------------------------------------------------------------

    def _check_open(self, action: str) -> None:
        if self._is_closed:
            raise HandlesClosed(action)

    def _entry(self, name: object) -> _Entry:
        entry = self._entries.get(key_of(name))
        if entry is None:
            known = self.handle_names()
            told = ", ".join(map(shown, known[:_SHOWN])) or "none"
            more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            raise HandleNotFound(shown(name), f"handles: {told}{more}")
        return entry

    def _free_name(self, name: str) -> str:
        if name not in self._entries:
            return name
        suffix = self._suffixes.get(name, 2)
        while f"{name}_{suffix}" in self._entries:
            suffix += 1
        self._suffixes[name] = suffix
        return f"{name}_{suffix}"

    def _touch(self, entry: _Entry) -> None:
        """Make it the most recently used."""
        self._used += 1
        entry.used = self._used
        with self._names:
            self._entries[entry.name] = entry
            self._entries.move_to_end(entry.name)

    def _part(self, entry: _Entry) -> None:
        """Take a name from its value, and the value from disk and memory if that was its last.

        Raises:
            StoreError: the files cannot be changed; then it still has the name.
        """
        # In this order: what had the name before must not come back when this ends in between.
        self._settle(entry)
        self._strike(entry.value, entry.name)
        with self._names:
            del self._entries[entry.name]
        base, _, suffix = entry.name.rpartition("_")
        is_number = len(suffix) < 10 and suffix.isdecimal()
        if is_number and 2 <= int(suffix) < self._suffixes.get(base, 2):
            self._suffixes[base] = int(suffix)
        self._take_name(entry)

    def _take_name(self, entry: _Entry) -> None:
        """Take a name from its value in memory; it is forgotten if that was its last."""
        held = entry.value
        held.entries.remove(entry)
        self._problems = [found for found in self._problems if found.name != entry.name]
        if not held.entries:
            self._forget(held)

    def _stand_in(self, old: _Entry) -> _Value | None:
        """The value whose file tells of a name that is about to be another's, if there is one.

        Raises:
            StoreError: a file that nobody will read any more cannot be removed.
        """
        held, former = old.value, old.former
        if held.key is not None and (
            held.record is None or any(told.name == old.name for told in held.record.names)
        ):
            self._settle(old)
            former = held
        if former is not None and self._storage_dir is None:
            self._strike(former, old.name)  # nobody comes after
            return None
        return former

    def _settle(self, entry: _Entry) -> None:
        """Have the file of what had this name before not tell of it any more.

        Raises:
            StoreError: it cannot be changed.
        """
        if entry.former is not None:
            self._strike(entry.former, entry.name)
            entry.former = None

    def _strike(self, held: _Value, name: str) -> None:
        """Take a name out of a value's file; without names there is none.

        Raises:
            StoreError: it cannot be changed; then nothing was.
        """
        record, key = held.record, held.key
        if key is None:
            return
        names = [told for told in record.names if told.name != name] if record else []
        if record is None or not names:
            self._slot().remove(f"{key}.json")
            self._slot().discard(record.data if record is not None else None)
            held.key = held.record = None
        elif len(names) < len(record.names):
            fewer = _with_names(record, names)
            self._slot().write_record(key, fewer)
            held.record = fewer

    # -- memory -----------------------------------------------------------------------------

    def _held(self, value: object) -> _Value | None:
        """The value that this very object is, if it has a name already."""
        held = self._by_id.get(id(value))
        return held if held is not None and held.object is value else None

    def _keep(self, held: _Value, nbytes: int) -> None:
        """Count a value as hot, the most recently used."""
        if held in self._stuck:
            return
        self._aside.pop(held, None)
        if held in self._hot:
            self._hot_bytes -= held.nbytes
        self._hot[held] = None
        self._hot.move_to_end(held)
        held.nbytes = nbytes
        self._hot_bytes += nbytes

    def _forget(self, held: _Value) -> None:
        """Drop a value from memory."""
        if held in self._hot:
            del self._hot[held]
            self._hot_bytes -= held.nbytes
        self._stuck.pop(held, None)
        self._aside.pop(held, None)
        if self._by_id.get(id(held.object)) is held:
            del self._by_id[id(held.object)]
        held.object = _GONE

    def _make_room(self, count: int, nbytes: int) -> None:
        """Move values to files until so many more fit; the most recently used one stays."""
        if self._is_making_room:
            return  # called by code of a value that is being stored: the outer call goes on
        self._is_making_room = True
        try:
            self._calls += 1
            self._look_aside()
            self._try_again()
            last = 1 if count <= 0 else 0  # one of them has just been used
            # Counted, for code of the values' own may make them hot again and again.
            for _ in range(len(self._hot) - last):
                if len(self._hot) <= last or not self._is_over(count, nbytes):
                    break
                held = next(iter(self._hot))
                if not self._evict(held) and not held.refused:
                    break  # the disk's fault: the next would fare no better
        finally:
            self._is_making_room = False

    def _is_over(self, count: int, nbytes: int) -> bool:
        if self.hot_limit is not None and len(self._hot) + count > self.hot_limit:
            return True
        return self.max_bytes is not None and self._hot_bytes + nbytes > self.max_bytes

    def _evict(self, held: _Value) -> bool:
        """Move a hot value to its file; False if it has to stay."""
        del self._hot[held]
        self._hot_bytes -= held.nbytes
        try:
            is_stored = self._try_to_store(held)
        except BaseException:  # an interrupt
            self._back(held)
            raise
        if not held.entries or held in self._hot:
            return True  # code of the value's own has deleted it, or asked for it
        if not is_stored:
            self._stuck[held] = None
            return False
        self._leave(held)
        return True

    def _back(self, held: _Value) -> None:
        if held.entries and held not in self._hot:
            self._hot[held] = None
            self._hot.move_to_end(held, last=False)
            self._hot_bytes += held.nbytes

    def _leave(self, held: _Value) -> None:
        """Let go of a stored object, unless others hold it.

        They may still change it, and may then ask for it again: what they get has to be the same
        object. Letting go of it would free no memory anyway.
        """
        if not is_immutable(held.object) and _references(held) > _ALONE:
            self._aside[held] = None
        else:
            self._forget(held)

    def _look_aside(self) -> None:
        """Let go of stored objects that others no longer hold; a few at each call."""
        for _ in range(min(len(self._aside), _ASIDE_CHECKED)):
            held = next(iter(self._aside))
            if _references(held) > _ALONE:
                self._aside.move_to_end(held)
                continue
            # It may have been changed since it was stored.
            del self._aside[held]
            try:
                is_stored = self._try_to_store(held)
            except BaseException:
                self._aside[held] = None
                raise
            if not held.entries or held in self._hot:
                continue
            if is_stored:
                self._leave(held)
            else:
                self._stuck[held] = None

    def _try_again(self) -> None:
        """Give values that could not be stored another try, ever more rarely."""
        if not self._stuck:
            return
        held = next(iter(self._stuck))
        if held.wake > self._calls:
            self._stuck.move_to_end(held)
        else:
            del self._stuck[held]
            self._back(held)

    # -- files ------------------------------------------------------------------------------

    def _slot(self) -> Slot:
        if self._resources.slot is None:
            try:
                self._resources.scratch = Scratch.make()
            except OSError as error:
                raise StoreError("the temporary folder", error.strerror or str(error)) from error
            self._resources.slot = Slot.open(self._resources.scratch.workdir)
        return self._resources.slot

    def _try_to_store(self, held: _Value) -> bool:
        """Write a value to its file; False where that failed, and why is in `stays`."""
        try:
            self._store(held)
        except (Unspillable, StoreError) as error:
            held.stays, held.refused = str(error), isinstance(error, Unspillable)
            held.wait = min(max(1, 2 * held.wait), _LONGEST_WAIT)
            held.wake = self._calls + held.wait
            return False
        held.stays, held.wait = None, 0
        return True

    def _store(self, held: _Value) -> None:
        """Have a value's file hold what it is now; what it holds already is not written again.

        Raises:
            Unspillable: no format keeps it.
            StoreError: it could not be written. What was stored before still is.
        """
        before = held.record
        if before is not None and is_immutable(held.object):
            record = _with_names(before, self._named(held, is_same=True))
        else:
            content = encode(held.object, self._spill_format)
            slot = self._slot()
            if before is not None and _is_unchanged(slot, before, content):
                record = _with_names(before, self._named(held, is_same=True))
            else:
                record = self._write(slot, held, content)
        self._commit(held, record)

    def _write(self, slot: Slot, held: _Value, content: Content) -> Record:
        """Write a value's data file, not yet spoken of by its JSON file."""
        key = held.key or slot.new_key()
        data = slot.write_data(key, content.extension, content.parts) if content.size else None
        try:
            record = Record(
                names=self._named(held, is_same=False),
                type=held.type_name,
                nbytes=size_of(held.object),
                codec=content.codec,
                data=data,
                size=content.size,
                detail=dict(content.detail),
            )
            if not content.is_proven:
                _prove(slot, record, held.object)
        except BaseException:
            slot.discard(data)
            raise
        held.key = key
        return record

    def _commit(self, held: _Value, record: Record) -> None:
        """Write a value's JSON file, where it says something new; then what was before can go."""
        before, key = held.record, held.key
        assert key is not None
        slot = self._slot()
        # Being used alone is no reason to write.
        if before is None or _without_use(before) != _without_use(record):
            try:
                slot.write_record(key, record)
            except BaseException:
                if before is None or before.data != record.data:
                    slot.discard(record.data)
                raise
            held.record = record
            # Behind its own names come those it stands in for.
            for entry, name in zip(held.entries, record.names, strict=False):
                entry.snapshot = name.snapshot
            if before is not None and before.data != record.data:
                slot.discard(before.data)
        for entry in held.entries:
            with suppress(StoreError):  # until it can be; whoever reads both knows which is older
                self._settle(entry)

    def _named(self, held: _Value, *, is_same: bool) -> list[Name]:
        """The names of a value, with snapshots of what it is now.

        Last those that are another's by now, whose own file does not tell of it yet.
        """
        lent = held.record.names if held.record is not None else []
        return [
            Name(
                name=entry.name,
                created=entry.created,
                used=entry.used,
                snapshot=entry.snapshot
                if is_same and entry.snapshot is not None
                else self._describe(held.object, entry.semantics),
                semantics=dict(entry.semantics) if entry.semantics is not None else None,
                origin=entry.origin,
                replaces=entry.former.key if entry.former is not None else None,
            )
            for entry in held.entries
        ] + [name for name in lent if self._is_lent(held, name.name)]

    def _is_lent(self, held: _Value, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.former is held

    def _load(self, held: _Value, name: str) -> object:
        if held.problem is not None or held.record is None:
            raise HandleUnreadable(name, held.problem or "it has none")
        try:
            return _read(self._slot(), held.record)
        except (StorageNotPrivate, MemoryError):
            raise
        except StoreError as error:
            raise HandleUnreadable(name, str(error)) from error
        # The border to bytes that may be damaged, and to classes that may have changed since.
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:300]
            raise HandleUnreadable(name, said) from error

    def _restore(self, slot: Slot) -> None:
        """Take over what is stored in the slot, without loading a value."""
        records, self._problems = slot.records()
        recency = slot.recency()
        damaged = {problem.file for problem in self._problems}
        replaced = {
            (name.name, name.replaces) for record in records.values() for name in record.names
        }
        entries: list[_Entry] = []
        for key, record in records.items():
            held = _Value(_GONE, record.type)
            held.key, held.record = key, record
            held.entries = [
                _Entry(
                    name.name,
                    held,
                    created=name.created,
                    used=name.used,
                    semantics=name.semantics,
                    origin=name.origin,
                    snapshot=name.snapshot,
                )
                for name in record.names
            ]
            entries += held.entries
        found: dict[str, _Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.used):
            older = found.get(entry.name)
            if older is not None:
                older.value.entries.remove(older)
                file = str(slot.path / f"{older.value.key}.json")
                if (entry.name, older.value.key) in replaced and file not in damaged:
                    # A process ended after the new value was stored.
                    entry.former = older.value
                    with suppress(StoreError):
                        self._settle(entry)
                    found[entry.name] = entry
                    continue
                # Somebody has copied files.
                reason = "another file holds this handle, too, and was used since"
                self._problems.append(Problem(name=None, file=file, reason=reason))
            found[entry.name] = entry
        for entry in found.values():
            entry.used = max(entry.used, recency.get(entry.name, 0))
            self._used = max(self._used, entry.used)
        self._entries.update(sorted(found.items(), key=lambda item: item[1].used))
        for problem in self._problems:
            if problem.name is None:
                continue
            entry = self._entries.get(problem.name)
            if entry is None:
                held = _Value(_GONE, "unknown")
                held.key = Path(problem.file).stem
                entry = _Entry(problem.name, held, created=datetime.now(UTC))
                held.entries.append(entry)
                self._entries[problem.name] = entry
                self._entries.move_to_end(problem.name, last=False)
            if f"{entry.value.key}.json" == Path(problem.file).name:
                entry.value.problem = problem.reason

    def _describe(self, value: object, semantics: Semantics | None) -> str:
        return snapshot_text(value, sample_size=self.sample_size, semantics=semantics)


def _whole(what: str, number: object, least: int) -> int:
    """A number that was given for `what`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small.
    """
    try:
        whole = operator.index(number)  # pyright: ignore[reportArgumentType] - that is asked
    except TypeError:
        raise TypeError(f"{what} must be an int, not {type(number).__name__}") from None
    if whole < least:
        raise ValueError(f"{what} must be at least {least}")
    return whole


def _checked(semantics: Semantics | None) -> Semantics | None:
    """A plain copy of what was told of the columns."""
    if semantics is None:
        return None
    try:
        plain: Any = json.loads(json.dumps(dict(semantics), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidCall("put", f"semantics must be a mapping of JSON data: {error}") from error
    return plain


def _type_of(value: object) -> str:
    return type_name(type(value))


def _is_unchanged(slot: Slot, record: Record, content: Content) -> bool:
    if (record.codec, record.size) != (content.codec, content.size):
        return False
    if text_of(msgspec.structs.replace(record, detail=dict(content.detail))) != text_of(record):
        return False
    return record.data is None or slot.holds(record.data, content.parts)


def _with_names(record: Record, names: list[Name]) -> Record:
    return msgspec.structs.replace(record, names=names)


def _without_use(record: Record) -> bytes:
    names = [msgspec.structs.replace(name, used=0, replaces=None) for name in record.names]
    return text_of(_with_names(record, names))


def _read(slot: Slot, record: Record) -> object:
    value = decode(record.codec, slot.read(record), record.detail)
    kind = _type_of(value)
    if kind != record.type:
        raise ValueError(f"it gives a {kind}, not a {record.type}")
    return value


def _prove(slot: Slot, record: Record, value: object) -> None:
    """Read a value back once, where only that can tell whether it comes back.

    Raises:
        Unspillable: it does not, or as something else.
    """
    try:
        again = _read(slot, record)
        is_like = _attributes(again) == _attributes(value)
    except StoreError:
        raise
    # Constructors and __setstate__ of people's own classes, which raise anything.
    except Exception as error:
        said = f"{record.type}: it would not come back: {type(error).__name__}: {error}"
        raise Unspillable(said[:300]) from error
    if not is_like:
        raise Unspillable(f"{record.type}: it would come back without some of its attributes")


def _attributes(value: object) -> set[str]:
    # Libraries keep in theirs what they can compute again.
    return set() if is_proven(type(value)) else set(getattr(value, "__dict__", None) or ())
