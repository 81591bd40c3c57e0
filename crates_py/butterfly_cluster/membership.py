"""Who votes: the changes of the voter set as log commands, and how they add up. Pure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from butterfly_core.errors import InvalidValue
from butterfly_core.ids import NodeId, parse_node_id

REGULAR, NO_OP, MEMBERSHIP = 0, 1, 2
"""First byte of a command: what it is. No other value is accepted from anybody."""

Operation = Literal["add", "rem"]


@dataclass(frozen=True, slots=True)
class VoterChange:
    """One voter more or one less."""

    operation: Operation
    node_id: NodeId

    def encode(self) -> bytes:
        """The command's body, without its first byte."""
        return json.dumps({"op": self.operation, "id": self.node_id}, sort_keys=True).encode()


def parse_voter_change(command: bytes) -> VoterChange | None:
    """Read a whole command; None when it is of another kind. Raises InvalidValue."""
    if command[:1] != bytes([MEMBERSHIP]):
        return None
    try:
        body = json.loads(command[1:])
        operation, node_id = body["op"], body["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValue(f"not a change of voters: {command[1:80]!r}") from error
    if operation not in ("add", "rem") or not isinstance(node_id, str) or len(body) != 2:
        raise InvalidValue(f"not a change of voters: {command[1:80]!r}")
    return VoterChange(operation, parse_node_id(node_id))


def changed(voters: frozenset[NodeId], change: VoterChange) -> frozenset[NodeId]:
    """The voter set after one change."""
    if change.operation == "add":
        return voters | {change.node_id}
    return voters - {change.node_id}


def fold_voters(voters: frozenset[NodeId], commands: Iterable[bytes]) -> frozenset[NodeId]:
    """The voter set after all commands of a log, those that change nothing included."""
    for command in commands:
        change = parse_voter_change(command)
        if change is not None:
            voters = changed(voters, change)
    return voters
