"""Which addresses are public, private, this machine's own; and which names can only be private."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_code_mode.sandbox.egress.addresses import (
    as_address,
    is_inside,
    is_inside_name,
    is_local_name,
    is_own,
    is_public,
)


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.0.1",
        "172.32.0.1", "192.167.0.1", "223.255.255.254", "198.17.0.1", "198.20.0.1",
        "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2001:4860:4860::8888",
        "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
    ],
)  # fmt: skip
def test_public_addresses(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
        "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.192", "192.0.2.1",
        "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "168.63.129.16",
        "::", "::1", "::2", "::127.0.0.1", "::8.8.8.8", "100::1", "5f00::1", "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1",
        "2001:db8::1", "3fff::1", "4000::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo",
        "fec0::1", "ff02::1", "ff0e::1", "2606:4700::1%eth0",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:8.8.8.8",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b:1::808:808",
        "2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:c0a8:1::",
        "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@given(st.integers(0, (1 << 32) - 1))
def test_an_address_within_an_address_is_as_public_as_it_is_itself(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    for outer in (
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | number << 80),
    ):
        assert is_public(outer) == is_public(inner)
    assert not (is_public(inner) and is_inside(inner))
    if is_public(inner):
        assert inner.is_global


@given(st.integers(0, (1 << 128) - 1))
def test_no_public_address_is_what_python_calls_private(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    if is_public(address):
        assert not address.is_private
        assert not address.is_multicast
        assert not is_inside(address)


@pytest.mark.parametrize("text", ["10.1.2.3", "172.20.0.1", "192.168.1.1", "100.64.0.1", "fd00::1"])
def test_addresses_inside_private_networks(text: str) -> None:
    assert is_inside(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "8.8.8.8"])
def test_this_machine_and_its_link_are_not_inside(text: str) -> None:
    assert not is_inside(ipaddress.ip_address(text))


def test_own_addresses_are_known() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("192.0.2.1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no way out, and so no address of its own")
        assert is_own(ipaddress.ip_address(asking.getsockname()[0]))


@pytest.mark.parametrize(
    ("host", "is_local", "is_inner"),
    [
        ("localhost", True, False),
        ("app.localhost", True, False),
        ("db", False, True),
        ("db.internal", False, True),
        ("printer.local", False, True),
        ("nas.home.arpa", False, True),
        ("internal.example.org", False, False),
        ("localhost.example.org", False, False),
        ("xlocalhost", False, True),
        ("notinternal.org", False, False),
        ("10.0.0.1", False, False),
        ("::1", False, False),
    ],
)
def test_names_that_can_only_be_private(host: str, is_local: bool, is_inner: bool) -> None:
    assert (is_local_name(host), is_inside_name(host)) == (is_local, is_inner)


def test_a_name_is_no_address() -> None:
    assert as_address("example.org") is None
    assert as_address("127.1") is None
