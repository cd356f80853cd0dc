"""RoutedFFNInner: the first half of `RoutedFFN`, from the states to the experts' inner values."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.activations import GATED, activate, trace_activation
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.routed_product import routed_product, trace_routed_product
from drl.plugins.ops.schema import Argument, Attribute


def reference(
    hidden: NDArray[Any],
    expert_ids: NDArray[np.int32],
    up: NDArray[Any],
    gate: NDArray[Any] | None = None,
    up_bias: NDArray[Any] | None = None,
    gate_bias: NDArray[Any] | None = None,
    *,
    activation: str,
) -> NDArray[Any]:
    """Raise every token through each of its experts, in fp32.

    The inner values of an expert are `act(x @ up)`, or `act(x @ gate) * (x @ up)` if gated.

    Args:
        hidden: `[B, T, d]`.
        expert_ids: `[B, T, k]`, -1 for none.
        up: `[E, d, f]`.
        gate: `[E, d, f]`, only with a gated activation.
        up_bias: `[E, f]`, added to the products with `up`.
        gate_bias: `[E, f]`, added to the products with `gate`.
        activation: A key of `drl.plugins.ops.activations.GATED`.

    Returns:
        `[B, T, k, f]` in the dtype of `hidden`, 0 where the id is -1.
    """
    rows = np.repeat(hidden[:, :, None], expert_ids.shape[2], axis=2)
    raised = routed_product(rows, expert_ids, up, up_bias)
    if gate is None:
        inner = activate(activation, raised)
    else:
        inner = activate(activation, routed_product(rows, expert_ids, gate, gate_bias)) * raised
    return np.where(expert_ids[..., None] < 0, np.float32(0), inner).astype(hidden.dtype)


def body(
    op: onnxscript.OpBuilder,
    hidden: ir.Value,
    expert_ids: ir.Value,
    up: ir.Value,
    gate: ir.Value | None = None,
    up_bias: ir.Value | None = None,
    gate_bias: ir.Value | None = None,
    *,
    activation: str,
) -> Any:
    """Trace the products of all tokens with all experts, of which the chosen ones are kept."""
    tokens = op.Reshape(hidden, op.Concat([-1], op.Shape(hidden, start=2), axis=0))
    # One row per slot: [B, T, 1] indices of tokens, the same for the k slots of each.
    places = op.Shape(expert_ids, start=0, end=2)
    index = op.Range(0, op.Squeeze(op.Shape(tokens, start=0, end=1)), 1)
    of_slot = op.Expand(op.Reshape(index, op.Concat(places, [1], axis=0)), op.Shape(expert_ids))
    raised = trace_routed_product(op, tokens, of_slot, expert_ids, up, up_bias)
    if gate is None:
        inner = trace_activation(op, activation, raised)
    else:
        opened = trace_routed_product(op, tokens, of_slot, expert_ids, gate, gate_bias)
        inner = op.Mul(trace_activation(op, activation, opened), raised)
    chosen = op.Unsqueeze(op.GreaterOrEqual(expert_ids, 0), [3])
    return op.Where(chosen, inner, op.CastLike(0.0, inner))


ROUTED_FFN_INNER = Operator(
    name="RoutedFFNInner",
    inputs=(
        Argument("hidden", None, ("B", "T", "d")),
        Argument("expert_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("up", None, ("E", "d", "f")),
        Argument("gate", None, ("E", "d", "f"), optional=True),
        Argument("up_bias", None, ("E", "f"), optional=True),
        Argument("gate_bias", None, ("E", "f"), optional=True, beside="gate"),
    ),
    outputs=(Argument("inner", None, ("B", "T", "k", "f")),),
    attributes=(
        Attribute(
            "activation",
            str,
            choices={name: ("gate",) if gated else () for name, gated in GATED.items()},
        ),
    ),
    reference=reference,
    body=body,
)
