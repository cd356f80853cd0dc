"""Asking the NVIDIA driver for GPUs."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from drl.runtime.gpu import Gpu, GpuReport, find_gpus


class FakeDriver:
    """A driver of some GPUs; each function returns a CUDA status."""

    def __init__(self, *gpus: tuple[str, int, int, int], start: int = 0, count: int = 0) -> None:
        self.gpus = gpus
        self.cuInit = lambda flags: start
        self.count_status = count

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return self.count_status

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal + 100
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = self.gpus[device.value - 100][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = self.gpus[device.value - 100][3]
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:  # noqa: N802
        _, major, minor, _ = self.gpus[device.value - 100]
        number._obj.value = {75: major, 76: minor}[attribute]
        return 0


def load(driver: FakeDriver) -> Callable[[str], ctypes.CDLL]:
    return lambda name: driver  # type: ignore[return-value]


def test_gpus_are_described() -> None:
    driver = FakeDriver(("NVIDIA L4", 8, 9, 23 << 30), ("NVIDIA H100", 9, 0, 80 << 30))
    assert find_gpus(load(driver)) == GpuReport(
        "13.1", (Gpu("NVIDIA L4", "8.9", 23 << 30), Gpu("NVIDIA H100", "9.0", 80 << 30))
    )


def test_a_machine_without_a_driver_is_an_answer() -> None:
    asked: list[str] = []

    def missing(name: str) -> ctypes.CDLL:
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    assert find_gpus(missing) == GpuReport(None, (), "there is no NVIDIA driver")
    assert asked


@pytest.mark.parametrize(
    ("driver", "fault"),
    [
        (FakeDriver(start=999), "does not start (CUDA error 999)"),
        (FakeDriver(start=100), "does not start (CUDA error 100)"),
        (FakeDriver(count=3), "lists no GPU (CUDA error 3)"),
        (FakeDriver(), "lists no GPU"),
    ],
)
def test_a_driver_without_gpus_says_why(driver: FakeDriver, fault: str) -> None:
    found = find_gpus(load(driver))
    assert found.driver == "13.1"
    assert found.gpus == ()
    assert found.fault.endswith(fault)


def test_this_machine_can_be_asked() -> None:
    found = find_gpus()
    assert bool(found.gpus) == (found.fault == "")
