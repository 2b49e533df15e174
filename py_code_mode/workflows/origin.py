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

from py_code_mode.origin import UNKNOWN, word_of

__all__ = ["with_origin", "without_origin"]

_MARK = "# py-code-mode: written by sandboxed code"
#: The first such comment of those that a file begins with.
_LINE = re.compile(
    r"((?:[ \t]*(?:#[^\n]*)?\n)*?)[ \t]*" + re.escape(_MARK) + r"(?: \(([a-z_]+)\))?[^\n]*(?:\n|\Z)"
)


def with_origin(name: str, text: str, isolation: str) -> str:
    """The text of a file that says which isolation the code had that wrote it."""
    return (
        f"{_MARK} ({word_of(isolation)}). Read it; then delete this line, or: "
        f"py-code-mode workflows approve {name}\n{text}"
    )


def without_origin(text: str) -> tuple[str, str | None]:
    """A file's text without that line, and what the line says; None where there is none."""
    found = _LINE.match(text)
    if found is None:
        return text, None
    return found[1] + text[found.end() :], found[2] or UNKNOWN
