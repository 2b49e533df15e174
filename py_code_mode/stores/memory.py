"""A store that lasts as long as the process."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from py_code_mode.errors import NotStored
from py_code_mode.stores.store import Stat, Store, check_name

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """Bytes by name, in this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._contents: dict[str, tuple[bytes, Stat]] = {}
        self._writes = 0

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._contents)} names>"

    def read(self, name: str) -> bytes:
        found = self._contents.get(check_name(name))
        if found is None:
            raise NotStored(name)
        return found[0]

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        check_name(name)
        copy = bytes(data)  # the caller may go on to change a bytearray
        with self._lock:
            self._writes += 1
            stat = Stat(size=len(copy), modified=time.time(), version=str(self._writes))
            self._contents[name] = (copy, stat)

    def delete(self, name: str) -> bool:
        check_name(name)
        with self._lock:
            return self._contents.pop(name, None) is not None

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._contents)

    def stat(self, name: str) -> Stat | None:
        found = self._contents.get(check_name(name))
        return found[1] if found else None

    @contextmanager
    def lock(self) -> Generator[None, None, None]:
        with self._lock:
            yield

    def location(self, name: str) -> str:
        return check_name(name)
