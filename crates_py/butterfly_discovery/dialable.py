"""Hosts and ports that strangers name: which can be dialled, and in which one form. Pure."""

import ipaddress
import re

from butterfly_core.address import Address

NAME_LENGTH_MAX = 253
"""RFC 1035, 2.3.4, as text without the trailing dot."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def dialable(target: str, port: int) -> Address | None:
    """The address in the form that is equal for every viewer; None when it cannot be dialled.

    That form is the target's name, in lower case and without the trailing dot, not what it
    resolves to: founders compare their lists, and A records may differ by viewer (split horizon,
    NAT) where the names do not.
    """
    if not 0 < port <= 65535:
        return None
    host = target.removesuffix(".").lower()
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return Address(host, port) if is_host_name(host) else None
    return None if number.is_unspecified else Address(number.compressed, port)


def is_host_name(name: str) -> bool:
    """True for labels of letters, digits, ``-`` and ``_`` within the lengths of RFC 1035."""
    return len(name) <= NAME_LENGTH_MAX and all(map(_LABEL.fullmatch, name.split(".")))
