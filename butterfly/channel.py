"""What the node process and its engine process say to each other.

The two share a Unix stream socket. A message is a 4-byte little-endian length and a msgpack
map; a message that hands over a descriptor sends it as ancillary data of its first byte, so
descriptors arrive in the order of the messages that own them. Both ends are the same user on
the same machine and of the same version: the limits here guard against bugs, not enemies.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgpack
from pydantic import Field, TypeAdapter, ValidationError

from butterfly.peer_messages import PeerLink, PeersOpened, WantPeers
from butterfly_core.errors import ProtocolViolation
from butterfly_core.generation import GenerationRequest, TokensEmitted
from butterfly_core.hardware import Capacity

MESSAGE_BYTES_MAX = 256 << 20
_LENGTH = struct.Struct("<I")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The part of the configuration that the engine process needs."""

    device: str
    dtype: str
    threads: int
    block_size: int
    step_tokens_max: int
    sequences_max: int
    requests_waiting_max: int
    verify_device: Literal["sample", "all", "off"] = "sample"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the bytes are; credentials come from the environment, as boto3 and hubs find them."""

    source_type: str
    source_path: str
    endpoint_url: str | None
    region: str | None
    cache_directory: str | None
    cache_bytes_max: int
    peers: bool = False
    peer_upload_bytes_per_second: int = 0
    cache_scrub_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Hold the layers [start, stop) of the described checkpoint, and prove them."""

    epoch: int
    model: str
    source: ModelSource
    checkpoint: bytes
    start: int
    stop: int
    layer_count: int
    tied: bool
    kv_tokens: int
    stages: int
    forget: bool = False
    """True: drop what is held and what is cached of it before loading."""
    node: str = ""
    kind: Literal["load"] = "load"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Hold the layers of this order beside the present ones, until a ``Load`` of its model comes,
    or one of another model, which forgets them. ``number`` is the offer's."""

    number: int
    load: Load
    kind: Literal["prepare"] = "prepare"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Forget what was prepared, and stop preparing; the present layers stay."""

    kind: Literal["give_up"] = "give_up"


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget all layers."""

    kind: Literal["drop"] = "drop"


@dataclass(frozen=True, slots=True)
class Link:
    """A connected data socket to a neighbouring stage; its descriptor comes with this message."""

    epoch: int
    direction: Literal["out", "in"]
    send_key: bytes
    receive_key: bytes
    mode: Literal["aead", "mac", "plain"]
    kind: Literal["link"] = "link"


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Only to the head: send a request through all stages."""

    epoch: int
    timeout_seconds: float
    kind: Literal["warm_up"] = "warm_up"


@dataclass(frozen=True, slots=True)
class Submit:
    epoch: int
    request: GenerationRequest
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str
    kind: Literal["cancel"] = "cancel"


ToEngine = Load | Prepare | GiveUp | Drop | Link | PeerLink | PeersOpened | WarmUp | Submit | Cancel


# What the engine tells its node.


@dataclass(frozen=True, slots=True)
class Hello:
    """The engine runs, and its device was measured."""

    engine: str
    capacity: Capacity
    kind: Literal["hello"] = "hello"


@dataclass(frozen=True, slots=True)
class Progressed:
    epoch: int
    phase: str
    bytes_done: int
    bytes_total: int
    bytes_from_source: int
    bytes_from_cache: int
    bytes_from_peers: int = 0
    kind: Literal["progressed"] = "progressed"


@dataclass(frozen=True, slots=True)
class Loaded:
    epoch: int
    part_digests: Mapping[str, str]
    bytes_from_source: int
    bytes_from_cache: int
    healed: tuple[str, ...]
    events: tuple[str, ...]
    bytes_from_peers: int = 0
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """``error`` is the class of the error, as its name says whose fault it is."""

    epoch: int
    message: str
    error: str
    file: str | None = None
    tensor: str | None = None
    unproven: bool = False
    """True when bytes were not what they must be."""
    kind: Literal["load_failed"] = "load_failed"


@dataclass(frozen=True, slots=True)
class Preparing:
    """How far an order to prepare has come, or its fate."""

    number: int
    told: Annotated[Progressed | Loaded | LoadFailed, Field(discriminator="kind")]
    kind: Literal["preparing"] = "preparing"


@dataclass(frozen=True, slots=True)
class WarmedUp:
    epoch: int
    problem: str | None
    kind: Literal["warmed_up"] = "warmed_up"


@dataclass(frozen=True, slots=True)
class Emitted:
    epoch: int
    tokens: tuple[TokensEmitted, ...]
    kind: Literal["emitted"] = "emitted"


@dataclass(frozen=True, slots=True)
class LinkLost:
    epoch: int
    reason: str
    kind: Literal["link_lost"] = "link_lost"


@dataclass(frozen=True, slots=True)
class Statistics:
    """The head's scheduler and the cache in numbers, every second, also when idle: a sign of
    life."""

    values: Mapping[str, int]
    kind: Literal["statistics"] = "statistics"


FromEngine = (
    Statistics
    | Hello
    | Progressed
    | Loaded
    | LoadFailed
    | Preparing
    | WantPeers
    | WarmedUp
    | Emitted
    | LinkLost
)

_TO_ENGINE: TypeAdapter[ToEngine] = TypeAdapter(Annotated[ToEngine, Field(discriminator="kind")])
_FROM_ENGINE: TypeAdapter[FromEngine] = TypeAdapter(
    Annotated[FromEngine, Field(discriminator="kind")]
)


def pack(message: ToEngine | FromEngine) -> bytes:
    """The message with its length in front."""
    adapter: TypeAdapter[Any] = _TO_ENGINE if isinstance(message, ToEngine) else _FROM_ENGINE
    body: bytes = msgpack.packb(adapter.dump_python(message), default=_plain)
    if len(body) > MESSAGE_BYTES_MAX:
        raise ProtocolViolation(f"a message of {len(body)} bytes is above {MESSAGE_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def _plain(value: object) -> object:
    return getattr(value, "value", value)  # an Enum


def parse_to_engine(body: bytes) -> ToEngine:
    """Raises ProtocolViolation for anything but a message to an engine."""
    return _parsed(_TO_ENGINE, body)


def parse_from_engine(body: bytes) -> FromEngine:
    """Raises ProtocolViolation for anything but a message from an engine."""
    return _parsed(_FROM_ENGINE, body)


def _parsed(adapter: TypeAdapter[T], body: bytes) -> T:
    try:
        return adapter.validate_python(msgpack.unpackb(body, use_list=False))
    except (ValueError, msgpack.UnpackException) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ProtocolViolation(f"not a message of the engine channel: {reason}") from error


class Splitter:
    """Cuts a stream of bytes into message bodies."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._held += data
        bodies = []
        while len(self._held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held)
            if length > MESSAGE_BYTES_MAX:
                raise ProtocolViolation(f"a message claims {length} bytes")
            if len(self._held) < _LENGTH.size + length:
                break
            bodies.append(bytes(self._held[_LENGTH.size : _LENGTH.size + length]))
            del self._held[: _LENGTH.size + length]
        return bodies
