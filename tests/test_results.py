"""What results say of themselves."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest

from py_code_mode.results import (
    Display,
    ExecutionResult,
    Failure,
    Handle,
    Late,
    Snapshot,
    frame,
    shorten,
)


def test_result_without_error_is_ok() -> None:
    assert ExecutionResult().is_ok
    assert not ExecutionResult(error="x").is_ok
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExecutionResult().value = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_text_has_output_value_error_notes_and_state() -> None:
    failure = Failure(type="KeyError", message="'a'", traceback="Traceback\nKeyError: 'a'\n")
    result = ExecutionResult(
        stdout="out\n",
        stderr="err\n",
        error=str(failure),
        failure=failure,
        displays=(Display(data={"image/png": b"x", "text/plain": "<Figure>"}),),
        late=Late(stdout="late\n"),
        notes=("a note",),
        state="lost",
    )
    assert result.to_text().splitlines() == [
        "[output since the previous run]",
        "late",
        "out",
        "[stderr]",
        "err",
        "[display: image/png]",
        "<Figure>",
        "Traceback",
        "KeyError: 'a'",
        "[a note]",
        "[all variables are lost; define again what you need]",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "[no output]"),
        (0, "0"),
        ("short", "'short'"),
        ("two\nlines", "two\nlines"),
        ([1, None], "[1, None]"),
        (
            Handle(name="_1", type_name="a.B", snapshot=Snapshot(data={"n": 1})),
            '<a.B> {"n":1}',
        ),
    ],
)
def test_text_of_a_value(value: object, text: str) -> None:
    assert ExecutionResult(value=value).to_text() == text


def test_text_of_a_value_whose_repr_fails() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    assert "repr raised ZeroDivisionError" in ExecutionResult(value=Odd()).to_text()


@pytest.mark.parametrize("budget", [1, 5, 10, 100, 1000])
@pytest.mark.parametrize("letter", ["a", "é", "😀", "\ud800"])
def test_text_keeps_to_its_budget(budget: int, letter: str) -> None:
    text = ExecutionResult(stdout=letter * 100_000).to_text(max_tokens=budget)
    if budget >= 10:
        assert len(text.encode("utf-8", "backslashreplace")) <= 4 * budget
        assert "bytes left out" in text


def test_shortened_text_keeps_both_ends() -> None:
    text = shorten("begin" + "x" * 1000 + "end", 100)
    assert text.startswith("begin")
    assert text.endswith("end")
    assert shorten("short", 100) == "short"


def test_display_gives_text_or_says_what_there_is() -> None:
    assert Display(data={"text/plain": "x", "text/html": "<b>"}).text == "x"
    assert Display(data={"image/png": b"\x89"}).text == "<image/png>"
    bundle = Display(data={"image/png": b"\x89", "text/html": "<b>"})._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
    assert set(bundle) == {"image/png", "text/html", "text/plain"}
    assert bundle["image/png"] == "iQ=="


SCRIPT = "<script>alert('x')</script></iframe><img src=https://example.org/?secret>"


def in_frame(shown: str) -> str:
    """The document in the one frame that there is."""
    parser = Frames()
    parser.feed(shown)
    assert [tag for tag, _ in parser.found] == ["iframe"]
    attributes = dict(parser.found[0][1])
    assert attributes["sandbox"] == ""
    document = attributes["srcdoc"]
    assert document is not None
    return document


class Frames(HTMLParser):
    """Every element that can do something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("pre", "body", "meta"):
            self.found.append((tag, attrs))


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml"])
@pytest.mark.parametrize("body", [SCRIPT, SCRIPT.encode()])
def test_markup_is_shown_in_a_frame_that_allows_nothing(kind: str, body: str | bytes) -> None:
    display = Display(data={kind: body, "application/javascript": "alert(1)"})
    bundle = display._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
    assert set(bundle) == {"text/html", "text/plain"}
    document = in_frame(bundle["text/html"])
    policy, _, rest = document.partition(">")[2].partition("<base")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    if kind == "text/html":
        assert SCRIPT in rest
    else:  # an image, in which no script runs
        assert "<script" not in rest
        assert 'src="data:image/svg+xml;base64,' in rest


def test_forms_that_may_hold_markup_are_left_out() -> None:
    forms = ("text/markdown", "text/latex", "application/javascript", "application/vnd.x+json")
    display = Display(data=dict.fromkeys(forms, SCRIPT))
    bundle = display._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
    assert bundle == {"text/plain": f"<{', '.join(forms)}>"}


def test_page_of_markup_is_a_frame_with_a_policy() -> None:
    page = frame(SCRIPT, "text/html", is_page=True)
    assert page.index("Content-Security-Policy") < page.index("<iframe")
    assert SCRIPT in in_frame(page)


def test_result_in_a_notebook_escapes_what_the_guest_wrote() -> None:
    result = ExecutionResult(
        stdout=f"```\n````\n{SCRIPT}\n",
        displays=(Display(data={"image/png": b"x"}), Display(data={"text/html": SCRIPT})),
    )
    shown = result._repr_html_()  # pyright: ignore[reportPrivateUsage]
    parser = Frames()
    parser.feed(shown)
    assert [tag for tag, _ in parser.found] == ["img", "iframe"]
    lines = result._repr_markdown_().splitlines()  # pyright: ignore[reportPrivateUsage]
    assert lines[0] == lines[-1] == "`````"


def test_failure_reads_as_type_and_message() -> None:
    assert str(Failure(type="ValueError", message="bad")) == "ValueError: bad"
    assert str(Failure(type="KeyboardInterrupt", message="")) == "KeyboardInterrupt"


def test_late_is_true_where_there_is_something() -> None:
    assert not Late()
    assert Late(stderr="x")
    assert Late(displays=(Display(data={}),))
