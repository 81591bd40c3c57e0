"""The configuration's words agree with the log's timing."""

from pathlib import Path

import pytest

from butterfly.config import load_config
from butterfly.config.schema import ELECTION_SECONDS
from butterfly.node.settings import admission_lease
from butterfly_cluster.raft_timing import LAN, WAN, Timing


@pytest.mark.parametrize(("profile", "timing"), [("lan", LAN), ("wan", WAN)])
def test_the_least_lease_covers_an_election_after_a_leader_was_cut_off(
    profile: str, timing: Timing
) -> None:
    longest = timing.election_max_seconds + timing.fallback_seconds

    assert ELECTION_SECONDS[profile] == pytest.approx(longest)


@pytest.mark.parametrize(("profile", "timing", "lease"), [("lan", LAN, 2.0), ("wan", WAN, 8.0)])
def test_what_a_cut_off_leader_still_says_is_counted_inside_the_lease(
    profile: str, timing: Timing, lease: float, tmp_path: Path
) -> None:
    flags = {
        "cluster.cluster_name": "c",
        "cluster.profile": profile,
        "model.source_type": "embedded",
        "model.source_path": "toy-llama",
        "role": "coordinator",
        "data_dir": str(tmp_path),
    }

    config = load_config(None, environ={}, flags=flags)

    assert config.cluster.admission_lease_seconds == lease
    assert config.origin("cluster", "admission_lease_seconds") == "from profile"
    assert admission_lease(config, timing) + timing.fallback_seconds == pytest.approx(lease)
