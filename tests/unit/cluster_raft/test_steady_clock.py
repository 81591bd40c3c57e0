"""Leases end also for a machine that slept."""

import inspect
import time
from collections.abc import Callable

import pytest

from butterfly.node.consensus import Consensus
from butterfly.node.coordinator import Coordinator
from butterfly.node.reports import Reports
from butterfly_cluster.raft import RaftNode
from butterfly_cluster.steady_clock import steady_seconds


def test_the_time_that_the_machine_was_suspended_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {time.CLOCK_MONOTONIC: 100.0, time.CLOCK_BOOTTIME: 3700.0}
    with monkeypatch.context() as patched:
        patched.setattr(time, "clock_gettime", clocks.__getitem__)
        counted = steady_seconds()

    assert counted == 3700.0


@pytest.mark.parametrize("part", [RaftNode, Consensus, Coordinator, Reports])
def test_leases_elections_and_silence_are_counted_on_it(part: Callable[..., object]) -> None:
    assert inspect.signature(part).parameters["clock"].default is steady_seconds
