"""Tells a run line by line, for whoever replays a seed."""

from collections.abc import Callable

from butterfly_cluster.raft_codec import decode_message
from butterfly_core.errors import ProtocolViolation
from tests.sim.cluster import Cluster, number_of
from tests.sim.network import SimChannel
from tests.sim.virtual_loop import the_loop


class Narrator:
    """Writes messages, faults and broken rules down; ``tell`` gets one line each."""

    def __init__(self, cluster: Cluster, tell: Callable[[str], None]) -> None:
        self._cluster, self._tell = cluster, tell
        self._broken = 0

    def listen(self) -> None:
        """Hear everything from now on."""
        self._cluster.tell = self._event
        self._cluster.network.watch = self._message

    def _line(self, text: str) -> None:
        for violation in self._cluster.violations[self._broken :]:
            self._tell(f"          !!! {violation}")
        self._broken = len(self._cluster.violations)
        self._tell(f"{the_loop().time():9.4f} {text}")

    def _event(self, text: str) -> None:
        self._line(f"*** {text}")

    def _message(self, channel: SimChannel, data: bytes | None) -> None:
        way = f"{number_of(channel.owner)} > {number_of(channel.peer_id)} #{channel.number}"
        self._line(f"{way:14} {'closed' if data is None else _told(data)}")


def _told(data: bytes) -> str:
    try:
        message = decode_message(data)
    except ProtocolViolation as error:
        return f"nonsense: {error}"
    kind = message.pop("type")
    if "entries" in message:
        entries = message.pop("entries")
        places = [f"{entry.log_index}/{entry.term}" for entry in entries]
        message["entries"] = f"{places[0]}..{places[-1]}" if places else "none"
    if message.get("serialized"):
        chunk, first, last = message["serialized"]
        message["serialized"] = f"{len(chunk)} bytes, first {first}, last {last}"
    return f"{kind} " + ", ".join(f"{name} {value}" for name, value in message.items())
