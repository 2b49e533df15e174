"""All tools of a session: found, listed, searched and called by name.

Promises: an edited file is seen by the next listing or search, and by calls within
`RECHECK_AFTER` seconds; a definition that does not hold is a problem with its line and hides no
other; of two tools with one name, the first is kept and the other is a problem that names both.
"""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import anyio.to_thread

from py_code_mode.arguments import texts_of
from py_code_mode.errors import InvalidName, NotStored, StoreError, ToolError, ToolNotFound
from py_code_mode.search import Index
from py_code_mode.tools.adapters.cli import CommandTool
from py_code_mode.tools.adapters.python import FunctionTool, load_file
from py_code_mode.tools.adapters.threads import Threads
from py_code_mode.tools.definition import read_command
from py_code_mode.tools.tool import DefinitionError, Problem, Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from py_code_mode.results import JsonValue
    from py_code_mode.stores.store import Store

Entry: TypeAlias = "dict[str, JsonValue]"
# Spelt here because `list` is a method in the class below.
Entries: TypeAlias = "list[Entry]"
Names: TypeAlias = "list[str]"

#: Seconds for which a call trusts what was read before: looking at files costs more than calling.
RECHECK_AFTER = 1.0

_YAML = (".yaml", ".yml")
_PYTHON = (".py",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file as it was read."""

    version: str | None
    tools: Sequence[Tool] = ()
    problems: Sequence[Problem] = ()


@dataclass(slots=True)
class _Table:
    """Everything known at one time; replaced as a whole, so a reader never sees a mixture."""

    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    problems: tuple[Problem, ...] = ()
    index: Index | None = None

    def search(self, query: str, limit: int) -> list[Tool]:
        index = self.index
        if index is None:
            # Two threads may both build it: they build the same.
            index = self.index = Index((name, _words(tool)) for name, tool in self.tools.items())
        return [self.tools[name] for name in index.search(query, limit)]


class ToolRegistry:
    """The tools of a store's files, and those that the program added.

    Args:
        store: holds ``*.yaml``, ``*.yml`` and ``*.py`` files; None: there are only added tools.
            Names that begin with an underscore are left alone.
        folder: what programs given as relative paths are relative to.
        gate: raises where the store's files may not be used; asked before new ones are read.
        clock: seconds, only ever growing.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        folder: Path | None = None,
        gate: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._folder, self._clock = store, folder, clock
        self._gate = gate
        self._threads = Threads()
        # Reading files may take long, since Python files run; adding a function must not wait.
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._added: dict[str, Tool] = {}
        self._table = _Table()
        self._checked: float | None = None

    def add(
        self,
        function: Callable[..., object],
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        """Make a Python function a tool; it goes before a file's tool of the same name.

        Raises:
            InvalidName: the name cannot be used, or a function was added by it already.
            InvalidCall: what is given cannot be called, or what is said of it is no text.
        """
        tool = FunctionTool(
            function,
            self._threads,
            name=name,
            description=description,
            tags=texts_of("tags", tags) or None,
        )
        with self._lock:
            if tool.name in self._added:
                raise InvalidName(tool.name, "a tool", "a function was added by this name already")
            self._added[tool.name] = tool
            self._table = self._assembled()

    def add_those_of(self, other: ToolRegistry) -> None:
        """Add the functions that were added to another registry."""
        with other._lock:
            added = dict(other._added)
        with self._lock:
            self._added.update(added)
            self._table = self._assembled()

    async def list(self) -> Entries:
        """All tools, sorted by name: name, description, tags, recipes, parameters."""
        table = await self._fresh()
        return [_entry(tool) for tool in table.tools.values()]

    async def names(self) -> Names:
        """The names of all tools, sorted."""
        return list((await self._fresh()).tools)

    async def search(self, query: str, limit: int = 10) -> Entries:
        """At most `limit` tools that fit the words of `query`, best first; as `list` shows them."""
        await self._fresh()
        table = self._table
        found = await anyio.to_thread.run_sync(table.search, query, limit)
        return [_entry(tool) for tool in found]

    async def describe(self, tool: str) -> Entry:
        """One tool as `list` shows it, and each recipe with the parameters that it takes.

        Raises:
            ToolNotFound: there is none by this name.
        """
        await self._fresh()
        found = self._find(tool)
        entry = _entry(found)
        entry["recipes"] = [
            {
                "name": recipe,
                "description": description,
                "parameters": copy.deepcopy(found.parameters(recipe)),
            }
            for recipe, description in found.recipes.items()
        ]
        return entry

    async def problems(self) -> tuple[Problem, ...]:
        """What is wrong with definitions, by file."""
        return (await self._fresh()).problems

    async def call(
        self,
        tool: str,
        recipe: str | None,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> object:
        """Call a tool, or one of its recipes. Positional arguments follow the schema's order.

        Raises:
            ToolNotFound: no tool, or no recipe, by this name.
            ToolArgumentError: the arguments do not fit; nothing was run.
            ToolFailed: it ran and failed.
            ToolTimeout: it ran too long and was stopped.
            ToolError: its definition does not hold, or its command cannot be started.
        """
        checked = self._checked
        if checked is None or self._clock() - checked > RECHECK_AFTER:
            if checked is not None:
                # Calls that come meanwhile use what is known; only this one pays.
                self._checked = self._clock()
            await self._fresh()
        found = self._table.tools.get(tool)
        if found is None:
            await self._fresh()  # perhaps its file was written just now
            found = self._find(tool)
        if recipe is not None and recipe not in found.recipes:
            raise ToolNotFound(f"{tool}.{recipe}", [f"{tool}.{known}" for known in found.recipes])
        return await found.call(recipe, args, kwargs)

    def _find(self, name: str) -> Tool:
        table = self._table
        found = table.tools.get(name)
        if found is not None:
            return found
        for problem in table.problems:
            # What the file would have defined is not known, but its name is a good guess.
            if PurePosixPath(problem.source).stem.replace("-", "_") == name:
                raise ToolError(name, f"its definition cannot be used: {problem}")
        raise ToolNotFound(name, list(table.tools))

    async def _fresh(self) -> _Table:
        """What is known after all changed files were read again."""
        if self._store is None:
            self._checked = self._clock()
            return self._table
        return await anyio.to_thread.run_sync(self._refresh, self._store)

    def _refresh(self, store: Store) -> _Table:
        with self._reading:
            began = self._clock()
            versions = {
                name: store.version(name)
                for name in store.names()
                if name.endswith((*_YAML, *_PYTHON)) and not name.startswith(("_", "."))
            }
            if self._gate is not None and any(map(self._is_new, versions, versions.values())):
                # After the listing: what comes later is looked at by a later refresh.
                self._gate()
            files = {
                name: self._files[name]
                if not self._is_new(name, version)
                else self._read(store, name, version)
                for name, version in versions.items()
            }
            with self._lock:
                if files != self._files:
                    self._files = files
                    self._table = self._assembled()
                self._checked = began
                return self._table

    def _is_new(self, name: str, version: str | None) -> bool:
        known = self._files.get(name)
        return known is None or version is None or known.version != version

    def _read(self, store: Store, name: str, version: str | None) -> _File:
        try:
            # The version is older than the text, never younger: a change between is seen later.
            text = store.read(name)
            if name.endswith(_PYTHON):
                tools, problems = load_file(name, store.location(name), text, self._threads)
                return _File(version=version, tools=tools, problems=problems)
            command = CommandTool(read_command(name, text), self._folder)
            return _File(version=version, tools=[command])
        except DefinitionError as error:
            problem = Problem(source=name, line=error.line, reason=error.reason)
        except NotStored:
            return _File(version=None)  # removed meanwhile
        except StoreError as error:
            problem = Problem(source=name, line=None, reason=f"could not be read: {error}")
            version = None  # perhaps it can be later
        return _File(version=version, problems=[problem])

    def _assembled(self) -> _Table:
        """One table of all that is known; the lock is held."""
        tools = dict(self._added)
        problems: list[Problem] = []
        for name, file in self._files.items():
            problems += file.problems
            for tool in file.tools:
                first = tools.setdefault(tool.name, tool)
                if first is not tool:
                    owner = first.source or "a function that the program added"
                    reason = f"the name {tool.name!r} is taken by {owner}"
                    if first.source is not None:
                        reason += f" (both {owner} and {name} define it)"
                    problems.append(Problem(source=name, line=tool.line, reason=reason))
        return _Table(dict(sorted(tools.items())), tuple(problems))


def _entry(tool: Tool) -> Entry:
    return {
        "name": tool.name,
        "description": tool.description,
        "tags": list(tool.tags),
        "recipes": [
            {"name": recipe, "description": description}
            for recipe, description in tool.recipes.items()
        ],
        # A copy: whoever asked may change it.
        "parameters": copy.deepcopy(tool.parameters()),
    }


def _words(tool: Tool) -> str:
    """What a search looks at besides the name."""
    words = [tool.description, *tool.tags]
    for recipe, description in tool.recipes.items():
        words += [recipe, description]
    properties = tool.parameters().get("properties")
    if isinstance(properties, dict):
        for name, schema in properties.items():
            words.append(name)
            described = schema.get("description") if isinstance(schema, dict) else None
            if isinstance(described, str):
                words.append(described)
    return "\n".join(words)
