"""This node's place in the cluster as its views show it, and whether it may admit requests."""

from collections.abc import Callable

from butterfly.config import NodeConfig
from butterfly.node.consensus import Consensus
from butterfly.node.coordinator import policy_of
from butterfly.node.discovery import NodeDiscovery
from butterfly.node.replica import Replica
from butterfly.node.reports import Reports
from butterfly.node.settings import admission_lease
from butterfly.node.status import Surroundings, admission_problem
from butterfly.security import security_view
from butterfly_core.ids import NodeId
from butterfly_wire.identity import TlsIdentity


class Outlook:
    """Read from the parts whenever somebody asks; it keeps nothing."""

    def __init__(
        self,
        me: NodeId,
        config: NodeConfig,
        *,
        consensus: Consensus,
        replica: Replica,
        reports: Callable[[], Reports],
        discovery: NodeDiscovery,
        tls: TlsIdentity,
    ) -> None:
        self._me = me
        self._config = config
        self._policy = policy_of(config)
        self._consensus = consensus
        self._replica = replica
        self._reports = reports
        self._discovery = discovery
        self._tls = tls

    def admission_problem(self) -> str | None:
        """Why no request is admitted here now, or None."""
        consensus = self._consensus
        lease = admission_lease(self._config, consensus.timing)
        return admission_problem(
            self._replica.state,
            self._policy,
            joined=consensus.joined,
            leader_silent_seconds=consensus.leader_silent_seconds,
            lease=lease,
            voters=len(consensus.voters),
            voters_heard=consensus.voters_heard(lease),
        )

    def surroundings(self) -> Surroundings:
        """What the views need beside the state."""
        config, consensus, reports = self._config, self._consensus, self._reports()
        return Surroundings(
            me=self._me,
            cluster_name=config.cluster.cluster_name,
            cluster_id=consensus.cluster_id,
            coordinator=consensus.leader,
            term=consensus.term,
            commit_index=consensus.commit_index,
            leader_changes=consensus.leader_changes,
            entries_rejected=self._replica.rejected_total,
            voters=consensus.voters,
            reports={**reports.newest, self._me: reports.own()},
            source=f"{config.model.source_type}:{config.model.source_path}",
            security=security_view(config, self._tls),
            discovery=self._discovery.view(),
            policy=self._policy,
            admission_problem=self.admission_problem(),
        )
