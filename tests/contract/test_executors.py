"""The contract, over every executor that is part of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from py_code_mode.execution.in_process import InProcessExecutor
from py_code_mode.execution.subprocess import SubprocessExecutor
from py_code_mode.testing import ExecutorContract

if TYPE_CHECKING:
    from py_code_mode.execution.executor import Executor


class TestInProcessExecutor(ExecutorContract):
    def make_executor(self) -> Executor:
        return InProcessExecutor()


class TestSubprocessExecutor(ExecutorContract):
    def make_executor(self) -> Executor:
        return SubprocessExecutor()
