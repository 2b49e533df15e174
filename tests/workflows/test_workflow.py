"""What is read from a workflow's source, and that source and description come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.errors import InvalidName, InvalidWorkflow
from py_code_mode.workflows.workflow import RESERVED, check_name, read, write

RUN = "def run():\n    return 1\n"

SOURCES = [
    RUN,
    "async def run(url: str) -> dict:\n    return {}",
    '"""Own docstring."""\n\nfrom __future__ import annotations\n\ndef run(): ...\n',
    '"""Own docstring."""\n\n# The source, as it was given:\ndef run(): ...\n',
    '# Description: "mine"\ndef run(): ...\n',
    "# Description: not JSON\ndef run(): ...\n",
    "from __future__ import annotations\ndef run(): ...\n",
    "#!/usr/bin/env python\n# -*- coding: latin-1 -*-\ndef run(): return 'é'\n",
    "\n\n\ndef run(): ...\n\n\n",
    "'''Über\n\n  alles'''; x = 1\r\ndef run(): ...\r\n",
    "\x0cdef run(): ...",
    "r'''raw \\d'''\ndef run():\n    'Does it.'\n",
]

DESCRIPTIONS = [
    "",
    "Fetch and parse JSON from a URL",
    "Own docstring.",
    'quotes "x" and """three""" and four """"',
    'ends with a quote"',
    "ends with a backslash\\",
    "\\n is no newline, \\d, \\u00e9",
    "  spaces around  \n\n    kept\n",
    "tab\t, return\r, nul\0, form feed\x0c, \x85 \u2028",
    "日本語 é 🙂",
    "lone surrogate \ud800",
    "'''",
    "mine",
    "# Description: x",
]


@pytest.mark.parametrize("source", SOURCES, ids=range(len(SOURCES)))
@pytest.mark.parametrize("description", DESCRIPTIONS, ids=ascii)
def test_source_and_description_come_back(source: str, description: str) -> None:
    text = write("w", source, description)
    found = read("w", text)
    assert found.source == source
    if description:
        assert found.description == description
    compile(text, "w", "exec")
    text.encode()
    assert write("w", source, found.description)


@given(st.text(st.characters(), max_size=30), st.sampled_from(SOURCES))
def test_any_description_comes_back(description: str, source: str) -> None:
    found = read("w", write("w", source, description))
    assert (found.source, found.description or "") == (source, description or found.description)


def test_created_file_begins_with_the_description_as_docstring() -> None:
    assert write("w", RUN, "Says 1.") == (
        '"""Says 1."""\n\n# The source, as it was given:\ndef run():\n    return 1\n'
    )


def test_source_that_says_it_already_is_the_file() -> None:
    source = '"""Says 1."""\n\ndef run(): return 1\n'
    assert write("w", source, "Says 1.") == source
    assert write("w", source, "") == source
    assert read("w", source).source == source


def test_docstring_of_run_describes_a_workflow_without_one() -> None:
    found = read("w", 'def run():\n    """First\n    paragraph.\n\n    More.\n    """\n')
    assert found.description == "First\nparagraph."


def test_parameters_are_read_without_running() -> None:
    source = '''
"""Doc.

Args:
    limit: how many
        at most.
    options (dict): the rest.
"""
raise SystemExit("never run")

@decorated
async def run(
    url: str, *parts, limit: int = 10, tags: "list[str] | None" = None, flag=-1.5, **options: int
) -> dict:
    """Fetch.

    Args:
        url: where from: a URL.
    """
'''
    assert [parameter.to_dict() for parameter in read("w", source).parameters] == [
        {
            "name": "url",
            "type": "str",
            "required": True,
            "default": None,
            "description": "where from: a URL.",
        },
        {
            "name": "limit",
            "type": "int",
            "required": False,
            "default": "10",
            "description": "how many at most.",
        },
        {"name": "tags", "type": "list[str] | None", "required": False, "default": "None"},
        {"name": "flag", "type": "Any", "required": False, "default": "-1.5"},
        {
            "name": "options",
            "type": "int",
            "required": False,
            "default": None,
            "description": "the rest.",
            "kind": "var_keyword",
        },
    ]


def test_last_run_counts() -> None:
    found = read("w", "def run(a): ...\ndef run(b): ...\n")
    assert [parameter.name for parameter in found.parameters] == ["b"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def run(:\n", "line 1: "),
        ("x = 1\n\ndef run():\n    return (\n", "line 4: "),
        ("def run(): ...\nreturn 1\n", "line 2: 'return' outside function"),
        ("", "line 1: it ends without a function `run`"),
        ("def main(): ...\n\nx = 1\n", "line 3: it ends without a function `run`"),
        ("class A:\n    def run(self): ...\n", "without a function `run`"),
        ("run = print", "define `async def run"),
        ("def run(a, /): ...", "line 1: a workflow is called by keywords, but 'a' is positional"),
        ("def run(): ...\n\0", "null byte"),
        ("def run(): ...\n# \ud800", "line 2: it is not valid Unicode"),
        ("def run(): return " + "(" * 3000 + ")" * 3000, ""),
        ("def run(): return " + "-" * 100_000 + "1", ""),
    ],
    ids=range(12),
)
def test_unusable_source_is_refused_with_its_line(source: str, reason: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        write("w", source, "x")
    assert reason in caught.value.reason
    assert caught.value.name == "w"


@pytest.mark.parametrize(
    "name",
    ["", "a-b", "1a", "a b", "../a", "/a", "a.b", "class", "_a", "__init__", "ﬁ", "a\0", *RESERVED],
    ids=ascii,
)
def test_unfit_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("name", ["fetch_json", "a", "größe", "日本語", "match"])
def test_identifier_is_a_name(name: str) -> None:
    assert check_name(name) == name
