"""Nodes by a DNS name: its SRV records (RFC 2782), or its A and AAAA records and a port."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_discovery.dialable import is_host_name
from butterfly_discovery.dns_records import Found, found

RESOLV_CONF = Path("/etc/resolv.conf")
SERVERS_MAX = 8
CNAMES_MAX = 8
"""Chains that one answer shows whole do not count: dnspython follows up to 16 there."""

_KINDS_ASKED = 3  # SRV, A, AAAA


@dataclass(frozen=True, slots=True)
class Lookup:
    """What to ask and whom. Raises InvalidValue for what could never be asked.

    Without ``servers`` those of the system's resolv.conf are asked, read anew each time.
    ``timeout_seconds`` is for one server and one question. ``default_port`` goes with addresses
    from A and AAAA records.
    """

    name: str
    default_port: int
    servers: tuple[Address, ...] = ()
    timeout_seconds: float = 3.0
    resolv_conf: Path = RESOLV_CONF

    def __post_init__(self) -> None:
        if not is_host_name(self.name.removesuffix(".").lower()) or _is_number(self.name):
            raise InvalidValue(
                f"{self.name!r} is not a DNS name; write one as _butterfly._tcp.example.com"
            )
        if not 0 < self.default_port <= 65535:
            raise InvalidValue(f"port {self.default_port} for {self.name} is not within 1 to 65535")
        if len(self.servers) > SERVERS_MAX:
            raise InvalidValue(f"{len(self.servers)} DNS servers; at most {SERVERS_MAX} are asked")
        for server in self.servers:
            if not _is_number(server.host) or server.port == 0:
                raise InvalidValue(f"DNS server {server} must be an IP address and a port")


class DnsSource:
    """Answers what the name's records say, again whenever their TTL is over.

    A name that is not there, or has no records, is an answer: nobody. Everything else that is no
    answer (SERVFAIL, REFUSED, silence, garbage) raises Unreachable, so that the last one stands.
    """

    name = "dns"

    def __init__(
        self,
        name: str,
        *,
        default_port: int,
        servers: tuple[Address, ...] = (),
        timeout_seconds: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._lookup = Lookup(name, default_port, servers, timeout_seconds)
        self._clock = clock
        self._sleep = sleep
        self._due_seconds = float("-inf")

    async def next(self) -> frozenset[Address]:
        """Wait until the last answer's TTL is over, then ask. Raises Unreachable."""
        while (left := self._due_seconds - self._clock()) > 0:
            await self._sleep(left)
        answer = await look_up(self._lookup)
        self._due_seconds = self._clock() + answer.hold_seconds
        return answer.addresses

    async def run(self) -> None:
        """Nothing to do beside answering."""


async def look_up(lookup: Lookup) -> Found:
    """Ask once. Raises Unreachable when no server gave an answer; it says what each did."""
    try:
        resolver = await _resolver(lookup)
        async with asyncio.timeout(_KINDS_ASKED * resolver.lifetime):
            return await _records(resolver, lookup)
    except (dns.exception.DNSException, TimeoutError) as error:
        told = str(error) or "no answer in time"
        raise Unreachable(f"no DNS answer for {lookup.name}: {told}") from error


async def servers_asked(lookup: Lookup) -> tuple[Address, ...]:
    """The servers in the order they are asked. Raises Unreachable when the system names none."""
    resolver = await _resolver(lookup)
    plain = (server for server in resolver.nameservers if isinstance(server, str))
    return lookup.servers or tuple(Address(server, resolver.port) for server in plain)


async def _resolver(lookup: Lookup) -> dns.asyncresolver.Resolver:
    resolver: dns.asyncresolver.Resolver
    if lookup.servers:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(server.host, server.port) for server in lookup.servers
        ]
    else:
        resolver = await asyncio.to_thread(_of_system, lookup.resolv_conf)
        resolver.nameservers = resolver.nameservers[:SERVERS_MAX]
    resolver.timeout = lookup.timeout_seconds
    resolver.lifetime = lookup.timeout_seconds * (1 + len(resolver.nameservers))
    return resolver


def _of_system(resolv_conf: Path) -> dns.asyncresolver.Resolver:
    """Raises Unreachable for a file that cannot be read or used: another program writes it."""
    try:
        return dns.asyncresolver.Resolver(str(resolv_conf))
    except (dns.exception.DNSException, ValueError, OSError) as error:
        raise Unreachable(f"no DNS server from {resolv_conf}: {error}; mend that file") from error


async def _records(resolver: dns.asyncresolver.Resolver, lookup: Lookup) -> Found:
    name = dns.name.from_text(lookup.name)
    services = await _ask(resolver, name, dns.rdatatype.SRV)
    if services.records:
        targets = [(s.target.to_text(), s.port) for s in services.records]
        return found(targets, ttl_seconds=services.ttl_seconds)
    if services.no_such_name and lookup.name.startswith("_"):
        return found((), ttl_seconds=services.ttl_seconds)
    # Not every server knows SRV: Docker's says NXDOMAIN for the SRV records of a container.
    # One after the other, and both must answer: half of them would look like nodes that left.
    numbers = [await _ask(resolver, name, kind) for kind in (dns.rdatatype.A, dns.rdatatype.AAAA)]
    targets = [(a.address, lookup.default_port) for reply in numbers for a in reply.records]
    telling = [reply for reply in numbers if reply.records] or numbers
    return found(targets, ttl_seconds=min(reply.ttl_seconds for reply in telling))


@dataclass(frozen=True, slots=True)
class _Reply:
    records: tuple[Any, ...]
    ttl_seconds: float
    no_such_name: bool = False


async def _ask(
    resolver: dns.asyncresolver.Resolver, name: dns.name.Name, kind: dns.rdatatype.RdataType
) -> _Reply:
    """One question, CNAMEs followed also where the server shows only the next one."""
    asyncio_backend = dns.asyncbackend.get_backend("asyncio")
    ttl_seconds = float("inf")
    for _ in range(CNAMES_MAX):
        try:
            answer = await resolver.resolve(
                name, kind, search=False, raise_on_no_answer=False, backend=asyncio_backend
            )
        except dns.resolver.NXDOMAIN as error:
            untyped: Any = error
            (response,) = untyped.responses().values()
            negative = response.resolve_chaining().minimum_ttl
            return _Reply((), min(ttl_seconds, negative), no_such_name=True)
        ttl_seconds = min(ttl_seconds, answer.chaining_result.minimum_ttl)
        if answer.rrset is not None:
            return _Reply(tuple(answer.rrset), ttl_seconds)
        if answer.canonical_name == name:
            _refuse_referral(answer.response)
            return _Reply((), ttl_seconds)
        name = answer.canonical_name
    raise Unreachable(f"more than {CNAMES_MAX} CNAME records lead from one to the next at {name}")


def _refuse_referral(response: dns.message.Message) -> None:
    """Name servers without an SOA (RFC 2308, 2.2) say "ask them", not "there is nothing"."""
    kinds = {rrset.rdtype for rrset in response.authority}
    if dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds:
        raise Unreachable(f"the DNS server only refers {response.question[0].name} to others")


def _is_number(host: str) -> bool:
    try:
        dns.inet.af_for_address(host)
    except ValueError:
        return False
    return True
