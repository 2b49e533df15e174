"""Recorded sessions by id: seed 004, and what its original got wrong.

Files of version 1, as the original wrote them, are written by hand here.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from py_code_mode.errors import (
    JournalWriteError,
    LineageConsistencyError,
    PersistenceError,
    SchemaVersionError,
    SessionExistsError,
    SessionLockedError,
)
from py_code_mode.journal import persisted
from py_code_mode.journal.chunks import (
    ChunkKind,
    ChunkRow,
    ChunkTable,
    SandboxSpec,
    TokenUsage,
    Transcript,
)
from py_code_mode.journal.journal import SessionJournal
from py_code_mode.journal.lineage import LineageKind
from py_code_mode.journal.paths import session_file, session_partial_file, sessions_dir
from py_code_mode.journal.persisted import (
    PersistedSession,
    PersistedSessionMeta,
    SessionWriter,
    delete_session,
    list_persisted_sessions,
    load_session,
    prune_sessions,
)
from py_code_mode.journal.records import Chunk, Trailer, encode
from py_code_mode.stores.files import FileSystem
from py_code_mode.stores.log import seal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ID = UUID("6f1f7a52-6a0e-4b8c-9a3d-0b6f4f1f7a52")
OTHER = UUID("0e4e7e0c-53a5-4b4e-8a39-9d6c1d0f2b11")
HANDLE = "9c0f2f5e-7a43-4a4c-8a8e-3f3d5c1b2a10"
DAY = timedelta(days=1)
ODD_TEXTS = [
    "line\u2028paragraph\u2029next\u0085line",
    "nul\0 tab\t feed\x0c file\x1c group\x1d record\x1e unit\x1f",
    "lone \ud800 surrogate",
    "emoji 😀 and \ufeff and e\u0301 and \r\n",
    '{"record_type": "trailer"}\n',
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PY_CODE_MODE_HOME", str(tmp_path))
    return tmp_path


def header(session_id: UUID | str = ID, **fields: Any) -> dict[str, Any]:
    """A header as the original wrote it."""
    return {
        "record_type": "header",
        "schema_version": 1,
        "id": str(session_id),
        "created_at": "2025-03-04T05:06:07.000008+00:00",
        "parent_session_ids": [],
        "lineage_operator": "implicit",
        "lineage_kind": "unknown",
        "lineage_extras": [],
        "sandbox_backend": None,
        "sandbox_spec": None,
        "sandbox_handle_id": None,
        **fields,
    }


def chunk(index: int, content: Any = "hello", kind: str = "user", **fields: Any) -> dict[str, Any]:
    payload = {"content": content}
    return {"record_type": "chunk", "index": index, "kind": kind, "payload": payload, **fields}


def trailer(count: int, **fields: Any) -> dict[str, Any]:
    return {
        "record_type": "trailer",
        "closed_at": "2025-03-04T05:07:07+00:00",
        "final_chunk_count": count,
        "cumulative_usage": None,
        **fields,
    }


def line(record: Any) -> str:
    """As the original wrote it: raw characters, no checksum."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def old_file(*records: Any, path: Path | None = None, tail: str = "") -> Path:
    target = session_file(ID) if path is None else path
    target.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(map(line, records)) + tail
    target.write_bytes(text.encode("utf-8", "surrogatepass"))
    return target


def write(
    session: Transcript | None = None, texts: list[str] | None = None, *, closes: bool = True
) -> Transcript:
    """A session of today on the disk."""
    session = session or Transcript(id=ID)
    writer = SessionWriter(session, durability="process")
    for index, text in enumerate(["a", "b", "c"] if texts is None else texts):
        writer.write_chunk(index, ChunkRow.user(text))
    if closes:
        writer.close()
    else:
        writer.abandon()
    return session


def contents(loaded: PersistedSession) -> list[Any]:
    return [row.payload["content"] for row in loaded.chunk_table]


def forked(parent: UUID, child: UUID = OTHER, *, seq: int = 1) -> None:
    """A session that has its past from another one by reference."""
    point = {"id": str(parent), "seq": seq}
    SessionJournal.create(sessions_dir(), str(child), fork_point=point).close()


# --- load ---------------------------------------------------------------------------------------


def test_a_file_of_the_original_loads() -> None:
    path = old_file(
        header(
            parent_session_ids=[str(OTHER), "no uuid", None, 5],
            lineage_operator="Session.fork",
            lineage_kind="op_fork",
            lineage_extras=[["source", "x"], ["n", [1, {"$float": "nan"}]], ["odd"], 5, [1, 2]],
            sandbox_backend="opensandbox",
            sandbox_spec={
                "image": "python",
                "entrypoint": ["sh"],
                "env": {"A": "b"},
                "timeout_seconds": 1.5,
                "working_dir": "/w",
            },
            sandbox_handle_id=HANDLE,
        ),
        chunk(0, "be brief", "system"),
        chunk(1, "hi"),
        {
            "record_type": "chunk",
            "index": 2,
            "kind": "assistant",
            "payload": {
                "content": None,
                "tool_calls": [{"id": "c1", "function": {"name": "ls", "arguments": "{}"}}],
            },
        },
        chunk(3, {"$bytes": "not ours", "big": 2**70}, "tool_result"),
        trailer(4, cumulative_usage={"prompt_tokens": 7, "total_tokens": 9}, note="kept"),
    )
    found = load_session(ID)
    assert found.path == path.absolute()
    assert found.closed
    assert found.header.id == ID
    assert found.header.created_at == datetime(2025, 3, 4, 5, 6, 7, 8, UTC)
    assert found.header.parent_session_ids == (OTHER,)
    assert found.header.lineage_operator == "Session.fork"
    assert found.header.lineage_kind is LineageKind.OP_FORK
    assert found.header.lineage_extras == (("source", "x"), ("n", [1, {"$float": "nan"}]))
    assert found.header.sandbox_backend == "opensandbox"
    assert found.header.sandbox_spec == SandboxSpec(
        image="python",
        entrypoint=("sh",),
        env={"A": "b"},
        timeout=timedelta(seconds=1.5),
        working_dir="/w",
    )
    assert found.header.sandbox_handle_id == HANDLE
    assert [row.kind for row in found.chunk_table] == list(ChunkKind)
    assert found.chunk_table[2].payload["tool_calls"][0]["function"]["name"] == "ls"
    assert found.chunk_table[3].payload["content"] == {"$bytes": "not ours", "big": 2**70}
    assert found.cumulative_usage == TokenUsage(prompt_tokens=7, total_tokens=9)
    assert found.trailer_raw is not None
    assert found.trailer_raw["note"] == "kept"
    assert found.problems == ()
    assert load_session(str(ID)) == load_session(ID.hex) == found


def test_a_session_of_today_comes_back_as_it_was_written() -> None:
    session = Transcript(
        id=ID,
        sandbox_backend="subprocess",
        sandbox_spec=SandboxSpec(image="x", timeout=timedelta(seconds=2), options={"policy": {}}),
        sandbox_handle_id=UUID(HANDLE),
        parent_session_ids=(OTHER,),
        lineage_operator="merge",
        lineage_kind=LineageKind.OP_MERGE,
        lineage_extras=(("why", ("because", b"of it")),),
        cumulative_usage=TokenUsage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
    )
    payload = {"content": None, "n": float("inf"), "t": (1, {2}), "b": b"\0", "$odd": [2**80]}
    rows = (ChunkRow.system("p"), ChunkRow(ChunkKind.TOOL_RESULT, payload))
    with SessionWriter(session) as writer:
        for index, row in enumerate(rows):
            writer.write_chunk(index, row)
    found = load_session(ID)
    assert found.chunk_table.rows == rows
    assert found.to_transcript() == Transcript(
        id=ID,
        chunk_table=ChunkTable(rows),
        sandbox_backend="subprocess",
        sandbox_spec=session.sandbox_spec,
        sandbox_handle_id=UUID(HANDLE),
        parent_session_ids=(OTHER,),
        lineage_operator="merge",
        lineage_kind=LineageKind.OP_MERGE,
        lineage_extras=session.lineage_extras,
        cumulative_usage=session.cumulative_usage,
    )
    assert found.closed
    assert found.trailer_raw is not None
    assert found.trailer_raw["final_chunk_count"] == 2


def test_the_closed_file_is_read_before_the_open_one_and_a_path_before_both(
    tmp_path: Path,
) -> None:
    with pytest.raises(PersistenceError, match="persisted session file not found"):
        load_session(ID)
    old_file(header(), chunk(0, "open"), path=session_partial_file(ID))
    found = load_session(ID)
    assert (found.closed, contents(found)) == (False, ["open"])
    old_file(header(), chunk(0, "open"), trailer(1))
    assert load_session(ID).closed
    path = old_file(header(OTHER), chunk(0, "elsewhere"), path=tmp_path / "any.name")
    found = load_session(ID, path=path)
    assert (found.header.id, contents(found)) == (OTHER, ["elsewhere"])
    with pytest.raises(PersistenceError, match="persisted session file not found"):
        load_session(ID, path=tmp_path / "missing.jsonl")
    with pytest.raises(PersistenceError, match="persisted session file not found"):
        load_session(ID, path=tmp_path)


@pytest.mark.parametrize("session_id", ["", "../evil", "a", f"{ID}x"])
@pytest.mark.parametrize("function", [load_session, delete_session, SessionWriter.reopen])
def test_an_id_that_is_no_uuid_is_refused(
    function: Callable[[str], object], session_id: str
) -> None:
    with pytest.raises(ValueError, match="session_id must be a UUID"):
        function(session_id)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_last_line_without_an_end_is_left_out(cut: int) -> None:
    # was: UnicodeDecodeError where the cut was inside a character
    whole = line(chunk(1, "😀é漢")).encode()
    path = old_file(header(), chunk(0))
    path.write_bytes(path.read_bytes() + whole[: len(whole) - cut])
    found = load_session(ID)
    assert contents(found) == ["hello"]
    assert not found.closed
    assert found.trailer_raw is found.cumulative_usage is None
    assert [meta.chunk_count for meta in list_persisted_sessions()] == [1]
    assert [problem.is_accepted for problem in found.problems] == [True]


@pytest.mark.parametrize(
    ("records", "tail", "text"),
    [
        ([header()], '{"record_type": chunk}\n', r":2: invalid JSON"),
        ([header()], "\x00\x00\x00\n", r":2: invalid JSON"),
        ([header(), [1, 2]], "", r":2: .*must be a JSON object, got list"),
        ([header(), 5], "", r":2: .*must be a JSON object, got int"),
        ([header(), header()], "", ":2: duplicate header"),
        ([chunk(0), header()], "", ":1: .*chunk record before header"),
        ([header(), {"record_type": "mystery"}], "", ":2: .*unknown record_type='mystery'"),
        ([header(), {"index": 1}], "", ":2: .*unknown record_type=None"),
        ([], "", "no header record found"),
        ([], "\n\n", "no header record found"),
        ([], '{"record_type": "hea', "no header record found"),
        ([header(), chunk(0, kind="poet")], "", ":2: .*poet"),
        ([header(), {**chunk(0), "payload": "text"}], "", ":2: .*payload"),
        ([header(), {**chunk(0), "payload": None}], "", ":2: .*payload"),
        ([header("no uuid")], "", "malformed header record: session_id must be a UUID"),
        ([header(created_at="yesterday")], "", "malformed header record"),
        ([header(created_at=None)], "", "created_at"),
        ([{**header(), "id": 5}], "", "id"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_the_line(
    records: list[Any], tail: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = old_file(*records, tail=tail)
    before = path.read_bytes()
    with pytest.raises(PersistenceError, match=text) as caught:
        load_session(ID)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is not None
    old_file(header(OTHER), path=session_file(OTHER))
    found = list_persisted_sessions()
    assert OTHER in [meta.id for meta in found]
    assert prune_sessions(older_than=timedelta()) == [OTHER]
    assert path.read_bytes() == before
    assert any(str(ID) in record.message for record in caplog.records)


def test_the_column_of_bad_json_is_told() -> None:
    old_file(header(), tail='{"a": \n')
    with pytest.raises(PersistenceError, match=r":2: invalid JSON \(col \d+\)"):
        load_session(ID)


def test_blank_lines_and_foreign_line_ends_are_no_errors() -> None:
    text = "\ufeff" + line(header()) + "\n  \n" + line(chunk(0)) + "\n"
    path = session_file(ID)
    path.parent.mkdir()
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert contents(load_session(ID)) == ["hello"]


def test_bytes_that_are_no_text_are_an_error_of_ours() -> None:
    path = old_file(header())
    path.write_bytes(path.read_bytes() + b'{"record_type": "\xff\xfe"}\n')
    with pytest.raises(PersistenceError, match=":2: "):
        load_session(ID)
    assert len(list_persisted_sessions()) <= 1


@pytest.mark.parametrize("kind", ["op_from_tomorrow", "", "UNKNOWN"])
def test_an_unknown_kind_of_lineage_reads_as_unknown(kind: str) -> None:
    old_file(header(lineage_kind=kind))
    assert load_session(ID).header.lineage_kind is LineageKind.UNKNOWN


def test_a_time_without_a_zone_is_utc() -> None:
    old_file(header(created_at="2025-03-04T05:06:07"))
    expected = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert load_session(ID).header.created_at == expected
    assert [meta.created_at for meta in list_persisted_sessions()] == [expected]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_comes_back_from_a_file_of_today(text: str) -> None:
    # was: U+2028 bricked the session, a lone surrogate lost the turn
    write(texts=[text, text])
    assert contents(load_session(ID)) == [text, text]
    assert session_file(ID).read_bytes().count(b"\n") == 4
    assert not {"\u2028", "\u2029", "\x85"} & set(session_file(ID).read_text("utf-8"))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_comes_back_from_a_file_of_the_original(text: str) -> None:
    old_file(header(), chunk(0, text), trailer(1))
    if "\ud800" in text:  # which is what the original could not write
        session_file(ID).write_text(
            "".join(json.dumps(one) + "\n" for one in (header(), chunk(0, text), trailer(1)))
        )
    assert contents(load_session(ID)) == [text]
    assert [meta.chunk_count for meta in list_persisted_sessions()] == [1]


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("texts", [[], ["a"], [*ODD_TEXTS, "$5", '"$5"'], ["x" * 60_000] * 30])
def test_the_quick_way_and_the_long_way_give_the_same(
    texts: list[str], closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Transcript(
        id=ID,
        lineage_kind=LineageKind.OP_MERGE,
        lineage_extras=(("a", 1),),
        cumulative_usage=TokenUsage(total_tokens=3),
        sandbox_spec=SandboxSpec(image="x"),
    )
    write(session, texts, closes=closes)
    found = load_session(ID)
    assert contents(found) == texts
    by_path = load_session(ID, path=found.path)
    monkeypatch.setattr(persisted, "_plain", no_quick_way)
    assert load_session(ID) == found == by_path
    assert load_session(ID).trailer_raw == found.trailer_raw


def no_quick_way(*_: object) -> None:
    return None


# --- what the records say of each other -----------------------------------------------------------


def sealed(record: Chunk | Trailer, seq: int) -> bytes:
    return seal(encode(record, seq=seq, ts="2026-01-01T00:00:00Z"))


NEW = Chunk(index=3, kind="user", payload={"content": "new"})


@pytest.mark.parametrize(
    "lines",
    [
        (0, 2, 3, 4),
        (0, 1, 3, 4),
        (0, 1, 3, 2, 4),
        (0, 1, 2, 3, 4, sealed(NEW, 5)),
        (0, 1, 2, 3, sealed(NEW, 3), 4),
        (0, 1, 2, sealed(NEW, 3), sealed(NEW, 4), 4),
        (0, 1, 2, 3, line(chunk(3)).encode(), 4),
        (0, 1, 2, 3, sealed(Trailer(final_seq=3, final_chunk_count=4), 4)),
        (0, 1, 2, 3, sealed(Trailer(final_seq=2, final_chunk_count=3), 4)),
        (1, 2, 3, 4),
    ],
)
def test_a_file_of_today_that_does_not_add_up_is_an_error(lines: tuple[int | bytes, ...]) -> None:
    # was: a chunk less loaded as closed, and so did duplicates and chunks after the trailer
    write()
    path = session_file(ID)
    written = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(written[one] if isinstance(one, int) else one for one in lines))
    with pytest.raises(PersistenceError):
        load_session(ID)
    assert prune_sessions(older_than=-DAY) == []


def test_a_line_of_today_that_was_altered_is_an_error() -> None:
    write()
    path = session_file(ID)
    path.write_bytes(path.read_bytes().replace(b'"content":"b"', b'"content":"B"'))
    with pytest.raises(PersistenceError, match=r":3: .*checksum"):
        load_session(ID)


def test_a_line_that_is_there_twice_counts_once() -> None:
    write()
    path = session_file(ID)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[2], *lines[3:]]))
    found = load_session(ID)
    assert contents(found) == ["a", "b", "c"]
    assert "once more" in str(found.problems[0])


def test_a_file_of_the_original_that_does_not_add_up_loads_and_tells_so() -> None:
    old_file(header(), chunk(0), chunk(2), trailer(3))
    found = load_session(ID)
    assert found.closed
    assert ["final_chunk_count is 3" in str(problem) for problem in found.problems] == [True]
    old_file(header(), chunk(0), trailer(1), chunk(1, "late"))
    found = load_session(ID)
    assert found.closed
    assert len(found.problems) == 1


def test_a_trailer_closes_a_session_though_its_file_was_not_renamed() -> None:
    # was: the writer's text said that it is open, the loader's that it is closed
    write()
    session_file(ID).rename(session_partial_file(ID))
    assert load_session(ID).closed
    assert [meta.closed for meta in list_persisted_sessions()] == [True]


def test_a_reopened_session_is_open_until_it_is_closed_again() -> None:
    write()
    with SessionWriter.reopen(ID) as writer:
        assert not load_session(ID).closed
        assert writer.chunks_written == 3
        writer.write_chunk(3, ChunkRow.user("d"))
    found = load_session(ID)
    assert found.closed
    assert contents(found) == ["a", "b", "c", "d"]
    assert found.trailer_raw is not None
    assert found.trailer_raw["final_chunk_count"] == 4


# --- resume -------------------------------------------------------------------------------------


def resumable(*records: dict[str, Any], **fields: Any) -> PersistedSession:
    old_file(header(**fields), *records)
    return load_session(ID)


def test_a_pair_has_the_transcript_and_the_system_prompt() -> None:
    rows = [chunk(0, "be brief", "system"), chunk(1), chunk(2, "be long", "system")]
    loaded = resumable(*rows, sandbox_backend="local", sandbox_spec={"working_dir": "/w"})
    user, agent = loaded.to_resumable_pair()
    assert user.chunk_table == loaded.chunk_table
    assert (user.sandbox_backend, user.sandbox) == ("local", None)
    assert user.sandbox_spec == SandboxSpec(working_dir="/w")
    assert agent.chunk_table.rows == (ChunkRow.system("be brief"),)
    assert agent.sandbox_backend is None
    # was: the system prompt reached the model twice
    assert user.conversation.rows == (ChunkRow.user("hello"),)


@pytest.mark.parametrize("prompt", ["other", ""])
def test_a_prompt_that_is_given_replaces_the_recorded_one(prompt: str) -> None:
    _, agent = resumable(chunk(0, "be brief", "system")).to_resumable_pair(agent_prompt=prompt)
    assert agent.chunk_table.rows == (ChunkRow.system(prompt),)


def test_without_a_system_prompt_the_agent_begins_empty() -> None:
    _, agent = resumable(chunk(0)).to_resumable_pair()
    assert agent.chunk_table == ChunkTable()


def test_a_resumed_session_knows_where_it_comes_from() -> None:
    # was: no parents, kind unknown, usage gone
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    loaded = resumable(
        chunk(0), trailer(1, cumulative_usage=usage), parent_session_ids=[str(OTHER)]
    )
    user, agent = loaded.to_resumable_pair()
    assert user.id not in (ID, agent.id)
    assert user.parent_session_ids == (ID,)
    assert user.lineage_kind is LineageKind.OP_FORK
    assert user.cumulative_usage == TokenUsage(**usage)
    with SessionWriter(user) as writer:
        for index, row in enumerate(user.chunk_table):
            writer.write_chunk(index, row)
    again = load_session(user.id)
    assert again.header.parent_session_ids == (ID,)
    assert again.cumulative_usage == TokenUsage(**usage)


def test_a_running_sandbox_is_come_back_to_through_the_hook() -> None:
    asked: list[UUID] = []

    def reattach(handle: UUID) -> object:
        asked.append(handle)
        return "the sandbox"

    loaded = resumable(sandbox_backend="opensandbox", sandbox_handle_id=HANDLE)
    user, agent = loaded.to_resumable_pair(reattach=reattach)
    assert (user.sandbox, agent.sandbox) == ("the sandbox", None)
    assert asked == [UUID(HANDLE)]
    user, _ = loaded.to_resumable_pair()
    assert (user.sandbox, user.sandbox_handle_id) == (None, UUID(HANDLE))


@pytest.mark.parametrize("handle", [None, "", "not a uuid", "../../etc"])
def test_a_handle_that_is_missing_or_malformed_is_ignored(handle: str | None) -> None:
    def reattach(handle: UUID) -> object:
        raise AssertionError(handle)

    loaded = resumable(sandbox_backend="opensandbox", sandbox_handle_id=handle)
    user, _ = loaded.to_resumable_pair(reattach=reattach)
    assert user.sandbox is user.sandbox_handle_id is None


def test_what_the_hook_raises_is_the_callers_to_handle() -> None:
    def reattach(handle: UUID) -> object:
        raise ConnectionError("gone")

    loaded = resumable(sandbox_backend="opensandbox", sandbox_handle_id=HANDLE)
    with pytest.raises(ConnectionError):
        loaded.to_resumable_pair(reattach=reattach)


# --- list ---------------------------------------------------------------------------------------


def test_sessions_are_listed_by_age_and_then_by_id(tmp_path: Path) -> None:
    assert list_persisted_sessions() == []
    same = [uuid4() for _ in range(5)]
    for one in same:
        old_file(header(one), path=session_file(one))
    old_file(header(ID, created_at="2026-01-01"), chunk(0), path=session_partial_file(ID))
    old = {"created_at": "2020-01-01T12:00:00+05:00", "lineage_kind": "op_merge"}
    old_file(header(OTHER, lineage_operator="merge", **old), chunk(0), trailer(1),
             path=session_file(OTHER))  # fmt: skip
    found = list_persisted_sessions()
    assert [meta.id for meta in found] == [OTHER, *sorted(same), ID]
    assert found[0] == PersistedSessionMeta(
        id=OTHER,
        path=session_file(OTHER).absolute(),
        created_at=datetime(2020, 1, 1, 7, tzinfo=UTC),
        lineage_operator="merge",
        lineage_kind=LineageKind.OP_MERGE,
        chunk_count=1,
        closed=True,
    )
    assert not found[-1].closed
    assert found[-1].path.name == f"{ID}.jsonl.__partial__"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]\n", b"5\n", b"null\n", b"{}\n", b"\xff\xfe\n", b"not json\n", b"\0" * 4096,
     b'{"record_type":"header","schema_version":"x"}\n', b'{"record_type": "header"', b"[" * 99999,
     b'{"record_type":"header","schema_version":99}\n'],
)  # fmt: skip
def test_a_file_that_cannot_be_read_costs_no_other_session(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    # was: `[]` raised AttributeError out of the listing, half a character stopped the pruning
    old_file(header(OTHER), path=session_file(OTHER))
    session_file(ID).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [meta.id for meta in list_persisted_sessions()] == [OTHER]
    assert str(ID) in caplog.text
    with pytest.raises(PersistenceError):
        load_session(ID)
    assert prune_sessions(older_than=timedelta()) == [OTHER]
    assert session_file(ID).read_bytes() == content


def test_a_file_that_may_not_be_read_is_left_out_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write()
    write(Transcript(id=OTHER))
    original = FileSystem.open

    def refusing(self: FileSystem, name: str, flags: int, *, folder: int | None = None) -> int:
        if str(ID) in name:
            raise PermissionError(13, "Permission denied", name)
        return original(self, name, flags, folder=folder)

    monkeypatch.setattr(FileSystem, "open", refusing)
    assert [meta.id for meta in list_persisted_sessions()] == [OTHER]
    assert "Permission denied" in caplog.text
    for refused in (load_session, delete_session, SessionWriter.reopen):
        with pytest.raises(PersistenceError, match="Permission denied"):
            refused(ID)
    assert prune_sessions(older_than=-DAY) == [OTHER]


@pytest.mark.parametrize("ending", ["closed", "removed"])
def test_a_session_that_ends_while_it_is_listed_is_no_error(
    ending: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # was: a file that had gone since the folder was read stopped the listing
    writer = SessionWriter(Transcript(id=ID))
    original = FileSystem.open
    end: list[Callable[[], object]] = [
        writer.close if ending == "closed" else session_partial_file(ID).unlink
    ]

    def late(self: FileSystem, name: str, flags: int, *, folder: int | None = None) -> int:
        if end and name.endswith("__partial__"):
            end.pop()()
        return original(self, name, flags, folder=folder)

    monkeypatch.setattr(FileSystem, "open", late)
    assert [meta.closed for meta in list_persisted_sessions()] == ([True] * (ending == "closed"))
    assert caplog.text == ""
    writer.abandon()


def test_only_regular_files_named_by_a_uuid_are_sessions(tmp_path: Path) -> None:
    folder = sessions_dir()
    folder.mkdir()
    SessionJournal.create(folder, "named-otherwise").close()
    (folder / "notes.txt").write_text("x")
    (folder / f"{ID}.jsonl").mkdir()
    os.mkfifo(folder / f"{OTHER}.jsonl")  # opening it would wait for a writer
    link = session_file(uuid4())
    link.symlink_to(old_file(header(), path=tmp_path / "elsewhere"))
    assert list_persisted_sessions() == []
    for one in (ID, OTHER):
        with pytest.raises(PersistenceError):
            load_session(one)
        assert delete_session(one) is False
    with pytest.raises(PersistenceError):
        load_session(link.stem)


def test_a_session_with_two_files_is_listed_once_and_the_longer_one_counts() -> None:
    # was: load showed the old file, the listing both
    write(closes=False)
    short = session_partial_file(ID).read_bytes()
    with SessionWriter.reopen(ID) as writer:
        writer.write_chunk(3, ChunkRow.user("d"))
    session_partial_file(ID).write_bytes(short)
    assert [(meta.id, meta.closed) for meta in list_persisted_sessions()] == [(ID, True)]
    assert contents(load_session(ID)) == ["a", "b", "c", "d"]
    # the other way round: closed, and gone on with in a copy
    session_partial_file(ID).unlink()
    whole = session_file(ID).read_bytes()
    writer = SessionWriter.reopen(ID)
    writer.write_chunk(4, ChunkRow.user("e"))
    session_file(ID).write_bytes(whole)
    assert [(meta.id, meta.closed) for meta in list_persisted_sessions()] == [(ID, False)]
    assert contents(load_session(ID))[-1] == "e"
    writer.abandon()


def test_a_listing_reads_heads_and_tails_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # was: every line was parsed, though the documentation said otherwise
    write(texts=["x" * 50_000] * 100)
    read = 0
    original = FileSystem.read

    def counting(self: FileSystem, file: int, size: int, offset: int) -> bytes:
        nonlocal read
        data = original(self, file, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr(FileSystem, "read", counting)
    assert [meta.chunk_count for meta in list_persisted_sessions()] == [100]
    assert session_file(ID).stat().st_size > 5_000_000
    assert read < 600_000


def test_the_chunks_of_a_long_open_session_are_counted() -> None:
    old_file(header(), *(chunk(number, "x" * 1000) for number in range(200)))
    assert [meta.chunk_count for meta in list_persisted_sessions()] == [200]


# --- delete and prune -----------------------------------------------------------------------------


def test_deleting_removes_both_files_and_tells_whether_there_was_one(tmp_path: Path) -> None:
    assert delete_session(ID) is False
    old_file(header())
    old_file(header(), path=session_partial_file(ID))
    old_file(header(OTHER), path=session_file(OTHER))
    assert delete_session(str(ID)) is True
    assert [path.name for path in sessions_dir().iterdir()] == [f"{OTHER}.jsonl"]
    assert delete_session(ID) is False


def test_deleting_by_path_removes_that_file_only(tmp_path: Path) -> None:
    old_file(header())
    path = old_file(header(), path=tmp_path / "other" / "x.jsonl")
    assert delete_session(ID, path=path) is True
    assert delete_session(ID, path=path) is False
    assert session_file(ID).exists()


def test_deleting_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    # was: the target was removed, and the link stayed
    target = old_file(header(), path=tmp_path / "precious")
    session_file(ID).parent.mkdir()
    session_file(ID).symlink_to(target)
    assert delete_session(ID) is True
    assert target.exists()
    assert not session_file(ID).is_symlink()


def test_a_session_that_is_being_written_is_not_removed() -> None:
    # was: pruning removed it, and its close returned as if all were well
    writer = SessionWriter(Transcript(id=ID))
    writer.write_chunk(0, ChunkRow.user("a"))
    with pytest.raises(SessionLockedError):
        delete_session(ID)
    assert prune_sessions(older_than=-DAY) == []
    assert prune_sessions(older_than=-DAY, dry_run=True) == []
    writer.close()
    assert contents(load_session(ID)) == ["a"]
    assert prune_sessions(older_than=-DAY) == [ID]


def test_closing_a_session_whose_file_is_gone_is_an_error() -> None:
    writer = SessionWriter(Transcript(id=ID))
    session_partial_file(ID).unlink()
    with pytest.raises(PersistenceError):
        writer.close()
    writer.abandon()


def test_a_session_that_another_one_has_its_past_from_is_not_removed() -> None:
    write()
    forked(ID)
    with pytest.raises(LineageConsistencyError, match=f"{OTHER} was forked from it"):
        delete_session(ID)
    assert contents(load_session(OTHER)) == ["a"]
    assert delete_session(OTHER)
    assert delete_session(ID)


def aged(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


def test_pruning_removes_what_began_too_long_ago_the_oldest_first() -> None:
    assert prune_sessions(older_than=timedelta()) == []
    ages = {uuid4(): days for days in (1, 5, 3, 9, 7)}
    for one, days in ages.items():
        naive = aged(days).removesuffix("+00:00")
        old_file(header(one, created_at=naive if days == 5 else aged(days)), path=session_file(one))
    expected = sorted((one for one in ages if ages[one] > 4), key=lambda one: -ages[one])
    assert prune_sessions(older_than=4 * DAY, dry_run=True) == expected
    assert len(list_persisted_sessions()) == 5
    assert prune_sessions(older_than=4 * DAY) == expected
    assert sorted(ages[meta.id] for meta in list_persisted_sessions()) == [1, 3]
    assert prune_sessions(older_than=4 * DAY) == []


def test_pruning_can_go_by_the_last_record() -> None:
    old_file(header(created_at=aged(9)), chunk(0), trailer(1, closed_at=aged(2)))
    old_file(header(OTHER, created_at=aged(9)), path=session_file(OTHER))
    assert prune_sessions(older_than=5 * DAY, by="updated_at") == [OTHER]
    assert prune_sessions(older_than=5 * DAY, by="created_at") == [ID]


@pytest.mark.parametrize("older_than", [timedelta(days=400_000), timedelta.max, DAY])
def test_a_session_from_the_future_is_not_pruned(older_than: timedelta) -> None:
    old_file(header(created_at=aged(-3650)))
    assert prune_sessions(older_than=older_than) == []


def test_pruning_leaves_a_session_whose_middle_is_damaged() -> None:
    old_file(header(created_at=aged(9)), chunk(0), "damage", chunk(1), trailer(2))
    assert len(list_persisted_sessions()) == 1
    assert prune_sessions(older_than=DAY) == []
    assert session_file(ID).exists()


def test_pruning_keeps_the_past_of_what_it_keeps() -> None:
    first, second, third = uuid4(), uuid4(), uuid4()
    write(Transcript(id=first))
    forked(first, second)
    forked(second, third, seq=0)
    assert prune_sessions(older_than=DAY) == []
    writer = SessionWriter.reopen(third)
    assert prune_sessions(older_than=-DAY) == []
    writer.close()
    assert prune_sessions(older_than=-DAY, dry_run=True) == [third, second, first]
    assert prune_sessions(older_than=-DAY) == [third, second, first]
    assert list_persisted_sessions() == []


def test_pruning_by_something_else_is_refused() -> None:
    by: Any = "size"
    with pytest.raises(ValueError, match="by must be"):
        prune_sessions(older_than=DAY, by=by)


def test_pruning_is_not_led_in_circles() -> None:
    forked(ID, OTHER, seq=0)
    forked(OTHER, ID, seq=0)
    assert prune_sessions(older_than=-DAY) == []


# --- the writer -----------------------------------------------------------------------------------


def test_the_header_is_written_at_once_and_for_the_owner_only(home: Path) -> None:
    session = Transcript(id=ID, parent_session_ids=(OTHER,))
    writer = SessionWriter(session)
    assert writer.partial_path == session_partial_file(ID).absolute()
    assert writer.path == session_file(ID).absolute()
    assert writer.partial_path.stat().st_mode & 0o777 == 0o600
    assert writer.partial_path.parent.stat().st_mode & 0o777 == 0o700
    assert load_session(ID).header.parent_session_ids == (OTHER,)
    assert not writer.path.exists()
    writer.abandon()


def test_each_message_is_in_the_file_when_it_was_written() -> None:
    writer = SessionWriter(Transcript(id=ID))
    for index in range(3):
        assert writer.chunks_written == index
        writer.write_chunk(index, ChunkRow.user(str(index)))
        assert contents(load_session(ID)) == [str(number) for number in range(index + 1)]
    writer.close()


def test_closing_renames_the_file_and_can_be_done_twice() -> None:
    writer = SessionWriter(Transcript(id=ID))
    writer.cumulative_usage = TokenUsage(total_tokens=5)
    writer.close()
    writer.close()
    writer.abandon()
    assert writer.path.exists()
    assert not writer.partial_path.exists()
    assert load_session(ID).cumulative_usage == TokenUsage(total_tokens=5)


def test_a_block_that_raises_leaves_the_session_open() -> None:
    writer = SessionWriter(Transcript(id=ID))

    def fail() -> None:
        with writer:
            writer.write_chunk(0, ChunkRow.user("a"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not load_session(ID).closed
    assert writer.partial_path.exists()


@pytest.mark.parametrize("end", [SessionWriter.close, SessionWriter.abandon])
def test_writing_after_the_end_is_an_error(end: Callable[[SessionWriter], None]) -> None:
    writer = SessionWriter(Transcript(id=ID))
    end(writer)
    with pytest.raises(RuntimeError, match="closed"):
        writer.write_chunk(0, ChunkRow.user("a"))


def test_a_message_has_the_next_index_or_is_refused() -> None:
    with SessionWriter(Transcript(id=ID)) as writer:
        writer.write_chunk(0, ChunkRow.user("a"))
        for index in (0, 2, -1):
            with pytest.raises(ValueError, match="the next chunk has index 1"):
                writer.write_chunk(index, ChunkRow.user("b"))
    assert contents(load_session(ID)) == ["a"]


def test_there_is_one_writer_at_a_time() -> None:
    writer = SessionWriter(Transcript(id=ID))
    writer.write_chunk(0, ChunkRow.user("a"))
    with pytest.raises(PersistenceError):
        SessionWriter(Transcript(id=ID))
    with pytest.raises(SessionLockedError):
        SessionWriter.reopen(ID)
    code = (
        "import sys; from py_code_mode.journal.persisted import SessionWriter\n"
        "from py_code_mode.errors import SessionLockedError\n"
        "try: SessionWriter.reopen(sys.argv[1])\n"
        "except SessionLockedError: print('locked')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ID)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "locked\n", done.stderr
    writer.write_chunk(1, ChunkRow.user("b"))
    writer.close()
    assert contents(load_session(ID)) == ["a", "b"]


@pytest.mark.parametrize("closes", [True, False])
def test_a_session_on_record_is_not_begun_again(closes: bool) -> None:
    # was: a second header was glued onto what was there
    write(closes=closes)
    with pytest.raises(SessionExistsError):
        SessionWriter(Transcript(id=ID))
    assert contents(load_session(ID)) == ["a", "b", "c"]


def test_a_session_of_the_original_is_read_and_not_written() -> None:
    path = old_file(header(), chunk(0), trailer(1))
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError):
        SessionWriter.reopen(ID)
    assert path.read_bytes() == before
    assert contents(load_session(ID)) == ["hello"]


def test_what_a_crash_cut_anywhere_is_gone_on_with() -> None:
    # was: of 722 places to cut, one left a file that loaded after it was gone on with
    write(texts=["😀 one", "two", "three"], closes=False)
    whole = session_partial_file(ID).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        session_partial_file(ID).write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends) - 1
        if kept < 0:  # its writer died before it was begun
            with pytest.raises(PersistenceError):
                SessionWriter.reopen(ID)
            writer = SessionWriter(Transcript(id=ID), durability="process")
            kept = 0
        else:
            writer = SessionWriter.reopen(ID, durability="process")
        assert writer.chunks_written == kept
        writer.write_chunk(kept, ChunkRow.user("new"))
        writer.close()
        found = load_session(ID)
        assert contents(found) == [*["😀 one", "two", "three"][:kept], "new"]
        assert found.closed
        session_file(ID).unlink()


def test_a_full_disk_loses_only_what_was_refused() -> None:
    # was: 42 messages acknowledged, 44 in the file
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = SessionWriter(Transcript(id=ID), durability="process")
    written: list[str] = []

    def fill() -> None:
        for index in range(1000):
            text = f"{index} " + "x" * 300
            writer.write_chunk(index, ChunkRow.user(text))
            written.append(text)

    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(JournalWriteError) as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not caught.value.is_final
    assert 10 < len(written) < 30
    assert contents(load_session(ID)) == written
    writer.write_chunk(len(written), ChunkRow.user("there is room again"))
    writer.close()
    assert contents(load_session(ID)) == [*written, "there is room again"]


def test_a_session_may_be_written_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "else" / "where"
    with SessionWriter(Transcript(id=ID), folder=folder) as writer:
        writer.write_chunk(0, ChunkRow.user("a"))
    assert contents(load_session(ID, path=folder / f"{ID}.jsonl")) == ["a"]
    with SessionWriter.reopen(ID, folder=folder) as writer:
        assert writer.chunks_written == 1
    assert not sessions_dir().exists()


def test_a_large_message_comes_back_from_its_blob() -> None:
    text = "x" * 200_000
    write(texts=[text, "small"])
    assert session_file(ID).stat().st_size < 10_000
    assert contents(load_session(ID)) == [text, "small"]


def test_pruning_removes_no_other_file_than_the_one_it_judged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # was: an old copy by another name had the session that it tells of removed
    with SessionJournal.create(sessions_dir(), str(ID), clock=lambda: 0.0) as journal:
        journal.append(Chunk(kind="user", payload={"content": "long ago"}, index=0))
    copy = session_file(OTHER)
    copy.write_bytes(session_file(ID).read_bytes())
    with SessionWriter.reopen(ID) as today:
        today.write_chunk(1, ChunkRow.user("today"))
    assert prune_sessions(older_than=DAY, by="updated_at") == []
    assert str(copy) in caplog.text
    assert copy.exists()
    assert contents(load_session(ID)) == ["long ago", "today"]
