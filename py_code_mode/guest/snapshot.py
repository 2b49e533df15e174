"""The bounded description of a value that a model may see: always JSON, cheap, never an error.

One description is built for a few sizes, largest first, and the first that fits is taken, so
a small value is told in full and a huge one by its shape and a sample. Containers are read through
their built-in base class, never by a subclass's own methods; ``repr`` is asked once, and only of
what has no structure we know. A ``repr`` that never returns cannot be stopped from here: the
run's deadline does, by a KeyboardInterrupt that passes through.
"""

# Values are Any: narrowed by issubclass(), their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import json
import sys

from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any, Callable

# Sample sizes to try: members, columns, characters of a text, levels of nesting.
_SIZES: tuple[tuple[int, int, int, int], ...] = (
    (20, 40, 400, 3),
    (8, 20, 160, 2),
    (4, 10, 60, 1),
    (2, 4, 24, 1),
    (0, 0, 0, 0),
)
_COUNTED = 10_000  # members whose types are counted
_SCANNED = 1_000_000  # cells that are looked at for nulls or extremes
_REPR = 2_000  # characters kept of an object's own repr
_BITS = 1_000  # ints beyond are told by their size: their decimal form takes quadratic time


def snapshot(value: object, *, max_bytes: int = 1200) -> dict[str, Any]:
    """Describe `value` in at most about `max_bytes` of JSON.

    Always holds ``type``, the qualified name of its class; the rest depends on the kind: ``value``
    of a number; ``length``, ``head`` and ``tail`` of a text; ``length`` and ``items`` of a
    container; ``shape``, ``columns`` and ``head`` of a frame; else ``repr``.
    """
    kind: type = type(value)
    name = _clean(type_name(kind), 200)
    sketch = _Sketch()
    try:
        for sketch.items, sketch.columns, sketch.chars, sketch.depth in _SIZES:
            found = {"type": name, **sketch.describe(value)}
            if len(json.dumps(found, ensure_ascii=False, allow_nan=False)) <= max_bytes:
                return found
    except KeyboardInterrupt:
        raise
    # A description must never be why a run fails; libraries below may raise anything.
    except BaseException as error:
        return {"type": name, "undescribed": _clean(type_name(type(error)), 80)}
    return {"type": name}


def bounded_repr(value: object, limit: int = _REPR) -> str:
    """``repr(value)``, cut in the middle; a repr that raises is told by its exception's class."""
    if isinstance(value, int) and int.bit_length(value) > _BITS:
        return f"<{type_name(type(value))} of {int.bit_length(value):,} bits>"
    try:
        text = repr(value)
    except KeyboardInterrupt:
        raise
    # User code: it may raise anything, SystemExit and RecursionError included.
    except BaseException as error:
        return f"<{type_name(type(value))}: its repr raises {type_name(type(error))}>"
    return _clean(text, limit)


def _clean(text: str, limit: int) -> str:
    """A plain str of at most about `limit` characters, its middle left out, valid Unicode."""
    size = str.__len__(text)
    if size > limit:
        half = limit // 2
        head, tail = (
            str.__getitem__(text, slice(half)),
            str.__getitem__(text, slice(size - half, size)),
        )
        text = f"{head}… {size - 2 * half:,} characters …{tail}"
    # backslashreplace: lone surrogates are no JSON
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def _number(value: Any) -> Any:
    """A float or int as JSON has it; nan and the infinities by name, huge ints by their size."""
    if isinstance(value, float):
        value = float.__add__(value, 0.0) or 0.0
        return value if value - value == 0.0 else float.__repr__(value)
    value = int.__add__(value, 0)
    if value.bit_length() > _BITS:
        return f"<int of {value.bit_length():,} bits>"
    return value if abs(value) <= 2**53 else str(value)


class _Sketch:
    """Describes values at one size after another; remembers what user code said."""

    def __init__(self) -> None:
        self.items = self.columns = self.chars = self.depth = 0
        self._reprs: dict[int, tuple[object, str]] = {}

    def describe(self, value: Any) -> dict[str, Any]:
        kind: type = type(value)
        if value is None or kind is bool:
            return {"value": value}
        if issubclass(kind, (int, float)) and kind.__repr__ in (int.__repr__, float.__repr__):
            return {"value": _number(value)}
        if issubclass(kind, str):
            return self._text(value)
        if issubclass(kind, (bytes, bytearray)):
            size = len(memoryview(value))
            head = bytes(memoryview(value)[: self.chars // 4])
            return {"length": size, "head": repr(head)[2:-1]}
        for base in (list, tuple, set, frozenset):
            if issubclass(kind, base):
                return self._members(base, value)
        if issubclass(kind, dict):
            return self._mapping(value)
        frame = self._library(value)
        if frame is not None:
            return frame
        return {"repr": self._repr(value)}

    def _repr(self, value: object) -> str:
        known = self._reprs.get(id(value))
        if known is None:
            known = self._reprs[id(value)] = (value, bounded_repr(value))
        return _clean(known[1], 3 * self.chars)

    def _text(self, value: str) -> dict[str, Any]:
        size = str.__len__(value)
        if size <= 2 * self.chars:
            return {"length": size, "head": _clean(value, size)}
        head = str.__getitem__(value, slice(self.chars))
        tail = str.__getitem__(value, slice(size - self.chars // 4, size))
        return {"length": size, "head": _clean(head, size), "tail": _clean(tail, size)}

    def _members(self, base: Any, value: Any) -> dict[str, Any]:
        size = base.__len__(value)
        found: dict[str, Any] = {"length": size}
        sample: list[Any] = []
        kinds: dict[int, list[Any]] = {}
        for position, item in enumerate(base.__iter__(value)):
            if position >= _COUNTED:
                break
            if position < self.items:
                sample.append(self.brief(item, self.depth))
            kind: type = type(item)
            kinds.setdefault(id(kind), [kind, 0])[1] += 1
        if size:
            found["item_types"] = {
                _clean(type_name(kind), 80): count for kind, count in list(kinds.values())[:8]
            }
            found["items"] = sample
        return found

    def _mapping(self, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"length": dict.__len__(value)}
        if found["length"]:
            found["items"] = self._pairs(value, self.depth)
        return found

    def _pairs(self, value: Any, depth: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for position, (key, item) in enumerate(dict.items(value)):
            if position >= self.items:
                break
            label = key if type(key) is str else self._label(key)
            pairs[_clean(label, max(8, self.chars))] = self.brief(item, depth - 1)
        return pairs

    def _label(self, key: object) -> str:
        label = self.brief(key, 0)
        return label if isinstance(label, str) else json.dumps(label)

    def brief(self, value: Any, depth: int) -> Any:
        """One member of a sample: a JSON value, or a text that says what it is."""
        kind: type = type(value)
        if value is None or kind is bool:
            return value
        if kind is int or kind is float:
            return _number(value)
        if issubclass(kind, str):
            return _clean(value, max(8, self.chars))
        name = _clean(type_name(kind), 80)
        for base in (list, tuple, set, frozenset):
            if issubclass(kind, base):
                size = base.__len__(value)
                if depth <= 0 or size > self.items:
                    return f"<{name} of {size:,}>"
                return [self.brief(item, depth - 1) for item in base.__iter__(value)]
        if issubclass(kind, dict):
            size = dict.__len__(value)
            if depth <= 0 or size > self.items:
                return f"<{name} of {size:,}>"
            return self._pairs(value, depth)
        if issubclass(kind, (bytes, bytearray)):
            return f"<{name} of {len(memoryview(value)):,} bytes>"
        shape = _shape(value)
        if shape is not None:
            return f"<{name} {shape}>"
        return self._repr(value)

    def _library(self, value: Any) -> dict[str, Any] | None:
        for library, names, method in (
            ("numpy", ("ndarray",), self._array),
            ("pandas", ("DataFrame",), self._frame),
            ("pandas", ("Series", "Index"), self._series),
            ("pyarrow", ("Table", "RecordBatch"), self._arrow),
            ("polars", ("DataFrame",), self._polars),
        ):
            for name in names:
                if _is(value, library, name):
                    describe: Callable[[Any], dict[str, Any]] = method
                    return describe(value)
        return None

    def _array(self, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {
            "shape": [int(size) for size in value.shape],
            "dtype": _clean(str(value.dtype), 120),
            "bytes": int(value.nbytes),
        }
        if value.size and value.dtype.kind in "iufb" and value.size <= _SCANNED:
            found["min"], found["max"] = _scalar(value.min()), _scalar(value.max())
        if value.size and self.items:
            # flat: reads the first members only, of whatever layout
            found["head"] = [self._cell(item) for item in value.flat[: self.items]]
        return found

    def _frame(self, value: Any) -> dict[str, Any]:
        height, width = value.shape
        found: dict[str, Any] = {"shape": [int(height), int(width)]}
        columns: list[Any] = []
        shown = min(width, self.columns)
        for position in range(shown):
            series = value.iloc[:, position]
            column: dict[str, Any] = {
                "name": self.brief(value.columns[position], 1),
                "dtype": _clean(str(series.dtype), 60),
            }
            if height * shown <= _SCANNED:
                nulls = int(series.isna().sum())
                if nulls:
                    column["nulls"] = nulls
            columns.append(column)
        found["columns"] = columns
        if width > shown:
            found["more_columns"] = int(width - shown)
        rows = min(5, self.items)
        if height and shown and rows:
            head = value.iloc[:rows, :shown]
            found["head"] = [
                [self._cell(head.iat[row, column]) for column in range(shown)]
                for row in range(head.shape[0])
            ]
        found["index"] = _clean(f"{type(value.index).__name__}, {value.index.dtype}", 80)
        return found

    def _series(self, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {
            "length": len(value),
            "dtype": _clean(str(value.dtype), 60),
            "name": self.brief(value.name, 1),
        }
        if len(value) <= _SCANNED and getattr(value, "nlevels", 1) == 1:
            found["nulls"] = int(value.isna().sum())
        if self.items:
            found["head"] = [self._cell(item) for item in list(value[: self.items])]
        return found

    def _arrow(self, value: Any) -> dict[str, Any]:
        return {
            "shape": [int(value.num_rows), int(value.num_columns)],
            "columns": [
                {"name": _clean(field.name, 60), "dtype": _clean(str(field.type), 60)}
                for field in list(value.schema)[: self.columns]
            ],
            "bytes": int(value.nbytes),
        }

    def _polars(self, value: Any) -> dict[str, Any]:
        columns = list(value.schema.items())[: self.columns]
        found: dict[str, Any] = {
            "shape": [int(size) for size in value.shape],
            "columns": [
                {"name": _clean(name, 60), "dtype": _clean(str(dtype), 60)}
                for name, dtype in columns
            ],
        }
        if self.items:
            rows = value.select([name for name, _ in columns]).head(min(5, self.items)).rows()
            found["head"] = [[self._cell(item) for item in row] for row in rows]
        return found

    def _cell(self, item: Any) -> Any:
        return self.brief(_scalar(item), 1)


def _scalar(item: Any) -> Any:
    """A numpy scalar as a plain number where it has one; nan and the infinities by name."""
    if _is(item, "numpy", "generic") and item.dtype.kind in "iufb" and item.dtype.char != "g":
        item = item.item()
    if type(item) in (int, float):
        return _number(item)
    return item


def _is(value: object, library: str, name: str) -> bool:
    """Whether `value` is an instance of a class of a library, without importing it."""
    module = sys.modules.get(library)
    kind = vars(module).get(name) if module is not None else None
    return isinstance(kind, type) and issubclass(type(value), kind)


def _shape(value: Any) -> str | None:
    for library, name in (
        ("numpy", "ndarray"),
        ("pandas", "DataFrame"),
        ("pandas", "Series"),
        ("pandas", "Index"),
        ("pyarrow", "Table"),
        ("polars", "DataFrame"),
    ):
        if _is(value, library, name):
            return " x ".join(str(size) for size in value.shape)
    return None
