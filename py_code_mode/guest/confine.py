"""What a worker does to itself before it runs anybody's code, and cannot undo.

In this order, since each step needs what a later one takes away: one thread only, no new
privileges, resource limits, the capability bounding set, the user, the capabilities, Landlock,
seccomp. Every answer of the kernel is checked; a step that fails raises `ConfinementFailed` and the
worker must end. Files and sockets that are already open stay usable: the caller closes what the
worker is not to have.

ctypes is imported by `confine` only, so a worker that is not confined does not pay for it.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import struct
import sys

from . import seccomp
from .errors import ConfinementFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

#: The Landlock ABI of Linux 6.12, the first that keeps signals and abstract sockets inside.
FULL_ABI = 6
#: The first ABI that controls connecting to a Unix socket by its path (Linux 7.1).
_UNIX_SOCKETS_ABI = 9

_RIGHTS_FILE = 0b111 | 1 << 14 | 1 << 15 | 1 << 16  # rights that mean something on a file
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR, _MAKE_REG = 16, 32, 64, 128, 256
_MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM, _REFER = 512, 1024, 2048, 4096, 8192
_TRUNCATE, _IOCTL_DEV, _RESOLVE_UNIX = 1 << 14, 1 << 15, 1 << 16
_READ = _READ_FILE | _READ_DIR
# no devices: whoever can make one can read a disk
_WRITE = (
    _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO
    | _MAKE_SYM | _REFER | _TRUNCATE
)  # fmt: skip
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2
#: Handled file rights by the ABI that brought them.
_FILE_RIGHTS = {1: 0x1FFF, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV, 9: _RESOLVE_UNIX}

_GAPS = {
    2: "files cannot be moved between folders, even where both are writable",
    3: "files that cannot be written can still be truncated",
    4: "TCP is not limited",
    5: "device files that can be opened take any ioctl",
    6: "signals and abstract Unix sockets reach processes outside",
}

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_OPENAT2, _HERE, _NO_SYMLINKS = 437, -100, 4
_RULE_PATH_BENEATH, _VERSION = 1, 1
_SET_MODE_FILTER = 1
_CAPBSET_DROP, _SET_DUMPABLE, _GET_SECCOMP = 24, 4, 21
_SET_NO_NEW_PRIVS, _GET_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 38, 39, 47, 4
_CAPABILITY_VERSION = 0x20080522
_CLONE_THREAD = 0x10000
_MOST_CAPABILITIES = 64


class Confinement:
    """What a worker is to enforce on itself.

    Made by the host and sent as JSON (`to_json`, ``Confinement(**json)``).

    Attributes:
        readable, writable, executable: absolute paths; a folder stands for all beneath it. What is
            writable or executable can be read too. All must exist.
        inet: IP sockets may be made; leave it False unless something outside limits the network.
        memory: bytes of private data of one process (RLIMIT_DATA).
        processes: processes and threads of our user; does not bind uid 0.
        cpu: seconds of processor time of one process.
        file_size: bytes of one file or memfd.
        open_files: descriptors of one process.
        user: uid and gid to become; None stays who we are.
        landlock_abi: the least Landlock ABI to accept. Below `FULL_ABI` things get out that another
            wall must hold (`gaps`).
        private_files, private_processes, private_ipc: see `seccomp.compile_filter`.
    """

    __slots__ = (
        "cpu", "executable", "file_size", "inet", "landlock_abi", "memory", "open_files",
        "private_files", "private_ipc", "private_processes", "processes", "readable", "user",
        "writable",
    )  # fmt: skip

    def __init__(
        self,
        *,
        readable: Iterable[str] = (),
        writable: Iterable[str] = (),
        executable: Iterable[str] = (),
        inet: bool = False,
        memory: int | None = None,
        processes: int | None = None,
        cpu: int | None = None,
        file_size: int | None = None,
        open_files: int | None = None,
        user: Iterable[int] | None = None,
        landlock_abi: int = FULL_ABI,
        private_files: bool = False,
        private_processes: bool = False,
        private_ipc: bool = False,
    ) -> None:
        self.readable, self.writable = tuple(readable), tuple(writable)
        self.executable, self.inet = tuple(executable), inet
        self.memory, self.processes, self.cpu = memory, processes, cpu
        self.file_size, self.open_files = file_size, open_files
        self.user = None if user is None else tuple(user)
        self.landlock_abi = landlock_abi
        self.private_files, self.private_processes = private_files, private_processes
        self.private_ipc = private_ipc

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Confined:
    """What a worker has enforced on itself.

    Attributes:
        landlock_abi: the ABI that was used.
        architecture: of the system call filter.
        gaps: what this kernel's Landlock leaves open, in words; empty on Linux 6.12 and later.
    """

    __slots__ = ("architecture", "gaps", "landlock_abi")

    def __init__(self, landlock_abi: int, architecture: str) -> None:
        self.landlock_abi, self.architecture = landlock_abi, architecture
        self.gaps = gaps(landlock_abi)

    def to_json(self) -> dict[str, Any]:
        return {
            "landlock_abi": self.landlock_abi,
            "architecture": self.architecture,
            "gaps": self.gaps,
        }


def confine(plan: Confinement) -> Confined:
    """Give up all that `plan` does not name, for this process and all it will start.

    Raises:
        ConfinementFailed: a step failed. The process may be confined in part: it must end.
    """
    machine = find_machine()
    kernel = Kernel()
    kernel.refuse_threads()
    kernel.forgo_new_privileges()
    _limit(plan)
    kernel.empty_bounding_set()
    if plan.user is not None:
        kernel.become(*plan.user)
    kernel.drop_capabilities(machine)
    abi = kernel.landlock_abi()
    if abi < max(plan.landlock_abi, 1):
        raise ConfinementFailed(
            "landlock", f"ABI {plan.landlock_abi} is wanted, this kernel has {abi or 'none'}"
        )
    kernel.restrict_files(plan, abi)
    kernel.filter_calls(machine, _compile(machine, plan, abi))
    return Confined(abi, machine)


def prepare(plan: Confinement) -> None:
    """Compile what `confine` needs, in a process whose copies will be confined by this plan."""
    _compile(find_machine(), plan, Kernel().landlock_abi())


def _compile(machine: str, plan: Confinement, abi: int) -> bytes:
    return seccomp.compile_filter(
        machine,
        inet=plan.inet,
        unix_sockets=plan.private_files or abi >= _UNIX_SOCKETS_ABI,
        private_files=plan.private_files,
        private_processes=plan.private_processes,
        private_ipc=plan.private_ipc,
    )


def rights(abi: int, inet: bool) -> tuple[int, int, int]:
    """The rights to take under Landlock's control: of files, of TCP, of scopes."""
    files = sum(bits for since, bits in _FILE_RIGHTS.items() if abi >= since)
    tcp = _BIND_TCP | _CONNECT_TCP if abi >= 4 and not inet else 0
    scopes = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if abi >= 6 else 0
    return files, tcp, scopes


def gaps(abi: int) -> list[str]:
    """What Landlock of this ABI leaves open that `FULL_ABI` does not, in words."""
    return [what for since, what in _GAPS.items() if abi < since]


def find_machine() -> str:
    """What uname calls this machine, if it is one we have a system call table for."""
    if not sys.platform.startswith("linux"):
        raise ConfinementFailed(
            "platform", f"Landlock and seccomp are Linux's, not {sys.platform}'s"
        )
    machine = os.uname().machine
    if machine not in seccomp.ARCHITECTURES or sys.maxsize < 2**32:
        known = " and ".join(sorted(seccomp.ARCHITECTURES))
        raise ConfinementFailed("platform", f"64-bit {known} only, not {machine}")
    return machine


def _limit(plan: Confinement) -> None:
    cpu = None if plan.cpu is None else (plan.cpu, plan.cpu + 1)
    wanted = {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_DATA": _both(plan.memory),
        "RLIMIT_NPROC": _both(plan.processes),
        # the soft limit can be handled (SIGXCPU), the hard one, a second later, cannot
        "RLIMIT_CPU": cpu,
        "RLIMIT_FSIZE": _both(plan.file_size),
        "RLIMIT_NOFILE": _both(plan.open_files),
    }
    for name, limit in wanted.items():
        if limit is None:
            continue
        if limit[0] < 0:  # the kernel would read it as no limit
            raise ConfinementFailed("limits", f"{name} cannot be {limit[0]}")
        which: int = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        try:
            resource.setrlimit(which, (_lower(limit[0], hard), _lower(limit[1], hard)))
        except (OSError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None)
            raise ConfinementFailed("limits", f"{name} {limit}: {error}", number) from error


def _both(limit: int | None) -> tuple[int, int] | None:
    return None if limit is None else (limit, limit)


def _lower(limit: int, hard: int) -> int:
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


class Kernel:
    """The system calls of the steps; each raises `ConfinementFailed` with the step's name.

    `confine` takes them in the right order; alone they are for trying what a machine can do.
    """

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long

    def _ask(self, function: Any, *arguments: Any) -> int:
        """Call; an error is the negative errno."""
        c = self._ctypes
        c.set_errno(0)
        words = (c.c_ulong(x & (1 << 64) - 1) if isinstance(x, int) else x for x in arguments)
        answer: int = function(*words)
        return answer if answer >= 0 else -c.get_errno()

    def _must(self, step: str, what: str, function: Any, *arguments: Any) -> int:
        answer = self._ask(function, *arguments)
        if answer < 0:
            _fail(step, what, -answer)
        return answer

    def _prctl(self, step: str, what: str, option: int, *arguments: int) -> int:
        padded = (*arguments, 0, 0, 0, 0)[:4]
        return self._must(step, what, self._libc.prctl, option, *padded)

    def refuse_threads(self) -> None:
        # Landlock, capabilities and the filter bind the calling thread only. unshare() of what a
        # single thread has alone changes nothing, and fails where there are more: no /proc needed.
        answer = self._ask(self._libc.unshare, _CLONE_THREAD)
        if answer == -errno.EINVAL:
            raise ConfinementFailed(
                "threads",
                "other threads run already and would stay free; confine before they start",
            )
        if answer < 0:
            _fail("threads", "unshare(CLONE_THREAD)", -answer)

    def forgo_new_privileges(self) -> None:
        step = "no_new_privs"
        self._prctl(step, "PR_SET_NO_NEW_PRIVS", _SET_NO_NEW_PRIVS, 1)
        if self._prctl(step, "PR_GET_NO_NEW_PRIVS", _GET_NO_NEW_PRIVS) != 1:
            raise ConfinementFailed(step, "the kernel did not keep it")

    def empty_bounding_set(self) -> None:
        for capability in range(_MOST_CAPABILITIES):
            dropped = self._ask(self._libc.prctl, _CAPBSET_DROP, capability, 0, 0, 0)
            if dropped == -errno.EINVAL:
                break  # the kernel's last capability was the one before
            if dropped == -errno.EPERM:
                # Only CAP_SETPCAP may. Who has none has none of the others to lose, or loses them
                # in drop_capabilities; with no_new_privs nothing brings them back.
                break
            if dropped < 0:
                _fail("capabilities", f"PR_CAPBSET_DROP {capability}", -dropped)

    def become(self, uid: int, gid: int) -> None:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            number = error.errno or 0
            raise ConfinementFailed("user", f"becoming {uid}:{gid}: {error}", number) from error
        if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
            raise ConfinementFailed("user", f"became {os.getresuid()}, not {uid}")
        # changing the user gave /proc/self to root, which ordinary code reads
        self._prctl("user", "PR_SET_DUMPABLE", _SET_DUMPABLE, 1)

    def drop_capabilities(self, machine: str) -> None:
        c, step = self._ctypes, "capabilities"
        table = seccomp.numbers(machine)
        self._prctl(step, "PR_CAP_AMBIENT_CLEAR_ALL", _CAP_AMBIENT, _CLEAR_ALL)
        header = c.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
        nothing = c.create_string_buffer(24)
        self._must(step, "capset", self._libc.syscall, table["capset"], header, nothing)
        held = c.create_string_buffer(b"\xff" * 24, 24)
        self._must(step, "capget", self._libc.syscall, table["capget"], header, held)
        if any(held.raw):
            raise ConfinementFailed(step, "the kernel did not take all of them")

    def landlock_abi(self) -> int:
        """The kernel's Landlock ABI; 0 where it has none or it is switched off."""
        answer = self._ask(self._libc.syscall, _CREATE_RULESET, None, 0, _VERSION)
        if answer in (-errno.ENOSYS, -errno.EOPNOTSUPP):
            return 0
        if answer < 0:
            _fail("landlock", "asking for the ABI", -answer)
        return answer

    def restrict_files(self, plan: Confinement, abi: int) -> None:
        c, step = self._ctypes, "landlock"
        handled = rights(abi, plan.inet)
        # a kernel refuses a longer structure than it knows, even if the rest is 0
        size = 24 if abi >= 6 else 16 if abi >= 4 else 8
        attributes = c.create_string_buffer(struct.pack("=QQQ", *handled)[:size], size)
        ruleset = self._must(
            step, "making a ruleset", self._libc.syscall, _CREATE_RULESET, attributes, size, 0
        )
        try:
            for paths, granted in (
                (plan.readable, _READ),
                (plan.writable, _READ | _WRITE),
                (plan.executable, _EXECUTE | _READ),
            ):
                for path in paths:
                    self._grant(ruleset, path, granted & handled[0])
            self._must(step, "restricting", self._libc.syscall, _RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)

    def _grant(self, ruleset: int, path: str, granted: int) -> None:
        c, step = self._ctypes, "landlock"
        if not os.path.isabs(path):
            raise ConfinementFailed(step, f"{path!r} is not an absolute path")
        flags = os.O_PATH | os.O_CLOEXEC
        try:
            if "\0" in path:
                raise ValueError("embedded null byte")
            if granted & ~_READ:
                # what others may change leads to nowhere else: `walls.open_tree`
                how = c.create_string_buffer(struct.pack("=QQQ", flags, 0, _NO_SYMLINKS), 24)
                opened = self._must(
                    step, f"granting {path!r}",
                    self._libc.syscall, _OPENAT2, _HERE, os.fsencode(path), how, 24,
                )  # fmt: skip
            else:
                opened = os.open(path, flags)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            raise ConfinementFailed(step, f"granting {path!r}: {error}", number) from error
        try:
            if not stat.S_ISDIR(os.fstat(opened).st_mode):
                granted &= _RIGHTS_FILE
            rule = c.create_string_buffer(struct.pack("=Qi", granted, opened), 12)
            self._must(
                step, f"granting {path!r}",
                self._libc.syscall, _ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0,
            )  # fmt: skip
        finally:
            os.close(opened)

    def filter_calls(self, machine: str, program: bytes) -> None:
        c, step = self._ctypes, "seccomp"
        instructions = c.create_string_buffer(program, len(program))
        # struct sock_fprog: a short, padding, a pointer
        header = struct.pack("=H6xQ", len(program) // 8, c.addressof(instructions))
        number = seccomp.numbers(machine)["seccomp"]
        self._must(
            step, "installing the filter",
            self._libc.syscall, number, _SET_MODE_FILTER, 0, c.create_string_buffer(header, 16),
        )  # fmt: skip
        if self._prctl(step, "PR_GET_SECCOMP", _GET_SECCOMP) != 2:
            raise ConfinementFailed(step, "the kernel did not install the filter")


def _fail(step: str, what: str, number: int) -> NoReturn:
    name = errno.errorcode.get(number, str(number))
    raise ConfinementFailed(step, f"{what}: {os.strerror(number)} ({name})", number)
