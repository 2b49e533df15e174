"""The public names: one list, told the same way in all places that need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import cast

import pytest

import py_code_mode

SOURCE = Path(py_code_mode.__file__).read_text("utf-8")


def names_for_type_checkers() -> dict[str, str]:
    """The names imported under ``if TYPE_CHECKING``, each with its module."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.module is not None
                found |= {alias.name: statement.module for alias in statement.names}
    return found


def lazy_names() -> dict[str, str]:
    """The table by which names are imported when they are first used."""
    return cast("dict[str, str]", vars(py_code_mode)["_HOME"])


def test_all_is_sorted_and_names_nothing_twice() -> None:
    assert py_code_mode.__all__ == sorted(set(py_code_mode.__all__))


def test_all_lazy_names_and_type_checkers_names_agree() -> None:
    assert lazy_names() == names_for_type_checkers()
    assert sorted(lazy_names()) == py_code_mode.__all__


@pytest.mark.parametrize("name", py_code_mode.__all__)
def test_public_name_is_the_object_of_its_module(name: str) -> None:
    value: object = getattr(py_code_mode, name)
    assert value is getattr(import_module(lazy_names()[name]), name)
    if isinstance(value, type):
        assert value.__doc__, f"{name} has no docstring"


def test_dir_and_star_import_give_the_public_names() -> None:
    assert dir(py_code_mode) == py_code_mode.__all__
    code = "from py_code_mode import *; import py_code_mode; assert Session is py_code_mode.Session"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Sessions"):
        getattr(py_code_mode, "Sessions")  # noqa: B009 - a type checker would refuse the name
