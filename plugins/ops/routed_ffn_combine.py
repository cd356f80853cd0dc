"""RoutedFFNCombine: the second half of `RoutedFFN`, from inner values to the weighted sum."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
from drl.plugins.ops.routed_product import routed_product, trace_routed_product
from drl.plugins.ops.schema import Argument


def reference(
    inner: NDArray[Any],
    expert_ids: NDArray[np.int32],
    gates: NDArray[np.float32],
    down: NDArray[Any],
    down_bias: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Sum the lowered inner values of every token's experts, weighted by its gates, in fp32.

    Args:
        inner: `[B, T, k, f]`, from `RoutedFFNInner`.
        expert_ids: `[B, T, k]`; -1 contributes nothing, whatever its inner values and gate are.
        gates: `[B, T, k]`.
        down: `[E, f, d]`.
        down_bias: `[E, d]`, added to the products before they are weighted.

    Returns:
        `[B, T, d]`, in the dtype of `inner`.
    """
    weights = np.where(expert_ids < 0, np.float32(0), gates)[..., None]
    weighted = weights * routed_product(inner, expert_ids, down, down_bias)
    output: NDArray[Any] = weighted.sum(axis=2, dtype=np.float32).astype(inner.dtype)
    return output


def body(
    op: onnxscript.OpBuilder,
    inner: ir.Value,
    expert_ids: ir.Value,
    gates: ir.Value,
    down: ir.Value,
    down_bias: ir.Value | None = None,
) -> Any:
    """Trace the products of all rows with all experts, of which the chosen ones are summed."""
    rows = op.Reshape(inner, op.Concat([-1], op.Shape(inner, start=3), axis=0))
    index = op.Range(0, op.Squeeze(op.Shape(rows, start=0, end=1)), 1)
    of_slot = op.Reshape(index, op.Shape(expert_ids))
    lowered = trace_routed_product(op, rows, of_slot, expert_ids, down, down_bias)
    weighted = op.Mul(op.Cast(lowered, to=ir.DataType.FLOAT), op.Unsqueeze(gates, [3]))
    chosen = op.Unsqueeze(op.GreaterOrEqual(expert_ids, 0), [3])
    return op.CastLike(op.ReduceSum(op.Where(chosen, weighted, 0.0), [2], keepdims=0), inner)


ROUTED_FFN_COMBINE = Operator(
    name="RoutedFFNCombine",
    inputs=(
        Argument("inner", None, ("B", "T", "k", "f")),
        Argument("expert_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("gates", ir.DataType.FLOAT, ("B", "T", "k")),
        Argument("down", None, ("E", "f", "d")),
        Argument("down_bias", None, ("E", "d"), optional=True),
    ),
    outputs=(Argument("output", None, ("B", "T", "d")),),
    reference=reference,
    body=body,
)
