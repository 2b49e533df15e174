"""The handles of one session: values that the host keeps, and large ones that the guest has."""

from __future__ import annotations

import json
import keyword
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from py_code_mode.errors import HandleNotFound, HandlesFull
from py_code_mode.guest.holdings import HELD_RESULTS
from py_code_mode.guest.variables import MAX_TOLD
from py_code_mode.handles.cache import SessionCache
from py_code_mode.handles.info import HandleInfo, Origin, key_of, shown
from py_code_mode.handles.reads import reads_of
from py_code_mode.handles.size import size_of
from py_code_mode.results import Handle, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from py_code_mode.handles.info import Semantics
    from py_code_mode.results import JsonValue

#: Bytes of values kept in memory; the least recently used move to files.
MAX_HOT = 1 << 30
#: Handles, and bytes of values, that guest code may have put.
MAX_GUEST_HANDLES, MAX_GUEST_BYTES = 1000, 1 << 30
#: Large results of calls that are kept; older ones are let go.
MAX_RESULTS = 32
#: Values in the guest that are known by name; of the others the oldest are forgotten.
MAX_AWAY = 2 * MAX_GUEST_HANDLES

_RESULT = re.compile(r"_\d+")
_versions = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Away:
    """A value that is in the guest."""

    type_name: str
    snapshot: Snapshot
    origin: Origin
    created: datetime


class SessionHandles(SessionCache):
    """A `SessionCache` that also knows, by name and snapshot, values that are in the guest.

    `get` gives what is here; what is in the guest needs ``await session.get(name)``.
    """

    def __init__(self) -> None:
        super().__init__(max_bytes=MAX_HOT)
        #: the run that is going on
        self.run_id: int | None = None
        self._away: dict[str, _Away] = {}
        self._of_guest: dict[str, int] = {}
        self._guest_bytes = 0
        self._results: list[str] = []
        self._made: dict[str, None] = {}
        self._changed: dict[str, bool] | None = None  # nobody follows
        self._versions: dict[str, int] = {}
        self._followed: set[str] = set()
        self._outdated: set[str] = set()

    # -- what is here

    def is_here(self, name: str) -> bool:
        """Whether the host has the value."""
        return super().has_handle(name)

    def put(
        self,
        name: str,
        value: object,
        overwrite: bool = False,
        *,
        semantics: Semantics | None = None,
        origin: Origin | None = None,
    ) -> str:
        with self._lock:
            used = super().put(name, value, overwrite, semantics=semantics, origin=origin)
            self._note_value(used)
            self._note_change(used, is_replaced=overwrite)
            return used

    def _note_value(self, name: str) -> None:
        """Take note that a name has another value than it had."""
        self._part_with(name)
        self._versions[name] = next(_versions)

    def _drop(self, name: str) -> None:
        super().delete(name)
        self._part_with(name)

    def _part_with(self, name: str) -> None:
        """Take note that a name has not the value that it had."""
        self._versions.pop(name, None)
        self._guest_bytes -= self._of_guest.pop(name, 0)
        if name in self._followed:
            self._followed.discard(name)
            self._outdated.add(name)

    def version(self, name: str) -> int:
        """Tells the values that one name has had apart; 0 where the host has none."""
        return self._versions.get(name, 0)

    def follow(self, name: str) -> None:
        """Have `take_outdated` tell, once, when a name has another value, or none."""
        with self._lock:
            self._followed.add(name)

    def take_outdated(self) -> set[str]:
        """The names that were followed, and whose values have changed since this was asked last."""
        if not self._outdated:
            return set()
        with self._lock:
            outdated, self._outdated = self._outdated, set()
            return outdated

    def put_for_guest(self, name: str, value: object, overwrite: bool = False) -> str:
        """Keep what guest code puts, within bounds.

        Raises:
            HandlesFull: it has put too much.
        """
        size = size_of(value)
        with self._lock:
            before = self._of_guest.get(name) if overwrite else None
            if len(self._of_guest) - (before is not None) >= MAX_GUEST_HANDLES:
                raise HandlesFull(name, f"there are {MAX_GUEST_HANDLES} handles already")
            if self._guest_bytes - (before or 0) + size > MAX_GUEST_BYTES:
                raise HandlesFull(name, f"all together would be over {MAX_GUEST_BYTES} bytes")
            used = self.put(name, value, overwrite, origin=Origin(kind="run", run_id=self.run_id))
            self._of_guest[used] = size
            self._guest_bytes += size
            self._tell_of(used)
            return used

    def hold_for_guest(
        self, name: str, type_name: str, snapshot: dict[str, JsonValue], overwrite: bool = False
    ) -> str:
        """Know a value that guest code has put and that stays in the guest; gives its name.

        Raises:
            HandlesFull: there are too many.
        """
        with self._lock:
            if len(self._away) >= MAX_GUEST_HANDLES:
                raise HandlesFull(name, f"there are {MAX_GUEST_HANDLES} handles already")
            used = name if overwrite else self._free_name(name)
            if overwrite and self.is_here(name):
                self._drop(name)
                self._note_change(name)
            told = Snapshot.from_guest(snapshot, type_name)
            handle = Handle(name=used, type_name=type_name[:1000], snapshot=told)
            self.note([handle], self.run_id or 0)
            self._tell_of(used)
            return used

    def put_result(self, name: str, value: object, call: str) -> str:
        """Keep something large that a call gave the guest; gives the name used."""
        name = re.sub(r"\W", "_", name)
        if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
            name = f"result_{name.lstrip('_')}"
        with self._lock:
            origin = Origin(kind="call", run_id=self.run_id, call=call)
            used = super().put(name, value, origin=origin)
            self._note_value(used)
            self._results.append(used)
            self._tell_of(used)
            if len(self._results) > MAX_RESULTS:
                oldest = self._results.pop(0)
                if self.is_here(oldest):
                    self._drop(oldest)
            return used

    def take_changes(self) -> dict[str, bool]:
        """The names that were put or deleted since this was asked last, in order.

        With each, whether what had the name before was to be replaced. Results of calls are not
        among them. Asked for the first time, there are none.
        """
        if self._changed is not None and not self._changed:
            return self._changed
        with self._lock:
            changed, self._changed = self._changed, {}
            return changed or {}

    def _note_change(self, name: str, *, is_replaced: bool = True) -> None:
        if self._changed is not None:
            self._changed.pop(name, None)
            self._changed[name] = is_replaced

    def take_made(self) -> dict[str, Snapshot]:
        """The newest handles that calls of the guest have made since this was asked last."""
        made, self._made = self._made, {}
        return {
            name: Snapshot(data=json.loads(self.snapshot(name)))
            for name in made
            if self.has_handle(name)
        }

    def _tell_of(self, name: str) -> None:
        self._made.pop(name, None)
        self._made[name] = None
        if len(self._made) > MAX_TOLD:
            del self._made[next(iter(self._made))]

    def copy(self) -> SessionHandles:
        """The same handles, for a fork of the session: values are shared, not copied."""
        other = SessionHandles()
        with self._lock:
            try:
                for name in reversed(super().handle_names()):
                    info = super().info(name)
                    value = super().get(name)
                    other.put(name, value, semantics=info.semantics, origin=info.origin)
            except BaseException:
                other.close()
                raise
            other._versions = dict(self._versions)  # the guest is a copy too, and knows them
            other._away = dict(self._away)
            other._of_guest = dict(self._of_guest)
            other._guest_bytes = self._guest_bytes
            other._results = list(self._results)
        return other

    # -- what is in the guest

    def note(self, handles: Sequence[Handle], run_id: int, code: str = "") -> None:
        """Know values that a run has left in the guest; `code` tells from what they were made."""
        if not handles:
            return
        with self._lock:
            reads = reads_of(code, self.has_handle)
            for handle in handles:
                parents = reads.of(handle.name) - {handle.name}
                origin = Origin(kind="run", run_id=run_id, parents=tuple(sorted(parents)))
                self._away.pop(handle.name, None)
                self._away[handle.name] = _Away(
                    type_name=handle.type_name,
                    snapshot=handle.snapshot,
                    origin=origin,
                    created=datetime.now(UTC),
                )
            results = [name for name in self._away if _RESULT.fullmatch(name)]
            for name in results[:-HELD_RESULTS]:
                del self._away[name]
            while len(self._away) > MAX_AWAY:
                del self._away[next(iter(self._away))]

    def forget(self, names: Iterable[str]) -> None:
        """Let go of values that are not in the guest any more."""
        with self._lock:
            for name in names:
                self._away.pop(name, None)

    def forget_since(self, run_id: int) -> None:
        """Let go of values in the guest that later runs than this one have made."""
        with self._lock:
            self.forget(
                [name for name, away in self._away.items() if (away.origin.run_id or 0) > run_id]
            )

    # -- both

    def has_handle(self, name: str) -> bool:
        return super().has_handle(name) or key_of(name) in self._away

    def handle_names(self) -> list[str]:
        """All names: those in the guest first, then those here; each most recently used first."""
        with self._lock:
            here = super().handle_names()
            known = set(here)
            return [*(name for name in reversed(self._away) if name not in known), *here]

    def _free_name(self, name: str) -> str:
        used, suffix = super()._free_name(name), 1
        while used in self._away:
            suffix += 1
            used = super()._free_name(f"{name}_{suffix}")
        return used

    def get(self, name: str) -> object:
        """The value, where the host has it.

        Raises:
            HandleNotFound: (a KeyError) there is none, or it is in the guest.
        """
        if not self.is_here(name) and key_of(name) in self._away:
            told = shown(name)
            raise HandleNotFound(told, f"it is in the guest: await session.get({told!r})")
        return super().get(name)

    def snapshot(self, handle: str) -> str:
        away = self._away.get(key_of(handle))
        if away is not None and not self.is_here(handle):
            return away.snapshot.to_text()
        return super().snapshot(handle)

    def delete(self, name: str) -> None:
        with self._lock:
            was_away = self._away.pop(key_of(name), None) is not None
            if self.is_here(name) or not was_away:
                self._drop(name)
                self._note_change(name)

    def info(self, name: str) -> HandleInfo:
        away = self._away.get(key_of(name))
        if away is None or self.is_here(name):
            return super().info(name)
        return HandleInfo(
            name=name,
            type_name=away.type_name,
            nbytes=0,
            is_hot=False,
            created=away.created,
            origin=away.origin,
        )
