"""What kind of file some bytes are, from how they begin."""

from __future__ import annotations

import struct

_TEXT = 120  # bytes that are tried as text

# Beginnings, with what they mean. Sources: each format's specification; file(1)'s magic.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"PAR1", "Parquet"),
    (b"ARROW1\x00\x00", "Arrow IPC file"),
    (b"\xff\xff\xff\xff", "Arrow IPC stream"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "npy"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"\x7fELF", "ELF"),
    (b"ID3", "MP3"),
    (b"OggS", "Ogg"),
    (b"fLaC", "FLAC"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    *((b"\x80" + bytes([protocol]), "pickle") for protocol in range(2, 6)),
)


def kind_of(data: memoryview) -> str | None:
    """A file format, with the size of a picture in pixels: ``PNG 640x480``; None if none is known.

    Args:
        data: one byte an item; only its beginning is read.
    """
    head = bytes(data[:64])
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
        return "PNG {}x{}".format(*struct.unpack(">II", head[16:24]))
    if head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        return "GIF {}x{}".format(*struct.unpack("<HH", head[6:10]))
    if head[:2] == b"BM" and len(head) >= 26:
        width, height = struct.unpack("<ii", head[18:26])
        return f"BMP {width}x{abs(height)}"
    if head[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"WAVE": "WAV", b"AVI ": "AVI"}.get(head[8:12], "RIFF")
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] == b"avif" else "MP4"
    return next((kind for start, kind in _BEGINNINGS if head.startswith(start)), None)


def _jpeg(data: memoryview) -> str:
    at = 2
    for _ in range(100):  # segments before the frame's header
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        # SOF0 to SOF15, without the tables that lie between them
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return f"JPEG {width}x{height}"
        at += 2 + length
    return "JPEG"


def beginning_of_text(data: memoryview) -> str | None:
    """The first characters, if the bytes begin with UTF-8 text."""
    head = bytes(data[:_TEXT])
    for cut in range(4 if len(data) > _TEXT else 1):  # a character may be cut in two
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return text if text.isprintable() or not set(text) & _CONTROLS else None
    return None


_CONTROLS = frozenset(map(chr, range(32))) - frozenset("\t\n\r\x1b")
