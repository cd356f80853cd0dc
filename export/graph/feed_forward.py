"""Feed-forward networks as ONNX nodes, dense and routed."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.export.graph.emitter import FLOAT, Emitter, States
from drl.export.graph.group_router import GroupValues
from drl.export.graph.norms import emit_normed, emit_residual
from drl.plugins.ops import EXPERT_CAPACITY, EXPERT_ROUTE


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

    def sublayer(normed: States, residual: ir.Value) -> ir.Value:
        if routing is None:
            return emit_dense(e, "ffn", normed, residual)
        output, ids = emit_sparse(e, "ffn", emit_normed(e, normed), residual, routing)
        chosen.append(ids)
        return output

    return emit_residual(e, "ffn_norm", x, sublayer), chosen[0] if chosen else None


def emit_dense(e: Emitter, name: str, x: States, residual: ir.Value | None) -> ir.Value:
    """Emit the `FeedForward` called `name`, and the sum with `residual`: to `[B, T, d]`."""
    with e.scope(name):
        return e.linear("down", e.inner(x), residual=residual)


def emit_sparse(
    e: Emitter, name: str, x: ir.Value, residual: ir.Value, routing: RoutingValues
) -> tuple[ir.Value, ir.Value]:
    """Emit the `SparseFeedForward` called `name`, and the sum with `residual`.

    Returns:
        The sum `[B, T, d]`, and the experts chosen, int32 `[B, T, k]`.
    """

    def shared(residual: ir.Value | None) -> ir.Value:
        return emit_dense(e, "shared", x, residual)

    with e.scope(name):
        ids, gates = _emit_router(e, x, routing)
        output = e.experts(x, (ids, gates), residual, shared if e.config.d_shared else None)
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
    """Emit `ExpertRouter.weigh`; padding keeps its gates of 0."""
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
