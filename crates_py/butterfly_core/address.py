"""Where a socket is: a host and a port."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from butterfly_core.errors import InvalidValue

_PORT: Final = re.compile(r"[0-9]{1,5}")
_NAME_BYTES_MAX: Final = 253
"""Of a host's name: RFC 1035, section 2.3.4, without the dots at both ends."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A host name or IP address, and a TCP port (0 = any free one, where one listens)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """True for an address one can listen on but nobody can dial (0.0.0.0, ::)."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Read ``host:port`` or ``[v6]:port``. Raises InvalidValue."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidValue(f"{text!r}: write an IPv6 address in brackets, as [::1]:7000")
    if not colon or not host or not _PORT.fullmatch(port) or int(port) > 65535:
        raise InvalidValue(f"{text!r} is not an address; write host:port, as 10.0.1.10:7000")
    if not _is_host(host):
        raise InvalidValue(
            f"{text!r}: {host!r} is no host; it must be an IP address, or a name of at most 253 "
            "characters with 1 to 63 between two dots"
        )
    return Address(host, int(port))


def _is_host(host: str) -> bool:
    """False for what the system's resolver refuses to look up: it raises no OSError then."""
    if len(host) > _NAME_BYTES_MAX or not host.isprintable() or " " in host:
        return False
    try:
        return len(host.encode("idna")) <= _NAME_BYTES_MAX
    except UnicodeError:
        return False
