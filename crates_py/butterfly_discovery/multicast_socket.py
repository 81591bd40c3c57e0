"""The socket of a multicast group: one hop only, heard by the other nodes of this machine too."""

import ipaddress
import socket
import struct
import sys

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue

_IP_MULTICAST_ALL = 49  # of Linux; Python has no name for it


def check_group(group: Address, interface: str) -> None:
    """Raises InvalidValue for what can never be joined; the interface may come later."""
    try:
        number = ipaddress.ip_address(group.host)
    except ValueError:
        number = None
    if not number or not number.is_multicast or group.port == 0:
        raise InvalidValue(
            f"{group} is not a multicast group and a port; write one as 239.255.70.70:7946"
        )
    if number.version == 6 and _is_number(interface):
        raise InvalidValue(f"name the interface of an IPv6 group (as eth0), not {interface}")


def open_group(group: Address, interface: str) -> socket.socket:
    """Join the group at an interface: its name, its IPv4 address, or "" for the system's choice.

    Raises OSError, as when the interface is not there.
    """
    family = socket.AF_INET6 if ":" in group.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform != "linux":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        index = 0 if not interface or _is_number(interface) else socket.if_nametoindex(interface)
        if family == socket.AF_INET6:
            opened.bind((group.host, group.port, 0, index))
            _join_v6(opened, group, index)
        else:
            opened.bind((group.host, group.port))
            _join_v4(opened, group, "" if index else interface, index)
    except BaseException:
        opened.close()
        raise
    return opened


def _join_v4(opened: socket.socket, group: Address, own: str, index: int) -> None:
    # struct ip_mreqn: group, own address, interface
    packed = socket.inet_aton(group.host) + socket.inet_aton(own or "0.0.0.0")
    request = packed + struct.pack("@i", index)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    if sys.platform == "linux":  # else it hears groups that others of this machine joined
        opened.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)


def _join_v6(opened: socket.socket, group: Address, index: int) -> None:
    interface = struct.pack("@I", index)
    request = socket.inet_pton(socket.AF_INET6, group.host) + interface
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)


def _is_number(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
