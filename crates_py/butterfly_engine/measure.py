"""What a device can carry: its memory, and how fast it reads and multiplies, in half a second."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from butterfly_core.errors import ConfigError
from butterfly_core.hardware import Capacity
from butterfly_engine.memory import system_memory

_CPU_READ_BYTES = 128 << 20
_CUDA_READ_BYTES = 1 << 30
_CPU_SIDE = 1024
_CUDA_SIDE = 8192
_ROWS = 256
_SECONDS_PER_MEASUREMENT = 0.1
_ROUNDS_MIN = 2


def resolve_device(asked: str) -> str:
    """``auto`` is the first GPU, else the CPU. Raises ConfigError for a missing device."""
    if asked == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    kind, _, index = asked.partition(":")
    if kind != "cuda" or not index.isdigit():
        raise ConfigError(f"device {asked!r}: write auto, cpu or cuda:N")
    if int(index) >= torch.cuda.device_count():
        raise ConfigError(f"device {asked!r}: this machine has {torch.cuda.device_count()} GPUs")
    return asked


def measure(device: str = "auto", *, dtype: str = "bfloat16") -> Capacity:
    """Measure one device now; other work on the machine lowers what is seen. Raises ConfigError."""
    device = resolve_device(device)
    on_cuda = device != "cpu"
    free, total = torch.cuda.mem_get_info(device) if on_cuda else system_memory()
    read_bytes = min(_CUDA_READ_BYTES if on_cuda else _CPU_READ_BYTES, max(1 << 20, free // 8))
    side = _CUDA_SIDE if on_cuda else _CPU_SIDE
    return Capacity(
        device=device,
        device_name=torch.cuda.get_device_name(device) if on_cuda else _cpu_name(),
        memory_free_bytes=free,
        memory_total_bytes=total,
        memory_bytes_per_second=_read_rate(device, read_bytes),
        flops_per_second=_multiply_rate(device, side, getattr(torch, dtype)),
    )


def _read_rate(device: str, read_bytes: int) -> float:
    """Bytes per second of summing an array larger than caches."""
    array = torch.ones(read_bytes // 4, dtype=torch.float32, device=device)
    return read_bytes / _best_seconds(array.sum, device)


def _multiply_rate(device: str, side: int, dtype: torch.dtype) -> float:
    """Operations per second of a prompt chunk's product with a square weight."""
    rows = torch.ones(_ROWS, side, dtype=dtype, device=device)
    weight = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * _ROWS * side * side / _best_seconds(lambda: rows @ weight, device)


def _best_seconds(work: Callable[[], object], device: str) -> float:
    """The fastest of the rounds that fit in the time, after one to warm up."""
    _timed(work, device)
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < _ROUNDS_MIN or spent < _SECONDS_PER_MEASUREMENT:
        seconds = _timed(work, device)
        best, spent, rounds = min(best, seconds), spent + seconds, rounds + 1
    return best


def _timed(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - started, 1e-9)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine() or "CPU")
