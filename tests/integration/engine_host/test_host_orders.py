"""The host's receiving thread waits for no load; loads run one after the other."""

import socket
import threading
from typing import Any

import pytest

from butterfly.channel import (
    EngineSettings,
    Load,
    LoadFailed,
    ModelSource,
    pack,
    parse_from_engine,
)
from butterfly.engine_host import host as host_module
from butterfly.engine_host.host import Host
from butterfly.engine_host.node_channel import BlockingChannel
from butterfly_core.errors import EngineLost

SECONDS = 30.0


class StubbornWeights:
    """Its first load does not heed the cancelling before it is released; the others fail."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()
        self.epochs: list[int] = []

    def load(self, order: Load, **_: Any) -> None:
        self.epochs.append(order.epoch)
        self.begun.set()
        assert self.release.wait(SECONDS)
        raise KeyError(f"epoch {order.epoch}")

    def close(self) -> None:
        """Holds nothing."""


def order(epoch: int) -> Load:
    source = ModelSource("filesystem", "/", None, None, None, 0)
    return Load(epoch, "model", source, b"", 0, 1, 2, False, 64, 2)


def test_a_new_order_is_taken_while_the_old_load_still_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = StubbornWeights()
    monkeypatch.setattr(host_module, "Weights", lambda *_: weights)
    node, engine = socket.socketpair()
    host = Host(BlockingChannel(engine), EngineSettings("cpu", "auto", 1, 16, 64, 8, 8), "cpu")
    for epoch in (1, 2, 3):
        node.sendall(pack(order(epoch)))
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(EngineLost):
            host.run()
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert weights.begun.wait(SECONDS)
    node.shutdown(socket.SHUT_WR)
    assert ended.wait(SECONDS), "an order was waited for"
    assert weights.epochs == [1]

    weights.release.set()
    node.settimeout(SECONDS)
    heard: list[Any] = []
    while not any(isinstance(message, LoadFailed) for message in heard):
        length = int.from_bytes(node.recv(4, socket.MSG_WAITALL), "little")
        heard.append(parse_from_engine(node.recv(length, socket.MSG_WAITALL)))
    host.close()
    node.close()
    engine.close()

    assert heard[-1] == LoadFailed(3, "KeyError: 'epoch 3'", "KeyError")
    assert weights.epochs == [1, 3]
