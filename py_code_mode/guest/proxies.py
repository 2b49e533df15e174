"""The namespaces as guest code sees them: ``tools``, ``workflows``, ``artifacts``, ``deps``...

What a namespace offers is told once, on the host; the guest gets its method names, signatures and
docs as data and forwards whatever is called. Two do something here: workflows run in the guest,
and handles of what cannot cross stay in it.
"""

from __future__ import annotations

from contextvars import ContextVar

from . import errors
from .snapshot import snapshot
from .values import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from .holdings import Holdings

    class Caller(Protocol):
        """How a proxy reaches the host."""

        def call(
            self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
        ) -> object:
            """Block until the host has answered; raise what it raised."""
            ...

        def call_async(
            self, namespace: str, method: str, args: Sequence[object], kwargs: Mapping[str, object]
        ) -> Awaitable[object]:
            """The same on the running event loop."""
            ...


MAX_DEPTH = 32
_depth: ContextVar[int] = ContextVar("workflow_depth", default=0)


class Method:
    """One host method: call it, or await ``.call_async(...)``."""

    def __init__(self, caller: Caller, namespace: str, name: str, signature: str, doc: str) -> None:
        self._caller = caller
        self._namespace = namespace
        self.__name__ = name
        self.__qualname__ = f"{namespace}.{name}"
        self.__doc__ = f"{namespace}.{name}{signature}\n\n{doc}".rstrip()

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        return self._caller.call(self._namespace, self.__name__, args, kwargs)

    call_sync = __call__

    async def call_async(self, /, *args: object, **kwargs: object) -> Any:
        return await self._caller.call_async(self._namespace, self.__name__, args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.__qualname__}>"


class Namespace:
    """A namespace whose methods all live on the host."""

    def __init__(self, caller: Caller, name: str, description: Mapping[str, Any]) -> None:
        self._caller = caller
        self._name = name
        self._methods: list[str] = [str(method["name"]) for method in description["methods"]]
        self.__doc__ = str(description["doc"])
        for method in description["methods"]:
            bound = Method(caller, name, method["name"], method["signature"], method["doc"])
            setattr(self, method["name"], bound)
        for error in description["errors"]:
            setattr(self, error, errors.GUEST_ERRORS[error])

    def __dir__(self) -> list[str]:
        return sorted(self._methods)

    def __repr__(self) -> str:
        return f"<{self._name}: {', '.join(sorted(self._methods))}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self._name} belongs to this session and cannot be pickled")


class Tools(Namespace):
    """``tools.<name>(...)``, ``tools.<name>.<recipe>(...)``, ``tools.list()``."""

    def __getattr__(self, name: str) -> Tool:
        # names beginning with an underscore (copy, pickle, IPython ask for many) stay here
        if name.startswith("_"):
            raise AttributeError(name)
        return Tool(self._caller, name, None)

    def __getitem__(self, name: str) -> Tool:
        return Tool(self._caller, name, None)

    def __dir__(self) -> list[str]:
        names: Any = self._caller.call(self._name, "names", (), {})
        return sorted([*self._methods, *(str(name) for name in names)])


class Tool:
    """A tool, or one of its recipes: call it, or await ``.call_async(...)``."""

    def __init__(self, caller: Caller, name: str, recipe: str | None) -> None:
        self._caller = caller
        self._tool = name
        self._recipe = recipe
        self._target = f"{name}.{recipe}" if recipe else name

    def __getattr__(self, name: str) -> Tool:
        if name.startswith("_") or self._recipe is not None:
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        return Tool(self._caller, self._tool, name)

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        return self._caller.call("tools", self._target, args, kwargs)

    call_sync = __call__

    async def call_async(self, /, *args: object, **kwargs: object) -> Any:
        return await self._caller.call_async("tools", self._target, args, kwargs)

    def list(self) -> Any:
        """The tool's recipes, with their parameters."""
        return self._caller.call("tools", "recipes", (self._tool,), {})

    def __dir__(self) -> list[str]:
        if self._recipe is not None:
            return ["call_async", "call_sync"]
        recipes = [str(recipe["name"]) for recipe in self.list()]
        return sorted([*recipes, "call_async", "call_sync", "list"])

    def __repr__(self) -> str:
        return f"<tools.{self._target}>"


class Workflows(Namespace):
    """``workflows.<name>(...)`` and ``workflows.invoke(name, ...)`` run a workflow here."""

    def __init__(
        self,
        caller: Caller,
        name: str,
        description: Mapping[str, Any],
        load: Callable[[str, str], Callable[..., object]],
    ) -> None:
        super().__init__(caller, name, description)
        self._load = load
        self._methods += ["invoke", "invoke_async"]

    def invoke(self, name: str, /, *args: object, **kwargs: object) -> Any:
        """Run a workflow and give what its ``run`` returns; an async one is run to its end."""
        source: Any = self._caller.call("workflows", "source", (name,), {})
        with _Deeper(name):
            result: Any = self._load(name, source)(*args, **kwargs)
            if _is_coroutine(result):
                return _run_to_end(result)
            return result

    async def invoke_async(self, name: str, /, *args: object, **kwargs: object) -> Any:
        """Run a workflow on the running event loop."""
        source: Any = await self._caller.call_async("workflows", "source", (name,), {})
        with _Deeper(name):
            result: Any = self._load(name, source)(*args, **kwargs)
            if _is_coroutine(result):
                return await result
            return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Workflow(self, name)

    def __dir__(self) -> list[str]:
        listed: Any = self._caller.call("workflows", "list", (), {})
        return sorted([*self._methods, *(str(entry["name"]) for entry in listed)])


class Workflow:
    """One workflow by name: call it, or await ``.call_async(...)``."""

    def __init__(self, workflows: Workflows, name: str) -> None:
        self._workflows = workflows
        self.__name__ = name

    def __call__(self, /, *args: object, **kwargs: object) -> Any:
        return self._workflows.invoke(self.__name__, *args, **kwargs)

    async def call_async(self, /, *args: object, **kwargs: object) -> Any:
        return await self._workflows.invoke_async(self.__name__, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<workflows.{self.__name__}>"


class Handles(Namespace):
    """``handles.put(name, value)``, ``handles.get(name)`` and ``handles[name]``.

    A value that cannot cross stays here; the host knows its name and description.
    """

    def __init__(
        self, caller: Caller, name: str, description: Mapping[str, Any], holdings: Holdings
    ) -> None:
        super().__init__(caller, name, description)
        self._holdings = holdings
        self._methods += ["delete", "get", "put"]

    def get(self, name: str) -> Any:
        """The value behind a handle."""
        if self._holdings.is_held(name):
            return self._holdings.find(name)
        try:
            return self._caller.call(self._name, "fetch", (name,), {})
        except errors.HandleNotFound:
            try:
                return self._holdings.find(name)
            except KeyError:
                pass
            raise

    def put(self, name: str, value: object, overwrite: bool = False) -> str:
        """Keep a value under a name, beyond a reset; gives the name, with a suffix if taken."""
        try:
            used: Any = self._caller.call(self._name, "keep", (name, value, overwrite), {})
        except errors.ValueNotPortable:
            told = (name, type_name(type(value)), snapshot(value), overwrite)
            used = self._caller.call(self._name, "hold", told, {})
            self._holdings.hold(used, value)
        else:
            self._holdings.release(used)
        return used

    def delete(self, name: str) -> None:
        """Forget a handle and its value; a variable of the same name stays."""
        self._caller.call(self._name, "drop", (name,), {})
        self._holdings.release(name)

    __getitem__ = get

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        listed: Any = self._caller.call(self._name, "list", (), {})
        return iter([str(entry["name"]) for entry in listed])


class _Deeper:
    """Counts how deep workflows have invoked one another."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        depth = _depth.get() + 1
        if depth > MAX_DEPTH:
            raise errors.WorkflowTooDeep(self._name, MAX_DEPTH)
        self._token = _depth.set(depth)

    def __exit__(self, *_: object) -> None:
        _depth.reset(self._token)


def _is_coroutine(value: object) -> bool:
    return type(value).__name__ == "coroutine"


def _run_to_end(coroutine: Any) -> object:
    """Run a coroutine to its end, also while this thread's event loop is running."""
    import asyncio

    is_running = True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        is_running = False
    if not is_running:
        return asyncio.run(coroutine)
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(1, "workflow") as pool:
        return pool.submit(copy_context().run, asyncio.run, coroutine).result()


def build(
    caller: Caller,
    table: Mapping[str, Mapping[str, Any]],
    load: Callable[[str, str], Callable[..., object]],
    holdings: Holdings,
) -> dict[str, object]:
    """The namespaces of the host's table, by the name guest code finds them under.

    `load` makes a function of a workflow's name and source; `holdings` are this side's handles.
    """
    namespaces: dict[str, object] = {}
    for name, description in table.items():
        if name == "tools":
            namespaces[name] = Tools(caller, name, description)
        elif name == "workflows":
            namespaces[name] = Workflows(caller, name, description, load)
        elif name == "handles":
            namespaces[name] = Handles(caller, name, description, holdings)
        else:
            namespaces[name] = Namespace(caller, name, description)
    return namespaces
