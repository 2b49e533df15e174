"""Whatever happens to a storage directory: what is found is whole, all else is named, none lost."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import errno
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy
import pandas
import pytest

from py_code_mode.errors import HandleUnreadable, StorageNotPrivate, StoreError
from py_code_mode.handles import SessionCache
from py_code_mode.handles.slot import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

np: Any = numpy
pd: Any = pandas

ROOT = Path(__file__).parents[2]
#: Seconds for what takes a moment, on a machine that is busy too.
PATIENCE = 30.0


def frame(rows: int = 3000) -> Any:
    return pd.DataFrame({"n": np.arange(rows), "s": ["x"] * rows})


def stored(folder: Path, **values: object) -> None:
    with SessionCache(storage_dir=folder) as cache:
        for name, value in values.items():
            cache.put(name, value)


def record_of(folder: Path, name: str) -> Path:
    """The JSON file of a handle."""
    for path in folder.rglob("*.json"):
        if path.name != "recency.json" and f'"name":"{name}"' in path.read_text():
            return path
    raise AssertionError(name)


def data_of(folder: Path, name: str) -> Path:
    """Its data file."""
    record = record_of(folder, name)
    return record.with_name(json.loads(record.read_text())["value"]["data"])


# -- slots --------------------------------------------------------------------------------------


def test_two_caches_on_one_directory_never_see_each_others_values(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as one:
        with SessionCache(storage_dir=tmp_path, hot_limit=1) as two:
            for number in range(3):
                one.put(f"x{number}", ["one", number])
                two.put(f"x{number}", ["two", number])
            for number in range(3):
                assert one.get(f"x{number}") == ["one", number]
                assert two.get(f"x{number}") == ["two", number]
            one.delete("x0")
            assert two.get("x0") == ["two", 0]
            assert sorted(path.name for path in tmp_path.iterdir()) == ["handles-1", "handles-2"]
        with SessionCache(storage_dir=tmp_path) as two:
            assert two.get("x0") == ["two", 0]
    with SessionCache(storage_dir=tmp_path) as one:
        assert one.handle_names() == ["x2", "x1"]


def test_a_killed_process_lets_go_of_its_slot(tmp_path: Path) -> None:
    code = (
        "import sys; from py_code_mode.handles import SessionCache\n"
        "c = SessionCache(storage_dir=sys.argv[1], hot_limit=1)\n"
        "c.put('a', [1]); c.put('b', [2]); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with SessionCache(storage_dir=tmp_path) as other:
            assert other.handle_names() == []
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.handle_names() == ["a"]
        assert cache.get("a") == [1]


def test_what_others_put_into_the_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    stored(tmp_path, a=[1])
    slot = tmp_path / "handles-1"
    (slot / "notes.txt").write_text("mine")
    (slot / "folder").mkdir()
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.get("a") == [1]
    assert (tmp_path / "notes.txt").read_text() == (slot / "notes.txt").read_text() == "mine"


# -- privacy ------------------------------------------------------------------------------------


def test_slots_and_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        stored(tmp_path, a=[1])
    finally:
        os.umask(before)
    assert (tmp_path / "handles-1").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "handles-1").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_nothing_is_loaded_where_others_may_write(tmp_path: Path, mode: int) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
        cache.put("b", [2])
        (tmp_path / "handles-1").chmod(mode)
        with pytest.raises(StorageNotPrivate, match="others may write"):
            cache.get("a")
        with pytest.raises(StorageNotPrivate, match="chmod 700"):
            SessionCache(storage_dir=tmp_path)
        (tmp_path / "handles-1").chmod(0o700)
        assert cache.get("a") == [1]


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_whose_slots_others_may_exchange_is_refused(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("py_code_mode.handles.slot.has_group_of_one", Mock(return_value=False))
    stored(tmp_path / "open", a=[1])
    (tmp_path / "open").chmod(mode)
    with pytest.raises(StorageNotPrivate, match="others may write"):
        SessionCache(storage_dir=tmp_path / "open")
    (tmp_path / "open").chmod(mode | 0o1000)  # sticky, as /tmp is: they cannot
    with SessionCache(storage_dir=tmp_path / "open") as cache:
        assert cache.get("a") == [1]


@pytest.mark.parametrize("mode", [0o770, 0o775])
def test_a_directory_of_a_group_with_nobody_else_in_it_is_private(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("py_code_mode.handles.slot.has_group_of_one", Mock(return_value=True))
    stored(tmp_path / "shared", a=[1])
    (tmp_path / "shared").chmod(mode)  # as with umask 002
    with SessionCache(storage_dir=tmp_path / "shared") as cache:
        assert cache.get("a") == [1]
    (tmp_path / "shared").chmod(mode | 0o002)
    with pytest.raises(StorageNotPrivate, match="others may write"):
        SessionCache(storage_dir=tmp_path / "shared")


def test_a_directory_that_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        stored(tmp_path / "made", a=[1])
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    with SessionCache(storage_dir=tmp_path / "made") as cache:
        assert cache.get("a") == [1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "theirs", a=[1])
    os.chown(tmp_path / "theirs", 1234, -1)
    with pytest.raises(StorageNotPrivate, match="another user"):
        SessionCache(storage_dir=tmp_path / "theirs")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_nothing_is_loaded_from_a_folder_or_file_of_somebody_else(tmp_path: Path) -> None:
    stored(tmp_path, a=[1])
    data = data_of(tmp_path, "a")
    os.chown(data, 1234, 1234)
    refused = pytest.raises(StorageNotPrivate, match="not a file of yours")
    with SessionCache(storage_dir=tmp_path) as cache, refused:
        cache.get("a")
    os.chown(data, 0, 0)
    os.chown(tmp_path / "handles-1", 1234, -1)
    with pytest.raises(StorageNotPrivate, match="another user"):
        SessionCache(storage_dir=tmp_path)
    os.chown(tmp_path / "handles-1", 0, -1)


def test_links_are_not_followed(tmp_path: Path) -> None:
    stored(tmp_path / "real", a=[1])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "handles-1").symlink_to(tmp_path / "real" / "handles-1")
    with pytest.raises(StorageNotPrivate, match="link"):
        SessionCache(storage_dir=tmp_path / "linked")
    data = data_of(tmp_path / "real", "a")
    data.rename(tmp_path / "moved")
    data.symlink_to(tmp_path / "moved")
    with SessionCache(storage_dir=tmp_path / "real") as cache, pytest.raises(HandleUnreadable):
        cache.get("a")


# -- damage -------------------------------------------------------------------------------------


def alter(path: Path, **changes: object) -> None:
    """Change what a JSON file says, its checksum included."""
    envelope = json.loads(path.read_text())
    envelope["value"].update(changes)
    text = json.dumps(envelope["value"], separators=(",", ":")).encode()
    envelope["crc32"] = zlib.crc32(text)
    path.write_text(json.dumps(envelope, separators=(",", ":")))


def newer(folder: Path) -> None:
    record = record_of(folder, "bad")
    envelope = json.loads(record.read_text())
    envelope["format"] = 2
    record.write_text(json.dumps(envelope))


def flipped(folder: Path) -> None:
    record = record_of(folder, "bad")
    record.write_text(record.read_text().replace("segments", "sagments"))


NAMED: dict[str, Callable[[Path], object]] = {
    "newer version": newer,
    "altered": flipped,
    "data cut off": lambda folder: os.truncate(data_of(folder, "bad"), 100),
    "data emptied": lambda folder: os.truncate(data_of(folder, "bad"), 0),
    "data grown": lambda folder: os.truncate(data_of(folder, "bad"), 1 << 20),
    "data gone": lambda folder: data_of(folder, "bad").unlink(),
    "unknown field": lambda folder: alter(record_of(folder, "bad"), extra=1),
    "data elsewhere": lambda folder: alter(record_of(folder, "bad"), data="../../etc/passwd"),
    "data of another": lambda folder: alter(
        record_of(folder, "bad"), data=data_of(folder, "good").name
    ),
}
NAMELESS: dict[str, Callable[[Path], object]] = {
    "torn": lambda folder: os.truncate(record_of(folder, "bad"), 50),
    "emptied": lambda folder: os.truncate(record_of(folder, "bad"), 0),
    "no JSON": lambda folder: record_of(folder, "bad").write_bytes(b"\xff\0{"),
    "a list": lambda folder: record_of(folder, "bad").write_text("[1]"),
    "a deep list": lambda folder: record_of(folder, "bad").write_text("[" * 100_000),
    "another shape": lambda folder: record_of(folder, "bad").write_text('{"format": "1"}'),
    "foreign names": lambda folder: alter(record_of(folder, "bad"), names=[{"name": "../x"}]),
}


@pytest.mark.parametrize("damage", NAMED)
def test_a_damaged_handle_is_named_and_all_others_work(tmp_path: Path, damage: str) -> None:
    stored(tmp_path, good=frame(), bad=frame(), fine={"a": 1})
    NAMED[damage](tmp_path)
    with SessionCache(storage_dir=tmp_path) as cache:
        (problem,) = cache.problems
        assert problem.name == "bad"
        assert problem.reason
        assert Path(problem.file).exists()
        assert sorted(cache.handle_names()) == ["bad", "fine", "good"]
        json.loads(cache.list_handles()["bad"])
        with pytest.raises(HandleUnreadable, match="'bad'"):
            cache.get("bad")
        assert cache.get("good").equals(frame())
        assert cache.get("fine") == {"a": 1}
        assert cache.put("bad", 1) == "bad_2"
    with SessionCache(storage_dir=tmp_path) as cache:
        assert [problem.name for problem in cache.problems] == ["bad"]  # it was left as it is
        cache.put("bad", [7], overwrite=True)
        assert cache.problems == ()
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.problems == ()
        assert cache.get("bad") == [7]


@pytest.mark.parametrize("damage", NAMELESS)
def test_a_file_that_tells_no_name_is_listed_and_left(tmp_path: Path, damage: str) -> None:
    stored(tmp_path, good=frame(), bad=frame())
    data = data_of(tmp_path, "bad")
    NAMELESS[damage](tmp_path)
    with SessionCache(storage_dir=tmp_path) as cache:
        assert [problem.name for problem in cache.problems] == [None]
        assert cache.handle_names() == ["good"]
        assert cache.get("good").equals(frame())
        assert data.exists()


def test_damaged_contents_are_an_error_and_never_another_type(tmp_path: Path) -> None:
    values = {"arrow": frame(), "npy": np.zeros((300, 300)), "pickle": {"a": [1, "x"] * 500}}
    stored(tmp_path, **values)
    rng = random.Random(1)
    for name, value in values.items():
        data = data_of(tmp_path, name)
        whole = data.read_bytes()
        for _ in range(60):
            broken = bytearray(whole)
            for _ in range(rng.randrange(1, 20)):
                broken[rng.randrange(min(len(broken), 600))] = rng.randrange(256)
            data.write_bytes(broken)
            with SessionCache(storage_dir=tmp_path) as cache:
                try:
                    back = cache.get(name)
                except HandleUnreadable:
                    continue
                assert type(back) is type(value)
        data.write_bytes(whole)


def test_a_copied_file_is_a_problem_and_the_last_use_wins(tmp_path: Path) -> None:
    stored(tmp_path, x=["old"])
    copy = record_of(tmp_path, "x")
    kept = copy.read_bytes()
    with SessionCache(storage_dir=tmp_path) as cache:
        cache.put("x", ["new"], overwrite=True)
    copy.write_bytes(kept)
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.get("x") == ["new"]
        assert any(Path(problem.file) == copy for problem in cache.problems)


def test_the_order_of_names_is_all_that_hangs_on_its_file(tmp_path: Path) -> None:
    stored(tmp_path, a=[1], b=[2])
    for text in (b"", b"[]", b"\xff", b'{"value": {"used": {"a": "x"}}}'):
        (tmp_path / "handles-1" / "recency.json").write_bytes(text)
        with SessionCache(storage_dir=tmp_path) as cache:
            assert sorted(cache.handle_names()) == ["a", "b"]


def test_a_class_that_is_gone_is_an_error_of_its_handle(tmp_path: Path) -> None:
    code = (
        "import sys; from py_code_mode.handles import SessionCache\n"
        "class Mine: pass\n"
        "with SessionCache(storage_dir=sys.argv[1]) as c: c.put('m', Mine()); c.put('a', [1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, timeout=60)
    with SessionCache(storage_dir=tmp_path) as cache:
        with pytest.raises(HandleUnreadable, match="Mine"):
            cache.get("m")
        assert cache.get("a") == [1]
        assert "Mine" in cache.snapshot("m")


# -- failing writes -----------------------------------------------------------------------------


class Failing(Files):
    """Fails from the n-th change on, or writes in pieces."""

    def __init__(self, files: Files, code: int = errno.ENOSPC, *, first: int = 0) -> None:
        super().__init__(files.folder)
        self.left, self.code = first, code

    def step(self) -> None:
        if self.left <= 0:
            raise OSError(self.code, os.strerror(self.code))
        self.left -= 1

    def create(self, name: str) -> int:
        self.step()
        return super().create(name)

    def write(self, fd: int, parts: Sequence[memoryview]) -> int:
        self.step()
        # a part of it first, as a full disk does
        return super().write(fd, [parts[0][: max(1, parts[0].nbytes // 2)]])

    def replace(self, old: str, new: str) -> None:
        self.step()
        super().replace(old, new)


def slot_of(cache: SessionCache) -> Any:
    slot: Any = vars(cache)["_resources"].slot
    return slot


@pytest.mark.parametrize("first", range(7))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_loses_neither_value_nor_file(tmp_path: Path, code: int, first: int) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", ["old"])
        cache.put("b", None)
        cache.get("a").append("new")
        slot = slot_of(cache)
        slot.files = Failing(slot.files, code, first=first)
        assert cache.put("c", [3]) == "c"
        assert cache.put("d", [4]) == "d"
        assert (cache.get("a"), cache.get("c"), cache.get("d")) == (["old", "new"], [3], [4])
        stays = [name for name in cache.handle_names() if cache.info(name).stays]
        assert stays
        assert all(os.strerror(code) in (cache.info(name).stays or "") for name in stays)
        slot.files = Files(slot.files.folder)
        assert cache.flush() == {}
        assert not any(cache.info(name).stays for name in cache.handle_names())
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.get("a") == ["old", "new"]
        assert (cache.get("c"), cache.get("d")) == ([3], [4])
        slot = tmp_path / "handles-1"
        assert len([path for path in slot.iterdir() if path.suffix == ".pickle"]) == 4


def test_closing_on_a_full_disk_can_be_tried_again(tmp_path: Path) -> None:
    cache = SessionCache(storage_dir=tmp_path)
    cache.put("a", [1])
    slot = slot_of(cache)
    good = slot.files
    slot.files = Failing(good)
    with pytest.raises(StoreError, match="still open"):
        cache.close()
    assert cache.get("a") == [1]
    slot.files = good
    cache.close()
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.get("a") == [1]


def test_short_writes_are_gone_on_with(tmp_path: Path) -> None:
    class Short(Files):
        def write(self, fd: int, parts: Sequence[memoryview]) -> int:
            return super().write(fd, [parts[0][:777]])

    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        slot_of(cache).files = Short(slot_of(cache).files.folder)
        cache.put("df", frame())
        cache.put("many", [np.arange(1000) + n for n in range(50)])
        cache.put("other", None)
        assert cache.get("df").equals(frame())
        assert cache.get("many")[49][0] == 49


class Stuck(Files):
    """Removes nothing."""

    def unlink(self, name: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_what_cannot_be_removed_is_still_there(tmp_path: Path) -> None:
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
        cache.put("b", [2])
        slot = slot_of(cache)
        slot.files, good = Stuck(slot.files.folder), slot.files
        with pytest.raises(StoreError, match="Permission denied"):
            cache.delete("a")
        assert cache.get("a") == [1]
        cache.put("a", [3], overwrite=True)
        cache.flush()
        with pytest.raises(StoreError, match="Permission denied"):
            cache.delete("a")
        assert cache.get("a") == [3]
        slot.files = good
        cache.delete("a")
        assert not cache.has_handle("a")
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.handle_names() == ["b"]
        assert cache.problems == ()


def test_a_directory_that_is_removed_loses_nothing_that_is_in_memory(tmp_path: Path) -> None:
    import shutil

    cache = SessionCache(storage_dir=tmp_path / "s", hot_limit=1)
    cache.put("cold", [1])
    cache.put("hot", [2])
    shutil.rmtree(tmp_path / "s")
    cache.put("new", [3])
    assert (cache.get("hot"), cache.get("new")) == ([2], [3])
    with pytest.raises(HandleUnreadable):
        cache.get("cold")
    with pytest.raises(StoreError, match="still open"):
        cache.close()
    cache.delete("hot")
    cache.delete("new")
    cache.close()


def test_a_clean_value_is_not_written_again(tmp_path: Path) -> None:
    written: list[str] = []

    class Noting(Files):
        def create(self, name: str) -> int:
            written.append(name)
            return super().create(name)

    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        slot_of(cache).files = Noting(slot_of(cache).files.folder)
        values = {"f": frame(), "a": np.arange(5000), "p": {"a": [1]}, "s": "x" * 5000, "n": 1}
        while values:
            cache.put(*values.popitem())
        cache.put("last", None)
        first = len(written)
        assert first == 2 * 5
        for _ in range(3):
            for name in ("f", "a", "p", "s", "n", "last"):
                cache.get(name)
        assert len(written) == first + 2  # of `last`, once
        cache.get("p")["a"] = [True]
        cache.get("n")
        assert len(written) == first + 4
        assert cache.get("p")["a"] == [True]
        assert type(cache.get("p")["a"][0]) is bool


# -- crashes ------------------------------------------------------------------------------------

CRASH = """
import itertools, os, sys
from py_code_mode.handles import SessionCache
from py_code_mode.handles.slot import Files

def dying(method):
    def step(self, *arguments):
        global left
        left -= 1
        if left == 0:
            if method.__name__ == "write":
                Files.plain(self, arguments[0], [arguments[1][0][:20]])
            os._exit(9)
        return method(self, *arguments)
    return step
Files.plain = Files.write
for name in ("create", "write", "replace", "unlink"):
    setattr(Files, name, dying(getattr(Files, name)))

def use(folder):
    cache = SessionCache(storage_dir=folder, hot_limit=1)
    cache.put("kept", ["kept"], overwrite=True)
    cache.flush(); print("flushed", flush=True)
    cache.put("changed", {"n": 1}, overwrite=True)
    cache.put("shared", cache.get("kept"), overwrite=True)
    cache.flush(); print("again", flush=True)
    cache.get("changed")["n"] = 2
    cache.put("new", ["new"] * 3000)
    cache.delete("changed") if sys.argv[2] == "True" else cache.flush()
    print("third", flush=True)
    cache.put("kept", ["replaced"], overwrite=True)
    cache.close()
    print("closed", flush=True)

for left in itertools.count(1):
    folder = f"{sys.argv[1]}/{left}"
    if (pid := os.fork()) == 0:
        os.dup2(os.open(folder + ".txt", os.O_CREAT | os.O_WRONLY), 1)
        use(folder)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(left, status, flush=True)
    if status != 9:
        break
"""


@pytest.mark.parametrize("deletes", [False, True])
def test_a_crash_at_any_write_leaves_a_readable_store(tmp_path: Path, deletes: bool) -> None:
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), str(deletes)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    statuses = [line.split()[1] for line in crashed.stdout.splitlines()]
    assert statuses[-1] == "0", crashed.stderr
    assert len(statuses) > 15
    for steps in range(1, len(statuses) + 1):
        folder = tmp_path / str(steps)
        said = folder.with_suffix(".txt").read_text().split()
        with SessionCache(storage_dir=folder) as cache:
            assert cache.problems == ()
            found = {name: cache.get(name) for name in cache.handle_names()}
            names = [path.name for path in (folder / "handles-1").iterdir()]
        assert not any(name.startswith(".new-") for name in names)
        if "flushed" in said and "third" not in said:
            assert found["kept"] == ["kept"]
        if "again" in said and "third" not in said:
            assert found["shared"] == ["kept"]
            if not deletes:
                assert found["changed"] in ({"n": 1}, {"n": 2})
        if "third" in said:
            assert found["kept"] in (["replaced"], ["kept"])
            assert found["shared"] == ["kept"]
            assert ("changed" in found) is not deletes
        assert found.get("changed") in (None, {"n": 1}, {"n": 2})
        if steps == len(statuses):  # nothing ended this one
            assert said[-1] == "closed"
            assert found["kept"] == ["replaced"]
            assert found["new"] == ["new"] * 3000


OVERWRITTEN = """
import os, sys
from py_code_mode.handles import SessionCache
cache = SessionCache(storage_dir=sys.argv[1])
old = ["old"]
cache.put("a", old)
if "shared" in sys.argv:
    cache.put("other", old)
if "named" in sys.argv:
    cache.put("new", ["new"])
cache.flush()
cache.put("a", cache.get("new") if "named" in sys.argv else ["new"], overwrite=True)
if "again" in sys.argv:
    cache.put("a", ["newer"], overwrite=True)
if "changed" in sys.argv:  # so that the file it is in is written again
    old.append("changed")
    cache._try_to_store(cache._entries["other"].value)
if "stored" in sys.argv:
    cache.flush()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ([], {"a": ["old"]}),
        (["again"], {"a": ["old"]}),
        (["stored"], {"a": ["new"]}),
        (["again", "stored"], {"a": ["newer"]}),
        (["named"], {"a": ["old"], "new": ["new"]}),
        (["named", "stored"], {"a": ["new"], "new": ["new"]}),
        (["shared"], {"a": ["old"], "other": ["old"]}),
        (["shared", "changed"], {"a": ["old", "changed"], "other": ["old", "changed"]}),
        (["shared", "named", "stored"], {"a": ["new"], "new": ["new"], "other": ["old"]}),
    ],
)
def test_a_killed_process_leaves_the_old_value_or_the_new(
    tmp_path: Path, how: list[str], found: dict[str, list[str]]
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", OVERWRITTEN, str(tmp_path), *how],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    with SessionCache(storage_dir=tmp_path) as cache:
        assert cache.problems == ()
        assert {name: cache.get(name) for name in sorted(cache.handle_names())} == found
        values = {id(cache.get(name)) for name in found}
        records = list((tmp_path / "handles-1").glob("*.json"))
        assert len(records) - (tmp_path / "handles-1" / "recency.json").exists() == len(values)


def test_what_was_overwritten_does_not_come_back(tmp_path: Path) -> None:
    stored(tmp_path, gone=["old"], lost=["old"], kept=["old"])
    with SessionCache(storage_dir=tmp_path) as cache:
        for name in ("gone", "kept"):
            cache.put(name, ["new"], overwrite=True)
        cache.put("lost", lambda: 1, overwrite=True)
        cache.delete("gone")
    with SessionCache(storage_dir=tmp_path) as cache:
        assert {name: cache.get(name) for name in cache.handle_names()} == {"kept": ["new"]}


# -- many, and many at once ---------------------------------------------------------------------


def test_ten_thousand_handles(tmp_path: Path) -> None:
    count = 10_000
    with SessionCache(storage_dir=tmp_path, hot_limit=9_000) as cache:
        for number in range(count):
            cache.put("v", [number])
        assert cache.get("v_777") == [777 - 1]
        assert len(cache.handle_names()) == count
        assert sum(cache.info(name).is_hot for name in cache.handle_names()) == 9_000
        assert cache.get("v") == [0]


def test_threads_may_do_anything_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    start = threading.Barrier(8)

    def hammer(cache: SessionCache, seed: int) -> None:
        rng = random.Random(seed)
        own: dict[str, int] = {}
        start.wait(PATIENCE)
        try:
            for step in range(150):
                match rng.randrange(8):
                    case 0 | 1 | 2:
                        own[cache.put("v", {"who": seed, "n": step})] = step
                    case 3 | 4 if own:
                        name = rng.choice([*own])
                        assert cache.get(name) == {"who": seed, "n": own[name]}
                    case 5 if own:
                        name = rng.choice([*own])
                        del own[name]
                        cache.delete(name)
                    case 6:
                        for text in cache.list_handles().values():
                            json.loads(text)
                    case _:
                        assert set(own) <= set(cache.handle_names())
                        assert all(map(cache.has_handle, own))
            for name, step in own.items():
                assert cache.get(name) == {"who": seed, "n": step}
        except BaseException as error:
            failed.append(error)

    with SessionCache(storage_dir=tmp_path, hot_limit=3) as cache:
        threads = [threading.Thread(target=hammer, args=(cache, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert not failed, failed


def test_names_can_be_asked_for_while_another_thread_writes(tmp_path: Path) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Waiting(Files):
        def write(self, fd: int, parts: Sequence[memoryview]) -> int:
            writing.set()
            assert go_on.wait(PATIENCE)
            return super().write(fd, parts)

    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        cache.put("a", [1])
        slot_of(cache).files = Waiting(slot_of(cache).files.folder)
        thread = threading.Thread(target=cache.put, args=("b", [2]))
        thread.start()
        assert writing.wait(PATIENCE)
        assert cache.has_handle("a")
        assert cache.handle_names() == ["a"]
        go_on.set()
        thread.join(PATIENCE)
        assert cache.handle_names() == ["b", "a"]


def test_mapped_values_hold_no_descriptor(tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("no /proc")
    with SessionCache(storage_dir=tmp_path, hot_limit=1) as cache:
        for number in range(20):
            cache.put(f"a{number}", np.zeros(200_000) + number)
        gc.collect()  # what earlier tests have left to it is not ours
        before = len(os.listdir(folder))
        held = [cache.get(f"a{number}") for number in range(19)]
        assert len(os.listdir(folder)) == before
        assert [array[5] for array in held] == list(range(19))
