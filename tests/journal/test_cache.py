"""Parsed sessions in memory: seed 001, and what its original got wrong.

Most of what can go wrong depends on how coarse the times of files are, which the tests' own disk
does not show: there the status of files is rounded.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import PersistenceError, SchemaVersionError
from py_code_mode.journal import cache as cache_module
from py_code_mode.journal.cache import (
    StatCache,
    clear_cache,
    get_cached_session,
    set_max_entries,
)
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.parsed import ParsedSession, Records, parse_session
from py_code_mode.journal.records import Chunk, Foreign, Header, Patch, Run
from py_code_mode.stores.files import FileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECOND = 1_000_000_000
GRANULARITIES = [1, 4_000_000, SECOND, 2 * SECOND]


def later() -> int:
    """A clock by which all files have aged."""
    return time.time_ns() + 60 * SECOND


def rounded(status: os.stat_result, granularity: int) -> os.stat_result:
    def down(nanoseconds: int) -> int:
        return nanoseconds // granularity * granularity

    times = {"st_mtime_ns": down(status.st_mtime_ns), "st_ctime_ns": down(status.st_ctime_ns)}
    return os.stat_result(tuple(status), times)


class Reader:
    """A cache of the bytes of files, which tells what it did."""

    def __init__(self, granularity: int = 1, **options: Any) -> None:
        self.parsed: list[str] = []
        self.grown = 0
        self.stats = self.fstats = 0
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None
        self._asked = threading.Condition()
        self._granularity = granularity
        self.cache: StatCache[bytes] = StatCache(
            self.parse,
            grow=self.grow,
            end_of=len,
            stat=self.stat,
            fstat=self.fstat,
            **options,
        )

    def parse(self, path: str) -> bytes:
        self.parsed.append(Path(path).name)
        self.before()
        found = Path(path).read_bytes()
        self.after()
        return found

    def grow(self, path: str, old: bytes) -> bytes | None:
        self.grown += 1
        with Path(path).open("rb") as file:
            file.seek(len(old))
            return old + file.read()

    def stat(self, path: str | os.PathLike[str]) -> os.stat_result:
        with self._asked:
            self.stats += 1
            self._asked.notify_all()
        return rounded(os.stat(path), self._granularity)

    def wait_for_stats(self, count: int) -> None:
        with self._asked:
            assert self._asked.wait_for(lambda: self.stats >= count, 10)

    def fstat(self, file: int) -> os.stat_result:
        self.fstats += 1
        return rounded(os.fstat(file), self._granularity)

    def get(self, path: Path | str, *, admit: bool = True) -> bytes:
        return self.cache.get(path, admit=admit)


def made(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:03}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%3d" % number)
    return paths


def touch(path: Path, seconds: float = 1) -> None:
    status = path.stat()
    os.utime(path, (status.st_atime + seconds, status.st_mtime + seconds))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"first\n")
    return path


# --- what is given out is what the file has ---------------------------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_append_within_one_tick_is_seen(file: Path, granularity: int) -> None:
    # was: missed in 197 to 200 of 200 from 4 ms on
    reader = Reader(granularity)
    content = b"first\n"
    for number in range(200):
        assert reader.get(file) == content
        content += b"%d\n" % number
        with file.open("ab") as stream:
            stream.write(b"%d\n" % number)
    assert reader.get(file) == content
    assert len(reader.parsed) == 1
    assert reader.grown == 200


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_rewrite_of_the_same_size_within_one_tick_is_seen(file: Path, granularity: int) -> None:
    reader = Reader(granularity)
    for number in range(150):
        content = b"%06d" % number
        with file.open("r+b") as stream:
            stream.write(content)
        assert reader.get(file) == content


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_replaced_file_is_seen_although_its_times_are_kept(
    file: Path, tmp_path: Path, granularity: int
) -> None:
    # was: the old content, since the time of the last change was all that was looked at
    reader = Reader(granularity)
    for number in range(20):
        reader.get(file)
        status = file.stat()
        other = tmp_path / "other"
        other.write_bytes(b"%05d\n" % number)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(file)
        assert reader.get(file) == b"%05d\n" % number
    assert len(reader.cache) == 1  # what was replaced is not kept


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_rewrite_that_sets_its_old_times_is_seen(file: Path, granularity: int) -> None:
    os.utime(file, (1, 1))
    reader = Reader(granularity)
    for number in range(20):
        reader.get(file)
        with file.open("r+b") as stream:
            stream.write(b"%05d\n" % number)
        os.utime(file, (1, 1))
        assert reader.get(file) == b"%05d\n" % number


def test_truncated_and_written_again_is_not_taken_for_growth(file: Path) -> None:
    reader = Reader()
    reader.get(file)
    file.write_bytes(b"an other and longer content\n")
    assert reader.get(file) == b"an other and longer content\n"
    file.write_bytes(b"short\n")
    assert reader.get(file) == b"short\n"
    assert reader.grown == 0
    assert len(reader.parsed) == 3


def test_a_removed_file_is_an_error_and_forgotten(file: Path) -> None:
    reader = Reader()
    reader.get(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        reader.get(file)
    assert len(reader.cache) == reader.cache.size == 0
    file.write_bytes(b"again\n")
    assert reader.get(file) == b"again\n"


def test_a_link_that_is_turned_elsewhere_is_followed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    link = tmp_path / "link"
    reader = Reader()
    for name in "abab":
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / name)
        assert reader.get(link / "file") == name.encode()


def test_a_file_that_changes_while_it_is_parsed_is_given_and_not_kept(file: Path) -> None:
    reader = Reader()
    reader.after = lambda: touch(file)
    assert reader.get(file) == b"first\n"
    assert len(reader.cache) == 0
    reader.after = lambda: None
    reader.get(file)
    reader.get(file)
    assert len(reader.parsed) == 2


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_change_between_two_reads_of_one_parse_is_not_kept_for_good(
    file: Path, granularity: int
) -> None:
    reader = Reader(granularity)
    reader.before = lambda: file.write_bytes(b"other\n")
    reader.get(file)
    reader.before = lambda: None
    with file.open("r+b") as stream:
        stream.write(b"third\n")
    assert reader.get(file) == b"third\n"


def test_a_file_that_goes_while_it_is_parsed_is_given_all_the_same(file: Path) -> None:
    reader = Reader()
    reader.after = file.unlink
    assert reader.get(file) == b"first\n"
    assert len(reader.cache) == 0


# --- how often files are parsed, and what a hit costs -----------------------------------------


def test_a_hit_on_an_aged_file_costs_one_stat(file: Path) -> None:
    reader = Reader(clock=later)
    reader.get(file)
    reader.stats = reader.fstats = 0
    for _ in range(10):
        reader.get(file)
    assert (reader.stats, reader.fstats, len(reader.parsed)) == (10, 0, 1)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_hit_on_a_young_file_compares_its_content_and_parses_nothing(
    file: Path, granularity: int
) -> None:
    now = file.stat().st_mtime_ns  # the real one goes on: one pause, and the file has aged
    reader = Reader(granularity, clock=lambda: now)
    for _ in range(10):
        assert reader.get(file) == b"first\n"
    assert len(reader.parsed) == 1
    assert reader.fstats > 10


def test_a_young_file_is_compared_once_more_when_it_has_aged(file: Path) -> None:
    now = time.time_ns()
    reader = Reader(clock=lambda: now)
    reader.get(file)
    now = later()
    reader.get(file)
    reader.fstats = 0
    reader.get(file)
    assert (reader.fstats, len(reader.parsed)) == (0, 1)


def test_a_changed_time_means_one_parse(file: Path) -> None:
    reader = Reader()
    reader.get(file)
    touch(file)
    for _ in range(3):
        reader.get(file)
    assert len(reader.parsed) == 2


def test_all_who_wait_for_a_file_share_one_parse(file: Path) -> None:
    # was: 16 threads, 16 parses
    reader = Reader()
    is_begun, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        is_begun.set()
        assert may_end.wait(10)

    reader.before = wait
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(reader.get, file)
        assert is_begun.wait(10)
        # Each of the others takes its status before it waits.
        others = [pool.submit(reader.get, file) for _ in range(15)]
        reader.wait_for_stats(16)
        may_end.set()
        found = {future.result(10) for future in (first, *others)}
    assert found == {b"first\n"}
    assert len(reader.parsed) == 1


def test_an_error_of_the_parser_reaches_all_and_is_not_kept(file: Path) -> None:
    reader = Reader()
    is_begun, may_end = threading.Event(), threading.Event()

    def fail() -> None:
        is_begun.set()
        assert may_end.wait(10)
        raise ValueError("no good")

    reader.before = fail
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(reader.get, file)]
        assert is_begun.wait(10)
        futures += [pool.submit(reader.get, file) for _ in range(3)]
        reader.wait_for_stats(4)
        may_end.set()
        for future in futures:
            with pytest.raises(ValueError, match="no good"):
                future.result(10)
    reader.before = lambda: None
    assert reader.get(file) == b"first\n"


def test_different_files_are_parsed_at_the_same_time(tmp_path: Path) -> None:
    reader = Reader()
    barrier = threading.Barrier(2)
    reader.before = lambda: barrier.wait(10)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(reader.get, path) for path in made(tmp_path, 2)]
        assert sorted(future.result(10) for future in futures) == [b"  0", b"  1"]


def test_one_who_waits_for_what_is_out_of_date_parses_again(file: Path) -> None:
    reader = Reader(2 * SECOND)
    is_begun, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        is_begun.set()
        assert may_end.wait(10)

    reader.after = wait  # the old content has been read
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(reader.get, file)
        assert is_begun.wait(10)
        with file.open("r+b") as stream:
            stream.write(b"other\n")  # in the same tick, of the same size
        second = pool.submit(reader.get, file)
        reader.wait_for_stats(2)
        may_end.set()
        assert first.result(10) == b"first\n"
        assert second.result(10) == b"other\n"


def test_each_growth_costs_what_was_added(file: Path) -> None:
    reader = Reader(clock=later)
    reader.get(file)
    for _ in range(50):
        with file.open("ab") as stream:
            stream.write(b"more\n")
        assert reader.get(file) == file.read_bytes()
    assert (len(reader.parsed), reader.grown) == (1, 50)


# --- bounds ---------------------------------------------------------------------------------------


def test_what_was_not_asked_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    reader = Reader(max_entries=2)
    first, second, third = made(tmp_path, 3)
    for path in (first, second, first, third):
        reader.get(path)
    reader.parsed.clear()
    for path in (first, third, second):
        reader.get(path)
    assert reader.parsed == [second.name]


def test_fewer_entries_push_out_at_once(tmp_path: Path) -> None:
    reader = Reader()
    paths = made(tmp_path, 5)
    for path in paths:
        reader.get(path)
    reader.cache.set_max_entries(2)
    assert len(reader.cache) == 2
    reader.parsed.clear()
    reader.get(paths[4])
    reader.get(paths[3])
    assert reader.parsed == []


def test_without_entries_each_access_parses(file: Path) -> None:
    reader = Reader()
    reader.get(file)
    reader.cache.set_max_entries(0)
    assert len(reader.cache) == 0
    reader.get(file)
    reader.get(file)
    assert len(reader.parsed) == 3
    reader.cache.set_max_entries(1)
    reader.get(file)
    reader.get(file)
    assert len(reader.parsed) == 4


def test_a_negative_bound_is_refused(file: Path) -> None:
    # was: KeyError from an empty cache
    reader = Reader()
    reader.get(file)
    with pytest.raises(ValueError, match="non-negative, got -1"):
        reader.cache.set_max_entries(-1)
    assert len(reader.cache) == 1


def test_what_is_kept_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    # was: a file of 50 MB took 163 MiB and counted as one entry
    reader = Reader(max_bytes=1000)
    for number in range(10):
        path = tmp_path / str(number)
        path.write_bytes(bytes(300))
        reader.get(path)
        assert reader.cache.size <= 1000
    assert len(reader.cache) == 3
    large = tmp_path / "large"
    large.write_bytes(bytes(1001))
    assert len(reader.get(large)) == 1001
    assert len(reader.cache) == 3


def test_the_size_is_that_of_what_is_kept(file: Path) -> None:
    reader = Reader()
    for _ in range(5):
        with file.open("ab") as stream:
            stream.write(b"more\n")
        reader.get(file)
        assert reader.cache.size == file.stat().st_size
    reader.cache.clear()
    assert reader.cache.size == len(reader.cache) == 0


def test_going_through_everything_pushes_nothing_out(tmp_path: Path) -> None:
    # was: 250 files through 200 entries were parsed 250 times each time, and the open one went
    reader = Reader(max_entries=200)
    paths = made(tmp_path, 250)
    for path in paths[:150]:
        reader.get(path)
    for _ in range(2):
        reader.parsed.clear()
        for path in paths:
            reader.get(path, admit=False)
        assert len(reader.parsed) == 100
    reader.parsed.clear()
    for path in paths[:150]:
        reader.get(path)
    assert reader.parsed == []


def test_going_through_everything_keeps_up_with_what_is_kept(file: Path) -> None:
    reader = Reader()
    reader.get(file)
    file.write_bytes(b"other\n")
    assert reader.get(file, admit=False) == b"other\n"
    assert reader.get(file) == b"other\n"
    assert len(reader.parsed) == 2


def test_one_file_has_one_entry_whatever_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # was: two entries for a file and a link to it
    (tmp_path / "real").mkdir()
    path = tmp_path / "real" / "file"
    path.write_bytes(b"x")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path / "real")
    reader = Reader()
    for way in ("file", path, str(path), tmp_path / "real" / ".." / "real" / "file",
                tmp_path / "alias" / "file", tmp_path / "link"):  # fmt: skip
        assert reader.get(way) == b"x"
    assert len(reader.cache) == len(reader.parsed) == 1


def test_a_folder_is_left_to_the_parser(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Reader().get(tmp_path)


# --- sessions -------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that were parsed in full."""
    parsed: list[str] = []

    def counting(path: str) -> ParsedSession:
        parsed.append(path)
        return parse_session(path)

    monkeypatch.setattr(cache_module, "parse_session", counting)
    clear_cache()
    yield parsed
    set_max_entries(cache_module.DEFAULT_MAX_ENTRIES)
    clear_cache()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    clear_cache()
    with SessionJournal.create(tmp_path / "sessions", "one", durability="process") as journal:
        for index in range(5):
            journal.append(Chunk(index=index, kind="user", payload={"content": str(index)}))
    return Path(journal.path)


def texts(found: ParsedSession) -> list[str]:
    return [one.payload["content"] for one in found.records if isinstance(one, Chunk)]


def test_a_cached_session_is_what_parsing_gives(session: Path, counted: list[str]) -> None:
    found = get_cached_session(str(session))
    expected = parse_session(session)
    assert (found.id, found.header, found.is_closed) == ("one", expected.header, True)
    assert list(found.records) == list(expected.records)
    assert get_cached_session(session) is found
    assert found.journal().chunks == expected.journal().chunks
    assert counted == [str(session)]


def test_nobody_changes_what_others_get_from_the_cache(tmp_path: Path) -> None:
    with SessionJournal.create(tmp_path, "one", metadata={"of": ["header"]}) as journal:
        journal.append(Chunk(index=0, kind="user", payload={"content": "x", "l": [1, {"a": []}]}))
        journal.append(Run(run_id=1, code="1"))
        journal.append(Run(run_id=1, status="ok", displays=[]))
        journal.append(Foreign(record_type="x-mine", data={"l": []}))
    path = Path(journal.path)

    def spoil() -> None:
        found: Any = get_cached_session(path)
        for records in (found.records, found.records[:], [found.records[n] for n in range(5)]):
            records[1].payload["content"] = "poison"
            records[1].payload["l"][1]["a"].append("poison")
            records[3].displays.append("poison")
            records[4].data["l"].append("poison")
            for record in records:
                if isinstance(record, Chunk):
                    record.payload["l"].append("poison")
        found.header.metadata["of"].append("poison")
        folded: Any = found.journal()
        folded.header.metadata["poison"] = 1
        folded.runs[0].intent.displays.append("poison")
        folded.chunks[0].payload.clear()

    before = repr([*parse_session(path).records]), repr(parse_session(path).header)
    spoil()
    found = get_cached_session(path)
    assert (repr([*found.records]), repr(found.header)) == before
    assert "poison" not in repr(found.journal())


def test_a_session_is_parsed_by_what_the_module_names_at_the_time(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_cached_session(session)
    clear_cache()

    def other(path: str) -> dict[str, str]:
        return {"path": path}

    monkeypatch.setattr(cache_module, "parse_session", other)
    assert get_cached_session(session) == {"path": str(session)}
    clear_cache()


def test_a_relative_path_hits_what_an_absolute_one_left(
    session: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(session.parent)
    get_cached_session(session.name)
    get_cached_session(session.absolute())
    assert counted == [str(session)]


def test_a_touched_session_is_parsed_once_more(session: Path, counted: list[str]) -> None:
    get_cached_session(session)
    touch(session)
    get_cached_session(session)
    get_cached_session(session)
    assert len(counted) == 2


def test_bounds_and_clearing_reach_the_sessions(
    session: Path, tmp_path: Path, counted: list[str]
) -> None:
    copies = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for copy in copies:
        copy.write_bytes(session.read_bytes())
    set_max_entries(2)
    for copy in copies:
        get_cached_session(copy)
    get_cached_session(copies[0])
    assert [Path(path).name for path in counted] == ["0.jsonl", "1.jsonl", "2.jsonl", "0.jsonl"]
    clear_cache()
    get_cached_session(copies[0])
    assert len(counted) == 5
    with pytest.raises(ValueError, match="non-negative"):
        set_max_entries(-5)


def test_a_missing_session_is_an_error(tmp_path: Path, counted: list[str]) -> None:
    with pytest.raises(FileNotFoundError):
        get_cached_session(tmp_path / "none.jsonl")
    with pytest.raises(PersistenceError):
        parse_session(tmp_path / "none.jsonl")
    assert counted == []


def test_what_a_caller_does_cannot_reach_the_next_one(session: Path) -> None:
    # was: a dict, which one caller emptied for all
    found: Any = get_cached_session(session)
    for change in (
        lambda: setattr(found, "records", ()),
        lambda: setattr(found.header, "title", "x"),
        lambda: setattr(found.records[1], "index", 9),
        lambda: found.records.clear(),
        lambda: found.records.append(None),
        lambda: found.records.__setitem__(0, None),
    ):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            change()
    assert texts(get_cached_session(session)) == ["0", "1", "2", "3", "4"]


def live(folder: Path, count: int = 3) -> SessionJournal:
    clear_cache()
    journal = SessionJournal.create(folder, "live", durability="process")
    for index in range(count):
        journal.append(Chunk(index=index, kind="user", payload={"content": "x" * 1000}))
    return journal


def test_only_what_was_added_to_a_session_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # was: all of it, at any change
    journal = live(tmp_path, 3000)
    earlier = get_cached_session(journal.path)
    read = 0
    original = FileSystem.read

    def counting(self: FileSystem, file: int, size: int, offset: int) -> bytes:
        nonlocal read
        data = original(self, file, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr(FileSystem, "read", counting)
    for number in range(20):
        journal.append(Chunk(index=3000 + number, kind="user", payload={"content": "new"}))
        found = get_cached_session(journal.path)
        assert len(found.records) == 3002 + number
        assert texts(found)[-1] == "new"
    assert read < 10_000
    assert len(earlier.records) == 3001
    assert get_cached_session(journal.path).journal().last_seq == 3020
    journal.close()
    found = get_cached_session(journal.path)
    assert found.is_closed
    assert list(found.records) == list(parse_session(journal.path).records)


def test_what_tells_of_older_records_is_not_left_out(tmp_path: Path) -> None:
    with live(tmp_path) as journal:
        assert get_cached_session(journal.path).header.title is None
        journal.append(Patch(patch={"title": "new"}))
        assert get_cached_session(journal.path).header.title == "new"
        journal.append(Foreign(record_type="x-ours", data={"a": 1}))
        assert isinstance(get_cached_session(journal.path).records[-1], Foreign)
    closed = get_cached_session(journal.path)
    assert closed.is_closed
    with SessionJournal.reopen(tmp_path, "live") as journal:
        assert not get_cached_session(journal.path).is_closed
        assert get_cached_session(journal.path).path == Path(journal.path)


def test_a_line_that_is_half_written_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    with live(tmp_path) as journal:
        before = Path(journal.path).read_bytes()
        journal.append(Chunk(index=3, kind="user", payload={"content": "late"}))
        whole = Path(journal.path).read_bytes()
    path = tmp_path / "copy.jsonl"
    for cut in range(len(before), len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        found = get_cached_session(path)
        assert len(found.records) == 4
        assert len(found.problems) == (cut > len(before))
    path.write_bytes(whole)
    assert texts(get_cached_session(path))[-1] == "late"
    assert get_cached_session(path).problems == ()


def test_damage_in_what_was_added_is_told(tmp_path: Path) -> None:
    with live(tmp_path) as journal:
        path = tmp_path / "copy.jsonl"
        path.write_bytes(Path(journal.path).read_bytes())
    assert get_cached_session(path).problems == ()
    with path.open("ab") as stream:
        stream.write(b"\0\0\0\n")
    found = get_cached_session(path)
    assert (len(found.records), len(found.problems)) == (4, 1)


def test_a_reader_of_a_live_session_never_sees_it_shrink(tmp_path: Path) -> None:
    journal = live(tmp_path)
    is_over = threading.Event()

    def write() -> None:
        for index in range(300):
            journal.append(Chunk(index=3 + index, kind="user", payload={"content": "y" * 50}))
        is_over.set()

    def read() -> bool:
        seen = 0
        while True:
            last = is_over.is_set()
            found = get_cached_session(journal.path)
            assert [problem for problem in found.problems if not problem.is_accepted] == []
            assert len(found.records) >= seen
            seen = len(found.records)
            if last:
                return seen == 304

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        pool.submit(write).result(60)
        assert all(reader.result(60) for reader in readers)
    journal.close()


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"", 1),
        (b"\n\n \n", 1),
        (b"not json\n", 1),
        (b"\0" * 5000, 1),
        (b'[1]\n5\n"x"\nnull\n', 1),
        (b'{"record_type":"mystery"}\n', 1),
        (b"\xff\xfe\x00\n", 1),
        (b"[" * 20_000 + b"\n", 1),
        (b'{"record_type":"header"', 1),
    ],
)
def test_a_file_without_a_good_line_is_an_empty_session(
    tmp_path: Path, content: bytes, problems: int
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(content)
    found = parse_session(path)
    assert (found.id, len(found.records)) == ("odd", 0)
    assert len(found.problems) >= problems
    assert get_cached_session(path) == found


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"[1, 2]",
        b"\0" * 100,
        b'{"record_type":"mystery"}',
        b'{"record_type":"chunk","index":1,"kind":"user","payload":"text"}',
        b'{"record_type":"trailer","final_chunk_count":"many"}',
        b'{"record_type":"chunk","index":1,"kind":"user","payload":{"content":"\xff"}}',
    ],
)
def test_what_is_wrong_is_left_out_and_counted(tmp_path: Path, bad: bytes) -> None:
    # was: lines were dropped without a word, and bytes that are no text were altered
    header = b'{"record_type":"header","schema_version":1,"id":"x","created_at":"2025-01-01"}'
    good = b'{"record_type":"chunk","index":%d,"kind":"user","payload":{"content":"%d"}}'
    path = tmp_path / "old.jsonl"
    path.write_bytes(b"\n".join([header, good % (0, 0), bad, b"", good % (1, 1), b""]))
    found = parse_session(path)
    assert texts(found) == ["0", "1"]
    assert [problem.line for problem in found.problems] == [3]
    assert str(found.problems[0]).startswith(f"{path}:3: ")


@pytest.mark.parametrize("usage", ["many", [1], {"prompt_tokens": {}}, 5, None])
def test_odd_counts_of_tokens_are_no_error(tmp_path: Path, usage: Any) -> None:
    with SessionJournal.create(tmp_path, "odd") as journal:
        journal.close(cumulative_usage=usage)
    assert parse_session(journal.path).problems == ()


def test_a_newer_session_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    path.write_bytes(b'{"record_type":"header","schema_version":99,"id":"x","created_at":""}\n')
    with pytest.raises(SchemaVersionError):
        get_cached_session(path)


def test_records_stay_as_they_are_when_more_come() -> None:
    one, two, three = (Header(schema_version=2, id=name, created_at="") for name in "abc")
    records = Records([one])
    longer = records.and_more([two])
    other = records.and_more([three])  # the list behind the first ones is taken
    assert list(records) == [one]
    assert list(longer) == [one, two]
    assert list(other) == [one, three]
    assert longer[-1] == two
    assert longer[:1] == (one,)
    assert repr(longer) == "<2 records>"
    with pytest.raises(IndexError):
        records[1]
    with pytest.raises(IndexError):
        records[-2]
