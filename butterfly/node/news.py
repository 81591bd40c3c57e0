"""Everybody's newest report, and what of it a caller has not seen yet. Pure."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from butterfly_core.ids import NodeId

NEWS_MAX: Final = 50
"""Reports in one answer; the rest comes with the next ones."""


class News:
    """Counts versions: each change of a report gets the next number.

    ``run`` names this count; a caller that followed another one begins anew.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self._version = 0
        self._reports: dict[NodeId, Mapping[str, Any]] = {}
        self._changed_at: dict[NodeId, int] = {}

    @property
    def reports(self) -> Mapping[NodeId, Mapping[str, Any]]:
        """By node, as ``Report`` has it."""
        return self._reports

    def note(self, node: NodeId, report: Mapping[str, Any]) -> None:
        """A node says this now; what it said before says it no more."""
        if self._reports.get(node) == report:
            return
        self._version += 1
        self._reports[node] = report
        self._changed_at.pop(node, None)
        self._changed_at[node] = self._version  # the dict stays in the order of the versions

    def keep(self, nodes: Collection[NodeId]) -> None:
        """Forget what all others said."""
        for node in [node for node in self._reports if node not in nodes]:
            del self._reports[node], self._changed_at[node]

    def answer(self, run: object, version: object) -> dict[str, Any]:
        """What changed since a version of a run: the oldest news first, NEWS_MAX at most."""
        known = version if run == self.run and isinstance(version, int) else 0
        told = dict(self._since(known))
        whole = len(told) < NEWS_MAX
        upto = self._version if whole else max(self._changed_at[node] for node in told)
        return {"run": self.run, "version": upto, "reports": told}

    def _since(self, version: int) -> Iterator[tuple[NodeId, Mapping[str, Any]]]:
        waiting = (node for node, changed in self._changed_at.items() if changed > version)
        for node, _ in zip(waiting, range(NEWS_MAX), strict=False):
            yield node, self._reports[node]
