"""The activations of feed-forward layers, for NumPy and for graphs."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.numerics import sigmoid

# Whether the up projection is multiplied by an activated gate projection.
GATED = {"silu_glu": True, "gelu_glu": True, "relu": False, "gelu": False, "silu": False}


def activate(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the activation of a kind of feed-forward layer (the one of the gate, if gated).

    GELU is its tanh approximation (Hendrycks and Gimpel, 2016).
    """
    base = name.removesuffix("_glu")
    if base == "relu":
        return np.maximum(x, np.float32(0))
    if base == "silu":
        return x * sigmoid(x)
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    result: NDArray[np.float32] = np.float32(0.5) * x * (1 + np.tanh(inner))
    return result


def trace_activation(op: onnxscript.OpBuilder, name: str, x: ir.Value) -> Any:
    """Add the same activation to a graph."""
    base = name.removesuffix("_glu")
    if base == "relu":
        return op.Relu(x)
    if base == "silu":
        return op.Mul(x, op.Sigmoid(x))
    return op.Gelu(x, approximate="tanh")
