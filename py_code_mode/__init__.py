"""Code execution for AI agents: a session runs model-written Python and keeps its state.

The public names; each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from py_code_mode.guest.imports import lazily

if TYPE_CHECKING:
    from py_code_mode.errors import (
        ArtifactError,
        ArtifactNotFound,
        CapabilityMissing,
        CheckpointClosed,
        CheckpointRefused,
        CodeModeError,
        ConfigError,
        DependencyError,
        EnvironmentFailed,
        ReentrantRun,
        SandboxUnavailable,
        SessionClosed,
        StoreError,
        ToolError,
        UnsandboxedWarning,
        ValueNotPortable,
        WorkflowError,
        WorkflowNotFound,
    )
    from py_code_mode.execution.executor import Capability, Checkpoint, Executor
    from py_code_mode.execution.in_process import InProcessConfig, InProcessExecutor
    from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
    from py_code_mode.results import (
        Called,
        Display,
        ExecutionResult,
        Failure,
        Handle,
        Output,
        Shown,
        Snapshot,
    )
    from py_code_mode.sandbox.policy import Policy
    from py_code_mode.session import Session
    from py_code_mode.storage import FileStorage, MemoryStorage, StorageBackend

_HOME = {
    "ArtifactError": "py_code_mode.errors",
    "ArtifactNotFound": "py_code_mode.errors",
    "Called": "py_code_mode.results",
    "Capability": "py_code_mode.execution.executor",
    "CapabilityMissing": "py_code_mode.errors",
    "Checkpoint": "py_code_mode.execution.executor",
    "CheckpointClosed": "py_code_mode.errors",
    "SandboxUnavailable": "py_code_mode.errors",
    "UnsandboxedWarning": "py_code_mode.errors",
    "CheckpointRefused": "py_code_mode.errors",
    "CodeModeError": "py_code_mode.errors",
    "ConfigError": "py_code_mode.errors",
    "DependencyError": "py_code_mode.errors",
    "Display": "py_code_mode.results",
    "EnvironmentFailed": "py_code_mode.errors",
    "ExecutionResult": "py_code_mode.results",
    "Executor": "py_code_mode.execution.executor",
    "Failure": "py_code_mode.results",
    "FileStorage": "py_code_mode.storage",
    "Handle": "py_code_mode.results",
    "InProcessConfig": "py_code_mode.execution.in_process",
    "InProcessExecutor": "py_code_mode.execution.in_process",
    "MemoryStorage": "py_code_mode.storage",
    "Output": "py_code_mode.results",
    "Policy": "py_code_mode.sandbox.policy",
    "ReentrantRun": "py_code_mode.errors",
    "Session": "py_code_mode.session",
    "SessionClosed": "py_code_mode.errors",
    "Shown": "py_code_mode.results",
    "Snapshot": "py_code_mode.results",
    "StorageBackend": "py_code_mode.storage",
    "StoreError": "py_code_mode.errors",
    "SubprocessConfig": "py_code_mode.execution.subprocess",
    "SubprocessExecutor": "py_code_mode.execution.subprocess",
    "ToolError": "py_code_mode.errors",
    "ValueNotPortable": "py_code_mode.errors",
    "WorkflowError": "py_code_mode.errors",
    "WorkflowNotFound": "py_code_mode.errors",
}

__all__ = [
    "ArtifactError",
    "ArtifactNotFound",
    "Called",
    "Capability",
    "CapabilityMissing",
    "Checkpoint",
    "CheckpointClosed",
    "CheckpointRefused",
    "CodeModeError",
    "ConfigError",
    "DependencyError",
    "Display",
    "EnvironmentFailed",
    "ExecutionResult",
    "Executor",
    "Failure",
    "FileStorage",
    "Handle",
    "InProcessConfig",
    "InProcessExecutor",
    "MemoryStorage",
    "Output",
    "Policy",
    "ReentrantRun",
    "SandboxUnavailable",
    "Session",
    "SessionClosed",
    "Shown",
    "Snapshot",
    "StorageBackend",
    "StoreError",
    "SubprocessConfig",
    "SubprocessExecutor",
    "ToolError",
    "UnsandboxedWarning",
    "ValueNotPortable",
    "WorkflowError",
    "WorkflowNotFound",
]

__getattr__, __dir__ = lazily(__name__, _HOME)
