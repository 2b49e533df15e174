"""Which hosts an address pattern means: pure functions, no name is ever resolved here.

Names are compared in their IDNA 2008 form, as clients send them. What resolvers read as an address
in a form that is not the plain one (``0x7f.1``, ``127.1``, ``2130706433``) matches nothing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The ports of a pattern that names none: http and https.
DEFAULT_PORTS = frozenset({80, 443})
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST_NAME = 253
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPattern:
    """Hosts that may be reached: a name, an address, or the names below a name.

    Attributes:
        host: a name in ASCII, lower case, without a final dot; or an address in its shortest form.
        is_wildcard: stands for every name below `host`, at any depth, and not for `host` itself.
        ports: which ports; None means all.
    """

    host: str
    is_wildcard: bool = False
    ports: frozenset[int] | None = DEFAULT_PORTS

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Read ``name``, ``*.name``, ``name:port``, ``name:*``, ``10.0.0.1``, ``[::1]:port``.

        Raises:
            ValueError: it is none of these; the message says what to write.
        """
        plain = text.strip()
        if "://" in plain or "/" in plain:
            raise ValueError(f"{text!r} is an address of a page: write its host only")
        if "@" in plain:
            raise ValueError(f"{text!r} holds a user name: write the host only")
        if plain in ("*", "*:*"):
            raise ValueError(
                f"{text!r} would allow every host: write `network: open` if that is meant"
            )
        name, ports = _split(plain, text)
        if not name.startswith("*"):
            return cls(host=_host(name, text), ports=ports)
        below = name.removeprefix("*.")
        if below == name or "*" in below:
            raise ValueError(
                f"{text!r}: a star stands for whole labels in front only: *.example.org"
            )
        host = _host(below, text)
        if _address(host) is not None:
            raise ValueError(f"{text!r}: addresses have no names below them")
        if "." not in host:
            raise ValueError(f"{text!r} would allow a whole top-level domain: name one below it")
        return cls(host=host, is_wildcard=True, ports=ports)

    def matches(self, host: str, port: int) -> bool:
        """Whether a connection to this host and port is meant; a host that is no host never is."""
        if self.ports is not None and port not in self.ports:
            return False
        try:
            plain = canonical_host(host)
        except ValueError:
            return False
        if self.is_wildcard:
            return _address(plain) is None and plain.endswith("." + self.host)
        return plain == self.host

    def covers(self, other: HostPattern) -> bool:
        """Whether everything `other` allows is allowed by this one too."""
        both = self.intersection(other)
        return both == other

    def intersection(self, other: HostPattern) -> HostPattern | None:
        """What both allow; None where that is nothing."""
        if self.ports is None or other.ports is None:
            ports = self.ports if other.ports is None else other.ports
        else:
            ports = self.ports & other.ports
            if not ports:
                return None
        narrow, wide = (self, other) if other.is_wildcard else (other, self)
        if wide.is_wildcard and narrow.is_wildcard and len(narrow.host) < len(wide.host):
            narrow, wide = wide, narrow
        is_inside = (narrow.host, narrow.is_wildcard) == (wide.host, wide.is_wildcard)
        if wide.is_wildcard and _address(narrow.host) is None:
            is_inside |= narrow.host.endswith("." + wide.host)
        if not is_inside:
            return None
        return HostPattern(host=narrow.host, is_wildcard=narrow.is_wildcard, ports=ports)

    def __str__(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        name = f"*.{name}" if self.is_wildcard else name
        if self.ports == DEFAULT_PORTS:
            return name
        if self.ports is None:
            return f"{name}:*"
        return " ".join(f"{name}:{port}" for port in sorted(self.ports))


def is_allowed(patterns: Iterable[HostPattern], host: str, port: int) -> bool:
    """Whether one of the patterns means this host and port."""
    return any(pattern.matches(host, port) for pattern in patterns)


def canonical_host(host: str) -> str:
    """The one form in which a name or an address is compared: ASCII, lower case, no brackets.

    Raises:
        ValueError: it is neither.
    """
    return _host(host.removeprefix("[").removesuffix("]"), host)


def _split(plain: str, text: str) -> tuple[str, frozenset[int] | None]:
    if plain.startswith("["):
        name, closed, rest = plain[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or ":" not in name:
            raise ValueError(f"{text!r}: an IPv6 address with a port is written [::1]:443")
        port = rest.removeprefix(":") if rest else None
    elif plain.count(":") > 1:
        name, port = plain, None  # an IPv6 address
    else:
        name, colon, after = plain.partition(":")
        port = after if colon else None
    if port is None:
        return name, DEFAULT_PORTS
    if port == "*":
        return name, None
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= _LAST_PORT):
        raise ValueError(f"{text!r}: the port must be 1 to {_LAST_PORT}, or * for all")
    return name, frozenset({int(port)})


def _host(name: str, text: str) -> str:
    """The one form in which a name or an address is compared."""
    address = _address(name)
    if address is not None:
        return address
    plain = name.removesuffix(".").lower() if name.isascii() else _to_ascii(name, text)
    labels = plain.split(".")
    if len(plain) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is not a host name")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{text!r} is not an address in its plain form, such as 127.0.0.1")
    if any(label.startswith("xn--") for label in labels):
        _to_ascii(plain, text)
    return plain


def _to_ascii(name: str, text: str) -> str:
    import idna

    try:
        # mapped as browsers and httpx do: case and width folded, full stops made one
        return idna.encode(name, uts46=True, std3_rules=True).decode("ascii").removesuffix(".")
    except idna.IDNAError as error:
        raise ValueError(f"{text!r} is not a host name: {error}") from error


def _address(name: str) -> str | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None  # means another host on each machine
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)
