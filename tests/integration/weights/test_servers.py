"""Against real S3 servers: signatures, ETags and versions as others implement them, and what
crosses the network counted at the server's side."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.layers import LayerRange, all_parts, stage_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.errors import AccessDenied, NotFound, SourceChanged
from butterfly_weights.loader import Loader
from butterfly_weights.proving import create_manifest, verify_source, write_manifest
from butterfly_weights.source import Source, SourceOptions, open_source
from butterfly_weights.spec import model_spec
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import PLACE as PUBLIC_PLACE
from tests.support.fault_server import fault_server
from tests.support.s3 import S3Server, counting_proxy, moto_s3, rclone_s3

PLACE = "models/llama/tiny"
SHAPE = Shape(layer_count=6, hidden_size=256, intermediate_size=512, vocab_size=512)
WEIGHTS = ".safetensors"
QUICK = SourceOptions(backoff_first_seconds=0.001, backoff_max_seconds=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("model")
    return folder, write_checkpoint(folder, SHAPE)


@pytest.fixture(scope="module")
def rclone(
    tmp_path_factory: pytest.TempPathFactory, model: tuple[Path, dict[str, bytes]]
) -> Iterator[S3Server]:
    with rclone_s3(tmp_path_factory.mktemp("buckets")) as server:
        server.upload(model[0], PLACE)
        yield server


@pytest.fixture(scope="module")
def moto(model: tuple[Path, dict[str, bytes]]) -> Iterator[S3Server]:
    with moto_s3() as server:
        server.upload(model[0], PLACE)
        yield server


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, S3Server)
    return found


@pytest.fixture
def source(server: S3Server) -> Iterator[Source]:
    opened = open_source("s3", f"s3://{PLACE}/", endpoint_url=server.url, options=QUICK)
    yield opened
    opened.close()


def test_the_whole_model_comes_as_it_was_written(
    source: Source, model: tuple[Path, dict[str, bytes]]
) -> None:
    checkpoint = read_checkpoint(source)
    spec = model_spec(checkpoint, "tiny")

    result = Loader(source, checkpoint).load(all_parts(SHAPE.layer_count))

    assert {name: bytes(tensor.data) for name, tensor in result.tensors.items()} == model[1]
    assert spec.total_bytes == sum(len(data) for data in model[1].values())


def test_the_revision_is_the_same_on_each_server_that_names_content(
    rclone: S3Server, moto: S3Server
) -> None:
    revisions = set()
    for server in (rclone, moto):
        source = open_source("s3", PLACE, endpoint_url=server.url)
        revisions.add(read_checkpoint(source).revision)
        source.close()

    assert len(revisions) == 1


def test_a_listing_and_a_head_tell_the_same(source: Source) -> None:
    entries = source.entries()

    assert entries is not None
    assert source.stat("config.json") == entries["config.json"]
    assert not source.exists("nothing.json")
    with pytest.raises(NotFound):
        source.read_small("nothing.json", bytes_max=10)


def test_a_stage_fetches_its_own_slice_and_little_else(server: S3Server) -> None:
    with counting_proxy(server.url) as proxy:
        source = open_source("s3", PLACE, endpoint_url=proxy.url, options=QUICK)
        checkpoint = read_checkpoint(source)
        spec = model_spec(checkpoint, "tiny")
        layers = LayerRange(2, 5)
        parts = stage_parts(layers, spec.layer_count, tied=spec.tied)

        result = Loader(source, checkpoint).load(parts)
        source.close()

        served = proxy.bytes_served(PLACE, suffix=WEIGHTS)
        assert spec.stage_bytes(layers) <= served <= spec.stage_bytes(layers) * 1.01
        assert served >= result.bytes_from_source
        assert proxy.bytes_served(PLACE, access_key=server.access_key) >= served


@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_second_start_fetches_no_weights(
    server: S3Server, tmp_path: Path, model: tuple[Path, dict[str, bytes]], with_manifest: bool
) -> None:
    parts = all_parts(SHAPE.layer_count)
    place = f"{PLACE}-cached-{with_manifest}"
    server.upload(model[0], place)
    with counting_proxy(server.url) as proxy:
        for start in (1, 2):
            source = open_source("s3", place, endpoint_url=proxy.url, options=QUICK)
            if with_manifest and start == 1:
                write_manifest(source, create_manifest(source))
            cache = TensorCache(tmp_path / "cache")
            checkpoint = read_checkpoint(source)
            proxy.reset()
            result = Loader(source, checkpoint, cache=cache).load(parts)
            assert cache.flush(30)
            cache.close()
            source.close()

    assert proxy.bytes_served(place, suffix=WEIGHTS) == 0
    assert result.bytes_from_source == 0
    assert {name: bytes(tensor.data) for name, tensor in result.tensors.items()} == model[1]


def test_a_manifest_is_written_beside_the_model_and_verifies_it(
    server: S3Server, model: tuple[Path, dict[str, bytes]]
) -> None:
    place = f"{PLACE}-signed"
    server.upload(model[0], place)
    source = open_source("s3", place, endpoint_url=server.url, options=QUICK)
    manifest = create_manifest(source)
    write_manifest(source, manifest)

    assert read_checkpoint(source).manifest == manifest
    assert verify_source(source, manifest) == []
    source.close()


def test_an_object_replaced_on_the_server_is_noticed(
    server: S3Server, model: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    place, shard = f"{PLACE}-replaced", "model-00002-of-00003.safetensors"
    server.upload(model[0], place)
    source = open_source("s3", place, endpoint_url=server.url, options=QUICK)
    checkpoint = read_checkpoint(source)
    write_checkpoint(tmp_path, Shape(**{**vars(SHAPE), "seed": 9}))
    server.put(f"{place}/{shard}", (tmp_path / shard).read_bytes())

    with pytest.raises(SourceChanged, match=shard):
        Loader(source, checkpoint).load(all_parts(SHAPE.layer_count))
    source.close()


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "secret key is wrong"),
        ("AWS_ACCESS_KEY_ID", "nobody", "access key is not known"),
    ],
)
def test_wrong_keys_are_told_apart(
    rclone: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, advice: str
) -> None:
    monkeypatch.setenv(name, value)
    source = open_source("s3", PLACE, endpoint_url=rclone.url, options=QUICK)

    with pytest.raises(AccessDenied, match=advice):
        read_checkpoint(source)
    source.close()


def test_without_credentials_requests_are_unsigned_and_a_refusal_says_so(
    rclone: S3Server, model: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    private = open_source("s3", PLACE, endpoint_url=rclone.url, options=QUICK)

    with pytest.raises(AccessDenied, match="no credentials were found"):
        read_checkpoint(private)
    private.close()
    with fault_server(model[0]) as anyone:
        public = open_source("s3", PUBLIC_PLACE, endpoint_url=anyone.url, options=QUICK)
        assert read_checkpoint(public).tensors
        public.close()


def test_a_listing_of_several_pages(tmp_path: Path) -> None:
    names = {f"{number}.txt" for number in range(7)}
    for name in names:
        (tmp_path / name).write_text(name)
    with moto_s3(page_objects_max=3) as server:
        server.upload(tmp_path, "models/many")
        source = open_source("s3", "models/many", endpoint_url=server.url, options=QUICK)
        found = source.entries()
        source.close()

    assert found is not None
    assert found.keys() == names
