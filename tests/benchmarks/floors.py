"""What ours is measured against: a bare socket, a bare fork, and ipykernel."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from jupyter_client.asynchronous.client import AsyncKernelClient

_LENGTH = struct.Struct("<I")
_ASKER = """
import json, socket, struct, sys, time
from statistics import median
sock = socket.socket(fileno=int(sys.argv[1]))
length = struct.Struct("<I")

def echo():
    sock.send(b"echo" * 20)
    sock.recv(65536)

def call():
    question = {"t": "call", "id": 1, "method": "add", "args": ["add", None, [], {"a": 2, "b": 5}]}
    text = json.dumps(question).encode()
    sock.send(length.pack(len(text)) + text)
    data = sock.recv(65536)
    assert length.unpack_from(data)[0] == len(data) - 4
    return json.loads(data[4:])["value"]

while True:
    request = sock.recv(64)
    if not request:
        break
    ask = echo if request[:1] == b"e" else call
    times = []
    for _ in range(int(request[1:])):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    sock.send(b"=" + repr(median(times)).encode())
"""


class Socket:
    """A blocking process that asks over a Unix socket, and this event loop that answers at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._result: asyncio.Future[float] | None = None

    def read(self) -> None:
        """Answer; what begins with "=" is the median of all times."""
        data = self._socket.recv(65536)
        if data[:1] == b"=":
            assert self._result is not None
            self._result.set_result(float(data[1:]))
        elif data[:4] == b"echo":
            self._socket.send(b"a" * 40)
        elif data:
            assert _LENGTH.unpack_from(data)[0] == len(data) - _LENGTH.size
            call = json.loads(data[_LENGTH.size :])
            named = call["args"][3]
            text = json.dumps({"t": "reply", "id": call["id"], "value": named["a"] + named["b"]})
            self._socket.send(_LENGTH.pack(len(text)) + text.encode())

    async def _median(self, kind: bytes, count: int) -> float:
        self._result = asyncio.get_running_loop().create_future()
        self._socket.send(kind + str(count).encode())
        return await self._result

    async def echo(self, count: int) -> float:
        """Seconds from 80 bytes to 40 bytes back that mean nothing; the median of so many."""
        return await self._median(b"e", count)

    async def call(self, count: int) -> float:
        """The same of a request and its reply as JSON with a length before it."""
        return await self._median(b"c", count)


@asynccontextmanager
async def bare_socket() -> AsyncGenerator[Socket]:
    """The least that a call from a process to an event loop in another can take."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - before anything is measured
                [sys.executable, "-I", "-c", _ASKER, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
            )
        ours.setblocking(False)
        bare = Socket(ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), bare.read)
        try:
            yield bare
        finally:
            loop.remove_reader(ours.fileno())
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(10)


_ANSWERER = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while sock.recv(65536):
    sock.send(b"a" * 40)
"""
_FORKER = """
import ctypes, gc, os, signal, socket, sys
import pandas
NAMESPACES = 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
call = ctypes.PyDLL(None).syscall
sock = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pandas.DataFrame({"a": [1, 2]})["a"].sum()
gc.collect()
gc.freeze()
while code := sock.recv(65536):
    child = call({"x86_64": 56, "aarch64": 220}[os.uname().machine], NAMESPACES | 17, 0, 0, 0, 0)
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        exec(code)
        sock.send(b"a" * 40)
        os._exit(0)
    assert child > 0
"""


class Answerer:
    """A process that is asked over a Unix socket by an event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def ask(self, question: bytes = b"q" * 80) -> None:
        """Return when it has answered."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._socket.fileno(), lambda: answered.set_result(None))
        self._socket.send(question)
        try:
            await answered
        finally:
            loop.remove_reader(self._socket.fileno())
        assert len(self._socket.recv(65536)) == 40


@asynccontextmanager
async def bare_answerer() -> AsyncGenerator[Answerer]:
    """The least that a run can take: a request and its reply, of a process that waits for it."""
    async with _answering(sys.executable, _ANSWERER) as answerer:
        yield answerer


@asynccontextmanager
async def bare_forker(python: str) -> AsyncGenerator[Answerer]:
    """The least that a new session can take.

    A copy of a process with pandas, in namespaces of its own, carries out the code it is sent:
    nothing is mounted, limited, confined or watched.

    Args:
        python: an interpreter that has pandas.
    """
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # one thread: it can be copied
    async with _answering(python, _FORKER, variables) as answerer:
        yield answerer


@asynccontextmanager
async def _answering(
    python: str, code: str, variables: dict[str, str] | None = None
) -> AsyncGenerator[Answerer]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - before anything is measured
                [python, "-I", "-c", code, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=variables,
            )
        ours.setblocking(False)
        try:
            yield Answerer(ours)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(10)


class Kernel:
    """An IPython kernel, asked with as little around it as its protocol allows."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client

    async def run(self, code: str) -> str | None:
        """The text of the last expression's value, once the kernel is idle again."""
        sent = self._client.execute(code, store_history=False)
        text: str | None = None
        while True:
            message: dict[str, Any] = await self._client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != sent:
                continue
            if message["msg_type"] == "execute_result":
                text = message["content"]["data"]["text/plain"]
            if message["content"].get("execution_state") == "idle":
                break
        while True:
            reply: dict[str, Any] = await self._client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == sent:
                return text


@asynccontextmanager
async def ipykernel(folder: Path) -> AsyncGenerator[Kernel]:
    """A kernel of this interpreter, through jupyter_client's asynchronous client."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    # A spec of our own: which kernels a machine has registered must not matter.
    spec = folder / "kernels" / "here"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "here", "language": "python"})
    )
    manager = AsyncKernelManager(
        kernel_name="here",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder / "kernels")]),
        connection_file=str(folder / "connection.json"),
    )
    await manager.start_kernel(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})
    try:
        client = manager.client()
        client.start_channels()
        try:
            with anyio.fail_after(60):
                await client.wait_for_ready(timeout=60)
            yield Kernel(client)
        finally:
            client.stop_channels()
    finally:
        with anyio.CancelScope(shield=True):
            await manager.shutdown_kernel(now=True)
