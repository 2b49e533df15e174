"""Checks of what a caller passes: told by the argument's name, before anything has been done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from py_code_mode.errors import ConfigError, InvalidCall, brief


def check(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise InvalidCall, a TypeError, where a value is of none of these classes.

    Args:
        name: of the argument.
        wanted: what it must be, in words that go on after "must be".
    """
    if not isinstance(value, kinds):
        raise InvalidCall(name, f"must be {wanted}, not {brief(value)}")


def check_type(target: str, name: str, value: object, kinds: type | tuple[type, ...]) -> None:
    """Raise InvalidCall, a TypeError, where a value is of none of these classes.

    Args:
        target: what was called.
        name: of the argument, or of a field of it.
    """
    if not isinstance(value, kinds):
        each = kinds if isinstance(kinds, tuple) else (kinds,)
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in each)
        raise InvalidCall(target, f"{name} must be {wanted}, not {brief(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ConfigError, a ValueError, where a value is none of a few words."""
    if value not in choices:
        raise ConfigError(name, f"must be one of {', '.join(choices)}, not {brief(value)}")


def check_text(name: str, value: object) -> None:
    """Raise InvalidCall where a value is no text."""
    check(name, value, str, "a str")


def check_flag(name: str, value: object) -> None:
    """Raise InvalidCall where a value is neither True nor False: ``"no"`` would count as true."""
    check(name, value, bool, "True or False")


def check_count(name: str, value: object) -> None:
    """Raise where a value is no whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidCall(name, f"must be a number from 0, not {brief(value)}")
    if value < 0:
        raise ConfigError(name, f"must be a number from 0, not {brief(value)}")


def check_callable(name: str, value: object) -> None:
    """Raise InvalidCall where a value is neither None nor something to call."""
    if value is not None and not callable(value):
        raise InvalidCall(name, f"must be a function or None, not {brief(value)}")


def texts_of(name: str, value: object) -> tuple[str, ...]:
    """Texts as a tuple; one text alone, whose letters are texts too, is refused.

    Raises:
        InvalidCall: (a TypeError) it is no collection of texts.
    """
    if isinstance(value, str):
        raise InvalidCall(name, f"must be a tuple such as ({brief(value)},), not {brief(value)}")
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise InvalidCall(name, f"must be a tuple of str, not {brief(cast('object', value))}")
    found = tuple(cast("Iterable[object]", value))
    for text in found:
        if not isinstance(text, str):
            raise InvalidCall(name, f"must be a tuple of str, and {brief(text)} is none")
    return cast("tuple[str, ...]", found)


def path_of(name: str, value: object) -> Path:
    """A path, ``~`` being the home folder; whether it exists is not asked.

    Raises:
        InvalidCall: (a TypeError) it is none.
        ConfigError: (a ValueError) nothing can have it.
    """
    text = value
    if isinstance(value, os.PathLike):
        text = os.fspath(cast("os.PathLike[str]", value))
    if not isinstance(text, str):
        raise InvalidCall(name, f"must be a path, not {brief(cast('object', value))}")
    if not text:  # as an unset variable is; pathlib would take the current folder
        raise ConfigError(name, "is empty; `.` is the current folder")
    try:
        if b"\0" in os.fsencode(text):
            raise ConfigError(name, f"{brief(text)} cannot be a path: it has a NUL in it")
        return Path(text).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:
        raise ConfigError(name, f"{brief(text)} cannot be a path: {error}") from error
