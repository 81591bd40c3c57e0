"""Which links a pipeline keeps when opening one was tried twice."""

import pytest
import torch

from butterfly.channel import EngineSettings, Load, ModelSource
from butterfly.engine_host.pipeline import Pipeline
from butterfly_core.errors import Unreachable
from butterfly_engine.link import MemoryLink

ORDER = Load(
    1, "model", ModelSource("filesystem", "/", None, None, None, 0), b"", 0, 1, 2, False, 64, 2
)


class FirstStage:
    """What a head asks of its stage before the first request."""

    is_first, is_last = True, False
    hidden_size, kv_blocks, block_size = 4, 4, 16
    context_length, vocab_size, eos_token_ids = 64, 300, ()
    dtype = torch.float32


def is_closed(link: MemoryLink) -> bool:
    try:
        link.send(b"")
    except Unreachable:
        return True
    return False


@pytest.fixture
def pipeline() -> Pipeline:
    settings = EngineSettings("cpu", "auto", 1, 16, 64, 8, 8)
    stage = FirstStage()
    return Pipeline(ORDER, stage, settings, on_tokens=lambda _: None, on_lost=lambda _: None)  # type: ignore[arg-type] # a fake


def test_before_the_start_the_newer_link_counts_and_then_the_older(pipeline: Pipeline) -> None:
    dead, newer, back, late = (MemoryLink() for _ in range(4))
    pipeline.attach("out", dead)
    pipeline.attach("out", newer)
    assert (is_closed(dead), is_closed(newer)) == (True, False)

    pipeline.attach("in", back)
    pipeline.attach("out", late)
    assert (is_closed(late), is_closed(newer)) == (True, False)

    assert pipeline.close(30.0)
    assert is_closed(newer)
    assert is_closed(back)
