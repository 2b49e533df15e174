"""A guest's process: started with nothing of ours, told to stop, ended, always reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class GuestProcess:
    """A child in a session and process group of its own.

    Args:
        child: started by `spawn`.
        on_exit: called on the event loop when it has exited, with its status: the exit code, or
            the negative number of the signal that ended it.
    """

    def __init__(self, child: subprocess.Popen[bytes], on_exit: Callable[[int], None]) -> None:
        self._child = child
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._exited = anyio.Event()
        self._pidfd = -1
        self.status: int | None = None
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(child.pid)
            self._loop.add_reader(self._pidfd, self._reap)
        else:
            threading.Thread(target=self._watch, name="guest-watch", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _watch(self) -> None:
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        try:
            self._loop.call_soon_threadsafe(self._reap)
        except RuntimeError:
            return  # the loop is closed: so are we

    def _reap(self) -> None:
        if self.status is not None:
            return
        # Its children, before it is reaped: as long as it is a zombie the group's number is taken.
        self._kill_group()
        self.status = self._child.wait()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._exited.set()
        self._on_exit(self.status)

    def interrupt(self) -> None:
        """Send SIGINT to the guest itself, not to its children."""
        if self.status is None:
            os.kill(self._child.pid, signal.SIGINT)

    def kill(self) -> None:
        """End the process and its group at once."""
        if self.status is None:
            self._kill_group()
            # it may have left its group (setpgid); it is not reaped, so the pid is still its own
            os.kill(self._child.pid, signal.SIGKILL)

    def _kill_group(self) -> None:
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # the group is empty, or only zombies are left (macOS says EPERM)

    async def wait(self) -> None:
        """Return when it has exited and been reaped."""
        await self._exited.wait()


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int],
    workdir: Path | str = "/",
    user: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process with these descriptors and this environment, and nothing else of ours.

    It has a session and a group of its own. With `user` it is that user, in its group alone.

    It blocks for a millisecond or two. A thread would not help, since vfork holds the interpreter's
    lock, and would put an await, where one can be cancelled, between the process and its owner.

    Raises:
        OSError: it could not be started.
    """
    return subprocess.Popen(
        command,
        cwd=workdir,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
        user=user,
        group=user,
        extra_groups=None if user is None else (),
    )


def describe_exit(status: int) -> str:
    """How a process ended, as the end of a sentence that begins with its name."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    hint = " (out of memory, or killed from outside)" if -status == signal.SIGKILL else ""
    return f"was ended by signal {-status} ({name}){hint}"
