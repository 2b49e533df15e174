"""The exception tree of py-code-mode.

Code that a session runs and that raises is a *result* (`ExecutionResult.failure`); these mean that
the call itself was wrong, or that we or the world failed.

CodeModeError
├── CapabilityMissing            the executor cannot do what was asked
├── CheckpointClosed             there is no way back to it any more
├── CheckpointRefused            the interpreter cannot be copied now
├── ConfigError (ValueError)     a workspace's config.yaml, or an argument, does not hold
├── EnvironmentFailed            an interpreter or its packages could not be had
│   └── InterpreterNotFound (LookupError)
├── ExecutorClosed               not started yet, or closed
├── ExecutorInUse                it belongs to another session
├── ExecutorNotFound (LookupError)
├── ForeignCheckpoint (ValueError)  it belongs to another session
├── ForeignEventLoop (RuntimeError)  a session was used from another event loop than its own
├── GuestDied                    the guest's process ended while the host was talking to it
├── HandlesClosed (HandleError)  a SessionCache was used after its close
├── PersistenceError (RuntimeError)  a session's record could not be read or written
│   ├── CorruptRecordError       a line of a journal is not what was written
│   ├── InvalidRecord (ValueError)  what is no record, or has a field that does not fit
│   ├── JournalWriteError        a record could not be written
│   ├── LineageConsistencyError (ValueError)  a session's ancestors are missing, or a circle
│   ├── ReplayDivergenceError    a replayed run did something else than the recorded one
│   ├── SchemaVersionError       written by a newer version, or by one that cannot be continued
│   ├── SessionClosedError       its journal was closed
│   ├── SessionExistsError (ValueError)
│   ├── SessionLockedError       another writer has it
│   └── SessionNotFoundError (ValueError)
├── ProtocolViolation            the guest sent what the protocol does not allow
├── ReentrantRun (RuntimeError)  a tool called run() on its own session
├── SessionClosed                not entered yet, or closed
├── StateNotTrusted (PermissionError)  sandboxed code left it; asked for with more rights
├── StoreError (OSError)         stored bytes could not be read or written
│   ├── HandleUnreadable (HandleError)   a stored value cannot be had back
│   ├── LogDamaged               a log without a single whole line
│   ├── LogFailed                what it wrote may be lost; it writes nothing more
│   ├── LogFull                  no room; the line was not written
│   ├── LogLocked                another writer has it
│   ├── NotStored (KeyError)
│   └── StorageNotPrivate (PermissionError)  others may write where values are stored
├── WorkspaceNotTrusted (PermissionError)  others may have written what runs on the host
│
│   these may also be raised inside a session (guest/errors.py):
├── ArtifactError ─ ArtifactNotFound (KeyError), InvalidArtifact (ValueError)
├── CallFailed (RuntimeError), InvalidCall (TypeError), NoActiveRun (RuntimeError)
├── ConfinementFailed            a worker could not confine itself, so it ran nothing
├── DependencyError ─ DependencyNotAllowed (PermissionError), InvalidRequirement (ValueError),
│                     RuntimeDepsDisabled (PermissionError)
├── HandleError ─ HandleNotFound (KeyError), HandlesFull (MemoryError)
├── InvalidName (ValueError)
├── ToolError (RuntimeError) ─ ToolArgumentError (ValueError), ToolFailed,
│                              ToolNotFound (LookupError), ToolTimeout (TimeoutError)
├── ValueNotPortable (TypeError)
└── WorkflowError ─ InvalidWorkflow (ValueError), WorkflowNotApproved (PermissionError),
                    WorkflowNotFound (LookupError), WorkflowTooDeep (RecursionError)

UnsandboxedWarning (UserWarning)  code runs without the sandbox that it would have had
"""

from __future__ import annotations

import shlex
from reprlib import Repr

from py_code_mode.guest.errors import (
    ArtifactError,
    ArtifactNotFound,
    CallFailed,
    CodeModeError,
    ConfinementFailed,
    DependencyError,
    DependencyNotAllowed,
    HandleError,
    HandleNotFound,
    HandlesFull,
    InvalidArtifact,
    InvalidCall,
    InvalidName,
    InvalidRequirement,
    InvalidWorkflow,
    NoActiveRun,
    RuntimeDepsDisabled,
    ToolArgumentError,
    ToolError,
    ToolFailed,
    ToolNotFound,
    ToolTimeout,
    ValueNotPortable,
    WorkflowError,
    WorkflowNotApproved,
    WorkflowNotFound,
    WorkflowTooDeep,
)

__all__ = [
    "ArtifactError",
    "ArtifactNotFound",
    "CallFailed",
    "CapabilityMissing",
    "CodeModeError",
    "ConfigError",
    "ConfinementFailed",
    "CorruptRecordError",
    "DependencyError",
    "DependencyNotAllowed",
    "EnvironmentFailed",
    "ExecutorClosed",
    "ExecutorInUse",
    "ExecutorNotFound",
    "ForeignCheckpoint",
    "ForeignEventLoop",
    "GuestDied",
    "HandleError",
    "HandleNotFound",
    "HandleUnreadable",
    "HandlesClosed",
    "HandlesFull",
    "InterpreterNotFound",
    "InvalidArtifact",
    "InvalidCall",
    "InvalidName",
    "InvalidRecord",
    "InvalidRequirement",
    "InvalidWorkflow",
    "JournalWriteError",
    "LineageConsistencyError",
    "LogDamaged",
    "LogFailed",
    "LogFull",
    "LogLocked",
    "NoActiveRun",
    "NotStored",
    "PersistenceError",
    "ProtocolViolation",
    "ReentrantRun",
    "ReplayDivergenceError",
    "RuntimeDepsDisabled",
    "SchemaVersionError",
    "SessionClosed",
    "SessionClosedError",
    "SessionExistsError",
    "SessionLockedError",
    "SessionNotFoundError",
    "StateNotTrusted",
    "StorageNotPrivate",
    "StoreError",
    "ToolArgumentError",
    "ToolError",
    "ToolFailed",
    "ToolNotFound",
    "ToolTimeout",
    "UnsandboxedWarning",
    "ValueNotPortable",
    "WorkflowError",
    "WorkflowNotApproved",
    "WorkflowNotFound",
    "WorkflowTooDeep",
    "WorkspaceNotTrusted",
]


_brief = Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 2, 80, 80


def brief(value: object) -> str:
    """A value as a message shows it: short, however large it is and however often it is in itself.

    What YAML has made of a few lines may have more elements than a machine can print.
    """
    if isinstance(value, int) and value.bit_length() > 128:  # the longest are not printed at all
        return f"a number of {value.bit_length()} bits"
    return _brief.repr(value)


class CapabilityMissing(CodeModeError):
    """The executor cannot do what was asked."""

    def __init__(self, capability: str, executor: str) -> None:
        super().__init__(
            f"the {executor} executor does not offer {capability!r}; "
            "session.supported_capabilities() lists what it offers"
        )
        self.capability, self.executor = capability, executor


class CheckpointClosed(CodeModeError):
    """A checkpoint that there is no way back to: it was closed, or its session was."""

    def __init__(self, run_id: int) -> None:
        super().__init__(
            f"the checkpoint taken after run {run_id} is closed, or was lost with its sandbox; "
            "take a new one"
        )
        self.run_id = run_id


class CheckpointRefused(CodeModeError):
    """The interpreter cannot be copied now; it goes on as before."""

    def __init__(self, session_id: str, reason: str) -> None:
        super().__init__(
            f"session {session_id} cannot be copied now: {reason}. End or close what is in the "
            "way, and try again"
        )
        self.session_id, self.reason = session_id, reason


class ForeignCheckpoint(CodeModeError, ValueError):
    """A checkpoint was given to another session than the one that took it."""

    def __init__(self, session_id: str, owner: str) -> None:
        super().__init__(
            f"the checkpoint belongs to session {owner}, not to session {session_id}; roll that "
            "one back, or fork it"
        )
        self.session_id, self.owner = session_id, owner


class ConfigError(CodeModeError, ValueError):
    """A workspace's configuration, or an argument, does not hold."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source, self.reason = source, reason


class EnvironmentFailed(CodeModeError):
    """An interpreter or its packages could not be had.

    Attributes:
        output: the end of what the installer said; empty where it did not run.
    """

    def __init__(self, what: str, reason: str, output: str = "") -> None:
        tail = f"\n{output.rstrip()}" if output.strip() else ""
        super().__init__(f"{what}: {reason}{tail}")
        self.what, self.reason, self.output = what, reason, output


class InterpreterNotFound(EnvironmentFailed, LookupError):
    """No Python of the wanted version is on this machine."""

    def __init__(self, wanted: str, available: tuple[str, ...]) -> None:
        known = ", ".join(available) or "none"
        super().__init__(
            f"Python {wanted}",
            f"no such interpreter here; found: {known}. Install it, or give python_version the "
            "path of an interpreter",
        )
        self.wanted, self.available = wanted, available


class ExecutorClosed(CodeModeError):
    """The executor has not been started, or is closed."""

    def __init__(self, executor: str, state: str) -> None:
        super().__init__(f"the {executor} executor is {state}; use it between start() and close()")
        self.executor, self.state = executor, state


class ExecutorInUse(CodeModeError):
    """An executor was given to a session that is, or was, another one's."""

    def __init__(self, executor: str, session_id: str) -> None:
        super().__init__(
            f"the {executor} executor belongs to another session ({session_id}); make one for each"
        )
        self.executor, self.session_id = executor, session_id


class ExecutorNotFound(CodeModeError, LookupError):
    """No executor of this name is installed."""

    def __init__(self, name: str, available: tuple[str, ...]) -> None:
        super().__init__(
            f"no executor named {name!r} is installed; installed: {', '.join(available)}"
        )
        self.name, self.available = name, available


class GuestDied(CodeModeError):
    """The guest's process ended while the host was talking to it."""

    def __init__(
        self, reason: str, aftermath: str = "its variables are lost, the next run has a new one"
    ) -> None:
        super().__init__(f"the worker {reason}; {aftermath}")
        self.reason, self.aftermath = reason, aftermath


class HandlesClosed(HandleError):
    """A `SessionCache` was used after its close."""

    def __init__(self, action: str) -> None:
        super().__init__(f"{action}: the SessionCache is closed; make a new one")
        self.action = action


class ProtocolViolation(CodeModeError):
    """The guest sent what the protocol does not allow; its process is ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the guest broke the protocol: {reason}")
        self.reason = reason


class ForeignEventLoop(CodeModeError, RuntimeError):
    """A session was used from another event loop than the one it was started on."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id} belongs to the event loop it was started on; use it there, or "
            "start another session on this one"
        )
        self.session_id = session_id


class ReentrantRun(CodeModeError, RuntimeError):
    """A host tool called run() on the session whose run it serves: that would never end."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id}: run() was called from a tool that this session's own run is "
            "waiting for; use another session inside tools"
        )
        self.session_id = session_id


class SandboxUnavailable(CodeModeError):
    """This machine cannot enforce what a session asks for; nothing was run.

    Attributes:
        wanted: a backend, or a policy.
        reasons: what is missing, and what to do about each.
    """

    def __init__(self, wanted: str, reasons: tuple[str, ...]) -> None:
        listed = "".join(f"\n- {reason}" for reason in reasons)
        super().__init__(
            f"this machine cannot enforce {wanted}; `py-code-mode doctor` tells what it can:"
            f"{listed}"
        )
        self.wanted, self.reasons = wanted, reasons


class SessionClosed(CodeModeError):
    """The session has not been started, or is closed."""

    def __init__(self, session_id: str, state: str) -> None:
        super().__init__(
            f"session {session_id} is {state}; use it inside `async with`, or between "
            "start() and close()"
        )
        self.session_id, self.state = session_id, state


class StoreError(CodeModeError, OSError):
    """Stored bytes could not be read or written."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class HandleUnreadable(StoreError, HandleError):
    """A stored value cannot be had back; its file is left as it is."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"handle {name!r}", f"its stored value cannot be read: {reason}")
        self.name, self.reason = name, reason


class NotStored(StoreError, KeyError):
    """Nothing is stored by this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "nothing is stored by this name")


class StorageNotPrivate(StoreError, PermissionError):
    """Others may write where values are stored, so that loading one could run their code."""

    def __init__(self, folder: str, doubt: str) -> None:
        super().__init__(
            folder,
            f"nothing is loaded from it, because {doubt}. If you know that nobody has changed it: "
            f"chown it to yourself and chmod 700 {shlex.quote(folder)}",
        )
        self.folder, self.doubt = folder, doubt


class LogDamaged(StoreError):
    """A log has bytes but not a single whole line; nothing was cut."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__(
            path, f"none of the lines in its last {size} bytes is whole; it was left as it is"
        )


class LogFailed(StoreError):
    """A log that could not be made durable, or put in order after a failed write.

    What was written since the last flush may be lost, and trying again would not tell (after a
    failed fsync the kernel forgets what it could not write), so the log refuses all further lines.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            path, f"{reason}; nothing more is written to it. Look after the disk, then reopen it"
        )


class LogFull(StoreError):
    """There is no room for a line: nothing of it was written, and the log can be used on."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, f"{reason}; the line was not written. Make room and try again")


class LogLocked(StoreError):
    """Another writer, of this process or another one, has the log open."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "another writer has it open; there is only one at a time")


class PersistenceError(CodeModeError, RuntimeError):
    """A session's record could not be read or written."""


class CorruptRecordError(PersistenceError):
    """A line of a journal is not what was written, or does not fit where it stands.

    Attributes:
        line: counted from 1; None where the place is known by its offset only.
        offset: of the line's first byte.
    """

    def __init__(self, path: str, line: int | None, offset: int, reason: str) -> None:
        place = f"{path}:{line}" if line is not None else path
        super().__init__(
            f"{place}: {reason} (byte {offset}). `py-code-mode sessions check` tells all that is "
            "wrong, `py-code-mode sessions repair ID` has the session go on without it, and "
            "read_journal(..., on_error='skip') reads what else there is"
        )
        self.path, self.line, self.offset, self.reason = path, line, offset, reason


class InvalidRecord(PersistenceError, ValueError):
    """What is no record: not JSON, of an unknown type, or with a field that does not fit."""


class JournalWriteError(PersistenceError):
    """A record could not be written; what was written before is still there.

    Attributes:
        is_final: this journal refuses all further records until it is reopened; where False, the
            same record may be tried again.
    """

    def __init__(self, path: str, reason: str, *, is_final: bool) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.is_final = path, reason, is_final


class LineageConsistencyError(PersistenceError, ValueError):
    """A session's ancestors are missing, or it is one of its own ancestors."""


class ReplayDivergenceError(PersistenceError):
    """A replayed run did something else than the recorded one."""


class SchemaVersionError(PersistenceError):
    """A journal of a version that this one cannot read, or cannot go on with."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class SessionClosedError(PersistenceError):
    """A session's journal was closed, or belongs to another process."""

    def __init__(
        self, session_id: str, reason: str = "its journal is closed; reopen it to write more"
    ) -> None:
        super().__init__(f"session {session_id}: {reason}")
        self.session_id, self.reason = session_id, reason


class SessionExistsError(PersistenceError, ValueError):
    """A session of this id is on record already."""

    def __init__(self, session_id: str, path: str) -> None:
        super().__init__(
            f"session {session_id} is on record already ({path}); go on with that one, or take "
            "another id"
        )
        self.session_id, self.path = session_id, path


class SessionLockedError(PersistenceError):
    """Another writer is writing this session's record."""

    def __init__(self, session_id: str, path: str) -> None:
        super().__init__(
            f"session {session_id} is being written by somebody else ({path}); close that session "
            "first, or fork this one"
        )
        self.session_id, self.path = session_id, path


class SessionNotFoundError(PersistenceError, ValueError):
    """No session of this id is on record."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session not found: {session_id}")
        self.session_id = session_id


class UnsandboxedWarning(UserWarning):
    """A session that did not ask for a sandbox has none, since this machine lacks what one needs.

    Told once in a process. Who passes ``backend="none"`` knows, and is not told.

    Attributes:
        reason: what is missing.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no sandbox: code that sessions run here may do whatever your user may. {reason}. "
            '`py-code-mode doctor` tells the rest; backend="none" says that you know'
        )
        self.reason = reason


class StateNotTrusted(CodeModeError, PermissionError):
    """What code with a stronger isolation has left is not loaded, or run, with a weaker one."""

    def __init__(self, session_id: str, origin: str, isolation: str) -> None:
        super().__init__(
            f"session {session_id} was written by code in {origin}, and would go on in "
            f"{isolation}, where code has more rights: resume it in a sandbox, or with "
            "trusted=True if you have read its record"
        )
        self.session_id, self.origin, self.isolation = session_id, origin, isolation


class WorkspaceNotTrusted(CodeModeError, PermissionError):
    """What a workspace runs on this host may have been written by somebody else.

    Attributes:
        folder: the workspace.
        doubts: what is wrong, one sentence for each file or folder.
    """

    def __init__(self, folder: str, doubts: tuple[str, ...]) -> None:
        shown = "; ".join(doubts[:3]) + (f"; and {len(doubts) - 3} more" if doubts[3:] else "")
        super().__init__(
            f"the workspace {folder} is not trusted: {shown}. What is in it runs on this machine "
            f"with your rights. If you know who wrote it: py-code-mode trust {shlex.quote(folder)}"
        )
        self.folder, self.doubts = folder, doubts
