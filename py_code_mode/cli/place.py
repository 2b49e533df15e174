"""Where the code of a command runs, and what it may do there: a block of options, told once."""

# Without `from __future__ import annotations`: typer reads the annotations.
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import typer

from py_code_mode.cli.options import (
    AllowHost,
    Base,
    Executor,
    Memory,
    NoSandbox,
    Read,
    Sync,
    Timeout,
    Workdir,
    Write,
    workspace,
)
from py_code_mode.errors import ConfigError
from py_code_mode.workspace import WorkspaceConfig, check_apart

#: Entries of a script's folder that are shown one by one where it cannot be shown as a whole.
MAX_ENTRIES: Final = 200
_DEFAULT: Final = "subprocess"
#: Options and the key of a policy that each is about.
_KEYS: Final = {
    "--read": "read",
    "--write": "write",
    "--allow-host": "network",
    "--memory": "memory",
}
_NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a cell runs, and for how long at most.

    Attributes:
        executor: None means what the workspace says, else the subprocess executor.
        timeout: seconds; None means what the workspace says, else no limit.
        workdir: None means a new folder, removed at the end.
        sync: install requirements.txt at the start.
        grants: what the options say of the policy, by its keys; nothing: none is required.
        is_sandboxed: whether to have a sandbox at all.
    """

    base: Path
    executor: str | None = None
    timeout: float | None = None
    workdir: Path | None = None
    sync: bool = True
    grants: Mapping[str, object] = field(default_factory=lambda: _NOTHING)
    is_sandboxed: bool = True

    def executor_options(self, said: WorkspaceConfig, file: Path | None) -> tuple[str, Any]:
        """The name of the executor, and its options.

        Args:
            said: by the workspace's file.
            file: a script that is run, whose folder is shown.

        Raises:
            ConfigError: the options ask for what the executor, or the workspace's file, refuses.
        """
        name = self.executor or said.executor or _DEFAULT
        limit = self.timeout if self.timeout is not None else said.timeout
        options: dict[str, Any] = {
            "default_timeout": None if limit is None or math.isinf(limit) else limit
        }
        shown = around(file, self.base) if file is not None else ()
        if self.grants or said.policy is not None:
            if not self.is_sandboxed:
                source = str(said.path) if said.policy is not None else "--no-sandbox"
                raise ConfigError(source, "a policy is required, and needs a sandbox")
            if name == "in_process":
                source = str(said.path) if said.policy is not None else "--executor in_process"
                raise ConfigError(
                    source, "a policy is required, and code in this process cannot be held to one"
                )
            options["policy"] = self._policy(said, shown)
        elif name == _DEFAULT:
            options["also_read"] = shown
        if not self.is_sandboxed and name == _DEFAULT:
            options["backend"] = "none"
        elif not self.is_sandboxed and name != "in_process":
            reason = f"only the {_DEFAULT} executor has a sandbox to go without, not {name}"
            raise ConfigError("--no-sandbox", reason)
        return name, options

    def _policy(self, said: WorkspaceConfig, shown: tuple[Path, ...]) -> object:
        """What the options grant, within what the workspace's file allows where it speaks of it."""
        from py_code_mode.sandbox.policy import Policy

        file = dict(said.policy or {})
        wanted = {**file, **self.grants}
        if "read" not in file or "read" in self.grants:
            given = self.grants.get("read", ())
            assert isinstance(given, tuple)
            wanted["read"] = [*given, *shown]
        asked = Policy.from_settings(wanted, source="the options", folder=said.path.parent.parent)
        for option in ("--read", "--write"):
            granted = cast("tuple[str | Path, ...]", self.grants.get(_KEYS[option], ()))
            check_apart(map(Path, granted), said.path.parent, source=option)
        made = said.required_policy(asked)
        assert made is not None
        if self.grants:
            self._check_granted(made, said)
        return made

    def _check_granted(self, made: Any, said: WorkspaceConfig) -> None:
        """See that the file has not silently taken back what an option asks for."""
        from py_code_mode.sandbox.policy import Policy

        for option, key in _KEYS.items():
            if key not in self.grants:
                continue
            # alone with this grant, so that nothing else stands in the comparison's way
            alone = Policy.from_settings({key: self.grants[key]}, source=option, folder=Path.cwd())
            if key == "memory":
                is_granted = made.memory == alone.memory
            else:
                is_granted = alone.stronger_or_equal(_widened(made))
            if not is_granted:
                raise ConfigError(
                    option, f"the workspace's {said.path} does not allow this; its `policy.{key}` "
                    "would have to"
                )  # fmt: skip


def _widened(policy: Any) -> Any:
    from py_code_mode.sandbox.policy import Policy

    return Policy(
        read=policy.read, write=policy.write, network=policy.network, memory=None,
        processes=None, cpu=None, file_size=None, disk=None, open_files=None,
    )  # fmt: skip


def around(file: Path, base: Path) -> tuple[Path, ...]:
    """What a script's own folder grants for reading: the folder, where it can be shown as a whole.

    Where the workspace is in it, its entries without the workspace. The file alone where the folder
    is no project's: a home folder, one above it, or one that every session has of its own.
    """
    from py_code_mode.sandbox.view import OWN_FOLDERS

    path = file.resolve()
    if not path.is_file() or str(path).startswith(_KERNEL):
        return ()  # a pipe, as of `run <(command)`: its text is all there is
    folder, home = path.parent, Path(os.path.expanduser("~")).resolve()
    is_above = any(Path(own).is_relative_to(folder) for own in OWN_FOLDERS)
    if is_above or home.is_relative_to(folder) or str(folder) in _COMMON:
        return (path,)
    hidden = base.absolute().resolve()
    if folder.is_relative_to(hidden):
        return ()
    if not (hidden.exists() and hidden.is_relative_to(folder)):
        return (folder,)
    found = [path]
    with os.scandir(folder) as entries:
        for entry in entries:
            # a link would grant what it leads to, wherever that is
            beside = not hidden.is_relative_to(entry.path) and not entry.is_symlink()
            if beside and (entry.is_dir() or entry.is_file()):
                found.append(Path(entry.path))
            if len(found) > MAX_ENTRIES:
                return (path,)
    return tuple(sorted(set(found)))


_COMMON: Final = ("/etc", "/var/tmp")
_KERNEL: Final = ("/dev/", "/proc/", "/sys/")


def takes_place(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes a `Place` as ``place`` the options that make one."""

    @wraps(command, assigned=("__doc__", "__module__", "__name__", "__qualname__"))
    def with_options(
        base: Base = None,
        executor: Executor = None,
        timeout: Timeout = None,
        workdir: Workdir = None,
        sync: Sync = True,
        read: Read = None,
        write: Write = None,
        allow_host: AllowHost = None,
        memory: Memory = None,
        no_sandbox: NoSandbox = False,
        **others: Any,
    ) -> None:
        place = Place(
            base=workspace(base),
            executor=executor,
            timeout=_timeout(timeout),
            workdir=_folder(workdir),
            sync=sync,
            grants=_grants(read, write, allow_host, memory),
            is_sandboxed=not no_sandbox,
        )
        if no_sandbox and place.grants:
            reason = "without a sandbox nothing is held to a policy; leave one of the options out"
            raise typer.BadParameter(reason, param_hint="--no-sandbox")
        command(place=place, **others)

    # typer asks for the signature: the command's own parameters, then ours
    ours = [p for p in inspect.signature(with_options, follow_wrapped=False).parameters.values()
            if p.kind is not p.VAR_KEYWORD]  # fmt: skip
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "place"]
    hints = {p.name: p.annotation for p in (*own, *ours)}
    with_options.__signature__ = inspect.Signature([  # pyright: ignore[reportAttributeAccessIssue]
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *ours)
    ])  # fmt: skip
    with_options.__annotations__ = hints
    return with_options


def _grants(
    read: list[Path] | None, write: list[Path] | None, hosts: list[str] | None, memory: str | None
) -> dict[str, object]:
    """What was given, by the policy's keys; paths by this command's own directory."""
    found: dict[str, object] = {}
    for key, paths in (("read", read), ("write", write)):
        if paths:
            found[key] = tuple(_existing(path, f"--{key}") for path in paths)
    if hosts:
        found["network"] = _checked("network", list(hosts), "--allow-host")
    if memory is not None:
        found["memory"] = _checked("memory", memory, "--memory")
    return found


def _checked(key: str, value: object, option: str) -> object:
    from py_code_mode.sandbox.policy import Policy

    try:
        Policy.from_settings({key: value}, source=option, folder=Path.cwd())
    except ConfigError as error:
        reason = error.reason.removeprefix(f"`policy.{key}`: ")
        raise typer.BadParameter(reason, param_hint=option) from error
    return value


def _existing(path: Path, option: str) -> Path:
    path = path.expanduser().absolute()
    if not path.exists():
        raise typer.BadParameter(f"{path} does not exist", param_hint=option)
    return path


def _timeout(timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise typer.BadParameter("it must be above 0 seconds", param_hint="--timeout")
    return timeout


def _folder(workdir: Path | None) -> Path | None:
    if workdir is None:
        return None
    workdir = workdir.expanduser().absolute()
    if not workdir.is_dir():
        raise typer.BadParameter(f"{workdir} is not a folder", param_hint="--workdir")
    return workdir
