"""Control groups: the kernel's own where there are any, and a folder that looks like version 2."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from py_code_mode.sandbox import cgroup
from py_code_mode.sandbox.probe import probe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
MIB = 1 << 20
FILES = {
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 0\noom_group_kill 0\n",
    "cgroup.procs": "",
}


class Kernel:
    """A folder that does what the kernel would: groups have files, and are removed with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.denied: set[str] = set()

    def group(self, path: str, *, handed_down: str = "", has: str = "cpu memory") -> Path:
        """A group that there was before."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text(has)
        (folder / "cgroup.subtree_control").write_text(handed_down)
        return folder

    def mkdir(self, folder: Path) -> None:
        if folder.parent.name in self.denied:
            raise PermissionError(errno.EACCES, "Permission denied")
        os.mkdir(folder)
        if "memory" in (folder.parent / "cgroup.subtree_control").read_text():
            for name, text in FILES.items():
                (folder / name).write_text(text)

    def rmdir(self, folder: Path) -> None:
        if (folder / "busy").exists():
            raise OSError(errno.EBUSY, "Device or resource busy")
        for file in folder.iterdir():
            file.unlink()
        os.rmdir(folder)

    def made(self, parent: str) -> list[Path]:
        return list((self.root / parent).glob(f"{cgroup.PREFIX}*"))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path)
    monkeypatch.setattr(cgroup, "mkdir", made.mkdir)
    monkeypatch.setattr(cgroup, "rmdir", made.rmdir)
    return made


def find(kernel: Kernel, own: str) -> cgroup.Place:
    return cgroup.find(root=kernel.root, own=own)


# -- version 2


def test_groups_are_made_below_a_group_that_hands_memory_down(kernel: Kernel) -> None:
    kernel.group("own", handed_down="memory")
    place = find(kernel, "0::/own\n")
    assert str(place) == "version 2"
    assert place.folder == kernel.root / "own"
    assert kernel.made("own") == []  # the one it was tried with is gone


def test_groups_are_made_beside_our_own_where_ours_has_processes(kernel: Kernel) -> None:
    own = kernel.group("unit/host")
    kernel.group("unit", handed_down="cpu memory")
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()  # refuses to be written to, as it does for EBUSY
    assert find(kernel, "0::/unit/host\n").folder == kernel.root / "unit"


def test_memory_is_handed_down_where_we_may(kernel: Kernel) -> None:
    own = kernel.group("own")
    (own / "cgroup.subtree_control").write_text("")
    assert find(kernel, "0::/own\n").folder == own
    assert (own / "cgroup.subtree_control").read_text() == "+memory"


def test_hybrid_machine_shows_version_2_in_a_folder_of_its_own(kernel: Kernel) -> None:
    kernel.group("unified/own", handed_down="memory")
    assert find(kernel, "3:cpu:/own\n0::/own\n").folder == kernel.root / "unified" / "own"


@pytest.mark.parametrize(
    ("has", "denied", "reason"),
    [
        ("cpu", set[str](), "memory is not counted in our own group"),
        ("memory", {"own", "unit"}, "Permission denied"),
    ],
)
def test_why_there_can_be_no_group_is_told(
    kernel: Kernel, has: str, denied: set[str], reason: str
) -> None:
    kernel.denied = denied
    kernel.group("unit", handed_down=has, has=has)
    kernel.group("unit/own", handed_down=has, has=has)
    with pytest.raises(OSError, match=f"version 2: {reason}"):
        find(kernel, "0::/unit/own\n")


def test_group_that_is_not_delegated_says_so(kernel: Kernel) -> None:
    own = kernel.group("own")
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()
    kernel.denied = {kernel.root.name}
    with pytest.raises(OSError, match="not delegated"):
        find(kernel, "0::/own\n")


def test_no_groups_at_all_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no control groups that count memory are mounted"):
        cgroup.find(root=tmp_path, own="3:cpu:/\n0::/\n")


def test_group_limits_memory_and_swap(kernel: Kernel) -> None:
    kernel.group("own", handed_down="memory")
    group = find(kernel, "0::/own\n").make(64 * MIB)
    (folder,) = kernel.made("own")
    assert (folder / "memory.max").read_text() == str(64 * MIB)
    assert (folder / "memory.swap.max").read_text()[0] == "0"
    with group.open() as (entrance, events):
        os.write(entrance, b"0")
        assert b"oom_kill 0" in os.pread(events, 4096, 0)
    assert group.count_kills() == 0
    assert (folder / "cgroup.procs").read_text() == "0"
    assert group.remove_now()
    assert group.remove_now()  # again
    assert kernel.made("own") == []


def test_kernel_that_does_not_count_swap_limits_the_rest(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FILES, "memory.swap.max")
    kernel.group("own", handed_down="memory")
    group = find(kernel, "0::/own\n").make(MIB)
    assert group.remove_now()


def test_group_with_a_process_is_left_after_a_time(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "END_TIMEOUT", 0.02)
    kernel.group("own", handed_down="memory")
    group = find(kernel, "0::/own\n").make(MIB)
    (folder,) = kernel.made("own")
    (folder / "busy").touch()
    assert not group.remove_now()
    group.remove()
    assert folder.exists()


def test_groups_of_hosts_that_have_ended_are_swept(kernel: Kernel) -> None:
    own = kernel.group("own", handed_down="memory")
    mine = find(kernel, "0::/own\n").make(MIB)
    (kept,) = kernel.made("own")
    namespace, process, start, _ = map(int, kept.name.removeprefix(cgroup.PREFIX).split("-"))
    dead = [
        f"{namespace}-{process}-{start + 1}-0",  # another who had our pid
        f"{namespace}-{2**22 + 1}-5-17",  # no process can have this one
    ]
    others = ["1-2-3-4", f"{namespace + 1}-{process}-{start + 1}-0", "probe-1", "a-b-c-d"]
    for name in (*dead, *others):
        kernel.mkdir(own / f"{cgroup.PREFIX}{name}")
    vars(cgroup)["_sweep_once"].cache_clear()
    find(kernel, "0::/own\n")
    left = {folder.name.removeprefix(cgroup.PREFIX) for folder in kernel.made("own")}
    assert left == {kept.name.removeprefix(cgroup.PREFIX), *others}
    assert mine.remove_now()


def test_forked_child_leaves_its_parents_groups_alone(kernel: Kernel) -> None:
    kernel.group("own", handed_down="memory")
    group = find(kernel, "0::/own\n").make(MIB)
    vars(group)["_owner"] += 1  # as if we were the child
    group.remove()
    assert kernel.made("own")


# -- the kernel's


def made_by(process: int, place: cgroup.Place) -> set[str]:
    return {name for name in os.listdir(place.folder) if f"-{process}-" in name}


@pytest.fixture
def place() -> Iterator[cgroup.Place]:
    found = probe().memory_groups
    if found is None:
        pytest.skip(f"no control groups here: {probe()['cgroup_limits']}")
    before = made_by(os.getpid(), found)
    yield found
    assert made_by(os.getpid(), found) - before == set()


def test_process_in_a_group_gets_no_more_than_its_limit(place: cgroup.Place) -> None:
    group = place.make(32 * MIB)
    with group.open() as (entrance, events):
        code = f"import os; os.write({entrance}, b'0'); x = bytearray(64 << 20)"
        done = subprocess.run([sys.executable, "-I", "-c", code], pass_fds=[entrance])
        assert done.returncode == -9
        assert b"oom_kill 1" in os.pread(events, 4096, 0)
    assert group.count_kills() == 1
    group.remove()


def test_removal_ends_whoever_is_left(place: cgroup.Place) -> None:
    group = place.make(32 * MIB)
    with group.open() as (entrance, _):
        code = f"import os; os.write({entrance}, b'0'); print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            pass_fds=[entrance],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert not group.remove_now()
            group.remove()
            assert process.wait(5) == -9


def test_group_that_cannot_be_made_any_more_is_an_error(place: cgroup.Place) -> None:
    gone = cgroup.Place(folder=place.folder / "not-there", version=place.version)
    with pytest.raises(FileNotFoundError):
        gone.make(MIB)
