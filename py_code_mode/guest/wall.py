"""The outer wall: what stands around a zygote and all its sessions, before any package is imported.

Run as ``python -I -S __main__.py wall FD``: makes namespaces and a root that holds only what the
plan names, becomes an ordinary user, and executes the plan's command as process 1. It speaks with
the host over the descriptor: reads its plan, asks for its user map where the host is root, and says
what failed. After the command was executed the descriptor is the command's.

On a host whose root we are the folders of the plan keep their owners: each is mounted with its
owner mapped to the user inside (`man 2 mount_setattr`, MOUNT_ATTR_IDMAP), so that files made inside
belong to that owner outside.
"""

from __future__ import annotations

import json
import os
import signal
import socket

from . import walls
from .confine import Kernel, find_machine
from .errors import ConfinementFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_PLAN = 1 << 17


def main(fd: int) -> None:
    """Build the wall of the plan that comes over `fd`, and run its command inside."""
    host = socket.socket(fileno=fd)
    try:
        _build(host, json.loads(host.recv(MAX_PLAN)))
    except ConfinementFailed as error:
        _tell(host, {"t": "failed", "step": error.step, "reason": error.reason})
    except OSError as error:
        _tell(host, {"t": "failed", "step": "wall", "reason": str(error)})
    os._exit(1)


def _tell(host: socket.socket, message: dict[str, Any]) -> None:
    try:
        host.send(json.dumps(message).encode())
    except OSError:
        os._exit(1)  # nobody is there to be told


def _build(host: socket.socket, plan: dict[str, Any]) -> NoReturn:
    user: int | None = plan["user"]
    trees: list[tuple[str, int, int]] = []
    if user is not None:
        # while we are root, who alone may say what owners look like
        trees = _open(plan["trees"])
        _map_owners(trees, plan["owners"], user)
    uid, gid = os.geteuid(), os.getegid()
    walls.unshare(walls.NAMESPACES | (0 if plan["shares_network"] else walls.NEWNET))
    if user is None:
        walls.map_own_user(uid, gid)
    else:
        _tell(host, {"t": "map"})
        host.recv(64)  # the host has written our maps; its end, should it have ended, comes later
    child = os.fork()
    if child:
        host.close()
        # nothing but this process's exit tells the host of the end of the one inside
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    walls.make_private()
    if user is None:
        trees = _open(plan["trees"])
    if not plan["shares_network"]:
        walls.raise_loopback()
    walls.build_root(plan["stage"], trees, [(path, target) for path, target in plan["links"]])
    socket.sethostname("sandbox")
    os.umask(0o022)
    os.setsid()
    kernel = Kernel()
    kernel.forgo_new_privileges()
    kernel.empty_bounding_set()
    if user is not None:
        kernel.become(walls.USER, walls.USER)
    kernel.drop_capabilities(find_machine())
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    host.set_inheritable(True)
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def _open(trees: list[tuple[str, str, bool]]) -> list[tuple[str, int, int]]:
    attributes = walls.NO_SUID | walls.NO_DEVICES
    return [
        (place, walls.open_tree(source), attributes | (0 if is_writable else walls.READ_ONLY))
        for source, place, is_writable in trees
    ]


def _map_owners(
    trees: list[tuple[str, int, int]], owners: dict[str, tuple[int, int]], user: int
) -> None:
    """Have what belongs to an owner outside belong to our user inside."""
    made: dict[tuple[int, int], int] = {}
    for path, tree, attributes in trees:
        if path not in owners:
            continue
        uid, gid = owners[path]
        if (uid, gid) not in made:
            made[uid, gid] = _user_namespace(f"{uid} {user} 1\n", f"{gid} {user} 1\n")
        try:
            walls.limit_tree(tree, 0, made[uid, gid])
        except ConfinementFailed as error:
            # a file system that cannot (man 2 mount_setattr lists those that can): what everybody
            # may read can be read all the same, but nothing can be written
            if not attributes & walls.READ_ONLY:
                reason = (
                    f"{path} belongs to user {uid} and cannot be made writable to the sandbox: "
                    f"{error.reason}"
                )
                raise ConfinementFailed("mounts", reason, error.errno) from error
    for fd in made.values():
        os.close(fd)


def _user_namespace(users: str, groups: str) -> int:
    """A descriptor of a user namespace with these maps, in which nobody lives."""
    ready, tell = os.pipe()
    wait, done = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done)  # else the read below would wait for ourselves
        try:
            walls.unshare(walls.NEWUSER)
            os.write(tell, b"x")
            os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        if os.read(ready, 1) != b"x":
            raise ConfinementFailed("mounts", "no user namespace to map owners with")
        walls.map_user(str(child), users, groups, allow_groups=True)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(done)
        os.waitpid(child, 0)
