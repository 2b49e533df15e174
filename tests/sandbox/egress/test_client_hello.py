"""The reader of TLS server names: what it finds, and that nothing makes it do anything else."""

from __future__ import annotations

import contextlib
import os
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.sandbox.egress.client_hello import (
    LONGEST_HELLO,
    MOST_RECORDS,
    RETRY_LENGTH,
    ClientHello,
    ClientHelloReader,
    InvalidClientHello,
    asks_again,
)


def _hello_of(name: str | None, *, newest: bool = True) -> bytes:
    """What this interpreter's own TLS sends."""
    context = ssl.create_default_context()
    if not newest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    written = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), written, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return written.read()


def _vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _name(name: bytes, kind: int = 0) -> bytes:
    return bytes([kind]) + _vector(2, name)


def _extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _vector(2, body)


def _sni(*names: bytes) -> bytes:
    return _extension(0, _vector(2, b"".join(names)))


def _body(
    extensions: bytes | None = b"",
    *,
    version: bytes = b"\3\3",
    session: bytes = b"",
    suites: bytes = b"\x13\1",
    compression: bytes = b"\0",
) -> bytes:
    made = version + bytes(32) + _vector(1, session) + _vector(2, suites) + _vector(1, compression)
    return made if extensions is None else made + _vector(2, extensions)


def _message(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + _vector(3, body)


def _records(message: bytes, *cuts: int, kind: int = 22) -> bytes:
    ends = [*cuts, len(message)]
    starts = [0, *cuts]
    pieces = [message[start:end] for start, end in zip(starts, ends, strict=True)]
    return b"".join(bytes([kind, 3, 1]) + _vector(2, piece) for piece in pieces)


def _read(data: bytes) -> ClientHello | None:
    return ClientHelloReader().feed(data)


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("name", ["api.example.org", "a." * 60 + "example.org", None])
def test_a_real_hello_is_read(name: str | None, newest: bool) -> None:
    assert _read(_hello_of(name, newest=newest)) == ClientHello(server_name=name)


def test_every_split_of_a_real_hello_gives_the_same() -> None:
    data = _hello_of("api.example.org")
    for cut in range(len(data)):
        reader = ClientHelloReader()
        assert reader.feed(data[:cut]) is None
        found = reader.feed(data[cut:])
        assert found is not None
        assert found.server_name == "api.example.org"
        assert reader.take() == (data, b"")


def test_hello_that_comes_byte_by_byte_is_read() -> None:
    reader = ClientHelloReader()
    data = _hello_of("api.example.org")
    found = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert found[:-1] == [None] * (len(data) - 1)
    assert found[-1] == ClientHello(server_name="api.example.org")


def test_every_split_into_two_records_gives_the_same() -> None:
    message = _message(_body(_sni(_name(b"api.example.org"))))
    for cut in range(1, len(message)):
        assert _read(_records(message, cut)) == ClientHello(server_name="api.example.org")


def test_what_follows_the_hello_is_kept_apart() -> None:
    hello = _records(_message(_body()))
    reader = ClientHelloReader()
    assert reader.feed(hello + b"\x17\3\3\0\5early") is not None
    assert reader.take() == (hello, b"\x17\3\3\0\5early")


def test_names_are_lower_case_and_encryption_is_seen() -> None:
    extensions = _sni(_name(b"API.Example.ORG")) + _extension(0xFE0D, b"\0" * 40)
    found = _read(_records(_message(_body(extensions))))
    assert found == ClientHello(server_name="api.example.org", is_encrypted=True)


def test_hello_without_extensions_has_no_name() -> None:
    assert _read(_records(_message(_body(None)))) == ClientHello(server_name=None)


_ORG = _name(b"example.org")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n", id="plain HTTP"),
        pytest.param(b"\x80\x2e\x01\3\1", id="SSL 2"),
        pytest.param(b"\x16\2\0\0\5", id="no TLS version"),
        pytest.param(b"\x16\3\1\0\0", id="empty record"),
        pytest.param(b"\x16\3\1\x40\x01", id="record too long"),
        pytest.param(_records(_message(_body(), kind=2)), id="another message"),
        pytest.param(_records(b"\1" + (LONGEST_HELLO + 1).to_bytes(3, "big")), id="hello too long"),
        pytest.param(_records(_message(_body()) + b"\1"), id="a second message in the record"),
        pytest.param(_records(b"\1\0") + _records(b"\0", kind=23), id="another record between"),
        pytest.param(_records(_message(_body()), kind=20), id="cipher change first"),
        pytest.param(
            _records(_message(_body(session=bytes(32))), *range(1, MOST_RECORDS + 1)),
            id="many records",
        ),
        pytest.param(_records(_message(_body(version=b"\2\0"))), id="inner version"),
        pytest.param(_records(_message(_body(session=bytes(33)))), id="long session"),
        pytest.param(_records(_message(_body(suites=b""))), id="no suites"),
        pytest.param(_records(_message(_body(suites=b"\0\1\2"))), id="odd suites"),
        pytest.param(_records(_message(_body(compression=b""))), id="no compression"),
        pytest.param(_records(_message(_body(b"\0"))), id="half an extension"),
        pytest.param(_records(_message(_body() + b"\0")), id="after the extensions"),
        pytest.param(_records(_message(_body(_sni(_ORG) * 2))), id="the extension twice"),
        pytest.param(_records(_message(_body(_sni(_ORG, _ORG)))), id="two names"),
        pytest.param(_records(_message(_body(_sni()))), id="no name in the list"),
        pytest.param(_records(_message(_body(_sni(_name(b""))))), id="empty name"),
        pytest.param(_records(_message(_body(_sni(_name(b"a" * 256))))), id="long name"),
        pytest.param(_records(_message(_body(_sni(_name(b"a", 1))))), id="another kind of name"),
        pytest.param(_records(_message(_body(_sni(_name(b"a\0b"))))), id="a zero in the name"),
        pytest.param(_records(_message(_body(_sni(_name(b"\xc3\xbc.de"))))), id="no ASCII"),
        pytest.param(
            _records(_message(_body(_extension(0, b"\0\4\0\0\1aX")))), id="after the names"
        ),
    ],
)
def test_what_is_no_hello_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidClientHello):
        _read(data)


def test_second_hello_may_follow_a_cipher_change_but_only_one() -> None:
    change = b"\x14\3\3\0\1\1"
    hello = _records(_message(_body(_sni(_ORG))))
    reader = ClientHelloReader(after_retry=True)
    assert reader.feed(change + hello) == ClientHello(server_name="example.org")
    assert reader.take() == (change + hello, b"")
    with pytest.raises(InvalidClientHello):
        ClientHelloReader(after_retry=True).feed(change + change + hello)


def test_request_to_send_the_hello_again_is_known() -> None:
    # a server that takes only a group that the client sent no key for asks again
    random = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    answer = b"\x16\3\3\0\x58\2\0\0\x54\3\3" + random
    assert len(answer) == RETRY_LENGTH
    assert asks_again(answer + b"more")
    assert not asks_again(answer[:-1])
    assert not asks_again(answer[:-1] + b"\0")
    assert not asks_again(os.urandom(RETRY_LENGTH))


@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=6))
def test_no_bytes_however_cut_raise_anything_else(data: bytes, cuts: list[int]) -> None:
    _feed(data, cuts)


@given(st.data())
def test_no_change_of_a_hello_raises_anything_else(data: st.DataObject) -> None:
    hello = bytearray(_records(_message(_body(_sni(_ORG) + _extension(0xFE0D, b"\0\1")))))
    for _ in range(data.draw(st.integers(1, 4))):
        hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
    _feed(bytes(hello), data.draw(st.lists(st.integers(0, len(hello)), max_size=4)))


def _feed(data: bytes, cuts: list[int]) -> None:
    """However it is cut up, the outcome is that of the whole; and no byte is lost or made up."""
    try:
        whole: ClientHello | InvalidClientHello | None = _read(data)
    except InvalidClientHello as error:
        whole = error
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    reader, found, fed = ClientHelloReader(), None, 0
    try:
        for end in ends:
            found = reader.feed(data[fed:end])
            fed = end
            if found is not None:
                break
    except InvalidClientHello:
        assert isinstance(whole, InvalidClientHello)
        return
    assert b"".join(reader.take()) == data[:fed]
    assert found == whole
