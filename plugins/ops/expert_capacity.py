"""ExpertCapacity: an expert takes only the first so many tokens of a sequence that chose it."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute


def reference(
    expert_ids: NDArray[np.int32], gates: NDArray[np.float32], *, capacity: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Unchoose an expert where earlier tokens of the row have filled it (Fedus et al., 2022).

    Args:
        expert_ids: `[B, T, k]`, -1 for none; a token chooses an expert at most once.
        gates: `[B, T, k]`.
        capacity: Tokens of a row that one expert takes.

    Returns:
        Expert ids `[B, T, k]`, -1 where the expert was full, and gates `[B, T, k]`, there 0.
    """
    ids, kept = expert_ids.copy(), gates.copy()
    for row in range(ids.shape[0]):
        taken: dict[int, int] = {}
        for place in np.ndindex(ids.shape[1:]):
            expert = int(expert_ids[row][place])
            taken[expert] = taken.get(expert, 0) + 1
            if expert >= 0 and taken[expert] > capacity:
                ids[row][place], kept[row][place] = -1, 0.0
    return ids, kept


def body(
    op: onnxscript.OpBuilder, expert_ids: ir.Value, gates: ir.Value, *, capacity: ir.Value
) -> Any:
    """Trace a running count per expert, over the choices of a row in their order."""
    flat = op.Reshape(expert_ids, op.Concat(op.Shape(expert_ids, end=1), [-1], axis=0))
    experts = op.Range(0, op.Add(op.ReduceMax(flat, keepdims=0), 1), 1)
    chose = op.Cast(op.Equal(op.Unsqueeze(flat, [2]), experts), to=ir.DataType.INT64)
    place = op.ReduceSum(op.Mul(op.CumSum(chose, 1), chose), [2], keepdims=0)
    full = op.Greater(op.Reshape(place, op.Shape(expert_ids)), capacity)
    return op.Where(full, -1, expert_ids), op.Where(full, 0.0, gates)


EXPERT_CAPACITY = Operator(
    name="ExpertCapacity",
    inputs=(
        Argument("expert_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("gates", ir.DataType.FLOAT, ("B", "T", "k")),
    ),
    outputs=(
        Argument("kept_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("kept_gates", ir.DataType.FLOAT, ("B", "T", "k")),
    ),
    attributes=(Attribute("capacity", int),),
    reference=reference,
    body=body,
)
