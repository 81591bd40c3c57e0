"""Checkpoints shared by the engine's tests, each made once."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from tests.support.tiny_models import (
    TinyModel,
    make_tiny_model,
    read_tensors,
    reference_model,
)

MadeModel = tuple[TinyModel, dict[str, torch.Tensor], Any]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels this small only lose by sharing, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., MadeModel]:
    """Checkpoint, its tensors, and transformers' own model of it, by family and settings."""

    @cache
    def make(family: str = "llama", **settings: Any) -> MadeModel:
        folder = tmp_path_factory.mktemp(family)
        tiny = make_tiny_model(folder, family, **settings)
        return tiny, read_tensors(folder), reference_model(tiny)

    return make
