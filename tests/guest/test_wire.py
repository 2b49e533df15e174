"""Frames: whole ones come out as they went in, whatever the pieces; nothing else comes out."""

from __future__ import annotations

import array
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py_code_mode.guest import wire
from py_code_mode.guest.segments import MEMFD_THRESHOLD as LARGE
from py_code_mode.guest.segments import Sealed, Unavailable, add_seals, advance, seal

if TYPE_CHECKING:
    from collections.abc import Iterator

BY_FD = 1 << 63
BEHIND = 1 << 61
linux = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux only")


def data_of(buffers: list[wire.Buffer]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def head(header: int, *sizes: int, count: int | None = None) -> bytes:
    return struct.pack(f"<II{len(sizes)}Q", header, len(sizes) if count is None else count, *sizes)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * 4096)
    yield fd
    os.close(fd)


frames = st.lists(
    st.tuples(st.binary(max_size=200), st.lists(st.binary(max_size=50), max_size=5)),
    min_size=1,
    max_size=5,
)


@given(frames, st.lists(st.integers(1, 64), min_size=1))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(
    sent: list[tuple[bytes, list[bytes]]], pieces: list[int]
) -> None:
    data = b"".join(data_of(wire.pack(header, segments)[0]) for header, segments in sent)
    reader = wire.FrameReader()
    got: list[wire.Frame] = []
    at = index = 0
    while at < len(data):
        size = pieces[index % len(pieces)]
        got += reader.feed(data[at : at + size])
        at, index = at + size, index + 1
    assert [(frame.header, [bytes(part) for part in frame.segments]) for frame in got] == sent


def test_frames_come_out_fed_byte_by_byte() -> None:
    buffers, fds = wire.pack(b'{"t":1}', [b"one", b"", b"three"])
    assert fds == []
    reader = wire.FrameReader()
    got = [frame for byte in data_of(buffers) for frame in reader.feed(bytes([byte]))]
    assert len(got) == 1
    assert got[0].header == b'{"t":1}'
    assert [bytes(part) for part in got[0].segments] == [b"one", b"", b"three"]


def test_inline_segments_can_be_written_to() -> None:
    buffers, _ = wire.pack(b"{}", [b"abc"])
    (frame,) = wire.FrameReader().feed(data_of(buffers))
    memoryview(frame.segments[0])[0] = 65
    assert bytes(frame.segments[0]) == b"Abc"


@linux
@given(st.lists(st.sampled_from([0, 1, 50, LARGE - 1, LARGE, LARGE + 4097]), max_size=12))
@settings(max_examples=25)
def test_large_segments_travel_as_memfds(sizes: list[int]) -> None:
    segments = [bytes([index]) * size for index, size in enumerate(sizes)]
    before = open_files()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        buffers, fds = wire.pack(b"{}", segments)
        large = [size for size in sizes if size >= LARGE]
        assert (
            len(fds) == len(large) if len(large) <= wire.MAX_FDS else 0 < len(fds) <= wire.MAX_FDS
        )
        reader = wire.FrameReader()
        got: list[wire.Frame] = []
        passing = fds
        while buffers:
            try:
                buffers = advance(buffers, wire.send_some(ours, buffers, passing))
                passing = []
            except BlockingIOError:
                got += reader.feed(*wire.receive(theirs))
        for fd in fds:
            os.close(fd)
        while not got:
            got += reader.feed(*wire.receive(theirs))
        (frame,) = got
        equal = [bytes(part) for part in frame.segments] == segments
        assert equal  # not the comparison itself: its explanation would be megabytes
        del frame, got
    assert open_files() == before


@linux
def test_writing_to_a_mapped_segment_alters_the_readers_copy_only() -> None:
    buffers, fds = wire.pack(b"{}", [b"a" * LARGE])
    copy = os.dup(fds[0])
    (frame,) = wire.FrameReader().feed(data_of(buffers), fds)
    memoryview(frame.segments[0])[0] = 66
    assert os.pread(copy, 1, 0) == b"a"
    os.close(copy)


@linux
def test_received_descriptors_are_close_on_exec() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
        data, fds = wire.receive(theirs)
        assert data == b"x"
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
        for fd in fds:
            os.close(fd)


@linux
def test_more_descriptors_than_a_frame_may_have_are_closed_and_refused() -> None:
    before = open_files()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rights = array.array("i", [0] * (wire.MAX_FDS + 1))
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(wire.WireError, match="more than 8 came at once"):
            wire.receive(theirs)
    assert open_files() == before


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(wire.MAX_HEADER + 1), id="a header that is too large"),
        pytest.param(head(2**32 - 1), id="a header of 4 GB"),
        pytest.param(head(2, count=wire.MAX_SEGMENTS + 1), id="too many segments"),
        pytest.param(head(2, count=2**32 - 1), id="4 G segments"),
        pytest.param(head(2, wire.MAX_INLINE + 1), id="a segment that is too large"),
        pytest.param(head(2, *[wire.MAX_INLINE // 2 + 1] * 2), id="segments that add up"),
        pytest.param(head(2, *[(1 << 63) - 1] * 4), id="segments that overflow 64 bits"),
        pytest.param(head(2, BY_FD | 1) + b"{}", id="a descriptor that did not come"),
        pytest.param(head(2, BY_FD | BEHIND | 1) + b"{}", id="behind a segment that is not there"),
        pytest.param(head(2, BY_FD | 1 << 62 | 1) + b"{}", id="a word with a bit of no meaning"),
        pytest.param(head(2, BEHIND | 1) + b"{}", id="behind nothing, and not in a memfd"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
    ],
)
def test_lengths_are_refused_before_they_are_believed(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.FrameReader().feed(data)


@given(st.binary(max_size=300))
def test_noise_gives_frames_or_a_wire_error_and_nothing_else(noise: bytes) -> None:
    reader = wire.FrameReader()
    try:
        reader.feed(noise)
    except wire.WireError:
        pass  # as it should be
    reader.close()


def test_what_may_not_be_sent_is_refused_by_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_HEADER", 10)
    monkeypatch.setattr(wire, "MAX_INLINE", 10)
    with pytest.raises(wire.WireError, match="header of 11 bytes"):
        wire.pack(b"x" * 11)
    with pytest.raises(wire.WireError, match="12 bytes of segments"):
        wire.pack(b"x", [b"123456"] * 2)
    with pytest.raises(wire.WireError, match=f"{wire.MAX_SEGMENTS + 1} segments"):
        wire.pack(b"x", [b""] * (wire.MAX_SEGMENTS + 1))


@linux
def test_a_refused_frame_leaves_no_memfd_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_INLINE", 10)
    before = open_files()
    with pytest.raises(wire.WireError):
        wire.pack(b"x", [b"x" * LARGE, b"x" * 11])
    assert open_files() == before


@linux
def test_descriptors_that_no_frame_speaks_of_are_refused_and_closed() -> None:
    before = open_files()
    reader = wire.FrameReader()
    reader.feed(head(100), [os.dup(0) for _ in range(wire.MAX_FDS)])
    with pytest.raises(wire.WireError, match="no frame speaks of"):
        reader.feed(b"x", [os.dup(0)])
    reader.close()
    assert open_files() == before


@linux
def test_a_bad_descriptor_among_good_ones_leaks_none(memfd: int) -> None:
    add_seals(memfd, 0xE)
    before = open_files()
    reader = wire.FrameReader()
    fds = [os.dup(memfd), os.dup(0), os.dup(memfd)]
    with pytest.raises(wire.WireError):
        reader.feed(head(2, *[BY_FD | 4096] * 3) + b"{}", fds)
    reader.close()
    assert open_files() == before


# -- segments that share a memfd, and those sealed before


def received(buffers: list[wire.Buffer], fds: list[int]) -> wire.Frame:
    (frame,) = wire.FrameReader().feed(data_of(buffers), fds)
    return frame


@linux
@pytest.mark.parametrize(
    "sizes",
    [
        [LARGE + n for n in range(100)],
        [LARGE, 10, LARGE + 3] * 5 + [0, 1],
        [16 << 20, *[LARGE] * 20],
        [64 << 10] * 300,
        [4096] * 5000 + [LARGE],
    ],
    ids=["many large", "large and small", "one huge", "much that is small", "very much"],
)
def test_more_segments_than_descriptors_share_memfds(sizes: list[int]) -> None:
    before = open_files()
    sent = [os.urandom(64) * (size // 64) + b"!" * (size % 64) for size in sizes]
    buffers, fds = wire.pack(b"{}", sent)
    assert len(fds) <= wire.MAX_FDS
    if sum(sizes) > 16 << 20:
        assert len(data_of(buffers)) < 1 << 20
    frame = received(buffers, fds)
    equal = [bytes(part) for part in frame.segments] == sent
    assert equal
    memoryview(frame.segments[0])[0] = 0
    assert bytes(frame.segments[1]) == sent[1]
    del frame
    assert open_files() == before


@linux
def test_what_was_sealed_once_goes_with_many_frames_and_is_not_copied() -> None:
    before = open_files()
    body = os.urandom(8 << 20)
    (sealed,) = seal([body], 1)
    assert isinstance(sealed, Sealed)
    number = os.fstat(sealed.fd).st_ino
    frame = None
    for _ in range(3):
        buffers, fds = wire.pack(b"{}", [b"small", sealed])
        assert [os.fstat(fd).st_ino for fd in fds] == [number]
        frame = received(buffers, fds)
        equal = [bytes(part) for part in frame.segments] == [b"small", body]
        assert equal
        memoryview(frame.segments[1])[0] ^= 255
    assert os.pread(sealed.fd, 9, 0) == body[:9]
    sealed.memory.close()
    sealed.memory.close()
    with pytest.raises(wire.WireError, match="was closed"):
        wire.pack(b"{}", [sealed])
    frame = None
    assert open_files() == before


@linux
def test_a_shared_memfd_is_sent_whole_or_not_at_all() -> None:
    before = open_files()
    first, second, third = seal([b"a" * LARGE, b"b" * LARGE, b"c" * LARGE], 1)
    for parts in ([second], [first, third], [first, b"x" * LARGE, second, third], [second, first]):
        with pytest.raises(wire.WireError, match="torn apart"):
            wire.pack(b"{}", parts)
    frame = received(*wire.pack(b"{}", [first, b"x", second, b"y", third]))
    assert [bytes(part)[:1] for part in frame.segments] == [b"a", b"x", b"b", b"y", b"c"]
    buffers, fds = wire.pack(b"{}", [first, second])
    with pytest.raises(wire.WireError, match="bytes, not"):
        received(buffers, fds)
    ones = [one for _ in range(wire.MAX_FDS + 1) for one in seal([b"x" * LARGE], 1)]
    with pytest.raises(wire.WireError, match="shared segments"):
        wire.pack(b"{}", ones)
    del ones, first, second, third, parts, frame
    assert open_files() == before


@linux
def test_a_segment_there_is_no_memory_for_costs_that_segment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(fd: int, size: int) -> wire.Buffer:
        raise OSError(12, "Cannot allocate memory")

    before = open_files()
    buffers, fds = wire.pack(b"header", [b"x" * LARGE, b"small"])
    monkeypatch.setattr(wire, "map_sealed", refuse)
    frame = received(buffers, fds)
    assert frame.header == b"header"
    missing, small = frame.segments
    assert isinstance(missing, Unavailable)
    assert (missing.nbytes, bytes(small)) == (LARGE, b"small")
    assert "no memory" in missing.reason
    assert open_files() == before


# -- descriptors themselves


def pass_on(
    header: bytes, segments: list[wire.Buffer], passing: list[int]
) -> tuple[bytes, list[int]]:
    """What a frame is sent as: bytes, and the descriptors that a receiver would get."""
    buffers, fds = wire.pack(header, segments, passing)
    return data_of(buffers), fds


@linux
def test_descriptors_come_out_in_order_and_are_the_takers() -> None:
    before = open_files()
    first, second = os.pipe()
    data, fds = pass_on(b"{}", [b"inline", b"x" * LARGE], [first, second])
    (frame,) = wire.FrameReader(most_passed=2).feed(data, fds)
    assert [bytes(part) for part in frame.segments] == [b"inline", b"x" * LARGE]
    taken = frame.fds.pop()
    assert os.fstat(taken).st_ino == os.fstat(second).st_ino
    frame.close()
    for fd in (first, second, taken):
        os.close(fd)
    assert open_files() == before


@linux
@pytest.mark.parametrize("most_passed", [0, 1])
def test_more_descriptors_than_a_reader_takes_are_refused_and_closed(most_passed: int) -> None:
    before = open_files()
    ends = os.pipe()
    data, fds = pass_on(b"{}", [], list(ends))
    reader = wire.FrameReader(most_passed)
    with pytest.raises(wire.WireError, match="passes a descriptor"):
        reader.feed(data, fds)
    reader.close()
    for fd in ends:
        os.close(fd)
    assert open_files() == before


@linux
def test_descriptor_before_a_segment_is_refused() -> None:
    ends = os.pipe()
    reader = wire.FrameReader(most_passed=1)
    with pytest.raises(wire.WireError, match="passes a descriptor"):
        reader.feed(head(2, 0b11 << 62, 1) + b"{}x", [ends[0]])
    reader.close()
    os.close(ends[1])


@linux
def test_frames_before_a_broken_one_leave_no_descriptor_open() -> None:
    before = open_files()
    end, other = os.pipe()
    data, fds = pass_on(b"{}", [], [end])
    reader = wire.FrameReader(most_passed=1)
    with pytest.raises(wire.WireError, match="over the limit"):
        reader.feed(data + head(wire.MAX_HEADER + 1), fds)
    reader.close()
    os.close(end)
    os.close(other)
    assert open_files() == before


@linux
def test_closing_a_passed_connection_never_waits() -> None:
    """One that lingers would: its owner says how long, and the last to close it waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with peer:
            client.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    client.send(b"x" * (1 << 20))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
            began = time.monotonic()
            wire.discard(client.detach())
            assert time.monotonic() - began < 30
