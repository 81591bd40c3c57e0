"""One request inside the scheduler: its tokens, how far they are computed, its blocks."""

from butterfly_core.errors import RequestError
from butterfly_core.generation import FinishReason, GenerationRequest
from butterfly_engine.params import SchedulerLimits


class Sequence:
    """Known tokens are [0, len(tokens)); the first ``scheduled`` of them were given to steps.

    When they are equal, the sequence waits for its next token to come back.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "emitted",
        "ended",
        "request",
        "scheduled",
        "steps_in_flight",
        "stops",
        "tokens",
    )

    def __init__(self, request: GenerationRequest, arrival: int, stops: frozenset[int]) -> None:
        self.request = request
        self.arrival = arrival
        self.stops = stops
        self.tokens = [*request.prompt, *request.emitted]
        self.emitted = len(request.emitted)
        self.scheduled = 0
        self.steps_in_flight = 0
        self.blocks: list[int] = []
        self.ended = False

    @property
    def remaining(self) -> int:
        """Known tokens that no step was given yet."""
        return len(self.tokens) - self.scheduled

    @property
    def in_answer(self) -> bool:
        """The next token to schedule was sampled once: the prompt lies behind it."""
        return self.scheduled >= len(self.request.prompt)

    def chunk(self, tokens_max: int) -> int:
        """How many tokens the next chunk takes; none mixes prompt and answer."""
        prompt_left = len(self.request.prompt) - self.scheduled
        return min(self.remaining if self.in_answer else prompt_left, tokens_max)

    def append(self, token: int, tokens_max: int) -> FinishReason | None:
        """Take the next token; says whether, and why, it is the last one."""
        self.tokens.append(token)
        self.emitted += 1
        if token in self.stops:
            return FinishReason.STOP
        full = len(self.tokens) >= tokens_max
        return FinishReason.LENGTH if full or self.emitted >= self.request.tokens_max else None


def stop_tokens(request: GenerationRequest, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    """What ends this answer: its own stop tokens, and the model's unless it ignores them."""
    own = frozenset(request.stop_token_ids)
    eos = frozenset(eos_token_ids)
    return own - eos if request.ignore_eos else own | eos


def check_request(request: GenerationRequest, limits: SchedulerLimits) -> None:
    """Raises RequestError when no pipeline with these limits can answer the request."""
    known = len(request.prompt) + len(request.emitted)
    if not request.prompt:
        raise RequestError("the prompt has no token; send at least one")
    if request.tokens_max <= len(request.emitted):
        raise RequestError(
            f"max_tokens is {request.tokens_max} and {len(request.emitted)} tokens were already "
            "produced; ask for more"
        )
    if known >= limits.sequence_tokens_max:
        raise RequestError(
            f"the prompt has {known} tokens; with at least one to answer, "
            f"{limits.sequence_tokens_max} fit (context length {limits.context_length}, KV cache "
            f"{limits.kv_blocks * limits.block_size} tokens). Shorten it"
        )
    worst = max(*request.prompt, *request.emitted, 0)
    if worst >= limits.vocab_size or min(*request.prompt, *request.emitted, 0) < 0:
        raise RequestError(f"token ids must be from 0 to {limits.vocab_size - 1}; saw {worst}")
