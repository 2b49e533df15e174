"""Where a session's code runs: what a plug-in executor implements, and is given."""

from py_code_mode.execution.executor import (
    Bind,
    Call,
    Capability,
    Exchange,
    Executor,
    ExecutorConfig,
    Fetch,
    NamespaceTable,
    OnEvent,
    Release,
    RunOutcome,
    RunRequest,
    Setup,
)

__all__ = [
    "Bind",
    "Call",
    "Capability",
    "Exchange",
    "Executor",
    "ExecutorConfig",
    "Fetch",
    "NamespaceTable",
    "OnEvent",
    "Release",
    "RunOutcome",
    "RunRequest",
    "Setup",
]
