"""What of a zygote's processes are templates, and what was copied off them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from py_code_mode.execution.zygote import Zygote


def templates(wall: Zygote) -> list[psutil.Process]:
    """The zygote in a wall, and the one that takes over from it, in this order.

    A copy that was just made has their name still; it is in a pid namespace of its own.
    """
    found = [one for one in _below(wall) if one.name() == "pcm-zygote"]
    namespaces = {one.pid: os.readlink(f"/proc/{one.pid}/ns/pid") for one in found}
    first = min(namespaces)
    return [one for one in found if namespaces[one.pid] == namespaces[first]]


def spares(wall: Zygote) -> list[psutil.Process]:
    """What waits in namespaces of its own for a session."""
    return [one for one in _below(wall) if one.name() == "pcm-spare"]


def _below(wall: Zygote) -> list[psutil.Process]:
    found = psutil.Process(wall.process.pid).children(recursive=True)
    return sorted(found, key=lambda one: one.pid)
