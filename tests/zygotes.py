"""What stands around a session: its executor, its sandbox, its zygote, and their processes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from py_code_mode import Session
    from py_code_mode.execution.zygote import Zygote


def executor_of(session: Session) -> Any:
    """What runs its code."""
    return vars(session)["_executor"]


def sandbox_of(session: Session) -> Any:
    """What its worker is in, once it has started."""
    executor: object = executor_of(session)
    return vars(executor)["_sandbox"]


def wall_of(session: Session) -> Zygote:
    """What its sandbox was copied from."""
    return sandbox_of(session).zygote


def templates(wall: Zygote) -> list[psutil.Process]:
    """The zygote in a wall, and the one that takes over from it, in this order.

    A copy that was just made has their name still; it is in a pid namespace of its own.
    """
    namespaces: dict[psutil.Process, str] = {}
    for one in named("pcm-zygote", below=wall.process.pid):
        with contextlib.suppress(OSError):  # it has just ended
            namespaces[one] = os.readlink(f"/proc/{one.pid}/ns/pid")
    # not by their numbers, which begin anew when there are no more
    found = sorted(namespaces, key=lambda one: one.create_time())
    return [one for one in found if namespaces[one] == namespaces[found[0]]]


def spares(wall: Zygote) -> list[psutil.Process]:
    """What waits in namespaces of its own for a session."""
    return named("pcm-spare", below=wall.process.pid)


def named(name: str, *, below: int) -> list[psutil.Process]:
    """Processes of a name that a process has started, or those that it has."""
    found: list[psutil.Process] = []
    for one in psutil.Process(below).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if one.name() == name:
                found.append(one)
    return found
