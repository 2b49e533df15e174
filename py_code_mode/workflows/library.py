"""The workflows of a workspace: one readable Python file each, edited by people and by code."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from py_code_mode.errors import (
    CodeModeError,
    InvalidName,
    InvalidWorkflow,
    NotStored,
    StoreError,
    WorkflowNotFound,
)
from py_code_mode.workflows.origin import with_origin, without_origin
from py_code_mode.workflows.workflow import Workflow, check_name, read, write

if TYPE_CHECKING:
    from py_code_mode.results import JsonValue
    from py_code_mode.search import Index
    from py_code_mode.stores import Store

__all__ = ["WorkflowLibrary"]

_SUFFIX = ".py"

# Named here, since inside the class `list` is its method.
_Facts: TypeAlias = "dict[str, JsonValue]"
_Listing: TypeAlias = "list[_Facts]"
_Found: TypeAlias = "list[Workflow | _Broken]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Broken:
    """A file that is no workflow, and why."""

    name: str
    error: CodeModeError
    source: str

    def to_dict(self, *, with_source: bool = True) -> _Facts:
        reason = getattr(self.error, "reason", self.error.message)
        facts: _Facts = {
            "name": self.name,
            "description": "",
            "parameters": [],
            "error": str(reason),
        }
        if with_source:
            facts["source"] = self.source
        return facts


class WorkflowLibrary:
    """Workflows by name, in a store. Thread-safe; its methods block.

    What is edited in the store by other means is seen at the next call. A file that cannot be used
    is listed with the reason as ``error``, and hides no other.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._read: dict[str, tuple[str, Workflow | _Broken]] = {}
        self._index: tuple[dict[str, str], Index] | None = None

    def __repr__(self) -> str:
        return f"WorkflowLibrary({self._store!r})"

    def list(self) -> _Listing:
        """Every workflow as ``name, description, parameters``, sorted by name."""
        return [found.to_dict(with_source=False) for found in self._all()]

    def search(self, query: str, limit: int = 5) -> _Listing:
        """At most `limit` workflows that fit the words of `query`, best first, as in `list`."""
        # Read when first needed: it loads SQLite.
        from py_code_mode.search import Index

        usable = {found.name: found for found in self._all() if isinstance(found, Workflow)}
        texts = {name: _searchable(found) for name, found in usable.items()}
        with self._guard:
            indexed = self._index
        if indexed is None or indexed[0] != texts:
            indexed = (texts, Index(texts.items()))
            with self._guard:
                self._index = indexed
        return [usable[name].to_dict(with_source=False) for name in indexed[1].search(query, limit)]

    def get(self, name: str) -> _Facts | None:
        """One workflow as ``name, description, parameters, source``; None if there is none."""
        try:
            check_name(name)
        except InvalidName:
            return None
        found = self._one(name)
        return found.to_dict() if found else None

    def load(self, name: str) -> Workflow:
        """One workflow, to be run.

        Raises:
            WorkflowNotFound: there is none.
            InvalidWorkflow: its file cannot be used.
        """
        try:
            check_name(name)
        except InvalidName:
            raise WorkflowNotFound(name) from None
        found = self._one(name)
        if found is None:
            raise WorkflowNotFound(name)
        if isinstance(found, _Broken):
            raise found.error
        return found

    def create(
        self, name: str, source: str, description: str, *, origin: str | None = None
    ) -> _Facts:
        """Store a workflow, in place of one by this name, and return it as `get` does.

        Args:
            source: Python that defines ``run``, sync or async, at its top level. It is not run.
            description: what it is for; if empty, what the source's docstring says.
            origin: the isolation of the sandboxed code that wrote it; None where the user did.

        Raises:
            InvalidName: `name` cannot be called as ``workflows.<name>``.
            InvalidWorkflow: the source cannot be used; nothing was stored.
        """
        check_name(name)
        for what, given in (("source", source), ("description", description)):
            if not isinstance(given, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidWorkflow(name, f"its {what} is a {type(given).__name__}, not a str")
        text = write(name, source, description)
        marked = text if origin is None else with_origin(name, text, origin)
        self._store.write(name + _SUFFIX, marked.encode())
        found = _parse(name, marked.encode())
        if isinstance(found, _Broken):
            raise found.error
        return found.to_dict()

    def approve(self, name: str, source: str | None = None) -> bool:
        """Make a workflow that sandboxed code wrote one of the user's own.

        Args:
            source: what was read before it was approved; None approves whatever is there.

        Returns:
            False where it is the user's own already.

        Raises:
            WorkflowNotFound: there is none.
            InvalidWorkflow: its source is another one by now.
        """
        seen = source
        try:
            check_name(name)
            with self._store.lock():
                text = self._store.read(name + _SUFFIX).decode("utf-8-sig")
                if seen is not None and read(name, without_origin(text)[0]).source != seen:
                    raise InvalidWorkflow(name, "it was changed meanwhile; read it again")
                left, origin = without_origin(text)
                was_marked = origin is not None
                while origin is not None:  # code may have written such lines too
                    left, origin = without_origin(left)
                if was_marked:
                    self._store.write(name + _SUFFIX, left.encode())
        except (InvalidName, NotStored):
            raise WorkflowNotFound(name) from None
        except UnicodeDecodeError as error:
            raise InvalidWorkflow(name, "it is not UTF-8") from error
        return was_marked

    def delete(self, name: str) -> bool:
        """Remove a workflow, broken ones too; False if there is none."""
        try:
            check_name(name)
        except InvalidName:
            return False
        return self._store.delete(name + _SUFFIX)

    def _all(self) -> _Found:
        stems = [
            name.removesuffix(_SUFFIX)
            for name in self._store.names()
            # As in Python, an underscore says: not for you.
            if name.endswith(_SUFFIX) and not name.startswith("_") and name != _SUFFIX
        ]
        found = [entry for stem in stems if (entry := self._one(stem)) is not None]
        with self._guard:
            for gone in self._read.keys() - set(stems):
                del self._read[gone]
        return found

    def _one(self, name: str) -> Workflow | _Broken | None:
        try:
            # The version first: what changes between the two lines is read again next time.
            version = self._store.version(name + _SUFFIX)
            if version is None:
                return None
            with self._guard:
                known = self._read.get(name)
            if known is not None and known[0] == version:
                return known[1]
            found = _parse(name, self._store.read(name + _SUFFIX))
        except NotStored:
            return None
        except StoreError as error:
            return _Broken(name=name, error=InvalidWorkflow(name, error.reason), source="")
        with self._guard:
            self._read[name] = (version, found)
        return found


def _parse(name: str, data: bytes) -> Workflow | _Broken:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        invalid = InvalidWorkflow(name, f"line {line}: it is not UTF-8")
        return _Broken(name=name, error=invalid, source=data.decode(errors="backslashreplace"))
    try:
        check_name(name)
        source, origin = without_origin(text)
        if origin is None:
            return read(name, text)
        read(name, text)  # its faults by the lines of the whole file
        return replace(read(name, source), origin=origin)
    except (InvalidName, InvalidWorkflow) as error:
        return _Broken(name=name, error=error, source=text)


def _searchable(workflow: Workflow) -> str:
    words = [workflow.description]
    for parameter in workflow.parameters:
        words += [parameter.name, parameter.description]
    return "\n".join(words)
