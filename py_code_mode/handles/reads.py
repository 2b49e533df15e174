"""Which handles a run's code reads, and for which of its variables, as far as its text tells."""

from __future__ import annotations

import ast
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Reads", "reads_of"]

#: Characters of code beyond which nothing is told: reading it would keep the session waiting.
MAX_CODE = 1 << 15

# They bind a name anew; other statements may leave what it was.
_ANEW = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Reads:
    """The handles that code reads.

    Attributes:
        all: whatever for.
    """

    __slots__ = ("_by_variable", "all")

    def __init__(self, by_variable: Mapping[str, frozenset[str]], every: Iterable[str]) -> None:
        self._by_variable = by_variable
        self.all = frozenset(every)

    def of(self, variable: str) -> frozenset[str]:
        """Those that a variable was made from; all, where the text does not say what made it."""
        return self._by_variable.get(variable, self.all)


def reads_of(code: str, is_handle: Callable[[str], bool]) -> Reads:
    """Tell what code reads; nothing is executed. What is no Python reads nothing.

    A variable is made from what the statements name that bind or change it, and from what those
    variables were made from. Statements are looked at in their order, branches and loops whole.
    """
    if len(code) > MAX_CODE:
        return Reads({}, ())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the guest has told of them
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Reads({}, ())
    made: dict[str, frozenset[str]] = {}

    def before(name: str) -> frozenset[str]:
        found = made.get(name)
        if found is None:
            found = frozenset((name,) if is_handle(name) else ())
        return found

    every: set[str] = set()
    for statement in tree.body:
        names = _Names(statement)
        sources = frozenset(filter(is_handle, names.handles)).union(*map(before, names.read))
        every |= sources
        is_anew = isinstance(statement, _ANEW) or (
            isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None
        )
        changed = names.changed if is_anew else names.bound | names.changed
        for name in changed:
            made[name] = before(name) | sources
        if is_anew:
            made.update(dict.fromkeys(names.bound, sources))
    return Reads(made, every)


class _Names:
    """The names in one statement of a cell.

    Attributes:
        read: variables of the cell.
        bound: the same.
        changed: variables whose members are assigned, or a method of which is called for what it
            does and not for what it gives.
        handles: named by ``handles["x"]`` or ``handles.get("x")``.
    """

    def __init__(self, statement: ast.stmt) -> None:
        self.read: set[str] = set()
        self.bound: set[str] = set()
        self.changed: set[str] = set()
        self.handles: set[str] = set()
        inner: set[str] = set()  # of a function's or a comprehension's own
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=name, ctx=ast.Load()):
                    self.read.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    self.bound.add(name)
                case ast.alias(name=name, asname=other):
                    self.bound.add(other or name.partition(".")[0])
                case ast.comprehension(target=target):
                    inner |= _stored(target)
                case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                    self._change(node)
                case ast.Expr(value=ast.Call(func=ast.Attribute() as method)):
                    self._change(method)
                case _:
                    pass
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self.bound.add(node.name)
            if isinstance(node, _SCOPES):
                inner |= _own(node)
            handle = _handle(node)
            if handle is not None:
                self.handles.add(handle)
        self.read -= inner
        self.bound -= inner
        self.changed -= inner

    def _change(self, node: ast.expr) -> None:
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        if isinstance(node, ast.Name):
            self.changed.add(node.id)


def _handle(node: ast.AST) -> str | None:
    """The handle that an expression asks for by a literal name."""
    match node:
        case (
            ast.Subscript(value=ast.Name(id="handles"), slice=ast.Constant(value=str(name)))
            | ast.Call(
                func=ast.Attribute(value=ast.Name(id="handles"), attr="get"),
                args=[ast.Constant(value=str(name))],
            )
        ):
            return name
        case _:
            return None


def _own(scope: ast.AST) -> set[str]:
    """The variables that belong to a function alone, its parameters included."""
    own: set[str] = set()
    shared: set[str] = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            shared.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return own - shared


def _stored(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
