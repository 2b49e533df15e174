"""Files of older versions are read as of today, by chains of migrators, and stay as they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from py_code_mode.errors import PersistenceError, SchemaVersionError
from py_code_mode.journal import migrations
from py_code_mode.journal.migrations import (
    CURRENT_SCHEMA_VERSION,
    register_chunk_migration,
    register_header_migration,
    upgrade_chunk,
    upgrade_header,
)
from py_code_mode.journal.persisted import list_persisted_sessions, load_session

if TYPE_CHECKING:
    from pathlib import Path

ID = "0f5a2c9e-5b1c-4f0e-9d51-3a9d0c3f7e11"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    headers, chunks = vars(migrations)["_HEADERS"], vars(migrations)["_CHUNKS"]
    monkeypatch.setattr(migrations, "_HEADERS", dict(headers))
    monkeypatch.setattr(migrations, "_CHUNKS", dict(chunks))


def old_file(folder: Path, version: int) -> Path:
    lines: list[dict[str, Any]] = [
        {"record_type": "header", "schema_version": version, "id": ID, "created_at": "2024-05-01"},
        {"record_type": "chunk", "index": 0, "kind": "user", "payload": {"content": "hello"}},
    ]
    path = folder / f"{ID}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def noted(by: str, to: list[str]) -> Any:
    def migrate(record: dict[str, Any]) -> dict[str, Any]:
        to.append(by)
        return record

    return migrate


def test_migrators_of_headers_run_in_order_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    ran: list[str] = []

    def rename(record: dict[str, Any]) -> dict[str, Any]:
        ran.append("-1")
        return {**record, "lineage_operator": "renamed"}

    register_header_migration(-1, rename)
    register_header_migration(0, noted("0", ran))
    register_header_migration(1, noted("1", ran))
    path = old_file(tmp_path, -1)
    before = path.read_bytes()
    loaded = load_session(ID, path=path)
    assert ran == ["-1", "0", "1"]
    assert loaded.header.lineage_operator == "renamed"
    assert loaded.header.schema_version == CURRENT_SCHEMA_VERSION
    assert path.read_bytes() == before


def test_a_migrator_may_alter_the_dict_it_is_given() -> None:
    def alter(record: dict[str, Any]) -> dict[str, Any]:
        record["id"] = "other"
        return record

    register_header_migration(1, alter)
    record = {"record_type": "header", "schema_version": 1, "id": ID}
    assert upgrade_header(record) == {**record, "id": "other", "schema_version": 2}
    assert record["id"] == ID


def test_a_hole_in_the_chain_of_headers_is_an_error(tmp_path: Path) -> None:
    register_header_migration(-1, lambda record: record)
    with pytest.raises(PersistenceError, match="no header migrator registered") as caught:
        load_session(ID, path=old_file(tmp_path, -1))
    assert isinstance(caught.value.__cause__, ValueError)


def test_migrators_of_chunks_are_optional_and_chosen_by_the_headers_own_version(
    tmp_path: Path,
) -> None:
    def louder(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "payload": {"content": record["payload"]["content"].upper()}}

    register_chunk_migration(1, louder)
    assert load_session(ID, path=old_file(tmp_path, 1)).chunk_table[0].payload == {
        "content": "HELLO"
    }
    assert upgrade_chunk({"payload": {"content": "a"}}, header_version=2) == {
        "payload": {"content": "a"}
    }
    register_header_migration(0, lambda record: record)
    assert load_session(ID, path=old_file(tmp_path, 0)).chunk_table[0].payload == {
        "content": "HELLO"
    }


@pytest.mark.parametrize("register", [register_header_migration, register_chunk_migration])
@pytest.mark.parametrize("version", [CURRENT_SCHEMA_VERSION, CURRENT_SCHEMA_VERSION + 1])
def test_nothing_is_migrated_from_the_current_version_on(register: Any, version: int) -> None:
    with pytest.raises(ValueError, match="refusing to register migration"):
        register(version, noted("never", []))


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = old_file(tmp_path, CURRENT_SCHEMA_VERSION + 1)
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError, match="refusing to downgrade"):
        load_session(ID, path=path)
    with pytest.raises(ValueError, match="refusing to downgrade"):
        upgrade_header({"schema_version": CURRENT_SCHEMA_VERSION + 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", ["x", None, 1.5, [1], True])
def test_a_version_that_is_no_number_is_an_error_of_ours(
    tmp_path: Path, version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # was: int("x") raised a ValueError out of load_session
    with pytest.raises(PersistenceError, match="schema_version"):
        load_session(ID, path=old_file(tmp_path, version))
    with pytest.raises(ValueError, match="is not a number"):
        upgrade_header({"schema_version": version})
    monkeypatch.setenv("PY_CODE_MODE_HOME", str(tmp_path))
    (tmp_path / "sessions").mkdir()
    old_file(tmp_path / "sessions", version)
    assert list_persisted_sessions() == []


@pytest.mark.parametrize("register", [register_header_migration, register_chunk_migration])
def test_what_a_migrator_raises_is_told_as_an_error_of_the_file(
    tmp_path: Path, register: Any
) -> None:
    def fail(record: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("gone")

    register(1, fail)
    path = old_file(tmp_path, 1)
    with pytest.raises(PersistenceError, match=f"{ID}.jsonl:[12]: .*gone"):
        load_session(ID, path=path)
