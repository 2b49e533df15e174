"""The contract, over every executor that is part of the package, and all it can be made of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from py_code_mode.execution.in_process import InProcessExecutor
from py_code_mode.execution.launch import closed_to
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.probe import probe, sandbox_user
from py_code_mode.testing import ExecutorContract

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
        if self.backend not in probe().backends:
            pytest.skip(f"no {self.backend} here")
        user = sandbox_user()
        if user is not None and self.backend in ("bubblewrap", "landlock"):
            # not as root; the same tests run as an unprivileged user
            closed = closed_to(user, [Path(sys.executable), Path(__file__)])
            pytest.skip("; ".join(closed) or "temporary folders of tests are root's")

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
