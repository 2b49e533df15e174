"""Facts about tables, columns and arrays, from the library that made them, as they are asked for.

A `Table` answers for one frame, a `Column` for one column or array. Both look at a bounded number
of cells whatever the size: statistics are exact up to `EXACT_ROWS` rows (fewer for many columns),
else those of `SAMPLE_ROWS` rows in runs spread over all of them, so that few pages of a mapped
file are read. Only the library's own code runs: a subclass is looked at as its base class, and
columns of a type that is not the library's are not asked for values.
"""

# Values are Any: the libraries are not imported here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import sys
from itertools import islice

from .outline import kinds_of, missing_values, scalar, stub
from .reprs import MISSING, among, attributes, clean, find, is_a
from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Rows up to which statistics are of all rows.
EXACT_ROWS = 100_000
#: Rows that statistics are of beyond that.
SAMPLE_ROWS = 10_240
_CELLS = 4_000_000  # cells of all columns told, up to which EXACT_ROWS holds
_OBJECT = 8  # cells that one with a Python object counts for
_RUN = 160  # neighbouring rows in a sample
_TOP = 3  # most frequent values
_MEASURED = 60  # columns whose memory is asked one by one
_NAME = 80  # characters of a dtype


def runs(length: int) -> list[tuple[int, int]]:
    """Where a sample of so many rows begins and ends, run by run, both ends of all included."""
    count = SAMPLE_ROWS // _RUN
    last = length - _RUN
    return [(last * at // (count - 1), last * at // (count - 1) + _RUN) for at in range(count)]


def _positions(length: int) -> Any:
    """The same as an array of positions."""
    numpy: Any = sys.modules["numpy"]
    starts = numpy.array([start for start, _ in runs(length)])
    return numpy.add.outer(starts, numpy.arange(_RUN)).ravel()


def attempt(function: Callable[[], Any]) -> Any:
    """What a library answers; None where it cannot, for one fact less is no reason for none.

    Libraries raise anything, of values they did not foresee, and warn where warnings are errors.
    """
    try:
        return function()
    except Exception:
        return None


def rounded(value: Any, digits: int = 6) -> Any:
    """A cell as JSON: floats to so many digits, times without a time of day as dates.

    `MISSING` for what has no short text of its own.
    """
    told = scalar(value)
    if type(told) is float and len(repr(told)) > digits + 1:
        return float(f"{told:.{digits}g}")
    if type(told) is str and type_name(type(value)).rpartition(".")[2] in _MOMENTS:
        told = told.replace("T", " ")
        if "." in told and "+" not in told:
            told = told.rstrip("0").rstrip(".")
        return told.removesuffix(" 00:00:00")
    return told


_MOMENTS = ("datetime", "Timestamp", "datetime64")


def _extreme(value: Any) -> Any:
    """A least or greatest value; None if it has no short text."""
    told = rounded(value)
    return None if told is MISSING else told


class Column:
    """One column, Series or array; its facts are found when they are asked for, once.

    Attributes:
        name: its label, which may be any value.
        dtype: the type of its values, as its library writes it.
        sampled: rows that the facts are of, if these are not all.
        how: how to ask for values that were left out.
        index: what it says of its index, if it has one.
    """

    name: Any = None
    dtype = ""
    how = ""
    index: str | None = None

    def __init__(self, length: int, *, exact_up_to: int = EXACT_ROWS) -> None:
        self.length = length
        self.sampled = 0 if length <= exact_up_to else SAMPLE_ROWS
        self._facts: dict[str, Any] | None = None

    @property
    def nulls(self) -> int:
        """How many of the rows looked at hold nothing; 0 also where that is not known."""
        return self.facts.get("nulls", 0)

    @property
    def facts(self) -> dict[str, Any]:
        """``nulls``, then ``min`` and ``max``, ``top`` with counts, ``distinct``: what it has."""
        facts = self._facts
        if facts is None:
            facts = self._facts = attempt(self._find) or {}
        return facts

    def _find(self) -> dict[str, Any]:
        return {}

    def cells(self, start: int, stop: int) -> list[Any]:
        """Some rows' values, as they are; [] where these may not be asked for."""
        return []


class Table:
    """A frame: its size, its columns and its index.

    Attributes:
        types: of each column, its type as the library writes it.
        how_rows: how to ask for rows that were left out; `how_columns`: for columns.
    """

    how_rows = ".iloc[i:j]"
    how_columns = ".columns"
    index: str | None = None

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.types: list[str] = []
        self._columns: dict[int, Column] = {}
        self.exact_up_to = EXACT_ROWS

    def will_tell_all(self) -> None:
        """Learn that facts of all columns will be asked for."""
        objects = sum(dtype == "object" for dtype in self.types)
        weight = self.width + (_OBJECT - 1) * objects
        self.exact_up_to = min(EXACT_ROWS, max(SAMPLE_ROWS, _CELLS // max(1, weight)))

    def names(self, count: int) -> list[Any]:
        """The labels of the first columns."""
        raise NotImplementedError

    def column(self, at: int) -> Column:
        """A column by its position; the same object each time."""
        if at not in self._columns:
            self._columns[at] = self._column(at)
        return self._columns[at]

    def _column(self, at: int) -> Column:
        raise NotImplementedError

    def memory(self) -> tuple[str, int] | None:
        """The key it is told by, and bytes."""
        return None


def table_of(value: Any) -> Table | None:
    """What to ask about a frame; None for anything else."""
    for module, name, make in (
        ("pandas", "DataFrame", _PandasTable),
        ("pyarrow", "Table", _ArrowTable),
        ("pyarrow", "RecordBatch", _ArrowTable),
        ("polars", "DataFrame", _PolarsTable),
    ):
        if is_a(type(value), module, name):
            return make(_as_base(value, module, name))
    return None


def column_of(value: Any) -> Column | None:
    """What to ask about a Series, an index or an array; None for anything else."""
    for module, name, make in (
        ("pandas", "Series", _PandasColumn),
        ("pandas", "Index", _PandasIndex),
        ("pandas.core.arrays.base", "ExtensionArray", _PandasArray),
        ("numpy", "ndarray", ArrayColumn),
        ("pyarrow", "ChunkedArray", _ArrowColumn),
        ("pyarrow", "Array", _ArrowColumn),
        ("polars", "Series", _PolarsColumn),
    ):
        if is_a(type(value), module, name):
            column: Column = make(_as_base(value, module, name))
            if isinstance(column, ArrayColumn) and is_a(
                type(value), "numpy.ma.core", "MaskedArray"
            ):
                column.mask = (attributes(value) or {}).get("_mask")
            return column
    return None


def _as_base(value: Any, module: str, name: str) -> Any:
    """The value, or what a user's subclass of a library's class holds, as that class."""
    base: Any = find(module, name)
    if type(value) is base:
        return value
    if name == "ndarray":
        return base.view(value, base)
    if type_name(type(value)).partition(".")[0] == module.partition(".")[0]:
        return value  # the library's own; a class that only says so harms its author alone
    if module == "pandas" and name in ("DataFrame", "Series"):
        manager = (attributes(value) or {})["_mgr"]
        found = base._from_mgr(manager, axes=manager.axes)
        if name == "Series":
            object.__setattr__(found, "_name", (attributes(value) or {}).get("_name"))
        return found
    if module == "polars":
        own = attributes(value) or {}
        if name == "DataFrame":
            return base._from_pydf(own["_df"])
        return base._from_pyseries(own["_s"])
    raise TypeError(f"a subclass of {module}.{name}")


# numpy


def _of_objects(cells: list[Any]) -> dict[str, Any]:
    """Facts about a column of any Python objects, which are only compared if they are plain."""
    absent = [type(None), *map(type, missing_values())]
    kinds = kinds_of(cells)
    present: list[Any] = cells
    if any(kind is float or among(kind, absent) for kind, _ in kinds):
        # nan is how pandas leaves a cell of texts empty
        present = [
            cell
            for cell in cells
            if not ((type(cell) is float and cell != cell) or among(type(cell), absent))
        ]
        kinds = kinds_of(present)
    facts: dict[str, Any] = {"nulls": len(cells) - len(present)}
    if len(kinds) == 1 and kinds[0][0] is str:
        facts.update(_of_texts(present))
    elif kinds and all(among(kind, [int, float, bool]) for kind, _ in kinds):
        facts.update({"min": _extreme(min(present)), "max": _extreme(max(present))})
    if len(kinds) > 1 or (kinds and len(facts) == 1):
        facts["types"] = {clean(type_name(kind), 60): count for kind, count in kinds[:4]}
    return facts


def _of_texts(texts: list[str]) -> dict[str, Any]:
    from collections import Counter

    counts = Counter(texts)
    return _of_counts(counts.most_common(_TOP), len(counts))


def _of_counts(counts: list[tuple[Any, int]], distinct: int) -> dict[str, Any]:
    """Facts from the most frequent values with their counts."""
    facts: dict[str, Any] = {}
    if counts and counts[0][1] > 1:
        facts["top"] = {_top_label(label): int(count) for label, count in counts[:_TOP]}
    facts["distinct"] = int(distinct)
    return facts


def _top_label(label: Any) -> str:
    told = scalar(label)
    return clean(str(told) if told is not MISSING else stub(label), 24)


class ArrayColumn(Column):
    """A numpy array of any number of dimensions, its elements in row-major order."""

    how = ".flat[i:j]"

    def __init__(self, array: Any, *, exact_up_to: int = EXACT_ROWS) -> None:
        super().__init__(int(array.size), exact_up_to=exact_up_to)
        self.array = array
        self.mask: Any = None  # of a masked array: what is true there holds nothing
        self.dtype = clean(str(array.dtype), 3 * _NAME)

    def cells(self, start: int, stop: int) -> list[Any]:
        # flat: reads only these, of whatever layout
        cells = list(self.array.flat[start:stop])
        hidden = self._hidden(slice(start, stop))
        if hidden is None:
            return cells
        return [None if hides else cell for cell, hides in zip(cells, hidden, strict=True)]

    def _hidden(self, part: Any) -> Any:
        if self.mask is None or self.mask.shape != self.array.shape:
            return None
        return self.mask.flat[part]

    def _find(self) -> dict[str, Any]:
        part = _positions(self.length) if self.sampled else slice(None)
        array = self.array.flat[part] if self.sampled else self.array.reshape(-1)
        hidden = self._hidden(part)
        if hidden is None:
            return _of_array(array)
        facts = _of_array(array[~hidden])
        facts["nulls"] = facts.get("nulls", 0) + int(hidden.sum())
        return facts


def _of_array(array: Any) -> dict[str, Any]:
    numpy: Any = sys.modules["numpy"]
    code = array.dtype.kind
    if code == "O":
        return _of_objects(array.ravel().tolist())
    if code == "b":
        true = int(numpy.count_nonzero(array))
        counts = {"True": true, "False": int(array.size) - true}
        return {"top": {label: n for label, n in counts.items() if n}}
    if code in "SU":
        return _of_texts([str(item) for item in array.ravel().tolist()])
    if code not in "iufmM":
        return {}
    facts: dict[str, Any] = {}
    if code in "fmM":
        nothing = numpy.isnan(array) if code == "f" else numpy.isnat(array)
        nulls = int(numpy.count_nonzero(nothing))
        facts["nulls"] = nulls
        if nulls:
            array = array[~nothing]
    if array.size:
        facts.update({"min": _extreme(array.min()), "max": _extreme(array.max())})
    return facts


# pandas


class _PandasColumn(Column):
    how = ".iloc[i:j]"

    def __init__(self, series: Any, *, exact_up_to: int = EXACT_ROWS) -> None:
        super().__init__(len(series), exact_up_to=exact_up_to)
        self.name = series.name
        self.dtype = _dtype(series.dtype)
        self._series = series
        self._is_known = _is_known(series.dtype)
        self.index = _index(series.index)

    def cells(self, start: int, stop: int) -> list[Any]:
        return list(self._series.iloc[start:stop]) if self._is_known else []

    def _find(self) -> dict[str, Any]:
        if not self._is_known:
            return {}
        series: Any = self._series
        if self.sampled:
            series = series.iloc[_positions(self.length)]
        return _of_series(series)

    def memory(self) -> tuple[str, int] | None:
        if not self._is_known:
            return None
        key = "bytes_at_least" if self.dtype in ("object", "category") else "bytes"
        return key, int(self._series.memory_usage(index=False, deep=False))


class _PandasIndex(_PandasColumn):
    how = "[i:j]"

    def __init__(self, index: Any) -> None:
        series: Any = find("pandas", "Series")
        is_multiple = int(index.nlevels) > 1
        # a MultiIndex has tuples; of it, only the ends are told
        super().__init__(series(list(range(0))) if is_multiple else series(index))
        self.name = None if is_multiple else index.name
        self.index = _index(index) if is_multiple else None
        self.length = len(index)
        self.sampled = 0 if is_multiple else self.sampled
        self._index = index
        if is_multiple:
            self.dtype = f"{int(index.nlevels)} levels"
            self._facts = {}

    def cells(self, start: int, stop: int) -> list[Any]:
        return list(self._index[start:stop]) if self._is_known else []

    def memory(self) -> tuple[str, int] | None:
        return "bytes", int(self._index.memory_usage(deep=False))


class _PandasArray(_PandasColumn):
    how = "[i:j]"

    def __init__(self, array: Any) -> None:
        if type_name(type(array.dtype)).partition(".")[0] != "pandas":
            raise TypeError("an array of a type that is not pandas' own")
        series: Any = find("pandas", "Series")
        super().__init__(series(array))
        self.index = None


class _PandasTable(Table):
    def __init__(self, frame: Any) -> None:
        height, width = frame.shape
        super().__init__(int(height), int(width))
        self._frame = frame
        # there may be thousands of columns, and few types
        dtypes: list[Any] = frame.dtypes.tolist()
        self._dtypes = {id(dtype): dtype for dtype in dtypes}
        told = {key: _dtype(dtype) for key, dtype in self._dtypes.items()}
        self.types = [told[id(dtype)] for dtype in dtypes]
        self.index = _index(frame.index)

    def names(self, count: int) -> list[Any]:
        return self._frame.columns[:count].tolist()

    def _column(self, at: int) -> Column:
        return _PandasColumn(self._frame.iloc[:, at], exact_up_to=self.exact_up_to)

    def memory(self) -> tuple[str, int] | None:
        key = "bytes_at_least" if {"object", "category"} & set(self.types) else "bytes"
        known = list(self._dtypes.values())
        if self.width <= _MEASURED and all(map(_is_known, known)):
            return key, int(self._frame.memory_usage(index=False, deep=False).sum())
        if not all(is_a(type(dtype), "numpy", "dtype") for dtype in known):
            return None
        sizes = {_dtype(dtype): int(dtype.itemsize) for dtype in known}
        return key, sum(sizes[told] for told in self.types) * self.height


def _is_known(dtype: Any) -> bool:
    """Whether a type of values is numpy's or pandas', not somebody's own, whose code would run."""
    return type_name(type(dtype)).partition(".")[0] in ("numpy", "pandas")


def _dtype(dtype: Any) -> str:
    return clean(str(dtype.name) if _is_known(dtype) else type_name(type(dtype)), _NAME)


def _index(index: Any) -> str | None:
    """An index in a few words; None for one that only counts the rows."""
    is_range = is_a(type(index), "pandas", "RangeIndex")
    if is_range and (index.start, index.step, index.name) == (0, 1, None):
        return None
    kind = type_name(type(index)).rpartition(".")[2]
    names = [str(told) for told in map(scalar, index.names) if type(told) in (str, int)]
    text = kind + (f" {', '.join(names)}" if names else "")
    if len(index):
        first, last = (_end(index[at]) for at in (0, -1))
        text += f": {first} … {last}"
    return clean(text, 160)


def _end(label: Any) -> str:
    if type(label) is tuple:
        return f"({', '.join(map(_end, label))})"
    told = _extreme(label)
    return clean(str(told), 40) if told is not None else stub(label)


def _of_series(series: Any) -> dict[str, Any]:
    """Facts about a Series of one of pandas' or numpy's own types."""
    dtype = series.dtype
    if is_a(type(dtype), "numpy", "dtype"):
        if dtype.kind == "O":
            return _of_objects(series.tolist())
        if dtype.kind not in "mM":
            facts = _of_array(series.to_numpy())
            if dtype.kind in "iu":
                facts["distinct"] = int(series.nunique())
            return facts
    facts: dict[str, Any] = {"nulls": int(series.isna().sum())}
    if is_a(type(dtype), "pandas", "CategoricalDtype"):
        numpy: Any = sys.modules["numpy"]
        codes = series.array.codes
        counts = numpy.bincount(codes[codes >= 0], minlength=1)
        order = counts.argsort(kind="stable")[::-1][:_TOP]
        top = [(dtype.categories[at], counts[at]) for at in order if counts[at]]
        facts.update(_of_counts(top, numpy.count_nonzero(counts)))
        facts["categories"] = len(dtype.categories)
    elif is_a(type(dtype), "pandas", "StringDtype") or "string" in str(dtype):
        counts = series.value_counts()
        facts.update(_of_counts(list(islice(counts.items(), _TOP)), len(counts)))
    elif str(dtype) in ("boolean", "bool[pyarrow]"):
        facts.update(_of_counts(list(series.value_counts().items()), 2))
        facts.pop("distinct")
    elif facts["nulls"] < len(series):
        facts.update({"min": _extreme(series.min()), "max": _extreme(series.max())})
    return {key: fact for key, fact in facts.items() if fact is not None}


# Arrow


class _ArrowColumn(Column):
    how = ".slice(i, n)"

    def __init__(self, array: Any, *, exact_up_to: int = EXACT_ROWS) -> None:
        super().__init__(len(array), exact_up_to=exact_up_to)
        self.dtype = clean(str(array.type), _NAME)
        self._array = array

    def cells(self, start: int, stop: int) -> list[Any]:
        return self._array.slice(start, max(0, stop - start)).to_pylist()

    def memory(self) -> tuple[str, int]:
        return "bytes", int(self._array.nbytes)

    def _find(self) -> dict[str, Any]:
        from importlib import import_module

        pa: Any = sys.modules["pyarrow"]
        compute: Any = import_module("pyarrow.compute")
        array = self._array
        if is_a(type(array), "pyarrow", "ExtensionArray"):
            array = array.storage
        if self.sampled:
            parts = [array.slice(start, stop - start) for start, stop in runs(self.length)]
            if is_a(type(array), "pyarrow", "ChunkedArray"):
                parts = [chunk for part in parts for chunk in part.chunks]
            array = pa.chunked_array(parts)
        facts: dict[str, Any] = {"nulls": int(array.null_count)}
        kind: Any = array.type
        if pa.types.is_dictionary(kind):
            array = array.cast(kind.value_type)
            kind = array.type
        if kind in (pa.string(), pa.large_string(), pa.string_view(), pa.bool_()):
            counts: list[Any] = compute.value_counts(array.drop_null()).to_pylist()
            counts.sort(key=lambda pair: -pair["counts"])
            top = [(pair["values"], pair["counts"]) for pair in counts[:_TOP]]
            facts.update(_of_counts(top, len(counts)))
        elif facts["nulls"] < len(array) and not pa.types.is_nested(kind):
            ends = attempt(lambda: compute.min_max(array).as_py()) or {}
            facts.update({key: _extreme(end) for key, end in ends.items()})
        return {key: fact for key, fact in facts.items() if fact is not None}


class _ArrowTable(Table):
    how_rows = ".slice(i, n)"
    how_columns = ".schema"

    def __init__(self, table: Any) -> None:
        super().__init__(int(table.num_rows), int(table.num_columns))
        self._table = table
        self.types = [clean(str(kind), _NAME) for kind in table.schema.types]

    def names(self, count: int) -> list[Any]:
        return self._table.schema.names[:count]

    def _column(self, at: int) -> Column:
        return _ArrowColumn(self._table.column(at), exact_up_to=self.exact_up_to)

    def memory(self) -> tuple[str, int]:
        return "bytes", int(self._table.nbytes)


# Polars


class _PolarsColumn(Column):
    how = ".slice(i, n)"

    def __init__(self, series: Any, *, exact_up_to: int = EXACT_ROWS) -> None:
        super().__init__(len(series), exact_up_to=exact_up_to)
        self.name = series.name
        self.dtype = clean(str(series.dtype), _NAME)
        self._series = series

    def cells(self, start: int, stop: int) -> list[Any]:
        return self._series.slice(start, max(0, stop - start)).to_list()

    def memory(self) -> tuple[str, int]:
        return "bytes", int(self._series.estimated_size())

    def _find(self) -> dict[str, Any]:
        series: Any = self._series
        if self.sampled:
            polars: Any = sys.modules["polars"]
            parts = [series.slice(start, stop - start) for start, stop in runs(self.length)]
            series = polars.concat(parts, rechunk=True)
        facts: dict[str, Any] = {"nulls": int(series.null_count())}
        kind = self.dtype.partition("(")[0]
        present: Any = series.drop_nulls()
        if kind in ("String", "Categorical", "Enum"):
            facts.update(_of_texts(present.to_list()))
        elif kind == "Boolean":
            true = int(present.sum() or 0)
            counts = {"True": true, "False": len(present) - true}
            facts["top"] = {label: count for label, count in counts.items() if count}
        elif kind == "Object":
            facts = _of_objects(series.to_list())
        elif len(present) and kind not in ("List", "Array", "Struct", "Binary", "Null"):
            facts.update({"min": _extreme(present.min()), "max": _extreme(present.max())})
        return {key: fact for key, fact in facts.items() if fact is not None}


class _PolarsTable(Table):
    how_rows = ".slice(i, n)"
    how_columns = ".schema"

    def __init__(self, frame: Any) -> None:
        height, width = frame.shape
        super().__init__(int(height), int(width))
        self._frame = frame
        self.types = [clean(str(kind), _NAME) for kind in frame.dtypes]

    def names(self, count: int) -> list[Any]:
        return self._frame.columns[:count]

    def _column(self, at: int) -> Column:
        return _PolarsColumn(self._frame.to_series(at), exact_up_to=self.exact_up_to)

    def memory(self) -> tuple[str, int]:
        return "bytes", int(self._frame.estimated_size())
