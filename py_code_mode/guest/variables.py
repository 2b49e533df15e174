"""Which large variables a run has made or changed: what a model should hear of without asking.

A value counts as large when its text would fill a good part of what a model reads. Nothing is kept
alive for the comparison: a variable is known again by its identity and size, and by what the cell's
text does to it. A change inside a value that only a called function makes, and that leaves its
size alone, is not seen.
"""

# Values are Any: narrowed by issubclass(), their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import sys
from itertools import islice
from types import BuiltinFunctionType, FunctionType, ModuleType

from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Bytes, counted roughly, from which a value is large.
LARGE = 4096
#: Variables told of after one run; the others keep their names.
MAX_TOLD = 20
#: The same of those that are gone.
MAX_GONE = 1000

_LOOKED_AT = 2000  # members of a container before its weight is guessed from their number
_NEVER = frozenset(
    map(
        id,
        (
            *(int, float, bool, complex, type(None), type),
            *(FunctionType, BuiltinFunctionType, ModuleType),
        ),
    )
)
_ONLY_AST = 0x0400  # ast.PyCF_ONLY_AST
_TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class Variables:
    """Remembers the variables of a namespace from run to run."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, object]] = {}
        self._large: set[str] = set()

    def forget(self) -> None:
        """Begin anew, for a namespace that was cleared."""
        self._seen.clear()
        self._large.clear()

    def note(self, name: str, value: object) -> None:
        """Know a variable that the host has bound, and need not be told of."""
        self._seen[name] = (id(value), _size(value))
        if is_large(value):
            self._large.add(name)

    def after_run(
        self, names: Mapping[str, object], source: str
    ) -> tuple[dict[str, object], list[str]]:
        """The large variables that a run has made or changed, and those that are gone.

        Args:
            names: the namespace; what begins with an underscore is nobody's business.
            source: of the cell.
        """
        if not any(map(str.isidentifier, source)):
            return {}, []  # it names nothing: with many variables, looking takes longer than it
        made: dict[str, object] = {}
        touched: set[str] | None = None
        before, self._seen = self._seen, {}
        large: set[str] = set()
        calls = "(" in source  # else nothing changes but what the cell itself names
        for name, value in list(names.items()):
            if id(type(value)) in _NEVER or name[:1] == "_":
                continue
            then = before.get(name)
            if then is not None and then[0] == id(value) and not calls and name not in source:
                now = then
            else:
                now = (id(value), _size(value))
            self._seen[name] = now
            if then == now:
                if name not in self._large:
                    continue
                large.add(name)
                if name not in source:
                    continue
                touched = _touched(source) if touched is None else touched
                if name not in touched:
                    continue
            if is_large(value):
                large.add(name)
                if len(made) < MAX_TOLD:
                    made[name] = value
            else:
                large.discard(name)
        gone = sorted(self._large - large)
        self._large = large
        return made, gone[:MAX_GONE]


def is_large(value: object, least: int = LARGE) -> bool:
    """Whether a value's text would take more than about `least` bytes."""
    waiting: list[Any] = [value]
    weight, left = 0, _LOOKED_AT
    while waiting and weight < least and left > 0:
        item = waiting.pop()
        left -= 1
        kind: type = type(item)
        if id(kind) in _NEVER:
            weight += 8
        elif issubclass(kind, str):
            weight += str.__len__(item)
        elif issubclass(kind, (bytes, bytearray)):
            weight += len(memoryview(item))
        else:
            for base in (list, tuple, set, frozenset, dict):
                if issubclass(kind, base):
                    weight += 2 * base.__len__(item)
                    waiting += islice(base.__iter__(item), left)
                    if base is dict:
                        waiting += islice(dict.values(item), left)
                    break
            else:
                weight += _weigh_frame(item)
    return weight >= least


#: Classes that tell their size, how, and the bytes that one of it stands for.
_FRAMES: tuple[tuple[str, tuple[str, ...], str, int], ...] = (
    ("numpy", ("ndarray",), "nbytes", 1),
    ("pandas", ("DataFrame", "Series", "Index"), "size", 8),
    ("pyarrow", ("Table", "RecordBatch", "ChunkedArray", "Array"), "nbytes", 1),
    ("polars", ("DataFrame", "Series"), "estimated_size", 1),
)


def _weigh_frame(value: Any) -> int:
    """Bytes of an array or table of a known library; 8 for all other objects."""
    for library, names, attribute, unit in _FRAMES:
        module = sys.modules.get(library)
        for name in names:
            kind = vars(module).get(name) if module is not None else None
            if isinstance(kind, type) and issubclass(type(value), kind):
                try:
                    size: Any = getattr(value, attribute)
                    count: Any = size() if callable(size) else size
                    return unit * int(count)
                except Exception:  # a subclass of the user's may do anything
                    return 8
    return 8


def _size(value: Any) -> object:
    """What tells at once that a value has grown or shrunk: its length or shape."""
    kind: type = type(value)
    for base in (str, list, dict, tuple, set, bytes, bytearray, frozenset):
        if issubclass(kind, base):
            length: Any = base.__len__
            return length(value)
    if type_name(kind).partition(".")[0] in ("numpy", "pandas", "pyarrow", "polars"):
        shape: object = getattr(value, "shape", None)
        return shape if type(shape) is tuple else None
    return None


def _touched(source: str) -> set[str]:
    """Names whose values the text of a cell may change where they are.

    ``x[...] = 1``, ``x.y = 1``, ``x += 1``, ``del x[0]``, any call with ``inplace=``, and
    ``x.update(y)`` as a statement, unless it is the last: that is there for its value.
    """
    import ast

    try:
        tree: Any = compile(
            source, "<cell>", "exec", _ONLY_AST | _TOP_LEVEL_AWAIT, dont_inherit=True
        )
    except SyntaxError:
        return set()  # a magic line, which only the cell's own compilation knows how to read
    found: set[str] = set()
    last = tree.body[-1] if tree.body else None
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign):
            found.add(_root(node.target))
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node.ctx, (ast.Store, ast.Del)):
                found.add(_root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node is not last:
            found.add(_root(node.value.func))
        elif isinstance(node, ast.Call) and any(part.arg == "inplace" for part in node.keywords):
            found.add(_root(node.func))
    return found


def _root(place: Any) -> str:
    """The name that ``x`` and ``x.loc[0].y`` begin with."""
    import ast

    while isinstance(place, (ast.Attribute, ast.Subscript, ast.Call)):
        place = place.func if isinstance(place, ast.Call) else place.value
    return place.id if isinstance(place, ast.Name) else ""
