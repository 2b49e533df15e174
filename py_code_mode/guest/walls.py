"""Namespaces and mounts: the system calls that walls are made of, each checked.

Used twice: by `wall` around everything (what of the host can be seen at all) and by `keeper` around
one session. Whoever calls them is trusted and single-threaded.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct

from .errors import ConfinementFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
#: What every wall has; a network of its own is added where the policy wants it.
NAMESPACES = NEWUSER | NEWNS | NEWPID | NEWIPC | NEWUTS | NEWCGROUP

#: Our uid and gid inside; root is nobody in here.
USER = 1000

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# the same on every architecture
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_PATH_ONLY, _NO_SYMLINKS = os.O_PATH | os.O_CLOEXEC, 4
_HERE, _EMPTY_PATH, _RECURSIVE, _CLONE_TREE, _CLOSE_ON_EXEC = -100, 0x1000, 0x8000, 1, 0o2000000
_MOVE_FROM_EMPTY_PATH = 4
READ_ONLY, NO_SUID, NO_DEVICES, _ID_MAPPED = 1, 2, 4, 0x100000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_DETACH = 2
DEVICES = ("null", "zero", "full", "random", "urandom")
#: What of /etc is not the host's.
FILES = {
    "passwd": f"user:x:{USER}:{USER}::/home/user:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "group": f"user:x:{USER}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
#: Folders that a session mounts its own over.
MOUNT_POINTS = ("proc", "dev/shm", "tmp", "work", "home/user", "packages", "overlays", "session")
_PDEATHSIG, _SET_NAME, _CHILD_SUBREAPER = 1, 15, 36
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x1 | 0x40

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _must(step: str, what: str, function: Any, *arguments: Any) -> int:
    ctypes.set_errno(0)
    words = (
        ctypes.c_ulong(x & (1 << 64) - 1) if isinstance(x, int) else x and os.fsencode(x)
        if x is None or isinstance(x, str) else x
        for x in arguments
    )  # fmt: skip
    answer: int = function(*words)
    if answer < 0:
        number = ctypes.get_errno()
        name = errno.errorcode.get(number, str(number))
        raise ConfinementFailed(step, f"{what}: {os.strerror(number)} ({name})", number)
    return answer


# -- namespaces


def unshare(flags: int) -> None:
    """Move into new namespaces (`NEWPID`: the children do)."""
    _must("namespaces", f"unshare({flags:#x})", _libc.unshare, flags)


def map_own_user(uid: int, gid: int) -> None:
    """Be `USER` in the new user namespace we are in; nobody else exists in it.

    Args:
        uid, gid: who we were before.
    """
    map_user("self", f"{USER} {uid} 1\n", f"{USER} {gid} 1\n", allow_groups=False)


def map_user(process: str, users: str, groups: str, *, allow_groups: bool) -> None:
    """Write the maps of a process in a new user namespace (`man 7 user_namespaces`)."""
    try:
        if not allow_groups:
            _write(f"/proc/{process}/setgroups", "deny")
        _write(f"/proc/{process}/uid_map", users)
        _write(f"/proc/{process}/gid_map", groups)
    except OSError as error:
        raise ConfinementFailed("namespaces", f"mapping the user: {error}", error.errno) from error


def _write(path: str, text: str) -> None:
    # one write: the kernel takes a map whole or not at all
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def raise_loopback() -> None:
    """Give the new network namespace its loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            fcntl.ioctl(made, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
        except OSError as error:
            raise ConfinementFailed("network", f"loopback: {error}", error.errno) from error


def die_with_parent() -> None:
    """Have the kernel kill us when our parent ends, also where we are a namespace's process 1."""
    _must("namespaces", "PR_SET_PDEATHSIG", _libc.prctl, _PDEATHSIG, 9, 0, 0, 0)


def name_process(name: str) -> None:
    """Set what ps and top call this process; at most 15 characters."""
    _must("namespaces", "PR_SET_NAME", _libc.prctl, _SET_NAME, name, 0, 0, 0)


def adopt_orphans() -> None:
    """Be the parent of whatever our descendants leave behind."""
    _must("namespaces", "PR_SET_CHILD_SUBREAPER", _libc.prctl, _CHILD_SUBREAPER, 1, 0, 0, 0)


# -- mounts


def mount(kind: str, target: str, flags: int = 0, options: str = "") -> None:
    """Mount a new file system of a kind (tmpfs, proc)."""
    _must("mounts", f"mounting {kind} at {target}", _libc.mount, kind, target, kind, flags, options)


def bind(source: str, target: str) -> None:
    """Show a folder at another place too."""
    _must(
        "mounts", f"binding {source} at {target}",
        _libc.mount, source, target, None, _MS_BIND | _MS_REC, None,
    )  # fmt: skip


def make_private() -> None:
    """Let no mount of ours be seen outside, nor one of the outside here."""
    _must("mounts", "private mounts", _libc.mount, None, "/", None, _MS_REC | _MS_PRIVATE, None)


def detach(target: str) -> None:
    _must("mounts", f"unmounting {target}", _libc.umount2, target, _DETACH)


def open_tree(path: str) -> int:
    """A copy of the mounts at and below `path`, attached nowhere.

    No part of the path may be a symbolic link (`man 2 openat2`): those who may write above it would
    choose what is shown.
    """
    what = f"opening {path}"
    how = ctypes.create_string_buffer(struct.pack("=QQQ", _PATH_ONLY, 0, _NO_SYMLINKS), 24)
    found = _must("mounts", what, _libc.syscall, _OPENAT2, _HERE, path, how, 24)
    try:
        flags = _CLONE_TREE | _CLOSE_ON_EXEC | _RECURSIVE | _EMPTY_PATH
        return _must("mounts", what, _libc.syscall, _OPEN_TREE, found, "", flags)
    finally:
        os.close(found)


def attach_tree(tree: int, target: str) -> None:
    """Attach what `open_tree` gave; it stays the caller's to close."""
    _must(
        "mounts", f"attaching {target}",
        _libc.syscall, _MOVE_MOUNT, tree, "", _HERE, target, _MOVE_FROM_EMPTY_PATH,
    )  # fmt: skip


def limit_tree(tree: int, attributes: int, user_namespace: int = 0) -> None:
    """Set attributes of a tree (`man 2 mount_setattr`); with a user namespace map its owners."""
    if user_namespace:
        attributes |= _ID_MAPPED
    wanted = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, user_namespace), 32)
    flags = _EMPTY_PATH | _RECURSIVE
    _must(
        "mounts", "limiting a mount",
        _libc.syscall, _MOUNT_SETATTR, tree, "", flags, wanted, 32,
    )  # fmt: skip


def limit_mount(path: str, attributes: int) -> None:
    """Set attributes of one mount, not of those below it."""
    wanted = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    _must("mounts", f"limiting {path}", _libc.syscall, _MOUNT_SETATTR, _HERE, path, 0, wanted, 32)


def change_root(folder: str) -> None:
    """Make a mounted folder the root, and let go of the old one."""
    os.chdir(folder)
    # both at one place: the old root lies on top of the new one until it is taken off (man 2
    # pivot_root), so no folder is needed for it
    number = _PIVOT_ROOT[os.uname().machine]
    _must("mounts", "changing the root", _libc.syscall, number, ".", ".")
    detach(".")
    os.chdir("/")


def build_root(stage: str, trees: list[tuple[str, int, int]], links: list[tuple[str, str]]) -> None:
    """Make a root of nothing but `trees`, devices, and folders for a session's own mounts.

    Args:
        stage: an existing folder to build on; only this process sees that it is covered.
        trees: where each is shown, the tree, the attributes of its mounts.
        links: symbolic links, path and target, such as /bin to usr/bin.
    """
    devices = [(f"/dev/{name}", open_tree(f"/dev/{name}"), NO_SUID) for name in DEVICES]
    mount("tmpfs", stage, _MS_NOSUID | _MS_NODEV, "mode=755,size=4m")
    for point in MOUNT_POINTS:
        os.makedirs(f"{stage}/{point}", exist_ok=True)
    os.makedirs(f"{stage}/etc", exist_ok=True)
    mount("tmpfs", f"{stage}/tmp", _MS_NOSUID | _MS_NODEV, "mode=1777,size=64m")
    for name, text in FILES.items():
        with open(f"{stage}/etc/{name}", "w") as file:
            file.write(text)
    # folders before what lies in them
    for path, tree, attributes in sorted([*trees, *devices]):
        _make_place(stage + path, tree)
        limit_tree(tree, attributes)
        attach_tree(tree, stage + path)
        os.close(tree)
    for path, target in links:
        os.makedirs(os.path.dirname(stage + path), exist_ok=True)
        if not os.path.lexists(stage + path):
            os.symlink(target, stage + path)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{stage}/dev/{name}")
    mount("proc", f"{stage}/proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    limit_mount(stage, READ_ONLY | NO_SUID | NO_DEVICES)
    change_root(stage)


def _make_place(target: str, tree: int) -> None:
    """Make what a tree can be attached to: a folder, or a file."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def build_session_folders(size: int | None, inodes: int, covered: list[str]) -> None:
    """Mount what belongs to one session only: its files, all on one file system, and its /proc.

    Args:
        size: bytes that all its files may take; None means half of the memory.
        inodes: files that it may have.
        covered: places beneath the session's folders that are to be seen all the same.
    """
    make_private()
    trees = [(place, open_tree(place)) for place in sorted(covered)]
    limit = f",size={size}" if size is not None else ""
    mount("tmpfs", "/session", _MS_NOSUID | _MS_NODEV, f"mode=755,nr_inodes={inodes}{limit}")
    for name, target, mode in (
        ("work", "/work", 0o755),
        ("home", "/home/user", 0o755),
        ("tmp", "/tmp", 0o1777),
        ("shm", "/dev/shm", 0o1777),
    ):
        os.mkdir(f"/session/{name}")
        os.chmod(f"/session/{name}", mode)
        bind(f"/session/{name}", target)
    detach("/session")
    for place, tree in trees:
        _make_place(place, tree)
        attach_tree(tree, place)
        os.close(tree)
    mount("proc", "/proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def show_packages(source: str | None) -> None:
    """Show a session's own packages at /packages, and those of no other session."""
    if source is not None:
        bind(source, "/packages")
    mount("tmpfs", "/overlays", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=555,size=4k,ro")
