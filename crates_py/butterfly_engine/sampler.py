"""From logits to token ids, for a whole batch at once.

A token is drawn by inverting the cumulative distribution, in vocabulary order, at one uniform
number keyed by (request seed, position of the token). Each row is treated by its own parameters
alone, so the same seed, position and logits give the same token in whatever batch.

Order of filters as in transformers and vLLM: temperature, top_k, top_p. Tokens tied with the
last one kept are kept too, so a filter never depends on the order in which ties are sorted.
"""

from collections.abc import Sequence

import torch

from butterfly_core.generation import SamplingParams
from butterfly_engine.counter_random import uniform

GREEDY_BELOW = 1e-5
_TOP_P_CANDIDATES = 1024


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]
) -> torch.Tensor:
    """Choose a token for each row of ``logits`` [rows, vocabulary]; ids [rows], int64, its device.

    ``positions`` are those the new tokens will have in their sequences.
    """
    if all(one.temperature < GREEDY_BELOW for one in params):
        return logits.argmax(dim=-1)
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, one in enumerate(params) if one.temperature >= GREEDY_BELOW]
    rows = torch.tensor(drawn, device=logits.device)
    of_rows = [params[row] for row in drawn]
    kept = _filtered(_tempered(logits[rows], of_rows), of_rows)
    at = [uniform(params[row].seed, positions[row]) for row in drawn]
    chosen[rows] = _invert(kept, torch.tensor(at, dtype=torch.float64, device=logits.device))
    return chosen


def _tempered(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    temperatures = torch.tensor([one.temperature for one in params], device=logits.device)
    return logits.float() / temperatures[:, None]


def _filtered(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Probabilities [rows, vocabulary] with what top_k and top_p cut off set to 0; not normed."""
    vocabulary = logits.shape[1]
    limited = [row for row, one in enumerate(params) if 0 < one.top_k < vocabulary]
    if limited:
        rows = torch.tensor(limited, device=logits.device)
        ranks = torch.tensor([params[row].top_k for row in limited], device=logits.device)
        best = logits[rows].topk(int(ranks.max()), dim=-1).values
        floor = best.gather(1, ranks[:, None] - 1)
        logits[rows] = logits[rows].masked_fill(logits[rows] < floor, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    nucleus = [row for row, one in enumerate(params) if one.top_p < 1.0]
    if nucleus:
        rows = torch.tensor(nucleus, device=logits.device)
        mass = torch.tensor([params[row].top_p for row in nucleus], device=logits.device)
        some = probabilities[rows]
        probabilities[rows] = some.masked_fill(some < _nucleus_floor(some, mass)[:, None], 0.0)
    return probabilities


def _nucleus_floor(probabilities: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The smallest probability in each row's smallest set whose sum reaches ``mass``; [rows].

    Nearly always the set lies among the first thousand; only rows where it does not are sorted.
    """
    candidates = min(_TOP_P_CANDIDATES, probabilities.shape[1])
    ordered = probabilities.topk(candidates, dim=-1).values
    cumulative = ordered.cumsum(dim=-1)
    last = (cumulative < mass[:, None]).sum(dim=-1).clamp(max=candidates - 1)
    floor = ordered.gather(1, last[:, None])[:, 0]
    short = (cumulative[:, -1] < mass).nonzero()[:, 0]
    if candidates < probabilities.shape[1] and short.numel():
        ordered = probabilities[short].sort(dim=-1, descending=True).values
        cumulative = ordered.cumsum(dim=-1)
        last = (cumulative < mass[short, None]).sum(dim=-1).clamp(max=ordered.shape[1] - 1)
        floor[short] = ordered.gather(1, last[:, None])[:, 0]
    return floor


def _invert(weights: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative weight exceeds ``at`` (in [0, 1)) of the row's total.

    The target stays below the total, whatever rounding does: a token of weight 0 is never taken.
    """
    cumulative = weights.double().cumsum(dim=-1)
    total = cumulative[:, -1]
    target = torch.minimum(at * total, total.nextafter(torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return found.clamp(max=weights.shape[1] - 1)  # only for rows that are not numbers
