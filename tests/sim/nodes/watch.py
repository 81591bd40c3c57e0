"""What must hold all the time, whatever goes wrong."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from butterfly.config.schema import ADMISSION_LEASE_SECONDS
from butterfly_cluster.commands import (
    ActAsCoordinator,
    AssignLayers,
    Command,
    Ordered,
    decode_command,
    encode_command,
)
from butterfly_cluster.offer_commands import SwitchModel
from butterfly_cluster.state import Acting, AssignedStage, ClusterState
from butterfly_core.ids import NodeId
from tests.sim.nodes.engines import HOME, digests_at
from tests.sim.nodes.node import SimNode

if TYPE_CHECKING:
    from tests.sim.nodes.world import Machine, World

LOOK_SECONDS = 0.05
LEASE_SECONDS = ADMISSION_LEASE_SECONDS["lan"] + 0.5
"""The lease counts in that a leader which is cut off with a follower talks on until it steps down.
The half second on top is for its last word on the slowest line there is (``Nemesis``): a follower
counts from when it hears, and cannot know how long a word was under way. What waited for a node
that was paused is no part of it: it counts from before the pause (seed 1128 showed 2.60 s)."""


class Watch:
    """Collects ``violations``; looks every LOOK_SECONDS, and at every committed entry."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.violations: list[str] = []
        self.cluster_ids: set[str] = set()
        self.applied: dict[int, tuple[bytes, int]] = {}
        """By index: the entry, and the epoch that it made."""
        self._plans: dict[int, tuple[AssignedStage, ...]] = {}
        self._leaders: dict[int, NodeId] = {}
        self._cut_off_since: dict[str, float] = {}
        self._wishes: dict[bytes, list[tuple[float, str]]] = {}
        self._ids: dict[str, set[NodeId]] = {}
        self._voters: frozenset[NodeId] = frozenset()
        self._voters_at = -1
        self.longest_admission_seconds = 0.0
        self.admissions = 0

    def violate(self, what: str) -> None:
        if len(self.violations) < 100:
            self.violations.append(f"at {self._world.now:.3f} s: {what}")

    def ids_of(self, machine: "Machine") -> set[NodeId]:
        return self._ids.get(machine.name, set())

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    # At every committed entry.

    def note_wish(self, node: SimNode, command: Command) -> None:
        if isinstance(command, ActAsCoordinator | Ordered):
            wish = (self._world.now, node.machine)
            self._wishes.setdefault(encode_command(command), []).append(wish)
        if isinstance(command, ActAsCoordinator):
            leads = Acting(node.consensus.term, node.node_id)
            if command.by != leads or node.consensus.leader != node.node_id:
                self.violate(f"{node.machine} claims to act in term {command.by.term} unled by it")

    def note_applied(self, node: SimNode, index: int, body: bytes, before: ClusterState) -> None:
        epoch = node.replica.state.epoch
        known = self.applied.get(index)
        if known is None:
            self.applied[index] = (body, epoch)
            self._check_wishers(index, body)
            self._check_entry(index, decode_command(body), before, node.replica.state)
        elif known != (body, epoch):
            self.violate(f"{node.machine} applied something else than others at {index}")
        self._check_plan(node)
        newest = node.newest_applied
        if index <= newest[0] or epoch < newest[1]:
            self.violate(
                f"{node.machine} goes from entry {newest[0]}, epoch {newest[1]} "
                f"to entry {index}, epoch {epoch}"
            )
        node.newest_applied = (index, epoch)

    def _check_entry(
        self, index: int, command: Command, before: ClusterState, after: ClusterState
    ) -> None:
        """An entry of another epoch, or of a coordinator that does not act, changes nothing."""
        order = command.order if isinstance(command, Ordered) else command
        epoch = getattr(order, "epoch", None)
        expected = before.epoch + isinstance(order, AssignLayers | SwitchModel)
        stale = epoch is not None and epoch != expected
        served, serves = before.model, after.model
        if before.validated_epoch and served != serves and not isinstance(order, SwitchModel):
            self.violate(f"entry {index} changed the model that is served: {command}")
        deposed = isinstance(command, Ordered) and command.by != before.acting
        if (stale or deposed) and replace(after, index=before.index) != before:
            self.violate(f"entry {index} changed the state out of its time: {command}")

    def _check_plan(self, node: SimNode) -> None:
        """An epoch is one placement, for ever."""
        assignment = node.replica.state.assignment
        if assignment is not None:
            known = self._plans.setdefault(assignment.epoch, assignment.stages)
            if known != assignment.stages:
                self.violate(f"{node.machine} has a second plan of epoch {assignment.epoch}")

    def _check_wishers(self, index: int, body: bytes) -> None:
        """Somebody who was not cut off when the entry was first seen committed wished for it."""
        self._note_who_is_cut_off()
        wishes = self._wishes.get(body, [])
        if wishes and all(
            machine in self._cut_off_since and self._cut_off_since[machine] < at
            for at, machine in wishes
        ):
            self.violate(f"entry {index} is the wish of a coordinator that was cut off")

    # Now and then.

    def look(self) -> None:
        self._note_who_is_cut_off()
        for machine in self._world.machines:
            node = machine.node
            if node is None:
                continue
            self.note_identity(node)
            if machine.is_paused:
                continue
            self._check_leader(node)
            if node.admits:
                self.admissions += 1
                self._check_lease(node)
                self._check_weights(node)

    def note_identity(self, node: SimNode) -> None:
        """Learn the id and the cluster that a node's disk names."""
        identity = node.data_dir.identity
        self._ids.setdefault(node.machine, set()).add(identity.node_id)
        if identity.cluster_id is not None and identity.cluster_id not in self.cluster_ids:
            self.cluster_ids.add(identity.cluster_id)
            if len(self.cluster_ids) > 1:
                self.violate(f"there are two clusters: {sorted(self.cluster_ids)}")

    def _check_leader(self, node: SimNode) -> None:
        consensus = node.consensus
        if consensus.leader == node.node_id:
            known = self._leaders.setdefault(consensus.term, node.node_id)
            if known != node.node_id:
                self.violate(f"two coordinators in term {consensus.term}")

    def _note_who_is_cut_off(self) -> None:
        """Machines from which no majority of any known set of voters can be reached at all.

        A line that works one way counts as whole, so nobody is called cut off who is not.
        """
        world = self._world
        views = {node.consensus.voters for node in world.running if node.consensus.voters}
        for group in self._groups():
            ids = {machine.node_id for machine in group}
            whole = any(2 * len(ids & voters) > len(voters) for voters in views)
            for machine in group:
                if whole:
                    self._cut_off_since.pop(machine.name, None)
                else:
                    self._cut_off_since.setdefault(machine.name, world.now)

    def _groups(self) -> Iterable[list["Machine"]]:
        left = [machine for machine in self._world.machines if machine.node is not None]
        while left:
            group, fresh = [], [left.pop()]
            while fresh:
                here = fresh.pop()
                group.append(here)
                fresh += [there for there in left if self._hears_anything(here, there)]
                left = [there for there in left if there not in fresh]
            yield group

    def _hears_anything(self, one: "Machine", other: "Machine") -> bool:
        is_cut = self._world.wire.ways.is_cut
        return not (is_cut(one.name, other.name) and is_cut(other.name, one.name))

    def _check_lease(self, node: SimNode) -> None:
        since = self._cut_off_since.get(node.machine)
        if since is None:
            return
        admitted_for = self._world.now - since
        self.longest_admission_seconds = max(self.longest_admission_seconds, admitted_for)
        if admitted_for > LEASE_SECONDS:
            self.violate(
                f"{node.machine} admits requests {admitted_for:.2f} s after it was cut off"
            )

    def _check_weights(self, node: SimNode) -> None:
        """A request that this node admits now runs on proven weights only."""
        state = node.replica.state
        if not state.is_active or state.assignment is None:
            return
        if state.validated_epoch != state.epoch:
            self.violate(f"{node.machine} serves epoch {state.epoch}, which was never validated")
        for stage in state.assignment.stages:
            self._check_stage(node, state, stage)

    def _check_stage(self, node: SimNode, state: ClusterState, stage: AssignedStage) -> None:
        holder = self._world.node_of(stage.node_id)
        if holder is None or holder.engine.running != stage.engine:
            return
        if holder.engine.held_epoch != state.epoch:
            return  # that engine takes no work of this epoch
        held, told = holder.engine.held, state.digests.get(stage.node_id)
        if told != held:
            self.violate(f"{node.machine} serves what {holder.machine} holds and never reported")
        true = digests_at(state.source.source_path if state.source else HOME)
        if self._world.plot.with_manifest and any(
            true[part] != digest for part, digest in held.items()
        ):
            self.violate(f"{node.machine} serves corrupted weights of {holder.machine}")
