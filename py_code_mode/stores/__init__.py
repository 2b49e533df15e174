"""Where bytes are kept: the contract, and the stores that keep it."""

from py_code_mode.stores.file import FileStore
from py_code_mode.stores.memory import MemoryStore
from py_code_mode.stores.store import Stat, Store

__all__ = ["FileStore", "MemoryStore", "Stat", "Store"]
