"""Sleeping copies, as the host sees them: what guests say of them is checked, never waited for.

The guests here are the test itself: it holds the other end of a copy's socket.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode.errors import GuestDied, ProtocolViolation
from py_code_mode.execution import sleepers
from py_code_mode.execution.process import describe_exit
from py_code_mode.execution.sleepers import Sleeper
from py_code_mode.execution.supervisor import Supervisor
from py_code_mode.execution.worker import Worker
from py_code_mode.guest.wire import Frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

PATIENCE = 30.0
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only"),
]


async def no_call(
    namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    raise AssertionError(f"{namespace}.{method} was called")


@pytest.fixture
async def worker() -> AsyncGenerator[Worker]:
    """One that has run 3 cells, without a process."""
    supervisor = Supervisor.acquire()
    made = Worker(1, no_call, supervisor)
    made.last_run = 3
    yield made
    made.forget_sleeper()
    await supervisor.release()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The copy's end, and the host's, which may be taken from it."""
    copy, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with copy, host:
        yield copy, host


def asleep(fds: Sequence[int] = (), **fields: Any) -> Frame:
    header = {"t": "asleep", "inc": 1, "run": 3, "pid": 7, **fields}
    return Frame(json.dumps(header).encode(), [], fds)


def is_closed(copy: socket.socket) -> bool:
    """Whether the host has let go of a copy."""
    try:
        return copy.recv(100, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


async def test_newest_copy_takes_the_place_of_the_one_before(worker: Worker) -> None:
    ends: list[socket.socket] = []
    for run in (1, 3):
        copy, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.append(copy)
        worker.on_frame(asleep([host.detach()], run=run))
    assert worker.sleeper is not None
    assert worker.sleeper.run == 3
    assert [is_closed(end) for end in ends] == [True, False]
    worker.on_frame(asleep(refused="threads are running", pid=None))
    assert worker.refusal == "threads are running"
    assert worker.sleeper.run == 3  # an older copy is better than none
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    "fields", [{"run": 4}, {"run": -1}, {"pid": None}, {"pid": 1}, {"pid": 0}, {"pid": -5}]
)
async def test_copy_that_cannot_be_is_a_violation(
    worker: Worker, pair: tuple[socket.socket, socket.socket], fields: dict[str, Any]
) -> None:
    copy, host = pair
    frame = asleep([host.detach()], **fields)
    with pytest.raises(ProtocolViolation, match="sleeper"):
        worker.on_frame(frame)
    frame.close()
    assert is_closed(copy)


@pytest.mark.parametrize("kind", ["none", "file", "pipe", "stream", "inet"])
async def test_descriptor_that_wakes_nothing_is_a_violation(worker: Worker, kind: str) -> None:
    fds: list[int] = []
    if kind == "file":
        fds = [os.open(os.devnull, os.O_RDONLY)]
    elif kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        fds = [reading]
    elif kind == "stream":
        one, other = socket.socketpair()
        one.close()
        fds = [other.detach()]
    elif kind == "inet":
        fds = [socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()]
    frame = asleep(fds)
    with pytest.raises(ProtocolViolation, match="sleeper"):
        worker.on_frame(frame)
    frame.close()
    assert worker.sleeper is None


async def test_descriptor_with_another_frame_is_a_violation(
    worker: Worker, pair: tuple[socket.socket, socket.socket]
) -> None:
    header: dict[str, Any] = {"t": "done", "inc": 1, "run": 3, "notes": []}
    frame = Frame(json.dumps(header).encode(), [], [pair[1].detach()])
    with pytest.raises(ProtocolViolation, match="nobody asked"):
        worker.on_frame(frame)
    frame.close()


@pytest.mark.parametrize("fields", [{"inc": 2}, {"id": 9}])
async def test_copy_that_nobody_waits_for_ends(
    worker: Worker, pair: tuple[socket.socket, socket.socket], fields: dict[str, Any]
) -> None:
    copy, host = pair
    frame = asleep([host.detach()], **fields)
    worker.on_frame(frame)
    frame.close()
    assert worker.sleeper is None
    assert is_closed(copy)


async def test_long_reason_is_cut(worker: Worker) -> None:
    worker.on_frame(asleep(refused="x" * 100_000, pid=None))
    assert worker.refusal is not None
    assert len(worker.refusal) < 1000


# -- waking


def received(copy: socket.socket) -> tuple[dict[str, Any], list[int]]:
    body, control, _, _ = copy.recvmsg(4096, 100)
    fds = array.array("i")
    for _, _, data in control:
        fds.frombytes(data)
    return json.loads(body), list(fds)


@pytest.mark.parametrize("keep", [True, False])
async def test_waking_passes_three_descriptors_and_gives_the_pid(
    pair: tuple[socket.socket, socket.socket], keep: bool
) -> None:
    copy, host = pair
    sleeper = Sleeper(host.detach(), 7, 2)
    said: list[dict[str, Any]] = []

    async def answer() -> None:
        await anyio.wait_readable(copy)
        message, fds = received(copy)
        said.append({**message, "fds": len(fds)})
        for fd in fds:
            os.close(fd)
        copy.send(b'{"inc": 3, "pid": 11}')  # for somebody who was cancelled
        copy.send(b'{"inc": 4, "pid": 12}')

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            assert await sleeper.wake(4, (0, 1, 2), keep=keep) == 12
    assert said == [{"t": "wake", "inc": 4, "keep": keep, "kept": False, "fds": 3}]
    assert sleeper.is_open == keep
    sleeper.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"inc": 4}',
        b'{"inc": 4, "pid": "7"}',
        b'{"inc": 4, "refused": "no more processes"}',
        b"x" * 9000,
    ],
)
async def test_copy_that_answers_nonsense_is_not_woken(
    pair: tuple[socket.socket, socket.socket], answer: bytes
) -> None:
    copy, host = pair
    sleeper = Sleeper(host.detach(), 7, 2)
    copy.send(answer) if answer else copy.close()
    with anyio.fail_after(PATIENCE), pytest.raises(GuestDied, match="not woken"):
        await sleeper.wake(4, (0, 1, 2), keep=False)
    assert not sleeper.is_open


@pytest.mark.parametrize("fills", [False, True])
async def test_copy_that_says_nothing_cannot_hold_the_host_up(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, fills: bool
) -> None:
    """Whoever made the pair may have kept the host's end too, and let it block."""
    monkeypatch.setattr(sleepers, "WAKE_TIMEOUT", 0.05)
    copy, host = pair
    sleeper = Sleeper(os.dup(host.fileno()), 7, 2)
    host.setblocking(False)
    while fills:
        try:
            host.send(b"x" * 1000)
        except BlockingIOError:
            break
    host.setblocking(True)
    with anyio.fail_after(PATIENCE), pytest.raises(GuestDied, match="not woken"):
        await sleeper.wake(4, (0, 1, 2), keep=False)
    copy.close()


async def test_copy_that_never_stops_talking_cannot_hold_the_host_up(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleepers, "WAKE_TIMEOUT", 0.05)
    copy, host = pair
    sleeper = Sleeper(host.detach(), 7, 2)
    read = Sleeper._answer  # pyright: ignore[reportPrivateUsage]

    async def answer_and_talk_on(self: Sleeper) -> bytes:
        said = await read(self)
        talk()
        return said

    def talk() -> None:
        if anyio.current_time() < until:  # else a host that is held up would be so for good
            copy.send(b'{"inc": 3, "pid": 11}')

    monkeypatch.setattr(Sleeper, "_answer", answer_and_talk_on)
    until = anyio.current_time() + 5
    talk()
    with pytest.raises(GuestDied, match="not woken"):
        await sleeper.wake(4, (0, 1, 2), keep=False)
    assert anyio.current_time() < until


async def test_checkpoint_of_a_guest_that_is_closed_meanwhile_ends_with_it(
    worker: Worker, pair: tuple[socket.socket, socket.socket]
) -> None:
    copy, host = pair

    class Leaving:
        """Its socket and its process: makes the copy, and goes."""

        status: int | None = None

        def send(self, header: bytes) -> None:
            asked.set()

        async def wait(self) -> None:
            frame = asleep([host.detach()], id=1)
            worker.on_frame(frame)
            frame.close()
            self.status = 0
            worker.on_exit(0)

        def read_available(self) -> None: ...
        def close(self) -> None: ...

    asked = anyio.Event()
    guest: Any = Leaving()
    worker.attach(guest, (), guest)

    async def checkpoint() -> None:
        with pytest.raises(GuestDied):
            await worker.checkpoint()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(checkpoint)
            await asked.wait()
            await worker.close()
    assert is_closed(copy)


# -- how it ended


@pytest.mark.parametrize(
    ("status", "given", "limit"),
    [
        (-signal.SIGXCPU, None, "cpu"),
        (-signal.SIGXFSZ, None, "file_size"),
        (-signal.SIGKILL, "memory", "memory"),
        (-signal.SIGKILL, None, None),
        (1, None, None),
    ],
)
async def test_limit_that_ended_a_guest_is_told(
    worker: Worker, status: int, given: Any, limit: str | None
) -> None:
    class Nothing:
        status = 0

        def read_available(self) -> None: ...
        def close(self) -> None: ...

    nothing: Any = Nothing()
    worker.attach(nothing, (), nothing)
    worker.on_exit(status, given)
    assert worker.limit == limit
    assert worker.death is not None
    if limit is None:
        assert worker.death == describe_exit(status)
    else:
        assert "than the policy allows" in worker.death
