"""Watches every node of a cluster from outside while things break, and keeps clients asking.

``Eyes`` looks at each node several times a second and keeps what it saw; ``broken_promises``
says which of the promises that hold at every moment did not. ``Clients`` ask again and again
and keep every answer.
"""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.local_cluster import LocalNode

LOOK_SECONDS = 0.1
_ANSWER_SECONDS = 1.0


@dataclass(frozen=True)
class Seen:
    """One look at one node: ``at`` is when the answer had come, on the monotonic clock."""

    at: float
    node: str
    node_id: str
    cluster_id: str | None
    state: str
    epoch: int
    term: int
    coordinator: str | None
    admits: bool
    reason: str


class Eyes:
    """Use as a context manager."""

    def __init__(self, nodes: Sequence[LocalNode]) -> None:
        self._nodes = nodes
        self.seen: list[Seen] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(node,), daemon=True) for node in nodes
        ]

    def __enter__(self) -> "Eyes":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, node: LocalNode) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            status, readiness = _get(node, "/status"), _get(node, "/readiness")
            if status is None or readiness is None:
                continue
            self.seen.append(
                Seen(
                    time.monotonic(),
                    node.name,
                    status["node_id"],
                    status["cluster_id"],
                    status["state"],
                    status["epoch"],
                    status["term"],
                    status["coordinator"],
                    bool(readiness["ready"]),
                    json.dumps(readiness),
                )
            )

    def of(self, node: LocalNode, *, since: float = 0.0) -> list[Seen]:
        return [seen for seen in list(self.seen) if seen.node == node.name and seen.at >= since]

    def last_admitted(self, node: LocalNode, *, since: float) -> float:
        """Seconds after ``since`` at which it was last seen to admit requests; 0 for never."""
        return max(
            (seen.at - since for seen in self.of(node, since=since) if seen.admits), default=0
        )

    def broken_promises(self) -> list[str]:
        """What may never be: two clusters, two coordinators in a term, an epoch that goes back."""
        seen = sorted(self.seen, key=lambda look: look.at)
        broken = []
        clusters = {look.cluster_id for look in seen} - {None}
        if len(clusters) > 1:
            broken.append(f"two clusters: {clusters}")
        believed: dict[int, str] = {}
        for look in seen:
            if look.coordinator == look.node_id:
                first = believed.setdefault(look.term, look.node_id)
                if first != look.node_id:
                    broken.append(f"two coordinators in term {look.term}")
        newest: dict[str, int] = {}
        for look in seen:
            if look.epoch < newest.get(look.node, 0) and look.epoch > 0:
                broken.append(
                    f"{look.node} went back from epoch {newest[look.node]} to {look.epoch}"
                )
            newest[look.node] = max(newest.get(look.node, 0), look.epoch)
        return broken


@dataclass(frozen=True)
class Answer:
    """What became of one request: 200 and the text, another code and why, or 0 for no answer."""

    node: str
    began: float
    ended: float
    code: int
    text: str


class Clients:
    """One client for each node asks the same again and again; use as a context manager."""

    def __init__(self, nodes: Sequence[LocalNode], body: Mapping[str, Any]) -> None:
        self._body = json.dumps(dict(body)).encode()
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(node,), daemon=True) for node in nodes
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def good(self, *, since: float = 0.0) -> list[Answer]:
        """Whole answers to requests that began since then."""
        return [one for one in list(self.answers) if one.code == 200 and one.began >= since]

    def _ask_on(self, node: LocalNode) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            code, text = ask(node, self._body)
            self.answers.append(Answer(node.name, began, time.monotonic(), code, text))
            if code != 200:
                self._stop.wait(0.2)


def ask(node: LocalNode, body: bytes, timeout_seconds: float = 90.0) -> tuple[int, str]:
    """The code and the completion's text, or why there is none."""
    asked = urllib.request.Request(
        f"{node.url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=timeout_seconds) as answer:
            return answer.status, str(json.load(answer)["choices"][0]["text"])
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)


def _get(node: LocalNode, path: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(node.url + path, timeout=_ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        body: dict[str, Any] = json.loads(error.read() or b"{}")
        return body
    except (OSError, ValueError):
        return None
