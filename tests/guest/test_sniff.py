"""Bytes are recognised by how they begin, and never past their end."""

import gzip
import io
import json
import pickle
import struct
from typing import Any

import numpy
import pyarrow
import pytest

from py_code_mode.guest.sniff import beginning_of_text, kind_of

pa: Any = pyarrow


def saved() -> bytes:
    stream = io.BytesIO()
    numpy.save(stream, numpy.zeros(2))
    return stream.getvalue()


def stream_of_arrow() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"a": [1]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480)
JPEG = b"\xff\xd8\xff\xe0\0\4ab\xff\xc0\0\x11\x08" + struct.pack(">HH", 48, 64) + b"\3"
KNOWN = [
    (PNG, "PNG 640x480"),
    (JPEG, "JPEG 64x48"),
    (b"GIF89a" + struct.pack("<HH", 7, 5), "GIF 7x5"),
    (b"BM" + bytes(16) + struct.pack("<ii", 3, -4), "BMP 3x4"),
    (b"RIFF\0\0\0\0WEBP", "WebP"),
    (b"%PDF-1.7", "PDF"),
    (gzip.compress(b"x"), "gzip"),
    (pickle.dumps([1]), "pickle"),
    (saved(), "npy"),
    (stream_of_arrow(), "Arrow IPC stream"),
    (b"PAR1", "Parquet"),
]


@pytest.mark.parametrize(("data", "kind"), KNOWN, ids=[kind for _, kind in KNOWN])
def test_a_format_is_known_by_its_beginning(data: bytes, kind: str) -> None:
    assert kind_of(memoryview(data)) == kind
    for length in range(min(len(data), 70)):  # cut anywhere it is another kind, or none
        kind_of(memoryview(data[:length]))


@pytest.mark.parametrize("data", [b"", b"x", b"{}", bytes(100), b"\xff" * 3])
def test_other_bytes_are_of_no_kind(data: bytes) -> None:
    assert kind_of(memoryview(data)) is None


def test_the_segments_of_a_picture_may_lie() -> None:
    assert kind_of(memoryview(b"\xff\xd8\xff\xe0\0\0" + b"\xff\xe0\0\0" * 500)) == "JPEG"


def test_text_is_known_though_a_character_is_cut_in_two() -> None:
    text = json.dumps({"é": "ü" * 300}, ensure_ascii=False)
    beginning = beginning_of_text(memoryview(text.encode()))
    assert beginning is not None
    assert text.startswith(beginning)
    assert beginning_of_text(memoryview(b"a\nb")) == "a\nb"
    assert beginning_of_text(memoryview(b"a\0b")) is None
    assert beginning_of_text(memoryview(b"\xff\xfe")) is None
