"""Every section and key of the configuration: its type, its default and its bounds.

One value alone is judged here; what two values mean together is judged in ``rules``.
A field's description is what an error message says is allowed.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from butterfly.config.discovery_schema import DiscoverySection
from butterfly.config.fields import Section, read_address, read_addresses, read_paths
from butterfly_core.address import Address

EMBEDDED_MODELS: Final = ("toy-llama",)
"""Names of the models that ship with the package."""


ADMISSION_LEASE_SECONDS: Final = MappingProxyType({"lan": 2.0, "wan": 8.0})
"""By profile, unless it is set."""

ELECTION_SECONDS: Final = MappingProxyType({"lan": 1.0, "wan": 5.0})
"""By profile: the longest election timeout, and the time in which a cut-off leader steps down."""


def _read_seed_nodes(value: object) -> tuple[Address, ...]:
    seeds = read_addresses(value)
    for seed in seeds:
        if seed.port == 0 or seed.is_wildcard:
            raise ValueError(f"{seed} cannot be dialled; name a host, and a port from 1 to 65535")
    return seeds


def _must_be_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd (1, 3, 5 or 7): an even number of voters tolerates no more")
    return value


Seconds = Annotated[float, Field(ge=0.0, le=86_400.0, description="seconds, from 0 to 86400")]
AddressField = Annotated[
    Address, BeforeValidator(read_address), Field(description="host:port, as 10.0.1.10:7000")
]


class ClusterSection(Section):
    """``[cluster]``: who belongs together, and how it behaves as one."""

    cluster_name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
            description="up to 63 letters, digits, dots, dashes and underscores",
        ),
    ]
    discovery_method: Literal["static", "dns", "consul", "multicast"] = "static"
    seed_nodes: Annotated[
        tuple[Address, ...],
        BeforeValidator(_read_seed_nodes),
        Field(description='a list of host:port, as ["10.0.1.10:7000"]'),
    ] = ()
    quorum_size: Annotated[
        int, Field(ge=1, le=1000, description="members before the first plan, from 1 to 1000")
    ] = 1
    profile: Literal["lan", "wan"] = "lan"
    objective: Literal["throughput", "latency"] = "throughput"
    dead_after_seconds: Annotated[
        float, Field(ge=0.5, le=600.0, description="seconds, from 0.5 to 600")
    ] = 3.0
    admission_lease_seconds: Annotated[
        float, Field(ge=0.5, le=600.0, description="seconds, from 0.5 to 600")
    ] = 2.0
    """8 with ``profile = "wan"``, unless it is set."""
    rebalance: Literal["idle", "off"] = "idle"
    rebalance_after_seconds: Seconds = 10.0
    plan_grace_seconds: Seconds = 1.0
    founding_grace_seconds: Seconds = 5.0
    forget_dead_after_seconds: Annotated[
        float, Field(ge=60.0, le=31536000.0, description="seconds, from 60 to 31536000")
    ] = 86400.0
    max_voters: Annotated[
        int, Field(ge=1, le=7, description="1, 3, 5 or 7"), AfterValidator(_must_be_odd)
    ] = 5


class ModelSection(Section):
    """``[model]``: where the weights come from, and what is kept of them."""

    source_type: Literal["s3", "filesystem", "http", "huggingface", "embedded"]
    source_path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="s3://bucket/prefix, a folder, a folder's URL, org/name@revision on the "
            "hub, or the name of an embedded model",
        ),
    ]
    endpoint_url: Annotated[
        str | None,
        Field(description="the URL of an S3-compatible server or a hub, as http://host:9000"),
    ] = None
    region: Annotated[str | None, Field(description="the bucket's region, as eu-central-1")] = None
    name: Annotated[
        str,
        Field(
            max_length=200,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="the model's name in the API, up to 200 printable characters",
        ),
    ] = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cache: Literal["write-behind", "off"] = "write-behind"
    cache_bytes_max: Annotated[int, Field(ge=0, description="bytes; 0 is no limit")] = 0
    peers: Annotated[bool, Field(description="true or false")] = True
    """Weights that the manifest can prove come from other nodes before the source."""
    peer_upload_bytes_per_second: Annotated[
        int, Field(ge=0, le=1 << 50, description="bytes per second; 0 is no limit")
    ] = 0
    verify_device: Literal["sample", "all", "off"] = "sample"
    """What a GPU is asked to give back, to be compared, before a node says that it holds it."""
    cache_scrub_bytes_per_second: Annotated[
        int, Field(ge=0, le=1 << 40, description="bytes re-read each second; 0 is never")
    ] = 8388608
    require_signature: Annotated[bool, Field(description="true or false")] = False
    trusted_keys: Annotated[
        tuple[Path, ...],
        BeforeValidator(read_paths),
        Field(max_length=32, description='up to 32 PEM files, as ["/etc/butterfly/publisher.pub"]'),
    ] = ()


class NodeSection(Section):
    """``[node]``: this machine and this process."""

    role: Literal["worker", "coordinator"] = "worker"
    bind_address: AddressField = Address("127.0.0.1", 7000)
    advertise_address: AddressField = Address("127.0.0.1", 7000)
    """What others dial; ``bind_address`` unless it is set."""
    http_address: AddressField = Address("127.0.0.1", 8080)
    data_dir: Annotated[Path, Field(description="a folder that this node alone writes to")] = Path(
        "/var/lib/butterfly"
    )
    capacity: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="the share of free memory offered, from 0 to 1"),
    ] = 1.0
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda:[0-9]{1,3})$", description='"auto", "cpu" or "cuda:N"')
    ] = "auto"
    zone: Annotated[
        str,
        Field(
            max_length=64,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="what fails together, as a rack or a building: up to 64 characters",
        ),
    ] = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


class EngineSection(Section):
    """``[engine]``: budgets of the process that computes."""

    kv_cache_tokens: Annotated[
        int, Field(ge=16, le=1 << 30, description="tokens of all sequences together, 16 or more")
    ] = 16384
    block_size: Annotated[
        int, Field(ge=1, le=256, description="tokens per block, from 1 to 256")
    ] = 16
    workspace_bytes: Annotated[int, Field(ge=0, le=1 << 40, description="bytes, 0 or more")] = (
        268435456
    )
    step_tokens_max: Annotated[
        int, Field(ge=1, le=1 << 20, description="tokens of one step, from 1 to 1048576")
    ] = 512
    sequences_max: Annotated[
        int, Field(ge=1, le=1 << 16, description="sequences under way, from 1 to 65536")
    ] = 64
    requests_waiting_max: Annotated[
        int, Field(ge=1, le=1 << 20, description="requests that wait, from 1 to 1048576")
    ] = 256
    threads: Annotated[int, Field(ge=0, le=1024, description="0 (automatic) to 1024")] = 0


class SecuritySection(Section):
    """``[security]``: files with secrets (never read here), and what may go without."""

    cluster_secret_file: Annotated[
        Path | None, Field(description="a file of this node, readable by its user alone")
    ] = None
    ca_file: Annotated[
        Path | None,
        Field(description="PEM file of the authorities that sign the certificates of nodes"),
    ] = None
    certificate_file: Annotated[
        Path | None, Field(description="PEM file of this node's certificate and its chain")
    ] = None
    private_key_file: Annotated[
        Path | None, Field(description="PEM file of this node's key, readable by its user alone")
    ] = None
    api_keys_file: Annotated[
        Path | None, Field(description="a file of this node with one key a line")
    ] = None
    insecure: Annotated[bool, Field(description="true or false")] = False
    data_plane: Literal["aead", "mac", "plain"] = "aead"


class NodeConfig(Section):
    """All sections, each checked alone and with the others."""

    cluster: ClusterSection
    discovery: DiscoverySection
    model: ModelSection
    node: NodeSection
    engine: EngineSection
    security: SecuritySection
    _origins: Mapping[str, str] = PrivateAttr(default_factory=lambda: MappingProxyType({}))

    def origin(self, section: str, key: str) -> str:
        """Where a value came from, for people: a file, a variable, a flag or ``default``."""
        return self._origins.get(f"{section}.{key}", "default")


def with_origins(config: NodeConfig, origins: Mapping[str, str]) -> NodeConfig:
    """The same configuration, remembering where its values came from (``section.key``)."""
    config._origins = MappingProxyType(dict(origins))
    return config


SECTIONS: Final[Mapping[str, type[Section]]] = MappingProxyType(
    {
        "cluster": ClusterSection,
        "discovery": DiscoverySection,
        "model": ModelSection,
        "node": NodeSection,
        "engine": EngineSection,
        "security": SecuritySection,
    }
)
"""Section names in the order in which they are printed."""


def keys_of(section: str) -> tuple[str, ...]:
    return tuple(SECTIONS[section].model_fields)


def annotation_of(section: str, key: str) -> Any:
    """The bare type of a key, without its bounds."""
    return SECTIONS[section].model_fields[key].annotation


def allowed(section: str, key: str) -> str:
    """What a key may be, in words; empty when its type says it all."""
    return SECTIONS[section].model_fields[key].description or ""
