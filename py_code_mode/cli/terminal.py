"""What people see: text of guests made harmless, plain where no terminal shows it.

Promise: what a guest wrote reaches a terminal with its colours and nothing else that a terminal
would obey; a pipe or a file gets it as it is. Lines of our own, with names and errors in them, have
neither colours nor controls, wherever they go.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

#: Written to the terminal after a guest's text that had colours.
RESET: Final = "\x1b[0m"

# Control characters, and those that reverse or hide what is shown (Unicode UAX #9, "Trojan
# source", CVE-2021-42574): marks and overrides of direction, characters without any width (unless
# a letter or sign that is not ASCII comes before, as in emoji and Persian), tags, lone surrogates.
_UNSAFE = re.compile(
    r"\x1b\[[0-9;:]*m|\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e"
    r"\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
    r"|(?:(?<=[\x00-\x7f])|^)(?:[\u200c\u200d\ufe00-\ufe0e\U000e0100-\U000e01ef]|\ufe0f(?!\u20e3))"
)
_UNFINISHED = re.compile(r"(?:\x1b(?:\[[0-9;:]{0,60})?|\r)\Z")
_CONCEAL = "8"
_EXTENDED = frozenset({"38", "48", "58"})
#: A pipe or terminal that `select` calls writable takes this much without blocking (POSIX PIPE_BUF
#: is at least 512; Linux and macOS wake writers for these).
_PIECE = 4096 if sys.platform == "linux" else 512


def printable(text: str, *, colours: bool = True) -> str:
    """`text` as a terminal may have it: colours, tabs and line ends stay, the rest is escaped.

    Args:
        colours: whether to keep them; without, they are removed.
    """

    def harmless(match: re.Match[str]) -> str:
        found = match[0]
        if found == "\r\n":
            return "\n"
        if len(found) == 1:
            code = ord(found)
            if code > 0xFFFF:
                return f"\\U{code:08x}"
            return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
        if _conceals(found[2:-1]):
            return "\\x1b" + found[1:]
        return found if colours else ""

    return _UNSAFE.sub(harmless, text)


def _conceals(parameters: str) -> bool:
    """Whether a colour sequence would make text invisible (SGR 8, ECMA-48 section 8.3.117)."""
    numbers = iter(parameters.split(";"))
    for number in numbers:
        code, _, below = number.partition(":")
        if code.lstrip("0") == _CONCEAL:
            return True
        if code.lstrip("0") in _EXTENDED and not below:  # 38;5;8 is a colour
            skipped = {"5": 1, "2": 3}.get(next(numbers, "").lstrip("0"))
            if skipped is None:
                return True  # terminals differ in what they take the rest for
            for _ in range(skipped):
                next(numbers, "")
    return False


class Screen:
    """One of our streams, for a guest's text that comes in pieces.

    Writing never blocks the event loop: where nobody reads, the caller waits.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._held = ""
        self._has_colours = False

    async def write(self, text: str) -> None:
        """Write a piece.

        Raises:
            BrokenPipeError: nobody will ever read it.
        """
        if not self._is_terminal:
            await self._send(text)
            return
        text = self._held + text
        # the rest of an escape sequence may come with the next piece
        cut = _UNFINISHED.search(text)
        self._held = text[cut.start() :] if cut else ""
        await self._show(text[: cut.start()] if cut else text)

    async def finish(self) -> None:
        """Write what was held back, and end the colours."""
        held, self._held = self._held, ""
        if held:
            await self._show(held)
        if self._has_colours:
            await self._send(RESET)

    async def _show(self, text: str) -> None:
        shown = printable(text, colours=has_colours())
        self._has_colours = self._has_colours or "\x1b" in shown
        await self._send(shown)

    async def _send(self, text: str) -> None:
        if not text:
            return
        self._stream.flush()
        try:
            fd = self._stream.fileno()
        except OSError:  # a stream of Python's own, in a test
            self._stream.write(text)
            return
        data = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        while data:
            if not select.select((), (fd,), (), 0)[1]:
                import anyio

                await anyio.wait_writable(fd)
            data = data[os.write(fd, data[:_PIECE]) :]


def has_colours() -> bool:
    """Whether the user wants colours at all (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Write a line of ours, about a run or a file, to stderr.

    Names in it may be anybody's, and a line of ours has no colours: what else is in it is escaped
    also where a pipe leads on to a terminal.
    """
    print(_encodable(printable(text, colours=False), sys.stderr), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Write an error to stderr: one sentence, or one and what a program said."""
    say(f"py-code-mode: {text}")


def show_text(text: str, stream: TextIO | None = None) -> None:
    """Write a whole text with a line end; made harmless where a terminal shows it."""
    to = sys.stdout if stream is None else stream
    print(_safe(text.removesuffix("\n"), to), file=to, flush=True)


def show_source(text: str, stream: TextIO | None = None) -> None:
    """Like `show_text`, for code: on a terminal not even colours, which could hide a line."""
    to = sys.stdout if stream is None else stream
    show_text(text.replace("\x1b", "\\x1b") if to.isatty() else text, to)


def _safe(text: str, stream: TextIO) -> str:
    if stream.isatty():
        text = printable(text, colours=has_colours())
        text += RESET if "\x1b" in text else ""
    return _encodable(text, stream)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def show_json(value: object) -> None:
    """Write one JSON value, readable where a terminal shows it."""
    # ASCII: a terminal obeys none of it
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, allow_nan=False), flush=True)


def console(stream: TextIO | None = None) -> Console:
    """A rich console that interprets no markup and adds no colours of its own to values."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, markup=False, highlight=False, emoji=False)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Write rows: a table on a terminal, tab-separated lines elsewhere.

    Args:
        empty: said on stderr where there are no rows.
    """
    if not rows:
        say(empty)
        return
    if not sys.stdout.isatty():
        for row in rows:
            cells = (printable(" ".join(cell.split()), colours=False) for cell in row)
            print(_encodable("\t".join(cells), sys.stdout))
        sys.stdout.flush()
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell, colours=False)) for cell in row))
    console().print(table)


def show_origins(
    columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str | None]], empty: str
) -> None:
    """Like `show_table`, with a column for what sandboxed code left, where there is any of it.

    Args:
        rows: cells, and the isolation of that code; None where it is the user's own.
    """
    if any(origin is not None for _, origin in rows):
        told = [
            [*cells, "" if origin is None else f"not approved ({origin})"] for cells, origin in rows
        ]
        show_table((*columns, "origin"), told, empty)
    else:
        show_table(columns, [cells for cells, _ in rows], empty)


def tell_approved(kind: str, name: str, was_approved: bool, as_json: bool) -> None:
    """Say that something sandboxed code left is the user's own, now or before."""
    if as_json:
        show_json({"approved": [name] if was_approved else []})
    else:
        say(f"approved {kind} {name}" if was_approved else f"{kind} {name} needs no approval")


def facts(entry: Mapping[str, object], *names: str) -> list[str]:
    """The named facts of a listing's entry as cells of a row."""
    return [_cell(entry.get(name)) for name in names]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
