"""What every fault has in common: object, range and reason are named, nothing unproven is used,
and the same loader loads as soon as the source is sound again. And faults of disks and headers
that need more than one answer."""

import json
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.errors import ButterflyError, ModelError, VerificationFailed
from butterfly_core.layers import all_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.cache_files import entries_in
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.errors import AccessDenied
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.loader_options import LoaderOptions
from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
from butterfly_weights.progress import LoadProgress
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import Source, SourceOptions, open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import (
    PLACE,
    Answer,
    Asked,
    Change,
    FaultServer,
    chunked,
    cut,
    flip_bit,
    refuse,
    with_header,
    without_ranges,
)
from tests.support.needs import need

LAYERS = 4
SHARD = "model-00002-of-00003.safetensors"
BYTES_MAX = 256 << 20
DISK_BYTES = 256 << 10
QUICK = SourceOptions(
    tries_max=3,
    backoff_first_seconds=0.001,
    backoff_max_seconds=0.005,
    stall_timeout_seconds=0.5,
)


@pytest.fixture(params=["s3", "http"])
def source(request: pytest.FixtureRequest, server: FaultServer) -> Iterator[Source]:
    """The same server, as a bucket and as a web folder, with a manifest beside the model."""
    if request.param == "s3":
        opened = open_source("s3", PLACE, endpoint_url=server.url, options=QUICK)
    else:
        opened = open_source("http", f"{server.url}/{PLACE}", options=QUICK)
    server.objects[MANIFEST_NAME] = encode_manifest(create_manifest(opened))
    yield opened
    opened.close()


def data_of(result: LoadResult) -> dict[str, bytes]:
    return {name: bytes(tensor.data) for name, tensor in result.tensors.items()}


def of_folder(folder: Path) -> dict[str, bytes]:
    source = open_source("filesystem", str(folder))
    return data_of(Loader(source, read_checkpoint(source)).load(all_parts(LAYERS)))


FAULTS: dict[str, tuple[Change, str]] = {
    "bit flipped": (flip_bit(9000), r"bytes \d+-\d+: expected digest \w{64}, seen \w{64}"),
    "416": (refuse(416, "InvalidRange", Content_Range="bytes */17"), r"byte \d+.*416.*17"),
    "503": (refuse(503, "SlowDown"), r"bytes \d+-\d+ .*503.*gave up after 3 tries"),
    "403": (refuse(403, "AccessDenied"), r"bytes \d+-\d+ .*403"),
    "404": (refuse(404, "NoSuchKey"), r"bytes \d+-\d+ .*404"),
    "clock": (refuse(403, "RequestTimeTooSkewed"), r"bytes \d+-\d+ .*403"),
    "closed": (cut("close"), r"closed the connection.* of \d+ bytes from byte \d+ had come"),
    "reset": (cut("reset"), r"ConnectionReset.* of \d+ bytes from byte \d+ had come"),
    "stall": (cut("stall"), r"no byte came in time.* of \d+ bytes from byte \d+ had come"),
    "no ranges": (without_ranges, r"bytes \d+-\d+: .*does not support ranges"),
    "chunked": (chunked, r"bytes \d+-\d+: .*transfer-encoding"),
    "gzip": (with_header("Content-Encoding", "gzip"), r"bytes \d+-\d+: .*content-encoding"),
    "wrong length": (with_header("Content-Length", "5"), r"bytes \d+-\d+: Content-Length"),
    "wrong range": (with_header("Content-Range", "bytes 0-4/*"), r"bytes \d+-\d+: .*instead"),
    "other version": (with_header("ETag", '"other"'), "was changed.*ETag other"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_object_and_range_and_a_retry_heals_it(
    source: Source, server: FaultServer, folder: Path, name: str
) -> None:
    change, says = FAULTS[name]
    loader = Loader(source, read_checkpoint(source))
    server.add(change, name=SHARD)

    with pytest.raises(ButterflyError, match=f"{SHARD}.*{says}"):
        loader.load(all_parts(LAYERS))
    server.heal()

    assert data_of(loader.load(all_parts(LAYERS))) == of_folder(folder)


@pytest.mark.parametrize(
    ("status", "code", "location"),
    [(301, "PermanentRedirect", None), (307, "TemporaryRedirect", "https://elsewhere.invalid/x")],
)
def test_a_bucket_of_another_region_is_told_and_nobody_is_followed(
    server: FaultServer, status: int, code: str, location: str | None
) -> None:
    fields = {"x_amz_bucket_region": "eu-west-3"} | ({"Location": location} if location else {})
    source = open_source("s3", PLACE, endpoint_url=server.url, options=QUICK)
    checkpoint = read_checkpoint(source)
    fault = server.add(refuse(status, code, **fields), name=SHARD)

    with pytest.raises(ButterflyError, match=r"another region.*'eu-west-3'"):
        Loader(source, checkpoint).load(all_parts(LAYERS))

    assert fault.hits == 1
    source.close()


def test_a_clock_that_is_wrong_is_told_as_such(server: FaultServer) -> None:
    source = open_source("s3", PLACE, endpoint_url=server.url, options=QUICK)
    checkpoint = read_checkpoint(source)
    server.add(refuse(403, "RequestTimeTooSkewed"), name=SHARD)

    with pytest.raises(AccessDenied, match="this machine's clock is wrong"):
        Loader(source, checkpoint).load(all_parts(LAYERS))
    source.close()


def test_an_object_replaced_between_two_reads_is_read_anew_once_and_judged(
    source: Source, server: FaultServer, folder: Path, tmp_path: Path
) -> None:
    """In the middle of a load: first by its own bytes under another ETag, then by others."""
    sound = server.objects[SHARD]

    def replace_by(content: bytes) -> Change:
        def change(_answer: Answer, _asked: Asked, _content: bytes) -> None:
            server.objects[SHARD] = content

        return change

    checkpoint = read_checkpoint(source)
    server.objects[SHARD] = damaged = sound[:-1] + bytes([sound[-1] ^ 1])
    older = read_checkpoint(source)
    first_shard = "model-00001-of-00003.safetensors"
    server.add(replace_by(sound), name=first_shard)
    in_turn = LoaderOptions(readers=1)

    result = Loader(source, older, options=in_turn).load(all_parts(LAYERS))

    assert data_of(result) == of_folder(folder)
    server.heal()
    server.add(replace_by(damaged), name=first_shard)
    with pytest.raises(VerificationFailed, match=SHARD):
        Loader(source, checkpoint, options=in_turn).load(all_parts(LAYERS))


# Headers that are too much.


def put_header(server: FaultServer, header: bytes) -> None:
    server.objects[SHARD] = len(header).to_bytes(8, "little") + header + bytes(64)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b'{"__metadata__": {"a": ' + b"[" * 100_000, "not JSON"),
        (b'{"a":[' + b"[],[]," * 1_000_000 + b"[]]}", "values; at most"),
        (b'{"a":[' + b"{},{}," * 1_000_000 + b"{}]}", "values; at most"),
        (b'{"' + b"n" * (20 << 20) + b'": 5}', "exactly dtype|name of 20971520 characters"),
        (b'{"t":{"dtype":"' + b"D" * (20 << 20) + b'","shape":[],"data_offsets":[0,0]}}', "dtype"),
        (
            b'{"t":{"dtype":"U8","shape":[' + b"1," * 900_000 + b'1],"data_offsets":[0,1]}}',
            "900001",
        ),
        (b'{"t":{"dtype":"U8","shape":[' + b"9" * 9_000 + b'],"data_offsets":[0,1]}}', "not JSON"),
        (
            b'{"t":{"dtype":"F64","shape":['
            + b",".join([b"4611686018427387903"] * 16)
            + b'],"data_offsets":[0,64]}}',
            "needs",
        ),
        ('{"t": {}}'.encode("utf-16"), "not JSON"),
        (json.dumps({f"k{n}": 0 for n in range(300_000)}).encode()[:-1] + b', "k7": 0}', "k7"),
    ],
    ids=["deep", "lists", "maps", "name", "dtype", "dims", "digits", "product", "utf-16", "twice"],
)
def test_a_header_made_to_burst_is_refused_in_few_words_and_little_memory(
    server: FaultServer, header: bytes, says: str
) -> None:
    put_header(server, header)
    source = open_source("s3", PLACE, endpoint_url=server.url, options=QUICK)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=says) as refused:
            read_checkpoint(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        source.close()

    assert peak < BYTES_MAX
    assert SHARD in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("length", [(1 << 64) - 1, 33 << 20, 1 << 40])
def test_a_header_said_to_be_huge_is_never_asked_for(server: FaultServer, length: int) -> None:
    server.objects[SHARD] = length.to_bytes(8, "little") + server.objects[SHARD][8:]
    source = open_source("s3", PLACE, endpoint_url=server.url, options=QUICK)

    with pytest.raises(ModelError, match=f"{SHARD}: header length {length}"):
        read_checkpoint(source)

    asked = [a for a in server.asked if a.name == SHARD and a.first is not None]
    assert [(a.first, a.last) for a in asked] == [(0, 7)]
    source.close()


@pytest.mark.parametrize(
    ("name", "bytes_max"), [("config.json", 4 << 20), ("model.safetensors.index.json", 64 << 20)]
)
def test_a_small_file_that_is_large_is_refused_unread(
    server: FaultServer, name: str, bytes_max: int
) -> None:
    source = open_source("s3", PLACE, endpoint_url=server.url)
    server.objects[name] = bytes(bytes_max + 1)

    with pytest.raises(ModelError, match=f"{name} has {bytes_max + 1} bytes; at most {bytes_max}"):
        read_checkpoint(source)
    source.close()


# Disks under the cache.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    need(subprocess.run(mount, check=False).returncode == 0, "the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def sound_source(folder: Path) -> Source:
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    return source


def test_a_disk_that_is_really_full_stops_the_cache_and_not_the_load(
    folder: Path, small_disk: Path
) -> None:
    source = sound_source(folder)
    unaware = -1 << 40  # or the cache would see beforehand that there is no room
    cache = TensorCache(small_disk / "cache", free_bytes_min=unaware)

    result = Loader(source, read_checkpoint(source), cache=cache).load(all_parts(LAYERS))
    assert cache.flush(30)
    cache.close()

    assert sum(len(data) for data in data_of(result).values()) > DISK_BYTES
    assert data_of(result) == of_folder(folder)
    assert any("No space left" in note for note in cache.notes)
    assert not list((small_disk / "cache").rglob("*.part"))


def test_a_disk_that_is_really_read_only_gives_what_it_has_and_stops_nothing(
    folder: Path, small_disk: Path
) -> None:
    source = sound_source(folder)
    checkpoint = read_checkpoint(source)
    first = TensorCache(small_disk / "cache", free_bytes_min=0)
    cached = Loader(source, checkpoint, cache=first).load(["layers.0"])
    assert first.flush(30)
    first.close()
    read_only = ["mount", "-o", "remount,ro", str(small_disk)]
    assert subprocess.run(read_only, check=False).returncode == 0
    cache = TensorCache(small_disk / "cache", free_bytes_min=0)

    result = Loader(source, checkpoint, cache=cache).load(all_parts(LAYERS))
    cache.flush(30)
    cache.close()

    assert data_of(result) == of_folder(folder)
    assert result.bytes_from_cache == cached.bytes_from_source
    assert any("Read-only file system" in note for note in cache.notes)


def test_a_cache_that_is_gone_in_mid_load_stops_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", Shape())
    source = sound_source(tmp_path / "model")
    place = tmp_path / "cache"
    first = TensorCache(place)
    Loader(source, read_checkpoint(source), cache=first).load(all_parts(LAYERS))
    assert first.flush(30)
    first.close()
    assert list(entries_in(place))
    cache = TensorCache(place)

    def gone(_: LoadProgress) -> None:
        shutil.rmtree(place, ignore_errors=True)

    gone(LoadProgress(0, 0, 0, 0))
    result = Loader(source, read_checkpoint(source), cache=cache).load(
        all_parts(LAYERS), on_progress=gone
    )
    cache.flush(30)
    cache.close()

    assert data_of(result) == of_folder(tmp_path / "model")
