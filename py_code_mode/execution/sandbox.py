"""A sandbox for one session: chosen by what this machine can do, made, entered, and taken down.

What a policy asks for and this machine cannot enforce is an error, before any code has run.
"""

from __future__ import annotations

import os
import warnings
from contextvars import Context
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import anyio.to_thread

from py_code_mode.errors import ConfinementFailed, SandboxUnavailable, UnsandboxedWarning
from py_code_mode.execution import zygote
from py_code_mode.execution.executor import Capability
from py_code_mode.execution.keeper import Keeper
from py_code_mode.execution.launch import (
    CERTIFICATES,
    GUEST,
    closed_to,
    end,
    start_keeper,
    wall_files,
)
from py_code_mode.execution.supervisor import to_the_end
from py_code_mode.guest.confine import FULL_ABI, Confinement
from py_code_mode.guest.keeper import PROXY_PORT
from py_code_mode.sandbox import bubblewrap
from py_code_mode.sandbox.egress import Egress, guest_variables
from py_code_mode.sandbox.probe import probe, sandbox_user
from py_code_mode.sandbox.view import OWN_FOLDERS, View, view_of
from py_code_mode.scratch import Scratch
from py_code_mode.stores.folders import remove_tree

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from py_code_mode.environments.base import Environment
    from py_code_mode.execution.supervisor import Job, Supervisor
    from py_code_mode.execution.zygote import Waiting, Zygote
    from py_code_mode.sandbox.policy import Policy
    from py_code_mode.sandbox.probe import Backend, Probe

#: What a session may be asked to run behind; ``auto`` is the best that this machine has.
BackendChoice: TypeAlias = Literal["auto", "namespaces", "bubblewrap", "landlock", "none"]

#: Where a session works, and where its packages are, inside.
WORKDIR, PACKAGES = Path("/work"), Path("/packages")
#: Share of the memory limit at which a single process gets a MemoryError, which code survives.
_OWN_SHARE = 0.9
#: Bytes of it, where it has that much more, that are kept from files: a worker with pandas holds 57
#: MiB of its own, and a copy that took its place a part of that again.
_NOT_FOR_FILES = 96 << 20
#: Files that a session may have, and for how many bytes of its memory there may be one.
_INODES, _BYTES_PER_INODE = 500_000, 16 << 10
#: Imported once for all sessions of a zygote; all of them stay single-threaded.
_PRELOADED = ("numpy", "pandas", "pyarrow", "cloudpickle")
#: Settings with which libraries start no threads when they are imported. A process with threads
#: cannot be copied: neither the zygote nor, for a snapshot, its sessions.
_QUIET = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
_LANGUAGE = ("LANG", "LANGUAGE", "TZ")
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_WITHOUT_WALLS = frozenset(
    {
        Capability.NETWORK_ALLOW_LIST,
        Capability.DISK_LIMIT,
    }
)
#: What each backend cannot enforce.
MISSING: Mapping[Backend, frozenset[str]] = {
    "namespaces": frozenset(),
    "bubblewrap": frozenset(),
    "landlock": _WITHOUT_WALLS | {Capability.SHARED_MEMORY},  # /dev/shm is the host's
    "none": _WITHOUT_WALLS
    | {
        Capability.CHECKPOINT,
        Capability.FILE_ISOLATION,
        Capability.MEMORY_GROUP,
        Capability.MEMORY_LIMIT,
        Capability.NETWORK_ISOLATION,
        Capability.RESTORE,
    },
}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
#: What tells libraries about the machine, where /proc is the host's. Of a process's own folder not
#: all, since that tells of the host's mounts and connections too (mountinfo, net, task/*/net).
_FACTS = (
    "/proc/cpuinfo", "/proc/filesystems", "/proc/loadavg", "/proc/meminfo", "/proc/stat",
    "/proc/uptime", "/proc/version", "/sys/devices/system/cpu",
)  # fmt: skip
_OWN_FACTS = (
    "auxv", "cmdline", "comm", "environ", "fd", "fdinfo", "io", "limits", "maps", "smaps",
    "smaps_rollup", "stat", "statm", "status",
)  # fmt: skip
_REACH_REMEDY = (
    "set PY_CODE_MODE_CACHE to a folder that every user can pass through, and python_version to "
    "the path of an interpreter that every user can read, such as the system's"
)
_OWN_WRITABLE = ("/tmp", "/work", "/home/user", "/dev/shm", *_DEVICES)


async def examine_machine() -> Probe:
    """What this machine can enforce; tried once in a process."""
    if probe.cache_info().currsize:
        return probe()
    return await anyio.to_thread.run_sync(probe)


def choose(
    backend: BackendChoice,
    policy: Policy | None,
    found: Probe,
    environment: Environment | None = None,
) -> Backend:
    """The best backend that holds what is asked for.

    Args:
        environment: what guests run with, which must be within reach of whom they run as.

    Raises:
        SandboxUnavailable: this machine lacks what was asked for; the message says which layer.

    Warns:
        UnsandboxedWarning: nothing was asked for, and this machine has nothing to offer.
    """
    if backend != "auto" and backend not in found.backends:
        raise SandboxUnavailable(backend, found.obstacles)
    missing: list[str] = []
    candidates = found.backends if backend == "auto" else (backend,)
    for candidate in candidates:
        against: list[str] = []
        if policy is not None:
            against += unenforceable(candidate, policy, landlock_abi=found.landlock_abi)
        if environment is not None:
            against += out_of_reach(candidate, environment)
        if not against:
            if candidate == "none" != backend:
                # shown once in a process, as all that are alike and come from one place
                warnings.warn(UnsandboxedWarning((*missing, *found.obstacles)[0]), stacklevel=1)
            return candidate
        missing += [f"{candidate}: {reason}" for reason in against]
    wanted = "this policy" if policy is not None else backend
    if candidates[0] != "namespaces":
        missing += found.obstacles
    raise SandboxUnavailable(wanted, tuple(missing))


def unenforceable(
    backend: Backend, policy: Policy, *, landlock_abi: int = FULL_ABI
) -> tuple[str, ...]:
    """What of a policy a backend cannot enforce though it is required (`Policy`), in words."""
    if backend == "none":
        return ("a plain process is not confined at all",)
    found: list[str] = []
    if policy.network == "open" and landlock_abi < FULL_ABI:
        found.append(
            "network: this kernel cannot keep a process that shares the host's network from its "
            "abstract Unix sockets; use Linux 6.12 or later, or name the hosts that are needed"
        )
    if backend == "landlock":
        if not isinstance(policy.network, str):
            found.append("network: a list of hosts needs a network namespace; use none or open")
        if "disk" in policy.required:
            found.append(
                "disk: without a mount namespace files have no common limit; leave it out, or say "
                "disk=None"
            )
    return tuple(found)


def out_of_reach(backend: Backend, environment: Environment) -> tuple[str, ...]:
    """What of an environment its guests could not get at, in words."""
    missing = _out_of_reach(backend, _needed(environment.python, environment.folder))
    return (*missing, _REACH_REMEDY) if missing else ()


def _out_of_reach(
    backend: Backend, readable: Iterable[Path], writable: Iterable[Path] = ()
) -> tuple[str, ...]:
    """What of the host's files a guest cannot get at, because we are root and it is not to be."""
    user = sandbox_user()
    if backend in ("namespaces", "none") or user is None:
        return ()
    return closed_to(user, readable, writable)


class Member(Protocol):
    """Who uses a sandbox: an executor; its processes, by their pids inside."""

    def awake(self) -> Iterable[int]: ...
    def asleep(self) -> Iterable[int]: ...


@dataclass(eq=False, kw_only=True)
class Sandbox:
    """Where the guests of one session, and of what was forked off it, run.

    Attributes:
        backend: what it is built from.
        policy: what it allows.
        workdir: the guest's current directory, as the guest sees it.
        packages: where the host puts the session's packages; None where the guest reads the
            host's own folder.
        inside: where the guest finds them.
        keeper: its first process.
        admits: packages that its keeper is to show, as the keeper sees them.
        waiting: a worker that was made beforehand, until somebody takes it.
        plan: what it was made by, where others can be made alike.
        process: what was started for this sandbox alone.
        scratch: its own folder on the host.
        members: who uses it.
        waking: held while a process comes to life of which `members` do not tell yet.
        egress: its way to the hosts that the policy lists.
        shown: what can be seen and reached from inside, for explanations (`guest.denied`).
    """

    backend: Backend
    policy: Policy
    workdir: Path
    packages: Path | None
    inside: Path | None
    keeper: Keeper
    zygote: Zygote | None = None
    process: subprocess.Popen[bytes] | None = None
    scratch: Scratch | None = None
    admits: str | None = None
    waiting: Waiting | None = None
    plan: Mapping[str, Any] | None = None
    members: list[Member] = field(default_factory=list["Member"])
    waking: anyio.Lock = field(default_factory=anyio.Lock)
    egress: Egress | None = None
    shown: Mapping[str, object] | None = None
    _serving: Job | None = None

    def join(self, member: Member) -> None:
        """Use it; `leave` when done."""
        self.members.append(member)

    async def leave(self, member: Member) -> None:
        """Use it no longer; the last one closes it."""
        self.members.remove(member)
        if not self.members:
            await self.close()

    def spare(self) -> None:
        """Have a limit that is hit leave the sleeping copies alone."""
        self.keeper.spare(pid for member in self.members for pid in member.asleep())

    async def clear(self) -> None:
        """End what workers that are dead have left behind; those alive and sleepers stay."""
        async with self.waking:
            await self.keeper.clear(
                [pid for member in self.members for pid in (*member.awake(), *member.asleep())],
                is_shared=len(self.members) > 1,
            )

    def open_egress(self, supervisor: Supervisor) -> None:
        """Serve the guest's way to the network, if it has one; once its first worker is there."""
        listener = self.keeper.take_listener()
        if listener is None or isinstance(self.policy.network, str):
            return
        self.egress = Egress(listener, self.policy.network)
        self._serving = supervisor.start(Context(), self.egress.serve)

    def prepare_next(self, greeting: bytes, count: int) -> None:
        """Get ready for the next sessions, and have as many sandboxes like this one wait."""
        if self.zygote is not None and self.plan is not None:
            self.zygote.preload(waits=count > 0)
            self.zygote.fill(self.plan, greeting, count)

    async def close(self) -> None:
        """End everything in it, and remove what was made for it."""
        if self._serving is not None:
            self._serving.cancel()
            await self._serving.wait()
        await self.keeper.close()
        if self.waiting is not None:
            self.waiting.close()
        if self.process is not None:
            await end(self.process)
        if self.scratch is not None:
            await anyio.to_thread.run_sync(self.scratch.remove)
        if self.zygote is not None:
            try:
                if self.packages is not None and not _removed_empty(self.packages):
                    await anyio.to_thread.run_sync(remove_tree, self.packages)
            finally:
                await zygote.release(self.zygote)


def _removed_empty(folder: Path) -> bool:
    """Remove a folder if nothing is in it, as with the packages of most sessions."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


async def open_sandbox(
    backend: Backend,
    policy: Policy,
    environment: Environment,
    *,
    workdir: Path | None,
    also_read: Iterable[Path] = (),
    greet: Callable[[Path, Mapping[str, object]], bytes] | None = None,
) -> Sandbox:
    """Make a sandbox, with nothing running in it yet but, perhaps, a worker that waited.

    Args:
        workdir: the host's folder to work in; None where the session has one of its own.
        also_read: shown besides what the policy names.
        greet: what a worker that waited must have been sent, for where its packages are and what
            it is shown; None takes none that waited.

    Raises:
        ConfigError: a path of the policy cannot be granted.
        ConfinementFailed: a layer failed.
        SandboxUnavailable: a root host's guest, which is not to be root, cannot get at a path.
    """
    variables = _variables(environment, policy)
    needed = [*_needed(environment.python, environment.folder)]
    needed += also_read
    needed += [Path(variables[name]) for name in CERTIFICATES if name in variables]
    view = view_of(needed, policy, workdir, names=policy.network == "open")
    trees = [(Path(source), is_writable) for source, _, is_writable in view.trees]
    missing = _out_of_reach(
        backend,
        (source for source, is_writable in trees if not is_writable),
        (source for source, is_writable in trees if is_writable),
    )
    if missing:
        raise SandboxUnavailable(backend, missing)
    wanted = _Wanted(
        policy=policy, environment=environment, workdir=workdir, view=view, variables=variables
    )
    if backend == "namespaces":
        shown = _shown(wanted, OWN_FOLDERS)
        greeting = greet(PACKAGES, shown) if greet is not None else None
        sandbox = await _open_copied(wanted, greeting)
        sandbox.shown = shown
        return sandbox
    sandbox = await _open_alone(backend, wanted)
    own = OWN_FOLDERS
    if sandbox.backend == "landlock":
        assert sandbox.scratch is not None
        own = (str(sandbox.scratch.workdir),)
    sandbox.shown = _shown(wanted, own)
    return sandbox


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A sandbox that is to be made.

    Attributes:
        workdir: the host's folder to work in; None where the session has one of its own.
        view: what of the host it shows.
        variables: its processes' environment.
    """

    policy: Policy
    environment: Environment
    workdir: Path | None
    view: View
    variables: Mapping[str, str]

    @property
    def inside(self) -> Path:
        """The workdir, as a guest behind walls sees it."""
        return self.workdir or WORKDIR

    @property
    def shares_network(self) -> bool:
        return self.policy.network == "open"


def _shown(wanted: _Wanted, own: Iterable[str]) -> Mapping[str, object]:
    """What can be seen and reached from inside, for explanations."""
    network = wanted.policy.network
    return {
        "visible": [place for _, place, _ in wanted.view.trees],
        "writable": [*wanted.view.writable],
        "own": [*own],
        "network": network if isinstance(network, str) else [str(host) for host in network],
    }


async def _open_alone(backend: Backend, wanted: _Wanted) -> Sandbox:
    """A sandbox that is made for itself."""
    own = _own_folder(sandbox_user())
    try:
        if backend == "bubblewrap":
            return await _open_walled(wanted, own)
        return await _open_confined(wanted, own)
    except BaseException:
        await to_the_end(partial(anyio.to_thread.run_sync, own.remove))
        raise


async def _open_copied(wanted: _Wanted, greeting: bytes | None) -> Sandbox:
    """A sandbox copied from a zygote, of which there is another one where it was just killed."""
    found = await examine_machine()
    environment = wanted.environment
    spec = zygote.ZygoteSpec(
        python=environment.python,
        stamp=_stamp(environment),
        view=wanted.view,
        shares_network=wanted.shares_network,
        environment=tuple(sorted(wanted.variables.items())),
        preload=tuple(name for name in _PRELOADED if name in environment.packages),
        wall="bubblewrap" if found.bubblewrap and found.nests else "own",
    )
    copy = partial(_copy, spec, wanted, greeting)
    try:
        try:
            return await copy()
        except ConnectionError:
            return await copy()
    except OSError as error:
        raise ConfinementFailed("zygote", str(error), error.errno) from error


async def _copy(spec: zygote.ZygoteSpec, wanted: _Wanted, greeting: bytes | None) -> Sandbox:
    """A sandbox copied from a zygote.

    Raises:
        OSError: the zygote has ended.
    """
    template = await zygote.acquire(spec)
    packages: Path | None = None
    try:
        packages = template.make_overlay()
        plan = _plan(
            wanted.policy,
            wanted.inside,
            _inside_walls(wanted),
            files={
                "size": room_for_files(wanted.policy),
                "inodes": _most_files(wanted.policy),
                "covered": wanted.view.covered,
            },
            has_own_network=not wanted.shares_network,
        )
        waiting = template.take(plan, greeting) if greeting is not None else None
        if waiting is not None:
            ours, group = waiting.keeper, waiting.group
        else:
            ours, group = template.request(plan)
    except BaseException:
        if packages is not None:
            packages.rmdir()
        await to_the_end(partial(zygote.release, template))
        raise
    return Sandbox(
        backend="namespaces",
        policy=wanted.policy,
        workdir=wanted.inside,
        packages=packages,
        inside=PACKAGES,
        keeper=Keeper(ours, group),
        admits=f"/overlays/{packages.name}",
        zygote=template,
        waiting=waiting,
        plan=plan,
    )


async def _open_walled(wanted: _Wanted, own: Scratch) -> Sandbox:
    """A sandbox of its own behind bubblewrap's walls, with an interpreter that starts there."""
    program = bubblewrap.find()
    if program is None:
        raise SandboxUnavailable("bubblewrap", ("it is not installed any more",))
    python = str(wanted.environment.python)
    with wall_files() as files:
        wall = bubblewrap.around_session(
            program,
            wanted.view,
            packages=str(own.packages),
            files=files,
            shares_network=wanted.shares_network,
            size=room_for_files(wanted.policy),
        )
        keeper, process = await start_keeper(
            "bubblewrap",
            lambda fd: [*wall, python, "-I", str(GUEST), "keeper", str(fd)],
            _plan(wanted.policy, wanted.inside, _inside_walls(wanted)),
            environment=wanted.variables,
            user=sandbox_user(),
            pass_fds=tuple(files.values()),
        )
    return Sandbox(
        backend="bubblewrap",
        policy=wanted.policy,
        workdir=wanted.inside,
        packages=own.packages,
        inside=PACKAGES,
        keeper=keeper,
        process=process,
        scratch=own,
    )


async def _open_confined(wanted: _Wanted, own: Scratch) -> Sandbox:
    """A sandbox without walls: its workers confine themselves, to folders of this machine.

    The keeper is not confined, so it imports nothing of the environment's: a worker is an
    interpreter that starts confined.
    """
    user = sandbox_user()
    private = {name: own.workdir / name for name in ("home", "tmp", "work")}
    for folder in private.values():
        folder.mkdir()
        if user is not None:
            os.chown(folder, user, user)
    inside = wanted.workdir or private["work"]
    python = str(wanted.environment.python)
    keeper, process = await start_keeper(
        "keeper",
        lambda fd: [python, "-I", "-S", str(GUEST), "keeper", str(fd)],
        _plan(
            wanted.policy,
            inside,
            _without_walls(wanted, [*private.values()], own.packages, user),
            has_own_processes=False,
            has_own_files=False,
            command=[python, "-I", str(GUEST), "loop"],
        ),
        environment={
            **wanted.variables,
            "HOME": str(private["home"]),
            "TMPDIR": str(private["tmp"]),
        },
    )
    return Sandbox(
        backend="landlock",
        policy=wanted.policy,
        workdir=inside,
        packages=own.packages,
        inside=own.packages,
        keeper=keeper,
        process=process,
        scratch=own,
    )


def _own_folder(user: int | None) -> Scratch:
    """A session's own folder on the host, through which whom it runs as can pass."""
    own = Scratch.make()
    if user is not None:
        for folder in (own.packages.parent, own.packages, own.workdir):
            folder.chmod(0o711)
        own.packages.chmod(0o755)
        missing = closed_to(user, [own.packages])
        if missing:
            own.remove()
            raise SandboxUnavailable("a sandbox for another user than root", missing)
    return own


def _plan(
    policy: Policy,
    workdir: Path,
    confinement: Confinement,
    *,
    files: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    has_own_files: bool = True,
    has_own_network: bool = False,
    has_own_processes: bool = True,
) -> dict[str, Any]:
    """What a keeper is told.

    Args:
        files: how it is to mount the session's own files; None where they are there already.
        command: what a worker executes once it is confined; else it goes on as it is.
        has_own_files: all its files are on one file system in memory.
        has_own_network: it is to raise the loopback interface of a new one.
        has_own_processes: it is process 1 of a pid namespace.
    """
    return {
        "files": files,
        "command": command,
        "has_own_files": has_own_files,
        "has_own_network": has_own_network,
        "has_own_processes": has_own_processes,
        "needs_listener": not isinstance(policy.network, str),
        "memory": policy.memory,
        "environment": {name: os.environ[name] for name in policy.env if name in os.environ},
        "workdir": str(workdir),
        "confinement": confinement.to_json(),
    }


def session_variables(environment: Environment, path: str) -> dict[str, str]:
    """Environment variables of every guest, sandboxed or not."""
    passed = {name: os.environ[name] for name in _LANGUAGE if name in os.environ}
    passed.update({name: value for name, value in os.environ.items() if name.startswith("LC_")})
    passed.setdefault("LANG", "C.UTF-8")
    binaries = environment.python.parent
    return {
        **passed,
        "PATH": f"{binaries}{os.pathsep}{path}",
        "MPLBACKEND": "Agg",
        "VIRTUAL_ENV": str(binaries.parent),
    }


def _variables(environment: Environment, policy: Policy) -> dict[str, str]:
    """Those of a sandboxed guest."""
    found = {
        **session_variables(environment, _SYSTEM_PATH),
        **_QUIET,
        "HOME": "/home/user",
        "LOGNAME": "user",
        "USER": "user",
    }
    if not isinstance(policy.network, str):
        found.update(guest_variables(PROXY_PORT, policy.network))
    if policy.network != "none":
        found.update({name: os.environ[name] for name in CERTIFICATES if name in os.environ})
    return found


@lru_cache(maxsize=64)  # an environment does not change; a private one has a folder of its own
def _needed(python: Path, folder: Path | None) -> tuple[Path, ...]:
    """What a guest of an environment reads."""
    prefix = Path(os.path.realpath(python)).parents[1]
    found = [python, prefix, GUEST.parent]
    if folder is not None:
        found.append(folder)
        settings = folder / "pyvenv.cfg"
        # where the interpreter looks for its library, by the name it was found under
        for line in settings.read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home":
                found.append(Path(value.strip()).parent)
    return tuple(found)


def _stamp(environment: Environment) -> tuple[int, ...]:
    status = os.stat(environment.site_packages)
    return (status.st_ino, status.st_mtime_ns)


def _inside_walls(wanted: _Wanted) -> Confinement:
    """What a worker takes from itself where namespaces show it nothing else of the host."""
    return Confinement(
        readable=["/"],
        writable=[*_OWN_WRITABLE, *wanted.view.writable],
        executable=["/"],
        inet=True,
        # what older ones leave open, namespaces hold, unless the network is the host's
        landlock_abi=FULL_ABI if wanted.shares_network else 1,
        private_files=True,
        private_processes=True,
        **_limits(wanted.policy),
    )


def _without_walls(
    wanted: _Wanted, private: Sequence[Path], packages: Path, user: int | None
) -> Confinement:
    """What a worker takes from itself where nothing else stands between it and the host.

    Args:
        private: folders of the session's own.
        packages: where its packages are.
        user: whom to become.
    """
    writable = [str(path) for path in private]
    writable += [source for source, _, is_writable in wanted.view.trees if is_writable]
    readable = [source for source, _, is_writable in wanted.view.trees if not is_writable]
    return Confinement(
        readable=[
            *(path for path in _FACTS if os.path.exists(path)),
            *(f"/proc/self/{name}" for name in _OWN_FACTS if os.path.exists(f"/proc/self/{name}")),
        ],
        writable=[*_DEVICES, *writable],
        executable=[*readable, *writable, str(packages)],
        inet=wanted.shares_network,
        user=None if user is None else (user, user),
        **_limits(wanted.policy),
    )


def room_for_files(policy: Policy) -> int | None:
    """Bytes that a session's own files may take, all on one file system in memory.

    They count as the session's memory. Where they filled that, a run could not even remove them:
    whoever writes more is told that there is no space left. None means what the kernel gives, half
    of the machine's memory.
    """
    memory = policy.memory
    if memory is None:
        return policy.disk
    share = max(memory // 4, min(memory * 3 // 4, memory - _NOT_FOR_FILES))
    return share if policy.disk is None else min(policy.disk, share)


def _most_files(policy: Policy) -> int:
    return _INODES if policy.memory is None else min(_INODES, policy.memory // _BYTES_PER_INODE)


def _limits(policy: Policy) -> dict[str, Any]:
    return {
        "memory": None if policy.memory is None else int(policy.memory * _OWN_SHARE),
        "processes": policy.processes,
        "cpu": None if policy.cpu is None else max(1, round(policy.cpu)),
        "file_size": policy.file_size,
        "open_files": policy.open_files,
    }
