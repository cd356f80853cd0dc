"""Feed-forward networks as ONNX nodes, dense and routed."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.export.graph.emitter import FLOAT, Emitter
from drl.export.graph.group_router import GroupValues
from drl.export.graph.norms import emit_residual
from drl.export.model.feed_forward import is_gated
from drl.plugins.ops import EXPERT_CAPACITY, EXPERT_ROUTE, ROUTED_FFN


@dataclass(frozen=True)
class RoutingValues:
    """What all sparse layers of a graph share.

    Attributes:
        groups: Level-1 routing of the tokens.
        token_mask: bool `[B, T]`, true for real tokens.
        experts_per_token: k, int64 `[1]`.
        capacity: Tokens of a row that an expert takes, or None.
    """

    groups: GroupValues
    token_mask: ir.Value
    experts_per_token: ir.Value
    capacity: int | None = None


def emit_feed_forward(
    e: Emitter, x: ir.Value, routing: RoutingValues | None
) -> tuple[ir.Value, ir.Value | None]:
    """Emit `Layer.feed_forward`: the residual around `ffn`, which is sparse if there is routing.

    Returns:
        The states `[B, T, d]`, and of a sparse layer the experts chosen, int32 `[B, T, k]`.
    """
    chosen = []

    def sublayer(normed: ir.Value) -> ir.Value:
        if routing is None:
            return emit_dense(e, "ffn", normed)
        output, ids = emit_sparse(e, "ffn", normed, routing)
        chosen.append(ids)
        return output

    return emit_residual(e, "ffn_norm", x, sublayer), chosen[0] if chosen else None


def emit_dense(e: Emitter, name: str, x: ir.Value) -> ir.Value:
    """Emit the `FeedForward` called `name`: `[..., d]` to `[..., d]`."""
    with e.scope(name):
        up = e.linear("up", x)
        gate = e.linear("gate", x) if is_gated(e.config.activation) else None
        return e.linear("down", _activate(e, up, gate))


def emit_sparse(
    e: Emitter, name: str, x: ir.Value, routing: RoutingValues
) -> tuple[ir.Value, ir.Value]:
    """Emit the `SparseFeedForward` called `name`.

    Returns:
        The output `[B, T, d]`, and the experts chosen, int32 `[B, T, k]`.
    """
    config = e.config
    with e.scope(name):
        ids, gates = _emit_router(e, x, routing)
        with e.scope("experts"):
            names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
            weights = [e.weight(name) if e.has(name) else None for name in names]
            output = ROUTED_FFN.emit(e.op, x, ids, gates, *weights, activation=config.activation)
        if config.d_shared:
            output = e.op.Add(emit_dense(e, "shared", x), output)
        return output, ids


def _emit_router(e: Emitter, x: ir.Value, routing: RoutingValues) -> tuple[ir.Value, ir.Value]:
    """Emit the `ExpertRouter`: experts chosen, int32 `[B, T, k]`, and gates, fp32 `[B, T, k]`."""
    with e.scope("router"):
        ids, gates = EXPERT_ROUTE.emit(
            e.op,
            x,
            e.matrix("weight"),
            e.weight("prior_scale") if e.has("prior_scale") else _zero(e),
            routing.groups.log_probs,
            routing.groups.allowed,
            routing.token_mask,
            routing.experts_per_token,
            e.weight("bias") if e.has("bias") else None,
        )
        gates = _weigh(e, ids, gates)
        if routing.capacity is not None:
            ids, gates = EXPERT_CAPACITY.emit(e.op, ids, gates, capacity=routing.capacity)
        return ids, gates


def _weigh(e: Emitter, ids: ir.Value, gates: ir.Value) -> ir.Value:
    """Emit `ExpertRouter._weigh`; padding keeps its gates of 0."""
    op, config, shape = e.op, e.config, gates.shape
    if config.gates == "one":
        gates = op.Cast(op.GreaterOrEqual(ids, 0), to=FLOAT)
    elif config.gates == "normalized":
        total = op.ReduceSum(gates, [-1], keepdims=1)
        gates = op.Div(gates, op.Where(op.Greater(total, 0.0), total, 1.0))
    if config.expert_output_scale != 1.0:
        gates = op.Mul(gates, config.expert_output_scale)
    gates.type, gates.shape = ir.TensorType(FLOAT), shape
    return gates


def _zero(e: Emitter) -> ir.Value:
    return e.op.Constant(value_float=0.0)


def _activate(e: Emitter, up: ir.Value, gate: ir.Value | None) -> ir.Value:
    op, x, kind = e.op, up if gate is None else gate, e.config.activation
    if kind in ("silu", "silu_glu"):
        active = op.Swish(x)
    elif kind == "relu":
        active = op.Relu(x)
    else:
        active = op.Gelu(x, approximate="none" if kind == "gelu" else "tanh")
    return active if gate is None else op.Mul(active, up)
