"""Which store stands behind which library of a workspace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from py_code_mode.arguments import path_of
from py_code_mode.artifacts import Artifacts
from py_code_mode.deps import Requirements
from py_code_mode.stores import FileStore, MemoryStore, Store
from py_code_mode.workflows import WorkflowLibrary

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FileStorage", "MemoryStorage", "StorageBackend"]


class StorageBackend(ABC):
    """The libraries of one workspace; each is thread-safe, blocks, and is the same at every call.

    Several sessions, and several processes, may share one.
    """

    @abstractmethod
    def get_workflow_library(self) -> WorkflowLibrary:
        """The workflows."""

    @abstractmethod
    def get_artifact_store(self) -> Artifacts:
        """The artifacts."""

    @abstractmethod
    def get_deps_store(self) -> Requirements:
        """The configured requirements."""

    @abstractmethod
    def get_tool_store(self) -> Store:
        """The tools' definitions by file name: ``curl.yaml``, ``text.py``."""


class _Stored(StorageBackend):
    """Libraries over a store for each."""

    def __init__(
        self, *, tools: Store, workflows: Store, artifacts: Store, requirements: Store
    ) -> None:
        self._tools = tools
        self._workflows = WorkflowLibrary(workflows)
        self._artifacts = Artifacts(artifacts)
        self._deps = Requirements(requirements)

    def get_workflow_library(self) -> WorkflowLibrary:
        return self._workflows

    def get_artifact_store(self) -> Artifacts:
        return self._artifacts

    def get_deps_store(self) -> Requirements:
        return self._deps

    def get_tool_store(self) -> Store:
        return self._tools


class FileStorage(_Stored):
    """A workspace in a folder: ``tools/, workflows/, artifacts/`` and ``requirements.txt``.

    A missing folder is an empty workspace; what is needed of it is made at the first write. The
    four must not be links, and nothing outside the folder is read, written or deleted.

    Args:
        base_path: ``~`` stands for the home folder, and ``.`` for the current one.

    Raises:
        ConfigError: nothing can have this path, such as an empty one.
    """

    def __init__(self, base_path: str | Path) -> None:
        # Absolute, so that it stays the same folder when the process changes its own.
        self._base_path = path_of("base_path", base_path).absolute()
        super().__init__(
            tools=FileStore(self._base_path, "tools"),
            workflows=FileStore(self._base_path, "workflows"),
            artifacts=FileStore(self._base_path, "artifacts"),
            requirements=FileStore(self._base_path),
        )

    @property
    def base_path(self) -> Path:
        """The folder, absolute; it may not exist yet."""
        return self._base_path

    def __repr__(self) -> str:
        return f"FileStorage(base_path={str(self._base_path)!r})"


class MemoryStorage(_Stored):
    """A workspace that lasts as long as this object."""

    def __init__(self) -> None:
        super().__init__(
            tools=MemoryStore(),
            workflows=MemoryStore(),
            artifacts=MemoryStore(),
            requirements=MemoryStore(),
        )

    def __repr__(self) -> str:
        return f"<MemoryStorage at {id(self):#x}>"
