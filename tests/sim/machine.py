"""What the simulated cluster agrees on, and what must hold of every node at every step."""

import json
from collections.abc import Callable
from typing import Any

from butterfly_cluster.journal import Entry
from butterfly_cluster.raft import RaftNode
from butterfly_cluster.raft_insides import LEADER
from butterfly_core.ids import NodeId


class Register:
    """The state machine: every applied command in order, and the registers they make."""

    def __init__(self) -> None:
        self.items: list[tuple[int, str]] = []
        self.values: dict[str, int] = {}
        self.swapped: dict[int, bool] = {}

    def apply(self, index: int, body: bytes) -> None:
        text = body.decode()
        self.items.append((index, text))
        if text.startswith("{"):
            self._change(json.loads(text))

    def _change(self, command: dict[str, Any]) -> None:
        if "key" not in command:
            return
        if "expected" in command:
            fits = self.values.get(command["key"]) == command["expected"]
            self.swapped[command["id"]] = fits
            if not fits:
                return
        self.values[command["key"]] = command["id"]

    def snapshot(self) -> bytes:
        return json.dumps([self.items, self.values]).encode()

    def restore(self, state: bytes) -> Callable[[], None]:
        items, values = json.loads(state)

        def adopt() -> None:
            self.items[:] = [(index, command) for index, command in items]
            self.values = values

        return adopt


class Invariants:
    """Watches the insides of all nodes; ``violations`` tells what was broken, in words."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.violations: list[str] = []
        self.elections: dict[int, NodeId] = {}
        self._committed: dict[int, tuple[int, bytes]] = {}
        self._logs: dict[NodeId, Callable[[], list[Entry]]] = {}
        self._began_to_tick_as_leader: dict[NodeId, bool] = {}

    @property
    def committed_entries(self) -> int:
        return len(self._committed)

    def broken(self, what: str) -> None:
        self.violations.append(f"{self._now():.3f} s: {what}")

    def watch(self, me: NodeId, node: RaftNode) -> None:
        """See every election, applied entry and tick of a node from its start on."""
        core, guard = node._core, node._guard
        self._logs[me] = lambda: core.journal.entries  # kept while it is down: its disk
        real_apply, real_leader, real_tick = core.apply_command, core.became_leader, guard.tick
        last = [core.applied_index, node.commit_index, node.term]

        def apply_command(command: bytes) -> int:
            index = core.applied_index + 1
            self._applied(me, node, index, command, last[0])
            last[0] = index
            return real_apply(command)

        def became_leader() -> None:
            if self.elections.setdefault(node.term, me) != me:
                self.broken(f"{me} and {self.elections[node.term]} both lead in {node.term}")
            real_leader()

        def tick() -> None:
            commit, term = node.commit_index, node.term
            if commit < last[1] or term < last[2]:
                self.broken(f"{me} went back from commit, term {last[1:]} to {commit, term}")
            last[1:] = commit, term
            last[0] = max(last[0], core.applied_index)  # a snapshot may have moved it
            self._began_to_tick_as_leader[me] = core.role == LEADER
            real_tick()

        core.apply_command = apply_command  # type: ignore[method-assign] # the watch goes in here
        core.became_leader = became_leader  # type: ignore[method-assign]
        guard.tick = tick  # type: ignore[method-assign]

    def _applied(self, me: NodeId, node: RaftNode, index: int, command: bytes, before: int) -> None:
        if index <= before:
            self.broken(f"{me} applied {index} after {before}")
        entry = _entry_at(node._core.journal.entries, index)
        if entry is None:
            self.broken(f"{me} applied {index}, which is not in its log")
            return
        known = self._committed.get(index)
        if known is None:
            self._committed[index] = (entry.term, command)
            self._must_be_held(me, node, entry)
        elif known != (entry.term, command):
            self.broken(
                f"{me} applied {command!r} of term {entry.term} at {index}, another node "
                f"{known[1]!r} of term {known[0]}"
            )

    def _must_be_held(self, me: NodeId, node: RaftNode, entry: Entry) -> None:
        """Whoever commits first is the leader, and a majority of its voters holds the entry.

        A leader whose clock jumped commits, steps down and applies in one tick.
        """
        voters = node.voters
        if node._core.role != LEADER and not self._began_to_tick_as_leader.get(me):
            self.broken(f"{me} committed {entry.log_index} first, and does not lead")
        holders = [voter for voter in voters if self._holds(voter, entry)]
        if 2 * len(holders) <= len(voters):
            self.broken(
                f"{me} committed {entry.log_index} of term {entry.term}, held by {len(holders)} "
                f"of {len(voters)} voters"
            )

    def _holds(self, voter: NodeId, entry: Entry) -> bool:
        log = self._logs.get(voter)
        if log is None:
            return False
        entries = log()
        if entries and entry.log_index < entries[0].log_index:
            return True  # cut off after a snapshot
        found = _entry_at(entries, entry.log_index)
        return found is not None and found.term == entry.term


def _entry_at(entries: list[Entry], index: int) -> Entry | None:
    at = index - entries[0].log_index if entries else -1
    return entries[at] if 0 <= at < len(entries) else None
