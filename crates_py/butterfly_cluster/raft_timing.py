"""How long Raft waits for what: two proven sets of numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds.

    ``append``: period of the leader's heartbeat. ``election``: a follower that hears nothing for
    a random time between the two asks for votes. ``fallback``: a leader that hears no majority
    steps down. ``connect``: limit for one dial. ``silent``: a channel without a word is cut.
    """

    append_seconds: float
    election_min_seconds: float
    election_max_seconds: float
    fallback_seconds: float
    connect_seconds: float
    silent_seconds: float


LAN = Timing(0.05, 0.3, 0.6, 0.4, 1.0, 2.0)
WAN = Timing(0.2, 1.5, 3.0, 2.0, 3.0, 8.0)
TICK_SECONDS = 0.02
