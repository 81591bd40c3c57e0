"""Randomness without state: a number that depends on (seed, position) alone.

SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014):
the finaliser is applied to the seed, then to that plus position + 1 steps of the golden gamma.
So an answer can be continued on another pipeline, in another batch, and stays the same.
"""

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def _finalise(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for one token of one sequence."""
    stream = _finalise((seed + _GOLDEN_GAMMA) & _MASK)
    bits = _finalise((stream + (position + 1) * _GOLDEN_GAMMA) & _MASK)
    return (bits >> 11) / (1 << 53)
