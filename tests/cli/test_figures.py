"""What is saved of a display, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from py_code_mode.cli.figures import FigureFolder
from py_code_mode.results import Display

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = "<script>alert(1)</script>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg">{}</svg>'


def saved(folder: Path, data: dict[str, str | bytes]) -> Path:
    figures = FigureFolder(folder, quiet=True)
    figures.show(Display(data=data))
    (path,) = folder.iterdir()
    return path


def test_drawing_is_saved_as_it_is(tmp_path: Path) -> None:
    svg = SVG.format("<text>x</text>")
    path = saved(tmp_path, {"image/svg+xml": svg})
    assert (path.name, path.read_text()) == ("figure-1.svg", svg)


@pytest.mark.parametrize(
    "data", [{"image/svg+xml": SVG.format(SCRIPT)}, {"text/html": SCRIPT, "text/plain": "<Map>"}]
)
def test_what_could_act_is_saved_in_a_frame(tmp_path: Path, data: dict[str, str | bytes]) -> None:
    path = saved(tmp_path, data)
    assert path.name == "figure-1.html"
    page = path.read_text()
    assert page.startswith('<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Secur')
    assert '<iframe sandbox=""' in page
    assert SCRIPT not in page
