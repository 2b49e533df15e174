"""Sealed memory: what its sender could change or fake is refused; what is taken is private."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.guest import segments
from py_code_mode.guest.segments import (
    COPIED_SIZE,
    MEMFD_THRESHOLD,
    Memfd,
    Pieces,
    Sealed,
    SegmentError,
    add_seals,
    advance,
    aligned,
    map_sealed,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from py_code_mode.guest.segments import Buffer

linux = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux only")
pytestmark = linux
SIZES = [1, 4096, COPIED_SIZE, COPIED_SIZE + 1, 3 * COPIED_SIZE + 77]


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * 4096)
    yield fd
    os.close(fd)


def open_files() -> int:
    gc.collect()  # what earlier tests have left to it is not ours
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:code-mode")


def sealed(body: bytes) -> Sealed:
    (one,) = seal([body], 1)
    if isinstance(one, Sealed):
        return one
    fd = os.memfd_create("code-mode", os.MFD_ALLOW_SEALING)
    os.write(fd, body)
    add_seals(fd, 0xF)
    return Sealed(Memfd(fd, len(body)), 0, len(body))


@pytest.mark.parametrize("size", SIZES)
def test_bytes_arrive_and_are_private(size: int) -> None:
    body = random.Random(size).randbytes(size)
    one = sealed(body)
    first, second = (memoryview(map_sealed(one.fd, size)) for _ in range(2))
    assert first == second == body
    first[0] ^= 255
    first[-1] ^= 255
    assert second == body
    assert os.pread(one.fd, size, 0) == body


@pytest.mark.parametrize("size", SIZES)
def test_neither_a_descriptor_nor_a_mapping_is_kept(size: int) -> None:
    before = open_files(), mappings()
    one = sealed(b"x" * size)
    held = [map_sealed(one.fd, size) for _ in range(50)]
    one.memory.close()
    assert open_files() == before[0]
    assert bytes(held[-1]) == b"x" * size
    part = memoryview(held[0])[size - 1 :]
    del held
    gc.collect()
    assert mappings() - before[1] == (size > COPIED_SIZE)
    assert bytes(part) == b"x"
    del part
    assert (open_files(), mappings()) == before


@pytest.mark.parametrize("seals", [0, 0x2, 0x4, 0x8, 0x2 | 0x4, 0x4 | 0x8, 0x2 | 0x8, 0x16])
def test_a_memfd_that_its_sender_can_still_change_is_refused(memfd: int, seals: int) -> None:
    add_seals(memfd, seals)
    with pytest.raises(SegmentError, match="not sealed"):
        map_sealed(memfd, 4096)


@pytest.mark.parametrize("size", [0, 4095, 4097, 1 << 40, (1 << 63) - 1])
def test_a_memfd_of_another_size_is_refused(memfd: int, size: int) -> None:
    add_seals(memfd, 0xE)
    with pytest.raises(SegmentError, match="4096 bytes"):
        map_sealed(memfd, size)


@pytest.mark.parametrize("size", [1, 4096, 1 << 20, 1 << 40])
@pytest.mark.parametrize("written", [0, 1])
def test_a_memfd_with_holes_is_refused(size: int, written: int) -> None:
    """It costs its sender nothing, and whoever reads it all of its size."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size + 4096)
        os.pwrite(fd, b"x" * 4096 * written, 0)
        add_seals(fd, 0xE)
        with pytest.raises(SegmentError, match="holes"):
            map_sealed(fd, size + 4096)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["/", "/dev/null", "/dev/zero", __file__])
def test_a_descriptor_that_is_no_memfd_is_refused(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(SegmentError, match="not a memfd"):
        map_sealed(fd, 0)
    os.close(fd)


def test_a_memfd_of_huge_pages_is_refused() -> None:
    try:
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    try:
        add_seals(fd, 0xE)
        with pytest.raises(SegmentError, match="plain pages"):
            map_sealed(fd, 0)
    finally:
        os.close(fd)


def test_an_empty_memfd_is_an_empty_segment() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    add_seals(fd, 0xE)
    assert map_sealed(fd, 0) == b""
    os.close(fd)


def test_sealed_memory_can_be_changed_by_nobody() -> None:
    one = sealed(b"x" * MEMFD_THRESHOLD)
    with pytest.raises(PermissionError):
        os.write(one.fd, b"y")
    with pytest.raises(PermissionError):
        os.ftruncate(one.fd, 1)
    with pytest.raises(PermissionError):
        os.ftruncate(one.fd, 1 << 30)
    with pytest.raises(PermissionError):
        fcntl.fcntl(one.fd, 1033, 0)


@pytest.fixture
def page_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Have a page of every memfd held by a pipe, which gives it up when it is read."""
    reader, writer = os.pipe()
    write = os.writev

    def write_and_hold(fd: int, buffers: list[bytes]) -> int:
        written = write(fd, buffers)
        os.splice(fd, writer, 4096, offset_src=0)
        return written

    monkeypatch.setattr(segments.os, "writev", write_and_hold)
    yield reader
    os.close(reader)
    os.close(writer)


def test_sealing_waits_for_whoever_still_holds_a_page(
    page_in_a_pipe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel holds pages for a moment, too: a put failed on a busy machine."""
    refusals: list[int | None] = []
    control = fcntl.fcntl

    def control_and_let_go(fd: int, command: int, flags: int) -> int:
        try:
            return control(fd, command, flags)
        except OSError as error:
            if not refusals:
                os.read(page_in_a_pipe, 4096)
            refusals.append(error.errno)
            raise

    monkeypatch.setattr(segments.fcntl, "fcntl", control_and_let_go)
    (one,) = seal([bytes(MEMFD_THRESHOLD)], 1)
    assert set(refusals) == {errno.EBUSY}  # once, if nobody else holds a page
    assert isinstance(one, Sealed)
    one.memory.close()


def test_memory_that_somebody_does_not_let_go_of_is_not_sent(
    page_in_a_pipe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_SEAL_TRIES", 2)
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        seal([bytes(MEMFD_THRESHOLD)], 1)


NO_ROOM = """
import resource, sys
from py_code_mode.guest.segments import map_sealed, seal
from py_code_mode.guest.wire import FrameReader, pack
(one,) = seal([bytes(64 << 20)], 1)
frames = [pack(b"{}", [one]), pack(b"{}", [bytes(1 << 20)])]
used = [int(line.split()[1]) << 10 for line in open("/proc/self/status") if "VmData" in line][0]
resource.setrlimit(resource.RLIMIT_DATA, (used + (16 << 20),) * 2)
for buffers, fds in frames:
    (frame,) = FrameReader().feed(b"".join(map(bytes, buffers)), fds)
    print(type(frame.segments[0]).__name__, end=" ")
"""


def test_without_memory_only_the_segment_is_lost() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", NO_ROOM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.stdout.split() == ["Unavailable", "bytearray"], finished.stderr


# -- sending


@given(st.lists(st.binary(max_size=9000), max_size=12))
def test_pieces_are_what_was_written(parts: list[bytes]) -> None:
    pieces = Pieces()
    for part in parts:
        assert pieces.write(part) == len(part)
    assert bytes(pieces) == b"".join(parts)
    assert pieces.nbytes == pieces.tell() == sum(map(len, parts))
    assert b"".join(bytes(part) for part in pieces.buffers) == b"".join(parts)


def test_pieces_of_some_size_are_not_copied() -> None:
    body = bytearray(b"x" * 100_000)
    pieces = Pieces()
    pieces.write(b"head")
    pieces.write(body)
    body[0] = 0
    assert bytes(pieces)[4] == 0


@pytest.mark.parametrize("count", [1, 3, 8, 9, 100])
@pytest.mark.parametrize("most", [1, 2, 8])
def test_as_many_memfds_as_allowed_hold_everything_in_order(count: int, most: int) -> None:
    before = open_files()
    bodies = [bytes([n]) * (MEMFD_THRESHOLD + n) for n in range(count)]
    done = seal(bodies, most)
    memories: dict[int, Memfd] = {}
    one: Buffer | Sealed | None = None
    end = 0
    for body, one in zip(bodies, done, strict=True):
        assert isinstance(one, Sealed)
        assert one.offset in (0, aligned(end))
        end = one.offset + one.nbytes
        assert os.pread(one.fd, one.nbytes, one.offset) == body
        memories[id(one.memory)] = one.memory
        assert one.memory.size >= end
    assert 1 <= len(memories) <= min(most, count)
    assert len(memories) == count or count > most
    done.clear()
    memories.clear()
    one = None
    assert open_files() == before


def test_pieces_go_into_a_memfd_one_by_one() -> None:
    pieces = Pieces()
    parts = [os.urandom(random.Random(n).randrange(1, 20_000)) for n in range(3000)]
    for part in parts:
        pieces.write(part)
    (one,) = seal([pieces], 1)
    assert isinstance(one, Sealed)
    equal = os.pread(one.fd, one.nbytes, 0) == b"".join(parts)
    assert equal


def test_without_memfds_segments_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "HAS_MEMFD", False)
    pieces = Pieces()
    pieces.write(b"x" * MEMFD_THRESHOLD)
    assert seal([b"a", pieces], 8) == [b"a", b"x" * MEMFD_THRESHOLD]


def test_any_thread_may_copy_or_close_a_descriptor() -> None:
    """A number that was closed may be another file's at once: never is that one copied."""
    before = open_files()
    for _ in range(50):
        copy_while_it_is_closed()
    assert open_files() == before


def copy_while_it_is_closed() -> None:
    one = sealed(b"x" * MEMFD_THRESHOLD)
    number = os.fstat(one.fd).st_ino
    wrong: list[int] = []
    start = threading.Barrier(3)

    def copy() -> None:
        start.wait()
        for _ in range(50):
            try:
                fd = one.memory.copy()
            except SegmentError:
                return
            if os.fstat(fd).st_ino != number:
                wrong.append(fd)
            os.close(fd)

    threads = [threading.Thread(target=copy) for _ in range(2)]
    for thread in threads:
        thread.start()
    start.wait()
    one.memory.close()
    others = [os.memfd_create("other") for _ in range(5)]
    for thread in threads:
        thread.join()
    for fd in others:
        os.close(fd)
    assert not wrong


@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(0, 200))
def test_advance_drops_what_was_sent(parts: list[bytes], sent: int) -> None:
    whole = b"".join(parts)
    sent = min(sent, len(whole))
    assert b"".join(bytes(part) for part in advance(list(parts), sent)) == whole[sent:]
