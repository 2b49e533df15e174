"""Going back and forking, as the user of a session sees it: what comes along, and what is said."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from py_code_mode import (
    Capability,
    CapabilityMissing,
    CheckpointClosed,
    CheckpointRefused,
    FileStorage,
    Policy,
    ReentrantRun,
    Session,
    SessionClosed,
    SubprocessConfig,
    SubprocessExecutor,
)
from py_code_mode.errors import ForeignCheckpoint, GuestDied

from .session_executors import cancel_at_first_output, value, with_copies
from .zygotes import executor_of, named

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from py_code_mode import Checkpoint

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
DIES = "import os; os._exit(1)"
#: Has the guest take no pause for one in which it makes a copy: this machine may be a slow one.
NO_PAUSE = """
import sys
for module in list(sys.modules.values()):
    if "IDLE_DELAY" in vars(module): module.IDLE_DELAY = 1000.0
"""


def session(base: Path, *, workdir: Path | None = None, **options: Any) -> Session:
    config = SubprocessConfig(backend="namespaces", **options)
    return Session(FileStorage(base), SubprocessExecutor(config), workdir=workdir)


# -- restored


@with_copies
async def test_always_protected_runs_back_to_back_lose_nothing(tmp_path: Path) -> None:
    async with session(tmp_path, protect="always") as guest:
        for count in range(1, 6):
            before = await guest.run(f"x = {count}")
            result = await guest.run(DIES)
            assert (result.state, result.restored_to) == ("restored", before.run_id)
            assert guest.state == "restored"
            assert f"[variables are as they were after run {before.run_id}]" in result.to_text()
            assert await value(guest, "x") == count


@with_copies
async def test_unprotected_session_says_so_and_loses_its_variables(tmp_path: Path) -> None:
    async with session(tmp_path, protect="off") as guest:
        assert not guest.supports(Capability.RESTORE)
        assert guest.supports(Capability.CHECKPOINT)
        await value(guest, "x = 1")
        checkpoint = await guest.checkpoint()
        assert (await guest.run(DIES)).state == "lost"
        await guest.rollback(checkpoint)
        assert await value(guest, "x") == 1


@with_copies
async def test_large_interpreters_are_not_protected_and_the_next_result_says_so(
    tmp_path: Path,
) -> None:
    async with session(tmp_path, protect_bytes=64 << 20) as guest:
        await value(guest, "x = 1")
        notes = await told_of_no_copy(guest, "big = bytearray(100 << 20); big[:] = b'x' * len(big)")
        assert notes == ["not protected: " + notes[0].partition(": ")[2]]
        assert "64 MiB" in notes[0]
        await anyio.sleep(0.02)
        assert (await guest.run("1")).notes == ()  # said once
        result = await guest.run(DIES)
        assert any("64 MiB" in note for note in result.notes)


@with_copies
async def test_variables_put_between_runs_are_protected_too(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        pause = 0.02
        with anyio.fail_after(PATIENCE):
            while True:
                await guest.put("given", [1, 2])
                await anyio.sleep(pause)
                pause *= 2  # on a busy machine the guest sees a short one too late
                result = await guest.run(DIES)
                if result.state == "restored":
                    break
        assert await value(guest, "given") == [1, 2]


async def told_of_no_copy(of: Session, code: str) -> list[str]:
    """What is told, by its own result or a later one, where no copy can be made after this code."""
    pause, notes = 0.01, list((await of.run(code)).notes)
    with anyio.fail_after(PATIENCE):
        while not notes:
            await anyio.sleep(pause)
            pause *= 2  # on a busy machine the guest sees a short one too late
            notes += (await of.run("1")).notes
    return notes


async def until_protected(of: Session) -> None:
    """Wait for the copy that is made in the pause after a run."""
    worker_of_it: object = executor_of(of)._worker
    known = vars(worker_of_it)
    spare: Callable[[], None] = known["_on_asleep"]
    is_asleep = anyio.Event()

    def tell() -> None:
        spare()
        is_asleep.set()

    known["_on_asleep"] = tell
    if known["sleeper"] is None or known["sleeper"].run < known["last_run"]:
        with anyio.fail_after(PATIENCE):
            await is_asleep.wait()


async def kill_worker(of: Session) -> None:
    """End the process of a session from outside, while no run goes on."""
    mark = f"marks-{of.id}"
    await value(of, f"import ctypes; n = ctypes.CDLL(None).prctl(15, {mark[:15].encode()!r})")
    await until_protected(of)
    with anyio.fail_after(PATIENCE):
        # a copy has this name too, until it sleeps
        while len(found := named(mark[:15], below=os.getpid())) != 1:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    found[0].kill()
    with suppress(GuestDied):  # it may be asked before it is known to be dead
        await of.get("x")


@with_copies
async def test_death_between_runs_is_mended_and_told(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        await value(guest, "x = 5")
        await kill_worker(guest)
        assert await guest.get("x") == 5
        result = await guest.run("x")
        assert (result.value, result.state, result.restored_to) == (5, "restored", 2)
        assert result.notes == (
            "the worker had ended since the previous run: variables are as they were after run 2",
        )
        assert (await guest.run("x")).state == guest.state == "kept"


@with_copies
async def test_a_limit_that_leaves_no_room_for_a_copy_is_named(tmp_path: Path) -> None:
    """An errno of clone was told."""
    async with session(tmp_path, policy=Policy(processes=2)) as guest:
        await value(guest, "x = 1")
        with pytest.raises(CheckpointRefused, match="limit on processes leaves no room"):
            await guest.checkpoint()
        assert (await guest.run(DIES)).state == "lost"


@with_copies
@pytest.mark.parametrize("crashes", [False, True])
async def test_what_is_kept_at_the_limit_can_be_gone_back_to(tmp_path: Path, crashes: bool) -> None:
    """No copy could wake any more, and the checkpoint was closed for it."""
    async with session(tmp_path, policy=Policy(processes=8)) as guest:
        await value(guest, "x = 1")
        kept: list[Checkpoint] = []

        async def fill() -> None:
            while True:
                kept.append(await guest.checkpoint())

        with pytest.raises(CheckpointRefused, match="limit on processes leaves no room"):
            await fill()
        assert len(kept) > 1
        await value(guest, "x = 2")
        await until_protected(guest)
        if crashes:
            assert (await guest.run(DIES)).state == "restored"
            assert await value(guest, "x") == 2
        for checkpoint in (*kept, kept[0]):
            await guest.rollback(checkpoint)
            assert await value(guest, "x") == 1


@with_copies
async def test_a_checkpoint_that_has_no_room_to_wake_is_kept(tmp_path: Path) -> None:
    fills = (
        "import subprocess\n"
        "children = []\n"
        "try:\n"
        "    while True: children.append(subprocess.Popen(['sleep', '600']))\n"
        "except OSError: pass"
    )
    async with session(tmp_path, policy=Policy(processes=10), protect="off") as guest:
        await value(guest, "x = 1")
        with await guest.checkpoint() as checkpoint:
            await value(guest, fills)
            with pytest.raises(CheckpointRefused, match="limit on processes leaves no room"):
                await guest.rollback(checkpoint)
            assert checkpoint.is_open
            assert await value(guest, "[each.kill() or each.wait() for each in children]; x") == 1
            await value(guest, "x = 2")
            await guest.rollback(checkpoint)
            assert await value(guest, "x") == 1


@with_copies
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "no copy had been made yet.*protect='always'"),
        ({"protect": "off"}, "protect is 'off'"),
        ({"protect_bytes": 0}, "no copy could be kept: the worker holds more"),
    ],
)
async def test_variables_that_are_lost_are_told_why(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    async with session(tmp_path, **options) as guest:
        assert (await guest.run(DIES)).notes == ()  # there was nothing to lose
        if "protect_bytes" in options:
            assert await told_of_no_copy(guest, "x = 1")
        else:
            await value(guest, f"{NO_PAUSE}\nx = 1")
        result = await guest.run(DIES)
        assert result.state == "lost"
        (note,) = result.notes
        assert re.search(reason, note)


@with_copies
async def test_processor_time_that_is_used_up_is_named(tmp_path: Path) -> None:
    async with session(tmp_path, policy=Policy(cpu=1)) as guest:
        await value(guest, "x = 1")
        await until_protected(guest)
        result = await guest.run("while True: pass", timeout=PATIENCE)
        assert result.failure is not None
        assert (result.failure.cause, result.failure.limit) == ("limit", "cpu")
        assert "processor time" in result.failure.message
        assert result.state == "restored"
        assert await value(guest, "x") == 1


@with_copies
async def test_cancelled_run_that_had_to_be_ended_keeps_the_variables(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        await value(guest, "x = 1")
        await until_protected(guest)
        with anyio.fail_after(PATIENCE):
            await cancel_at_first_output(
                guest,
                "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                "print(1, flush=True)\nwhile True: pass",
            )
        assert guest.state == "restored"
        result = await guest.run("x")
        assert (result.value, result.state) == (1, "kept")


# -- checkpoints


@with_copies
async def test_checkpoint_waits_for_the_run_that_is_going_on(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        arrived = anyio.Event()
        guest.add_tool(arrived.set, name="arrived")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.run, "tools.arrived(); import time; time.sleep(0.1); x = 1")
            await arrived.wait()
            with anyio.fail_after(PATIENCE):
                checkpoint = await guest.checkpoint()
            assert checkpoint.run_id == 1
            await value(guest, "x = 2")
            await guest.rollback(checkpoint)
            assert await value(guest, "x") == 1
            assert (await guest.run("1")).run_id == 4  # runs are counted on


@with_copies
async def test_tools_of_a_run_cannot_copy_their_own_session(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        guest.add_tool(guest.checkpoint, name="checkpoint")
        guest.add_tool(guest.fork, name="fork")
        for name in ("checkpoint", "fork"):
            result = await guest.run(f"tools.{name}()")
            assert result.error is not None
            assert ReentrantRun.__name__ in result.error


@with_copies
async def test_checkpoints_end_with_their_session_and_belong_to_it(tmp_path: Path) -> None:
    async with session(tmp_path) as guest, session(tmp_path) as other:
        checkpoint = await guest.checkpoint()
        with pytest.raises(ForeignCheckpoint, match=other.id):
            await other.rollback(checkpoint)
        closed = await guest.checkpoint()
        closed.close()
        closed.close()
        with pytest.raises(CheckpointClosed):
            await guest.rollback(closed)
        await guest.close()
        assert not checkpoint.is_open
        with pytest.raises(SessionClosed):
            await guest.rollback(checkpoint)


@with_copies
async def test_refused_checkpoint_names_the_reason(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        await value(guest, "import socket; mine = socket.socket()")
        with pytest.raises(CheckpointRefused, match=r"socket is open \(variable mine\)"):
            await guest.checkpoint()
        await value(guest, "mine.close()")
        (await guest.checkpoint()).close()


@with_copies
async def test_output_goes_to_the_session_that_wrote_it(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        await value(guest, "import os, sys; saved = os.dup(1); n = sys.stdout.write('not flushed')")
        async with await guest.fork() as other:
            result = await other.run("n = os.write(saved, b'by a duplicate')")
            assert (result.stdout, result.late.stdout) == ("by a duplicate", "")
            assert (await guest.run("print('mine')")).stdout == "mine\n"


# -- forks


@with_copies
async def test_fork_has_all_of_its_origin_and_changes_nothing_of_it(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        guest.add_tool(lambda: "of the host", name="ask")
        await value(guest, "x = {'a': 1}; open('note.txt', 'w').write('hello')")
        other = await guest.fork()
        async with other:
            assert other.id != guest.id
            assert await value(other, "x['b'] = tools.ask(); x") == {"a": 1, "b": "of the host"}
            assert await value(other, "open('note.txt').read()") == "hello"
            assert await value(guest, "x") == {"a": 1}
            assert (await other.run("1")).run_id == 4
            assert (await other.run(DIES)).state in ("lost", "restored")
            assert await value(guest, "x") == {"a": 1}


@with_copies
@pytest.mark.parametrize("is_workdir_given", [False, True])
async def test_fork_outlives_its_origin(tmp_path: Path, is_workdir_given: bool) -> None:
    workdir = None
    if is_workdir_given:
        workdir = tmp_path / "work"
        workdir.mkdir()
    guest = session(tmp_path / "base", workdir=workdir)
    await guest.start()
    await value(guest, "x = 1; open('note.txt', 'w').write('hello')")
    other = await guest.fork()
    another = await other.fork()
    await guest.close()
    for fork in (other, another):
        assert await value(fork, "x, open('note.txt').read()") == (1, "hello")
        await fork.close()


@with_copies
async def test_many_forks_of_one_session_run_at_once(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        await value(guest, "x = 1")
        forks = [await guest.fork() for _ in range(4)]
        found: list[int] = []

        async def count(fork: Session, number: int) -> None:
            async with fork:
                found.append(await value(fork, f"x += {number}; x"))

        async with anyio.create_task_group() as tasks:
            for number, fork in enumerate(forks):
                tasks.start_soon(count, fork, number)
        assert sorted(found) == [1, 2, 3, 4]
        assert await value(guest, "x") == 1


@with_copies
async def test_death_of_a_fork_leaves_the_children_of_its_origin_alone(tmp_path: Path) -> None:
    async with session(tmp_path) as guest:
        await value(
            guest,
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
        )
        async with await guest.fork() as other:
            await other.run(DIES)
            await other.run("1")
        assert await value(guest, "child.poll()") is None


async def test_executor_that_cannot_copy_says_so(tmp_path: Path) -> None:
    config = SubprocessConfig(backend="none")
    async with Session(FileStorage(tmp_path), SubprocessExecutor(config)) as guest:
        for act in (guest.checkpoint, guest.fork):
            with pytest.raises(CapabilityMissing, match="checkpoint"):
                await act()
    async with Session.inprocess(tmp_path) as guest:
        with pytest.raises(CapabilityMissing, match="checkpoint"):
            await guest.fork()


@with_copies
@pytest.mark.usefixtures("small_environment")
async def test_private_environment_lasts_as_long_as_a_fork_uses_it(tmp_path: Path) -> None:
    guest = session(tmp_path, cache_venv=False)
    await guest.start()
    other = await guest.fork()
    folder = executor_of(guest).environment.folder
    assert folder is not None
    await guest.close()
    assert folder.exists()
    assert await value(other, "import wave; 1 + 1") == 2
    await other.close()
    assert not folder.exists()
