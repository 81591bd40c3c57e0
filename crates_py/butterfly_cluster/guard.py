"""What keeps pysyncobj honest: every message in and out, and every election, passes here.

Each rule closes a hazard that was reproduced on stock pysyncobj 0.3.17:

snap     a snapshot moves the commit index only once it is installed, whole and checked
trunc    entries that match are never deleted; only what was compared is acknowledged
term     an acknowledgement of another term is dropped
reset    a late "go back" may only lower the next index, never below what is matched
sticky   no vote for anybody while a leader is heard (Raft thesis 4.2.3)
step     a leader of an old term is told the new one, and steps down
prevote  nobody raises the term before a majority says it would vote for it (thesis 9.6)
member   votes are counted of voters only; a stranger may ask for one only with a newer log
vote1    one vote is counted per voter and term
single   one uncommitted change of voters at a time (in ``raft_sync``)
durable  votes leave after a sync, acknowledgements together after the sync of their tick
late     what is read right after a pause of this node counts from before the pause
mute     a node whose disk failed neither votes, stands, leads nor acknowledges until its end;
         it only says from where on it needs the log, and follows in memory
"""

import logging
from collections import Counter
from collections.abc import Callable

from butterfly_cluster.acknowledgements import Acknowledgements
from butterfly_cluster.elections import Elections
from butterfly_cluster.heartbeats import LearnerHeartbeats
from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_doors import Send
from butterfly_cluster.raft_insides import LEADER
from butterfly_cluster.raft_log import (
    Accepted,
    Mismatch,
    accept_entries,
    commit_up_to,
    install_snapshot,
)
from butterfly_cluster.raft_timing import Timing
from butterfly_cluster.timeliness import Timeliness
from butterfly_core.errors import StorageError
from butterfly_core.ids import NodeId

_VOTES_COUNT_NOW = frozenset({"request_vote", "response_vote"})
# What a node that cannot write is deaf to: votes and elections are for those who can remember.
_ELECTION_TALK = frozenset(
    {"request_vote", "response_vote", "pre_vote", "pre_vote_ok", "timeout_now"}
)
_log = logging.getLogger(__name__)


class Guard:
    """Stands between the core and the channels. ``core`` is set right after construction."""

    def __init__(
        self,
        timing: Timing,
        *,
        send: Send,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._timing, self._send_to_channel = timing, send
        self._clock = clock
        self._elections = Elections(say=self._say, clock=clock, chance=chance)
        self._heartbeats = LearnerHeartbeats(timing, clock)
        self._timeliness = Timeliness(timing, clock)
        self._heard_at = float("-inf")
        self.dropped: Counter[str] = Counter()
        self._voted: dict[int, set[NodeId]] = {}
        self._acknowledgements = Acknowledgements()
        self._handlers: dict[str, Callable[[NodeId, Message], None]] = {
            "stale": self._on_stale,
            "request_vote": self._on_request_vote,
            "response_vote": self._on_response_vote,
            "pre_vote": self._on_pre_vote,
            "pre_vote_ok": self._elections.on_pre_vote_ok,
            "append_entries": self._on_append_entries,
            "next_node_idx": self._on_acknowledgement,
            "timeout_now": self._on_timeout_now,
        }

    @property
    def core(self) -> Core:
        """The node behind this guard."""
        return self._elections.core

    @core.setter
    def core(self, core: Core) -> None:
        self._elections.core = core

    @property
    def mute(self) -> bool:
        """True when the disk failed: nothing that a peer may rely on leaves this node."""
        return self.core.journal.problem is not None

    def fall_mute(self, problem: StorageError) -> None:
        """The disk failed: lead no more, and go on in memory. Never raises."""
        if not self.mute:
            _log.error("this node neither votes nor acknowledges from now on: %s", problem)
        self.core.journal.give_up(problem)
        self._acknowledgements.forget()
        self._elections.forget()
        self._elections.transfer = False
        self.core.step_down()

    def seconds_since_leader_heard(self) -> float:
        """How old the last word of a leader is; on the leader, of a majority."""
        if self.core.role != LEADER:
            return self._clock() - self._heard_at
        others = self.core.others
        answered = sorted((self.core.answered_at(peer) for peer in others), reverse=True)
        needed = (len(others) + 1) // 2
        return max(0.0, self._clock() - answered[needed - 1]) if needed else 0.0

    # Out.

    def send(self, peer: NodeId, message: Message) -> bool:
        """Send what pysyncobj wants to say, once it may be said."""
        kind = message["type"]
        stamped = {**message, "sender_term": self.core.term}
        if self.mute and (kind in _ELECTION_TALK or message.get("success")):
            self.dropped["mute"] += 1
            return False
        if kind == "next_node_idx":
            self._acknowledgements.keep(peer, stamped)
            return True
        if kind == "append_entries" and "prevLogIdx" in message and message["prevLogIdx"] is None:
            self._begin_anew(peer)
            return False
        if kind == "append_entries" and self._may_wait(peer, message):
            return True
        if kind in _VOTES_COUNT_NOW:
            self.core.journal.sync()
        if kind == "request_vote":
            stamped["transfer"] = self._elections.transfer
        sent = self._send_to_channel(peer, stamped)
        if not sent and kind == "apply_command" and "request_id" in message:
            self.core.fail_request(message["request_id"])
        return sent

    def _may_wait(self, peer: NodeId, message: Message) -> bool:
        return peer not in self.core.others and self._heartbeats.may_wait(peer, message)

    def _begin_anew(self, peer: NodeId) -> None:
        """The leader lost track of what a peer needs next: its own end is a place to start."""
        self.core.expect_next(peer, self.core.last_index + 1)
        self.dropped["begin_anew"] += 1

    def disconnected(self, peer: NodeId) -> None:
        """The channel to the peer is gone."""
        self._heartbeats.forget(peer)
        self.core.disconnected(peer)

    # In.

    def receive(self, peer: NodeId, message: Message) -> None:
        """Handle a checked message. Raises ProtocolViolation, StorageError."""
        handler = self._handlers.get(message["type"])
        if self.mute and message["type"] in _ELECTION_TALK:
            self.dropped["mute"] += 1
        elif handler is None:
            self.core.deliver(peer, message)
        else:
            handler(peer, message)

    def _on_stale(self, _: NodeId, message: Message) -> None:
        if message["sender_term"] > self.core.term:
            self.core.adopt_term(message["sender_term"])

    def _on_request_vote(self, peer: NodeId, message: Message) -> None:
        newer = message["term"] > self.core.term
        if newer and not message["transfer"] and self._leader_is_alive():
            self.dropped["sticky"] += 1
        elif not self._may_ask_for_votes(peer, message):
            self.dropped["member"] += 1
        elif self.core.is_voter:
            self.core.deliver(peer, message)
        else:
            self.core.deliver_to_voter_to_be(peer, message)

    def _may_ask_for_votes(self, peer: NodeId, message: Message) -> bool:
        """A stranger with a newer log knows a configuration that is not here yet."""
        if self.core.is_voter and peer in self.core.others:
            return True
        return _log_of(message) > (self.core.last_term, self.core.last_index)

    def _on_response_vote(self, peer: NodeId, message: Message) -> None:
        if peer not in self.core.others:
            self.dropped["member"] += 1
            return
        for term in [term for term in self._voted if term < self.core.term]:
            del self._voted[term]
        if message["term"] != self.core.term:
            return
        if self._clock() - self._timeliness.said_since > self._timing.election_min_seconds:
            self.dropped["late"] += 1  # the others may have elected somebody else since
            return
        voted = self._voted.setdefault(message["term"], set())
        if peer in voted:
            self.dropped["vote1"] += 1
            return
        voted.add(peer)
        self.core.deliver(peer, message)

    def _on_pre_vote(self, peer: NodeId, message: Message) -> None:
        if message["term"] <= self.core.term:
            self._say(peer, {"type": "stale"})  # so that a node that lags can catch up
        elif self._leader_is_alive() or not self._may_ask_for_votes(peer, message):
            self.dropped["pre_vote"] += 1
        elif _log_of(message) >= (self.core.last_term, self.core.last_index):
            self._say(peer, {"type": "pre_vote_ok", "round": message["round"]})

    def _on_append_entries(self, peer: NodeId, message: Message) -> None:
        if message["term"] < self.core.term:
            self._say(peer, {"type": "stale"})
            return
        self._heard_at = max(self._heard_at, self._timeliness.said_since)
        self._elections.forget()
        heartbeat = {"type": "append_entries", "term": message["term"]}
        self.core.deliver(peer, {**heartbeat, "commit_index": self.core.commit_index})
        if "serialized" in message:
            self._take_snapshot_chunk(peer, message)
            return
        outcome = accept_entries(
            self.core, message["prevLogIdx"], message["prevLogTerm"], message["entries"]
        )
        self._answer(peer, outcome)
        if isinstance(outcome, Accepted):
            commit_up_to(self.core, min(message["commit_index"], outcome.index))

    def _take_snapshot_chunk(self, peer: NodeId, message: Message) -> None:
        if message["serialized"] is None:
            return
        data, first, last = message["serialized"]
        whole = self.core.shelf.take_chunk(data, first=first, last=last)
        if whole is not None:
            self._answer(peer, install_snapshot(self.core, whole))

    def _answer(self, peer: NodeId, outcome: Accepted | Mismatch) -> None:
        accepted = isinstance(outcome, Accepted)
        next_index = outcome.index + 1 if isinstance(outcome, Accepted) else outcome.next_index
        answer = {"type": "next_node_idx", "next_node_idx": next_index}
        self.send(peer, {**answer, "reset": not accepted, "success": accepted})

    def _on_acknowledgement(self, peer: NodeId, message: Message) -> None:
        if message["sender_term"] != self.core.term:
            self.dropped["term"] += 1
            if message["sender_term"] > self.core.term:
                self.core.adopt_term(message["sender_term"])
            return
        if self.core.role != LEADER or not self.core.follows(peer):
            return
        next_before = self.core.next_index(peer)
        claimed, matched = message["next_node_idx"], self.core.match_index(peer)
        if claimed > self.core.last_index + 1:
            self.dropped["beyond_log"] += 1
            return
        if message["reset"] and (claimed > next_before or claimed <= matched):
            self.dropped["reset"] += 1
            message = {**message, "reset": False}
        answered_at = max(self.core.answered_at(peer), self._timeliness.said_since)
        self.core.deliver(peer, message)
        self.core.note_answered(peer, answered_at)
        if message["success"]:
            self.core.expect_next(peer, max(next_before, claimed))

    def _on_timeout_now(self, peer: NodeId, message: Message) -> None:
        if peer == self.core.leader and message["term"] >= self.core.term and self.core.is_voter:
            self._elections.transfer = True
            self.core.deliver(peer, message)

    def _say(self, peer: NodeId, message: Message) -> None:
        self._send_to_channel(peer, {**message, "sender_term": self.core.term})

    def _leader_is_alive(self) -> bool:
        if self.core.role == LEADER:
            return True  # a leader without a majority steps down by itself
        return self._clock() - self._heard_at < self._timing.election_min_seconds

    # Time.

    def tick(self) -> None:
        """Sync, let the acknowledgements go, see to elections, tick. Raises StorageError."""
        self._timeliness.note_tick()
        if self.mute:
            self.core.election_deadline = float("inf")
        else:
            self.core.journal.sync()
        for peer, message in self._acknowledgements.take(self.core.term):
            self._send_to_channel(peer, message)
        if self.core.is_voter and not self.mute:
            self._elections.tick()
        self.core.tick()
        self._elections.transfer = False  # the election it asked for began in this tick


def _log_of(message: Message) -> tuple[int, int]:
    return message["last_log_term"], message["last_log_index"]
