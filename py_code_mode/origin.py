"""Who wrote what a workspace keeps, and who may use it.

Trust does not flow upward: what sandboxed code leaves behind is not run, or installed, where code
has more rights, until its user has approved it. Otherwise it would act outside the next time.
"""

from __future__ import annotations

import re

__all__ = ["UNKNOWN", "is_as_strong", "is_sandboxed", "origin_of", "word_of"]

#: Isolation that some code must at least have to get what code of another wrote. Both of the walls
#: show no more of the host than the policy says, so they count as one.
_STRENGTH = {"in_process": 0, "none": 0, "landlock": 1, "bubblewrap": 2, "namespaces": 2}
_STRONGEST = 2
#: An origin that cannot be told.
UNKNOWN = "unknown"
_WORD = re.compile(r"[a-z_]{1,40}")


def is_sandboxed(isolation: str) -> bool:
    """Whether what code with this isolation writes needs approval elsewhere."""
    return _STRENGTH.get(isolation) != 0


def is_as_strong(isolation: str, origin: str) -> bool:
    """Whether code with this isolation may have what code of this origin wrote.

    Words that are not known (a plug-in's) are as strong as themselves, and otherwise count as the
    weakest here and as the strongest of origins.
    """
    if isolation == origin != UNKNOWN:
        return True
    return _STRENGTH.get(isolation, 0) >= _STRENGTH.get(origin, _STRONGEST)


def origin_of(isolation: str | None) -> str | None:
    """What to write down of an author; None of the host itself (None), and of code with its rights.

    Args:
        isolation: the author's.
    """
    return isolation if isolation is not None and is_sandboxed(isolation) else None


def word_of(isolation: str) -> str:
    """The isolation as an origin is written down."""
    return isolation if _WORD.fullmatch(isolation) else UNKNOWN
