"""Sessions whose memory a control group holds: what it counts, who is ended, what is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from py_code_mode import MemoryStorage, Policy, Session, SubprocessConfig, SubprocessExecutor
from py_code_mode.errors import ConfinementFailed
from py_code_mode.execution import zygote
from py_code_mode.execution.executor import Capability
from py_code_mode.sandbox.probe import Probe, probe

from ..zygotes import executor_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        probe().memory_groups is None or "namespaces" not in probe().backends,
        reason="no control groups, or no namespaces, on this machine",
    ),
]
PATIENCE = 60.0
MIB = 1 << 20
LIMIT = 256 * MIB
OWN_SCORE = int(Path("/proc/self/oom_score_adj").read_text()) if sys.platform == "linux" else 0
#: Fills memory that no process maps: files that nobody but a descriptor holds.
HIDDEN = "import os\nfor _ in range(64): os.write(os.memfd_create('x'), bytes(16 << 20))"
#: The same where a process holds so much itself that nobody else is ended in its place, and so
#: hidden that a keeper cannot count it: the descriptors are on their way.
HEAVY = """
import os, socket
held = bytearray(150 << 20)
ours, theirs = socket.socketpair()
while True:
    fd = os.memfd_create("x")
    os.write(fd, bytes(4 << 20))
    socket.send_fds(ours, [b"x"], [fd])
    os.close(fd)
"""


def in_child(code: str) -> str:
    """A cell that runs code in a program of its own; its value is how that ended."""
    run = f"subprocess.run([sys.executable, '-c', {code!r}], stderr=subprocess.DEVNULL)"
    return f"import subprocess, sys\n{run}.returncode"


TOLD = "a process of this session was ended: its memory limit of 256 MiB was reached"


def sandboxed(*, pool: int = 0, memory: int | None = LIMIT) -> Session:
    config = SubprocessConfig(backend="namespaces", policy=Policy(memory=memory), pool=pool)
    return Session(MemoryStorage(), SubprocessExecutor(config))


def groups(process: int | None = None) -> set[Path]:
    """Those of this process, or of another host."""
    place = probe().memory_groups
    assert place is not None
    owner = f"-{process or os.getpid()}-"
    return {path for path in place.folder.iterdir() if owner in path.name}


def members(group: Path) -> list[tuple[str, int]]:
    """Who is in a group, by name, and how willingly it goes."""
    found: list[tuple[str, int]] = []
    try:
        pids = (group / "cgroup.procs").read_text().split()
    except OSError:
        return found  # it was just removed
    for pid in pids:
        folder = Path("/proc") / pid
        with contextlib.suppress(OSError):  # it has just ended
            name = (folder / "comm").read_text().strip()
            found.append((name, int((folder / "oom_score_adj").read_text())))
    return sorted(found)


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    zygote.close_zygotes()
    assert groups() == set()
    yield
    zygote.close_zygotes()
    assert groups() == set()


async def until_asleep(group: Path) -> None:
    """Return when there is one copy, which goes later than the worker, and the keeper last.

    A copy that was just made has the worker's name still, and the one before it may be there too.
    """
    wanted = [("pcm-keeper", OWN_SCORE), ("pcm-worker", 1000), ("sleeper", 500)]
    with anyio.fail_after(PATIENCE):
        while members(group) != wanted:  # noqa: ASYNC110  the keeper is told of it
            await anyio.sleep(0.005)


async def test_whole_session_is_in_one_group_which_ends_with_it() -> None:
    async with sandboxed() as guest:
        await guest.run("x = 1")
        (group,) = groups()
        await until_asleep(group)
        await guest.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")
        with anyio.fail_after(PATIENCE):
            while "sleep" not in dict(members(group)):  # noqa: ASYNC110  its name comes last
                await anyio.sleep(0.005)
        assert Capability.MEMORY_GROUP in executor_of(guest).capabilities
    assert groups() == set()


@pytest.mark.parametrize("code", [HIDDEN, in_child(HIDDEN)], ids=["worker", "child"])
async def test_memory_that_no_process_maps_is_a_limit_that_is_told(code: str) -> None:
    async with sandboxed() as guest:
        await guest.run("x = 1")
        (group,) = groups()
        await until_asleep(group)
        with anyio.fail_after(PATIENCE):
            result = await guest.run(code)
        if code != HIDDEN and result.is_ok:
            # of the two the kernel has chosen the child: the worker goes on
            assert (result.value, result.state) == (-9, "kept")
            assert TOLD in result.notes
        else:
            assert result.failure is not None
            assert (result.failure.cause, result.failure.limit) == ("limit", "memory")
            assert TOLD not in result.notes  # the failure says it
            if result.state == "lost":
                # the files of a worker that is ending are the last that it lets go of: before that
                # the kernel may take its copy too
                assert any("their copy is lost too" in note for note in result.notes)
                await guest.run("x = 1")
            else:
                assert result.state == "restored"
        assert (await guest.run("x")).value == 1
        # who was woken is the first to go again, and its copy is not
        await until_asleep(group)
        assert groups() == {group}


async def test_child_that_is_ended_for_its_memory_is_told_of_and_costs_no_variables() -> None:
    async with sandboxed() as guest:
        await guest.run("x = 1")
        for number in range(2):
            with anyio.fail_after(PATIENCE):
                result = await guest.run(f"x += 1\n{in_child(HEAVY)}")
            assert (result.value, result.state) == (-9, "kept")
            assert [note for note in result.notes if "memory limit" in note] == [TOLD]
            after = await guest.run("x")
            assert (after.value, after.notes) == (2 + number, ())


async def test_fork_is_not_told_of_what_was_ended_before_it() -> None:
    async with sandboxed() as guest:
        with anyio.fail_after(PATIENCE):
            assert TOLD in (await guest.run(in_child(HEAVY))).notes
        other = await guest.fork()
        async with other:
            assert (await other.run("1 + 1")).notes == ()


async def test_worker_that_kills_itself_is_not_said_to_have_reached_a_limit() -> None:
    async with sandboxed() as guest:
        result = await guest.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert result.failure is not None
        assert (result.failure.cause, result.failure.limit) == ("death", None)
        assert TOLD not in result.notes


async def test_process_gets_a_memory_error_before_its_group_is_full() -> None:
    async with sandboxed() as guest:
        result = await guest.run(f"x = bytearray({LIMIT})")
        assert result.failure is not None
        assert result.failure.type == "MemoryError"
        assert result.state == "kept"


async def test_files_that_are_read_do_not_fill_a_group(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        for _ in range(2 * LIMIT // MIB):
            file.write(bytes(MIB))
    config = SubprocessConfig(backend="namespaces", policy=Policy(memory=LIMIT, read=[tmp_path]))
    async with Session(MemoryStorage(), SubprocessExecutor(config)) as guest:
        code = f"""
            with open({str(big)!r}, "rb", buffering=0) as file:
                size = sum(iter(lambda: len(file.read(1 << 20)), 0))
            size
        """
        assert (await guest.run(textwrap.dedent(code))).value == 2 * LIMIT


async def test_forks_share_a_group_until_the_last_is_closed() -> None:
    async with sandboxed() as guest:
        await guest.run("x = 1")
        other = await guest.fork()
        (group,) = groups()
    assert groups() == {group}
    assert (await other.run("x")).value == 1
    await other.close()
    assert groups() == set()


async def test_sandbox_that_waits_has_its_group_already() -> None:
    async with sandboxed(pool=1):
        (mine,) = groups()
        with anyio.fail_after(PATIENCE):
            while len(groups()) < 2:  # noqa: ASYNC110  it is made when the first has been used
                await anyio.sleep(0.01)
        (waiting,) = groups() - {mine}
        with anyio.fail_after(PATIENCE):
            while "pcm-worker" not in dict(members(waiting)):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        async with sandboxed(pool=1) as second:
            result = await second.run(HIDDEN)
            assert result.failure is not None
            assert result.failure.limit == "memory"
            assert waiting in groups()


async def test_session_without_a_limit_has_no_group() -> None:
    async with sandboxed(memory=None) as guest:
        assert (await guest.run("1 + 1")).value == 2
        assert groups() == set()


async def test_group_that_cannot_be_made_fails_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    place = probe().memory_groups
    assert place is not None
    gone = replace(probe(), memory_groups=replace(place, folder=place.folder / "not-there"))
    monkeypatch.setattr("py_code_mode.execution.launch.probe", lambda: gone)
    with pytest.raises(ConfinementFailed, match="control group"):
        await sandboxed().start()


async def test_machine_without_groups_does_without_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = replace(probe(), memory_groups=None)

    def examine() -> Probe:
        return without

    monkeypatch.setattr("py_code_mode.execution.launch.probe", examine)
    monkeypatch.setattr("py_code_mode.execution.subprocess.probe", examine)
    async with sandboxed() as guest:
        assert (await guest.run("1 + 1")).value == 2
        assert groups() == set()
        capabilities = executor_of(guest).capabilities
        assert Capability.MEMORY_GROUP not in capabilities
        assert Capability.MEMORY_LIMIT in capabilities


async def test_groups_of_a_host_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        import anyio
        from py_code_mode import MemoryStorage, Session, SubprocessExecutor

        async def main():
            print(os.getpid())
            async with Session(MemoryStorage(), SubprocessExecutor()) as guest:
                await guest.run("1")
                if sys.argv[1] == "die":
                    os.kill(os.getpid(), signal.SIGKILL)

        anyio.run(main)
    """)

    async def host(how: str) -> tuple[int, set[Path]]:
        command = [sys.executable, "-u", "-c", script, how]
        with anyio.fail_after(PATIENCE):
            done = await anyio.run_process(
                command, check=False, stderr=subprocess.DEVNULL, cwd=tmp_path
            )
        return done.returncode, groups(int(done.stdout))

    status, left = await host("die")
    assert status == -9
    assert left
    with anyio.fail_after(PATIENCE):  # the kernel ends what was in them
        while any(members(group) for group in left):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert await host("live") == (0, set())
    assert not any(group.exists() for group in left)
