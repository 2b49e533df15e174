"""Values that cross between guest and host: the same type and the same value, or not at all.

`encode` turns a value into a JSON-able tree and a list of binary segments; `decode` is its exact
inverse, and trusts nothing: it is what the host runs on bytes that untrusted code made. Only
exact types cross, never subclasses: what a subclass adds would be lost without a word. Encoding
calls no user code, not even a metaclass's ``__hash__``.

The tree: None, bool, str, finite floats, ints up to 2**53 and lists stand for themselves; a
JSON object is a dict with plain keys, or, with one key that begins with ``$``, a tagged value.
Bytes of a leaf (a *blob*) are base64 text when small, else the index of a segment; each segment
is used exactly once, so that a few bytes can never stand for many.

Standard library only, and quick to import: modules a value needs are looked up when it appears.
"""

# What crosses is Any: narrowed by type(), its parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import binascii
import sys

from .errors import ValueNotPortable
from .segments import Pieces, Unavailable, size_of

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

#: Total size in bytes above which `encode` refuses, unless told otherwise.
DEFAULT_LIMIT = 64 << 20
#: The same for values that somebody asked for by name: what they lie in is shared, not copied.
EXCHANGE_LIMIT = 16 << 30
#: What the tree itself may hold, whatever the limit: it becomes one JSON text.
MAX_TREE = 64 << 20
#: Containers inside containers.
MAX_DEPTH = 100
#: Values inside one value, packed numbers counted too.
MAX_NODES = 2_000_000
#: Third-party libraries whose values `encode` may send; the peer has to have them.
LIBRARIES: frozenset[str] = frozenset({"numpy", "pandas", "pyarrow", "polars"})

_INLINE = 4096  # bytes of a leaf that still travel inside the tree
_MANY = 8  # members from which it pays to ask whether all are of one type
_PACK = 64  # elements from which a list of numbers travels packed
_PACK_TEXT = 256 << 10  # characters from which a list of texts does
_EXACT = 2**53  # ints that every JSON reader keeps
_FRACTION_BITS = 1 << 14  # a Fraction is normalised when built: its cost is quadratic
_SAME_HASH = 64  # members of one set or dict that may share a hash


class InvalidValue(ValueError):
    """A tree or its segments are not what `encode` makes."""


class MissingHere(InvalidValue):
    """A well-formed value that this side cannot hold: a library, its version or a time zone.

    `type_name` is what was sent, `reason` what is missing; never a sign of an attack.
    """

    def __init__(self, type_name: str, reason: str) -> None:
        super().__init__(f"{type_name}: {reason}")
        self.type_name, self.reason = type_name, reason


def encode(
    value: object,
    segments: list[Any],
    *,
    limit: int = DEFAULT_LIMIT,
    accepts: frozenset[str] = LIBRARIES,
    for_wire: bool = False,
    in_pieces: bool = False,
) -> Any:
    """Return `value` as a JSON-able tree, its large leaves appended to `segments`.

    Segments may be views of the value's own memory: write them out before the value can change.

    Args:
        segments: empty, or the segments of values encoded before into the same message. They are
            bytes-like, a table's an Arrow stream.
        limit: bytes, counted roughly while encoding.
        accepts: libraries the peer has (`LIBRARIES` names all that are known).
        for_wire: for a peer that reads them at once: a segment may be `Pieces`, and a frame of
            numbers comes as the block it lies in, rather than as a stream.
        in_pieces: a large table's stream may be `Pieces`, which copy nothing.

    Raises:
        ValueNotPortable: a part of it cannot cross without being altered, or it is too large,
            too deep or contains itself.
    """
    encoder = Encoder(segments, limit, accepts, for_wire, in_pieces)
    tree = encoder.walk(value, 0)
    encoder.charge(0, value)  # short texts are only counted
    return tree


def encode_pickled(value: object, segments: list[Any], *, limit: int = DEFAULT_LIMIT) -> Any:
    """Return any value that can be pickled as a tree, for a peer that trusts its sender.

    That is a guest decoding what its host sent it, and nobody else (`decode`, `trusts_sender`).

    Raises:
        ValueNotPortable: it cannot be pickled, or is too large.
    """
    from . import pickled

    return {"$pickle": pickled.encode(Encoder(segments, limit, LIBRARIES, True), value)}


def decode(
    tree: Any, segments: Sequence[Any], *, writable: bool = False, trusts_sender: bool = False
) -> Any:
    """Return the value that `encode` was given, from input that may be hostile.

    Args:
        segments: bytes-like; every one must be used. Arrays may be views of them.
        writable: whether arrays and frames must be writable; those over a read-only segment are
            copied then.
        trusts_sender: take what `encode_pickled` makes as well, which runs code of its sender's
            choice, and take its word for the texts in Arrow data: never on a host.

    Raises:
        InvalidValue: it is not what `encode` makes; no other exception is ever raised.
        MissingHere: (an InvalidValue) it is, but needs what this side does not have.
    """
    try:
        decoder = Decoder(segments, writable, trusts_sender)
        if trusts_sender and type(tree) is dict and len(tree) == 1 and "$pickle" in tree:
            from . import pickled

            value = pickled.decode(decoder, tree["$pickle"])
        else:
            value = decoder.walk(tree, 0)
        decoder.finish()
    except InvalidValue:
        raise
    # The border to hostile input: constructors below may raise anything (OverflowError,
    # ArithmeticError, ArrowInvalid, MemoryError for a length nobody has).
    except Exception as error:
        raise InvalidValue(f"not a valid value: {type(error).__name__}: {error}"[:500]) from error
    return value


_type_module: Any = type.__dict__["__module__"]
_type_qualname: Any = type.__dict__["__qualname__"]


def type_name(kind: type) -> str:
    """Qualified name of a class, by no code of its own; ``int``, ``pandas.DataFrame``."""
    name = str.__str__(_type_qualname.__get__(kind))
    try:
        module = _type_module.__get__(kind)
    except AttributeError:  # a class body may delete it
        return name
    if type(module) is not str or module in ("builtins", "__main__"):
        return name
    return module + "." + name


# Classes found outside builtins: module (if loaded), name in it, method of Encoder.
_ELSEWHERE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("datetime", ("datetime",), "_datetime"),
    ("datetime", ("date",), "_date"),
    ("datetime", ("time",), "_time"),
    ("datetime", ("timedelta",), "_timedelta"),
    ("datetime", ("timezone",), "_zone"),
    ("zoneinfo", ("ZoneInfo",), "_zone"),
    ("decimal", ("Decimal",), "_decimal"),
    ("fractions", ("Fraction",), "_fraction"),
    ("uuid", ("UUID",), "_uuid"),
    ("pathlib", ("PosixPath", "WindowsPath"), "_path"),
    ("pathlib", ("PurePosixPath",), "_posix_path"),
    ("pathlib", ("PureWindowsPath",), "_windows_path"),
    ("numpy", ("ndarray",), "_frame"),
    ("pandas", ("Timestamp", "Timedelta", "DataFrame", "Series", "Index"), "_frame"),
    ("pandas", ("RangeIndex", "MultiIndex", "DatetimeIndex", "TimedeltaIndex"), "_frame"),
    ("pandas", ("PeriodIndex", "IntervalIndex", "CategoricalIndex"), "_frame"),
    ("pyarrow", ("Table", "RecordBatch", "ChunkedArray"), "_frame"),
    ("polars", ("DataFrame", "Series"), "_frame"),
)

# By id, since to look up a class is to call its metaclass's __hash__; the class is kept so that
# its id stays its own.
_known: dict[int, tuple[type, str]] = {}


def _method_for(kind: type) -> str | None:
    known = _known.get(id(kind))
    if known is not None:
        return known[1]
    for module_name, names, method in _ELSEWHERE:
        module = sys.modules.get(module_name)
        if module is not None:
            for name in names:
                if vars(module).get(name) is kind:
                    _known[id(kind)] = (kind, method)
                    return method
    for module_name, parent in (("numpy", "generic"), ("pyarrow", "Array")):
        root = vars(sys.modules[module_name]).get(parent) if module_name in sys.modules else None
        if isinstance(root, type) and type.__subclasscheck__(root, kind):
            return "_frame"
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        for name in ("NaT", "NA"):
            if kind is type(vars(pandas).get(name)):
                return "_frame"
    return None


class Encoder:
    """One encoding under way; `frames` uses it for names, attributes and blobs."""

    __slots__ = (
        "_active", "_apart", "_nodes", "_size", "accepts", "for_wire", "in_pieces", "limit",
        "segments",
    )  # fmt: skip

    def __init__(
        self,
        segments: list[Any],
        limit: int,
        accepts: frozenset[str],
        for_wire: bool,
        in_pieces: bool = False,
    ) -> None:
        self.segments, self.limit, self.accepts = segments, limit, accepts
        self.for_wire, self.in_pieces = for_wire, for_wire or in_pieces
        self._size = self._nodes = self._apart = 0
        self._active: dict[int, object] = {}

    def charge(self, size: int, value: object) -> None:
        """Count `size` bytes towards the limit."""
        self._size += size
        if self._size > self.limit:
            raise ValueNotPortable(
                type_name(type(value)), f"too large: more than {self.limit:,} bytes"
            )
        if self._size - self._apart > MAX_TREE:
            raise ValueNotPortable(
                type_name(type(value)),
                f"too large: more than {MAX_TREE:,} bytes of small values; use an array or a "
                "DataFrame",
            )

    def blob(self, data: Any, value: object) -> Any:
        """A leaf's bytes: inline when small, else a new segment."""
        size = size_of(data)
        if size < _INLINE:
            self.charge(size, value)
            small = bytes(data) if type(data) is Pieces else data
            return binascii.b2a_base64(small, newline=False).decode("ascii")
        self._apart += size
        self.charge(size, value)
        self.segments.append(data)
        return len(self.segments) - 1

    def walk(self, value: Any, depth: int) -> Any:
        kind: type = type(value)
        if kind is str:
            return self.text(value)
        if kind is int:
            return value if -_EXACT <= value <= _EXACT else self._big(value)
        if value is None or kind is bool:
            return value
        if kind is float:
            return value if value - value == 0.0 else {"$float": repr(value)}
        builtin = _BUILTIN.get(id(kind))
        if builtin is not None:
            if depth >= MAX_DEPTH:
                raise ValueNotPortable(
                    type_name(kind), f"nested more than {MAX_DEPTH} levels deep, or in itself"
                )
            return builtin(self, value, depth)
        method = _method_for(kind)
        if method is None:
            raise ValueNotPortable(
                type_name(kind),
                "only plain data and frames of exactly the known types do; keep it in a variable, "
                "or convert it (dict, list, str, DataFrame)",
            )
        return getattr(self, method)(value)

    def text(self, value: str) -> Any:
        size = len(value)
        if size < _INLINE:
            self._size += size
            if value.isascii() or _is_unicode(value):
                return value
        return {"$str": self.blob(value.encode("utf-8", "surrogatepass"), value)}

    def sequence(self, items: list[Any], depth: int, owner: object) -> Any:
        """The members of a container: a list, or packed numbers."""
        if not items:
            return items
        count = len(items)
        self._enter(owner, count)
        try:
            return self._members(items, count, depth, owner)
        finally:
            del self._active[id(owner)]

    def _enter(self, owner: object, count: int) -> None:
        """Begin the members of a container; the caller takes it from `_active` at their end."""
        self._nodes += count
        if self._nodes > MAX_NODES:
            raise ValueNotPortable(
                type_name(type(owner)),
                f"too large: more than {MAX_NODES:,} values; use an array or a DataFrame",
            )
        self.charge(2 * count, owner)
        # A cycle would end at MAX_DEPTH, but only after 2**100 steps if it forks.
        if id(owner) in self._active:
            raise ValueNotPortable(type_name(type(owner)), "it contains itself")
        self._active[id(owner)] = owner

    def _members(self, items: list[Any], count: int, depth: int, owner: object) -> Any:
        kinds = set(map(id, map(type, items))) if count >= _MANY else set[int]()
        if len(kinds) == 1:
            kind = kinds.pop()
            if count >= _PACK and kind in (_INT, _FLOAT):
                from array import array

                try:
                    packed = array("q" if kind == _INT else "d", items)
                except OverflowError:
                    pass  # an int beyond 64 bits: one by one
                else:
                    if sys.byteorder != "little":
                        packed.byteswap()
                    return {
                        "$ints" if kind == _INT else "$floats": self.blob(packed.tobytes(), owner)
                    }
            elif kind == _STR:
                whole = "".join(items)
                if len(whole) >= _PACK_TEXT:
                    return self._texts(whole, items, owner)
                if (whole.isascii() or _is_unicode(whole)) and (max(map(len, items)) < _INLINE):
                    self.charge(len(whole), owner)
                    return items
            elif kind in (_BOOL, _NONE):
                return items
        walk, depth = self.walk, depth + 1
        return [walk(item, depth) for item in items]

    def _texts(self, whole: str, items: list[Any], owner: object) -> Any:
        from array import array

        lengths = array("q", map(len, items))
        if sys.byteorder != "little":
            lengths.byteswap()
        body = whole.encode("utf-8", "surrogatepass")
        return {"$texts": [self.blob(body, owner), self.blob(lengths.tobytes(), owner)]}

    def _list(self, value: list[Any], depth: int) -> Any:
        return self.sequence(list(value), depth, value)

    def _tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        return {"$tuple": self.sequence(list(value), depth, value)}

    def _set(self, value: Any, depth: int) -> Any:
        items = list(value)
        tag = "$set" if type(value) is set else "$frozenset"
        tree = self.sequence(items, depth, value)
        _check_hashes(items, value)
        return {tag: tree}

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        if not value:
            return {}
        pairs = list(value.items())
        if len(pairs) < _PACK:
            for key, _ in pairs:
                if type(key) is not str or not key.isascii() or key[:1] == "$":
                    break
            else:  # What most records are: the general way below takes twice as long.
                self._enter(value, len(pairs))
                walk, depth = self.walk, depth + 1
                tree: Any = {}
                for key, item in pairs:
                    self._size += len(key) + 4
                    tree[key] = walk(item, depth)
                del self._active[id(value)]
                return tree
        keys = [pair[0] for pair in pairs]
        items = self.sequence([pair[1] for pair in pairs], depth, value)
        if set(map(id, map(type, keys))) <= {_STR}:
            whole = "".join(keys)
            self.charge(len(whole), value)
            plain = type(items) is list and (whole.isascii() or _is_unicode(whole))
            if plain and ("$" not in whole or not any(key[:1] == "$" for key in keys)):
                return dict(zip(keys, items, strict=True))
        names = self.sequence(keys, depth, value)
        _check_hashes(keys, value)
        return {"$dict": [names, items]}

    def _bytes(self, value: Any, depth: int) -> Any:
        del depth
        if type(value) is bytes:
            return {"$bytes": self.blob(value, value)}
        return {"$bytearray": self.blob(bytes(value), value)}

    def _big(self, value: int) -> Any:
        return {"$int": self.text(f"{value:x}")}

    def _complex(self, value: complex, depth: int) -> Any:
        return {"$complex": [self.walk(value.real, depth), self.walk(value.imag, depth)]}

    def _range(self, value: Any, depth: int) -> Any:
        walk = self.walk
        return {"$range": [walk(part, depth) for part in (value.start, value.stop, value.step)]}

    def _slice(self, value: Any, depth: int) -> Any:
        parts = [value.start, value.stop, value.step]
        return {"$slice": self.sequence(parts, depth, value)}

    def _ellipsis(self, value: object, depth: int) -> Any:
        del value, depth
        return {"$ellipsis": None}

    def zone(self, zone: Any, owner: object) -> Any:
        """A tzinfo: None, ``["offset", seconds, microseconds, name]`` or ``["zone", key]``."""
        if zone is None:
            return None
        kind: type = type(zone)
        datetime = sys.modules["datetime"]
        if kind is datetime.timezone:
            offset, *name = zone.__getinitargs__()
            seconds = offset.days * 86400 + offset.seconds
            return ["offset", seconds, offset.microseconds, self.walk(name[0] if name else None, 0)]
        zoneinfo = sys.modules.get("zoneinfo")
        if zoneinfo is not None and kind is zoneinfo.ZoneInfo and type(zone.key) is str:
            return ["zone", self.text(zone.key)]
        raise ValueNotPortable(
            type_name(type(owner)),
            f"its time zone is a {type_name(kind)}; use datetime.timezone or zoneinfo.ZoneInfo",
        )

    def _zone(self, value: Any) -> Any:
        return {"$zone": self.zone(value, value)}

    def _datetime(self, value: Any) -> Any:
        fields = [value.year, value.month, value.day, value.hour, value.minute, value.second]
        zone = self.zone(value.tzinfo, value)
        return {"$datetime": [*fields, value.microsecond, zone, value.fold]}

    def _date(self, value: Any) -> Any:
        return {"$date": [value.year, value.month, value.day]}

    def _time(self, value: Any) -> Any:
        fields = [value.hour, value.minute, value.second, value.microsecond]
        return {"$time": [*fields, self.zone(value.tzinfo, value), value.fold]}

    def _timedelta(self, value: Any) -> Any:
        return {"$timedelta": [value.days, value.seconds, value.microseconds]}

    def _decimal(self, value: Any) -> Any:
        return {"$decimal": self.text(str(value))}

    def _fraction(self, value: Any) -> Any:
        top, bottom = value.numerator, value.denominator
        if type(top) is not int or type(bottom) is not int:
            raise ValueNotPortable("fractions.Fraction", "its parts are not plain ints")
        if max(top.bit_length(), bottom.bit_length()) > _FRACTION_BITS:
            raise ValueNotPortable(
                "fractions.Fraction", f"too large: parts of more than {_FRACTION_BITS:,} bits"
            )
        return {"$fraction": [self.walk(top, 0), self.walk(bottom, 0)]}

    def _uuid(self, value: Any) -> Any:
        return {"$uuid": value.hex}

    def _path(self, value: Any) -> Any:
        return {"$path": self.text(str(value))}

    def _posix_path(self, value: Any) -> Any:
        return {"$posixpath": self.text(str(value))}

    def _windows_path(self, value: Any) -> Any:
        return {"$windowspath": self.text(str(value))}

    def _frame(self, value: Any) -> Any:
        from . import frames

        return {"$frame": frames.encode_frame(self, value)}


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: JSON readers differ on those
        return False
    return True


def _crowded(items: Sequence[Any]) -> bool:
    """Whether many members share one hash, which makes a set or dict quadratic.

    Hashes of numbers can be chosen freely: ``k * (2**61 - 1)`` all hash to 0.
    """
    if len(items) <= _SAME_HASH:
        return False
    hashes = [hash(item) for item in items]
    spare = len(hashes) - len(set(hashes))
    if spare < _SAME_HASH:
        return False
    counts: dict[int, int] = {}
    for value in hashes:
        counts[value] = counts.get(value, 0) + 1
    return max(counts.values()) > _SAME_HASH


def _check_hashes(items: list[Any], owner: object) -> None:
    # Called after the members were encoded: only then is it known that their __hash__ is not
    # user code.
    if _crowded(items):
        raise ValueNotPortable(type_name(type(owner)), "too many of its members share one hash")


_INT, _FLOAT, _STR, _BOOL, _NONE = id(int), id(float), id(str), id(bool), id(type(None))

# Private methods of the class above, in a table of the same module.
_BUILTIN: dict[int, Callable[[Encoder, Any, int], Any]] = {
    id(list): Encoder._list,  # pyright: ignore[reportPrivateUsage]
    id(dict): Encoder._dict,  # pyright: ignore[reportPrivateUsage]
    id(tuple): Encoder._tuple,  # pyright: ignore[reportPrivateUsage]
    id(set): Encoder._set,  # pyright: ignore[reportPrivateUsage]
    id(frozenset): Encoder._set,  # pyright: ignore[reportPrivateUsage]
    id(bytes): Encoder._bytes,  # pyright: ignore[reportPrivateUsage]
    id(bytearray): Encoder._bytes,  # pyright: ignore[reportPrivateUsage]
    id(complex): Encoder._complex,  # pyright: ignore[reportPrivateUsage]
    id(range): Encoder._range,  # pyright: ignore[reportPrivateUsage]
    id(slice): Encoder._slice,  # pyright: ignore[reportPrivateUsage]
    id(type(Ellipsis)): Encoder._ellipsis,  # pyright: ignore[reportPrivateUsage]
}


class Decoder:
    """One decoding under way; `frames` uses it for names, attributes and blobs."""

    __slots__ = ("_nodes", "_segments", "_unused", "trusts_sender", "writable")

    def __init__(self, segments: Sequence[Any], writable: bool, trusts_sender: bool) -> None:
        self._segments, self.writable, self.trusts_sender = segments, writable, trusts_sender
        self._unused = set(range(len(segments)))
        self._nodes = 0

    def finish(self) -> None:
        if self._unused:
            raise InvalidValue(f"{len(self._unused)} segments belong to no value")

    def blob(self, node: Any) -> memoryview:
        """The bytes of a leaf; a segment can be had once."""
        if type(node) is str:
            data = binascii.a2b_base64(node)
            if len(node) > 2 * _INLINE or binascii.b2a_base64(data, newline=False) != (
                node.encode("ascii")
            ):
                raise InvalidValue("malformed inline bytes")
            return memoryview(data)
        if type(node) is not int or node not in self._unused:
            raise InvalidValue("a segment that does not exist, or was used before")
        self._unused.discard(node)
        segment = self._segments[node]
        if type(segment) is Unavailable:
            raise MissingHere("a large value", segment.reason)
        return memoryview(segment).cast("B")

    def count(self, nodes: int) -> None:
        """Count values; as many are refused as `encode` refuses."""
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise InvalidValue(f"more than {MAX_NODES:,} values")

    def walk(self, node: Any, depth: int) -> Any:
        kind: type = type(node)
        if kind is str or node is None or kind is bool:
            return node
        if kind is int:
            if -_EXACT <= node <= _EXACT:
                return node
            raise InvalidValue("an untagged int beyond 2**53")
        if kind is float:
            if node - node == 0.0:
                return node
            raise InvalidValue("an untagged float that is not finite")
        if depth > MAX_DEPTH:
            raise InvalidValue(f"nested more than {MAX_DEPTH} levels deep")
        if kind is list:
            return self.sequence(node, depth)
        if kind is not dict:
            raise InvalidValue("not a JSON value")
        if len(node) == 1:
            ((tag, payload),) = node.items()
            if type(tag) is str and tag[:1] == "$":
                method = _TAGS.get(tag)
                if method is None:
                    raise InvalidValue(f"unknown tag {tag[:40]!r}")
                return method(self, payload, depth)
        self.count(len(node))
        for key in node:
            if type(key) is not str or key[:1] == "$":
                raise InvalidValue("a tag among the keys of a dict")
        walk, depth = self.walk, depth + 1
        return {key: walk(item, depth) for key, item in node.items()}

    def sequence(self, node: Any, depth: int) -> list[Any]:
        """The members of a container, as a new list."""
        if type(node) is dict and len(node) == 1:
            if "$ints" in node:
                return self._packed(node["$ints"], "q")
            if "$floats" in node:
                return self._packed(node["$floats"], "d")
            if "$texts" in node:
                return self._texts(node["$texts"], MAX_DEPTH)
        if type(node) is not list:
            raise InvalidValue("not a sequence")
        self.count(len(node))
        if len(node) >= _MANY and set(map(type, node)) <= {str, type(None), bool}:
            return list(node)
        walk, depth = self.walk, depth + 1
        return [walk(item, depth) for item in node]

    def _packed(self, node: Any, code: str) -> list[Any]:
        from array import array

        view = self.blob(node)
        if view.nbytes % 8:
            raise InvalidValue("packed numbers cut short")
        self.count(view.nbytes // 8)
        packed = array(code)
        packed.frombytes(view)
        if sys.byteorder != "little":
            packed.byteswap()
        return packed.tolist()

    def _ints(self, payload: Any, depth: int) -> Any:
        del depth
        return self._packed(payload, "q")

    def _floats(self, payload: Any, depth: int) -> Any:
        del depth
        return self._packed(payload, "d")

    def _texts(self, payload: Any, depth: int) -> list[Any]:
        del depth
        body, sizes = self.parts(payload, 2)
        whole = str(self.blob(body), "utf-8", "surrogatepass")
        texts: list[Any] = []
        at = 0
        for size in self._packed(sizes, "q"):
            if size < 0:
                raise InvalidValue("a text of negative length")
            texts.append(whole[at : at + size])
            at += size
        if at != len(whole):
            raise InvalidValue("texts of another length")
        return texts

    def text(self, node: Any) -> str:
        if type(node) is str:
            return node
        if type(node) is dict and len(node) == 1 and "$str" in node:
            return str(self.blob(node["$str"]), "utf-8", "surrogatepass")
        raise InvalidValue("not a text")

    def whole(self, node: Any) -> int:
        """An int of any size."""
        value = self.walk(node, MAX_DEPTH)
        if type(value) is not int:
            raise InvalidValue("not an int")
        return value

    def _str(self, payload: Any, depth: int) -> Any:
        del depth
        return self.text({"$str": payload})

    def _int(self, payload: Any, depth: int) -> Any:
        del depth
        digits = self.text(payload)
        # Base 16 is read in linear time; int() alone would also take "0x", "_" and blanks.
        value = int(digits, 16)
        if f"{value:x}" != digits or -_EXACT <= value <= _EXACT:
            raise InvalidValue("malformed int")
        return value

    def _float(self, payload: Any, depth: int) -> Any:
        del depth
        if payload not in ("nan", "inf", "-inf"):
            raise InvalidValue("malformed float")
        return float(payload)

    def _bytes(self, payload: Any, depth: int) -> Any:
        del depth
        return bytes(self.blob(payload))

    def _bytearray(self, payload: Any, depth: int) -> Any:
        del depth
        return bytearray(self.blob(payload))

    def _tuple(self, payload: Any, depth: int) -> Any:
        return tuple(self.sequence(payload, depth))

    def _set(self, payload: Any, depth: int) -> Any:
        items = self.sequence(payload, depth)
        if _crowded(items):
            raise InvalidValue("too many members with one hash")
        value = set(items)
        if len(value) != len(items):
            raise InvalidValue("a set with equal members")
        return value

    def _frozenset(self, payload: Any, depth: int) -> Any:
        return frozenset(self._set(payload, depth))

    def _dict(self, payload: Any, depth: int) -> Any:
        names, items = self.parts(payload, 2)
        keys, values = self.sequence(names, depth), self.sequence(items, depth)
        if _crowded(keys):
            raise InvalidValue("too many keys with one hash")
        value = dict(zip(keys, values, strict=True))
        if len(value) != len(keys):
            raise InvalidValue("a dict with equal keys")
        return value

    def parts(self, payload: Any, count: int) -> list[Any]:
        """The payload of a tag that has exactly `count` parts."""
        if type(payload) is not list or len(payload) != count:
            raise InvalidValue("a tag with the wrong number of parts")
        return payload

    def integers(self, payload: Any, count: int) -> list[int]:
        """A payload of exactly `count` ints."""
        for part in self.parts(payload, count):
            if type(part) is not int:
                raise InvalidValue("not an int")
        return payload

    def _complex(self, payload: Any, depth: int) -> Any:
        real, imag = (self.walk(part, depth) for part in self.parts(payload, 2))
        if type(real) is not float or type(imag) is not float:
            raise InvalidValue("malformed complex")
        return complex(real, imag)

    def _range(self, payload: Any, depth: int) -> Any:
        del depth
        return range(*[self.whole(part) for part in self.parts(payload, 3)])

    def _slice(self, payload: Any, depth: int) -> Any:
        return slice(*self.parts(self.sequence(payload, depth), 3))

    def _ellipsis(self, payload: Any, depth: int) -> Any:
        del depth
        if payload is not None:
            raise InvalidValue("malformed Ellipsis")
        return ...

    def zone(self, node: Any) -> Any:
        if node is None:
            return None
        if type(node) is not list or not node:
            raise InvalidValue("malformed time zone")
        if node[0] == "offset":
            import datetime

            _, seconds, micros, name = self.parts(node, 4)
            self.integers([seconds, micros], 2)
            offset = datetime.timedelta(seconds=seconds, microseconds=micros)
            if name is None:
                return datetime.timezone(offset)
            return datetime.timezone(offset, self.text(name))
        if node[0] == "zone":
            key = self.text(self.parts(node, 2)[1])
            return named_zone(key)
        raise InvalidValue("malformed time zone")

    def _zone(self, payload: Any, depth: int) -> Any:
        del depth
        if payload is None:
            raise InvalidValue("malformed time zone")
        return self.zone(payload)

    def _datetime(self, payload: Any, depth: int) -> Any:
        import datetime

        del depth
        *fields, zone, fold = self.parts(payload, 9)
        make: Any = datetime.datetime
        return make(*self.integers(fields, 7), self.zone(zone), fold=fold)

    def _date(self, payload: Any, depth: int) -> Any:
        import datetime

        del depth
        year, month, day = self.integers(payload, 3)
        return datetime.date(year, month, day)

    def _time(self, payload: Any, depth: int) -> Any:
        import datetime

        del depth
        *fields, zone, fold = self.parts(payload, 6)
        make: Any = datetime.time
        return make(*self.integers(fields, 4), self.zone(zone), fold=fold)

    def _timedelta(self, payload: Any, depth: int) -> Any:
        import datetime

        del depth
        days, seconds, micros = self.integers(payload, 3)
        return datetime.timedelta(days, seconds, micros)

    def _decimal(self, payload: Any, depth: int) -> Any:
        import decimal

        del depth
        return decimal.Decimal(self.text(payload))

    def _fraction(self, payload: Any, depth: int) -> Any:
        import fractions

        del depth
        top, bottom = (self.whole(part) for part in self.parts(payload, 2))
        if max(top.bit_length(), bottom.bit_length()) > _FRACTION_BITS:
            raise InvalidValue("a Fraction that is too large")
        value = fractions.Fraction(top, bottom)
        if value.numerator != top or value.denominator != bottom:
            raise InvalidValue("a Fraction that is not in lowest terms")
        return value

    def _uuid(self, payload: Any, depth: int) -> Any:
        import uuid

        del depth
        if type(payload) is not str or len(payload) != 32:
            raise InvalidValue("malformed UUID")
        value = uuid.UUID(hex=payload)
        if value.hex != payload:
            raise InvalidValue("malformed UUID")
        return value

    def _path(self, payload: Any, depth: int) -> Any:
        import pathlib

        del depth
        return pathlib.Path(self.text(payload))

    def _posix_path(self, payload: Any, depth: int) -> Any:
        import pathlib

        del depth
        return pathlib.PurePosixPath(self.text(payload))

    def _windows_path(self, payload: Any, depth: int) -> Any:
        import pathlib

        del depth
        return pathlib.PureWindowsPath(self.text(payload))

    def _frame(self, payload: Any, depth: int) -> Any:
        from . import frames

        del depth
        return frames.decode_frame(self, payload)


def named_zone(key: str) -> Any:
    """The zone of the IANA database; a name is checked before it can touch the file system."""
    plain = key.replace("/", "").replace("_", "").replace("-", "").replace("+", "")
    if len(key) > 80 or not (plain.isascii() and plain.isalnum()):
        raise InvalidValue("malformed name of a time zone")
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(key)
    except (KeyError, ValueError, OSError) as error:
        raise MissingHere("zoneinfo.ZoneInfo", f"no time zone {key!r} on this side") from error


_TAGS: dict[str, Callable[[Decoder, Any, int], Any]] = {
    "$str": Decoder._str,  # pyright: ignore[reportPrivateUsage]
    "$int": Decoder._int,  # pyright: ignore[reportPrivateUsage]
    "$float": Decoder._float,  # pyright: ignore[reportPrivateUsage]
    "$ints": Decoder._ints,  # pyright: ignore[reportPrivateUsage]
    "$floats": Decoder._floats,  # pyright: ignore[reportPrivateUsage]
    "$texts": Decoder._texts,  # pyright: ignore[reportPrivateUsage]
    "$bytes": Decoder._bytes,  # pyright: ignore[reportPrivateUsage]
    "$bytearray": Decoder._bytearray,  # pyright: ignore[reportPrivateUsage]
    "$tuple": Decoder._tuple,  # pyright: ignore[reportPrivateUsage]
    "$set": Decoder._set,  # pyright: ignore[reportPrivateUsage]
    "$frozenset": Decoder._frozenset,  # pyright: ignore[reportPrivateUsage]
    "$dict": Decoder._dict,  # pyright: ignore[reportPrivateUsage]
    "$complex": Decoder._complex,  # pyright: ignore[reportPrivateUsage]
    "$range": Decoder._range,  # pyright: ignore[reportPrivateUsage]
    "$slice": Decoder._slice,  # pyright: ignore[reportPrivateUsage]
    "$ellipsis": Decoder._ellipsis,  # pyright: ignore[reportPrivateUsage]
    "$zone": Decoder._zone,  # pyright: ignore[reportPrivateUsage]
    "$datetime": Decoder._datetime,  # pyright: ignore[reportPrivateUsage]
    "$date": Decoder._date,  # pyright: ignore[reportPrivateUsage]
    "$time": Decoder._time,  # pyright: ignore[reportPrivateUsage]
    "$timedelta": Decoder._timedelta,  # pyright: ignore[reportPrivateUsage]
    "$decimal": Decoder._decimal,  # pyright: ignore[reportPrivateUsage]
    "$fraction": Decoder._fraction,  # pyright: ignore[reportPrivateUsage]
    "$uuid": Decoder._uuid,  # pyright: ignore[reportPrivateUsage]
    "$path": Decoder._path,  # pyright: ignore[reportPrivateUsage]
    "$posixpath": Decoder._posix_path,  # pyright: ignore[reportPrivateUsage]
    "$windowspath": Decoder._windows_path,  # pyright: ignore[reportPrivateUsage]
    "$frame": Decoder._frame,  # pyright: ignore[reportPrivateUsage]
}
