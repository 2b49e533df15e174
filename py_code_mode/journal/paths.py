"""Where journals are: the folder, and the two names of a session's file."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from py_code_mode.errors import InvalidName
from py_code_mode.journal.ids import as_uuid, check_session_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

__all__ = [
    "BLOB_FOLDER",
    "HOME_VARIABLE",
    "LAYOUT_FILE",
    "SESSION_FILE_SUFFIX",
    "SESSION_PARTIAL_SUFFIX",
    "JournalFile",
    "journal_files",
    "session_file",
    "session_partial_file",
    "sessions_dir",
]

#: Of a closed session's journal.
SESSION_FILE_SUFFIX = ".jsonl"
#: Of a journal that is being written, or was when its writer died.
SESSION_PARTIAL_SUFFIX = ".jsonl.__partial__"
#: Its folder `sessions` is where sessions are on record, if it is set.
HOME_VARIABLE = "PY_CODE_MODE_HOME"
#: In the sessions folder; they begin with a dot, so that no session's id can collide.
BLOB_FOLDER = ".blobs"
LAYOUT_FILE = ".layout.json"


def sessions_dir() -> Path:
    """Where sessions are on record; it may not exist.

    ``$PY_CODE_MODE_HOME/sessions``, else ``.code-mode/sessions`` here, looked up at each call.
    """
    return _sessions_of(os.environ.get(HOME_VARIABLE))


@functools.lru_cache(8)
def _sessions_of(home: str | None) -> Path:
    return Path(home).expanduser() / "sessions" if home else Path(".code-mode") / "sessions"


def session_file(session_id: UUID | str) -> Path:
    """Where a closed session's journal is.

    Raises:
        ValueError: the id is not a UUID.
    """
    return sessions_dir() / f"{as_uuid(session_id)}{SESSION_FILE_SUFFIX}"


def session_partial_file(session_id: UUID | str) -> Path:
    """Where the journal of a session is that is not closed.

    Raises:
        ValueError: the id is not a UUID.
    """
    return sessions_dir() / f"{as_uuid(session_id)}{SESSION_PARTIAL_SUFFIX}"


class JournalFile(NamedTuple):
    """A journal in a folder, by its name alone; the trailer inside has the last word."""

    session_id: str
    path: Path
    is_closed: bool


def journal_files(folder: Path) -> Iterator[JournalFile]:
    """All journals of a folder, in no order; both files where a session has two.

    Links, folders and pipes are none, and neither is what is named by other rules than ours.
    A folder that is missing has none. O(1) in memory.
    """
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            found = _parse(entry.name)
            if found is not None and entry.is_file(follow_symlinks=False):
                yield JournalFile(found[0], folder / entry.name, found[1])


def _parse(name: str) -> tuple[str, bool] | None:
    for suffix, is_closed in ((SESSION_FILE_SUFFIX, True), (SESSION_PARTIAL_SUFFIX, False)):
        if name.endswith(suffix):
            try:
                return check_session_id(name.removesuffix(suffix)), is_closed
            except InvalidName:
                return None
    return None
