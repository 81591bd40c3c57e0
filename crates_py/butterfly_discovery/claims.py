"""Who may found a cluster, where a registry can say so: at most one candidate at a time."""

from dataclasses import dataclass

from butterfly_core.errors import InvalidValue, WorldError

CANDIDATE_CHARACTERS_MAX = 300
CLUSTER_ID_CHARACTERS_MAX = 128


class ClaimUnreadable(WorldError):
    """Something else lies where the claim belongs; a person must look at it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``candidate`` founds; with a ``cluster_id`` it has, and everybody else joins that cluster.

    ``version`` is given by the registry: a claim replaces exactly the version that was read.
    Raises InvalidValue for texts that are empty, too long or not printable ASCII.
    """

    candidate: str
    cluster_id: str | None
    version: int

    def __post_init__(self) -> None:
        _check("candidate", self.candidate, CANDIDATE_CHARACTERS_MAX)
        if self.cluster_id is not None:
            _check("cluster id", self.cluster_id, CLUSTER_ID_CHARACTERS_MAX)
        if self.version < 0:
            raise InvalidValue(f"a claim's version is not negative, as {self.version}")


def _check(what: str, text: str, characters_max: int) -> None:
    if not 1 <= len(text) <= characters_max or not (text.isascii() and text.isprintable()):
        raise InvalidValue(f"a claim's {what} is 1 to {characters_max} printable characters")
