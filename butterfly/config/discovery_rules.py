"""Which keys of ``[discovery]`` each ``discovery_method`` needs, and which mean nothing to it."""

import ipaddress
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from butterfly.config.discovery_schema import DiscoverySection
from butterfly.config.files import cannot_open
from butterfly.config.schema import ClusterSection
from butterfly_core.address import parse_address

DYNAMIC_QUORUM_MIN: Final = 2
_FROM: Final = {
    "dns": "the records of dns_name",
    "consul": "Consul",
    "multicast": "the network",
}


def discovery_faults(
    cluster: ClusterSection, discovery: DiscoverySection
) -> Iterator[tuple[str, str]]:
    """``section.key`` to change, and why with what to write instead."""
    method = cluster.discovery_method
    yield from _meaningless(method, discovery)
    if method == "static":
        return
    if cluster.seed_nodes:
        yield (
            "cluster.seed_nodes",
            f'has a meaning only with discovery_method = "static"; with "{method}" the nodes '
            f'come from {_FROM[method]}: remove seed_nodes, or write discovery_method = "static"',
        )
    if cluster.quorum_size < DYNAMIC_QUORUM_MIN:
        yield (
            "cluster.quorum_size",
            f'must be set with discovery_method = "{method}", to more than half of all machines '
            "(2 of 3, 3 of 5), so that two halves cannot found two clusters",
        )
    if method == "dns" and not discovery.dns_name:
        yield (
            "discovery.dns_name",
            'must be set with discovery_method = "dns", as "_butterfly._tcp.example.com"',
        )
    if method == "dns":
        yield from _dns_servers(discovery)
    if method == "consul":
        yield from _consul_url(discovery)
        yield from _consul_files(discovery)
    if method == "multicast":
        yield from _group(discovery)


def _meaningless(method: str, discovery: DiscoverySection) -> Iterator[tuple[str, str]]:
    for key, field in DiscoverySection.model_fields.items():
        owner = key.partition("_")[0]
        if owner != method and getattr(discovery, key) != field.default:
            yield (
                f"discovery.{key}",
                f'has a meaning only with discovery_method = "{owner}"; remove {key}, or write '
                f'discovery_method = "{owner}" in [cluster]',
            )


def _dns_servers(discovery: DiscoverySection) -> Iterator[tuple[str, str]]:
    for server in discovery.dns_servers:
        try:
            usable = not ipaddress.ip_address(server.host).is_unspecified and server.port > 0
        except ValueError:
            usable = False
        if not usable:
            yield (
                "discovery.dns_servers",
                f"{server} must be the IP address and port of a DNS server, as 10.0.0.2:53",
            )


def _consul_url(discovery: DiscoverySection) -> Iterator[tuple[str, str]]:
    try:
        parts = urlsplit(discovery.consul_url)
        parse_address(parts.netloc if parts.port else f"{parts.netloc}:8500")
    except ValueError:
        yield (
            "discovery.consul_url",
            "must name a host and, if it is not Consul's own, a port, as http://127.0.0.1:8500",
        )


def _consul_files(discovery: DiscoverySection) -> Iterator[tuple[str, str]]:
    keys = ("consul_token_file", "consul_ca_file", "consul_certificate_file", "consul_key_file")
    for key in keys:
        path = getattr(discovery, key)
        if path is None:
            continue
        if (reason := cannot_open(path, "or remove the key")) is not None:
            yield f"discovery.{key}", f"{path} {reason}"
        if key != "consul_token_file" and discovery.consul_url.startswith("http://"):
            advice = "write consul_url with https://, or remove it"
            yield f"discovery.{key}", f"is used over TLS only; {advice}"
    if discovery.consul_key_file and not discovery.consul_certificate_file:
        advice = "name consul_certificate_file as well"
        yield "discovery.consul_key_file", f"is the key of a certificate; {advice}"


def _group(discovery: DiscoverySection) -> Iterator[tuple[str, str]]:
    group = discovery.multicast_group
    try:
        usable = ipaddress.ip_address(group.host).is_multicast and group.port > 0
    except ValueError:
        usable = False
    if not usable:
        yield (
            "discovery.multicast_group",
            "must be a multicast address and a port, as 239.255.70.70:7946 (224.0.0.0 to "
            "239.255.255.255, or ff00::/8)",
        )
