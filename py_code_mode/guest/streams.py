"""Standard input, output and error of a worker."""

from __future__ import annotations

import io
import os
import sys

from . import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class NoInput(io.TextIOWrapper):
    """Standard input of a session: there is nobody to type."""

    def readline(self, size: int = -1, /) -> str:
        line = super().readline(size)
        if line or size == 0:
            return line  # the code has put a file or a terminal of its own at descriptor 0
        raise EOFError("input() is not available in a session: pass the value in the code instead")

    def close(self) -> None:
        """Stay open: ``exit()`` closes standard input."""


def _stream(fd: int) -> io.TextIOWrapper:
    # closefd=False: a cell that closes sys.stdout must not close the descriptor for good
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False), 1 << 16),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Streams:
    """Puts our streams in place, and brings everything written so far to the descriptors."""

    def __init__(self) -> None:
        sys.stdin = sys.__stdin__ = NoInput(io.BufferedReader(io.FileIO(0, "r", closefd=False)))
        sys.stdout = sys.__stdout__ = _stream(1)
        sys.stderr = sys.__stderr__ = _stream(2)
        # spare copies: a cell may close descriptors 1 and 2
        self._spares = {fd: os.dup(fd) for fd in (1, 2)}
        self._modules_at_start = len(sys.modules)
        self._flush_c: Callable[[None], object] | None = None
        self._has_c = True

    def reopen(self) -> None:
        """Replace streams and descriptors that a cell closed."""
        for fd, spare in self._spares.items():
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(spare, fd)
        if getattr(sys.stdout, "closed", True):
            sys.stdout = sys.__stdout__ = _stream(1)
        if getattr(sys.stderr, "closed", True):
            sys.stderr = sys.__stderr__ = _stream(2)

    @property
    def identities(self) -> list[tuple[int, int]]:
        """Device and inode of the pipes that the host reads."""
        return [_identity(spare) for spare in self._spares.values()]

    def reconnect(self, out: int, err: int) -> None:
        """Put other pipes in place of the host's, wherever those were duplicated to.

        Args:
            out: closed, as `err` is.
            err: the pipe for standard error.
        """
        others = dict(zip(self.identities, (out, err)))  # noqa: B905  Python 3.10 is served too
        for fd in own.descriptors():
            try:
                other = others.get(_identity(fd))
                if other is not None:
                    os.dup2(other, fd, os.get_inheritable(fd))
            except OSError:
                continue  # it was the one that listed the folder
        os.close(out)
        os.close(err)

    def flush(self) -> None:
        """Flush Python's streams and the C library's."""
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError, AttributeError):
                continue  # the user's own replacement, closed or broken: nothing of ours is in it
        # C code's printf is block-buffered by libc when it writes to a pipe. Only extension
        # modules can have printed: as long as nothing was imported ctypes need not be, either.
        if self._flush_c is None and self._has_c and len(sys.modules) > self._modules_at_start:
            try:
                import ctypes

                self._flush_c = ctypes.CDLL(None).fflush
            except (ImportError, OSError, AttributeError):
                self._has_c = False
        if self._flush_c is not None:
            self._flush_c(None)
