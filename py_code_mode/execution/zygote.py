"""Zygotes: one template process per environment and view of the host, from which sessions are made.

They belong to this process, not to a session or an event loop: the next session finds one warm.
A zygote ends with this process (the kernel closes its socket), when it was not used for minutes, or
by `close_zygotes`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import select
import socket
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import anyio.to_thread

from py_code_mode.errors import ConfinementFailed
from py_code_mode.execution.ends import Ends, open_ends
from py_code_mode.execution.launch import GUEST, end_blocking, send_plan, text_of, wall_files
from py_code_mode.execution.process import spawn
from py_code_mode.guest import walls
from py_code_mode.guest.keeper import MAX_PLAN
from py_code_mode.sandbox import bubblewrap
from py_code_mode.sandbox.probe import sandbox_user
from py_code_mode.scratch import Scratch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from py_code_mode.sandbox.cgroup import Group
    from py_code_mode.sandbox.view import View

#: Seconds for a wall to be built and the zygote in it to answer.
START_TIMEOUT = 30.0
#: Seconds for it to end when nobody is at the other end of its socket, before it is killed.
END_TIMEOUT = 30.0
#: Zygotes that are kept though no session uses them.
MOST_IDLE = 4
#: Plans of which sandboxes wait, of one zygote.
MOST_PLANS = 4
#: The folder on which a wall builds its root; only the wall sees it covered.
_STAGE = "/tmp"

Wall = Literal["own", "bubblewrap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """What makes two sessions able to share a zygote.

    Attributes:
        python: the environment's interpreter.
        stamp: changes when the environment is made anew.
        view: what of the host is shown.
        shares_network: it is in the host's network, not in one of its own.
        environment: variables of the process, and of every session.
        preload: modules imported once for all sessions.
        wall: who builds the outer wall.
    """

    python: Path
    stamp: tuple[int, ...]
    view: View
    shares_network: bool
    environment: tuple[tuple[str, str], ...]
    preload: tuple[str, ...]
    wall: Wall = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A sandbox made beforehand, with a worker in it that was greeted; our ends of it."""

    keeper: socket.socket
    group: Group | None
    ends: Ends

    @property
    def is_alive(self) -> bool:
        return _has_other_end(self.keeper)

    def close(self) -> None:
        """Give it up; the kernel ends what is in it."""
        self.keeper.close()
        self.ends.close()


def _has_other_end(sock: socket.socket) -> bool:
    """Whether anybody has the other end of this one; what was said last may be unread yet."""
    if sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock, 0)  # a hang-up is always told
    return not poll.poll(0)


@dataclass(eq=False)
class Zygote:
    """A running template."""

    spec: ZygoteSpec
    process: subprocess.Popen[bytes]
    control: socket.socket
    said: int
    scratch: Scratch
    users: int = 0
    is_preloaded: bool = False
    was_replaced: bool = False
    _waiting: dict[tuple[str, bytes], list[Waiting]] = field(
        default_factory=dict[tuple[str, bytes], list[Waiting]]
    )
    _groups: list[Group] = field(default_factory=list["Group"])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_alive(self) -> bool:
        # inside the wall it may have been killed, a moment before the wall ends
        return _has_other_end(self.control) and self.process.poll() is None

    def request(self, plan: Mapping[str, Any]) -> tuple[socket.socket, Group | None]:
        """Ask for a sandbox.

        Returns:
            our end of its keeper's socket, by which all is told, and its control group if it has
            one; both are the caller's, as for a `Keeper`.

        Raises:
            ConfinementFailed: the plan is too long, or its group cannot be made.
            OSError: the zygote has ended.
        """
        self._remove_groups()
        request = {
            "t": "session",
            "shares_network": self.spec.shares_network,
            "confinement": plan["confinement"],
        }
        body = json.dumps(plan).encode()
        if len(body) > MAX_PLAN:
            reason = f"paths and variables of the policy take {len(body)} bytes, over {MAX_PLAN}"
            raise ConfinementFailed("policy", reason)
        keeper, its_keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_keeper, contextlib.ExitStack() as held:
            held.callback(keeper.close)
            group = send_plan(keeper, body, plan["memory"])
            if group is not None:
                held.callback(self._groups.append, group)
            with self._lock:
                socket.send_fds(self.control, [json.dumps(request).encode()], [its_keeper.fileno()])
            held.pop_all()
        return keeper, group

    def take(self, plan: Mapping[str, Any], greeting: bytes) -> Waiting | None:
        """A sandbox of this plan that was made beforehand, and whose worker was greeted so."""
        waiting = self._waiting.get((json.dumps(plan), greeting), [])
        while waiting:
            taken = waiting.pop(0)
            if taken.is_alive:
                return taken
            self._let_go(taken)
        return None

    def fill(self, plan: Mapping[str, Any], greeting: bytes, count: int) -> None:
        """Have this many sandboxes of a plan wait; they are made while the caller goes on.

        Args:
            greeting: sent to their workers at once.
        """
        if not count:
            return
        waiting = self._waiting.setdefault((json.dumps(plan), greeting), [])
        while len(self._waiting) > MOST_PLANS:
            for forgotten in self._waiting.pop(next(iter(self._waiting))):
                self._let_go(forgotten)
        # the next session finds out what is wrong
        with contextlib.suppress(OSError, ConfinementFailed):
            while len(waiting) < count:
                waiting.append(self._make_waiting(plan, greeting))

    def _make_waiting(self, plan: Mapping[str, Any], greeting: bytes) -> Waiting:
        with open_ends() as (ours, theirs), contextlib.ExitStack() as held:
            keeper, group = self.request(plan)
            held.callback(keeper.close)
            if group is not None:
                held.callback(self._groups.append, group)
            socket.send_fds(keeper, [b'{"t": "worker"}'], theirs.fds)
            ours.guest.sendall(greeting)
            held.pop_all()
        return Waiting(keeper=keeper, group=group, ends=ours)

    def _let_go(self, waiting: Waiting) -> None:
        """Give it up; its processes end by themselves, and its group can be removed then."""
        waiting.close()
        if waiting.group is not None:
            self._groups.append(waiting.group)

    def _remove_groups(self) -> None:
        self._groups = [group for group in self._groups if not group.remove_now()]

    def preload(self, *, waits: bool) -> None:
        """Have it import what sessions are likely to need; once, and not before the first one.

        Args:
            waits: sessions wait until it is done; else they do without.
        """
        if self.is_preloaded or not self.spec.preload:
            return
        self.is_preloaded = True
        body = json.dumps({"t": "preload", "modules": self.spec.preload, "waits": waits}).encode()
        with self._lock, contextlib.suppress(OSError):  # the next request finds it ended
            self.control.send(body)

    def make_overlay(self) -> Path:
        """A folder for one session's packages that the zygote can show it."""
        folder = self.scratch.packages / secrets.token_hex(8)
        folder.mkdir(mode=0o755)
        return folder

    def abandon(self) -> None:
        """Give it up without ending it: in a forked child, whose parent has it."""
        self._hang_up()
        os.close(self.said)
        self.process.returncode = 0  # no child of ours: nobody waits for it, or warns of it

    def close(self) -> None:
        """End it and everything inside; blocks for a few milliseconds."""
        self._hang_up()
        end_blocking(self.process, END_TIMEOUT)
        for group in self._groups:
            group.remove()
        os.close(self.said)
        self.scratch.remove()

    def _hang_up(self) -> None:
        self.control.close()
        for waiting in self._waiting.values():
            while waiting:
                self._let_go(waiting.pop())


@dataclass(eq=False)
class _Claim:
    """One use of a zygote that is being looked for: counted together with finding it.

    Between the two a release by somebody else could take it for idle and end it.
    """

    zygote: Zygote | None = None
    is_given_up: bool = False

    def settle(self, found: Zygote) -> Zygote:
        """Use it, unless nobody waits for it any more; with the registry's lock."""
        if not self.is_given_up:
            found.users += 1
            self.zygote = found
        return found


_zygotes: dict[ZygoteSpec, Zygote] = {}
_registry_lock = threading.Lock()
#: Held by whoever starts one; there as long as anybody has it or waits for it.
_being_started: weakref.WeakValueDictionary[ZygoteSpec, threading.Lock] = (
    weakref.WeakValueDictionary()
)


async def acquire(spec: ZygoteSpec) -> Zygote:
    """The zygote of a spec, started if there is none; `release` it as often.

    Raises:
        ConfinementFailed: the wall cannot be built here, or the zygote does not start in it.
    """
    claim = _Claim()
    with _registry_lock:
        found = _zygotes.get(spec)
        if found is not None and found.is_alive:
            return claim.settle(found)
    try:
        return await anyio.to_thread.run_sync(_find_or_start, spec, claim)
    except BaseException:
        # a cancelled caller leaves a zygote behind for the next one, in the registry
        with _registry_lock:
            claim.is_given_up = True
            if claim.zygote is not None:
                claim.zygote.users -= 1
        raise


async def release(zygote: Zygote) -> None:
    """Give up one use; the zygote stays for the next session, unless there are too many idle."""
    with _registry_lock:
        zygote.users -= 1
        idle = [other for other in _zygotes.values() if not other.users]
        surplus = idle[: max(0, len(idle) - MOST_IDLE)]
        for other in surplus:
            del _zygotes[other.spec]
        if not zygote.users and zygote.was_replaced:
            surplus.append(zygote)
    for other in surplus:
        await anyio.to_thread.run_sync(other.close)


def close_zygotes() -> None:
    """End all zygotes that no session uses."""
    with _registry_lock:
        idle = [zygote for zygote in _zygotes.values() if not zygote.users]
        for zygote in idle:
            del _zygotes[zygote.spec]
    for zygote in idle:
        zygote.close()


atexit.register(close_zygotes)


def _forget_all() -> None:
    """In a forked child the zygotes are its parent's: only the descriptors are ours to close."""
    global _registry_lock  # another thread, which is not here, may have held it
    _registry_lock = threading.Lock()
    _being_started.clear()
    for zygote in _zygotes.values():
        zygote.abandon()
    _zygotes.clear()


os.register_at_fork(after_in_child=_forget_all)


def _find_or_start(spec: ZygoteSpec, claim: _Claim) -> Zygote:
    with _registry_lock:
        starting = _being_started.setdefault(spec, threading.Lock())
    with starting:
        with _registry_lock:
            found = _zygotes.get(spec)
            if found is not None:
                if found.is_alive:
                    return claim.settle(found)
                del _zygotes[spec]
                # sessions that have not noticed yet still have folders in it
                found.was_replaced = bool(found.users)
        if found is not None and not found.was_replaced:
            found.close()
        made = _start(spec)
        with _registry_lock:
            _zygotes[spec] = made
            return claim.settle(made)


def _start(spec: ZygoteSpec) -> Zygote:
    user = sandbox_user()
    scratch = Scratch.make()
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said = os.memfd_create("zygote", os.MFD_CLOEXEC)
    process: subprocess.Popen[bytes] | None = None
    try:
        if user is not None:
            # the user inside must get through to the packages of its sessions
            for folder in (scratch.packages.parent, scratch.packages):
                folder.chmod(0o711)
        command = [str(spec.python), "-I", str(GUEST), "zygote", str(theirs.fileno())]
        with theirs:
            if spec.wall == "bubblewrap":
                process = _start_bubblewrap(spec, scratch, command, theirs.fileno(), said)
            else:
                wall = [str(spec.python), "-I", "-S", str(GUEST), "wall", str(theirs.fileno())]
                process = _spawn(wall, {"LANG": "C.UTF-8"}, [theirs.fileno()], said)
                plan = _wall_plan(spec, scratch, command, user)
                control.send(json.dumps(plan).encode())
        _build(process, control, user)
    except BaseException as error:
        control.close()
        if process is not None:
            end_blocking(process, 0)
        text = text_of(said)
        os.close(said)
        scratch.remove()
        if isinstance(error, OSError):
            reason = f"{error}{': ' + text if text else ''}"
            raise ConfinementFailed("wall", reason, error.errno) from error
        raise
    control.settimeout(START_TIMEOUT)
    return Zygote(spec=spec, process=process, control=control, said=said, scratch=scratch)


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int], said: int
) -> subprocess.Popen[bytes]:
    return spawn(command, environment=environment, stdout=said, stderr=said, pass_fds=pass_fds)


def _start_bubblewrap(
    spec: ZygoteSpec, scratch: Scratch, command: Sequence[str], fd: int, said: int
) -> subprocess.Popen[bytes]:
    """Start the zygote in walls of bubblewrap's, which asks us for nothing."""
    program = bubblewrap.find()
    if program is None:
        raise FileNotFoundError("bubblewrap is not installed any more")
    with wall_files() as files:
        wall = bubblewrap.around_zygote(
            program,
            spec.view,
            overlays=str(scratch.packages),
            files=files,
            shares_network=spec.shares_network,
        )
        return _spawn([*wall, *command], dict(spec.environment), [fd, *files.values()], said)


def _wall_plan(
    spec: ZygoteSpec, scratch: Scratch, command: Sequence[str], user: int | None
) -> dict[str, Any]:
    view = spec.view
    return {
        "user": user,
        "shares_network": spec.shares_network,
        "stage": _STAGE,
        "trees": [*view.trees, (str(scratch.packages), "/overlays", False)],
        "links": view.links,
        "owners": dict(view.owners),
        "command": command,
        "environment": dict(spec.environment),
    }


def _build(process: subprocess.Popen[bytes], control: socket.socket, user: int | None) -> None:
    """See a wall through its building, until the zygote in it answers."""
    control.settimeout(START_TIMEOUT)
    while True:
        body = control.recv(1 << 16)
        if not body:
            raise OSError("it ended while it started")
        message = json.loads(body)
        if message["t"] == "ready":
            return
        if message["t"] == "failed":
            raise ConfinementFailed(message["step"], message["reason"])
        maps = f"0 0 1\n{walls.USER} {user} 1\n"
        walls.map_user(str(process.pid), maps, maps, allow_groups=True)
        control.send(b"mapped")
