"""Which values cannot stand together, and what to write instead.

A rule sees whole sections (None for one that is itself broken) and names the key to change.
The only thing looked at outside the configuration is whether the secret files can be opened.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from butterfly.config.discovery_rules import discovery_faults
from butterfly.config.discovery_schema import DiscoverySection
from butterfly.config.files import cannot_open
from butterfly.config.problems import Problem, nearest
from butterfly.config.reading import Setting
from butterfly.config.schema import (
    ELECTION_SECONDS,
    EMBEDDED_MODELS,
    ClusterSection,
    EngineSection,
    ModelSection,
    NodeSection,
    SecuritySection,
)
from butterfly_core.address import Address
from butterfly_core.errors import ConfigError
from butterfly_weights.addresses import parse_hub_name, plain_url

_CERTIFICATE_KEYS = ("ca_file", "certificate_file", "private_key_file")
_MADE_BY = {
    "cluster_secret_file": "with: butterfly-admin secret create PATH",
    "api_keys_file": "for instance with: openssl rand -hex 24",
}
_TYPES_WITH_KEY = {"endpoint_url": ("s3", "huggingface"), "region": ("s3",)}
_TYPE_OF_SCHEME = {"s3": "s3", "http": "http", "https": "http", "hf": "huggingface"}
_SECRETS_OF = {
    "s3": "use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile",
    "huggingface": "use HF_TOKEN",
}
_S3_PATH = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parts:
    """The sections that are valid alone; the others are None."""

    cluster: ClusterSection | None
    discovery: DiscoverySection | None
    model: ModelSection | None
    node: NodeSection | None
    engine: EngineSection | None
    security: SecuritySection | None


Fault = tuple[str, str]
"""``section.key`` to change, and why with what to write instead."""


def broken_rules(parts: Parts, settings: Mapping[str, Setting]) -> list[Problem]:
    """Every combination that cannot be, placed where the value at fault was written."""
    return [_placed(name, message, settings) for name, message in _faults(parts)]


def _faults(parts: Parts) -> Iterator[Fault]:
    cluster, model, node, security = parts.cluster, parts.model, parts.node, parts.security
    if model:
        yield from _source(model)
        yield from _keys_of_some_sources(model)
        yield from _signatures(model)
    if node:
        yield from _addresses(node)
        yield from _capacity(node)
    if cluster and node:
        yield from _seeds(cluster, node)
    if cluster and parts.discovery:
        yield from discovery_faults(cluster, parts.discovery)
    if cluster:
        yield from _lease(cluster)
    if parts.engine:
        yield from _budgets(parts.engine)
    if security:
        yield from _secret_files(security)
    if node and security:
        yield from _beyond_loopback(cluster, node, security)
    if cluster and security:
        yield from _unsigned(cluster, security)


def _placed(name: str, message: str, settings: Mapping[str, Setting]) -> Problem:
    if name in settings:
        return Problem(settings[name].where, message, settings[name].value)
    section, _, key = name.partition(".")
    return Problem(f"[{section}] {key}", message)


def _source(model: ModelSection) -> Iterator[Fault]:
    path = model.source_path
    if model.source_type == "s3" and not _S3_PATH.fullmatch(path):
        yield "model.source_path", 'must be s3://bucket/prefix when source_type is "s3"'
    if model.source_type == "filesystem" and "://" in path:
        other = _TYPE_OF_SCHEME.get(path.partition("://")[0])
        advice = f'a URL; set source_type = "{other}"' if other else "a URL"
        yield (
            "model.source_path",
            f'must be a folder when source_type is "filesystem", not {advice}',
        )
    if model.source_type == "http" and (reason := _refusal(plain_url, path, "source_path")):
        yield "model.source_path", reason
    if model.source_type == "huggingface" and (reason := _refusal(parse_hub_name, path)):
        yield "model.source_path", reason
    if model.source_type == "embedded" and path not in EMBEDDED_MODELS:
        near = nearest(path, EMBEDDED_MODELS)
        hint = f"; did you mean {near}?" if near else ""
        known = ", ".join(EMBEDDED_MODELS)
        yield "model.source_path", f"no model of this name ships with the package: {known}{hint}"


def _refusal(read: Callable[..., object], *values: str) -> str:
    try:
        read(*values)
    except ConfigError as error:
        return str(error)
    return ""


def _keys_of_some_sources(model: ModelSection) -> Iterator[Fault]:
    for key, types in _TYPES_WITH_KEY.items():
        if getattr(model, key) is not None and model.source_type not in types:
            allowed = " or ".join(f'source_type = "{kind}"' for kind in types)
            yield f"model.{key}", f"has a meaning only with {allowed}; remove {key}"
    if model.endpoint_url is not None and model.source_type in _TYPES_WITH_KEY["endpoint_url"]:
        yield from _endpoint(model)
    if not model.peers and model.peer_upload_bytes_per_second:
        yield (
            "model.peer_upload_bytes_per_second",
            "bounds what peers are given, but peers = false; remove one of the two",
        )
    if model.cache == "off" and model.cache_bytes_max:
        yield "model.cache_bytes_max", 'bounds a cache that is off; remove it or the cache = "off"'


def _signatures(model: ModelSection) -> Iterator[Fault]:
    if model.require_signature and not model.trusted_keys:
        advice = 'name the publisher\'s public key, as trusted_keys = ["publisher.pub"]'
        yield "model.trusted_keys", f"must be set because require_signature is: {advice}"
    for path in model.trusted_keys:
        if (reason := cannot_open(path, "with: openssl ec -in key.pem -pubout")) is not None:
            yield "model.trusted_keys", f"{path} {reason}"


def _endpoint(model: ModelSection) -> Iterator[Fault]:
    url = model.endpoint_url or ""
    try:
        parsed = urlsplit(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.hostname)
        usable = usable and (parsed.port is None or parsed.port > 0)
    except ValueError:
        usable, parsed = False, urlsplit("")
    if not usable:
        yield "model.endpoint_url", "must be a URL with http:// or https://, as http://minio:9000"
    elif parsed.username is not None:
        advice = _SECRETS_OF[model.source_type]
        yield "model.endpoint_url", f"must not carry a user name or password; {advice}"


def _addresses(node: NodeSection) -> Iterator[Fault]:
    bind, http, advertised = node.bind_address, node.http_address, node.advertise_address
    if advertised.is_wildcard and bind.is_wildcard:
        advice = 'set it to what the others dial, as advertise_address = "10.0.1.10:7000"'
        yield "node.advertise_address", f"bind_address {bind} is no address to dial; {advice}"
    elif advertised.is_wildcard or (advertised.port == 0 and bind.port != 0):
        yield "node.advertise_address", "must be an address that other nodes can dial"
    if bind.port == http.port != 0 and _same_host(bind, http):
        advice = f"port {bind.port} is taken by bind_address {bind}; choose another, as 8080"
        yield "node.http_address", advice


def _same_host(one: Address, other: Address) -> bool:
    local = one.is_loopback and other.is_loopback
    return one.host == other.host or one.is_wildcard or other.is_wildcard or local


def _capacity(node: NodeSection) -> Iterator[Fault]:
    if node.capacity == 0 and node.role == "worker":
        advice = 'offer a share above 0, or set role = "coordinator"'
        yield "node.capacity", f"a worker that carries no layers has nothing to do; {advice}"


def _seeds(cluster: ClusterSection, node: NodeSection) -> Iterator[Fault]:
    if not cluster.seed_nodes or cluster.discovery_method != "static":
        if node.role == "worker" and cluster.discovery_method == "static":
            advice = 'list at least one node, or set role = "coordinator" on the first one'
            yield "cluster.seed_nodes", f"a worker without seed nodes finds nobody; {advice}"
        return
    far = [str(seed) for seed in cluster.seed_nodes if _is_beyond(seed)]
    if far and node.bind_address.is_loopback and node.advertise_address.is_loopback:
        advice = 'bind to an address they can dial, as "0.0.0.0:7000" with an advertise_address'
        yield "node.bind_address", f"seed node {far[0]} cannot reach {node.bind_address}; {advice}"


def _lease(cluster: ClusterSection) -> Iterator[Fault]:
    election = ELECTION_SECONDS[cluster.profile]
    if cluster.admission_lease_seconds <= election:
        yield (
            "cluster.admission_lease_seconds",
            f"must be more than {election:g}: an election of profile "
            f'"{cluster.profile}" may take that long, and no request should be refused for it',
        )


def _is_beyond(address: Address) -> bool:
    """True for an IP address of another machine; a host name may be anything."""
    try:
        return not ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def _budgets(engine: EngineSection) -> Iterator[Fault]:
    if engine.kv_cache_tokens < engine.block_size:
        yield "engine.kv_cache_tokens", f"must hold one block of {engine.block_size} tokens"
    if engine.step_tokens_max < engine.sequences_max:
        advice = f"must be {engine.sequences_max} (sequences_max) or more"
        yield "engine.step_tokens_max", f"{advice}: a step holds a token of every sequence"


def _secret_files(security: SecuritySection) -> Iterator[Fault]:
    secret, keys = security.cluster_secret_file, security.api_keys_file
    for key in ("cluster_secret_file", *_CERTIFICATE_KEYS, "api_keys_file"):
        path: Path | None = getattr(security, key)
        if (
            path is not None
            and (reason := cannot_open(path, _MADE_BY.get(key, "in PEM format"))) is not None
        ):
            yield f"security.{key}", f"{path} {reason}"
    yield from _certificates(security)
    if secret is not None and secret == keys:
        yield "security.api_keys_file", "is the cluster's secret: clients must not hold it"


def _certificates(security: SecuritySection) -> Iterator[Fault]:
    """The operator's own authority: all three files or none, and then no cluster secret."""
    given = [key for key in _CERTIFICATE_KEYS if getattr(security, key) is not None]
    for key in _CERTIFICATE_KEYS:
        if given and key not in given:
            yield f"security.{key}", f"must be set because {given[0]} is: all three or none"
    if given and security.cluster_secret_file is not None:
        advice = "remove it, or the three certificate files: one thing decides who belongs here"
        yield "security.cluster_secret_file", f"cannot stand beside {given[0]}; {advice}"


def _beyond_loopback(
    cluster: ClusterSection | None, node: NodeSection, security: SecuritySection
) -> Iterator[Fault]:
    """Loopback needs no secrets; beyond it they are needed, or said to be left out."""
    if security.insecure:
        return
    or_else = "or say insecure = true on a network you trust"
    where = _leaves_loopback(cluster, node)
    if where is not None:
        if security.cluster_secret_file is None and security.ca_file is None:
            files = f"or ca_file, certificate_file and private_key_file; {or_else}"
            yield "security.cluster_secret_file", f"must be set: {where}; {files}"
        if security.data_plane == "plain":
            advice = f'use "aead" or "mac", {or_else}'
            yield "security.data_plane", f"{where} and plain data can be read and forged; {advice}"
    if not node.http_address.is_loopback and security.api_keys_file is None:
        where = f"http_address {node.http_address} is open to other machines"
        yield "security.api_keys_file", f"must be set: {where}; {or_else}"


def _leaves_loopback(cluster: ClusterSection | None, node: NodeSection) -> str | None:
    """Why other machines can speak to this node, or it to them; None when they cannot.

    A node that listens on loopback alone still believes those whom it dials.
    """
    if not node.bind_address.is_loopback:
        return f"bind_address {node.bind_address} is open to other machines"
    if not node.advertise_address.is_loopback:
        return f"advertise_address {node.advertise_address} is for other machines"
    if cluster is None:
        return None
    if cluster.discovery_method != "static":
        return f'discovery_method = "{cluster.discovery_method}" may name other machines'
    far = next((seed for seed in cluster.seed_nodes if not seed.is_loopback), None)
    return None if far is None else f"seed node {far} may be another machine"


def _unsigned(cluster: ClusterSection, security: SecuritySection) -> Iterator[Fault]:
    """Multicast is signed with the cluster secret; certificates sign no announcements."""
    if cluster.discovery_method == "multicast" and security.ca_file and not security.insecure:
        yield (
            "cluster.discovery_method",
            '"multicast" is signed with cluster_secret_file, which ca_file replaces: anybody in '
            'the network could announce nodes; use "static", "dns" or "consul", or say '
            "insecure = true on a network you trust",
        )
