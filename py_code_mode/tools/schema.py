"""Command line tools as data, and the check of a call's arguments.

Promise: arguments are checked before anything runs, and what is refused is told in one sentence
that says what is allowed.
"""

from __future__ import annotations

import difflib
import functools
import math
import reprlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from py_code_mode.errors import ToolArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jsonschema import ValidationError

    from py_code_mode.results import JsonValue

ParameterType: TypeAlias = Literal["boolean", "string", "integer", "number", "array"]
Value: TypeAlias = "bool | int | float | str | list[Value]"

DEFAULT_TIMEOUT = 60.0
DEFAULT_MAX_OUTPUT = 1 << 20

TYPES: tuple[str, ...] = get_args(ParameterType)
_NOTHING: Mapping[str, Value] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One argument of a command line tool.

    Attributes:
        default: given to the command when the caller gives nothing; None: nothing is given then.
        short: without its dash; None: there is none.
        long: without its dashes; ends with ``=`` where the command wants ``--name=value``.
    """

    name: str
    type: ParameterType
    description: str = ""
    required: bool = False
    default: Value | None = None
    enum: tuple[Value, ...] = ()
    pattern: str | None = None
    is_positional: bool = False
    short: str | None = None
    long: str | None = None

    def json_schema(self) -> dict[str, JsonValue]:
        """The JSON Schema of its value."""
        schema: dict[str, JsonValue] = {"type": self.type}
        values = schema
        if self.type == "array":
            # What restricts text says nothing about numbers, so only text is taken then.
            plain = not self.enum and self.pattern is None
            values = schema["items"] = {"type": ["string", "number"] if plain else "string"}
        if self.enum:
            values["enum"] = cast("list[JsonValue]", list(self.enum))
        if self.pattern is not None:
            values["pattern"] = self.pattern
        if self.description:
            schema["description"] = self.description
        if self.default is not None:
            schema["default"] = cast("JsonValue", self.default)
        return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named way to call a tool.

    Attributes:
        fixed: what callers cannot change: presets, and defaults of parameters it does not show.
        parameters: what callers may give.
    """

    name: str
    description: str = ""
    fixed: Mapping[str, Value] = field(default_factory=lambda: _NOTHING)
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line tool, as its file describes it.

    Attributes:
        program: the command and the arguments that are always there.
        timeout: in seconds; None = no limit.
        env: names of host variables that are passed on.
        max_output: bytes of standard output that are kept.
        takes_dashdash: whether ``--`` may stand before positional values.
        parameters: options in the order of the file, then positionals in theirs.
    """

    name: str
    program: tuple[str, ...]
    source: str
    line: int | None = None
    description: str = ""
    timeout: float | None = DEFAULT_TIMEOUT
    tags: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    max_output: int = DEFAULT_MAX_OUTPUT
    takes_dashdash: bool = False
    parameters: tuple[Parameter, ...] = ()
    recipes: tuple[Recipe, ...] = ()


def object_schema(parameters: Iterable[Parameter]) -> dict[str, JsonValue]:
    """The JSON Schema of all arguments of a call; others than these are refused."""
    known = tuple(parameters)
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {parameter.name: parameter.json_schema() for parameter in known},
        "additionalProperties": False,
    }
    required: list[JsonValue] = [parameter.name for parameter in known if parameter.required]
    if required:
        schema["required"] = required
    return schema


class ArgumentCheck:
    """Checks named arguments against parameters, with a validator compiled at first use."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._parameters = {parameter.name: parameter for parameter in parameters}

    @functools.cached_property
    def _errors(self) -> Callable[[object], Iterator[ValidationError]]:
        from jsonschema import Draft202012Validator

        validator = Draft202012Validator(object_schema(self._parameters.values()))
        return cast("Callable[[object], Iterator[ValidationError]]", validator.iter_errors)  # pyright: ignore[reportUnknownMemberType]

    def check(self, tool: str, arguments: Mapping[str, object]) -> None:
        """Raise `ToolArgumentError` for the first argument that does not fit."""
        for name, value in arguments.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ToolArgumentError(tool, f"{name!r} must be a finite number, not {value}")
        errors = list(self._errors(arguments))
        if errors:
            # A misspelt name explains a missing one, so it is told first.
            first = min(errors, key=lambda error: _URGENCY.get(str(error.validator), 2))
            raise ToolArgumentError(tool, self._sentence(first, arguments))

    def _sentence(self, error: ValidationError, arguments: Mapping[str, object]) -> str:
        rule = str(error.validator)
        if rule == "additionalProperties":
            unknown = next(name for name in arguments if name not in self._parameters)
            near = nearest(unknown, self._parameters)
            return f"no argument named {unknown!r}{near}; it takes {self._all()}"
        if rule == "required":
            missing = next(
                name
                for name, parameter in self._parameters.items()
                if parameter.required and name not in arguments
            )
            return f"argument {missing!r} is missing; it takes {self._all()}"
        place = "".join(
            f"[{part}]" if number else str(part) for number, part in enumerate(error.absolute_path)
        )
        allowed = {
            "type": f"must be {_kinds(error.validator_value)}",
            "enum": f"must be one of {', '.join(map(repr, _items(error.validator_value)))}",
            "pattern": f"must match {error.validator_value}",
        }.get(rule, error.message)
        value: object = error.instance
        found = (
            f"{reprlib.repr(value)} ({type(value).__name__})"
            if rule == "type"
            else reprlib.repr(value)
        )
        return f"{place!r} {allowed}, not {found}"

    def _all(self) -> str:
        described = (
            f"{name} ({parameter.type}{', required' if parameter.required else ''})"
            for name, parameter in self._parameters.items()
        )
        return ", ".join(described) or "no arguments"


_URGENCY = {"additionalProperties": 0, "required": 1}
KINDS = {
    "boolean": "a boolean",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "array": "a list",
}


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]


def _kinds(types: object) -> str:
    return " or ".join(KINDS.get(str(kind), str(kind)) for kind in _items(types))


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
