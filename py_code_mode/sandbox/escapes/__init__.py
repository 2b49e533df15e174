"""The escape suite: attacks on a sandbox, shipped so that every machine can be tried.

An attack is a function of one of the modules here, run by a guest: it returns what it gained, or
raises. What it did to the host is judged by the host (`py_code_mode.cli.escapes`), which decides.

The modules are sent to a guest as text (`cell`), so they import only `attempt` and the standard
library, and run on every Python that a guest may have.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from py_code_mode.sandbox.escapes.attempt import Attack

__all__ = ["GROUPS", "all_attacks", "cell"]

#: Modules of attacks, in the order in which they are tried.
GROUPS = (
    "files", "processes", "network", "kernel", "neighbours", "services", "proxy", "protocol",
    "bombs",
)  # fmt: skip


def all_attacks() -> tuple[Attack, ...]:
    """Every attack, in order. Nothing of them is run."""
    from py_code_mode.sandbox.escapes.attempt import ATTACKS

    for group in GROUPS:
        import_module(f"{__name__}.{group}")
    return tuple(sorted(ATTACKS.values(), key=lambda attack: GROUPS.index(attack.group)))


def cell(groups: Iterable[str], facts: Mapping[str, Any]) -> str:
    """Code for a guest that makes the attacks of some groups ready; `verdicts` then runs them."""
    folder = Path(__file__).parent
    sources = {
        name: (folder / f"{name}.py").read_text("utf-8") for name in ("attempt", *sorted(groups))
    }
    return _LOADER.format(sources=sources, facts=dict(facts))


_LOADER = """
def verdicts(names):
    import sys
    return sys.modules["escapes.attempt"].verdicts(names)

def _load(sources, facts):
    import sys, types
    package = sys.modules["escapes"] = types.ModuleType("escapes")
    package.__path__ = []
    for name, source in sources.items():
        module = sys.modules["escapes." + name] = types.ModuleType("escapes." + name)
        module.__package__ = "escapes"
        setattr(package, name, module)
        exec(compile(source, "<escapes/" + name + ".py>", "exec"), module.__dict__)
    package.attempt.FACTS.update(facts)
    package.attempt.SERVICES.update(
        tools=tools, workflows=workflows, artifacts=artifacts, deps=deps, display=display
    )

_load({sources!r}, {facts!r})
"""
