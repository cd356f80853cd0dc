"""ONNX Runtime's device backend on the CPU provider, with arrays that stand for a GPU's."""

import onnxruntime

from drl.runtime.backends.cuda import CudaDevice
from drl.runtime.backends.ort_device import OrtDeviceBackend
from drl.runtime.backends.ort_target import OrtTarget
from drl.runtime.bundle import Bundle
from tests.runtime.backends.fake_cupy import FakeCupy


def fake_target(cupy: FakeCupy | None = None) -> OrtTarget:
    device = CudaDevice(cupy or FakeCupy(), 0)
    return OrtTarget("CPUExecutionProvider", {}, "cpu", device)


def fake_backend(bundle: Bundle, cupy: FakeCupy | None = None) -> OrtDeviceBackend:
    return OrtDeviceBackend(bundle, onnxruntime, fake_target(cupy))
