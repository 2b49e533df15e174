"""What of a session's handles is on the guest's side: variables, and what cannot cross."""

from __future__ import annotations

from .snapshot import snapshot
from .values import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: How many results that cannot cross are kept for the host to ask for.
HELD_RESULTS = 16


class Holdings:
    """Values by handle, beside the variables of a namespace."""

    def __init__(self) -> None:
        #: the namespace, once there is one
        self.variables: dict[str, Any] = {}
        self._held: dict[str, object] = {}
        self._results: list[str] = []
        #: what the host has bound: identity of the value, and which of the handle's values it was
        self._bound: dict[str, tuple[int, int]] = {}

    def hold(self, name: str, value: object) -> None:
        """Keep a value that stays here under a handle's name."""
        self._held[name] = value

    def hold_result(self, name: str, value: object) -> None:
        """Keep a run's value that stays here, instead of the oldest such one."""
        self.hold(name, value)
        self._results.append(name)
        if len(self._results) > HELD_RESULTS:
            self.release(self._results[0])

    def release(self, name: str) -> None:
        """Let go of a value held."""
        self._held.pop(name, None)
        if name in self._results:
            self._results.remove(name)

    def forget(self) -> None:
        """Let go of all, for a namespace that was cleared."""
        self._held.clear()
        self._results.clear()
        self._bound.clear()

    def find(self, name: str) -> object:
        """The value held under a name, else the variable; KeyError where there is none."""
        if name in self._held:
            return self._held[name]
        return self.variables[name]

    def is_held(self, name: str) -> bool:
        return name in self._held

    def bind(self, name: str, value: object, version: int) -> None:
        """Make a handle's value a variable."""
        self.variables[name] = value
        self._bound[name] = (id(value), version)

    def has_room(self, name: str, version: int) -> bool:
        """Whether a handle's value may become a variable without taking one from the user.

        It may where there is none of this name, or still the handle's own, of another version.
        """
        if name not in self.variables:
            return True
        identity, bound = self._bound.get(name, (0, version))
        return bound != version and identity == id(self.variables[name])


def sketch(name: str, value: object) -> dict[str, Any]:
    """A value that stays here, as the host is told of it."""
    kind = type_name(type(value))[:500]
    return {"name": name, "type": kind, "snapshot": snapshot(value)}
