"""The bounded description of a value that a model may see: always JSON, cheap, never an error.

What says most comes first: the class, the size, names and types; then what is missing, some
members, statistics. Each fact is told if it fits into the bytes that are left, so a small value is
told in full and a huge one by its shape and a sample. What was left out is said, and how to get it.

The value's own code is not run: it is read through its built-in or library class (see `outline`,
`tables` and `objects`). Only an object of unknown structure is asked for its ``repr``, which may
take a moment.
"""

# Values are Any: narrowed by their class, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from itertools import islice

from . import sniff
from .layout import numbered, tell_column, tell_table
from .objects import tell_object
from .outline import (
    SEQUENCES,
    Budget,
    fields_of,
    kinds_of,
    scalar,
    size,
    to_text,
)
from .reprs import (
    MISSING,
    bounded_repr,
    clean,
    is_a,
    lookup,
    member,
    number,
)
from .sketch import Sketch
from .tables import attempt, column_of, table_of
from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["LEAST_BYTES", "bounded_repr", "snapshot", "snapshot_text"]

#: Bytes below which not even a class' name fits.
LEAST_BYTES = 64
_EXACT_MEMBERS = 100_000  # members of a sequence whose types and extremes are exact
_SAMPLED_MEMBERS = 1_000
_RECORDS = 1_000  # records whose keys are compared
_KINDS = 8  # classes of members that are told
_TEXT = 800  # characters of a long text
_LINES = 5_000_000  # characters in which lines are counted
_NAMES = 400  # keys that are looked at for what they mean


def snapshot(
    value: object,
    *,
    max_bytes: int = 1200,
    sample_size: int = 5,
    semantics: Mapping[Any, Any] | None = None,
) -> dict[str, Any]:
    """Describe `value` in at most `max_bytes` bytes of compact JSON (UTF-8).

    Always holds ``type``, the qualified name of its class. Depending on the kind, as far as the
    bytes allow: ``value`` of a number; ``length``, ``head`` and ``tail`` of a text; ``length`` and
    ``items`` of a container; ``shape``, ``columns``, ``head`` and ``tail`` of a frame;
    ``fields`` or ``attributes`` of an object, else its ``repr``. A frame with too many columns for
    one object each has ``columns_by_dtype`` instead. ``left_out`` counts what is not told, and
    says how to get it (only `True`, where that does not fit). In what is nested, a text in ``<>``
    stands for a value, and ``…`` for members. Numbers in tables and arrays have six digits.

    ``sampled`` is the number of rows (or members) that statistics are of, where that is not all:
    they are exact up to 100,000 rows.

    Args:
        max_bytes: at least `LEAST_BYTES`. A token is about four.
        sample_size: rows or members wished for; the bytes decide.
        semantics: what columns, keys or fields mean: a text, or a mapping with ``description``
            and ``unit``.

    Raises:
        ValueError: `max_bytes` is too small for anything.
    """
    if max_bytes < LEAST_BYTES:
        raise ValueError(f"a snapshot needs {LEAST_BYTES} bytes, not {max_bytes}")
    sketch = Sketch(value, max_bytes, max(0, sample_size), semantics)
    try:
        _describe(sketch, value)
    except KeyboardInterrupt:
        raise
    # A description must never be why a run fails; libraries may raise anything.
    except BaseException as error:
        sketch.put("undescribed", clean(type_name(type(error)), 80))
    return sketch.finished()


def snapshot_text(
    value: object,
    *,
    max_bytes: int = 1200,
    sample_size: int = 5,
    semantics: Mapping[Any, Any] | None = None,
) -> str:
    """`snapshot` as compact JSON."""
    return to_text(
        snapshot(value, max_bytes=max_bytes, sample_size=sample_size, semantics=semantics)
    )


def _describe(sketch: Sketch, value: Any) -> None:
    kind: type = type(value)
    told = scalar(value)
    if is_a(kind, "enum", "Enum"):
        sketch.tell("name", member(value, "_name_"))
        sketch.tell("value", member(value, "_value_"))
    elif issubclass(kind, str):
        _text(sketch, value)
    elif told is not MISSING:
        # what JSON cannot say has the text that it would print
        sketch.tell("value", told)
    elif issubclass(kind, (bytes, bytearray, memoryview)):
        _bytes(sketch, value)
    elif (fields := fields_of(value)) is not None:
        _fields(sketch, value, fields)
    elif (base := next((base for base in SEQUENCES if issubclass(kind, base)), None)) is not None:
        _members(sketch, base, value)
    elif issubclass(kind, dict):
        _entries(sketch, value)
    elif (table := attempt(lambda: table_of(value))) is not None:
        tell_table(sketch, table)
    elif (column := attempt(lambda: column_of(value))) is not None:
        tell_column(sketch, column)
    else:
        tell_object(sketch, value)


def _text(sketch: Sketch, value: Any) -> None:
    length = str.__len__(value)
    sketch.put("length", length)
    room = sketch.room("head")
    if length <= min(room, 2 * _TEXT):
        whole = clean(value, length)
        if size(whole) <= room:
            sketch.put("head", whole)
            return
    lines = str.count(value, "\n", 0, _LINES) + 1
    if lines > 1:
        sketch.put("lines", lines if length <= _LINES else f"more than {lines:,}")
    room = min(_TEXT, sketch.room("head") - 12)  # the tail's key
    head = _beginning(value, length, room * 2 // 3)
    sketch.put("head", clean(head, len(head)))
    tail = _ending(value, length, min(room // 3, sketch.room("tail")))
    sketch.put("tail", clean(tail, len(tail)))
    sketch.leave_out("characters", length - len(head) - len(tail), "[i:j]")


def _beginning(value: str, length: int, room: int) -> str:
    """The first characters, as many as `room` bytes of JSON hold."""
    part = str.__getitem__(value, slice(max(0, min(length, room))))
    while part and (over := size(clean(part, len(part))) - room) > 0:
        part = part[: -max(1, over // 6)]
    return part


def _ending(value: str, length: int, room: int) -> str:
    part = str.__getitem__(value, slice(max(0, length - max(0, room)), length))
    while part and (over := size(clean(part, len(part))) - room) > 0:
        part = part[max(1, over // 6) :]
    return part


def _bytes(sketch: Sketch, value: Any) -> None:
    with memoryview(value) as view:
        sketch.put("length", view.nbytes)
        if not view.c_contiguous or not view.nbytes:
            return
        with view.cast("B") as flat:
            kind = sniff.kind_of(flat)
            if kind is not None:
                sketch.put("kind", kind)
            elif (text := sniff.beginning_of_text(flat)) is not None:
                sketch.tell("text", text, 200)
            shown = flat[: max(0, min(32, sketch.room("head") // 2 - 1))]
            sketch.put("head", shown.hex())
            sketch.leave_out("bytes", flat.nbytes - shown.nbytes, "[i:j]")


def _named(kinds: list[tuple[type, int]]) -> dict[str, int]:
    names: dict[str, int] = {}
    for kind, count in kinds[:_KINDS]:
        name = clean(type_name(kind), 80)
        names[name] = names.get(name, 0) + count
    return names


def _spread(sketch: Sketch, base: Any, value: Any) -> list[Any]:
    """All members, or so many from everywhere in a sequence, or the first of a set."""
    length = base.__len__(value)
    if length <= _EXACT_MEMBERS:
        return list(base.__iter__(value))
    sketch.put("sampled", _SAMPLED_MEMBERS)
    if base not in (list, tuple):
        return list(islice(base.__iter__(value), _SAMPLED_MEMBERS))
    last = length - 1
    positions = (last * at // (_SAMPLED_MEMBERS - 1) for at in range(_SAMPLED_MEMBERS))
    return [base.__getitem__(value, at) for at in positions]


def _members(sketch: Sketch, base: Any, value: Any) -> None:
    length = base.__len__(value)
    sketch.put("length", length)
    if not length:
        return
    items = _spread(sketch, base, value)
    kinds = kinds_of(items)
    if length > 2 * sketch.sample:
        sketch.put("item_types", _named(kinds), keep=sketch.left // 4)
    if length > 2 * sketch.sample:
        if all(kind is int or kind is float for kind, _ in kinds):
            sketch.put("min", number(min(items)))
            sketch.put("max", number(max(items)))
        elif all(issubclass(kind, dict) for kind, _ in kinds):
            _schema(sketch, items[:_RECORDS])
    room = sketch.room("items")
    has_tail = base in (list, tuple) and length > 2 * sketch.sample and sketch.sample > 0
    shown = sketch.outline.members(base, value, room * 3 // 4 if has_tail else room)
    shown = [] if shown is MISSING else shown
    told = len(shown)
    if shown and told <= length and type(shown[-1]) is str and shown[-1][:2] == "… ":
        shown.pop()  # `left_out` says it
        told -= 1
        sketch.outline.shortened -= 1
    if not sketch.put("items", shown):
        told = 0
    if has_tail and told < length:
        at = max(told, length - 2)
        tail: list[Any] = []
        room = sketch.room("tail")
        for position in range(length - 1, at - 1, -1):
            item = sketch.outline.of(base.__getitem__(value, position), min(room // 2, 120))
            if size(item) + 3 > room:
                break
            room -= size(item) + 1
            tail.insert(0, item)
        if tail and sketch.put("tail", tail):
            told += len(tail)
    sketch.leave_out("items", length - told, "[i:j]" if base in (list, tuple) else "list(…)[i:j]")


def _schema(sketch: Sketch, records: list[Any]) -> None:
    """The keys of records with the classes of their values, and in how many they are."""
    schema: dict[str, Any] = {}
    budget = Budget(min(sketch.room("keys"), sketch.left // 2) - 2)
    shared = sketch.outline.shared_keys(records)
    for key, (count, kinds) in shared.items():
        names = "|".join(clean(type_name(kind), 40) for kind in kinds[:4])
        partly = f" in {count:,} of {len(records):,}" if count < len(records) else ""
        if not budget.put(schema, clean(key, 60), names + partly):
            break
    if schema:
        sketch.put("keys", schema)
    sketch.leave_out("keys", len(shared) - len(schema))


def _entries(sketch: Sketch, value: Any) -> None:
    length = dict.__len__(value)
    sketch.put("length", length)
    if not length:
        return
    if length > max(30, 4 * sketch.sample):
        _entry_kinds(sketch, value)
    keys = list(islice(dict.keys(value), _NAMES))
    sketch.tell_meanings(keys, most=sketch.left // 3)
    items = sketch.outline.entries(value, sketch.room("items"))
    items = {} if items is MISSING else items
    more = "…" in items and "…" not in keys
    if more:
        del items["…"]
        sketch.outline.shortened -= 1
    told = len(items) if sketch.put("items", items) else 0
    if told < length <= _NAMES and items:
        _other_keys(sketch, keys, items)
    sketch.leave_out("items", length - told, "['key'], .items()")


def _other_keys(sketch: Sketch, keys: list[Any], items: dict[str, Any]) -> None:
    """Name the keys whose values are not shown: by them the values are found."""
    labels = [sketch.outline.label(key) for key in keys]
    names: list[str] = []
    budget = Budget(sketch.room("other_keys") - 2)
    for name, _ in numbered([label for label in labels if label not in items]):
        if not budget.push(names, name):
            break
    if names:
        sketch.put("other_keys", names)


def _entry_kinds(sketch: Sketch, value: Any) -> None:
    """The classes of keys and values of a dict with many entries."""
    some = list(islice(dict.items(value), _SAMPLED_MEMBERS))
    if len(some) < dict.__len__(value):
        sketch.put("sampled", len(some))
    sketch.put("key_types", _named(kinds_of([key for key, _ in some])), keep=sketch.left // 2)
    values = [item for _, item in some]
    kinds = kinds_of(values)
    sketch.put("value_types", _named(kinds), keep=sketch.left // 2)
    if all(issubclass(kind, dict) for kind, _ in kinds):
        _schema(sketch, values)


def _fields(sketch: Sketch, value: Any, fields: list[tuple[str, Any]]) -> None:
    has_own = lookup(type(value), "__repr__") is object.__repr__
    key = "attributes" if has_own else "fields"
    sketch.tell_meanings([name for name, _ in fields], most=sketch.left // 3)
    told = sketch.outline.fields(fields, len(fields), sketch.room(key))
    told = {} if told is MISSING else told
    missing = told.pop("…", None) if "…" not in dict(fields) else None
    if missing is not None:
        sketch.outline.shortened -= 1
    shown = len(told) if sketch.put(key, told) else 0
    sketch.leave_out(key, len(fields) - shown, ".name")
