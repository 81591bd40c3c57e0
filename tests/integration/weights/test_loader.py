"""Loading from a folder: bytes, alignment, digests, progress, cancelling, changed files."""

import ctypes
import gc
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from butterfly_core.errors import InvalidValue, ModelError, SourceError
from butterfly_core.layers import LayerRange, all_parts, stage_parts
from butterfly_weights import destination as destination_module
from butterfly_weights.arena import Arena
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.errors import BytesMismatch, LoadCancelled, NoMemory, NotFound, SourceChanged
from butterfly_weights.loader import Loader
from butterfly_weights.loader_options import LoaderOptions
from butterfly_weights.manifest import MANIFEST_NAME
from butterfly_weights.merkle import LEAF_BYTES, model_root
from butterfly_weights.progress import LoadProgress
from butterfly_weights.proving import create_manifest, verify_source, write_manifest
from butterfly_weights.source import open_source
from butterfly_weights.spec import model_spec
from tests.support.checkpoints import Shape, write_checkpoint

# One tensor of 10.5 MB: three leaves, two pieces.
BIG = Shape(layer_count=2, hidden_size=512, intermediate_size=1024, vocab_size=10_240)
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("big")
    return folder, write_checkpoint(folder, BIG)


def test_every_tensor_comes_whole_aligned_and_writable(big: tuple[Path, dict[str, bytes]]) -> None:
    source = open_source("filesystem", str(big[0]))

    result = Loader(source, read_checkpoint(source)).load(all_parts(2))

    assert {name: bytes(tensor.data) for name, tensor in result.tensors.items()} == big[1]
    for tensor in result.tensors.values():
        assert ctypes.addressof(ctypes.c_char.from_buffer(tensor.data)) % 64 == 0
        assert not tensor.data.readonly
    assert result.bytes_from_source == sum(len(data) for data in big[1].values())


def test_each_part_alone_gives_the_digest_it_has_in_the_whole(
    big: tuple[Path, dict[str, bytes]],
) -> None:
    source = open_source("filesystem", str(big[0]))
    checkpoint = read_checkpoint(source)
    loader = Loader(source, checkpoint)

    apart = {
        part: digest
        for part in all_parts(2)
        for _, digest in loader.load([part]).part_digests.items()
    }
    manifest = create_manifest(source)

    assert apart == loader.load(all_parts(2)).part_digests == manifest.part_digests()
    assert model_root(checkpoint.small_files, apart, 2) == manifest.root


def test_shards_may_be_cut_otherwise_without_changing_a_digest(tmp_path: Path) -> None:
    roots = set()
    for shards in (1, 2, 5):
        folder = tmp_path / str(shards)
        write_checkpoint(folder, Shape(shards=shards))
        roots.add(create_manifest(open_source("filesystem", str(folder))).root)

    assert len(roots) == 1


def test_only_the_tensors_of_the_parts_are_loaded(big: tuple[Path, dict[str, bytes]]) -> None:
    source = open_source("filesystem", str(big[0]))
    checkpoint = read_checkpoint(source)
    spec = model_spec(checkpoint, "big")
    layers = LayerRange(1, 2)

    result = Loader(source, checkpoint).load(stage_parts(layers, 2, tied=False))

    held = sum(tensor.info.nbytes for tensor in result.tensors.values())
    assert held == spec.stage_bytes(layers)
    assert held <= result.bytes_from_source <= held * 1.01
    assert "model.embed_tokens.weight" not in result.tensors


def test_progress_rises_to_the_whole(big: tuple[Path, dict[str, bytes]]) -> None:
    source = open_source("filesystem", str(big[0]))
    told: list[LoadProgress] = []
    options = LoaderOptions(readers=1, poll_seconds=0.001)

    loader = Loader(source, read_checkpoint(source), options=options)
    loader.load(all_parts(2), on_progress=told.append)

    total = sum(len(data) for data in big[1].values())
    done = [progress.bytes_done for progress in told]
    assert done == sorted(done)
    assert told[-1] == LoadProgress(total, total, total, 0)


def test_a_cancelled_load_ends_and_can_be_made_again(big: tuple[Path, dict[str, bytes]]) -> None:
    source = open_source("filesystem", str(big[0]))
    options = LoaderOptions(readers=1, poll_seconds=0.0)
    loader = Loader(source, read_checkpoint(source), options=options)

    with pytest.raises(LoadCancelled):
        loader.load(all_parts(2), cancelled=lambda: True)

    assert len(loader.load(all_parts(2)).tensors) == len(big[1])


@pytest.fixture
def without_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_garbage_collector")
def test_the_memory_goes_with_the_result(big: tuple[Path, dict[str, bytes]]) -> None:
    source = open_source("filesystem", str(big[0]))
    result = Loader(source, read_checkpoint(source)).load(all_parts(2))
    memory = weakref.ref(next(iter(result.tensors.values())).data.obj)

    del result

    assert memory() is None


@pytest.mark.usefixtures("without_garbage_collector")
def test_a_part_that_is_let_go_of_frees_its_memory_while_others_stay(
    big: tuple[Path, dict[str, bytes]],
) -> None:
    source = open_source("filesystem", str(big[0]))
    result = Loader(source, read_checkpoint(source)).load(all_parts(2))
    kept = {n: t for n, t in result.tensors.items() if t.info.part == "layers.1"}
    memory = weakref.ref(result.tensors["model.embed_tokens.weight"].data.obj)

    del result

    assert memory() is None
    assert {name: bytes(tensor.data) for name, tensor in kept.items()} == {
        name: big[1][name] for name in kept
    }


@pytest.mark.usefixtures("without_garbage_collector")
def test_a_kept_error_keeps_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[object]] = []

    def arena(sizes: Sequence[int]) -> Arena:
        real = Arena(sizes)
        made.append(weakref.ref(real.blocks[0].obj))
        return real

    monkeypatch.setattr(destination_module, "Arena", arena)
    write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))
    write_manifest(source, create_manifest(source))
    checkpoint = read_checkpoint(source)
    content = bytearray((tmp_path / SHARD).read_bytes())
    content[-1] ^= 1
    (tmp_path / SHARD).write_bytes(content)

    with pytest.raises(BytesMismatch) as kept:
        Loader(source, checkpoint).load(all_parts(4))

    assert kept.value
    assert made
    assert all(memory() is None for memory in made)


def test_an_unknown_part_is_refused(big: tuple[Path, dict[str, bytes]]) -> None:
    source = open_source("filesystem", str(big[0]))

    with pytest.raises(InvalidValue, match=r"layers\.7"):
        Loader(source, read_checkpoint(source)).load(["embed", "layers.7"])


def test_memory_that_cannot_be_had_is_told() -> None:
    with pytest.raises(NoMemory, match="bytes for weights"):
        Arena([1 << 60])


def test_a_damaged_file_is_named_and_a_restored_one_loads(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, BIG)
    source = open_source("filesystem", str(tmp_path))
    write_manifest(source, create_manifest(source))
    sound = (tmp_path / SHARD).read_bytes()
    checkpoint = read_checkpoint(source)
    assert checkpoint.manifest is not None
    loader = Loader(source, checkpoint)
    tensor = next(t for t in checkpoint.tensors if t.name == "model.embed_tokens.weight")
    at = tensor.offset + LEAF_BYTES + 5
    spoiled = sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
    (tmp_path / SHARD).write_bytes(spoiled)

    with pytest.raises(BytesMismatch) as failed:
        loader.load(all_parts(2))
    (problem,) = verify_source(source, checkpoint.manifest)
    (tmp_path / SHARD).write_bytes(sound)
    result = loader.load(all_parts(2))

    assert (failed.value.object_name, failed.value.tensor) == (SHARD, tensor.name)
    assert failed.value.start == tensor.offset + LEAF_BYTES
    assert failed.value.stop == tensor.offset + 2 * LEAF_BYTES
    assert (problem.tensor, problem.start, problem.seen) == (
        tensor.name,
        failed.value.start,
        failed.value.seen,
    )
    assert dict(result.part_digests) == checkpoint.manifest.part_digests()


def test_a_file_changed_in_place_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))
    checkpoint = read_checkpoint(source)
    os.utime(tmp_path / SHARD, ns=(1, 1))

    with pytest.raises(SourceChanged, match=SHARD):
        Loader(source, checkpoint).load(all_parts(4))


def test_a_file_cut_off_or_removed_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))
    checkpoint = read_checkpoint(source)
    os.truncate(tmp_path / SHARD, 2000)
    with pytest.raises(SourceChanged, match=SHARD):
        Loader(source, checkpoint).load(all_parts(4))
    with pytest.raises(ModelError, match=SHARD):
        read_checkpoint(source)
    (tmp_path / SHARD).unlink()
    with pytest.raises(NotFound, match=SHARD):
        Loader(source, checkpoint).load(all_parts(4))


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, Shape())
    source = open_source("filesystem", str(folder))
    (folder / "inside").mkdir()
    (folder / SHARD).rename(folder / "inside" / SHARD)
    (folder / SHARD).symlink_to(folder / "inside" / SHARD)
    assert read_checkpoint(source).tensors

    (folder / SHARD).unlink()
    (folder / "inside" / SHARD).rename(tmp_path / SHARD)
    (folder / SHARD).symlink_to(tmp_path / SHARD)
    with pytest.raises(ModelError, match="outside of the model's folder"):
        read_checkpoint(source)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere does not exist"):
        read_checkpoint(open_source("filesystem", str(tmp_path / "nowhere")))


def test_a_pipe_or_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    source = open_source("filesystem", str(tmp_path))
    for name in ("pipe", "folder"):
        with pytest.raises(ModelError, match="not a regular file"):
            source.stat(name)


def test_the_revision_does_not_depend_on_where_a_folder_lies(tmp_path: Path) -> None:
    opened = []
    for number, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, Shape())
        os.utime(tmp_path / name / SHARD, ns=(number, number))
        opened.append(read_checkpoint(open_source("filesystem", str(tmp_path / name))))

    assert opened[0].revision == opened[1].revision
    assert opened[0].cache_key != opened[1].cache_key


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))
    manifest = create_manifest(source)
    write_manifest(source, manifest)
    write_manifest(source, manifest)

    assert read_checkpoint(source).manifest == manifest
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(MANIFEST_NAME)] == [
        MANIFEST_NAME
    ]
    with pytest.raises(SourceError):
        open_source("filesystem", str(tmp_path / "nowhere")).write_small("x", b"")


def test_verifying_names_files_and_tensors_that_differ(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))
    manifest = create_manifest(source)
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / "vocab.json").write_text("{}")
    assert sorted(p.text for p in verify_source(source, manifest)) == [
        "generation_config.json differs",
        "vocab.json is not listed",
    ]
    other = tmp_path / "other"
    write_checkpoint(other, Shape(vocab_size=128, tied=True))
    texts = [p.text for p in verify_source(open_source("filesystem", str(other)), manifest)]
    assert "tensor lm_head.weight is missing" in texts
    assert any("embed_tokens.weight is BF16 [128, 64], not BF16 [256, 64]" in t for t in texts)
