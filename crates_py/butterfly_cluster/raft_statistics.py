"""One node's Raft numbers, for metrics and the status page."""

from butterfly_cluster.guard import Guard
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_insides import LEADER
from butterfly_cluster.raft_transport import RaftTransport


def statistics_of(core: Core, guard: Guard, transport: RaftTransport) -> dict[str, int | float]:
    """By name; counters only rise while the process lives."""
    return {
        "term": core.term,
        "commit_index": core.commit_index,
        "applied_index": core.applied_index,
        "last_index": core.last_index,
        "log_entries": len(core.journal.entries),
        "voters": len(core.voters),
        "is_voter": int(core.is_voter),
        "is_leader": int(core.role == LEADER),
        "is_mute": int(guard.mute),
        "peers_connected": len(transport.peers),
        "journal_syncs": core.journal.syncs,
        "snapshots_made": core.shelf.made,
        "apply_failures": core.apply_failures,
        "seconds_since_leader_heard": guard.seconds_since_leader_heard(),
        **{f"channel_{name}": count for name, count in transport.counts.items()},
        **{f"dropped_{name}": count for name, count in guard.dropped.items()},
    }
