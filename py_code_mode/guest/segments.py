"""A frame's binary segments: gathered without copies, sealed in memfds, mapped by their reader.

A sealed memfd can be changed by nobody any more, its maker included, so its reader may check what
is in it and go on using it (`man 2 memfd_create`, File sealing). Who maps one gets a private copy
of the pages that it writes to, and no other.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import mmap
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Union

    Buffer = Union[bytes, bytearray, memoryview]
    #: What can be sent as one segment.
    Segment = Union[Buffer, "Pieces", "Sealed"]

#: From this size on a segment travels as a memfd; measured: the break-even with copying.
MEMFD_THRESHOLD = 256 << 10
#: What segments below that may take together; beyond it they share a memfd.
MOST_SMALL = 16 << 20
#: Up to this size a received memfd is read, not mapped: the break-even of reading it once and
#: writing to it once, and a process may have 65,530 mappings (`man 5 proc`, max_map_count).
COPIED_SIZE = 4 << 20
#: Where a segment begins in a memfd that holds several: no array is worse off than in its own.
ALIGNMENT = 64

_BUFFERS_PER_CALL = 1024  # IOV_MAX of Linux
_SMALL_PIECE = 4096
_NEEDED_SEALS = 0x0002 | 0x0004 | 0x0008  # F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
_SEAL_TRIES = 25  # of a fifth of a second each
_MAP_FIXED = 0x10
HAS_MEMFD = sys.platform == "linux" and hasattr(os, "memfd_create")


class SegmentError(Exception):
    """A descriptor that is not a sealed memfd of the size told."""


class Pieces:
    """One segment that lies in several places: written one after the other, never joined.

    A sink for pyarrow, through ``pa.PythonFile``: what it writes is kept as it comes, so no buffer
    is copied. Small pieces are joined, as each costs a system call its share.
    """

    __slots__ = ("_small", "_whole", "closed", "nbytes")

    def __init__(self) -> None:
        self._whole: list[Buffer] = []
        self._small = bytearray()
        self.nbytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Take bytes or a buffer, to be left unchanged from now on."""
        view = memoryview(data)
        size = view.nbytes
        self.nbytes += size
        if size < _SMALL_PIECE:
            self._small += view
        else:
            self._end_small()
            self._whole.append(view.cast("B"))
        return size

    def _end_small(self) -> None:
        if self._small:
            self._whole.append(self._small)
            self._small = bytearray()

    @property
    def buffers(self) -> list[Buffer]:
        """The pieces in order."""
        self._end_small()
        return list(self._whole)

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """End of what is written."""
        self.closed = True

    def tell(self) -> int:
        """Bytes written so far."""
        return self.nbytes


class Memfd:
    """A sealed memfd, and the descriptor to it, which any thread may copy or close.

    Args:
        fd: owned, and closed at the latest when nobody holds this object.
        size: bytes in it.
    """

    __slots__ = ("_fd", "_lock", "size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self.size = fd, size
        self._lock = _thread.allocate_lock()

    @property
    def fd(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def copy(self) -> int:
        """Another descriptor to it, the caller's.

        Raises:
            SegmentError: it was closed.
            OSError: too many open files.
        """
        with self._lock:
            if self._fd < 0:
                raise SegmentError("a shared value is sent that was closed")
            return os.dup(self._fd)

    def close(self) -> None:
        """Close the descriptor; what others have mapped stays."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Sealed:
    """A segment in a sealed memfd: goes with any number of frames, and is never copied."""

    __slots__ = ("memory", "nbytes", "offset")

    def __init__(self, memory: Memfd, offset: int, nbytes: int) -> None:
        self.memory, self.offset, self.nbytes = memory, offset, nbytes

    @property
    def fd(self) -> int:
        """Descriptor of the memfd, which stays its owner's; -1 once closed."""
        return self.memory.fd


class Unavailable:
    """Stands for a segment that came well, and that this process had no room for."""

    __slots__ = ("nbytes", "reason")

    def __init__(self, nbytes: int, reason: str) -> None:
        self.nbytes, self.reason = nbytes, reason


def size_of(segment: Any) -> int:
    """Bytes of a segment of any kind."""
    if type(segment) is bytes or type(segment) is bytearray:
        return len(segment)
    if isinstance(segment, (Pieces, Sealed, Unavailable)):
        return segment.nbytes
    return memoryview(segment).nbytes


def aligned(offset: int) -> int:
    """Where the next segment of a memfd begins."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


# -- sending


def seal(segments: Sequence[Segment], most: int) -> list[Buffer | Sealed]:
    """The same segments, the large ones in sealed memfds: written once, joined nowhere.

    Neighbours share a memfd where there are more of them than memfds, and so do small ones that
    would be much together. Whoever drops the `Sealed` drops the memory.

    Args:
        most: memfds to make.

    Raises:
        OSError: no memfd could be made or written (memory, open files, RLIMIT_FSIZE).
    """
    sizes = [size_of(segment) for segment in segments]
    if max(sizes, default=0) < MEMFD_THRESHOLD and sum(sizes) <= MOST_SMALL:
        return [bytes(one) if isinstance(one, Pieces) else one for one in segments]
    large: list[int] = []
    if most > 0 and HAS_MEMFD:
        small = sum(size for size in sizes if size < MEMFD_THRESHOLD)
        least = MEMFD_THRESHOLD if small <= MOST_SMALL else 1
        large = [
            index
            for index, size in enumerate(sizes)
            if size >= least and not isinstance(segments[index], Sealed)
        ]
    done: list[Any] = list(segments)
    # as even as they can be without another order; the last takes what is left
    share = sum(sizes[index] for index in large) / most if len(large) > most else 0
    group: list[int] = []
    made = held = 0
    for index in large:
        group.append(index)
        held += sizes[index]
        if (held >= share and made < most - 1) or index == large[-1]:
            _seal_group(done, sizes, group)
            made, held, group = made + 1, 0, []
    for index, segment in enumerate(done):
        if isinstance(segment, Pieces):
            done[index] = bytes(segment)
    return done


def _seal_group(segments: list[Any], sizes: list[int], group: list[int]) -> None:
    buffers: list[Buffer] = []
    sealed: list[Sealed] = []
    places: list[int] = []
    end = 0
    for index in group:
        start = aligned(end)
        if start > end:
            buffers.append(bytes(start - end))
        segment = segments[index]
        buffers += segment.buffers if isinstance(segment, Pieces) else [segment]
        places.append(start)
        end = start + sizes[index]
    memory = Memfd(_written(buffers), end)
    sealed = [
        Sealed(memory, place, sizes[index]) for place, index in zip(places, group, strict=True)
    ]
    for index, one in zip(group, sealed, strict=True):
        segments[index] = one


def _written(buffers: list[Buffer]) -> int:
    fd = os.memfd_create("code-mode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # write() rather than mmap: faster (no page faults), and a writable mapping forbids
        # sealing. It lets other threads run.
        while buffers:
            buffers = advance(buffers, os.writev(fd, buffers[:_BUFFERS_PER_CALL]))
        add_seals(fd, _NEEDED_SEALS | 0x0001)  # F_SEAL_SEAL
    except BaseException:
        os.close(fd)
        raise
    return fd


def add_seals(fd: int, seals: int) -> None:
    """Seal a memfd that nobody else has.

    The kernel refuses while anybody holds one of its pages, as it does itself while it moves them
    together (mm/memfd.c, memfd_wait_for_pins). It waits for them a fifth of a second at a time.
    """
    for tries_left in reversed(range(_SEAL_TRIES)):
        try:
            fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS
        except OSError as error:
            if error.errno != errno.EBUSY or not tries_left:
                raise
        else:
            return


def advance(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """What is left of `buffers` after `sent` bytes went."""
    for index, buffer in enumerate(buffers):
        view = memoryview(buffer)
        if sent < view.nbytes:
            return [view.cast("B")[sent:], *buffers[index + 1 :]]
        sent -= view.nbytes
    return []


# -- receiving


def map_sealed(fd: int, size: int) -> Buffer:
    """The bytes of a received memfd, private: whoever writes to them alters its own copy only.

    The descriptor stays the caller's; none is kept.

    Raises:
        SegmentError: it is not a sealed memfd of this size.
        OSError, MemoryError: there is no room for it here.
    """
    try:
        # first of all: only a memfd is safe to ask more; a file of its sender's own file system
        # (FUSE) could make fstat wait
        seals = fcntl.fcntl(fd, 1034)  # F_GET_SEALS
    except OSError as error:
        raise SegmentError("a passed descriptor is not a memfd") from error
    if seals & _NEEDED_SEALS != _NEEDED_SEALS:
        # one that its sender can still shrink would kill the reader with SIGBUS
        raise SegmentError("a passed segment is not sealed")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
        # huge pages: to write to a private copy takes another, and SIGBUS where there is none
        raise SegmentError("a passed descriptor is not a memfd of plain pages")
    if status.st_size != size:
        raise SegmentError(f"a passed segment has {status.st_size} bytes, not {size}")
    if status.st_blocks * 512 < size:
        # holes cost their sender nothing, and whoever reads them their size
        raise SegmentError("a passed segment has holes")
    if size == 0:
        return b""
    if size > COPIED_SIZE:
        return map_private(fd, size)
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        got = os.preadv(fd, [view[done:]], done)
        if not got:
            raise SegmentError("a passed segment ended early")
        done += got
    return data


if sys.version_info >= (3, 13):

    def map_private(fd: int, size: int) -> memoryview:
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY, trackfd=False))

else:
    _call: Any = None
    _lost: list[Any] = []

    def map_private(fd: int, size: int) -> memoryview:
        """Map a file without keeping a descriptor, which mmap.mmap does before Python 3.13.

        Memory of nobody's first, which the mmap object gives back at its end; then the file in
        its place.
        """
        global _call
        try:
            import ctypes
        except ImportError:  # a Python built without it
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))

        if _call is None:
            call = ctypes.CDLL(None, use_errno=True).mmap
            call.restype = ctypes.c_void_p
            call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
            _call = call
        place = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(place))
        access = mmap.PROT_READ | mmap.PROT_WRITE
        if _call(address, size, access, mmap.MAP_PRIVATE | _MAP_FIXED, fd, 0) != address:
            # what is there now is not known: never to be unmapped, nor used
            _lost.append(place)
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return memoryview(place)
