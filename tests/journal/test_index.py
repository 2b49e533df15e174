"""The index of sessions: what it finds is what is in the journals, whatever becomes of it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from py_code_mode.journal import SessionIndex, SessionJournal, list_summaries, search_sessions
from py_code_mode.journal import index as module
from py_code_mode.journal.index import INDEX_FILE
from py_code_mode.journal.records import Call, Chunk, ErrorInfo, Event, Patch, Run, Turn
from py_code_mode.journal.scan import MAX_RESULTS
from py_code_mode.journal.words import MAX_QUERY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Words, parts of words, and what a query language would take for more than words.
ODD = [
    "can't", "file-name", "a AND b", '"', '""', "'", "col:x", "session_id:s", "NEAR(a b)", "*",
    "x*", "^x", "(", "a OR", "NOT", "-x", "+", "{a b}:c", "\\", "%", "_", "ß", "SS", "İ", "ﬁn", "K",
    "漢字検", "漢字", "漢", "é", "e\u0301", "\x00", "a\x00b", "\ud800", "𝔸", "🙂", "a\u2028b", "ΑΣ",
    "nan",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def index(folder: Path) -> Iterator[SessionIndex]:
    with SessionIndex(folder) as made:
        yield made


def write(folder: Path, name: str, *texts: str, created: float = 0.0, **header: Any) -> None:
    with SessionJournal.create(
        folder, name, durability="process", clock=lambda: created, **header
    ) as journal:
        for number, text in enumerate(texts, 1):
            journal.append(Run(run_id=number, code=text))
            journal.append(Run(run_id=number, status="ok", stdout="out"))


def found(hits: list[module.Hit]) -> list[tuple[str, int | None]]:
    return [(hit.session_id, hit.run_id) for hit in hits]


def test_words_are_found_inside_others_however_they_are_cased(
    folder: Path, index: SessionIndex
) -> None:
    write(folder, "one", "from_debrafishing()", "x = 1")
    write(folder, "two", "漢字検索", created=1.0)
    assert found(index.search("EBRAFIS")) == [("one", 1)]
    assert found(index.search("漢字検")) == [("two", 1)]
    assert found(index.search("字")) == [("two", 1)]
    assert found(index.search("x")) == [("one", 2)]
    assert index.search("nowhere") == []


def test_all_words_must_be_in_one_record(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", "alpha beta", "alpha", "beta")
    assert found(index.search("beta  alpha")) == [("one", 1)]


def test_newest_session_and_latest_run_come_first_and_a_run_is_found_once(
    folder: Path, index: SessionIndex
) -> None:
    write(folder, "old", "word word", "word", created=1.0)
    write(folder, "new", "word", "out", created=2.0)
    assert found(index.search("word")) == [("new", 1), ("old", 2), ("old", 1)]
    assert found(index.search("out")) == [("new", 2), ("new", 1), ("old", 2), ("old", 1)]


def test_hits_tell_where_and_show_some_text(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", "a " * 400 + "the needle is here " + "b " * 400)
    (hit,) = index.search("needle")
    assert (hit.record_type, hit.seq, hit.run_id) == ("run", 1, 1)
    assert "the needle is here" in hit.snippet
    assert len(hit.snippet) < 200
    assert hit.snippet[0] == hit.snippet[-1] == "…"


@pytest.mark.parametrize(
    "record",
    [
        Run(run_id=1, code="needle"),
        Run(run_id=1, status="ok", stdout="a needle"),
        Run(run_id=1, status="ok", stderr="a needle"),
        Run(run_id=1, status="ok", value={"a": ["needle"]}),
        Run(run_id=1, status="ok", value={"needle": 1}),
        Run(run_id=1, status="error", error=ErrorInfo(type="Needle", message="")),
        Run(run_id=1, status="ok", displays=[{"data": {"text/plain": "needle"}}]),
        Call(call_id="1", tool_name="tools.needle"),
        Call(call_id="1", tool_name="x", arguments={"args": [], "kwargs": {"q": "needle"}}),
        Call(call_id="1", tool_name="x", status="success", result="needle"),
        Turn(turn_id="1", prompt="needle?"),
        Turn(turn_id="1", response_content="needle!"),
        Chunk(kind="user", payload={"content": "needle"}, index=0),
        Event(kind="put", data={"name": "needle"}),
        Patch(patch={"title": "needle"}),
    ],
    ids=lambda record: record.record_type,
)
def test_everything_people_would_look_for_is_found(
    folder: Path, index: SessionIndex, record: Any
) -> None:
    with SessionJournal.create(folder, "one") as journal:
        journal.append(record)
    assert [hit.record_type for hit in index.search("NEEDLE")] == [record.record_type]
    assert index.search("needle") == search_sessions(folder, "needle")


def test_bytes_of_pictures_are_not_text(folder: Path, index: SessionIndex) -> None:
    with SessionJournal.create(folder, "one") as journal:
        journal.append(Run(run_id=1, status="ok", displays=[{"data": {"image/png": b"needle"}}]))
    assert index.search("bmVlZGxl") == search_sessions(folder, "bmVlZGxl") == []


@pytest.mark.parametrize("query", ["", "  \n", "x" * (MAX_QUERY + 1)])
def test_query_that_is_empty_or_too_long_is_refused(folder: Path, query: str) -> None:
    with SessionIndex(folder) as index, pytest.raises(ValueError, match="query"):
        index.search(query)
    with pytest.raises(ValueError, match="query"):
        search_sessions(folder, query)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "5", None, True])
def test_limit_that_is_no_number_above_0_is_refused(folder: Path, limit: Any) -> None:
    with SessionIndex(folder) as index:
        for call in (lambda: index.search("x", limit), lambda: index.page(limit)):
            with pytest.raises(ValueError, match="limit"):
                call()


def test_search_stops_at_the_limit(folder: Path, index: SessionIndex) -> None:
    for number in range(5):
        write(folder, f"s{number}", *["word"] * 3, created=number)
    assert len(index.search("word", 4)) == 4
    assert index.search("word", 4) == search_sessions(folder, "word", 4)
    assert len(index.search("word", MAX_RESULTS * 10)) == 15


def test_limit_has_a_cap(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", *["word"] * (MAX_RESULTS + 5))
    assert len(index.search("word", 100_000)) == MAX_RESULTS
    assert len(search_sessions(folder, "word", 100_000)) == MAX_RESULTS


def test_nothing_is_made_where_there_are_no_sessions(folder: Path, index: SessionIndex) -> None:
    assert index.search("word") == []
    assert index.page().sessions == ()
    assert not folder.exists()


texts = st.lists(
    st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.text("abcAB ", max_size=12)),
    max_size=5,
).map(" ".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sessions=st.lists(st.lists(texts, max_size=3), max_size=4),
    queries=st.lists(texts, min_size=3, max_size=8),
    limit=st.integers(1, 6),
)
def test_index_finds_what_reading_finds(
    tmp_path_factory: pytest.TempPathFactory,
    sessions: list[list[str]],
    queries: list[str],
    limit: int,
) -> None:
    folder = tmp_path_factory.mktemp("any") / "sessions"
    for number, runs in enumerate(sessions):
        write(folder, f"s{number}", *runs, created=number % 3)
    words = [word for runs in sessions for run in runs for word in run.split()]
    with SessionIndex(folder) as index:
        assert not sessions or index.reconcile()
        for query in [*queries, *ODD, *words, *(word[1:4] for word in words)]:
            if query.split() and module.fold(query).split():
                assert index.search(query, limit) == search_sessions(folder, query, limit), query
        assert index.page(limit) == list_summaries(folder, limit)


@pytest.mark.parametrize("query", ODD)
def test_what_looks_like_syntax_is_text(folder: Path, index: SessionIndex, query: str) -> None:
    write(folder, "one", f"before {query} after", "something else")
    assert found(index.search(query)) == found(search_sessions(folder, query))
    if module.fold(query).split():
        assert ("one", 1) in found(index.search(query))


def test_what_a_live_session_adds_is_found_at_once(folder: Path, index: SessionIndex) -> None:
    with SessionJournal.create(folder, "live") as journal:
        journal.append(Run(run_id=1, code="first"))
        assert found(index.search("first")) == [("live", 1)]
        journal.append(Run(run_id=2, code="second"))
        assert found(index.search("second")) == [("live", 2)]
        assert index.add("live")
    assert found(index.search("second")) == [("live", 2)]
    assert index.page().sessions[0].is_closed
    with SessionJournal.reopen(folder, "live") as journal:
        journal.append(Run(run_id=3, code="third"))
    assert found(index.search("third")) == [("live", 3)]
    assert found(index.search("first")) == [("live", 1)]


def test_only_what_is_new_is_read(
    folder: Path, index: SessionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = module.LogReader.lines

    def lines(self: Any, start: int = 0, end: int | None = None) -> Any:
        read.append(start)
        return real(self, start, end)

    with SessionJournal.create(folder, "live") as journal:
        journal.append(Run(run_id=1, code="first " * 1000))
        index.reconcile()
        size = journal.size
        monkeypatch.setattr(module.LogReader, "lines", lines)
        journal.append(Run(run_id=2, code="second"))
        index.reconcile()
        index.reconcile()
    # and what `meta` looks at
    assert [start for start in read if start == size] == [size]


def test_removed_and_replaced_sessions_are_forgotten(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", "gone")
    write(folder, "two", "kept", created=1.0)
    assert len(index.search("gone")) == 1
    (folder / "one.jsonl").unlink()
    assert index.search("gone") == []
    assert b"gon" not in index.path.read_bytes()  # their text neither
    (folder / "two.jsonl").unlink()
    write(folder, "two", "other", created=1.0)
    assert found(index.search("other")) == [("two", 1)]
    assert index.search("kept") == []


def test_older_sessions_that_turn_up_later_are_in_their_place(
    folder: Path, index: SessionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GAP", 4)  # so that rows run out
    write(folder, "new", *["word"] * 20, created=100.0)
    index.reconcile()
    for number in range(12):
        write(folder, f"s{number}", "word", created=50.0 - number)
        assert index.search("word", 500) == search_sessions(folder, "word", 500)
    with SessionJournal.reopen(folder, "s3") as journal:
        for number in range(2, 20):
            journal.append(Run(run_id=number, code="word"))
            assert index.search("word", 500) == search_sessions(folder, "word", 500)


def damage(kind: str, path: Path) -> None:
    data = path.read_bytes()
    match kind:
        case "deleted":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "no database":
            path.write_bytes(b"garbage" * 1000)
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "cut in a page":
            path.write_bytes(data[: len(data) - 1000])
        case "wrong bits":
            wrong = bytearray(data)
            for place in range(5000, len(data), 700):
                wrong[place] ^= 1
            path.write_bytes(wrong)
        case "wrong bits and the old time":
            status = path.stat()
            damage("wrong bits", path)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "overwritten":
            path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
        case "older":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA user_version = 0")
        case "newer":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA user_version = 99")
        case "without tables":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("DROP TABLE places")
        case "a link":
            path.rename(path.with_name("target"))
            path.symlink_to("target")
        case _:
            path.unlink()
            path.mkdir()


DAMAGES = ["deleted", "empty", "no database", "truncated", "cut in a page", "overwritten", "older",
           "newer", "without tables", "a link", "a folder"]  # fmt: skip
#: What nobody can tell while it is in use: SQLite keeps no checksums.
UNSEEN = ["wrong bits", "wrong bits and the old time"]


@pytest.mark.parametrize(
    ("kind", "is_open"),
    [(kind, False) for kind in [*DAMAGES, *UNSEEN]] + [(kind, True) for kind in DAMAGES],
)
def test_index_that_is_no_good_changes_no_result(folder: Path, kind: str, is_open: bool) -> None:
    for number in range(20):
        write(folder, f"s{number}", f"word {number}", "more words", created=number)
    with SessionIndex(folder) as index:
        assert index.reconcile()
        if not is_open:
            index.close()
        elif kind not in ("deleted", "a link", "a folder"):
            # what is in use is not written over by others: it is exchanged
            index.path.with_name("copy").write_bytes(index.path.read_bytes())
            index.path.with_name("copy").replace(index.path)
        damage(kind, folder / INDEX_FILE)
        for query in ("word", "more", "or", "word 7"):
            assert index.search(query) == search_sessions(folder, query)
        assert index.page(5) == list_summaries(folder, 5)
        write(folder, "later", "word", created=99.0)
        assert index.search("word")[0].session_id == "later"


def test_index_that_is_locked_is_left_out(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", "word")
    assert index.reconcile()
    with closing(sqlite3.connect(index.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        write(folder, "two", "word", created=1.0)
        assert found(index.search("word")) == [("two", 1), ("one", 1)]
        assert not index.reconcile()
        assert len(index.page().sessions) == 2
        other.execute("ROLLBACK")
    assert index.reconcile()


def test_folder_that_cannot_be_written_is_searched_all_the_same(
    folder: Path, index: SessionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "one", "word")

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "open", refuse)
    assert not index.reconcile()
    monkeypatch.undo()
    assert found(index.search("word")) == [("one", 1)]


def test_sqlite_without_trigrams_is_no_error(
    folder: Path, index: SessionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "one", "word")
    monkeypatch.setattr(module, "_TABLES", module._TABLES.replace("trigram", "none_such"))  # pyright: ignore[reportPrivateUsage]
    assert found(index.search("word")) == [("one", 1)]
    assert not index.reconcile()


@pytest.mark.parametrize("kind", ["nfs4", "ext4"])
def test_write_ahead_log_is_used_where_no_other_machine_has_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "_is_networked", lambda _folder: kind == "nfs4")  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    write(folder, "one", "word")
    with SessionIndex(folder) as index:
        assert len(index.search("word")) == 1
        assert (folder / f"{INDEX_FILE}-wal").exists() == (kind == "ext4")


def test_index_that_was_killed_in_use_is_used_again(folder: Path) -> None:
    write(folder, "one", "word")
    script = (
        "import os, sys; from py_code_mode.journal import SessionIndex\n"
        "index = SessionIndex(sys.argv[1]); assert index.search('word'); os._exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], timeout=60, check=False)
    assert done.returncode == 7
    before = (folder / INDEX_FILE).stat().st_ino
    with SessionIndex(folder) as index:
        assert len(index.search("word")) == 1
        assert index.path.stat().st_ino == before
    with SessionIndex(folder) as index:
        assert len(index.search("word")) == 1
        assert index.path.stat().st_ino == before


def test_index_is_for_its_owner_only(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", "word")
    index.search("word")
    for path in folder.glob(f"{INDEX_FILE}*"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_damaged_session_hides_no_other(folder: Path, index: SessionIndex) -> None:
    write(folder, "good", "word")
    write(folder, "bad", "word", "word two", created=1.0)
    path = folder / "bad.jsonl"
    data = bytearray(path.read_bytes())
    data[data.index(b"word two") - 5] ^= 1
    path.write_bytes(data)
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "newer.jsonl").write_bytes(
        json.dumps({"record_type": "header", "schema_version": 99, "id": "newer"}).encode() + b"\n"
    )
    assert found(index.search("word")) == [("bad", 1), ("good", 1)]
    assert index.search("word") == search_sessions(folder, "word")
    page = index.page()
    assert page == list_summaries(folder)
    assert {each.session_id for each in page.sessions} == {"good", "bad"}
    assert set(page.unreadable) == {"empty", "newer"}


def test_pages_follow_each_other_to_the_end(folder: Path, index: SessionIndex) -> None:
    for number in range(7):
        write(folder, f"s{number}", created=number // 2, workspace_id=f"w{number % 2}")
    names: list[str] = []
    cursor = None
    while True:
        page = index.page(3, cursor)
        assert page == list_summaries(folder, 3, cursor)
        names += [each.session_id for each in page.sessions]
        cursor = page.cursor
        if cursor is None:
            break
    assert names == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]
    odd = index.page(workspace_id="w1")
    assert [each.session_id for each in odd.sessions] == ["s5", "s3", "s1"]
    assert odd == list_summaries(folder, workspace_id="w1")


@pytest.mark.parametrize("cursor", ["", "x", "1", "~", "a~b", 5, f"{'9' * 30}~x"])
def test_cursor_of_nobody_is_refused(folder: Path, cursor: Any) -> None:
    with SessionIndex(folder) as index, pytest.raises(ValueError, match="cursor"):
        index.page(5, cursor)


def test_threads_share_an_index(folder: Path, index: SessionIndex) -> None:
    for number in range(10):
        write(folder, f"s{number}", "word", created=number)
    results: list[int] = []

    def search() -> None:
        for _ in range(5):
            results.append(len(index.search("word")))  # noqa: PERF401 - one by one

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [10] * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_opens_its_own(folder: Path, index: SessionIndex) -> None:
    write(folder, "one", "word")
    assert index.reconcile()
    child = os.fork()
    if not child:
        os._exit(len(index.search("word")) if index.reconcile() else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert found(index.search("word")) == [("one", 1)]


def test_two_indexes_of_a_folder_agree(folder: Path) -> None:
    with SessionIndex(folder) as first, SessionIndex(folder) as second:
        for number in range(5):
            write(folder, f"s{number}", "word", created=number)
            assert first.search("word") == second.search("word")
        assert first.rebuild()
        assert first.search("word") == second.search("word")


def searched(index: SessionIndex) -> object:
    return index.search("word")


@pytest.mark.parametrize("call", [searched, SessionIndex.page])
def test_journal_that_is_closed_meanwhile_is_found(
    folder: Path, index: SessionIndex, monkeypatch: pytest.MonkeyPatch,
    call: Callable[[SessionIndex], object],
) -> None:  # fmt: skip
    journal = SessionJournal.create(folder, "live")
    journal.append(Run(run_id=1, code="word"))
    index.reconcile()
    real = module.LogReader
    opened: list[object] = []

    def reader(path: Any, **kwargs: Any) -> Any:
        if not opened:
            opened.append(path)
            journal.close()
        return real(path, **kwargs)

    monkeypatch.setattr(module, "LogReader", reader)
    call(index)
    monkeypatch.undo()
    journal.close()
    assert found(index.search("word")) == [("live", 1)]
