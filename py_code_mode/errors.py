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
├── ExecutorNotFound (LookupError)
├── ForeignCheckpoint (ValueError)  it belongs to another session
├── ForeignEventLoop (RuntimeError)  a session was used from another event loop than its own
├── GuestDied                    the guest's process ended while the host was talking to it
├── HandleNotFound (KeyError)    the guest holds no value by this name (any more)
├── ProtocolViolation            the guest sent what the protocol does not allow
├── ReentrantRun (RuntimeError)  a tool called run() on its own session
├── SessionClosed                not entered yet, or closed
├── StoreError (OSError)         stored bytes could not be read or written
│   └── NotStored (KeyError)
├── WorkspaceNotTrusted (PermissionError)  others may have written what runs on the host
│
│   these may also be raised inside a session (guest/errors.py):
├── ArtifactError ─ ArtifactNotFound (KeyError), InvalidArtifact (ValueError)
├── CallFailed (RuntimeError), InvalidCall (TypeError), NoActiveRun (RuntimeError)
├── ConfinementFailed            a worker could not confine itself, so it ran nothing
├── DependencyError ─ DependencyNotAllowed (PermissionError), InvalidRequirement (ValueError),
│                     RuntimeDepsDisabled (PermissionError)
├── InvalidName (ValueError)
├── ToolError (RuntimeError) ─ ToolArgumentError (ValueError), ToolFailed,
│                              ToolNotFound (LookupError), ToolTimeout (TimeoutError)
├── ValueNotPortable (TypeError)
└── WorkflowError ─ InvalidWorkflow (ValueError), WorkflowNotApproved (PermissionError),
                    WorkflowNotFound (LookupError), WorkflowTooDeep (RecursionError)
"""

from __future__ import annotations

import shlex

from py_code_mode.guest.errors import (
    ArtifactError,
    ArtifactNotFound,
    CallFailed,
    CodeModeError,
    ConfinementFailed,
    DependencyError,
    DependencyNotAllowed,
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
    "DependencyError",
    "DependencyNotAllowed",
    "EnvironmentFailed",
    "ExecutorClosed",
    "ExecutorNotFound",
    "ForeignCheckpoint",
    "ForeignEventLoop",
    "GuestDied",
    "HandleNotFound",
    "InterpreterNotFound",
    "InvalidArtifact",
    "InvalidCall",
    "InvalidName",
    "InvalidRequirement",
    "InvalidWorkflow",
    "NoActiveRun",
    "NotStored",
    "ProtocolViolation",
    "ReentrantRun",
    "RuntimeDepsDisabled",
    "SessionClosed",
    "StoreError",
    "ToolArgumentError",
    "ToolError",
    "ToolFailed",
    "ToolNotFound",
    "ToolTimeout",
    "ValueNotPortable",
    "WorkflowError",
    "WorkflowNotApproved",
    "WorkflowNotFound",
    "WorkflowTooDeep",
    "WorkspaceNotTrusted",
]


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
            f"session {session_id} cannot be copied now: {reason}. End or close it and try again"
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


class HandleNotFound(CodeModeError, KeyError):
    """The guest holds no value by this name, or holds it no longer."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the guest holds no value named {name!r}; values of earlier runs are kept for a "
            "while only: assign what you need to a variable"
        )
        self.name = name


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


class NotStored(StoreError, KeyError):
    """Nothing is stored by this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "nothing is stored by this name")


class WorkspaceNotTrusted(CodeModeError, PermissionError):
    """A workspace's tools run on this host, and somebody else may have written them.

    Attributes:
        folder: the workspace.
        doubts: what is wrong, one sentence for each file or folder.
    """

    def __init__(self, folder: str, doubts: tuple[str, ...]) -> None:
        shown = "; ".join(doubts[:3]) + (f"; and {len(doubts) - 3} more" if doubts[3:] else "")
        super().__init__(
            f"the workspace {folder} is not trusted: {shown}. Its tools run on this machine with "
            f"your rights. If you know whose they are: py-code-mode trust {shlex.quote(folder)}"
        )
        self.folder, self.doubts = folder, doubts
