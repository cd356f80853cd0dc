"""The backend for a device."""

import re

from drl.runtime.backends.ort import OrtBackend
from drl.runtime.backends.protocol import Backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, shorten

DEVICES = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
_DEVICE = re.compile(r"([a-z-]+)(?::(\d{1,4}))?")


def parse_device(device: str) -> tuple[str, int]:
    """The kind of a device and its number: ("cuda", 1) of `cuda:1`, and number 0 of `cuda`.

    Raises:
        BackendError: There is no such kind, or "cpu" has a number.
    """
    found = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    kind, number = found.groups() if found else ("", None)
    if kind not in DEVICES or (kind == "cpu" and number):
        known = ", ".join(DEVICES)
        raise BackendError(
            f"there is no device {shorten(device)}; this version runs on {known}, and on a GPU by "
            "its number as cuda:1"
        )
    return kind, int(number or 0)


def open_backend(bundle: Bundle, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load a bundle's graphs for a device.

    Args:
        bundle: A loaded bundle.
        device: "cpu"; or, on an NVIDIA GPU, "cuda" for ONNX Runtime, "tensorrt" for the engines
            that `drl-build` has put into the bundle, "tensorrt-rtx" for those of TensorRT for RTX
            alone. A number takes another GPU than the first, as "cuda:1".
        threads: Threads per graph; on a GPU, of what runs on the host.

    Raises:
        BackendError: The device is unknown or does not work, or its library is missing or refuses a
            graph.
        BundleError: The bundle does not hold the graphs that the device runs.
    """
    kind, index = parse_device(device)
    if kind == "cuda":
        from drl.runtime.backends.ort_cuda import open_ort_cuda  # what the CPU does without

        return open_ort_cuda(bundle, index, threads)
    if kind.startswith("tensorrt"):
        from drl.runtime.backends.tensorrt.opening import open_tensorrt  # likewise

        return open_tensorrt(bundle, "tensorrt-rtx" if kind == "tensorrt-rtx" else None, index)
    return OrtBackend(bundle, threads=threads)
