"""From the configuration to the source that names other nodes, and the registry of the claim."""

from typing import Final

from butterfly.config import NodeConfig
from butterfly_cluster.claims import Claim, Claims
from butterfly_core.errors import InvalidValue
from butterfly_core.ids import ClusterId, NodeId, parse_node_id
from butterfly_discovery import claims as registry
from butterfly_discovery.consul_claims import ConsulClaims
from butterfly_discovery.consul_settings import ConsulSettings, no_token, token_from_file
from butterfly_discovery.consul_source import ConsulSource
from butterfly_discovery.dns import DnsSource
from butterfly_discovery.multicast import MulticastSource
from butterfly_discovery.source import Source, StaticSource
from butterfly_wire.secret import derive_key, insecure_secret, load_secret

MULTICAST_PURPOSE: Final = b"butterfly multicast v1"


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
