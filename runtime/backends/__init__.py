"""Engines that run a bundle's graphs, each behind the `Backend` protocol.

`protocol` says what a backend does, `ort` runs on ONNX Runtime, `opening` picks one for a device.
"""

from drl.runtime.backends.opening import DEVICES, open_backend
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
    "Backend",
    "CrossAttention",
    "Encoding",
    "Ranking",
    "StepInputs",
    "StepOutputs",
    "open_backend",
]
