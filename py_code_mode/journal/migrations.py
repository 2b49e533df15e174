"""How records of older versions become current ones while they are read; files stay as they are.

A header's migrator takes a record of version *n* to *n* + 1, and each version up to the current one
needs one. Those of chunks are optional, and chosen by the version that the file's header had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from py_code_mode.errors import InvalidCall, SchemaVersionError
from py_code_mode.journal.records import CURRENT_SCHEMA_VERSION, InvalidRecord

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CURRENT_SCHEMA_VERSION",
    "ChunkMigration",
    "HeaderMigration",
    "migrating",
    "register_chunk_migration",
    "register_header_migration",
    "upgrade_chunk",
    "upgrade_header",
]

HeaderMigration: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
ChunkMigration: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


def _as_it_is(record: dict[str, Any]) -> dict[str, Any]:
    """Version 2 only adds keys, which have defaults."""
    return record


_HEADERS: dict[int, HeaderMigration] = {1: _as_it_is}
_CHUNKS: dict[int, ChunkMigration] = {}


def register_header_migration(from_version: int, fn: HeaderMigration) -> None:
    """Have headers of `from_version` taken to the next one; replaces what was registered.

    Raises:
        ValueError: that version is the current one, or a newer one.
    """
    _HEADERS[_older(from_version)] = _function("register_header_migration", fn)


def register_chunk_migration(from_version: int, fn: ChunkMigration) -> None:
    """The same for the chunks below a header of `from_version`, or an older one.

    Raises:
        ValueError: that version is the current one, or a newer one.
    """
    _CHUNKS[_older(from_version)] = _function("register_chunk_migration", fn)


def migrating(path: str | Path) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """What `loader.read_journal` and its like take as ``upgrade``, for errors that name the file.

    Raises (when it is called):
        SchemaVersionError: a header cannot be migrated.
        InvalidRecord: a chunk cannot be.
    """

    def upgrade(record: dict[str, Any], header_version: int) -> dict[str, Any]:
        kind = record.get("record_type")
        try:
            if kind == "header":
                return upgrade_header(record)
            if kind == "chunk":
                return upgrade_chunk(record, header_version=header_version)
        except Exception as error:  # migrators are anybody's
            reason = f"{kind} of schema version {header_version} cannot be migrated: {error}"
            if kind == "header":
                raise SchemaVersionError(f"{path}:1", reason) from error
            raise InvalidRecord(reason) from error
        return record

    return upgrade


def upgrade_header(record: dict[str, Any]) -> dict[str, Any]:
    """The header as the current version has it; the one given stays as it is.

    Raises:
        ValueError: it is of a newer version, or a migrator is missing.
    """
    version = record.get("schema_version", 0)
    if type(version) is not int:
        raise ValueError(f"schema_version={version!r} is not a number")
    if version > CURRENT_SCHEMA_VERSION:
        raise ValueError(
            f"persisted file declares schema_version={version} which is newer than "
            f"CURRENT_SCHEMA_VERSION={CURRENT_SCHEMA_VERSION}; refusing to downgrade"
        )
    for current in range(version, CURRENT_SCHEMA_VERSION):
        migrate = _HEADERS.get(current)
        if migrate is None:
            raise ValueError(f"no header migrator registered for schema_version={current}")
        record = {**migrate(dict(record)), "schema_version": current + 1}
    return record


def upgrade_chunk(record: dict[str, Any], *, header_version: int) -> dict[str, Any]:
    """The chunk as the current version has it; `header_version` is what the file's header had."""
    for current in range(header_version, CURRENT_SCHEMA_VERSION):
        migrate = _CHUNKS.get(current)
        if migrate is not None:
            record = migrate(dict(record))
    return record


def _older(version: int) -> int:
    if version >= CURRENT_SCHEMA_VERSION:
        raise ValueError(
            f"refusing to register migration from version {version} >= "
            f"CURRENT_SCHEMA_VERSION={CURRENT_SCHEMA_VERSION}"
        )
    return version


def _function(target: str, fn: HeaderMigration) -> HeaderMigration:
    if not callable(fn):
        raise InvalidCall(target, f"fn must be a function, not {type(fn).__name__}")
    return fn
