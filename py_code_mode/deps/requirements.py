"""Which packages a workspace wants: a ``requirements.txt`` kept by people and by code.

Only plain requirements are taken, ``name[extras]`` with version bounds: anything else could name a
file, a host or an option. Installing is done elsewhere.

What sandboxed code adds has a comment that says so, written by the host. Whoever deletes it, by
hand or with ``py-code-mode deps approve``, has approved the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from py_code_mode.errors import InvalidRequirement, NotStored
from py_code_mode.origin import UNKNOWN, word_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from py_code_mode.stores import Store

__all__ = ["Problem", "Requirements", "parse"]

_FILE = "requirements.txt"
_COMMENT = re.compile(r"(?:^|\s+)#.*$", re.DOTALL)  # as pip's
_MARK = "# py-code-mode: added by sandboxed code"
_MARKED = re.compile(r"\s*" + re.escape(_MARK) + r"(?: \(([a-z_]+)\))?.*$", re.DOTALL)
_ENDS = re.compile(r"[^\n]*\n|[^\n]+")
_REMOTE = re.compile(r"^(?:[a-z]+\+)?[a-z]+://|^(?:git|hg|svn|bzr)\+|^file:", re.IGNORECASE)
_LOCAL = re.compile(r"^[./~]|[/\\]|\.(?:whl|zip|tar\.gz|tgz)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A line of the file that cannot be used.

    Attributes:
        line: counted from 1.
        text: what stands there.
    """

    line: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{_FILE}, line {self.line}: {self.text!r}: {self.reason}"


def parse(requirement: str) -> Requirement:
    """The requirement, if it is plain: a name, extras, version bounds.

    Raises:
        InvalidRequirement: it is not; the reason says what it is instead.
    """
    # Read when first needed, for the sake of a quick `import py_code_mode`.
    from packaging.requirements import InvalidRequirement as Unreadable
    from packaging.requirements import Requirement

    if not isinstance(requirement, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequirement(repr(requirement), "it is not a str")
    text = requirement.strip(" \t")
    if not text:
        raise InvalidRequirement(requirement, "it is empty")
    if not text.isprintable():
        raise InvalidRequirement(requirement, "it has a line break or a control character")
    if text.startswith("-"):
        raise InvalidRequirement(requirement, "options are not taken, only packages")
    if _REMOTE.search(text):
        raise InvalidRequirement(requirement, "URLs are not taken, only names from the index")
    try:
        parsed = Requirement(text)
    except Unreadable as error:
        if _LOCAL.search(text):
            reason = "paths and files are not taken, only names from the index"
        else:
            reason = " ".join(str(error).partition("\n")[0].split()) or "it cannot be read"
        raise InvalidRequirement(requirement, reason) from error
    if parsed.url:
        raise InvalidRequirement(requirement, "URLs are not taken, only names from the index")
    if parsed.marker:
        raise InvalidRequirement(requirement, "markers (after `;`) are not taken; leave it out")
    return parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What stands on one line, or on several joined by a backslash."""

    number: int
    text: str
    raw: str
    requirement: Requirement | None = None
    problem: Problem | None = None
    origin: str | None = None

    @property
    def package(self) -> str:
        return _canonical(self.requirement) if self.requirement else ""


_Strings: TypeAlias = "list[str]"  # inside the class `list` is its method
_Problems: TypeAlias = "list[Problem]"


class Requirements:
    """The configured requirements. Thread-safe; its methods block.

    Comments, blank lines and lines that cannot be used stay where they are.

    Args:
        store: where ``requirements.txt`` is, or will be at the first `add`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"Requirements({self._store.location(_FILE)!r})"

    def list(self) -> _Strings:
        """The usable requirements in the order of the file; see `problems` for the rest."""
        return [*self.origins()]

    def origins(self) -> dict[str, str | None]:
        """The same, with the isolation of the sandboxed code that added each; None: the user did.

        What is written twice, once by the user, is the user's.
        """
        found: dict[str, str | None] = {}
        for entry in self._entries():
            if entry.requirement:
                text = str(entry.requirement)
                if found.get(text, "") is not None:
                    found[text] = entry.origin
        return found

    def problems(self) -> _Problems:
        """The lines that `list` had to leave out."""
        return [entry.problem for entry in self._entries() if entry.problem]

    def add(self, requirement: str, *, origin: str | None = None) -> bool:
        """Want a package, instead of what was wanted of it before; False if that says so already.

        A bare name asks for the package and no version: it leaves bounds as they are, unless
        sandboxed code chose them and the user asks.

        Args:
            origin: the isolation of the sandboxed code that asks; None where the user does.

        Raises:
            InvalidRequirement: it is not a plain requirement; nothing was changed.
        """
        wanted = parse(requirement)
        package = _canonical(wanted)
        with self._store.lock():
            entries = self._entries()
            present = [entry for entry in entries if entry.package == package]
            is_own = origin is not None or all(entry.origin is None for entry in present)
            if present and is_own and _covers(present, wanted):
                return False
            written: list[str] = []
            for entry in entries:
                if entry.package != package:
                    written.append(entry.raw)
                elif entry is present[0]:
                    written.append(_replaced(entry, wanted, origin))
            if not present:
                end = "\r\n" if any(raw.endswith("\r\n") for raw in written) else "\n"
                if written and not written[-1].endswith("\n"):
                    written[-1] += end
                written.append(f"{wanted}{_mark(wanted, origin)}{end}")
            self._write(written)
        return True

    def approve(self, package: str) -> bool:
        """Make what sandboxed code wants of a package the user's own wish; False if it is already.

        Args:
            package: its name; extras and bounds are allowed, and not looked at.

        Raises:
            InvalidRequirement: it names no package, or none of the file.
        """
        wanted = _canonical(parse(package))
        with self._store.lock():
            entries = self._entries()
            found = [entry for entry in entries if entry.package == wanted]
            if not found:
                raise InvalidRequirement(package, "it is not among the requirements")
            if all(entry.origin is None for entry in found):
                return False
            self._write([_approved(entry) if entry in found else entry.raw for entry in entries])
        return True

    def remove(self, package: str) -> bool:
        """Want a package no longer; False if it was not in the file.

        Args:
            package: its name; extras and bounds are allowed, and not looked at.

        Raises:
            InvalidRequirement: it names no package.
        """
        unwanted = _canonical(parse(package))
        if all(entry.package != unwanted for entry in self._entries()):
            return False  # nothing is made or locked for it
        with self._store.lock():
            entries = self._entries()
            kept = [entry.raw for entry in entries if entry.package != unwanted]
            if len(kept) == len(entries):
                return False
            self._write(kept)
        return True

    def _entries(self) -> _Entries:
        try:
            data = self._store.read(_FILE)
        except NotStored:
            return []
        # What is not UTF-8 is a problem of its line, and is written back as it was.
        return _read(data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape"))

    def _write(self, lines: _Strings) -> None:
        self._store.write(_FILE, "".join(lines).encode(errors="surrogateescape"))


_Entries: TypeAlias = "list[_Entry]"


def _read(text: str) -> list[_Entry]:
    entries: list[_Entry] = []
    raw = joined = ""
    first = 1
    for number, line in enumerate(_ENDS.findall(text), 1):
        if not raw:
            first = number
        raw += line
        body = line.rstrip("\r\n")
        if body.endswith("\\") and not body.lstrip().startswith("#"):
            joined += body[:-1]
            continue
        entries.append(_entry(first, joined + body, raw))
        raw = joined = ""
    if raw:
        entries.append(_entry(first, joined, raw))
    return entries


def _entry(number: int, line: str, raw: str) -> _Entry:
    text = _COMMENT.sub("", line).strip()
    if not text:
        return _Entry(number=number, text="", raw=raw)
    try:
        requirement = parse(text)
    except InvalidRequirement as error:
        problem = Problem(line=number, text=text, reason=error.reason)
        return _Entry(number=number, text=text, raw=raw, problem=problem)
    found = _MARKED.search(line)
    origin = None if found is None else found[1] or UNKNOWN
    return _Entry(number=number, text=text, raw=raw, requirement=requirement, origin=origin)


def _replaced(entry: _Entry, requirement: Requirement, origin: str | None) -> str:
    """The entry's line with another requirement, its old comment, and where it comes from."""
    body = entry.raw.rstrip("\r\n")
    comment = _COMMENT.search(body) if "\n" not in body else None
    said = _MARKED.sub("", comment[0]) if comment else ""
    return f"{requirement}{said}{_mark(requirement, origin)}{entry.raw[len(body) :]}"


def _approved(entry: _Entry) -> str:
    body = entry.raw.rstrip("\r\n")
    return _MARKED.sub("", body) + entry.raw[len(body) :]


def _mark(requirement: Requirement, origin: str | None) -> str:
    """What is written behind a requirement that sandboxed code adds."""
    if origin is None:
        return ""
    approve = f"py-code-mode deps approve {requirement.name}"
    return f"  {_MARK} ({word_of(origin)}). Delete this comment, or: {approve}"


def _canonical(requirement: Requirement) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(requirement.name)


def _covers(present: list[_Entry], wanted: Requirement) -> bool:
    held = [entry.requirement for entry in present if entry.requirement]
    if not wanted.specifier and not wanted.extras:
        return True
    if len(held) > 1:
        return False
    same_extras = held[0].extras == wanted.extras
    return same_extras and held[0].specifier == wanted.specifier
