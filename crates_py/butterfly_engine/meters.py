"""What a stage has done so far, in numbers that only rise; read from any thread."""

import threading
from collections.abc import Mapping

from butterfly_engine.batch import StepBatch


class Meters:
    """Counts of one stage; a step without prompt chunks counts as a decode step too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, float] = dict.fromkeys(
            (
                "steps_total",
                "step_seconds_total",
                "decode_steps_total",
                "decode_step_seconds_total",
                "tokens_computed_total",
                "tokens_sampled_total",
                "frames_dropped_total",
            ),
            0,
        )

    def step_done(self, batch: StepBatch, seconds: float) -> None:
        totals = self._totals
        with self._lock:
            totals["steps_total"] += 1
            totals["step_seconds_total"] += seconds
            totals["tokens_computed_total"] += len(batch.token_ids)
            totals["tokens_sampled_total"] += batch.sampled_count
            if len(batch.token_ids) == len(batch.sequences):
                totals["decode_steps_total"] += 1
                totals["decode_step_seconds_total"] += seconds

    def frame_dropped(self) -> None:
        with self._lock:
            self._totals["frames_dropped_total"] += 1

    def totals(self) -> Mapping[str, float]:
        with self._lock:
            return dict(self._totals)
