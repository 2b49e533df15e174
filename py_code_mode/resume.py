"""A session goes on where its journal ends: its variables come back, and no tool is called for it.

``restore`` loads the newest saved state and executes the runs after it again; ``replay`` executes
all runs of the live line again. Both answer what the code asks of tools, artifacts and workflows
from the record. ``transcript`` takes over a conversation and executes nothing.

What sandboxed code has left behind is not run, or loaded, with more rights than it had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import anyio.to_thread

from py_code_mode.codecs.packed import MEDIA_TYPE, unpack_value
from py_code_mode.errors import (
    CallFailed,
    PersistenceError,
    ReplayDivergenceError,
    StateNotTrusted,
    ValueNotPortable,
)
from py_code_mode.execution.executor import Load, RunRequest
from py_code_mode.execution.executor import SavedState as State
from py_code_mode.guest.errors import GUEST_ERRORS, from_facts
from py_code_mode.journal.blobs import BlobMissing, is_ref
from py_code_mode.journal.loader import read_journal
from py_code_mode.journal.records import restore
from py_code_mode.origin import UNKNOWN, is_as_strong
from py_code_mode.recorder import call_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from py_code_mode.bindings import Bindings
    from py_code_mode.deps.dependencies import Dependencies
    from py_code_mode.execution.executor import Executor, RunOutcome
    from py_code_mode.handles import SessionHandles
    from py_code_mode.journal.loader import Journal, RecordedRun
    from py_code_mode.journal.records import Call, Event, SavedState

ResumeMode: TypeAlias = Literal["restore", "replay", "transcript"]
#: What to do about a run whose effects nobody knows: it was cut short, stopped or ended from
#: outside.
OnAmbiguous: TypeAlias = Literal["skip", "raise", "rerun"]

#: Namespaces whose calls are carried out again: their effects are part of the session itself.
_LIVE = frozenset({"deps", "handles"})
#: Tags of what stands for a value that is not there.
_DESCRIBED = frozenset({"$repr", "$snapshot", "$blob"})
#: Variables that were not saved, of which the next run tells.
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
        lost: why, by name of each variable that was not saved.
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
            found.append(f"variable {name} could not be saved: {reason}")
        if len(self.lost) > MAX_NOTES:
            found.append(f"{len(self.lost) - MAX_NOTES} more variables could not be saved")
        return found


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
        self.session_id = session_id
        self.mode: ResumeMode = mode
        self._on_ambiguous: OnAmbiguous = on_ambiguous
        self._trusted = trusted
        self._answers: _Answers | None = None

    async def carry_out(
        self,
        path: Path,
        executor: Executor,
        handles: SessionHandles,
        bindings: Bindings,
        dependencies: Dependencies,
        *,
        tell: Callable[..., Awaitable[None]],
        take_up_run: Callable[[int, int], None],
        end_again: Callable[[int, RunOutcome], Awaitable[None]],
    ) -> Resumed:
        """Bring everything back into a guest that has just started.

        Args:
            tell: writes an event.
            take_up_run: is told of a run that had been cut short and is executed once more, and of
                how many calls it had made.
            end_again: is told how it has ended.

        Raises:
            PersistenceError: the journal cannot be read.
            StateNotTrusted: it was written by code with a stronger isolation.
            ReplayDivergenceError: a run asked for something else than what is on record, or ended
                otherwise.
        """
        journal = await anyio.to_thread.run_sync(read_journal, path)
        if not self._trusted:
            _check_trusted(journal, executor.isolation)
        # what code does from here on is the work of this isolation
        await tell("resume", 0, mode=self.mode, isolation=executor.isolation)
        if any(_is_dependency(event) for event in journal.events) or any(
            call.tool_name.startswith("deps.") for call in journal.calls
        ):
            await dependencies.sync()
        saved = _newest_state(journal) if self.mode == "restore" else None
        line = list(journal.live_line)
        lost: dict[str, str] = {}
        at_run = 0
        if saved is not None:
            await self._load(journal, saved, executor)
            at_run = saved.at_run
            lost = {name: str(reason) for name, reason in dict(saved.skipped).items()}
            line = [run for run in line if run.run_id > saved.at_run]
        skipped: list[int] = []
        replayed: list[int] = []
        puts = [event for event in journal.events if event.kind == "put"]
        for run in line:
            while puts and (puts[0].run_id or 0) < run.run_id:
                await _put_again(puts.pop(0), journal, bindings, saved)
            if run.status in _AMBIGUOUS and self._on_ambiguous != "rerun":
                if self._on_ambiguous == "raise":
                    raise ReplayDivergenceError(
                        f"run {run.run_id} of session {self.session_id} is on record as "
                        f"{run.status}: what it had done is not known; on_ambiguous='skip' leaves "
                        "it out, 'rerun' executes it"
                    )
                skipped.append(run.run_id)
                continue
            outcome = await self._run_again(run, journal, executor, handles, take_up_run)
            if run.outcome is None:
                await end_again(run.run_id, outcome)
            replayed.append(run.run_id)
            at_run = run.run_id
        for event in puts:
            await _put_again(event, journal, bindings, saved)
        return Resumed(
            session_id=self.session_id,
            mode=self.mode,
            at_run=at_run,
            last_run=max((run.run_id for run in journal.runs), default=0),
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

    async def _load(self, journal: Journal, saved: SavedState, executor: Executor) -> None:
        def read() -> State:
            parts = [journal.blobs.get(part) for part in saved.blob]
            return State(parts=parts, types={}, skipped={})

        try:
            await executor.exchange(Load(await anyio.to_thread.run_sync(read)))
        except (CallFailed, PersistenceError) as error:
            raise PersistenceError(
                f"the variables of session {self.session_id} as of run {saved.at_run} cannot be "
                f"loaded: {error}; mode='replay' executes its runs again instead"
            ) from error

    async def _run_again(
        self,
        run: RecordedRun,
        journal: Journal,
        executor: Executor,
        handles: SessionHandles,
        take_up_run: Callable[[int, int], None],
    ) -> RunOutcome:
        is_known = run.status not in _AMBIGUOUS
        self._answers = _Answers(run, journal, is_open=not is_known)
        if not is_known:
            take_up_run(run.run_id, len(run.calls))
        handles.run_id = run.run_id
        timeout = run.intent.timeout if run.intent is not None else None
        seconds = None if timeout is None or math.isinf(timeout) else timeout
        try:
            outcome = await executor.run(
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

    def take(
        self, name: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[bool, object]:
        digest = call_digest(args, kwargs)
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


def _is_dependency(event: Event) -> bool:
    return event.kind == "dep"


def _newest_state(journal: Journal) -> SavedState | None:
    """The newest saved state whose run is still on the live line."""
    live = {run.run_id for run in journal.live_line}
    for state in reversed(journal.saved_states):
        if state.at_run in live or (state.at_run == 0 and not live):
            return state
    return None


async def _put_again(
    event: Event,
    journal: Journal,
    bindings: Bindings,
    saved: SavedState | None,
) -> None:
    data: dict[str, Any] = dict(event.data)
    name = str(data["name"])
    try:
        value = await anyio.to_thread.run_sync(_whole, data.get("value"), journal)
    except _NotWhole:
        return  # the variable may be in the saved state
    if saved is not None and event.seq < saved.seq:
        # the variable is as the code had it, in the saved state
        bindings.know(name, value)
    else:
        await bindings.put(name, value, overwrite=bool(data.get("overwrite", True)))
