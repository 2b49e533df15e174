"""What a guest is reached by: a socket for frames, a pipe each for its output and its errors."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """One side's ends, of which a pipe's are either all for reading or all for writing."""

    guest: socket.socket
    stdout: int
    stderr: int

    @property
    def fds(self) -> tuple[int, int, int]:
        """Their numbers, in the order in which a guest is given them."""
        return self.guest.fileno(), self.stdout, self.stderr

    def close(self) -> None:
        """Close them; once."""
        self.guest.close()
        os.close(self.stdout)
        os.close(self.stderr)


@contextmanager
def open_ends() -> Generator[tuple[Ends, Ends]]:
    """Our ends, and those to give to a guest, which are closed at the end.

    Ours are closed too where it raises; else they are the caller's.
    """
    with ExitStack() as given, ExitStack() as held:
        ours, theirs = socket.socketpair()
        held.callback(ours.close)
        given.callback(theirs.close)
        out_read, out_write = pipe(held, given)
        err_read, err_write = pipe(held, given)
        yield (
            Ends(guest=ours, stdout=out_read, stderr=err_read),
            Ends(guest=theirs, stdout=out_write, stderr=err_write),
        )
        held.pop_all()


def pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed by these."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write
