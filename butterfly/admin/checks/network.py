"""Ports of this node, names of the seeds, and whether the seeds can be reached."""

import errno
import socket
from collections.abc import Callable, Sequence

from butterfly.admin.checks.finding import Finding, failed, passed, warned
from butterfly.admin.checks.situation import Situation
from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import short

DIAL_SECONDS_MAX = 3.0


def look_at_ports(situation: Situation) -> Sequence[Finding]:
    """The two listening addresses: free, or held by a Butterfly node that runs."""
    node = situation.known.node
    return [
        _port("peer port", node.bind_address, "bind_address", lambda: _peer(situation)),
        _port("HTTP port", node.http_address, "http_address", lambda: _http_node(situation)),
    ]


def _port(name: str, address: Address, key: str, ask_holder: Callable[[], str | None]) -> Finding:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        return _not_free(name, address, key, error, ask_holder)
    return passed(name, f"{address} is free")


def _not_free(
    name: str,
    address: Address,
    key: str,
    error: OSError,
    ask_holder: Callable[[], str | None],
) -> Finding:
    change = f"or choose another address in [node] {key}"
    if error.errno == errno.EADDRINUSE:
        if holder := ask_holder():
            return passed(name, f"{address} is held by the running node {short(holder)}")
        return failed(
            name,
            f"{address} is held by another program",
            f"see which with: ss -ltnp 'sport = :{address.port}'; stop it, {change}",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return failed(
            name, f"this machine has no address {address.host}", f"see: ip addr; {change}"
        )
    return failed(name, f"cannot listen on {address}: {error.strerror or error}", change[3:])


def _peer(situation: Situation) -> str | None:
    """The id of the node of this cluster that holds the peer port."""
    from butterfly.admin.checks.whoami import ask_who

    bound = situation.known.node.bind_address
    here = "::1" if ":" in bound.host else "127.0.0.1"
    address = Address(here, bound.port) if bound.is_wildcard else bound
    try:
        return ask_who(situation.known, address)
    except ButterflyError:
        return None


def _http_node(situation: Situation) -> str | None:
    try:
        node_id = situation.node.status().get("node_id")
    except ButterflyError:
        return None
    return str(node_id) if node_id else None


def look_at_names(situation: Situation) -> Sequence[Finding]:
    """Each seed's host name has an address, or the name to look for nodes under is answered."""
    if situation.known.cluster.discovery_method == "dns":
        from butterfly.admin.checks.dns_name import look_at_dns_name

        return look_at_dns_name(situation)
    seeds = situation.known.cluster.seed_nodes
    hosts = dict.fromkeys(seed.host for seed in seeds if not _is_number(seed.host))
    if not hosts:
        return [passed("DNS", "no host names among the seed nodes")]
    return [_name(host) for host in hosts]


def _is_number(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def _name(host: str) -> Finding:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return failed(
            f"DNS {host}",
            f"the name does not resolve: {error.strerror or error}",
            f"check the spelling in [cluster] seed_nodes, then: getent hosts {host}",
        )
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in found}))
    return passed(f"DNS {host}", addresses)


def look_at_seeds(situation: Situation) -> Sequence[Finding]:
    """Each seed but this node itself accepts a connection, and proves to be of this cluster."""
    config = situation.known
    own = {config.node.bind_address, config.node.advertise_address}
    seeds = [seed for seed in config.cluster.seed_nodes if seed not in own]
    if not seeds:
        return [passed("seed nodes", "none beside this node")]
    return [_seed(situation, seed) for seed in seeds]


def _seed(situation: Situation, seed: Address) -> Finding:
    name = f"seed {seed}"
    try:
        socket.create_connection((seed.host, seed.port), timeout=DIAL_SECONDS_MAX).close()
    except socket.gaierror as error:
        return failed(name, f"its name does not resolve: {error.strerror}", "see the check of DNS")
    except TimeoutError:
        return failed(
            name,
            f"no answer within {DIAL_SECONDS_MAX:.0f} s",
            f"a firewall drops packets or the machine is off: ping {seed.host}; "
            f"nc -zv {seed.host} {seed.port}",
        )
    except ConnectionRefusedError:
        return failed(
            name,
            "the machine answers, but nothing listens on this port",
            "start the node there, or correct the port in [cluster] seed_nodes",
        )
    except OSError as error:
        return failed(
            name, f"{error.strerror or error}", f"check the route: ip route get {seed.host}"
        )
    return _introduction(situation, seed, name)


def _introduction(situation: Situation, seed: Address, name: str) -> Finding:
    from butterfly.admin.checks.whoami import ask_who

    try:
        answer = ask_who(situation.known, seed)
    except ButterflyError as error:
        return failed(
            name,
            f"reachable, but: {error}",
            "all nodes need the same cluster_name and the same cluster secret file or authority",
        )
    if not answer:
        return warned(
            name, "reachable and authenticated, but it does not say who it is", "update it"
        )
    return passed(name, f"reachable, authenticated as {short(answer)}")
