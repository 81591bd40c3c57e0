"""What a node meets others with: its identity on the wire, connections, addresses, sources."""

from collections.abc import Callable
from dataclasses import dataclass

from butterfly.config import NodeConfig
from butterfly.node.addresses import AddressBook
from butterfly.node.discovery import NodeDiscovery
from butterfly.node.local import Local
from butterfly.node.peers import WirePeers
from butterfly.node.settings import SILENT_SECONDS
from butterfly.security import tls_identity
from butterfly_cluster.identity import DataDir
from butterfly_cluster.state import ClusterState
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.limits import WireLimits
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.traffic import Traffic
from butterfly_wire.watching import CredentialWatch


@dataclass(frozen=True, slots=True)
class Network:
    """Made once by ``make_network``; the node starts and closes what is in it."""

    tls: TlsIdentity
    credentials: CredentialWatch | None
    listener: PeerListener
    pool: PeerPool
    addresses: AddressBook
    peers: WirePeers
    discovery: NodeDiscovery
    traffic: Traffic


def make_network(
    config: NodeConfig, data_dir: DataDir, local: Local, state: Callable[[], ClusterState]
) -> Network:
    """Raises ConfigError for a secret that cannot be read, InvalidValue for a wrong source."""
    me, name = data_dir.identity.node_id, config.cluster.cluster_name
    tls, credentials = tls_identity(config, me)
    limits = WireLimits(silent_seconds=SILENT_SECONDS[config.cluster.profile])
    traffic = Traffic()
    pool = PeerPool(tls, cluster_name=name, node_id=me, limits=limits, traffic=traffic)
    addresses = AddressBook(data_dir.path / "peers.json", state)
    return Network(
        tls=tls,
        credentials=credentials,
        listener=PeerListener(
            config.node.bind_address,
            tls,
            cluster_name=name,
            node_id=me,
            limits=limits,
            traffic=traffic,
        ),
        pool=pool,
        addresses=addresses,
        peers=WirePeers(
            me,
            cluster_name=name,
            tls=tls,
            pool=pool,
            addresses=addresses,
            limits=limits,
            here=config.node.advertise_address,
            cluster_id=lambda: data_dir.identity.cluster_id,
            traffic=traffic,
        ),
        discovery=NodeDiscovery(config, me, local),
        traffic=traffic,
    )
