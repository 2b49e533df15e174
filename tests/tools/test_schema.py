from __future__ import annotations

import math

import pytest

from py_code_mode.errors import ToolArgumentError
from py_code_mode.tools.schema import ArgumentCheck, Parameter, object_schema

PARAMETERS = (
    Parameter(name="url", type="string", required=True, pattern="^https?://"),
    Parameter(name="method", type="string", enum=("GET", "POST"), description="The verb"),
    Parameter(name="count", type="integer", default=3),
    Parameter(name="rate", type="number"),
    Parameter(name="silent", type="boolean"),
    Parameter(name="header", type="array"),
    Parameter(name="only", type="array", enum=("a", "b")),
)
URL = "https://example.org"


def test_parameters_become_a_closed_json_schema() -> None:
    assert object_schema(PARAMETERS) == {
        "type": "object",
        "properties": {
            "url": {"type": "string", "pattern": "^https?://"},
            "method": {"type": "string", "enum": ["GET", "POST"], "description": "The verb"},
            "count": {"type": "integer", "default": 3},
            "rate": {"type": "number"},
            "silent": {"type": "boolean"},
            "header": {"type": "array", "items": {"type": ["string", "number"]}},
            "only": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
        },
        "additionalProperties": False,
        "required": ["url"],
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": URL},
        {"url": URL, "method": "POST", "count": 1, "rate": 1, "silent": False},
        {"url": URL, "rate": 1.5, "header": ["a", 1], "only": ["a", "b"]},
    ],
)
def test_fitting_arguments_pass(arguments: dict[str, object]) -> None:
    ArgumentCheck(PARAMETERS).check("curl", arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "argument 'url' is missing; it takes url (string, required), method (string)"),
        ({"ur": URL}, "no argument named 'ur', did you mean 'url'?; it takes url"),
        ({"url": "ftp://x"}, "'url' must match ^https?://, not 'ftp://x'"),
        ({"url": 5}, "'url' must be a string, not 5 (int)"),
        ({"url": URL, "method": "PUT"}, "'method' must be one of 'GET', 'POST', not 'PUT'"),
        ({"url": URL, "count": "3"}, "'count' must be an integer, not '3' (str)"),
        ({"url": URL, "count": True}, "'count' must be an integer, not True (bool)"),
        ({"url": URL, "rate": math.nan}, "'rate' must be a finite number, not nan"),
        ({"url": URL, "silent": 1}, "'silent' must be a boolean, not 1 (int)"),
        ({"url": URL, "header": "a"}, "'header' must be a list, not 'a' (str)"),
        (
            {"url": URL, "header": ["a", None]},
            "'header[1]' must be a string or a number, not None (NoneType)",
        ),
        ({"url": URL, "only": ["c"]}, "'only[0]' must be one of 'a', 'b', not 'c'"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(
    arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ToolArgumentError) as caught:
        ArgumentCheck(PARAMETERS).check("curl", arguments)
    assert str(caught.value).startswith("tool curl: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_value_is_shown_in_part() -> None:
    with pytest.raises(ToolArgumentError) as caught:
        ArgumentCheck(PARAMETERS).check("curl", {"url": "x" * 1_000_000})
    assert len(str(caught.value)) < 200
