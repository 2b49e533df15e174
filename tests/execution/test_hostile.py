"""A guest that sends garbage, forged ids, a 4 GB length, or nothing costs that guest only.

The guests here find their end of the socket and write to it themselves. Each time another session
of the same host goes on meanwhile; that nothing is left behind, the common fixture checks.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from py_code_mode import EnvironmentFailed, Session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from py_code_mode import ExecutionResult

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="finds its socket as Linux shows it"),
]

MEGABYTE = 1 << 20
PATIENCE = 30.0

#: Run 1 of every hostile guest.
FORGE = """
import array, fcntl, json, os, socket, stat, struct, tempfile, threading
def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
wire = next(filter(is_socket, range(3, 100)))
peer = socket.socket(fileno=os.dup(wire))
BY_FD = 1 << 63
def frame(header, *sizes, inline=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(f"<II{len(sizes)}Q", len(text), len(sizes), *sizes) + text + inline
def send(data, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = peer.sendmsg([data], rights)
    peer.sendall(data[sent:])
def done(**fields):
    return {"t": "done", "inc": 1, "run": 2, "notes": [], **fields}
def call(**fields):
    default = {"t": "call", "inc": 1, "run": 2, "id": 900, "ns": "tools", "method": "list"}
    return {**default, "args": [{}], **fields}
def memfd(size, seals=0xF):
    fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, 1033, seals)
    return fd
"""


class Pair:
    """A hostile session, and another one of the same host."""

    def __init__(self, hostile: Session, other: Session) -> None:
        self.hostile = hostile
        self.other = other

    async def attack(self, code: str, timeout: float = 20) -> ExecutionResult:
        """Run hostile code, while the other session runs and calls a tool all the time."""
        ready = await self.hostile.run(FORGE)
        assert ready.error is None
        results: list[ExecutionResult] = []

        async def run() -> None:
            results.append(await self.hostile.run(code, timeout=timeout))

        with anyio.fail_after(PATIENCE + timeout):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await self.check_other()
                while not results:
                    await self.check_other()
        await self.check_other()
        return results[0]

    async def check_other(self) -> None:
        """The other session has its variables and reaches the host."""
        with anyio.fail_after(PATIENCE):
            result = await self.other.run("tools.add(mine, 1)")
        assert result.value == 42, result.error

    async def check_next(self) -> None:
        """The hostile session has a new guest, without the old one's variables."""
        with anyio.fail_after(PATIENCE):
            result = await self.hostile.run("'frame' in globals(), tools.add(1, 1)")
        assert result.value == (False, 2), result.error
        assert result.state == "kept"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def stay(text: str = "") -> None:
    """Never return."""
    del text
    await anyio.sleep_forever()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncGenerator[Pair]:
    async with (
        Session.subprocess(tmp_path, backend="none") as hostile,
        Session.subprocess(tmp_path) as other,
    ):
        for session in (hostile, other):
            session.add_tool(add)
            session.add_tool(stay)
        await other.run("mine = 41")
        yield Pair(hostile, other)


def rss() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


ENDING = {
    "text": "send(b'GET / HTTP/1.1\\r\\nHost: host\\r\\n\\r\\n')",
    "noise": "send(bytes(range(255, 0, -1)) * 1000)",
    "a header of 4 GB": "send(struct.pack('<II', 2**32 - 1, 0))",
    "too many segments": "send(struct.pack('<II', 2, 2**32 - 1))",
    "a segment of 4 EB": "send(struct.pack('<IIQ', 2, 1, 1 << 62))",
    "sizes that add up": "send(struct.pack('<II4096Q', 2, 4096, *[1 << 20] * 4096))",
    "sizes that overflow": "send(struct.pack('<II4Q', 2, 4, *[1 << 62] * 4))",
    "an empty header": "send(frame(b''))",
    "a header that is not JSON": "send(frame(b'ready?'))",
    "a header cut short": 'send(frame(b\'{"t":"done"\'))',
    "bytes that are not UTF-8": 'send(frame(b\'{"t":"\\xff"}\'))',
    "half a surrogate": 'send(frame(b\'{"t":"display","inc":1,"run":2,"data":"\\\\ud800"}\'))',
    "an array": "send(frame([1, 2]))",
    "no tag": "send(frame({'inc': 1}))",
    "an unknown tag": "send(frame({'t': 'exec', 'inc': 1, 'code': '1'}))",
    "a tag of the host": "send(frame({'t': 'run', 'inc': 1, 'run': 3, 'code': '1'}))",
    "an unknown field": "send(frame(done(pickle='gASVAA==')))",
    "a missing field": "send(frame({'t': 'done', 'inc': 1, 'run': 2}))",
    "a wrong type": "send(frame(done(notes=[1])))",
    "a run that is text": "send(frame(done(run='2')))",
    "a huge number": "send(frame(b'{\"t\":\"done\",\"inc\":' + b'9' * 5000 + b'}'))",
    "not a number": 'send(frame(b\'{"t":"answer","inc":1,"id":NaN}\'))',
    "deep nesting": "send(frame(b'[' * 1_000_000))",
    "deep nesting in a value": """
send(frame(b'{"t":"done","inc":1,"run":2,"notes":[],"value":' + b'[' * 400 + b']' * 400 + b'}'))
""",
    "deeper nesting in a value": """
send(frame(b'{"t":"display","inc":1,"run":2,"data":' + b'[' * 100_000 + b']' * 100_000 + b'}'))
""",
    "a value of no kind": "send(frame(done(value={'$magic': 'gASVAA=='})))",
    "a pickle, which the host sends and never takes": """
import base64, pickle
class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap",)
text = base64.b64encode(pickle.dumps(Trap())).decode()
send(frame(done(value={'$pickle': ['Trap', text, []]})))
""",
    "a value with a bogus segment": "send(frame(done(value={'$bytes': 7})))",
    "a segment of no value": "send(frame(done(value=1), 3, inline=b'abc'))",
    "a segment used twice": """
send(frame(done(value=[{'$bytes': 0}, {'$bytes': 0}]), 3, inline=b'abc'))
""",
    "a frame that is none": "send(frame(done(value={'$frame': [1, 2, 3]})))",
    "a call without arguments": "send(frame(call(args=None)))",
    "a call without keywords": "send(frame(call(args=[{}, []])))",
    "a call with a bogus value": "send(frame(call(args=[{'$set': [1, 1]}, {}])))",
    "a call id used twice": "send(frame(call(method='stay')) * 2)",
    "a display that is none": """
send(frame({'t': 'display', 'inc': 1, 'run': 2, 'data': [1]}))
""",
    "a display of objects": """
send(frame({'t': 'display', 'inc': 1, 'run': 2, 'data': {'text/plain': {'$tuple': []}}}))
""",
    "descriptors that did not come": "send(frame(done(value={'$bytes': 0}), BY_FD | 9))",
    "a memfd without seals": """
send(frame(done(value={'$bytes': 0}), BY_FD | 9), memfd(9, 0))
""",
    "a memfd that may shrink": """
send(frame(done(value={'$bytes': 0}), BY_FD | 9), memfd(9, 0x4 | 0x8))
""",
    "a memfd that is shorter": """
send(frame(done(value={'$bytes': 0}), BY_FD | 4096), memfd(9))
""",
    "a memfd of 1 TB, all holes": """
send(frame(done(value={'$bytes': 0}), BY_FD | 1 << 40), memfd(1 << 40))
""",
    "a segment behind none": """
send(frame(done(value={'$bytes': 0}), BY_FD | 1 << 61 | 9), memfd(9))
""",
    "a memfd that holds less than its segments": """
send(frame(done(value=[{'$bytes': 0}, {'$bytes': 1}]), BY_FD | 9, BY_FD | 1 << 61 | 9), memfd(9))
""",
    "memfds that add up": """
send(
    frame(done(value=[{'$bytes': i} for i in range(8)]), *[BY_FD | 1 << 30] * 8),
    *[memfd(1 << 30) for _ in range(8)],
)
""",
    "a size that no file has": """
send(frame(done(value={'$bytes': 0}), (1 << 64) - 1), memfd(9))
""",
    "a pipe": "send(frame(done(value={'$bytes': 0}), BY_FD | 9), os.pipe()[0])",
    "a folder": "send(frame(done(value={'$bytes': 0}), BY_FD | 9), os.open('/', os.O_RDONLY))",
    "a device": """
send(frame(done(value={'$bytes': 0}), BY_FD | 9), os.open('/dev/zero', os.O_RDONLY))
""",
    "a file": """
with open('file', 'wb+') as file:
    file.write(b'x' * 9)
    file.flush()
    send(frame(done(value={'$bytes': 0}), BY_FD | 9), file.fileno())
""",
    "the socket itself": "send(frame(done(value={'$bytes': 0}), BY_FD | 9), wire)",
    "nine descriptors": "send(frame(b'{}'), *[0] * 9)",
    "descriptors without a frame": """
part = struct.pack('<II', 1 << 20, 0) + bytes(100)
for i in range(9):
    send(part[i:i + 1], 0)
""",
    "a closed socket": "peer.close(); os.close(wire)",
    "a socket that is shut down": "peer.shutdown(socket.SHUT_RDWR)",
}


@pytest.mark.parametrize("code", ENDING.values(), ids=ENDING)
async def test_a_guest_that_breaks_the_protocol_is_ended_and_nobody_else(
    pair: Pair, code: str
) -> None:
    before = rss()
    # what follows garbage is not believed any more
    result = await pair.attack(f"{code}\nthreading.Event().wait(20)")
    assert result.failure is not None
    assert result.failure.type == "GuestDied"
    assert "ended" in result.failure.message
    assert result.value is None
    assert result.state != "kept"
    assert pair.hostile.state == result.state
    await pair.check_next()
    assert rss() - before < 200 * MEGABYTE


IGNORED = {
    "the end of a run to come": "send(frame(done(run=3, value='forged')))",
    "the end of a run that was": "send(frame(done(run=1, value='forged')))",
    "the end of no run": "send(frame(done(run=-1, value='forged')))",
    "the end, by a guest to come": "send(frame(done(inc=2, value='forged')))",
    "garbage by a guest to come": "send(frame(call(inc=2, args=None)))",
    "an answer to no question": "send(frame({'t': 'answer', 'inc': 1, 'id': 1, 'value': 1}))",
    "ready again": "send(frame({'t': 'ready', 'inc': 7, 'pid': 1, 'python': [2, 7, 18]}))",
    "a call of another run": "send(frame(call(run=1)))",
    "a call of nobody's": "send(frame(call(id=-5, ns='os', method='system')))",
    "a private call": "send(frame(call(ns='tools', method='__class__')))",
    "a call by a long name": "send(frame(call(ns='x' * 10_000_000)))",
    "thousands of calls": """
send(b''.join(frame(call(id=10_000 + i)) for i in range(3000)))
""",
}


@pytest.mark.parametrize("code", IGNORED.values(), ids=IGNORED)
async def test_forged_ids_reach_nothing(pair: Pair, code: str) -> None:
    result = await pair.attack(f"{code}\n'mine'")
    assert result.error is None
    assert result.value == "mine"
    assert result.state == "kept"
    after = await pair.hostile.run("'frame' in globals(), tools.add(1, 1)")
    assert after.value == (True, 2)


async def test_a_forged_end_is_a_guests_own_affair(pair: Pair) -> None:
    result = await pair.attack("send(frame(done(value='early')) * 2)\n'late'")
    assert result.value == "early"
    after = await pair.hostile.run("tools.add(1, 1)")
    assert after.value == 2
    assert after.state == "kept"


async def test_a_frame_that_never_ends_costs_the_run(pair: Pair) -> None:
    result = await pair.attack("send(struct.pack('<II', 1 << 20, 0) + b'x')", timeout=2)
    assert result.failure is not None
    assert result.failure.type == "TimeoutError"
    assert result.state != "kept"
    await pair.check_next()


async def test_a_value_the_host_cannot_hold_is_a_failure_of_the_run(pair: Pair) -> None:
    forged = "['zone', 'No/Such_Zone']"
    value = "{'$datetime': [2000, 1, 1, 0, 0, 0, 0, %s, 0]}" % forged  # noqa: UP031 (braces)
    result = await pair.attack(f"send(frame(done(value={value})))")
    assert result.failure is not None
    assert result.failure.type == "ValueNotPortable"
    assert result.state == "kept"


async def test_garbage_between_two_runs_is_told_by_the_next(pair: Pair, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    later = f"lambda: (open({str(go)!r}).close(), send(b'x' * 100))"
    attacked = await pair.attack(f"threading.Thread(target={later}).start()")
    assert attacked.state == "kept"
    with anyio.fail_after(PATIENCE):
        await anyio.to_thread.run_sync(go.write_bytes, b"")
        result = await pair.hostile.run("import threading; threading.Event().wait(1)")
        while result.state == "kept":
            result = await pair.hostile.run("import threading; threading.Event().wait(1)")
    await pair.check_next()


async def test_a_guest_that_does_not_read_is_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("py_code_mode.execution.channel.MAX_QUEUED", MEGABYTE)
    result = await pair.attack(
        "many = b''.join(frame(call(run=1, id=i)) for i in range(1000))\nwhile True: send(many)"
    )
    assert result.failure is not None
    assert "does not read" in result.failure.message
    assert result.state != "kept"
    await pair.check_next()


async def test_arguments_of_open_calls_are_bounded(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("py_code_mode.execution.worker.MAX_OPEN_CALL_BYTES", 10 * MEGABYTE)
    code = """
import asyncio
async def one():
    try:
        await asyncio.wait_for(tools.stay.call_async("x" * (1 << 20)), 5)
    except Exception as error:
        return str(error)
"""
    result = await pair.attack(
        f"{code}\n[text for text in await asyncio.gather(*[one() for _ in range(20)]) if text]"
    )
    assert "bytes of arguments" in str(result.value), result.error


QUOTING = {
    "half a surrogate": "artifacts.load('\\ud800')",
    "half a surrogate to a tool": "tools.add('\\ud800', 1)",
    "half a surrogate as a keyword": "tools.add(**{'\\ud800': 1})",
    "half a surrogate as a name": "getattr(tools, '\\ud800')()",
    "control characters, many": "artifacts.load('\\0' * 20_000_000)",
    "a long name": "getattr(tools, 'x' * 5_000_000)()",
}


@pytest.mark.parametrize("code", QUOTING.values(), ids=QUOTING)
async def test_an_error_that_quotes_the_guest_hurts_nobody(pair: Pair, code: str) -> None:
    result = await pair.attack(code)
    assert result.failure is not None
    assert result.state == "kept"
    assert (await pair.hostile.run("tools.add(1, 1)")).value == 2


async def test_output_without_end_is_bounded(pair: Pair) -> None:
    before = rss()
    result = await pair.attack("while True: os.write(1, b'x' * 65536)", timeout=2)
    assert result.failure is not None
    assert result.failure.type == "TimeoutError"
    assert result.state == "kept"
    assert len(result.stdout) < 11 * MEGABYTE
    assert "left out" in result.stdout
    assert rss() - before < 120 * MEGABYTE


async def test_a_child_that_never_stops_writing_holds_nobody_up(pair: Pair) -> None:
    before = rss()
    result = await pair.attack("import subprocess\nchild = subprocess.Popen(['yes'])")
    assert result.state == "kept"
    for _ in range(5):
        with anyio.fail_after(PATIENCE):
            result = await pair.hostile.run("tools.add(1, 1)")
        assert result.value == 2
        await pair.check_other()
    assert (await pair.hostile.run("child.kill(); child.wait()")).value == -9
    assert rss() - before < 120 * MEGABYTE


async def test_displays_without_number_are_bounded(pair: Pair) -> None:
    before = rss()
    result = await pair.attack(
        """
empty = frame({'t': 'display', 'inc': 1, 'run': 2, 'data': {}}) * 1000
large = frame({'t': 'display', 'inc': 1, 'run': 2, 'data': {'text/plain': 'x' * (1 << 20)}})
for _ in range(150):
    send(empty)
    send(large)
"""
    )
    assert result.error is None
    assert len(result.displays) < 100_000
    assert any("left out" in note for note in result.notes)
    assert rss() - before < 200 * MEGABYTE


async def test_calls_wait_for_a_slow_callback(pair: Pair) -> None:
    await pair.hostile.run(FORGE)
    seen = 0
    go_on = anyio.Event()

    async def slow(event: object) -> None:
        nonlocal seen
        seen += 1
        await go_on.wait()

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            code = "send(b''.join(frame(call(id=10_000 + i)) for i in range(3000)))\n'end'"
            result = await pair.hostile.run(code, on_output=slow)
            assert result.value == "end"

        tasks.start_soon(run)
        await pair.check_other()
        go_on.set()
    # each call is told of once, and those beyond the bound are refused without
    assert 0 < seen <= 3000


FAKES = {
    "says nothing": "import threading; threading.Event().wait()",
    "exits": "raise SystemExit(3)",
    "closes its socket": """
import os, sys, threading
os.close(int(sys.argv[1]))
threading.Event().wait()
""",
    "sends garbage": """
import os, sys, threading
os.write(int(sys.argv[1]), b'x' * 1000)
threading.Event().wait()
""",
    "ignores every signal it can": """
import signal, threading
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
while True:
    threading.Event().wait()
""",
}


@pytest.mark.parametrize("source", FAKES.values(), ids=FAKES)
async def test_a_guest_that_is_never_ready_fails_the_start_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    fake = tmp_path / "fake.py"
    fake.write_text(source)
    async with Session.subprocess(tmp_path / "base") as other:
        monkeypatch.setattr("py_code_mode.execution.subprocess.GUEST", fake)
        monkeypatch.setattr("py_code_mode.execution.worker.START_TIMEOUT", 0.5)
        session = Session.subprocess(tmp_path / "base", backend="none")
        with anyio.fail_after(PATIENCE):
            with pytest.raises(EnvironmentFailed):
                await session.start()
            await session.close()
        assert (await other.run("1 + 1")).value == 2


async def test_a_guest_that_answers_no_question_is_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from py_code_mode.errors import GuestDied

    await pair.hostile.run(
        """
import threading
class Slow:
    def __del__(self):
        threading.Event().wait()
slow = Slow()
"""
    )
    with monkeypatch.context() as patched:
        patched.setattr("py_code_mode.execution.worker.EXCHANGE_TIMEOUT", 0.5)
        with anyio.fail_after(PATIENCE), pytest.raises(GuestDied):
            await pair.hostile.put("slow", 1, overwrite=True)
    await pair.check_other()
    result = await pair.hostile.run("slow + 1")
    assert result.value == 2
    assert result.state != "kept"
