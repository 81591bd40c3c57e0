"""This node's copy of the replicated state, fed by committed log entries and nothing else."""

import logging
from collections.abc import Callable
from functools import partial

from butterfly import __version__
from butterfly.node.pulse import Pulse
from butterfly_cluster.apply import apply, is_fenced
from butterfly_cluster.commands import decode_command
from butterfly_cluster.state import ClusterState, decode_state, encode_state
from butterfly_core.errors import InvalidValue, ProtocolViolation
from butterfly_core.ids import short

log = logging.getLogger(__name__)


class Replica:
    """Holds the newest ``state``; ``changed`` pulses after every committed entry."""

    def __init__(self, changed: Pulse) -> None:
        self.state = ClusterState()
        self.changed = changed
        self.rejected_total = 0
        """Entries that changed nothing: no commands, or orders of who does not act."""

    def apply(self, index: int, body: bytes) -> None:
        """Take one committed entry; never raises: an entry that is no command is counted."""
        try:
            command = decode_command(body)
        except ProtocolViolation as error:
            self.rejected_total += 1
            log.error("log entry %d is ignored: %s", index, error)
            return
        before = self.state
        if is_fenced(before, command):
            self.rejected_total += 1
            log.warning("log entry %d is ignored: a %s by who does not act", index, command.kind)
        self.state = apply(before, index, command)
        if self.state.acting != before.acting and self.state.acting is not None:
            by = self.state.acting
            log.info("node %s acts as the coordinator in term %d", short(by.node_id), by.term)
        if before.epoch != self.state.epoch:
            log.info("epoch %d: a new plan is committed", self.state.epoch)
        self.changed.notify()

    def snapshot(self) -> bytes:
        return encode_state(self.state)

    def restore(self, data: bytes) -> Callable[[], None]:
        """Read a state; what is returned adopts it. Raises InvalidValue."""
        try:
            return partial(self.restore_state, decode_state(data))
        except InvalidValue as error:
            raise InvalidValue(
                f"butterfly {__version__} cannot read the state: {error}; "
                "start this node with the version that wrote it, or a newer one"
            ) from error

    def restore_state(self, state: ClusterState) -> None:
        self.state = state
        self.changed.notify()
