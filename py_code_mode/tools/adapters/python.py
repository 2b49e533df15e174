"""Python functions as tools: added by the program, or found in the tools folder.

Promises: what a function takes is told from its signature and docstring; a wrong argument is an
error before the function runs; what it raises becomes a `ToolFailed` with the original as cause;
one bad file or function hides no other.

A file of the tools folder is executed on the host when it is first needed, and again after it was
changed: it is trusted as the program itself is. Its public functions (or those that ``__all__``
names) become tools; an attribute ``tags`` of a function, a sequence of str, gives its tags.
"""

from __future__ import annotations

import collections.abc
import enum
import functools
import inspect
import itertools
import linecache
import numbers
import re
import reprlib
import sys
import traceback
import types
import typing
import weakref
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, cast

from py_code_mode.arguments import check, texts_of
from py_code_mode.errors import (
    InvalidCall,
    InvalidName,
    ToolArgumentError,
    ToolError,
    ToolFailed,
)
from py_code_mode.tools.tool import DefinitionError, Problem, Tool, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from py_code_mode.results import JsonValue
    from py_code_mode.tools.adapters.threads import Threads

_module_numbers = itertools.count(1)


class FunctionTool(Tool):
    """A Python function, plain or async.

    A plain function runs in a thread: cancelled, it is left to end by itself.

    Args:
        function: any callable that has a signature.
        threads: where plain functions run.
        name: default: the function's own.
        description: default: the first paragraph of its docstring.
        tags: default: those of the function's own attribute ``tags``.
        keep: what must live as long as the tool, such as the module of the function.

    Raises:
        InvalidName: the name does not work as an attribute.
        InvalidCall: `function` cannot be called, or tells no signature; or what is said of it is no
            text.
    """

    def __init__(
        self,
        function: Callable[..., object],
        threads: Threads,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] | None = None,
        source: str | None = None,
        keep: object = None,
    ) -> None:
        check("name", name, (str, NoneType), "a str")
        check("description", description, (str, NoneType), "a str")
        found = name if name is not None else getattr(function, "__name__", None)
        if not isinstance(found, str):
            raise InvalidCall("add_tool", f"{function!r} has no name of its own: pass name=...")
        check_name(found, "a tool")
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise InvalidCall("add_tool", f"{found} cannot be a tool: {error}") from error
        documentation = _Documentation(inspect.getdoc(function) or "")
        self.name = found
        self.description = description if description is not None else documentation.summary
        self.tags = texts_of("tags", tags) if tags is not None else _own_tags(function)
        self.recipes: Mapping[str, str] = {}
        code = getattr(inspect.unwrap(function), "__code__", None)
        self.source = source
        self.line = code.co_firstlineno if isinstance(code, types.CodeType) else None
        self._function, self._threads, self._keep = function, threads, keep
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
        )
        kinds = _annotated_kinds(function, self._signature)
        self._schema = _schema(self._signature, kinds, documentation.parameters)
        self._checked = {n: kind for n, kind in kinds.items() if kind.is_checked}
        named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = self._signature.parameters.values()
        self._by_name = frozenset(p.name for p in parameters if p.kind in named)
        self._required = frozenset(
            p.name
            for p in parameters
            if p.default is inspect.Parameter.empty
            and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        )

    def parameters(self, recipe: str | None = None) -> dict[str, JsonValue]:
        """The JSON Schema of its parameters, as far as annotations tell."""
        return self._schema

    async def call(
        self, recipe: str | None, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """Call the function: an async one in this event loop, a plain one in a thread."""
        call = self._call_of(args, kwargs)
        if self._is_async:
            return await self._awaited(call())
        result = await self._threads.run(self.name, functools.partial(self._run, call))
        # A plain function may hand back what an async one it wraps has returned.
        return await self._awaited(result) if inspect.isawaitable(result) else result

    def _call_of(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Callable[[], object]:
        """The function with its arguments, checked."""
        if not args and self._required <= kwargs.keys() <= self._by_name:
            # All by name, as most calls are: `bind` would take as long as the rest of the call.
            given = dict(kwargs)
            self._check(given)
            return functools.partial(self._function, **given)
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ToolArgumentError(self.name, f"{error}; it takes {self._signature}") from None
        self._check(bound.arguments)
        return functools.partial(self._function, *bound.args, **bound.kwargs)

    def _check(self, given: dict[str, object]) -> None:
        for name, kind in self._checked.items():
            if name in given:
                given[name] = kind.checked(self.name, name, given[name])

    def _run(self, call: Callable[[], object]) -> object:
        try:
            return call()
        except ToolError:
            raise
        except BaseException as error:  # in a thread, none of them is about this program
            raise self._failure(error) from error

    async def _awaited(self, result: object) -> object:
        try:
            return await cast("collections.abc.Awaitable[object]", result)
        except ToolError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> ToolFailed:
        text = "".join(traceback.format_exception_only(error)).strip()
        # As the traceback would name it, without the module that a class of the file is in.
        name = type(error).__qualname__
        full = f"{type(error).__module__}.{name}"
        return ToolFailed(self.name, text.replace(full, name, 1) if text.startswith(full) else text)


def _own_tags(function: object) -> tuple[str, ...]:
    tags = getattr(function, "tags", ())
    if isinstance(tags, list | tuple | set | frozenset):
        return tuple(tag for tag in cast("Iterable[object]", tags) if isinstance(tag, str))
    return ()


# --- what a signature tells ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an annotation says about a value.

    Attributes:
        accepts: classes that fit; empty: no check.
        choices: values that fit, where only some do.
        members: the enumeration that values are turned into.
    """

    schema: dict[str, JsonValue]
    label: str = ""
    accepts: tuple[type, ...] = ()
    refuses_bool: bool = False
    choices: tuple[object, ...] = ()
    members: type[enum.Enum] | None = None

    @property
    def is_checked(self) -> bool:
        return bool(self.accepts or self.choices or self.members)

    def checked(self, tool: str, name: str, value: object) -> object:
        """The value as the function gets it; raises `ToolArgumentError`."""
        if self.accepts:
            if isinstance(value, self.accepts) and not (
                self.refuses_bool and isinstance(value, bool)
            ):
                return value
        elif self.members is not None:
            if isinstance(value, self.members):
                return value
            for member in self.members:
                if _is_same(value, member.value):
                    return member
        elif any(_is_same(value, choice) for choice in self.choices):
            return value
        raise ToolArgumentError(
            tool,
            f"{name!r} must be {self.label}, not {reprlib.repr(value)} ({type(value).__name__})",
        )


def _is_same(value: object, choice: object) -> bool:
    return type(value) is type(choice) and value == choice


_ANYTHING = _Kind({})
_PLAIN: dict[object, _Kind] = {
    str: _Kind({"type": "string"}, "a string", (str,)),
    bool: _Kind({"type": "boolean"}, "a boolean", (bool,)),
    # By what they can do, so that a NumPy number is a number; the plain classes first, for to ask
    # an abstract one takes eight times as long.
    int: _Kind({"type": "integer"}, "an integer", (int, numbers.Integral), refuses_bool=True),
    float: _Kind({"type": "number"}, "a number", (float, int, numbers.Real), refuses_bool=True),
    None: _Kind({"type": "null"}, "None", (types.NoneType,)),
    types.NoneType: _Kind({"type": "null"}, "None", (types.NoneType,)),
    list: _Kind({"type": "array"}),
    tuple: _Kind({"type": "array"}),
    set: _Kind({"type": "array"}),
    frozenset: _Kind({"type": "array"}),
    dict: _Kind({"type": "object"}),
    collections.abc.Sequence: _Kind({"type": "array"}),
    collections.abc.Iterable: _Kind({"type": "array"}),
    collections.abc.Mapping: _Kind({"type": "object"}),
}


def _kind(annotation: object) -> _Kind:
    try:
        if annotation in _PLAIN:
            return _PLAIN[annotation]
    except TypeError:
        return _ANYTHING  # unhashable: not an annotation that we know
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind = _kind(parts[0])
        notes = [part for part in parts[1:] if isinstance(part, str)]
        return _with_schema(kind, {"description": notes[0]}) if notes else kind
    if origin is typing.Literal:
        schema: dict[str, JsonValue] = {"enum": [part for part in parts if _is_json(part)]}
        return _Kind(schema, f"one of {', '.join(map(repr, parts))}", choices=parts)
    if origin is typing.Union or origin is types.UnionType:
        return _union([_kind(part) for part in parts])
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        values: list[object] = [member.value for member in annotation]
        schema = {"enum": [value for value in values if _is_json(value)]}
        return _Kind(schema, f"one of {', '.join(map(repr, values))}", members=annotation)
    outer = _PLAIN.get(origin) if origin is not None else None
    if outer is not None:
        return _with_schema(outer, _contents(outer.schema, parts))
    return _ANYTHING


def _contents(schema: dict[str, JsonValue], parts: tuple[object, ...]) -> dict[str, JsonValue]:
    if schema.get("type") == "array" and (len(parts) == 1 or parts[1:] == (...,)):
        items = _kind(parts[0]).schema
        return {"items": items} if items else {}
    if schema.get("type") == "object" and len(parts) == 2:
        values = _kind(parts[1]).schema
        return {"additionalProperties": values} if values else {}
    return {}


def _union(kinds: list[_Kind]) -> _Kind:
    if any(not kind.schema for kind in kinds):
        return _ANYTHING
    schema: dict[str, JsonValue] = {"anyOf": [kind.schema for kind in kinds]}
    if not all(kind.accepts for kind in kinds):
        return _Kind(schema)
    return _Kind(
        schema,
        " or ".join(kind.label for kind in kinds),
        tuple(accepted for kind in kinds for accepted in kind.accepts),
        refuses_bool=not any(bool in kind.accepts for kind in kinds),
    )


def _with_schema(kind: _Kind, more: dict[str, JsonValue]) -> _Kind:
    return _Kind(
        {**kind.schema, **more},
        kind.label,
        kind.accepts,
        kind.refuses_bool,
        kind.choices,
        kind.members,
    )


def _is_json(value: object) -> typing.TypeGuard[JsonValue]:
    if isinstance(value, list):
        return all(_is_json(item) for item in cast("list[object]", value))
    if isinstance(value, dict):
        entries = cast("dict[object, object]", value)
        return all(isinstance(key, str) and _is_json(item) for key, item in entries.items())
    if isinstance(value, float):
        return value - value == 0  # JSON has neither infinity nor nan
    return value is None or type(value) in (bool, int, str)


def _annotated_kinds(
    function: Callable[..., object], signature: inspect.Signature
) -> dict[str, _Kind]:
    """What is known of each parameter that is annotated; one that cannot be read hides no other."""
    target: Any = inspect.unwrap(function)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(cast("functools.partial[object]", target).func)
    if not inspect.isroutine(target):
        target = getattr(target, "__call__", target)  # noqa: B004 - the method itself is read
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except Exception:
        # A name that exists for type checkers only, say: read one annotation at a time.
        hints = dict(_readable_hints(target, signature))
    kinds: dict[str, _Kind] = {}
    for name, parameter in signature.parameters.items():
        if name not in hints or parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            continue
        kind = _kind(hints[name])
        if parameter.default is None and kind.accepts and types.NoneType not in kind.accepts:
            kind = _union([kind, _PLAIN[None]])
        elif parameter.default is None and kind.is_checked and not kind.accepts:
            kind = _Kind(kind.schema)  # None is fine too, and telling so is worth no more code
        kinds[name] = kind
    return kinds


def _readable_hints(function: object, signature: inspect.Signature) -> Iterator[tuple[str, object]]:
    names = getattr(function, "__globals__", {})
    for name, parameter in signature.parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                # The function's own source, which runs with this process's rights anyway.
                annotation = eval(annotation, names)
            except Exception:
                continue  # unknown: neither listed nor checked
        if annotation is not inspect.Parameter.empty:
            yield name, annotation


def _schema(
    signature: inspect.Signature, kinds: Mapping[str, _Kind], descriptions: Mapping[str, str]
) -> dict[str, JsonValue]:
    properties: dict[str, JsonValue] = {}
    required: list[JsonValue] = []
    is_open = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            is_open = True
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue  # cannot be given by name
        schema = dict(kinds.get(name, _ANYTHING).schema)
        if name in descriptions:
            schema["description"] = descriptions[name]
        default: object = parameter.default
        if default is inspect.Parameter.empty:
            required.append(name)
        else:
            if isinstance(default, enum.Enum):
                default = default.value
            if _is_json(default):
                schema["default"] = default
        properties[name] = schema
    whole: dict[str, JsonValue] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": is_open,
    }
    if required:
        whole["required"] = required
    return whole


_SECTION = re.compile(r"[A-Z][A-Za-z ]*:\s*")
_PARAMETER_SECTION = re.compile(r"(Args|Arguments|Parameters|Keyword Args|Keyword Arguments):\s*")
_PARAMETER_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")


class _Documentation:
    """The summary of a docstring and, in Google style, what it says of each parameter."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        summary: list[str] = []
        for line in lines:
            if not line.strip() or _PARAMETER_SECTION.fullmatch(line):
                break
            summary.append(line.strip())
        self.summary = " ".join(summary)
        self.parameters: dict[str, str] = {}
        is_inside, depth, current = False, 0, ""
        for line in lines:
            bare = line.strip()
            indent = len(line) - len(line.lstrip())
            if not indent and bare:
                is_inside = _PARAMETER_SECTION.fullmatch(line) is not None
                depth, current = 0, ""
                continue
            if not is_inside or not bare:
                continue
            depth = depth or indent
            entry = _PARAMETER_ENTRY.fullmatch(bare) if indent <= depth else None
            if entry is not None:
                current = entry[1]
                self.parameters[current] = entry[2]
            elif current:
                self.parameters[current] = f"{self.parameters[current]} {bare}".strip()


# --- files of the tools folder ------------------------------------------------------------------


def load_file(
    source: str, location: str, text: bytes, threads: Threads
) -> tuple[list[FunctionTool], list[Problem]]:
    """Execute a file and make tools of its public functions.

    Its module can be found in `sys.modules`, as dataclasses and pickle need, for as long as one of
    its tools is in use.

    Args:
        source: the file's name in its store, for problems.
        location: the file's path, or what stands for it, for tracebacks.

    Returns:
        The tools, and why the rest is not among them.
    """
    name = f"_py_code_mode_tools_{next(_module_numbers)}"
    module = types.ModuleType(name)
    module.__file__ = location
    try:
        code = compile(text, location, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        return [], [Problem(source=source, line=line, reason=f"not valid Python: {reason}")]
    sys.modules[name] = module
    # The tools hold the module's keeper; with the last of them the name goes.
    keeper = _Keeper()
    weakref.finalize(keeper, sys.modules.pop, name, None)
    _remember_source(location, text)
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        line = _line_in(location, error)
        return [], [Problem(source=source, line=line, reason=f"could not be loaded: {reason}")]
    tools: list[FunctionTool] = []
    problems: list[Problem] = []
    try:
        functions = list(_functions(module))
    except DefinitionError as error:
        return [], [Problem(source=source, line=error.line, reason=error.reason)]
    for public, function in functions:
        try:
            tools.append(FunctionTool(function, threads, name=public, source=source, keep=keeper))
        except (InvalidName, InvalidCall) as error:
            found = getattr(function, "__code__", None)
            line = found.co_firstlineno if isinstance(found, types.CodeType) else None
            problems.append(Problem(source=source, line=line, reason=str(error)))
    return tools, problems


class _Keeper:
    """Lives as long as the tools of one file."""


def _functions(module: types.ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    contents = vars(module)
    exported: object = contents.get("__all__")
    if exported is None:
        for name, value in contents.items():
            is_own = inspect.isfunction(value) and value.__module__ == module.__name__
            if is_own and not name.startswith("_"):
                yield name, value
        return
    if not isinstance(exported, list | tuple):
        raise DefinitionError("__all__ must be a list of names", None)
    for name in cast("Sequence[object]", exported):
        value = contents.get(name) if isinstance(name, str) else None
        if not isinstance(name, str) or value is None:
            raise DefinitionError(f"__all__ lists {name!r}, which the file does not define", None)
        if callable(value) and not inspect.isclass(value):
            yield name, value


def _remember_source(location: str, text: bytes) -> None:
    """Let tracebacks and `inspect` show the lines that were executed, not the file's newest."""
    try:
        lines = text.decode("utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError:
        return  # another encoding: the file is read when a line is asked for
    linecache.cache[location] = (len(text), None, lines, location)


def _line_in(location: str, error: BaseException) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == location:
        return error.lineno
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == location
    ]
    return lines[-1] if lines else None
