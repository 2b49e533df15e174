"""A part of a list of sessions, and how to get the next one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Page"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[_T]):
    """Some sessions of a list, in its order.

    Attributes:
        cursor: gives the next page; None where this is the last one.
        unreadable: why, by id of sessions that cannot be listed; told with the first page, by lists
            that leave them out.
    """

    sessions: tuple[_T, ...]
    cursor: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict[str, str])
