"""The cache over models, revisions, rot, crashes and full disks."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from butterfly_core.layers import all_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.cache_files import entries_in, info_path, sweep, tensor_path
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.merkle import leaf_digest, tensor_digest
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.scrubbing import ROUND_PAUSE_SECONDS, Scrubber, is_sound
from butterfly_weights.source import Source, open_source
from butterfly_weights.tensors import TensorInfo
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.needs import need

LAYERS = 4
SMALL_DISK_BYTES = 256 << 10
LEFT_BYTES = 64 << 10


def model(folder: Path, seed: int = 1) -> Source:
    write_checkpoint(folder, Shape(seed=seed))
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    return source


def load(source: Source, cache: TensorCache) -> LoadResult:
    result = Loader(source, read_checkpoint(source), cache=cache).load(all_parts(LAYERS))
    assert cache.flush(30)
    return result


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def change_one_tensor(folder: Path) -> int:
    """Another revision: the last bytes of one shard. Returns the size of the tensor."""
    shard = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    source = open_source("filesystem", str(folder))
    tensors = read_checkpoint(source, with_manifest=False).tensors
    write_manifest(source, create_manifest(source))
    last = max((t for t in tensors if t.shard == shard.name), key=lambda t: t.offset)
    return last.nbytes


def test_another_revision_fetches_only_what_changed(tmp_path: Path, place: Path) -> None:
    source = model(tmp_path / "model")
    cache = TensorCache(place)
    first = load(source, cache)
    changed = change_one_tensor(tmp_path / "model")

    second = load(source, cache)
    cache.close()

    assert second.bytes_from_source == changed
    assert second.bytes_from_cache == first.bytes_from_source - changed


def test_the_same_tensors_under_another_name_and_place_are_not_fetched_again(
    tmp_path: Path, place: Path
) -> None:
    cache = TensorCache(place)
    load(model(tmp_path / "model"), cache)

    copy = load(model(tmp_path / "a" / "copy"), cache)
    other = load(model(tmp_path / "other", seed=9), cache)
    cache.close()

    assert copy.bytes_from_source == 0
    assert other.bytes_from_cache < other.bytes_from_source


def test_room_is_made_at_the_cost_of_the_model_before_and_never_of_the_present_one(
    tmp_path: Path, place: Path
) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two", seed=9)
    size = read_checkpoint(one).manifest
    assert size is not None
    cache = TensorCache(place, bytes_max=size.total_bytes)
    load(one, cache)
    time.sleep(0.1)  # the clock of files has steps
    cache.protect_from_now()

    load(two, cache)
    again = load(two, cache)
    cache.close()

    assert again.bytes_from_source == 0
    assert sum(entry.nbytes for entry in entries_in(place)) <= size.total_bytes


def test_a_model_larger_than_the_cache_keeps_what_it_wrote_first(
    tmp_path: Path, place: Path
) -> None:
    source = model(tmp_path / "model")
    manifest = read_checkpoint(source).manifest
    assert manifest is not None
    cache = TensorCache(place, bytes_max=manifest.total_bytes // 2)

    load(source, cache)
    kept = {entry.path for entry in entries_in(place)}
    again = load(source, cache)
    cache.close()

    assert 0 < again.bytes_from_cache <= manifest.total_bytes // 2
    assert {entry.path for entry in entries_in(place)} == kept


# rot


@pytest.fixture
def scrub(place: Path) -> Iterator[Callable[[], Scrubber]]:
    begun: list[Scrubber] = []

    def begin() -> Scrubber:
        begun.append(Scrubber(place, 1 << 40, round_pause_seconds=0.01))
        return begun[-1]

    yield begin
    for scrubber in begun:
        scrubber.stop(10)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rot_is_found_dropped_and_counted_and_the_rest_stays(
    tmp_path: Path, place: Path, scrub: Callable[[], Scrubber]
) -> None:
    cache = TensorCache(place)
    first = load(model(tmp_path / "model"), cache)
    cache.close()
    entries = sorted(entries_in(place), key=lambda entry: entry.nbytes)
    victim = entries[-1].path
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    used = {entry.path: entry.used_at for entry in entries[:-1]}

    scrubber = scrub()
    eventually(lambda: scrubber.counts[0] >= 2 * first.bytes_from_source)

    assert scrubber.counts[1] == 1
    assert not victim.exists()
    assert not info_path(victim).exists()
    assert {entry.path: entry.used_at for entry in entries_in(place)} == used


@pytest.mark.parametrize("said", [None, "{", "[]", '{"name": 1, "dtype": "U8", "shape": [3]}'])
def test_an_entry_of_which_nothing_sensible_is_said_is_left_to_who_uses_it(
    place: Path, scrub: Callable[[], Scrubber], said: str | None
) -> None:
    path = tensor_path(place, b"\xab" * 32)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    if said is not None:
        info_path(path).write_text(said)

    assert is_sound(path) is None
    scrubber = scrub()
    time.sleep(0.1)
    assert scrubber.counts == (0, 0)
    assert path.exists()


def test_what_is_cut_grown_or_said_wrong_is_rot(place: Path) -> None:
    leaves = [leaf_digest(b"abc")]
    digest = tensor_digest("t", "U8", (3,), 3, leaves)
    path = tensor_path(place, digest)
    path.parent.mkdir(parents=True)
    said = '{"name": "t", "dtype": "U8", "shape": [3]}'

    for content, info, sound in (
        (b"abc", said, True),
        (b"ab", said, False),
        (b"abcd", said, False),
        (b"", said, False),
        (b"abc", said.replace('"t"', '"u"'), False),
    ):
        path.write_bytes(content)
        info_path(path).write_text(info)
        assert is_sound(path) is sound


def test_the_scrub_keeps_to_its_rate_and_stops_when_asked(
    place: Path,
) -> None:
    cache = TensorCache(place)
    data = bytes(5 << 20)
    info = TensorInfo("t", "U8", (len(data),), len(data), "", 0)
    leaves = [leaf_digest(data[: 4 << 20]), leaf_digest(data[4 << 20 :])]
    digest = tensor_digest("t", "U8", info.shape, len(data), leaves)
    cache.offer("t", digest, memoryview(data), info=info)
    assert cache.flush(30)
    cache.close()
    assert is_sound(tensor_path(place, digest))
    waits: list[float] = []

    class Waiting(threading.Event):
        """Is set in the third wait, which takes no time."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            if len(waits) == 3:
                self.set()
            return self.is_set()

    scrubber = Scrubber(place, 1 << 19, stopping=Waiting())
    eventually(lambda: len(waits) == 4)
    scrubber.stop(10)

    assert waits == [2.0, 2.0, 2.0, ROUND_PAUSE_SECONDS]
    assert scrubber.counts == (3 << 20, 0)


def test_a_cache_that_is_only_read_is_not_scrubbed(tmp_path: Path, place: Path) -> None:
    writer = TensorCache(place)
    load(model(tmp_path / "model"), writer)
    reader = TensorCache(place, scrub_bytes_per_second=1 << 40)
    reader.close()
    writer.close()
    owner = TensorCache(place, scrub_bytes_per_second=1 << 40)
    eventually(lambda: owner.statistics().scrubbed_bytes > 0)
    owner.close()

    assert reader.statistics().scrubbed_bytes == 0
    assert owner.statistics().rotten == 0


# age


def test_only_what_was_not_used_since_is_swept(tmp_path: Path, place: Path) -> None:
    cache = TensorCache(place)
    load(model(tmp_path / "model"), cache)
    cache.close()
    entries = sorted(entries_in(place), key=lambda entry: entry.path)
    old = entries[: len(entries) // 2]
    for entry in old:
        os.utime(entry.path, (1000.0, 1000.0))

    counted = sweep(place, used_before=2000.0, dry_run=True)
    swept = sweep(place, used_before=2000.0)

    assert counted == swept
    assert (swept.entries, swept.nbytes) == (len(old), sum(entry.nbytes for entry in old))
    assert {entry.path for entry in entries_in(place)} == {
        entry.path for entry in entries[len(old) :]
    }
    assert not any(info_path(entry.path).exists() for entry in old)
    assert sweep(place).entries == len(entries) - len(old)
    assert not list((place / "tensors").glob("??/*"))


# crashes

WRITER = """
import sys
from pathlib import Path
from butterfly_weights.cache import TensorCache
from butterfly_weights.merkle import leaf_digest, tensor_digest
from butterfly_weights.tensors import TensorInfo

cache = TensorCache(Path(sys.argv[1]), free_bytes_min=0)
number = int(sys.argv[2])
print("writing", flush=True)
while True:
    number += 1
    data = number.to_bytes(8, "little") * (1 << 15)
    info = TensorInfo("t", "U8", (len(data),), len(data), "", 0)
    digest = tensor_digest("t", "U8", info.shape, len(data), [leaf_digest(data)])
    cache.offer("t", digest, memoryview(data), pin="abc", info=info)
    cache.flush(60)
"""


def test_a_writer_that_is_killed_leaves_nothing_that_could_be_believed(place: Path) -> None:
    chance = random.Random(5)
    whole = 0
    for run in range(12):
        command = [sys.executable, "-c", WRITER, str(place), str(run << 32)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(chance.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
        found = [e for e in entries_in(place) if not e.path.name.endswith(".part")]
        assert all(is_sound(entry.path) for entry in found)
        assert len(found) >= whole
        whole = len(found)

    cache = TensorCache(place)
    named = cache.pinned("abc")
    data = b"new"
    cache.offer("t", leaf_digest(data), memoryview(data))
    assert cache.flush(30)
    cache.close()

    assert whole > 0
    assert set(named) <= {"t"}
    assert not list((place / "tensors").glob("??/*.part"))


# full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(place)]
    need(subprocess.run(mount, check=False).returncode == 0, "the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_ends_caching_and_not_the_load(
    tmp_path: Path, small_disk: Path
) -> None:
    source = model(tmp_path / "model")
    manifest = read_checkpoint(source).manifest
    assert manifest is not None
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - LEFT_BYTES)
    cache = TensorCache(small_disk / "cache", free_bytes_min=-1 << 30)

    first = load(source, cache)
    second = load(source, cache)
    cache.close()

    assert first.part_digests == second.part_digests == manifest.part_digests()
    assert any("stopped caching" in note and "No space left" in note for note in cache.notes)
    assert 0 < second.bytes_from_cache < manifest.total_bytes
    assert not list((small_disk / "cache").rglob("*.part"))
