"""The host's side of a sandboxed session: its keeper, and the processes that keeper tells of.

A session's processes are not children of this one. They are reached by descriptors (`man 2
pidfd_open`), which cannot come to mean another process, and their ends are told by the keeper,
whose own end is the end of them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread

from py_code_mode.errors import ConfinementFailed, GuestDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from py_code_mode.results import Limit
    from py_code_mode.sandbox.cgroup import Group

#: Seconds for a session's walls to be made and its worker to be confined.
START_TIMEOUT = 30.0
#: Seconds from the end of our socket to the end of everything in the session.
END_TIMEOUT = 10.0
_MAX_MESSAGE, _MAX_FDS = 1 << 16, 4
_KILLED = -int(signal.SIGKILL)


class KeptProcess:
    """A worker in a sandbox, in the terms of `worker.Process`."""

    def __init__(self, keeper: Keeper, pidfd: int, on_exit: Callable[[int, Limit | None], None]):
        self._keeper = keeper
        self._pidfd = pidfd
        self._on_exit = on_exit
        self._exited = anyio.Event()
        self.status: int | None = None

    def interrupt(self) -> None:
        """Send SIGINT to the worker, not to its children."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End this worker at once; the keeper then tells of its exit."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.status is None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return  # it has ended, and we are about to hear of it
            except OSError:
                self._keeper.end()  # it cannot be ended alone (man 2 pidfd_send_signal): end it all

    def exited(self, status: int, limit: Limit | None) -> None:
        """Called by the keeper's side, once."""
        if self.status is None:
            self.status = status
            os.close(self._pidfd)
            self._exited.set()
            self._on_exit(status, limit)

    async def wait(self) -> None:
        """Return when it has exited."""
        await self._exited.wait()


class Keeper:
    """One sandbox, from the first message to the end of its last process.

    Args:
        sock: our end of the keeper's socket (SOCK_SEQPACKET); owned by this.
        group: the session's control group, which is removed at the end.

    Attributes:
        files: bytes that the session's files took of its memory when that last ended a worker.
    """

    def __init__(self, sock: socket.socket, group: Group | None = None) -> None:
        sock.setblocking(False)
        self.files = 0
        self._socket = sock
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._processes: dict[int, KeptProcess] = {}
        self._unclaimed: dict[int, tuple[int, Limit | None]] = {}
        self._pidfd = -1
        self._failure: ConfinementFailed | None = None
        self._changed = anyio.Event()
        self._started: tuple[int, int] | None = None
        self._unwanted = 0  # workers that were asked for by callers who were cancelled
        self._is_admitted = True
        self._cleared = 0
        self._adopting: dict[int, asyncio.Future[int]] = {}
        self._is_over = False
        self._listener: socket.socket | None = None
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def is_over(self) -> bool:
        """Whether the sandbox has ended."""
        return self._is_over

    def count_kills(self) -> int:
        """How many processes of the session the kernel has ended at the limit of its group."""
        try:
            return 0 if self._group is None else self._group.count_kills()
        except OSError:
            return 0  # no descriptor is free, or the group has just been removed

    # -- what it says

    def _readable(self) -> None:
        try:
            body, fds, flags, _ = socket.recv_fds(
                self._socket, _MAX_MESSAGE, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, ConnectionResetError):
            return  # reset: it ended without having read all; what it said can still be read
        except OSError:
            body, fds, flags = b"", [], 0
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            reason = "descriptors were lost: this process has too many open files"
            self._failure = ConfinementFailed("keeper", reason)
            body = b""
        if not body:
            self._over()
            return
        message = cast("dict[str, Any]", json.loads(body))
        match message["t"]:
            case "kept":
                self._pidfd, *rest = fds
                if rest:
                    self._listener = socket.socket(fileno=rest[0])
            case "started":
                self._unclaimed.pop(message["pid"], None)  # another's, who had this number before
                if self._unwanted:
                    self._unwanted -= 1
                    os.close(fds[0])  # it ends without its socket
                else:
                    self._started = (message["pid"], fds[0])
            case "failed":
                self._failure = ConfinementFailed(message["step"], message["reason"])
            case "admitted":
                self._is_admitted = True
            case "cleared":
                self._cleared += 1
            case "adopted":
                self._unclaimed.pop(message["pid"], None)
                adopting = self._adopting.pop(message["pid"], None)
                if adopting is not None and not adopting.done():
                    adopting.set_result(fds[0] if fds else -1)
                else:
                    for fd in fds:  # nobody waits for it any more; it ends without its socket
                        os.close(fd)
            case _:
                self.files = message["files"]
                self._exited(message["pid"], message["status"], message["limit"])
        self._notify()

    def _exited(self, pid: int, status: int, limit: Limit | None) -> None:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.exited(status, limit)
        else:
            self._unclaimed[pid] = (status, limit)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _over(self) -> None:
        """The keeper is gone, and with it all of the session."""
        if self._is_over:
            return
        self._is_over = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._started is not None:
            os.close(self._started[1])  # nobody has taken it
            self._started = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.exited(_KILLED, None)
        for adopting in self._adopting.values():
            if not adopting.done():
                adopting.set_result(-1)
        self._adopting.clear()
        self._notify()

    # -- what it is asked for

    async def made(self) -> None:
        """Wait until the session's walls stand.

        Raises:
            ConfinementFailed: a layer failed, or the keeper ended or said nothing in time.
        """
        with anyio.move_on_after(START_TIMEOUT):
            while self._pidfd < 0 and self._failure is None and not self._is_over:
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if self._is_over:
            raise ConfinementFailed("keeper", "it ended while it started")
        if self._pidfd < 0:
            raise ConfinementFailed("keeper", f"it said nothing for {START_TIMEOUT:g} s")

    def admit(self, packages: str | None) -> None:
        """Show the session its packages, a folder as seen inside the wall; see `admitted`."""
        self._is_admitted = False
        self._tell({"t": "admit", "packages": packages})

    def take_listener(self) -> socket.socket | None:
        """The listener of the guest's way to the hosts it may reach: the caller's from now on.

        It is there once the first worker is.
        """
        listener, self._listener = self._listener, None
        return listener

    def ask_for_worker(self, fds: tuple[int, int, int]) -> None:
        """Have a worker started with these descriptors (`Ends.fds`); one at a time.

        They stay the caller's.
        """
        self._tell({"t": "worker"}, fds)

    async def worker(self) -> tuple[int, int]:
        """The worker that was asked for: its pid inside, and a pidfd that is the caller's.

        Raises:
            ConfinementFailed: a layer failed; nothing was run.
            GuestDied: the sandbox ended, or said nothing in time.
        """
        try:
            await self._until(lambda: self._started is not None)
        except BaseException:
            if self._started is None:
                self._unwanted += 1
            else:
                os.close(self._take_started()[1])
            raise
        return self._take_started()

    def _take_started(self) -> tuple[int, int]:
        assert self._started is not None
        started, self._started = self._started, None
        return started

    async def admitted(self) -> None:
        """Wait until the keeper has shown the packages, and given up its right to change mounts.

        Raises:
            ConfinementFailed, GuestDied: as `worker`.
        """
        await self._until(lambda: self._is_admitted)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        with anyio.move_on_after(START_TIMEOUT):
            while not self._is_over and self._failure is None:
                if is_so():
                    return
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        raise GuestDied(
            "ended while its sandbox was made"
            if self._is_over
            else f"said nothing for {START_TIMEOUT:g} s while its sandbox was made"
        )

    def attach(
        self, pid: int, pidfd: int, on_exit: Callable[[int, Limit | None], None]
    ) -> KeptProcess:
        """Follow a worker; `on_exit` gets its status, and the limit for which it was killed.

        Args:
            pid: inside the session.
            pidfd: owned by the process from now on.
        """
        process = KeptProcess(self, pidfd, on_exit)
        if self._is_over:
            self._loop.call_soon(process.exited, _KILLED, None)
        elif pid in self._unclaimed:
            self._loop.call_soon(process.exited, *self._unclaimed.pop(pid))
        else:
            self._processes[pid] = process
        return process

    async def adopt(self, pid: int) -> int:
        """A pidfd, the caller's, of a sleeping copy that was woken, as a worker from now on.

        Args:
            pid: inside the session, as the copy says.

        Raises:
            GuestDied: there is no such process any more, or it is another worker.
        """
        pidfd = -1
        # of a worker that is followed already nobody would hear the end
        if not self._is_over and pid not in self._processes:
            self._tell({"t": "adopt", "pid": pid})
            adopting = self._adopting[pid] = self._loop.create_future()
            try:
                with anyio.move_on_after(END_TIMEOUT):
                    pidfd = await adopting
            except BaseException:
                if adopting.done() and not adopting.cancelled() and adopting.result() >= 0:
                    os.close(adopting.result())
                raise
        if pidfd < 0:
            raise GuestDied("was not woken: its copy is gone")
        return pidfd

    def pace(self, is_busy: bool) -> None:
        """Have memory looked at often, or now and then."""
        self._tell({"t": "busy" if is_busy else "idle"})

    async def end_forks(self, seconds: float) -> None:
        """End what the worker's code has forked in so many seconds; returns when it has ended.

        Programs that it has started stay.
        """
        # a point in time: what has forked that much may keep the keeper waiting for a processor
        since = time.clock_gettime(time.CLOCK_BOOTTIME) - seconds
        await self._ask_to_clear({"t": "end_forks", "since": since})

    def spare(self, pids: Iterable[int]) -> None:
        """Name the sleeping copies, which a limit that is hit does not end."""
        self._tell({"t": "spare", "pids": list(pids)})

    async def clear(self, spared: Iterable[int], *, is_shared: bool = False) -> None:
        """End every process but these and theirs; returns when they have ended.

        Args:
            spared: pids inside.
            is_shared: others use it too, whose copies may not all be known yet.
        """
        await self._ask_to_clear({"t": "clear", "pids": list(spared), "shared": is_shared})

    async def _ask_to_clear(self, message: Mapping[str, Any]) -> None:
        before = self._cleared
        self._tell(message)
        with anyio.move_on_after(END_TIMEOUT):
            while self._cleared == before and not self._is_over:
                await self._changed.wait()

    def _tell(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        if self._is_over:
            return
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], fds)
        except OSError:
            self.end()  # it is gone, or reads nothing any more

    def end(self) -> None:
        """End everything in the session at once; `close` waits for it."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return  # it has ended already

    async def close(self) -> None:
        """End everything in the session, and return when it has ended."""
        with anyio.CancelScope(shield=True):
            if not self._is_over:
                # its end of the socket stays readable: it closes when the last process is gone
                self._socket.shutdown(socket.SHUT_WR)
                with anyio.move_on_after(END_TIMEOUT):
                    while not self._is_over:
                        await self._changed.wait()
            self._over()
            if self._pidfd >= 0:
                self.end()
                pidfd, self._pidfd = self._pidfd, -1
                await _ended(pidfd)
            if self._group is not None and not self._group.remove_now():
                await anyio.to_thread.run_sync(self._group.remove)


async def _ended(pidfd: int) -> None:
    """Close the descriptor of a process once that has ended."""
    ended = anyio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        with anyio.move_on_after(END_TIMEOUT):
            await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
