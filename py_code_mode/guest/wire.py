"""Frames between host and guest: a JSON header and binary segments.

Layout, little endian::

    u32 header bytes | u32 number of segments | u64 word of each segment | header | inline segments

A word is the segment's size. With its top bit set the segment comes in a sealed memfd (`segments`),
passed with the frame's first bytes (Linux, `man 7 unix`); with the third bit too, in the memfd of
the one before it, behind it at the next multiple of `ALIGNMENT`; at most `MAX_FDS` a frame. The two
top bits and nothing else say that a descriptor itself is what is passed: these come last, and only
a reader that was told to takes them. Both sides read with `FrameReader`, which holds no more than
it was sent and checks every length before it is believed.
"""

from __future__ import annotations

import _socket  # the extension itself: the socket module costs the worker's start milliseconds
import array
import os
import struct

from .segments import (
    Sealed,
    SegmentError,
    Unavailable,
    aligned,
    map_sealed,
    seal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .segments import Buffer, Segment

MAX_HEADER = 64 << 20
MAX_INLINE = 128 << 20
#: Texts from 4 KiB on are segments of their own, so a value can have many.
MAX_SEGMENTS = 1 << 15
MAX_FDS = 8
#: Above malloc's mmap threshold (128 KiB) each receive would map and unmap its buffer: 13 µs more.
RECEIVE_SIZE = 64 << 10

_BUFFERS_PER_CALL = 512  # the kernel takes 1024
_PREFIX = struct.Struct("<II")
_BY_FD = 1 << 63
_DESCRIPTOR = 0b11 << 62
_BEHIND = 1 << 61
_SIZE = _BEHIND - 1
_CONTROL_SIZE = _socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CLOSE_ON_EXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)


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
    header: bytes, segments: Sequence[Segment] = (), passing: Sequence[int] = ()
) -> tuple[list[Buffer], list[int]]:
    """Buffers to send, and the descriptors that go with them (the caller closes those).

    Args:
        header: JSON text.
        segments: binary data; what is sealed already is not copied. Those of one memfd are all
            sent, in order, with no other large one between them.
        passing: descriptors to pass, for a reader that takes them; they stay the caller's.

    Raises:
        WireError: the frame is beyond the limits.
        OSError: no memfd could be made (memory, open files, RLIMIT_FSIZE).
    """
    if len(header) > MAX_HEADER:
        raise WireError(f"header of {len(header)} bytes is over the limit of {MAX_HEADER}")
    if not segments and not passing:
        return [_PREFIX.pack(len(header), 0) + header], []
    if len(segments) + len(passing) > MAX_SEGMENTS:
        raise WireError(f"{len(segments)} segments are over the limit of {MAX_SEGMENTS}")
    given = {id(one.memory) for one in segments if type(one) is Sealed}
    if len(given) + len(passing) > MAX_FDS:
        raise WireError(f"{len(given)} shared segments are over the limit of {MAX_FDS}")
    words: list[int] = []
    inline: list[Buffer] = []
    fds: list[int] = []
    total = 0
    last: Sealed | None = None
    try:
        for segment in seal(segments, MAX_FDS - len(given) - len(passing)):
            if isinstance(segment, Sealed):
                if segment.offset == 0:
                    fds.append(segment.memory.copy())
                    words.append(segment.nbytes | _BY_FD)
                elif last is not None and (last.memory, aligned(last.offset + last.nbytes)) == (
                    segment.memory,
                    segment.offset,
                ):
                    words.append(segment.nbytes | _BY_FD | _BEHIND)
                else:
                    raise WireError("shared segments of one memfd are torn apart")
                last = segment
            else:
                view = memoryview(segment).cast("B")
                total += view.nbytes
                words.append(view.nbytes)
                inline.append(view)
        if total > MAX_INLINE:
            raise WireError(f"{total} bytes of segments are over the limit of {MAX_INLINE}")
        for fd in passing:
            fds.append(os.dup(fd))
            words.append(_DESCRIPTOR)
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, SegmentError):
            raise WireError(str(error)) from error
        raise
    head = _PREFIX.pack(len(header), len(words)) + struct.pack(f"<{len(words)}Q", *words) + header
    return [head, *inline], fds


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
        words = struct.unpack_from(f"<{count}Q", buffer, _PREFIX.size) if count else ()
        memfds: list[list[int]] = []
        passed = 0
        whole = inline = sum(words)
        if whole >= _BY_FD:  # else no word has its top bit set
            inline = sum(word for word in words if not word & _BY_FD)
        if inline > MAX_INLINE:
            raise WireError(f"{inline} bytes of segments are over the limit of {MAX_INLINE}")
        end = start + header_size + inline
        if len(buffer) < end:
            self._needed = end
            return None
        if whole >= _BY_FD:
            passed = words.count(_DESCRIPTOR)
            if passed:
                if passed > self._most_passed or _DESCRIPTOR in words[:-passed]:
                    raise WireError("a frame passes a descriptor where none is taken")
                words = words[:-passed]
            memfds = _memfds(words)
            by_fd = len(memfds) + passed
            if by_fd > min(len(self._fds), MAX_FDS):
                raise WireError(
                    f"a frame speaks of {by_fd} descriptors; {len(self._fds)} were passed"
                )
        at = start + header_size
        header = bytes(buffer[start:at])
        mapped: list[Any] = []
        for sizes in memfds:
            mapped += self._map(sizes)
        mapped.reverse()  # taken from the end
        segments: list[Any] = []
        for word in words:
            if word & _BY_FD:
                segments.append(mapped.pop())
            else:
                # a bytearray, so that what is built over it can be written to
                segments.append(buffer[at : at + word])
                at += word
        del buffer[:end]
        self._needed = _PREFIX.size
        descriptors = [self._fds.pop(0) for _ in range(passed)]
        return Frame(header, segments, descriptors)

    def _map(self, sizes: list[int]) -> list[Any]:
        """The segments of the next memfd."""
        fd = self._fds.pop(0)
        places: list[int] = []
        end = 0
        for size in sizes:
            places.append(aligned(end))
            end = places[-1] + size
        try:
            whole = map_sealed(fd, end)
        except SegmentError as error:
            raise WireError(str(error)) from error
        except (OSError, MemoryError) as error:
            # its sender did nothing wrong, and the header says whom to tell
            return [
                Unavailable(size, f"no memory for its {end:,} bytes: {error}") for size in sizes
            ]
        finally:
            discard(fd)
        if len(sizes) == 1:
            return [whole]
        view = memoryview(whole)
        return [view[at : at + size] for at, size in zip(places, sizes, strict=True)]

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


def _memfds(words: Sequence[int]) -> list[list[int]]:
    """The sizes of the segments in each memfd."""
    memfds: list[list[int]] = []
    for word in words:
        if word & _BY_FD:
            if word & (_DESCRIPTOR ^ _BY_FD) or (word & _BEHIND and not memfds):
                raise WireError("a segment whose place cannot be")
            if word & _BEHIND:
                memfds[-1].append(word & _SIZE)
            else:
                memfds.append([word & _SIZE])
    return memfds
