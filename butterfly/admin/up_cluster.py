"""The life of a local cluster: start, watch, show, ask, stay, and leave nothing behind."""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from butterfly.admin.ask import ANSWER_SECONDS_MAX, ask
from butterfly.admin.children import Child, Children
from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.local_s3 import find_rclone, serve_folder
from butterfly.admin.model_reading import embedded_root
from butterfly.admin.model_source import ModelSource, parse_model_source
from butterfly.admin.node_http import NodeHttp, node_at
from butterfly.admin.status_view import console, members_table, summary_lines
from butterfly.admin.units import plain
from butterfly.admin.up_layout import ClusterLayout, NodeLayout, lay_out, without_overrides, write
from butterfly.admin.up_progress import Glimpse, glimpse_of, is_ready, life_of, progress_view
from butterfly_core.errors import ButterflyError, Unreachable

LOOK_EVERY_SECONDS = 0.2
LOOK_SECONDS_MAX = 2.0
LOG_LINES_SHOWN = 15
S3_PORT_BASE = 9000
TOY_QUESTION = "What is the Zen of Python?"
"""One that the toy has learnt by heart."""
QUESTION = "What is a butterfly?"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asked for. Times in seconds."""

    nodes: int
    model: str
    endpoint_url: str | None
    region: str | None
    local_s3: bool
    directory: Path | None
    port_base: int
    http_port_base: int
    question: str | None
    """None for one that suits the model, empty for none."""
    exit_when_ready: bool
    ready_seconds_max: float
    grace_seconds: float
    node_program: tuple[str, ...]


class NotReady(ButterflyError):
    """The cluster did not become ready, or ended; the message tells the story."""


class LocalCluster:
    """One run of ``up``; ``run`` returns the exit code."""

    def __init__(self, wishes: Wishes, screen: Console | None = None) -> None:
        self._wishes = wishes
        self._console = screen or console()
        self._said: set[str] = set()

    def run(self) -> int:
        """Raises UsageError; all else is said on the screen."""
        wished = self._wishes.directory
        model = parse_model_source(
            self._wishes.model, endpoint_url=self._wishes.endpoint_url, region=self._wishes.region
        )
        with _signals_as_interrupts():
            if wished is not None:
                return self._run_guarded(wished.expanduser().resolve(), model)
            directory = Path(tempfile.mkdtemp(prefix="butterfly-up-"))
            code = EXIT_OK
            try:
                code = self._run_guarded(directory, model)
            finally:
                if code == EXIT_OK:  # else the logs in it tell why
                    shutil.rmtree(directory, ignore_errors=True)
            return code

    def _run_guarded(self, directory: Path, model: ModelSource) -> int:
        try:
            with Children(grace_seconds=self._wishes.grace_seconds) as children:
                return self._run_until_stopped(directory, model, children)
        except UsageError:
            raise
        except ButterflyError as error:
            self._say(str(error), style="red")
            return EXIT_FAILED

    def _run_until_stopped(self, directory: Path, model: ModelSource, children: Children) -> int:
        try:
            return self._run_in(directory, model, children)
        except KeyboardInterrupt:
            self._say("stopping; once more to kill at once")
            return EXIT_OK

    def _run_in(self, directory: Path, model: ModelSource, children: Children) -> int:
        keys: Mapping[str, str] = {}
        if self._wishes.local_s3:
            model, keys = self._put_on_s3(children, model, directory)
        layout = lay_out(
            directory,
            model,
            self._wishes.nodes,
            port_base=self._wishes.port_base,
            http_port_base=self._wishes.http_port_base,
            is_free=port_is_free,
        )
        write(layout)
        environ = {**without_overrides(os.environ, layout), **keys}
        self._say(f"starting {len(layout.nodes)} nodes with {model} in {directory}")
        for node in layout.nodes:
            self._say(f"  {node.name} {node.role}: peers {node.address}, HTTP {node.url}")
            command = [*self._wishes.node_program, "--config", str(node.config_path)]
            children.start(node.name, command, node.log_path, environ)
        self._wait_until_ready(layout, children)
        self._show(layout)
        answered = self._ask(layout)
        if not self._wishes.exit_when_ready:
            self._stay(layout, children)
        return EXIT_OK if answered else EXIT_FAILED

    def _put_on_s3(
        self, children: Children, model: ModelSource, directory: Path
    ) -> tuple[ModelSource, Mapping[str, str]]:
        if model.source_type not in ("filesystem", "embedded"):
            raise UsageError(f"--s3 puts a folder on a local server; {model} is on one already")
        find_rclone()
        folder = Path(model.source_path)
        if model.source_type == "embedded":
            folder = embedded_root() / model.source_path
        port = next(p for p in range(S3_PORT_BASE, 65536) if port_is_free(p))
        bucket = serve_folder(children, folder, folder.name, directory, port)
        self._say(f"S3 server on {bucket.model.endpoint_url}, model {bucket.model.source_path}")
        return bucket.model, bucket.environ

    def _wait_until_ready(self, layout: ClusterLayout, children: Children) -> None:
        deadline = time.monotonic() + self._wishes.ready_seconds_max
        with progress_view(self._console, layout.nodes) as view:
            while True:
                glimpses = []
                for node in layout.nodes:
                    glimpse = self._look(node)
                    view.show(node, glimpse)
                    self._say_errors(glimpse)
                    glimpses.append(glimpse)
                if is_ready(glimpses, len(layout.nodes)):
                    return
                if dead := children.dead:
                    raise NotReady("\n".join(map(_obituary, dead)))
                if time.monotonic() > deadline:
                    raise NotReady(_too_late(layout, glimpses, self._wishes.ready_seconds_max))
                time.sleep(LOOK_EVERY_SECONDS)

    def _look(self, node: NodeLayout) -> Glimpse:
        try:
            return glimpse_of(_http(node, LOOK_SECONDS_MAX).status())
        except Unreachable:  # not listening yet
            return Glimpse()

    def _say_errors(self, glimpse: Glimpse) -> None:
        for line in glimpse.errors:
            if line not in self._said:
                self._said.add(line)
                self._say(line, style="red")

    def _show(self, layout: ClusterLayout) -> None:
        status = _http(layout.nodes[0], LOOK_SECONDS_MAX).status()
        for line in summary_lines(status):
            self._say(line)
        self._console.print(members_table(status))

    def _ask(self, layout: ClusterLayout) -> bool:
        """Show one answer; False when none came."""
        question = self._wishes.question
        if question is None:
            question = TOY_QUESTION if layout.model.is_toy else QUESTION
        if not question:
            return True
        serving = [node for node in layout.nodes if self._look(node).is_operational]
        chosen = (serving or layout.nodes)[-1]  # any node answers, not just the first
        if layout.model.is_toy:
            self._say(
                "the model is a toy: it shows that the cluster computes, and has learnt a few "
                "sentences of Python's documentation by heart",
                style="yellow",
            )
        self._say(f"question to {chosen.url}: {question}", style="bold")
        try:
            self._stream(_http(chosen, ANSWER_SECONDS_MAX), question)
        except ButterflyError as error:
            self._say(str(error), style="red")
            return False
        return True

    def _stream(self, node: NodeHttp, question: str) -> None:
        model = node.status().get("model") or {}
        try:
            for piece in ask(node, str(model.get("name")), question):
                self._console.out(plain(piece), end="", highlight=False)
                self._console.file.flush()
        finally:
            self._console.out("")

    def _stay(self, layout: ClusterLayout, children: Children) -> None:
        urls = [node.url for node in layout.nodes]
        self._say(f"status: {urls[0]}/status (any node answers: {', '.join(urls)})")
        self._say(f"OpenAI API: {urls[0]}/v1   logs: {layout.directory}/node-*/node.log")
        self._say("Ctrl-C stops the cluster", style="bold")
        names = {node.name for node in layout.nodes}
        lost: set[str] = set()
        while not names <= lost:
            for child in children.dead:
                if child.name not in lost:
                    lost.add(child.name)
                    self._say(_obituary(child), style="red")
            time.sleep(LOOK_EVERY_SECONDS)
        raise NotReady("no node is left")

    def _say(self, line: str, *, style: str = "") -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)


def port_is_free(port: int) -> bool:
    """True when one can listen on it over loopback."""
    with socket.socket() as probe:
        # as servers do: a port whose last connections only linger is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _http(node: NodeLayout, timeout_seconds: float) -> NodeHttp:
    checked = node_at(node.url)
    return NodeHttp(checked.url, timeout_seconds=timeout_seconds)


def _obituary(child: Child) -> str:
    lines = child.log_tail(LOG_LINES_SHOWN)
    return "\n".join([f"{child.name} {child.ending()}; the end of {child.log_path}:", *lines])


def _too_late(layout: ClusterLayout, glimpses: list[Glimpse], seconds: float) -> str:
    seen = [
        f"  {node.name}: {life_of(glimpse)} {glimpse.waits_for}, log {node.log_path}"
        for node, glimpse in zip(layout.nodes, glimpses, strict=True)
    ]
    return "\n".join([f"not OPERATIONAL after {seconds:.0f} s:", *seen])


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and a closed terminal end the run the way Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]  # a shell's background jobs ignore SIGINT else
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means what it says
        numbers.append(signal.SIGHUP)
    previous = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
