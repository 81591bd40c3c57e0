"""What NVIDIA GPUs say of themselves, through NVML; without a driver an empty list and why."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now. None where the card does not tell (virtual ones often do not)."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    memory_free_bytes: int
    utilization_ratio: float | None
    temperature_celsius: float | None
    power_watts: float | None


@dataclass(frozen=True, slots=True)
class GpuReport:
    """All GPUs of this machine; ``absent_reason`` says why there is none."""

    gpus: tuple[GpuReading, ...]
    driver_version: str | None = None
    absent_reason: str | None = None


def _import_pynvml() -> ModuleType:
    return importlib.import_module("pynvml")


def read_gpus(load: Callable[[], Any] = _import_pynvml) -> GpuReport:
    """Ask NVML. Never raises for a machine without GPU, driver or pynvml.

    Takes milliseconds; the first call loads the driver's library.
    """
    try:
        nvml = load()
    except ImportError:
        return GpuReport((), absent_reason="the package nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return GpuReport((), absent_reason=f"NVML: {error}")
    try:
        readings = tuple(_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        version = _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        return GpuReport((), absent_reason=f"NVML: {error}")
    finally:
        nvml.nvmlShutdown()
    reason = None if readings else "the driver is there, but no GPU"
    return GpuReport(readings, version, reason)


def _read(nvml: Any, index: int) -> GpuReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)

    def told(ask: Callable[[], float], scale: float = 1.0) -> float | None:
        try:
            return ask() * scale
        except nvml.NVMLError:
            return None

    return GpuReading(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_total_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        memory_free_bytes=int(memory.free),
        utilization_ratio=told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu, 0.01),
        temperature_celsius=told(
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
        power_watts=told(lambda: nvml.nvmlDeviceGetPowerUsage(handle), 0.001),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
