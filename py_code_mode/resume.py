"""A session goes on where its journal ends: its variables come back, and no tool is called for it.

``restore`` loads the newest saved state and executes the runs after it again; ``replay`` executes
all runs of the live line again. Both answer what the code asks of tools, artifacts and workflows
from the record. ``transcript`` takes over a conversation and executes nothing.

What sandboxed code has left behind is not run, or loaded, with more rights than it had.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import anyio.to_thread

from py_code_mode.arguments import check_choice
from py_code_mode.codecs.packed import MEDIA_TYPE, unpack_value
from py_code_mode.errors import (
    CallFailed,
    PersistenceError,
    ReplayDivergenceError,
    StateNotTrusted,
    ValueNotPortable,
)
from py_code_mode.execution.executor import Load, RunRequest
from py_code_mode.execution.executor import SavedState as GuestState
from py_code_mode.guest.errors import GUEST_ERRORS, from_facts
from py_code_mode.journal.blobs import BlobMissing, is_ref
from py_code_mode.journal.loader import read_journal
from py_code_mode.journal.records import args_sha256, restore
from py_code_mode.journal.states import read_parts, superseded
from py_code_mode.origin import UNKNOWN, is_as_strong
from py_code_mode.recorder import MAX_KEPT, arguments_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from py_code_mode.bindings import Bindings
    from py_code_mode.deps.dependencies import Dependencies
    from py_code_mode.execution.executor import Executor, RunOutcome
    from py_code_mode.handles import SessionHandles
    from py_code_mode.journal.loader import Journal, RecordedRun
    from py_code_mode.journal.records import Call, Event, SavedState
    from py_code_mode.recorder import Recorder

ResumeMode: TypeAlias = Literal["restore", "replay", "transcript"]
#: What to do about a run whose effects nobody knows: it was cut short, stopped or ended from
#: outside.
OnAmbiguous: TypeAlias = Literal["skip", "raise", "rerun"]

#: Namespaces whose calls are carried out again: their effects are part of the session itself.
_LIVE = frozenset({"deps", "handles"})
#: Tags of what stands for a value that is not there.
_DESCRIBED = frozenset({"$repr", "$snapshot", "$blob"})
#: The event that tells which variables a saved state lacked when the session went on from it.
_LOST = "lost"
#: Seconds that forgetting those takes, at most.
_DROP_TIMEOUT = 10.0
#: Variables that did not come back, of which the next run tells.
MAX_NOTES = 20
_AMBIGUOUS = frozenset({"crashed", "cancelled", "timeout", "running"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What came back.

    Attributes:
        session_id: of the journal that was read.
        mode: how.
        at_run: the run whose variables these are, 0 for none.
        last_run: the newest run on record, undone ones too; the next one has the next number.
        replayed: runs that were executed again.
        skipped: runs whose effects nobody knows, and that were left out.
        lost: why, by name of each variable, and each handle, that is not there any more.
    """

    session_id: str
    mode: ResumeMode
    at_run: int = 0
    last_run: int = 0
    replayed: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict[str, str])

    def notes(self) -> list[str]:
        """What the user of the session should know."""
        found: list[str] = []
        if self.skipped:
            runs = ", ".join(map(str, self.skipped))
            found.append(f"resumed without run {runs}, which had not ended by itself")
        for name, reason in islice(self.lost.items(), MAX_NOTES):
            found.append(f"{name} did not come back: {reason}")
        if len(self.lost) > MAX_NOTES:
            found.append(f"{len(self.lost) - MAX_NOTES} more variables did not come back")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest that has just started, and what the session keeps for it."""

    executor: Executor
    handles: SessionHandles
    bindings: Bindings
    dependencies: Dependencies


class Resumption:
    """Brings a session back from its journal; used once.

    Args:
        session_id: which.
        mode: ``restore`` or ``replay``.
        on_ambiguous: what to do about runs that were cut short.
        trusted: load and run what code with a stronger isolation has left.
    """

    def __init__(
        self, session_id: str, *, mode: ResumeMode, on_ambiguous: OnAmbiguous, trusted: bool
    ) -> None:
        check_choice("on_ambiguous", on_ambiguous, get_args(OnAmbiguous))
        self.session_id = session_id
        self.mode: ResumeMode = mode
        self._on_ambiguous: OnAmbiguous = on_ambiguous
        self._trusted = trusted
        self._answers: _Answers | None = None

    async def carry_out(self, guest: Guest, recorder: Recorder) -> Resumed:
        """Bring everything back, and have the recorder go on from there.

        Raises:
            PersistenceError: the journal cannot be read.
            StateNotTrusted: it was written by code with a stronger isolation.
            ReplayDivergenceError: a run asked for something else than what is on record, or ended
                otherwise.
        """
        journal = await anyio.to_thread.run_sync(read_journal, recorder.path)
        isolation = guest.executor.isolation
        if not self._trusted:
            _check_trusted(journal, isolation)
        # what code does from here on is the work of this isolation
        recorder.expect("resume", mode=self.mode, isolation=isolation)
        if _has_dependencies(journal):
            await guest.dependencies.sync()
        saved = await self._load(journal, guest.executor) if self.mode == "restore" else None
        line = list(journal.live_line)
        lost: dict[str, str] = {}
        at_run = 0
        if saved is not None:
            at_run = saved.at_run
            lost = {name: str(reason) for name, reason in dict(saved.skipped).items()}
            line = [run for run in line if run.run_id > saved.at_run]
        skipped: list[int] = []
        replayed: list[int] = []
        changes = _Changes(journal, guest, saved)
        for run in line:
            await changes.carry_out(before=run.run_id)
            if run.status in _AMBIGUOUS and self._on_ambiguous != "rerun":
                if self._on_ambiguous == "raise":
                    raise ReplayDivergenceError(
                        f"run {run.run_id} of session {self.session_id} is on record as "
                        f"{run.status}: what it had done is not known; on_ambiguous='skip' leaves "
                        "it out, 'rerun' executes it"
                    )
                skipped.append(run.run_id)
                continue
            outcome = await self._run_again(run, journal, guest, recorder)
            if run.outcome is None:
                await recorder.end_run(run.run_id, outcome)
            guest.handles.take_changes()  # which are on record
            replayed.append(run.run_id)
            at_run = run.run_id
        await changes.carry_out()
        recorder.take_up(journal, saved, at_run=at_run, is_saved=not replayed)
        await recorder.begin()
        if saved is not None and lost and not changes.knows_loss(saved):
            await recorder.tell(_LOST, saved.at_run, state=saved.saved_state_id, names=list(lost))
        lost |= changes.lost
        return Resumed(
            session_id=self.session_id,
            mode=self.mode,
            at_run=at_run,
            last_run=journal.last_run,
            replayed=tuple(replayed),
            skipped=tuple(skipped),
            lost=lost,
        )

    @property
    def is_replaying(self) -> bool:
        """Whether what the guest asks now is answered from the record."""
        return self._answers is not None

    @property
    def is_rerun(self) -> bool:
        """Whether the run of which nobody knows what it had done is executed now."""
        return self._answers is not None and self._answers.is_open

    def answer(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[bool, object]:
        """Give what a call gave when it was recorded; raises what it raised.

        Returns:
            False and None, where the call is to be carried out.
        """
        assert self._answers is not None
        if namespace in _LIVE:
            return False, None
        return self._answers.take(f"{namespace}.{method}", args, kwargs)

    async def _load(self, journal: Journal, executor: Executor) -> SavedState | None:
        """Load the newest saved state of the live line; None where there is none."""
        mine = {id(record) for record in journal.records}
        old = superseded(journal.saved_states)
        for saved in _states_on_line(journal):
            try:
                parts = await anyio.to_thread.run_sync(read_parts, saved, journal.blobs)
                await executor.exchange(Load(GuestState(parts=parts, types={}, skipped={})))
            except (CallFailed, PersistenceError) as error:
                is_old = saved.saved_state_id in old or id(saved) not in mine
                if is_old and isinstance(error, BlobMissing):
                    continue  # there is a newer one, perhaps only where this was forked from
                raise PersistenceError(
                    f"the variables of session {self.session_id} as of run {saved.at_run} cannot "
                    f"be loaded: {error}; mode='replay' executes its runs again instead"
                ) from error
            return saved
        return None

    async def _run_again(
        self,
        run: RecordedRun,
        journal: Journal,
        guest: Guest,
        recorder: Recorder,
    ) -> RunOutcome:
        handles = guest.handles
        is_known = run.status not in _AMBIGUOUS
        self._answers = answers = _Answers(run, journal, is_open=not is_known)
        if not is_known:
            recorder.take_up_run(run.run_id, len(run.calls))
        handles.run_id = run.run_id
        timeout = run.intent.timeout if run.intent is not None else None
        seconds = None if timeout is None or math.isinf(timeout) else timeout
        try:
            outcome = await guest.executor.run(
                RunRequest(run_id=run.run_id, code=run.code, timeout=seconds)
            )
            if self._answers.divergence is not None:
                raise ReplayDivergenceError(self._answers.divergence)
        finally:
            self._answers = handles.run_id = None
        handles.forget(outcome.gone)
        handles.note(outcome.handles, run.run_id, run.code)
        if not is_known:
            return outcome
        before = run.error.type if run.error is not None else None
        now = outcome.failure.type if outcome.failure is not None else None
        if before != now:
            raise ReplayDivergenceError(
                f"run {run.run_id} of session {self.session_id} ended with {before or 'no error'}, "
                f"and when it was executed again with "
                f"{outcome.failure if outcome.failure is not None else 'none'}"
            )
        if answers.left:
            raise ReplayDivergenceError(
                f"run {run.run_id} of session {self.session_id}, when it was executed again, did "
                f"not call {answers.left[0]}, as is on record"
            )
        return outcome


class _Answers:
    """The calls of one run, by what was asked.

    Args:
        is_open: those that are not known to have ended are carried out.
    """

    def __init__(self, run: RecordedRun, journal: Journal, *, is_open: bool) -> None:
        self.is_open = is_open
        self._run = run
        self._journal = journal
        # one whose end is not known comes last: it may have been carried out again since
        self._calls: list[Call] = sorted(run.calls, key=lambda call: call.status == "running")
        self.divergence: str | None = None

    @property
    def left(self) -> list[str]:
        """What was called, and had ended, and was not asked for again."""
        return [
            call.tool_name
            for call in self._calls
            if call.status in ("success", "error", "timeout")
            and call.tool_name.partition(".")[0] not in _LIVE
        ]

    def take(
        self, name: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[bool, object]:
        digest = args_sha256(arguments_of(args, kwargs))
        for call in self._calls:
            if (call.tool_name, call.args_sha256) == (name, digest):
                self._calls.remove(call)
                if self.is_open and call.status not in ("success", "error"):
                    break
                return True, self._result(call)
        if self.is_open:
            return False, None
        self.divergence = self.divergence or (
            f"run {self._run.run_id}, when it was executed again, called {name} with arguments "
            "that are not on record"
        )
        raise CallFailed(name, "it is not on record, and a replay calls no tool")

    def _result(self, call: Call) -> object:
        if call.status == "success":
            try:
                return _whole(call.result, self._journal)
            except _NotWhole:
                pass
            self.divergence = self.divergence or (
                f"the result of {call.tool_name} in run {self._run.run_id} is not on record "
                "in whole"
            )
            raise CallFailed(call.tool_name, "its result is not on record in whole")
        error: Any = call.error or {}
        kind, facts = str(error.get("type")), error.get("facts")
        if kind in GUEST_ERRORS and facts is not None:
            raise from_facts(kind, facts)
        raise CallFailed(call.tool_name, f"{kind}: {error.get('message', '')}")


class _NotWhole(ValueError):
    """A recorded value is only described."""


def _whole(recorded: Any, journal: Journal) -> object:
    """A recorded value as it was."""
    if is_ref(recorded) and recorded.get("media_type") == MEDIA_TYPE:
        try:
            return unpack_value(journal.blobs.get(recorded))
        except (BlobMissing, ValueNotPortable) as error:
            raise _NotWhole from error
    found = journal.expand(recorded)
    if not _is_whole(found):
        raise _NotWhole
    return restore(found)


def _is_whole(tree: Any) -> bool:
    """Whether no part of a recorded value is only described."""
    if isinstance(tree, list):
        return all(map(_is_whole, cast("list[Any]", tree)))
    if not isinstance(tree, dict):
        return True
    found = cast("dict[str, Any]", tree)
    if len(found) == 1 and not _DESCRIBED.isdisjoint(found):
        return False
    return all(map(_is_whole, found.values()))


def _check_trusted(journal: Journal, isolation: str) -> None:
    for state in journal.saved_states:
        if state.executor and not is_as_strong(isolation, state.executor):
            raise StateNotTrusted(journal.header.id, state.executor, isolation)
    written_by = {
        str(dict(event.data).get("isolation") or UNKNOWN)
        for event in journal.events
        if event.kind == "resume"
    }
    if journal.runs or journal.header.sandbox_backend:
        written_by.add(journal.header.sandbox_backend or UNKNOWN)
    for origin in sorted(written_by):
        if not is_as_strong(isolation, origin):
            raise StateNotTrusted(journal.header.id, origin, isolation)


def _has_dependencies(journal: Journal) -> bool:
    """Whether host or guest changed what is installed, as far as there is a record of it."""
    by_host = any(event.kind == "dep" for event in journal.events)
    return by_host or any(call.tool_name.startswith("deps.") for call in journal.calls)


def _states_on_line(journal: Journal) -> Iterator[SavedState]:
    """The saved states whose runs are still on the live line, the newest first."""
    live = {run.run_id for run in journal.live_line}
    for state in reversed(journal.saved_states):
        if state.at_run in live or (state.at_run == 0 and not live):
            yield state


class _Changes:
    """What was put and deleted, done again in its order.

    Args:
        saved: the state that was loaded.
    """

    def __init__(self, journal: Journal, guest: Guest, saved: SavedState | None) -> None:
        self._journal, self._guest = journal, guest
        events = [event for event in journal.events if event.kind in ("put", "delete", _LOST)]
        # not by their numbers, which a fork counts anew
        place = {id(record): n for n, record in enumerate((*journal.prefix, *journal.records))}
        end = place[id(saved)] if saved is not None else -1
        of_state = {state.saved_state_id: place[id(state)] for state in journal.saved_states}
        self._losses = {_state_of(event): event for event in events if event.kind == _LOST}
        for state_id, event in self._losses.items():
            # where the saved state is, from which the session went on without them
            place[id(event)] = of_state.get(state_id, place[id(event)])
        events = [one for one in events if one.kind != _LOST or self._losses[_state_of(one)] is one]
        events.sort(key=lambda event: place[id(event)])
        self._left = deque((event, place[id(event)] <= end) for event in events)
        #: why, by name of each handle that is not there any more
        self.lost: dict[str, str] = {}

    def knows_loss(self, saved: SavedState) -> bool:
        """Whether it is on record what a saved state lacks."""
        return saved.saved_state_id in self._losses

    async def carry_out(self, before: int | None = None) -> None:
        """Do what comes next, up to a run, or all that is left."""
        while self._left and (before is None or (self._left[0][0].run_id or 0) < before):
            await self._carry_out(*self._left.popleft())
            self._guest.handles.take_changes()  # which are on record

    async def _carry_out(self, event: Event, is_saved: bool) -> None:
        handles, bindings = self._guest.handles, self._guest.bindings
        data: dict[str, Any] = dict(event.data)
        if event.kind == _LOST:
            if not is_saved:
                await self._drop([str(name) for name in data.get("names") or ()], event.run_id or 0)
            return
        name = str(data["name"])
        is_replaced = bool(data.get("overwrite", True))
        if handles.is_here(name) and (event.kind == "delete" or not is_replaced):
            handles.delete(name)
        self.lost.pop(name, None)
        if event.kind == "delete":
            return
        try:
            value = await anyio.to_thread.run_sync(_whole, data.get("value"), self._journal)
        except _NotWhole:
            is_variable = is_saved and data.get("is_bound", True)
            reason = f"what is put is on record whole up to {MAX_KEPT >> 20} MiB only"
            self.lost[name] = reason + "; the variable is there, as saved" * is_variable
            return
        semantics = data.get("semantics")
        if not data.get("is_bound", True):
            handles.put(name, value, True, semantics=semantics)
        elif is_saved:
            # the variable is as the code had it, in the saved state
            bindings.know(name, value, semantics=semantics)
        else:
            await bindings.put(name, value, overwrite=is_replaced, semantics=semantics)

    async def _drop(self, names: Sequence[str], run_id: int) -> None:
        """Have the guest forget variables, as it had when the session went on without them."""
        code = f"[globals().pop(name, None) for name in {list(names)!r}]; None"
        request = RunRequest(run_id=run_id, code=code, timeout=_DROP_TIMEOUT)
        outcome = await self._guest.executor.run(request)
        self._guest.handles.forget(outcome.gone)


def _state_of(event: Event) -> str:
    """The id of the saved state that lacked variables."""
    return str(dict(event.data).get("state"))
