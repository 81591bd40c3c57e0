"""A device's measurement has sane numbers and knows which devices are there."""

import pytest
import torch

from butterfly_core.errors import ConfigError
from butterfly_engine.measure import measure, resolve_device


def test_a_cpu_is_measured() -> None:
    capacity = measure("cpu", dtype="float32")

    assert capacity.device == "cpu"
    assert capacity.device_name
    assert 0 < capacity.memory_free_bytes <= capacity.memory_total_bytes
    assert 1e8 < capacity.memory_bytes_per_second < 1e13
    assert 1e8 < capacity.flops_per_second < 1e15


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:x", "cuda:99", "tpu:0"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        measure(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_measured() -> None:
    capacity = measure("cuda:0")

    assert capacity.memory_bytes_per_second > 1e10
    assert capacity.flops_per_second > 1e12
