"""What every kind of tool looks like to the registry, and how a bad definition is reported."""

from __future__ import annotations

import keyword
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py_code_mode.errors import InvalidName
from py_code_mode.guest.errors import GUEST_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from py_code_mode.results import JsonValue

#: Attributes of the guest's `tools` namespace, and of each tool in it, that are not tools or
#: recipes.
RESERVED = frozenset(
    {"list", "search", "names", "recipes", "call_sync", "call_async", *GUEST_ERRORS}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a definition, or a part of it, is not in use.

    Attributes:
        source: the file's name in its store.
        line: counted from 1; None where there is no particular one.
    """

    source: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}, line {self.line}"
        return f"{place}: {self.reason}"


class DefinitionError(Exception):
    """A definition does not hold; becomes a `Problem` where the file's name is known."""

    def __init__(self, reason: str, line: int | None) -> None:
        super().__init__(reason)
        self.reason, self.line = reason, line


class Tool(ABC):
    """Something that sessions can call by name.

    Attributes:
        recipes: named ways to call it, with the text that describes each; empty for most.
        source: the file it was read from; None for one added by the program itself.
        line: where in that file.
    """

    name: str
    description: str
    tags: tuple[str, ...]
    recipes: Mapping[str, str]
    source: str | None
    line: int | None

    @abstractmethod
    def parameters(self, recipe: str | None = None) -> dict[str, JsonValue]:
        """The JSON Schema of its arguments, or of a recipe's: an object."""

    @abstractmethod
    async def call(
        self, recipe: str | None, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """Check the arguments, then run. A recipe is one of `recipes`.

        Raises:
            ToolArgumentError: the arguments do not fit; nothing was run.
            ToolFailed: it ran and failed.
            ToolTimeout: it ran too long and was stopped.
        """


def check_name(name: str, kind: str) -> None:
    """Raise `InvalidName` unless `name` works as an attribute of the guest's namespaces."""
    reason = name_fault(name)
    if reason is None and name.startswith("_"):
        reason = "names beginning with an underscore never reach the host"
    if reason is None and name in RESERVED:
        reason = "it already means something else there"
    if reason is not None:
        raise InvalidName(name, kind, reason)


def name_fault(name: str) -> str | None:
    """Why guest code could not write this name; None if it can."""
    if not name.isidentifier():
        return "it must be letters, digits and underscores, and not begin with a digit"
    if keyword.iskeyword(name):
        return "it is a Python keyword"
    return None
