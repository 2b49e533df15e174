"""The contract, over every executor that is part of the package, and all it can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from py_code_mode.execution.in_process import InProcessExecutor
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.testing import ExecutorContract

from ..session_executors import require

if TYPE_CHECKING:
    from py_code_mode.execution.executor import Executor
    from py_code_mode.sandbox.probe import Backend


class TestInProcessExecutor(ExecutorContract):
    def make_executor(self) -> Executor:
        return InProcessExecutor()


class _OfBackend(ExecutorContract):
    backend: ClassVar[Backend]

    @pytest.fixture(autouse=True)
    def is_available(self) -> None:
        require(self.backend)

    def make_executor(self) -> Executor:
        return SubprocessExecutor(SubprocessConfig(backend=self.backend))


class TestNamespaces(_OfBackend):
    backend = "namespaces"


class TestBubblewrap(_OfBackend):
    backend = "bubblewrap"


class TestLandlock(_OfBackend):
    backend = "landlock"


class TestPlainProcess(_OfBackend):
    backend = "none"
