"""The journal, next to plain system calls and openrath 2.0.0, which loading was modelled on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from timeit import timeit
from typing import TYPE_CHECKING

import pytest

from py_code_mode import FileStorage, InProcessExecutor, Session
from py_code_mode.environments.uv import run_uv_blocking
from py_code_mode.errors import EnvironmentFailed
from py_code_mode.journal.cache import clear_cache, get_cached_session
from py_code_mode.journal.chunks import ChunkRow, Transcript
from py_code_mode.journal.file_store import FileSessionStore
from py_code_mode.journal.index import INDEX_FILE, SessionIndex
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.manager import SessionManager
from py_code_mode.journal.persisted import SessionWriter, load_session
from py_code_mode.journal.records import (
    CURRENT_SCHEMA_VERSION,
    Chunk,
    Header,
    Record,
    Run,
    Trailer,
    encode,
)
from py_code_mode.journal.scan import search_sessions
from py_code_mode.journal.store import InMemorySessionStore
from py_code_mode.journal.turns import SessionRecord, TurnRecord
from py_code_mode.stores.log import seal

from ..memory import PEAK
from .report import summarised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .report import Report

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]

US = 1e6
OPENRATH = "openrath==2.0.0"
#: With its header and trailer, 20 records of the size that messages have.
MESSAGES = [f'{one}. "It" says:\n' + "Some text, as models write it.\n" * 24 for one in range(18)]

_CHILD = """
import json, sys, timeit
from rath.session.chunk import user_text_chunk
from rath.session.persistence.loader import load_session
from rath.session.persistence.writer import SessionWriter
from rath.session.session import Session
session = Session.from_user_message("")
with SessionWriter(session) as writer:
    for index, text in enumerate(json.loads(sys.argv[1])):
        writer.write_chunk(index, user_text_chunk(text))
assert len(load_session(session.id).chunk_table) == index + 1
print("ready", flush=True)
for line in sys.stdin:
    count = int(line)
    print(timeit.timeit(lambda: load_session(session.id), number=count) / count, flush=True)
"""


@pytest.fixture(scope="module")
def openrath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process that loads a session as often as it is told, and says how long that took."""
    folder = tmp_path_factory.mktemp("openrath")
    python = folder / "venv" / "bin" / "python"
    try:
        for arguments in (
            ("venv", "--python", sys.executable, str(folder / "venv")),
            ("pip", "install", "--python", str(python), OPENRATH),
        ):
            answer = run_uv_blocking(*arguments)
            if not answer.is_ok:
                pytest.skip(f"{OPENRATH} cannot be installed: {answer.stderr[-200:]}")
    except EnvironmentFailed as error:
        pytest.skip(f"{OPENRATH} cannot be installed: {error}")
    process = subprocess.Popen(
        [python, "-c", _CHILD, json.dumps(MESSAGES)],
        env={**os.environ, "OPENRATH_HOME": str(folder / "home")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def test_loading_a_session_of_20_records(
    report: Report,
    openrath: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PY_CODE_MODE_HOME", str(tmp_path))
    session = Transcript()
    with SessionWriter(session) as writer:
        for index, text in enumerate(MESSAGES):
            writer.write_chunk(index, ChunkRow.user(text))
    assert len(load_session(session.id).chunk_table) == len(MESSAGES)
    assert openrath.stdin is not None
    assert openrath.stdout is not None
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(16):
        openrath.stdin.write("300\n")
        theirs.append(float(openrath.stdout.readline()))
        ours.append(timeit(lambda: load_session(session.id), number=300) / 300)
    ratios = [one / other for one, other in zip(ours[1:], theirs[1:], strict=True)]
    report.add(
        summarised("load a session of 20 records / openrath", ratios, "x", bound=0.4),
        summarised("load a session of 20 records", ours[1:], "µs", scale=US),
        summarised("openrath: load as many", theirs[1:], "µs", scale=US),
    )


def live_session(folder: Path, count: int) -> SessionJournal:
    journal = SessionJournal.create(folder, durability="process")
    for index in range(count):
        journal.append(Chunk(index=index, kind="user", payload={"content": "x" * 800}))
    return journal


def test_reading_a_session_that_is_in_memory(report: Report, tmp_path: Path) -> None:
    clear_cache()
    with live_session(tmp_path, 20) as journal:
        pass
    path = journal.path
    # Until then its content is compared, as its times could not tell of a change.
    while time.time_ns() < os.stat(path).st_ctime_ns + 2.5e9:
        threading.Event().wait(0.1)
    get_cached_session(path)
    found = get_cached_session(path)
    stats: list[float] = []
    hits: list[float] = []
    for _ in range(16):
        stats.append(timeit(lambda: os.stat(path), number=20_000) / 20_000)
        hits.append(timeit(lambda: get_cached_session(path), number=20_000) / 20_000)
    assert get_cached_session(path) is found
    ratios = [one / other for one, other in zip(hits[1:], stats[1:], strict=True)]
    report.add(
        summarised("cached read of an aged session / os.stat", ratios, "x", bound=2),
        summarised("cached read of an aged session", hits[1:], "µs", scale=US),
        summarised("os.stat", stats[1:], "µs", scale=US),
    )


def test_reading_a_session_that_grew(report: Report, tmp_path: Path) -> None:
    clear_cache()
    sizes = {"small": 100, "large": 50_000}
    journals = {name: live_session(tmp_path, count) for name, count in sizes.items()}
    times: dict[str, list[float]] = {name: [] for name in sizes}
    for journal in journals.values():
        get_cached_session(journal.path)
    for number in range(600):
        for name, journal in journals.items():
            content = {"content": "x" * 800}
            journal.append(Chunk(index=sizes[name] + number, kind="user", payload=content))
            began = perf_counter()
            found = get_cached_session(journal.path)
            times[name].append(perf_counter() - began)
            assert len(found.records) == sizes[name] + number + 2
    for journal in journals.values():
        journal.abandon()
    blocks = {
        name: [sorted(all_of[at : at + 60])[30] for at in range(0, 600, 60)]
        for name, all_of in times.items()
    }
    ratios = [one / other for one, other in zip(blocks["large"], blocks["small"], strict=True)]
    report.add(
        summarised("read what was added to 47 MB / to 0.1 MB", ratios, "x", bound=1.5),
        summarised("read what was added to 47 MB", blocks["large"], "µs", scale=US, bound=200),
        summarised("read what was added to 0.1 MB", blocks["small"], "µs", scale=US),
    )


SESSIONS = 10_000
ROUNDS = 15
MS = 1e3


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten thousand closed sessions of five runs, of words that are rare, common, and inside others.

    Written without the journal, which syncs each.
    """
    folder = tmp_path_factory.mktemp("many") / "sessions"
    SessionJournal.create(folder, "first").close()
    chance = random.Random(1)
    words = [
        "".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 9))) for _ in range(3000)
    ]
    for number in range(SESSIONS - 1):
        stamp = datetime.fromtimestamp(number, UTC).isoformat()
        name = str(uuid.UUID(int=number))
        kept: list[Record] = [
            Header(schema_version=CURRENT_SCHEMA_VERSION, id=name, created_at=stamp)
        ]
        for run_id in range(1, 6):
            rare = "xneedlex" if number % 2000 == 7 else ""
            text = " ".join(chance.choices(words, k=30))
            kept.append(Run(run_id=run_id, code=f"{text} {rare} common"))
            kept.append(Run(run_id=run_id, status="ok", stdout=f"{text} 漢字検索"))
        kept.append(Trailer(closed_at=stamp, final_seq=len(kept) - 1, final_chunk_count=0))
        data = b"".join(seal(encode(one, seq=seq, ts=stamp)) for seq, one in enumerate(kept))
        (folder / f"{name}.jsonl").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def index(sessions: Path, report: Report) -> Iterator[SessionIndex]:
    """The index of them, as it is when it has been made some time ago."""
    with SessionIndex(sessions) as made:
        began = perf_counter()
        assert made.reconcile()
        took = perf_counter() - began
        report.add(summarised("Index of 10,000 sessions, made from nothing", [took], "s"))
        size = made.path.stat().st_size + made.path.with_name(f"{INDEX_FILE}-wal").stat().st_size
        report.add(summarised("Its size", [size / 1e6], "MB"))
        os.utime(sessions, (0, 0))
        made.reconcile()
        yield made


def rounds(call: Callable[[], object]) -> list[float]:
    call()
    return [timeit(call, number=1) for _ in range(ROUNDS)]


@pytest.mark.parametrize(
    ("query", "found"),
    [("xneedlex", 25), ("needle", 25), ("common", 50), ("字検索", 50), ("common needle", 25)],
)
def test_searching_ten_thousand_sessions(
    report: Report, index: SessionIndex, query: str, found: int
) -> None:
    assert len(index.search(query)) == found
    times = rounds(lambda: index.search(query))
    name = f"Search over 10,000 sessions for {query!r}"
    report.add(summarised(name, times, "ms", scale=MS, bound=5.0))


def test_searching_ten_thousand_sessions_without_an_index(report: Report, sessions: Path) -> None:
    times = [timeit(lambda: search_sessions(sessions, "needle"), number=1) for _ in range(3)]
    report.add(summarised("The same without an index", times, "ms", scale=MS))


def test_page_of_fifty_of_ten_thousand_sessions(report: Report, index: SessionIndex) -> None:
    assert len(index.page(50).sessions) == 50
    times = rounds(lambda: index.page(50))
    report.add(summarised("Page of 50 of 10,000 sessions", times, "ms", scale=MS, bound=2.0))


def test_page_in_the_middle_of_ten_thousand_sessions(report: Report, index: SessionIndex) -> None:
    cursor = f"{5000 * 1_000_000}~{uuid.UUID(int=5000)}"
    assert len(index.page(50, cursor).sessions) == 50
    times = rounds(lambda: index.page(50, cursor))
    report.add(summarised("Page of 50 in the middle", times, "ms", scale=MS, bound=2.0))


def test_search_after_a_live_session_has_grown(
    report: Report, index: SessionIndex, sessions: Path
) -> None:
    times: list[float] = []
    with SessionJournal.create(sessions, "live", durability="process") as journal:
        index.reconcile()
        os.utime(sessions, (0, 0))
        index.reconcile()
        for run_id in range(1, ROUNDS + 1):
            journal.append(Run(run_id=run_id, code=f"{run_id} growing"))
            began = perf_counter()
            assert len(index.search("growing")) == run_id
            times.append(perf_counter() - began)
    name = "Search after a live session has got one record"
    report.add(summarised(name, times, "ms", scale=MS))


@pytest.mark.anyio
async def test_recording_a_run(report: Report, tmp_path: Path) -> None:
    """One block of runs beside the other, first and second in turn: what both suffer is left out.

    Each block is long against the clocks' steps and short against what disturbs a machine.
    """
    storage = FileStorage(tmp_path)
    block = 20
    walls: dict[bool, list[float]] = {True: [], False: []}
    cpus: dict[bool, list[float]] = {True: [], False: []}  # of all threads, the syncing one too
    async with (
        Session(storage, InProcessExecutor(), record=True) as recorded,
        Session(storage, InProcessExecutor(), record=False) as plain,
    ):
        for session in (recorded, plain):
            for _ in range(50):
                await session.run("1 + 1")
        for number in range(150):
            for session in (recorded, plain) if number % 2 else (plain, recorded):
                wall, cpu = perf_counter(), process_time()
                for _ in range(block):
                    await session.run("1 + 1")
                walls[session is recorded].append((perf_counter() - wall) / block)
                cpus[session is recorded].append((process_time() - cpu) / block)

    def costs(times: dict[bool, list[float]]) -> list[float]:
        pairs = [one - other for one, other in zip(times[True], times[False], strict=True)]
        # the least of all differences tells nothing: the other side was disturbed
        return [median(pairs[at : at + 15]) for at in range(0, len(pairs), 15)]

    report.add(
        summarised("a run that is not recorded", walls[False], "µs", scale=US),
        summarised("recording it: processor time", costs(cpus), "µs", scale=US),
        summarised("recording it", costs(walls), "µs", scale=US, bound=60),
    )


@pytest.fixture(scope="module")
def gibibyte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the session ``large``, whose journal has 1 GiB and was not closed."""
    folder = tmp_path_factory.mktemp("gibibyte")
    journal = SessionJournal.create(folder, "large", durability="process")
    body = encode(Run(run_id=1, code="x" * 5_000), seq=0, ts="2026-01-01T00:00:00.000000Z")
    with Path(journal.path).open("ab") as file:
        for seq in range(1, (1 << 30) // len(body)):
            file.write(seal(body.replace(b'"seq":0', b'"seq":%d' % seq, 1)))
    path = Path(journal.path)
    journal.abandon()
    yield folder
    for left in folder.glob("large*"):
        left.unlink()
    assert not path.exists()


def test_reopening_a_journal_of_a_gibibyte(report: Report, gibibyte: Path) -> None:
    times: list[float] = []
    for _ in range(5):
        began = perf_counter()
        again = SessionJournal.reopen(gibibyte, "large", durability="process")
        times.append(perf_counter() - began)
        again.abandon()
    report.add(summarised("reopen a journal of 1 GiB", times, "ms", scale=MS, bound=20))


STREAMING = f"""{PEAK}
import json, sys, time
from py_code_mode.journal import find_journal, iter_records
from pathlib import Path

path = find_journal(Path(sys.argv[1]), "large").path
before, began = peak(), time.perf_counter()
count = sum(1 for _ in iter_records(path))
print(json.dumps([peak() - before, time.perf_counter() - began, count, path.stat().st_size]))
"""


def test_streaming_a_journal_of_a_gibibyte(report: Report, gibibyte: Path) -> None:
    peaks: list[float] = []
    rates: list[float] = []
    for _ in range(3):
        command = [sys.executable, "-c", STREAMING, str(gibibyte)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, took, count, size = json.loads(told)
        assert count > 200_000
        assert size > 0.99 * (1 << 30)
        peaks.append(peak / 1e6)
        rates.append(size / 1e6 / took)
    report.add(
        summarised("read all records of 1 GiB, one by one", rates, "MB/s", is_rate=True),
        summarised("the same: growth of memory at its peak", peaks, "MB", bound=64),
    )


def a_turn(number: int) -> TurnRecord:
    return TurnRecord(f"t{number}", "agent", MESSAGES[0][:100], MESSAGES[1][:200])


def turns_recorded(manager: SessionManager, workspace: str | None, count: int) -> float:
    session_id = manager.start_session(workspace).session_id
    turns = [a_turn(number) for number in range(count)]
    began = perf_counter()
    for turn in turns:
        manager.record_turn(session_id, turn)
    return perf_counter() - began


def test_recording_turns(report: Report, tmp_path: Path) -> None:
    files = SessionManager(FileSessionStore(tmp_path / "sessions"))
    memory = SessionManager(InMemorySessionStore())
    times: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)

    for _ in range(9):
        note("files", turns_recorded(files, None, 1000))
        note("three", turns_recorded(files, None, 3000))
        note("workspace", turns_recorded(files, "w", 1000))
        note("memory", turns_recorded(memory, None, 1000))
        file = os.open(tmp_path / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        line = b"x" * 600
        note("raw", timeit(lambda: os.write(file, line), number=1000))  # noqa: B023
        os.close(file)
    ratios = [one / two for one, two in zip(times["three"], times["files"], strict=True)]
    names = {
        "files": ("record a turn, 1000 of them", 40),
        "workspace": ("record a turn in a workspace", 40),
        "memory": ("record a turn in memory", None),
        "raw": ("floor: os.write of as many bytes", None),
    }
    report.add(
        *(
            summarised(name, times[key], "µs", scale=US / 1000, bound=bound)
            for key, (name, bound) in names.items()
        ),
        summarised("record 3000 turns / record 1000", ratios, "x", bound=3.5),
    )


def test_pages_of_stored_sessions(report: Report, tmp_path: Path) -> None:
    count = 10_000
    manager = SessionManager(FileSessionStore(tmp_path, durability="process"))
    for number in range(count):
        session_id = manager.start_session().session_id
        if number % 50 == 0:  # as many as may be live
            manager.record_turn(session_id, a_turn(number))
    cold: list[float] = []
    changed: list[float] = []
    warm: list[float] = []
    fresh = FileSessionStore(tmp_path)
    for _ in range(3):
        # As long ago as it is for most lists: a folder that has just changed is looked at again.
        os.utime(tmp_path, (time.time() - 10, time.time() - 10))
        fresh = FileSessionStore(tmp_path)
        cold.append(timeit(fresh.list_page, number=1))
        os.utime(tmp_path, (time.time() - 5, time.time() - 5))
        changed.append(timeit(fresh.list_page, number=1))
        page = fresh.list_page()
        for _ in range(40):
            began = perf_counter()
            page = fresh.list_page(50, page.cursor)
            warm.append(perf_counter() - began)
            assert len(page.sessions) == 50
    listed = [timeit(fresh.list_sessions, number=1) for _ in range(5)]
    ms = US / 1000
    report.add(
        summarised("a page of 50 out of 10,000 stored sessions", warm, "ms", scale=ms, bound=2),
        summarised("all their ids, in order", listed, "ms", scale=ms),
        summarised("the first page, all files read", cold, "ms", scale=ms),
        summarised("the next page after a file came or went", changed, "ms", scale=ms),
    )


def test_loading_a_stored_session(report: Report, tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path)
    turns = [a_turn(number) for number in range(20)]
    store.save_session(SessionRecord("saved", turns=turns))
    store.save_session(SessionRecord("recorded"))
    for turn in turns:
        store.append_record("recorded", turn, updated_at="2026-01-01")
    rows = [
        summarised(
            f"load a stored session of 20 turns, {name}",
            [timeit(lambda: store.load_session(name), number=200) / 200 for _ in range(7)],  # noqa: B023
            "µs",
            scale=US,
        )
        for name in ("saved", "recorded")
    ]
    report.add(*rows)
