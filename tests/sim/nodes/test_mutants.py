"""Tests of the tests: a node with one guard taken out is found out by the same stories."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from butterfly.node import outlook, replica
from butterfly.node.status import admission_problem
from butterfly_cluster import apply as apply_module
from butterfly_cluster.commands import AssignLayers, Command, Ordered, ReportDigests, ReportWarm
from butterfly_cluster.founding_messages import Proposal
from butterfly_cluster.identity import DataDir
from butterfly_cluster.state import ClusterState
from tests.sim.nodes.story import run_seed
from tests.sim.nodes.world import Plot

Patch = pytest.MonkeyPatch
HUNT = range(5000, 5200)


def promise_twice(patch: Patch) -> None:
    """A bootstrap that does not write down what it promised to others."""
    really_remember = DataDir.remember_promise

    def remember(data_dir: DataDir, promise: Proposal | None) -> None:
        if promise is None or promise.candidate == data_dir.identity.node_id:
            really_remember(data_dir, promise)

    patch.setattr(DataDir, "remember_promise", remember)


def accept_stale_epochs(patch: Patch) -> None:
    """A state that takes plans and reports of any epoch, of whoever once was the coordinator."""
    really_apply = apply_module.apply

    def apply(state: ClusterState, index: int, command: Command) -> ClusterState:
        if isinstance(command, ReportDigests | ReportWarm):
            command = replace(command, epoch=state.epoch)
        if not isinstance(command, Ordered) or not isinstance(command.order, AssignLayers):
            return really_apply(state, index, command)
        fresh = replace(command.order, epoch=state.epoch + 1)
        after = really_apply(state, index, Ordered(state.acting or command.by, fresh))
        if after.assignment is None or after.assignment is state.assignment:
            return after
        return replace(after, assignment=replace(after.assignment, epoch=command.order.epoch))

    patch.setattr(replica, "apply", apply)


def admit_without_lease(patch: Patch) -> None:
    """An admission rule that does not ask when a leader was heard."""

    def without_lease(state: ClusterState, policy: Any, **told: Any) -> str | None:
        return admission_problem(
            state, policy, **{**told, "lease": math.inf, "voters_heard": told["voters"]}
        )

    patch.setattr(outlook, "admission_problem", without_lease)


BIRTH = Plot(founders=3, grace_seconds=0.5, promise_strike_share=1.0)
FIVE = Plot(founders=5)
MUTANTS: dict[Callable[[Patch], None], tuple[int, Plot | None]] = {
    promise_twice: (5042, BIRTH),
    accept_stale_epochs: (5000, FIVE),
    admit_without_lease: (5001, None),
}
"""Each with a seed whose story finds it out; stories change with the product, so the next
``NEAR`` seeds may do it instead."""
NEAR = 60


def is_found_out(seed: int, plot: Plot | None) -> bool:
    return bool(run_seed(seed, plot).watch.violations)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found_out_by_the_story_that_caught_it(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    seed, plot = MUTANTS[mutant]
    assert not is_found_out(seed, plot)

    mutant(monkeypatch)

    assert any(is_found_out(near, plot) for near in range(seed, seed + NEAR))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found_out_within_two_hundred_seeds(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    _, plot = MUTANTS[mutant]

    mutant(monkeypatch)

    assert any(is_found_out(seed, plot) for seed in HUNT)
