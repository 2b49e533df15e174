"""Conversations as data."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest

from py_code_mode.journal.chunks import (
    ChunkKind,
    ChunkRow,
    ChunkTable,
    SandboxSpec,
    TokenUsage,
    Transcript,
)
from py_code_mode.journal.lineage import LineageKind


def test_the_kinds_of_chunks_are_those_of_the_files() -> None:
    assert [kind.value for kind in ChunkKind] == ["system", "user", "assistant", "tool_result"]


def test_a_table_is_extended_without_being_changed() -> None:
    table = ChunkTable(rows=(ChunkRow.system("a"),))
    longer = table.extend(ChunkRow.user("b"), ChunkRow(ChunkKind.ASSISTANT, {"content": None}))
    assert (len(table), len(longer)) == (1, 3)
    assert longer[1] == ChunkRow(kind=ChunkKind.USER, payload={"content": "b"})
    assert longer[1:] == longer.rows[1:]
    assert list(longer) == list(longer.rows)
    with pytest.raises(FrozenInstanceError):
        table.rows = ()  # type: ignore[misc]
    assert ChunkTable() == ChunkTable(rows=())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, None),
        ([1], None),
        ({}, (0, 0, 0)),
        ({"prompt_tokens": None, "completion_tokens": "5", "total_tokens": 7.0}, (0, 5, 7)),
        ({"prompt_tokens": "many", "completion_tokens": [], "total_tokens": {}}, (0, 0, 0)),
        ({"prompt_tokens": float("inf"), "extra": 1}, (0, 0, 0)),
    ],
)
def test_usage_that_is_missing_or_odd_is_zero(found: Any, expected: Any) -> None:
    usage = TokenUsage.from_dict(found)
    if expected is None:
        assert usage is None
    else:
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == expected
        assert TokenUsage.from_dict(usage.to_dict()) == usage


def test_a_sandbox_spec_survives_json() -> None:
    spec = SandboxSpec(
        image="python:3.12",
        entrypoint=("sh", "-c"),
        env={"A": "b"},
        timeout=timedelta(seconds=90.5),
        working_dir="/work",
    )
    data = spec.to_dict()
    assert data["timeout_seconds"] == 90.5
    assert SandboxSpec.from_dict(data) == spec
    assert SandboxSpec.from_dict(SandboxSpec().to_dict()) == SandboxSpec()


@pytest.mark.parametrize(
    "odd",
    [
        {"image": 5, "entrypoint": "sh", "env": [1], "timeout_seconds": "x", "working_dir": {}},
        {"timeout_seconds": 1e300},
        {"timeout_seconds": True},
        {"policy": {"network": []}, "image": None},
    ],
)
def test_what_a_spec_does_not_know_is_kept_as_an_option(odd: dict[str, Any]) -> None:
    spec = SandboxSpec.from_dict(odd)
    assert spec is not None
    assert spec.timeout is None
    assert {name: value for name, value in odd.items() if value is not None} == dict(spec.options)


@pytest.mark.parametrize("nothing", [None, 5, "spec", []])
def test_what_is_no_mapping_is_no_spec(nothing: Any) -> None:
    assert SandboxSpec.from_dict(nothing) is None


def test_a_transcript_begins_with_a_prompt_or_a_message() -> None:
    agent, user = Transcript.from_agent_prompt("be brief"), Transcript.from_user_message("hi")
    assert agent.system_prompt == "be brief"
    assert agent.lineage_kind is LineageKind.LEAF_SYSTEM
    assert user.system_prompt is None
    assert user.chunk_table == ChunkTable((ChunkRow.user("hi"),))


def test_the_conversation_is_what_an_agent_with_a_prompt_of_its_own_needs() -> None:
    rows = (ChunkRow.system("a"), ChunkRow.user("b"), ChunkRow.system("c"))
    transcript = Transcript(chunk_table=ChunkTable(rows))
    assert transcript.conversation.rows == (rows[1],)
    assert transcript.system_prompt == "a"
    odd = Transcript(chunk_table=ChunkTable((ChunkRow(ChunkKind.SYSTEM, {}),)))
    assert odd.system_prompt is None
