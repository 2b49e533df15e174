"""The one place where a command starts an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def complete(function: Callable[[Unpack[Arguments]], Awaitable[T]], *arguments: *Arguments) -> T:
    """What a coroutine function gives; Ctrl-C cancels it and is then a KeyboardInterrupt."""
    return anyio.run(function, *arguments)
