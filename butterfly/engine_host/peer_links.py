"""The only place where weights meet the wire: other nodes as the loader's peers.

The node process opens the links and hands them in; here they are asked and answered.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final

from butterfly.channel import Load
from butterfly.engine_host.peer_protocol import (
    FRAME_BYTES_MAX,
    pack_give,
    pack_have,
    parse_given,
    parse_holdings,
)
from butterfly.engine_host.uploads import Uploads
from butterfly.peer_messages import PeerLink as Handed
from butterfly_weights.cache import TensorCache
from butterfly_weights.peer_choice import Holding
from butterfly_weights.peers import Given, PeerLink, PeerOptions, Peers, Shelf, WantedLeaf
from butterfly_wire.datalink import DataLink

ANSWER_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 10.0


class AskedLink:
    """A data link to one peer's engine, as the loader asks over it."""

    def __init__(self, name: str, link: DataLink) -> None:
        self._name, self._link = name, link

    @property
    def name(self) -> str:
        return self._name

    def have(self, tensors: Sequence[bytes]) -> Sequence[Holding]:
        """Raises Unreachable, ProtocolViolation."""
        self._link.send(pack_have(tensors))
        meta, _ = self._link.receive()
        return parse_holdings(meta, len(tensors))

    def give(self, wanted: Sequence[WantedLeaf]) -> Given:
        """Raises Unreachable, ProtocolViolation."""
        self._link.send(pack_give(wanted))
        meta, payload = self._link.receive()
        return parse_given(meta, payload, len(wanted))

    def close(self) -> None:
        self._link.close()


def data_link_of(
    message: Handed, connected: socket.socket, *, answer_seconds: float = ANSWER_SECONDS
) -> DataLink:
    """The link over a descriptor that the node process handed in. One that stays silent while
    this side waits, or is not read while this side writes, ends after some seconds."""
    link = DataLink(
        connected,
        message.send_key,
        message.receive_key,
        mode=message.mode,
        frame_bytes_max=FRAME_BYTES_MAX,
    )
    connected.settimeout(answer_seconds if message.direction == "out" else IDLE_SECONDS)
    return link


class PeerHub:
    """This process's peers: those that it asks (a ``butterfly_weights.peers.Peers``), and those
    that ask it. Thread-safe."""

    def __init__(self, want_links: Callable[[int], None]) -> None:
        """``want_links(turn)`` asks the node process for links; it hands them in, and says when
        it has opened all that it could in that turn."""
        self.options: Final = PeerOptions()
        self.shelf: Final = Shelf()
        self._uploads = Uploads(self.shelf)
        self._want_links = want_links
        self._changed = threading.Condition()
        self._links: list[PeerLink] = []
        self._turn = 0
        self._complete = True
        self._me = ""

    @property
    def me(self) -> str:
        return self._me

    def for_load(self, order: Load, cache: TensorCache | None) -> Peers | None:
        """The peers that the load of this order may ask; None when peers are off."""
        self._me = order.node
        if not order.source.peers or not order.node:
            return None
        self.shelf.use_cache(cache)
        self._uploads.limit(order.source.peer_upload_bytes_per_second)
        return self

    def open_links(self, timeout_seconds: float) -> Sequence[PeerLink]:
        """Those that the node could open within this time; the caller closes them."""
        with self._changed:
            self._turn += 1
            self._complete = False
        self._want_links(self._turn)
        with self._changed:
            self._changed.wait_for(lambda: self._complete, timeout_seconds)
            links, self._links = self._links, []
            self._complete = True
        return links

    def take(self, message: Handed, connected: socket.socket) -> None:
        """A link that the node process opened or accepted. One that comes too late is closed."""
        link = data_link_of(message, connected)
        if message.direction == "in":
            self._uploads.serve(message.peer, link)
            return
        with self._changed:
            late = self._complete or message.turn != self._turn
            if not late:
                self._links.append(AskedLink(message.peer, link))
        if late:
            link.close()

    def complete(self, turn: int) -> None:
        """The node has opened all links that it could in this turn."""
        with self._changed:
            self._complete = self._complete or turn == self._turn
            self._changed.notify_all()

    def close(self) -> None:
        """End what is given to others, and every wait for links."""
        self.complete(self._turn)
        self._uploads.close()
