"""For writers of plug-ins, and for people who test code that uses a session.

- `ExecutorContract`: what every executor has to do; inherit it in a test class.
- `StoreContract`: the same for stores.
- `SessionStoreContract`: the same for stores of sessions.
- `FakeExecutor`: an executor with scripted answers, for tests of an agent that run no code.

The contracts need pytest; `FakeExecutor` does not. Each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from py_code_mode.guest.imports import lazily

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

_imported, __dir__ = lazily(__name__, _HOME)


def __getattr__(name: str) -> object:
    if name in _HOME and name.endswith("Contract"):
        import pytest

        # so that a plug-in's failing test shows the values, as pytest does for test files
        pytest.register_assert_rewrite(_HOME[name])
    return _imported(name)
