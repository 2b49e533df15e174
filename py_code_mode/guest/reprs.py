"""What an object says of itself, bounded in length and in time; and looking at it without asking.

Only `bounded_repr` and `Reprs` run an object's own code. Everything else here reads classes and
instances through the built-in ``type`` and ``object``, which no metaclass, property or
``__getattribute__`` can change.
"""

# Values are Any: narrowed by their class, their parts are what pyright calls unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import sys
import types

from .values import type_name

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    _Answer = TypeVar("_Answer")

#: Seconds that the objects of one snapshot have for their reprs, together.
PATIENCE = 0.25
_GRACE = 0.05  # seconds for a repr that was told to stop
_REPR = 2_000  # characters kept of an object's own repr
_BITS = 1_000  # ints beyond are told by their size: their decimal form takes quadratic time
_EXACT = 2**53  # ints that every JSON reader keeps

_mro: Any = type.__dict__["__mro__"]
_class_dict: Any = type.__dict__["__dict__"]


def bounded_repr(value: Any, limit: int = _REPR) -> str:
    """``repr(value)``, cut in the middle; a repr that raises is told by its exception's class."""
    # not isinstance(): it may ask the object for its __class__
    if issubclass(type(value), int) and int.bit_length(value) > _BITS:
        return f"<{type_name(type(value))} of {int.bit_length(value):,} bits>"
    try:
        text = repr(value)
    except KeyboardInterrupt:
        raise
    # User code: it may raise anything, SystemExit and RecursionError included.
    except BaseException as error:
        return f"<{type_name(type(value))}: its repr raises {type_name(type(error))}>"
    return clean(text, limit)


def clean(text: str, limit: int) -> str:
    """A plain str of at most about `limit` characters, its middle left out, valid Unicode."""
    size = str.__len__(text)
    if type(text) is str and size <= limit and text.isascii():
        return text
    if size > limit:
        head, tail = (limit + 1) // 2, limit // 2
        text = (
            str.__getitem__(text, slice(head))
            + f"… {size - head - tail:,} characters …"
            + str.__getitem__(text, slice(size - tail, size))
        )
    # backslashreplace: lone surrogates are no JSON
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def number(value: Any) -> Any:
    """A float or int as JSON has it; nan and the infinities by name, huge ints by their size."""
    if issubclass(type(value), float):
        # not float(): a subclass may define __float__
        value = float.__pos__(value)
        return value if value - value == 0.0 else float.__repr__(value)
    value = int.__pos__(value)
    if value.bit_length() > _BITS:
        return f"<int of {value.bit_length():,} bits>"
    return value if -_EXACT <= value <= _EXACT else str(value)


def mro(kind: type) -> tuple[type, ...]:
    """The classes that a class consists of, itself first."""
    return _mro.__get__(kind)


def among(kind: type, kinds: Iterable[type]) -> bool:
    """Whether a class is one of these; ``in`` may ask a metaclass whether it is equal to them."""
    return any(kind is one for one in kinds)


def lookup(kind: type, name: str) -> Any:
    """What a class or its bases define under a name, as it is there; None where nothing is."""
    for base in mro(kind):
        found = _class_dict.__get__(base)
        if name in found:
            return found[name]
    return None


def find(module: str, name: str) -> type | None:
    """A class of a module, if that is loaded."""
    loaded = sys.modules.get(module)
    kind = _module_dict(loaded).get(name) if loaded is not None else None
    return kind if issubclass(type(kind), type) else None


def is_a(kind: type, module: str, name: str) -> bool:
    """Whether a class is, or derives from, a class of a module, without importing that."""
    wanted = find(module, name)
    # not issubclass(): an abstract class asks its own code
    return wanted is not None and any(base is wanted for base in mro(kind))


def _module_dict(module: Any) -> Any:
    own = attributes(module)
    return own if own is not None else {}


def attributes(value: object) -> dict[Any, Any] | None:
    """The instance's own dict; None where it has none, or hides it."""
    for base in mro(type(value)):
        descriptor = _class_dict.__get__(base).get("__dict__")
        if descriptor is None:
            continue
        # a module's is a member
        if not among(type(descriptor), (types.GetSetDescriptorType, types.MemberDescriptorType)):
            return None
        try:
            found = descriptor.__get__(value)
        except TypeError:  # another class's, planted
            return None
        return found if issubclass(type(found), dict) else None
    return None


def member(value: object, name: str) -> Any:
    """The value of an attribute that lives in the instance or in a slot; `MISSING` if nowhere."""
    own = attributes(value)
    if own is not None and name in own:
        return dict.__getitem__(own, name)
    slot = lookup(type(value), name)
    if type(slot) is types.MemberDescriptorType:
        try:
            return slot.__get__(value)
        except AttributeError:
            return MISSING
    return MISSING


class _Missing:
    """Stands for an attribute that is not set."""


MISSING = _Missing()

# A repr of these runs no other object's code. The raw slots: a subclass may define its own.
_LEAVES = frozenset(
    id(vars(kind)["__repr__"])
    for kind in (
        object,
        int,
        float,
        complex,
        range,
        type,
        types.FunctionType,
        types.BuiltinFunctionType,
        type(None),
        type(...),
        type(NotImplemented),
    )
)


class Reprs:
    """Asks objects for their repr, each once and all of them within `PATIENCE` seconds.

    A repr that may run other code than the interpreter's is asked on a thread of its own: one that
    never ends costs the snapshot a moment, not the run its deadline.
    """

    def __init__(self) -> None:
        self._left = PATIENCE
        self._known: dict[int, tuple[object, str]] = {}

    def of(self, value: object) -> str:
        """The repr, at most about 2,000 characters, or a text in <> that says what it did."""
        known = self._known.get(id(value))
        if known is None:  # the value is kept with it, so that no other takes its id
            known = self._known[id(value)] = (value, self._ask(value))
        return known[1]

    def _ask(self, value: object) -> str:
        if id(lookup(type(value), "__repr__")) in _LEAVES:
            return bounded_repr(value)
        name = type_name(type(value))
        if self._left <= 0:
            return f"<{name}>"
        try:
            return self.within(name, lambda: bounded_repr(value))
        except TookTooLong as error:
            return f"<{name}: its repr {error}>"
        # what bounded_repr() lets pass; real interrupts go to the thread that waits
        except _Raised as error:
            return f"<{name}: its repr raises {error}>"

    def within(self, name: str, function: Callable[[], _Answer]) -> _Answer:
        """What a function returns that may run any code, if there is time for it.

        Raises:
            TookTooLong: it had not returned in time, or no thread could be started.
        """
        import time

        began = time.monotonic()
        try:
            return _apart(name, function, max(0.0, self._left))
        finally:
            self._left -= time.monotonic() - began


class TookTooLong(Exception):
    """Code did not end within its time; the text says so, and whether it goes on."""


class _Raised(Exception):
    """Code raised something; the text is the name of its class."""


def _apart(name: str, function: Callable[[], _Answer], seconds: float) -> _Answer:
    import contextvars
    import threading

    answer: list[_Answer] = []
    raised: list[str] = []
    done = threading.Event()
    context = contextvars.copy_context()  # numpy's and decimal's settings live there

    def ask() -> None:
        try:
            answer.append(context.run(function))
        # Anything: what the code raises, or what _stop() raises here, wherever that comes.
        except BaseException as error:
            raised.append(type_name(type(error)))
        done.set()

    thread = threading.Thread(target=ask, name=f"repr of {name}"[:100], daemon=True)
    try:
        thread.start()
        has_ended = done.wait(seconds)
    except RuntimeError:  # the limit on threads
        raise TookTooLong("was not asked: no thread could be started") from None
    except BaseException:  # an interrupt of the one who waits
        _stop(thread.ident)
        raise
    if not has_ended:
        _stop(thread.ident)
        goes_on = "" if done.wait(_GRACE) else ", and goes on"
        raise TookTooLong(f"did not end within {PATIENCE:g} s{goes_on}")
    thread.join(_GRACE)  # one that is still ending would keep the process from being copied
    if not answer:
        raise _Raised(raised[0])
    return answer[0]


def _stop(ident: int | None) -> None:
    """Raise SystemExit in a thread, which sees it at its next bytecode, if ever."""
    if ident is None:
        return
    import ctypes

    # A prototype of our own: that of `ctypes.pythonapi` is everybody's to change.
    set_exception = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
        ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
    )
    set_exception(ident, SystemExit)
