"""NVIDIA GPUs as the driver's library (NVML) describes them; no CUDA context is made."""

from collections.abc import Sequence
from dataclasses import dataclass

import pynvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Memory in bytes."""

    index: int
    name: str
    free_bytes: int
    total_bytes: int
    driver: str


def read_gpus() -> Sequence[Gpu] | str:
    """All GPUs, or why none can be read."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no NVIDIA driver ({error})"
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        return [_read(index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return f"the NVIDIA driver does not answer ({error})"
    finally:
        pynvml.nvmlShutdown()


def _read(index: int, driver: str) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = str(pynvml.nvmlDeviceGetName(handle))
    return Gpu(index, name, int(memory.free), int(memory.total), driver)
