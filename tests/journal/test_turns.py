"""Records of a conversation, and the ways to look at them."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from py_code_mode.journal import (
    AgentTransitionRecord,
    ReplayView,
    SessionRecord,
    SessionReplay,
    ToolCallRecord,
    TurnRecord,
)
from py_code_mode.testing.session_stores import a_session


def view() -> ReplayView:
    turns = [
        TurnRecord(
            f"t{number}",
            agent,
            f"prompt {number}",
            f"response {number}",
            [ToolCallRecord(f"c{n}", name, {"q": name}, "found") for n, name in enumerate(calls)],
            started_at=f"2026-01-01T00:0{number}:00+00:00",
            ended_at=f"2026-01-01T00:0{number}:30+00:00",
        )
        for number, (agent, calls) in enumerate(
            [("a", ["search", "calc"]), ("b", ["fetch"]), ("a", [])]
        )
    ]
    moves = [
        AgentTransitionRecord("a", "b", "why", "t0", "2026-01-01T00:00:10+00:00"),
        AgentTransitionRecord("b", "a", None, "t1", "2026-01-01T00:01:10+00:00"),
    ]
    return SessionReplay.load(
        SessionRecord("s", "w", "2026-01-01", "2026-01-02", "a", turns, moves)
    )


@pytest.mark.parametrize(
    "record",
    [
        a_session(),
        a_session().turns[0],
        a_session().turns[0].tool_calls[0],
        a_session().agent_transitions[0],
        SessionRecord("s"),
        TurnRecord("t"),
        ToolCallRecord("c", "x"),
        AgentTransitionRecord(None, "a"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_survives_json(record: Any) -> None:
    kind = cast("Any", type(record))
    data = json.loads(json.dumps(record.to_dict()))
    assert kind.from_dict(data) == record
    assert kind.from_dict(data).to_dict() == data
    later = {**data, "later": [1]}
    assert kind.from_dict(later).to_dict() == later


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (SessionRecord, {"session_id": "s"}),
        (TurnRecord, {"turn_id": "t"}),
        (ToolCallRecord, {"call_id": "c", "tool_name": "x"}),
        (AgentTransitionRecord, {"to_agent": "a"}),
    ],
)
def test_what_is_missing_has_its_default_unless_it_is_needed(
    kind: Any, needed: dict[str, str]
) -> None:
    wanted = kind(None, "a") if kind is AgentTransitionRecord else kind(*needed.values())
    assert kind.from_dict(needed) == wanted
    for name in needed:
        rest = {key: value for key, value in needed.items() if key != name}
        with pytest.raises(KeyError, match=name):
            kind.from_dict(rest)


def test_defaults_are_those_documented() -> None:
    assert ToolCallRecord("c", "x").to_dict() == {
        "call_id": "c",
        "tool_name": "x",
        "arguments": {},
        "result": None,
        "status": "success",
        "error": None,
        "duration_ms": None,
        "sandbox_context": None,
        "metadata": {},
    }
    assert TurnRecord("t").to_dict() == {
        "turn_id": "t",
        "agent_id": None,
        "prompt": "",
        "response_content": None,
        "tool_calls": [],
        "started_at": "",
        "ended_at": None,
        "status": "success",
        "error": None,
        "audit_event_ids": [],
        "metadata": {},
    }
    assert TurnRecord("t").metadata is not TurnRecord("t").metadata


def test_a_view_shows_the_record_itself() -> None:
    session = a_session()
    shown = SessionReplay.load(session)
    assert shown.session is session
    assert shown.turns == session.turns
    assert ReplayView(session, [session.turns[1]]).turns == [session.turns[1]]
    assert ReplayView(session=session, turns=[]).turns == []


def test_a_turn_is_had_by_place_and_by_id() -> None:
    first = view().get_turn(0)
    assert first is not None
    assert first.turn_id == "t0"
    second = view().get_turn("t1")
    assert second is not None
    assert second.agent_id == "b"
    for missing in (3, -1, 99, "missing"):
        assert view().get_turn(missing) is None


def test_calls_and_transitions_of_all_turns() -> None:
    assert [call.tool_name for call in view().get_tool_calls()] == ["search", "calc", "fetch"]
    assert [moved.to_agent for moved in view().get_agent_transitions()] == ["b", "a"]


def test_the_timeline_is_sorted_and_whole() -> None:
    events = view().get_timeline()
    assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)
    assert [event.event_type for event in events] == [
        *["turn_start", "tool_call", "tool_call", "agent_transition", "turn_end"],
        *["turn_start", "tool_call", "agent_transition", "turn_end"],
        *["turn_start", "turn_end"],
    ]
    assert events[1].data["tool_name"] == "search"
    assert events[3].data["to_agent"] == "b"
    assert "search" in events[1].summary


def test_the_timeline_goes_by_time_however_it_is_written() -> None:
    session = SessionRecord(
        "s",
        turns=[
            TurnRecord("late", started_at="2026-01-01T12:00:00"),
            TurnRecord("early", started_at="2026-01-01T13:00:00+02:00"),
            TurnRecord("later", started_at="2026-01-01T12:30:00Z"),
        ],
    )
    found = [event.data["turn_id"] for event in SessionReplay.load(session).get_timeline()]
    assert found == ["early", "late", "later"]
    session.turns[0].started_at = "2027: no time"
    found = [event.data["turn_id"] for event in SessionReplay.load(session).get_timeline()]
    assert found == ["later", "early", "late"]


def test_one_agents_turns() -> None:
    shown = view()
    filtered = shown.filter_by_agent("a")
    assert [turn.turn_id for turn in filtered.turns] == ["t0", "t2"]
    assert filtered.session is shown.session
    assert [call.tool_name for call in shown.filter_by_agent("b").get_tool_calls()] == ["fetch"]
    assert shown.filter_by_agent("missing").turns == []


def test_the_document_has_it_all() -> None:
    text = view().to_markdown()
    assert text.startswith("# Session s\n")
    for part in ("Turn 1: t0", "Turn 3: t2", "search", "calc", "fetch", "prompt 1", "response 2"):
        assert part in text
    assert "a -> b (why)" in text


def test_nothing_in_the_document_has_effect() -> None:
    hostile = "```\n# Not a heading\n````"
    session = SessionRecord(
        "s",
        agent_id="a\n# agent",
        turns=[TurnRecord("t\n# turn", prompt=hostile, error=hostile, status="x\n# status")],
        agent_transitions=[AgentTransitionRecord("a", "b\n# to")],
    )
    session.turns[0].tool_calls.append(ToolCallRecord("c", "x\n# tool", {"a": hostile}, hostile))
    lines = SessionReplay.load(session).to_markdown().split("\n")
    fence = ""
    headings: list[str] = []
    for line in lines:
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        elif line.startswith("#"):
            headings.append(line)
    assert not fence
    assert [heading.split()[0:2] for heading in headings] == [
        ["#", "Session"],
        ["##", "Turn"],
        ["##", "Agents"],
    ]
