"""The bytes of an artifact: files that other programs can open, and that lose nothing.

Plain JSON data becomes JSON; text and bytes stay what they are; a DataFrame becomes an Arrow file,
an array an ``.npy`` file, a `Display` one file for each of its MIME types. All other values that
cross between guest and host are written as tagged JSON (`guest.values`), with files beside it for
their large parts. What would come back as another type or value is refused.
"""

# pyarrow has no types: its parts are unknown to pyright.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from py_code_mode.errors import InvalidArtifact, ValueNotPortable
from py_code_mode.guest import values
from py_code_mode.results import Display, JsonValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import pandas as pd

__all__ = ["Encoded", "Part", "decode", "encode", "guess", "is_plain"]

_LIMIT = 2**40  # bytes; the disk is the limit
_MAX_DEPTH = 100
_INDENT_BELOW = 64 * 1024  # bytes of JSON that a person may want to read
_LARGEST = 10**4000  # Python refuses to read an int of more than 4300 digits

#: Extensions of files that are text, in any case when they come from people.
_TEXTS = re.compile(
    r"\.(txt|md|rst|csv|tsv|html?|svg|xml|ya?ml|toml|ini|cfg|log|py|sql|tex|jsonl|ndjson|js|css|sh"
    r"|ipynb|geojson)"
)
_EXTENSIONS = {
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "application/pdf": ".pdf",
    "text/html": ".html",
    "text/markdown": ".md",
    "text/latex": ".tex",
    "application/json": ".json",
    "text/plain": ".txt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of an artifact.

    Attributes:
        extension: with its dot.
        detail: what reading it back needs to know.
    """

    data: bytes
    extension: str
    detail: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A value as files; the first is the one to show.

    Attributes:
        type: qualified name of the value's class.
        detail: as in `Part`.
    """

    format: str
    type: str
    parts: tuple[Part, ...]
    detail: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


def encode(name: str, value: object) -> Encoded:
    """The value as files.

    Raises:
        InvalidArtifact: it would not come back as it is; the reason says what to do.
    """
    kind = type(value)
    if kind is str and _is_unicode(cast("str", value)):
        return _single("text", value, cast("str", value).encode(), ".txt")
    if kind is bytes:
        return _single("bytes", value, cast("bytes", value), ".bin")
    if kind is Display:
        return _encode_display(name, cast("Display", value))
    if is_plain(value):
        return _single("json", value, _json(value), ".json")
    # By name, not by import: a value of a library can only be there if that library is.
    type_name = values.type_name(kind)
    if type_name == "numpy.ndarray":
        data = _encode_array(cast("np.ndarray[Any, Any]", value))
        if data is not None:
            return _single("npy", value, data, ".npy")
    elif type_name == "pandas.DataFrame":
        file = _encode_frame(cast("pd.DataFrame", value))
        if file is not None:
            return Encoded(format="arrow", type=type_name, parts=(file,))
    return _encode_tagged(name, value)


def decode(
    name: str, format: str, parts: Sequence[Part], detail: Mapping[str, JsonValue]
) -> object:
    """The value again.

    Raises:
        InvalidArtifact: the files do not hold what they should.
    """
    reader = _READERS.get(format)
    if reader is None:
        raise InvalidArtifact(name, f"its format {format!r} is not known to this version")
    try:
        return reader(parts, detail)
    # The border to bytes that people may have edited: each library has its own errors.
    except Exception as error:
        shown = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise InvalidArtifact(name, f"its files cannot be read as {format}: {shown}") from error


def guess(file_name: str, data: bytes) -> str:
    """The format of a file that was put into the folder by hand.

    JSON, ``.npy`` and Arrow files by their extension; files that are text by theirs and in UTF-8
    as text; all others as bytes.
    """
    extension = _extension(file_name)
    if extension in (".json", ".npy"):
        return extension[1:]
    if extension in (".arrow", ".feather"):
        return "arrow"
    if _TEXTS.fullmatch(extension):
        try:
            data.decode()
        except UnicodeDecodeError:
            return "bytes"
        return "text"
    return "bytes"


def is_plain(value: object) -> bool:
    """Whether JSON, as Python reads it (with NaN), gives back exactly this value."""
    return _is_plain(value, 0)


def _is_plain(value: object, depth: int) -> bool:
    # Exact types: a subclass (an IntEnum, numpy's float64) would come back as its parent.
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return True
    if kind is str:
        return _is_unicode(cast("str", value))
    if kind is int:
        return -_LARGEST < cast("int", value) < _LARGEST
    if depth > _MAX_DEPTH:
        return False
    if kind is list:
        return all(_is_plain(item, depth + 1) for item in cast("list[object]", value))
    if kind is dict:
        return all(
            type(key) is str and _is_unicode(key) and _is_plain(item, depth + 1)
            for key, item in cast("dict[object, object]", value).items()
        )
    return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # lone surrogates: no UTF-8 file can hold them
    return True


def _json(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) < _INDENT_BELOW:
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    return text.encode()


def _single(format: str, value: object, data: bytes, extension: str) -> Encoded:
    return Encoded(
        format=format,
        type=values.type_name(type(value)),
        parts=(Part(data=data, extension=extension),),
    )


def _encode_tagged(name: str, value: object) -> Encoded:
    segments: list[Any] = []
    try:
        tree = values.encode(value, segments, limit=_LIMIT)
    except ValueNotPortable as error:
        raise InvalidArtifact(
            name,
            f"a value of type {error.type_name} cannot be stored: {error.reason}. What can be: "
            "plain data, text, bytes, DataFrames, arrays, displays",
        ) from error
    files = [Part(data=bytes(segment), extension=".bin") for segment in segments]
    return Encoded(
        format="tagged",
        type=values.type_name(type(value)),
        parts=(Part(data=_json(tree), extension=".json"), *files),
    )


def _encode_display(name: str, display: Display) -> Encoded:
    parts: list[Part] = []
    for mime, body in display.data.items():
        is_text = isinstance(body, str)
        if is_text and not _is_unicode(body):
            raise InvalidArtifact(name, f"its {mime} is not valid Unicode")
        extension = _EXTENSIONS.get(mime, ".txt" if is_text else ".bin")
        data = body.encode() if isinstance(body, str) else bytes(body)
        parts.append(Part(data=data, extension=extension, detail={"mime": mime, "text": is_text}))
    if not parts:
        raise InvalidArtifact(name, "the Display is empty")
    metadata = dict(display.metadata)
    if not is_plain(metadata):
        raise InvalidArtifact(name, "the metadata of the Display is not JSON")
    order: JsonValue = [part.detail["mime"] for part in parts]
    ranks = [*_EXTENSIONS]
    parts.sort(key=lambda part: _rank(ranks, str(part.detail["mime"])))
    return Encoded(
        format="display",
        type="Display",
        parts=tuple(parts),
        detail={"metadata": metadata, "order": order},
    )


def _rank(order: list[str], mime: str) -> int:
    return order.index(mime) if mime in order else len(order)


def _encode_array(array: np.ndarray[Any, Any]) -> bytes | None:
    """An ``.npy`` file, or None where it would not give the same array back."""
    import io

    import numpy as np

    if array.dtype.hasobject:
        return None
    stream = io.BytesIO()
    try:
        np.save(stream, array, allow_pickle=False)
        data = stream.getvalue()
        again = _decode_array(data)
    except (ValueError, TypeError):  # dtypes that the format does not have
        return None
    same = again.dtype == array.dtype and again.shape == array.shape
    return data if same and again.tobytes() == array.tobytes() else None


def _decode_array(data: bytes) -> np.ndarray[Any, Any]:
    import io

    import numpy as np

    return cast("np.ndarray[Any, Any]", np.load(io.BytesIO(data), allow_pickle=False))


def _encode_frame(frame: pd.DataFrame) -> Part | None:
    """An Arrow file, or None where it would not give the same frame back."""
    import pyarrow as pa

    try:
        table = pa.Table.from_pandas(frame)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        freq = getattr(frame.index, "freqstr", None)
        detail = {} if freq is None else {"freq": str(freq)}
        part = Part(data=sink.getvalue().to_pybytes(), extension=".arrow", detail=detail)
        return part if _is_same_frame(frame, _decode_frame(part)) else None
    # pyarrow raises its own errors, and TypeError, ValueError, NotImplementedError for what it
    # cannot hold; pandas adds its own when an extension type comes back. The tagged form, which
    # is tried next, names the column and what to do.
    except Exception:
        return None


def _decode_frame(part: Part) -> pd.DataFrame:
    import pyarrow as pa

    with pa.ipc.open_file(pa.BufferReader(part.data)) as reader:
        table = reader.read_all()
    table.validate(full=True)
    frame = table.to_pandas().copy()  # a copy: Arrow's own memory is read-only
    freq = part.detail.get("freq")
    if freq is not None and hasattr(frame.index, "freq") and frame.index.freq != freq:
        frame.index.freq = freq  # the one thing that Arrow loses of a time series
    return frame


_CELLS = re.compile(
    r"builtins\.(str|bytes|bool|int|float|NoneType)|decimal\.Decimal"
    r"|datetime\.(date|datetime|time|timedelta)"
)


def _is_same_frame(one: Any, two: Any) -> bool:
    """Whether two DataFrames are the same to the last dtype, label and attribute."""
    if one.shape != two.shape or one.flags != two.flags or repr(one.attrs) != repr(two.attrs):
        return False
    if not _is_same_index(one.columns, two.columns) or not _is_same_index(one.index, two.index):
        return False
    return all(
        _is_same_column(one.iloc[:, position], two.iloc[:, position])
        for position in range(one.shape[1])
    )


def _is_same_index(one: Any, two: Any) -> bool:
    if type(one) is not type(two) or list(one.names) != list(two.names):
        return False
    if [type(name) for name in one.names] != [type(name) for name in two.names]:
        return False
    if getattr(one, "freq", None) != getattr(two, "freq", None):
        return False
    if one.nlevels > 1:
        return all(
            _is_same_index(one.get_level_values(level), two.get_level_values(level))
            for level in range(one.nlevels)
        )
    return _is_same_column(one.to_series(), two.to_series())


def _is_same_column(one: Any, two: Any) -> bool:
    if one.dtype != two.dtype or repr(one.dtype) != repr(two.dtype):
        return False
    if one.dtype == object:
        return all(_is_same_cell(a, b) for a, b in zip(one.array, two.array, strict=True))
    categories = getattr(one.dtype, "categories", None)
    if categories is not None and not _is_same_index(categories, two.dtype.categories):
        return False
    if hasattr(one.dtype, "fill_value"):  # sparse
        return False
    return bool(one.array.equals(two.array))


def _is_same_cell(one: object, two: object) -> bool:
    kind = type(one)
    if kind is not type(two) or not _CELLS.fullmatch(f"{kind.__module__}.{kind.__qualname__}"):
        return False
    # The text as well: 1.0 and 1.00 are equal Decimals, and nan equals nothing.
    return repr(one) == repr(two)


def _read_text(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    del detail
    return parts[0].data.decode()


def _read_bytes(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    del detail
    return parts[0].data


def _read_json(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    del detail
    return json.loads(parts[0].data.decode("utf-8-sig"))


def _read_tagged(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    tree = _read_json(parts, detail)
    return values.decode(tree, [part.data for part in parts[1:]], writable=True)


def _read_display(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    bodies = {
        str(part.detail["mime"]): part.data.decode() if part.detail["text"] else part.data
        for part in parts
    }
    order, metadata = detail["order"], detail["metadata"]
    if not isinstance(order, list) or not isinstance(metadata, dict):
        raise ValueError("its description is malformed")
    return Display(data={str(mime): bodies[str(mime)] for mime in order}, metadata=metadata)


def _read_array(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    del detail
    return _decode_array(parts[0].data)


def _read_frame(parts: Sequence[Part], detail: Mapping[str, JsonValue]) -> object:
    del detail
    return _decode_frame(parts[0])


_READERS: dict[str, Callable[[Sequence[Part], Mapping[str, JsonValue]], object]] = {
    "arrow": _read_frame,
    "bytes": _read_bytes,
    "display": _read_display,
    "json": _read_json,
    "npy": _read_array,
    "tagged": _read_tagged,
    "text": _read_text,
}


_EXTENSION = re.compile(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,15}$")


def _extension(file_name: str) -> str:
    found = _EXTENSION.search(file_name)
    return found[0].lower() if found else ""
