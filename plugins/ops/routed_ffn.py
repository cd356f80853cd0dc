"""RoutedFFN: the feed-forward layer of experts, each token through the experts it chose."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.activations import GATED, activate, trace_activation
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute


def reference(
    hidden: NDArray[Any],
    expert_ids: NDArray[np.int32],
    gates: NDArray[np.float32],
    up: NDArray[Any],
    down: NDArray[Any],
    gate: NDArray[Any] | None = None,
    up_bias: NDArray[Any] | None = None,
    down_bias: NDArray[Any] | None = None,
    gate_bias: NDArray[Any] | None = None,
    *,
    activation: str,
) -> NDArray[Any]:
    """Sum the outputs of the chosen experts of every token, weighted by its gates, in fp32.

    An expert is `act(x @ up) @ down`, or `(act(x @ gate) * (x @ up)) @ down` if gated. An id of
    -1 contributes nothing.

    Args:
        hidden: `[B, T, d]`.
        expert_ids: `[B, T, k]`.
        gates: `[B, T, k]`.
        up: `[E, d, f]`.
        down: `[E, f, d]`.
        gate: `[E, d, f]`, only with a gated activation.
        up_bias: `[E, f]`, added to the products with `up`, as the next two to theirs.
        down_bias: `[E, d]`.
        gate_bias: `[E, f]`.
        activation: A key of `drl.plugins.ops.activations.GATED`.

    Returns:
        `[B, T, d]`, in the dtype of `hidden`.
    """
    output = np.zeros(hidden.shape, np.float32)
    for place in np.ndindex(expert_ids.shape):
        expert = int(expert_ids[place])
        if expert < 0:
            continue
        x = hidden[place[:2]].astype(np.float32)
        raised = _affine(x, up, up_bias, expert)
        if gate is None:
            inner = activate(activation, raised)
        else:
            inner = activate(activation, _affine(x, gate, gate_bias, expert)) * raised
        output[place[:2]] += float(gates[place]) * _affine(inner, down, down_bias, expert)
    return output.astype(hidden.dtype)


def _affine(
    x: NDArray[np.float32], weight: NDArray[Any], bias: NDArray[Any] | None, expert: int
) -> NDArray[np.float32]:
    product: NDArray[np.float32] = x @ weight[expert].astype(np.float32)
    return product if bias is None else product + bias[expert].astype(np.float32)


def _trace_affine(
    op: onnxscript.OpBuilder, x: ir.Value, weight: ir.Value, bias: ir.Value | None, expert: ir.Value
) -> Any:
    product = op.MatMul(x, op.Gather(weight, expert))
    return product if bias is None else op.Add(product, op.Gather(bias, expert))


def body(
    op: onnxscript.OpBuilder,
    hidden: ir.Value,
    expert_ids: ir.Value,
    gates: ir.Value,
    up: ir.Value,
    down: ir.Value,
    gate: ir.Value | None = None,
    up_bias: ir.Value | None = None,
    down_bias: ir.Value | None = None,
    gate_bias: ir.Value | None = None,
    *,
    activation: str,
) -> Any:
    """Trace a loop over the experts that were chosen at all, each over its own tokens."""
    tokens = op.Reshape(hidden, op.Concat([-1], op.Shape(hidden, start=2), axis=0))

    def one_expert(inner: onnxscript.OpBuilder, rows: ir.Value, expert: ir.Value) -> Any:
        x = inner.Gather(tokens, rows)
        raised = _trace_affine(inner, x, up, up_bias, expert)
        if gate is None:
            middle = trace_activation(inner, activation, raised)
        else:
            opened = _trace_affine(inner, x, gate, gate_bias, expert)
            middle = inner.Mul(trace_activation(inner, activation, opened), raised)
        output = _trace_affine(inner, middle, down, down_bias, expert)
        return inner.Cast(output, to=ir.DataType.FLOAT)

    total = trace_experts(op, tokens, expert_ids, gates, one_expert)
    return op.CastLike(op.Reshape(total, op.Shape(hidden)), hidden)


def trace_experts(
    op: onnxscript.OpBuilder,
    tokens: ir.Value,
    expert_ids: ir.Value,
    gates: ir.Value,
    expert_output: Callable[[onnxscript.OpBuilder, ir.Value, ir.Value], Any],
) -> Any:
    """Trace the weighted sum of the experts' outputs, as a loop over those that were chosen.

    A step then reads the weights of the chosen experts only, and no token passes through an
    expert in vain. Against all experts with a mask that is up to 4 times faster in ONNX Runtime
    for large experts (512 to 2048, 1 of 8 chosen), and about equal for small ones.

    Args:
        op: The graph under construction.
        tokens: `[B·T, d]`.
        expert_ids: `[B, T, k]`.
        gates: `[B, T, k]`.
        expert_output: Traces float32 `[R, d]` for the tokens `rows` `[R]` and the int64 scalar
            `expert`, with the builder of the loop.

    Returns:
        Float32 `[B·T, d]`.
    """
    flat = op.Concat([-1], op.Shape(expert_ids, start=2), axis=0)
    flat_ids = op.Cast(op.Reshape(expert_ids, flat), to=ir.DataType.INT64)
    flat_gates = op.Reshape(gates, flat)
    # Ids in ascending order; the -1 put in front stands for all padding and is cut off.
    chosen = op.Unique(op.Concat([-1], op.Reshape(flat_ids, [-1]), axis=0), sorted=1)
    experts = op.Slice(chosen, [1], op.Shape(chosen))

    def one_expert(
        inner: onnxscript.OpBuilder, index: ir.Value, _: ir.Value, total: ir.Value
    ) -> Any:
        expert = inner.Gather(experts, index)
        hits = inner.Equal(flat_ids, expert)
        weight = inner.ReduceSum(inner.Where(hits, flat_gates, 0.0), [1], keepdims=1)
        anywhere = inner.ReduceMax(inner.Cast(hits, to=ir.DataType.INT32), [1], keepdims=0)
        rows = inner.Squeeze(inner.NonZero(anywhere), [0])
        output = expert_output(inner, rows, expert)
        part = inner.Mul(output, inner.Gather(weight, rows))
        updated = inner.ScatterND(total, inner.Unsqueeze(rows, [1]), part, reduction="add")
        return inner.Identity(True), updated

    start = op.ConstantOfShape(op.Shape(tokens), value=ir.tensor(np.zeros(1, np.float32)))
    loop_body = op.builder.subgraph(
        one_expert,
        [
            ir.val("index", ir.DataType.INT64, []),
            ir.val("running", ir.DataType.BOOL, []),
            ir.val("total", ir.DataType.FLOAT),
        ],
        [ir.val("still_running", ir.DataType.BOOL, []), ir.val("new_total", ir.DataType.FLOAT)],
        name="one_expert",
    )
    return op.Loop(op.Squeeze(op.Shape(experts)), True, start, body=loop_body)


ROUTED_FFN = Operator(
    name="RoutedFFN",
    inputs=(
        Argument("hidden", None, ("B", "T", "d")),
        Argument("expert_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("gates", ir.DataType.FLOAT, ("B", "T", "k")),
        Argument("up", None, ("E", "d", "f")),
        Argument("down", None, ("E", "f", "d")),
        Argument("gate", None, ("E", "d", "f"), optional=True),
        Argument("up_bias", None, ("E", "f"), optional=True),
        Argument("down_bias", None, ("E", "d"), optional=True),
        Argument("gate_bias", None, ("E", "f"), optional=True, beside="gate"),
    ),
    outputs=(Argument("output", None, ("B", "T", "d")),),
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
