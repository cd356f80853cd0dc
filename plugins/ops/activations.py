"""The activations of feed-forward layers, for NumPy and for graphs."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.numerics import gelu, sigmoid

# Whether the up projection is multiplied by an activated gate projection.
GATED = {
    "silu_glu": True,
    "gelu_glu": True,
    "relu": False,
    "gelu": False,
    "gelu_tanh": False,
    "silu": False,
}


def activate(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the activation of a kind of feed-forward layer (the one of the gate, if gated).

    `none` leaves x as it is; `gelu` is exact; `gelu_tanh` and the gate of `gelu_glu` are its tanh
    approximation (Hendrycks and Gimpel, 2016).
    """
    if name == "none":
        return x
    if name == "relu":
        return np.maximum(x, np.float32(0))
    if name in ("silu", "silu_glu"):
        return x * sigmoid(x)
    if name == "gelu":
        return gelu(x)
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    result: NDArray[np.float32] = np.float32(0.5) * x * (1 + np.tanh(inner))
    return result


def trace_activation(op: onnxscript.OpBuilder, name: str, x: ir.Value) -> Any:
    """Add the same activation to a graph."""
    if name == "none":
        return x
    if name == "relu":
        return op.Relu(x)
    if name in ("silu", "silu_glu"):
        return op.Mul(x, op.Sigmoid(x))
    return op.Gelu(x, approximate="none" if name == "gelu" else "tanh")
