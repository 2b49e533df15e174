"""The variables of a session as bytes for another day: written and read by guests only.

All variables are pickled together, so that what they share stays shared; those that cannot be are
left out, and said. Functions and classes of cells are kept by value (cloudpickle), and see the
variables of the session that loads them, as they did in the one that saved them.

To the host it is bytes that it keeps: reading them runs what they say.
"""

# What is pickled is Any, and cloudpickle has no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import io
import pickle
import sys
from contextlib import contextmanager
from types import ModuleType

from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from typing import Any

_PROTOCOL = 5
#: Bytes from which an array is kept apart: what has not changed is not written a second time.
_APART = 64 << 10
_GLOBALS = "globals"
#: Characters of a reason.
_MAX_REASON = 300


#: The first bytes of what is saved: the code of functions is of one version of Python.
_VERSION = f"Python {sys.version_info[0]}.{sys.version_info[1]}\n".encode()


class Unloadable(ValueError):
    """Bytes that do not give variables here."""


class Saved:
    """What `save` gives.

    Attributes:
        parts: bytes-like; the first is the pickle, the others its large buffers. They may be views
            of the variables.
        types: of the variables in it, by name.
        skipped: why the others are not.
    """

    __slots__ = ("parts", "skipped", "types")

    def __init__(self, parts: list[Any], types: dict[str, str], skipped: dict[str, str]) -> None:
        self.parts, self.types, self.skipped = parts, types, skipped


def save(namespace: dict[str, Any], reserved: Mapping[str, Any], limit: int) -> Saved:
    """Pickle the user's variables.

    Args:
        namespace: what cells run in.
        reserved: names that the session gives, and their values; they are not saved.
        limit: bytes in all; what would go beyond is left out.
    """
    kept: dict[str, Any] = {}
    for name, value in list(namespace.items()):
        is_ours = name in reserved and reserved[name] is value
        if not is_ours and not (name[:2] == "__" and name[-2:] == "__"):
            kept[name] = value
    skipped: dict[str, str] = {}
    try:
        parts = _dump(namespace, reserved, kept, limit)
    except Unloadable:
        # One of them is to blame: each is tried alone, and then those that can be, together.
        room = limit
        for name in list(kept):
            try:
                room -= _size(_dump(namespace, reserved, kept[name], room))
            except Unloadable as error:
                skipped[name] = str(error)
                del kept[name]
        # Together they take a little more: their names.
        while True:
            try:
                parts = _dump(namespace, reserved, kept, limit)
                break
            except Unloadable as error:
                if not kept:
                    raise
                name, _ = kept.popitem()
                skipped[name] = str(error)
    return Saved(parts, {name: type_name(type(value)) for name, value in kept.items()}, skipped)


def load(namespace: dict[str, Any], reserved: Mapping[str, Any], parts: Sequence[Any]) -> list[str]:
    """Put saved variables into a namespace; gives their names.

    Raises:
        Unloadable: a package is missing, or it or Python is of another version. Nothing has
            changed.
    """
    pickled = memoryview(parts[0])
    version = bytes(pickled[:20]).partition(b"\n")[0].decode("ascii", "replace")
    if f"{version}\n".encode() != _VERSION:
        raise Unloadable(f"it was saved by {version}, and this is {_VERSION.decode().strip()}")
    stream = io.BytesIO(pickled[len(_VERSION) :])
    loader = _Loader(stream, namespace, reserved, parts[1:])
    try:
        found = dict(loader.load())
    except Exception as error:  # a border: constructors of anybody's classes
        raise Unloadable(f"{type(error).__name__}: {error}"[:_MAX_REASON]) from error
    namespace.update(found)
    return list(found)


def _size(parts: list[Any]) -> int:
    return sum(memoryview(part).nbytes for part in parts)


def _dump(
    namespace: dict[str, Any], reserved: Mapping[str, Any], value: object, limit: int
) -> list[Any]:
    """A value's pickle and its buffers.

    Raises:
        Unloadable: it cannot be pickled, or is larger than the limit.
    """
    stream = _Bounded(limit)
    stream.write(_VERSION)
    buffers: list[Any] = []

    def keep_apart(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _APART:
            return True  # in the stream
        stream.take(view.nbytes)
        buffers.append(view)
        return False

    try:
        with _by_value(str(namespace.get("__name__"))):
            _pickler(stream, keep_apart, namespace, reserved).dump(value)
    except Unloadable:
        raise
    except Exception as error:  # a border: __reduce__ and __getstate__ of anybody's classes
        raise Unloadable(f"{type(error).__name__}: {error}"[:_MAX_REASON]) from error
    return [stream.getvalue(), *buffers]


@contextmanager
def _by_value(module_name: str) -> Generator[None, None, None]:
    """Have what cells define kept by value, also where their module is not ``__main__``."""
    module = sys.modules.get(module_name)
    if module_name == "__main__" or module is None:
        yield
        return
    cloudpickle = _cloudpickle()
    if cloudpickle is None:
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _cloudpickle() -> Any:
    """The package, or None where the environment lacks it: then only plain pickle is had."""
    try:
        import cloudpickle  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return cloudpickle


class _Bounded(io.BytesIO):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit, self._left = limit, limit

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Unloadable(f"it takes more than {self._limit:,} bytes")

    def write(self, data: Any) -> int:
        self.take(memoryview(data).nbytes)
        return super().write(data)


def _pickler(
    stream: _Bounded, keep_apart: Any, namespace: dict[str, Any], reserved: Mapping[str, Any]
) -> pickle.Pickler:
    """A pickler that leaves the session's own objects to the session that loads."""
    names = {id(value): name for name, value in reserved.items()}
    names[id(namespace)] = _GLOBALS

    def persistent_id(_: object, value: object) -> str | None:
        name = names.get(id(value))
        if name is not None:
            return name
        if type(value) is ModuleType and sys.modules.get(value.__name__) is value:
            return f"import {value.__name__}"  # one made by hand can be found nowhere
        return None

    cloudpickle = _cloudpickle()
    if cloudpickle is None:
        plain = type("_Plain", (pickle.Pickler,), {"persistent_id": persistent_id})
        return plain(stream, _PROTOCOL, buffer_callback=keep_apart)

    class ByValue(cloudpickle.Pickler):
        def _dynamic_function_reduce(self, func: Any) -> Any:
            reduced = super()._dynamic_function_reduce(func)
            if func.__globals__ is namespace:
                # what it uses is a variable: saved with the others, or not at all
                reduced[2][1]["__globals__"] = {}
            return reduced

    by_value: Any = type("_ByValue", (ByValue,), {"persistent_id": persistent_id})(
        stream, _PROTOCOL, buffer_callback=keep_apart
    )
    by_value.globals_ref[id(namespace)] = namespace
    return by_value


class _Loader(pickle.Unpickler):
    def __init__(
        self,
        stream: io.BytesIO,
        namespace: dict[str, Any],
        reserved: Mapping[str, Any],
        buffers: Sequence[Any],
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._namespace, self._reserved = namespace, reserved

    def persistent_load(self, pid: Any) -> Any:
        if pid == _GLOBALS:
            return self._namespace
        if pid[:7] == "import ":
            import importlib

            return importlib.import_module(pid[7:])
        return self._reserved[pid]
