"""Where a workflow comes from: written by sandboxed code, or by its user.

The file of a workflow that sandboxed code created has a comment at its top that says so. The host
writes it, above whatever the code gave, so code can neither leave it out nor take it away. Code
whose isolation is weaker does not get the source until somebody has approved it: otherwise a
sandboxed guest would leave what runs outside the sandbox next time. Whoever deletes the comment,
by hand or with ``py-code-mode workflows approve``, has approved what is below; changing anything
else does not, for formatters change files too.
"""

from __future__ import annotations

import re

__all__ = ["is_as_strong", "is_sandboxed", "with_origin", "without_origin"]

#: Isolation that some code must at least have to get what code of another wrote. Both of the walls
#: show no more of the host than the policy says, so they count as one.
_STRENGTH = {"in_process": 0, "none": 0, "landlock": 1, "bubblewrap": 2, "namespaces": 2}
_STRONGEST = 2
_UNKNOWN = "unknown"
_WORD = re.compile(r"[a-z_]{1,40}")
_MARK = "# py-code-mode: written by sandboxed code"
#: The first such comment of those that a file begins with.
_LINE = re.compile(
    r"((?:[ \t]*(?:#[^\n]*)?\n)*?)[ \t]*" + re.escape(_MARK) + r"(?: \(([a-z_]+)\))?[^\n]*(?:\n|\Z)"
)


def is_sandboxed(isolation: str) -> bool:
    """Whether what code with this isolation writes needs approval elsewhere."""
    return _STRENGTH.get(isolation) != 0


def is_as_strong(isolation: str, origin: str) -> bool:
    """Whether code with this isolation may have what code of this origin wrote.

    Words that are not known (a plug-in's) are as strong as themselves, and otherwise count as the
    weakest here and as the strongest of origins.
    """
    if isolation == origin != _UNKNOWN:
        return True
    return _STRENGTH.get(isolation, 0) >= _STRENGTH.get(origin, _STRONGEST)


def with_origin(name: str, text: str, isolation: str) -> str:
    """The text of a file that says which isolation the code had that wrote it."""
    word = isolation if _WORD.fullmatch(isolation) else _UNKNOWN
    return (
        f"{_MARK} ({word}). Read it; then delete this line, or: "
        f"py-code-mode workflows approve {name}\n{text}"
    )


def without_origin(text: str) -> tuple[str, str | None]:
    """A file's text without that line, and what the line says; None where there is none."""
    found = _LINE.match(text)
    if found is None:
        return text, None
    return found[1] + text[found.end() :], found[2] or _UNKNOWN
