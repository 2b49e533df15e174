"""Blobs: large values lie beside the journal, by content, and are never swept while needed."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import CorruptRecordError, LogFull, StoreError
from py_code_mode.journal.blobs import BlobMissing, BlobStore, refs_in
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.loader import find_journal, read_journal
from py_code_mode.journal.records import MAX_INLINE, Call, Run
from py_code_mode.journal.states import named_blobs

from ..faulty_files import FaultyFiles, HalfWritten

if TYPE_CHECKING:
    from pathlib import Path

LARGE = "x" * (MAX_INLINE + 1)


def files_below(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def test_content_is_stored_once_by_its_digest(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    first = blobs.put(b"abc", "text/plain", snapshot={"length": 3})
    assert first == blobs.put(bytearray(b"abc"), "text/plain", snapshot={"length": 3})
    assert first["size"] == 3
    assert first["media_type"] == "text/plain"
    digest = first["$blob"].removeprefix("sha256:")
    assert files_below(tmp_path / ".blobs") == [digest[2:]]
    assert (tmp_path / ".blobs" / digest[:2] / digest[2:]).stat().st_mode & 0o777 == 0o600
    assert blobs.get(first) == blobs.get(digest) == b"abc"
    assert blobs.has(first)
    assert list(blobs.digests()) == [digest]


def test_changed_blob_is_noticed(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    reference = blobs.put(b"abc")
    digest = reference["$blob"].removeprefix("sha256:")
    (tmp_path / ".blobs" / digest[:2] / digest[2:]).write_bytes(b"abd")
    with pytest.raises(CorruptRecordError, match="not what was written"):
        blobs.get(reference)


@pytest.mark.parametrize(
    "reference", ["", "../../etc/passwd", "sha256:../x", {"$blob": 7}, {}, "A" * 64]
)
def test_reference_that_names_no_blob_is_refused(tmp_path: Path, reference: Any) -> None:
    with pytest.raises(CorruptRecordError, match="names no blob"):
        BlobStore(tmp_path).get(reference)


def test_large_values_of_a_record_become_blobs(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a") as journal:
        journal.append(
            Call(call_id="c", tool_name="t.m", run_id=1, arguments={"q": LARGE}, result=[1])
        )
        journal.append(Run(run_id=1, status="ok", value=LARGE, stdout="small"))
        journal.append(Run(run_id=2, status="ok", value=b"\xff" * MAX_INLINE))
    assert journal.size < 5000
    found = read_journal(tmp_path / "a.jsonl")
    call = found.calls[0]
    assert call.result == [1]
    assert call.arguments["snapshot"] == {"type": "dict", "length": 1}
    assert found.expand(call.arguments) == {"q": LARGE}
    assert found.expand(found.run(1).value) == LARGE
    assert "$bytes" in found.expand(found.run(2).value)


def test_missing_blob_leaves_the_session_readable(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a") as journal:
        journal.append(Run(run_id=1, status="ok", value=LARGE))
    found = read_journal(tmp_path / "a.jsonl")
    digest = next(refs_in(found.run(1).value))
    (tmp_path / ".blobs" / digest[:2] / digest[2:]).unlink()
    found = read_journal(tmp_path / "a.jsonl")
    assert digest[:12] in found.expand([found.run(1).value])[0]["$repr"]
    with pytest.raises(BlobMissing):
        found.blobs.get(digest)


def test_sweep_removes_what_no_journal_names(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "a") as journal:
        journal.append(Run(run_id=1, status="ok", value=LARGE))
        blobs = journal.blobs
    lost = blobs.put(b"nobody")
    folder = tmp_path / ".blobs" / lost["$blob"][7:9]
    (folder / ".new-left").write_bytes(b"of a writer that was killed")
    os.utime(folder / ".new-left", (1, 1))

    def referenced() -> list[str]:
        return list(named_blobs(tmp_path))

    assert blobs.sweep(referenced) == []  # it is new
    assert not (folder / ".new-left").exists()
    os.utime(folder / lost["$blob"][9:], (1, 1))
    assert blobs.sweep(referenced) == [lost["$blob"][7:]]
    found = read_journal(find_journal(tmp_path, "a").path)
    assert found.expand(found.run(1).value) == LARGE


def test_sweep_meanwhile_never_takes_what_an_append_names(tmp_path: Path) -> None:
    """Without any grace: the order of lock, mark and sweep alone has to do."""
    journal = SessionJournal.create(tmp_path, "a", durability="process")
    is_over = threading.Event()
    swept: list[str] = []

    def sweep() -> None:
        while not is_over.is_set():
            swept.extend(journal.blobs.sweep(lambda: list(named_blobs(tmp_path)), grace=0))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    for n in range(60):
        journal.blobs.put(b"%d" % n)  # for the sweep
        journal.append(Run(run_id=n, status="ok", value=f"{n % 7}" + LARGE))
    is_over.set()
    sweeper.join(30)
    journal.close()
    found = read_journal(tmp_path / "a.jsonl")
    for n in range(60):
        assert found.expand(found.run(n).value) == f"{n % 7}" + LARGE
    assert swept


def test_full_disk_leaves_neither_blob_nor_debris(tmp_path: Path) -> None:
    files = HalfWritten(10)
    blobs = BlobStore(tmp_path, files=files)
    blobs.put(b"first")
    files.is_full = True
    with pytest.raises(LogFull):
        blobs.put(b"second" * 100)
    assert len(files_below(tmp_path / ".blobs")) == 1


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_failing_disk_leaves_neither_blob_nor_debris(tmp_path: Path, call: Any) -> None:
    files = FaultyFiles()
    blobs = BlobStore(tmp_path, files=files)
    blobs.put(b"first")
    files.fail_next(call, errno.EIO, times=3)
    with pytest.raises(StoreError):
        blobs.put(b"second")
    files.heal()
    assert len(files_below(tmp_path / ".blobs")) == 1
    assert blobs.get(blobs.put(b"second")) == b"second"
