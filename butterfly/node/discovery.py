"""Where this node looks for others: the configured source, watched for as long as it lives.

Founding asks it who is expected; later it tells of addresses that nobody named before. A
source that is down is a problem to show: a cluster that stands does not need it.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from butterfly.config import NodeConfig
from butterfly.node.local import Local, Problem
from butterfly_cluster.claims import Claim, Claims
from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_core.ids import ClusterId, NodeId, parse_node_id
from butterfly_discovery import claims as registry
from butterfly_discovery.consul_claims import ConsulClaims
from butterfly_discovery.consul_settings import ConsulSettings, no_token, token_from_file
from butterfly_discovery.consul_source import ConsulSource
from butterfly_discovery.dns import DnsSource
from butterfly_discovery.multicast import MulticastSource
from butterfly_discovery.source import Source, StaticSource
from butterfly_discovery.watching import Discovery
from butterfly_wire.secret import derive_key, insecure_secret, load_secret

log = logging.getLogger(__name__)

DISCOVERY_PROBLEM: Final = "discovery"
MULTICAST_PURPOSE: Final = b"butterfly multicast v1"
_FIRST_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 5.0
_SHOWN_MAX: Final = 100


class NodeDiscovery:
    """The sources of one node; the ``Directory`` of its founding."""

    def __init__(self, config: NodeConfig, me: NodeId, local: Local) -> None:
        """Raises InvalidValue for a source that can never work as configured."""
        self._method = config.cluster.discovery_method
        self._local = local
        self._source = source_of(config, me)
        self._discovery = Discovery([self._source])
        self._claims = claims_of(config)

    @property
    def claims(self) -> Claims | None:
        return self._claims

    @property
    def addresses(self) -> frozenset[Address]:
        """Everything the source named last."""
        return self._discovery.book.addresses

    async def seeds(self) -> tuple[str, ...]:
        """The last answer, sorted. Raises Unreachable while there was none."""
        book = await self._discovery.first(_FIRST_SECONDS)
        if self._source.name not in book.answers:
            problem = self._discovery.problems.get(self._source.name)
            raise Unreachable(problem.message if problem else f"{self._method}: no answer yet")
        return tuple(sorted(map(str, book.addresses)))

    async def run(self) -> None:
        """Watch the source, and keep its problem up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discovery.run())
            tasks.create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            problem = self.problem()
            if problem is None:
                self._local.solved(DISCOVERY_PROBLEM)
            else:
                if DISCOVERY_PROBLEM not in self._local.problems:
                    log.warning("%s", problem)
                self._local.report(Problem(DISCOVERY_PROBLEM, problem))
            await self._discovery.changed(_LOOK_SECONDS)

    def problem(self) -> str | None:
        """What is wrong with the source now, in a sentence."""
        found = self._discovery.problems.get(self._source.name)
        if found is not None:
            seconds = max(0.0, self._discovery.now - found.since)
            stands = (
                f"its last answer ({len(self.addresses)} addresses) stands and a cluster that "
                "was founded goes on"
                if self._source.name in self._discovery.book.answers
                else "no answer yet; a new node cannot find the others"
            )
            return f"{self._method} has not answered for {seconds:.0f} s: {found.message}; {stands}"
        if isinstance(self._source, ConsulSource | MulticastSource):
            return self._source.problem
        return None

    def view(self) -> Mapping[str, Any]:
        """For ``/status``."""
        ago = self._discovery.answered_seconds_ago
        return {
            "method": self._method,
            "addresses": [str(address) for address in sorted(self.addresses)[:_SHOWN_MAX]],
            "problem": self.problem(),
            "answered_seconds_ago": None if ago is None else round(ago, 1),
        }


def source_of(config: NodeConfig, me: NodeId) -> Source:
    """The source that ``discovery_method`` names. Raises InvalidValue."""
    cluster, node, found = config.cluster, config.node, config.discovery
    match cluster.discovery_method:
        case "static":
            return StaticSource(cluster.seed_nodes)
        case "dns":
            return DnsSource(
                found.dns_name, default_port=node.bind_address.port, servers=found.dns_servers
            )
        case "consul":
            return ConsulSource(
                consul_settings(config),
                cluster_name=cluster.cluster_name,
                me=node.advertise_address,
                service_id=f"{found.consul_service}-{me}",
            )
        case "multicast":
            key, *others = multicast_keys(config)
            return MulticastSource(
                cluster.cluster_name,
                node.advertise_address,
                key=key,
                also_accepted=tuple(others),
                group=found.multicast_group,
                interface=found.multicast_interface,
            )


def multicast_keys(config: NodeConfig) -> tuple[bytes, ...]:
    """What announcements are signed with, and what else is accepted while the secret changes.

    Read once: it is for nodes that are still looking for each other. Raises ConfigError.
    """
    file = config.security.cluster_secret_file
    secret = load_secret(file) if file else insecure_secret(config.cluster.cluster_name)
    return tuple(derive_key(accepted, MULTICAST_PURPOSE) for accepted in secret.accepted)


def claims_of(config: NodeConfig) -> Claims | None:
    """The registry of the claim, where the source has one."""
    if config.cluster.discovery_method != "consul":
        return None
    name = config.cluster.cluster_name
    return FoundingClaims(ConsulClaims(consul_settings(config), cluster_name=name))


def consul_settings(config: NodeConfig) -> ConsulSettings:
    """Raises InvalidValue."""
    found = config.discovery
    token_file = found.consul_token_file
    return ConsulSettings(
        url=found.consul_url,
        token=token_from_file(token_file) if token_file else no_token,
        ca_file=found.consul_ca_file,
        certificate_file=found.consul_certificate_file,
        key_file=found.consul_key_file,
        service=found.consul_service,
        datacenter=found.consul_datacenter,
    )


class FoundingClaims:
    """A registry's claims in the words of founding."""

    def __init__(self, claims: ConsulClaims) -> None:
        self._claims = claims

    async def read(self) -> Claim | None:
        """Raises ClaimUnreadable also when the claim names no node or cluster of ours."""
        found = await self._claims.read()
        if found is None:
            return None
        try:
            cluster = found.cluster_id and ClusterId(parse_node_id(found.cluster_id))
            return Claim(parse_node_id(found.candidate), cluster or None, found.version)
        except InvalidValue as error:
            raise registry.ClaimUnreadable(
                f"the claim {self._claims.key} in Consul is not ours: {error}; look at it, and "
                "delete the key when nobody needs it"
            ) from error

    async def write(self, claim: Claim, /, *, replacing: Claim | None) -> bool:
        before = None if replacing is None else _for_registry(replacing)
        return await self._claims.write(_for_registry(claim), replacing=before)


def _for_registry(claim: Claim) -> registry.Claim:
    return registry.Claim(claim.candidate, claim.cluster_id, claim.version)
