"""Who may ask: bearer keys, and no pages of other sites.

Keys are compared as digests in constant time and never logged. ``/health`` and ``/readiness``
are open, for load balancers; everything else needs a key when there are keys. A node on loopback
has no keys, but a browser on that machine shows pages of strangers: their requests are told by
``Origin``, or by a ``Host`` that a stranger's name server points at us (DNS rebinding).
"""

import hashlib
import hmac
import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from butterfly.api.errors import ForeignOrigin, KeyMissing
from butterfly_core.address import Address
from butterfly_core.errors import ConfigError

KEY_CHARACTERS_MIN = 16
OPEN_PATHS = frozenset({"/health", "/readiness"})
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def load_api_keys(path: Path) -> frozenset[str]:
    """Read keys, one a line; ``#`` starts a comment. Raises ConfigError; keys are never shown."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys_file {path} cannot be read: {error}") from None
    keys = {}
    for number, line in enumerate(lines, start=1):
        if key := line.partition("#")[0].strip():
            keys[key] = number
            _check_key(path, number, key)
    if not keys:
        raise ConfigError(f"api_keys_file {path} holds no key; write one a line")
    return frozenset(keys)


def _check_key(path: Path, number: int, key: str) -> None:
    where = f"api_keys_file {path}, line {number}"
    if len(key) < KEY_CHARACTERS_MIN:
        raise ConfigError(
            f"{where}: a key of {len(key)} characters; {KEY_CHARACTERS_MIN} at least "
            "(openssl rand -hex 24 makes a good one)"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where}: a key is made of printable ASCII characters without spaces")


class KeyCheck:
    """Knows the digests of the keys, not the keys."""

    def __init__(self, api_keys: frozenset[str]) -> None:
        self._digests = [_digest(key) for key in sorted(api_keys)]

    @property
    def open_to_all(self) -> bool:
        """True when there are no keys."""
        return not self._digests

    def check(self, path: str, authorization: str | None) -> None:
        """Raises KeyMissing when the path needs a key and the header brings none that fits."""
        if not self._digests or path in OPEN_PATHS:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise KeyMissing("No API key; send it as the header: Authorization: Bearer KEY")
        seen = _digest(key.strip())
        matches = [hmac.compare_digest(seen, digest) for digest in self._digests]
        if not any(matches):
            raise KeyMissing("This API key is not known here")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def check_origin(method: str, origin: str | None, host: str) -> None:
    """Refuse what a browser sends for another site's page, which needs no key on loopback.

    Raises ForeignOrigin. Programs send no ``Origin``; our own pages send this host.
    """
    if method in _SAFE_METHODS or origin is None:
        return
    if _netloc(origin) != host.lower():
        raise ForeignOrigin(f"A page of {origin!r} may not use this node")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # "http://[" is no URL
        return ""


def check_host(host: str, local_address: str) -> None:
    """On loopback, let in only names that no public name server can give.

    Raises ForeignOrigin. Fine are addresses, ``localhost``, names without a dot, and names under
    ``.localhost``, ``.local`` and ``.internal``.
    """
    if not Address(local_address, 0).is_loopback:
        return
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        name = "not.a.name"
    if "." not in name or name.endswith(_PRIVATE_SUFFIXES) or _is_ip_address(name):
        return
    raise ForeignOrigin(f"The host name {host!r} is not one of this machine; use its address")


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def guard(keys: KeyCheck) -> Middleware:
    """The middleware of all checks."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        keys.check(request.path, request.headers.get("Authorization"))
        host = request.headers.get("Host", "")
        check_origin(request.method, request.headers.get("Origin"), host)
        if keys.open_to_all and request.transport is not None:
            sockname = request.transport.get_extra_info("sockname")
            check_host(host, str(sockname[0]) if sockname else "")
        return await handler(request)

    return middleware
