"""Which addresses the proxy may dial for a guest: pure rules, and one question to this machine.

`ipaddress.is_global` alone would not do: it calls multicast global, and what it knows of the
special-purpose registries, of addresses inside addresses most of all, differs between releases of
Python. The rules here are the registries' (IANA, RFC 6890), read strictly.
"""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA has given out for public use
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052; the local-use prefix of RFC 8215 leads inside
_SIX_TO_FOUR = IPv6Network("2002::/16")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214, in the third quarter of an address
_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
            "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
            "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
            # looks public, answers on every virtual machine of Azure: its host's agent
            "168.63.129.16/32",
        ),
    )
)  # fmt: skip
_NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_INSIDE_4 = tuple(
    map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"))
)
_INSIDE_6 = IPv6Network("fc00::/7")
#: Top-level names that the public name system will never hold: RFC 2606, 6762 (with appendix G) and
#: 8375, and ICANN's decision on ``internal``.
_INSIDE_NAMES = frozenset(
    {"corp", "home", "home.arpa", "internal", "intranet", "lan", "local", "private", "test"}
)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach it; addresses inside addresses are unfolded."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    number = int(address)
    if address in _NAT64:
        return is_public(IPv4Address(number & 0xFFFFFFFF))
    if address not in _GLOBAL_UNICAST or any(address in network for network in _NOT_PUBLIC_6):
        return False
    if address in _SIX_TO_FOUR:
        return is_public(IPv4Address(number >> 80 & 0xFFFFFFFF))
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        return is_public(IPv4Address(number & 0xFFFFFFFF))
    return address.is_global


def is_inside(address: Address) -> bool:
    """Whether it belongs to a private network; this machine and its link do not."""
    if isinstance(address, IPv4Address):
        return any(address in network for network in _INSIDE_4)
    return address.scope_id is None and address in _INSIDE_6


def is_own(address: Address) -> bool:
    """Whether it is one of this machine's own: a public one reaches what listens here too."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            # a datagram's connect sends nothing; towards itself a machine speaks from that address
            asking.connect((str(address), 9))
            return asking.getsockname()[0] == str(address)
    except OSError:
        return False  # no way there: dialling will say so


def is_local_name(host: str) -> bool:
    """Whether it means this machine, whatever a resolver says (RFC 6761 §6.3)."""
    return host == "localhost" or host.endswith(".localhost")


def is_inside_name(host: str) -> bool:
    """Whether it cannot be a public name, so that listing it can only mean a private host."""
    if is_local_name(host) or as_address(host) is not None:
        return False
    return "." not in host or any(host.endswith("." + name) for name in _INSIDE_NAMES)


def as_address(host: str) -> Address | None:
    """The address that a canonical host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
