"""What every store has to do: inherit `StoreContract` in a test class and say how to make one.

```python
class TestMyStore(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return MyStore(folder)
```
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import InvalidName, NotStored
from py_code_mode.stores.store import MAX_NAME_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.stores import Store

__all__ = ["UNFIT_NAMES", "StoreContract"]

#: Names that no store takes.
UNFIT_NAMES = (
    "",
    ".",
    "..",
    ".hidden",
    "../outside",
    "/etc/passwd",
    "folder/file",
    "folder\\file",
    "nul\0byte",
    "line\nbreak",
    "bell\x07",
    "\x85next",
    "x" * (MAX_NAME_BYTES + 1),
    "é" * (MAX_NAME_BYTES // 2 + 1),
    "cafe\u0301",
    "lone\ud800",
)

_TIMEOUT = 30.0  # seconds for everything that waits


class StoreContract(ABC):
    """Behaviour that callers of a `Store` rely on."""

    @abstractmethod
    def make_store(self, folder: Path) -> Store:
        """An empty store; `folder` exists and is the test's own, for stores that need one."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return self.make_store(tmp_path)

    def test_new_store_is_empty(self, store: Store) -> None:
        assert store.names() == []
        assert store.stat("a") is None
        assert store.version("a") is None
        assert store.delete("a") is False
        with pytest.raises(NotStored):
            store.read("a")

    def test_not_stored_is_a_key_error_and_an_os_error(self, store: Store) -> None:
        with pytest.raises(KeyError):
            store.read("a")
        with pytest.raises(OSError, match="nothing is stored"):
            store.read("a")

    @pytest.mark.parametrize(
        "data", [b"", b"text\r\n", bytes(range(256)), b"x" * 3_000_000], ids=len
    )
    def test_content_comes_back(self, store: Store, data: bytes) -> None:
        store.write("a", data)
        assert store.read("a") == data
        stat = store.stat("a")
        assert stat is not None
        assert stat.size == len(data)

    def test_write_replaces_and_delete_removes(self, store: Store) -> None:
        store.write("a", b"a long content")
        store.write("a", b"short")
        assert store.read("a") == b"short"
        assert store.delete("a") is True
        assert store.delete("a") is False
        assert store.stat("a") is None
        assert store.names() == []

    @pytest.mark.parametrize(
        "name", ["a", "a.b.c", "with space", "~x", "-x", "日本語.txt", "x" * MAX_NAME_BYTES]
    )
    def test_name_comes_back(self, store: Store, name: str) -> None:
        store.write(name, b"1")
        assert store.names() == [name]
        assert store.location(name).endswith(name)

    def test_names_are_sorted(self, store: Store) -> None:
        for name in ("b", "a", "é", "C"):
            store.write(name, b"")
        assert store.names() == ["C", "a", "b", "é"]

    @pytest.mark.parametrize("name", UNFIT_NAMES, ids=ascii)
    def test_unfit_name_is_refused_by_every_method(self, store: Store, name: str) -> None:
        store.write("kept", b"1")
        for method in (store.read, store.delete, store.stat, store.version, store.location):
            with pytest.raises(InvalidName):
                method(name)
        with pytest.raises(InvalidName):
            store.write(name, b"2")
        assert store.names() == ["kept"]

    def test_version_changes_whenever_content_does(self, store: Store) -> None:
        seen: dict[str | None, bytes] = {}
        for content in (b"1", b"2", b"1", b"3", b"2"):
            store.write("a", content)
            assert seen.setdefault(store.version("a"), content) == content

    def test_changed_buffer_does_not_change_what_was_written(self, store: Store) -> None:
        buffer = bytearray(b"before")
        store.write("a", buffer)
        buffer[:] = b"after!"
        assert store.read("a") == b"before"

    def test_lock_is_reentrant_and_released(self, store: Store) -> None:
        with store.lock(), store.lock():
            store.write("a", b"1")
        with pytest.raises(ZeroDivisionError), store.lock():
            raise ZeroDivisionError
        with ThreadPoolExecutor(1) as pool:
            pool.submit(store.write, "a", b"2").result(_TIMEOUT)
        assert store.read("a") == b"2"

    def test_lock_keeps_other_writers_out_and_lets_readers_in(self, store: Store) -> None:
        store.write("a", b"old")
        started = threading.Event()

        def write() -> None:
            started.set()
            store.write("a", b"theirs")

        with ThreadPoolExecutor(2) as pool:
            with store.lock():
                writing = pool.submit(write)
                assert started.wait(_TIMEOUT)
                store.write("a", b"ours")
                assert pool.submit(store.read, "a").result(_TIMEOUT) == b"ours"
                assert not writing.done()
            writing.result(_TIMEOUT)
        assert store.read("a") == b"theirs"

    def test_threads_counting_under_the_lock_lose_nothing(self, store: Store) -> None:
        store.write("count", b"0")

        def count() -> None:
            for _ in range(25):
                with store.lock():
                    store.write("count", b"%d" % (int(store.read("count")) + 1))

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(count) for _ in range(4)]:
                done.result(_TIMEOUT)
        assert store.read("count") == b"100"

    def test_readers_see_whole_contents_only(self, store: Store) -> None:
        contents = [letter * 200_000 for letter in (b"a", b"b")]
        store.write("a", contents[0])
        over = threading.Event()

        def read() -> int:
            count = 0
            while not over.is_set() or not count:
                assert store.read("a") in contents
                count += 1
            return count

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            try:
                for turn in range(40):
                    store.write("a", contents[turn % 2])
            finally:
                over.set()
            assert all(reader.result(_TIMEOUT) for reader in readers)
