"""Which facts of a table, and in which form, go into a description of so many bytes.

All names and types come first, then what is missing, some rows, then statistics. Few columns get an
object each; more of them a short text each, by type; very many are named as far as they fit.
"""

# Values are Any: narrowed by their class, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from .outline import Budget, missing_values, scalar, size, to_text
from .reprs import MISSING, clean, is_a
from .tables import Column, Table, attempt, rounded

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any

    from .sketch import Sketch

_CELL = 60  # bytes of a cell
_NAMES = 400  # columns whose names are looked at
_NUMBERED_NAMES = 20_000  # the same, if they are numbered: few words tell many
_SHOWN_NAMES = 12  # of too many columns, those that are shown with a value


def _cell(sketch: Sketch, item: Any, room: int) -> Any:
    """One cell of a table; what is missing is null."""
    if item is None or _is_nan(item) or any(item is one for one in missing_values()):
        return None
    told = rounded(item)
    if type(told) in (int, float, bool):
        return told
    before = sketch.outline.shortened
    told = sketch.outline.of(item if told is MISSING else told, room)
    sketch.outline.shortened = before  # cut cells are no news in a sample
    return told


def _is_nan(item: Any) -> bool:
    """Whether it is a float that is none; numpy's are floats of their own class."""
    told = scalar(item) if issubclass(type(item), float) else None
    return told == "nan"


def tell_table(sketch: Sketch, table: Table) -> None:
    sketch.put("shape", [table.height, table.width])
    names = table.names(_NAMES)
    labels = _labels(sketch, names)
    if table.width > _NAMES and len(numbered([_said(label) for label in labels])) < _NAMES // 4:
        names = table.names(_NUMBERED_NAMES)
        labels = _labels(sketch, names)
    plain: list[Any] | None = None
    if table.width <= sketch.left // 20:
        plain = [{"name": label, "dtype": table.types[at]} for at, label in enumerate(labels)]
    if plain is not None and size(plain) <= max(sketch.left * 6 // 10, 0):
        _narrow(sketch, table, names, plain)
    else:
        _wide(sketch, table, names, labels)
    if table.index is not None:
        sketch.put("index", table.index)
    memory = attempt(table.memory)
    if memory is not None:
        sketch.put(*memory)


def _labels(sketch: Sketch, names: list[Any]) -> list[Any]:
    return [
        # most of them, of which there may be many
        name
        if type(name) is int or (type(name) is str and len(name) <= 60 and name.isascii())
        else _label(sketch, name)
        for name in names
    ]


def _label(sketch: Sketch, name: Any) -> Any:
    """The label of a column or Series as JSON."""
    told = name if type(name) is str else rounded(name)
    if type(told) in (int, float, bool):
        return told
    return clean(told, 60) if type(told) is str else sketch.outline.label(name)


def _narrow(sketch: Sketch, table: Table, names: list[Any], told: list[dict[str, Any]]) -> None:
    """All columns, each with its facts, and rows."""
    budget = sketch.budget
    table.will_tell_all()
    sketch.put("columns", told)
    columns = [table.column(at) for at in range(table.width)]
    if not told or not table.height:
        return
    if columns[0].sampled:
        sketch.put("sampled", columns[0].sampled)
    for entry, column in zip(told, columns, strict=True):
        if column.nulls:
            budget.put(entry, "nulls", column.nulls)
    for name, entry in zip(names, told, strict=True):
        for key, text in sketch.meaning(name).items():
            budget.put(entry, key, text, keep=budget.left // 2)
    if table.index is not None:
        sketch.put("index", table.index)
    rows = _Rows(sketch, table, columns)
    rows.take(2, 1, keep=budget.left // 3)
    for keys in (("min", "max"), ("top",), ("types",), ("distinct",), ("categories",)):
        for entry, column in zip(told, columns, strict=True):
            facts = column.facts
            if all(key in facts for key in keys) and not (
                keys == ("distinct",) and len(facts.get("top", ())) == facts["distinct"]
            ):
                _put_all(budget, entry, {key: facts[key] for key in keys})
    rows.take(table.height, 2)
    rows.close()


def _put_all(budget: Budget, entry: dict[str, Any], facts: dict[str, Any]) -> None:
    """Put several facts that only say something together."""
    if size(facts) <= budget.left:
        for key, fact in facts.items():
            budget.put(entry, key, fact)


class _Rows:
    """The first and last rows of a table, as far as they fit."""

    def __init__(self, sketch: Sketch, table: Table, columns: list[Column]) -> None:
        self._sketch = sketch
        self._height = table.height
        self._how = table.how_rows
        sample = sketch.sample
        # all, where the last ones join on to the first
        self._most = table.height if table.height <= sample + min(2, sample) else sample
        self._last = min(2, sample, table.height - self._most)
        ends = ((0, self._most), (table.height - self._last, table.height))
        room = _CELL if len(columns) <= 8 else _CELL // 2
        self._rows = [self._cells(columns, start, stop, room) for start, stop in ends]
        self._head: list[Any] = []
        self._tail: list[Any] = []

    def _cells(self, columns: list[Column], start: int, stop: int, room: int) -> list[list[Any]]:
        rows: list[list[Any]] = [[] for _ in range(start, stop)]
        for column in columns:
            cells = attempt(lambda column=column: column.cells(start, stop))
            for at, row in enumerate(rows):
                row.append(_cell(self._sketch, cells[at], room) if cells else "<…>")
        return rows

    def take(self, head: int, tail: int, *, keep: int = 0) -> None:
        """Have so many first and last rows, if that leaves `keep` bytes."""
        first, last = self._rows
        while len(self._head) < min(head, self._most):
            if not self._add("head", self._head, first[len(self._head)], keep):
                return
        while len(self._tail) < min(tail, self._last):
            if not self._add("tail", self._tail, last[-1 - len(self._tail)], keep):
                return
            self._tail.insert(0, self._tail.pop())

    def _add(self, key: str, rows: list[Any], row: list[Any], keep: int) -> bool:
        sketch = self._sketch
        if rows:
            return sketch.budget.push(rows, row, keep=keep)
        if sketch.put(key, [row], keep=keep):
            rows.append(row)
            sketch.found[key] = rows
        return bool(rows)

    def close(self) -> None:
        """Say how many rows were left out."""
        self._sketch.leave_out("rows", self._height - len(self._head) - len(self._tail), self._how)


def _wide(sketch: Sketch, table: Table, names: list[Any], labels: list[Any]) -> None:
    """Columns by type: with short facts, if all fit, else as many names of each as do."""
    texts = [str(label) if type(label) is int else _said(label) for label in labels]
    groups: dict[str, list[int]] = {}
    for at, dtype in enumerate(table.types):
        groups.setdefault(dtype, []).append(at)
    room = sketch.room("columns_by_dtype")
    is_unique = len(set(texts)) == len(texts)
    is_numbered = 3 * len(numbered(texts)) < len(texts)
    if is_unique and table.height and table.width <= room // 6 and not is_numbered:
        told = {dtype: {texts[at]: "" for at in group} for dtype, group in groups.items()}
        if size(told) <= room * 4 // 5:
            _facts_by_type(sketch, table, texts, told, names)
            return
    if table.width <= room // 4 and not is_numbered:
        plain = {dtype: [texts[at] for at in group] for dtype, group in groups.items()}
        if sketch.put("columns_by_dtype", plain):
            sketch.leave_out("rows", table.height, table.how_rows)
            return
    count = _names_by_type(sketch, texts, groups, room * (7 if table.height else 9) // 10)
    sketch.leave_out("columns", table.width - count, table.how_columns)
    if not count:
        return
    sketch.tell_meanings(names[:_SHOWN_NAMES], most=sketch.left // 3)
    if table.height and count == table.width <= _NAMES // 4:
        _facts_of_groups(sketch, table, groups)
    if table.height and is_unique:
        _first_row(sketch, table, texts[:_SHOWN_NAMES])
    sketch.leave_out("rows", table.height, table.how_rows)


def _facts_by_type(
    sketch: Sketch,
    table: Table,
    texts: list[str],
    told: dict[str, dict[str, str]],
    names: list[Any],
) -> None:
    sketch.put("columns_by_dtype", told)
    sketch.tell_meanings(names, most=sketch.left // 3)
    table.will_tell_all()
    if table.index is not None:
        sketch.put("index", table.index)
    columns = [table.column(at) for at in range(table.width)]
    if columns[0].sampled:
        sketch.put("sampled", columns[0].sampled)
    sketch.put("each", "first values | min…max or most frequent | nulls", keep=sketch.left // 2)
    # a little of every column before more of any
    for forms in zip(*(_short_facts(sketch, column) for column in columns), strict=True):
        for text, dtype, form in zip(texts, table.types, forms, strict=True):
            cost = size(form) - size(told[dtype][text])
            if cost <= sketch.left:
                told[dtype][text] = form
                sketch.budget.left -= cost
    sketch.leave_out("rows", table.height - 2, table.how_rows)


def _short_facts(sketch: Sketch, column: Column) -> list[str]:
    """A column in a few words, then in ever more."""
    facts = column.facts
    cells = attempt(lambda: column.cells(0, 2)) or []
    first = [_said(_cell(sketch, cell, 24)) for cell in cells]
    spread = ""
    if "min" in facts and "max" in facts:
        spread = f"{_said(facts['min'])}…{_said(facts['max'])}"
    elif "top" in facts:
        spread = ", ".join(f"{label} ×{count}" for label, count in facts["top"].items())
    elif "distinct" in facts:
        spread = f"{facts['distinct']} distinct"
    nulls = f"{facts['nulls']} null" if facts.get("nulls") else ""
    return [
        " | ".join(filter(None, parts))
        for parts in (
            (nulls,),
            (spread, nulls),
            (", ".join(first[:1]), spread, nulls),
            (", ".join(first), spread, nulls),
        )
    ]


def _said(cell: Any) -> str:
    if type(cell) is float:
        return f"{cell:.0f}" if 1e4 <= abs(cell) < 1e15 else f"{cell:.4g}"
    return cell if type(cell) is str else to_text(cell)


def _names_by_type(
    sketch: Sketch, texts: list[str], groups: dict[str, list[int]], room: int
) -> int:
    """Tell as many names of each type as fit, and how many there are; return how many were told.

    Numbered names that follow each other are told by the first and the last.
    """
    told: dict[str, dict[str, Any]] = {}
    budget = Budget(room - 2)
    waiting: list[tuple[list[str], list[tuple[str, int]]]] = []
    for dtype, group in sorted(groups.items(), key=lambda entry: -len(entry[1])):
        names: list[str] = []
        if not budget.put(told, dtype, {"count": len(group), "names": names}):
            break
        own = [texts[at] for at in group if at < len(texts)]
        if len(numbered(own[:_NAMES])) > _NAMES // 4:
            own = own[:_NAMES]
        waiting.append((names, numbered(own)))
    count = 0
    while waiting:  # in turns, so that no type is told by its number alone
        for entry in list(waiting):
            names, parts = entry
            if len(names) < len(parts) and budget.push(names, parts[len(names)][0]):
                count += parts[len(names) - 1][1]
            else:
                waiting.remove(entry)
    if told:
        sketch.put("columns_by_dtype", told)
    if len(told) < len(groups):
        sketch.leave_out("dtypes", len(groups) - len(told), ".dtypes")
    return count


def numbered(names: list[str]) -> list[tuple[str, int]]:
    """Names, where some follow each other by number as one text, with how many each stands for."""
    parts: list[tuple[str, int]] = []
    start = 0
    stem, number, width = "", -1, 0
    for at, name in enumerate([*names, ""]):
        if number >= 0 and name and name == f"{stem}{number + 1:0{width}}":
            number += 1
            continue
        if at - start > 3:
            parts.append((f"{names[start]} … {names[at - 1]}", at - start))
        else:
            parts += [(name, 1) for name in names[start:at]]
        start = at
        stem = name.rstrip("0123456789")
        digits = name[len(stem) :]
        number = int(digits) if 0 < len(digits) < 10 else -1
        width = len(digits) if digits[:1] == "0" else 0
    return parts


def _facts_of_groups(sketch: Sketch, table: Table, groups: dict[str, list[int]]) -> None:
    """Tell of the columns of one type together."""
    table.will_tell_all()
    told: dict[str, dict[str, Any]] = sketch.found["columns_by_dtype"]
    for dtype, entry in told.items():
        columns = [table.column(at) for at in groups[dtype]]
        if columns[0].sampled:
            sketch.put("sampled", columns[0].sampled)
        nulls = sum(column.nulls for column in columns)
        if nulls:
            sketch.budget.put(entry, "nulls", nulls)
        ends = [column.facts for column in columns if "min" in column.facts]
        if ends and all(type(facts["min"]) in (int, float) for facts in ends):
            least = min(facts["min"] for facts in ends)
            _put_all(sketch.budget, entry, {"min": least, "max": max(f["max"] for f in ends)})


def _first_row(sketch: Sketch, table: Table, texts: list[str]) -> None:
    row: dict[str, Any] = {}
    budget = Budget(min(sketch.room("first_row"), sketch.left // 2) - 2)
    for at, text in enumerate(texts):
        cells = attempt(lambda at=at: table.column(at).cells(0, 1))
        if not cells or not budget.put(row, text, _cell(sketch, cells[0], 24)):
            break
    if row:
        sketch.put("first_row", row)


def tell_column(sketch: Sketch, column: Any) -> None:
    """A Series, an index or an array."""
    array = getattr(column, "array", None)
    if array is not None:
        sketch.put("shape", [int(side) for side in array.shape])
    else:
        sketch.put("length", column.length)
    sketch.put("dtype", column.dtype)
    if array is None:
        if column.name is not None:
            sketch.put("name", _label(sketch, column.name))
            meaning = sketch.meaning(column.name)
            for key, text in meaning.items():
                sketch.put(key, text, keep=sketch.left // 2)
        if column.index is not None:
            sketch.put("index", column.index)
    if array is not None and not array.shape and array.size:
        sketch.tell("value", _element(sketch, array.flat[0]))
    elif column.length:
        _column_facts(sketch, column)
    memory: Any = ("bytes", int(array.nbytes)) if array is not None else attempt(column.memory)
    if memory is not None:
        sketch.put(*memory)


def _column_facts(sketch: Sketch, column: Any) -> None:
    if column.sampled:
        sketch.put("sampled", column.sampled)
    facts = column.facts
    if facts.get("nulls"):
        sketch.put("nulls", facts["nulls"])
    is_short = column.length <= 2 * sketch.sample
    wish = column.length if is_short else sketch.sample
    cells: list[Any] = attempt(lambda: column.cells(0, wish)) or []
    head: list[Any] = []
    room = Budget(min(sketch.room("head"), sketch.left // 2) - 2)
    for cell in cells:
        if not room.push(head, _element(sketch, cell)):
            break
    if head:
        sketch.put("head", head)
    for keys in (("min", "max"), ("top",), ("types",), ("distinct",), ("categories",)):
        if all(key in facts for key in keys):
            found = {key: facts[key] for key in keys}
            if size(found) <= sketch.left:
                for key, fact in found.items():
                    sketch.put(key, fact)
    start = max(len(head), column.length - min(2, sketch.sample))
    tail: list[Any] = []
    if head and not is_short:
        last = attempt(lambda: column.cells(start, column.length)) or []
        tail = [_element(sketch, cell) for cell in last]
        if not sketch.put("tail", tail):
            tail = []
    sketch.leave_out("values", column.length - len(head) - len(tail), column.how)


def _element(sketch: Sketch, cell: Any) -> Any:
    """An element of an array or a Series; nan by its name."""
    if _is_nan(cell):
        return "nan"
    kind = type(cell)
    if kind is tuple or is_a(kind, "numpy", "void"):
        cell = cell.item() if kind is not tuple else cell
        if type(cell) is tuple:
            return [_cell(sketch, part, 24) for part in cell]
    return _cell(sketch, cell, _CELL)
