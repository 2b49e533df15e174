"""About how many bytes of memory a value takes: exact for arrays, sampled for Python objects."""

# Values are Any: narrowed by type, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import sys
from typing import Any

from py_code_mode.guest.values import type_name

_SAMPLE = 64  # members looked at of one container, or cells of one column
_DEPTH = 6
_VISITS = 2_000  # objects looked at in all


def size_of(value: object) -> int:
    """Bytes of memory; never fails, and looks at a bounded number of objects."""
    try:
        return max(0, int(_Measure().of(value, _DEPTH)))
    # Values are of any library: one that cannot tell its size takes at least its own header.
    except Exception:
        return object.__sizeof__(value)


class _Measure:
    def __init__(self) -> None:
        self.visits = 0

    def of(self, value: Any, depth: int) -> float:
        kind: type = type(value)
        self.visits += 1
        if kind in _FLAT:
            return sys.getsizeof(value)
        if kind in _MEMBERS or issubclass(kind, (list, tuple, set, frozenset)):
            return self.members(value, depth)
        if issubclass(kind, dict):
            return self.pairs(value, depth)
        library = type_name(kind).partition(".")[0]
        if library == "pandas":
            return self.pandas(value, depth)
        if library in ("numpy", "pyarrow") and hasattr(value, "nbytes"):
            if library == "numpy" and value.dtype.hasobject:
                return value.nbytes + self.cells(value.reshape(-1), depth)
            return float(value.nbytes)
        if library == "polars" and hasattr(value, "estimated_size"):
            return float(value.estimated_size())
        found = float(object.__sizeof__(value))
        if depth > 0 and self.visits < _VISITS:
            found += self.pairs(getattr(value, "__dict__", None) or {}, depth - 1)
        return found

    def members(self, value: Any, depth: int) -> float:
        count = len(value)
        found = float(sys.getsizeof(value))
        if not count or depth <= 0 or self.visits > _VISITS:
            return found
        if isinstance(value, (list, tuple)):
            step = max(1, count // _SAMPLE)
            sample = [value[at] for at in range(0, count, step)][:_SAMPLE]
        else:
            sample = [item for item, _ in zip(value, range(_SAMPLE), strict=False)]
        return found + sum(self.of(item, depth - 1) for item in sample) * count / len(sample)

    def pairs(self, value: Any, depth: int) -> float:
        count = len(value)
        found = float(sys.getsizeof(value))
        if not count or depth <= 0 or self.visits > _VISITS:
            return found
        sample = [pair for pair, _ in zip(value.items(), range(_SAMPLE), strict=False)]
        each = sum(self.of(key, depth - 1) + self.of(item, depth - 1) for key, item in sample)
        return found + each * count / len(sample)

    def cells(self, column: Any, depth: int) -> float:
        """What the objects of a column of objects take."""
        count = len(column)
        if not count or depth <= 0:
            return 0.0
        step = max(1, count // _SAMPLE)
        sample = [column[at] for at in range(0, count, step)][:_SAMPLE]
        return sum(self.of(item, depth - 1) for item in sample) * count / len(sample)

    def pandas(self, value: Any, depth: int) -> float:
        if hasattr(value, "columns"):
            found = float(value.memory_usage(deep=False).sum())
            objects = [
                value.iloc[:, at] for at, kind in enumerate(value.dtypes) if _holds_objects(kind)
            ]
        elif hasattr(value, "memory_usage"):
            found = float(value.memory_usage(deep=False))
            objects = [value] if _holds_objects(getattr(value, "dtype", None)) else []
        else:
            return float(sys.getsizeof(value))
        if getattr(value, "nlevels", 1) > 1:
            return found
        return found + sum(
            self.cells(column.to_numpy(), depth) for column in objects if self.visits < _VISITS
        )


def _holds_objects(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") == "O" and getattr(dtype, "hasobject", False)


_FLAT = frozenset({int, float, bool, complex, str, bytes, bytearray, type(None)})
_MEMBERS = frozenset({list, tuple, set, frozenset})
