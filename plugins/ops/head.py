"""Head: the logits of a language model from float weights, or only the best of them."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
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
    weight: Float32,
    candidates: NDArray[np.int64],
    bias: Float32 | None = None,
    *,
    factor: float,
) -> Ranked:
    """Logits (x · Wᵀ) · factor + bias, the c largest of every row, and log Σ exp of the row.

    Of equal logits the one of the lowest id is first. NaN is below every number.

    Args:
        x: `[B, T, K]`.
        weight: W `[N, K]`.
        candidates: `[1]`, c, at most N. 0 asks for all logits and no ranking.
        bias: `[N]`.
        factor: Of the products.

    Returns:
        Logits `[B, T, N]`, or `[B, T, 0]` where c is not 0; values and ids `[B, T, c]`; normalisers
        `[B, T]`.
    """
    logits = x @ weight.T * np.float32(factor)
    return rank(logits if bias is None else logits + bias, int(candidates[0]))


def body(
    op: onnxscript.OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    candidates: ir.Value,
    bias: ir.Value | None = None,
    *,
    factor: ir.Value,
) -> Any:
    """Trace what a plain head does, and the ranking where it is asked for.

    Rows are scaled instead of logits, of which there are far more.
    """
    depth = op.Shape(weight, start=1)
    rows = op.Mul(op.Reshape(x, op.Concat([-1], depth, axis=0)), factor)
    flat = op.Gemm(rows, weight, *([] if bias is None else [bias]), transB=1)
    # Runtimes have a fast LogSoftmax and a slow ReduceLogSumExp. The likeliest token tells by how
    # much it shifts a row.
    likeliest = op.ReduceMax(op.LogSoftmax(flat, axis=-1), [-1], keepdims=0)
    shifts = op.Sub(op.ReduceMax(flat, [-1], keepdims=0), likeliest)
    places, columns = op.Shape(x, start=0, end=2), op.Shape(weight, start=0, end=1)
    logits = op.Reshape(flat, op.Concat(places, columns, axis=0))
    ids = _trace_ids(op, logits, candidates, shifts)
    return (
        trace_kept(op, logits, candidates, columns),
        trace_values(op, logits, ids),
        op.Cast(ids, to=ir.DataType.INT32),
        op.Reshape(shifts, places),
    )


def _trace_ids(
    op: onnxscript.OpBuilder, logits: ir.Value, candidates: ir.Value, normalisers: ir.Value
) -> Any:
    """Trace the ids of the largest, with what NaN takes only where there is some."""

    def plain(op: onnxscript.OpBuilder) -> Any:
        return op.TopK(logits, candidates, axis=-1, largest=1, sorted=1, _outputs=2)[1]

    def careful(op: onnxscript.OpBuilder) -> Any:
        return trace_ids(op, logits, candidates)

    odd = op.Cast(op.IsNaN(normalisers), to=ir.DataType.FLOAT)
    return op.If(
        op.Cast(op.ReduceSum(odd, keepdims=0), to=ir.DataType.BOOL),
        then_branch=op.builder.subgraph(careful, [], [ir.val("careful_ids")], name="careful"),
        else_branch=op.builder.subgraph(plain, [], [ir.val("plain_ids")], name="plain"),
    )


HEAD = Operator(
    name="Head",
    inputs=(
        Argument("x", ir.DataType.FLOAT, ("B", "T", "K")),
        Argument("weight", ir.DataType.FLOAT, ("N", "K")),
        Argument("candidates", ir.DataType.INT64, ("1",)),
        Argument("bias", ir.DataType.FLOAT, ("N",), optional=True),
    ),
    outputs=RANKED_OUTPUTS,
    attributes=(Attribute("factor", float),),
    reference=reference,
    body=body,
)
