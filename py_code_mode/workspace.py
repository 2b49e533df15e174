"""Finds and reads a ``.code-mode`` folder's configuration.

The file may only strengthen isolation that the caller asked for; an argument that was passed wins
over the file, which wins over the default.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from py_code_mode.errors import ConfigError, brief

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import yaml

    from py_code_mode.sandbox.policy import Policy

FOLDER = ".code-mode"
FILE = "config.yaml"
#: The folder in it with the sessions on record.
SESSIONS = "sessions"
_LATER = {"tools": "approval rules are not enforced by this version, so none can be promised"}
#: Bytes of a file of settings, and seconds of a timeout: a lifetime, which clocks can still add.
MAX_FILE = 1 << 20
MAX_TIMEOUT = 1e9
_KNOWN = ("deps", "executor", "policy", "timeout")
#: A name of a package, in which ``*`` and ``?`` stand for others (PEP 508, less the rest).
_PACKAGES = re.compile(r"[A-Za-z0-9*?](?:[A-Za-z0-9._*?-]*[A-Za-z0-9*?])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceConfig:
    """What a ``config.yaml`` says; None where it is silent.

    Attributes:
        executor: name of an executor.
        timeout: seconds a run may take; `math.inf` where the file says ``null``.
        policy: the ``policy:`` mapping as written; its values hold.
        allowed_deps: names and patterns of the packages that guest code may add.
        path: the file.
    """

    executor: str | None = None
    timeout: float | None = None
    policy: Mapping[str, object] | None = field(default=None, hash=False)
    allowed_deps: tuple[str, ...] | None = None
    path: Path = field(default=Path(FILE), compare=False)

    def required_policy(self, passed: Policy | None = None) -> Policy | None:
        """The policy that is required: what was passed, strengthened by the file's; None if none.

        Relative paths of the file are relative to the folder that the workspace is in: the
        workspace itself is never shown to a sandbox.

        Raises:
            ConfigError: it does not hold, or reaches into the workspace.
        """
        policy = passed
        if self.policy is not None:
            from py_code_mode.sandbox.policy import Policy

            source, folder = str(self.path), self.path.parent.parent
            if passed is None:
                policy = Policy.from_settings(self.policy, source=source, folder=folder)
            else:
                policy = passed.strengthened_by(self.policy, source=source, folder=folder)
        if policy is not None:
            check_apart((*policy.read, *policy.write), self.path.parent)
        return policy


def find_workspace(start: Path) -> Path | None:
    """The nearest ``.code-mode`` folder in `start` or a folder above it."""
    for folder in (start, *start.parents):
        candidate = folder / FOLDER
        if candidate.is_dir():
            return candidate
    return None


def check_apart(granted: Iterable[Path], workspace: Path, *, source: str = "policy") -> None:
    """See that what a sandbox shows does not overlap the workspace, which is host only.

    Code that could write there would choose what runs on the host next time. A workspace that does
    not exist hides nothing.

    Args:
        source: what grants it: a file, an option, or ``workdir``, of which there is only one.

    Raises:
        ConfigError: a path is beneath the workspace, or above it.
    """
    kept = workspace.resolve()
    if not kept.exists():
        return
    for path in granted:
        place = path.resolve()
        if place.is_relative_to(kept):
            reason = f"{place} is part of the workspace {kept}, which no sandbox may see"
        elif kept.is_relative_to(place):
            reason = f"{place} holds the workspace {kept}, which no sandbox may see: "
            if source == "workdir":
                reason += f"name a folder beside it, such as {place / 'work'}"
            else:
                reason += "name the folders and files in it that are needed"
        else:
            continue
        raise ConfigError(source, f"{reason}. Data for code belongs outside, or in artifacts")


def read_config(base: Path) -> WorkspaceConfig:
    """Read a workspace's ``config.yaml``; a missing file says nothing.

    Raises:
        ConfigError: it cannot be read, or says what cannot be done; nothing is guessed.
    """
    path = base.absolute() / FILE
    try:
        text = _read(path)
    except FileNotFoundError:
        return WorkspaceConfig(path=path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from error
    loaded = _parsed(path, text)
    if loaded is None:
        return WorkspaceConfig(path=path)
    if not isinstance(loaded, dict):
        raise ConfigError(str(path), "must be a mapping, such as `timeout: 60`")
    settings = cast("dict[Any, object]", loaded)
    for key in settings:
        if key in _LATER:
            raise ConfigError(str(path), f"`{key}`: {_LATER[key]}; remove it to go on without")
        if key not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise ConfigError(str(path), f"{brief(key)} is not a setting; known: {known}")
    config = WorkspaceConfig(
        executor=_executor(path, settings.get("executor")),
        timeout=_timeout(path, settings) if "timeout" in settings else None,
        policy=_policy(path, settings["policy"]) if "policy" in settings else None,
        allowed_deps=_allowed_deps(path, settings.get("deps")),
        path=path,
    )
    config.required_policy()  # what does not hold is told now
    return config


def _read(path: Path) -> str:
    """The text of a file; a pipe, or whatever else is not one, is not waited for."""

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=open_at_once) as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > MAX_FILE:
            raise OSError(f"it has {status.st_size} bytes, the limit is {MAX_FILE}")
        return opened.read(MAX_FILE).decode("utf-8")


def _parsed(path: Path, text: str) -> object:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(path, node)
        return cast("object", loader.construct_document(node))
    # what has the form of a date, or of a number, and is none, is any of the last two
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(path), f"is not YAML: {error}") from error
    finally:
        loader.dispose()


def _check_keys(path: Path, document: yaml.Node) -> None:
    """Refuse a key that is given twice, of which YAML would take the last (YAML 1.2, 3.2.1.3)."""
    import yaml

    waiting, seen = [document], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        children = cast("list[Any]", node.value)
        if not isinstance(node, yaml.MappingNode):
            waiting += children
            continue
        keys = set[tuple[str, str]]()
        for key, value in children:
            waiting += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            word = key.tag, cast("str", key.value)
            if word in keys:
                line = key.start_mark.line + 1
                raise ConfigError(str(path), f"{brief(word[1])} is given twice, in line {line}")
            keys.add(word)


def _executor(path: Path, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise ConfigError(
        str(path), f"`executor` must be a name, such as subprocess, not {brief(value)}"
    )


def _timeout(path: Path, settings: dict[Any, object]) -> float:
    value = settings["timeout"]
    if value is None:
        return math.inf
    is_flag = isinstance(value, bool)
    if isinstance(value, int | float) and not is_flag and 0 < value <= MAX_TIMEOUT:
        return float(value)
    raise ConfigError(
        str(path),
        f"`timeout` must be seconds above 0, at most {MAX_TIMEOUT:.0f}, or null for no limit, not "
        f"{brief(value)}",
    )


def _policy(path: Path, value: object) -> Mapping[str, object]:
    """The mapping; `policy:` without one asks for the default policy."""
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, dict):
        reason = "`policy` must be a mapping, such as `policy: {network: none}`"
        raise ConfigError(str(path), reason)
    return MappingProxyType(cast("dict[str, object]", value))


def _allowed_deps(path: Path, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(str(path), "`deps` must be a mapping, such as `deps: {allow: [numpy]}`")
    settings = cast("dict[Any, object]", value)
    for key in settings:
        if key != "allow":
            reason = f"`deps`: {brief(key)} is not a setting; known: allow"
            raise ConfigError(str(path), reason)
    allowed = settings.get("allow")
    if allowed is None:
        return None
    if not isinstance(allowed, list):
        raise ConfigError(str(path), f"`deps.allow` must be a list of names, not {brief(allowed)}")
    found: list[str] = []
    for entry in cast("list[object]", allowed):
        if not isinstance(entry, str) or not _PACKAGES.fullmatch(entry):
            raise ConfigError(
                str(path),
                f"`deps.allow`: {brief(entry)} is not the name of a package, or a pattern such as "
                "types-*; versions are not compared",
            )
        found.append(entry)
    return tuple(found)
