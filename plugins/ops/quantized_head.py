"""QuantizedHead: the logits of a language model from packed weights, or only the best of them."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops import quantized_linear
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.quantized_product import LAYOUT_ATTRIBUTE, weight_arguments
from drl.plugins.ops.ranking import (
    RANKED_OUTPUTS,
    Ranked,
    rank,
    trace_ids,
    trace_kept,
    trace_values,
)
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]


def reference(
    x: Float32,
    weight: NDArray[np.uint8],
    scale: Float32,
    multiplier: NDArray[np.uint8] | None = None,
    norm: Float32 | None = None,
    bias: Float32 | None = None,
    candidates: NDArray[np.int64] | None = None,
    *,
    columns: int,
    factor: float,
    epsilon: float,
    layout: int,
) -> Ranked:
    """Logits (x̂ · Wᵀ) · factor + bias, the c largest of every row, and log Σ exp of the row.

    Of equal logits the one of the lowest id is first. NaN is below every number.

    Args:
        x: `[B, T, K]`.
        weight: Packed values of one matrix `[N, K]`.
        scale: `[1, ⌈N/32⌉·32]`.
        multiplier: Of weights in blocks.
        norm: `[K]`, the weight of the norm; without it there is no norm.
        bias: `[N]`.
        candidates: `[1]`, c, at most N. 0 asks for all logits and no ranking.
        columns: N.
        factor: Of the products.
        epsilon: Of the norm.
        layout: The layout of the packed weights.

    Returns:
        Logits `[B, T, N]`, or `[B, T, 0]` where c is not 0; values and ids `[B, T, c]`; normalisers
        `[B, T]`.
    """
    assert candidates is not None  # it stands behind optional inputs, and is not optional itself
    products = quantized_linear.reference(
        x,
        weight,
        scale,
        multiplier,
        norm,
        columns=columns,
        activation="none",
        epsilon=epsilon,
        layout=layout,
    )
    logits = products * np.float32(factor)
    if bias is not None:
        logits = logits + bias
    return rank(logits, int(candidates[0]))


def body(
    op: onnxscript.OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    multiplier: ir.Value | None = None,
    norm: ir.Value | None = None,
    bias: ir.Value | None = None,
    candidates: ir.Value | None = None,
    *,
    columns: ir.Value,
    factor: ir.Value,
    epsilon: ir.Value,
    layout: ir.Value,
) -> Any:
    """Trace all logits; with candidates none of them leave."""
    products = quantized_linear.body(
        op,
        x,
        weight,
        scale,
        multiplier,
        norm,
        columns=columns,
        activation="none",
        epsilon=epsilon,
        layout=layout,
    )
    logits = op.Mul(products, factor)
    if bias is not None:
        logits = op.Add(logits, bias)
    assert candidates is not None
    ids = trace_ids(op, logits, candidates)
    return (
        trace_kept(op, logits, candidates, columns),
        trace_values(op, logits, ids),
        op.Cast(ids, to=ir.DataType.INT32),
        op.ReduceLogSumExp(logits, [-1], keepdims=0),
    )


QUANTIZED_HEAD = Operator(
    name="QuantizedHead",
    inputs=(
        Argument("x", ir.DataType.FLOAT, ("B", "T", "K")),
        *weight_arguments("", ("1", "N", "K")),
        Argument("norm", ir.DataType.FLOAT, ("K",), optional=True),
        Argument("bias", ir.DataType.FLOAT, ("N",), optional=True),
        Argument("candidates", ir.DataType.INT64, ("1",)),
    ),
    outputs=RANKED_OUTPUTS,
    attributes=(
        Attribute("columns", int, dimension="N"),
        Attribute("factor", float),
        Attribute("epsilon", float),
        LAYOUT_ATTRIBUTE,
    ),
    reference=reference,
    body=body,
    overloaded=True,
)
