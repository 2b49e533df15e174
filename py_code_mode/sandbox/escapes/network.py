"""Reaching the network, the host's loopback, and sockets of other processes."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from .attempt import FACTS, Contained, add, attack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _connect(family: int, kind: int, address: Any) -> object:
    with socket.socket(family, kind) as made:
        made.settimeout(0.7)
        made.connect(address)
        if kind == socket.SOCK_DGRAM and family != socket.AF_UNIX:
            made.send(b"attack")
            return made.recv(100)
        return "connected"


def _to(name: str, family: int, kind: int, address: Any) -> None:
    add(f"connect_to_{name}", lambda: _connect(family, kind, address()))


_STREAM, _DGRAM, _SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
_INET, _INET6, _UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX

_to("the_host", _INET, _STREAM, lambda: ("127.0.0.1", FACTS["port"]))
_to("the_host_by_another_loopback_address", _INET, _STREAM, lambda: ("127.8.8.8", FACTS["port"]))
_to("the_host_by_no_address", _INET, _STREAM, lambda: ("0.0.0.0", FACTS["port"]))
_to("the_host_over_ipv6", _INET6, _STREAM, lambda: ("::1", FACTS["port6"]))
_to("the_host_by_a_mapped_address", _INET6, _STREAM, lambda: ("::ffff:127.0.0.1", FACTS["port"]))
_to("the_host_by_its_own_address", _INET, _STREAM, lambda: (FACTS["address"], FACTS["port"]))
_to("the_host_by_datagram", _INET, _DGRAM, lambda: ("127.0.0.1", FACTS["udp"]))
_to("the_host_by_a_name_in_ipv6_link", _INET6, _STREAM, lambda: ("fe80::1", FACTS["port"], 0, 1))
_to("the_internet", _INET, _STREAM, lambda: ("1.1.1.1", 443))
_to("the_internet_over_ipv6", _INET6, _STREAM, lambda: ("2606:4700:4700::1111", 443))
_to("a_name_server", _INET, _DGRAM, lambda: ("8.8.8.8", 53))
_to("cloud_metadata", _INET, _STREAM, lambda: ("169.254.169.254", 80))
_to("cloud_metadata_over_ipv6", _INET6, _STREAM, lambda: ("fd00:ec2::254", 80))
_to("a_private_network", _INET, _STREAM, lambda: ("10.0.0.1", 80))
_to("a_docker_gateway", _INET, _STREAM, lambda: ("172.17.0.1", 2375))
_to("a_broadcast_address", _INET, _DGRAM, lambda: ("255.255.255.255", 9))
_to("a_multicast_group", _INET, _DGRAM, lambda: ("224.0.0.251", 5353))
_to("an_abstract_socket_of_the_host", _UNIX, _STREAM, lambda: "\0" + FACTS["abstract"])
_to("a_socket_of_the_host", _UNIX, _STREAM, lambda: FACTS["socket"])
_to("datagrams_of_the_host", _UNIX, _DGRAM, lambda: FACTS["datagrams"])
_to("docker", _UNIX, _STREAM, lambda: "/var/run/docker.sock")
_to("containerd", _UNIX, _STREAM, lambda: "/run/containerd/containerd.sock")
_to("the_system_bus", _UNIX, _STREAM, lambda: "/run/dbus/system_bus_socket")
_to("systemd", _UNIX, _STREAM, lambda: "/run/systemd/private")
_to("the_display", _UNIX, _STREAM, lambda: "\0/tmp/.X11-unix/X0")


@attack
def connect_to_the_hosts_proxies_and_agents() -> object:
    names = ("HTTP_PROXY", "http_proxy", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if any("127.0.0.1:3128" not in value for value in found.values()):
        return found
    raise Contained("none is named in the environment")


@attack
def resolve_a_name() -> object:
    return socket.getaddrinfo("example.com", 443)


@attack
def send_a_datagram() -> object:
    with socket.socket(_INET, _DGRAM) as made:
        made.sendto(b"attack", ("127.0.0.1", FACTS["udp"]))
    raise Contained("to a loopback of its own")  # the host looks whether it has come


@attack
def listen_for_the_network() -> object:
    with socket.socket(_INET, _STREAM) as made:
        made.bind(("0.0.0.0", FACTS["port"]))
    raise Contained("on interfaces of its own: the host has that port")


@attack
def send_from_a_pair_to_a_path() -> object:
    one, other = socket.socketpair(_UNIX, _DGRAM)
    with one, other:
        return one.sendto(b"attack", FACTS["datagrams"])


@attack
def send_from_a_connected_pair_to_a_path() -> object:
    one, other = socket.socketpair(_UNIX, _SEQPACKET)
    with one, other:
        one.sendto(b"x", FACTS["datagrams"])
        # the kernel drops the address: what counts is that our own end got it
        if other.recv(1) == b"x":
            raise Contained("went to its own other end")
        return "sent"


@attack
def reconnect_a_pair_to_a_path() -> object:
    one, other = socket.socketpair(_UNIX, _STREAM)
    with one, other:
        one.connect(FACTS["socket"])
        return "connected"


def _family(name: str, family: int, kind: int, protocol: int = 0) -> None:
    def attempt() -> object:
        with socket.socket(family, kind, protocol):
            return "made"

    add(f"make_a_{name}_socket", attempt)


_family("raw", _INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
_family("ping", _INET, _DGRAM, socket.IPPROTO_ICMP)
_family("raw_ipv6", _INET6, socket.SOCK_RAW, 58)
_family("netlink", 16, socket.SOCK_RAW)
_family("packet", 17, socket.SOCK_RAW)
_family("crypto", 38, _SEQPACKET)
_family("vsock", 40, _STREAM)
_family("xdp", 44, socket.SOCK_RAW)
_family("sctp", _INET, _SEQPACKET)
_family("multipath", _INET, _STREAM, 262)
_family("bluetooth", 31, socket.SOCK_RAW)
_family("can", 29, socket.SOCK_RAW)
_family("rds", 21, _SEQPACKET)
_family("tipc", 30, _SEQPACKET)
_family("key", 15, socket.SOCK_RAW)
_family("kcm", 41, _DGRAM)
_family("smc", 43, _STREAM)
_family("l2tp", _INET, _DGRAM, 115)


def _interface(name: str, command: int, body: bytes) -> None:
    def attempt() -> object:
        with socket.socket(_INET, _DGRAM) as made:
            return fcntl.ioctl(made, command, body)

    add(name, attempt)


_interface("set_an_address", 0x8916, struct.pack("16s24x", b"lo"))
_interface("take_an_interface_down", 0x8914, struct.pack("16sh22x", b"lo", 0))
_interface("add_a_route", 0x890B, bytes(120))
_interface("make_a_bridge", 0x89A0, b"planted\0")


def _option(name: str, level: int, option: int, value: Any) -> None:
    def attempt() -> object:
        with socket.socket(_INET, _STREAM) as made:
            made.setsockopt(level, option, value)
            return "set"

    add(name, attempt)


_option("mark_its_packets", socket.SOL_SOCKET, 36, 1)
_option("forge_its_address", socket.IPPROTO_IP, 19, 1)
_option("force_its_buffers", socket.SOL_SOCKET, 33, 1 << 30)
_option("read_the_firewall", socket.IPPROTO_IP, 64, bytes(84))
