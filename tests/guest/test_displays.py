"""Rich output follows IPython's conventions, is bounded, and its failures cost only themselves."""
# Values under test are of any shape; pyright calls their parts unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import base64
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pandas
import pytest

from py_code_mode.guest.displays import (
    collect_figures,
    display_bundle,
    hook_pyplot,
    mime_bundle,
)

pd: Any = pandas
PNG = b"\x89PNG\r\n\x1a\n"


def rich(**methods: Any) -> Any:
    """An object with these ``_repr_*_`` methods, given by what they return."""

    def returning(found: Any) -> Any:
        def method(self: object, **options: object) -> Any:
            del self, options
            return found

        return method

    made = {f"_repr_{name}_": returning(found) for name, found in methods.items()}

    class Rich:
        def __repr__(self) -> str:
            return "<rich>"

    return type("Rich", (Rich,), made)()


def test_each_form_has_its_type() -> None:
    bundle = mime_bundle(
        rich(html="<b>", markdown="*m*", svg="<svg/>", latex="$x$", json={"a": [1]}, png=PNG,
             jpeg=b"\xff\xd8", javascript="1", pdf=b"%PDF")
    )  # fmt: skip
    assert bundle == {
        "text/html": "<b>",
        "text/markdown": "*m*",
        "image/svg+xml": "<svg/>",
        "image/png": PNG,
        "image/jpeg": b"\xff\xd8",
        "text/latex": "$x$",
        "application/json": '{"a": [1]}',
        "application/javascript": "1",
        "application/pdf": b"%PDF",
        "text/plain": "<rich>",
    }


def test_a_mimebundle_wins_and_metadata_is_left_out() -> None:
    found = mime_bundle(
        rich(
            mimebundle=({"text/html": "one", "text/plain": "p"}, {"m": 1}),
            html="two",
            svg=("s", {}),
        )
    )
    assert found == {"text/html": "one", "image/svg+xml": "s", "text/plain": "p"}


def test_images_may_be_base64() -> None:
    bundle = mime_bundle(rich(png=base64.b64encode(PNG).decode()))
    assert bundle is not None
    assert bundle["image/png"] == PNG


@pytest.mark.parametrize(
    "value",
    [1, "text", None, [1], object(), rich(html=None), rich(html=5), rich(mimebundle=7),
    rich(png="é"),
     rich(mimebundle={5: "x", "text/html": 3}), rich(html="x").__class__, pandas.DataFrame,
     mock.MagicMock()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_has_no_rich_form_has_none(value: object) -> None:
    assert mime_bundle(value) is None
    assert list(display_bundle(value)) == ["text/plain"]


def test_a_form_that_raises_is_left_out() -> None:
    class Broken:
        def _repr_html_(self) -> str:
            raise SystemExit

        def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> object:
            raise NotImplementedError

        def _repr_svg_(self) -> str:
            return "<svg/>"

        def __repr__(self) -> str:
            raise ValueError

    bundle = mime_bundle(Broken())
    assert bundle is not None
    assert bundle["image/svg+xml"] == "<svg/>"
    assert "raises ValueError" in str(bundle["text/plain"])
    assert list(bundle) == ["image/svg+xml", "text/plain"]


def test_an_interrupt_passes_through() -> None:
    class Stops:
        def _repr_html_(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mime_bundle(Stops())


def test_what_is_too_large_is_left_out_and_said() -> None:
    bundle = mime_bundle(rich(html="x" * 2000, svg="s" * 50), max_bytes=1000)
    assert bundle is not None
    assert list(bundle) == ["image/svg+xml", "text/plain"]
    assert "text/html of 2,000 bytes left out" in str(bundle["text/plain"])


def test_a_frame_is_html_and_text() -> None:
    bundle = mime_bundle(pd.DataFrame({"a": [1]}))
    assert bundle is not None
    assert sorted(bundle) == ["text/html", "text/plain"]
    assert "<table" in str(bundle["text/html"])


def test_displayed_text_is_shown_as_it_is() -> None:
    assert display_bundle("a\nb") == {"text/plain": "a\nb"}
    assert display_bundle([1]) == {"text/plain": "[1]"}


def test_nothing_of_matplotlib_is_loaded() -> None:
    code = (
        "import sys\n"
        "from py_code_mode.guest.displays import *\n"
        "undo = hook_pyplot(lambda: print); assert collect_figures() == []\n"
        "assert display_bundle(1)\n"
        "undo(); assert not [m for m in sys.modules if 'matplotlib' in m]\n"
        "assert len(sys.meta_path) == 3, sys.meta_path"
    )
    subprocess.run(
        [sys.executable, "-S", "-c", code],
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture
def plt(monkeypatch: pytest.MonkeyPatch) -> Any:
    matplotlib: Any = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    pyplot.close("all")
    return pyplot


def test_figures_are_drawn_and_closed(plt: Any) -> None:
    plt.figure()  # empty: dropped
    for _ in range(2):
        plt.subplots()[1].plot([1, 2])
    bundles = collect_figures()
    assert len(bundles) == 2
    for bundle in bundles:
        image = bundle["image/png"]
        assert isinstance(image, bytes)
        assert image.startswith(PNG)
    assert plt.get_fignums() == []
    assert collect_figures() == []


def test_a_figure_is_its_own_display(plt: Any) -> None:
    figure = plt.figure()
    bundle = mime_bundle(figure)
    assert bundle is not None
    assert "image/png" in bundle


def test_a_figure_that_cannot_be_drawn_is_said_and_closed(plt: Any) -> None:
    figure, axes = plt.subplots()
    axes.set_title(r"$\frac{$")
    (bundle,) = collect_figures()
    assert "could not be drawn" in str(bundle["text/plain"])
    assert figure.number not in plt.get_fignums()


def test_show_emits_at_once_and_can_be_undone(plt: Any) -> None:
    shown: list[Any] = []
    own = plt.show
    undo = hook_pyplot(lambda: shown.append)
    try:
        plt.subplots()[1].plot([1])
        plt.show()
        assert len(shown) == 1
        assert plt.get_fignums() == []
    finally:
        undo()
    assert plt.show is own


def test_the_hook_waits_for_the_first_import() -> None:
    pytest.importorskip("matplotlib")
    code = """
import sys, warnings
warnings.simplefilter("error", UserWarning)
from py_code_mode.guest.displays import hook_pyplot
finders = len(sys.meta_path)
shown = []
undo = hook_pyplot(lambda: shown.append)
import matplotlib.pyplot as plt
assert len(sys.meta_path) == finders, sys.meta_path
plt.plot([1, 2])
plt.show()
assert list(shown[0]) == ["image/png", "text/plain"], shown
undo()
assert plt.show.__module__ == "matplotlib.pyplot"
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=100,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
