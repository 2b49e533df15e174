"""Reads command line tools from YAML.

Promise: a definition that does not hold is refused with the line that is wrong, never half used.

A definition::

    name: curl                       # default: the file's name
    description: Make HTTP requests
    command: curl                    # split as a shell would, or a list; no shell runs
    timeout: 60                      # seconds; null = no limit
    tags: [http]
    env: [NETRC]                     # host variables that the command may see
    max_output: 1048576              # bytes of standard output that are kept
    dashdash: true                   # the command takes `--` before its positional values
    schema:
      options:
        silent: {type: boolean, short: s}              # -s, only when true
        header: {type: array, short: H}                # -H a -H b
        proto: {type: string, long: proto}             # --proto v
        color: {type: string, long: "color=", enum: [always, never]}    # --color=v
      positional:
        - {name: url, type: string, required: true, pattern: "^https?://"}
    recipes:
      get:
        description: Simple GET
        preset: {silent: true}       # fixed, unless also named under params
        params: {url: {description: What to fetch}}    # all that a caller may give

A parameter has `type` (boolean, string, integer, number, array), `description`, `required`,
`default` (given to the command when the caller gives nothing), `enum` and `pattern` (of an array:
of its items); an option also `short` and `long` (default: its name). A recipe's `params` may
change `description`, `required` and `default`.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, cast

from py_code_mode.errors import InvalidName
from py_code_mode.tools.schema import (
    DEFAULT_MAX_OUTPUT,
    DEFAULT_TIMEOUT,
    KINDS,
    TYPES,
    Command,
    Parameter,
    ParameterType,
    Recipe,
    Value,
    nearest,
)
from py_code_mode.tools.tool import DefinitionError, check_name, name_fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import yaml

#: A definition is a page of text; more is a mistake, and parsing it could take long.
MAX_DEFINITION = 1 << 20

_SHORT = re.compile(r"[^\s\-=\0][^\s=\0]*")
_LONG = re.compile(r"[^\s\-=\0][^\s=\0]*=?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_command(source: str, text: bytes) -> Command:
    """Read a YAML definition; `source` is its file's name.

    Raises:
        DefinitionError: it does not hold; says why, and in which line.
    """
    import yaml

    if len(text) > MAX_DEFINITION:
        raise DefinitionError(f"the file is larger than {MAX_DEFINITION:,} bytes", None)
    decoded = _decoded(text)
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(decoded)
        root = loader.get_single_node()
        if root is None:
            raise DefinitionError("the file is empty", 1)
        return _command(_Mapping(root, "the file", loader), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be read"
        # The end of the file is reported as a line of its own, which no editor shows.
        last = max(1, len(text.splitlines()))
        line = min(mark.line + 1, last) if mark is not None else None
        raise DefinitionError(f"not valid YAML: {reason}", line) from error
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        raise DefinitionError(f"not valid YAML: {error.reason}", line) from error
    except (RecursionError, yaml.YAMLError) as error:
        raise DefinitionError(f"not valid YAML: {error}", None) from error


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise DefinitionError("the file is not UTF-8 text", line) from error


def _line(node: yaml.Node) -> int | None:
    return node.start_mark.line + 1 if node.start_mark is not None else None  # pyright: ignore[reportUnnecessaryComparison]


class _Mapping:
    """A YAML mapping whose entries are asked for by name, each with its line."""

    def __init__(self, node: yaml.Node, what: str, loader: yaml.SafeLoader) -> None:
        import yaml

        self._what, self._loader, self.line = what, loader, _line(node)
        self._nodes: dict[str, yaml.Node] = {}
        self._lines: dict[str, int | None] = {}
        if _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            raise DefinitionError(f"{what} must be a mapping of names to values", self.line)
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise DefinitionError(f"a name in {what} must be plain text", _line(key))
            # As written: `no` and `on` are names here, not booleans.
            name = str(key.value)
            if name in self._nodes:
                raise DefinitionError(f"{what} has {name!r} twice", _line(key))
            self._nodes[name], self._lines[name] = value, _line(key)

    def __contains__(self, name: str) -> bool:
        return name in self._nodes and not _is_null(self._nodes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def line_of(self, name: str) -> int | None:
        return self._lines.get(name, self.line)

    def node(self, name: str) -> yaml.Node:
        return self._nodes[name]

    def only(self, *known: str) -> None:
        for name in self._nodes:
            if name not in known:
                near = nearest(name, known) or f"; known: {', '.join(known)}"
                raise DefinitionError(
                    f"unknown key {name!r} in {self._what}{near}", self._lines[name]
                )

    def mapping(self, name: str, what: str) -> _Mapping:
        import yaml

        node = self._nodes.get(name) or yaml.MappingNode("tag:yaml.org,2002:map", [])
        return _Mapping(node, what, self._loader)

    def sequence(self, name: str) -> list[yaml.Node]:
        import yaml

        if name not in self:
            return []
        node = self._nodes[name]
        if not isinstance(node, yaml.SequenceNode):
            raise DefinitionError(f"{name!r} in {self._what} must be a list", _line(node))
        return list(node.value)

    def text(self, name: str) -> str | None:
        return self.as_text(self._nodes[name], repr(name)) if name in self else None

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self.as_text(node, f"an entry of {name!r}") for node in self.sequence(name))

    def flag(self, name: str) -> bool | None:
        value = self.constructed(name)
        if value is None or isinstance(value, bool):
            return value
        raise DefinitionError(f"{name!r} must be true or false", _line(self._nodes[name]))

    def constructed(self, name: str) -> object:
        """A plain value as YAML types it; None where the entry is missing or null."""
        return self.as_scalar(self._nodes[name], repr(name)) if name in self else None

    def as_text(self, node: yaml.Node, what: str) -> str:
        """A plain value as written, whatever YAML would make of it."""
        import yaml

        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            raise DefinitionError(f"{what} must be text", _line(node))
        value = str(node.value)
        if "\0" in value:
            raise DefinitionError(f"{what} holds a NUL character", _line(node))
        return value

    def as_scalar(self, node: yaml.Node, what: str) -> object:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            raise DefinitionError(f"{what} must be a single value", _line(node))
        try:
            return cast("object", self._loader.construct_object(node))
        except ValueError as error:  # such as a date in month 13
            raise DefinitionError(f"{what}: {error}", _line(node)) from error

    def entry(self, node: yaml.Node, what: str) -> _Mapping:
        return _Mapping(node, what, self._loader)


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _command(root: _Mapping, source: str) -> Command:
    root.only(
        "name",
        "type",
        "description",
        "command",
        "timeout",
        "tags",
        "env",
        "max_output",
        "dashdash",
        "schema",
        "recipes",
    )
    kind = root.text("type")
    if kind not in (None, "cli"):
        raise DefinitionError(f"type {kind!r} is not known; known: cli", root.line_of("type"))
    written = root.text("name")
    name = (written if written is not None else PurePosixPath(source).stem).replace("-", "_")
    _named(name, "a tool", root.line_of("name"))
    schema = root.mapping("schema", "schema")
    schema.only("options", "positional")
    parameters = (*_options(schema), *_positionals(schema))
    taken: set[str] = set()
    for parameter, line in parameters:
        if parameter.name in taken:
            raise DefinitionError(f"there are two parameters named {parameter.name!r}", line)
        taken.add(parameter.name)
    plain = tuple(parameter for parameter, _ in parameters)
    return Command(
        name=name,
        source=source,
        line=root.line_of("name"),
        description=(root.text("description") or "").strip(),
        program=_program(root),
        timeout=_timeout(root),
        tags=root.texts("tags"),
        env=_variables(root),
        max_output=_max_output(root),
        takes_dashdash=bool(root.flag("dashdash")),
        parameters=plain,
        recipes=tuple(_recipes(root, plain)),
    )


def _named(name: str, kind: str, line: int | None) -> None:
    try:
        check_name(name, kind)
    except InvalidName as error:
        raise DefinitionError(str(error), line) from error


def _program(root: _Mapping) -> tuple[str, ...]:
    import yaml

    if "command" not in root:
        raise DefinitionError("'command' is missing: the program that the tool runs", root.line)
    node, line = root.node("command"), root.line_of("command")
    if isinstance(node, yaml.SequenceNode):
        words = root.texts("command")
    else:
        try:
            words = tuple(shlex.split(root.as_text(node, "'command'")))
        except ValueError as error:
            raise DefinitionError(f"'command' cannot be split into words: {error}", line) from error
    if not words or not words[0]:
        raise DefinitionError("'command' is empty", line)
    return words


def _timeout(root: _Mapping) -> float | None:
    if "timeout" not in root:
        # Written as null it means that there is no limit.
        return None if "timeout" in set(root) else DEFAULT_TIMEOUT
    value = root.constructed("timeout")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DefinitionError(
            "'timeout' must be a number of seconds above 0, or null for no limit",
            root.line_of("timeout"),
        )
    return float(value)


def _max_output(root: _Mapping) -> int:
    value = root.constructed("max_output")
    if value is None:
        return DEFAULT_MAX_OUTPUT
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DefinitionError(
            "'max_output' must be a whole number of bytes above 0", root.line_of("max_output")
        )
    return value


def _variables(root: _Mapping) -> tuple[str, ...]:
    for node in root.sequence("env"):
        name = root.as_text(node, "an entry of 'env'")
        if not _VARIABLE.fullmatch(name):
            raise DefinitionError(
                f"'env' lists names of variables to pass on, which {name!r} is not", _line(node)
            )
    return root.texts("env")


_COMMON = ("type", "description", "required", "default", "enum", "pattern")


def _options(schema: _Mapping) -> Iterator[tuple[Parameter, int | None]]:
    options = schema.mapping("options", "options")
    for written in options:
        line = options.line_of(written)
        entry = options.mapping(written, f"option {written!r}")
        entry.only(*_COMMON, "short", "long")
        short, long = entry.text("short"), entry.text("long")
        if short is not None:
            short = short.removeprefix("-")
            if not _SHORT.fullmatch(short):
                raise DefinitionError(f"{short!r} cannot be a short option", entry.line_of("short"))
        if long is not None:
            long = long.removeprefix("--")
            if not _LONG.fullmatch(long):
                raise DefinitionError(f"{long!r} cannot be a long option", entry.line_of("long"))
        if short is None and long is None:
            long = written.replace("_", "-")
        yield _parameter(written, entry, line, short=short, long=long), line


def _positionals(schema: _Mapping) -> Iterator[tuple[Parameter, int | None]]:
    nodes = schema.sequence("positional")
    for position, node in enumerate(nodes):
        entry = schema.entry(node, "a positional parameter")
        entry.only("name", *_COMMON)
        name = entry.text("name")
        if name is None:
            raise DefinitionError("a positional parameter has no 'name'", entry.line)
        parameter = _parameter(name, entry, entry.line_of("name"), is_positional=True)
        if parameter.type == "boolean":
            raise DefinitionError(
                f"positional parameter {name!r} cannot be boolean", entry.line_of("type")
            )
        if parameter.type == "array" and position < len(nodes) - 1:
            raise DefinitionError(
                f"only the last positional parameter can be an array, not {name!r}",
                entry.line_of("type"),
            )
        yield parameter, entry.line_of("name")


def _parameter(
    written: str,
    entry: _Mapping,
    line: int | None,
    *,
    is_positional: bool = False,
    short: str | None = None,
    long: str | None = None,
) -> Parameter:
    name = written.replace("-", "_")
    fault = name_fault(name)
    if fault is not None:
        raise DefinitionError(f"{written!r} cannot name a parameter: {fault}", line)
    kind = entry.text("type") or "string"
    if kind not in TYPES:
        raise DefinitionError(
            f"type {kind!r} of {name!r} is not known; known: {', '.join(TYPES)}",
            entry.line_of("type"),
        )
    pattern = entry.text("pattern")
    if pattern is not None:
        if kind not in ("string", "array"):
            raise DefinitionError(
                f"{name!r} is of type {kind}: 'pattern' is for text", entry.line_of("pattern")
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise DefinitionError(
                f"'pattern' of {name!r} is not a regular expression: {error}",
                entry.line_of("pattern"),
            ) from error
    parameter = Parameter(
        name=name,
        type=cast("ParameterType", kind),
        description=(entry.text("description") or "").strip(),
        pattern=pattern,
        is_positional=is_positional,
        short=short,
        long=long,
    )
    if "enum" in entry:
        if kind == "boolean":
            raise DefinitionError(f"{name!r} is boolean: it has no 'enum'", entry.line_of("enum"))
        one = replace(parameter, type="string") if kind == "array" else parameter
        values = tuple(_value(one, entry, node, "enum") for node in entry.sequence("enum"))
        if not values:
            raise DefinitionError(f"'enum' of {name!r} is empty", entry.line_of("enum"))
        parameter = replace(parameter, enum=values)
    return _with_default(parameter, entry)


def _with_default(parameter: Parameter, entry: _Mapping) -> Parameter:
    """The parameter with `required` and `default` as the entry has them."""
    required = entry.flag("required")
    if "default" not in entry:
        needed = parameter.required if required is None else required
        kept = parameter.default if required is not True else None
        return replace(parameter, required=needed, default=kept)
    if required:
        raise DefinitionError(
            f"{parameter.name!r} is required and has a default: only one can hold",
            entry.line_of("default"),
        )
    default = _value(parameter, entry, entry.node("default"), "default")
    return replace(parameter, required=False, default=default)


def _value(parameter: Parameter, entry: _Mapping, node: yaml.Node, where: str) -> Value:
    """A value that the definition gives to a parameter, checked as a caller's would be."""
    import yaml

    what = f"{where!r} of {parameter.name!r}"
    if parameter.type == "array":
        if not isinstance(node, yaml.SequenceNode):
            raise DefinitionError(f"{what} must be a list", _line(node))
        one = replace(parameter, type="string")
        return [_value(one, entry, item, where) for item in node.value]
    if parameter.type == "string":
        value: object = entry.as_text(node, what)
    else:
        value = entry.as_scalar(node, what)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": number and isinstance(value, int),
        "number": number and math.isfinite(cast("float", value)),
    }[parameter.type]
    if not fits:
        raise DefinitionError(f"{what} must be {KINDS[parameter.type]}", _line(node))
    if parameter.enum and value not in parameter.enum:
        allowed = ", ".join(map(repr, parameter.enum))
        raise DefinitionError(f"{what} must be one of {allowed}", _line(node))
    if parameter.pattern is not None and not re.search(parameter.pattern, cast("str", value)):
        raise DefinitionError(f"{what} must match {parameter.pattern}", _line(node))
    return cast("Value", value)


def _recipes(root: _Mapping, parameters: Sequence[Parameter]) -> Iterator[Recipe]:
    known = {parameter.name: parameter for parameter in parameters}
    recipes = root.mapping("recipes", "recipes")
    seen: set[str] = set()
    for written in recipes:
        name, line = written.replace("-", "_"), recipes.line_of(written)
        _named(name, "a recipe", line)
        if name in seen:
            raise DefinitionError(f"there are two recipes named {name!r}", line)
        seen.add(name)
        yield _recipe(name, recipes.mapping(written, f"recipe {written!r}"), known, line)


def _recipe(name: str, entry: _Mapping, known: Mapping[str, Parameter], line: int | None) -> Recipe:
    entry.only("description", "preset", "params")
    preset = entry.mapping("preset", f"preset of recipe {name!r}")
    presets: dict[str, Value] = {}
    for written in preset:
        parameter = _known(written, known, preset)
        presets[parameter.name] = _value(parameter, preset, preset.node(written), "preset")
    params = entry.mapping("params", f"params of recipe {name!r}")
    shown: dict[str, Parameter] = {}
    for written in params:
        parameter = _known(written, known, params)
        change = params.mapping(written, f"parameter {written!r}")
        change.only("description", "required", "default")
        description = change.text("description")
        if description is not None:
            parameter = replace(parameter, description=description.strip())
        if parameter.name in presets:
            if "default" in change:
                raise DefinitionError(
                    f"{written!r} has a preset, which is its default, and another default",
                    change.line_of("default"),
                )
            parameter = replace(parameter, required=False, default=presets[parameter.name])
        shown[parameter.name] = _with_default(parameter, change)
    fixed = {n: p.default for n, p in known.items() if p.default is not None} | presets
    for parameter in known.values():
        if parameter.required and parameter.name not in fixed and parameter.name not in shown:
            raise DefinitionError(
                f"recipe {name!r} neither presets {parameter.name!r}, which is required, nor "
                "names it under params",
                line,
            )
    return Recipe(
        name=name,
        description=(entry.text("description") or "").strip(),
        fixed={n: value for n, value in fixed.items() if n not in shown},
        # In the order of the tool, since positional arguments follow it.
        parameters=tuple(shown[n] for n in known if n in shown),
    )


def _known(written: str, known: Mapping[str, Parameter], entry: _Mapping) -> Parameter:
    parameter = known.get(written.replace("-", "_"))
    if parameter is None:
        near = nearest(written, known) or f"; known: {', '.join(known)}"
        raise DefinitionError(f"no parameter named {written!r}{near}", entry.line_of(written))
    return parameter
