"""Parts are handed on while later ones still come: in order, once each, and right."""

import threading
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import Checkpoint, read_checkpoint
from butterfly_weights.errors import SourceChanged
from butterfly_weights.handing_on import LoadedPart
from butterfly_weights.loader import Loader
from butterfly_weights.loader_options import LoaderOptions
from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
from butterfly_weights.proving import create_manifest
from butterfly_weights.source import ObjectInfo, OnBytes, RangeReader, Source, open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import PLACE, FaultServer

LAYERS = 4
PARTS = all_parts(LAYERS)
ONE_AT_A_TIME = LoaderOptions(readers=1, poll_seconds=0.001)
SECONDS = 60.0


class HeldBackReader:
    """Does not read one shard before ``released``."""

    def __init__(self, inner: RangeReader, shard: str, released: threading.Event) -> None:
        self._inner, self._shard, self._released = inner, shard, released
        self.reset, self.interrupt, self.close = inner.reset, inner.interrupt, inner.close

    def read_into(
        self, info: ObjectInfo, offset: int, views: Sequence[memoryview], on_bytes: OnBytes
    ) -> None:
        if info.name == self._shard:
            assert self._released.wait(SECONDS), "nothing was handed on before the last byte"
        self._inner.read_into(info, offset, views, on_bytes)


class LastShard:
    """Holds the last shard of a source back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Source, name: str) -> None:
        self.name, self.released = name, threading.Event()
        make = source.reader
        monkeypatch.setattr(
            source, "reader", lambda: HeldBackReader(make(), self.name, self.released)
        )


def bytes_of(parts: Sequence[LoadedPart]) -> dict[str, bytes]:
    return {name: bytes(t.data) for part in parts for name, t in part.tensors.items()}


def s3_of(server: FaultServer) -> Source:
    return open_source("s3", PLACE, endpoint_url=server.url)


def replaced(server: FaultServer, shard: str) -> None:
    """The same tensors under another ETag."""
    content = server.objects[shard]
    server.objects[shard] = content.replace(b'"format": "pt"', b'"format": "tp"', 1)
    assert server.objects[shard] != content


def with_manifest(server: FaultServer) -> tuple[Source, Checkpoint]:
    source = s3_of(server)
    server.objects[MANIFEST_NAME] = encode_manifest(create_manifest(source))
    return source, read_checkpoint(source)


def test_parts_come_in_order_before_the_last_byte_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_checkpoint(tmp_path, Shape(shards=4))
    source = open_source("filesystem", str(tmp_path))
    checkpoint = read_checkpoint(source)
    last = LastShard(monkeypatch, source, max(checkpoint.objects))
    late = {tensor.part for tensor in checkpoint.tensors if tensor.shard == last.name}
    early = list(takewhile(lambda part: part not in late, PARTS))
    told: list[LoadedPart] = []

    def on_part(part: LoadedPart) -> None:
        told.append(part)
        if len(told) == len(early):
            last.released.set()

    options = LoaderOptions(readers=8, poll_seconds=0.001)
    result = Loader(source, checkpoint, options=options).load(PARTS, on_part=on_part)

    assert len(early) >= 3
    assert [part.name for part in told] == list(PARTS)
    assert bytes_of(told) == expected
    assert {part.name: part.digest for part in told} == dict(result.part_digests)


def test_a_part_without_tensors_is_handed_on_in_its_turn(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape(tied=True))
    source = open_source("filesystem", str(tmp_path))
    told: list[LoadedPart] = []

    Loader(source, read_checkpoint(source)).load(PARTS, on_part=told.append)

    assert [part.name for part in told] == list(PARTS)
    assert told[-1].tensors == {}


def test_a_shard_replaced_in_mid_load_leaves_no_part_wrong_or_handed_on_twice(
    server: FaultServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, checkpoint = with_manifest(server)
    total = sum(tensor.nbytes for tensor in checkpoint.tensors)
    last = LastShard(monkeypatch, source, max(checkpoint.objects))
    told: list[LoadedPart] = []

    def on_part(part: LoadedPart) -> None:
        if not told:
            for shard in checkpoint.objects:
                replaced(server, shard)
            last.released.set()
        told.append(part)

    loader = Loader(source, checkpoint, options=ONE_AT_A_TIME)
    result = loader.load(PARTS, on_part=on_part)
    source.close()

    assert [part.name for part in told] == list(PARTS)
    assert all(part.is_final for part in told)
    expected = write_checkpoint(folder.parent / "again", Shape())
    assert bytes_of(told) == expected
    assert bytes_of(told) == {n: bytes(t.data) for n, t in result.tensors.items()}
    assert result.bytes_from_source < 2 * total, "what was proven is not read again"


def test_without_a_manifest_a_replaced_shard_fails_the_load_and_nothing_was_final(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = s3_of(server)
    checkpoint = read_checkpoint(source)
    last = LastShard(monkeypatch, source, max(checkpoint.objects))
    told: list[LoadedPart] = []

    def on_part(part: LoadedPart) -> None:
        if not told:
            for shard in checkpoint.objects:
                replaced(server, shard)
            last.released.set()
        told.append(part)

    with pytest.raises(SourceChanged):
        Loader(source, checkpoint, options=ONE_AT_A_TIME).load(PARTS, on_part=on_part)
    source.close()

    assert 0 < len(told) < len(PARTS)
    assert not any(part.is_final for part in told)


def test_what_the_taker_of_a_part_raises_ends_the_load(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))

    def refuse(part: LoadedPart) -> None:
        raise ValueError(part.name)

    with pytest.raises(ValueError, match="embed"):
        Loader(source, read_checkpoint(source)).load(PARTS, on_part=refuse)
