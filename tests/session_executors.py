"""Executors that tests of sessions are parametrised over."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest

from py_code_mode import SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from py_code_mode.execution.executor import Executor

NewExecutor: TypeAlias = "Callable[[], Executor]"


def sandboxed() -> Executor:
    return SubprocessExecutor(SubprocessConfig(backend="namespaces"))


def plain() -> Executor:
    return SubprocessExecutor(SubprocessConfig(backend="none"))


with_copies = pytest.mark.skipif(
    "namespaces" not in probe().backends, reason="this machine allows no namespaces"
)
WORKERS = [plain, pytest.param(sandboxed, marks=with_copies)]
