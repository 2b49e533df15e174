"""What results say of themselves."""

from __future__ import annotations

import dataclasses

import pytest

from py_code_mode.results import (
    Display,
    ExecutionResult,
    Failure,
    Handle,
    Late,
    Snapshot,
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
    assert bundle == {"image/png": "iQ==", "text/html": "<b>"}


def test_failure_reads_as_type_and_message() -> None:
    assert str(Failure(type="ValueError", message="bad")) == "ValueError: bad"
    assert str(Failure(type="KeyboardInterrupt", message="")) == "KeyboardInterrupt"


def test_late_is_true_where_there_is_something() -> None:
    assert not Late()
    assert Late(stderr="x")
    assert Late(displays=(Display(data={}),))
