from __future__ import annotations

import pytest

from py_code_mode.tools.definition import read_command
from py_code_mode.tools.tool import DefinitionError

CURL = b"""
name: curl
description: Make HTTP requests
command: curl
timeout: 60
tags: [http]
schema:
  options:
    silent: {type: boolean, short: s}
    header: {type: array, short: H}
    proto: {type: string, long: proto}
  positional: [{name: url, type: string, required: true, pattern: "^https?://"}]
recipes:
  get: {description: Simple GET, preset: {silent: true, proto: "=http,https"}, params: {url: {}}}
"""


def test_the_documented_format_is_read() -> None:
    curl = read_command("curl.yaml", CURL)
    assert (curl.name, curl.program) == ("curl", ("curl",))
    assert (curl.timeout, curl.tags) == (60.0, ("http",))
    assert [(p.name, p.type, p.short, p.long) for p in curl.parameters] == [
        ("silent", "boolean", "s", None),
        ("header", "array", "H", None),
        ("proto", "string", None, "proto"),
        ("url", "string", None, None),
    ]
    (get,) = curl.recipes
    assert (get.name, get.description) == ("get", "Simple GET")
    assert get.fixed == {"silent": True, "proto": "=http,https"}
    assert [p.name for p in get.parameters] == ["url"]
    assert get.parameters[0].required


def test_a_file_without_a_name_is_called_like_its_file() -> None:
    assert read_command("my-tool.yaml", b"command: true").name == "my_tool"


def test_dashes_in_names_become_underscores() -> None:
    text = b"""
name: my-tool
command: x
schema: {options: {max-time: {type: integer}}}
recipes: {get-all: {params: {max-time: {}}}}
"""
    tool = read_command("t.yaml", text)
    assert tool.name == "my_tool"
    assert (tool.parameters[0].name, tool.parameters[0].long) == ("max_time", "max-time")
    assert tool.recipes[0].name == "get_all"


def test_an_option_that_names_neither_short_nor_long_is_spelt_by_its_name() -> None:
    tool = read_command("t.yaml", b"command: x\nschema: {options: {max_time: {type: number}}}")
    assert tool.parameters[0].long == "max-time"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("git log", ("git", "log")),
        ("\"'a b' c\"", ("a b", "c")),
        ("[a b, c]", ("a b", "c")),
        ("x; rm $HOME", ("x;", "rm", "$HOME")),
    ],
)
def test_a_command_is_split_into_words(written: str, words: tuple[str, ...]) -> None:
    assert read_command("t.yaml", f"command: {written}".encode()).program == words


def test_words_that_yaml_takes_for_booleans_stay_words() -> None:
    text = b"""
command: x
schema: {options: {no: {type: string, enum: [on, off, 2024-01-01], default: off, short: n}}}
"""
    (parameter,) = read_command("t.yaml", text).parameters
    assert (parameter.name, parameter.short) == ("no", "n")
    assert parameter.enum == ("on", "off", "2024-01-01")
    assert parameter.default == "off"


def test_a_recipe_changes_description_required_and_default() -> None:
    text = b"""
command: x
schema:
  options:
    a: {type: string, required: true, description: old}
    b: {type: integer, default: 1}
    c: {type: integer, default: 2}
    d: {type: string}
    e: {type: string, default: hidden}
recipes:
  r:
    preset: {c: 3}
    params:
      a: {description: new, default: x}
      b: {default: 5}
      c: {}
      d: {required: true}
"""
    (recipe,) = read_command("t.yaml", text).recipes
    shown = {p.name: (p.description, p.required, p.default) for p in recipe.parameters}
    assert shown == {
        "a": ("new", False, "x"),
        "b": ("", False, 5),
        "c": ("", False, 3),
        "d": ("", True, None),
    }
    assert recipe.fixed == {"e": "hidden"}


def test_a_timeout_of_null_is_no_limit() -> None:
    assert read_command("t.yaml", b"command: x\ntimeout: null").timeout is None
    assert read_command("t.yaml", b"command: x").timeout == 60.0


OPTION = "command: x\nschema:\n  options:\n    a:\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("name: [", 1, "not valid YAML"),
        ("name: x\ncommand: 'y\n", 2, "not valid YAML"),
        ("a: 1\n\x01", 2, "not valid YAML"),
        ("command: x\n---\ncommand: y\n", 2, "another document"),
        ("- 1", 1, "must be a mapping"),
        ("name: x\ncommnd: y", 2, "did you mean 'command'?"),
        ("name: x", 1, "'command' is missing"),
        ("name: x\nname: y\ncommand: z", 2, "twice"),
        ("\n\nname: list\ncommand: y", 3, "already means something"),
        ("name: _x\ncommand: y", 1, "underscore"),
        ("name: a b\ncommand: y", 1, "letters, digits"),
        ("name: class\ncommand: y", 1, "keyword"),
        ("command: ''", 1, "empty"),
        ('command: "\'"', 1, "cannot be split"),
        ("command: {a: b}", 1, "must be text"),
        ("command: x\ntype: mcp", 2, "known: cli"),
        ("command: x\ntimeout: 0", 2, "above 0"),
        ("command: x\ntimeout: .inf", 2, "above 0"),
        ("command: x\ntimeout: soon", 2, "above 0"),
        ("command: x\nmax_output: 1.5", 2, "whole number"),
        ("command: x\ndashdash: maybe", 2, "true or false"),
        ("command: x\ntags: http", 2, "must be a list"),
        ("command: x\nenv:\n  - PATH\n  - A=b", 4, "names of variables"),
        ("command: x\nschema:\n  option: {}", 3, "did you mean 'options'?"),
        (OPTION + "      type: strin", 5, "known: boolean"),
        (OPTION + "      requird: true", 5, "did you mean 'required'?"),
        (OPTION + "      type: boolean\n      short: '-'", 6, "short option"),
        (OPTION + "      long: a b", 5, "long option"),
        (OPTION + "      pattern: '['", 5, "regular expression"),
        (OPTION + "      type: integer\n      pattern: x", 6, "is for text"),
        (OPTION + "      type: integer\n      default: x", 6, "must be an integer"),
        (OPTION + "      type: integer\n      default: true", 6, "must be an integer"),
        (OPTION + "      type: boolean\n      default: 1", 6, "must be a boolean"),
        (OPTION + "      type: array\n      default: 1", 6, "must be a list"),
        (OPTION + "      enum: [a, b]\n      default: c", 6, "one of 'a', 'b'"),
        (OPTION + "      pattern: ^a\n      default: c", 6, "must match ^a"),
        (OPTION + "      enum: []", 5, "is empty"),
        (OPTION + "      required: true\n      default: c", 6, "only one"),
        ("command: x\nschema:\n  positional:\n    - {type: string}", 4, "no 'name'"),
        ("command: x\nschema:\n  positional:\n    - name: a\n      type: boolean", 5, "boolean"),
        (
            "command: x\nschema:\n  positional:\n    - {name: a, type: array}\n    - {name: b}",
            4,
            "only the last",
        ),
        (OPTION + "      type: string\n  positional: [{name: a}]", 6, "two parameters"),
        ("command: x\nrecipes:\n  list: {}", 3, "already means something"),
        ("command: x\nrecipes:\n  r:\n    preset: {q: 1}", 4, "no parameter named 'q'"),
        ("command: x\nrecipes:\n  r:\n    params:\n      q: {}", 5, "no parameter named 'q'"),
        (
            "command: x\nschema: {positional: [{name: u, required: true}]}\nrecipes:\n  r: {}",
            4,
            "neither presets 'u'",
        ),
        (
            OPTION + "      type: integer\nrecipes:\n  r:\n    preset:\n      a: x",
            9,
            "must be an integer",
        ),
    ],
)
def test_what_does_not_hold_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        read_command("t.yaml", text.encode())
    assert reason in caught.value.reason
    assert caught.value.line == line


def test_a_file_that_is_not_text_is_told_with_its_line() -> None:
    with pytest.raises(DefinitionError, match="UTF-8") as caught:
        read_command("t.yaml", b"name: x\ncommand: \xff")
    assert caught.value.line == 2


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(DefinitionError, match="larger than"):
        read_command("t.yaml", b"#" * 2_000_000)


def test_yaml_cannot_make_objects() -> None:
    text = b"command: !!python/object/apply:os.system ['true']"
    with pytest.raises(DefinitionError):
        read_command("t.yaml", b"command: x\ntimeout: !!python/object/apply:os.getpid []")
    assert read_command("t.yaml", text).program == ("true",)


def test_aliases_that_multiply_cost_nothing() -> None:
    lines = ["a0: &a0 [x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]" for n in range(1, 30)
    ]
    with pytest.raises(DefinitionError, match="unknown key"):
        read_command("t.yaml", "\n".join(lines).encode())
