"""The claim: one entry in a registry that names the only node that may found now. Pure.

It keeps nodes from founding against each other, and says afterwards that a cluster exists.
It is not what makes a birth safe: the promises are. So a claim may be taken over from a node
that is gone, even when that node is only slow.
"""

from dataclasses import dataclass
from typing import Protocol

from butterfly_core.ids import ClusterId, NodeId

CLAIM_GONE_SECONDS = 20.0
"""A claim without a cluster is taken over once its node has not answered for so long."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``version`` is the registry's, for compare-and-set; 0 in one that is to be written."""

    candidate: NodeId
    cluster_id: ClusterId | None = None
    version: int = 0


class Claims(Protocol):
    """The registry; both raise WorldError or OSError when it cannot be reached."""

    async def read(self) -> Claim | None:
        """The claim as it is now; None when nobody made one."""
        ...

    async def write(self, claim: Claim, /, *, replacing: Claim | None) -> bool:
        """Make it the claim, if the present one is still ``replacing``. True when it is."""
        ...
