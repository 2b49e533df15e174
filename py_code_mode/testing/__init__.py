"""For writers of plug-ins, and for people who test code that uses a session.

- `ExecutorContract`: what every executor has to do; inherit it in a test class.
- `StoreContract`: the same for stores.
- `SessionStoreContract`: the same for stores of sessions.
- `FakeExecutor`: an executor with scripted answers, for tests of an agent that run no code.

The contracts need pytest; `FakeExecutor` does not. Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py_code_mode.testing.executors import ExecutorContract
    from py_code_mode.testing.fake import FakeExecutor
    from py_code_mode.testing.session_stores import SessionStoreContract
    from py_code_mode.testing.stores import StoreContract

_HOME = {
    "ExecutorContract": "py_code_mode.testing.executors",
    "FakeExecutor": "py_code_mode.testing.fake",
    "SessionStoreContract": "py_code_mode.testing.session_stores",
    "StoreContract": "py_code_mode.testing.stores",
}

__all__ = ["ExecutorContract", "FakeExecutor", "SessionStoreContract", "StoreContract"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.endswith("Contract"):
        import pytest

        # so that a plug-in's failing test shows the values, as pytest does for test files
        pytest.register_assert_rewrite(home)
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
