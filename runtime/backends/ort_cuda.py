"""ONNX Runtime on an NVIDIA GPU: what it takes to start its CUDA execution provider."""

import contextlib
import io
from typing import Any

from drl.runtime.backends.cuda import open_gpu
from drl.runtime.backends.ort_device import OrtDeviceBackend
from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.backends.ort_target import OrtTarget
from drl.runtime.backends.threads import count_threads
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError
from drl.runtime.manifest import GRAPHS

PROVIDER = "CUDAExecutionProvider"


def open_ort_cuda(bundle: Bundle, index: int = 0, threads: int | None = None) -> OrtDeviceBackend:
    """Load a bundle on a GPU.

    Args:
        bundle: A loaded bundle in fp32.
        index: The GPU, as CUDA numbers them.
        threads: Threads for what runs on the host, the shapes; one by default.

    Raises:
        BackendError: The bundle is quantised; there is no such GPU; CuPy or ONNX Runtime for GPUs
            is missing or does not start; or a graph would not run on the GPU altogether.
        BundleError: The bundle holds no canonical graphs.
    """
    if bundle.manifest.quantised:
        raise BackendError(
            f"device='cuda' runs bundles in fp32, and {bundle.folder} is "
            f"{bundle.manifest.precision}; export the checkpoint again in fp32, or use device='cpu'"
        )
    for graph in GRAPHS:
        bundle.canonical_file(graph)
    device = open_gpu(index)
    onnxruntime = import_onnxruntime()
    said = _load_libraries(onnxruntime)
    check_provider(onnxruntime)
    options = {
        "device_id": str(index),
        "user_compute_stream": str(device.stream),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # its products have 10 bits, and fp32 is what the bundle promises
    }
    target = OrtTarget(PROVIDER, options, "cuda", device)
    count = 1 if threads is None else count_threads(threads)
    try:
        return OrtDeviceBackend(bundle, onnxruntime, target, count)
    except BackendError as error:
        if said and "did not start" in str(error):
            raise BackendError(f"{error}: {said}") from error
        raise


def check_provider(onnxruntime: Any) -> None:
    """Raise `BackendError` unless this ONNX Runtime was built for NVIDIA GPUs."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise BackendError(
            f"this onnxruntime {onnxruntime.__version__} is built without CUDA, and the two cannot "
            "share an environment; run `pip uninstall onnxruntime` and then "
            '`pip install "drl[cuda]"`'
        )


def _load_libraries(onnxruntime: Any) -> str:
    """Load CUDA's libraries from Python packages, as far as there are; what was said of them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())
