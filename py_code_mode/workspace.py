"""Finds and reads a ``.code-mode`` folder's configuration.

The file may only strengthen isolation that the caller asked for; an argument that was passed wins
over the file, which wins over the default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from py_code_mode.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ".code-mode"
FILE = "config.yaml"
_LATER = {
    "policy": "sandbox policies are not enforced by this version, so none can be promised",
    "tools": "approval rules are not enforced by this version, so none can be promised",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceConfig:
    """What a ``config.yaml`` says; None where it is silent.

    Attributes:
        executor: name of an executor.
        timeout: seconds a run may take; `math.inf` where the file says ``null``.
    """

    executor: str | None = None
    timeout: float | None = None


def find_workspace(start: Path) -> Path | None:
    """The nearest ``.code-mode`` folder in `start` or a folder above it."""
    for folder in (start, *start.parents):
        candidate = folder / FOLDER
        if candidate.is_dir():
            return candidate
    return None


def read_config(base: Path) -> WorkspaceConfig:
    """Read a workspace's ``config.yaml``; a missing file says nothing.

    Raises:
        ConfigError: it cannot be read, or says what cannot be done; nothing is guessed.
    """
    path = base / FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return WorkspaceConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from error

    import yaml

    try:
        loaded: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is not YAML: {error}") from error
    if loaded is None:
        return WorkspaceConfig()
    if not isinstance(loaded, dict):
        raise ConfigError(str(path), "must be a mapping, such as `timeout: 60`")
    settings = cast("dict[Any, object]", loaded)
    for key in settings:
        if key in _LATER:
            raise ConfigError(str(path), f"`{key}`: {_LATER[key]}; remove it to go on without")
        if key not in ("executor", "timeout"):
            raise ConfigError(str(path), f"`{key}` is not a setting; known: executor, timeout")
    return WorkspaceConfig(
        executor=_executor(path, settings.get("executor")),
        timeout=_timeout(path, settings) if "timeout" in settings else None,
    )


def _executor(path: Path, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ConfigError(str(path), f"`executor` must be a name, such as subprocess, not {value!r}")


def _timeout(path: Path, settings: dict[Any, object]) -> float:
    value = settings["timeout"]
    if value is None:
        return math.inf
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise ConfigError(str(path), f"`timeout` must be seconds above 0, or null, not {value!r}")
