"""Opening a model, and the numbers that come of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from butterfly_core.errors import ModelError
from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import INDEX_NAME, read_checkpoint
from butterfly_weights.spec import model_spec
from tests.support.checkpoints import Shape, config_of, safetensors_bytes, write_checkpoint
from tests.unit.weights.fakes import MemorySource

SHAPE = Shape(layer_count=3, shards=2)


def objects_of(folder: Path, shape: Shape = SHAPE) -> dict[str, bytes]:
    write_checkpoint(folder, shape)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> MemorySource:
    return MemorySource(objects_of(tmp_path))


def configure(source: MemorySource, *without: str, **fields: Any) -> None:
    config = config_of(SHAPE) | fields
    kept = {key: value for key, value in config.items() if key not in without}
    source.objects["config.json"] = json.dumps(kept).encode()


def test_a_sharded_checkpoint_in_numbers(source: MemorySource) -> None:
    spec = model_spec(read_checkpoint(source), "tiny")

    kv_size = 64 // 4 * 2
    layer = 2 * (2 * 64 + 3 * 64 * 128 + 2 * kv_size * 64 + 2 * 64 * 64)
    assert spec.layer_count == 3
    assert set(spec.part_bytes) == set(all_parts(3))
    assert spec.layer_bytes(1) == layer
    assert spec.part_bytes["embed"] == spec.part_bytes["head"] == 2 * 256 * 64
    assert spec.part_bytes["norm"] == 2 * 64
    assert spec.kv_bytes_per_token == 2 * kv_size * 2
    assert (spec.dtype, spec.tied, spec.context_length) == ("bfloat16", False, 512)
    assert (spec.architecture, spec.manifest_root) == ("LlamaForCausalLM", None)


def test_only_headers_are_read_of_the_shards(source: MemorySource) -> None:
    read_checkpoint(source)

    shards = [c for n, c in source.objects.items() if n.endswith(".safetensors")]
    headers = sum(8 + int.from_bytes(content[:8], "little") for content in shards)
    assert source.range_bytes == headers


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    one = MemorySource(objects_of(tmp_path / "one", Shape(layer_count=3, shards=1)))
    two = MemorySource(objects_of(tmp_path / "two", SHAPE))

    assert INDEX_NAME not in one.objects
    one_spec, two_spec = (model_spec(read_checkpoint(s), "m") for s in (one, two))
    assert one_spec.part_bytes == two_spec.part_bytes
    assert one_spec.revision != two_spec.revision


@pytest.mark.parametrize("said", [True, None])
def test_a_tied_model_has_no_head_of_its_own(tmp_path: Path, said: bool | None) -> None:
    source = MemorySource(objects_of(tmp_path, Shape(layer_count=3, tied=True)))
    configure(source, "tie_word_embeddings")
    if said:
        configure(source, tie_word_embeddings=True)

    spec = model_spec(read_checkpoint(source), "m")

    assert spec.tied
    assert spec.part_bytes["head"] == 0
    assert spec.last_extra_bytes == spec.part_bytes["embed"] + spec.part_bytes["norm"]


def test_a_head_dim_or_text_config_of_its_own_is_honoured(source: MemorySource) -> None:
    configure(source, head_dim=128)
    assert model_spec(read_checkpoint(source), "m").kv_bytes_per_token == 2 * 2 * 128 * 2
    inner = config_of(SHAPE) | {"num_key_value_heads": 4, "dtype": "float32"}
    source.objects["config.json"] = json.dumps(
        {"architectures": ["Seeing"], "text_config": inner}
    ).encode()
    spec = model_spec(read_checkpoint(source), "m")
    assert (spec.architecture, spec.kv_bytes_per_token) == ("Seeing", 2 * 4 * 16 * 4)


def test_the_names_of_older_configs_are_known(source: MemorySource) -> None:
    old = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_positions": 99, "vocab_size": 256}
    source.objects["config.json"] = json.dumps({"architectures": ["GPT2"]} | old).encode()

    spec = model_spec(read_checkpoint(source), "m")

    assert (spec.layer_count, spec.hidden_size, spec.context_length) == (3, 64, 99)
    assert spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "without", "says"),
    [
        ({"num_hidden_layers": 4}, (), "no tensors of layers.3"),
        ({"num_hidden_layers": "3"}, (), "num_hidden_layers is '3'"),
        ({"num_hidden_layers": 1 << 39}, (), "at most"),
        ({}, ("num_hidden_layers",), "lacks num_hidden_layers"),
        ({}, ("architectures",), "architectures"),
        ({"architectures": [5]}, (), "architectures"),
        ({"vocab_size": -1}, (), "vocab_size is -1"),
        ({"head_dim": "x"}, (), "head_dim"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    source: MemorySource, fields: dict[str, Any], without: tuple[str, ...], says: str
) -> None:
    configure(source, *without, **fields)
    checkpoint = read_checkpoint(source)

    with pytest.raises(ModelError, match=says):
        model_spec(checkpoint, "m")


def test_a_model_that_says_untied_but_has_no_head_is_refused(tmp_path: Path) -> None:
    source = MemorySource(objects_of(tmp_path, Shape(layer_count=3, tied=True)))
    configure(source, tie_word_embeddings=False)

    with pytest.raises(ModelError, match="no output head"):
        model_spec(read_checkpoint(source), "m")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b'{"a": 1, "a": 2}', "duplicate keys"),
        (INDEX_NAME, b"{}", "no weight_map"),
        (INDEX_NAME, b'{"weight_map": {"a": 5}}', "not a name"),
        (INDEX_NAME, b'{"weight_map": {"a": "x.safetensors"}}', "lacks the shard"),
        ("model-00001-of-00002.safetensors", b"", "0 bytes"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    source: MemorySource, name: str, content: bytes, says: str
) -> None:
    source.objects[name] = content

    with pytest.raises(ModelError, match=says):
        read_checkpoint(source)


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_folder_without_what_a_model_needs_is_refused(source: MemorySource, name: str) -> None:
    del source.objects[name]

    with pytest.raises(ModelError, match="has n"):
        read_checkpoint(source)


def test_index_and_shards_must_name_the_same_tensors(source: MemorySource) -> None:
    index = json.loads(source.objects[INDEX_NAME])
    weight_map = index["weight_map"]
    for spoiled, says in (
        (weight_map | {"new": weight_map["lm_head.weight"]}, "'new' is not in"),
        ({n: s for n, s in weight_map.items() if n != "lm_head.weight"}, "does not name"),
        (weight_map | {"lm_head.weight": weight_map["model.embed_tokens.weight"]}, "is not in"),
    ):
        source.objects[INDEX_NAME] = json.dumps({"weight_map": spoiled}).encode()
        with pytest.raises(ModelError, match=says):
            read_checkpoint(source)


def test_a_tensor_in_two_shards_is_refused(source: MemorySource) -> None:
    twice = {"model.norm.weight": ("BF16", (64,), bytes(128)), "own": ("U8", (1,), b"x")}
    source.objects["model-00009.safetensors"] = safetensors_bytes(twice)
    index = json.loads(source.objects[INDEX_NAME])
    index["weight_map"]["own"] = "model-00009.safetensors"
    source.objects[INDEX_NAME] = json.dumps(index).encode()

    with pytest.raises(ModelError, match=r"'model\.norm\.weight' is in"):
        read_checkpoint(source)


def test_the_revision_follows_every_file_that_is_read(source: MemorySource) -> None:
    seen = {read_checkpoint(source).revision}
    configure(source, rope_theta=5.0)
    seen.add(read_checkpoint(source).revision)
    shard = next(name for name in source.objects if name.endswith(".safetensors"))
    source.objects[shard] = source.objects[shard][:-1] + b"\0"
    seen.add(read_checkpoint(source).revision)

    assert len(seen) == 3
    assert read_checkpoint(source).revision in seen
