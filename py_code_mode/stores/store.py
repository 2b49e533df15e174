"""The contract of a store: bytes by name, each replaced whole or not at all.

Promises: a reader sees the old content or the new one, never a part, also when a writer is killed;
a name never leads out of the store; threads and processes may share it.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py_code_mode.errors import InvalidName

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["MAX_NAME_BYTES", "Stat", "Store", "check_name"]

#: Of a name in UTF-8; file systems allow 255, the rest is for what stores add.
MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What a store knows about some content without showing it.

    Attributes:
        size: in bytes.
        modified: seconds since the epoch.
        version: differs whenever the content does; may also change while the content stays.
    """

    size: int
    modified: float
    version: str


class Store(ABC):
    """Bytes by name, on one level. Thread-safe; its methods block.

    Every method raises `InvalidName` for a name that `check_name` refuses and `StoreError` where
    the medium fails: then the old content is still there.
    """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content.

        Raises:
            NotStored: there is none.
        """

    @abstractmethod
    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Replace the content, atomically and durably; takes the lock."""

    @abstractmethod
    def delete(self, name: str) -> bool:
        """Remove the content; False if there was none. Takes the lock."""

    @abstractmethod
    def names(self) -> list[str]:
        """All names, sorted."""

    @abstractmethod
    def stat(self, name: str) -> Stat | None:
        """Size, age and version, or None where nothing is stored."""

    def version(self, name: str) -> str | None:
        """As in `stat`: what was read at an equal version is the content still."""
        stat = self.stat(name)
        return stat.version if stat else None

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Keep all other writers out, of every thread and process, to change several names.

        Reentrant within a thread. Readers are not kept out.

        Raises:
            StoreError: another writer held it for too long.
        """

    @abstractmethod
    def location(self, name: str) -> str:
        """Where a person finds the content: a path, where there is one."""


def check_name(name: str) -> str:
    """Return `name` if every store can hold it.

    Raises:
        InvalidName: it is empty, longer than `MAX_NAME_BYTES`, hidden, has a separator or a
            control character, or is not in Unicode's composed form (NFC).
    """
    reason = _unfit(name)
    if reason:
        raise InvalidName(name, "stored data", reason)
    return name


def _unfit(name: object) -> str:
    if not isinstance(name, str):
        return "a name is a str"
    if not name:
        return "it is empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if name.startswith("."):
        return "it begins with a dot"
    if "/" in name or "\\" in name:
        return "it has a path separator"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "it has a control character"
    if not unicodedata.is_normalized("NFC", name):
        return "it is not in Unicode's composed form (NFC)"
    return ""
