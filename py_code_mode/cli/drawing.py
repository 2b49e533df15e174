"""Whether an SVG is a drawing and nothing else, so that a browser may open it as a file.

Opened by itself an SVG is a document: it may hold scripts, load what it names, and embed HTML
(SVG 2, section 2). Looked at are the kinds of elements and attributes that are known to draw;
whatever has others counts as more than a drawing.
"""

from __future__ import annotations

import re
from typing import Final

#: Characters of a drawing that is looked at.
MAX_LENGTH: Final = 30_000_000
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DRAWING = frozenset({
    "svg", "g", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text",
    "tspan", "textPath", "defs", "clipPath", "mask", "pattern", "marker", "linearGradient",
    "radialGradient", "stop", "use", "symbol", "title", "desc", "style", "image", "filter",
    "feBlend", "feColorMatrix", "feComposite", "feFlood", "feGaussianBlur", "feMerge",
    "feMergeNode", "feOffset",
})  # fmt: skip
_METADATA = f"{_NAMESPACE}metadata"
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*")
_DECLARED = re.compile(r"""<\?xml[^>]*?encoding\s*=\s*["']([^"']*)""")
#: A name inside the drawing, as ``url(#clip)``.
_OWN_URL = re.compile(r"""url\(\s*["']?#[\w.:-]+["']?\s*\)""", re.IGNORECASE)
_LOADING = re.compile(r"url\s*\(|@import|image-set|\\|/\*", re.IGNORECASE)


def is_still(svg: str | bytes) -> bool:
    """Whether nothing in an SVG acts, loads, or cannot be told."""
    from xml.etree import ElementTree

    try:
        text = svg.decode() if isinstance(svg, bytes) else svg
    except UnicodeDecodeError:
        return False
    declared = _DECLARED.search(text)
    if declared is not None and declared[1].lower() not in ("utf-8", "us-ascii"):
        return False  # a browser would read other characters than we do
    # entities say what is not seen here; a style sheet is loaded
    if len(text) > MAX_LENGTH or "<!ENTITY" in text or "<?xml-stylesheet" in text:
        return False
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return False
    waiting = [root]
    while waiting:
        element = waiting.pop()
        if element.tag == _METADATA:
            if any(_acts(each.tag) for each in element.iter() if each is not element):
                return False
            continue
        if not _is_harmless(element.tag, element.attrib, element.text or ""):
            return False
        waiting.extend(element)
    return True


def _acts(tag: str) -> bool:
    """Whether an element of the metadata is one that browsers know: then it may do something."""
    return tag.startswith((_NAMESPACE, "{http://www.w3.org/1999/xhtml}")) or "}" not in tag


def _is_harmless(tag: str, attributes: dict[str, str], text: str) -> bool:
    if tag.removeprefix(_NAMESPACE) not in _DRAWING or not tag.startswith(_NAMESPACE):
        return False
    if tag == f"{_NAMESPACE}style" and _loads(text):
        return False
    for name, value in attributes.items():
        if name.lower().startswith("on") or name == "{http://www.w3.org/XML/1998/namespace}base":
            return False
        if name in ("href", _LINK):
            if not (value.startswith("#") or _PICTURE.fullmatch(value)):
                return False
        elif _loads(value):
            return False
    return True


def _loads(style: str) -> bool:
    return _LOADING.search(_OWN_URL.sub("", style)) is not None
