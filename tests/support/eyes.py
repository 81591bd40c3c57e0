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
_SLACK_SECONDS = 0.1
"""A packet that passed just before a cut is read a moment after it."""
_FRESH_SECONDS = 3.0
_HTTP_SLACK_SECONDS = 1.0
"""Connecting, answering and reading, on a machine that runs five nodes and their engines."""


@dataclass(frozen=True)
class Seen:
    """One look at one node, on the monotonic clock.

    ``asked`` is just before the question whether it admits requests, ``at`` when all answers had
    come: what it says was so at a moment between the two.
    """

    asked: float
    at: float
    node: str
    process_id: int
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
            process = node.process
            status, asked = _get(node, "/status"), time.monotonic()
            readiness = _get(node, "/readiness")
            if status is None or readiness is None or process is None:
                continue
            if node.process is not process:
                continue  # it was started again meanwhile
            self.seen.append(
                Seen(
                    asked,
                    time.monotonic(),
                    node.name,
                    process.pid,
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
        """Seconds after ``since`` at which it surely still admitted requests; 0 for never."""
        return max(
            (seen.asked - since for seen in self.of(node, since=since) if seen.admits), default=0
        )

    def refusals(self, node: LocalNode, *, since: float) -> list[Seen]:
        """The looks at which it did not."""
        return [seen for seen in self.of(node, since=since) if not seen.admits]

    def broken_promises(self) -> list[str]:
        """What may never be: two clusters, two coordinators in a term, an epoch that goes back.

        A node that starts again knows at first only what it knew to be committed, which may be
        older than what it showed before.
        """
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
        newest: dict[int, int] = {}
        for look in seen:
            before = newest.get(look.process_id, 0)
            if 0 < look.epoch < before:
                broken.append(f"{look.node} went back from epoch {before} to {look.epoch}")
            newest[look.process_id] = max(before, look.epoch)
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

    def answering(self, *, since: float) -> set[str]:
        """Which nodes answered what they were asked since then."""
        return {answer.node for answer in self.good(since=since)}

    def _ask_on(self, node: LocalNode) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            code, text = ask(node, self._body)
            self.answers.append(Answer(node.name, began, time.monotonic(), code, text))
            if code != 200:
                self._stop.wait(0.2)


class UnderWay:
    """One long answer that a thread of its own waits for."""

    def __init__(self, node: LocalNode, body: Mapping[str, Any]) -> None:
        self._node, self._body = node, json.dumps(dict(body)).encode()
        self._answers: list[tuple[float, int, str]] = []
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        code, text = ask(self._node, self._body)
        self._answers.append((time.monotonic(), code, text))

    def answer(self) -> tuple[float, int, str]:
        """Wait for it: when it ended, the code, the text."""
        self._thread.join()
        return self._answers[0]


def refuses_in_time(eyes: Eyes, node: LocalNode, *, cut_at: float, lease_seconds: float) -> None:
    """It was seen to refuse for want of a majority, and never to admit after the lease."""
    reasons = [seen.reason for seen in eyes.refusals(node, since=cut_at)]
    assert reasons
    assert any("in a minority" in reason and "voters" in reason for reason in reasons), reasons
    assert eyes.last_admitted(node, since=cut_at) <= lease_seconds + _SLACK_SECONDS


def nothing_fresh_at(node: LocalNode) -> None:
    """``/status?fresh=1`` is 503 with the reason, in the time that is promised."""
    asked = time.monotonic()
    code, body = node.get("/status?fresh=1")
    assert time.monotonic() - asked <= _FRESH_SECONDS + _HTTP_SLACK_SECONDS
    assert code == 503, body
    assert "nothing fresh can be read here" in json.dumps(body)
    assert "in a minority" in json.dumps(body)


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
