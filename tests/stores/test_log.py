"""The log: lines are whole or not there, whatever the disk, the power and other writers do."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat as modes
import subprocess
import sys
import threading
import time
import zlib
from typing import TYPE_CHECKING

import pytest

from py_code_mode.errors import LogDamaged, LogFailed, LogFull, LogLocked, NotStored, StoreError
from py_code_mode.stores.files import FileSystem
from py_code_mode.stores.log import Durability, Log, LogReader, seal
from py_code_mode.stores.syncing import GROUP_WINDOW

from ..faulty_files import FaultyFiles, HalfWritten, PowerCut
from ..memory import PEAK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEVELS: tuple[Durability, ...] = ("process", "group", "power")


def body(number: int, text: str = "") -> bytes:
    return json.dumps({"n": number, "text": text}).encode()


def numbers(path: Path) -> list[int]:
    with LogReader(path) as reader:
        return [json.loads(line.data)["n"] for line in reader.lines() if line.problem is None]


def problems(path: Path) -> list[tuple[int, str]]:
    with LogReader(path) as reader:
        return [(line.offset, line.problem) for line in reader.lines() if line.problem is not None]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log.create(tmp_path, "log") as made:
        yield made


@pytest.mark.parametrize("durability", LEVELS)
def test_lines_come_back_in_order_with_their_offsets(
    tmp_path: Path, durability: Durability
) -> None:
    with Log.create(tmp_path, "log", durability=durability) as log:
        offsets = [log.append(body(n)) for n in range(10)]
    with LogReader(tmp_path / "log") as reader:
        lines = list(reader.lines())
        assert [line.offset for line in lines] == offsets
        assert [json.loads(line.data)["n"] for line in lines] == list(range(10))
        assert lines[-1].end == reader.size
        assert reader.at(offsets[4]) == lines[4]
        assert reader.last() == lines[-1]
        assert list(reader.lines(offsets[7])) == lines[7:]
        assert list(reader.lines(offsets[2], offsets[4])) == lines[2:4]


def test_line_has_a_checksum_of_the_object_as_its_last_key(log: Log, tmp_path: Path) -> None:
    log.append(b'{"a":1}')
    (line,) = (tmp_path / "log").read_bytes().splitlines()
    checksum = zlib.crc32(b'{"a":1}')
    assert json.loads(line) == {"a": 1, "crc": f"{checksum:08x}"}
    assert line + b"\n" == seal(b'{"a":1}')


def test_file_is_for_its_owner_only(log: Log) -> None:
    assert modes.S_IMODE(os.stat(log.path).st_mode) == 0o600


@pytest.mark.parametrize("bad", [b"", b"{}", b'{"a":\n1}'])
def test_what_is_no_line_is_refused(log: Log, bad: bytes) -> None:
    with pytest.raises(ValueError, match="a line is"):
        log.append(bad)
    assert log.size == 0


def test_existing_file_is_not_made_again(log: Log, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Log.create(tmp_path, "log")
    assert isinstance(caught.value.__cause__, FileExistsError)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../log"])
def test_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a file"):
        Log.create(tmp_path, name)


def test_link_pipe_and_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(seal(body(1)))
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(StoreError):
            Log.open(tmp_path, name)
        with pytest.raises(StoreError):
            LogReader(tmp_path / name)
    with pytest.raises(NotStored):
        Log.open(tmp_path, "missing")
    with pytest.raises(NotStored):
        LogReader(tmp_path / "missing")


# --- what a crash leaves


def test_cut_at_every_byte_leaves_whole_lines_that_are_written_on(tmp_path: Path) -> None:
    whole = b"".join(seal(body(n, "é\N{GRINNING FACE}")) for n in range(4))
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        (tmp_path / "log").write_bytes(whole[:size])
        left = sum(end <= size for end in ends)
        with Log.open(tmp_path, "log", durability="process") as log:
            is_cut = size not in (0, *ends)
            assert (log.cut is not None) is is_cut
            if log.cut is not None:
                assert log.cut.offset + log.cut.size == size
            log.append(body(99))
        assert numbers(tmp_path / "log") == [*range(left), 99]
        assert problems(tmp_path / "log") == []


@pytest.mark.parametrize("tail", [b"\0" * 5000, b'{"n":7', b"\0\n\0\n", b"garbage\n", b"\xff" * 9])
def test_tail_that_is_no_line_is_cut_and_told(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "log").write_bytes(seal(body(1)) + tail)
    with Log.open(tmp_path, "log") as log:
        assert log.cut is not None
        assert log.cut.size == len(tail)
    assert numbers(tmp_path / "log") == [1]


def test_damage_before_the_last_whole_line_stays_and_is_told(tmp_path: Path) -> None:
    first, last = seal(body(1)), seal(body(2))
    (tmp_path / "log").write_bytes(first + b"\0" * 100 + b"\n" + last)
    with Log.open(tmp_path, "log") as log:
        assert log.cut is None
    assert numbers(tmp_path / "log") == [1, 2]
    assert problems(tmp_path / "log") == [(len(first), "damaged")]


def test_log_without_any_whole_line_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"nothing of ours\n" * 10)
    with pytest.raises(LogDamaged):
        Log.open(tmp_path, "log")
    assert (tmp_path / "log").read_bytes() == b"nothing of ours\n" * 10


def test_last_line_longer_than_a_window_is_found(tmp_path: Path) -> None:
    long = seal(body(2, "x" * 300_000))
    (tmp_path / "log").write_bytes(seal(body(1)) + long + b"torn" * 50_000)
    with LogReader(tmp_path / "log") as reader:
        last = reader.last()
        assert last is not None
        assert last.data + b"\n" == long
    with Log.open(tmp_path, "log") as log:
        assert log.cut is not None
        assert log.cut.size == 200_000
        assert numbers(tmp_path / "log") == [1, 2]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    lines = [seal(body(n, "some text")) for n in range(3)]
    whole, start = b"".join(lines), len(lines[0])
    for at in range(start, start + len(lines[1])):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            (tmp_path / "log").write_bytes(flipped)
            assert numbers(tmp_path / "log") in ([0, 2], [0])  # [0]: its end is not one any more
            assert problems(tmp_path / "log")


@pytest.mark.parametrize("seed", range(30))
def test_power_cut_loses_only_what_was_not_synced(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    root = tmp_path / "root"
    root.mkdir()
    files = PowerCut(root)
    log = Log.create(root, "log", durability="process", files=files)
    files.fsync(_folder := files.open_folder(root))
    files.close(_folder)
    synced = written = 0
    for step in range(2):
        for _ in range(chance.randint(1, 6)):
            log.append(body(written, "x" * chance.randint(0, 50)))
            written += 1
        if step == 0:
            log.flush()
            synced = written
    left = tmp_path / "left"
    files.cut(left, chance)
    log.close()
    with Log.open(left, "log") as again:
        again.append(body(99))
    found = numbers(left / "log")
    assert found[:synced] == list(range(synced))
    assert found[-1] == 99
    assert set(found[:-1]) <= set(range(written))
    assert found == sorted(found)


def test_renamed_log_has_one_of_the_names_after_a_power_cut(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    files = PowerCut(root)
    with Log.create(root, "open", files=files) as log:
        log.append(body(1))
        log.flush()
        log.rename("closed")
        for seed in range(10):
            left = tmp_path / f"left{seed}"
            files.cut(left, random.Random(seed))
            assert [path.name for path in left.iterdir()] == ["closed"]
            assert numbers(left / "closed") == [1]


# --- a disk that fails


def test_short_writes_and_signals_make_no_difference(tmp_path: Path) -> None:
    plan = {1: 0, 2: errno.EINTR, 3: 0, 5: errno.EINTR, 8: 0}
    with Log.create(tmp_path, "log", files=FaultyFiles(plan, only=["write"])) as log:
        for n in range(5):
            log.append(body(n))
    assert numbers(tmp_path / "log") == list(range(5))


@pytest.mark.parametrize("part", [0, 1, 7, 20])
def test_full_disk_leaves_nothing_of_the_line(tmp_path: Path, part: int) -> None:
    files = HalfWritten(part)
    with Log.create(tmp_path, "log", files=files) as log:
        log.append(body(1))
        files.is_full = True
        with pytest.raises(LogFull, match="Make room"):
            log.append(body(2))
        assert (tmp_path / "log").read_bytes() == seal(body(1))
        files.is_full = False
        log.append(body(3))
    assert numbers(tmp_path / "log") == [1, 3]
    assert problems(tmp_path / "log") == []


def test_write_that_fails_leaves_a_usable_log(tmp_path: Path) -> None:
    files = FaultyFiles()
    with Log.create(tmp_path, "log", files=files) as log:
        files.fail_next("write", errno.EIO)
        with pytest.raises(StoreError, match="Input/output"):
            log.append(body(1))
        log.append(body(2))
    assert numbers(tmp_path / "log") == [2]


@pytest.mark.parametrize("durability", LEVELS)
def test_failed_sync_latches(tmp_path: Path, durability: Durability) -> None:
    files = FaultyFiles()
    log = Log.create(tmp_path, "log", durability=durability, files=files)
    files.fail_next("fdatasync", errno.EIO)

    def write() -> None:
        log.append(body(1))
        log.flush()

    with pytest.raises(LogFailed, match="syncing it failed"):
        write()
    for again in (lambda: log.append(body(2)), log.flush):
        with pytest.raises(LogFailed, match="reopen it"):
            again()
    assert not log.is_open
    log.close()
    assert numbers(tmp_path / "log") == [1]


def test_failed_sync_in_the_background_is_told_to_the_next_writer(tmp_path: Path) -> None:
    synced = threading.Event()

    class Failing(FileSystem):
        def fdatasync(self, file: int) -> None:
            synced.set()
            raise OSError(errno.EIO, "broken")

    log = Log.create(tmp_path, "log", files=Failing())
    log.append(body(1))
    assert synced.wait(60)
    with pytest.raises(LogFailed, match="broken"):
        log.flush()
    with pytest.raises(LogFailed):
        log.append(body(2))
    log.close()


def test_line_that_cannot_be_taken_back_latches(tmp_path: Path) -> None:
    files = HalfWritten(5)
    log = Log.create(tmp_path, "log", files=files)
    log.append(body(1))
    files.is_full = True
    files.fail_next("truncate", errno.EIO)
    with pytest.raises(LogFailed, match="taken back"):
        log.append(body(2))
    files.is_full = False
    with pytest.raises(LogFailed):
        log.append(body(3))
    log.abandon()
    with Log.open(tmp_path, "log") as again:
        assert again.cut is not None
        assert again.cut.size == 5
    assert numbers(tmp_path / "log") == [1]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EINTR])
def test_any_call_may_fail_once(tmp_path: Path, error: int) -> None:
    """Fail the n-th call for each n: what was acknowledged is there, and nothing twice."""
    clean = False
    number = 0
    while not clean:
        folder = tmp_path / f"{error}-{number}"
        folder.mkdir()
        files = FaultyFiles({number: error})
        acknowledged: list[int] = []
        try:
            with Log.create(folder, "log", durability="power", files=files) as log:
                for n in range(3):
                    log.append(body(n))
                    acknowledged.append(n)
                log.rename("done")
        except StoreError:
            pass
        clean = number >= len(files.log)
        number += 1
        found = [path for path in folder.iterdir() if path.stat().st_size]
        written = numbers(found[0]) if found else []
        assert written[: len(acknowledged)] == acknowledged
        assert written in ([], [0], [0, 1], [0, 1, 2])
        assert len(found) <= 1
        if found:
            with Log.open(folder, found[0].name) as again:
                again.append(body(9))
    assert number > 5


# --- several writers and readers


def test_second_writer_is_refused_until_the_first_is_gone(log: Log, tmp_path: Path) -> None:
    with pytest.raises(LogLocked):
        Log.open(tmp_path, "log")
    caught: list[type] = []

    def other_thread() -> None:
        try:
            Log.open(tmp_path, "log")
        except LogLocked as error:
            caught.append(type(error))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join(5)
    assert caught == [LogLocked]
    log.close()
    Log.open(tmp_path, "log").close()


HOLDER = """
import sys
from py_code_mode.stores.log import Log
log = Log.open(sys.argv[1], "log")
log.append(b'{"n":5}')
print("held", flush=True)
sys.stdin.read()
"""


def test_writer_in_another_process_holds_the_lock_until_it_is_killed(tmp_path: Path) -> None:
    Log.create(tmp_path, "log").close()
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LogLocked):
            Log.open(tmp_path, "log")
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        Log.open(tmp_path, "log").close()
    assert numbers(tmp_path / "log") == [5]


def test_forked_child_cannot_write_and_does_not_keep_the_lock(log: Log, tmp_path: Path) -> None:
    log.append(body(1))
    hold, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_go)
        code = 1
        try:
            log.append(body(2))
        except StoreError:
            log.close()
            code = 0
        os.read(hold, 1)
        os._exit(code)
    try:
        os.close(hold)
        log.append(body(3))
        log.close()
        Log.open(tmp_path, "log").close()  # while the child is still there
    finally:
        os.close(let_go)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert numbers(tmp_path / "log") == [1, 3]


def test_log_that_was_renamed_before_the_lock_was_had_is_looked_for_again(tmp_path: Path) -> None:
    """Opened by its name, exchanged for another file, then locked: the lock would be on nothing."""
    Log.create(tmp_path, "log").close()

    class Exchanging(FileSystem):
        done = False

        def lock(self, file: int, *, is_shared: bool = False, waits: bool = False) -> None:
            if not self.done:
                self.done = True
                (tmp_path / "new").write_bytes(seal(body(7)))
                (tmp_path / "new").rename(tmp_path / "log")
            super().lock(file, is_shared=is_shared, waits=waits)

    with Log.open(tmp_path, "log", files=Exchanging()) as log:
        log.append(body(8))
    assert numbers(tmp_path / "log") == [7, 8]


def test_rename_keeps_the_lock_and_replaces_nothing(log: Log, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(StoreError, match="already"):
        log.rename("taken")
    log.rename("other")
    with pytest.raises(LogLocked):
        Log.open(tmp_path, "other")
    log.append(body(1))
    assert numbers(tmp_path / "other") == [1]
    assert (tmp_path / "taken").read_bytes() == b"mine"


@pytest.mark.parametrize("durability", LEVELS)
def test_threads_may_write_at_once(tmp_path: Path, durability: Durability) -> None:
    log = Log.create(tmp_path, "log", durability=durability)
    count = 40

    def write(start: int) -> None:
        for n in range(start, start + count):
            log.append(body(n))

    threads = [threading.Thread(target=write, args=(t * count,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log.close()
    assert sorted(numbers(tmp_path / "log")) == list(range(8 * count))


def test_reader_never_sees_a_torn_line_as_a_line(tmp_path: Path) -> None:
    """Also while a writer writes parts, and takes some of them back."""
    files = FaultyFiles({n: 0 if n % 2 else errno.ENOSPC for n in range(1, 4000, 3)}, ["write"])
    log = Log.create(tmp_path, "log", durability="process", files=files)
    is_over = threading.Event()
    failures: list[object] = []

    def read() -> None:
        seen = 0
        while not is_over.is_set():
            with LogReader(tmp_path / "log") as reader:
                lines = list(reader.lines())
            found = [json.loads(line.data)["n"] for line in lines if line.problem is None]
            bad = [line for line in lines[:-1] if line.problem is not None]
            if bad or found != sorted(set(found)) or len(found) < seen:
                failures.append((bad, found[-3:], seen))
            seen = len(found)

    reading = threading.Thread(target=read)
    reading.start()
    for n in range(800):
        try:
            log.append(body(n, "x" * (n % 700)))
        except LogFull:
            continue
    is_over.set()
    reading.join(30)
    log.close()
    assert failures == []


def test_many_lines_share_one_sync(tmp_path: Path) -> None:
    synced: list[int] = []
    first = threading.Event()

    class Counting(FileSystem):
        def fdatasync(self, file: int) -> None:
            synced.append(os.fstat(file).st_size)
            super().fdatasync(file)
            first.set()

    began = time.monotonic()
    log = Log.create(tmp_path, "log", files=Counting())
    for n in range(50):
        log.append(body(n))
    assert first.wait(100 * GROUP_WINDOW)
    log.flush()
    # on a busy machine the appends alone may take several windows
    windows = int((time.monotonic() - began) / (0.8 * GROUP_WINDOW))
    assert len(synced) <= 2 + windows
    assert synced[-1] == log.size
    log.close()


def test_closed_log_refuses_and_closes_again(log: Log) -> None:
    log.append(body(1))
    log.close()
    log.close()
    for act in (lambda: log.append(body(2)), log.flush, lambda: log.rename("x")):
        with pytest.raises(StoreError, match="closed"):
            act()


# --- sizes


def test_very_long_line_goes_through(tmp_path: Path) -> None:
    text = "x" * (64 << 20)
    with Log.create(tmp_path, "log", durability="process") as log:
        log.append(body(1))
        log.append(body(2, text))
        log.append(body(3))
    assert numbers(tmp_path / "log") == [1, 2, 3]


def test_line_beyond_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("py_code_mode.stores.log.MAX_LINE", 1000)
    with Log.create(tmp_path, "log", durability="process") as log:
        log.append(body(1))
        with pytest.raises(ValueError, match="1000 bytes"):
            log.append(body(2, "x" * 2000))
    with (tmp_path / "log").open("ab") as file:
        file.write(seal(body(2, "x" * 2000)) + seal(body(3)))
    assert numbers(tmp_path / "log") == [1, 3]
    assert [kind for _, kind in problems(tmp_path / "log")] == ["long"]


MEASURED = f"""{PEAK}
import sys
from py_code_mode.stores.log import LogReader
before = peak()
with LogReader(sys.argv[1]) as reader:
    count = sum(line.problem is None for line in reader.lines())
    last = reader.last()
print(count, (peak() - before) >> 20)
"""


def test_large_log_is_read_in_little_memory(tmp_path: Path) -> None:
    size = (1 << 30) if os.environ.get("PY_CODE_MODE_FULL") else (64 << 20)
    line = seal(body(1, "x" * 980))
    count = size // len(line)
    with (tmp_path / "log").open("wb") as file:
        for _ in range(count // 1000):
            file.write(line * 1000)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    found, mebibytes = map(int, done.stdout.split())
    assert found == count // 1000 * 1000
    assert mebibytes < 32
