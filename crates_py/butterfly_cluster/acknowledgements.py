"""What a follower will acknowledge once the sync of its tick is done."""

from butterfly_cluster.raft_codec import Message
from butterfly_core.ids import NodeId


class Acknowledgements:
    """In order; a newer success says all that an older one to the same leader said."""

    def __init__(self) -> None:
        self._waiting: list[tuple[NodeId, Message]] = []

    def keep(self, peer: NodeId, stamped: Message) -> None:
        """Until the sync."""
        last = self._waiting[-1] if self._waiting else None
        if last and last[0] == peer and last[1]["success"] and stamped["success"]:
            self._waiting.pop()
            highest = max(last[1]["next_node_idx"], stamped["next_node_idx"])
            stamped = {**stamped, "next_node_idx": highest}
        self._waiting.append((peer, stamped))

    def take(self, term: int) -> list[tuple[NodeId, Message]]:
        """All that are still of this term; they are kept no more."""
        taken, self._waiting = self._waiting, []
        return [(peer, message) for peer, message in taken if message["sender_term"] == term]

    def forget(self) -> None:
        """They must never leave: the disk failed."""
        self._waiting.clear()
