"""Rich output by IPython's conventions: what an object says of itself, as bundles by MIME type.

Functions here return bundles; whoever evaluates a cell emits them. Text types are str, all others
bytes. What user code raises while it describes itself costs that one form of output, not the
run; KeyboardInterrupt passes.

matplotlib is never imported from here. A worker is started with ``MPLBACKEND=Agg``; figures still
open when a cell ends are drawn and closed by `collect_figures`, and `hook_pyplot` makes
``plt.show()`` do so at once.
"""

# Values are Any: narrowed by isinstance(), their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import sys

from .imports import AfterImport
from .snapshot import bounded_repr

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any, Callable

Bundle = dict[str, str | bytes]

#: Bytes of one display, all its forms together.
MAX_BYTES = 8 * 1024 * 1024

_PLAIN = 20_000  # characters of the plain text form

_METHODS: tuple[tuple[str, str], ...] = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_latex_", "text/latex"),
    ("_repr_json_", "application/json"),
    ("_repr_javascript_", "application/javascript"),
    ("_repr_pdf_", "application/pdf"),
)

_TEXT = ("image/svg+xml", "application/json", "application/javascript", "application/xml")


def mime_bundle(value: object, *, max_bytes: int = MAX_BYTES) -> Bundle | None:
    """The rich forms of an object and its plain text, or None if it has no rich form."""
    # On a class the methods are there but unbound.
    if isinstance(value, type):
        return None
    bundle: Bundle = {}
    if _is_figure(value):
        image = _guarded(_draw, value)
        if isinstance(image, bytes):
            bundle["image/png"] = image
    elif not _has_everything(value):
        _ask(value, bundle)
    rich = {kind: body for kind, body in bundle.items() if kind != "text/plain"}
    if not rich:
        return None
    plain = bundle.get("text/plain")
    text = plain if isinstance(plain, str) else bounded_repr(value, _PLAIN)
    return _bounded(rich, text[: 2 * _PLAIN], max_bytes)


def display_bundle(value: object, *, max_bytes: int = MAX_BYTES) -> Bundle:
    """What ``display(value)`` shows: the rich forms, or the plain text alone."""
    bundle = mime_bundle(value, max_bytes=max_bytes)
    if bundle is not None:
        return bundle
    # Texts are shown as they are, as print() would.
    text = value[:_PLAIN] if type(value) is str else bounded_repr(value, _PLAIN)
    return {"text/plain": text}


def collect_figures(*, max_bytes: int = MAX_BYTES) -> list[Bundle]:
    """Draw every figure pyplot holds open, oldest first, and close it; empty ones are dropped."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    numbers = getattr(pyplot, "get_fignums", None)
    if pyplot is None or numbers is None:  # not there, or still being imported
        return []
    bundles: list[Bundle] = []
    for number in numbers():
        figure = pyplot.figure(number)
        try:
            if figure.get_children()[1:]:  # the first is its background
                bundle = mime_bundle(figure, max_bytes=max_bytes)
                bundles.append(bundle or {"text/plain": _undrawn(figure)})
        finally:
            pyplot.close(figure)
    return bundles


def of_result(value: object) -> list[Bundle]:
    """What the end of a cell shows: the rich form of a value that has one, and open figures."""
    bundles: list[Bundle] = []
    # a figure that pyplot holds is drawn with the others
    if value is not None and not (_is_figure(value) and _is_held(value)):
        bundle = mime_bundle(value)
        if bundle is not None:
            bundles.append(bundle)
    return bundles + collect_figures()


def _is_held(figure: Any) -> bool:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot is not None and pyplot.fignum_exists(getattr(figure, "number", None))


def hook_pyplot(
    sink: Callable[[], Callable[[Bundle], None] | None],
) -> Callable[[], None]:
    """Make ``plt.show()`` emit the open figures at once; returns a function that undoes it.

    Works whether pyplot is loaded already or is first imported in the middle of a cell.

    Args:
        sink: asked at each show() for where bundles go; None where no cell is running: then
            pyplot's own show() is called.
    """
    undo: list[Callable[[], None]] = []

    def patch(pyplot: Any) -> None:
        own = pyplot.show

        def show(*args: Any, **options: Any) -> None:
            emit = sink()
            if emit is None:
                own(*args, **options)
                return
            for bundle in collect_figures():
                emit(bundle)

        def restore() -> None:
            if pyplot.show is show:
                pyplot.show = own

        show.__doc__ = own.__doc__
        pyplot.show = show
        undo.append(restore)

    undo.append(AfterImport("matplotlib.pyplot", patch).leave)

    def unhook() -> None:
        while undo:
            undo.pop()()

    return unhook


def _is_figure(value: object) -> bool:
    module = sys.modules.get("matplotlib.figure")
    kind = vars(module).get("Figure") if module is not None else None
    return isinstance(kind, type) and issubclass(type(value), kind)


def _draw(figure: Any) -> bytes:
    import io

    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def _undrawn(figure: Any) -> str:
    return f"{bounded_repr(figure, 200)} could not be drawn"


def _guarded(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of user code that describes itself; None where it raises."""
    try:
        return call(*args, **options)
    except KeyboardInterrupt:
        raise
    # SystemExit too: IPython's convention is that a failed form is a form not offered.
    except BaseException:
        return None


def _has_everything(value: object) -> bool:
    """Whether an object answers to any name (a mock, a proxy): what it offers means nothing."""
    return _guarded(getattr, value, "_ipython_canary_method_should_not_exist_", None) is not None


def _ask(value: object, bundle: Bundle) -> None:
    method = _guarded(getattr, value, "_repr_mimebundle_", None)
    if callable(method):
        found = _data(_guarded(method, include=None, exclude=None))
        if isinstance(found, dict):
            for kind, body in list(dict.items(found)):
                _add(bundle, kind, body)
    for name, kind in _METHODS:
        if kind not in bundle:
            method = _guarded(getattr, value, name, None)
            if callable(method):
                _add(bundle, kind, _data(_guarded(method)))


def _data(found: Any) -> Any:
    """The data of a result that may be a pair of data and metadata."""
    return found[0] if isinstance(found, tuple) and len(found) == 2 else found


def _add(bundle: Bundle, kind: Any, body: Any) -> None:
    if type(kind) is not str or body is None or len(bundle) >= 32:
        return
    if kind.startswith("text/") or kind in _TEXT or kind.endswith("+json"):
        if kind.endswith("json") and not isinstance(body, str):
            import json

            body = _guarded(json.dumps, body)
        if isinstance(body, str):
            bundle[kind] = str.__str__(body)
    elif isinstance(body, (bytes, bytearray)):
        bundle[kind] = bytes(body)
    elif isinstance(body, str):  # images may be base64 already
        import binascii

        try:
            bundle[kind] = binascii.a2b_base64(body)
        except ValueError:
            pass  # neither bytes nor base64: not offered


def _bounded(rich: Bundle, text: str, max_bytes: int) -> Bundle:
    bundle: Bundle = {}
    left = max_bytes
    notes = ""
    for kind, body in rich.items():
        size = len(body) if isinstance(body, bytes) else len(body.encode("utf-8", "surrogatepass"))
        if size > left:
            notes += f"\n[{kind} of {size:,} bytes left out]"
        else:
            bundle[kind] = body
            left -= size
    bundle["text/plain"] = text + notes
    return bundle
