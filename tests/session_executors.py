"""What several tests of sessions use: executors to be parametrised over, storages, helpers.

Fixtures are taken over by name: ``storage = session_executors.storage``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest

from py_code_mode import FileStorage, InProcessExecutor, SubprocessConfig, SubprocessExecutor
from py_code_mode.journal.loader import Journal, find_journal, read_journal
from py_code_mode.sandbox.probe import probe, sandbox_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


@pytest.fixture(params=[InProcessExecutor, *WORKERS])
def new_executor(request: pytest.FixtureRequest) -> NewExecutor:
    return request.param


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    (tmp_path / "base").mkdir()
    return FileStorage(tmp_path / "base")


def file_of(storage: FileStorage, session: Session) -> Path:
    """Where the journal of a session is now."""
    return find_journal(storage.base_path / "sessions", session.id).path


def journal_of(storage: FileStorage, session: Session) -> Journal:
    return read_journal(file_of(storage, session))


async def value(of: Session, code: str) -> Any:
    """The value of code that must succeed."""
    result = await of.run(code)
    assert result.is_ok, result.failure
    return result.value


async def cancel_at_first_output(session: Session, code: str) -> None:
    """Run code that prints something and does not end; cancel it when it has printed."""
    with anyio.CancelScope() as scope:
        await session.run(code, on_output=lambda _: scope.cancel())
    assert scope.cancelled_caught
