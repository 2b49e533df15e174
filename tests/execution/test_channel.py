"""The host's end of a guest's socket: never blocks, never believes, never keeps what it closes."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from py_code_mode.execution import channel as channel_module
from py_code_mode.execution.channel import Channel
from py_code_mode.guest import wire
from py_code_mode.guest.segments import MEMFD_THRESHOLD

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux only")
PATIENCE = 10.0
#: More than any socket takes at once.
LARGE = 8 << 20


class Peer:
    """A channel, what it was told, and the guest's end of its socket."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.frames: list[wire.Frame] = []
        self.ends: list[str | None] = []
        self.happened = anyio.Event()
        self.fail = False
        self.channel = Channel(ours, self.on_frame, self.on_end)

    def on_frame(self, frame: wire.Frame) -> None:
        self.frames.append(frame)
        self.happened.set()
        if self.fail:
            raise ValueError("not one that is known")

    def on_end(self, reason: str | None) -> None:
        self.ends.append(reason)
        self.happened.set()

    async def something(self) -> None:
        """Wait for a frame, or the end."""
        with anyio.fail_after(PATIENCE):
            await self.happened.wait()
        self.happened = anyio.Event()

    def read_all(self) -> list[wire.Frame]:
        """What the host has sent so far, read by the guest until its end."""
        reader = wire.FrameReader()
        frames: list[wire.Frame] = []
        while True:
            data, fds = wire.receive(self.socket)
            if not data:
                return frames
            frames += reader.feed(data, fds)


@pytest.fixture
async def peer() -> AsyncGenerator[Peer]:
    peer = Peer()
    yield peer
    peer.channel.close()
    peer.socket.close()


def packed(header: bytes) -> bytes:
    return b"".join(bytes(buffer) for buffer in wire.pack(header)[0])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_frame_in_pieces_arrives_once_whole(peer: Peer) -> None:
    data = packed(b"hello")
    for byte in data[:-1]:
        peer.socket.send(bytes([byte]))
    await anyio.wait_all_tasks_blocked()
    assert peer.frames == []
    peer.socket.send(data[-1:])
    await peer.something()
    assert [frame.header for frame in peer.frames] == [b"hello"]


async def test_an_orderly_end_is_told_once_without_a_reason(peer: Peer) -> None:
    peer.socket.send(packed(b"last"))
    peer.socket.close()
    while not peer.ends:
        await peer.something()
    assert peer.ends == [None]
    assert len(peer.frames) == 1
    assert not peer.channel.is_open


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff" * 100, "header of 4294967295 bytes"),
        (struct.pack("<II", 2, 10**9), "1000000000 segments"),
    ],
)
async def test_garbage_ends_the_channel_with_its_reason(
    peer: Peer, data: bytes, reason: str
) -> None:
    peer.socket.send(data)
    await peer.something()
    assert len(peer.ends) == 1
    assert reason in (peer.ends[0] or "")
    assert not peer.channel.is_open
    assert peer.frames == []


async def test_a_frame_that_is_refused_ends_the_channel(peer: Peer) -> None:
    peer.fail = True
    peer.socket.send(packed(b"one"))
    await peer.something()
    assert peer.ends == ["not one that is known"]


async def test_close_tells_nobody_and_may_be_repeated(peer: Peer) -> None:
    peer.channel.close()
    peer.channel.close()
    peer.channel.send(b"dropped")
    await peer.channel.drain()
    assert peer.ends == []
    assert peer.socket.recv(1) == b""


async def test_drain_waits_until_the_guest_has_read(peer: Peer) -> None:
    drained = anyio.Event()

    async def drain() -> None:
        await peer.channel.drain()
        drained.set()

    for index in range(3):
        peer.channel.send(bytes([65 + index]) * LARGE)
    frames: list[wire.Frame] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        tasks.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        assert not drained.is_set()
        reading = anyio.to_thread.run_sync(peer.read_all)

        async def end() -> None:
            with anyio.fail_after(PATIENCE):
                await drained.wait()
            peer.channel.close()

        tasks.start_soon(end)
        frames.extend(await reading)
    assert [frame.header[:1] for frame in frames] == [b"A", b"B", b"C"]
    assert {len(frame.header) for frame in frames} == {LARGE}


async def test_a_cancelled_drain_leaves_the_others_waiting(peer: Peer) -> None:
    peer.channel.send(b"x" * LARGE)
    with anyio.move_on_after(0):
        await peer.channel.drain()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.channel.drain)
        await anyio.wait_all_tasks_blocked()
        peer.channel.close()  # and the end wakes them


async def test_sending_to_a_guest_that_is_gone_ends_the_channel(peer: Peer) -> None:
    peer.channel.send(b"x" * LARGE)
    peer.socket.close()
    await peer.something()
    assert len(peer.ends) == 1
    await peer.channel.drain()


async def test_a_guest_that_never_reads_is_given_up(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_QUEUED", 1 << 20)
    peer.channel.send(b"x" * LARGE)
    for _ in range(2000):
        peer.channel.send(b"y" * 1000)
    await peer.something()
    assert peer.ends == ["it does not read what it is sent"]


async def test_one_frame_may_be_larger_than_the_queue(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_QUEUED", 1000)
    peer.channel.send(b"x" * LARGE)
    frames: list[wire.Frame] = []
    reading = anyio.to_thread.run_sync(peer.read_all)
    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await peer.channel.drain()
            peer.channel.send(b"y" * LARGE)
            await peer.channel.drain()
            peer.channel.close()

        tasks.start_soon(end)
        with anyio.fail_after(PATIENCE):
            frames.extend(await reading)
    assert [len(frame.header) for frame in frames] == [LARGE, LARGE]


@linux
async def test_descriptors_of_what_is_sent_are_closed(peer: Peer) -> None:
    before = open_files()
    peer.channel.send(b"{}", [b"x" * MEMFD_THRESHOLD] * 3)
    await peer.channel.drain()
    assert open_files() == before
    data, fds = wire.receive(peer.socket)
    (frame,) = wire.FrameReader().feed(data, fds)
    assert {bytes(part) for part in frame.segments} == {b"x" * MEMFD_THRESHOLD}


@linux
async def test_descriptors_of_what_is_queued_are_closed_with_the_channel(peer: Peer) -> None:
    before = open_files()
    peer.channel.send(b"x" * LARGE)
    for _ in range(5):
        peer.channel.send(b"{}", [b"x" * MEMFD_THRESHOLD])
    assert open_files() == before + 5
    peer.channel.close()
    assert open_files() == before - 1  # and its own socket


@linux
async def test_a_queued_frame_keeps_its_descriptors_and_its_place(peer: Peer) -> None:
    peer.channel.send(b"x" * LARGE)
    peer.channel.send(b"second", [b"y" * MEMFD_THRESHOLD, b"inline"])
    peer.channel.send(b"third")
    frames: list[wire.Frame] = []
    reading = anyio.to_thread.run_sync(peer.read_all)
    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await peer.channel.drain()
            peer.channel.close()

        tasks.start_soon(end)
        with anyio.fail_after(PATIENCE):
            frames.extend(await reading)
    assert [frame.header[:10] for frame in frames] == [b"x" * 10, b"second", b"third"]
    assert bytes(frames[1].segments[0]) == b"y" * MEMFD_THRESHOLD
    assert bytes(frames[1].segments[1]) == b"inline"


@linux
async def test_descriptors_received_are_closed_with_the_channel(peer: Peer) -> None:
    before = open_files()
    socket.send_fds(peer.socket, [struct.pack("<II", 100, 0)], [0] * 8)
    await anyio.wait_all_tasks_blocked()
    while open_files() < before + 8:
        await anyio.lowlevel.checkpoint()
    peer.channel.close()
    assert open_files() == before - 1


async def test_a_frame_beyond_the_limits_is_refused_and_the_channel_stays(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_HEADER", 100)
    with pytest.raises(wire.WireError):
        peer.channel.send(b"x" * 101)
    peer.channel.send(b"{}")
    data, _ = wire.receive(peer.socket)
    assert wire.FrameReader().feed(data)[0].header == b"{}"


async def test_a_flooding_guest_leaves_time_for_others(peer: Peer) -> None:
    stop = False

    def flood() -> None:
        data = packed(b"x" * 100) * 1000
        while not stop:
            try:
                peer.socket.sendall(data)
            except OSError:
                return  # the channel was closed

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, flood)
        with anyio.fail_after(PATIENCE):
            while len(peer.frames) < 20_000:
                await anyio.lowlevel.checkpoint()
        stop = True
        peer.channel.close()
