"""A session as a conversation: turns, tool calls and hand-overs, and ways to look at them.

These are the caller's own objects: changed freely, and stored by a `SessionStore`. Keys that nobody
here knows, written by a newer version perhaps, are kept in `extra` and written back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from py_code_mode.journal.records import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AgentTransitionRecord",
    "ReplayView",
    "SessionRecord",
    "SessionReplay",
    "TimelineEvent",
    "ToolCallRecord",
    "TurnRecord",
]


@dataclass(slots=True)
class ToolCallRecord:
    """One call of a tool within a turn.

    Attributes:
        status: ``success``, ``error``, ``timeout`` or ``skipped``.
        extra: keys of `from_dict` that are none of the other fields.
    """

    call_id: str
    tool_name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    result: Any = None
    status: str = "success"
    error: str | None = None
    duration_ms: float | None = None
    sandbox_context: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    extra: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            **self.extra,
            "call_id": self.call_id,
            "tool_name": self.tool_name,
            "arguments": self.arguments,
            "result": self.result,
            "status": self.status,
            "error": self.error,
            "duration_ms": self.duration_ms,
            "sandbox_context": self.sandbox_context,
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The call that `to_dict` gave; what is missing has its default.

        Raises:
            KeyError: `call_id` or `tool_name` is missing.
        """
        return cls(
            call_id=data["call_id"],
            tool_name=data["tool_name"],
            arguments=data.get("arguments") or {},
            result=data.get("result"),
            status=data.get("status", "success"),
            error=data.get("error"),
            duration_ms=data.get("duration_ms"),
            sandbox_context=data.get("sandbox_context"),
            metadata=data.get("metadata") or {},
            extra=_rest(data, _CALL_FIELDS),
        )


@dataclass(slots=True)
class TurnRecord:
    """One prompt and what came of it.

    Attributes:
        started_at, ended_at: ISO 8601.
        status: ``success``, ``error`` or ``cancelled``.
        extra: keys of `from_dict` that are none of the other fields.
    """

    turn_id: str
    agent_id: str | None = None
    prompt: str = ""
    response_content: str | None = None
    tool_calls: list[ToolCallRecord] = field(default_factory=list[ToolCallRecord])
    started_at: str = ""
    ended_at: str | None = None
    status: str = "success"
    error: str | None = None
    audit_event_ids: list[str] = field(default_factory=list[str])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    extra: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, tool calls as dicts."""
        return {
            **self.extra,
            "turn_id": self.turn_id,
            "agent_id": self.agent_id,
            "prompt": self.prompt,
            "response_content": self.response_content,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "status": self.status,
            "error": self.error,
            "audit_event_ids": list(self.audit_event_ids),
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The turn that `to_dict` gave; what is missing has its default.

        Raises:
            KeyError: `turn_id` is missing, or what a tool call needs.
        """
        return cls(
            turn_id=data["turn_id"],
            agent_id=data.get("agent_id"),
            prompt=data.get("prompt", ""),
            response_content=data.get("response_content"),
            tool_calls=[ToolCallRecord.from_dict(call) for call in data.get("tool_calls") or ()],
            started_at=data.get("started_at", ""),
            ended_at=data.get("ended_at"),
            status=data.get("status", "success"),
            error=data.get("error"),
            audit_event_ids=list(data.get("audit_event_ids") or ()),
            metadata=data.get("metadata") or {},
            extra=_rest(data, _TURN_FIELDS),
        )


@dataclass(slots=True)
class AgentTransitionRecord:
    """One agent handed over to another.

    Attributes:
        from_agent: None for the first agent.
        turn_id: the turn in which it happened.
        timestamp: ISO 8601.
        extra: keys of `from_dict` that are none of the other fields.
    """

    from_agent: str | None
    to_agent: str
    reason: str | None = None
    turn_id: str = ""
    timestamp: str = ""
    extra: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            **self.extra,
            "from_agent": self.from_agent,
            "to_agent": self.to_agent,
            "reason": self.reason,
            "turn_id": self.turn_id,
            "timestamp": self.timestamp,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The transition that `to_dict` gave; what is missing has its default.

        Raises:
            KeyError: `to_agent` is missing.
        """
        return cls(
            from_agent=data.get("from_agent"),
            to_agent=data["to_agent"],
            reason=data.get("reason"),
            turn_id=data.get("turn_id", ""),
            timestamp=data.get("timestamp", ""),
            extra=_rest(data, _TRANSITION_FIELDS),
        )


@dataclass(slots=True)
class SessionRecord:
    """A session: what happened, in order, and what it belongs to.

    Attributes:
        workspace_id: of the workspace it belongs to; part of where a store keeps it.
        created_at, updated_at: ISO 8601, in UTC.
        agent_id: its first agent.
        metadata: the caller's; ``ended`` is True after `SessionManager.end_session`.
        extra: keys of `from_dict` that are none of the other fields.
    """

    session_id: str
    workspace_id: str | None = None
    created_at: str = ""
    updated_at: str = ""
    agent_id: str | None = None
    turns: list[TurnRecord] = field(default_factory=list[TurnRecord])
    agent_transitions: list[AgentTransitionRecord] = field(
        default_factory=list[AgentTransitionRecord]
    )
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    extra: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, turns and transitions as dicts."""
        return {
            **self.extra,
            "session_id": self.session_id,
            "workspace_id": self.workspace_id,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "agent_id": self.agent_id,
            "metadata": dict(self.metadata),
            "turns": [turn.to_dict() for turn in self.turns],
            "agent_transitions": [moved.to_dict() for moved in self.agent_transitions],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The session that `to_dict` gave; what is missing has its default.

        Raises:
            KeyError: `session_id` is missing, or what a turn, call or transition needs.
        """
        moves = data.get("agent_transitions") or ()
        return cls(
            session_id=data["session_id"],
            workspace_id=data.get("workspace_id"),
            created_at=data.get("created_at", ""),
            updated_at=data.get("updated_at", ""),
            agent_id=data.get("agent_id"),
            turns=[TurnRecord.from_dict(turn) for turn in data.get("turns") or ()],
            agent_transitions=[AgentTransitionRecord.from_dict(moved) for moved in moves],
            metadata=data.get("metadata") or {},
            extra=_rest(data, _SESSION_FIELDS),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEvent:
    """Something that happened in a session.

    Attributes:
        timestamp: ISO 8601; of a tool call, which has none of its own, when its turn began.
        event_type: ``turn_start``, ``tool_call``, ``turn_end`` or ``agent_transition``.
        summary: one line.
    """

    timestamp: str
    event_type: str
    summary: str
    data: dict[str, Any]


class ReplayView:
    """A session to look at; it shows the record itself, not a copy.

    Args:
        turns: those to show; all of them unless given.
    """

    def __init__(self, session: SessionRecord, turns: Sequence[TurnRecord] | None = None) -> None:
        self.session = session
        self.turns = list(session.turns if turns is None else turns)

    def get_turn(self, index_or_id: int | str) -> TurnRecord | None:
        """A turn by its place, counted from 0, or by its id; None where there is none."""
        if isinstance(index_or_id, int):
            return self.turns[index_or_id] if 0 <= index_or_id < len(self.turns) else None
        return next((turn for turn in self.turns if turn.turn_id == index_or_id), None)

    def get_tool_calls(self) -> list[ToolCallRecord]:
        """The calls of all turns shown."""
        return [call for turn in self.turns for call in turn.tool_calls]

    def get_agent_transitions(self) -> list[AgentTransitionRecord]:
        """All hand-overs of the session."""
        return list(self.session.agent_transitions)

    def get_timeline(self) -> list[TimelineEvent]:
        """What happened, by time; at the same time, in the order of the record."""
        events: list[TimelineEvent] = []

        def add(timestamp: str, event_type: str, summary: str, /, **data: Any) -> None:
            events.append(
                TimelineEvent(
                    timestamp=timestamp, event_type=event_type, summary=summary, data=data
                )
            )

        for turn in self.turns:
            name, agent = turn.turn_id, turn.agent_id
            if turn.started_at:
                add(turn.started_at, "turn_start", f"Turn {name} began", turn_id=name, agent=agent)
            for call in turn.tool_calls:
                summary = f"{call.tool_name} was called ({call.status})"
                add(
                    turn.started_at,
                    "tool_call",
                    summary,
                    turn_id=name,
                    call_id=call.call_id,
                    tool_name=call.tool_name,
                    status=call.status,
                )
            if turn.ended_at:
                summary = f"Turn {name} ended ({turn.status})"
                add(turn.ended_at, "turn_end", summary, turn_id=name, status=turn.status)
        for moved in self.session.agent_transitions:
            add(moved.timestamp, "agent_transition", _moved(moved), **moved.to_dict())
        times = [_time(event.timestamp) for event in events]
        if None in times:  # as texts, which is right where all are written alike
            return sorted(events, key=lambda event: event.timestamp)
        order = sorted(range(len(events)), key=lambda at: times[at] or 0.0)
        return [events[at] for at in order]

    def filter_by_agent(self, agent_id: str) -> ReplayView:
        """The turns of one agent, of the same session."""
        return ReplayView(self.session, [turn for turn in self.turns if turn.agent_id == agent_id])

    def to_markdown(self) -> str:
        """The session as a document; texts stand in fences, so that nothing in them has effect."""
        session = self.session
        facts = {
            "workspace": session.workspace_id,
            "agent": session.agent_id,
            "created": session.created_at,
            "updated": session.updated_at,
        }
        lines = [f"# Session {_line(session.session_id)}", ""]
        lines += [f"- {name}: {_line(value)}" for name, value in facts.items() if value]
        for number, turn in enumerate(self.turns, 1):
            agent = f", {_line(turn.agent_id)}" if turn.agent_id else ""
            lines += ["", f"## Turn {number}: {_line(turn.turn_id)} ({_line(turn.status)}{agent})"]
            if turn.prompt:
                lines += ["", "Prompt:", "", *_fenced(turn.prompt)]
            for call in turn.tool_calls:
                took = f", {call.duration_ms:.4g} ms" if call.duration_ms is not None else ""
                head = f"Call of {_line(call.tool_name)} ({_line(call.status)}{took}):"
                lines += ["", head, "", *_fenced(repr(plain(call.arguments)))]
                if call.error or call.result is not None:
                    lines += ["", *_fenced(call.error or _text(call.result))]
            if turn.response_content:
                lines += ["", "Response:", "", *_fenced(turn.response_content)]
            if turn.error:
                lines += ["", "Error:", "", *_fenced(turn.error)]
        if session.agent_transitions:
            lines += ["", "## Agents", ""]
            lines += [f"- {_line(_moved(moved))}" for moved in session.agent_transitions]
        return "\n".join(lines) + "\n"


class SessionReplay:
    """Where a view begins."""

    @staticmethod
    def load(session: SessionRecord) -> ReplayView:
        """A view of the whole session."""
        return ReplayView(session)


_CALL_FIELDS = frozenset(ToolCallRecord.__slots__)
_TURN_FIELDS = frozenset(TurnRecord.__slots__)
_TRANSITION_FIELDS = frozenset(AgentTransitionRecord.__slots__)
_SESSION_FIELDS = frozenset(SessionRecord.__slots__)
_FENCE = re.compile(r"`{3,}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def _rest(data: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    if known.issuperset(data):
        return {}
    return {key: value for key, value in data.items() if key not in known}


def _time(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _moved(moved: AgentTransitionRecord) -> str:
    reason = f" ({moved.reason})" if moved.reason else ""
    return f"{moved.from_agent or 'nobody'} -> {moved.to_agent}{reason}"


def _line(text: object) -> str:
    return _CONTROLS.sub(" ", str(text))


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(plain(value))


def _fenced(text: str) -> list[str]:
    longest = max((len(run) for run in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}text", text, fence]
