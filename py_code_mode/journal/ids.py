"""Ids of sessions and workspaces: what may be a file's name on every system, and nothing else."""

from __future__ import annotations

import os
import re
import time
from uuid import UUID

from py_code_mode.errors import InvalidName

__all__ = ["MAX_ID_LENGTH", "as_uuid", "check_session_id", "check_workspace_id", "new_session_id"]

#: Of an id, in characters, which are ASCII.
MAX_ID_LENGTH = 128

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Windows opens a device by these names, whatever follows the first dot.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))]
)


def check_session_id(session_id: object) -> str:
    """Return the id if a file can be named by it, on every system.

    Raises:
        InvalidName: a ValueError that says what is wrong.
    """
    return _checked(session_id, "a session")


def check_workspace_id(workspace_id: object) -> str:
    """The same for a workspace, whose id may name a folder."""
    return _checked(workspace_id, "a workspace")


def as_uuid(session_id: object) -> UUID:
    """The id as a UUID, however it is written.

    Raises:
        ValueError: it is none; the message says ``session_id must be a UUID``.
    """
    if isinstance(session_id, UUID):
        return session_id
    try:
        return UUID(str(session_id))
    except ValueError:
        raise ValueError(f"session_id must be a UUID, got {session_id!r}") from None


def new_session_id() -> str:
    """A new id: a UUID of version 7 (RFC 9562), so that ids sort by the time they were made."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76
    return str(UUID(int=value & ~(3 << 62) | 2 << 62))


def _checked(name: object, kind: str) -> str:
    if not isinstance(name, str):
        raise InvalidName(repr(name), kind, "an id is a str")
    reason = _unfit(name)
    if reason:
        raise InvalidName(name, kind, reason)
    return name


def _unfit(name: str) -> str:
    if not name:
        return "it is empty"
    if len(name) > MAX_ID_LENGTH:
        return f"it is longer than {MAX_ID_LENGTH} characters"
    if not _ID.fullmatch(name):
        return "an id has ASCII letters, digits, '.', '_' and '-', and begins with none of '._-'"
    if ".." in name:
        return "it has two dots in a row"
    if name.endswith("."):
        return "it ends with a dot"
    if name.partition(".")[0].lower() in _DEVICES:
        return "Windows has a device of this name"
    return ""
