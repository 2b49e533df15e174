"""Tries what a sandbox needs, one child process for each, and prints what happened as JSON.

Run by `probe` as a script of its own, ``python -I -S attempts.py ROOT SCRATCH USER [NAME...]``: one
single thread, so that it may fork and make namespaces, which the host process may not. ROOT is the
folder of the py_code_mode package, SCRATCH an empty folder on the file system of workdirs, USER
whom sandboxed code is to run as, empty for ourselves; without names all is tried. Each child leads
no life of its own: it ends within its alarm, and nothing it makes outlives its namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
_REC, _PRIVATE, _NOSUID, _NODEV, _NOEXEC = 16384, 1 << 18, 2, 4, 8
_SECONDS = 1  # longest life of one attempt
_MOST = 4096
_PDEATHSIG = 1

_user = ""
_libc = ctypes.CDLL(None, use_errno=True)


def _check(answer: int, what: str) -> None:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(
    source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None
) -> None:
    words = (word.encode() if word is not None else None for word in (source, target, kind))
    options = data.encode() if data is not None else None
    _check(_libc.mount(*words, ctypes.c_ulong(flags), options), f"mounting {kind or source}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _namespaces(flags: int) -> None:
    """New namespaces inside a new user namespace in which we are root."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(NEWUSER | flags), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def user_namespace(scratch: str) -> None:
    _namespaces(0)
    if os.getuid() != 0:
        raise OSError(errno.EPERM, "the user map was not taken")


def mount_namespace(scratch: str) -> None:
    _namespaces(NEWNS)
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", scratch, "tmpfs", _NOSUID | _NODEV, "size=64k")
    _write(os.path.join(scratch, "file"), "x")
    _mount(scratch, scratch, None, 4096)


def pid_namespace(scratch: str) -> None:
    _namespaces(NEWPID | NEWNS)
    child = os.fork()
    if child == 0:
        try:
            _libc.prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getpid() != 1:
                os._exit(errno.EPERM)
            _mount("none", "/", None, _REC | _PRIVATE)
            _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
            os._exit(0 if {name for name in os.listdir("/proc") if name.isdigit()} == {"1"} else 1)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, f"an own /proc: {os.strerror(code)}")


def network_namespace(scratch: str) -> None:
    _namespaces(NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        fcntl.ioctl(made, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=_SECONDS).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        # a datagram's connect sends nothing: it asks for a route, and there must be none
        if made.connect_ex(("192.0.2.1", 9)) != errno.ENETUNREACH:
            raise OSError(errno.EPERM, "there is a way out of the network namespace")


def ipc_namespace(scratch: str) -> None:
    _namespaces(NEWIPC)


def uts_namespace(scratch: str) -> None:
    _namespaces(NEWUTS)
    socket.sethostname("sandbox")


def cgroup_namespace(scratch: str) -> None:
    _namespaces(NEWCGROUP)


def other_user(scratch: str) -> dict[str, Any]:
    if not _user:
        return {"detail": "not needed: we are not root"}
    _confine().Kernel().become(int(_user), int(_user))
    return {"detail": f"uid {_user}"}


def overlayfs(scratch: str) -> None:
    _namespaces(NEWNS)
    _mount("none", "/", None, _REC | _PRIVATE)
    parts = {name: os.path.join(scratch, name) for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        os.mkdir(part)
    _write(os.path.join(parts["lower"], "file"), "below")
    options = "lowerdir={lower},upperdir={upper},workdir={work}".format(**parts)
    _mount("overlay", parts["merged"], "overlay", _NOSUID | _NODEV, options + ",userxattr")
    _write(os.path.join(parts["merged"], "file"), "above")
    with open(os.path.join(parts["lower"], "file")) as file:
        if file.read() != "below":
            raise OSError(errno.EIO, "a write went through to the lower folder")


def _confine() -> Any:
    return import_module("py_code_mode.guest.confine")


def landlock(scratch: str) -> dict[str, Any]:
    confine = _confine()
    kernel = confine.Kernel()
    abi = kernel.landlock_abi()
    if abi == 0:
        raise OSError(errno.EOPNOTSUPP, "the kernel has no Landlock, or it is not enabled")
    kernel.forgo_new_privileges()
    kernel.restrict_files(confine.Confinement(writable=[scratch]), abi)
    _write(os.path.join(scratch, "landlock"), "x")
    try:
        os.listdir("/")
    except PermissionError:
        return {"abi": abi, "detail": f"ABI {abi}", "gaps": confine.gaps(abi)}
    raise OSError(errno.EPERM, "a folder that was not granted could be read")


def seccomp(scratch: str) -> dict[str, Any]:
    confine = _confine()
    compiler = import_module("py_code_mode.guest.seccomp")
    machine = confine.find_machine()
    kernel = confine.Kernel()
    kernel.forgo_new_privileges()
    kernel.filter_calls(machine, compiler.compile_filter(machine))
    if _libc.unshare(0) == 0 or ctypes.get_errno() != errno.EPERM:
        raise OSError(errno.EPERM, "a refused call went through")
    return {"detail": machine if machine == "x86_64" else f"{machine}, which is untested"}


def rlimit_processes(scratch: str) -> None:
    confine = _confine()
    kernel = confine.Kernel()
    kernel.forgo_new_privileges()
    kernel.drop_capabilities(confine.find_machine())  # with some of them the limit does not bind
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        child = os.fork()
    except BlockingIOError:
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise OSError(errno.EPERM, "a process more than the limit could be made")


def memfd_sealing(scratch: str) -> None:
    made = os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(made, 1)  # a page that was written may be held by the kernel: no seal for now
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    try:
        os.write(made, b"y")
    except PermissionError:
        return
    raise OSError(errno.EPERM, "a sealed file could be written")


ATTEMPTS: tuple[Callable[[str], Any], ...] = (
    user_namespace, mount_namespace, pid_namespace, network_namespace, ipc_namespace,
    uts_namespace, cgroup_namespace, other_user, overlayfs, landlock, seccomp, rlimit_processes,
    memfd_sealing,
)  # fmt: skip


def _attempt(function: Callable[[str], Any], scratch: str) -> dict[str, Any]:
    """Try in a child of our own, which reports through a pipe and cannot outlive its alarm."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            _libc.prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            signal.alarm(_SECONDS)
            more: dict[str, Any] = function(scratch) or {}
            told: dict[str, Any] = {"ok": True, **more}
            code = 0
        except OSError as error:
            told = {"ok": False, "errno": error.errno, "detail": error.strerror or str(error)}
        except Exception as error:
            number = getattr(error, "errno", None)
            detail = getattr(error, "reason", "") or str(error) or type(error).__name__
            told = {"ok": False, "errno": number, "detail": detail}
        os.write(writing, json.dumps(told).encode())
        os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read(_MOST)
    status = os.waitpid(child, 0)[1]
    if answer:
        return json.loads(answer)
    how = f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "said nothing"
    return {"ok": False, "errno": None, "detail": how}


def main(root: str, scratch: str, user: str, *names: str) -> None:
    global _user
    _user = user
    sys.path.insert(0, root)
    _confine()  # once, before the children
    for function in ATTEMPTS:
        if names and function.__name__ not in names:
            continue
        folder = os.path.join(scratch, function.__name__)
        os.mkdir(folder)
        told = {"name": function.__name__, **_attempt(function, folder)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
