"""Sessions know their parents; what follows from that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from py_code_mode.errors import LineageConsistencyError
from py_code_mode.journal.chunks import ChunkRow, ChunkTable, SandboxSpec, TokenUsage, Transcript
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

if TYPE_CHECKING:
    from pathlib import Path

USAGE = TokenUsage(prompt_tokens=1, completion_tokens=2, total_tokens=3)


@dataclass(frozen=True)
class Node:
    parent_session_ids: tuple[UUID, ...]


def graph(*parents: tuple[int, ...]) -> dict[UUID, Node]:
    """The session with the number n comes from the n-th parents."""
    return {
        UUID(int=number): Node(tuple(UUID(int=one) for one in some))
        for number, some in enumerate(parents)
    }


def transcript(text: str = "hello", backend: str | None = None) -> Transcript:
    return Transcript(
        chunk_table=ChunkTable((ChunkRow.user(text),)),
        sandbox_backend=backend,
        sandbox_spec=SandboxSpec(image="image"),
        cumulative_usage=USAGE,
    )


def test_the_kinds_of_lineage_are_those_of_the_files() -> None:
    assert {kind.value for kind in LineageKind} == {
        "unknown",
        "leaf_user",
        "leaf_system",
        "op_create",
        "op_session_loop",
        "op_fork",
        "op_detach",
        "op_merge",
        "op_session_compress",
    }
    assert LineageKind("op_from_tomorrow") is LineageKind.UNKNOWN
    assert LineageKind.OP_FORK.value == "op_fork"


def test_a_fork_has_the_messages_and_its_origin_as_parent() -> None:
    origin = transcript(backend="subprocess")
    forked = fork(origin)
    assert forked.id != origin.id
    assert forked.chunk_table == origin.chunk_table
    assert forked.parent_session_ids == (origin.id,)
    assert forked.lineage_kind is LineageKind.OP_FORK
    assert (forked.sandbox_backend, forked.sandbox_spec) == ("subprocess", origin.sandbox_spec)
    assert forked.cumulative_usage is None  # or merging two forks would count it twice


def test_a_detached_session_has_the_messages_and_no_parent() -> None:
    detached = detach(fork(transcript()))
    assert len(detached.chunk_table) == 1
    assert detached.parent_session_ids == ()
    assert detached.lineage_kind is LineageKind.OP_DETACH


def test_a_merge_has_the_messages_of_both_in_order_and_their_usage() -> None:
    first, second = transcript("a"), transcript("b")
    merged = merge(first, second)
    assert [row.payload["content"] for row in merged.chunk_table] == ["a", "b"]
    assert merged.parent_session_ids == (first.id, second.id)
    assert merged.lineage_kind is LineageKind.OP_MERGE
    assert merged.cumulative_usage == TokenUsage(
        prompt_tokens=2, completion_tokens=4, total_tokens=6
    )
    assert merge(first, detach(second)).cumulative_usage == USAGE
    assert merge(detach(first), detach(second)).cumulative_usage is None


def test_a_merge_of_unbound_sessions_for_different_backends_is_refused() -> None:
    first, second = transcript(backend="subprocess"), transcript(backend="container")
    with pytest.raises(ValueError, match="'subprocess' vs 'container'"):
        merge(first, second)
    with pytest.raises(ValueError, match="None"):
        merge(first, transcript())


def test_a_merge_keeps_the_first_ones_sandbox() -> None:
    bound = Transcript(sandbox_backend="container", sandbox="it")
    merged = merge(bound, transcript(backend="subprocess"))
    assert (merged.sandbox, merged.sandbox_backend) == ("it", "container")
    other = merge(transcript(backend="subprocess"), bound)
    assert (other.sandbox, other.sandbox_backend) == (None, "subprocess")


def test_ancestors_come_nearest_first_and_once() -> None:
    sessions = graph((), (0,), (0,), (1, 2), (3, 0))
    found = ancestors(sessions, UUID(int=4))
    assert [one.int for one in found] == [3, 0, 1, 2]
    assert ancestors(sessions, UUID(int=0)) == ()


def test_descendants_come_depth_first_and_once() -> None:
    sessions = graph((), (0,), (0,), (1,), (2, 1), (3,))
    assert [one.int for one in descendants(sessions, UUID(int=0))] == [1, 3, 5, 4, 2]
    assert descendants(sessions, UUID(int=5)) == ()


@pytest.mark.parametrize("walk", [ancestors, descendants])
def test_a_walk_from_an_unknown_session_is_an_error(walk: object) -> None:
    assert callable(walk)
    with pytest.raises(LineageConsistencyError, match="not among the 1 sessions"):
        walk(graph(()), UUID(int=9))


def test_a_missing_parent_is_an_error_that_names_both() -> None:
    sessions = graph((), (0, 7))
    text = f"{UUID(int=1)} references missing parent {UUID(int=7)}"
    with pytest.raises(LineageConsistencyError, match=text):
        validate_acyclic(sessions)
    with pytest.raises(LineageConsistencyError, match=text):
        ancestors(sessions, UUID(int=1))


@pytest.mark.parametrize("circle", [((0,),), ((2,), (0,), (1,)), ((), (0, 3), (1,), (2,))])
def test_a_circle_is_an_error_and_no_walk_runs_forever(circle: tuple[tuple[int, ...], ...]) -> None:
    sessions = graph(*circle)
    with pytest.raises(LineageConsistencyError, match="circle"):
        validate_acyclic(sessions)
    # was: descendants of a circle never came to an end
    for session in sessions:
        assert session not in descendants(sessions, session)


def test_one_that_is_its_own_ancestor_is_an_error() -> None:
    with pytest.raises(LineageConsistencyError, match="one of its own ancestors"):
        ancestors(graph((1,), (0,)), UUID(int=0))


def test_a_diamond_is_no_circle_and_neither_is_a_parent_named_twice() -> None:
    validate_acyclic(graph((), (0,), (0,), (1, 2)))
    validate_acyclic(graph((), (0, 0)))
    validate_acyclic({})


def test_a_chain_of_any_length_is_fine() -> None:
    # was: RecursionError at 3000 forks in a row
    chain = graph((), *((number,) for number in range(20_000)))
    validate_acyclic(chain)
    assert len(ancestors(chain, UUID(int=20_000))) == 20_000
    assert len(descendants(chain, UUID(int=0))) == 20_000


def test_an_export_has_one_line_for_each_session(tmp_path: Path) -> None:
    first = transcript()
    rows = [first, fork(first)]
    target = tmp_path / "deeper" / "lineage.jsonl"
    export_lineage(rows, target)
    found = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert found[0] == {
        "id": str(first.id),
        "parent_session_ids": [],
        "lineage_operator": "implicit",
        "lineage_kind": "unknown",
        "lineage_extras": [],
        "chunk_count": 1,
        "cumulative_usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    assert found[1]["parent_session_ids"] == [str(first.id)]
    assert found[1]["cumulative_usage"] is None
    assert lineage_jsonl([]) == ""


def test_no_text_can_break_a_line_of_an_export() -> None:
    odd = Transcript(
        lineage_operator="a\u2028b\u0085c\nd\ud800e",
        lineage_extras=(("when", object()), ("number", float("nan")), ("plain", [1, {"a": 2}])),
    )
    (line,) = lineage_jsonl([odd]).splitlines()
    found = json.loads(line)
    assert found["lineage_operator"] == odd.lineage_operator
    extras = dict(found["lineage_extras"])
    assert extras["plain"] == [1, {"a": 2}]
    assert extras["number"] == {"$float": "nan"}
    assert "object" in extras["when"]["$repr"]
