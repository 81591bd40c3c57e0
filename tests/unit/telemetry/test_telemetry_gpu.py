"""NVML's answers, and its silence."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from butterfly_telemetry.gpu import read_gpus


class FakeNvmlError(Exception):
    """As ``pynvml.NVMLError``."""


@dataclass
class FakeNvml:
    """The few functions of pynvml that are used."""

    gpus: int = 1
    no_driver: bool = False
    no_power: bool = False
    NVMLError = FakeNvmlError
    NVML_TEMPERATURE_GPU = 0
    shut_down: int = 0

    def nvmlInit(self) -> None:  # noqa: N802 - the name is NVML's
        if self.no_driver:
            raise FakeNvmlError("Driver Not Loaded")

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetCount": lambda: self.gpus,
            "nvmlSystemGetDriverVersion": lambda: b"570.1",
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80, used=30, free=50),
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetName": lambda handle: b"Toy GPU",
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50),
            "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
            "nvmlDeviceGetPowerUsage": self._power,
            "nvmlShutdown": self._shut_down,
        }
        return answers[name]

    def _power(self, handle: int) -> int:
        if self.no_power:
            raise FakeNvmlError("Not Supported")
        return 300_000

    def _shut_down(self) -> None:
        self.shut_down += 1


def test_each_gpu_is_read() -> None:
    nvml = FakeNvml(gpus=2)
    report = read_gpus(lambda: nvml)

    assert [gpu.uuid for gpu in report.gpus] == ["GPU-0", "GPU-1"]
    first = report.gpus[0]
    assert (first.name, first.memory_free_bytes, first.memory_used_bytes) == ("Toy GPU", 50, 30)
    assert (first.utilization_ratio, first.temperature_celsius) == (0.5, 61)
    assert first.power_watts == 300
    assert (report.driver_version, report.absent_reason) == ("570.1", None)
    assert nvml.shut_down == 1


def test_what_a_card_does_not_tell_is_none() -> None:
    report = read_gpus(lambda: FakeNvml(no_power=True))

    assert report.gpus[0].power_watts is None
    assert report.gpus[0].temperature_celsius == 61


def test_without_a_driver_the_reason_is_told() -> None:
    report = read_gpus(lambda: FakeNvml(no_driver=True))

    assert report.gpus == ()
    assert report.absent_reason == "NVML: Driver Not Loaded"


def test_a_driver_without_a_gpu_is_told() -> None:
    assert read_gpus(lambda: FakeNvml(gpus=0)).absent_reason == "the driver is there, but no GPU"


def test_without_the_package_the_reason_is_told() -> None:
    def missing() -> Any:
        raise ImportError("pynvml")

    assert "not installed" in (read_gpus(missing).absent_reason or "")


def test_this_machine_is_read_without_raising() -> None:
    report = read_gpus()

    assert report.gpus or report.absent_reason
