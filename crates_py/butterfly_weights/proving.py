"""Making a model's manifest, and checking a source against one, a few MiB at a time."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from butterfly_core.layers import all_parts
from butterfly_weights.arena import Arena
from butterfly_weights.checkpoint import Checkpoint, read_checkpoint
from butterfly_weights.crew import work_off
from butterfly_weights.errors import LoadCancelled
from butterfly_weights.fetching import PassingHasher, segments_of
from butterfly_weights.manifest import (
    MANIFEST_NAME,
    Manifest,
    encode_manifest,
    entry_of,
    make_manifest,
)
from butterfly_weights.merkle import LEAF_BYTES, file_digest
from butterfly_weights.progress import LoadProgress, ProgressCounter
from butterfly_weights.select import PIECE_BYTES_MAX, Piece, plan_pieces
from butterfly_weights.source import ObjectInfo, RangeReader, Source
from butterfly_weights.spec import layer_count_of
from butterfly_weights.tensors import TensorInfo

_READERS = 8
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Problem:
    """Something of a source that is not what its manifest says. ``tensor`` is empty for a file;
    the bytes [start, stop) are of the object; digests are hex, empty where there is none."""

    object_name: str
    tensor: str
    start: int
    stop: int
    expected: str
    seen: str
    text: str


def create_manifest(
    source: Source,
    *,
    on_progress: Callable[[LoadProgress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Manifest:
    """Hash the whole model (memory: some 64 MiB whatever its size). Writes nothing.

    A manifest that is there already is not looked at. Raises ModelError, SourceError,
    LoadCancelled.
    """
    checkpoint = read_checkpoint(source, with_manifest=False)
    layer_count = layer_count_of(checkpoint.config)
    tensors = checkpoint.tensors_of(all_parts(layer_count))
    digests = _hash_all(source, checkpoint, tensors, on_progress, cancelled)
    entries = [entry_of(tensor, leaves) for tensor, leaves in zip(tensors, digests, strict=True)]
    return make_manifest(layer_count, checkpoint.small_files, entries)


def write_manifest(source: Source, manifest: Manifest) -> None:
    """Put the manifest beside the model, whole or not at all. Raises SourceError."""
    source.write_small(MANIFEST_NAME, encode_manifest(manifest))


def verify_source(
    source: Source,
    manifest: Manifest,
    *,
    on_progress: Callable[[LoadProgress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Problem]:
    """Read every byte of the model and name what differs; an empty list is a sound model.

    Raises ModelError when the source is no model at all, SourceError, LoadCancelled.
    """
    checkpoint = read_checkpoint(source, with_manifest=False)
    problems = _file_problems(checkpoint, manifest)
    found = {tensor.name: tensor for tensor in checkpoint.tensors}
    problems += _shape_problems(found, manifest)
    checked = [
        found[name]
        for name, entry in sorted(manifest.tensors.items())
        if name in found and _kind(found[name]) == _kind(entry.info)
    ]
    digests = _hash_all(source, checkpoint, checked, on_progress, cancelled)
    for tensor, leaves in zip(checked, digests, strict=True):
        problems += _leaf_problems(tensor, manifest.tensors[tensor.name].leaves, leaves)
    return problems


def _kind(tensor: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _file_problems(checkpoint: Checkpoint, manifest: Manifest) -> list[Problem]:
    seen = {n: file_digest(n, content).hex() for n, content in checkpoint.small_files.items()}
    expected = {name: digest.hex() for name, digest in manifest.files.items()}
    problems = []
    for name in sorted(seen.keys() | expected.keys()):
        want, have = expected.get(name, ""), seen.get(name, "")
        if want != have:
            size = len(checkpoint.small_files.get(name, b""))
            text = "differs" if want and have else "is missing" if want else "is not listed"
            problems.append(Problem(name, "", 0, size, want, have, f"{name} {text}"))
    return problems


def _shape_problems(found: dict[str, TensorInfo], manifest: Manifest) -> list[Problem]:
    problems = []
    for name, entry in sorted(manifest.tensors.items()):
        tensor = found.get(name)
        if tensor is None:
            text = f"tensor {name} is missing"
            problems.append(Problem(entry.info.shard, name, 0, 0, "", "", text))
        elif _kind(tensor) != _kind(entry.info):
            text = (
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, not "
                f"{entry.info.dtype} {list(entry.info.shape)}"
            )
            problems.append(Problem(tensor.shard, name, 0, 0, "", "", text))
    return problems


def _leaf_problems(
    tensor: TensorInfo, expected: Sequence[bytes], seen: Sequence[bytes]
) -> list[Problem]:
    problems = []
    for index, (want, have) in enumerate(zip(expected, seen, strict=True)):
        if want != have:
            start = tensor.offset + index * LEAF_BYTES
            stop = min(start + LEAF_BYTES, tensor.offset + tensor.nbytes)
            text = f"tensor {tensor.name} in {tensor.shard} differs in bytes {start}-{stop - 1}"
            problems.append(
                Problem(tensor.shard, tensor.name, start, stop, want.hex(), have.hex(), text)
            )
    return problems


def _hash_all(
    source: Source,
    checkpoint: Checkpoint,
    tensors: Sequence[TensorInfo],
    on_progress: Callable[[LoadProgress], None],
    cancelled: Callable[[], bool],
) -> list[tuple[bytes, ...]]:
    """The leaves' digests of each tensor."""
    progress = ProgressCounter(sum(tensor.nbytes for tensor in tensors))
    found: list[dict[int, bytes]] = [{} for _ in tensors]
    stop = threading.Event()

    def poll() -> None:
        on_progress(progress.now())
        if cancelled():
            stop.set()
            raise LoadCancelled("hashing the model was cancelled")

    work_off(
        plan_pieces(tensors),
        lambda: _PieceHasher(source.reader(), checkpoint.objects, found, progress, stop),
        wanted=lambda: _READERS,
        poll=poll,
        poll_seconds=_POLL_SECONDS,
    )
    on_progress(progress.now())
    return [tuple(leaves[index] for index in sorted(leaves)) for leaves in found]


class _PieceHasher:
    """A ``crew.Worker``: reads pieces into one buffer of its own, again and again."""

    def __init__(
        self,
        reader: RangeReader,
        objects: Mapping[str, ObjectInfo],
        found: list[dict[int, bytes]],
        progress: ProgressCounter,
        stop: threading.Event,
    ) -> None:
        self._reader, self._objects, self._found = reader, objects, found
        self._progress, self._stop = progress, stop
        (self._buffer,) = Arena([PIECE_BYTES_MAX]).blocks

    def do(self, task: Piece) -> None:
        buffer = self._buffer
        segments = segments_of(
            task, lambda leaf: buffer[leaf.offset - task.offset : leaf.stop - task.offset]
        )
        hasher = PassingHasher(segments)

        def landed(count: int) -> None:
            if self._stop.is_set():
                raise LoadCancelled("hashing the model was cancelled")
            self._progress.add(source=count)
            hasher.advance(count)

        views = [view for _, view in segments]
        self._reader.read_into(self._objects[task.shard], task.offset, views, landed)
        for leaf, digest in hasher.digests:
            self._found[leaf.tensor][leaf.index] = digest
            self._progress.add(done=leaf.nbytes)

    def interrupt(self) -> None:
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()
