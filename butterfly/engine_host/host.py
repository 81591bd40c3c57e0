"""The engine process's one object: takes the node's messages and keeps what they ask for.

One epoch at a time. Messages come in on one thread; a load runs on a second, the pipeline on
threads of its own; whatever they tell the node goes out under one lock. A message about an
older epoch changes nothing.
"""

import logging
import threading
from collections.abc import Callable
from socket import socket
from typing import assert_never

from butterfly.channel import (
    BlockingChannel,
    Cancel,
    Drop,
    Emitted,
    EngineSettings,
    FromEngine,
    Link,
    LinkLost,
    Load,
    Loaded,
    LoadFailed,
    Progressed,
    Statistics,
    Submit,
    ToEngine,
    WarmedUp,
    WarmUp,
)
from butterfly.engine_host.hops import link_of
from butterfly.engine_host.loading import Weights
from butterfly.engine_host.pipeline import Pipeline, build_stage, warm_up
from butterfly.handover import decode_checkpoint
from butterfly_core.errors import ButterflyError, EngineLost, NotServing
from butterfly_core.generation import FinishReason, TokensEmitted
from butterfly_weights.loader import LoadResult
from butterfly_weights.progress import LoadProgress
from butterfly_wire.datalink import DataLink

log = logging.getLogger(__name__)

STATISTICS_SECONDS = 1.0


class Host:
    """See the module. ``close`` ends every thread it started."""

    def __init__(self, channel: BlockingChannel, settings: EngineSettings, device: str) -> None:
        self._channel = channel
        self._settings = settings
        self._device = device
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._weights = Weights()
        self._epoch = 0
        self._cancelled = threading.Event()
        self._loading: threading.Thread | None = None
        self._pipeline: Pipeline | None = None
        self._early_links: list[tuple[Link, DataLink]] = []
        self._closing = threading.Event()

    def send(self, message: FromEngine) -> None:
        with self._sending:
            self._channel.send(message)

    def run(self) -> None:
        """Until the node closes the channel: raises EngineLost then."""
        self._in_thread("statistics", self._tell_statistics)
        while True:
            message, connected = self._channel.receive()
            self._take(message, connected)

    def close(self) -> None:
        self._closing.set()
        self._stop()
        self._weights.close()

    def _take(self, message: ToEngine, connected: socket | None) -> None:
        match message:
            case Load():
                self._begin(message)
            case Drop():
                self._stop()
                self._weights.drop()
            case Link():
                assert connected is not None
                self._connect(message, connected)
            case WarmUp():
                self._in_thread("warm-up", lambda: self._warm_up(message))
            case Submit():
                self._submit(message)
            case Cancel(request_id=request_id):
                if self._pipeline is not None:
                    self._pipeline.cancel(request_id)
            case _:
                assert_never(message)

    def _begin(self, order: Load) -> None:
        self._stop()
        self._epoch = order.epoch
        self._cancelled = threading.Event()
        cancelled = self._cancelled
        self._loading = self._in_thread("load", lambda: self._load(order, cancelled))

    def _stop(self) -> None:
        """End the load and the pipeline of the present epoch."""
        self._cancelled.set()
        if self._loading is not None:
            self._loading.join()
            self._loading = None
        with self._lock:
            pipeline, self._pipeline = self._pipeline, None
            early, self._early_links = self._early_links, []
        if pipeline is not None:
            pipeline.close()
        for _, link in early:
            link.close()

    def _load(self, order: Load, cancelled: threading.Event) -> None:
        def on_progress(progress: LoadProgress) -> None:
            self.send(_progressed(order.epoch, "loading_weights", progress))

        try:
            outcome = self._weights.load(order, on_progress=on_progress, cancelled=cancelled.is_set)
            self.send(_passed(order.epoch, "uploading", outcome))
            config = decode_checkpoint(order.checkpoint).config
            tensors = self._weights.as_torch()
            stage = build_stage(order, config, tensors, self._settings, self._device)
            self.send(_passed(order.epoch, "warmup", outcome))
            warm_up(stage)
            if cancelled.is_set():
                return
        except (ButterflyError, MemoryError, RuntimeError, OSError) as error:
            if not cancelled.is_set():
                self.send(_load_failed(order.epoch, error))
            return
        pipeline = Pipeline(
            order,
            stage,
            self._settings,
            on_tokens=lambda tokens: self.send(Emitted(order.epoch, tuple(tokens))),
            on_lost=lambda error: self.send(LinkLost(order.epoch, str(error))),
        )
        with self._lock:
            self._pipeline = pipeline
            early, self._early_links = self._early_links, []
        for message, link in early:
            self._attach(message, link)
        digests = dict(self._weights.part_digests)
        source, cache = outcome.bytes_from_source, outcome.bytes_from_cache
        self.send(Loaded(order.epoch, digests, source, cache, outcome.healed, outcome.events))

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
            refused = TokensEmitted(request_id, (), FinishReason.ERROR, _told(error))
            self.send(Emitted(order.epoch, (refused,)))

    def _tell_statistics(self) -> None:
        told: dict[str, int] = {}
        while not self._closing.wait(STATISTICS_SECONDS):
            pipeline = self._pipeline
            values = pipeline.statistics() if pipeline is not None else {}
            whole = {name: int(value) for name, value in values.items() if value == int(value)}
            if whole != told:
                told = whole
                self.send(Statistics(whole))

    def _in_thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread


def _told(error: ButterflyError) -> str:
    """The error for the node. A pipeline that ended is a loss, not a refusal: another goes on."""
    over = isinstance(error, NotServing) and error.phase != "serving"
    return f"{'EngineLost' if over else type(error).__name__}: {error}"


def _progressed(epoch: int, phase: str, progress: LoadProgress) -> Progressed:
    return Progressed(
        epoch,
        phase,
        progress.bytes_done,
        progress.bytes_total,
        progress.bytes_from_source,
        progress.bytes_from_cache,
    )


def _passed(epoch: int, phase: str, result: LoadResult) -> Progressed:
    """All bytes are here; what happens to them now."""
    total = result.bytes_from_source + result.bytes_from_cache
    source, cache = result.bytes_from_source, result.bytes_from_cache
    return Progressed(epoch, phase, total, total, source, cache)


def _load_failed(epoch: int, error: BaseException) -> LoadFailed:
    log.error("the load of epoch %d failed: %s", epoch, error)
    return LoadFailed(
        epoch,
        str(error) or type(error).__name__,
        type(error).__name__,
        file=getattr(error, "object_name", None),
        tensor=getattr(error, "tensor", None) or None,
    )
