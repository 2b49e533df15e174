"""MemoryStore keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from py_code_mode.stores import MemoryStore, Store
from py_code_mode.testing.stores import StoreContract

if TYPE_CHECKING:
    from pathlib import Path


class TestMemoryStore(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return MemoryStore()
