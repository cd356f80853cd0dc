"""Feed-forward networks as ONNX nodes, dense and routed."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.export.graph.emitter import Emitter
from drl.export.graph.group_router import GroupValues
from drl.export.model.feed_forward import is_gated
from drl.plugins.ops import EXPERT_ROUTE, ROUTED_FFN


@dataclass(frozen=True)
class RoutingValues:
    """What all sparse layers of a graph share.

    Attributes:
        groups: Level-1 routing of the tokens.
        token_mask: bool `[B, T]`, true for real tokens.
        experts_per_token: k, int64 `[1]`.
    """

    groups: GroupValues
    token_mask: ir.Value
    experts_per_token: ir.Value


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
        with e.scope("router"):
            ids, gates = EXPERT_ROUTE.emit(
                e.op,
                x,
                e.matrix("weight"),
                e.weight("prior_scale"),
                routing.groups.log_probs,
                routing.groups.allowed,
                routing.token_mask,
                routing.experts_per_token,
            )
        with e.scope("experts"):
            weights = [e.weight("up"), e.weight("down")]
            weights += [e.weight("gate")] if is_gated(config.activation) else []
            output = ROUTED_FFN.emit(e.op, x, ids, gates, *weights, activation=config.activation)
        if config.d_shared:
            output = e.op.Add(emit_dense(e, "shared", x), output)
        return output, ids


def _activate(e: Emitter, up: ir.Value, gate: ir.Value | None) -> ir.Value:
    op, x = e.op, up if gate is None else gate
    kind = e.config.activation.removesuffix("_glu")
    if kind == "silu":
        active = op.Swish(x)
    elif kind == "gelu":
        active = op.Gelu(x, approximate="tanh")
    else:
        active = op.Relu(x)
    return active if gate is None else op.Mul(active, up)
