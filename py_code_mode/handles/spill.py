"""A value as the content of one file, and back: nothing lost, nothing changed.

Frames and tables become an Arrow stream that other programs can open (or Parquet, where that was
asked for and gives back the same), arrays an ``.npy`` file, all else a pickle, whose large buffers
follow it in the same file. What a format would alter goes to the next one; what none keeps is
refused, and stays in memory.

Arrays and frames are read as views of the file's private mapping, so that opening takes no
time; what is written into them stays in memory and never reaches the file.
"""

# numpy, pandas and pyarrow values are Any: narrowed, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import io
import pickle
import sys
import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from py_code_mode.errors import ValueNotPortable
from py_code_mode.guest import values
from py_code_mode.guest.segments import Pieces
from py_code_mode.guest.values import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from py_code_mode.results import JsonValue

__all__ = [
    "Codec",
    "Content",
    "SpillFormat",
    "Unspillable",
    "decode",
    "encode",
    "is_immutable",
    "is_proven",
]

Codec: TypeAlias = Literal["arrow", "parquet", "npy", "pickle"]
SpillFormat: TypeAlias = Literal["arrow", "parquet"]

_ALIGNED = 64  # bytes: what Arrow and SIMD code ask of a buffer's place
_OUT_OF_BAND = 4096  # bytes from which a buffer follows the pickle instead of being in it
_UNLIMITED = 2**62
_FRAMES = frozenset({"pandas", "polars", "pyarrow"})

#: Modules whose classes are known to come back from a pickle as they were.
_PROVEN = _FRAMES | frozenset(
    {
        "array", "builtins", "collections", "copyreg", "datetime", "decimal", "fractions",
        "numpy", "operator", "pathlib", "types", "uuid", "zoneinfo",
    }
)  # fmt: skip
_IMMUTABLE = frozenset({int, float, bool, complex, str, bytes, type(None), range, type(...)})


class Unspillable(Exception):
    """The value cannot be stored without losing or changing something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file is to hold.

    Attributes:
        parts: bytes in order; they may be views of the value's own memory.
        detail: JSON-able; what reading the file needs besides.
        is_proven: False where it has to be read once, to see that it can be.
    """

    codec: Codec
    extension: str
    parts: Sequence[memoryview]
    detail: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    is_proven: bool = True

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(part.nbytes for part in self.parts)


def is_immutable(value: object) -> bool:
    """Whether a value can never change, nor anything in it."""
    return type(value) in _IMMUTABLE


def is_proven(maker: object) -> bool:
    """Whether what a class or function makes is known to come back from a pickle as it was."""
    module = getattr(maker, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _PROVEN


def encode(value: object, spill_format: SpillFormat = "arrow") -> Content:
    """The content of a value's file.

    Raises:
        Unspillable: no format keeps it; the message says why.
    """
    name = type_name(type(value))
    library = name.partition(".")[0]
    try:
        content: Content | None = None
        if spill_format == "parquet" and name == "pandas.DataFrame":
            content = _encode_parquet(value)
        if content is None and library in _FRAMES:
            content = _encode_arrow(value)
        if content is None and name == "numpy.ndarray":
            content = _encode_array(value)
        return content if content is not None else _encode_pickle(value)
    except Unspillable:
        raise
    # The border to libraries and to the pickling methods of people's own classes, which raise
    # anything: PicklingError, TypeError, AttributeError, RecursionError, MemoryError ...
    except Exception as error:
        said = " ".join(str(error).split())
        raise Unspillable(f"{name}: {type(error).__name__}: {said}"[:300]) from error


def decode(codec: str, data: memoryview, detail: Mapping[str, Any]) -> object:
    """The value of a file's content.

    Only for files that nobody else can have written: a pickle runs what it says.

    Args:
        data: writable; the value may keep views of it.

    Raises:
        Exception: of any kind, where the content is not what `encode` makes.
    """
    return _READERS[codec](data, detail)


def _is_equal(one: Content, two: Content) -> bool:
    return (
        one.detail == two.detail
        and one.size == two.size
        and b"".join(one.parts) == b"".join(two.parts)
    )


# -- Arrow and Parquet --------------------------------------------------------------------------


def _encode_arrow(value: object) -> Content | None:
    """As it crosses to a guest (`guest.values`), or None where it would not cross as it is."""
    segments: list[Any] = []
    try:
        tree = values.encode(value, segments, limit=_UNLIMITED, in_pieces=True)
    except ValueNotPortable:
        return None
    # The rows come last: they go first, so that the file is the stream that others look for.
    order = list(reversed(range(len(segments))))
    parts, places = _laid_out([segments[at] for at in order])
    located: list[JsonValue] = [place for _, place in sorted(zip(order, places, strict=True))]
    # Not proven: decoding has bounds of its own (rows that take no bytes).
    return Content(
        codec="arrow",
        extension=".arrow",
        parts=parts,
        detail={"tree": tree, "segments": located},
        is_proven=False,
    )


def _decode_arrow(data: memoryview, detail: Mapping[str, Any]) -> object:
    segments = [data[start : start + size] for start, size in detail["segments"]]
    return values.decode(detail["tree"], segments, writable=True)


def _encode_parquet(frame: Any) -> Content | None:
    """A Parquet file, or None where it would not give the same frame back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = _encode_arrow(frame)
    if before is None:
        return None
    try:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(frame), sink)
        data = memoryview(sink.getvalue())
        after = _encode_arrow(_decode_parquet(data, {}))
    # pyarrow raises its own errors and plain ones for what Parquet cannot hold
    except Exception:
        return None
    if after is None or not _is_equal(before, after):
        return None
    return Content(codec="parquet", extension=".parquet", parts=[data])


def _decode_parquet(data: memoryview, detail: Mapping[str, Any]) -> object:
    import pyarrow as pa
    import pyarrow.parquet as pq

    del detail
    # a copy: Arrow's own memory is read-only
    return pq.read_table(pa.BufferReader(pa.py_buffer(data))).to_pandas().copy()


# -- npy ----------------------------------------------------------------------------------------


def _encode_array(array: Any) -> Content | None:
    """A NEP 1 file, or None where it would not give the same array back."""
    import numpy as np

    dtype = array.dtype
    if dtype.hasobject or dtype.metadata or not dtype.itemsize:
        return None
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    flat: Any = np.ascontiguousarray(array.T if fortran else array).reshape(-1)
    stream = io.BytesIO()
    try:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_2_0(stream, header)
        shape, order, again, _ = _array_header(memoryview(stream.getvalue()))
    except (ValueError, TypeError):  # dtypes that the format does not have
        return None
    if (shape, order) != (array.shape, fortran) or not _is_same_dtype(again, dtype):
        return None
    parts = [memoryview(stream.getvalue())]
    if flat.size:
        parts.append(memoryview(flat.view(np.uint8)))
    return Content(
        codec="npy",
        extension=".npy",
        parts=parts,
        detail={"writable": bool(array.flags.writeable)},
    )


def _is_same_dtype(one: Any, two: Any) -> bool:
    """Equality of dtypes does not see records, alignment and titles."""
    if one != two or repr(one) != repr(two) or one.type is not two.type:
        return False
    return one.isalignedstruct == two.isalignedstruct and one.fields == two.fields


def _array_header(data: memoryview) -> tuple[tuple[int, ...], bool, Any, int]:
    import numpy as np

    stream = io.BytesIO(data[: 1 << 20])
    if np.lib.format.read_magic(stream) != (2, 0):
        raise ValueError("not an .npy file of ours")
    shape, order, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=1 << 20)
    return shape, order, dtype, stream.tell()


def _decode_array(data: memoryview, detail: Mapping[str, Any]) -> object:
    import numpy as np

    shape, fortran, dtype, start = _array_header(data)
    order = "F" if fortran else "C"
    body = data[start:]
    if dtype.hasobject or body.nbytes != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError("its shape does not fit its bytes")
    if not body.nbytes:
        return np.empty(shape, dtype, order)
    array: Any = np.ndarray(shape, dtype, body, order=order)
    if not array.flags.aligned:
        array = array.copy(order="K")
    if not detail["writable"]:
        array.flags.writeable = False
    return array


# -- pickle -------------------------------------------------------------------------------------


class _Sink:
    """Takes what the pickler writes, as it is: large texts and bytes come without a copy."""

    def __init__(self) -> None:
        self.parts: list[memoryview] = []

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.parts.append(view)
        return view.nbytes


class _Pickler(pickle.Pickler):
    """Refuses what a pickle would silently make something else of."""

    def __init__(self, sink: _Sink) -> None:
        self.buffers: list[memoryview] = []
        self.is_proven = True
        # No method of its own: a cycle would keep the value alive until it is collected.
        super().__init__(sink, protocol=5, buffer_callback=partial(_take, self.buffers))

    def reducer_override(self, obj: Any, /) -> Any:
        # Called for all but the built-in kinds of data.
        kind: type = type(obj)
        if kind is object:
            raise Unspillable("an object() is nothing but itself; no copy can stand for it")
        numpy = sys.modules.get("numpy")
        if numpy is not None and issubclass(kind, numpy.memmap):
            raise Unspillable("a numpy.memmap is tied to its own file")
        if not is_proven(obj if isinstance(obj, type) or callable(obj) else kind):
            self.is_proven = False
        return NotImplemented


def _take(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Whether a buffer stays in the pickle."""
    try:
        view = buffer.raw()
    except BufferError:  # not contiguous
        return True
    if view.nbytes < _OUT_OF_BAND:
        return True
    buffers.append(view)
    return False


def _encode_pickle(value: object) -> Content:
    sink = _Sink()
    pickler = _Pickler(sink)
    pickler.dump(value)
    stream = sink.parts
    size = sum(part.nbytes for part in stream)
    padding = [memoryview(bytes(-size % _ALIGNED))] if pickler.buffers else []
    parts, places = _laid_out(pickler.buffers, size + -size % _ALIGNED)
    crc = 0
    for part in stream:
        crc = zlib.crc32(part, crc)
    located: list[JsonValue] = [*places]
    return Content(
        codec="pickle",
        extension=".pickle",
        parts=[*stream, *padding, *parts],
        detail={"size": size, "crc32": crc, "buffers": located},
        is_proven=pickler.is_proven,
    )


def _decode_pickle(data: memoryview, detail: Mapping[str, Any]) -> object:
    stream = data[: detail["size"]]
    if zlib.crc32(stream) != detail["crc32"]:
        raise ValueError("its bytes are not those that were written")
    buffers = [data[start : start + size] for start, size in detail["buffers"]]
    return pickle.loads(stream, buffers=buffers)


# -- what the formats share ---------------------------------------------------------------------


def _laid_out(segments: Sequence[Any], start: int = 0) -> tuple[list[memoryview], list[JsonValue]]:
    """Bytes one after another at aligned places; and ``[start, size]`` of each segment."""
    parts: list[memoryview] = []
    places: list[JsonValue] = []
    for segment in segments:
        pad = -start % _ALIGNED
        if pad:
            parts.append(memoryview(bytes(pad)))
        start += pad
        size = 0
        for view in _views(segment):
            parts.append(view)
            size += view.nbytes
        places.append([start, size])
        start += size
    return parts, places


def _views(segment: Any) -> list[memoryview]:
    pieces = segment.buffers if isinstance(segment, Pieces) else [segment]
    return [memoryview(piece).cast("B") for piece in pieces]


_READERS: dict[str, Callable[[memoryview, Mapping[str, Any]], object]] = {
    "arrow": _decode_arrow,
    "npy": _decode_array,
    "parquet": _decode_parquet,
    "pickle": _decode_pickle,
}
