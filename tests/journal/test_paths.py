"""Ids and paths: what names a session names a file in its folder, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from py_code_mode.errors import (
    InvalidName,
    PersistenceError,
    SessionExistsError,
    SessionNotFoundError,
)
from py_code_mode.journal.ids import (
    as_uuid,
    check_session_id,
    check_workspace_id,
    new_session_id,
)
from py_code_mode.journal.journal import SessionJournal, recover
from py_code_mode.journal.loader import find_journal, meta, read_journal
from py_code_mode.journal.paths import (
    journal_files,
    session_file,
    session_partial_file,
    sessions_dir,
)
from py_code_mode.journal.records import Run

BAD = [
    "",
    ".",
    "..",
    "../evil",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "a\n",
    "a b",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    ".hidden",
    "-option",
    "_x",
    "a..b",
    "a.",
    "con",
    "NUL.txt",
    "com1",
    "x" * 129,
    None,
    7,
    b"a",
]


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_id_that_could_lead_elsewhere_is_refused_everywhere(tmp_path: Path, name: object) -> None:
    with pytest.raises(InvalidName):
        check_session_id(name)
    with pytest.raises(ValueError, match="workspace"):
        check_workspace_id(name)
    if isinstance(name, str):
        for act in (SessionJournal.create, SessionJournal.reopen, find_journal, recover):
            with pytest.raises(InvalidName):
                act(tmp_path / "s", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a", "A-1_b.c", "x" * 128, "0", "a.jsonl", uuid4().hex, "console"]
)
def test_good_id_is_taken(tmp_path: Path, name: str) -> None:
    assert check_session_id(name) == name
    with SessionJournal.create(tmp_path, name) as journal:
        pass
    assert [file.session_id for file in journal_files(tmp_path)] == [name]
    assert read_journal(find_journal(tmp_path, name).path).id == journal.id == name


def test_new_ids_are_uuids_that_sort_by_time() -> None:
    found = [new_session_id() for _ in range(100)]
    assert len(set(found)) == 100
    assert {UUID(name).version for name in found} == {7}
    assert {UUID(name).variant for name in found} == {"specified in RFC 4122"}
    assert [name[:8] for name in found] == sorted(name[:8] for name in found)


def test_path_functions_take_uuids_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PY_CODE_MODE_HOME", raising=False)
    assert sessions_dir() == Path(".code-mode/sessions")
    monkeypatch.setenv("PY_CODE_MODE_HOME", str(tmp_path))
    name = uuid4()
    assert session_file(name) == tmp_path / "sessions" / f"{name}.jsonl"
    assert session_partial_file(name.hex) == tmp_path / "sessions" / f"{name}.jsonl.__partial__"
    for bad in ("../x", "abc", ""):
        with pytest.raises(ValueError, match="session_id must be a UUID"):
            session_file(bad)
    assert as_uuid(str(name)) == as_uuid(name) == name


def test_twin_in_other_letters_is_refused(tmp_path: Path) -> None:
    SessionJournal.create(tmp_path, "Report").close()
    with pytest.raises(SessionExistsError, match="on record already"):
        SessionJournal.create(tmp_path, "report")
    SessionJournal.create(tmp_path, "report2").close()


def test_what_is_no_file_of_its_own_is_no_journal(tmp_path: Path) -> None:
    """A link could lead outside, and a pipe would wait for ever."""
    outside = tmp_path / "outside"
    SessionJournal.create(outside, "real").close()
    base = tmp_path / "base"
    base.mkdir()
    (base / "link.jsonl").symlink_to(outside / "real.jsonl")
    (base / "folder.jsonl").mkdir()
    os.mkfifo(base / "pipe.jsonl")
    (base / "..jsonl").write_text("x")
    assert list(journal_files(base)) == []
    for name in ("link", "folder", "pipe"):
        with pytest.raises(SessionNotFoundError):
            find_journal(base, name)
        with pytest.raises(PersistenceError):
            read_journal(base / f"{name}.jsonl")
        with pytest.raises(PersistenceError):
            meta(base / f"{name}.jsonl")


def test_missing_folder_has_no_journals(tmp_path: Path) -> None:
    assert list(journal_files(tmp_path / "none")) == []
    with pytest.raises(SessionNotFoundError, match="Session not found: a"):
        find_journal(tmp_path / "none", "a")


def test_two_files_of_a_session_are_told_by_how_far_they_got(tmp_path: Path) -> None:
    """Only copying brings this about: the one with more records counts, the other is put aside."""
    with SessionJournal.create(tmp_path, "a") as journal:
        journal.append(Run(run_id=1, code="1"))
    final, live = tmp_path / "a.jsonl", tmp_path / "a.jsonl.__partial__"
    older = final.read_bytes()
    live.write_bytes(older.splitlines(keepends=True)[0])
    assert find_journal(tmp_path, "a").path == final
    SessionJournal.reopen(tmp_path, "a").abandon()
    assert not final.exists()
    final.write_bytes(older)
    assert find_journal(tmp_path, "a").path == live
    SessionJournal.reopen(tmp_path, "a").close()
    assert read_journal(final).is_closed
    assert not live.exists()
    assert len(list(journal_files(tmp_path))) == 1


def test_unreadable_file_is_an_error_of_ours(tmp_path: Path) -> None:
    SessionJournal.create(tmp_path, "a").close()
    path = tmp_path / "a.jsonl"
    path.chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    with pytest.raises(PersistenceError):
        read_journal(path)
