"""How the value of a run is shown: as a REPL does, tables as tables, always bounded."""

# Values are Any: pandas and numpy objects, looked at by the names of their classes.
from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final, cast

from py_code_mode.cli.terminal import console, printable, show_text
from py_code_mode.results import Handle, shorten

if TYPE_CHECKING:
    from collections.abc import Callable

    from py_code_mode.results import JsonValue

#: Rows and columns shown of a table: from both ends.
MAX_ROWS: Final = 40
MAX_COLUMNS: Final = 12
#: Bytes shown of any other value.
MAX_BYTES: Final = 200_000
_MAX_CELL = 80


def show_value(value: object) -> None:
    """Print a value; nothing for None."""
    if value is None:
        return
    kind = type(value)
    if isinstance(value, Handle):
        show_text(_handle_text(value))
    elif kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in ("DataFrame", "Series"):
        _show_frame(cast("Any", value))
    else:
        show_text(shorten(_repr(value), MAX_BYTES))


def _handle_text(handle: Handle) -> str:
    data = handle.snapshot.data
    own = data.get("repr")
    if isinstance(own, str) and set(data) <= {"type", "repr"}:
        return own
    return f"<{handle.type_name}> {handle.snapshot.to_text()}"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # a live object of user code, in an in-process session
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"


def _show_frame(value: Any) -> None:
    is_series = type(value).__name__ == "Series"
    frame = value.to_frame(name="" if value.name is None else value.name) if is_series else value
    rows, columns = frame.shape
    size = f"{rows:,} rows" if is_series else f"{rows:,} rows × {columns:,} columns"
    if not sys.stdout.isatty():
        text = value.to_string(max_rows=MAX_ROWS) if is_series else _frame_text(frame)
        show_text(f"{text}\n[{size}]" if rows > MAX_ROWS or columns > MAX_COLUMNS else text)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def cell(content: object) -> Text:
        text = " ".join(_repr(content).split()) if not isinstance(content, str) else content
        text = text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"
        return Text(printable(text, colours=False))

    shown_columns, shown_rows = _ends(columns, MAX_COLUMNS), _ends(rows, MAX_ROWS)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", caption=size, caption_justify="left")
    names = frame.columns
    table.add_column(cell(_index_name(frame)), style="dim", no_wrap=True)
    for column in shown_columns:
        is_number = column is not None and frame.dtypes.iloc[column].kind in "iufc"
        justify = "right" if is_number else "left"
        table.add_column("…" if column is None else cell(_text(names[column])), justify=justify)
    for row in shown_rows:
        if row is None:
            table.add_row(*("…" for _ in range(len(shown_columns) + 1)))
            continue
        cells = ("…" if at is None else cell(_text(frame.iat[row, at])) for at in shown_columns)
        table.add_row(cell(_text(frame.index[row])), *cells)
    console().print(table)


def _frame_text(frame: Any) -> str:
    return str(frame.to_string(max_rows=MAX_ROWS, max_cols=MAX_COLUMNS, max_colwidth=_MAX_CELL))


def _index_name(frame: Any) -> str:
    return "" if frame.index.name is None else _text(frame.index.name)


def _text(content: object) -> str:
    if isinstance(content, float):
        return f"{content:.6g}"
    try:
        return str(content)
    except Exception as error:  # as in _repr
        return f"<{type(content).__name__}: its str raised {type(error).__name__}>"


def _ends(count: int, limit: int) -> list[int | None]:
    """Positions to show, None for the gap."""
    if count <= limit:
        return list(range(count))
    half = limit // 2
    return [*range(half), None, *range(count - half, count)]


def as_json(value: object) -> tuple[JsonValue, str]:
    """A value as JSON where JSON can say it, else its bounded description; and which of the two."""
    if isinstance(value, Handle):
        return dict(value.snapshot.data), "description"
    try:
        return to_json(value), "json"
    except (TypeError, RecursionError):
        from py_code_mode.guest.snapshot import snapshot

        return cast("JsonValue", snapshot(value)), "description"


def to_json(value: object, fallback: Callable[[object], JsonValue] | None = None) -> JsonValue:
    """The value in JSON's types; a tuple becomes a list.

    Args:
        fallback: gives what stands for a value that JSON cannot say.

    Raises:
        TypeError: JSON cannot say it, and there is no fallback.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return cast("JsonValue", value)
    if kind is float and math.isfinite(cast("float", value)):
        return cast("float", value)
    if kind in (list, tuple):
        return [to_json(item, fallback) for item in cast("list[object]", value)]
    if kind is dict:
        mapping = cast("dict[object, object]", value)
        if all(type(key) is str for key in mapping):
            return {str(key): to_json(item, fallback) for key, item in mapping.items()}
    if fallback is not None:
        return fallback(value)
    raise TypeError(f"JSON cannot say a {kind.__name__}")
