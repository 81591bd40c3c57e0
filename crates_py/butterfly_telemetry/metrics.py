"""The metrics of one node: a registry of its own, three verbs, and rendering.

Numbers that live elsewhere (queue lengths, raft's term, bytes downloaded) are not pushed: give a
function to ``before_render`` that reads them when somebody asks.
"""

from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from butterfly_core.errors import InvalidValue
from butterfly_telemetry import metric_table as names
from butterfly_telemetry.metric_table import TABLE, Kind, Metric


class Metrics:
    """All metrics of the table, at zero. Not for use from several threads at once."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # untyped there
        self.registry = CollectorRegistry()
        self._made: dict[Metric, Counter | Gauge | Histogram] = {
            metric: _make(metric, self.registry) for metric in TABLE
        }
        self._totals: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._sources: list[Callable[[], None]] = []

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """A gauge's value now."""
        made = self._of(metric, labels)
        if not isinstance(made, Gauge):
            raise InvalidValue(f"{metric.name} is a {metric.kind.value}; it cannot be set")
        made.set(value)

    def add(self, metric: Metric, amount: float = 1.0, *labels: str) -> None:
        """So much more; a counter takes nothing below zero."""
        made = self._of(metric, labels)
        if isinstance(made, Histogram):
            raise InvalidValue(f"{metric.name} is a histogram; it observes")
        made.inc(amount)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One value of a histogram."""
        made = self._of(metric, labels)
        if not isinstance(made, Histogram):
            raise InvalidValue(f"{metric.name} is a {metric.kind.value}; it does not observe")
        made.observe(value)

    def count_up_to(self, metric: Metric, total: float, *labels: str) -> None:
        """Bring a counter to a total that is kept elsewhere.

        A smaller total than last time means that its keeper began anew; it then counts from 0.
        """
        last = self._totals.get((metric, labels), 0.0)
        self._totals[metric, labels] = total
        self.add(metric, total - last if total >= last else total, *labels)

    def one_of(self, metric: Metric, current: str, among: Iterable[str]) -> None:
        """A gauge with one label: 1 for the current value, 0 for the rest."""
        for value in (*among, current):
            self.set(metric, float(value == current), value)

    def forget(self, metric: Metric) -> None:
        """Drop every label of a metric, before setting those that still exist."""
        self._made[metric].clear()

    def before_render(self, read: Callable[[], None]) -> None:
        """Call this each time before the text is made; it sets what it reads."""
        self._sources.append(read)

    def render(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        for read in self._sources:
            read()
        return generate_latest(self.registry)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> Counter | Gauge | Histogram:
        if len(labels) != len(metric.labels):
            raise InvalidValue(f"{metric.name} has the labels {metric.labels}, not {labels}")
        made = self._made[metric]
        return made.labels(*labels) if labels else made


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match metric.kind:
        case Kind.COUNTER:
            return Counter(metric.name, metric.help, metric.labels, registry=registry)
        case Kind.GAUGE:
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)
        case Kind.HISTOGRAM:
            return Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry
            )


class HttpMetrics:
    """Counts what the HTTP face tells it of requests and answers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request of any route, answered or left by its client (499)."""
        self._metrics.add(names.HTTP_REQUESTS, 1, route, method, str(status))
        self._metrics.observe(names.HTTP_DURATION, seconds, route)

    def answer_started(self) -> None:
        """A model's answer is under way."""
        self._metrics.add(names.ANSWERS_OPEN, 1)

    def first_token(self, seconds: float) -> None:
        """Its first token came."""
        self._metrics.observe(names.FIRST_TOKEN, seconds)

    def answer_ended(self, finish: str, prompt_tokens: int, generated_tokens: int) -> None:
        """It ended: ``stop``, ``length``, ``error`` or ``cancelled``."""
        self._metrics.add(names.ANSWERS_OPEN, -1)
        self._metrics.add(names.ANSWERS, 1, finish)
        self._metrics.add(names.PROMPT_TOKENS, prompt_tokens)
        self._metrics.add(names.GENERATED_TOKENS, generated_tokens)
