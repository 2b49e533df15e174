"""Values that only Python's pickle can carry, from a host to the guest that trusts it.

Pickle runs code of its writer's choice. A host may send it, since its guest does what the host
says anyway; what a guest made is never read by it.
"""

# What crosses is Any: its parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import pickle

from .errors import ValueNotPortable
from .segments import Pieces
from .values import Decoder, Encoder, InvalidValue, MissingHere, type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any

_APART = 4096  # from this size on a buffer is a segment of its own


class _Charged(Pieces):
    """Counts what the pickler writes while it writes it."""

    __slots__ = ("_encoder", "_value")

    def __init__(self, encoder: Encoder, value: object) -> None:
        super().__init__()
        self._encoder, self._value = encoder, value

    def write(self, data: Any) -> int:
        if self.nbytes + memoryview(data).nbytes > self._encoder.limit:
            self._encoder.charge(self._encoder.limit + 1, self._value)
        return super().write(data)


def encode(encoder: Encoder, value: object) -> Any:
    """The payload of a ``$pickle`` tag: the type's name, the stream, its buffers."""
    name = type_name(type(value))
    buffers: list[Any] = []

    def keep_apart(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _APART:
            return True  # in the stream
        buffers.append(encoder.blob(view, value))
        return False

    stream = _Charged(encoder, value)
    try:
        pickle.Pickler(stream, 5, buffer_callback=keep_apart).dump(value)
    except ValueNotPortable:
        raise
    except Exception as error:  # a border: __reduce__ and __getstate__ of anybody's classes
        reason = f"it cannot be pickled: {type(error).__name__}: {error}"
        raise ValueNotPortable(name, reason[:500]) from error
    return [name, encoder.blob(bytes(stream), value), buffers]


def decode(decoder: Decoder, payload: Any) -> Any:
    """The inverse of `encode`, for input that is trusted.

    Raises:
        MissingHere: a module or a class is missing here, or is of another version.
    """
    name, stream, buffers = decoder.parts(payload, 3)
    if type(name) is not str or type(buffers) is not list:
        raise InvalidValue("malformed pickle")
    data = decoder.blob(stream)
    parts = [decoder.blob(buffer) for buffer in buffers]
    try:
        return pickle.loads(data, buffers=parts)
    except ModuleNotFoundError as error:
        reason = f"the module {error.name!r} is not installed on this side"
        raise MissingHere(name, reason) from error
    except Exception as error:  # a border: constructors of anybody's classes
        reason = f"{type(error).__name__}: {error}"[:400]
        raise MissingHere(
            name,
            f"it cannot be built on this side, where a library may be of another version: {reason}",
        ) from error
