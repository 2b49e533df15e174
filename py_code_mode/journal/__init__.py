"""Every session on record: written as it runs, read, searched, exported, taken up again.

The public names; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py_code_mode.errors import (
        CorruptRecordError,
        LineageConsistencyError,
        PersistenceError,
        ReplayDivergenceError,
        SchemaVersionError,
        SessionClosedError,
        SessionExistsError,
        SessionLockedError,
        SessionNotFoundError,
    )
    from py_code_mode.journal.blobs import BlobMissing, BlobStore
    from py_code_mode.journal.cache import (
        StatCache,
        clear_cache,
        get_cached_session,
        set_max_entries,
    )
    from py_code_mode.journal.chunks import (
        ChunkKind,
        ChunkRow,
        ChunkTable,
        SandboxSpec,
        TokenUsage,
        Transcript,
    )
    from py_code_mode.journal.export import to_html, to_json, to_markdown, to_notebook
    from py_code_mode.journal.file_store import FileSessionStore
    from py_code_mode.journal.index import (
        Hit,
        SessionIndex,
        SessionPage,
        SessionSummary,
        list_summaries,
        search_sessions,
    )
    from py_code_mode.journal.journal import SessionJournal
    from py_code_mode.journal.lineage import (
        LineageKind,
        ancestors,
        descendants,
        detach,
        export_lineage,
        fork,
        lineage_jsonl,
        merge,
        validate_acyclic,
    )
    from py_code_mode.journal.loader import (
        Journal,
        JournalMeta,
        RecordedRun,
        find_journal,
        iter_records,
        read_journal,
    )
    from py_code_mode.journal.manager import SessionManager
    from py_code_mode.journal.migrations import register_chunk_migration, register_header_migration
    from py_code_mode.journal.parsed import ParsedSession, parse_session
    from py_code_mode.journal.paths import (
        SESSION_FILE_SUFFIX,
        SESSION_PARTIAL_SUFFIX,
        session_file,
        session_partial_file,
        sessions_dir,
    )
    from py_code_mode.journal.persisted import (
        PersistedSession,
        PersistedSessionHeader,
        PersistedSessionMeta,
        SessionWriter,
        delete_session,
        list_persisted_sessions,
        load_session,
        prune_sessions,
    )
    from py_code_mode.journal.records import CURRENT_SCHEMA_VERSION
    from py_code_mode.journal.store import InMemorySessionStore, MetaPage, SessionMeta, SessionStore
    from py_code_mode.journal.turns import (
        AgentTransitionRecord,
        ReplayView,
        SessionRecord,
        SessionReplay,
        TimelineEvent,
        ToolCallRecord,
        TurnRecord,
    )
    from py_code_mode.journal.upkeep import Repair, check_sessions, fork_session, repair_sessions

_HOME = {
    "AgentTransitionRecord": "py_code_mode.journal.turns",
    "BlobMissing": "py_code_mode.journal.blobs",
    "BlobStore": "py_code_mode.journal.blobs",
    "CURRENT_SCHEMA_VERSION": "py_code_mode.journal.records",
    "ChunkKind": "py_code_mode.journal.chunks",
    "ChunkRow": "py_code_mode.journal.chunks",
    "ChunkTable": "py_code_mode.journal.chunks",
    "CorruptRecordError": "py_code_mode.errors",
    "FileSessionStore": "py_code_mode.journal.file_store",
    "Hit": "py_code_mode.journal.index",
    "InMemorySessionStore": "py_code_mode.journal.store",
    "Journal": "py_code_mode.journal.loader",
    "JournalMeta": "py_code_mode.journal.loader",
    "LineageConsistencyError": "py_code_mode.errors",
    "LineageKind": "py_code_mode.journal.lineage",
    "MetaPage": "py_code_mode.journal.store",
    "ParsedSession": "py_code_mode.journal.parsed",
    "PersistedSession": "py_code_mode.journal.persisted",
    "PersistedSessionHeader": "py_code_mode.journal.persisted",
    "PersistedSessionMeta": "py_code_mode.journal.persisted",
    "PersistenceError": "py_code_mode.errors",
    "RecordedRun": "py_code_mode.journal.loader",
    "Repair": "py_code_mode.journal.upkeep",
    "ReplayDivergenceError": "py_code_mode.errors",
    "ReplayView": "py_code_mode.journal.turns",
    "SESSION_FILE_SUFFIX": "py_code_mode.journal.paths",
    "SESSION_PARTIAL_SUFFIX": "py_code_mode.journal.paths",
    "SandboxSpec": "py_code_mode.journal.chunks",
    "SchemaVersionError": "py_code_mode.errors",
    "SessionClosedError": "py_code_mode.errors",
    "SessionExistsError": "py_code_mode.errors",
    "SessionIndex": "py_code_mode.journal.index",
    "SessionJournal": "py_code_mode.journal.journal",
    "SessionLockedError": "py_code_mode.errors",
    "SessionManager": "py_code_mode.journal.manager",
    "SessionMeta": "py_code_mode.journal.store",
    "SessionNotFoundError": "py_code_mode.errors",
    "SessionPage": "py_code_mode.journal.index",
    "SessionRecord": "py_code_mode.journal.turns",
    "SessionReplay": "py_code_mode.journal.turns",
    "SessionStore": "py_code_mode.journal.store",
    "SessionSummary": "py_code_mode.journal.index",
    "SessionWriter": "py_code_mode.journal.persisted",
    "StatCache": "py_code_mode.journal.cache",
    "TimelineEvent": "py_code_mode.journal.turns",
    "TokenUsage": "py_code_mode.journal.chunks",
    "ToolCallRecord": "py_code_mode.journal.turns",
    "Transcript": "py_code_mode.journal.chunks",
    "TurnRecord": "py_code_mode.journal.turns",
    "ancestors": "py_code_mode.journal.lineage",
    "check_sessions": "py_code_mode.journal.upkeep",
    "clear_cache": "py_code_mode.journal.cache",
    "delete_session": "py_code_mode.journal.persisted",
    "descendants": "py_code_mode.journal.lineage",
    "detach": "py_code_mode.journal.lineage",
    "export_lineage": "py_code_mode.journal.lineage",
    "find_journal": "py_code_mode.journal.loader",
    "fork": "py_code_mode.journal.lineage",
    "fork_session": "py_code_mode.journal.upkeep",
    "get_cached_session": "py_code_mode.journal.cache",
    "iter_records": "py_code_mode.journal.loader",
    "lineage_jsonl": "py_code_mode.journal.lineage",
    "list_persisted_sessions": "py_code_mode.journal.persisted",
    "list_summaries": "py_code_mode.journal.index",
    "load_session": "py_code_mode.journal.persisted",
    "merge": "py_code_mode.journal.lineage",
    "parse_session": "py_code_mode.journal.parsed",
    "prune_sessions": "py_code_mode.journal.persisted",
    "read_journal": "py_code_mode.journal.loader",
    "register_chunk_migration": "py_code_mode.journal.migrations",
    "register_header_migration": "py_code_mode.journal.migrations",
    "repair_sessions": "py_code_mode.journal.upkeep",
    "search_sessions": "py_code_mode.journal.index",
    "session_file": "py_code_mode.journal.paths",
    "session_partial_file": "py_code_mode.journal.paths",
    "sessions_dir": "py_code_mode.journal.paths",
    "set_max_entries": "py_code_mode.journal.cache",
    "to_html": "py_code_mode.journal.export",
    "to_json": "py_code_mode.journal.export",
    "to_markdown": "py_code_mode.journal.export",
    "to_notebook": "py_code_mode.journal.export",
    "validate_acyclic": "py_code_mode.journal.lineage",
}

__all__ = [
    "CURRENT_SCHEMA_VERSION",
    "SESSION_FILE_SUFFIX",
    "SESSION_PARTIAL_SUFFIX",
    "AgentTransitionRecord",
    "BlobMissing",
    "BlobStore",
    "ChunkKind",
    "ChunkRow",
    "ChunkTable",
    "CorruptRecordError",
    "FileSessionStore",
    "Hit",
    "InMemorySessionStore",
    "Journal",
    "JournalMeta",
    "LineageConsistencyError",
    "LineageKind",
    "MetaPage",
    "ParsedSession",
    "PersistedSession",
    "PersistedSessionHeader",
    "PersistedSessionMeta",
    "PersistenceError",
    "RecordedRun",
    "Repair",
    "ReplayDivergenceError",
    "ReplayView",
    "SandboxSpec",
    "SchemaVersionError",
    "SessionClosedError",
    "SessionExistsError",
    "SessionIndex",
    "SessionJournal",
    "SessionLockedError",
    "SessionManager",
    "SessionMeta",
    "SessionNotFoundError",
    "SessionPage",
    "SessionRecord",
    "SessionReplay",
    "SessionStore",
    "SessionSummary",
    "SessionWriter",
    "StatCache",
    "TimelineEvent",
    "TokenUsage",
    "ToolCallRecord",
    "Transcript",
    "TurnRecord",
    "ancestors",
    "check_sessions",
    "clear_cache",
    "delete_session",
    "descendants",
    "detach",
    "export_lineage",
    "find_journal",
    "fork",
    "fork_session",
    "get_cached_session",
    "iter_records",
    "lineage_jsonl",
    "list_persisted_sessions",
    "list_summaries",
    "load_session",
    "merge",
    "parse_session",
    "prune_sessions",
    "read_journal",
    "register_chunk_migration",
    "register_header_migration",
    "repair_sessions",
    "search_sessions",
    "session_file",
    "session_partial_file",
    "sessions_dir",
    "set_max_entries",
    "to_html",
    "to_json",
    "to_markdown",
    "to_notebook",
    "validate_acyclic",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
