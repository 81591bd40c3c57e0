"""A few cores and guards without channels: the test decides which message arrives when."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from butterfly_cluster.guard import Guard
from butterfly_cluster.raft_codec import Message, decode_message, encode_message
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_doors import Adopt, Callbacks
from butterfly_cluster.raft_timing import LAN
from butterfly_cluster.snapshot import open_log, save_snapshot
from butterfly_core.errors import InvalidValue
from butterfly_core.ids import NodeId

UNREADABLE = b"a state that no node at this table can read"
Envelope = tuple[NodeId, NodeId, Message]


class Table:
    """All nodes, the clock and the messages that lie on the table."""

    def __init__(self, directory: Path, count: int, learners: int = 0) -> None:
        self.now = 1000.0
        self.mail: list[Envelope] = []
        self.ids = [NodeId(f"{number:032x}") for number in range(1, count + learners + 1)]
        self.applied: dict[NodeId, list[bytes]] = {me: [] for me in self.ids}
        self.guards: dict[NodeId, Guard] = {}
        for me in self.ids:
            self.guards[me] = self._made(me, frozenset(self.ids[:count]), directory / me)
        for me in self.ids:
            for peer in self.ids:
                if peer != me:
                    self.guards[me].core.connected(peer)

    def _made(self, me: NodeId, founders: frozenset[NodeId], directory: Path) -> Guard:
        directory.mkdir()
        journal, snapshot = open_log(directory, lambda _: None)
        guard = Guard(
            LAN,
            send=lambda peer, message: self._post(me, peer, message),
            clock=lambda: self.now,
            chance=random.Random(me).random,
        )
        guard.core = Core(
            me=me,
            founders=founders,
            timing=LAN,
            journal=journal,
            snapshot=snapshot,
            save_snapshot=lambda data: save_snapshot(directory, data),
            application=Callbacks(
                lambda _, body: self.applied[me].append(body),
                lambda: b"\n".join(self.applied[me]),
                lambda state: self._restore(me, state),
            ),
            send=guard.send,
            clock=lambda: self.now,
            chance=random.Random(me),
            compact_after_entries=1000,
        )
        return guard

    def _restore(self, me: NodeId, state: bytes) -> Adopt:
        if state == UNREADABLE:
            raise InvalidValue("it is of another version")
        return partial(self.applied[me].__setitem__, slice(None), state.split(b"\n"))

    def _post(self, source: NodeId, target: NodeId, message: Message) -> bool:
        self.mail.append((source, target, decode_message(encode_message(message))))
        return True

    def core(self, me: NodeId) -> Core:
        return self.guards[me].core

    def tick(self, me: NodeId, after_seconds: float = 0.0) -> None:
        self.now += after_seconds
        self.guards[me].tick()

    def pass_by(self, seconds: float) -> None:
        """Time goes by, and no node pauses."""
        ends_at = self.now + seconds
        while self.now < ends_at:
            self.now = min(self.now + LAN.append_seconds, ends_at)
            for guard in self.guards.values():
                guard.tick()

    def deliver(
        self, *kinds: str, source: NodeId | None = None, target: NodeId | None = None
    ) -> list[Message]:
        """Let the messages on the table arrive that fit; return them."""
        fitting = [
            envelope
            for envelope in self.mail
            if (not kinds or envelope[2]["type"] in kinds)
            and source in (None, envelope[0])
            and target in (None, envelope[1])
        ]
        for envelope in fitting:
            self.mail.remove(envelope)
            self.guards[envelope[1]].receive(envelope[0], envelope[2])
        return [message for _, _, message in fitting]

    def hold_back(self, kind: str, source: NodeId, target: NodeId) -> list[Envelope]:
        """Take messages off the table, to put them back later."""
        held = [m for m in self.mail if (m[0], m[1], m[2]["type"]) == (source, target, kind)]
        self.mail = [envelope for envelope in self.mail if envelope not in held]
        return held

    def elect(self, me: NodeId, *helpers: NodeId) -> None:
        """Make a node leader with the votes of the helpers; all other mail is lost."""
        for node in (me, *helpers):
            self.core(node).election_deadline = self.now + 1e6
        self.pass_by(10 * LAN.election_max_seconds)
        self.core(me).election_deadline = 0.0
        self.tick(me)
        for kind in ("pre_vote", "pre_vote_ok", "tick", "request_vote", "tick", "response_vote"):
            if kind == "tick":
                self.tick(me)
            for helper in helpers:
                self.deliver(kind, source=me, target=helper)
                self.deliver(kind, source=helper, target=me)
        self.mail.clear()
        assert self.core(me).role == 2

    def write(self, leader: NodeId, text: str) -> list[tuple[int | None, int]]:
        """Propose on the leader; the list gets the answer."""
        answers: list[tuple[int | None, int]] = []
        self.core(leader).propose(
            f'"{text}"'.encode(), lambda index, failure: answers.append((index, failure))
        )
        self.tick(leader)
        return answers

    def exchange(self, leader: NodeId, *followers: NodeId, rounds: int = 4) -> None:
        """Let the leader and these followers talk; mail to others is lost."""
        for _ in range(rounds):
            self.tick(leader, LAN.append_seconds * 1.1)
            for follower in followers:
                self.deliver(source=leader, target=follower)
                self.tick(follower)
                self.deliver(source=follower, target=leader)
            self.mail.clear()
        self.tick(leader)
        self.mail.clear()

    def close(self) -> None:
        for guard in self.guards.values():
            guard.core.journal.close()


def texts(core: Core) -> list[Any]:
    """What stands in a log, without terms."""
    return [entry.command for entry in core.journal.entries if entry.command[:1] == b"\0"]
