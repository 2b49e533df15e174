"""What a session may use of its workspace, and what its own code makes others doubt.

`trust` tells which files others have written; here it is asked at the moments of a session's life,
for the isolation that its code runs in.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from py_code_mode.errors import ConfigError, StoreError
from py_code_mode.origin import UNKNOWN, is_as_strong, is_sandboxed
from py_code_mode.storage import FileStorage, StorageBackend
from py_code_mode.trust import check_link, check_trusted, check_unexposed, expose, unexpose
from py_code_mode.workspace import FILE, SESSIONS, WorkspaceConfig, check_apart, read_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from py_code_mode.execution.executor import Executor


class Admission:
    """The checks of one session; its storage need be no folder, then there is little to check.

    Args:
        workdir: the one that its user gave.
    """

    def __init__(self, storage: StorageBackend, executor: Executor, workdir: Path | None) -> None:
        self._storage = storage
        self._executor = executor
        self._workdir = workdir
        self._exposed_by: str | None = None

    # -- before the code runs

    def check_workspace(self) -> WorkspaceConfig:
        """What the workspace's file says, of a workspace whose tools may be used.

        Raises:
            ConfigError: it asks for a policy that the executor was not given, or the executor's
                reaches into the workspace.
            WorkspaceNotTrusted: somebody else may have written what would run here.
        """
        tools = self._executor.config.tools_folder
        if tools is not None:
            check_trusted(tools, (tools,))
        if not isinstance(self._storage, FileStorage):
            return WorkspaceConfig()
        base = self._storage.base_path
        check_trusted(base, None if tools is None else (base / FILE,))
        said = read_config(base)
        policy = self._executor.policy
        required = said.required_policy(policy)
        if required is not None and (policy is None or not policy.stronger_or_equal(required)):
            check_enforceable(self._executor.name, str(said.path))
            raise ConfigError(
                str(said.path),
                f"its policy is required, and the {self._executor.name} executor was given "
                f"{'none' if policy is None else 'a weaker one'}: use Session.from_base, or "
                "pass policy=read_config(base).required_policy(...)",
            )
        check_apart(self._executor.granted, base)
        return said

    def check_settings(self) -> None:
        """See that no sandboxed code took away the file that asks for a sandbox here.

        Raises:
            WorkspaceNotTrusted: it may have, and this session has none.
        """
        if self.gate is None or not isinstance(self._storage, FileStorage):
            return
        base = self._storage.base_path
        if any(os.path.lexists(base / name) for name in ("tools", "workflows", "requirements.txt")):
            check_unexposed(base, base / FILE)

    # -- of what it uses

    @property
    def gate(self) -> Callable[[str], None] | None:
        """Refuses a part of the workspace that others wrote, to code that would act on this host.

        None where the code is held too well for that; so it is known once the executor has started.
        """
        storage = self._storage
        if not isinstance(storage, FileStorage) or is_as_strong(self._executor.isolation, UNKNOWN):
            return None
        base = storage.base_path
        return lambda part: check_trusted(base, (base / part,))

    def check_record(self, folder: Path, *, is_resumed: bool) -> None:
        """See that nobody else decides where, and what, is on record.

        Args:
            folder: the workspace's `SESSIONS`.
            is_resumed: what is on record there is loaded.

        Raises:
            WorkspaceNotTrusted: sandboxed code, or another user, may do so.
            ConfigError: the record of what is trusted cannot be used.
        """
        check_unexposed(folder.parent, folder)
        check_link(folder)
        gate = self.gate
        if is_resumed and gate is not None:
            gate(SESSIONS)

    # -- of what its own code leaves

    async def expose(self, by: str, *, is_new: bool) -> str | None:
        """See that sandboxed code cannot write to its workspace, and remember where it can write.

        It may make a workspace there, or tools in one: they are not used, neither here nor by later
        sessions, until somebody has looked at them.

        Args:
            by: the session.
            is_new: there is no workspace yet.

        Returns:
            why that could not be remembered, for the session's user; None if it was.
        """
        if not is_sandboxed(self._executor.isolation):
            return None
        workdir = () if self._workdir is None else (self._workdir,)
        policy = self._executor.policy
        writable = workdir if policy is None else (*workdir, *policy.write)
        if not writable:
            return None
        is_within = False
        if isinstance(self._storage, FileStorage):
            if not is_new:
                check_apart(workdir, self._storage.base_path, source="workdir")
            base = self._storage.base_path.resolve()
            is_within = any(base.is_relative_to(place.resolve()) for place in writable)
        self._exposed_by = by
        try:
            # before any code runs: other sessions may find what it makes while this one is open
            await anyio.to_thread.run_sync(partial(expose, writable, by))
        except (ConfigError, StoreError, OSError) as error:
            self._exposed_by = None
            if is_within:
                raise  # its own tools would not be doubted
            return f"what this code leaves for later will not be doubted: {error}"
        return None

    async def unexpose(self) -> None:
        """Remember that the session's code can write nowhere any more; idempotent."""
        by, self._exposed_by = self._exposed_by, None
        if by is None:
            return
        # else the folders stay doubted as if code could write there still
        with suppress(ConfigError, StoreError, OSError):
            await anyio.to_thread.run_sync(unexpose, by)


def check_enforceable(name: str, source: str) -> None:
    """Raise ConfigError where a policy would be promised that an executor cannot keep.

    Args:
        name: of the executor.
        source: who asks for the policy.
    """
    if name == "in_process":
        raise ConfigError(
            source,
            "a policy is required, and code in this process cannot be held to one: use the "
            "subprocess executor, or remove `policy`",
        )
