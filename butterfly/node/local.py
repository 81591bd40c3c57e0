"""What a node knows of itself beside the log: its life, its facts, its progress, its problems.

One mutable object on one event loop. Everything that watches (status, metrics, readiness)
reads from here and from the replica; nothing is pushed.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from butterfly.channel import Progressed
from butterfly.node.pulse import Pulse
from butterfly_cluster.lifecycle import Node, NodeState, Phase
from butterfly_cluster.node_duties import Facts
from butterfly_weights.estimating import NOTHING, Estimate, Estimator
from butterfly_weights.signed import Signed

EVENTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person should know now; it goes when it is over."""

    code: str
    message: str
    file: str | None = None
    tensor: str | None = None


@dataclass(slots=True)
class Local:
    """``changed`` pulses when anything here that others wait for has changed."""

    facts: Facts
    node: Node = field(default_factory=Node)
    phase: Phase = Phase.COLD_START
    progress: Progressed | None = None
    offer_progress: Progressed | None = None
    """Of a model that is loaded beside the present one."""
    problems: dict[str, Problem] = field(default_factory=dict)
    changed: Pulse = field(default_factory=Pulse)
    started_at: float = field(default_factory=time.monotonic)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    bytes_from_source_total: int = 0
    bytes_from_cache_total: int = 0
    bytes_from_peers_total: int = 0
    verification_failures_total: int = 0
    cache_scrubbed_bytes_total: int = 0
    cache_rotten_total: int = 0
    engine_statistics: Mapping[str, int] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    """What was mended while loading, for people; the newest last."""
    signed: Signed | None = None
    """Of the model as this node read it last."""
    _estimator: Estimator = field(default_factory=Estimator)
    _phase_since: float = field(default_factory=time.monotonic)

    def set_facts(self, **changes: object) -> None:
        """Replace some facts, and wake who waits for them."""
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type] # names are checked
        self.changed.notify()

    def enter(self, phase: Phase) -> None:
        """Note the phase, and how long the one before it took."""
        if phase is self.phase:
            return
        now = time.monotonic()
        spent = self.phase_seconds.get(self.phase.value, 0.0)
        self.phase_seconds[self.phase.value] = spent + now - self._phase_since
        self._phase_since = now
        self.phase = phase
        if phase is Phase.SERVING and "total" not in self.phase_seconds:
            self.phase_seconds["total"] = now - self.started_at
        self.changed.notify()

    def report(self, problem: Problem) -> bool:
        """Add or replace a problem; True when it is news."""
        news = self.problems.get(problem.code) != problem
        self.problems[problem.code] = problem
        return news

    def solved(self, code: str) -> None:
        self.problems.pop(code, None)

    @property
    def bytes_from_source(self) -> int:
        """Weight bytes fetched since the start, the present load's too."""
        return self.bytes_from_source_total + (
            self.progress.bytes_from_source if self._is_loading and self.progress else 0
        )

    @property
    def bytes_from_cache(self) -> int:
        """Weight bytes read from the disk cache since the start, the present load's too."""
        return self.bytes_from_cache_total + (
            self.progress.bytes_from_cache if self._is_loading and self.progress else 0
        )

    @property
    def bytes_from_peers(self) -> int:
        """Weight bytes that other nodes gave since the start, the present load's too."""
        return self.bytes_from_peers_total + (
            self.progress.bytes_from_peers if self._is_loading and self.progress else 0
        )

    @property
    def _is_loading(self) -> bool:
        return self.phase is Phase.LOADING_WEIGHTS

    @property
    def draining(self) -> bool:
        """True once the node was asked to leave."""
        return self.facts.draining

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self.started_at

    def take_progress(self, progress: Progressed | None) -> None:
        """What the engine says of the present load; None begins another one."""
        if progress is None or self.progress is None or progress.epoch != self.progress.epoch:
            self._estimator = Estimator()
        self.progress = progress
        if progress is not None:
            done, total = progress.bytes_done, progress.bytes_total
            self._estimator.note(time.monotonic(), done, total)

    @property
    def load(self) -> Estimate:
        """Of the present load; nothing before it, all of it once the weights are here."""
        now = self._estimator.now(time.monotonic())
        if self.node.state in (NodeState.READY, NodeState.OPERATIONAL):
            return replace(now, percent=100.0, bytes_per_second=None, eta_seconds=0.0)
        begun = self.progress is not None and self.progress.epoch == self.node.epoch
        return now if begun and self.node.state is NodeState.LOADING else NOTHING

    @property
    def progress_percent(self) -> float:
        """Of the present load; 0 before it, 100 once the weights are here."""
        return self.load.percent

    @property
    def eta_seconds(self) -> float | None:
        """Until the present load ends, at its rate of late; None when that is unknown."""
        eta = self.load.eta_seconds
        return None if eta is None else round(eta, 1)
