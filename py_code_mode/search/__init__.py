"""One ranking service: which of a few documents fit some words best.

Promises: a query is only ever words, never search syntax; whoever asks for a document by its name
gets that one first; an index may be asked from any thread.
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from py_code_mode.arguments import check, check_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["FullText", "Index", "Overlap", "Ranking"]

#: More distinct words than this in a query add nothing and cost time.
_MAX_QUERY_WORDS = 64
#: A word in a document's name tells more than one in its text.
_NAME_WEIGHT = 4.0

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Ranking(Protocol):
    """Orders documents, given by their position, by how well they fit words."""

    def rank(self, words: Sequence[str]) -> list[int]:
        """Positions of the documents that fit, best first."""
        ...


class Index:
    """Documents ``(id, text)`` that can be searched by words; built once, never changed.

    Building costs about a millisecond for a hundred documents; keep the index while the documents
    stay the same. Words are stemmed (Porter) where this Python's SQLite has FTS5.
    """

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        entries = list(documents)
        self._ids = [key for key, _ in entries]
        self._by_name: dict[str, list[int]] = {}
        for position, key in enumerate(self._ids):
            self._by_name.setdefault(_same_name(key), []).append(position)
        searchable = [(_with_parts(_clean(key)), _clean(text)) for key, text in entries]
        self._ranking: Ranking = (
            FullText(searchable) if FullText.is_available() else Overlap(searchable)
        )

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, query: str, limit: int) -> list[str]:
        """The ids of at most `limit` documents that share a word with `query`, best first.

        Raises:
            InvalidCall: the query is no text, or the limit no number.
        """
        check_text("query", query)
        check("limit", limit, int, "a whole number")
        words = _words(_with_parts(_clean(query)))[:_MAX_QUERY_WORDS]
        if not words or limit <= 0:
            return []
        exact = self._by_name.get(_same_name(query), [])
        found = dict.fromkeys((*exact, *self._ranking.rank(words)))
        return [self._ids[position] for position in list(found)[:limit]]


class FullText:
    """Ranks by BM25 over stems, in an SQLite FTS5 table in memory."""

    def __init__(self, documents: Sequence[tuple[str, str]]) -> None:
        import sqlite3

        self._lock = threading.Lock()
        # One connection for all threads: the lock keeps them apart.
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        self._connection.execute(
            "CREATE VIRTUAL TABLE documents USING fts5(name, text, tokenize='porter unicode61')"
        )
        self._connection.executemany(
            "INSERT INTO documents(rowid, name, text) VALUES (?, ?, ?)",
            ((position, name, text) for position, (name, text) in enumerate(documents)),
        )
        self._connection.commit()

    @staticmethod
    @functools.cache
    def is_available() -> bool:
        """Whether this Python has SQLite, and that SQLite has FTS5."""
        try:
            import sqlite3
        except ImportError:
            return False
        connection = sqlite3.connect(":memory:")
        try:
            connection.execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True

    def rank(self, words: Sequence[str]) -> list[int]:
        """Positions of the documents that hold a word of the same stem, best first."""
        # Quoted, so that AND, NEAR, * and : are words like any other.
        expression = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            rows = self._connection.execute(
                "SELECT rowid FROM documents WHERE documents MATCH ? "
                "ORDER BY bm25(documents, ?, 1.0), rowid",
                (expression, _NAME_WEIGHT),
            ).fetchall()
        return [row[0] for row in rows]


class Overlap:
    """Ranks by how many words are shared, rare ones counting more; needs nothing but Python."""

    def __init__(self, documents: Sequence[tuple[str, str]]) -> None:
        self._documents = [(set(_words(name)), set(_words(text))) for name, text in documents]
        self._frequency = Counter(word for name, text in self._documents for word in name | text)

    def rank(self, words: Sequence[str]) -> list[int]:
        """Positions of the documents that hold one of the words, best first."""
        scores: dict[int, float] = {}
        for position, (name, text) in enumerate(self._documents):
            score = sum(
                (_NAME_WEIGHT * (word in name) + (word in text)) / self._frequency[word]
                for word in words
                if word in name or word in text
            )
            if score:
                scores[position] = score
        return sorted(scores, key=lambda position: (-scores[position], position))


def _words(text: str) -> list[str]:
    """The distinct words of a text, folded, in order: ``fetch_json`` is two."""
    return list(dict.fromkeys(_WORD.findall(text.casefold())))


def _clean(text: str) -> str:
    # NFKC: one spelling per letter on both sides. SQLite refuses lone surrogates and ends at NUL.
    encodable = text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
    return unicodedata.normalize("NFKC", encodable)


def _with_parts(text: str) -> str:
    """The text, and for ``fetchJson`` also ``fetch Json``; ``GitHub`` stays findable as one."""
    parts = _CAMEL.sub(" ", text)
    return text if parts == text else f"{text} {parts}"


def _same_name(name: str) -> str:
    return " ".join(_WORD.findall(_clean(name).casefold()))
