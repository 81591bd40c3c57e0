"""What the weights' integration tests share: credentials of the test servers, a small model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import FaultServer, fault_server
from tests.support.s3 import credentials_environment


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in credentials_environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of 3 shards and 4 layers."""
    write_checkpoint(tmp_path / "model", Shape())
    return tmp_path / "model"


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with fault_server(folder) as running:
        yield running
