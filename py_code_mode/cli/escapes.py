"""Tries the escape suite on this machine: sessions that attack, and a host that looks at itself.

What an attack says it got is half of the truth: what became of the host's secrets, files, processes
and sockets is looked at after each group, and decides.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import html
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
import anyio.to_thread

from py_code_mode import guest
from py_code_mode.cli.terminal import printable
from py_code_mode.errors import CodeModeError
from py_code_mode.execution.executor import Capability
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.escapes import all_attacks, cell
from py_code_mode.sandbox.escapes.attempt import CONTROL_GROUP, OWN_FILES
from py_code_mode.sandbox.escapes.proxy import ALLOWED
from py_code_mode.sandbox.policy import Policy
from py_code_mode.sandbox.probe import probe, sandbox_user
from py_code_mode.session import Session
from py_code_mode.storage import FileStorage
from py_code_mode.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from py_code_mode.execution.sandbox import BackendChoice
    from py_code_mode.results import ExecutionResult
    from py_code_mode.sandbox.escapes.attempt import Attack
    from py_code_mode.sandbox.probe import Backend

#: Seconds that one attack of its own run may take; a timeout is an attack that was held.
ROUGH_TIMEOUT = 3.0
#: Seconds for a group of attacks that leave the worker as it is.
QUIET_TIMEOUT = 60.0
#: Sessions under attack at the same time.
LANES = 4
#: Bytes that the host may grow by while it is attacked.
HOST_GROWTH = 600 << 20
#: What a session under attack may have.
MEMORY, DISK, FILE_SIZE, PROCESSES, FILES = 128 << 20, 48 << 20, 32 << 20, 48, 256
#: What a terminal would obey, colours aside.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]|\x1b(?!\[[0-9;:]*m)")
#: The group whose session has a list of hosts.
_PROXY = "proxy"
_TOOL = """
name: show
description: Shows a file
command: cat
timeout: 5
dashdash: true
schema:
  options:
    number: {type: boolean, short: n, description: Number the lines}
  positional:
    - {name: name, type: string, required: true}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one attack.

    Attributes:
        text: begins with ``blocked:``, ``contained:``, ``ESCAPED:``, or ``BROKEN:`` where the
            attack itself is at fault and nothing is known.
    """

    name: str
    group: str
    text: str

    @property
    def held(self) -> bool:
        """Whether the sandbox held."""
        return self.text.startswith(("blocked:", "contained:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EscapeReport:
    """What came of the suite on this machine.

    Attributes:
        backend: what the sandbox was built from.
        uid: who the host is.
        duration: in seconds.
        left_out: attacks that this sandbox does not claim to withstand, and what it would need.
    """

    backend: str
    uid: int
    verdicts: tuple[Verdict, ...]
    duration: float
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def escaped(self) -> tuple[Verdict, ...]:
        """What got out, or could not be tried."""
        return tuple(verdict for verdict in self.verdicts if not verdict.held)

    def __str__(self) -> str:
        if self.backend == "none":
            return "nothing to try: there is no sandbox on this machine"
        return (
            f"{len(self.verdicts)} attacks, {len(self.escaped)} got out, {self.duration:.1f} s "
            f"({self.backend}, uid {self.uid})"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "ok": not self.escaped,
            "backend": self.backend,
            "uid": self.uid,
            "duration": round(self.duration, 3),
            "attacks": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "left_out": dict(self.left_out),
        }


async def run_escapes(
    backend: BackendChoice = "auto",
    on_result: Callable[[Verdict], None] | None = None,
    *,
    groups: Iterable[str] | None = None,
) -> EscapeReport:
    """Attack sandboxes of this machine in every way that is known.

    Args:
        backend: as for a session.
        on_result: told of each verdict.
        groups: only these groups of attacks.

    Raises:
        CodeModeError: no session can be had.
    """
    began = time.perf_counter()
    best = (await anyio.to_thread.run_sync(probe)).backends[0] if backend == "auto" else backend
    if best == "none":
        return EscapeReport(backend=best, uid=os.geteuid(), verdicts=(), duration=0.0)
    with Scene.set(best) as scene:
        suite = _Suite(scene, best, on_result)
        wanted = None if groups is None else frozenset(groups)
        await suite.run(
            [attack for attack in all_attacks() if not wanted or attack.group in wanted]
        )
    return EscapeReport(
        backend=suite.backend,
        uid=os.geteuid(),
        verdicts=tuple(suite.verdicts),
        duration=time.perf_counter() - began,
        left_out=suite.left_out,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the attacks go for: secrets, files, processes and sockets of the host.

    Attributes:
        token: the secret; nobody who attacks is told.
        name: what all of it is called.
        variable: an environment variable of the host that holds the secret.
    """

    token: str
    name: str
    variable: str
    folder: Path
    home_secret: Path
    victim: subprocess.Popen[bytes]
    listeners: tuple[socket.socket, ...]
    segment: int

    @classmethod
    @contextlib.contextmanager
    def set(cls, backend: Backend) -> Generator[Scene]:
        """Set it up; all of it is gone afterwards."""
        token, name = secrets.token_hex(16), f"pcm-{secrets.token_hex(4)}"
        variable = f"PY_CODE_MODE_SECRET_{secrets.token_hex(4)}"
        with contextlib.ExitStack() as made:
            # not mkdtemp's mode: a sandbox of a root host is another user
            folder = Path(tempfile.mkdtemp(prefix="code-mode-escapes-"))
            made.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o755)
            for each in ("secret", "granted", "written", "base/tools"):
                (folder / each).mkdir(parents=True)
            (folder / "secret" / "secret").write_text(token)
            (folder / "granted" / "file").write_text("for all to read\n" * 100)
            (folder / "base" / "tools" / "show.yaml").write_text(_TOOL)
            home_secret = _home() / f".{name}"
            home_secret.write_text(token)
            made.callback(home_secret.unlink, missing_ok=True)
            os.environ[variable] = token
            made.callback(os.environ.pop, variable, None)
            # of the very user that a sandbox runs as
            inside = sandbox_user()
            if inside is not None and backend != "namespaces":
                os.chown(folder / "written", inside, inside)  # these map no owners
            victim: subprocess.Popen[bytes] = subprocess.Popen(
                ["/bin/sleep", "3600"],
                env={variable: token},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=inside,
                extra_groups=None if inside is None else (),
            )
            made.callback(_end, victim)
            listeners = tuple(made.enter_context(one) for one in _listen(folder, name))
            segment = secrets.randbelow(1 << 30) + 1
            made.callback(_remove_segment, _make_segment(segment, token))
            yield cls(
                token=token,
                name=name,
                variable=variable,
                folder=folder,
                home_secret=home_secret,
                victim=victim,
                listeners=listeners,
                segment=segment,
            )

    def facts(self) -> dict[str, Any]:
        """What those who attack are told."""
        tcp, tcp6, udp = (one.getsockname()[1] for one in self.listeners[:3])
        return {
            "name": self.name,
            "variable": self.variable,
            "secret": str(self.folder / "secret" / "secret"),
            "home": str(self.home_secret.parent),
            "home_secret": str(self.home_secret),
            "temporary": tempfile.gettempdir(),
            "granted": str(self.folder / "granted"),
            "written": str(self.folder / "written"),
            "victim": self.victim.pid,
            "host": os.getpid(),
            "port": tcp,
            "port6": tcp6,
            "udp": udp,
            "address": _own_address(),
            "machine": socket.gethostname(),
            "abstract": self.name,
            "socket": str(self.folder / "secret" / "socket"),
            "datagrams": str(self.folder / "secret" / "datagrams"),
            "segment": self.segment,
            "guest": str(Path(guest.__file__).parent),
            "memory": MEMORY,
            "disk": DISK,
            "file_size": FILE_SIZE,
        }

    def state(self) -> dict[str, object]:
        """What of the host no attack may change; equal before and after."""
        secret, granted = self.folder / "secret", self.folder / "granted"
        return {
            "secret": _about(secret / "secret"),
            "secret in home": _about(self.home_secret),
            "files beside the secret": sorted(os.listdir(secret)),
            "granted file": _about(granted / "file"),
            "granted files": sorted(os.listdir(granted)),
            "workspace": sorted(os.listdir(self.folder / "base" / "tools")),
            "traps": [str(path) for path in (self.folder / "written").rglob("*") if _is_trap(path)],
            "planted files": self._planted(),
            "victim": self.victim.poll(),
            "victim's limits": Path(f"/proc/{self.victim.pid}/limits").read_text(),
            "victim's share": _share(self.victim.pid),
            "own share": _share(os.getpid()),
            "name": socket.gethostname(),
            "messages": self._messages(),
            "mounts": Path("/proc/self/mounts").read_text().count(self.name),
            "queues": os.path.exists("/dev/mqueue/planted"),
            "signal handling": Path("/proc/sys/kernel/core_pattern").read_text(),
        }

    def _planted(self) -> list[str]:
        places = [Path(tempfile.gettempdir()), Path("/tmp"), self.home_secret.parent, Path("/")]
        names = (f"{self.name}-planted", "planted", f".{self.name}.planted")
        return [str(place / name) for place in places for name in names if (place / name).exists()]

    def _messages(self) -> list[str]:
        """What has come to the host's sockets."""
        found: list[str] = []
        for listener in self.listeners:
            try:
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(100)
            except BlockingIOError:
                continue
            found.append(str(listener.getsockname()))
        return found

    def processes(self) -> list[str]:
        """What attacks have left running on the host."""
        found: list[str] = []
        for pid in (name for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == self.name[-15:]:
                    found.append(pid)
        return found


class _Suite:
    """One run of the suite."""

    def __init__(
        self,
        scene: Scene,
        backend: Backend,
        on_result: Callable[[Verdict], None] | None,
    ) -> None:
        self._scene = scene
        self._choice: Backend = backend
        self._on_result = on_result
        self._before = scene.state()
        self._facts = scene.facts()
        self.backend: str = backend
        self._holds: frozenset[str] = frozenset()
        self.verdicts: list[Verdict] = []
        self.left_out: dict[str, str] = {}

    def _tell(self, name: str, group: str, text: str) -> None:
        # errors quote what attacks have made up
        verdict = Verdict(name=name, group=group, text=printable(text, colours=False))
        self.verdicts.append(verdict)
        if self._on_result is not None:
            self._on_result(verdict)

    async def run(self, attacks: Sequence[Attack]) -> None:
        memory = _memory_of_host()
        async with self._session() as neighbour:
            await self._move_in(neighbour)
            attacks = self._claimed(attacks)
            quiet = [attack for attack in attacks if not attack.is_rough]
            rough = [attack for attack in attacks if attack.is_rough]
            await self._try_quiet([attack for attack in quiet if attack.group != _PROXY], "none")
            await self._try_quiet([attack for attack in quiet if attack.group == _PROXY], ALLOWED)
            lanes = [rough[lane::LANES] for lane in range(LANES)]
            async with anyio.create_task_group() as tasks:
                for lane in lanes:
                    if lane:
                        tasks.start_soon(self._try_rough, lane)
            self._look_at_host("all attacks")
            await self._look_at_neighbour(neighbour)
        await self._look_at_a_new_session()
        grown = _memory_of_host() - memory
        self._judge("the host's memory", grown < HOST_GROWTH, f"{grown >> 20} MiB more")
        left = self._scene.processes()
        self._judge("processes that outlive their session", not left, f"{len(left)}")

    def _claimed(self, attacks: Sequence[Attack]) -> list[Attack]:
        """Those that this backend says it withstands."""
        has = {""}
        if Capability.DISK_LIMIT in self._holds:
            has.add(OWN_FILES)
        if Capability.MEMORY_GROUP in self._holds:
            has.add(CONTROL_GROUP)
        self.left_out = {attack.name: attack.needs for attack in attacks if attack.needs not in has}
        return [attack for attack in attacks if attack.needs in has]

    def _session(self, **allowed: Any) -> Session:
        given: dict[str, Any] = {"disk": None if self.backend == "landlock" else DISK, **allowed}
        policy = Policy(
            read=[self._scene.folder / "granted"], write=[self._scene.folder / "written"], **given
        )
        config = SubprocessConfig(
            policy=policy, backend=self._choice, default_timeout=QUIET_TIMEOUT
        )
        return Session(FileStorage(self._scene.folder / "base"), SubprocessExecutor(config))

    # -- the quiet ones

    async def _try_quiet(
        self, attacks: Sequence[Attack], network: Literal["none"] | tuple[str, ...]
    ) -> None:
        groups = list(dict.fromkeys(attack.group for attack in attacks))
        if not groups:
            return
        async with self._session(open_files=FILES, network=network) as session:
            await self._ready(session, groups)
            for group in groups:
                names = [attack.name for attack in attacks if attack.group == group]
                result = await session.run(f"verdicts({names!r})", timeout=QUIET_TIMEOUT)
                found = result.value
                if not isinstance(found, dict):
                    found = dict.fromkeys(names, f"BROKEN: {result.error or found!r}")
                is_quiet = not self._leaks(result)
                self._judge(f"secrets after {group}", is_quiet, "none told" if is_quiet else "told")
                for name in names:
                    self._tell(name, group, str(cast("dict[str, str]", found).get(name, "BROKEN:")))
                self._look_at_host(group)
                if group == "services":
                    self._look_at_screen(result)
                if group == "files":
                    await self._look_at_pipe()

    async def _ready(self, session: Session, groups: Sequence[str]) -> None:
        result = await session.run(cell(groups, self._facts))
        if not result.is_ok:
            raise CodeModeError(f"the attacks could not be prepared: {result.error}")

    # -- the rough ones

    async def _try_rough(self, attacks: Sequence[Attack]) -> None:
        limits = {
            "memory": MEMORY,
            "processes": PROCESSES,
            "open_files": FILES,
            "file_size": FILE_SIZE,
            "cpu": 60,
        }
        calm = [attack for attack in attacks if attack.group != "bombs"]
        async with self._session(**limits) as session:
            for attack in calm:
                self._tell(attack.name, attack.group, await self._try(session, attack))
        for attack in attacks:
            if attack.group == "bombs":  # what one leaves would be in the way of the next
                async with self._session(**limits) as session:
                    self._tell(attack.name, attack.group, await self._try(session, attack))

    async def _try(self, session: Session, attack: Attack) -> str:
        try:
            try:
                await self._ready(session, [attack.group])
            except CodeModeError:
                # what the attack before this one left, such as a child that still sends, has ended
                # the worker only now
                await self._ready(session, [attack.group])
            result = await session.run(f"verdicts([{attack.name!r}])", timeout=ROUGH_TIMEOUT)
            if self._leaks(result):
                return "ESCAPED: told a secret"
            after = await session.run("1 + 1", timeout=ROUGH_TIMEOUT)
            if after.value != 2 and after.state == "kept":
                # what was left unsaid by the attack comes with the next run
                after = await session.run("1 + 1", timeout=ROUGH_TIMEOUT)
        except (CodeModeError, OSError) as error:
            return f"ESCAPED: the session cannot go on: {error}"[:300]
        if self._leaks(after):
            return "ESCAPED: told a secret"
        if after.value != 2:
            again = await session.run("1 + 1", timeout=ROUGH_TIMEOUT)
            if again.value != 2:
                return f"ESCAPED: the session does not go on: {after.error or after.value!r}"[:300]
        found = result.value
        if isinstance(found, dict) and attack.name in found:
            return str(cast("dict[str, str]", found)[attack.name])
        if result.failure is not None:
            return f"contained: {result.failure.message}"[:300]
        return f"contained: the run gave {found!r}"[:300]

    # -- the host

    def _judge(self, name: str, held: bool, text: str) -> None:
        self._tell(name, "host", f"contained: {text}" if held else f"ESCAPED: {text}")

    def _leaks(self, result: ExecutionResult) -> bool:
        return self._scene.token in repr((result, result.value, result.displays))

    def _look_at_host(self, when: str) -> None:
        now = self._scene.state()
        changed = {
            name: (self._before[name], now[name]) for name in now if now[name] != self._before[name]
        }
        self._judge(f"the host after {when}", not changed, str(changed or "unchanged")[:500])
        self._before = now

    def _look_at_screen(self, result: ExecutionResult) -> None:
        """What was printed and shown, as a terminal and a notebook would get it."""
        text = printable(result.to_text(100_000) + result.stdout + result.stderr)
        obeyed = _OBEYED.findall(text)
        self._judge("what a terminal is given", not obeyed, f"obeyed: {obeyed[:10]}")
        page = result._repr_html_()  # pyright: ignore[reportPrivateUsage]
        outside = re.sub(r'<iframe sandbox="" [^>]*srcdoc="[^"]*"></iframe>', "", page)
        is_safe = not re.search(r"<script|onerror=|onload=|<svg", outside, re.IGNORECASE)
        self._judge("what a notebook is given", is_safe, html.escape(outside[:200]))

    async def _look_at_pipe(self) -> None:
        """The host's own reader meets what was left in a folder for it."""
        store = FileStore(self._scene.folder / "written")
        told: list[str] = []
        with anyio.move_on_after(5) as waiting:
            for name in ("fifo", "sock", "link-secret", "link-root"):
                try:
                    body = await anyio.to_thread.run_sync(store.read, name, abandon_on_cancel=True)
                except (CodeModeError, OSError) as error:
                    told.append(type(error).__name__)
                else:
                    told.append(f"READ {body[:20]!r}")
        is_held = not waiting.cancelled_caught and not any(word.startswith("READ") for word in told)
        self._judge("what the host reads of what was left for it", is_held, ", ".join(told))

    # -- the neighbour

    async def _move_in(self, session: Session) -> None:
        result = await session.run(_NEIGHBOUR.format(token=self._scene.token))
        if not isinstance(result.value, dict):
            raise CodeModeError(f"a session that is attacked could not be prepared: {result.error}")
        executor = session._executor  # pyright: ignore[reportPrivateUsage]
        self.backend, self._holds = executor.isolation, executor.capabilities
        self._facts |= {
            "packages": "/packages" if self.backend != "landlock" else str(executor.overlay),
            **cast("dict[str, Any]", result.value),
            "neighbour": _newest("pcm-worker") or self._scene.victim.pid,
        }

    async def _look_at_neighbour(self, session: Session) -> None:
        result = await session.run("still_here()", timeout=10)
        text = "still has what it had" if result.value == self._scene.token else str(result.error)
        self._judge("another session", result.value == self._scene.token, text)

    async def _look_at_a_new_session(self) -> None:
        async with self._session() as session:
            result = await session.run(_NEW)
        text = result.error or f"found in it: {result.value}"
        self._judge("a session made afterwards", result.value == [], text)


_NEIGHBOUR = """
import os, random, socket, uuid
from multiprocessing.shared_memory import SharedMemory
_numbers = f"{{random.getrandbits(128):x}} {{uuid.uuid4().hex}}"
secret = {token!r}
for _place in (".", "/tmp", "/dev/shm", os.path.expanduser("~")):
    try:
        with open(os.path.join(_place, "neighbours-file"), "w") as _file:
            _file.write(secret)
    except OSError:
        pass
try:
    memory = SharedMemory("neighbours-memory", create=True, size=4096, **{{}})
    memory.buf[:32] = secret.encode()
except OSError:
    memory = None
def _listen(family, address):
    try:
        made = socket.socket(family)
        made.bind(address)
        made.listen()
        made.setblocking(False)
        return made
    except OSError:
        return None
abstract = _listen(socket.AF_UNIX, "\\0neighbours-socket")
port = _listen(socket.AF_INET, ("127.0.0.1", 0))
def still_here():
    for listener in (abstract, port):
        try:
            if listener is not None:
                listener.accept()
                return "somebody has connected"
        except BlockingIOError:
            pass
    if memory is not None and bytes(memory.buf[:32]) != secret.encode():
        return "its shared memory was changed"
    with open("neighbours-file") as file:
        return secret if file.read() == secret else "its file was changed"
{{
    "neighbour_workdir": os.getcwd(),
    "neighbour_port": port.getsockname()[1] if port is not None else 1,
    "neighbour_random": _numbers,
}}
"""

_NEW = """
import os, sys
try:
    with open("/proc/self/mounts") as _file:
        _mounts = [line.split()[1] for line in _file]
except OSError:
    _mounts = []
_found = [name for name in ("PLANTED",) if name in os.environ]
_found += [name for name in ("planted", "json_planted") if name in sys.modules]
for _place in (".", "/tmp", "/dev/shm", os.path.expanduser("~"), "/packages"):
    try:
        _names = [os.path.join(os.path.abspath(_place), name) for name in os.listdir(_place)]
    except OSError:
        continue
    # what is shown of the host may lie in there
    _found += [name for name in _names if not any(at.startswith(name) for at in _mounts)]
import subprocess as _subprocess
_seen = _subprocess.run(
    [sys.executable, "-c", "import os; print(os.environ.get('PLANTED', ''))"],
    capture_output=True, text=True,
)
_found += _seen.stdout.split()
_found
"""


# -- parts of the scene


def _home() -> Path:
    home = Path.home()
    return home if os.access(home, os.W_OK) else Path(tempfile.gettempdir())


def _listen(folder: Path, name: str) -> Iterator[socket.socket]:
    """Sockets of the host, all of which any local user may connect to."""
    secret = folder / "secret"
    wanted: list[tuple[int, int, Any]] = [
        (socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{name}"),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(secret / "socket")),
        (socket.AF_UNIX, socket.SOCK_DGRAM, str(secret / "datagrams")),
    ]
    for family, kind, address in wanted:
        made = socket.socket(family, kind)
        try:
            made.bind(address)
        except OSError:
            if family != socket.AF_INET6:
                raise
            made = socket.socket(socket.AF_INET, kind)  # a host without IPv6
            made.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
        made.setblocking(False)
        if isinstance(address, str) and address.startswith("/"):
            os.chmod(address, 0o777)
        yield made


def _own_address() -> str:
    """An address of this machine that is not its loopback's, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            made.connect(("192.0.2.1", 9))  # RFC 5737: nothing is sent to it
        except OSError:
            return "127.0.0.2"
        return made.getsockname()[0]


def _make_segment(key: int, token: str) -> int:
    """System V memory that any user of the host may attach."""
    libc = ctypes.CDLL(None, use_errno=True)
    made: int = libc.shmget(key, 4096, 0o1666)
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(made, None, 0)
    if made >= 0 and at not in (None, ctypes.c_void_p(-1).value):
        ctypes.memmove(at, token.encode(), len(token))
        libc.shmdt(ctypes.c_void_p(at))
    return made


def _remove_segment(segment: int) -> None:
    if segment >= 0:
        ctypes.CDLL(None).shmctl(segment, 0, None)


def _end(victim: subprocess.Popen[bytes]) -> None:
    victim.kill()
    victim.wait(10)


def _about(path: Path) -> tuple[object, ...]:
    """A file's content and all that can be changed of it."""
    try:
        status = os.stat(path)
        return (
            path.read_bytes(),
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_nlink,
            tuple(os.listxattr(path)) if sys.platform == "linux" else (),
        )
    except OSError as error:
        return (str(error),)


def _is_trap(path: Path) -> bool:
    """Whether a file would give its user more than its maker had."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    has_bits = bool(status.st_mode & (stat.S_ISUID | stat.S_ISGID)) and stat.S_ISREG(status.st_mode)
    attributes: list[str] = []
    if stat.S_ISREG(status.st_mode) and sys.platform == "linux":
        attributes = os.listxattr(path, follow_symlinks=False)
    return is_device or has_bits or "security.capability" in attributes


def _share(pid: int) -> tuple[object, ...]:
    """What a process may use of the machine."""
    return (
        os.getpriority(os.PRIO_PROCESS, pid),
        os.sched_getaffinity(pid),
        os.sched_getscheduler(pid),
    )


def _newest(command: str) -> int:
    """The pid, here outside, of the process of this name that was started last; 0 for none."""
    found = 0
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == command:
                found = max(found, pid)
    return found


def _memory_of_host() -> int:
    """Bytes that this process holds."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
