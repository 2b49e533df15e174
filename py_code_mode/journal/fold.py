"""What the records of a journal come to: runs, calls, turns, and which runs were not undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from py_code_mode.journal.records import (
    Call,
    Chunk,
    Event,
    Foreign,
    Patch,
    Record,
    Run,
    SavedState,
    Transition,
    Turn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Fold"]


class _Live(NamedTuple):
    """The live line up to a run, which shares its past with others."""

    run_id: int
    before: _Live | None


class Fold:
    """What the records that were added come to: those of its past first, then a session's own."""

    def __init__(self) -> None:
        self.intents: dict[int, Run] = {}
        self.outcomes: dict[int, Run] = {}
        self.homes: dict[int, str] = {}  # the session of a run
        self.calls: dict[str, Call] = {}
        self.turns: dict[str, Turn] = {}
        self.events: list[Event] = []
        self.transitions: list[Transition] = []
        self.chunks: list[Chunk] = []
        self.saved_states: list[SavedState] = []
        self.patches: list[Patch] = []
        self._session_id = ""
        self._live: _Live | None = None
        self._after: dict[int, _Live | None] = {}

    def add(self, records: Iterable[Record | Foreign], session_id: str) -> None:
        self._session_id = session_id
        folds: dict[type, Callable[[Any], None]] = {
            Run: self._add_run,
            Call: self._add_call,
            Event: self._add_event,
            Turn: self._add_turn,
            Transition: self.transitions.append,
            Chunk: self.chunks.append,
            SavedState: self.saved_states.append,
            Patch: self.patches.append,
        }
        for record in records:
            fold = folds.get(type(record))
            if fold is not None:
                fold(record)

    def _add_call(self, call: Call) -> None:
        before = self.calls.get(call.call_id)
        self.calls[call.call_id] = _completed(before, call) if before else call

    def _add_turn(self, turn: Turn) -> None:
        self.turns[turn.turn_id] = turn

    def _add_run(self, run: Run) -> None:
        self.homes.setdefault(run.run_id, self._session_id)
        if run.status == "running":
            self.intents[run.run_id] = run
            # Where no outcome follows it is on the live line, as crashed.
            self._live = _Live(run.run_id, self._live)
            return
        self.outcomes[run.run_id] = run
        if self._live is None or self._live.run_id != run.run_id:
            self._live = _Live(run.run_id, self._live)
        if run.state == "lost":
            self._live = None
        elif run.state == "restored":
            self._back_to(run.restored_to or 0)
        self._after[run.run_id] = self._live

    def _add_event(self, event: Event) -> None:
        self.events.append(event)
        match event.kind:
            case "reset":
                self._live = None
            case "rollback":
                self._back_to(event.run_id or 0)
            case "skip":
                data = cast("dict[str, Any]", event.data) if isinstance(event.data, dict) else {}
                left = set(cast("Iterable[Any]", data.get("run_ids") or ()))
                live: _Live | None = None
                for run_id in self.live_line():
                    live = _Live(run_id, live) if run_id not in left else live
                self._live = live
            case _:
                pass

    def _back_to(self, run_id: int) -> None:
        if not run_id:
            self._live = None
        elif run_id in self._after:
            self._live = self._after[run_id]  # perhaps one that had been undone itself
        else:
            while self._live is not None and self._live.run_id > run_id:
                self._live = self._live.before

    def live_line(self) -> list[int]:
        found: list[int] = []
        at = self._live
        while at is not None:
            found.append(at.run_id)
            at = at.before
        return found[::-1]


def _completed(before: Call, after: Call) -> Call:
    """The later record of a call, with what only the earlier one has."""
    missing = {
        name: getattr(before, name)
        for name in ("run_id", "index", "arguments", "args_sha256", "sandbox_context", "metadata")
        if not getattr(after, name)
    }
    return msgspec.structs.replace(after, **missing)
