"""Imports that wait: a package's names for their first use, a change for its module to be loaded.

`lazily` is the host's; it is here as the one place below all of the host's packages.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__`` (PEP 562): names are imported at first use.

    Args:
        package: its ``__name__``.
        homes: the module of each public name.
    """

    def get(name: str) -> object:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        __import__(home)
        value: object = getattr(sys.modules[home], name)
        setattr(sys.modules[package], name, value)  # not asked for again
        return value

    return get, lambda: sorted(homes)


class AfterImport:
    """Waits on ``sys.meta_path`` for the first import of a module, then leaves.

    Args:
        name: the module's full name.
        then: called with the module, now if it is loaded already.
    """

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self._name = name
        self._then = then
        loaded = sys.modules.get(name)
        # while a module is being imported it is there, and may still be empty
        spec = getattr(loaded, "__spec__", None)
        if loaded is not None and not getattr(spec, "_initializing", False):
            then(loaded)
        else:
            sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Wait no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that the other finders have, which calls `then` at its end."""
        if name != self._name:
            return None
        self.leave()
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = self._executing(spec.loader.exec_module)
                return spec
        sys.meta_path.insert(0, self)  # not installed: it may be yet
        return None

    def _executing(self, own: Callable[[Any], None]) -> Callable[[Any], None]:
        def execute(module: Any) -> None:
            own(module)
            self._then(module)

        return execute
