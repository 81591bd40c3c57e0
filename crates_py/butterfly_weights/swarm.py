"""Bringing leaves from other nodes while the source brings the rest: one thread per peer.

Nothing that a peer says is believed. A leaf is compared with its digest before it is copied into
its place; a peer that gives a wrong one, breaks the protocol, stalls or goes is asked no more in
this load. Peers that are slow are overtaken by the source.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from butterfly_core.errors import ProtocolViolation, Unreachable
from butterfly_weights.board import Board
from butterfly_weights.crew import Worker
from butterfly_weights.merkle import leaf_digest
from butterfly_weights.peer_choice import source_should_help
from butterfly_weights.peers import TENSORS_ASKED_MAX, Answer, PeerLink, PeerOptions, Peers
from butterfly_weights.progress import ProgressCounter
from butterfly_weights.select import Leaf, Piece


@dataclass(slots=True)
class _Attended:
    link: PeerLink
    thread: threading.Thread | None = None
    asked_at: float | None = None
    heard: threading.Event = field(default_factory=threading.Event)


class Swarm:
    """The peers of one load. ``close`` ends every thread; call ``poll`` now and then."""

    def __init__(
        self,
        board: Board,
        progress: ProgressCounter,
        land: Callable[[Leaf, memoryview, bytes], None],
        options: PeerOptions,
    ) -> None:
        """``land`` puts a proven leaf with its digest into its place."""
        self._board, self._progress, self._land = board, progress, land
        self._options = options
        self._peers: list[_Attended] = []
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._events: list[str] = []
        self._failure: BaseException | None = None
        self._given_bytes = 0
        self._source_seconds = 0.0
        self._idle_since = time.monotonic()

    @property
    def events(self) -> tuple[str, ...]:
        """What peers did wrong, for people."""
        with self._lock:
            return tuple(self._events)

    def open(self, peers: Peers) -> None:
        """Begin to ask the peers there are. Returns when they said what they hold, or soon."""
        options = self._options
        self._peers = [_Attended(link) for link in peers.open_links(options.open_seconds)]
        for peer in self._peers:
            peer.thread = threading.Thread(
                target=self._attend, args=(peer,), name="butterfly-peer", daemon=True
            )
            peer.thread.start()
        deadline = time.monotonic() + options.first_word_seconds
        for peer in self._peers:
            peer.heard.wait(max(0.0, deadline - time.monotonic()))
        self._idle_since = time.monotonic()

    def close(self) -> None:
        self._closing.set()
        for peer in self._peers:
            peer.link.close()
        self._board.release(())
        for peer in self._peers:
            if peer.thread is not None:
                peer.thread.join()

    def poll(self) -> None:
        """Give up on peers that are silent too long. Raises what ended a thread unforeseen."""
        now = time.monotonic()
        for peer in self._peers:
            asked_at = peer.asked_at
            if asked_at is not None and now - asked_at > self._options.answer_seconds_max:
                peer.link.close()
        if self._failure is not None:
            raise self._failure

    def wait(self, poll: Callable[[], None]) -> None:
        """While peers are bringing all that is left: until they have, or the source should."""
        window_began, given = self._idle_since, self._given_bytes
        while not self._board.is_complete() and not self._board.source_has_work():
            self._board.wait_for_change(self._options.look_seconds)
            poll()
            now, patience = time.monotonic(), self._options.patience_seconds
            if source_should_help(
                now - window_began,
                self._given_bytes - given,
                self._source_rate(),
                patience_seconds=patience,
            ):
                self._tell("peers give the rest too slowly; the source brings it as well")
                self._board.let_source_help()
            elif now - window_began >= patience:
                window_began, given = now, self._given_bytes

    def sharing(self, fetcher: Worker[Piece]) -> "SharingFetcher":
        """A worker that leaves to peers what they bring."""
        return SharingFetcher(fetcher, self._board)

    def note_source(self, seconds: float) -> None:
        """The source was asked for so long, and is not asked now."""
        self._source_seconds += seconds
        self._idle_since = time.monotonic()

    def _source_rate(self) -> float:
        if not self._source_seconds:
            return 0.0
        return self._progress.now().bytes_from_source / self._source_seconds

    def _tell(self, event: str) -> None:
        with self._lock:
            self._events.append(event)

    def _attend(self, peer: _Attended) -> None:
        try:
            self._ask_on(peer)
        except (Unreachable, ProtocolViolation) as error:
            if not self._closing.is_set():
                self._tell(f"peer {peer.link.name} gives no weights any more: {error}")
        # Whatever it is, the load's own thread raises it.
        except BaseException as failure:  # noqa: BLE001
            self._failure = self._failure or failure
        finally:
            peer.asked_at = None
            peer.heard.set()
            self._board.drop(peer.link.name)
            peer.link.close()

    def _ask_on(self, peer: _Attended) -> None:
        """Until the load ends, or the peer says something wrong."""
        told_at = float("-inf")
        while not self._closing.is_set():
            if time.monotonic() - told_at >= self._options.ask_again_seconds:
                self._ask_what_it_holds(peer)
                peer.heard.set()
                told_at = time.monotonic()
            leaves = self._board.for_peer(peer.link.name)
            if not leaves:
                self._board.wait_for_change(self._options.look_seconds)
                continue
            try:
                self._ask_for(peer, leaves)
            finally:
                self._board.release(leaves)

    def _ask_what_it_holds(self, peer: _Attended) -> None:
        tensors = self._board.tensors_left()
        for start in range(0, len(tensors), TENSORS_ASKED_MAX):
            asked = tensors[start : start + TENSORS_ASKED_MAX]
            peer.asked_at = time.monotonic()
            self._board.note(peer.link.name, asked, peer.link.have(asked))
            peer.asked_at = None

    def _ask_for(self, peer: _Attended, leaves: tuple[Leaf, ...]) -> None:
        peer.asked_at = time.monotonic()
        given = peer.link.give([self._board.wanted(leaf) for leaf in leaves])
        peer.asked_at = None
        if given.answer is Answer.NOT_HERE:
            self._board.refuse(peer.link.name, leaves)
        elif given.answer is not Answer.LEAF:
            self._closing.wait(self._options.busy_pause_seconds)
        elif given.position >= len(leaves):
            raise ProtocolViolation(f"leaf {given.position} of {len(leaves)} asked for was given")
        else:
            self._take(leaves[given.position], given.data)

    def _take(self, leaf: Leaf, data: memoryview) -> None:
        seen, expected = leaf_digest(data), self._board.wanted(leaf).leaf
        if data.nbytes != leaf.nbytes or seen != expected:
            raise ProtocolViolation(
                f"it gave a wrong leaf {leaf.index} of tensor {self._board.name_of(leaf)}: "
                f"expected {leaf.nbytes} bytes with digest {expected.hex()}, seen {data.nbytes} "
                f"with {seen.hex()}; whatever it has not given yet comes from elsewhere"
            )
        self._land(leaf, data, seen)
        with self._lock:
            self._given_bytes += leaf.nbytes
        self._progress.add(peers=leaf.nbytes)


class SharingFetcher:
    """A ``crew.Worker`` for pieces: asks the source for what no peer is bringing."""

    def __init__(self, fetcher: Worker[Piece], board: Board) -> None:
        self._fetcher, self._board = fetcher, board

    def do(self, task: Piece) -> None:
        for part in self._board.for_source(task):
            try:
                self._fetcher.do(part)
            finally:
                self._board.release(part.leaves)

    def interrupt(self) -> None:
        self._fetcher.interrupt()

    def close(self) -> None:
        self._fetcher.close()
