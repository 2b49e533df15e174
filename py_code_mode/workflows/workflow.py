"""A workflow: a Python source whose ``run`` is called by keywords.

What there is to know about it is read from its syntax tree; nothing of it is ever run here.

A workflow's file is plain Python in UTF-8. Its description is the module's docstring. The file of
a workflow that was created from a source and a description has both, the docstring first, so that
each comes back exactly as it was given (`write`, `read`).
"""

from __future__ import annotations

import ast
import json
import keyword
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py_code_mode.errors import InvalidName, InvalidWorkflow

if TYPE_CHECKING:
    from py_code_mode.results import JsonValue

__all__ = ["MAX_NAME_BYTES", "RESERVED", "Parameter", "Workflow", "check_name", "read", "write"]

#: Of a workflow's name in UTF-8; its file's name is longer.
MAX_NAME_BYTES = 150
#: What ``workflows.<name>`` already means.
RESERVED = frozenset({"list", "search", "get", "create", "delete", "invoke", "invoke_async"})

_SOURCE_MARK = "\n\n# The source, as it was given:\n"
_DESCRIPTION_MARK = "# Description: "
_ENTRY = "define `async def run(...)` or `def run(...)` at the top level"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of ``run``.

    Attributes:
        type: the annotation's text; ``Any`` where there is none.
        default: the default's text; None where the parameter is required.
        description: from the ``Args:`` section of a docstring.
        is_open: whether it stands for any further keywords (``**options``).
    """

    name: str
    type: str = "Any"
    default: str | None = None
    description: str = ""
    is_open: bool = False

    @property
    def required(self) -> bool:
        """Whether a call has to give it."""
        return self.default is None and not self.is_open

    def to_dict(self) -> dict[str, JsonValue]:
        """``name, type, required, default``; ``description`` and ``kind`` where they tell more."""
        facts: dict[str, JsonValue] = {
            "name": self.name,
            "type": self.type,
            "required": self.required,
            "default": self.default,
        }
        if self.description:
            facts["description"] = self.description
        if self.is_open:
            facts["kind"] = "var_keyword"
        return facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A source that can be run by name, and what its author says about it.

    Attributes:
        origin: the isolation of the sandboxed code that wrote it and that nobody has approved;
            None for everything else.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    source: str
    origin: str | None = None

    def to_dict(self, *, with_source: bool = True) -> dict[str, JsonValue]:
        """``name, description, parameters``, ``source``, and ``origin`` where there is one."""
        facts: dict[str, JsonValue] = {
            "name": self.name,
            "description": self.description,
            "parameters": [parameter.to_dict() for parameter in self.parameters],
        }
        if with_source:
            facts["source"] = self.source
        if self.origin is not None:
            facts["origin"] = self.origin
        return facts


def check_name(name: str) -> str:
    """Return `name` if ``workflows.<name>(...)`` can mean a workflow.

    Raises:
        InvalidName: it cannot.
    """
    reason = _unfit(name)
    if reason:
        raise InvalidName(name, "a workflow", reason)
    return name


def _unfit(name: object) -> str:
    if not isinstance(name, str):
        return "a name is a str"
    if not name.isidentifier():
        return "it is not a Python identifier"
    if keyword.iskeyword(name):
        return "it is a Python keyword"
    if name.startswith("_"):
        return "it begins with an underscore"
    if name in RESERVED:
        return f"workflows.{name} is a method"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if not unicodedata.is_normalized("NFKC", name):
        return "Python reads it as another identifier (Unicode NFKC)"
    return ""


def read(name: str, text: str) -> Workflow:
    """The workflow in a file's text.

    Raises:
        InvalidWorkflow: it is not Python, or has no usable ``run``; the reason has the line.
    """
    tree = _parse(name, text)
    entry = _entry(name, tree)
    source = text
    description = ast.get_docstring(tree) or ""
    if text.startswith(_DESCRIPTION_MARK):
        first, _, rest = text.partition("\n")
        given = _json_text(first.removeprefix(_DESCRIPTION_MARK))
        if given is not None:
            description, source = given, rest
    elif (end := _docstring_end(tree, text)) and text.startswith(_SOURCE_MARK, end):
        description = ast.get_docstring(tree, clean=False) or ""
        source = text[end + len(_SOURCE_MARK) :]
    if not description:
        description = (ast.get_docstring(entry) or "").partition("\n\n")[0]
    documented = _documented(ast.get_docstring(tree)) | _documented(ast.get_docstring(entry))
    return Workflow(
        name=name,
        description=description,
        parameters=_parameters(name, entry, documented),
        source=source,
    )


def write(name: str, source: str, description: str) -> str:
    """The text of a file that `read` gives back as this source and description.

    An empty description stands for what the source says itself.

    Raises:
        InvalidWorkflow: the source is not Python, or has no usable ``run``.
    """
    alone = read(name, source)
    if alone.source == source and description in ("", alone.description):
        return source
    if ast.get_docstring(_parse(name, source)) is None:
        text = _docstring(description) + _SOURCE_MARK + source
    else:  # it has to stay the docstring: `from __future__` may follow it
        text = _DESCRIPTION_MARK + json.dumps(description) + "\n" + source
    again = read(name, text)
    if again.source != source or again.description != (description or again.description):
        raise InvalidWorkflow(name, "its source and description cannot be kept together")
    return text


def _parse(name: str, text: str) -> ast.Module:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise InvalidWorkflow(name, f"line {line}: it is not valid Unicode") from error
    try:
        tree = ast.parse(text, f"<workflow {name}>")
        compile(tree, f"<workflow {name}>", "exec", dont_inherit=True)  # `return` outside, and such
    except SyntaxError as error:
        place = f"line {error.lineno}: " if error.lineno else ""
        raise InvalidWorkflow(name, f"{place}{error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL characters; endless nesting
        raise InvalidWorkflow(name, f"Python cannot read it: {error}") from error
    return tree


def _entry(name: str, tree: ast.Module) -> ast.FunctionDef | ast.AsyncFunctionDef:
    # The last one is what the name means when the module has run.
    for statement in reversed(tree.body):
        is_function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and statement.name == "run":
            return statement
    line = tree.body[-1].end_lineno if tree.body else 1
    raise InvalidWorkflow(name, f"line {line}: it ends without a function `run`; {_ENTRY}")


def _parameters(
    name: str, entry: ast.FunctionDef | ast.AsyncFunctionDef, documented: dict[str, str]
) -> tuple[Parameter, ...]:
    arguments = entry.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    defaults += arguments.defaults
    for argument, default in zip(arguments.posonlyargs, defaults, strict=False):
        if default is None:
            raise InvalidWorkflow(
                name,
                f"line {argument.lineno}: a workflow is called by keywords, but {argument.arg!r} "
                "is positional only",
            )
    pairs = list(zip(plain, defaults, strict=True))[len(arguments.posonlyargs) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = [
        Parameter(
            name=argument.arg,
            type=_annotation(argument),
            default=None if default is None else ast.unparse(default),
            description=documented.get(argument.arg, ""),
        )
        for argument, default in pairs
    ]
    if arguments.kwarg is not None:
        rest = arguments.kwarg
        found.append(
            Parameter(
                name=rest.arg,
                type=_annotation(rest),
                description=documented.get(f"**{rest.arg}", documented.get(rest.arg, "")),
                is_open=True,
            )
        )
    return tuple(found)


def _annotation(argument: ast.arg) -> str:
    annotation = argument.annotation
    if annotation is None:
        return "Any"
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation)


_SECTION = re.compile(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*(?:\n|$)|\n)+)", re.M)
_ITEM = re.compile(r"^(\*{0,2}\w+)[ \t]*(?:\([^)\n]*\))?[ \t]*:[ \t]*")


def _documented(docstring: str | None) -> dict[str, str]:
    """What a Google style docstring says of each parameter."""
    section = _SECTION.search(docstring or "")
    if section is None:
        return {}
    lines = [line for line in section[1].split("\n") if line.strip()]
    indent = len(lines[0]) - len(lines[0].lstrip())
    found: dict[str, str] = {}
    current = ""
    for line in lines:
        depth = len(line) - len(line.lstrip())
        item = _ITEM.match(line.strip()) if depth == indent else None
        if item:
            current = item[1]
            found[current] = line.strip()[item.end() :]
        elif current and depth > indent:
            found[current] = f"{found[current]} {line.strip()}".strip()
        else:
            current = ""
    return found


def _docstring(description: str) -> str:
    """A docstring literal with exactly this value, in as few escapes as it takes."""
    escaped = description.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    quoted = "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in escaped
    )
    if quoted.endswith('"'):
        quoted = quoted[:-1] + '\\"'
    return f'"""{quoted}"""'


def _docstring_end(tree: ast.Module, text: str) -> int:
    """Where the docstring that the file begins with ends; 0 if it does not begin with one."""
    if ast.get_docstring(tree, clean=False) is None:
        return 0
    first = tree.body[0]
    if (first.lineno, first.col_offset) != (1, 0):
        return 0
    assert first.end_lineno is not None
    assert first.end_col_offset is not None
    # Python's own idea of lines; columns count UTF-8 bytes.
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
    before = sum(map(len, lines[: first.end_lineno - 1]))
    last = lines[first.end_lineno - 1].encode()[: first.end_col_offset].decode()
    return before + len(last)


def _json_text(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
