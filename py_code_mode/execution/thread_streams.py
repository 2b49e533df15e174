"""Python-level standard streams that follow the thread: each in-process session hears its own.

Two sessions in one process must not hear each other, so `sys.stdout` and `sys.stderr` are replaced,
while such sessions are open, by routers that ask which thread is writing. Threads that a session's
code starts belong to it (as in ipykernel). C code and child processes write past this: only a
worker process captures those.
"""

from __future__ import annotations

import io
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Sink(Protocol):
    """Takes what the threads of one session write."""

    def write(self, stream: str, text: str) -> None: ...
    def flush(self) -> None: ...


_sinks: dict[int, Sink] = {}
_users = 0
_lock = threading.Lock()
_original_start: Callable[[threading.Thread], None] | None = None


class _Router(io.TextIOBase):
    """Stands in for a standard stream; everything but writing goes to the original."""

    def __init__(self, original: TextIO, stream: str) -> None:
        self.original = original
        self._stream = stream

    def write(self, text: str, /) -> int:
        sink = _sinks.get(threading.get_ident())
        if sink is None:
            return self.original.write(text)
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        sink.write(self._stream, text)
        return len(text)

    def writelines(self, lines: Iterable[Any], /) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        sink = _sinks.get(threading.get_ident())
        if sink is None:
            self.original.flush()
        else:
            sink.flush()

    def close(self) -> None:
        """Stay open: it is the host's stream too."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return threading.get_ident() not in _sinks and self.original.isatty()

    def fileno(self) -> int:
        return self.original.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "utf-8" if threading.get_ident() in _sinks else self.original.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class _NoInput(io.TextIOBase):
    """Standard input: the host's own, for all but the threads of sessions."""

    def __init__(self, original: TextIO) -> None:
        self.original = original

    def readline(self, size: int = -1, /) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if threading.get_ident() in _sinks:
            raise EOFError(
                "input() is not available in a session: pass the value in the code instead"
            )
        return self.original.readline(size)

    def close(self) -> None:
        """Stay open: ``exit()`` closes standard input."""
        if threading.get_ident() not in _sinks:
            self.original.close()

    def fileno(self) -> int:
        return self.original.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def acquire() -> None:
    """Put the routers in place; `release` as often."""
    global _users, _original_start
    with _lock:
        _users += 1
        if _users == 1:
            _original_start = threading.Thread.start
            threading.Thread.start = cast("Any", _start_inheriting)
        _install()


def refresh() -> None:
    """Put the routers in place again, where somebody has replaced the streams meanwhile."""
    if type(sys.stdout) is not _Router or type(sys.stderr) is not _Router:
        with _lock:
            _install()


def _install() -> None:
    for stream in ("stdout", "stderr"):
        current = getattr(sys, stream)
        if type(current) is not _Router:
            setattr(sys, stream, _Router(current or io.StringIO(), stream))
    if type(sys.stdin) is not _NoInput:
        sys.stdin = cast("TextIO", _NoInput(sys.stdin or io.StringIO()))


def release() -> None:
    """Give up one use; the last one puts the original streams back."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for stream in ("stdout", "stderr", "stdin"):
            current = getattr(sys, stream)
            if isinstance(current, _Router | _NoInput):
                setattr(sys, stream, current.original)
        if threading.Thread.start is _start_inheriting and _original_start is not None:
            threading.Thread.start = cast("Any", _original_start)


def bind(sink: Sink) -> None:
    """What the calling thread writes goes to `sink` from now on."""
    _sinks[threading.get_ident()] = sink


def unbind() -> None:
    """The calling thread writes to the host's streams again."""
    _sinks.pop(threading.get_ident(), None)


def _start_inheriting(self: threading.Thread) -> None:
    sink = _sinks.get(threading.get_ident())
    if sink is not None:
        run = self.run

        def run_bound() -> None:
            bind(sink)
            try:
                run()
            finally:
                unbind()

        self.run = run_bound
    assert _original_start is not None
    _original_start(self)
