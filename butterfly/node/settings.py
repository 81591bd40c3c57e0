"""From the configuration to what the parts of a node are made with."""

from pathlib import Path
from typing import Final

from butterfly import __version__
from butterfly.channel import EngineSettings
from butterfly.config import NodeConfig
from butterfly_cluster.commands import RegisterMember
from butterfly_cluster.founding_sight import FoundingSettings
from butterfly_cluster.raft_timing import Timing
from butterfly_core.ids import NodeId

EMBEDDED_ROOT: Final = Path(__file__).parents[1] / "demo_model"
SILENT_SECONDS: Final = {"lan": 2.0, "wan": 8.0}
"""Without a word for so long, a connection to a peer is given up."""


def cache_directory(config: NodeConfig) -> Path | None:
    """Where this node keeps proven tensors, or None when it keeps none."""
    if config.model.cache == "off" or config.model.source_type == "embedded":
        return None
    return config.node.data_dir / "cache"


def admission_lease(config: NodeConfig, timing: Timing) -> float:
    """For how many seconds after the last word of a leader requests are admitted, and orders
    given. A leader that is cut off goes on talking until it steps down; that is counted in.
    How long its last word is under way is not: a slow line adds its delay."""
    return config.cluster.admission_lease_seconds - timing.fallback_seconds


def registration_of(config: NodeConfig, me: NodeId) -> RegisterMember:
    return RegisterMember(
        me,
        config.node.advertise_address,
        config.node.http_address,
        config.node.role,
        __version__,
        carries_layers=config.node.capacity > 0,
        zone=config.node.zone,
    )


def engine_settings(config: NodeConfig) -> EngineSettings:
    engine = config.engine
    return EngineSettings(
        device=config.node.device,
        dtype=config.model.dtype,
        threads=engine.threads,
        block_size=engine.block_size,
        step_tokens_max=engine.step_tokens_max,
        sequences_max=engine.sequences_max,
        requests_waiting_max=engine.requests_waiting_max,
        verify_device=config.model.verify_device,
    )


def founding_settings(config: NodeConfig) -> FoundingSettings:
    """What the birth of the cluster needs to know of the configuration."""
    cluster = config.cluster
    return FoundingSettings(
        cluster_name=cluster.cluster_name,
        address=str(config.node.advertise_address),
        source=cluster.discovery_method,
        quorum_size=cluster.quorum_size,
        role=config.node.role,
        voters_max=cluster.max_voters,
        grace_seconds=cluster.founding_grace_seconds,
    )
