"""Where each node is dialled: committed members first, then what was learnt before.

What was learnt is kept on disk, because after a restart of all nodes the first election needs
the others' addresses before anything is committed.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from butterfly_cluster.state import ClusterState
from butterfly_core.address import Address, parse_address
from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_core.ids import NodeId, parse_node_id, short

log = logging.getLogger(__name__)

_ENTRIES_MAX = 1000
_SAVE_AGAIN_SECONDS = 30.0


class AddressBook:
    """Raises nothing when the file is damaged: it is only a memory, and is learnt again."""

    def __init__(
        self,
        path: Path,
        state: Callable[[], ClusterState],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._save_not_before = float("-inf")
        self._told = ""
        self._state = state
        self._learnt: dict[NodeId, Address] = {}
        self._met: dict[NodeId, Address] = {}
        self._turns: dict[NodeId, int] = {}
        self._saved: dict[NodeId, Address] = {}
        try:
            stored = json.loads(path.read_text()) if path.exists() else {}
            self._learnt = {parse_node_id(k): parse_address(v) for k, v in stored.items()}
        except (OSError, ValueError, AttributeError, TypeError, InvalidValue) as error:
            log.warning("%s is ignored: %s", path, error)

    def learn(self, node_id: NodeId, address: Address) -> None:
        """Remember where a node is, as another one said."""
        if node_id in self._learnt or len(self._learnt) < _ENTRIES_MAX:
            self._learnt[node_id] = address

    def learn_all(self, said: Mapping[NodeId, str]) -> None:
        """Remember what another node said of many; what is no address is passed over."""
        for node_id, where in said.items():
            with contextlib.suppress(InvalidValue):
                self.learn(node_id, parse_address(where))

    def meet(self, node_id: NodeId, address: Address) -> None:
        """Remember where a node itself answered, or said that it is."""
        self.learn(node_id, address)
        if node_id in self._met or len(self._met) < _ENTRIES_MAX:
            self._met[node_id] = address

    def next_of(self, node_id: NodeId) -> Address:
        """Where to dial now. Raises Unreachable when nobody said where the node is.

        What is committed, what the node said and what others said may differ after a move, and
        nobody here knows which is newest; so they take turns until one answers.
        """
        candidates = self.places_of(node_id) or (self.of(node_id),)
        turn = self._turns.get(node_id, 0) if len(candidates) > 1 else 0
        if len(candidates) > 1:
            self._turns[node_id] = turn + 1
        return candidates[turn % len(candidates)]

    def places_of(self, node_id: NodeId) -> tuple[Address, ...]:
        """Everywhere it may be, the committed address first; nothing of a node nobody knows."""
        member = self._state().members.get(node_id)
        known = (
            member.address if member else self._learnt.get(node_id),
            self._met.get(node_id),
            self._learnt.get(node_id),
        )
        return tuple(dict.fromkeys(address for address in known if address))

    def keep_only(self, nodes: Collection[NodeId]) -> None:
        """Forget what was learnt of all others: they left, or were never of this cluster."""
        for memory in (self._learnt, self._met, self._turns):
            for gone in [node for node in memory if node not in nodes]:
                del memory[gone]

    def of(self, node_id: NodeId) -> Address:
        """Raises Unreachable when nobody said where the node is."""
        member = self._state().members.get(node_id)
        if member is not None:
            return member.address
        try:
            return self._learnt[node_id]
        except KeyError:
            raise Unreachable(f"the address of node {short(node_id)} is not known yet") from None

    def known(self) -> dict[NodeId, Address]:
        """Everything known now, members first."""
        members = {node: member.address for node, member in self._state().members.items()}
        return {**self._learnt, **members}

    def save(self) -> None:
        """Write what is known, if it changed, whole or not at all.

        A disk that fails is told of once per cause, and tried again after half a minute.
        """
        known = self.known()
        if known == self._saved or self._clock() < self._save_not_before:
            return
        text = json.dumps({node: str(address) for node, address in known.items()}, indent=1)
        part = self._path.with_suffix(".part")
        try:
            part.write_text(text)
            os.replace(part, self._path)
        except OSError as error:
            self._save_not_before = self._clock() + _SAVE_AGAIN_SECONDS
            if str(error) != self._told:
                log.warning("cannot keep %s: %s", self._path, error)
            self._told = str(error)
            return
        self._saved, self._told = known, ""
