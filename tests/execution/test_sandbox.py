"""Sandboxes of every backend that this machine has, and which one is chosen where."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
import warnings
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode.environments.base import host_environment
from py_code_mode.errors import ConfinementFailed, SandboxUnavailable, UnsandboxedWarning
from py_code_mode.execution.executor import Capability
from py_code_mode.execution.launch import closed_to, start_keeper
from py_code_mode.execution.sandbox import MISSING, choose, room_for_files, unenforceable
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.guest.confine import FULL_ABI
from py_code_mode.sandbox.policy import Policy
from py_code_mode.sandbox.probe import LAYERS, SANDBOX_USER, Layer, Probe, probe, sandbox_user
from py_code_mode.scratch import sweep
from py_code_mode.testing.executors import OpenGuest

from ..session_executors import require

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from py_code_mode.sandbox.probe import Backend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are Linux's")
SECRET = "the host's secret"
BACKENDS: tuple[Backend, ...] = ("namespaces", "bubblewrap", "landlock")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    asked: Backend = request.param
    require(asked)
    return asked


def _make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


@asynccontextmanager
async def _open(
    backend: Backend, workdir: Path, policy: Policy | None = None
) -> AsyncGenerator[OpenGuest]:
    _make(workdir)
    config = SubprocessConfig(backend=backend, policy=policy)
    guest = OpenGuest(SubprocessExecutor(config), workdir)
    with anyio.fail_after(100):
        await guest.start()
        try:
            yield guest
        finally:
            await guest.executor.close()


def _is_running(mark: str) -> bool:
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True
    )
    return mark in listed.stdout


async def _ends(mark: str) -> None:
    with anyio.fail_after(30):
        while _is_running(mark):  # noqa: ASYNC110  nobody tells when it ends
            await anyio.sleep(0.02)


# -- files


@pytest.mark.anyio
async def test_what_is_reported_is_what_runs(backend: Backend, tmp_path: Path) -> None:
    async with _open(backend, tmp_path / "work") as guest:
        assert guest.executor.isolation == backend
        assert not guest.executor.capabilities & MISSING[backend]
        assert Capability.FILE_ISOLATION in guest.executor.capabilities


@pytest.mark.anyio
async def test_only_what_is_granted_can_be_read_and_written(
    backend: Backend, tmp_path: Path
) -> None:
    for name in ("hidden", "shown", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(SECRET)
    policy = Policy(read=[tmp_path / "shown"], write=[tmp_path / "open"])
    async with _open(backend, tmp_path / "work", policy) as guest:
        hidden = await guest.failure(f"open({str(tmp_path / 'hidden' / 'file')!r}).read()")
        assert hidden.type in ("FileNotFoundError", "PermissionError")
        for name in ("shown", "open"):
            assert await guest.value(f"open({str(tmp_path / name / 'file')!r}).read()") == SECRET
        refused = await guest.failure(f"open({str(tmp_path / 'shown' / 'file')!r}, 'w')")
        assert refused.type in ("OSError", "PermissionError")
        await guest.value(f"open({str(tmp_path / 'open' / 'new')!r}, 'w').write('x')")
        await guest.value("open('here', 'w').write('y')")
    assert (tmp_path / "shown" / "file").read_text() == SECRET
    assert (tmp_path / "open" / "new").read_text() == "x"
    assert (tmp_path / "work" / "here").read_text() == "y"


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _is_there(place: str) -> bool:
    return Path(place, "mine").exists()


@pytest.mark.anyio
async def test_its_folders_are_its_own_and_gone_afterwards(
    backend: Backend, tmp_path: Path
) -> None:
    code = (
        "import os, tempfile\n"
        "places = [tempfile.mkdtemp(), os.path.expanduser('~')]\n"
        "for place in places:\n"
        "    open(os.path.join(place, 'mine'), 'w').write('x' * 1000)\n"
        "places"
    )
    async with _open(backend, tmp_path / "one") as one, _open(backend, tmp_path / "two") as two:
        places: list[str] = await one.value(code)
        for place in places:
            path = os.path.join(place, "mine")
            assert (await two.failure(f"open({path!r})")).type in (
                "FileNotFoundError", "PermissionError",
            )  # fmt: skip
    assert not any(map(_is_there, places))


@pytest.mark.anyio
async def test_all_files_of_a_session_share_one_limit(backend: Backend, tmp_path: Path) -> None:
    if Capability.DISK_LIMIT in MISSING[backend]:
        pytest.skip("it has no limit on disk")
    code = """
import os
written = 0
def fill(path):
    global written
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(1 << 16))
    except OSError as error:
        return error.errno
[fill("/tmp/a"), fill("/home/user/b"), fill("/dev/shm/c"), fill("/work/d"), written]
"""
    config = SubprocessConfig(backend=backend, policy=Policy(disk="2MiB"))
    guest = OpenGuest(SubprocessExecutor(config), tmp_path)
    with anyio.fail_after(60):
        await guest.start()
        try:
            *errors, written = await guest.value(code.replace('fill("/work/d"), ', ""))
        finally:
            await guest.executor.close()
    assert errors == [28, 28, 28]
    assert written <= 2 << 20


@pytest.mark.anyio
async def test_packages_that_the_host_adds_are_there_at_once_and_read_only(
    backend: Backend, tmp_path: Path
) -> None:
    async with _open(backend, tmp_path / "work") as guest:
        assert await guest.value("1") == 1
        overlay = guest.executor.overlay
        assert overlay is not None
        _write(overlay / "added_by_the_host.py", "x = 5")
        assert await guest.value("import added_by_the_host as added; added.x") == 5
        failure = await guest.failure("open(added.__file__, 'a').write('x = 6')")
        assert failure.type in ("OSError", "PermissionError")


# -- network


@pytest.mark.anyio
@pytest.mark.parametrize("network", ["none", "open"])
async def test_a_server_of_the_host_is_reached_only_with_its_network(
    backend: Backend, tmp_path: Path, network: Any
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        policy = Policy(network=network)
        async with _open(backend, tmp_path / "work", policy) as guest:
            outcome = await guest.run(
                f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).close()"
            )
    assert (outcome.failure is None) == (network == "open"), outcome.failure


@pytest.mark.anyio
async def test_abstract_sockets_of_the_host_are_out_of_reach(
    backend: Backend, tmp_path: Path
) -> None:
    name = f"\0{uuid.uuid4()}"
    code = f"import socket\ns = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect({name!r})"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(name)
        server.listen()
        policy = Policy(network="open")
        async with _open(backend, tmp_path / "work", policy) as guest:
            assert (await guest.failure(code)).type in (
                "PermissionError", "ConnectionRefusedError", "OSError",
            )  # fmt: skip


# -- processes


@pytest.mark.anyio
async def test_no_other_process_can_be_seen_or_signalled(backend: Backend, tmp_path: Path) -> None:
    secret = f"secret-{uuid.uuid4()}"
    command = [sys.executable, "-c", "input()", secret]
    code = f"""
import glob, os
found, signalled = [], []
for path in glob.glob("/proc/[0-9]*/*") + glob.glob("/proc/self/net/*") + ["/proc/self/mountinfo"]:
    try:
        if path.endswith(("cmdline", "environ")) and {secret!r} in open(path).read():
            found.append(path)
        if os.path.basename(os.path.dirname(path)) == "net" and {backend == "landlock"}:
            found.append((path, open(path).read()))
    except OSError:
        pass
for pid in ({os.getpid()}, os.getppid(), 1):
    try:
        os.kill(pid, 0 if pid == {os.getpid()} else 9)
        signalled.append(pid)
    except OSError:
        pass
[found, signalled]
"""
    async with await anyio.open_process(command, stdin=subprocess.PIPE, env={"S": secret}) as other:
        async with _open(backend, tmp_path / "work") as guest:
            assert await guest.value(code) == [[], []]
            assert await guest.value("1 + 1") == 2
        other.kill()


@pytest.mark.anyio
async def test_daemons_end_with_the_session(backend: Backend, tmp_path: Path) -> None:
    mark = f"daemon-{uuid.uuid4()}"
    code = f"""
import os, sys, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.dup2(writing, 1)
        os.execv(sys.executable, [sys.executable, "-c",
            "import time; print(1, flush=True); time.sleep(600)", {mark!r}])
    os._exit(0)
os.wait()
os.read(reading, 1)
"""
    async with _open(backend, tmp_path / "work") as guest:
        assert await guest.value(code) == b"1"
        assert _is_running(mark)
    await _ends(mark)


@pytest.mark.anyio
async def test_a_fork_bomb_is_contained_and_ended(backend: Backend, tmp_path: Path) -> None:
    code = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    async with _open(backend, tmp_path / "work", Policy(processes=40)) as guest:
        outcome = await guest.run(code, timeout=1.0)
        assert outcome.failure is not None
        assert await guest.value("1 + 1") == 2


@pytest.mark.anyio
async def test_processes_are_limited(backend: Backend, tmp_path: Path) -> None:
    code = """
import subprocess
children = []
try:
    while len(children) < 60:
        children.append(subprocess.Popen(["sleep", "600"]))
except OSError:
    pass
len(children)
"""
    async with _open(backend, tmp_path / "work", Policy(processes=30)) as guest:
        outcome = await guest.run(code)
        if outcome.failure is None:
            assert isinstance(outcome.value, int)
            assert 10 < outcome.value <= 30
        else:
            assert "processes" in outcome.failure.message


@pytest.mark.anyio
async def test_files_have_their_part_of_the_memory_and_no_more(
    backend: Backend, tmp_path: Path
) -> None:
    if backend == "landlock":
        pytest.skip("its files are on the host's disk")
    async with _open(backend, tmp_path / "work", Policy(memory="200MiB")) as guest:
        for place in ("/tmp/x", "/dev/shm/x"):
            code = f"with open({place!r}, 'wb') as file:\n"
            code += "    for _ in range(200): file.write(bytes(1 << 20))"
            assert "No space left" in (await guest.failure(code)).message
            assert await guest.value(f"import os; os.path.getsize({place!r}) > 0") is (
                place == "/tmp/x"
            )
        assert await guest.value("1 + 1") == 2


@pytest.mark.parametrize(
    ("policy", "room"),
    [
        (Policy(memory="4GiB"), 2 << 30),  # the default of `disk`
        (Policy(memory="4GiB", disk=None), 3 << 30),
        (Policy(memory="1GiB"), 768 << 20),
        (Policy(memory="200MiB"), 104 << 20),
        (Policy(memory="64MiB"), 16 << 20),
        (Policy(memory="1GiB", disk="10MiB"), 10 << 20),
        (Policy(memory=None), 2 << 30),
        (Policy(memory=None, disk=None), None),
    ],
)
def test_room_for_files_is_the_least_of_disk_and_a_part_of_memory(
    policy: Policy, room: int | None
) -> None:
    assert room_for_files(policy) == room


@pytest.mark.anyio
async def test_memory_of_children_counts(backend: Backend, tmp_path: Path) -> None:
    code = """
import subprocess, sys
hold = "x = b'x' * (150 << 20); print(1, flush=True); input()"
start = lambda: subprocess.Popen([sys.executable, "-c", hold], stdin=-1, stdout=-1)
children = [start() for _ in range(4)]
[child.stdout.read(1) for child in children]
import time
time.sleep(60)
"""
    async with _open(backend, tmp_path / "work", Policy(memory="400MiB")) as guest:
        outcome = await guest.run(code)
        assert outcome.failure is not None
        assert (outcome.failure.cause, outcome.failure.limit) == ("limit", "memory")
        assert await guest.value("1 + 1") == 2


_HOST = """
import asyncio, pathlib, sys
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.testing.executors import OpenGuest

async def main(backend, workdir, mark):
    guest = OpenGuest(SubprocessExecutor(SubprocessConfig(backend=backend)), pathlib.Path(workdir))
    await guest.start()
    print(guest.executor.isolation, flush=True)
    code = "import subprocess, sys\\n" + (
        "c = subprocess.Popen([sys.executable, '-c', "
        f"'import time; print(1, flush=True); time.sleep(600)', {mark!r}], stdout=-1)\\n"
        "c.stdout.read(1)"
    )
    print(await guest.value(code), flush=True)
    await guest.run("while True:\\n    try:\\n        while True: pass\\n    except: pass", None)

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def _host(backend: str, workdir: Path, mark: str, *before: str) -> Generator[subprocess.Popen[str]]:
    """A host with a session of its own, which is killed at the end."""
    folders = workdir / "temporary"
    folders.mkdir()
    with subprocess.Popen(
        [*before, sys.executable, "-c", _HOST, backend, str(workdir), mark],
        env={**os.environ, "TMPDIR": str(folders)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as host:
        try:
            yield host
        finally:
            host.kill()
    sweep(folders)  # as the next host does
    assert list(folders.iterdir()) == []


def _line(host: subprocess.Popen[str]) -> str:
    assert host.stdout is not None
    assert host.stderr is not None
    return host.stdout.readline().strip() or host.stderr.read()


@pytest.mark.anyio
async def test_all_of_a_session_ends_with_a_host_that_is_killed(
    backend: Backend, tmp_path: Path
) -> None:
    mark = f"orphan-{uuid.uuid4()}"
    with _host(backend, tmp_path, mark) as host:
        assert _line(host) == backend
        assert _line(host) == "b'1'"
        assert _is_running(mark)
    await _ends(mark)


@pytest.mark.anyio
async def test_a_host_without_user_namespaces_and_bubblewrap_confines_all_the_same(
    tmp_path: Path,
) -> None:
    if shutil.which("unshare") is None or not probe()["user_namespace"].is_ok:
        pytest.skip("needs user namespaces, to forbid them in one")
    if "landlock" not in probe().backends:
        pytest.skip(f"needs Landlock ABI {FULL_ABI}")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    mark = f"forbidden-{uuid.uuid4()}"
    before = ("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    with _host("auto", tmp_path, mark, *before) as host:
        assert _line(host) == "landlock"
        assert _line(host) == "b'1'"
    await _ends(mark)


# -- starting


@pytest.mark.anyio
async def test_what_a_keeper_says_when_it_cannot_start_is_told() -> None:
    with pytest.raises(ConfinementFailed) as caught:
        await start_keeper(
            "bubblewrap",
            lambda fd: ["/bin/sh", "-c", "echo what went wrong >&2"],
            {"command": [], "memory": None},
            environment={},
        )
    assert caught.value.step == "bubblewrap"
    assert "what went wrong" in caught.value.reason
    with pytest.raises(ConfinementFailed, match="no-such-program"):
        await start_keeper(
            "keeper", lambda fd: ["/no-such-program"], {"memory": None}, environment={}
        )


@pytest.mark.anyio
async def test_a_cancelled_start_leaves_nothing(backend: Backend, tmp_path: Path) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        guest = OpenGuest(SubprocessExecutor(SubprocessConfig(backend=backend)), tmp_path)
        with anyio.move_on_after(delay):
            await guest.start()
        with anyio.CancelScope(shield=True):
            await guest.executor.close()


# -- choosing


def _probed(abi: int = FULL_ABI, **failed: int) -> Probe:
    layers = tuple(
        Layer(name=name, is_ok=name not in failed, error=failed.get(name)) for name in LAYERS
    )
    return Probe(layers=layers, landlock_abi=abi)


_ALL = _probed()
_WALLED = _probed(user_namespace=28)
_BARE = _probed(user_namespace=28, bubblewrap=2)
_NOTHING = _probed(abi=0, user_namespace=28, bubblewrap=2, landlock=95)


@pytest.mark.parametrize(
    ("found", "policy", "chosen"),
    [
        (_ALL, None, "namespaces"),
        (_WALLED, None, "bubblewrap"),
        (_BARE, None, "landlock"),
        (_NOTHING, None, "none"),
        (_probed(other_user=1), None, "none"),
        (_ALL, Policy(), "namespaces"),
        (_WALLED, Policy(network=["a.org"]), "bubblewrap"),
        (_BARE, Policy(), "landlock"),
        (_BARE, Policy(read=["/usr"], memory="1GiB", processes=5, cpu=1), "landlock"),
        (_BARE, Policy(disk=None), "landlock"),
        (_BARE, Policy(disk=None, network="open"), "landlock"),
    ],
)
def test_auto_is_the_best_that_holds_the_policy(
    found: Probe, policy: Policy | None, chosen: str
) -> None:
    assert choose("auto", policy, found) == chosen


def test_a_session_that_asked_for_nothing_is_warned_that_it_has_nothing() -> None:
    with pytest.warns(UnsandboxedWarning, match="no sandbox: .*user_namespace: failed") as caught:
        assert choose("auto", None, _NOTHING) == "none"
    assert 'backend="none"' in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("none", None, _NOTHING) == "none"
        assert choose("auto", None, _BARE) == "landlock"


def test_the_warning_is_shown_once_in_a_process() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            choose("auto", None, _NOTHING)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("backend", "found", "policy", "reason"),
    [
        ("namespaces", _WALLED, None, "user_namespace: failed"),
        ("bubblewrap", _BARE, None, "bubblewrap: failed"),
        ("auto", _BARE, Policy(disk="2GiB"), "disk=None"),
        ("auto", _BARE, Policy(disk=None, network=["a.org"]), "network namespace"),
        ("landlock", _ALL, Policy(disk="1GiB"), "disk=None"),
        ("auto", _NOTHING, Policy(disk=None), "landlock: failed"),
        ("none", _ALL, Policy(), "not confined"),
        ("auto", _probed(other_user=1), Policy(), "other_user: failed"),
        ("auto", _probed(abi=4), Policy(network="open"), "abstract Unix sockets"),
    ],
)
def test_what_cannot_be_held_is_an_error_with_the_reason(
    backend: Any, found: Probe, policy: Policy | None, reason: str
) -> None:
    with pytest.raises(SandboxUnavailable) as caught:
        choose(backend, policy, found)
    assert any(reason in text for text in caught.value.reasons), caught.value.reasons


def test_an_environment_out_of_reach_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing said what to do, and what had nothing to do with it was named as a reason."""
    monkeypatch.setattr("py_code_mode.execution.sandbox.sandbox_user", lambda: SANDBOX_USER)
    (tmp_path / "bin").mkdir()
    tmp_path.chmod(0o700)
    environment = replace(host_environment(), python=tmp_path / "bin" / "python")
    found = _probed(user_namespace=28, bubblewrap=2, rlimit_processes=1)
    with pytest.raises(SandboxUnavailable) as caught:
        choose("landlock", Policy(), found, environment)
    told = str(caught.value)
    assert f"because of {tmp_path}" in told or "because of /" in told
    assert "PY_CODE_MODE_CACHE" in told
    assert "python_version" in told
    assert "rlimit_processes" not in told
    with pytest.raises(SandboxUnavailable, match="user_namespace: failed"):
        choose("auto", Policy(), found, environment)


def test_everything_that_is_not_enforced_is_missing_from_the_capabilities() -> None:
    assert unenforceable("namespaces", Policy()) == ()
    assert unenforceable("bubblewrap", Policy(network=["a.org"])) == ()
    assert Capability.DISK_LIMIT in MISSING["landlock"]
    assert Capability.NETWORK_ALLOW_LIST in MISSING["landlock"]
    assert MISSING["namespaces"] == MISSING["bubblewrap"] == frozenset()
    isolating = {Capability.FILE_ISOLATION, Capability.NETWORK_ISOLATION, Capability.MEMORY_LIMIT}
    assert isolating <= MISSING["none"]


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that anybody can pass through, for temporary files and the guests' environments."""
    with tempfile.TemporaryDirectory(prefix="test-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("PY_CODE_MODE_CACHE", f"{folder}/cache")
        yield Path(folder)


@pytest.mark.anyio
async def test_what_root_has_sandboxed_is_not_root(open_to_all: Path) -> None:
    if sandbox_user() is None:
        pytest.skip("needs root")
    closed = closed_to(SANDBOX_USER, [Path(sys.executable), Path(__file__)])
    if closed:
        pytest.skip("; ".join(closed))
    uids: dict[Backend, int] = {"bubblewrap": 1000, "landlock": SANDBOX_USER}
    for backend in uids.keys() & set(probe().backends):
        workdir = open_to_all / backend
        _make(workdir)
        os.chown(workdir, SANDBOX_USER, SANDBOX_USER)
        async with _open(backend, workdir) as guest:
            assert await guest.value("import os; os.getuid()") == uids[backend]
            assert await guest.value("open('made', 'w').write('x'); os.listdir()") == ["made"]
            refused = await guest.failure("os.setuid(0)")
            assert refused.type in ("PermissionError", "OSError")  # EINVAL: there is no such user


def test_what_another_user_cannot_get_at_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name, mode in (("open", 0o755), ("closed", 0o700), ("listed", 0o711)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in").mkdir()
        (tmp_path / name).chmod(mode)
    stranger = SANDBOX_USER
    at = tmp_path.resolve()
    if any(not folder.stat().st_mode & 0o001 for folder in at.parents):
        (reason,) = closed_to(stranger, [tmp_path])
        assert str(tmp_path) in reason
        return
    assert closed_to(stranger, [at / "open" / "in", at / "listed" / "in"]) == ()
    assert len(closed_to(stranger, [at / "closed" / "in", at / "listed", at / "missing"])) == 3
    assert "written" in closed_to(stranger, [], [at / "open"])[0]
    assert closed_to(os.geteuid(), [], [at / "open"]) == ()
