"""Linear: a linear layer of float weights in panels, with what stands before and after it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.activations import GATED, activate, trace_activation
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.panels import panel_argument, trace_matrix, unpack_panels
from drl.plugins.ops.quantized_product import rms_norm, trace_rms_norm
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]

_MATRICES = {"none": 1, **{name: 2 if gated else 1 for name, gated in GATED.items()}}

ACTIVATION_ATTRIBUTE = Attribute(
    "activation", str, choices=dict.fromkeys(_MATRICES, ()), dimension="M", sizes=_MATRICES
)
"""What becomes of the products; it says too whether there are one or two matrices."""


def reference(
    x: Float32,
    weight: Float32,
    norm: Float32 | None = None,
    bias: Float32 | None = None,
    residual: Float32 | None = None,
    *,
    columns: int,
    activation: str,
    epsilon: float,
) -> Float32:
    """act(x̂ · Wᵀ + bias) + residual, or act(x̂ · W₀ᵀ + bias₀) ⊙ (x̂ · W₁ᵀ + bias₁) + residual.

    x̂ is x, or its RMS norm.

    Args:
        x: `[B, T, K]`.
        weight: Panels of M matrices `[N, K]`; M is 2 if gated, gate first, else 1.
        norm: `[K]`, the weight of the norm; without it there is no norm.
        bias: `[M·N]`.
        residual: `[B, T, N]`.
        columns: N.
        activation: "none" or a key of `drl.plugins.ops.activations.GATED`.
        epsilon: Of the norm.

    Returns:
        `[B, T, N]`.
    """
    normed = rms_norm(x, norm, epsilon)
    sides = [normed @ matrix.T for matrix in unpack_panels(weight, columns)]
    return finish(sides, bias, residual, activation)


def finish(
    sides: Sequence[Float32], bias: Float32 | None, residual: Float32 | None, activation: str
) -> Float32:
    """What becomes of the products `[..., N]` with one matrix, or with two."""
    if bias is not None:
        biases = bias.reshape(len(sides), -1)
        sides = [side + own for side, own in zip(sides, biases, strict=True)]
    y = activate(activation, sides[0])
    if len(sides) == 2:
        y = y * sides[1]
    return y if residual is None else y + residual


def body(
    op: onnxscript.OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    norm: ir.Value | None = None,
    bias: ir.Value | None = None,
    residual: ir.Value | None = None,
    *,
    columns: ir.Value,
    activation: str,
    epsilon: ir.Value,
) -> Any:
    """Trace one product per matrix."""
    normed = trace_rms_norm(op, x, norm, epsilon)

    def side(matrix: int) -> Any:
        return op.MatMul(normed, trace_matrix(op, weight, matrix, columns))

    return trace_finish(op, side, columns, bias, residual, activation)


def trace_finish(
    op: onnxscript.OpBuilder,
    side: Callable[[int], Any],
    columns: ir.Value,
    bias: ir.Value | None,
    residual: ir.Value | None,
    activation: str,
) -> Any:
    """Add `finish` to a graph, over the products that `side` adds for a matrix's number."""
    end = op.Reshape(columns, [1])
    biases = None if bias is None else op.Reshape(bias, op.Concat([-1], end, axis=0))

    def biased(matrix: int) -> Any:
        y = side(matrix)
        return y if biases is None else op.Add(y, op.Gather(biases, matrix, axis=0))

    y = trace_activation(op, activation, biased(0))
    if _MATRICES[activation] == 2:
        y = op.Mul(y, biased(1))
    return y if residual is None else op.Add(y, residual)


LINEAR = Operator(
    name="Linear",
    inputs=(
        Argument("x", ir.DataType.FLOAT, ("B", "T", "K")),
        panel_argument("M", "N", "K"),
        Argument("norm", ir.DataType.FLOAT, ("K",), optional=True),
        Argument("bias", ir.DataType.FLOAT, ("M*N",), optional=True),
        Argument("residual", ir.DataType.FLOAT, ("B", "T", "N"), optional=True),
    ),
    outputs=(Argument("y", ir.DataType.FLOAT, ("B", "T", "N")),),
    attributes=(
        Attribute("columns", int, dimension="N"),
        ACTIVATION_ATTRIBUTE,
        Attribute("epsilon", float),
    ),
    reference=reference,
    body=body,
    overloaded=True,
)
