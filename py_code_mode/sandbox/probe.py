"""What this machine can enforce, found by trying.

A kernel's version says little: distributions and containers switch layers off in many ways. So each
layer is tried in a short-lived process of its own, and what failed is told with its errno and what
to do. Nothing is left behind, and a probe takes at most `DEADLINE` seconds.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from py_code_mode.guest.confine import FULL_ABI
from py_code_mode.sandbox import bubblewrap, cgroup

Backend = Literal["namespaces", "bubblewrap", "landlock", "none"]

#: The host's user that a root host's sandboxes run as: nobody's, and within the 16 bits that a
#: container may be limited to. systemd.io/UIDS-GIDS lists what is taken.
SANDBOX_USER = 65_520
#: Seconds after which what has not answered counts as failed.
DEADLINE = 1.5
#: The same for the second try, where there was no answer.
_SECOND_DEADLINE = 10.0
_SILENT = "gave no answer in time"
_REAP = 1.0
ATTEMPTS = Path(__file__).with_name("attempts.py")
_ROOT = ATTEMPTS.parents[2]
_NESTED = "pid_namespace"

NAMESPACES = (
    "user_namespace", "mount_namespace", "pid_namespace", "network_namespace", "ipc_namespace",
    "uts_namespace", "cgroup_namespace",
)  # fmt: skip
#: Every layer, in the order in which they are reported.
LAYERS = (
    *NAMESPACES, "other_user", "landlock", "seccomp", "bubblewrap", "overlayfs", "cgroup_limits",
    "rlimit_processes", "memfd_sealing",
)  # fmt: skip

#: Layers that walls are not built from: without them less is limited, or it is slower.
_NOT_FOR_WALLS = ("overlayfs", "cgroup_limits", "rlimit_processes", "memfd_sealing")

_REMEDIES = {
    "user_namespace": "allow user namespaces (sysctl user.max_user_namespaces), or install "
    "bubblewrap",
    "pid_namespace": "a container that masks parts of /proc refuses an own /proc: run outside it, "
    "or with /proc unmasked",
    "other_user": "sandboxed code is not to run as root: start the container with the capabilities "
    "SETUID, SETGID and SETFCAP, or run as another user",
    "landlock": "use Linux 6.12 or later (5.13 for files only), with landlock in the lsm= boot "
    "option",
    "seccomp": "use a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64",
    "bubblewrap": "install bubblewrap with the system's package manager",
    "overlayfs": "use Linux 5.11 or later, and a temporary folder on a file system with extended "
    "attributes, such as ext4 or xfs",
    "cgroup_limits": "start as root, or with version 2 as a systemd service with Delegate=memory "
    "and DelegateSubgroup=; without it memory is watched, and what no process maps is not counted",
    "rlimit_processes": "the limit on processes does not bind uid 0: run as another user, or let "
    "the sandbox give workers one of their own",
    "memfd_sealing": "use Linux 3.17 or later; without it large values go through the socket",
}
_NAMESPACE_REMEDY = "allow this namespace for unprivileged users, or run outside the container"
_NOT_LINUX = "there is no sandbox on this system: use Linux, or WSL 2 on Windows"


def sandbox_user() -> int | None:
    """Whom sandboxed code is to run as: somebody else where we are root, None for ourselves.

    A root that cannot become `SANDBOX_USER`, in a user namespace of its own, is root in name only.
    """
    if os.geteuid() != 0:
        return None
    for line in (_reads("/proc/self/uid_map") or "").splitlines():
        first, _, count = map(int, line.split())
        if first <= SANDBOX_USER < first + count:
            return SANDBOX_USER
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One thing that a sandbox can be made of.

    Attributes:
        name: one of `LAYERS`.
        is_ok: it was tried and held.
        error: errno of what failed; None where all is well or none was given.
        detail: what was found, or what failed.
        remedy: what to do about a failure; empty where all is well.
    """

    name: str
    is_ok: bool
    error: int | None = None
    detail: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        if self.is_ok:
            return f"{self.name}: ok{f' ({self.detail})' if self.detail else ''}"
        code = f" [{errno.errorcode.get(self.error, self.error)}]" if self.error else ""
        return f"{self.name}: failed{code}: {self.detail}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What this machine can enforce, for the user who asked.

    Attributes:
        layers: one for each of `LAYERS`, in that order.
        landlock_abi: 0 where there is none.
        landlock_gaps: what this Landlock leaves open, in words.
        bubblewrap: version, where it is installed and works.
        nests: in bubblewrap's walls further namespaces can be made, as a zygote does; asked for an
            unprivileged user only.
        memory_groups: where a session's memory can be held as a whole.
        uid: who asked.
        duration: seconds it took.
    """

    layers: tuple[Layer, ...]
    landlock_abi: int = 0
    landlock_gaps: tuple[str, ...] = ()
    bubblewrap: str | None = None
    nests: bool = False
    memory_groups: cgroup.Place | None = None
    uid: int = field(default_factory=lambda: os.geteuid() if hasattr(os, "geteuid") else -1)
    duration: float = 0.0

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """What a sandbox can be built from here, best first; ``none`` is always the last."""
        found: list[Backend] = []
        layers = ("other_user", "landlock", "seccomp")
        self_confining = all(self[name].is_ok for name in layers)
        if self_confining and all(self[name].is_ok for name in NAMESPACES):
            found.append("namespaces")
        if self_confining and self["bubblewrap"].is_ok:
            found.append("bubblewrap")
        # without a namespace in front nothing else keeps signals and sockets inside
        if self_confining and self.landlock_abi >= FULL_ABI:
            found.append("landlock")
        return (*found, "none")

    @property
    def failures(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if not layer.is_ok)

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why there are not all of `backends`, in words."""
        failed = [layer for layer in self.failures if layer.name not in _NOT_FOR_WALLS]
        gaps = () if "landlock" in self.backends else self.landlock_gaps
        return (*map(str, failed), *gaps)


@functools.cache
def probe() -> Probe:
    """What this machine can enforce; tried once in a process, which takes up to `DEADLINE`.

    Longer where the machine is so busy that there was no answer: that is no reason to go without.
    """
    with _trying:  # many that try at once keep each other from answering in time
        return _examined()


@functools.cache
def _examined() -> Probe:
    found = examine()
    if any(_SILENT in layer.detail for layer in found.failures):
        return examine(deadline=_SECOND_DEADLINE)
    return found


_trying = threading.Lock()


def examine(*, attempts: Path = ATTEMPTS, deadline: float = DEADLINE) -> Probe:
    """Try every layer now.

    Args:
        attempts: the script that tries, and prints a JSON object for each layer.
        deadline: seconds after which what has not answered counts as failed; this blocks no longer.
    """
    started = time.monotonic()
    if not sys.platform.startswith("linux"):
        layers = tuple(
            Layer(name=name, is_ok=False, detail=f"this is {sys.platform}", remedy=_NOT_LINUX)
            for name in LAYERS
        )
        return Probe(layers=layers)
    with tempfile.TemporaryDirectory(prefix="code-mode-probe-") as scratch:
        walled = _start_bubblewrap(attempts)
        user = sandbox_user()
        command = [sys.executable, "-I", "-S", str(attempts), str(_ROOT), scratch]
        tries = _start([*command, "" if user is None else str(user)])
        memory_groups, cgroups = _cgroup_limits()
        told = _attempted(_finish(tries, started + deadline))
        version, nests, layer = _bubblewrap(walled, started + deadline)
    found = {name: _layer(name, told.get(name)) for name in LAYERS}
    found |= {"bubblewrap": layer, "cgroup_limits": cgroups}
    landlock = told.get("landlock", {})
    return Probe(
        layers=tuple(found[name] for name in LAYERS),
        landlock_abi=int(landlock.get("abi", 0)),
        landlock_gaps=tuple(landlock.get("gaps", ())),
        bubblewrap=version,
        nests=nests,
        memory_groups=memory_groups,
        duration=time.monotonic() - started,
    )


def _start(command: list[str], user: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        user=user,
        group=user,
        extra_groups=None if user is None else (),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )


def _finish(process: subprocess.Popen[bytes], until: float) -> bytes:
    """What it wrote; ended with all its children where it is not done in time."""
    try:
        return process.communicate(timeout=max(until - time.monotonic(), 0.01))[0]
    except subprocess.TimeoutExpired as late:
        # a child that left the group is ended by its parent's death, and by its alarm
        os.killpg(process.pid, signal.SIGKILL)
        try:
            return process.communicate(timeout=_REAP)[0]
        except subprocess.TimeoutExpired:
            return late.stdout or b""
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_REAP)
        if process.stdout is not None:
            process.stdout.close()


def _attempted(output: bytes) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in output.splitlines():
        try:
            told: object = json.loads(line)
        except ValueError:
            continue  # a library's warning
        if isinstance(told, Mapping) and "name" in told:
            entry = cast("dict[str, Any]", told)
            found[str(entry["name"])] = entry
    return found


def _layer(name: str, told: dict[str, Any] | None) -> Layer:
    if told is None:
        return Layer(name=name, is_ok=False, detail=_SILENT, remedy=_remedy(name, None))
    detail = str(told.get("detail", ""))
    if told["ok"]:
        return Layer(name=name, is_ok=True, detail=detail)
    number = told.get("errno")
    return Layer(name=name, is_ok=False, error=number, detail=detail, remedy=_remedy(name, number))


def _remedy(name: str, number: int | None) -> str:
    """What to do, by the switches that are known to turn user namespaces off."""
    if name in NAMESPACES or name == "overlayfs":
        if _reads("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
            return (
                "AppArmor forbids user namespaces here: set sysctl "
                "kernel.apparmor_restrict_unprivileged_userns=0, or install bubblewrap with its "
                "profile"
            )
        if _reads("/proc/sys/kernel/unprivileged_userns_clone") == "0":
            return "set sysctl kernel.unprivileged_userns_clone=1, or install bubblewrap"
        if _reads("/proc/sys/user/max_user_namespaces") == "0":
            return "set sysctl user.max_user_namespaces=10000, or install bubblewrap"
        if number == errno.ENOSPC:
            return (
                "too many namespaces are nested or alive: raise the sysctls user.max_*_namespaces"
            )
    return _REMEDIES.get(name, _NAMESPACE_REMEDY)


def _reads(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


# -- bubblewrap


def _start_bubblewrap(attempts: Path) -> subprocess.Popen[bytes] | OSError | None:
    """Have it build walls as `bubblewrap` asks for them, and in them try what a zygote does."""
    program, true = bubblewrap.find(), shutil.which("true")
    if program is None or true is None:
        return None
    walls = [
        *(program, "--unshare-all", "--unshare-user", "--as-pid-1", "--uid", "1000"),
        *("--size", "65536", "--tmpfs", "/", "--ro-bind", "/", "/", "--proc", "/proc"),
        *("--size", "65536", "--tmpfs", "/dev/shm", "--"),
    ]
    user = sandbox_user()
    tries = [sys.executable, "-I", "-S", str(attempts), str(_ROOT), "/dev/shm", "", _NESTED]
    try:
        # another user cannot get to every interpreter
        return _start([*walls, *(tries if user is None else [true])], user)
    except OSError as error:
        return error


def _bubblewrap(
    process: subprocess.Popen[bytes] | OSError | None, until: float
) -> tuple[str | None, bool, Layer]:
    """Its version, whether it can be nested in, and the layer."""
    name, remedy = "bubblewrap", _REMEDIES["bubblewrap"]
    if process is None:
        process = OSError(errno.ENOENT, "not installed")
    if isinstance(process, OSError):
        detail = str(process) if process.filename else process.strerror or str(process)
        return None, False, Layer(
            name=name, is_ok=False, error=process.errno, detail=detail, remedy=remedy
        )  # fmt: skip
    program = cast("list[str]", process.args)[0]
    output = _finish(process, until)
    said = output.decode(errors="replace").strip()
    if process.returncode != 0:
        detail = said[:300] or f"ended with {process.returncode}"
        if "nknown option" in said:
            remedy = "use bubblewrap 0.7 or later"
        else:
            remedy = _remedy("user_namespace", None)
        return None, False, Layer(name=name, is_ok=False, detail=detail, remedy=remedy)
    asked = _finish(_start([program, "--version"]), max(until, time.monotonic() + 0.1))
    version = asked.decode(errors="replace").strip().removeprefix("bubblewrap ")
    nests = bool(_attempted(output).get(_NESTED, {}).get("ok"))
    return version, nests, Layer(name=name, is_ok=True, detail=f"version {version}, {program}")


# -- control groups


def _cgroup_limits() -> tuple[cgroup.Place | None, Layer]:
    """Where a group that limits memory can be made, and the layer."""
    name = "cgroup_limits"
    try:
        place = cgroup.find(sandbox_user())
    except OSError as error:
        detail, remedy = error.strerror or str(error), _REMEDIES[name]
        return None, Layer(name=name, is_ok=False, error=error.errno, detail=detail, remedy=remedy)
    return place, Layer(name=name, is_ok=True, detail=f"memory, {place}")
