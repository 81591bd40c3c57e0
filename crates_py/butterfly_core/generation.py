"""What one asks of a model, and what comes back, in token ids."""

from dataclasses import dataclass, field
from enum import Enum

from butterfly_core.errors import RequestError


class FinishReason(Enum):
    """Why an answer ended; the values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; names and ranges as in OpenAI's API and vLLM.

    ``temperature`` 0 is greedy. ``top_k`` 0 is off. Sampling is counter-based on
    (seed, position of the token in the sequence), so an answer can be continued elsewhere.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise RequestError(f"temperature is {self.temperature}; it must be from 0 to 2")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p is {self.top_p}; it must be above 0, and 1 at most")
        if not 0 <= self.top_k <= 1_000_000:
            raise RequestError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 <= self.seed < 1 << 63:
            raise RequestError(f"seed is {self.seed}; it must be from 0 to 2**63 - 1")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to continue.

    ``prompt`` + ``emitted`` are the tokens known so far: ``emitted`` is what an earlier pipeline
    already produced of this answer (empty at first). ``tokens_max`` counts emitted ones too.
    """

    request_id: str
    prompt: tuple[int, ...]
    tokens_max: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    emitted: tuple[int, ...] = ()
    model: str = ""
    """The ``ModelSpec.identity`` whose token ids these are; empty: of whatever serves."""


@dataclass(frozen=True, slots=True)
class TokensEmitted:
    """New tokens of one request; ``finish`` is set with the last ones."""

    request_id: str
    token_ids: tuple[int, ...]
    finish: FinishReason | None = None
    error: str | None = None
