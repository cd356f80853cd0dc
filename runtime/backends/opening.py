"""The backend for a device."""

from drl.runtime.backends.ort import OrtBackend
from drl.runtime.backends.protocol import Backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError

DEVICES = ("cpu",)


def open_backend(bundle: Bundle, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load a bundle's graphs for a device.

    Raises:
        BackendError: The device is unknown, or its library is missing or refuses a graph.
    """
    if device not in DEVICES:
        raise BackendError(f"there is no device {device!r}; this version runs on device='cpu'")
    return OrtBackend(bundle, threads=threads)
