"""Which SVGs are drawings and nothing else."""

from __future__ import annotations

import pytest

from py_code_mode.cli.drawing import is_still

OPEN = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
#: The forms that matplotlib writes.
PLOT = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="4pt" viewBox="0 0 4 4"
 xmlns="http://www.w3.org/2000/svg" version="1.1">
 <metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:li rdf:resource="http://purl.org/dc/dcmitype/StillImage"/></rdf:RDF></metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style>
  <clipPath id="p1"><rect x="1" y="1"/></clipPath></defs>
 <g id="a"><path d="M 0 4" clip-path="url(#p1)" style="fill: #ffffff"/><use xlink:href="#a"/></g>
 <image xlink:href="data:image/png;base64,iVBORw0KGgo=
AAAA" x="1"/>
</svg>"""


@pytest.mark.parametrize("svg", [PLOT, PLOT.encode(), f"{OPEN}<text>hello</text></svg>"])
def test_drawing_is_still(svg: str | bytes) -> None:
    assert is_still(svg)


def test_real_figure_is_still() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    import io

    figure = figures.Figure()
    axes = figure.subplots()
    axes.plot([1, 2], label="a")
    axes.imshow([[1, 2], [3, 4]])
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    assert is_still(out.getvalue())


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        '<script xlink:href="x.js"/>',
        '<g onload="alert(1)"/>',
        '<g ONLOAD="alert(1)"/>',
        "<foreignObject><p>x</p></foreignObject>",
        '<a xlink:href="javascript:alert(1)"><text>x</text></a>',
        '<use xlink:href="https://example.org/x.svg#a"/>',
        '<use href="data:image/svg+xml;base64,AAAA#a"/>',
        '<image href="https://example.org/x.png"/>',
        '<image href="data:image/svg+xml;base64,AAAA"/>',
        '<feImage href="https://example.org/x.png"/>',
        '<animate attributeName="href" to="javascript:alert(1)"/>',
        '<set attributeName="onclick" to="alert(1)"/>',
        "<style>@import 'https://example.org/x.css';</style>",
        "<style>* { fill: url(https://example.org/x) }</style>",
        "<style>* { fill: u\\72l(https://example.org/x) }</style>",
        '<rect style="fill: url(//example.org/x)"/>',
        '<rect fill="url( https://example.org/x )"/>',
        '<rect xml:base="https://example.org/" fill="url(#a)"/>',
        '<iframe xmlns="http://www.w3.org/1999/xhtml" src="x"/>',
        '<metadata><script xmlns="http://www.w3.org/2000/svg">alert(1)</script></metadata>',
        '<metadata><p xmlns="http://www.w3.org/1999/xhtml">x</p></metadata>',
        '<desc><img xmlns="http://www.w3.org/1999/xhtml" src="x" onerror="alert(1)"/></desc>',
        "<unknown/>",
        "not closed <g>",
    ],
)
def test_what_acts_or_loads_is_not(inside: str) -> None:
    assert not is_still(f"{OPEN}{inside}</svg>")


@pytest.mark.parametrize(
    "svg",
    [
        "",
        "<svg/>",  # of no namespace: nothing knows what it draws
        '<html xmlns="http://www.w3.org/1999/xhtml"><script>1</script></html>',
        f'<?xml-stylesheet href="https://example.org/x.xsl"?>{OPEN}</svg>',
        f'<!DOCTYPE svg [<!ENTITY a "x">]>{OPEN}<text>&a;</text></svg>',
        f'<!DOCTYPE svg [<!ATTLIST svg onload CDATA "alert(1)">]>{OPEN}</svg>',
        f'<?xml version="1.0" encoding="utf-7"?>{OPEN}</svg>',
        f"{OPEN}</svg>".encode("utf-16"),
        b"\xff\xfe",
    ],
)
def test_what_cannot_be_told_is_not(svg: str | bytes) -> None:
    assert not is_still(svg)
