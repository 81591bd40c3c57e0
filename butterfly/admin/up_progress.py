"""Shows how each node of a starting cluster comes along: bars on a terminal, else lines.

``Glimpse`` is what one look at one node's /status tells; it is made by a pure function.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from butterfly.admin.status_view import error_lines, members_of, moved_text
from butterfly.admin.units import plain
from butterfly.admin.up_layout import NodeLayout

LINE_EVERY_SECONDS = 5.0
OPERATIONAL = "OPERATIONAL"
NOT_ADMITTING = "not_admitting"


@dataclass(frozen=True, slots=True)
class Glimpse:
    """One node at one moment."""

    state: str = "starting"
    phase: str = "starting"
    percent: float = 0.0
    moved: str = "-"
    cluster_size: int = 0
    errors: tuple[str, ...] = ()
    waits_for: str = ""
    """Why it does not answer yet; no error while a cluster starts."""
    all_operational: bool = False
    """This node, and as far as it knows every member that carries layers."""

    @property
    def is_operational(self) -> bool:
        return self.state == OPERATIONAL


def glimpse_of(status: Mapping[str, Any]) -> Glimpse:
    """What a node says of itself; odd or missing fields become the defaults."""
    percent, size = status.get("progress_percent"), status.get("cluster_size")
    members = members_of(status)
    me = next((m for m in members if m.get("node_id") == status.get("node_id")), {})
    state = plain(status.get("state"))
    lines = error_lines(status)
    carriers = [member for member in members if member.get("layers")]
    return Glimpse(
        state=state,
        phase=plain(status.get("phase")),
        percent=_whole(percent),
        moved=moved_text(me),
        cluster_size=size if isinstance(size, int) else 0,
        errors=tuple(line for line in lines if not line.startswith(NOT_ADMITTING)),
        waits_for=next((line for line in lines if line.startswith(NOT_ADMITTING)), ""),
        all_operational=state == OPERATIONAL
        and all(member.get("state") == OPERATIONAL for member in carriers),
    )


def _whole(percent: object) -> float:
    """Rounded down: only what is whole shows 100 %."""
    if not isinstance(percent, int | float) or not math.isfinite(percent):
        return 0.0
    return float(math.floor(percent))


def life_of(glimpse: Glimpse) -> str:
    if glimpse.state == glimpse.phase:
        return glimpse.state
    return f"{glimpse.state} {glimpse.phase} {glimpse.percent:.0f} %"


def is_ready(glimpses: Sequence[Glimpse], count: int) -> bool:
    """True when all nodes joined, and one that serves sees all holders of layers serve."""
    if len(glimpses) < count or any(glimpse.cluster_size < count for glimpse in glimpses):
        return False
    return any(glimpse.all_operational for glimpse in glimpses)


class ProgressView(Protocol):
    """Where progress is shown; use it in a ``with`` block."""

    def show(self, node: NodeLayout, glimpse: Glimpse) -> None: ...

    def __enter__(self) -> "ProgressView": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def progress_view(console: Console, nodes: Sequence[NodeLayout]) -> ProgressView:
    """Bars for a person at a terminal, lines for a log."""
    return Bars(console, nodes) if console.is_terminal else Lines(console)


class Bars:
    """One bar per node."""

    def __init__(self, console: Console, nodes: Sequence[NodeLayout]) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[phase]}", markup=False),
            TextColumn("{task.fields[moved]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            node.name: self._progress.add_task(
                f"{node.name} {node.role}", total=100, phase="starting", moved=""
            )
            for node in nodes
        }

    def show(self, node: NodeLayout, glimpse: Glimpse) -> None:
        self._progress.update(
            self._tasks[node.name],
            completed=glimpse.percent,
            phase=glimpse.phase,
            moved="" if glimpse.moved == "-" else glimpse.moved,
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


class Lines:
    """A line per node when its phase changes, and now and then while it does not."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[str, float]] = {}

    def show(self, node: NodeLayout, glimpse: Glimpse) -> None:
        phase, shown_at = self._shown.get(node.name, ("", 0.0))
        now = time.monotonic()
        if phase == glimpse.phase and (
            glimpse.is_operational or now - shown_at < LINE_EVERY_SECONDS
        ):
            return
        self._shown[node.name] = (glimpse.phase, now)
        self._console.print(
            f"{node.name} {node.role}: {life_of(glimpse)} {glimpse.moved}".rstrip(" -"),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return
