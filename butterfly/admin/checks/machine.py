"""Disk, memory and GPUs of this machine, against what the configured model needs."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from butterfly.admin.checks.finding import Finding, failed, passed, warned
from butterfly.admin.checks.gpu import Gpu, read_gpus
from butterfly.admin.checks.situation import Situation
from butterfly.admin.units import bytes_text

STATE_BYTES_NEEDED = 256 * 2**20
"""For the journal, snapshots and logs, without any weights."""
MEMORY_INFO = Path("/proc/meminfo")


def look_at_disk(situation: Situation) -> Sequence[Finding]:
    """data_dir can be written, and its disk holds what the cache may grow to."""
    config = situation.known
    folder = Path(config.node.data_dir)
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    seen = f"{bytes_text(free)} free for {folder}"
    if not os.access(existing, os.W_OK | os.X_OK):
        who = f"user {os.getuid()}"
        return [
            failed(
                "disk", f"{existing} is not writable for {who}", "chown it, or set [node] data_dir"
            )
        ]
    if free < STATE_BYTES_NEEDED:
        return [failed("disk", seen, "free some space, or move [node] data_dir to another disk")]
    if config.model.cache == "off" or config.model.source_type == "embedded":
        return [passed("disk", f"{seen}; no weights are cached")]
    return [_room_for_cache(situation, seen, free)]


def _room_for_cache(situation: Situation, seen: str, free: int) -> Finding:
    model_bytes = situation.model_bytes()
    if model_bytes is None:
        return passed("disk", f"{seen}; the model's size is not known")
    limit = situation.known.model.cache_bytes_max
    grows_to = min(model_bytes, limit) if limit else model_bytes
    seen = f"{seen}; the cache may grow to {bytes_text(grows_to)}"
    if free < grows_to:
        advice = 'set [model] cache_bytes_max or cache = "off", or move [node] data_dir'
        return warned("disk", seen, advice)
    return passed("disk", seen)


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the closest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def look_at_memory(situation: Situation) -> Sequence[Finding]:
    """Available memory, against an even share of the model."""
    available = available_memory(MEMORY_INFO.read_text(encoding="ascii"))
    seen = f"{bytes_text(available)} available"
    config = situation.config
    if config is None:
        return [passed("memory", seen)]
    offered = int(available * config.node.capacity)
    seen = f"{seen}, {bytes_text(offered)} offered"
    model_bytes = situation.model_bytes()
    if model_bytes is None or offered == 0:
        return [passed("memory", seen)]
    share = model_bytes // config.cluster.quorum_size
    seen = f"{seen}; an even share of the model is {bytes_text(share)}"
    if offered < share + config.engine.workspace_bytes:
        advice = (
            "see butterfly-admin plan; add nodes (quorum_size), memory, or raise [node] capacity"
        )
        return [warned("memory", seen, advice)]
    return [passed("memory", seen)]


def available_memory(meminfo: str) -> int:
    """Bytes that programs can still take, from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no MemAvailable in /proc/meminfo")


def look_at_gpus(situation: Situation) -> Sequence[Finding]:
    """Every NVIDIA GPU with its free memory; none is worth a word, as the CPU computes then."""
    wanted = situation.config.node.device if situation.config else "auto"
    gpus = read_gpus()
    if isinstance(gpus, str) or not gpus:
        reason = gpus if isinstance(gpus, str) else "the driver sees no GPU"
        if wanted.startswith("cuda"):
            advice = 'see nvidia-smi; or set [node] device = "auto"'
            return [failed("GPU", f'{reason}, but [node] device = "{wanted}"', advice)]
        if wanted == "cpu":
            return [passed("GPU", f"{reason}; not needed, [node] device is cpu")]
        return [
            warned("GPU", f"{reason}; the CPU computes", "fine if meant so; else see nvidia-smi")
        ]
    if wanted.startswith("cuda") and int(wanted.removeprefix("cuda:")) >= len(gpus):
        return [
            failed("GPU", f"{wanted} does not exist, {len(gpus)} GPUs do", "correct [node] device")
        ]
    return [_gpu(gpu, wanted) for gpu in gpus]


def _gpu(gpu: Gpu, wanted: str) -> Finding:
    name = f"GPU {gpu.index}"
    free, total = bytes_text(gpu.free_bytes), bytes_text(gpu.total_bytes)
    seen = f"{gpu.name}, {free} of {total} free, driver {gpu.driver}"
    is_used = wanted in ("auto", f"cuda:{gpu.index}")
    if is_used and gpu.free_bytes < gpu.total_bytes // 2:
        return warned(name, seen, "other programs hold its memory; see which with nvidia-smi")
    return passed(name, seen)
