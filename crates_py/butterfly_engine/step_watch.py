"""Whether the steps of a pipeline still come back; pure, the caller says what time it is."""


class StepWatch:
    """Steps come back in the order in which they began, so one stuck stage stops them all.

    A step's own age would say less: it grows with every stage of a slow but healthy pipeline.
    What counts is how long nothing came back while something was under way.
    """

    def __init__(self, seconds_max: float) -> None:
        self.seconds_max = seconds_max
        self._under_way: dict[int, float] = {}
        self._last_return = 0.0

    def begun(self, step_id: int, now: float) -> None:
        self._under_way[step_id] = now

    def ended(self, step_id: int, now: float) -> None:
        self._under_way.pop(step_id, None)
        self._last_return = now

    def stuck(self, now: float) -> str | None:
        """What is stuck, in words; None while all is well."""
        oldest = next(iter(self._under_way.items()), None)
        if oldest is None:
            return None
        step_id, began = oldest
        silent = now - max(began, self._last_return)
        if silent <= self.seconds_max:
            return None
        return (
            f"step {step_id} has been under way for {now - began:.1f} s and nothing came back for "
            f"{silent:.1f} s (limit {self.seconds_max:g} s); one of the stages hangs, or is far "
            "slower than planned"
        )
