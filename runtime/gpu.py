"""The NVIDIA GPUs of this machine, asked of the driver itself: no CUDA library is needed."""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

# Attributes of `cuDeviceGetAttribute`, from cuda.h.
_MAJOR, _MINOR = 75, 76
_NAMES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability such as `8.9`, and memory in bytes."""

    name: str
    compute_capability: str
    memory: int


@dataclass(frozen=True)
class GpuReport:
    """What the driver says.

    Attributes:
        driver: The newest CUDA version that the driver runs, as `13.0`; None without a driver.
        gpus: The GPUs that this process may use, as CUDA numbers them.
        fault: Why there is none, or nothing.
    """

    driver: str | None
    gpus: tuple[Gpu, ...]
    fault: str = ""


def find_gpus(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> GpuReport:
    """Ask the driver. Never raises: a machine without a GPU is an answer.

    Args:
        load: Opens a shared library by name; raises `OSError` if there is none.
    """
    driver = _open(load)
    if driver is None:
        return GpuReport(None, (), "there is no NVIDIA driver")
    number = ctypes.c_int()
    version = None
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if status := driver.cuInit(0):
        return GpuReport(version, (), f"the NVIDIA driver does not start (CUDA error {status})")
    if status := driver.cuDeviceGetCount(ctypes.byref(number)):
        return GpuReport(version, (), f"the NVIDIA driver lists no GPU (CUDA error {status})")
    gpus = tuple(_describe(driver, ordinal) for ordinal in range(number.value))
    return GpuReport(version, gpus, "" if gpus else "the NVIDIA driver lists no GPU")


def _open(load: Callable[[str], ctypes.CDLL]) -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            return load(name)
        except OSError:
            continue
    return None


def _describe(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    device, number = ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(capability), memory.value)
