"""The artifacts of a workspace: values with a name, kept as files that people can open.

An artifact is one small JSON file, ``<name>.artifact.json``, that tells what it is and which files
hold its data. Those have names of their own for each content, so replacing that one file replaces
the artifact: there is no moment at which it is half old and half new. A file that somebody puts
into the folder is an artifact by its own name.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from py_code_mode.codecs.artifacts import Part, decode, encode, guess, is_plain
from py_code_mode.errors import (
    ArtifactNotFound,
    InvalidArtifact,
    InvalidName,
    NotStored,
    StoreError,
)
from py_code_mode.stores.store import check_name as check_stored_name

if TYPE_CHECKING:
    from py_code_mode.codecs.artifacts import Encoded
    from py_code_mode.results import JsonValue
    from py_code_mode.stores import Store

__all__ = ["MAX_NAME_BYTES", "Artifacts"]

#: Of an artifact's name in UTF-8; its files' names are somewhat longer.
MAX_NAME_BYTES = 150

_CARD = ".artifact.json"
_DATA = re.compile(r"~[0-9a-f]{16}(?:\.[A-Za-z0-9]+)?$")
_EXTENSION = re.compile(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,15}$")
_TRIES = 5  # of a look at what others replace again and again
#: Formats whose files may have any extension: the name's own is kept.
_ANY_EXTENSION = frozenset({"text", "bytes"})

# Named here, since inside the class `list` is its method.
_Facts: TypeAlias = "dict[str, JsonValue]"
_Listing: TypeAlias = "list[_Facts]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A data file and what reading it needs to know."""

    name: str
    size: int
    detail: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What ``<name>.artifact.json`` says."""

    name: str
    description: str
    metadata: _Facts
    created_at: str
    format: str
    type: str
    files: tuple[_File, ...]
    detail: Mapping[str, JsonValue]

    def to_json(self) -> bytes:
        files: list[JsonValue] = [
            {"name": file.name, "size": file.size, "detail": dict(file.detail)}
            for file in self.files
        ]
        facts: _Facts = {
            "name": self.name,
            "description": self.description,
            "metadata": self.metadata,
            "created_at": self.created_at,
            "format": self.format,
            "type": self.type,
            "files": files,
            "detail": dict(self.detail),
        }
        return (json.dumps(facts, ensure_ascii=False, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, name: str, data: bytes) -> _Card:
        """Check what people may have edited.

        Raises:
            InvalidArtifact: it is not what `to_json` makes.
        """
        try:
            facts = cast("dict[str, Any]", json.loads(data))
            files = tuple(
                _File(
                    name=_data_name(file["name"]),
                    size=int(file["size"]),
                    detail=_mapping(file["detail"]),
                )
                for file in facts["files"]
            )
            if not files:
                raise ValueError("it names no file")
            return cls(
                name=name,
                description=str(facts["description"]),
                metadata=_mapping(facts["metadata"]),
                created_at=str(facts["created_at"]),
                format=str(facts["format"]),
                type=str(facts["type"]),
                files=files,
                detail=_mapping(facts["detail"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            shown = f"{type(error).__name__}: {error}"[:300]
            raise InvalidArtifact(name, f"{name}{_CARD} is malformed: {shown}") from error


class Artifacts:
    """Values by name, in a store. Thread-safe; its methods block.

    Values come back equal and of the same type, or are refused when they are saved.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._cards: dict[str, tuple[str, _Card]] = {}
        self._is_tidy = False

    def __repr__(self) -> str:
        return f"Artifacts({self._store!r})"

    def list(self) -> _Listing:
        """Every artifact, sorted by name.

        Each has ``name, path, description, metadata, created_at, size, type, format``; ``path`` is
        the file to open, ``size`` counts bytes. One that cannot be loaded has ``error`` as well.
        """
        found = [self._info(name) for name in self._names()]
        return [facts for facts in found if facts is not None]

    def save(
        self,
        name: str,
        data: object,
        description: str = "",
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> _Facts:
        """Keep a value, in place of one by this name, and return what `list` says of it.

        Args:
            name: may have an extension, ``report.md``; text and bytes are kept in such a file.
            metadata: any JSON object.

        Raises:
            InvalidName: `name` cannot name a file of the folder.
            InvalidArtifact: the value would not come back as it is, or the metadata is not JSON.
                An artifact of this name is unchanged.
        """
        _check_name(name)
        is_mapping = metadata is None or isinstance(metadata, Mapping)  # pyright: ignore[reportUnnecessaryIsInstance]
        kept = dict(metadata or {}) if is_mapping else {}
        if not is_mapping or not is_plain(kept):
            raise InvalidArtifact(name, "its metadata is not a JSON object")
        if not is_plain(description) or not isinstance(description, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArtifact(name, "its description is not a str of valid Unicode")
        encoded = encode(name, data)
        files = [(_file_name(name, encoded, part), part) for part in encoded.parts]
        card = _Card(
            name=name,
            description=description,
            metadata=kept,
            created_at=datetime.now(UTC).isoformat(),
            format=encoded.format,
            type=encoded.type,
            files=tuple(
                _File(name=file, size=len(part.data), detail=part.detail) for file, part in files
            ),
            detail=encoded.detail,
        )
        with self._store.lock():
            self._tidy()
            old = self._files(name)
            new = {file: part.data for file, part in files}
            try:
                for file, content in new.items():
                    self._store.write(file, content)
                self._store.write(name + _CARD, card.to_json())
            except BaseException:
                self._remove(new.keys() - old)
                raise
            # What the folder had by this very name was put there by hand, and is replaced too.
            self._remove((old | {name}) - new.keys())
        return self._describe(card)

    def load(self, name: str) -> Any:
        """The value.

        Raises:
            ArtifactNotFound: there is none.
            InvalidArtifact: its files were removed or changed so that they cannot be read.
        """
        try:
            return self._load(name)
        except NotStored:
            pass  # replaced or deleted between two reads; nobody can while the lock is held
        with self._store.lock():
            try:
                return self._load(name)
            except NotStored as error:
                raise InvalidArtifact(name, f"its file is missing: {error.name}") from error

    def delete(self, name: str) -> None:
        """Remove an artifact, broken ones too.

        Raises:
            ArtifactNotFound: there is none.
        """
        if not self.exists(name):
            raise ArtifactNotFound(name)
        with self._store.lock():
            files = self._files(name)
            found = self._store.delete(name + _CARD)
            found = self._store.delete(name) or found
            self._remove(files)
        if not found:
            raise ArtifactNotFound(name)

    def exists(self, name: str) -> bool:
        """Whether there is an artifact of this name."""
        try:
            _check_name(name)
        except InvalidName:
            return False
        return self._exists(name)

    def _exists(self, name: str) -> bool:
        stats = (self._store.stat(stored) for stored in (name, name + _CARD))
        return any(stat is not None for stat in stats)

    def _names(self) -> list[str]:
        found: set[str] = set()
        for stored in self._store.names():
            name = stored.removesuffix(_CARD)
            try:
                found.add(_check_name(name))
            except InvalidName:
                continue  # data files are part of an artifact; what has too long a name is none
        return sorted(found)

    def _load(self, name: str) -> object:
        if not self.exists(name):
            raise ArtifactNotFound(name)
        try:
            # Put there by hand after the last save, which would have removed it.
            data = self._store.read(name)
        except NotStored:
            pass
        except StoreError as error:
            raise InvalidArtifact(name, error.reason) from error
        else:
            return decode(name, guess(name, data), [Part(data=data, extension="")], {})
        card = self._card(name)
        parts = [
            Part(data=self._store.read(file.name), extension="", detail=file.detail)
            for file in card.files
        ]
        return decode(name, card.format, parts, card.detail)

    def _card(self, name: str) -> _Card:
        # The version first: what changes between the two lines is read again next time.
        version = self._store.version(name + _CARD)
        if version is None:
            raise NotStored(self._store.location(name + _CARD))
        with self._guard:
            known = self._cards.get(name)
        if known is not None and known[0] == version:
            return known[1]
        card = _Card.from_json(name, self._store.read(name + _CARD))
        with self._guard:
            self._cards[name] = (version, card)
        return card

    def _info(self, name: str) -> _Facts | None:
        try:
            for _ in range(_TRIES):
                facts = self._look(name)
                if facts is not None:
                    return facts
            return self._look(name, is_last=True)
        except NotStored:
            return None  # deleted meanwhile
        except (InvalidArtifact, StoreError) as error:
            return {
                "name": name,
                "path": self._store.location(name + _CARD),
                "description": "",
                "metadata": {},
                "created_at": "",
                "size": 0,
                "type": "",
                "format": "",
                "error": error.reason,
            }

    def _look(self, name: str, *, is_last: bool = False) -> _Facts | None:
        """What `list` says, or None where the artifact was replaced between two looks."""
        stat = self._store.stat(name)
        if stat is not None:
            return {
                "name": name,
                "path": self._store.location(name),
                "description": "",
                "metadata": {},
                "created_at": datetime.fromtimestamp(stat.modified, UTC).isoformat(),
                "size": stat.size,
                "type": "file",
                "format": guess(name, b""),
            }
        card = self._card(name)
        facts = self._describe(card)
        missing = [file.name for file in card.files if self._store.stat(file.name) is None]
        if missing:
            if not is_last and self._card(name) != card:
                return None
            facts["error"] = f"its file is missing: {missing[0]}"
        return facts

    def _describe(self, card: _Card) -> _Facts:
        return {
            "name": card.name,
            "path": self._store.location(card.files[0].name),
            "description": card.description,
            "metadata": dict(card.metadata),
            "created_at": card.created_at,
            "size": sum(file.size for file in card.files),
            "type": card.type,
            "format": card.format,
        }

    def _files(self, name: str) -> set[str]:
        """The data files of an artifact; none where that cannot be known."""
        try:
            return {file.name for file in self._card(name).files}
        except (NotStored, InvalidArtifact):
            return set()

    def _remove(self, stored: set[str]) -> None:
        for name in stored:
            self._store.delete(name)

    def _tidy(self) -> None:
        """Once, remove the data files that belong to nothing: a writer was killed over them."""
        if self._is_tidy:
            return
        stored = self._store.names()
        used: set[str] = set()
        for name in stored:
            if name.endswith(_CARD):
                try:
                    used |= {file.name for file in self._card(name.removesuffix(_CARD)).files}
                except NotStored:
                    continue
                except (InvalidArtifact, StoreError):
                    return  # which files it uses nobody knows
        self._remove({name for name in stored if _DATA.search(name)} - used)
        self._is_tidy = True


def _check_name(name: str) -> str:
    reason = _unfit(name)
    if reason:
        raise InvalidName(name, "an artifact", reason)
    return name


def _unfit(name: object) -> str:
    if not isinstance(name, str):
        return "a name is a str"
    try:
        check_stored_name(name)
    except InvalidName as error:
        return error.reason
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    if name.endswith(_CARD) or _DATA.search(name):
        return "it looks like a file that belongs to another artifact"
    return ""


def _file_name(name: str, encoded: Encoded, part: Part) -> str:
    """``report.md`` becomes ``report~1f0e….md``: one name for each artifact and content."""
    digest = hashlib.sha256(name.encode() + b"\0" + part.data).hexdigest()[:16]
    own = _EXTENSION.search(name)
    if own is None:
        return f"{name}~{digest}{part.extension}"
    fits = encoded.format in _ANY_EXTENSION or own[0].lower() == part.extension
    stem = name[: own.start()] if fits else name
    return f"{stem}~{digest}{own[0] if fits else part.extension}"


def _data_name(name: object) -> str:
    if not isinstance(name, str) or not _DATA.search(name):
        raise ValueError("it names a file that is not its own")
    return check_stored_name(name)


def _mapping(value: object) -> _Facts:
    if not isinstance(value, dict):
        raise TypeError("an object is missing")
    return cast("_Facts", value)
