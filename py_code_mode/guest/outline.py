"""Says as much of a value as some bytes of JSON allow: nested, sampled, and marked where shortened.

In what comes out, a text in ``<>`` stands for a value that was not told, and ``…`` for members that
were left out. What a container gives is divided among its members: small ones take what they need,
and leave the rest to the larger ones. Containers are read through their built-in base class, never
by a subclass's own methods.
"""

# Values are Any: narrowed by their class, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import json
import sys
from collections import deque
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, ModuleType

from .reprs import MISSING, Reprs, among, attributes, clean, find, is_a, lookup, member, mro, number
from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_REST = 26  # bytes of the note that says how many entries are left out
_SMALL = 24  # bytes of a text that is told whole before anything else is
_MEMBER = 40  # bytes in which an example of a container says something
_DEPTH = 20  # containers in containers
_TEXT = 200  # characters of a text inside another value
_LABEL = 60  # characters of a key
_NAME = 40  # characters of a class' name in a text in <>
_KINDS = 20  # classes of members that are told apart
_SHOWN = 500  # members of one container that are looked at, at most
_RECORDS = 1_000  # records of one list that are compared
_SCANNED = 20_000  # keys of records that are compared, in one snapshot

#: Built-in containers whose members are told one after the other.
SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset, deque)
_NUMBERS = (id(int.__repr__), id(float.__repr__))
_BYTES = (bytes, bytearray, memoryview)

_class_dict: Any = type.__dict__["__dict__"]

# Classes whose str() says all, and runs no other code: name -> module it is found in.
_LEAVES = {
    **dict.fromkeys(("datetime", "date", "time", "timedelta", "timezone"), "datetime"),
    **dict.fromkeys(("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"), "pathlib"),
    **dict.fromkeys(("Timestamp", "Timedelta", "Period"), "pandas"),
    "Decimal": "decimal",
    "Fraction": "fractions",
    "UUID": "uuid",
    "ZoneInfo": "zoneinfo",
}
# Classes that have a shape, with the modules they are found in.
_SHAPED = {
    **dict.fromkeys(("ndarray",), "numpy"),
    **dict.fromkeys(("DataFrame", "Series"), "pandas polars"),
    **dict.fromkeys(("Index", "RangeIndex", "MultiIndex", "DatetimeIndex"), "pandas"),
    **dict.fromkeys(("Table", "RecordBatch"), "pyarrow"),
}


def size(value: Any) -> int:
    """Bytes of a JSON value, compact, in UTF-8."""
    if type(value) is int:
        return len(str(value))
    return len(to_text(value).encode("utf-8"))


def to_text(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Budget:
    """Bytes of compact JSON that are still free; what is put in anywhere is paid for exactly."""

    def __init__(self, left: int) -> None:
        self.left = left

    def put(self, into: dict[str, Any], key: str, value: Any, *, keep: int = 0) -> bool:
        """Put an entry into an object if that leaves `keep` bytes; say whether it did."""
        cost = size(key) + 1 + size(value) + bool(into)
        if key in into or self.left - cost < keep:
            return False
        self.left -= cost
        into[key] = value
        return True

    def push(self, into: list[Any], value: Any, *, keep: int = 0) -> bool:
        """The same of a member of a list."""
        cost = size(value) + bool(into)
        if self.left - cost < keep:
            return False
        self.left -= cost
        into.append(value)
        return True


class Outline:
    """Tells values inside values; remembers what their reprs said, and whether it left out any.

    Args:
        within: the value whose members are told.

    Attributes:
        sample: how many members of a long list are wished for.
        shortened: how many values were told by less than all of them.
    """

    def __init__(self, sample: int, within: object) -> None:
        self.sample = sample
        self.shortened = 0
        self.reprs = Reprs()
        self._open = {id(within)}
        self._to_scan = _SCANNED

    def of(self, value: Any, room: int, depth: int = 0) -> Any:
        """JSON that tells `value` in at most `room` bytes, or a short text in <> in its place."""
        told = scalar(value)
        if told is MISSING:
            told = self._beyond_scalars(value, room, depth)
        elif isinstance(told, str):
            return self.text(told, room, _TEXT)
        if told is MISSING or size(told) > room:
            self.shortened += 1
            return self._stub(value, room)
        return told

    def text(self, value: str, room: int, wish: int) -> str:
        """A text, or its beginning and end: at most `wish` characters, and `room` bytes."""
        length = str.__len__(value)
        if length <= min(wish, room):
            found = clean(value, length)
            if size(found) <= room:
                return found
        self.shortened += 1
        kept = min(wish, length - 1, room)
        while kept > 0:
            # of a few characters the beginning says most, and how many there were costs as much
            found = clean(value, kept) if kept > 60 else _beginning(value, kept)
            over = size(found) - room
            if over <= 0:
                return found
            # escapes take up to six bytes a character
            kept -= max(1, over // 6)
        return "…"

    def entries(self, value: Any, room: int, depth: int = 0) -> Any:
        """The entries of a dict; of one with many entries of a kind, some of them."""
        length = dict.__len__(value)
        pairs = list(islice(dict.items(value), max(1, min(room // 6, _SHOWN))))
        others: list[Any] = []
        if length > max(30, 4 * self.sample) and _alike([item for _, item in pairs]):
            is_nested = _weight(pairs[0][1]) > _MEMBER
            shown = max(1, self.sample // 2 if is_nested else 2 * self.sample)
            others = [key for key, _ in pairs[shown:]]
            del pairs[shown:]
        named = [(self.label(key), item) for key, item in pairs]
        told = self.fields(named, length, room * 6 // 10 if others else room, depth)
        if others and told is not MISSING and "…" in told:
            left = room - size(told) - 5
            labels = _joined(map(self.label, others), left, length - len(named))
            told["…"] += f": {labels}" if labels else ""
        elif depth and told is not MISSING and 3 * len(told) < 2 * len(named):
            return MISSING  # the names of all, without values, say more
        return told

    def fields(self, pairs: list[tuple[str, Any]], length: int, room: int, depth: int = 0) -> Any:
        """An object of these pairs, the first of `length` that there are, as far as they fit.

        `MISSING` if none does.
        """
        pairs = list(dict(pairs).items())  # of two keys with one text, one
        costs = [size(label) + 1 for label, _ in pairs]
        items = [item for _, item in pairs]
        told = self._least(items, costs, room - 2)
        if len(told) < length:
            told = self._least(items, costs, room - 2 - _REST)
            self.shortened += 1
        if not told and length:
            return MISSING
        left = room - 2 - (_REST if len(told) < length else 0)
        self._expand(told, items, left - sum(costs[: len(told)]), depth)
        found = {label: item for (label, _), item in zip(pairs, told, strict=False)}
        if len(told) < length:
            found["…"] = f"{length - len(told):,} more"
        return found

    def _stub(self, value: Any, room: int) -> str:
        """A text in <> that stands for a value; a dict's names as many keys as fit."""
        short = stub(value)
        if not issubclass(type(value), dict) or id(value) in self._open or room < len(short) + 12:
            return short
        keys = map(self.label, islice(dict.keys(value), room // 3))
        labels = _joined(keys, room - size(short) - 2, dict.__len__(value))
        return f"{short[:-1]}: {labels}>" if labels else short

    def members(self, base: Any, value: Any, room: int, depth: int = 0) -> Any:
        """The first members of a sequence, then a text that says how many there are more.

        `MISSING` if none fits.
        """
        length = base.__len__(value)
        count = length if length <= 2 * self.sample else max(1, self.sample)
        items = list(islice(base.__iter__(value), min(count, _SHOWN)))
        needed = 0
        for position, item in enumerate(items):
            # one example in full says more than the beginnings of some
            needed += _weight(item)
            if needed > room and position and needed > _MEMBER * (position + 1):
                del items[position:]
                break
        costs = [0] * len(items)
        told = self._least(items, costs, room - 2)
        rest = ""
        if len(told) < length:
            self.shortened += 1
            rest = self._rest(base, value, items[0] if items else None)
            if size(rest) + 12 > room // 3:
                rest = ""
            told = self._least(items, costs, room - 2 - size(rest) - 14)
            if not told:
                return MISSING
            rest = f"… {length - len(told):,} more{rest}"
        self._expand(told, items, room - 2 - (size(rest) + 1 if rest else 0), depth)
        return [*told, rest] if rest else told

    def label(self, key: object) -> str:
        """A key as the text that JSON needs; other keys than texts in the way they are told."""
        told = scalar(key)
        if told is MISSING:
            told = self.of(key, _LABEL, _DEPTH - 2)
        return clean(told, _LABEL) if isinstance(told, str) else to_text(told)

    def shared_keys(self, records: list[Any]) -> dict[str, tuple[int, list[type]]]:
        """For dicts: each key with how many have it, and the classes of its values.

        Keys that are no texts are left out, and all beyond what one snapshot may look at.
        """
        found: dict[str, tuple[int, list[type]]] = {}
        for record in records:
            self._to_scan -= dict.__len__(record)
            if self._to_scan < 0:
                break
            for key, item in dict.items(record):
                if type(key) is not str:
                    continue
                count, kinds = found.get(key) or (0, [])
                kind = type(item)
                if not any(known is kind for known in kinds):
                    kinds.append(kind)
                found[key] = (count + 1, kinds)
        return found

    def _beyond_scalars(self, value: Any, room: int, depth: int) -> Any:
        """Of a container, an object, bytes or what else there is; `MISSING` if it does not fit."""
        if id(value) in self._open:
            return f"<cycle: {stub(value)[1:]}"
        kind: type = type(value)
        if issubclass(kind, _BYTES):
            return _short_bytes(value)
        if depth >= _DEPTH or room < len(stub(value)):
            return MISSING
        self._open.add(id(value))
        try:
            fields = fields_of(value)
            if fields is not None:
                named = [("type", type_name(kind).rpartition(".")[2]), *fields]
                return self.fields(named, len(named), room, depth)
            for base in SEQUENCES:
                if issubclass(kind, base):
                    return self.members(base, value, room, depth)
            if issubclass(kind, dict):
                return self.entries(value, room, depth)
        finally:
            self._open.discard(id(value))
        if _says_more(value):
            return MISSING
        return self.text(self.reprs.of(value), room, _TEXT)

    def _least(self, items: list[Any], costs: list[int], room: int) -> list[Any]:
        """The shortest forms of the first items, as many as fit beside what each costs anyway."""
        told: list[Any] = []
        for item, cost in zip(items, costs, strict=True):
            short = scalar(item)
            if short is MISSING or (isinstance(short, str) and str.__len__(short) > _SMALL):
                short = stub(item)
            elif isinstance(short, str):
                short = clean(short, _SMALL)
            room -= cost + size(short) + bool(told)
            if room < 0:
                break
            told.append(short)
        return told

    def _expand(self, told: list[Any], items: list[Any], room: int, depth: int) -> None:
        """Tell more of what is told by its shortest form, the small ones first."""
        if not told:
            return
        left = room - sum(map(size, told)) - len(told) + 1
        waiting = [at for at in range(len(told)) if _is_short(items[at])]
        waiting.sort(key=lambda at: _weight(items[at]))
        for done, at in enumerate(waiting):
            before = size(told[at])
            told[at] = self.of(items[at], before + left // (len(waiting) - done), depth + 1)
            left += before - size(told[at])

    def _rest(self, base: Any, value: Any, first: Any) -> str:
        """What to say of the members that are not shown, if they are records."""
        if not issubclass(type(first), dict) or base.__len__(value) > _RECORDS:
            return ""
        records = [item for item in base.__iter__(value) if issubclass(type(item), dict)]
        if len(records) < base.__len__(value):
            return f", {len(records):,} of all are dicts"
        keys = self.shared_keys(records)
        if self._to_scan < 0:
            return ""
        partly = [
            f"{clean(key, _LABEL)} {count:,}"
            for key, (count, _) in keys.items()
            if count < len(records)
        ]
        if not partly:
            return ", all with these keys"
        more = f" and {len(partly) - 6:,} more" if len(partly) > 6 else ""
        return f"; keys that not all {len(records):,} have: {', '.join(partly[:6])}{more}"


def scalar(value: Any) -> Any:
    """What tells all of a value without members, as JSON has it; else `MISSING`.

    Texts come as they are: of any length, perhaps with lone surrogates.
    """
    kind: type = type(value)
    if value is None or kind is bool:
        return value
    if kind is int or kind is float:
        return number(value)
    if kind is str:
        return value
    name = type_name(kind).rpartition(".")[2]
    if name in _LEAVES and find(_LEAVES[name], name) is kind:
        return _leaf(value)
    if is_a(kind, "enum", "Enum"):
        label = member(value, "_name_")
        return f"{name}.{label}" if type(label) is str else MISSING
    if issubclass(kind, (int, float)) and find("numpy", name) is not kind:
        return number(value) if id(lookup(kind, "__repr__")) in _NUMBERS else MISSING
    if issubclass(kind, str):
        return value
    if find("numpy", name) is kind and is_a(kind, "numpy", "generic"):
        code = value.dtype.kind
        if code in "iufb" and value.dtype.char != "g":
            return scalar(value.item())
        return str(value) if code in "mMcf" else MISSING
    if name in ("NaTType", "NAType") and any(value is one for one in missing_values()):
        return "NaT" if name == "NaTType" else "<NA>"
    return MISSING


def _beginning(text: str, count: int) -> str:
    return clean(str.__getitem__(text, slice(count)), count) + "…"


def kinds_of(items: list[Any]) -> list[tuple[type, int]]:
    """The classes of members, with how many there are of each; the most frequent ones only."""
    from collections import Counter

    keys = list(map(id, map(type, items)))  # a metaclass may define __hash__
    if len(set(keys)) == 1:
        return [(type(items[0]), len(keys))]
    counts = Counter(keys).most_common(_KINDS)
    return [(type(items[keys.index(key)]), count) for key, count in counts]


def missing_values() -> tuple[Any, ...]:
    """What pandas, if it is loaded, holds in place of a value: NaT and NA."""
    pandas = attributes(sys.modules.get("pandas")) or {}
    return tuple(pandas[name] for name in ("NaT", "NA") if name in pandas)


def fields_of(value: Any) -> list[tuple[str, Any]] | None:
    """Names and values of what has fields, read without its code; None of everything else.

    Named tuples, dataclasses, attrs and msgspec classes, pydantic models, plain namespaces, and
    objects whose repr would say nothing but their address.
    """
    kind: type = type(value)
    names: Any = None
    if issubclass(kind, tuple):
        names = lookup(kind, "_fields")
        if type(names) is not tuple or len(names) != tuple.__len__(value):
            return None
        return [
            (clean(name, _LABEL), item)
            for name, item in zip(names, tuple.__iter__(value), strict=True)
            if type(name) is str
        ]
    if type(value) is type or issubclass(kind, (type, BaseException, ModuleType)):
        return None
    declared = lookup(kind, "__dataclass_fields__")
    if type(declared) is dict:
        names = list(declared)
    elif is_a(kind, "msgspec", "Struct"):
        slots = [_class_dict.__get__(base).items() for base in reversed(mro(kind))]
        names = [
            name for each in slots for name, item in each if type(item) is MemberDescriptorType
        ]
    elif issubclass(type(declared := lookup(kind, "__attrs_attrs__")), tuple):
        names = [member(item, "name") for item in tuple.__iter__(declared)]
    elif is_a(kind, "pydantic.main", "BaseModel") or is_a(kind, "types", "SimpleNamespace"):
        names = list(dict.keys(attributes(value) or {}))
    elif lookup(kind, "__repr__") is object.__repr__:
        own = attributes(value)
        names = [name for name in dict.keys(own or {}) if type(name) is str and name[:1] != "_"]
        if not names:
            return None
    else:
        return None
    pairs = [(name, member(value, name)) for name in names[:_SHOWN] if type(name) is str]
    return [(clean(name, _LABEL), item) for name, item in pairs if item is not MISSING]


def stub(value: Any) -> str:
    """A short text in <> that says what a value is, and how large."""
    kind: type = type(value)
    if issubclass(kind, str):
        return f"<str of {str.__len__(value):,}>"
    if issubclass(kind, type):
        return f"<class {_short(type_name(value))}>"
    if kind is FunctionType or kind is BuiltinFunctionType:
        return f"<function {_short(value.__qualname__)}>"
    name = _short(type_name(kind))
    for base in (*SEQUENCES, dict):
        if issubclass(kind, base):
            return f"<{name} of {base.__len__(value):,}>"
    if issubclass(kind, (bytes, bytearray)):
        return f"<{name} of {memoryview(value).nbytes:,} bytes>"
    if kind is ModuleType:
        own = (attributes(value) or {}).get("__name__")
        return f"<module {_short(own)}>" if type(own) is str else f"<{name}>"
    plain = type_name(kind).rpartition(".")[2]
    for module in _SHAPED.get(plain, "").split():
        if find(module, plain) is kind:
            return f"<{name} {' x '.join(str(side) for side in value.shape)}>"
    return f"<{name}>"


def _short(name: str) -> str:
    name = clean(name, 200)
    return name if len(name) <= _NAME else "…" + name[len(name) - _NAME :]


def _leaf(value: Any) -> Any:
    zone = getattr(value, "tzinfo", None)  # these classes are the library's own
    if zone is not None:
        name = type_name(type(zone)).rpartition(".")[2]
        # a zone of the user's own would be asked for its offset
        if name not in ("timezone", "ZoneInfo") or find(_LEAVES[name], name) is not type(zone):
            return MISSING
    try:
        return str(value)
    except ValueError:  # ints inside that have too many digits
        return MISSING


def _short_bytes(value: Any) -> Any:
    with memoryview(value) as view:
        if view.nbytes > 40 or not view.c_contiguous:
            return MISSING
        return repr(view.tobytes())


def _says_more(value: Any) -> bool:
    """Whether a stub says more than a repr does: of tables and the like, modules and functions."""
    kind = type(value)
    if issubclass(kind, type) or among(kind, (FunctionType, BuiltinFunctionType, ModuleType)):
        return True
    return lookup(kind, "__repr__") is object.__repr__ or any(
        is_a(kind, module, name) for name, modules in _SHAPED.items() for module in modules.split()
    )


def _joined(labels: Iterable[str], room: int, count: int) -> str:
    """The first of `count` labels, as many as fit, and whether there are more."""
    told: list[str] = []
    for label in labels:
        room -= size(label)  # two quotes there, a comma and a space here
        if room < (5 if len(told) + 1 < count else 0):
            break
        told.append(label)
    return ", ".join([*told, "…"] if told and len(told) < count else told)


def _is_short(item: Any) -> bool:
    """Whether the shortest form of an item may leave something out."""
    told = scalar(item)
    return told is MISSING or (isinstance(told, str) and str.__len__(told) > _SMALL)


def _weight(item: Any, depth: int = 2) -> int:
    """Roughly the bytes that telling all of an item would take."""
    kind: type = type(item)
    if issubclass(kind, str):
        return min(str.__len__(item), _TEXT) + 2
    for base in (*SEQUENCES, dict):
        if issubclass(kind, base):
            length = base.__len__(item)
            if not length or not depth:
                return 2 + 12 * length
            members = dict.values(item) if base is dict else base.__iter__(item)
            some = [_weight(member, depth - 1) for member in islice(members, 3)]
            return 2 + length * (sum(some) // len(some) + (14 if base is dict else 1))
    return 6 if issubclass(kind, (int, float, type(None))) else 60


def _alike(items: list[Any]) -> bool:
    """Whether all are of one class."""
    return all(type(item) is type(items[0]) for item in items)
