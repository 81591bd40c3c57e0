"""The part of the engine channel (``butterfly/channel.py``) that is about other nodes' weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PeerLink:
    """A connected data socket to another node's engine; its descriptor comes with this message.
    Over one that goes ``out`` this engine asks for weights (in answer to ``WantPeers`` of that
    turn), over one that came ``in`` it is asked."""

    peer: str
    direction: Literal["out", "in"]
    send_key: bytes
    receive_key: bytes
    mode: Literal["aead", "mac", "plain"]
    turn: int = 0
    kind: Literal["peer_link"] = "peer_link"


@dataclass(frozen=True, slots=True)
class PeersOpened:
    """All links to peers that could be opened in this turn were handed over."""

    turn: int
    kind: Literal["peers_opened"] = "peers_opened"


@dataclass(frozen=True, slots=True)
class WantPeers:
    """A load could use weights that other nodes hold: open links to them."""

    turn: int
    kind: Literal["want_peers"] = "want_peers"
