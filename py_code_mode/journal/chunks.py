"""A conversation as data: its messages, who it belongs to, and where its code ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, cast, overload
from uuid import UUID

from msgspec import Struct

from py_code_mode.arguments import check_type
from py_code_mode.journal.ids import new_session_id
from py_code_mode.journal.lineage import LineageKind

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ChunkKind", "ChunkRow", "ChunkTable", "SandboxSpec", "TokenUsage", "Transcript"]


class ChunkKind(StrEnum):
    """Who a message is from."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL_RESULT = "tool_result"


class ChunkRow(Struct, frozen=True):
    """One message. The payload of a text has it as ``content``; nobody changes it afterwards."""

    kind: ChunkKind
    payload: dict[str, Any]

    def __post_init__(self) -> None:
        check_type("ChunkRow", "kind", self.kind, ChunkKind)
        check_type("ChunkRow", "payload", self.payload, dict)

    @classmethod
    def system(cls, text: str) -> Self:
        """A system prompt."""
        return cls(ChunkKind.SYSTEM, {"content": text})

    @classmethod
    def user(cls, text: str) -> Self:
        """What a user said."""
        return cls(ChunkKind.USER, {"content": text})


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """The messages of a conversation, oldest first."""

    rows: tuple[ChunkRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ChunkRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ChunkRow, ...]: ...
    def __getitem__(self, index: int | slice) -> ChunkRow | tuple[ChunkRow, ...]:
        return self.rows[index]

    def __iter__(self) -> Iterator[ChunkRow]:
        return iter(self.rows)

    def extend(self, *additional: ChunkRow) -> ChunkTable:
        """A new table with more messages at the end."""
        return ChunkTable((*self.rows, *additional))


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenUsage:
    """What a model took, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
        )

    @classmethod
    def from_dict(cls, data: object) -> Self | None:
        """None for what is no mapping; what it lacks, or has in another form, is 0."""
        if not isinstance(data, Mapping):
            return None
        found = cast("Mapping[object, object]", data)
        prompt, completion, total = (
            _count(found.get(name))
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)

    def to_dict(self) -> dict[str, int]:
        """As a journal has it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxSpec:
    """How the sandbox of a session was opened; each kind uses what it knows.

    Attributes:
        options: what the recorded one has besides, and fields that do not fit.
    """

    image: str | None = None
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str] | None = None
    timeout: timedelta | None = None
    working_dir: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_dict(cls, data: object) -> Self | None:
        """None for what is no mapping. Never raises: whatever does not fit is an option."""
        if not isinstance(data, Mapping):
            return None
        rest = {str(key): value for key, value in cast("Mapping[Any, Any]", data).items()}
        image, folder = _taken(rest, "image", str), _taken(rest, "working_dir", str)
        entrypoint, env = _taken(rest, "entrypoint", list), _taken(rest, "env", dict)
        timeout = None
        seconds = rest.get("timeout_seconds")
        if isinstance(seconds, int | float) and not isinstance(seconds, bool):
            try:
                timeout = timedelta(seconds=seconds)
                del rest["timeout_seconds"]
            except (OverflowError, ValueError):
                pass  # more than a timedelta holds, so it stays an option
        elif seconds is None:
            rest.pop("timeout_seconds", None)
        return cls(
            image=image,
            entrypoint=tuple(entrypoint) if entrypoint is not None else None,
            env=env,
            timeout=timeout,
            working_dir=folder,
            options=rest,
        )

    def to_dict(self) -> dict[str, Any]:
        """As a journal has it."""
        return {
            "image": self.image,
            "entrypoint": list(self.entrypoint) if self.entrypoint is not None else None,
            "env": dict(self.env) if self.env is not None else None,
            "timeout_seconds": self.timeout.total_seconds() if self.timeout is not None else None,
            "working_dir": self.working_dir,
            **self.options,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """A conversation that a session can begin with, or that a `SessionWriter` writes down.

    Attributes:
        sandbox_backend, sandbox_spec: where its code ran, and is to run.
        sandbox_handle_id: what that is called there, if one can come back to it.
        sandbox: what a reattaching hook gave, else None: whoever needs one opens it.
        cumulative_usage: of all models so far; None where nobody counted.
    """

    chunk_table: ChunkTable = ChunkTable()
    id: UUID = field(default_factory=lambda: UUID(new_session_id()))
    sandbox_backend: str | None = None
    sandbox_spec: SandboxSpec | None = None
    sandbox_handle_id: UUID | None = None
    sandbox: object = None
    parent_session_ids: tuple[UUID, ...] = ()
    lineage_operator: str = "implicit"
    lineage_kind: LineageKind = LineageKind.UNKNOWN
    lineage_extras: tuple[tuple[str, Any], ...] = ()
    cumulative_usage: TokenUsage | None = None

    @classmethod
    def from_agent_prompt(cls, prompt: str) -> Self:
        """One that has a system prompt only."""
        return cls(
            chunk_table=ChunkTable((ChunkRow.system(prompt),)),
            lineage_operator="from_agent_prompt",
            lineage_kind=LineageKind.LEAF_SYSTEM,
        )

    @classmethod
    def from_user_message(cls, message: str) -> Self:
        """One that begins with what a user said."""
        return cls(
            chunk_table=ChunkTable((ChunkRow.user(message),)),
            lineage_operator="from_user_message",
            lineage_kind=LineageKind.LEAF_USER,
        )

    @property
    def system_prompt(self) -> str | None:
        """The text of the first system message."""
        for row in self.chunk_table:
            if row.kind is ChunkKind.SYSTEM:
                content = row.payload.get("content")
                return None if content is None else str(content)
        return None

    @property
    def conversation(self) -> ChunkTable:
        """The messages without system prompts: for an agent that has its own prompt already."""
        return ChunkTable(tuple(row for row in self.chunk_table if row.kind != ChunkKind.SYSTEM))


def _count(value: object) -> int:
    try:
        return int(cast("Any", value) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _taken(data: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """The field, out of the mapping, if it is of that kind, or None."""
    value = data.get(name)
    if value is None or isinstance(value, kind):
        data.pop(name, None)
        return value
    return None
