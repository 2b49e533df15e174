"""THE table: which names guest code finds, and which host service stands behind each.

A method is written once, here: its signature and docstring are what guest code sees, its body is
what the host does. No executor knows any of it.
"""

from __future__ import annotations

import builtins
import inspect
import json
import unicodedata
from dataclasses import asdict
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio

from py_code_mode.errors import (
    DependencyNotAllowed,
    InvalidCall,
    InvalidName,
    WorkflowNotApproved,
)
from py_code_mode.guest.variables import is_large
from py_code_mode.handles.info import check_name as check_handle_name
from py_code_mode.handles.info import shown
from py_code_mode.origin import is_as_strong, origin_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from py_code_mode.artifacts import Artifacts
    from py_code_mode.deps.dependencies import Dependencies
    from py_code_mode.execution.executor import NamespaceTable
    from py_code_mode.handles import SessionHandles
    from py_code_mode.tools.registry import ToolRegistry
    from py_code_mode.workflows import WorkflowLibrary


class Service:
    """What stands behind one namespace: its public coroutine methods.

    `hidden` methods can be called by the guest's proxies and are not shown to people; `errors` are
    the classes (of `py_code_mode.guest.errors`) that become attributes of the namespace.
    """

    hidden: ClassVar[frozenset[str]] = frozenset()
    errors: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.methods: dict[str, tuple[Callable[..., Awaitable[Any]], inspect.Signature]] = {}
        for name, signature in _signatures(type(self)).items():
            self.methods[name] = getattr(self, name), signature


@cache
def _signatures(service: type[Service]) -> dict[str, inspect.Signature]:
    """The signatures of its methods without ``self``; the same for all instances."""
    found: dict[str, inspect.Signature] = {}
    for name, method in _public(service):
        signature = inspect.signature(method)
        found[name] = signature.replace(parameters=[*signature.parameters.values()][1:])
    return found


@cache
def _public(service: type[Service]) -> list[tuple[str, Callable[..., Any]]]:
    return [
        (name, method)
        for name, method in inspect.getmembers(service, inspect.iscoroutinefunction)
        if not name.startswith("_")
    ]


class Tools(Service):
    """Functions and programs of the host: tools.<name>(...), tools.<name>.<recipe>(...)."""

    hidden = frozenset({"names", "recipes"})
    errors = ("ToolArgumentError", "ToolError", "ToolFailed", "ToolNotFound", "ToolTimeout")

    def __init__(self, registry: ToolRegistry) -> None:
        super().__init__()
        self._registry = registry

    async def list(self) -> list[dict[str, Any]]:
        """All tools: name, description, tags, parameters, recipes."""
        return [dict(entry) for entry in await self._registry.list()]

    async def search(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """The tools that fit the words of a query, best first."""
        return [dict(entry) for entry in await self._registry.search(query, limit)]

    async def names(self) -> list[str]:
        return await self._registry.names()

    def call(
        self, target: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Awaitable[object]:
        """Call a tool by name, or a recipe as ``name.recipe``: both come as methods."""
        tool, _, recipe = target.partition(".")
        return self._registry.call(tool, recipe or None, args, kwargs)

    async def recipes(self, tool: str) -> list[dict[str, Any]]:
        entry = await self._registry.describe(tool)
        return cast("list[dict[str, Any]]", entry["recipes"])


class Workflows(Service):
    """Stored recipes of code: workflows.<name>(...) runs one, workflows.create(...) keeps one."""

    hidden = frozenset({"source"})
    errors = ("InvalidWorkflow", "WorkflowError", "WorkflowNotApproved", "WorkflowNotFound")

    def __init__(
        self,
        library: WorkflowLibrary,
        isolation: str | None = None,
        gate: Callable[[str], None] | None = None,
    ) -> None:
        """Make it for the host, or for a guest.

        Args:
            isolation: that of the code that asks; None where the host itself does.
            gate: is given the file of a workflow that is about to be run, by its place in the
                workspace; raises where it may not be.
        """
        super().__init__()
        self._library = library
        self._isolation = isolation
        self._gate = gate

    async def list(self) -> list[dict[str, Any]]:
        """All workflows: name, description, parameters."""
        return await anyio.to_thread.run_sync(self._library.list)

    async def search(self, query: str, limit: int = 5) -> list[dict[str, Any]]:
        """The workflows that fit the words of a query, best first."""
        return await anyio.to_thread.run_sync(self._library.search, query, limit)

    async def get(self, name: str) -> dict[str, Any] | None:
        """One workflow with its source, or None."""
        found = await anyio.to_thread.run_sync(self._library.get, name)
        if found is not None:
            await self._check_approved(name, cast("str | None", found.get("origin")))
        return found

    async def create(self, name: str, source: str, description: str) -> dict[str, Any]:
        """Keep `source`, which defines ``run(...)`` or ``async run(...)``, for this and later."""
        origin = origin_of(self._isolation)
        create = partial(self._library.create, name, source, description, origin=origin)
        return await anyio.to_thread.run_sync(create)

    async def delete(self, name: str) -> bool:
        """Remove a workflow; False if there is none."""
        return await anyio.to_thread.run_sync(self._library.delete, name)

    async def source(self, name: str) -> str:
        found = await anyio.to_thread.run_sync(self._library.load, name)
        await self._check_approved(name, found.origin)
        return found.source

    async def _check_approved(self, name: str, origin: str | None) -> None:
        # trust does not flow upward: what a sandboxed guest left is not run with more rights
        asks = self._isolation
        if origin is not None and asks is not None and not is_as_strong(asks, origin):
            raise WorkflowNotApproved(name, origin, asks)
        if self._gate is not None:
            await anyio.to_thread.run_sync(self._gate, f"workflows/{name}.py")


class ArtifactFiles(Service):
    """Data that outlives the session: artifacts.save(name, data), artifacts.load(name)."""

    errors = ("ArtifactError", "ArtifactNotFound", "InvalidArtifact")

    def __init__(self, artifacts: Artifacts) -> None:
        super().__init__()
        self._artifacts = artifacts

    async def list(self) -> list[dict[str, Any]]:
        """All artifacts: name, path, description, metadata, created_at, and more."""
        return await anyio.to_thread.run_sync(self._artifacts.list)

    async def save(
        self,
        name: str,
        data: Any,
        description: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store JSON values, text, bytes, a DataFrame, an array or a display; replaces."""
        return await anyio.to_thread.run_sync(
            self._artifacts.save, name, data, description, metadata
        )

    async def load(self, name: str) -> Any:
        """What was stored, of the same type."""
        return await anyio.to_thread.run_sync(self._artifacts.load, name)

    async def delete(self, name: str) -> None:
        """Remove an artifact."""
        await anyio.to_thread.run_sync(self._artifacts.delete, name)

    async def exists(self, name: str) -> bool:
        """Whether there is an artifact of this name."""
        return await anyio.to_thread.run_sync(self._artifacts.exists, name)


class Deps(Service):
    """Packages of this session: deps.add("httpx>=0.27") installs one."""

    errors = (
        "DependencyError",
        "DependencyNotAllowed",
        "InvalidRequirement",
        "RuntimeDepsDisabled",
    )

    def __init__(
        self,
        dependencies: Dependencies,
        isolation: str | None = None,
        allowed: Collection[str] | None = None,
    ) -> None:
        """Make it for the host, or for a guest.

        Args:
            isolation: that of the code that asks; None where the host itself does.
            allowed: names and patterns of what may be added; None means anything.
        """
        super().__init__()
        self._dependencies = dependencies
        self._origin = origin_of(isolation)
        self._allowed = allowed

    async def list(self) -> list[str]:
        """The configured requirements."""
        return await self._dependencies.list()

    async def add(self, package: str) -> dict[str, Any]:
        """Install a package, importable at once: keys installed, already_present, failed."""
        if self._allowed is not None:
            refused = await self._dependencies.refused(package, self._allowed)
            if refused is not None:
                raise DependencyNotAllowed(refused, [*self._allowed])
        return await self._dependencies.add(package, origin=self._origin)

    async def remove(self, package: str) -> dict[str, Any]:
        """Forget a package: keys removed, not_found, failed, removed_from_config."""
        return await self._dependencies.remove(package)

    async def sync(self) -> dict[str, Any]:
        """Install all configured requirements: keys installed, already_present, failed."""
        return await self._dependencies.sync()


class Handles(Service):
    """Values by name, kept beyond a reset: handles.put(name, value), handles.get(name)."""

    hidden = frozenset({"drop", "fetch", "hold", "keep"})
    errors = ("HandleError", "HandleNotFound", "HandlesFull", "InvalidName", "ValueNotPortable")

    def __init__(self, handles: SessionHandles) -> None:
        super().__init__()
        self._handles = handles

    async def list(self) -> list[dict[str, Any]]:
        """All handles, most recently used first: name, type, and where: host or guest."""
        return [self._entry(name) for name in self._handles.handle_names()]

    async def snapshot(self, name: str) -> dict[str, Any]:
        """The description of a value: type, shape, columns, samples."""
        text = await anyio.to_thread.run_sync(self._handles.snapshot, name)
        return cast("dict[str, Any]", json.loads(text))

    async def info(self, name: str) -> dict[str, Any]:
        """What made a value: kind, run_id, call, parents; and its size in bytes."""
        info = self._handles.info(name)
        origin = asdict(info.origin) if info.origin is not None else {}
        return {**self._entry(name), **origin, "bytes": info.nbytes}

    def _entry(self, name: str) -> dict[str, Any]:
        where = "host" if self._handles.is_here(name) else "guest"
        return {"name": name, "type": self._handles.info(name).type_name, "where": where}

    async def fetch(self, name: str) -> object:
        return await anyio.to_thread.run_sync(self._handles.get, name)

    async def keep(self, name: str, value: object, overwrite: bool = False) -> str:
        check_name(name)
        put = partial(self._handles.put_for_guest, name, value, overwrite)
        return await anyio.to_thread.run_sync(put)

    async def hold(
        self, name: str, type_name: str, snapshot: dict[str, Any], overwrite: bool = False
    ) -> str:
        check_name(name)
        return self._handles.hold_for_guest(name, type_name, snapshot, overwrite)

    async def drop(self, name: str) -> None:
        await anyio.to_thread.run_sync(self._handles.delete, name)


_SERVICES: Mapping[str, type[Service]] = {
    "tools": Tools,
    "workflows": Workflows,
    "artifacts": ArtifactFiles,
    "deps": Deps,
    "handles": Handles,
}
#: Names that guest code finds besides the namespaces.
RESERVED = frozenset({"display"})
_MAX_NAME = 200
_TAKEN = frozenset({*_SERVICES, *RESERVED, *(name for name in dir(builtins) if name[0] != "_")})


def check_name(name: str) -> None:
    """Raise `InvalidName` where a handle, and a variable, cannot have this name."""
    check_handle_name(name)
    if len(name) > _MAX_NAME:
        reason = f"it may have {_MAX_NAME} characters at most"
        raise InvalidName(shown(name), "a handle", reason)
    read = unicodedata.normalize("NFKC", name)
    if read != name:
        # PEP 3131: no code could name the variable
        raise InvalidName(name, "a handle", f"Python reads it as {read!r}")
    if name in _TAKEN:
        raise InvalidName(name, "a handle", "a variable of this name would hide what code finds")


class Namespaces:
    """All namespaces of one session: what the guest is told, and how its calls are answered.

    The attributes are what the host itself uses; the guest's calls have the guest's rights.

    Args:
        isolation: what stands between the guest and this machine (`Executor.isolation`).
        allowed_deps: names and patterns of the packages that the guest may add; None means any.
        gate: raises where the guest may not run a file of the workspace; see `Workflows`.
    """

    def __init__(
        self,
        *,
        tools: ToolRegistry,
        workflows: WorkflowLibrary,
        artifacts: Artifacts,
        deps: Dependencies,
        handles: SessionHandles,
        isolation: str,
        allowed_deps: Collection[str] | None = None,
        gate: Callable[[str], None] | None = None,
    ) -> None:
        self.tools = Tools(tools)
        self.workflows = Workflows(workflows)
        self.artifacts = ArtifactFiles(artifacts)
        self.deps = Deps(deps)
        self.dependencies = deps
        self._services: Mapping[str, Service] = {
            "tools": self.tools,
            "workflows": Workflows(workflows, isolation, gate),
            "artifacts": self.artifacts,
            "deps": Deps(deps, isolation, allowed_deps),
            "handles": Handles(handles),
        }
        self._handles = handles

    @staticmethod
    def describe() -> NamespaceTable:
        """What the guest builds its proxies from: known before any service is."""
        return _table()

    async def call(
        self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        """Answer a call of the guest.

        Raises:
            InvalidCall: there is no such method, or the arguments do not fit it.
            CodeModeError: what the service raised.
        """
        service = self._services.get(namespace)
        found = service.methods.get(method) if service is not None else None
        if found is None:
            if service is self.tools:
                result = await self.tools.call(method, args, kwargs)
                await self._keep_result(method, result, f"tools.{method}")
                return result
            raise InvalidCall(f"{namespace}.{method}", "there is no such method")
        function, signature = found
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            reason = f"{error}; its signature is {method}{_shown(signature)}"
            raise InvalidCall(f"{namespace}.{method}", reason) from None
        result = await function(*bound.args, **bound.kwargs)
        if service is self.artifacts and method == "load":
            await self._keep_result(str(bound.args[0]), result, "artifacts.load")
        return result

    async def _keep_result(self, name: str, result: object, call: str) -> None:
        if is_large(result):  # others may have to make room, on the disk
            await anyio.to_thread.run_sync(self._handles.put_result, name, result, call)


@cache
def _table() -> NamespaceTable:
    return {name: _describe(service) for name, service in _SERVICES.items()}


def _describe(service: type[Service]) -> dict[str, Any]:
    shown: list[dict[str, str]] = []
    for name, method in _public(service):
        if name not in service.hidden:
            signature = inspect.signature(method)
            parameters = list(signature.parameters.values())[1:]
            text = _shown(signature.replace(parameters=parameters))
            shown.append({"name": name, "signature": text, "doc": inspect.getdoc(method) or ""})
    return {"doc": inspect.getdoc(service) or "", "methods": shown, "errors": list(service.errors)}


def _shown(signature: inspect.Signature) -> str:
    return str(signature).replace("'", "")
