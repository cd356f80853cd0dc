"""The product of rows with the matrix of the expert that each one chose: NumPy and graph."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray


def routed_product(
    rows: NDArray[Any],
    expert_ids: NDArray[np.int32],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
) -> NDArray[np.float32]:
    """`rows @ weight[expert] + bias[expert]` in fp32.

    Args:
        rows: `[B, T, k, m]`.
        expert_ids: `[B, T, k]`.
        weight: `[E, m, n]`.
        bias: `[E, n]`.

    Returns:
        `[B, T, k, n]`, 0 where the id is -1.
    """
    product = np.zeros((*expert_ids.shape, weight.shape[2]), np.float32)
    for expert in np.unique(expert_ids[expert_ids >= 0]):
        hits = expert_ids == expert
        product[hits] = rows[hits].astype(np.float32) @ weight[expert].astype(np.float32)
        if bias is not None:
            product[hits] += bias[expert].astype(np.float32)
    return product


def trace_routed_product(
    op: onnxscript.OpBuilder,
    rows: ir.Value,
    index: ir.Value,
    expert_ids: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
) -> Any:
    """Trace the same, in operators that compilers for GPUs take with dynamic shapes.

    All rows are multiplied with all experts, and each slot gathers its own product. Gathering the
    weights of each slot instead would copy a matrix per token; a loop over the chosen experts
    needs their number at run time. Here memory stays at E·R·n, and the weights are read once.

    Args:
        op: The graph under construction.
        rows: `[R, m]`.
        index: Which row a slot uses, int64 `[B, T, k]`.
        expert_ids: Int32 `[B, T, k]`.
        weight: `[E, m, n]`.
        bias: `[E, n]`.

    Returns:
        `[B, T, k, n]` in the type of the rows; anything where the id is -1.
    """
    experts = op.Cast(op.Max(expert_ids, 0), to=ir.DataType.INT64)
    products = op.MatMul(op.Unsqueeze(rows, [0]), weight)
    flat = op.Reshape(products, op.Concat([-1], op.Shape(products, start=2), axis=0))
    product = op.Gather(flat, op.Add(op.Mul(experts, op.Shape(rows, start=0, end=1)), index))
    return product if bias is None else op.Add(product, op.Gather(bias, experts))
