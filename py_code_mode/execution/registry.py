"""Finds executors by name, among those that are installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from py_code_mode.errors import ConfigError, ExecutorNotFound
from py_code_mode.execution.executor import Executor

GROUP = "py_code_mode.executors"


def executor_names() -> tuple[str, ...]:
    """The names of all installed executors, sorted; none is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


@cache  # reading what every installed package registers takes milliseconds
def executor_class(name: str) -> type[Executor]:
    """Import the executor that is registered under a name.

    Raises:
        ExecutorNotFound: none is.
        ConfigError: what is registered is not an executor, or cannot be imported.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            found: object = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"executor {name!r} ({entry.value})", str(error)) from error
        if isinstance(found, type) and issubclass(found, Executor):
            return found
        raise ConfigError(f"executor {name!r}", f"{entry.value} is not an Executor")
    raise ExecutorNotFound(name, executor_names())
