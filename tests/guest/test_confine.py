"""Workers that confine themselves for real, and then try to get out, and to get work done."""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.environments import find_interpreter
from py_code_mode.errors import InterpreterNotFound
from py_code_mode.guest import confine, errors

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTACKS_FILE = Path(__file__).with_name("attacks.py")
ATTACKS = sorted(runpy.run_path(str(ATTACKS_FILE))["ATTACKS"])
GUEST = Path(confine.__file__).parent
UNPRIVILEGED = 65534
SECRET = "the host's secret"
_SEGMENT_KEY = 0x5EC2E7
_LAUNCH = """
import sys, json
package = type(sys)("_guest"); package.__path__ = [sys.argv[1]]; sys.modules["_guest"] = package
from importlib import import_module
confine = import_module("_guest.confine")
plan = confine.Confinement(**json.loads(sys.argv[2]))
"""


def _landlock_abi() -> int:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return 0
    return max(int(ctypes.CDLL(None).syscall(444, None, 0, 1)), 0)


pytestmark = pytest.mark.skipif(
    _landlock_abi() < confine.FULL_ABI,
    reason=f"x86_64 Linux with Landlock ABI {confine.FULL_ABI} only",
)


@dataclass(frozen=True, kw_only=True)
class Who:
    """The user that starts workers, and an interpreter it may run."""

    uid: int
    python: str

    @property
    def as_user(self) -> dict[str, Any]:
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.uid, "extra_groups": ()}


def _works(python: str, uid: int) -> bool:
    if not os.path.exists(python):
        return False
    who = Who(uid=uid, python=python)
    try:
        done = subprocess.run(
            [python, "-I", "-c", "import ctypes"],
            capture_output=True,
            text=True,
            timeout=20,
            **who.as_user,
        )
    except PermissionError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module", params=["root", "unprivileged"])
def who(request: pytest.FixtureRequest) -> Who:
    if request.param == "root":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        return Who(uid=0, python=sys.executable)
    uid = UNPRIVILEGED if os.geteuid() == 0 else os.geteuid()
    for python in (sys.executable, "/usr/bin/python3"):
        if _works(python, uid):
            return Who(uid=uid, python=python)
    pytest.skip("no interpreter that an unprivileged user may run")


@pytest.fixture(scope="module")
def place(who: Who) -> Iterator[Path]:
    """A folder of that user, reachable by it, with a workdir."""
    folder = Path(tempfile.mkdtemp(prefix="code-mode-test-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "work").mkdir()
    (folder / "outside").mkdir()
    (folder / "shared").mkdir()
    (folder / "outside" / "secret").write_text(SECRET)
    (folder / "shared" / "file").write_text("for all to read")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, who.uid, who.uid)
    yield folder
    shutil.rmtree(folder)


def _readable(who: Who) -> list[str]:
    wanted = {"/usr", "/etc/ld.so.cache", "/dev/urandom", sys.prefix, sys.base_prefix}
    # what is linked from /bin and /lib is reached by its real place
    return sorted(path for path in wanted if os.path.exists(path) and _reaches(who, path))


def _reaches(who: Who, path: str) -> bool:
    """Whether that user gets there: a virtual environment may lie in somebody's private folder."""
    if who.uid == os.geteuid():
        return os.access(path, os.R_OK)
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(path).resolve().parents)


def _plan(who: Who, place: Path, **more: Any) -> dict[str, Any]:
    readable = _readable(who)
    plan: dict[str, Any] = {
        "readable": [*readable, str(place / "shared")],
        "executable": [path for path in readable if os.path.isdir(path)],
        "writable": [str(place / "work"), "/dev/null"],
        "memory": 2 << 30,
        "processes": 100,
        "file_size": 1 << 28,
        "open_files": 256,
    }
    return plan | more


def _confined(
    who: Who, place: Path, code: str, *arguments: str, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run code in a worker that has confined itself."""
    return subprocess.run(
        [
            *(who.python, "-I", "-c", _LAUNCH + "confined = confine.confine(plan)\n" + code),
            *(str(GUEST), json.dumps(_plan(who, place, **more)), *arguments),
        ],
        cwd=place / "work",
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(place / "work"), "HOME": str(place / "work")},
        capture_output=True,
        text=True,
        timeout=60,
        **who.as_user,
    )


# -- getting out


@dataclass(frozen=True, kw_only=True)
class Assault:
    """What the attacks found, and what of the outside there was after them."""

    found: dict[str, dict[str, str]]
    confined: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]


def _outside(place: Path, victim: subprocess.Popen[Any]) -> dict[str, Any]:
    secret = place / "outside" / "secret"
    status = os.stat(secret)
    return {
        "secret": secret.read_text(),
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "modified": status.st_mtime_ns,
        "attributes": os.listxattr(secret),
        "shared": oct(os.stat(place / "shared" / "file").st_mode),
        "listing": sorted(os.listdir(secret.parent)),
        "victim": victim.poll(),
        "limits": Path(f"/proc/{victim.pid}/limits").read_text(),
        "nice": os.getpriority(os.PRIO_PROCESS, victim.pid),
        "cores": os.sched_getaffinity(victim.pid),
        "scheduler": os.sched_getscheduler(victim.pid),
        "host": socket.gethostname(),
        "mounts": Path("/proc/self/mounts").read_text(),
        "queues": os.listdir("/dev/mqueue") if os.path.isdir("/dev/mqueue") else [],
    }


@pytest.fixture(scope="module")
def assault(who: Who, place: Path) -> Iterator[Assault]:
    victim = subprocess.Popen(
        ["/bin/sleep", "600"], env={"HOST_SECRET": SECRET}, start_new_session=True, **who.as_user
    )
    listeners = [socket.socket(socket.AF_INET), socket.socket(socket.AF_UNIX)]
    listeners += [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)]
    abstract = f"code-mode-test-{os.getpid()}-{who.uid}"
    by_path, datagrams = place / "outside" / "socket", place / "outside" / "datagrams"
    addresses = [("127.0.0.1", 0), "\0" + abstract, str(by_path), str(datagrams)]
    try:
        for listener, address in zip(listeners, addresses, strict=True):
            listener.bind(address)
            if listener.type == socket.SOCK_STREAM:
                listener.listen()
        for path in (by_path, datagrams):
            os.chmod(path, 0o777)
        facts = {
            "workdir": str(place / "work"),
            "plan": _plan(who, place),
            "secret": str(place / "outside" / "secret"),
            "shared": str(place / "shared" / "file"),
            "victim": victim.pid,
            "port": listeners[0].getsockname()[1],
            "abstract": abstract,
            "socket": str(by_path),
            "datagrams": str(datagrams),
            "segment_key": _SEGMENT_KEY,
        }
        before = _outside(place, victim)
        script = place / "attacks.py"
        script.write_text(ATTACKS_FILE.read_text())
        done = subprocess.run(
            [who.python, "-I", str(script), str(GUEST), json.dumps(facts)],
            env={"HOST_SECRET": SECRET},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
            **who.as_user,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        yield Assault(
            found=told["found"],
            confined=told["confined"],
            before=before,
            after=_outside(place, victim),
        )
    finally:
        for listener in listeners:
            listener.close()
        victim.kill()
        victim.wait(10)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing(assault: Assault, name: str) -> None:
    assert "errno" in assault.found[name], assault.found[name]


def test_the_attacks_changed_nothing_outside(assault: Assault) -> None:
    assert assault.after == assault.before


def test_what_was_enforced_is_reported(assault: Assault) -> None:
    assert assault.confined["landlock_abi"] == _landlock_abi()
    assert assault.confined["architecture"] == "x86_64"
    assert assault.confined["gaps"] == []


def test_the_attacks_work_where_nothing_is_confined(who: Who, place: Path) -> None:
    code = """
import os, json, socket
found = {}
def attempt(name, act):
    try: found[name] = repr(act())
    except OSError as error: found[name] = "refused"
secret = sys.argv[3]
attempt("read", lambda: open(secret).read())
attempt("list", lambda: os.listdir(os.path.dirname(secret)))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("socket", lambda: socket.socket().close())
attempt("chmod", lambda: os.chmod(secret, 0o640))
attempt("utime", lambda: os.utime(secret, (5, 5)))
print(json.dumps(found))
"""
    victim = place / "outside" / "victim"
    victim.write_text(SECRET)
    os.chown(victim, who.uid, who.uid)
    free = subprocess.run(
        [who.python, "-I", "-c", _LAUNCH + code, str(GUEST), "{}", str(victim)],
        capture_output=True, text=True, timeout=60, **who.as_user,
    )  # fmt: skip
    caught = _confined(who, place, code, str(victim))
    victim.unlink()
    open_ones = {name for name, got in json.loads(free.stdout).items() if got != "refused"}
    assert open_ones >= {"read", "list", "socket", "chmod", "utime"}
    shut = {name for name, got in json.loads(caught.stdout).items() if got == "refused"}
    assert shut == {"read", "list", "kill", "socket"}  # the last two: in name only


# -- ordinary work

WORK = {
    "threads": """
import threading, concurrent.futures
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(lambda x: x * x, range(100))))
""",
    "subprocess": """
import subprocess
print(subprocess.run(["/bin/sh", "-c", "echo hello | cat; ls /usr | wc -l >/dev/null"], check=True,
      capture_output=True, text=True).stdout)
""",
    "python_in_a_child": """
import subprocess
print(subprocess.run([sys.executable, "-c", "print(42)"], check=True, capture_output=True).stdout)
""",
    "asyncio": """
import asyncio
async def main():
    one, other = await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(lambda: 2))
    child = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=-1)
    return one, other, (await child.communicate())[0]
print(asyncio.run(main()))
""",
    "multiprocessing_fork": """
import multiprocessing
context = multiprocessing.get_context("fork")
reading, writing = context.Pipe(duplex=False)
child = context.Process(target=writing.send, args=([1, 2],))
child.start()
print(reading.recv())
child.join(20)
assert child.exitcode == 0
""",
    "sqlite": """
import sqlite3
with sqlite3.connect("data.db") as base:
    base.execute("create table t (a)"); base.executemany("insert into t values (?)", [(1,), (2,)])
print(sqlite3.connect("data.db").execute("select sum(a) from t").fetchall())
""",
    "files": """
import os, pathlib, shutil, tempfile, zipfile
pathlib.Path("one").write_text("1"); os.rename("one", "two"); os.mkdir("sub")
os.symlink("two", "link")
os.rename("two", "sub/two"); shutil.copy2("sub/two", "three"); shutil.copytree("sub", "sub2")
with zipfile.ZipFile("z.zip", "w") as z: z.write("three")
zipfile.ZipFile("z.zip").extractall("unzipped"); os.mkfifo("pipe")
with tempfile.NamedTemporaryFile() as file: file.write(b"x")
with tempfile.TemporaryDirectory() as folder: print(os.listdir(folder))
print(open("/dev/null", "w").write("x"))
print(open(os.path.join("sub2", "two")).read(), open(sys.argv[3]).read())
""",
    "signals_and_timers": """
import signal, time, os
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.01)
while not seen: time.sleep(0.005)
child = os.fork()
if child == 0: time.sleep(60)
os.kill(child, signal.SIGKILL); print(os.waitpid(child, 0)[1])
""",
    "memory_files_and_maps": """
import mmap, os, fcntl
made = os.memfd_create("x", os.MFD_ALLOW_SEALING); os.write(made, b"abc")
fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
print(mmap.mmap(made, 3, prot=mmap.PROT_READ)[:])
""",
    "random_and_hashes": """
import hashlib, os, random, secrets, ssl, uuid, time, platform
print(hashlib.sha256(os.urandom(8)).hexdigest()[:0], random.random() < 2, len(secrets.token_hex()))
print(uuid.uuid4().version, uuid.uuid1().version, time.time() > 0, platform.system())
""",
}  # fmt: skip


@pytest.mark.parametrize("kind", WORK)
def test_ordinary_code_works(who: Who, place: Path, kind: str) -> None:
    shutil.rmtree(place / "work")
    (place / "work").mkdir()
    os.chown(place / "work", who.uid, who.uid)
    done = _confined(who, place, WORK[kind], str(place / "shared" / "file"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_numpy_pandas_and_pyarrow_work(who: Who, place: Path) -> None:
    if who.python != sys.executable:
        pytest.skip("the interpreter that this user may run has no pandas")
    code = f"""
sys.path[:0] = {[path for path in sys.path if path.endswith("site-packages")]!r}
import numpy, pandas, pyarrow
frame = pandas.DataFrame({{"a": numpy.arange(1000), "b": ["x", "y"] * 500}})
print(frame.groupby("b")["a"].sum().to_dict())
print((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())
print(pyarrow.Table.from_pandas(frame).num_rows); frame.to_parquet("f.parquet")
print(len(pandas.read_parquet("f.parquet")))
"""
    done = _confined(who, place, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1000\n1000\n")


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_other_interpreters_can_confine_themselves(version: str, place: Path, who: Who) -> None:
    try:
        found = find_interpreter(version)
    except InterpreterNotFound:
        pytest.skip(f"no Python {version} here")
    python = str(found.path)
    if not _works(python, who.uid):
        pytest.skip("this user may not run it")
    other = Who(uid=who.uid, python=python)
    prefix = str(Path(python).resolve().parents[1])
    done = _confined(
        other, place, "import json; print(json.dumps(confined.to_json()))",
        readable=[*_readable(who), prefix], executable=["/usr", prefix],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "x86_64"


# -- the steps


def test_threads_that_run_already_are_refused(who: Who, place: Path) -> None:
    code = """
import threading
stop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()
try: confine.confine(plan)
except Exception as error: print(type(error).__name__, error.step)
stop.set(); thread.join()
"""
    done = subprocess.run(
        [who.python, "-I", "-c", _LAUNCH + code, str(GUEST), "{}"],
        capture_output=True, text=True, timeout=60, **who.as_user,
    )  # fmt: skip
    assert done.stdout.split() == ["ConfinementFailed", "threads"], done.stderr


@pytest.mark.parametrize(
    ("more", "step", "says"),
    [
        ({"readable": ["/no/such/folder"]}, "landlock", "/no/such/folder"),
        ({"writable": ["relative"]}, "landlock", "absolute"),
        ({"readable": ["/usr\0x"]}, "landlock", "null"),
        ({"landlock_abi": 999}, "landlock", "999"),
        ({"memory": -5}, "limits", "RLIMIT_DATA"),
        ({"processes": -1}, "limits", "RLIMIT_NPROC"),
    ],
)
def test_a_step_that_fails_is_named(
    who: Who, place: Path, more: dict[str, Any], step: str, says: str
) -> None:
    code = "import json\ntry: confine.confine(plan)\nexcept Exception as error:\n"
    code += "    print(json.dumps([type(error).__name__, error.step, str(error)]))"
    done = subprocess.run(
        [who.python, "-I", "-c", _LAUNCH + code, str(GUEST), json.dumps(_plan(who, place, **more))],
        capture_output=True, text=True, timeout=60, **who.as_user,
    )  # fmt: skip
    name, at, text = json.loads(done.stdout)
    assert (name, at) == ("ConfinementFailed", step)
    assert says in text


def test_becoming_another_user_without_the_right_is_refused(place: Path, who: Who) -> None:
    if who.uid == 0:
        pytest.skip("root may")
    done = _confined(who, place, "", user=[1, 1])
    assert done.returncode != 0
    assert "'user'" in done.stderr


def test_root_can_give_up_its_user(place: Path, who: Who) -> None:
    if who.uid != 0:
        pytest.skip("needs root")
    work = place / "theirs"
    work.mkdir()
    os.chown(work, 65533, 65533)
    code = """
import os, json
children = []
try:
    for _ in range(60):
        child = os.fork()
        if child == 0: os.read(0, 1); os._exit(0)
        children.append(child)
except BlockingIOError: pass
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), len(children)]), flush=True)
for child in children: os.kill(child, 9); os.waitpid(child, 0)
"""
    python = "/usr/bin/python3"
    if not _works(python, 65533):
        pytest.skip("no interpreter that another user may run")
    reading, writing = os.pipe()  # never written: the children wait on it
    try:
        plan = _plan(Who(uid=65533, python=python), place, user=[65533, 65533], processes=20)
        plan["writable"] = [str(work)]
        plan["readable"].remove(str(place / "shared"))  # theirs it is not
        done = subprocess.run(
            [
                *(python, "-I", "-c", _LAUNCH + "confine.confine(plan)\n" + code),
                *(str(GUEST), json.dumps(plan)),
            ],
            cwd="/", stdin=reading, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        os.close(reading)
        os.close(writing)
    assert done.returncode == 0, done.stderr
    users, groups, extra, children = json.loads(done.stdout)
    assert users == groups == [65533] * 3
    assert extra == []
    assert 0 < children < 20  # now the limit binds


@pytest.mark.parametrize(
    ("code", "limits", "expected"),
    [
        ("bytearray(1 << 30)", {"memory": 256 << 20}, "MemoryError"),
        ("open('big', 'wb').truncate(1 << 21)", {"file_size": 1 << 20}, "File too large"),
        ("[open('/dev/null') for _ in range(100)]", {"open_files": 32}, "Too many open files"),
    ],
)
def test_a_limit_is_an_error_of_the_code(
    who: Who, place: Path, code: str, limits: dict[str, int], expected: str
) -> None:
    done = _confined(who, place, code, **limits)
    assert done.returncode == 1
    assert expected in done.stderr


def test_processor_time_ends_the_process(who: Who, place: Path) -> None:
    done = _confined(who, place, "while True: pass", cpu=1)
    assert -done.returncode in (signal.SIGXCPU, signal.SIGKILL)


def test_a_limit_is_never_raised(who: Who, place: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    code += "confine.confine(plan); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = subprocess.run(
        [who.python, "-I", "-c", _LAUNCH + code, str(GUEST), json.dumps(_plan(who, place))],
        capture_output=True, text=True, timeout=60, **who.as_user,
    )  # fmt: skip
    assert done.stdout.strip() == "(64, 64)"


def test_no_privilege_is_left(who: Who, place: Path) -> None:
    done = _confined(
        who, place, "print(open('/proc/self/status').read())", readable=["/usr", "/proc"]
    )
    status = dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    if who.uid == 0:
        assert status["CapBnd"].strip() == "0" * 16
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
def test_an_older_landlock_is_asked_for_what_it_knows(who: Who, place: Path, abi: int) -> None:
    code = f"""
import os
confine.Kernel.landlock_abi = lambda kernel: {abi}
confined = confine.confine(plan)
print(confined.landlock_abi, len(confined.gaps), open(sys.argv[3]).read())
open("mine", "w").write("x"); os.unlink("mine")
try: open(sys.argv[4])
except PermissionError: print("refused")
"""
    secret = str(place / "outside" / "secret")
    done = subprocess.run(
        [
            *(who.python, "-I", "-c", _LAUNCH + code, str(GUEST)),
            json.dumps(_plan(who, place, landlock_abi=1)),
            *(str(place / "shared" / "file"), secret),
        ],
        cwd=place / "work", capture_output=True, text=True, timeout=60, **who.as_user,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gaps = {1: 5, 2: 4, 3: 3, 4: 2, 5: 1, 6: 0}
    assert done.stdout.split() == [
        str(abi),
        str(gaps[abi]),
        *["for", "all", "to", "read", "refused"],
    ]


def test_the_handled_rights_grow_with_the_abi() -> None:
    found = {abi: confine.rights(abi, inet=False) for abi in range(1, 12)}
    assert found[1] == (0x1FFF, 0, 0)
    assert found[2] == (0x3FFF, 0, 0)
    assert found[3] == (0x7FFF, 0, 0)
    assert found[4] == (0x7FFF, 3, 0)
    assert found[5] == (0xFFFF, 3, 0)
    assert found[6] == found[7] == found[8] == (0xFFFF, 3, 3)
    assert found[9] == found[11] == (0x1FFFF, 3, 3)
    assert confine.rights(6, inet=True) == (0xFFFF, 0, 3)


def test_sockets_work_where_other_walls_hold_the_network(who: Who, place: Path) -> None:
    code = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname()); client.close(); server.close()
server = socket.socket(socket.AF_UNIX); server.bind("here.sock"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("here.sock"); client.close(); server.close()
print("connected")
"""
    done = _confined(who, place, code, inet=True, private_files=True)
    assert done.stdout == "connected\n", done.stderr


def test_a_confinement_crosses_as_json() -> None:
    plan = confine.Confinement(readable=["/usr"], user=(1, 2), memory=5, private_ipc=True)
    again = confine.Confinement(**json.loads(json.dumps(plan.to_json())))
    assert again.to_json() == plan.to_json()


def test_the_error_crosses_by_its_facts() -> None:
    error = errors.ConfinementFailed("seccomp", "refused", 22)
    again = errors.from_facts("ConfinementFailed", errors.to_facts(error))
    assert isinstance(again, errors.ConfinementFailed)
    assert (again.step, again.errno, str(again)) == ("seccomp", 22, str(error))


def test_importing_the_module_does_not_import_ctypes() -> None:
    code = _LAUNCH.partition("plan =")[0] + "print('ctypes' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(GUEST)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "False\n"
