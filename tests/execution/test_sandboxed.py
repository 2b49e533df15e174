"""Sessions behind walls: what they see, what they keep apart, what their limits do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from anyio.abc import SocketAttribute

from py_code_mode import ConfigError, Policy, Session
from py_code_mode.errors import ConfinementFailed
from py_code_mode.execution import zygote
from py_code_mode.execution.subprocess import SubprocessConfig, SubprocessExecutor
from py_code_mode.sandbox.probe import probe
from py_code_mode.scratch import sweep
from py_code_mode.storage import FileStorage

from ..zygotes import executor_of, named, sandbox_of, templates, wall_of

if TYPE_CHECKING:
    from anyio.abc import SocketStream

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        "namespaces" not in probe().backends, reason="this machine allows no namespaces"
    ),
]
PATIENCE = 60.0
MIB = 1 << 20


def session(base: Path, *, workdir: Path | None = None, pool: int = 0, **policy: Any) -> Session:
    config = SubprocessConfig(policy=Policy(**policy), backend="namespaces", pool=pool)
    return Session(FileStorage(base), SubprocessExecutor(config), workdir=workdir)


async def value(of: Session, code: str) -> Any:
    result = await of.run(code)
    assert result.is_ok, result.error
    return result.value


async def test_only_the_system_and_the_environment_can_be_seen(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    async with session(tmp_path / "base") as guest:
        assert not await value(guest, f"import os; os.path.exists({str(secret)!r})")
        assert await value(guest, "os.listdir('/home')") == ["user"]
        assert await value(guest, "os.listdir(os.path.expanduser('~'))") == []
        assert not await value(guest, f"os.path.exists({str(Path.home() / '.ssh')!r})")
        assert await value(guest, "os.getcwd()") == "/work"
        assert await value(guest, "os.environ.get('PWD', os.getcwd())") == "/work"


async def test_a_granted_folder_can_be_read_and_not_written(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("1,2")
    (data / "a.csv").chmod(0o600)
    async with session(tmp_path / "base", read=[data]) as guest:
        assert await value(guest, f"open({str(data / 'a.csv')!r}).read()") == "1,2"
        result = await guest.run(f"open({str(data / 'b.csv')!r}, 'w')")
        assert result.failure is not None
        assert result.failure.type == "OSError"
    assert not (data / "b.csv").exists()


async def test_what_is_written_to_a_granted_folder_belongs_to_its_owner(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    async with session(tmp_path / "base", write=[out]) as guest:
        await value(guest, f"open({str(out / 'new.txt')!r}, 'w').write('made inside')")
    assert (out / "new.txt").read_text() == "made inside"
    assert (out / "new.txt").stat().st_uid == os.geteuid()


async def test_a_given_workdir_is_the_guests_and_stays(tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    async with session(tmp_path / "base", workdir=workdir) as guest:
        assert await value(guest, "import os; os.getcwd()") == str(workdir)
        await value(guest, "open('kept.txt', 'w').write('kept')")
    assert (workdir / "kept.txt").read_text() == "kept"


async def test_interrupting_the_keeper_ends_nothing(tmp_path: Path) -> None:
    """Where Landlock is old, code can send signals to process 1 of its namespace."""
    async with session(tmp_path / "base") as guest:
        await value(guest, "x = 1")
        keepers = named("pcm-keeper", below=os.getpid())
        assert keepers
        for keeper in keepers:
            keeper.send_signal(signal.SIGINT)
        await guest.run("import os; os._exit(1)")
        assert await value(guest, "1 + 1") == 2
        assert all(keeper.is_running() for keeper in keepers)


@pytest.mark.parametrize(
    ("code", "entry"),
    [
        ("open('/srv/data/a.csv')", "read: [/srv/data]"),
        ("import os; os.listdir('/root/x')", "read: [/root/x]"),
        ("open('/usr/x', 'w')", "write: [/usr/x]"),
        ("import urllib.request as u; u.urlopen('http://example.org')", "network: [example.org]"),
    ],
)
async def test_a_refusal_names_the_entry_that_would_allow_it(
    tmp_path: Path, code: str, entry: str
) -> None:
    async with session(tmp_path / "base") as guest:
        result = await guest.run(code)
        assert result.failure is not None
        assert any(entry in note for note in result.notes), (result.error, result.notes)
        assert entry in result.to_text()
        assert (await guest.run("open('/work/missing')")).notes == ()


async def test_a_path_that_does_not_exist_cannot_be_granted(tmp_path: Path) -> None:
    guest = session(tmp_path / "base", read=[tmp_path / "missing"])
    with pytest.raises(ConfigError, match="does not exist"):
        await guest.start()
    await guest.close()


@pytest.mark.parametrize("path", ["/", "/proc", "/tmp", "/dev"])
async def test_what_belongs_to_the_sandbox_cannot_be_granted(tmp_path: Path, path: str) -> None:
    guest = session(tmp_path / "base", read=[path])
    with pytest.raises(ConfigError, match=r"cannot be granted|holds the workspace"):
        await guest.start()
    await guest.close()


async def test_sessions_see_nothing_of_each_other(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as one, session(tmp_path / "base") as other:
        await value(one, "for p in ('/work/a', '/tmp/a', '/dev/shm/a'): open(p, 'w').write('mine')")
        seen = "import os; [os.path.exists(p) for p in ('/work/a', '/tmp/a', '/dev/shm/a')]"
        assert await value(one, seen) == [True, True, True]
        assert await value(other, seen) == [False, False, False]
        pids = "import os; sorted(int(name) for name in os.listdir('/proc') if name.isdigit())[:1]"
        assert await value(other, pids) == [1]
        names = (
            "names = set()\n"
            "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    try: names.add(open(f'/proc/{pid}/comm').read().strip())\n"
            "    except OSError: pass  # a copy that has just ended\n"
            "names"
        )
        seen_names = await value(other, names)
        assert {"pcm-keeper", "pcm-worker"} <= seen_names <= {"pcm-keeper", "pcm-worker", "sleeper"}


async def test_only_named_variables_of_the_host_are_passed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_HOST", "secret")
    monkeypatch.setenv("WANTED", "yes")
    async with session(tmp_path / "base", env=["WANTED"]) as guest:
        found = await value(guest, "import os; dict(os.environ)")
        assert found["WANTED"] == "yes"
        assert "TOKEN_OF_THE_HOST" not in found
        assert found["HOME"] == "/home/user"
        assert b"secret" not in await value(guest, "open('/proc/self/environ', 'rb').read()")
        result = await guest.run("open('/proc/1/environ', 'rb').read()")
        assert result.failure is not None
        assert result.failure.type == "PermissionError"


async def test_a_policy_too_large_to_be_told_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONG", "x" * 140_000)
    guest = session(tmp_path / "base", env=["LONG"])
    with pytest.raises(ConfinementFailed, match="over 131072"):
        await guest.start()
    await guest.close()


async def test_there_is_no_network_but_its_own(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as guest:
        result = await guest.run("import socket; socket.create_connection(('192.0.2.1', 80), 2)")
        assert result.failure is not None
        assert "unreachable" in result.failure.message
        served = await value(
            guest,
            "import threading\n"
            "server = socket.create_server(('127.0.0.1', 0))\n"
            "thread = threading.Thread(target=lambda: server.accept()[0].sendall(b'hello'))\n"
            "thread.start()\n"
            "client = socket.create_connection(server.getsockname()); got = client.recv(9)\n"
            "thread.join(); server.close(); client.close(); got",
        )
        assert served == b"hello"


async def test_an_open_network_is_the_hosts(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with session(tmp_path / "base", network="open") as guest:
            code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).close(); 1"
            assert await value(guest, code) == 1
        async with session(tmp_path / "base") as guest:
            result = await guest.run(code)
            assert result.failure is not None


ASK = """
import urllib.request, urllib.error
def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
"""


async def test_listed_hosts_can_be_reached_and_no_others(tmp_path: Path) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            body = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
            await stream.send(body)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as server:
        port = server.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, answer)
            async with session(tmp_path / "base", network=[f"127.0.0.1:{port}"]) as guest:
                # NO_PROXY names what is local to the guest, which this is not
                await guest.run(
                    ASK + "import os; os.environ.pop('NO_PROXY'), os.environ.pop('no_proxy')"
                )
                assert await value(guest, f"ask('http://127.0.0.1:{port}/')") == (200, b"hello")
                status, body = await value(guest, "ask('http://example.org/')")
                assert status == 403
                assert "example.org" in body.decode()
                direct = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
                result = await guest.run(direct)
                assert result.failure is not None
                decisions = [(record.host, record.decision) for record in guest.network_log]
                assert decisions == [("127.0.0.1", "allowed"), ("example.org", "denied")]
            tasks.cancel_scope.cancel()


# -- limits

MEMORY_BOMBS = {
    "bytes": "x = bytearray(900 << 20)",
    "many small ones": "x = [bytes(1 << 20) for _ in range(2000)]",
    "numpy": "import numpy; x = numpy.ones(120_000_000)",
    "shared mapping": (
        "import mmap\nx = mmap.mmap(-1, 900 << 20)\n"
        "for at in range(0, 900 << 20, 4096): x[at] = 1\n"
        "import time; time.sleep(30)"
    ),
    "memfd": (
        "import os, time\nfd = os.memfd_create('x')\n"
        "for _ in range(900): os.write(fd, bytes(1 << 20))\n"
        "time.sleep(30)"
    ),
    "children": (
        "import subprocess, sys, time\n"
        "code = 'import time; x = b\"x\" * (200 << 20); time.sleep(60)'\n"
        "children = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(4)]\n"
        "time.sleep(30)"
    ),
}


@pytest.mark.parametrize("code", MEMORY_BOMBS.values(), ids=MEMORY_BOMBS)
async def test_a_session_cannot_hold_more_memory_than_its_limit(tmp_path: Path, code: str) -> None:
    async with session(tmp_path / "base", memory="500MiB", disk="2GiB") as guest:
        with anyio.fail_after(PATIENCE):
            result = await guest.run(code, timeout=25)
            assert result.failure is not None
            if "MemoryError" not in result.failure.type:
                assert result.failure.limit == "memory", result.error
            assert await value(guest, "1 + 1") == 2


async def test_files_of_a_session_have_a_limit(tmp_path: Path) -> None:
    async with session(tmp_path / "base", disk="20MiB") as guest:
        for place in ("/work/x", "/tmp/x", "/dev/shm/x"):
            result = await guest.run(
                f"with open({place!r}, 'wb') as file:\n"
                "    for _ in range(40): file.write(bytes(1 << 20))"
            )
            assert result.failure is not None
            assert "No space left" in result.failure.message
            assert await value(guest, f"import os; os.remove({place!r}); 1") == 1


@pytest.mark.parametrize("place", ["/work/x", "/tmp/x", "/dev/shm/x"])
async def test_files_that_fill_the_memory_leave_the_session_usable(
    tmp_path: Path, place: str
) -> None:
    """Run after run was ended, for files that only a run could remove."""
    async with session(tmp_path / "base", memory="400MiB") as guest:
        await value(guest, "x = 1")
        filled = await guest.run(
            f"with open({place!r}, 'wb') as file:\n"
            "    for _ in range(900): file.write(bytes(1 << 20))"
        )
        assert filled.failure is not None
        assert "No space left" in filled.failure.message
        many = await guest.run("for at in range(600_000): open(f'/tmp/{at}', 'w').close()")
        assert many.failure is not None
        assert "No space left" in many.failure.message
        assert (filled.state, many.state) == ("kept", "kept")
        for _ in range(5):
            assert await value(guest, "held = bytes(4 << 20); x") == 1
            await anyio.sleep(0.05)  # for a copy to be made, which counts too
        assert await value(guest, f"import os; os.remove({place!r}); x") == 1
        assert await value(guest, f"open({place!r}, 'wb').write(bytes(1 << 20))") == MIB


async def test_little_memory_has_room_for_a_worker_beside_its_files(tmp_path: Path) -> None:
    async with session(tmp_path / "base", memory="96MiB") as guest:
        await value(guest, "x = 1")
        filled = await guest.run(
            "with open('x', 'wb') as file:\n    for _ in range(90): file.write(bytes(1 << 20))"
        )
        assert filled.failure is not None
        assert "No space left" in filled.failure.message
        for _ in range(3):
            assert await value(guest, "x") == 1


async def test_files_that_were_most_of_the_memory_are_named(tmp_path: Path) -> None:
    async with session(tmp_path / "base", memory="400MiB") as guest:
        await value(guest, "open('x', 'wb').write(bytes(250 << 20)) >> 20")
        result = await guest.run(
            "import mmap, time\n"
            "held = mmap.mmap(-1, 300 << 20)\n"
            "for at in range(0, 300 << 20, 4096): held[at] = 1\n"
            "time.sleep(30)",
            timeout=PATIENCE,
        )
        assert result.failure is not None
        assert result.failure.limit == "memory", result.error
        assert "took 250 of the 400 MiB" in " ".join(result.notes)


async def test_a_fork_bomb_ends_with_its_run(tmp_path: Path) -> None:
    async with session(tmp_path / "base", processes=40) as guest:
        with anyio.fail_after(PATIENCE):
            result = await guest.run(
                "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
                timeout=1.0,
            )
            assert result.failure is not None
            assert await value(guest, "1 + 1") == 2
            # the dead are the code's own children: it may still want to know how they ended
            living = (
                "import glob\n"
                "living = 0\n"
                "for path in glob.glob('/proc/[0-9]*/stat'):\n"
                "    try: living += ') Z' not in open(path).read()\n"
                "    except OSError: pass  # it has just been reaped\n"
                "living"
            )
            while await value(guest, living) > 4:  # noqa: ASYNC110  the last are being ended
                await anyio.sleep(0.01)


async def test_more_processor_time_than_the_limit_is_told(tmp_path: Path) -> None:
    async with session(tmp_path / "base", cpu=1) as guest:
        with anyio.fail_after(PATIENCE):
            result = await guest.run("while True: pass", timeout=30)
            assert result.failure is not None
            assert result.failure.limit == "cpu", result.error
            assert await value(guest, "1 + 1") == 2


async def test_a_file_larger_than_the_limit_is_an_error_of_the_code(tmp_path: Path) -> None:
    async with session(tmp_path / "base", file_size="1MiB") as guest:
        result = await guest.run("open('/work/x', 'wb').write(bytes(2 << 20))")
        assert result.failure is not None
        assert "too large" in result.failure.message
        assert result.state == "kept"


# -- zygotes


async def test_sessions_of_one_kind_share_a_zygote(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as one, session(tmp_path / "other") as other:
        assert wall_of(one) is wall_of(other)
        data = tmp_path / "data"
        data.mkdir()
        async with session(tmp_path / "base", read=[data]) as third:
            assert wall_of(third) is not wall_of(one)


async def test_another_environment_has_another_zygote(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as guest:
        first = wall_of(guest)
        packages = executor_of(guest).environment.site_packages
    before = packages.stat()
    try:
        os.utime(packages, (1, 1))  # as if it had been made anew
        async with session(tmp_path / "base") as guest:
            assert wall_of(guest) is not first
    finally:
        os.utime(packages, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_zygote_that_ended_is_replaced(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as guest:
        first = wall_of(guest)
    first.process.kill()
    first.process.wait()
    async with session(tmp_path / "base") as guest:
        assert wall_of(guest) is not first
        assert await value(guest, "1 + 1") == 2


async def test_a_zygote_that_nobody_has_seen_end_yet_is_replaced(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as guest:
        first = wall_of(guest)
    first.control.shutdown(2)  # its walls take a moment to follow
    async with session(tmp_path / "base") as guest:
        assert wall_of(guest) is not first
        assert await value(guest, "1 + 1") == 2


async def test_a_forked_child_has_nothing_to_do_with_its_parents_zygotes(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import asyncio, gc, os, sys
        from py_code_mode import Session
        from py_code_mode.execution import zygote

        async def main():
            async with Session.subprocess(sys.argv[1], backend="namespaces") as guest:
                await guest.run("1")

        asyncio.run(main())
        zygote._registry_lock.acquire()  # as a thread would that the child does not have
        pid = os.fork()
        if not pid:
            gc.collect()
            asyncio.run(main())
            zygote.close_zygotes()
            os._exit(0)
        zygote._registry_lock.release()
        assert os.waitpid(pid, 0)[1] == 0
        asyncio.run(main())
    """)
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "base")]
    ended = subprocess.run(  # noqa: ASYNC221  the loop has nothing else to do
        command, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


async def test_the_end_of_a_zygote_ends_its_sessions_and_they_begin_anew(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as guest:
        await value(guest, "x = 1; x")
        template = wall_of(guest)
        keeper = sandbox_of(guest).keeper
        template.process.kill()
        with anyio.fail_after(PATIENCE):
            while not keeper.is_over:  # noqa: ASYNC110  the kernel takes its time
                await anyio.sleep(0.01)
            result = await guest.run("x")
            assert result.state == "lost"
            assert await value(guest, "1 + 1") == 2


async def test_the_end_of_a_zygote_that_took_over_holds_nobody_up(tmp_path: Path) -> None:
    """Those copied from it live on, and the one before it has to see that it has ended."""
    async with session(tmp_path / "base", pool=1) as first:
        await wait_for_pool(wall_of(first), 1)
        async with session(tmp_path / "base", pool=1) as second:
            assert await value(second, "import sys; 'pandas' in sys.modules")
            _, successor = templates(wall_of(first))
            successor.kill()
            with anyio.fail_after(zygote.START_TIMEOUT / 2):
                async with session(tmp_path / "base", memory=900 * MIB) as third:
                    assert wall_of(third) is wall_of(first)
                    assert await value(third, "1 + 1") == 2
            assert await value(second, "1 + 1") == 2
    zygote.close_zygotes()


async def wait_for_pool(template: zygote.Zygote, count: int) -> list[zygote.Waiting]:
    """Those that wait, once they are so many."""
    with anyio.fail_after(PATIENCE):
        while True:
            lists: Any = vars(template)["_waiting"].values()
            waiting = [one for some in lists for one in some]
            if len(waiting) == count:
                return waiting
            await anyio.sleep(0.01)


async def test_a_session_from_the_pool_is_like_any_other(tmp_path: Path) -> None:
    async with session(tmp_path / "base", pool=1) as guest:
        await value(guest, "x = 1; x")
        (waiting,) = await wait_for_pool(wall_of(guest), 1)
    async with session(tmp_path / "base", pool=1) as guest:
        assert guest.id
        result = await guest.run("x")
        assert result.failure is not None
        assert result.failure.type == "NameError"
        assert result.run_id == 1
        assert await value(guest, "import os; os.listdir('/packages')") == []
        assert await value(guest, "import sys; 'pandas' in sys.modules") is True
        assert await wait_for_pool(wall_of(guest), 1) != [waiting]
        await guest.run("os.kill(os.getpid(), 9)")
        assert await value(guest, "1 + 1") == 2
    zygote.close_zygotes()


async def test_a_pool_that_died_is_passed_over(tmp_path: Path) -> None:
    async with session(tmp_path / "base", pool=2) as guest:
        for one in await wait_for_pool(wall_of(guest), 2):
            one.keeper.shutdown(2)
    async with session(tmp_path / "base", pool=0) as guest:
        assert await value(guest, "1 + 1") == 2
    zygote.close_zygotes()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, steps: int) -> None:
    async with session(tmp_path / "base"):
        guest = session(tmp_path / "base")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.start)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await guest.close()


HOST = """
import anyio, os, sys
from pathlib import Path
from py_code_mode import Session

async def main():
    async with Session.subprocess(sys.argv[1]) as guest:
        await guest.run("import subprocess; child = subprocess.Popen(['sleep', '300'])")
        print("ready", flush=True)
        await guest.run("while True: pass")

anyio.run(main)
"""


def test_nothing_outlives_a_host_that_is_killed(tmp_path: Path) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tmp_path / "base")], stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    with host.stdout:
        assert host.stdout.readline() == "ready\n"
    started = psutil.Process(host.pid).children(recursive=True)
    host.send_signal(signal.SIGKILL)
    host.wait()
    assert len(started) >= 5  # the wall, the zygote, the keeper, the worker, its child
    until = time.monotonic() + PATIENCE
    while any(process.is_running() for process in started):
        assert time.monotonic() < until
        time.sleep(0.01)
    sweep(Path(tempfile.gettempdir()))  # as the next session of any process does


async def test_ordinary_code_works_inside(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import asyncio, concurrent.futures, json, multiprocessing, os, pwd, sqlite3, subprocess
        import sys, tempfile, threading, zoneinfo, datetime
        found = {}
        found["thread"] = list(concurrent.futures.ThreadPoolExecutor(4).map(abs, [-1, -2]))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found["pool"] = pool.map(abs, [-1, -2])
        shell = subprocess.run("echo $((1+1)) | cat", shell=True, capture_output=True)
        found["shell"] = shell.stdout
        found["python"] = subprocess.check_output([sys.executable, "-c", "print(1)"])
        found["async"] = asyncio.run(asyncio.sleep(0, 5))
        database = sqlite3.connect("/work/x.db")
        database.execute("create table t (a)"); database.execute("insert into t values (1)")
        database.commit()
        found["sqlite"] = database.execute("select a from t").fetchall()
        found["zone"] = str(datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")))
        found["user"] = pwd.getpwuid(os.getuid()).pw_name
        with tempfile.NamedTemporaryFile() as file:
            found["temporary"] = os.path.dirname(file.name)
        import numpy, pandas, pyarrow
        found["frame"] = int(pandas.DataFrame({"a": [1, 2]}).groupby("a").size().sum())
        found
        """
    )
    async with session(tmp_path / "base") as guest:
        with anyio.fail_after(PATIENCE):
            found = await value(guest, code)
        assert json.loads(json.dumps(found, default=bytes.decode)) == {
            "thread": [1, 2],
            "pool": [1, 2],
            "shell": "2\n",
            "python": "1\n",
            "async": 5,
            "sqlite": [[1]],
            "zone": "2026-01-01 00:00:00+01:00",
            "user": "user",
            "temporary": "/tmp",
            "frame": 2,
        }


async def test_packages_that_are_added_can_be_imported_inside(tmp_path: Path) -> None:
    async with session(tmp_path / "base") as guest:
        folder: Path = executor_of(guest).overlay
        (folder / "made_up_module.py").write_text("answer = 42")
        assert await value(guest, "import made_up_module; made_up_module.answer") == 42
        result = await guest.run("open('/packages/x', 'w')")
        assert result.failure is not None
        assert await value(guest, "import os; os.listdir('/overlays')") == []
