"""A description that grows fact by fact, as far as its bytes allow, and says what it leaves out."""

# Values are Any: narrowed by their class, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from .outline import Budget, Outline, size
from .reprs import among
from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_ABOUT = 300  # bytes of what `semantics` says of one column


class Sketch:
    """A description that grows fact by fact."""

    def __init__(
        self, value: object, max_bytes: int, sample: int, semantics: Mapping[Any, Any] | None
    ) -> None:
        self.sample = sample
        self.outline = Outline(sample, within=value)
        self.budget = Budget(max_bytes - 2)
        self.found: dict[str, Any] = {}
        self.put("type", self.outline.text(type_name(type(value)), max_bytes - 12, 200))
        self.outline.shortened = 0
        # for `left_out`
        self._reserve = max(16, max_bytes // 10)
        self.budget.left -= self._reserve
        self._left_out: dict[str, int] = {}
        self._hows: list[str] = []
        self._semantics = semantics

    @property
    def left(self) -> int:
        """Bytes that are free."""
        return self.budget.left

    def room(self, key: str) -> int:
        """Bytes that the value of this key may take."""
        return self.budget.left - size(key) - 2

    def put(self, key: str, value: Any, *, keep: int = 0) -> bool:
        """Tell a fact if it fits; say whether it does."""
        return self.budget.put(self.found, key, value, keep=keep)

    def tell(self, key: str, value: Any, most: int | None = None) -> bool:
        """Tell as much of any value as fits, or as `most` bytes hold."""
        room = self.room(key)
        return room > 0 and self.put(key, self.outline.of(value, min(room, most or room)))

    def leave_out(self, what: str, count: int, how: str = "") -> None:
        """Say that so many are not told, and how to get them."""
        if count > 0:
            self._left_out[what] = count
            if how and how not in self._hows:
                self._hows.append(how)

    def meaning(self, name: Any) -> dict[str, Any]:
        """What is known of a column beside what it holds: ``description`` and ``unit``."""
        if not self._semantics or not _is_plain(name):
            return {}
        given: Any = self._semantics.get(name)
        told = {"description": given} if issubclass(type(given), str) else given
        if not issubclass(type(told), dict):
            return {}
        return {
            key: self.outline.text(told[key], _ABOUT, _ABOUT)
            for key in ("description", "unit")
            if issubclass(type(told.get(key)), str)
        }

    def tell_meanings(self, names: list[Any], *, most: int) -> None:
        """Tell what is known of these in an object of their own, in `most` bytes."""
        meanings: dict[str, Any] = {}
        budget = Budget(min(most, self.room("semantics")) - 2)
        for name in names:
            meaning = self.meaning(name)
            if meaning:
                unit = f" ({meaning['unit']})" if "unit" in meaning else ""
                text = meaning.get("description", "") + unit
                budget.put(meanings, self.outline.label(name), text.strip())
        if meanings:
            self.put("semantics", meanings)

    def finished(self) -> dict[str, Any]:
        """The description, with what it leaves out."""
        self.budget.left += self._reserve
        if self.outline.shortened > 0 and not self._left_out:
            self.leave_out("parts", self.outline.shortened, "['key'], [i]")
        if self._left_out:
            how = {"how": ", ".join(self._hows)} if self._hows else {}
            for told in ({**self._left_out, **how}, self._left_out, True):
                if self.put("left_out", told):
                    break
        return self.found


def _is_plain(name: Any) -> bool:
    """Whether looking a name up runs no code of its own."""
    if type(name) is tuple:
        return all(map(_is_plain, name))
    return name is None or among(type(name), (str, int, float, bool))
