"""Every fault of a source ends as written: healed, retried, or refused with a name and advice."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.errors import ModelError, SourceError, VerificationFailed
from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import Checkpoint, read_checkpoint
from butterfly_weights.errors import (
    AccessDenied,
    BytesMismatch,
    LoadCancelled,
    NotFound,
    SourceChanged,
)
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
from butterfly_weights.merkle import model_root
from butterfly_weights.proving import create_manifest
from butterfly_weights.source import Source, SourceOptions, open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import (
    PLACE,
    Change,
    FaultServer,
    chunked,
    cut,
    fault_server,
    flip_bit,
    refuse,
    with_header,
    without_ranges,
)

LAYERS = 4
SHARD = "model-00002-of-00003.safetensors"
QUICK = SourceOptions(
    backoff_first_seconds=0.001, backoff_max_seconds=0.005, stall_timeout_seconds=0.5
)


_opened: list[Source] = []


@pytest.fixture(autouse=True)
def close_sources() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def source_of(server: FaultServer, options: SourceOptions = QUICK) -> Source:
    return source_at(server.url, options)


def source_at(url: str, options: SourceOptions = QUICK) -> Source:
    source = open_source("s3", PLACE, endpoint_url=url, options=options)
    _opened.append(source)
    return source


def add_manifest(server: FaultServer) -> None:
    manifest = create_manifest(source_of(server))
    server.objects[MANIFEST_NAME] = encode_manifest(manifest)


def load(source: Source, checkpoint: Checkpoint) -> LoadResult:
    return Loader(source, checkpoint).load(all_parts(LAYERS))


def contents(folder: Path) -> dict[str, bytes]:
    """The tensors as the undisturbed file system gives them."""
    source = open_source("filesystem", str(folder))
    return data_of(load(source, read_checkpoint(source)))


def data_of(result: LoadResult) -> dict[str, bytes]:
    return {name: bytes(tensor.data) for name, tensor in result.tensors.items()}


def middle_of(checkpoint: Checkpoint, shard: str = SHARD) -> tuple[str, int]:
    """A tensor of the shard and a byte inside of it."""
    tensor = max((t for t in checkpoint.tensors if t.shard == shard), key=lambda t: t.nbytes)
    return tensor.name, tensor.offset + tensor.nbytes // 2


def test_a_sound_server_gives_every_byte_once(server: FaultServer, folder: Path) -> None:
    source = source_of(server)
    result = load(source, read_checkpoint(source))

    assert data_of(result) == contents(folder)
    assert result.bytes_from_source == sum(len(data) for data in data_of(result).values())


def test_a_bit_flipped_once_is_noticed_and_healed(server: FaultServer, folder: Path) -> None:
    add_manifest(server)
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    tensor, at = middle_of(checkpoint)
    server.add(flip_bit(at), name=SHARD, times=1)

    result = load(source, checkpoint)

    assert data_of(result) == contents(folder)
    assert len(result.healed) == 1
    assert SHARD in result.healed[0]
    assert tensor in result.healed[0]


def test_a_bit_flipped_always_is_named_and_heals_when_the_object_does(
    server: FaultServer, folder: Path
) -> None:
    add_manifest(server)
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    loader = Loader(source, checkpoint)
    tensor, at = middle_of(checkpoint)
    fault = server.add(flip_bit(at), name=SHARD)

    with pytest.raises(BytesMismatch, match=f"{tensor} in {SHARD}") as failed:
        loader.load(all_parts(LAYERS))
    server.heal()
    result = loader.load(all_parts(LAYERS))

    assert failed.value.start <= at < failed.value.stop
    assert failed.value.expected != failed.value.seen
    assert failed.value.expected in str(failed.value)
    assert failed.value.seen in str(failed.value)
    assert fault.hits == 4
    assert data_of(result) == contents(folder)


def test_a_damaged_object_fails_verification_until_it_is_restored(
    server: FaultServer, folder: Path
) -> None:
    add_manifest(server)
    sound = server.objects[SHARD]
    checkpoint = read_checkpoint(source_of(server))
    _, at = middle_of(checkpoint)
    spoiled = bytearray(sound)
    spoiled[at] ^= 1
    server.objects[SHARD] = bytes(spoiled)
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    loader = Loader(source, checkpoint)

    with pytest.raises(VerificationFailed):
        loader.load(all_parts(LAYERS))
    server.objects[SHARD] = sound  # its ETag is another than that of the damaged checkpoint
    result = loader.load(all_parts(LAYERS))

    assert model_root(checkpoint.small_files, result.part_digests, LAYERS) == (
        checkpoint.manifest and checkpoint.manifest.root
    )


def test_an_object_replaced_by_another_model_fails_against_the_manifest(
    server: FaultServer, folder: Path, tmp_path: Path
) -> None:
    add_manifest(server)
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    write_checkpoint(tmp_path / "other", Shape(seed=2))
    server.objects[SHARD] = (tmp_path / "other" / SHARD).read_bytes()

    with pytest.raises(VerificationFailed, match=SHARD):
        load(source, checkpoint)


def test_an_object_replaced_without_a_manifest_is_refused(
    server: FaultServer, tmp_path: Path
) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    write_checkpoint(tmp_path / "other", Shape(seed=2))
    server.objects[SHARD] = (tmp_path / "other" / SHARD).read_bytes()

    with pytest.raises(SourceChanged, match=SHARD):
        load(source, checkpoint)


def test_an_object_replaced_by_one_of_another_layout_is_refused(
    server: FaultServer, tmp_path: Path
) -> None:
    add_manifest(server)
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    write_checkpoint(tmp_path / "other", Shape(vocab_size=512, shards=2))
    server.objects[SHARD] = (tmp_path / "other" / SHARD.replace("3.s", "2.s")).read_bytes()

    with pytest.raises(SourceChanged, match=SHARD):
        load(source, checkpoint)


def test_an_object_shorter_than_its_header_says_is_refused_before_a_load(
    server: FaultServer,
) -> None:
    server.objects[SHARD] = server.objects[SHARD][:-100]
    size = len(server.objects[SHARD])

    with pytest.raises(ModelError, match=f"{SHARD}.* {size + 100} bytes .* has {size}"):
        read_checkpoint(source_of(server))


def test_416_names_the_shard_and_both_sizes(server: FaultServer) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    server.add(refuse(416, "InvalidRange", Content_Range="bytes */17"), name=SHARD)
    size = checkpoint.objects[SHARD].size

    with pytest.raises(SourceError, match=f"{SHARD}.* {size} bytes.*416.* has 17"):
        load(source, checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        refuse(503, "SlowDown", Retry_After="0"),
        refuse(429, "TooManyRequests"),
        refuse(500, "InternalError"),
        refuse(400, "RequestTimeout"),
        cut("close"),
        cut("reset"),
        cut("stall"),
    ],
    ids=["503", "429", "500", "request timeout", "closed", "reset", "stall"],
)
def test_what_passes_is_waited_out(server: FaultServer, folder: Path, change: Change) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    fault = server.add(change, times=2)

    result = load(source, checkpoint)

    assert fault.hits == 2
    assert data_of(result) == contents(folder)


@pytest.mark.parametrize("ending", ["close", "stall"])
def test_a_broken_read_goes_on_at_the_byte_it_reached(server: FaultServer, ending: str) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    server.add(cut("close" if ending == "close" else "stall"), name=SHARD, times=1)
    server.asked.clear()

    load(source, checkpoint)

    first, second = (asked for asked in server.asked if asked.name == SHARD)
    assert first.first is not None
    assert first.last is not None
    assert second.first == first.first + (first.last + 1 - first.first) // 2
    assert second.last == first.last


def test_a_connection_that_always_closes_fails_and_tells_how_far_it_came(
    server: FaultServer,
) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    fault = server.add(cut("close"), name=SHARD)

    with pytest.raises(SourceError, match=rf"{SHARD}.*\d+ of \d+ bytes.*gave up after 8 tries"):
        load(source, checkpoint)

    assert fault.hits == 8


@pytest.mark.parametrize(
    ("status", "code", "kind", "advice"),
    [
        (403, "AccessDenied", AccessDenied, "s3:GetObject"),
        (403, "SignatureDoesNotMatch", AccessDenied, "secret key is wrong"),
        (403, "InvalidAccessKeyId", AccessDenied, "access key is not known"),
        (403, "RequestTimeTooSkewed", AccessDenied, "clock"),
        (404, "NoSuchKey", NotFound, "source_path"),
        (301, "PermanentRedirect", SourceError, "region"),
        (307, "TemporaryRedirect", SourceError, "region"),
        (400, "AuthorizationHeaderMalformed", AccessDenied, "region"),
    ],
)
def test_what_a_person_must_mend_is_told_at_once(
    server: FaultServer, status: int, code: str, kind: type[Exception], advice: str
) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    fault = server.add(refuse(status, code, x_amz_bucket_region="eu-west-3"), name=SHARD)

    with pytest.raises(kind, match=f"{SHARD}.*{advice}.*eu-west-3.*access key butt"):
        load(source, checkpoint)

    assert fault.hits == 1


def test_expired_credentials_are_looked_up_again_once(
    server: FaultServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    server.add(refuse(403, "ExpiredToken"), name=SHARD, times=1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewedkey")

    assert data_of(load(source, checkpoint)) == contents(folder)


def test_expired_credentials_that_stay_the_same_are_told(server: FaultServer) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    fault = server.add(refuse(403, "ExpiredToken"), name=SHARD)

    with pytest.raises(AccessDenied, match="renew the credentials"):
        load(source, checkpoint)

    assert fault.hits == 1


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (without_ranges, "does not support ranges"),
        (chunked, "transfer-encoding"),
        (with_header("Content-Encoding", "gzip"), "content-encoding 'gzip'"),
        (with_header("Content-Length", "5"), "Content-Length"),
        (with_header("Content-Length", None), "Content-Length"),
        (with_header("Content-Range", "bytes 0-4/5"), "has 5 bytes"),
        (with_header("Content-Range", "pages 1-2/3"), "Content-Range"),
        (with_header("Content-Range", "bytes 0-4/*"), "bytes 0-4 instead"),
        (with_header("ETag", None), "no ETag"),
        (with_header("ETag", '"other"'), "ETag other"),
    ],
)
def test_an_answer_that_is_not_the_bytes_asked_for_is_refused_unread(
    server: FaultServer, change: Change, advice: str
) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    fault = server.add(change, name=SHARD)

    with pytest.raises(SourceError, match=advice):
        load(source, checkpoint)

    assert fault.hits == 1


def test_200_with_a_right_content_range_is_taken(server: FaultServer, folder: Path) -> None:
    def as_200(answer: object, *_: object) -> None:
        answer.status = 200  # type: ignore[attr-defined]  # a fault's answer

    source = source_of(server)
    checkpoint = read_checkpoint(source)
    server.add(as_200)

    assert data_of(load(source, checkpoint)) == contents(folder)


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/passwd", "a/../../b", ""])
def test_a_shard_outside_of_the_folder_is_refused(server: FaultServer, shard: str) -> None:
    index = json.loads(server.objects["model.safetensors.index.json"])
    index["weight_map"]["lm_head.weight"] = shard
    server.objects["model.safetensors.index.json"] = json.dumps(index).encode()

    with pytest.raises(ModelError, match="not a plain file name"):
        read_checkpoint(source_of(server))


def test_a_server_that_does_not_list_is_asked_for_each_file(folder: Path) -> None:
    with fault_server(folder, lists=False) as server:
        source = source_of(server)

        assert source.entries() is None
        assert data_of(load(source, read_checkpoint(source))) == contents(folder)


def test_a_missing_shard_is_named(server: FaultServer) -> None:
    del server.objects[SHARD]

    with pytest.raises(ModelError, match=SHARD):
        read_checkpoint(source_of(server))


def test_a_small_file_that_differs_from_the_manifest_is_refused(server: FaultServer) -> None:
    add_manifest(server)
    server.objects["generation_config.json"] = b'{"temperature": 2.0}'

    with pytest.raises(VerificationFailed, match=r"generation_config\.json"):
        read_checkpoint(source_of(server))


def test_a_small_file_flipped_once_on_its_way_heals(server: FaultServer) -> None:
    add_manifest(server)
    server.add(flip_bit(3), name="config.json", times=1)
    server.add(flip_bit(300), name=MANIFEST_NAME, times=1)

    assert read_checkpoint(source_of(server)).config["num_hidden_layers"] == LAYERS


def test_a_file_that_the_manifest_does_not_know_is_refused(server: FaultServer) -> None:
    add_manifest(server)
    server.objects["chat_template.jinja"] = b"{{ evil }}"

    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        read_checkpoint(source_of(server))


def test_a_load_can_be_cancelled_while_the_server_is_silent(server: FaultServer) -> None:
    source = source_of(server, SourceOptions(stall_timeout_seconds=60))
    checkpoint = read_checkpoint(source)
    server.add(cut("stall"))
    threads = threading.active_count()

    with pytest.raises(LoadCancelled):
        Loader(source, checkpoint).load(
            all_parts(LAYERS), cancelled=lambda: sum(f.hits for f in server.faults) >= 3
        )

    # What is left are the server's own threads, one per silent connection.
    assert not [t for t in threading.enumerate() if t.name == "butterfly-weights"]
    assert threading.active_count() >= threads - 1


def test_a_server_that_is_down_is_told_with_its_address(server: FaultServer) -> None:
    source = source_of(server)
    checkpoint = read_checkpoint(source)
    gone = source_at("http://127.0.0.1:9")

    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9.*gave up after 8 tries"):
        load(gone, checkpoint)
