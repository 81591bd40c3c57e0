"""Stages at work together: the `Head`, which owns the requests, and the `Follower`s behind it.

A step's frame goes from stage to stage: its meta is the `StepBatch`, its payload the hidden
states. The last stage answers the head directly with a `TokensMessage`. Several steps are under
way at once, always in order. Frames carry the epoch of their pipeline; those of an older one are
dropped. A pipeline is never mended: when a link or a stage fails, everyone is told once, and a
new epoch makes a new pipeline.
"""

from butterfly_engine.follower import Follower
from butterfly_engine.head import Head

__all__ = ["Follower", "Head"]
