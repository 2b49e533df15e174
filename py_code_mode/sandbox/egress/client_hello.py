"""Reads the server name out of the first message of a TLS connection, and nothing else.

What arrives is a stranger's bytes: everything is bounded, each byte is looked at a fixed number of
times however the message is cut up, and what is not exactly as the standards say is refused.
Sources: RFC 8446 §4.1.2 (ClientHello) and §5.1 (records), RFC 6066 §3 (server_name),
draft-ietf-tls-esni (encrypted hello: only that it is there can be seen).
"""

from __future__ import annotations

from dataclasses import dataclass

HANDSHAKE = 22
_CHANGE_CIPHER_SPEC = 20
_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_VERSION_3 = 3  # the first byte of the version of every TLS there is

_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_LONGEST_RECORD = 1 << 14
#: Of a ClientHello; post-quantum keys make about 2 KiB, resumption tickets a few more.
LONGEST_HELLO = 16 << 10
#: A hello may be cut into as many records; whole libraries send one or two.
MOST_RECORDS = 64

_SERVER_NAME, _ENCRYPTED_HELLO, _HOST_NAME = 0, 0xFE0D, 0
#: The server's random of a request to send the hello again: RFC 8446 §4.1.3.
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
#: How many bytes of a server's answer tell whether it is that request.
RETRY_LENGTH = _RECORD_HEADER + _MESSAGE_HEADER + 2 + len(_RETRY_RANDOM)


class InvalidClientHello(ValueError):
    """The bytes are not a ClientHello as the standards have it, or one larger than any real one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHello:
    """What can be seen of what a client wants.

    Attributes:
        server_name: as sent, in lower case; None where none was.
        is_encrypted: an encrypted inner hello, or the grease that looks like one, came with it.
    """

    server_name: str | None
    is_encrypted: bool = False


class ClientHelloReader:
    """Takes the bytes as they come, until the message is whole.

    Args:
        after_retry: it is the second hello of a connection, which a ChangeCipherSpec may precede
            (RFC 8446 §D.4).
    """

    def __init__(self, *, after_retry: bool = False) -> None:
        self._raw = bytearray()
        self._message = bytearray()
        self._at = 0  # where in `_raw` the next record starts
        self._records = 0
        self._may_change_cipher = after_retry

    def feed(self, data: bytes) -> ClientHello | None:
        """Take more bytes; None while some are missing.

        Raises:
            InvalidClientHello: it is none.
        """
        self._raw += data
        while (record := self._next_record()) is not None:
            self._message += record
            if len(self._message) < _MESSAGE_HEADER:
                continue
            if self._message[0] != _CLIENT_HELLO:
                raise InvalidClientHello("the first message is no ClientHello")
            length = int.from_bytes(self._message[1:_MESSAGE_HEADER], "big")
            if length > LONGEST_HELLO:
                raise InvalidClientHello(f"the ClientHello is of {length} bytes")
            if len(self._message) > _MESSAGE_HEADER + length:
                # no second message may share its record: keys may change after it
                raise InvalidClientHello("something follows the ClientHello in its record")
            if len(self._message) == _MESSAGE_HEADER + length:
                return _parse(memoryview(bytes(self._message))[_MESSAGE_HEADER:])
        return None

    def take(self) -> tuple[bytes, bytes]:
        """The records that were read, byte for byte, and what came after them."""
        raw = bytes(self._raw)
        return raw[: self._at], raw[self._at :]

    def _next_record(self) -> bytes | None:
        """What the next whole handshake record holds."""
        while True:
            header = self._raw[self._at : self._at + _RECORD_HEADER]
            kinds = (HANDSHAKE, _CHANGE_CIPHER_SPEC) if self._may_change_cipher else (HANDSHAKE,)
            if header and header[0] not in kinds:
                raise InvalidClientHello(f"a record of type {header[0]} is no handshake")
            if len(header) > 1 and header[1] != _VERSION_3:
                raise InvalidClientHello(f"a record of version {header[1]}")
            if len(header) < _RECORD_HEADER:
                return None
            length = int.from_bytes(header[3:], "big")
            if not 0 < length <= _LONGEST_RECORD:
                raise InvalidClientHello(f"a record of {length} bytes")
            end = self._at + _RECORD_HEADER + length
            if header[0] == _CHANGE_CIPHER_SPEC and length != 1:
                raise InvalidClientHello(f"a ChangeCipherSpec of {length} bytes")
            if len(self._raw) < end:
                return None
            body = bytes(self._raw[self._at + _RECORD_HEADER : end])
            self._at = end
            if header[0] == _CHANGE_CIPHER_SPEC:
                self._may_change_cipher = False
                continue
            self._records += 1
            if self._records > MOST_RECORDS:
                raise InvalidClientHello(f"more than {MOST_RECORDS} records")
            return body


def asks_again(answer: bytes) -> bool:
    """Whether the first bytes of a server's answer ask for a second ClientHello."""
    return (
        len(answer) >= RETRY_LENGTH
        and answer[0] == HANDSHAKE
        and answer[_RECORD_HEADER] == _SERVER_HELLO
        and answer[RETRY_LENGTH - len(_RETRY_RANDOM) : RETRY_LENGTH] == _RETRY_RANDOM
    )


class _Fields:
    """Takes fields off the front of a message; a field that is not all there is an error."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, size: int) -> memoryview:
        if len(self._data) < size:
            raise InvalidClientHello("a field ends before it should")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int, least: int, most: int) -> _Fields:
        """A field that says its length in `size` bytes."""
        length = self.number(size)
        if not least <= length <= most:
            raise InvalidClientHello(f"a field of {length} bytes, not {least} to {most}")
        return _Fields(self.take(length))

    def bytes(self) -> bytes:
        return bytes(self._data)


def _parse(message: memoryview) -> ClientHello:
    fields = _Fields(message)
    if fields.number(2) >> 8 != _VERSION_3:
        raise InvalidClientHello("not a version of TLS")
    fields.take(32)  # random
    fields.vector(1, 0, 32)  # session
    if len(fields.vector(2, 2, 0xFFFE).bytes()) % 2:
        raise InvalidClientHello("half a cipher suite")
    fields.vector(1, 1, 0xFF)  # compression
    if not fields:
        return ClientHello(server_name=None)  # before TLS 1.3 extensions may be left out
    extensions = fields.vector(2, 0, 0xFFFF)
    if fields:
        raise InvalidClientHello("something follows the extensions")
    seen: set[int] = set()
    name: str | None = None
    while extensions:
        kind, body = extensions.number(2), extensions.vector(2, 0, 0xFFFF)
        if kind in seen:
            raise InvalidClientHello(f"extension {kind} comes twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(body)
    return ClientHello(server_name=name, is_encrypted=_ENCRYPTED_HELLO in seen)


def _server_name(extension: _Fields) -> str:
    names = extension.vector(2, 1, 0xFFFF)
    if extension:
        raise InvalidClientHello("something follows the server names")
    if names.number(1) != _HOST_NAME:
        raise InvalidClientHello("a server name of an unknown kind")
    name = names.vector(2, 1, 0xFF).bytes()
    if names:
        # one of each kind, and there is no other kind: what a server would pick is not known
        raise InvalidClientHello("more than one server name")
    if not all(0x20 < byte < 0x7F for byte in name):
        raise InvalidClientHello("a server name that is not ASCII")
    return name.decode("ascii").lower()
