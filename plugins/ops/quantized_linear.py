"""QuantizedLinear: a linear layer of packed weights, with what stands before and after it."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.linear import ACTIVATION_ATTRIBUTE, finish, trace_finish
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.quantized_product import (
    LAYOUT_ATTRIBUTE,
    packed_weights,
    product,
    rms_norm,
    trace_rms_norm,
    trace_rows,
    trace_weights,
    weight_arguments,
)
from drl.plugins.ops.schema import Argument, Attribute


def reference(
    x: NDArray[np.float32],
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32],
    multiplier: NDArray[np.uint8] | None = None,
    norm: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    *,
    columns: int,
    activation: str,
    epsilon: float,
    layout: int,
) -> NDArray[np.float32]:
    """act(x̂ · Wᵀ + bias) + residual, or act(x̂ · W₀ᵀ + bias₀) ⊙ (x̂ · W₁ᵀ + bias₁) + residual.

    x̂ is x, or its RMS norm, and is rounded to int8 row by row.

    Args:
        x: `[B, T, K]`.
        weight: Packed values of M matrices `[N, K]`; M is 2 if gated, gate first, else 1.
        scale: `[M, ⌈N/32⌉·32]`.
        multiplier: Of weights in blocks.
        norm: `[K]`, the weight of the norm; without it there is no norm.
        bias: `[M·N]`.
        residual: `[B, T, N]`.
        columns: N.
        activation: "none" or a key of `drl.plugins.ops.activations.GATED`.
        epsilon: Of the norm.
        layout: The layout of the packed weights.

    Returns:
        `[B, T, N]`.
    """
    packed = packed_weights(weight, scale, multiplier, columns, x.shape[-1])
    normed = rms_norm(x, norm, epsilon)
    sides = [product(normed, packed, matrix) for matrix in range(packed.matrices)]
    return finish(sides, bias, residual, activation)


def body(
    op: onnxscript.OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    multiplier: ir.Value | None = None,
    norm: ir.Value | None = None,
    bias: ir.Value | None = None,
    residual: ir.Value | None = None,
    *,
    columns: ir.Value,
    activation: str,
    epsilon: ir.Value,
    layout: ir.Value,
) -> Any:
    """Trace one integer product per matrix."""
    normed = trace_rms_norm(op, x, norm, epsilon)
    rows = trace_rows(op, op.Reshape(normed, op.Concat([-1], op.Shape(x, start=-1), axis=0)))
    weights = trace_weights(op, weight, scale, multiplier, columns)
    shape = op.Concat(op.Shape(x, end=-1), op.Reshape(columns, [1]), axis=0)

    def side(matrix: int) -> Any:
        return op.Reshape(weights.product(op, rows, matrix), shape)

    return trace_finish(op, side, columns, bias, residual, activation)


QUANTIZED_LINEAR = Operator(
    name="QuantizedLinear",
    inputs=(
        Argument("x", ir.DataType.FLOAT, ("B", "T", "K")),
        *weight_arguments("", ("M", "N", "K")),
        Argument("norm", ir.DataType.FLOAT, ("K",), optional=True),
        Argument("bias", ir.DataType.FLOAT, ("M*N",), optional=True),
        Argument("residual", ir.DataType.FLOAT, ("B", "T", "N"), optional=True),
    ),
    outputs=(Argument("y", ir.DataType.FLOAT, ("B", "T", "N")),),
    attributes=(
        Attribute("columns", int, dimension="N"),
        ACTIVATION_ATTRIBUTE,
        Attribute("epsilon", float),
        LAYOUT_ATTRIBUTE,
    ),
    reference=reference,
    body=body,
    overloaded=True,
)
