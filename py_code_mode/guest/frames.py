"""Arrays and tables that cross: numpy, pandas, pyarrow, polars; unaltered, or not at all.

numpy data crosses as its own bytes, and so does a frame that is one block of numbers, where its
peer reads it at once. Else a pandas object crosses as one Arrow IPC stream of
one record batch that holds all its row-length arrays (raw numbers, strings, masked and
Arrow-backed columns) and a descriptor that says how the index, the column labels and each column
are built from it; pandas' own Arrow metadata is never used, since reading it loses things and
trusts the writer. What the descriptor cannot say is refused by a look at dtypes alone, and the
message names the column. pyarrow and polars tables cross as the Arrow stream they are.

Decoding is for hostile input: Arrow data is validated in full, compressed bodies, extension types
and types whose arrays can be long without having bytes are refused.

Nothing is imported until a value needs it; the libraries have no types the guest could rely on,
hence the `Any`.
"""

# What crosses is Any, and pyarrow has no types: narrowed, the parts are unknown to pyright.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import operator
import struct
import sys
from itertools import repeat

from .errors import ValueNotPortable
from .segments import MEMFD_THRESHOLD, Pieces
from .values import Decoder, Encoder, InvalidValue, MissingHere, named_zone, type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any

# Rows that take no bytes (null columns, frames without columns): any length would be believed.
_FREE_ROWS = 1_000_000
# What a column of repeated values may grow to when it is spelt out.
_EXPANDED = 4 * 1024**3
_MESSAGES = 100_000  # Arrow messages in one stream
_DIMENSIONS = 32


def encode_frame(encoder: Encoder, value: Any) -> Any:
    """The payload of a ``$frame`` tag for an array, frame or scalar of these libraries."""
    kind: type = type(value)
    name = type_name(kind)
    library = name.partition(".")[0]
    if library not in encoder.accepts:
        raise ValueNotPortable(name, f"the other side does not have {library}")
    try:
        if library == "numpy":
            return _encode_numpy(encoder, value)
        if library == "pandas":
            return _PandasEncoder(encoder, value).encode()
        pa = _pyarrow(name)
        if library == "pyarrow":
            return _encode_arrow(encoder, pa, value)
        return _encode_polars(encoder, pa, value)
    except ValueNotPortable:
        raise
    # The border to third-party code: a column that pyarrow refuses is a column that cannot cross.
    except Exception as error:
        raise ValueNotPortable(name, f"{type(error).__name__}: {error}"[:300]) from error


def decode_frame(decoder: Decoder, payload: Any) -> Any:
    """The inverse of `encode_frame`.

    Raises:
        InvalidValue: among others; `values.decode` turns whatever comes into one.
    """
    if type(payload) is not list or not payload or type(payload[0]) is not str:
        raise InvalidValue("malformed frame")
    decode = _DECODERS.get(payload[0])
    if decode is None:
        raise InvalidValue(f"unknown kind of frame {payload[0][:40]!r}")
    return decode(decoder, payload)


def _pyarrow(owner: str) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ValueNotPortable(
            owner, "pyarrow is missing here, which tables cross with: deps.add('pyarrow')"
        ) from error
    __import__("pyarrow.ipc")
    return pa


def _here(library: str, what: str) -> Any:
    try:
        return __import__(library)
    except ImportError as error:
        raise MissingHere(what, f"{library} is not installed on this side") from error


# -- numpy --------------------------------------------------------------------------------------


def _describe_dtype(dtype: Any) -> Any:
    """A dtype as JSON, or None if it holds objects or is not known."""
    np = sys.modules["numpy"]
    if dtype.metadata or dtype.hasobject or not dtype.itemsize:
        return None
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        inner = _describe_dtype(base)
        return None if inner is None else ["array", inner, [int(size) for size in shape]]
    if dtype.names is not None:
        if dtype.type is not np.void:
            return None  # np.record: its equality hides it
        fields: list[Any] = []
        for name in dtype.names:
            field, offset, *title = dtype.fields[name]
            inner = _describe_dtype(field)
            if inner is None or title:
                return None
            fields.append([name, inner, int(offset)])
        return ["fields", fields, int(dtype.itemsize), bool(dtype.isalignedstruct)]
    if dtype.char in "gG" or dtype.kind not in "biufcSUVMm" or dtype.type is np.record:
        return None
    return str(dtype.str)


def _build_dtype(node: Any, depth: int = 0) -> Any:
    """The dtype of a description; only what `_describe_dtype` makes."""
    import re

    import numpy as np

    if type(node) is str:
        plain = (
            r"[<>|](b1|[iu][1248]|f[248]|c8|c16|[SUV][1-9][0-9]{0,8}"
            r"|[Mm]8(\[[0-9]{0,9}[A-Za-z]{1,2}\])?)"
        )
        if not re.fullmatch(plain, node):
            raise InvalidValue(f"not a dtype: {node[:40]!r}")
        return np.dtype(node)
    if type(node) is not list or not node or depth > 10:
        raise InvalidValue("malformed dtype")
    if node[0] == "array" and len(node) == 3 and type(node[2]) is list and node[2]:
        shape = [_size(size) for size in node[2]]
        base = _build_dtype(node[1], depth + 1)
        dtype = np.dtype((base, tuple(shape)))
        if len(shape) > _DIMENSIONS or dtype.itemsize != base.itemsize * _product(shape):
            raise InvalidValue("malformed dtype")
    elif node[0] == "fields" and len(node) == 4 and type(node[1]) is list and node[1]:
        _, fields, itemsize, aligned = node
        names: list[str] = []
        formats: list[Any] = []
        offsets: list[int] = []
        for field in fields:
            name, inner, offset = field
            if type(name) is not str or len(fields) > 10_000:
                raise InvalidValue("malformed dtype")
            names.append(name)
            formats.append(_build_dtype(inner, depth + 1))
            offsets.append(_size(offset))
        spec = {"names": names, "formats": formats, "offsets": offsets, "itemsize": _size(itemsize)}
        dtype = np.dtype(spec, align=aligned is True)  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownVariableType]
    else:
        raise InvalidValue("malformed dtype")
    if dtype.hasobject or not dtype.itemsize or _describe_dtype(dtype) != node:
        raise InvalidValue("malformed dtype")
    return dtype


def _size(node: Any) -> int:
    if type(node) is not int or not 0 <= node < 2**47:
        raise InvalidValue("not a size")
    return node


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _padded(dtype: Any) -> bool:
    if dtype.subdtype is not None:
        return _padded(dtype.subdtype[0])
    if dtype.names is None:
        return False
    inner = [dtype.fields[name][0] for name in dtype.names]
    return sum(field.itemsize for field in inner) != dtype.itemsize or any(map(_padded, inner))


def _encode_numpy(encoder: Encoder, value: Any) -> Any:
    np = sys.modules["numpy"]
    kind: type = type(value)
    name = type_name(kind)
    if kind is np.str_:
        return ["str", encoder.text(str.__str__(value))]
    if kind is np.bytes_:
        return ["bytes", encoder.blob(bytes.__getitem__(value, slice(None)), value)]
    dtype = value.dtype
    node = _describe_dtype(dtype)
    if node is None or (kind is not np.ndarray and dtype.type is not kind):
        raise ValueNotPortable(name, f"dtype {str(dtype)[:80]} cannot cross; {_advice(dtype)}")
    scalar = kind is not np.ndarray
    array = np.asarray(value)
    shape = [int(size) for size in array.shape]
    encoder.charge(0 if array.nbytes <= encoder.limit else array.nbytes, value)
    order = "C"
    if _padded(dtype):
        # What lies between fields is whatever memory held before; it is not the peer's to see.
        clean = np.zeros(array.shape, dtype)
        clean[...] = array
        array = clean
    elif not array.flags.c_contiguous and array.flags.f_contiguous:
        order, array = "F", array.T
    flat = np.ascontiguousarray(array).reshape(-1)
    # As uint8, for dates and records have no buffer protocol of their own.
    data = memoryview(flat.view(np.uint8)) if flat.size else b""
    return ["scalar" if scalar else "array", node, shape, order, encoder.blob(data, value)]


def _advice(dtype: Any) -> str:
    if dtype.hasobject:
        return "it holds Python objects: use .tolist(), or .astype() of a plain dtype"
    if dtype.char in "gG":
        return "its size differs between machines: use .astype('float64') or 'complex128'"
    return "use .astype() of a plain dtype"


def _check_contents(np: Any, dtype: Any, array: Any) -> None:
    """Refuse bytes that numpy would read as impossible values (a bool of 7, a character 2**31)."""
    if dtype.names is not None:
        for name in dtype.names:
            _check_contents(np, dtype.fields[name][0].base, array[name])
    elif array.size and dtype.kind == "b":
        if int(array.view(np.uint8).max()) > 1:
            raise InvalidValue("a bool that is neither 0 nor 1")
    elif array.size and dtype.kind == "U":
        flat = np.ascontiguousarray(array).reshape(-1)
        points = flat.view(np.dtype("u4").newbyteorder(dtype.byteorder))
        if int(points.max()) > 0x10FFFF:
            raise InvalidValue("a character beyond Unicode")


def _decode_array(decoder: Decoder, payload: Any) -> Any:
    np = _here("numpy", "numpy.ndarray")
    kind, node, sizes, order, blob = decoder.parts(payload, 5)
    dtype = _build_dtype(node)
    if type(sizes) is not list or len(sizes) > _DIMENSIONS or order not in ("C", "F"):
        raise InvalidValue("malformed array")
    shape = [_size(size) for size in sizes]
    array = _array_over(np, decoder, blob, dtype, shape, order)
    if kind == "scalar":
        if shape:
            raise InvalidValue("malformed scalar")
        return array.copy()[()]
    return array


def _array_over(
    np: Any, decoder: Decoder, blob: Any, dtype: Any, shape: list[int], order: str
) -> Any:
    """An array over a blob's own memory, where it can be; its contents checked."""
    data = decoder.blob(blob)
    if data.nbytes != _product(shape) * dtype.itemsize:
        raise InvalidValue("an array whose shape does not fit its bytes")
    array = np.ndarray(tuple(shape), dtype, data, order=order)
    if not array.flags.aligned or (decoder.writable and not array.flags.writeable):
        array = array.copy(order="K")
    _check_contents(np, dtype, array)
    return array


def _decode_str(decoder: Decoder, payload: Any) -> Any:
    np = _here("numpy", "numpy.str_")
    return np.str_(decoder.text(decoder.parts(payload, 2)[1]))


def _decode_bytes(decoder: Decoder, payload: Any) -> Any:
    np = _here("numpy", "numpy.bytes_")
    return np.bytes_(bytes(decoder.blob(decoder.parts(payload, 2)[1])))


# -- Arrow streams ------------------------------------------------------------------------------


def _arrow_problem(pa: Any, kind: Any, top: bool = True) -> str | None:
    """Why arrays of an Arrow type are refused, or None.

    Refused is what can be long, or can repeat itself, at no cost in bytes: such a table
    of a few bytes would fill the memory of whoever reads it out.
    """
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return f"extension type {str(kind)[:60]}"
    if t.is_null(kind):
        return None if top else "null inside another type"
    if t.is_dictionary(kind):
        if not top:
            return "dictionary inside another type"
        value = kind.value_type
        if t.is_nested(value) or t.is_null(value) or t.is_dictionary(value):
            return f"dictionary of {value}"
        return _arrow_problem(pa, value, False)
    if t.is_struct(kind):
        if kind.num_fields == 0:
            return "struct without fields"
        return _first_problem(pa, [kind.field(i).type for i in range(kind.num_fields)])
    if t.is_list(kind) or t.is_large_list(kind):
        return _arrow_problem(pa, kind.value_type, False)
    if t.is_map(kind):
        return _first_problem(pa, [kind.key_type, kind.item_type])
    if t.is_fixed_size_list(kind):
        if kind.list_size == 0:
            return "list of size 0"
        return _arrow_problem(pa, kind.value_type, False)
    if t.is_fixed_size_binary(kind):
        return None if t.is_decimal(kind) or kind.byte_width else "binary of size 0"
    plain = (
        t.is_boolean(kind)
        or t.is_integer(kind)
        or t.is_floating(kind)
        or t.is_decimal(kind)
        or t.is_temporal(kind)
        or t.is_string(kind)
        or t.is_large_string(kind)
        or t.is_binary(kind)
        or t.is_large_binary(kind)
    )
    return None if plain else f"type {str(kind)[:60]}"


def _first_problem(pa: Any, kinds: list[Any]) -> str | None:
    for kind in kinds:
        problem = _arrow_problem(pa, kind, False)
        if problem is not None:
            return problem
    return None


def _arrow_excess(pa: Any, array: Any) -> bool:
    """Whether a dictionary column would grow beyond bounds when spelt out."""
    if not pa.types.is_dictionary(array.type) or not len(array) or not len(array.dictionary):
        return False
    words = array.dictionary
    kind = words.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        return False
    pc: Any = __import__("pyarrow.compute").compute  # its functions are made when it loads

    longest = pc.max(pc.binary_length(words)).as_py() or 0
    return bool(longest * len(array) > _EXPANDED)


def _write_stream(
    encoder: Encoder, pa: Any, schema: Any, batches: list[Any], size: int | None = None
) -> Any:
    """A stream of the batches, of about so many bytes; in pieces that are theirs where it pays."""
    pieces = Pieces()
    in_pieces = encoder.in_pieces and (size is None or size >= MEMFD_THRESHOLD)
    sink = pa.PythonFile(pieces, "w") if in_pieces else pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return pieces if in_pieces else memoryview(sink.getvalue())


def _table_vector(data: bytes, table: int, slot: int) -> int:
    """Position of a field in a flatbuffer table, 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise InvalidValue("malformed Arrow metadata")
    (size,) = struct.unpack_from("<H", data, vtable)
    place = 4 + 2 * slot
    if place + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + place)
    return table + offset if offset else 0


def _is_compressed(data: bytes, dictionary: bool) -> bool:
    """Whether an Arrow message says that its body is compressed (Message.fbs of the format).

    pyarrow would unpack it before anyone could ask for its size.
    """

    def follow(position: int) -> int:
        if not position:
            raise InvalidValue("malformed Arrow metadata")
        return position + struct.unpack_from("<I", data, position)[0]

    header = follow(_table_vector(data, follow_root(data), 2))
    if dictionary:
        header = follow(_table_vector(data, header, 1))
    return _table_vector(data, header, 3) != 0


def follow_root(data: bytes) -> int:
    """Position of a flatbuffer's root table."""
    return int(struct.unpack_from("<I", data, 0)[0])


def _read_stream(decoder: Decoder, view: memoryview) -> tuple[Any, list[Any], Any]:
    """Schema and validated record batches of an Arrow stream, over its own memory."""
    pa = _here("pyarrow", "pyarrow.Table")
    __import__("pyarrow.ipc")

    buffer = pa.py_buffer(view)
    messages = pa.ipc.MessageReader.open_stream(buffer)
    count = 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        count += 1
        metadata = bytes(message.metadata)
        if (message.type == "schema") != (count == 1) or count > _MESSAGES:
            raise InvalidValue("an Arrow stream of another shape")
        if message.type == "schema":
            # Before pyarrow reads it: an extension type's class would be asked to build itself.
            if b"ARROW:extension:" in metadata:
                raise InvalidValue("an Arrow extension type")
        elif message.type not in ("dictionary", "record batch"):
            raise InvalidValue("an Arrow stream of another shape")
        elif _is_compressed(metadata, message.type == "dictionary"):
            raise InvalidValue("a compressed Arrow stream")
    with pa.ipc.open_stream(buffer) as reader:
        schema = reader.schema
        for field in schema:
            problem = _arrow_problem(pa, field.type)
            if problem is not None:
                raise InvalidValue(f"Arrow {problem}")
        batches: list[Any] = []
        rows = 0
        for batch in reader:
            rows += batch.num_rows
            if rows > _FREE_ROWS + 8 * view.nbytes:
                raise InvalidValue("more rows than bytes could hold")
            # in full, it reads every text and every offset
            batch.validate(full=not decoder.trusts_sender)
            if any(_arrow_excess(pa, column) for column in batch.columns):
                raise InvalidValue("a dictionary column that grows beyond bounds")
            batches.append(batch)
    return schema, batches, pa


def _encode_arrow(encoder: Encoder, pa: Any, value: Any) -> Any:
    name = type_name(type(value))
    if isinstance(value, pa.Table):
        kind, table = "table", value
    elif isinstance(value, pa.RecordBatch):
        kind, table = "batch", pa.Table.from_batches([value])
    elif isinstance(value, pa.ChunkedArray):
        kind, table = "chunks", pa.table([value], names=["values"])
    else:
        if isinstance(value.type, pa.BaseExtensionType):
            raise ValueNotPortable(name, "an extension type cannot cross; use its .storage")
        kind, table = "values", pa.table([value], names=["values"])
    return [kind, _table_blob(encoder, pa, table, value)]


def _table_blob(encoder: Encoder, pa: Any, table: Any, value: Any) -> Any:
    name = type_name(type(value))
    for field in table.schema:
        problem = _arrow_problem(pa, field.type)
        if problem is None and field.metadata and b"ARROW:extension:name" in field.metadata:
            problem = "extension type"
        if problem is not None:
            raise ValueNotPortable(
                name, f"column {field.name[:60]!r}: Arrow {problem} cannot cross; cast it first"
            )
    if table.num_rows > _FREE_ROWS and table.num_rows > 8 * table.nbytes:
        raise ValueNotPortable(name, "more rows than bytes: its columns hold nothing")
    encoder.charge(0 if table.nbytes <= encoder.limit else table.nbytes, value)
    batches = table.to_batches()
    for batch in batches:
        if any(_arrow_excess(pa, column) for column in batch.columns):
            raise ValueNotPortable(name, "a dictionary column grows beyond bounds")
    if len(batches) + 16 > _MESSAGES // 2:
        table = table.combine_chunks()
        batches = table.to_batches()
    return encoder.blob(_write_stream(encoder, pa, table.schema, batches, table.nbytes), value)


def _decode_arrow(decoder: Decoder, payload: Any) -> Any:
    kind, blob = decoder.parts(payload, 2)
    schema, batches, pa = _read_stream(decoder, decoder.blob(blob))
    if kind == "table":
        return pa.Table.from_batches(batches, schema)
    if kind == "batch":
        if len(batches) > 1:
            raise InvalidValue("a record batch in pieces")
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)
    if len(schema) != 1:
        raise InvalidValue("an array of several columns")
    columns = [batch.column(0) for batch in batches]
    if kind == "chunks":
        return pa.chunked_array(columns, schema.field(0).type)
    if len(columns) > 1:
        raise InvalidValue("an array in pieces")
    return columns[0] if columns else pa.array([], schema.field(0).type)


# -- polars -------------------------------------------------------------------------------------


def _polars_table(pl: Any, frame: Any) -> Any:
    # The oldest layout: the newer one uses string views, which can repeat themselves for free.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _encode_polars(encoder: Encoder, pa: Any, value: Any) -> Any:
    pl = sys.modules["polars"]
    name = type_name(type(value))
    series = type(value) is vars(pl)["Series"]
    frame = value.to_frame() if series else value
    for column, dtype in frame.schema.items():
        if "Object" in repr(dtype):
            raise ValueNotPortable(
                name, f"column {column[:60]!r} holds Python objects; cast it or use to_list()"
            )
    table = _polars_table(pl, frame)
    if pl.from_arrow(table.slice(0, 0)).schema != frame.schema:
        raise ValueNotPortable(name, "Arrow would change its types; cast the columns first")
    dtypes = [repr(dtype) for dtype in frame.schema.values()]
    blob = _table_blob(encoder, pa, table, value)
    return ["polars.Series" if series else "polars.DataFrame", dtypes, blob, frame.height]


def _check_texts(pa: Any, field: Any) -> None:
    """Refuse names and metadata that are no UTF-8: polars panics on them, aloud."""
    for part in (*(field.metadata or {}).keys(), *(field.metadata or {}).values()):
        bytes(part).decode("utf-8")
    kind = field.type
    inner: list[Any] = []
    if pa.types.is_struct(kind):
        inner = [kind.field(position) for position in range(kind.num_fields)]
    elif pa.types.is_map(kind):
        inner = [kind.key_field, kind.item_field]
    elif pa.types.is_nested(kind):
        inner = [kind.value_field]
    for child in (field, *inner):
        str(child.name).encode("utf-8")
    for child in inner:
        _check_texts(pa, child)


def _decode_polars(decoder: Decoder, payload: Any) -> Any:
    kind, dtypes, blob, height = decoder.parts(payload, 4)
    if type(dtypes) is not list or any(type(dtype) is not str for dtype in dtypes):
        raise InvalidValue("malformed polars frame")
    schema, batches, pa = _read_stream(decoder, decoder.blob(blob))
    for field in schema:
        _check_texts(pa, field)
    pl = _here("polars", kind)
    table = pa.Table.from_batches(batches, schema)
    if len(dtypes) != len(schema) or table.num_rows != _size(height):
        raise InvalidValue("malformed polars frame")
    try:
        frame = pl.from_arrow(table) if len(schema) else pl.DataFrame()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        raise InvalidValue(f"polars refuses it: {type(error).__name__}") from error
    if [repr(dtype) for dtype in frame.schema.values()] != dtypes:
        raise MissingHere(kind, "the polars of this side has other types")
    if kind == "polars.DataFrame":
        return frame
    if len(dtypes) != 1:
        raise InvalidValue("a polars Series of several columns")
    return frame.to_series()


# -- pandas -------------------------------------------------------------------------------------

_STORED = {"b": "u1", "M": "i8", "m": "i8"}  # numpy kinds that Arrow holds as plain integers


def _storage(np: Any, dtype: Any) -> Any:
    """The plain number type a numpy column travels as."""
    return np.dtype(_STORED.get(dtype.kind) or ("u2" if dtype.str[1:] == "f2" else dtype.str))


_PLAIN_COLUMN = r"[<|](b1|[iu][1248]|f[248]|[Mm]8\[(s|ms|us|ns)\])"


class _PandasEncoder:
    """Describes one pandas object and gathers its row-length arrays."""

    def __init__(self, encoder: Encoder, value: Any) -> None:
        self.np, self.pd = sys.modules["numpy"], sys.modules["pandas"]
        self.encoder, self.value = encoder, value
        self.name = type_name(type(value))
        self.rows: list[Any] = []

    def refuse(self, where: str, reason: str) -> ValueNotPortable:
        return ValueNotPortable(self.name, f"{where} {reason}")

    def encode(self) -> Any:
        pd, value, walk = self.pd, self.value, self.encoder.walk
        kind: type = type(value)
        if value is pd.NaT:
            return ["NaT"]
        if value is pd.NA:
            return ["NA"]
        if kind is pd.Timestamp:
            at = int(value.asm8.view("i8"))
            return ["Timestamp", str(value.unit), walk(at, 0), self.zone(value.tz), value.fold]
        if kind is pd.Timedelta:
            return ["Timedelta", str(value.unit), walk(int(value.asm8.view("i8")), 0)]
        self.pa = _pyarrow(self.name)
        extra: list[Any]
        columns: list[Any] = []
        if kind is pd.DataFrame:
            if not value.columns.is_unique:
                raise self.refuse("the columns", "have names more than once; rename them")
            if int(value.memory_usage(index=True).sum()) > self.encoder.limit:
                self.encoder.charge(self.encoder.limit + 1, value)
            index = self.index(value.index, True, "the index")
            labels = self.index(value.columns, False, "the column names")
            columns = self.block(value)
            if not columns:
                for position, (label, series) in enumerate(value.items()):
                    where = f"column {_label(label, position)}"
                    columns.append(self.column(series.array, True, where))
            extra = [labels, walk(value.attrs, 50), value.flags.allows_duplicate_labels]
        elif kind is pd.Series:
            index = self.index(value.index, True, "the index")
            columns.append(self.column(value.array, True, "the series"))
            extra = [
                walk(value.name, 50),
                walk(value.attrs, 50),
                value.flags.allows_duplicate_labels,
            ]
        else:
            index, extra = self.index(value, True, "the index"), []
        blob = None
        if self.rows:
            names = [str(position) for position in range(len(self.rows))]
            batch = self.pa.RecordBatch.from_arrays(self.rows, names)
            self.encoder.charge(0 if batch.nbytes <= self.encoder.limit else batch.nbytes, value)
            stream = _write_stream(self.encoder, self.pa, batch.schema, [batch], batch.nbytes)
            blob = self.encoder.blob(stream, value)
        tag = {pd.DataFrame: "DataFrame", pd.Series: "Series"}.get(kind, "Index")
        return [tag, len(value), index, columns, extra, blob]

    def zone(self, zone: Any) -> Any:
        """As `Encoder.zone`; pandas 2 also has pytz zones, which it makes from a name."""
        kind: type = type(zone)
        if type_name(kind).startswith("pytz.") and int(self.pd.__version__.split(".")[0]) < 3:
            key = getattr(zone, "zone", None)
            if type(key) is str:
                return ["pytz", key]
        return self.encoder.zone(zone, self.value)

    def index(self, index: Any, rows: bool, where: str) -> Any:
        pd, np, walk = self.pd, self.np, self.encoder.walk
        kind: type = type(index)
        if kind is pd.RangeIndex:
            steps = [walk(int(part), 0) for part in (index.start, index.stop, index.step)]
            return ["range", steps, walk(index.name, 50)]
        if kind is pd.MultiIndex:
            levels = [self.index(level, False, where) for level in index.levels]
            codes = [self.numbers(np.asarray(codes), rows) for codes in index.codes]
            return ["multi", levels, codes, walk(list(index.names), 50)]
        known = (pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.PeriodIndex, pd.IntervalIndex)
        if not any(kind is other for other in (*known, pd.CategoricalIndex)):
            raise self.refuse(where, f"is a {type_name(kind)}, which cannot cross")
        if kind is not pd.PeriodIndex and getattr(index, "freq", None) is not None:
            raise self.refuse(
                where,
                f"has freq={index.freq.freqstr!r}, which Arrow would lose; clear it with "
                ".freq = None on the index first",
            )
        return ["index", self.column(index.array, rows, where), walk(index.name, 50)]

    def block(self, frame: Any) -> list[Any]:
        """All columns at once, where they are one block of numbers; else nothing.

        It keeps its order in memory, so columns that lie across it are not gathered one by one.
        """
        np = self.np
        manager = getattr(frame, "_mgr", None)
        if not self.encoder.for_wire or getattr(manager, "is_single_block", None) is not True:
            return []
        dtype = frame.iloc[:, 0].dtype
        if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf" or dtype.char in "gG":
            return []
        if dtype.str[0] not in "<|":
            return []
        array = frame.to_numpy()
        order = "C" if array.flags.c_contiguous else "F"
        flat = np.ascontiguousarray(array if order == "C" else array.T).reshape(-1)
        blob = self.encoder.blob(memoryview(flat.view(np.uint8)), self.value)
        return ["block", str(dtype.str), order, blob]

    def numbers(self, array: Any, rows: bool) -> Any:
        """A numpy column: its dtype and, unless it is one of the rows, its bytes."""
        np, pa = self.np, self.pa
        dtype = array.dtype
        stored = np.ascontiguousarray(array.view(_storage(np, dtype)))
        if not rows:
            return [str(dtype.str), self.encoder.blob(memoryview(stored.view(np.uint8)), array)]
        arrow = pa.Array.from_buffers(
            pa.from_numpy_dtype(stored.dtype), len(stored), [None, pa.py_buffer(stored)]
        )
        self.rows.append(arrow)
        return [str(dtype.str), None]

    def arrow(self, array: Any, rows: bool) -> Any:
        pa = self.pa
        if isinstance(array, pa.ChunkedArray):
            array = (
                (array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks))
                if array.num_chunks
                else pa.array([], array.type)
            )
        if not rows:
            batch = pa.RecordBatch.from_arrays([array], ["values"])
            return self.encoder.blob(_write_stream(self.encoder, pa, batch.schema, [batch]), array)
        self.rows.append(array)
        return None

    def column(self, array: Any, rows: bool, where: str) -> Any:
        """Describe one array of a column or an index by its dtype."""
        import re

        np, pd, pa = self.np, self.pd, self.pa
        if (
            not isinstance(array.dtype, np.dtype)
            and isinstance(getattr(array.dtype, "numpy_dtype", None), np.dtype)
            and type(array.dtype).__name__ == "NumpyEADtype"
        ):
            array = np.asarray(array)  # pandas' wrapper of a plain numpy column
        dtype = array.dtype
        kind: type = type(dtype)
        if isinstance(dtype, np.dtype):
            if dtype.kind == "O":
                return self.objects(np.asarray(array), rows, where)
            if not re.fullmatch(_PLAIN_COLUMN, str(dtype.str)):
                raise self.refuse(where, f"has dtype {dtype}, which Arrow lacks; convert it")
            return ["plain", *self.numbers(np.asarray(array), rows)]
        if kind is pd.StringDtype:
            missing = "NA" if dtype.na_value is pd.NA else "nan"
            data = self.text(array.__arrow_array__(), where)
            storage = "pyarrow" if dtype.storage == "pyarrow_numpy" else str(dtype.storage)
            return ["string", storage, missing, self.arrow(data, rows)]
        if kind is pd.CategoricalDtype:
            categories = self.index(dtype.categories, False, f"{where}: its categories")
            codes = self.numbers(np.asarray(array.codes), rows)
            return ["category", bool(dtype.ordered), categories, codes]
        if kind is pd.DatetimeTZDtype:
            instants = np.asarray(array.asi8)
            return ["zoned", str(dtype.unit), self.zone(dtype.tz), self.numbers(instants, rows)]
        if kind is pd.PeriodDtype:
            return ["period", str(dtype.name)[7:-1], self.numbers(np.asarray(array.asi8), rows)]
        if kind is pd.IntervalDtype:
            left, right = (
                self.column(side.array, rows, f"{where}: its bounds")
                for side in (array.left, array.right)
            )
            return ["interval", str(dtype.closed), left, right]
        if any(kind is getattr(pd, name) for name in _MASKED):
            return ["masked", kind.__name__, self.arrow(array.__arrow_array__(), rows)]
        if kind is pd.ArrowDtype:
            problem = _arrow_problem(pa, dtype.pyarrow_dtype)
            if problem is not None:
                raise self.refuse(where, f"holds Arrow {problem}; convert it with .astype()")
            return ["arrow", self.arrow(array.__arrow_array__(), rows)]
        raise self.refuse(
            where, f"has dtype {str(dtype)[:60]}, which Arrow would change; convert it"
        )

    def text(self, array: Any, where: str) -> Any:
        pa = self.pa
        kind = array.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise self.refuse(where, f"stores its text as Arrow {kind}; convert it")
        return array

    def objects(self, array: Any, rows: bool, where: str) -> Any:
        """A column of dtype object that holds text, with None or with nan for what is missing."""
        pa = self.pa
        missing = "none"
        # is, not ==, which a metaclass may define
        if not all(map(operator.is_, map(type, array), repeat(str))):
            items = array.tolist()
            kinds = {id(type(item)): type(item) for item in items}
            plain = {id(str), id(type(None))}
            if id(float) in kinds and id(type(None)) not in kinds:
                plain, missing = {id(str), id(float)}, "nan"
                if any(type(item) is float and item == item for item in items):  # not a nan
                    plain = set()
            if not set(kinds) <= plain:
                found = ", ".join(sorted(type_name(kind) for kind in kinds.values())[:5])
                raise self.refuse(
                    where,
                    f"holds Python objects ({found}), which Arrow would change; convert it, for "
                    "example with .astype(str), or send .tolist()",
                )
        try:
            # string: pyarrow takes several times as long to make or to read a large_string
            text = pa.array(array, pa.string(), from_pandas=missing == "nan")
        except UnicodeEncodeError:
            raise self.refuse(where, "holds text that is not valid Unicode") from None
        if isinstance(text, pa.ChunkedArray):
            text = text.cast(pa.large_string())  # more than 2 GB
        return ["object", missing, self.arrow(text, rows)]


_MASKED = (
    *(f"{sign}Int{size}Dtype" for sign in ("", "U") for size in (8, 16, 32, 64)),
    "Float32Dtype",
    "Float64Dtype",
    "BooleanDtype",
)


def _label(label: Any, position: int) -> str:
    # repr() only of what is not user code.
    if type(label) in (str, int, float, type(None)):
        return repr(label)[:80]
    return f"number {position}"


class _PandasDecoder:
    """Builds a pandas object from its description and one validated record batch."""

    def __init__(self, decoder: Decoder, count: int, blob: Any, is_block: bool = False) -> None:
        self.pd: Any = _here("pandas", "pandas.DataFrame")
        self.np: Any = _here("numpy", "pandas.DataFrame")
        self.pa: Any = _here("pyarrow", "pandas.DataFrame")
        self.decoder, self.count = decoder, count
        self.columns: list[Any] = []
        self.memory: Any = memoryview(b"")
        if blob is not None:
            self.memory = decoder.blob(blob)
            self.columns = self.one_batch(self.memory)
            if any(len(column) != count for column in self.columns):
                raise InvalidValue("a column of another length")
        elif count > _FREE_ROWS and not is_block:
            decoder.count(count)  # never enough
        self.columns.reverse()  # taken from the end
        self.base = self.address(self.memory)

    def one_batch(self, memory: memoryview) -> list[Any]:
        _, batches, _ = _read_stream(self.decoder, memory)
        if len(batches) != 1:
            raise InvalidValue("a frame in pieces")
        return list(batches[0].columns)

    def address(self, memory: memoryview) -> int:
        if not memory.nbytes:
            return 0
        return int(self.np.frombuffer(memory, "u1").__array_interface__["data"][0])

    def next(self) -> Any:
        if not self.columns:
            raise InvalidValue("a frame with too few columns")
        return self.columns.pop()

    def numbers(self, node: Any, rows: bool, length: int | None) -> Any:
        """A numpy column, over the message's own memory where it can be."""
        import re

        np, pa = self.np, self.pa
        name, blob = self.decoder.parts(node, 2)
        if type(name) is not str or not re.fullmatch(_PLAIN_COLUMN, name):
            raise InvalidValue("malformed column")
        dtype = np.dtype(name)
        stored = _storage(np, dtype)
        if rows:
            if blob is not None:
                raise InvalidValue("malformed column")
            array = self.flat(self.next(), stored, pa.from_numpy_dtype(stored))
        else:
            data = self.decoder.blob(blob)
            if data.nbytes % stored.itemsize:
                raise InvalidValue("malformed column")
            array = np.frombuffer(data, stored).copy()
            if length is not None and len(array) != length:
                raise InvalidValue("a column of another length")
        if dtype.kind == "b" and len(array) and int(array.max()) > 1:
            raise InvalidValue("a bool that is neither 0 nor 1")
        return array.view(dtype)

    def block(self, nodes: list[Any], width: int) -> Any:
        """The numbers of a whole frame, rows by columns."""
        import re

        _, name, order, blob = self.decoder.parts(nodes, 4)
        if type(name) is not str or not re.fullmatch(r"[<|](b1|[iu][1248]|f[248])", name):
            raise InvalidValue("malformed frame")
        if not width or order not in ("C", "F"):
            raise InvalidValue("malformed frame")
        dtype = self.np.dtype(name)
        return _array_over(self.np, self.decoder, blob, dtype, [self.count, width], order)

    def flat(self, column: Any, stored: Any, kind: Any) -> Any:
        np = self.np
        if column.type != kind or column.null_count:
            raise InvalidValue("a column of another type")
        count = len(column)
        data = column.buffers()[1]
        if not count or data is None:
            return np.empty(0, stored)
        # pyarrow's own view is read-only even where the message is not.
        start = data.address - self.base + column.offset * stored.itemsize
        if start >= 0 and start + count * stored.itemsize <= self.memory.nbytes:
            array = np.frombuffer(self.memory, stored, count, start)
        else:
            array = np.frombuffer(data, stored, count, column.offset * stored.itemsize)
        if not array.flags.aligned or (self.decoder.writable and not array.flags.writeable):
            array = array.copy()
        return array

    def arrow(self, blob: Any, rows: bool) -> Any:
        if rows:
            if blob is not None:
                raise InvalidValue("malformed column")
            return self.next()
        columns = self.one_batch(self.decoder.blob(blob))
        if len(columns) != 1:
            raise InvalidValue("malformed column")
        return columns[0]

    def name(self, node: Any) -> Any:
        value = self.decoder.walk(node, 50)
        hash(value)  # pandas asks for it much later
        return value

    def index(self, node: Any, rows: bool) -> Any:
        pd = self.pd
        if type(node) is not list or not node:
            raise InvalidValue("malformed index")
        if node[0] == "range":
            _, steps, name = self.decoder.parts(node, 3)
            start, stop, step = (self.decoder.whole(part) for part in self.decoder.parts(steps, 3))
            if not step or max(map(abs, (start, stop, step))) >= 2**62:
                raise InvalidValue("malformed index")
            length = len(range(start, stop, step))
            if length > (self.count if rows else _FREE_ROWS):
                raise InvalidValue("an index of another length")
            return pd.RangeIndex(start, stop, step, name=self.name(name))
        if node[0] == "multi":
            _, levels, codes, names = self.decoder.parts(node, 4)
            if not (type(levels) is list and type(codes) is list and 0 < len(levels) <= 1000):
                raise InvalidValue("malformed index")
            built = [self.index(level, False) for level in levels]
            length = self.count if rows else None
            places = [self.numbers(code, rows, length) for code in codes]
            if any(place.dtype.kind != "i" for place in places):
                raise InvalidValue("malformed index")
            labels = [self.name(name) for name in self.decoder.sequence(names, 50)]
            return pd.MultiIndex(built, places, names=labels, verify_integrity=True)
        _, column, name = self.decoder.parts(node, 3)
        if node[0] != "index":
            raise InvalidValue("malformed index")
        array = self.column(column, rows)
        return pd.Index(array, dtype=array.dtype, name=self.name(name), copy=False)

    def column(self, node: Any, rows: bool) -> Any:
        if type(node) is not list or not node or type(node[0]) is not str:
            raise InvalidValue("malformed column")
        kind, *parts = node
        sizes = {"plain": 2, "object": 2, "string": 3, "category": 3, "zoned": 3, "period": 2}
        sizes.update(interval=3, masked=2, arrow=1)
        if len(parts) != sizes.get(kind, -1):
            raise InvalidValue("malformed column")
        array = getattr(self, f"_{kind}")(parts, rows)
        if rows and len(array) != self.count:
            raise InvalidValue("a column of another length")
        return array

    def _plain(self, parts: list[Any], rows: bool) -> Any:
        return self.numbers(parts, rows, None)

    def _object(self, parts: list[Any], rows: bool) -> Any:
        missing, blob = parts
        column = self.arrow(blob, rows)
        kinds = (self.pa.string(), self.pa.large_string())
        if column.type not in kinds or missing not in ("none", "nan"):
            raise InvalidValue("malformed column")
        items = column.to_numpy(zero_copy_only=False, writable=True)
        if missing == "nan" and column.null_count:
            items[column.is_null().to_numpy(zero_copy_only=False)] = float("nan")
        return items

    def _string(self, parts: list[Any], rows: bool) -> Any:
        pd, pa = self.pd, self.pa
        storage, missing, blob = parts
        if storage not in ("python", "pyarrow") or missing not in ("nan", "NA"):
            raise InvalidValue("malformed column")
        column = self.arrow(blob, rows)
        if column.type not in (pa.string(), pa.large_string()):
            raise InvalidValue("malformed column")
        try:
            if missing == "NA":
                dtype = pd.StringDtype(storage)
            else:
                dtype = pd.StringDtype(storage, na_value=float("nan"))
        except TypeError as error:  # pandas 2.2, which has one of the two under another name
            if storage != "pyarrow":
                raise MissingHere(
                    "pandas.StringDtype", "the pandas of this side is older than its str dtype"
                ) from error
            dtype = pd.StringDtype("pyarrow_numpy")
        return dtype.__from_arrow__(column)

    def _category(self, parts: list[Any], rows: bool) -> Any:
        ordered, categories, codes = parts
        if type(ordered) is not bool:
            raise InvalidValue("malformed column")
        labels = self.index(categories, False)
        places = self.numbers(codes, rows, None)
        if places.dtype.kind != "i":
            raise InvalidValue("malformed column")
        return self.pd.Categorical.from_codes(places, categories=labels, ordered=ordered)

    def zone(self, node: Any) -> Any:
        if type(node) is list and len(node) == 2 and node[0] == "pytz":
            key = self.decoder.text(node[1])
            named_zone(key)
            return key
        zone = self.decoder.zone(node)
        if zone is None:
            raise InvalidValue("malformed time zone")
        return zone

    def _zoned(self, parts: list[Any], rows: bool) -> Any:
        unit, zone, numbers = parts
        if unit not in ("s", "ms", "us", "ns"):
            raise InvalidValue("malformed column")
        instants = self.numbers(numbers, rows, None)
        if instants.dtype.str[1:] != "i8":
            raise InvalidValue("malformed column")
        naive = self.pd.DatetimeIndex(instants.view(f"M8[{unit}]"))
        return naive.tz_localize("UTC").tz_convert(self.zone(zone)).array

    def _period(self, parts: list[Any], rows: bool) -> Any:
        freq, numbers = parts
        if type(freq) is not str or len(freq) > 40:
            raise InvalidValue("malformed column")
        ordinals = self.numbers(numbers, rows, None)
        if ordinals.dtype.str[1:] != "i8":
            raise InvalidValue("malformed column")
        dtype = self.pd.PeriodDtype(freq)
        return self.pd.PeriodIndex.from_ordinals(ordinals, freq=dtype.freq).array

    def _interval(self, parts: list[Any], rows: bool) -> Any:
        closed, left, right = parts
        if not all(type(side) is list and side[:1] in (["plain"], ["zoned"]) for side in parts[1:]):
            raise InvalidValue("malformed column")
        low, high = self.column(left, rows), self.column(right, rows)
        return self.pd.arrays.IntervalArray.from_arrays(low, high, closed=closed)

    def _masked(self, parts: list[Any], rows: bool) -> Any:
        name, blob = parts
        if name not in _MASKED:
            raise InvalidValue("malformed column")
        dtype = getattr(self.pd, name)()
        column = self.arrow(blob, rows)
        expected = (
            self.pa.bool_()
            if name == "BooleanDtype"
            else (self.pa.from_numpy_dtype(dtype.numpy_dtype))
        )
        if column.type != expected:
            raise InvalidValue("a column of another type")
        return dtype.__from_arrow__(column)

    def _arrow(self, parts: list[Any], rows: bool) -> Any:
        column = self.arrow(parts[0], rows)
        dtype = self.pd.ArrowDtype(column.type)
        return dtype.__from_arrow__(self.pa.chunked_array([column]))


def _decode_pandas(decoder: Decoder, payload: Any) -> Any:
    tag, count, index_node, column_nodes, extra, blob = decoder.parts(payload, 6)
    if type(column_nodes) is not list:
        raise InvalidValue("malformed frame")
    is_block = tag == "DataFrame" and column_nodes[:1] == ["block"]
    work = _PandasDecoder(decoder, _size(count), blob, is_block)
    pd = work.pd
    index = work.index(index_node, True)
    if len(index) != count:
        raise InvalidValue("an index of another length")
    if tag == "Index":
        if column_nodes or extra != [] or work.columns:
            raise InvalidValue("malformed index")
        return index
    head, attrs, duplicates = decoder.parts(extra, 3)
    if type(duplicates) is not bool:
        raise InvalidValue("malformed frame")
    labels = work.index(head, False) if tag == "DataFrame" else None
    if labels is not None and is_block:
        array = work.block(column_nodes, len(labels))
        if not labels.is_unique or work.columns:
            raise InvalidValue("malformed column names")
        value = pd.DataFrame(array, index=index, columns=labels, copy=False)
        return _with_extras(decoder, value, attrs, duplicates)
    arrays = [work.column(node, True) for node in column_nodes]
    if work.columns:
        raise InvalidValue("a frame with too many columns")
    if labels is None:
        if len(arrays) != 1:
            raise InvalidValue("malformed series")
        value = pd.Series(
            arrays[0], index=index, name=work.name(head), dtype=arrays[0].dtype, copy=False
        )
    else:
        if len(labels) != len(arrays) or not labels.is_unique:
            raise InvalidValue("malformed column names")
        series: dict[int, Any] = {
            position: pd.Series(array, index=index, dtype=array.dtype, copy=False)
            for position, array in enumerate(arrays)
        }
        # A hundred one-column blocks make pandas slow, and it warns of that.
        value = pd.DataFrame(series, index=index, copy=len(arrays) > 50)
        value.columns = labels
    return _with_extras(decoder, value, attrs, duplicates)


def _with_extras(decoder: Decoder, value: Any, attrs: Any, duplicates: bool) -> Any:
    extras = decoder.walk(attrs, 50)
    if type(extras) is not dict:
        raise InvalidValue("malformed attrs")
    value.attrs = extras
    if not duplicates:
        value = value.set_flags(allows_duplicate_labels=False)
    return value


def _decode_scalar(decoder: Decoder, payload: Any) -> Any:
    pd = _here("pandas", "pandas.Timestamp")
    import numpy as np

    if payload == ["NaT"]:
        return pd.NaT
    if payload == ["NA"]:
        return pd.NA
    tag, unit, at, *rest = payload
    if unit not in ("s", "ms", "us", "ns") or len(rest) != (2 if tag == "Timestamp" else 0):
        raise InvalidValue("malformed scalar")
    count = decoder.whole(at)
    if count == -(2**63):
        raise InvalidValue("malformed scalar")
    if tag == "Timedelta":
        return pd.Timedelta(np.timedelta64(count, unit))
    zone_node, fold = rest
    if type(fold) is not int or fold not in (0, 1):
        raise InvalidValue("malformed scalar")
    value = pd.Timestamp(np.datetime64(count, unit))
    if zone_node is not None:
        zone = _PandasDecoder(decoder, 0, None).zone(zone_node)
        value = value.tz_localize("UTC").tz_convert(zone)
    return value if value.fold == fold else value.replace(fold=fold)


_DECODERS: dict[str, Any] = {
    "str": _decode_str,
    "bytes": _decode_bytes,
    "scalar": _decode_array,
    "array": _decode_array,
    "table": _decode_arrow,
    "batch": _decode_arrow,
    "chunks": _decode_arrow,
    "values": _decode_arrow,
    "polars.DataFrame": _decode_polars,
    "polars.Series": _decode_polars,
    "DataFrame": _decode_pandas,
    "Series": _decode_pandas,
    "Index": _decode_pandas,
    "NaT": _decode_scalar,
    "NA": _decode_scalar,
    "Timestamp": _decode_scalar,
    "Timedelta": _decode_scalar,
}
