# ruff: noqa: N802, N815 - the names in this file are pysyncobj's, not ours
"""What pysyncobj sees of the world: one object that plays its transport and its journal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.raft_codec import Message
from butterfly_core.ids import NodeId

LEARNER_PREFIX: Final = "learner/"


Answered = Callable[[int | None, int], None]
"""Called with the index at which a command was applied, or None and a FAILURES number."""


Adopt = Callable[[], None]
"""Puts a state that was read in the place of the present one."""


class Application(Protocol):
    """What the log drives; ``apply`` and ``restore`` get bytes that the checks let through.

    ``restore`` reads a state and changes nothing; what it returns then adopts it. Raises
    InvalidValue when this version cannot read it.
    """

    def apply(self, index: int, body: bytes) -> None: ...
    def take_snapshot(self) -> bytes: ...
    def restore(self, state: bytes) -> Adopt: ...


@dataclass(frozen=True, slots=True)
class Callbacks:
    """An application made of three functions."""

    apply: Callable[[int, bytes], None]
    take_snapshot: Callable[[], bytes]
    restore: Callable[[bytes], Adopt]


class Send(Protocol):
    """Takes a message out of the core; False when it surely does not arrive."""

    def __call__(self, peer: NodeId, message: Message, /) -> bool: ...


class Door:
    """The transport and the journal of one SyncObj."""

    ready = True

    def __init__(
        self, journal: Journal, send: Send, role_changed: Callable[[Any, bool], None]
    ) -> None:
        self._journal, self._send, self._role_changed = journal, send, role_changed

    def _ignore(self, *_: Any) -> None: ...

    setOnNodeConnectedCallback = setOnNodeDisconnectedCallback = _ignore
    setOnReadonlyNodeConnectedCallback = setOnReadonlyNodeDisconnectedCallback = _ignore
    setOnMessageReceivedCallback = setOnUtilityMessageCallback = _ignore
    tryGetReady = destroy = _destroy = _ignore

    def send(self, node: Any, message: Message) -> bool:
        return self._send(NodeId(node.id.removeprefix(LEARNER_PREFIX)), message)

    def addNode(self, node: Any) -> None:
        self._role_changed(node, True)

    def dropNode(self, node: Any) -> None:
        self._role_changed(node, False)

    def add(self, command: bytes, index: int, term: int) -> None:
        self._journal.append(Entry(bytes(command), index, term))

    def clear(self) -> None:
        self._journal.clear()

    def deleteEntriesFrom(self, position: int) -> None:
        self._journal.truncate_from(position)

    def deleteEntriesTo(self, position: int) -> None:
        self._journal.rewrite(self._journal.entries[position:])

    def __getitem__(self, item: Any) -> Any:
        return self._journal.entries[item]

    def __len__(self) -> int:
        return len(self._journal.entries)

    def setRaftCommitIndex(self, index: int) -> None:
        self._journal.commit_index = index

    def getRaftCommitIndex(self) -> int:
        return self._journal.commit_index

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self._journal.set_term(term, vote)

    def getCurrentTerm(self) -> int:
        return self._journal.term

    def getVotedForNodeId(self) -> str | None:
        return self._journal.vote

    def onOneSecondTimer(self) -> None:
        self._journal.note_commit_index()
