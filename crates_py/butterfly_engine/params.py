"""The limits one scheduler keeps, checked once."""

from dataclasses import dataclass

from butterfly_core.errors import InvalidValue

_AT_LEAST_ONE = (
    "kv_blocks",
    "block_size",
    "token_budget",
    "groups",
    "sequences_max",
    "waiting_max",
    "context_length",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Raises InvalidValue when a limit is no limit.

    ``token_budget`` is per step. ``groups`` is how many steps may be in the pipeline at once,
    one for each stage. ``waiting_max`` is how many requests may wait for their first step.
    """

    kv_blocks: int
    block_size: int = 16
    token_budget: int = 512
    groups: int = 1
    sequences_max: int = 64
    waiting_max: int = 256
    context_length: int = 1 << 30
    vocab_size: int = 1 << 31
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name} is {getattr(self, name)}; it must be 1 or more")

    @property
    def sequence_tokens_max(self) -> int:
        """How long prompt and answer together may become."""
        return min(self.context_length, self.kv_blocks * self.block_size)
