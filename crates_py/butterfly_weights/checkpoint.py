"""Opening a model: its small files, the headers of its shards and its manifest, all checked
before anything is allocated."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from butterfly_core.errors import ModelError
from butterfly_weights.errors import NotFound, shown
from butterfly_weights.manifest import MANIFEST_NAME, Manifest
from butterfly_weights.safetensors_header import (
    LENGTH_BYTES,
    header_length,
    parse_header,
    parse_json_object,
)
from butterfly_weights.small_files import (
    CONFIG_NAME,
    Folder,
    read_manifest,
    read_small_files,
)
from butterfly_weights.source import (
    ObjectInfo,
    Pinned,
    RangeReader,
    Source,
    safe_name,
    tell_nobody,
)
from butterfly_weights.tensors import TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_INDEX_BYTES_MAX = 64 << 20
_SHARDS_MAX = 10_000
_READERS = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as its source describes it; nothing of its weights has been read.

    ``tensors`` are sorted by name. ``objects`` are the shards. ``revision`` names this version of
    the files and is the same on every machine: it covers small files, headers and sizes, and
    the shards' ETags where they say something about content (S3); on a hub it is the commit.
    ``cache_key`` also covers where the files are and their local versions.
    """

    config: Mapping[str, Any]
    small_files: Mapping[str, bytes]
    tensors: tuple[TensorInfo, ...]
    objects: Mapping[str, ObjectInfo]
    manifest: Manifest | None
    revision: str
    cache_key: str

    def tensors_of(self, parts: Iterable[str]) -> tuple[TensorInfo, ...]:
        """The tensors of some parts, in the order of the parts, then by place in their shards."""
        rank = {part: number for number, part in enumerate(parts)}
        own = [tensor for tensor in self.tensors if tensor.part in rank]
        return tuple(sorted(own, key=lambda t: (rank[t.part], t.shard, t.offset)))

    def same_layout(self, source: Source, shard: str) -> ObjectInfo | None:
        """The version of a shard that is there now, if its tensors are still where they were."""
        info = source.stat(shard)
        reader = source.reader()
        try:
            now = read_header(reader, info)
        finally:
            reader.close()
        before = [tensor for tensor in self.tensors if tensor.shard == shard]
        return info if sorted(now, key=lambda tensor: tensor.name) == before else None


def read_checkpoint(source: Source, *, with_manifest: bool = True) -> Checkpoint:
    """Open the model of a source. Blocks. Raises ModelError, SourceError, VerificationFailed.

    ``with_manifest`` False leaves a manifest aside, for whoever makes or checks one.
    """
    folder = Folder(source)
    if not folder.has(CONFIG_NAME):
        raise ModelError(f"{source.describe()} has no {CONFIG_NAME}: is this a model's folder?")
    manifest = read_manifest(folder) if with_manifest else None
    small_files = read_small_files(folder, manifest)
    config = parse_json_object(small_files[CONFIG_NAME], CONFIG_NAME)
    index = folder.read(INDEX_NAME, _INDEX_BYTES_MAX)
    weight_map = None if index is None else parse_index(index)
    if weight_map is None and not folder.has(SINGLE_NAME):
        raise ModelError(
            f"{source.describe()} has neither {INDEX_NAME} nor {SINGLE_NAME}: only safetensors "
            "checkpoints can be loaded"
        )
    shards = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE_NAME]
    objects = {name: _info(source, folder.listed, name) for name in shards}
    headers = _read_headers(source, list(objects.values()))
    tensors = _merge(headers, weight_map)
    if manifest:
        _refuse_other_manifest(manifest, tensors)
    return Checkpoint(
        config=config,
        small_files=small_files,
        tensors=tensors,
        objects=objects,
        manifest=manifest,
        revision=(
            source.version()
            if isinstance(source, Pinned)
            else _revision(small_files, tensors, objects, etags=source.etag_names_content)
        ),
        cache_key=_revision(
            {"source": source.describe().encode(), **small_files}, tensors, objects, etags=True
        ),
    )


def read_header(reader: RangeReader, info: ObjectInfo) -> tuple[TensorInfo, ...]:
    """The tensors of one shard, reading not a byte more. Raises ModelError, SourceError."""
    if info.size < LENGTH_BYTES + 2:
        raise ModelError(f"{info.name} has {info.size} bytes: no safetensors file is so small")
    first = bytearray(LENGTH_BYTES)
    reader.read_into(info, 0, [memoryview(first)], tell_nobody)
    header = bytearray(header_length(bytes(first), info.name, info.size))
    reader.read_into(info, LENGTH_BYTES, [memoryview(header)], tell_nobody)
    return parse_header(bytes(header), info.name, info.size)


def _info(source: Source, listed: Mapping[str, ObjectInfo] | None, name: str) -> ObjectInfo:
    if listed is None:
        return source.stat(name)
    if name not in listed:
        raise ModelError(f"{source.describe()} lacks the shard {name} that {INDEX_NAME} names")
    return listed[name]


def parse_index(data: bytes) -> dict[str, str]:
    """Tensor's name → shard, which is a plain file name. Raises ModelError."""
    weight_map = parse_json_object(data, INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX_NAME} has no weight_map")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ModelError(f"{INDEX_NAME}: the shard of {shown(tensor)} is not a name")
        try:
            safe_name(shard)
        except ModelError as error:
            raise ModelError(f"{INDEX_NAME}: shard of tensor {shown(tensor)}: {error}") from None
    if len(set(weight_map.values())) > _SHARDS_MAX:
        raise ModelError(f"{INDEX_NAME} names more than {_SHARDS_MAX} shards")
    return weight_map


def _read_headers(source: Source, infos: Sequence[ObjectInfo]) -> list[tuple[TensorInfo, ...]]:
    def read(info: ObjectInfo) -> tuple[TensorInfo, ...]:
        reader = source.reader()
        try:
            return read_header(reader, info)
        except NotFound as error:
            raise ModelError(f"the shard {info.name} is missing: {error}") from error
        finally:
            reader.close()

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, infos))


def _merge(
    headers: Iterable[tuple[TensorInfo, ...]], weight_map: Mapping[str, str] | None
) -> tuple[TensorInfo, ...]:
    found: dict[str, TensorInfo] = {}
    for tensor in (tensor for header in headers for tensor in header):
        if tensor.name in found:
            raise ModelError(
                f"tensor {tensor.name!r} is in {found[tensor.name].shard} and in {tensor.shard}"
            )
        found[tensor.name] = tensor
    for name, shard in (weight_map or {}).items():
        if name not in found or found[name].shard != shard:
            raise ModelError(f"{INDEX_NAME}: tensor {shown(name)} is not in {shard}")
    if weight_map is not None and len(found) != len(weight_map):
        extra = sorted(set(found) - set(weight_map))[:3]
        raise ModelError(f"{INDEX_NAME} does not name the tensors {', '.join(extra)}")
    if not found:
        raise ModelError("the checkpoint has no tensors")
    return tuple(found[name] for name in sorted(found))


def _refuse_other_manifest(manifest: Manifest, tensors: Sequence[TensorInfo]) -> None:
    described = {t.name: (t.dtype, t.shape) for t in tensors}
    promised = {n: (e.info.dtype, e.info.shape) for n, e in manifest.tensors.items()}
    if described != promised:
        odd = sorted(
            n for n in described.keys() | promised.keys() if described.get(n) != promised.get(n)
        )
        raise ModelError(
            f"{MANIFEST_NAME} is of another checkpoint: {len(odd)} tensors differ, as {odd[0]!r}; "
            "make it again: butterfly-admin manifest create"
        )


def _revision(
    small_files: Mapping[str, bytes],
    tensors: Sequence[TensorInfo],
    objects: Mapping[str, ObjectInfo],
    *,
    etags: bool,
) -> str:
    """32 hexadecimal digits."""
    hasher = blake3(derive_key_context="butterfly weights 2026 v1: revision")
    shards = [(o.name, o.size, o.etag if etags else "") for _, o in sorted(objects.items())]
    hasher.update(repr(shards).encode())
    for name, content in sorted(small_files.items()):
        hasher.update(repr((name, len(content))).encode() + content)
    hasher.update(repr([(t.name, t.dtype, t.shape, t.shard, t.offset) for t in tensors]).encode())
    return hasher.hexdigest()[:32]
