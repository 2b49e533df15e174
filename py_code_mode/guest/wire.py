"""Frames between host and guest: a JSON header and binary segments.

Layout, little endian::

    u32 header bytes | u32 number of segments | u64 size of each segment | header | inline segments

The top bit of a segment's size says that it comes as a file descriptor, a sealed memfd, passed
with the frame's first bytes (Linux, `man 7 unix`); at most `MAX_FDS` a frame. The two top bits and
nothing else say that a descriptor itself is what is passed: these come last, and only a reader that
was told to takes them. Both sides read with `FrameReader`, which holds no more than it was sent and
checks every length before it is believed.
"""

from __future__ import annotations

import _socket  # the extension itself: the socket module costs the worker's start milliseconds
import array
import fcntl
import mmap
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Union

    Buffer = Union[bytes, bytearray, memoryview]

MAX_HEADER = 64 << 20
MAX_INLINE = 128 << 20
#: Texts from 4 KiB on are segments of their own, so a value can have many.
MAX_SEGMENTS = 1 << 15
MAX_FDS = 8
#: From this size on a segment travels as a memfd; measured: the break-even with copying.
MEMFD_THRESHOLD = 256 << 10
#: Up to this size a received memfd is read, not mapped: a mapping keeps a descriptor open as long
#: as the value lives (until Python 3.13), and results may be kept by the thousand.
COPIED_SIZE = 16 << 20
#: Above malloc's mmap threshold (128 KiB) each receive would map and unmap its buffer: 13 µs more.
RECEIVE_SIZE = 64 << 10

_BUFFERS_PER_CALL = 512  # the kernel takes 1024
_PREFIX = struct.Struct("<II")
_BY_FD = 1 << 63
_DESCRIPTOR = 0b11 << 62
_NEEDED_SEALS = 0x0002 | 0x0004 | 0x0008  # F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
_CONTROL_SIZE = _socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CLOSE_ON_EXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
_HAS_MEMFD = sys.platform == "linux" and hasattr(os, "memfd_create")


class WireError(Exception):
    """Bytes that are not a frame, or a frame beyond the limits."""


class Frame:
    """One received frame: the header's JSON text, its segments, and descriptors passed with it.

    Whoever wants a descriptor takes it out of `fds`; `close` closes those that are left.
    """

    __slots__ = ("fds", "header", "segments")

    def __init__(self, header: bytes, segments: list[Buffer], fds: Sequence[int] = ()) -> None:
        self.header = header
        self.segments = segments
        self.fds = list(fds)

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        while self.fds:
            discard(self.fds.pop())


def discard(fd: int) -> None:
    """Close a descriptor that was passed to us, whatever it is.

    The end of a TCP connection waits as long as its owner has told it to (`man 7 socket`,
    SO_LINGER), and the last who closes it does the waiting.
    """
    try:
        closing = _socket.socket(fileno=fd)  # asks the kernel only, never a file's own file system
    except OSError:
        os.close(fd)
        return
    try:
        closing.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # a kind that knows no waiting
    closing.close()


def pack(
    header: bytes, segments: Sequence[Buffer] = (), passing: Sequence[int] = ()
) -> tuple[list[Buffer], list[int]]:
    """Buffers to send, and the descriptors that go with them (the caller closes those).

    Args:
        header: JSON text.
        segments: binary data.
        passing: descriptors to pass, for a reader that takes them; they stay the caller's.

    Raises:
        WireError: the frame is beyond the limits.
        OSError: no memfd could be made (memory, open files).
    """
    if len(header) > MAX_HEADER:
        raise WireError(f"header of {len(header)} bytes is over the limit of {MAX_HEADER}")
    if not segments and not passing:
        return [_PREFIX.pack(len(header), 0) + header], []
    if len(segments) + len(passing) > MAX_SEGMENTS:
        raise WireError(f"{len(segments)} segments are over the limit of {MAX_SEGMENTS}")
    most_memfds = MAX_FDS - len(passing)
    sizes: list[int] = []
    inline: list[Buffer] = []
    fds: list[int] = []
    total = 0
    try:
        for segment in segments:
            view = memoryview(segment).cast("B")
            if view.nbytes >= MEMFD_THRESHOLD and len(fds) < most_memfds and _HAS_MEMFD:
                fds.append(_sealed_memfd(view))
                sizes.append(view.nbytes | _BY_FD)
            else:
                total += view.nbytes
                sizes.append(view.nbytes)
                inline.append(view)
        if total > MAX_INLINE:
            raise WireError(f"{total} bytes of segments are over the limit of {MAX_INLINE}")
        for fd in passing:
            fds.append(os.dup(fd))
            sizes.append(_DESCRIPTOR)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    head = _PREFIX.pack(len(header), len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes) + header
    return [head, *inline], fds


def _sealed_memfd(view: memoryview) -> int:
    fd = os.memfd_create("code-mode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # write() rather than mmap: faster (no page faults), and a writable mapping forbids sealing
        while view.nbytes:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, 1033, _NEEDED_SEALS | 0x0001)  # F_ADD_SEALS, and F_SEAL_SEAL
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_sealed(fd: int, size: int) -> Buffer:
    """Map a received memfd, copy on write; the descriptor stays the caller's.

    The seals are checked before mapping: a file that its sender can still shrink would kill the
    reader with SIGBUS.
    """
    try:
        # first of all: only a memfd is safe to ask more; a file of its sender's own file system
        # (FUSE) could make fstat wait
        seals = fcntl.fcntl(fd, 1034)  # F_GET_SEALS
    except OSError as error:
        raise WireError("a passed descriptor is not a memfd") from error
    if seals & _NEEDED_SEALS != _NEEDED_SEALS:
        raise WireError("a passed segment is not sealed")
    status = os.fstat(fd)
    if status.st_size != size:
        raise WireError(f"a passed segment has {status.st_size} bytes, not {size}")
    if size == 0:
        return b""
    if size <= COPIED_SIZE:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            got = os.preadv(fd, [view[done:]], done)
            if not got:
                raise WireError("a passed segment ended early")
            done += got
        return data
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))


class FrameReader:
    """Turns received bytes and descriptors into frames; owns descriptors until it is closed.

    Args:
        most_passed: descriptors that one frame may pass as such.
    """

    def __init__(self, most_passed: int = 0) -> None:
        self._most_passed = most_passed
        self._buffer = bytearray()
        self._needed = _PREFIX.size
        self._fds: list[int] = []

    def feed(self, data: Buffer, fds: Sequence[int] = ()) -> list[Frame]:
        """Take what was received; give the frames that are now complete."""
        if fds:
            self._fds.extend(fds)
        if not self._buffer and not self._fds and len(data) >= _PREFIX.size:
            size, count = _PREFIX.unpack_from(data)
            if not count and len(data) == _PREFIX.size + size and size <= MAX_HEADER:
                # most frames come whole and alone: no need to gather them
                return [Frame(bytes(data[_PREFIX.size :]), [])]
        self._buffer += data
        frames: list[Frame] = []
        try:
            while len(self._buffer) >= self._needed:
                frame = self._take()
                if frame is None:
                    continue  # the length became known; more may be needed
                frames.append(frame)
            if len(self._fds) > MAX_FDS:
                raise WireError("descriptors were passed that no frame speaks of")
        except BaseException:
            for frame in frames:
                frame.close()
            raise
        return frames

    def _take(self) -> Frame | None:
        buffer = self._buffer
        header_size, count = _PREFIX.unpack_from(buffer)
        if header_size > MAX_HEADER:
            raise WireError(f"header of {header_size} bytes is over the limit of {MAX_HEADER}")
        if count > MAX_SEGMENTS:
            raise WireError(f"{count} segments are over the limit of {MAX_SEGMENTS}")
        start = _PREFIX.size + 8 * count
        if len(buffer) < start:
            self._needed = start
            return None
        sizes = struct.unpack_from(f"<{count}Q", buffer, _PREFIX.size) if count else ()
        inline = sum(size for size in sizes if not size & _BY_FD)
        if inline > MAX_INLINE:
            raise WireError(f"{inline} bytes of segments are over the limit of {MAX_INLINE}")
        end = start + header_size + inline
        if len(buffer) < end:
            self._needed = end
            return None
        by_fd = len([size for size in sizes if size & _BY_FD])
        if by_fd > min(len(self._fds), MAX_FDS):
            raise WireError(f"a frame speaks of {by_fd} descriptors; {len(self._fds)} were passed")
        passed = sizes.count(_DESCRIPTOR) if by_fd else 0
        if passed:
            if passed > self._most_passed or _DESCRIPTOR in sizes[:-passed]:
                raise WireError("a frame passes a descriptor where none is taken")
            sizes = sizes[:-passed]
        at = start + header_size
        header = bytes(buffer[start:at])
        segments: list[Buffer] = []
        for size in sizes:
            if size & _BY_FD:
                fd = self._fds.pop(0)
                try:
                    segments.append(map_sealed(fd, size & ~_BY_FD))
                finally:
                    discard(fd)
            else:
                # a bytearray, so that what is built over it can be written to
                segments.append(buffer[at : at + size])
                at += size
        del buffer[:end]
        self._needed = _PREFIX.size
        descriptors = [self._fds.pop(0) for _ in range(passed)]
        return Frame(header, segments, descriptors)

    def close(self) -> None:
        """Close descriptors that no frame has claimed."""
        while self._fds:
            discard(self._fds.pop(0))


def receive(sock: _socket.socket) -> tuple[bytes, list[int]]:
    """One ``recvmsg``: bytes (empty at the end) and close-on-exec descriptors.

    Raises:
        BlockingIOError: nothing is there, on a non-blocking socket.
        WireError: control data was cut off, or is not descriptors.
    """
    data, control, message_flags, _ = sock.recvmsg(RECEIVE_SIZE, _CONTROL_SIZE, _CLOSE_ON_EXEC)
    fds: list[int] = []
    if control or message_flags & _socket.MSG_CTRUNC:
        for level, kind, body in control:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(body[: len(body) - len(body) % received.itemsize])
                fds.extend(received)
        if not _CLOSE_ON_EXEC:
            for fd in fds:
                os.set_inheritable(fd, False)
        if message_flags & _socket.MSG_CTRUNC:
            for fd in fds:
                discard(fd)
            raise WireError(
                f"descriptors were lost: more than {MAX_FDS} came at once, or this process has too "
                "many open files"
            )
    return data, fds


def send_some(sock: _socket.socket, buffers: Sequence[Buffer], fds: Sequence[int]) -> int:
    """One ``sendmsg``; the number of bytes that went. Descriptors go with the first byte."""
    if not fds:
        return sock.sendmsg(buffers[:_BUFFERS_PER_CALL])
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))
    return sock.sendmsg(buffers[:_BUFFERS_PER_CALL], [rights])


def advance(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """What is left of `buffers` after `sent` bytes went."""
    for index, buffer in enumerate(buffers):
        size = memoryview(buffer).nbytes
        if sent < size:
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= size
    return []
