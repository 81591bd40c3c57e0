"""One channel to every Raft peer: who dials, which of two channels counts, when one is dead.

The greater id dials, so that two nodes do not dial each other for ever; a learner dials
everybody, and so does a voter that has heard no leader for a while (it may have been removed).
A new channel supersedes the old one, which is never read again: nothing is re-ordered across
a reconnect. The first word on a channel is the cluster's id: two clusters never mix. Who does
not answer, or is refused, is dialled less and less often. Whom a node dialled and has no use for
any more, it lets go.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

from butterfly_cluster.dial_pauses import DialPauses
from butterfly_cluster.raft_codec import Message, decode_message, encode_message
from butterfly_cluster.raft_timing import Timing
from butterfly_core.errors import ButterflyError, ProtocolViolation, Refused
from butterfly_core.ids import ClusterId, NodeId, short

LINKS_MAX = 1024
PAUSE_SECONDS_MAX = 5.0
_SAY_AGAIN_SECONDS = 600.0
_LOST_KEPT_SECONDS = 60.0
_STRANGERS_KEPT_SECONDS = 20.0  # who dials tries again every few seconds
_STRANGERS_MAX = 16
_log = logging.getLogger(__name__)


class ChannelLike(Protocol):
    """An ordered, authenticated stream of messages to one peer."""

    @property
    def peer_id(self) -> NodeId: ...
    @property
    def closed(self) -> bool: ...
    async def receive(self) -> bytes: ...
    def send(self, message: bytes, /) -> bool: ...
    def close(self) -> None: ...


Dial = Callable[[NodeId], Awaitable[ChannelLike]]


class Receiver(Protocol):
    """Who hears of channels and messages; raises ProtocolViolation to end a channel."""

    def connected(self, peer: NodeId) -> None: ...
    def disconnected(self, peer: NodeId) -> None: ...
    def received(self, peer: NodeId, message: Message) -> None: ...
    def heard_of_leader(self, leader: NodeId) -> None: ...


class RaftTransport:
    """Holds the channels of one node. All methods belong to one event loop."""

    def __init__(
        self,
        me: NodeId,
        *,
        cluster_id: str,
        dial: Dial,
        timing: Timing,
        receiver: Receiver,
        chance: Callable[[], float],
        clock: Callable[[], float],
        longest_pause_seconds: Callable[[], float] = lambda: PAUSE_SECONDS_MAX,
    ) -> None:
        self._me, self._cluster_id, self._dial = me, cluster_id, dial
        self._timing, self._receiver, self._chance = timing, receiver, chance
        self._clock = clock
        self._heard_at: dict[NodeId, float] = {}
        self._channels: dict[NodeId, ChannelLike] = {}
        self._dialing: set[NodeId] = set()
        self._dialed: dict[NodeId, ChannelLike] = {}
        self._pauses = DialPauses(
            4 * timing.append_seconds,
            longest_seconds=longest_pause_seconds,
            chance=chance,
            clock=clock,
        )
        self._warned: dict[NodeId, tuple[str, float]] = {}
        self.counts: Counter[str] = Counter()
        self._strangers: dict[NodeId, tuple[ClusterId, float]] = {}

    @property
    def peers(self) -> frozenset[NodeId]:
        """Whom there is a channel to."""
        return frozenset(self._channels)

    @property
    def lost(self) -> frozenset[NodeId]:
        """Who was heard in the last minute, and there is no channel to any more."""
        oldest = self._clock() - _LOST_KEPT_SECONDS
        away = (peer for peer in self._heard_at if peer not in self._channels)
        return frozenset(peer for peer in away if self._heard_at[peer] >= oldest)

    @property
    def strangers(self) -> Mapping[NodeId, ClusterId]:
        """Nodes of other clusters that were met lately."""
        oldest = self._clock() - _STRANGERS_KEPT_SECONDS
        return {node: of for node, (of, at) in self._strangers.items() if at >= oldest}

    def seconds_since_heard(self, peer: NodeId) -> float:
        """How old the last word of a peer is, pings included; infinite when there was none."""
        return self._clock() - self._heard_at.get(peer, float("-inf"))

    def send(self, peer: NodeId, message: Message) -> bool:
        """Hand a message to the channel; False when it surely does not arrive."""
        channel = self._channels.get(peer)
        if channel is None or channel.closed:
            return False
        if not channel.send(encode_message(message)):
            self.counts["send_failed"] += 1
            channel.close()
            return False
        return True

    async def run(
        self,
        wanted: Callable[[], Collection[NodeId]],
        useful: Callable[[NodeId], bool] = lambda _: True,
    ) -> None:
        """Dial whom ``wanted`` names whenever there is no channel, until cancelled.

        A channel that this node dialled is closed when the peer is not ``useful`` any more.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                for peer in sorted(wanted()):
                    if self._may_dial(peer):
                        self._dialing.add(peer)
                        self._pauses.begin(peer)
                        tasks.create_task(self._dial_and_serve(peer), name=f"raft {short(peer)}")
                for peer, channel in self._dialed.items():
                    if not useful(peer):
                        channel.close()
                await asyncio.sleep(self._retry_seconds())

    def dial_anew(self, peer: NodeId) -> None:
        """There is news of where the peer is: it need not wait for its next turn."""
        self._pauses.forget(peer)

    async def ping(self, leader: Callable[[], NodeId | None]) -> None:
        """Keep quiet channels alive and tell who leads, until cancelled.

        A learner may know none of today's voters; this is how it finds the leader.
        """
        while True:
            await asyncio.sleep(self._timing.silent_seconds / 4)
            for peer in sorted(self._channels):
                self.send(peer, {"type": "ping", "leader": leader() or "", "sender_term": 0})

    async def serve(self, channel: ChannelLike) -> None:
        """Read the channel until it ends, is superseded or says something wrong."""
        peer = channel.peer_id
        try:
            await self._greet(channel)
            self._supersede(peer, channel)
            while self._channels.get(peer) is channel:
                data = await self._receive(channel)
                if self._channels.get(peer) is channel:
                    self._handle(peer, data)
        except ProtocolViolation as error:
            self.counts["violations"] += 1
            self._warn(peer, f"raft channel to {short(peer)} closed: {error}")
        except Refused as error:
            self.counts["refused"] += 1
            self._warn(peer, f"raft channel to {short(peer)} refused: {error}")
        except (ButterflyError, OSError):
            self.counts["ended"] += 1
        finally:
            channel.close()
            if self._channels.get(peer) is channel:
                del self._channels[peer]
                self._receiver.disconnected(peer)

    def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            channel.close()

    async def _greet(self, channel: ChannelLike) -> None:
        peer = channel.peer_id
        if peer == self._me:
            raise Refused("a node does not talk Raft to itself; two nodes share one data_dir copy")
        if len(self._channels) >= LINKS_MAX and peer not in self._channels:
            raise Refused(f"{LINKS_MAX} Raft channels are open already")
        hello = {"type": "hello", "cluster_id": self._cluster_id, "sender_term": 0}
        channel.send(encode_message(hello))
        heard = decode_message(await self._receive(channel))
        if heard["type"] != "hello":
            raise ProtocolViolation("the first word on a Raft channel must be hello")
        if heard["cluster_id"] != self._cluster_id:
            self._note_stranger(peer, ClusterId(heard["cluster_id"]))
            raise Refused(
                f"node {peer} belongs to cluster {heard['cluster_id']!r}, this one to "
                f"{self._cluster_id!r}; two clusters under one name never merge"
            )

    def _supersede(self, peer: NodeId, channel: ChannelLike) -> None:
        old = self._channels.pop(peer, None)
        if old is not None:
            self.counts["superseded"] += 1
            old.close()
            self._receiver.disconnected(peer)
        self._channels[peer] = channel
        self._pauses.forget(peer)
        self._receiver.connected(peer)

    async def _receive(self, channel: ChannelLike) -> bytes:
        try:
            async with asyncio.timeout(self._timing.silent_seconds):
                data = await channel.receive()
        except TimeoutError:
            self.counts["silent"] += 1
            raise
        self._note_heard(channel.peer_id)
        return data

    def _note_heard(self, peer: NodeId) -> None:
        if peer not in self._heard_at and len(self._heard_at) >= LINKS_MAX:
            del self._heard_at[min(self._heard_at, key=self._heard_at.__getitem__)]
        self._heard_at[peer] = self._clock()

    def _note_stranger(self, peer: NodeId, cluster_id: ClusterId) -> None:
        self._strangers.pop(peer, None)
        self._strangers[peer] = (cluster_id, self._clock())
        if len(self._strangers) > _STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]

    def _handle(self, peer: NodeId, data: bytes) -> None:
        message = decode_message(data)
        if message["type"] == "hello":
            raise ProtocolViolation("a second hello")
        if message["type"] != "ping":
            self._receiver.received(peer, message)
        elif message["leader"]:
            self._receiver.heard_of_leader(NodeId(message["leader"]))

    def _warn(self, peer: NodeId, text: str) -> None:
        """Say it once per cause; a peer that is dialled again and again would fill the log."""
        before, at = self._warned.pop(peer, ("", 0.0))
        is_news = text != before or self._clock() - at > _SAY_AGAIN_SECONDS
        while len(self._warned) >= LINKS_MAX:
            del self._warned[next(iter(self._warned))]
        self._warned[peer] = (text, self._clock() if is_news else at)
        _log.log(logging.WARNING if is_news else logging.DEBUG, "%s", text)

    def _may_dial(self, peer: NodeId) -> bool:
        busy = peer in self._channels or peer in self._dialing
        return not busy and self._pauses.is_over(peer)

    async def _dial_and_serve(self, peer: NodeId) -> None:
        try:
            async with asyncio.timeout(self._timing.connect_seconds):
                channel = await self._dial(peer)
            self.counts["dialed"] += 1
        except (ButterflyError, OSError) as error:
            self.counts["dial_failed"] += 1
            _log.debug("cannot dial %s: %s", short(peer), error)
            self._dialing.discard(peer)
            return
        except BaseException:
            self._dialing.discard(peer)
            raise
        self._dialing.discard(peer)
        self._dialed[peer] = channel
        try:
            await self.serve(channel)
        finally:
            if self._dialed.get(peer) is channel:
                del self._dialed[peer]

    def _retry_seconds(self) -> float:
        return self._timing.append_seconds * (2 + 2 * self._chance())
