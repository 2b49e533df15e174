"""What of a record can be found by words, and what a query finds.

Promises: a query is only ever words, never search syntax; a record fits where its text has all of
them, anywhere, inside other words too, however letters are cased or composed. The same functions
decide with an index and without one, so that both find the same.
"""

# Free fields of records are Any: trees of JSON, looked at node by node.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, Self

from py_code_mode.journal import records

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_QUERY", "MAX_TEXT", "Words", "fold", "text_of"]

#: Characters of a query.
MAX_QUERY = 500
#: Characters of one record that are searched.
MAX_TEXT = 1 << 18
_MAX_LEAVES = 20_000
_SNIPPET = 160  # characters, a fourth of them before the word
_MAX_INT = 1 << 64
#: Characters that JSON never escapes, and no spelling of a number has in a row.
_PLAIN = re.compile(r"[a-z_]{2,}")
_NUMBERS = frozenset({"inf", "nan"})
#: Forms of a display that are text for people.
_READABLE = ("text/plain", "text/markdown", "text/latex")


def fold(text: str) -> str:
    """The text in the form in which texts are compared."""
    if text.isascii():
        return text.lower().replace("\0", "\ufffd")
    # SQLite takes no lone surrogates, and ends a text at NUL
    encodable = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\ufffd")
    return unicodedata.normalize("NFKC", encodable).casefold()


class Words:
    """A query, as the words that a record must have.

    Args:
        query: words, separated by white space.

    Attributes:
        words: folded, each once.

    Raises:
        ValueError: it has no word, or more than `MAX_QUERY` characters.
    """

    def __init__(self, query: str) -> None:
        if len(query) > MAX_QUERY:
            raise ValueError(f"a query has at most {MAX_QUERY} characters, got {len(query)}")
        self.words = tuple(dict.fromkeys(fold(query).split()))
        if not self.words:
            raise ValueError("a query must have a word")
        self._is_ascii = all(word.isascii() for word in self.words)
        runs = (run for word in self.words for run in _PLAIN.findall(word) if run not in _NUMBERS)
        self._needle = max(runs, key=len, default="").encode()

    @classmethod
    def of(cls, query: object) -> Self:
        """The same, of a value from outside."""
        if not isinstance(query, str):
            raise ValueError(f"a query is a str, got {type(query).__name__}")
        return cls(query)

    def may_be_in(self, line: bytes) -> bool:
        """Whether a record's line can have the words; cheap, and wrong in one direction only."""
        if not line.isascii() or rb"\u" in line:
            return True
        return self._is_ascii and self._needle in line.lower()

    def are_in(self, text: str) -> bool:
        """Whether a text, folded, has them all."""
        return all(word in text for word in self.words)

    def snippet(self, text: str) -> str:
        """Some of a text around the first place that one of the words has in it."""
        folded = text.casefold()
        if len(folded) != len(text):
            text = folded
        found = [at for at in map(folded.find, self.words) if at >= 0]
        if not found:  # composed otherwise than it is written
            text = fold(text)
            found = [at for at in map(text.find, self.words) if at >= 0] or [0]
        start = max(0, min(found) - _SNIPPET // 4)
        shown = " ".join(text[start : start + _SNIPPET].split())
        return f"{'…' if start else ''}{shown}{'…' if start + _SNIPPET < len(text) else ''}"


def text_of(record: records.Record | records.Foreign) -> str:
    """What people would look for in a record, at most `MAX_TEXT` characters.

    Code, output, errors, values, names and arguments of calls, messages. Not what is in blobs: of
    them only the description that stands in the record.
    """
    match record:
        case records.Run():
            parts = _of_run(record)
        case records.Call():
            tree = (record.arguments, record.result, record.error)
            parts = (record.tool_name, *_leaves(tree))
        case records.Turn():
            tree = (record.tool_calls, record.metadata)
            parts = (
                record.agent_id or "", record.prompt, record.response_content or "",
                record.error or "", *_leaves(tree),
            )  # fmt: skip
        case records.Header():
            parts = (
                record.id, record.title or "", record.workspace_id or "", record.agent_id or "",
                *_leaves(record.metadata),
            )  # fmt: skip
        case records.Chunk():
            parts = (*_leaves(record.payload),)
        case records.Event():
            parts = (record.kind, *_leaves(record.data))
        case records.Transition():
            parts = (record.from_agent or "", record.to_agent, record.reason)
        case records.Patch():
            parts = (*_leaves(record.patch),)
        case _:
            return ""
    return "\n".join(part for part in parts if part)[:MAX_TEXT]


def _of_run(run: records.Run) -> tuple[str, ...]:
    error = (run.error.type, run.error.message, run.error.traceback) if run.error else ()
    shown = [_readable(display) for display in _each(run.displays)]
    tree = (run.value, shown, run.handles, run.effects, run.notes, run.late)
    return (run.code, run.stdout, run.stderr, *error, *_leaves(tree))


def _readable(display: Any) -> list[Any]:
    data = display.get("data") if isinstance(display, dict) else None
    return [data[kind] for kind in _READABLE if kind in data] if isinstance(data, dict) else []


def _each(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else ()


def _leaves(tree: Any) -> Iterator[str]:
    """Keys, texts and numbers of a tree, in order."""
    waiting = [tree]
    left, room = _MAX_LEAVES, MAX_TEXT
    while waiting and left and room > 0:
        node = waiting.pop()
        left -= 1
        if isinstance(node, str):
            room -= len(node)
            yield node
        elif isinstance(node, dict):
            if "$bytes" in node:
                continue
            if "$blob" in node:
                waiting.append(node.get("snapshot"))
                continue
            for key, value in reversed(node.items()):
                waiting.append(value)
                if not key.startswith("$"):
                    waiting.append(key)
        elif isinstance(node, list | tuple):
            waiting.extend(reversed(node))
        elif type(node) is float or (type(node) is int and abs(node) < _MAX_INT):
            yield repr(node)
