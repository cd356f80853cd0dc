"""Engines that run a bundle's graphs, each behind the `Backend` protocol.

`protocol` says what a backend does and `memory` whose memory it does it in. `ort` runs on ONNX
Runtime on the CPU, `ort_cuda` on a GPU, and `opening` picks one for a device.
"""

from drl.runtime.backends.memory import ArrayLibrary, HostRules, MemoryRules
from drl.runtime.backends.opening import DEVICES, open_backend, parse_device
from drl.runtime.backends.protocol import (
    Backend,
    CrossAttention,
    Encoding,
    Ranking,
    StepInputs,
    StepOutputs,
)

__all__ = [
    "DEVICES",
    "ArrayLibrary",
    "Backend",
    "CrossAttention",
    "Encoding",
    "HostRules",
    "MemoryRules",
    "Ranking",
    "StepInputs",
    "StepOutputs",
    "open_backend",
    "parse_device",
]
