"""The engine process's one object: takes the node's messages and keeps what they ask for.

One epoch at a time. Messages come in on one thread, which waits for nothing; loads and what ends
them run one after the other on threads of their own, and so does the pipeline; whatever they tell
the node goes out under one lock. A message about an older epoch changes nothing.
"""

import logging
import threading
from collections.abc import Callable
from socket import socket
from typing import assert_never

from butterfly.channel import (
    Cancel,
    Drop,
    Emitted,
    EngineSettings,
    FromEngine,
    GiveUp,
    Link,
    LinkLost,
    Load,
    Prepare,
    Preparing,
    Statistics,
    Submit,
    ToEngine,
    WarmedUp,
    WarmUp,
)
from butterfly.engine_host.hops import link_of
from butterfly.engine_host.loading import Weights
from butterfly.engine_host.node_channel import BlockingChannel
from butterfly.engine_host.peer_links import PeerHub
from butterfly.engine_host.pipeline import Pipeline, build_stage, retire, warm_up
from butterfly.engine_host.telling import load_failed, loaded, loading, passed, refusal
from butterfly.handover import decode_checkpoint
from butterfly.peer_messages import PeerLink, PeersOpened, WantPeers
from butterfly_core.errors import ButterflyError, EngineLost
from butterfly_core.generation import FinishReason, TokensEmitted
from butterfly_engine.stage import Stage
from butterfly_weights.loader import LoadResult
from butterfly_wire.datalink import DataLink

log = logging.getLogger(__name__)

STATISTICS_SECONDS = 1.0
STOP_SECONDS = 30.0
_CLOSE_SECONDS = 1.0


class Host:
    """See the module. ``close`` ends every thread it started."""

    def __init__(self, channel: BlockingChannel, settings: EngineSettings, device: str) -> None:
        self._channel = channel
        self._settings = settings
        self._device = device
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._peers = PeerHub(lambda turn: self.send(WantPeers(turn)))
        self._weights = Weights(self._peers, device, settings.verify_device)
        self._epoch = 0
        self._cancelled = threading.Event()
        self._given_up = threading.Event()
        self._working: threading.Thread | None = None
        self._pipeline: Pipeline | None = None
        self._early_links: list[tuple[Link, DataLink]] = []
        self._closing = threading.Event()

    def send(self, message: FromEngine) -> None:
        """Tell the node. Without a node this does nothing: the receiving thread ends then."""
        try:
            with self._sending:
                self._channel.send(message)
        except OSError as error:
            log.info("the node is gone: %s", error)

    def run(self) -> None:
        """Until the node closes the channel: raises EngineLost then."""
        self._in_thread("statistics", self._tell_statistics)
        while True:
            message, connected = self._channel.receive()
            self._take(message, connected)

    def close(self) -> None:
        """End what runs, and let the cache write what it holds unless a load still uses it."""
        self._closing.set()
        self._stop()
        self._peers.close()
        if self._working is not None:
            self._working.join(_CLOSE_SECONDS)
        if self._working is None or not self._working.is_alive():
            self._weights.close()

    def _take(self, message: ToEngine, connected: socket | None) -> None:
        match message:
            case Load() | Prepare() | GiveUp() | Drop():
                self._take_order(message)
            case Link():
                assert connected is not None
                self._connect(message, connected)
            case PeerLink():
                assert connected is not None
                self._peers.take(message, connected)
            case PeersOpened(turn=turn):
                self._peers.complete(turn)
            case WarmUp():
                self._in_thread("warm-up", lambda: self._warm_up(message))
            case Submit():
                self._submit(message)
            case Cancel(request_id=request_id):
                if self._pipeline is not None:
                    self._pipeline.cancel(request_id)
            case _:
                assert_never(message)

    def _take_order(self, order: Load | Prepare | GiveUp | Drop) -> None:
        """What is to be held from now on; one after the other."""
        match order:
            case Load():
                self._begin(order)
            case Prepare():
                self._begin_to_prepare(order)
            case GiveUp():
                self._given_up.set()
                self._then("give up", self._weights.give_up, patience_seconds=None)
            case Drop():
                self._stop()
                self._then("drop", self._weights.drop)
            case _:
                assert_never(order)

    def _begin(self, order: Load) -> None:
        self._stop()
        self._epoch = order.epoch
        cancelled = self._cancelled = threading.Event()
        self._then("load", lambda: self._load(order, cancelled))

    def _stop(self) -> None:
        """Let the load and the pipeline of the present epoch end; ``_then`` waits for them."""
        with self._lock:
            self._cancelled.set()
            self._given_up.set()
            pipeline, self._pipeline = self._pipeline, None
            early, self._early_links = self._early_links, []
        for _, link in early:
            link.close()
        if pipeline is not None:
            self._then("stop", lambda: retire(pipeline, STOP_SECONDS / 2))

    def _then(
        self, name: str, work: Callable[[], None], patience_seconds: float | None = STOP_SECONDS
    ) -> None:
        """Do the work on a thread of its own, as soon as what was begun before has ended.

        If that does not end, a device or a source hangs, and only a new process helps: the
        error ends this one. What is beside a pipeline that works waits without an end.
        """
        before = self._working

        def run() -> None:
            if before is not None:
                before.join(patience_seconds)
                if before.is_alive():
                    raise EngineLost(f"'{before.name}' did not end within {patience_seconds} s")
            work()

        self._working = self._in_thread(name, run)

    def _load(self, order: Load, cancelled: threading.Event) -> None:
        if cancelled.is_set():
            return
        try:
            outcome = self._weights.load(
                order,
                on_progress=lambda progress: self.send(loading(order.epoch, progress)),
                cancelled=cancelled.is_set,
            )
            stage = self._make_stage(order, outcome, cancelled)
            pipeline = self._make_pipeline(order, stage) if stage is not None else None
        except Exception as error:  # noqa: BLE001 - whatever it is, the node must hear of it
            if not cancelled.is_set():
                self.send(load_failed(order.epoch, error))
            return
        if pipeline is not None and self._install(pipeline, cancelled):
            self.send(loaded(order.epoch, self._weights.part_digests, outcome))

    def _begin_to_prepare(self, order: Prepare) -> None:
        """Beside the pipeline, which goes on. Whatever ends the present epoch ends this too."""
        self._given_up.set()
        given_up = self._given_up = threading.Event()
        self._then("prepare", lambda: self._prepare(order, given_up), patience_seconds=None)

    def _prepare(self, order: Prepare, given_up: threading.Event) -> None:
        if given_up.is_set():
            return
        number, load = order.number, order.load
        try:
            outcome = self._weights.prepare(
                load,
                on_progress=lambda now: self.send(Preparing(number, loading(load.epoch, now))),
                cancelled=given_up.is_set,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the node must hear of it
            if not given_up.is_set():
                self.send(Preparing(number, load_failed(load.epoch, error)))
            return
        told = loaded(load.epoch, self._weights.prepared_digests, outcome)
        self.send(Preparing(number, told))

    def _make_stage(
        self, order: Load, outcome: LoadResult, cancelled: threading.Event
    ) -> Stage | None:
        """The stage, run once; None when the order was cancelled meanwhile."""
        if cancelled.is_set():
            return None
        self.send(passed(order.epoch, "uploading", outcome))
        config = decode_checkpoint(order.checkpoint).config
        stage = build_stage(order, config, self._weights.as_torch(), self._settings, self._device)
        if cancelled.is_set():
            return None
        self.send(passed(order.epoch, "warmup", outcome))
        warm_up(stage)
        return stage

    def _make_pipeline(self, order: Load, stage: Stage) -> Pipeline:
        return Pipeline(
            order,
            stage,
            self._settings,
            on_tokens=lambda tokens: self.send(Emitted(order.epoch, tuple(tokens))),
            on_lost=lambda error: self.send(LinkLost(order.epoch, str(error))),
        )

    def _install(self, pipeline: Pipeline, cancelled: threading.Event) -> bool:
        """Make it the present one, with the links that came early; False when it is too late."""
        with self._lock:
            late = cancelled.is_set()
            if not late:
                self._pipeline = pipeline
            early, self._early_links = ([], self._early_links) if late else (self._early_links, [])
        if late:
            retire(pipeline, STOP_SECONDS / 2)
        for message, link in early:
            self._attach(message, link)
        return not late

    def _connect(self, message: Link, connected: socket) -> None:
        link = link_of(message, connected)
        with self._lock:
            waiting = self._pipeline is None and message.epoch == self._epoch
            if waiting:
                self._early_links.append((message, link))
        if not waiting:
            self._attach(message, link)

    def _attach(self, message: Link, link: DataLink) -> None:
        pipeline = self._pipeline
        if pipeline is None or message.epoch != pipeline.epoch:
            link.close()
            return
        pipeline.attach(message.direction, link)

    def _warm_up(self, order: WarmUp) -> None:
        pipeline = self._pipeline
        if pipeline is None or pipeline.epoch != order.epoch:
            self.send(WarmedUp(order.epoch, f"epoch {order.epoch} is over"))
            return
        try:
            pipeline.warm_up(order.timeout_seconds)
        except (ButterflyError, RuntimeError) as error:
            self.send(WarmedUp(order.epoch, str(error)))
        else:
            self.send(WarmedUp(order.epoch, None))

    def _submit(self, order: Submit) -> None:
        request_id = order.request.request_id
        pipeline = self._pipeline
        try:
            if pipeline is None or pipeline.epoch != order.epoch:
                raise EngineLost(f"epoch {order.epoch} is over")
            pipeline.submit(order.request)
        except ButterflyError as error:
            refused = TokensEmitted(request_id, (), FinishReason.ERROR, refusal(error))
            self.send(Emitted(order.epoch, (refused,)))

    def _tell_statistics(self) -> None:
        """Every second, also when nothing has changed: it is the sign that this process lives."""
        while not self._closing.wait(STATISTICS_SECONDS):
            pipeline = self._pipeline
            values = pipeline.statistics() if pipeline is not None else {}
            whole = {name: int(value) for name, value in values.items() if value == int(value)}
            self.send(Statistics({**whole, **self._weights.cache_statistics()}))

    def _in_thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread
