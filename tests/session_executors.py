"""Executors that tests of sessions are parametrised over, and what these tests need of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest

from py_code_mode import SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.probe import probe, sandbox_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from py_code_mode import Session
    from py_code_mode.execution.executor import Executor
    from py_code_mode.sandbox.probe import Backend

NewExecutor: TypeAlias = "Callable[[], Executor]"


def sandboxed() -> Executor:
    return SubprocessExecutor(SubprocessConfig(backend="namespaces"))


def plain() -> Executor:
    return SubprocessExecutor(SubprocessConfig(backend="none"))


with_copies = pytest.mark.skipif(
    "namespaces" not in probe().backends, reason="this machine allows no namespaces"
)


def require(backend: Backend) -> None:
    """Skip a test whose backend this machine has not, or which root cannot give its guests to."""
    if backend not in probe().backends:
        pytest.skip(f"no {backend} here")
    if backend in ("bubblewrap", "landlock") and sandbox_user() is not None:
        pytest.skip("root's temporary folders are closed to its guests: not as root")


WORKERS = [plain, pytest.param(sandboxed, marks=with_copies)]


async def cancel_at_first_output(session: Session, code: str) -> None:
    """Run code that prints something and does not end; cancel it when it has printed."""
    with anyio.CancelScope() as scope:
        await session.run(code, on_output=lambda _: scope.cancel())
    assert scope.cancelled_caught
