"""The records of a journal, and how one becomes a line and back.

A line is a JSON object with ``seq`` (0 for the header, then one more each time: order is `seq`,
never time), ``ts`` (RFC 3339, UTC, informational), ``record_type``, the record's own fields, and a
checksum that the log adds. Fields with their default value are left out.
What has no form in JSON is never altered silently: `plain` turns it into tagged objects, which
`restore` turns back.

A record is data: frozen, and its values are the caller's own, so nobody changes them afterwards.
"""

# Values of records are Any: msgspec decodes their shape, not their content.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

import msgspec
from msgspec import Struct

from py_code_mode.errors import InvalidRecord
from py_code_mode.guest import values
from py_code_mode.guest.errors import ValueNotPortable
from py_code_mode.results import State  # noqa: TC001  (msgspec reads the annotations)

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = [
    "CURRENT_SCHEMA_VERSION",
    "MAX_INLINE",
    "RECORD_TYPES",
    "Call",
    "CallStatus",
    "Chunk",
    "ErrorInfo",
    "Event",
    "Foreign",
    "Header",
    "InvalidRecord",
    "Patch",
    "Record",
    "Recovery",
    "Reopen",
    "Run",
    "RunStatus",
    "SavedState",
    "Tagged",
    "Trailer",
    "Transition",
    "Turn",
    "args_sha256",
    "decode",
    "decode_dict",
    "encode",
    "from_dict",
    "merge_patch",
    "plain",
    "restore",
    "stamp",
    "to_dict",
]

#: Of the journals written here. Version 1 (without `seq` and checksums) is read as well.
CURRENT_SCHEMA_VERSION = 2
#: Bytes of one value in a line; what is larger becomes a blob.
MAX_INLINE = 64 << 10
#: Containers inside containers that a line holds.
MAX_DEPTH = 100
#: Parts of one value that needs tags; the rest is described.
MAX_NODES = 1_000_000
_MAX_REPR = 1000  # characters
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

RunStatus: TypeAlias = Literal["running", "ok", "error", "timeout", "cancelled", "crashed"]
CallStatus: TypeAlias = Literal["running", "success", "error", "timeout", "skipped", "cancelled"]


class ErrorInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong; `cause` and `limit` as those of `results.Failure`."""

    type: str
    message: str = ""
    traceback: str = ""
    lineno: int | None = None
    cause: str = "code"
    limit: str | None = None


# Records hold JSON, so there are no circles that a garbage collector had to find.
class Record(
    Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="record_type"
):
    """What every record has. Both fields are given by the journal when it writes the record.

    Attributes:
        seq: its place in the journal; -1 for a record that is not written yet.
        ts: when it was written.
    """

    #: Fields that may hold any value; they are made JSON-safe, and blobs where they are large.
    FREE: ClassVar[tuple[str, ...]] = ()

    seq: int = -1
    ts: str = ""

    @property
    def record_type(self) -> str:
        """The name of its type in the file."""
        return cast("str", type(self).__struct_config__.tag)


class Header(Record, tag="header", frozen=True, kw_only=True):
    """The first record: what the session is, and where it comes from.

    Attributes:
        fork_point: ``{"id": ..., "seq": ...}``: up to this record of that session, which is not
            copied, this one has the same past.
        sandbox_backend: kind of the executor; ``sandbox_spec`` is its configuration and
            ``sandbox_handle_id`` the name of what it runs in, where one can come back to it.
        runtime: versions of what wrote the journal.
        boot_id, mono_ns: which boot of the machine, and the monotonic clock at `created_at`.
    """

    FREE = ("metadata", "lineage_extras", "sandbox_spec", "runtime")

    schema_version: int
    id: str
    created_at: str
    workspace_id: str | None = None
    agent_id: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = {}
    parent_session_ids: list[Any] = []
    lineage_operator: str = "implicit"
    lineage_kind: str = "unknown"
    lineage_extras: Any = None
    fork_point: dict[str, Any] | None = None
    sandbox_backend: str | None = None
    sandbox_spec: Any = None
    sandbox_handle_id: str | None = None
    runtime: dict[str, Any] = {}
    boot_id: str = ""
    mono_ns: int = 0


class Run(Record, tag="run", frozen=True, kw_only=True):
    """One `Session.run`, twice: the intent before it executes, the outcome after.

    The intent has `status` ``running``, `code` and what is known beforehand; the outcome has the
    same `run_id`, another status, and leaves `code` out.

    Attributes:
        state: what became of the variables; `restored_to` is the run whose variables are back,
            0 for those from before any run since the start or a reset.
        incarnation: which copy of the interpreter ran it.
        value: plain JSON (see `plain`), or ``{"$snapshot": {...}}`` of a value that stayed where
            it is, or a blob reference. None, too, where there is no value.
        stdout, stderr: bounded by who records.
        displays: ``{"data": {mime: text, {"$bytes": base64} or blob}, "metadata": {...}}`` each.
        handles: new or changed large variables: snapshot by name.
        bindings: ``{"added": [{"name", "type", "handle"}], "removed": [name]}``.
        effects: ``{"kind": artifact|workflow|dep, "op", "name", "version"}`` each.
        late: output since the previous run: ``{"stdout", "stderr", "displays"}``.
    """

    FREE = ("value", "displays", "handles", "bindings", "effects", "late", "usage", "metadata")

    run_id: int
    status: RunStatus = "running"
    turn_id: str | None = None
    code: str = ""
    code_sha256: str = ""
    timeout: float | None = None
    started_at: str = ""
    ended_at: str = ""
    duration_ms: float = 0.0
    state: State = "kept"
    restored_to: int | None = None
    incarnation: int = 0
    value: Any = None
    stdout: str = ""
    stderr: str = ""
    error: ErrorInfo | None = None
    displays: Any = []
    handles: Any = {}
    bindings: Any = {}
    effects: Any = []
    notes: list[str] = []
    late: Any = None
    usage: Any = None
    metadata: Any = {}


class Call(Record, tag="call", frozen=True, kw_only=True):
    """One call from guest to host, twice: before it is carried out, and after.

    Attributes:
        run_id: the run that made it; None outside of one.
        index: counted from 0 within its run.
        tool_name: ``namespace.method``.
        arguments: ``{"args": [...], "kwargs": {...}}``, or a mapping of names.
        args_sha256: see the function of that name; replay finds the call's result by it.
        replay: whether `result` came from the tool (``record``) or from an older journal.
    """

    FREE = ("arguments", "result", "sandbox_context", "metadata")

    call_id: str
    tool_name: str
    run_id: int | None = None
    index: int = 0
    arguments: Any = {}
    args_sha256: str = ""
    result: Any = None
    status: CallStatus = "success"
    error: Any = None
    duration_ms: float = 0.0
    sandbox_context: Any = None
    replay: str = "record"
    metadata: Any = {}


class Event(Record, tag="event", frozen=True, kw_only=True):
    """Something that happened between runs.

    Attributes:
        kind: ``reset``, ``checkpoint``, ``rollback``, ``fork``, ``put`` and ``delete`` (of a
            handle), ``dep``, ``skip`` and what else the session tells. The *live line* knows
            ``reset``, ``rollback`` and ``skip``.
        run_id: the newest run that had ended; of a rollback, the run that was gone back to.
        data: the rest; of ``skip`` ``{"run_ids": [...]}``: runs that a resumed session left out.
    """

    FREE = ("data",)

    kind: str
    run_id: int | None = None
    data: Any = {}


class Turn(Record, tag="turn", frozen=True, kw_only=True):
    """One exchange with an agent; a later one with the same `turn_id` replaces it.

    The fields are those of `TurnRecord`; `tool_calls` are `ToolCallRecord`s as dicts.
    """

    FREE = ("tool_calls", "audit_event_ids", "metadata")

    turn_id: str
    agent_id: str | None = None
    prompt: str = ""
    response_content: str | None = None
    tool_calls: Any = []
    started_at: str = ""
    ended_at: str | None = None
    status: str = "success"
    error: str | None = None
    audit_event_ids: Any = []
    metadata: Any = {}


class Transition(Record, tag="transition", frozen=True, kw_only=True):
    """One agent handed over to another; the fields are those of `AgentTransitionRecord`."""

    to_agent: str
    from_agent: str | None = None
    reason: str = ""
    turn_id: str = ""
    timestamp: str = ""


class Chunk(Record, tag="chunk", frozen=True, kw_only=True):
    """One message of a conversation; `index` counts from 0."""

    FREE = ("payload",)

    kind: Literal["system", "user", "assistant", "tool_result"]
    payload: dict[str, Any]
    index: int = -1


class Patch(Record, tag="patch", frozen=True, kw_only=True):
    """A merge patch (RFC 7396) of the header: `metadata`, `agent_id`, `title` and the like."""

    FREE = ("patch",)

    patch: dict[str, Any]


class SavedState(Record, tag="saved_state", frozen=True, kw_only=True):
    """The namespace, written to disk.

    Attributes:
        at_run: the newest run whose variables it has.
        vars: ``{"codec", "blob", "type", "size"}`` by name.
        blob: the whole, where one blob has it all; vars then tell names and types only.
        skipped: why, by name of what could not be saved.
        executor: kind of the executor whose guest wrote it; `policy` is what confined that.
        supersedes: ids of older ones that nobody needs any more: their blobs are removed.
    """

    FREE = ("vars", "blob", "skipped", "policy", "metadata")

    saved_state_id: str
    at_run: int
    vars: Any = {}
    blob: Any = None
    skipped: Any = {}
    supersedes: list[str] = []
    deps_lock: str | None = None
    executor: str | None = None
    policy: Any = None
    python: str = ""
    metadata: Any = {}


class Reopen(Record, tag="reopen", frozen=True, kw_only=True):
    """Somebody writes on after a close or a crash; from here a new incarnation may speak.

    Attributes:
        mode: of the resume: ``restore``, ``replay``, ``transcript``; empty where none was made.
    """

    reason: str = ""
    mode: str = ""
    runtime: dict[str, Any] = {}
    boot_id: str = ""


class Recovery(Record, tag="recovery", frozen=True, kw_only=True):
    """What a crash left, and what was cut off when the journal was reopened.

    Attributes:
        at_offset: where `dropped_bytes` bytes, whose SHA-256 is `sha256`, were cut.
        damaged: ``[offset, size]`` of lines further up that are damaged: they were written
            shortly before the power failed. Reading them is no error any more.
    """

    at_offset: int
    dropped_bytes: int = 0
    reason: str = ""
    sha256: str = ""
    damaged: list[list[int]] = []


class Trailer(Record, tag="trailer", frozen=True, kw_only=True):
    """The last record of a closed session.

    Attributes:
        status: how it ended: ``closed``, ``error`` or what else the caller says.
        final_seq: `seq` of the record before this one; None in version 1.
        counts: records by type, this one not counted.
    """

    FREE = ("cumulative_usage", "metadata")

    closed_at: str = ""
    status: str = "closed"
    final_seq: int | None = None
    final_chunk_count: int | None = None
    counts: dict[str, int] = {}
    cumulative_usage: Any = None
    metadata: Any = {}


class Foreign(Struct, frozen=True, kw_only=True, gc=False):
    """A record of somebody else, whose type begins with ``x-``: kept, and otherwise ignored."""

    FREE: ClassVar[tuple[str, ...]] = ()

    record_type: str
    data: dict[str, Any]
    seq: int = -1
    ts: str = ""


AnyRecord: TypeAlias = (
    Header
    | Run
    | Call
    | Event
    | Turn
    | Transition
    | Chunk
    | Patch
    | SavedState
    | Reopen
    | Recovery
    | Trailer
)

#: Class by name of the type.
RECORD_TYPES: Mapping[str, type[Record]] = {
    cast("str", kind.__struct_config__.tag): kind
    for kind in cast("tuple[type[Record], ...]", AnyRecord.__args__)
}


def encode(record: Record | Foreign | Mapping[str, Any], *, seq: int = -1, ts: str = "") -> bytes:
    """The record as one line of JSON, without a checksum and the end of the line.

    The values of its free fields must be `plain`. Texts may hold anything, lone surrogates too.

    Args:
        seq: what the record gets; where negative, its own `seq` and `ts` are written.
        ts: goes with `seq`.
    """
    if isinstance(record, Record):
        if record.seq < 0 <= seq:  # not written yet, so that neither is in its own encoding
            try:
                body = _ENCODER.encode(record)
            except (UnicodeEncodeError, RecursionError, ValueError, OverflowError):
                body = _encode_slowly(to_dict(record))
            return _escape(b'{"seq":%d,"ts":"%s",%s' % (seq, ts.encode(), body[1:]))
        record = to_dict(record)
    elif isinstance(record, Foreign):
        record = to_dict(record)
    if seq >= 0:
        record = {"seq": seq, "ts": ts, **{k: v for k, v in record.items() if k not in _ENVELOPE}}
    try:
        return _escape(_ENCODER.encode(record))
    except (UnicodeEncodeError, RecursionError, ValueError, OverflowError):
        return _escape(_encode_slowly(record))


def decode(line: bytes | memoryview) -> Record | Foreign:
    """The record of one line.

    Raises:
        InvalidRecord: it is none; the message says why.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return from_dict(decode_dict(line))  # says what is wrong, if anything is


def decode_dict(line: bytes | memoryview) -> dict[str, Any]:
    """The record of one line as it stands, keys that nobody knows included.

    A line that is rewritten must go this way, so that what a newer version wrote stays in it.

    Raises:
        InvalidRecord: it is no JSON object.
    """
    try:
        found = _ANY.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        try:
            # lone surrogates, which msgspec takes for an error
            found = json.loads(bytes(line))
        except json.JSONDecodeError as error:
            raise InvalidRecord(f"invalid JSON (col {error.colno}): {error.msg}") from None
        except RecursionError:
            raise InvalidRecord("invalid JSON: too many containers inside each other") from None
        except ValueError as error:  # not UTF-8, or an int of more digits than Python reads
            raise InvalidRecord(f"invalid JSON: {error}") from None
    if type(found) is not dict:
        raise InvalidRecord(f"a record must be a JSON object, got {type(found).__name__}")
    return cast("dict[str, Any]", found)


def from_dict(data: Mapping[str, Any]) -> Record | Foreign:
    """The record that `to_dict` or `decode_dict` gave.

    Raises:
        InvalidRecord: its type is unknown, or a field does not fit.
    """
    kind = data.get("record_type")
    if isinstance(kind, str) and kind.startswith("x-"):
        seq, ts = data.get("seq", -1), data.get("ts", "")
        if type(seq) is not int or type(ts) is not str:
            raise InvalidRecord(f"seq={seq!r} or ts={ts!r} of a record of type {kind!r}")
        rest = {key: value for key, value in data.items() if key not in _OUTSIDE}
        return Foreign(record_type=kind, data=rest, seq=seq, ts=ts)
    found = RECORD_TYPES.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise InvalidRecord(f"unknown record_type={kind!r}")
    try:
        return msgspec.convert(data, found)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidRecord(f"a record of type {kind!r}: {error}") from None


def to_dict(record: Record | Foreign) -> dict[str, Any]:
    """The record as its line has it, without a checksum."""
    if isinstance(record, Foreign):
        envelope = {"seq": record.seq, "ts": record.ts} if record.seq >= 0 else {}
        return {**envelope, "record_type": record.record_type, **record.data}
    envelope = {"seq": record.seq, "ts": record.ts} if record.seq >= 0 else {}
    return {**envelope, "record_type": record.record_type, **_fields_of(record)}


def _fields_of(struct: Struct) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in _FIELDS[type(struct)]:
        if field.name in _ENVELOPE:
            continue
        value = getattr(struct, field.name)
        made = field.default_factory
        default = field.default if made is msgspec.NODEFAULT else made()
        if type(value) is not type(default) or value != default:
            found[field.name] = _fields_of(value) if isinstance(value, ErrorInfo) else value
    return found


def stamp(seconds: float) -> str:
    """A moment, given in seconds since the epoch, as records have it (RFC 3339)."""
    global _second
    try:
        whole = int(seconds // 1)
        if whole != _second[0]:
            _second = whole, datetime.fromtimestamp(whole, UTC).isoformat()[:-6]
        return f"{_second[1]}.{int((seconds - whole) * 1e6):06d}Z"
    except (ValueError, OverflowError, OSError):  # a clock that is far off is no reason to fail
        return "1970-01-01T00:00:00.000000Z"


def args_sha256(arguments: object) -> str:
    """What tells whether two calls had the same arguments, in different processes too.

    Neither the order of keys matters nor that of a set, nor the address of what is only described.
    """
    tree = plain(arguments)
    if tree is not arguments:
        tree = _settled(tree)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _settled(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_settled(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    found: dict[str, Any] = {name: _settled(item) for name, item in tree.items()}
    for name in ("$set", "$frozenset"):
        if name in found:
            found[name] = sorted(found[name], key=partial(json.dumps, sort_keys=True))
    if "$repr" in found:
        found["$repr"] = _ADDRESS.sub("", str(found["$repr"]))
    return found


def merge_patch(target: Any, patch: Any) -> Any:
    """The target changed as RFC 7396 says; the target itself stays as it is."""
    if not isinstance(patch, dict):
        return patch
    found: dict[str, Any] = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merge_patch(found.get(key), value)
    return found


class Tagged(dict[str, Any]):
    """An object with a tag that is meant as one: a reference to a blob, or a snapshot.

    An ordinary dict with such a key is somebody's data, and is recorded as that.
    """

    __slots__ = ()

    @classmethod
    def snapshot(cls, data: Mapping[str, Any]) -> Tagged:
        """What stands for a value that stayed where it is: ``{"$snapshot": {...}}``."""
        return cls({"$snapshot": dict(data)})


def plain(value: object, *, is_tagged: bool = False) -> Any:
    """The value as JSON can hold it; the same object where it is plain already.

    Plain are None, bool, int, str, finite floats, and lists and dicts of those, whose keys are
    texts that do not begin with ``$``. All else becomes an object with one key that does:
    ``$float`` (nan, inf), ``$bytes`` (base64), ``$tuple``, ``$set``, ``$frozenset``, ``$dict``
    (keys and values), and what `guest.values` knows besides, such as ``$datetime``. The rest is
    described: ``{"$repr": text}``. `Tagged` objects stay.

    Never raises. What is nested too deeply, or is inside itself, is described as well. Not to be
    applied twice: what looks like a tag is then taken for data.

    Args:
        is_tagged: it is such a tree already, from a journal perhaps: objects with tags are meant as
            that, and only what has no form in JSON is changed.
    """
    return value if _is_plain(value, 0) else _Tagger(is_tagged=is_tagged).walk(value, 0)


def restore(tree: Any) -> Any:
    """The value that `plain` was given; descriptions, snapshots and blob references as they are."""
    kind = type(tree)
    if kind is list:
        return [restore(item) for item in tree]
    if kind is not dict:
        return tree
    if len(tree) == 1:
        ((tag, body),) = tree.items()
        if tag[:1] == "$" and tag not in _KEPT_TAGS:
            return _restore_tagged(tag, body, tree)
    return {key: restore(item) for key, item in tree.items()}


def _restore_tagged(tag: str, body: Any, tree: Any) -> Any:
    try:
        match tag:
            case "$float":
                return float(body)
            case "$int":
                return int(body, 16)
            case "$bytes":
                return base64.b64decode(body)
            case "$tuple":
                return tuple(restore(item) for item in body)
            case "$set":
                return {restore(item) for item in body}
            case "$frozenset":
                return frozenset(restore(item) for item in body)
            case "$dict":
                return {restore(key): restore(item) for key, item in zip(*body, strict=True)}
            case _:
                return values.decode(tree, [], writable=True)
    except (TypeError, ValueError):
        return tree  # somebody else's object that only looks like ours


def _is_plain(value: Any, depth: int) -> bool:
    # Texts need no look: one with lone surrogates is written by another encoder.
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return value - value == 0.0
    if depth == MAX_DEPTH:
        return False
    if kind is dict or kind is Tagged:
        for key, item in value.items():
            if type(key) is not str or (key[:1] == "$" and kind is dict):
                return False
            if type(item) not in _ATOMS and not _is_plain(item, depth + 1):
                return False
        return True
    if kind is list:
        for item in value:
            if type(item) not in _ATOMS and not _is_plain(item, depth + 1):
                return False
        return True
    return False


class _Tagger:
    """One walk through a value that is not plain.

    Args:
        is_tagged: it was plain before: objects with tags stay as they are.
    """

    def __init__(self, *, is_tagged: bool = False) -> None:
        self._is_tagged = is_tagged
        self._inside: set[int] = set()
        self._left = MAX_NODES

    def walk(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self._left -= 1
        if kind in _ATOMS:
            return value if kind is not int or value.bit_length() <= _MAX_BITS else _int(value)
        if kind is float:
            return value if value - value == 0.0 else {"$float": repr(value)}
        if depth >= MAX_DEPTH or self._left < 0:
            return {"$repr": f"<{_name(kind)}: too deep or too large to be recorded>"}
        try:
            if kind in _CONTAINERS:
                return self._container(value, kind, depth)
            return self._leaf(value, kind)
        except Exception as error:  # code of the value's class, or an object in somebody's hands
            return {"$repr": f"<{_name(kind)}: describing it raised {type(error).__name__}>"}

    def _container(self, value: Any, kind: type, depth: int) -> Any:
        if id(value) in self._inside:
            return {"$repr": f"<{_name(kind)}: it contains itself>"}
        self._inside.add(id(value))
        try:
            depth += 1
            if kind in _SEQUENCES:
                found = [self.walk(item, depth) for item in list(value)]
                return found if kind is list else {f"${kind.__name__}": found}
            items = list(value.items())
            names = [key for key, _ in items if type(key) is str]
            if len(names) == len(items) and (
                kind is Tagged or self._is_tagged or not any(key[:1] == "$" for key in names)
            ):
                return {key: self.walk(item, depth) for key, item in items}
            keys = [self.walk(key, depth) for key, _ in items]
            return {"$dict": [keys, [self.walk(item, depth) for _, item in items]]}
        finally:
            self._inside.discard(id(value))

    def _leaf(self, value: Any, kind: type) -> Any:
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        segments: list[Any] = []
        try:
            tree = values.encode(value, segments, limit=MAX_INLINE)
        except ValueNotPortable:
            segments.append(value)
        else:
            if not segments:
                return tree
        if isinstance(value, str):
            return self.walk(str.__str__(value), 0)
        text = repr(value)
        return {"$repr": text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 1] + "…"}


def _int(value: int) -> dict[str, str]:
    return {"$int": f"{value:x}"}


def _name(kind: type) -> str:
    return type.__dict__["__name__"].__get__(kind)


def _encode_slowly(record: Mapping[str, Any]) -> bytes:
    """For what msgspec cannot write: lone surrogates, very long ints."""
    try:
        text = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError):
        tree = _Tagger(is_tagged=True).walk(dict(record), -1)
        text = json.dumps(tree, ensure_ascii=True, separators=(",", ":"))
    return text.encode()


def _escape(line: bytes) -> bytes:
    """Escape what some readers take for the end of a line (Unicode, section 5.8)."""
    if line.isascii():
        return line
    for character, escaped in _LINE_ENDS:
        if character in line:
            line = line.replace(character, escaped)
    return line


_LINE_ENDS = [(mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\u2028\u2029\x85"]
_second = (0, "1970-01-01T00:00:00")  # the last one that was asked for, and its text
_ATOMS = frozenset({type(None), bool, int, str})
_SEQUENCES = frozenset({list, tuple, set, frozenset})
_CONTAINERS = _SEQUENCES | {dict, Tagged}
_KEPT_TAGS = frozenset({"$blob", "$repr", "$snapshot"})
_MAX_BITS = 4096  # Python itself reads no longer ints (4300 digits) from a text
_ENVELOPE = frozenset({"seq", "ts"})
_OUTSIDE = frozenset({"seq", "ts", "crc", "record_type"})
_FIELDS: dict[type[Struct], tuple[msgspec.structs.FieldInfo, ...]] = {
    kind: msgspec.structs.fields(kind) for kind in (*RECORD_TYPES.values(), ErrorInfo)
}
_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)
_ANY = msgspec.json.Decoder()
