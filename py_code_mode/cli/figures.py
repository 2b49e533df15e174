"""Saves what a run displays: images as files, text as text.

Promise: opened in a browser, no saved file runs a guest's scripts or loads anything.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TypedDict

from py_code_mode.cli.drawing import is_still
from py_code_mode.cli.terminal import say, show_text
from py_code_mode.results import frame

if TYPE_CHECKING:
    from pathlib import Path

    from py_code_mode.results import Display

#: Richest first; a display is saved in the first form that it has.
_IMAGES: Final = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/svg+xml": ".svg",
    "application/pdf": ".pdf",
}
_HTML: Final = "text/html"
_SVG: Final = "image/svg+xml"


class Shown(TypedDict):
    """What became of a display."""

    kinds: list[str]
    path: str | None
    text: str | None


class FigureFolder:
    """A folder that displays are saved in; nothing in it is ever overwritten.

    The guest chooses neither names nor extensions.

    Args:
        folder: made when the first figure is saved.
        quiet: tell nothing on stderr and print no text.
    """

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        self._folder = folder
        self._quiet = quiet
        self._number = 0
        self.shown: list[Shown] = []

    def show(self, display: Display) -> None:
        """Save a display, or print it where it is a text.

        Raises:
            OSError: the file cannot be written.
        """
        extension, body = _file_form(display)
        text = display.data.get("text/plain")
        entry = Shown(kinds=sorted(display.data), path=None, text=None)
        self.shown.append(entry)
        if body is not None:
            path = self._save(extension, body)
            entry["path"] = str(path)
            if not self._quiet:
                say(f"saved {path}")
            return
        entry["text"] = text if isinstance(text, str) else _any_text(display)
        if not self._quiet:
            show_text(entry["text"], sys.stdout)

    def _save(self, extension: str, body: str | bytes) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._number += 1
            path = self._folder / f"figure-{self._number}{extension}"
            try:
                with path.open("xb") as file:
                    file.write(body if isinstance(body, bytes) else body.encode())
            except FileExistsError:
                continue
            return path


def _file_form(display: Display) -> tuple[str, str | bytes | None]:
    for kind, extension in _IMAGES.items():
        if kind in display.data:
            body = display.data[kind]
            if kind == _SVG and not is_still(body):
                return ".html", frame(body, kind, is_page=True)
            return extension, body
    plain = display.data.get("text/plain")
    says_nothing = not isinstance(plain, str) or (plain.startswith("<") and plain.endswith(">"))
    # a table has a plain form to read here; a map or an interactive chart has not
    if not says_nothing or _HTML not in display.data:
        return ".html", None
    return ".html", frame(display.data[_HTML], _HTML, is_page=True)


def _any_text(display: Display) -> str:
    texts = [body for body in display.data.values() if isinstance(body, str)]
    return texts[0] if texts else display.text
