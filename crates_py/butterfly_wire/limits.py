"""Every bound of the wire in one place: sizes in bytes, times in seconds, counts."""

from dataclasses import dataclass

from butterfly_core.errors import InvalidValue


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bounds that one node puts on its control connections and channels."""

    frame_bytes_max: int = 32 << 20
    """Metadata and payload of one frame together."""
    hello_bytes_max: int = 4096
    """The first frame of a connection, before its sender is known to belong here."""
    handshake_timeout_seconds: float = 5.0
    """From the accepted socket to the end of the hello."""
    connections_max: int = 512
    """Connections past their hello, at one listener."""
    unauthenticated_max: int = 64
    """Connections before the end of their hello; one more waits until one is slow."""
    unauthenticated_per_host_max: int = 32
    """The same from one IP address that is not loopback; one more is closed."""
    exchanges_max: int = 1024
    """Calls and streams under way on one connection."""
    stream_window_bytes: int = 1 << 20
    """What a stream may send ahead of its consumer."""
    write_buffer_bytes_max: int = 64 << 20
    """Unsent bytes of one connection; beyond them a message is not accepted."""
    channel_bytes_max: int = 64 << 20
    """Received bytes that wait in a channel; beyond them nothing more is read."""
    ping_seconds: float = 0.5
    """A side that sent nothing for so long sends a ping."""
    silent_seconds: float = 3.0
    """A peer that was not heard for so long is lost."""
    frame_timeout_seconds: float = 60.0
    """A frame whose bytes drip in, or bytes that the peer does not read, may take this long."""
    idle_seconds: float = 60.0
    """A pooled connection without calls is closed after this."""
    close_timeout_seconds: float = 2.0
    """How long a graceful close may take before it becomes an abrupt one."""
    tickets_max: int = 1024
    """Data tickets issued and not yet used."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise InvalidValue(f"wire limit {name} is {getattr(self, name)}; it must be > 0")
        if self.silent_seconds < 2 * self.ping_seconds:
            raise InvalidValue(
                f"silent_seconds {self.silent_seconds} must be at least twice ping_seconds "
                f"{self.ping_seconds}: one late ping is no dead peer"
            )
        if self.write_buffer_bytes_max < self.frame_bytes_max:
            raise InvalidValue("write_buffer_bytes_max must hold at least one frame_bytes_max")


DEFAULT_LIMITS = WireLimits()
