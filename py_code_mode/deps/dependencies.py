"""The packages of one session: what is wanted, and what is installed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from py_code_mode.deps.requirements import Requirements, parse
from py_code_mode.errors import RuntimeDepsDisabled
from py_code_mode.origin import is_as_strong

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from py_code_mode.environments.overlay import Overlay


_Strings: TypeAlias = "list[str]"  # inside the class `list` is its method


class Dependencies:
    """Adds packages to a session's overlay, and remembers them in the requirements.

    Args:
        requirements: of the workspace; blocking, so used on a thread.
        overlay: where packages go; the environment below it is never altered.
        isolation: of the code that imports the packages; None where nothing is imported.
        extra: wanted besides what the requirements say.
        allow_runtime: whether `add` and `remove` work; `sync` always does.
        gate: is given the file of the requirements, by its place in the workspace, before they are
            installed; raises where they may not be.
    """

    def __init__(
        self,
        requirements: Requirements,
        overlay: Overlay,
        *,
        isolation: str | None,
        extra: Sequence[str] = (),
        allow_runtime: bool = True,
        gate: Callable[[str], None] | None = None,
    ) -> None:
        self._requirements = requirements
        self._overlay = overlay
        self._extra = tuple(extra)
        self._allow_runtime = allow_runtime
        self._isolation = isolation
        self._gate = gate

    async def list(self) -> list[str]:
        """The configured requirements."""
        return await anyio.to_thread.run_sync(self._wanted)

    def _wanted(self) -> list[str]:
        return list(dict.fromkeys([*self._requirements.list(), *self._extra]))

    async def refused(self, package: str, allowed: Collection[str]) -> str | None:
        """The package's name as an index writes it, unless it may be added; None where it may.

        What is configured already may be added again.

        Args:
            allowed: names, in which ``*`` and ``?`` stand for others.

        Raises:
            InvalidRequirement: it is no plain requirement.
        """
        from packaging.utils import canonicalize_name

        name = canonicalize_name(parse(package).name)
        if any(fnmatchcase(name, canonicalize_name(pattern)) for pattern in allowed):
            return None
        known = {canonicalize_name(parse(entry).name) for entry in await self.list()}
        return None if name in known else name

    async def add(self, package: str, *, origin: str | None = None) -> dict[str, Any]:
        """Install a package and remember it; importable at once, variables are kept.

        Args:
            origin: the isolation of the sandboxed code that asks; None where the user does.
        """
        if not self._allow_runtime:
            raise RuntimeDepsDisabled("add")
        requirement = str(parse(package))
        report = await self._overlay.install([requirement])
        if not report["failed"]:
            remember = partial(self._requirements.add, requirement, origin=origin)
            await anyio.to_thread.run_sync(remember)
        return dict(report)

    async def remove(self, package: str) -> dict[str, Any]:
        """Forget a package; it can be imported until the next reset, and then no longer."""
        if not self._allow_runtime:
            raise RuntimeDepsDisabled("remove")
        name = parse(package).name
        forgotten = await anyio.to_thread.run_sync(self._requirements.remove, name)
        report = await self._overlay.remove(name)
        if forgotten:
            # it is in the configuration, so it was found, whether it is installed here or not
            report["not_found"] = []
        return {
            **report,
            "removed_from_config": [name] if forgotten else [],
            "note": "installed files go away at the next reset" if report["removed"] else "",
        }

    async def sync(self) -> dict[str, Any]:
        """Install every configured requirement that is not there yet.

        Not those that code with a stronger isolation added, until somebody has approved them.
        """
        problems = await anyio.to_thread.run_sync(self._requirements.problems)
        wanted, refused = await anyio.to_thread.run_sync(self._approved)
        report = await self._overlay.install(wanted)
        for text, reason in (*refused.items(), *((each.text, str(each)) for each in problems)):
            report["failed"].append(text)
            report["errors"][text] = reason
        return dict(report)

    def _approved(self) -> tuple[_Strings, dict[str, str]]:
        """What may be installed for this session, and why the rest may not."""
        refused: dict[str, str] = {}
        isolation = self._isolation
        found = self._requirements.origins()  # once: other sessions change the file
        if found and self._gate is not None:
            self._gate("requirements.txt")
        for text, origin in found.items():
            if isolation is None or origin is None or is_as_strong(isolation, origin):
                continue
            refused[text] = (
                f"{text} was added by sandboxed code ({origin}), and this session's isolation is "
                f"weaker ({isolation}): if you want it, py-code-mode deps approve "
                f"{parse(text).name}"
            )
        wanted = [text for text in found if text not in refused]
        for text in self._extra:
            refused.pop(text, None)
        return [*dict.fromkeys([*wanted, *self._extra])], refused

    async def apply_removals(self) -> None:
        """Carry out what `remove` promised for the next reset."""
        await self._overlay.apply_removals()
