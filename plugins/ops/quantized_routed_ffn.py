"""QuantizedRoutedFFN: the feed-forward layer of experts, with packed weights."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.activations import GATED, activate, trace_activation
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.packing import PackedWeights
from drl.plugins.ops.quantized_product import (
    LAYOUT_ATTRIBUTE,
    TracedRows,
    TracedWeights,
    packed_weights,
    product,
    trace_rows,
    trace_weights,
    weight_arguments,
)
from drl.plugins.ops.routed_ffn import trace_experts
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def reference(
    hidden: Float32,
    expert_ids: NDArray[np.int32],
    gates: Float32,
    up: Bytes,
    up_scale: Float32,
    down: Bytes,
    down_scale: Float32,
    up_multiplier: Bytes | None = None,
    down_multiplier: Bytes | None = None,
    gate: Bytes | None = None,
    gate_scale: Float32 | None = None,
    gate_multiplier: Bytes | None = None,
    up_bias: Float32 | None = None,
    down_bias: Float32 | None = None,
    gate_bias: Float32 | None = None,
    residual: Float32 | None = None,
    *,
    activation: str,
    inner: int,
    layout: int,
) -> Float32:
    """Sum the outputs of the chosen experts of every token, weighted by its gates.

    What `RoutedFFN` computes, with packed weights W as in x · Wᵀ. What meets the weights, the
    activated values among it, is rounded to int8 row by row. Experts are added up in ascending
    order of their ids, then the residual.

    Args:
        hidden: `[B, T, d]`.
        expert_ids: `[B, T, k]`, -1 for none.
        gates: `[B, T, k]`.
        up: Packed values of E matrices `[f, d]`.
        up_scale: `[E, ⌈f/32⌉·32]`.
        down: Packed values of E matrices `[d, f]`.
        down_scale: `[E, ⌈d/32⌉·32]`.
        up_multiplier: Of weights in blocks, as the other two.
        down_multiplier: See above.
        gate: As `up`, only with a gated activation.
        gate_scale: As `up_scale`, only with a gated activation.
        gate_multiplier: See above.
        up_bias: `[E, f]`, added to the products with `up`, as the next two to theirs.
        down_bias: `[E, d]`.
        gate_bias: `[E, f]`.
        residual: `[B, T, d]`.
        activation: A key of `drl.plugins.ops.activations.GATED`.
        inner: f.
        layout: The layout of the packed weights.

    Returns:
        `[B, T, d]`.
    """
    width = hidden.shape[-1]
    ups = packed_weights(up, up_scale, up_multiplier, inner, width)
    downs = packed_weights(down, down_scale, down_multiplier, width, inner)
    output = np.zeros(hidden.shape, np.float32)
    for expert in np.unique(expert_ids[expert_ids >= 0]):
        hits = expert_ids == expert
        places = hits.any(axis=-1)
        x = hidden[places]
        middle = _affine(x, ups, up_bias, expert)
        if gate is None:
            middle = activate(activation, middle)
        else:
            assert gate_scale is not None  # the schema has it come with the gate
            opens = packed_weights(gate, gate_scale, gate_multiplier, inner, width)
            middle = activate(activation, _affine(x, opens, gate_bias, expert)) * middle
        weights = np.where(hits, gates, np.float32(0)).sum(axis=-1)[places]
        output[places] += weights[:, None] * _affine(middle, downs, down_bias, expert)
    return output if residual is None else output + residual


def _affine(x: Float32, packed: PackedWeights, bias: Float32 | None, expert: int) -> Float32:
    y = product(x, packed, expert)
    return y if bias is None else y + bias[expert]


def body(
    op: onnxscript.OpBuilder,
    hidden: ir.Value,
    expert_ids: ir.Value,
    gates: ir.Value,
    up: ir.Value,
    up_scale: ir.Value,
    down: ir.Value,
    down_scale: ir.Value,
    up_multiplier: ir.Value | None = None,
    down_multiplier: ir.Value | None = None,
    gate: ir.Value | None = None,
    gate_scale: ir.Value | None = None,
    gate_multiplier: ir.Value | None = None,
    up_bias: ir.Value | None = None,
    down_bias: ir.Value | None = None,
    gate_bias: ir.Value | None = None,
    residual: ir.Value | None = None,
    *,
    activation: str,
    inner: ir.Value,
    layout: ir.Value,
) -> Any:
    """Trace the loop of `RoutedFFN` over unpacked weights."""
    width = op.Shape(hidden, start=2)
    tokens = op.Reshape(hidden, op.Concat([-1], width, axis=0))
    quantized = trace_rows(op, tokens)
    ups = trace_weights(op, up, up_scale, up_multiplier, inner)
    downs = trace_weights(op, down, down_scale, down_multiplier, width)
    opens = (
        None
        if gate is None or gate_scale is None
        else trace_weights(op, gate, gate_scale, gate_multiplier, inner)
    )

    def one_expert(inside: onnxscript.OpBuilder, rows: ir.Value, expert: ir.Value) -> Any:
        x = quantized.gather(inside, rows)
        middle = _trace_affine(inside, x, ups, up_bias, expert)
        if opens is None:
            middle = trace_activation(inside, activation, middle)
        else:
            opened = _trace_affine(inside, x, opens, gate_bias, expert)
            middle = inside.Mul(trace_activation(inside, activation, opened), middle)
        return _trace_affine(inside, trace_rows(inside, middle), downs, down_bias, expert)

    output = op.Reshape(trace_experts(op, tokens, expert_ids, gates, one_expert), op.Shape(hidden))
    return output if residual is None else op.Add(output, residual)


def _trace_affine(
    op: onnxscript.OpBuilder,
    x: TracedRows,
    weights: TracedWeights,
    bias: ir.Value | None,
    expert: ir.Value,
) -> Any:
    y = weights.product(op, x, expert)
    return y if bias is None else op.Add(y, op.Gather(bias, expert, axis=0))


_UP = weight_arguments("up", ("E", "f", "d"))
_DOWN = weight_arguments("down", ("E", "d", "f"))

QUANTIZED_ROUTED_FFN = Operator(
    name="QuantizedRoutedFFN",
    inputs=(
        Argument("hidden", ir.DataType.FLOAT, ("B", "T", "d")),
        Argument("expert_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("gates", ir.DataType.FLOAT, ("B", "T", "k")),
        *_UP[:2],
        *_DOWN[:2],
        _UP[2],
        _DOWN[2],
        *weight_arguments("gate", ("E", "f", "d"), optional=True),
        Argument("up_bias", ir.DataType.FLOAT, ("E", "f"), optional=True),
        Argument("down_bias", ir.DataType.FLOAT, ("E", "d"), optional=True),
        Argument("gate_bias", ir.DataType.FLOAT, ("E", "f"), optional=True, beside="gate"),
        Argument("residual", ir.DataType.FLOAT, ("B", "T", "d"), optional=True),
    ),
    outputs=(Argument("output", ir.DataType.FLOAT, ("B", "T", "d")),),
    attributes=(
        Attribute(
            "activation",
            str,
            choices={
                name: ("gate", "gate_scale") if gated else () for name, gated in GATED.items()
            },
        ),
        Attribute("inner", int, dimension="f"),
        LAYOUT_ATTRIBUTE,
    ),
    reference=reference,
    body=body,
    overloaded=True,
)
