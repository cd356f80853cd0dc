"""Normalisation layers as ONNX nodes, and where a layer puts them."""

from collections.abc import Callable

import onnx_ir as ir

from drl.export.graph.emitter import Emitter


def emit_norm(e: Emitter, name: str, x: ir.Value) -> ir.Value:
    """Emit the norm called `name`: `[..., d]` to `[..., d]`."""
    epsilon = e.config.norm_eps
    with e.scope(name):
        if e.config.norm == "rms":
            return e.op.RMSNormalization(x, e.weight("weight"), axis=-1, epsilon=epsilon)
        return e.op.LayerNormalization(
            x, e.weight("weight"), e.weight("bias"), axis=-1, epsilon=epsilon
        )


def emit_residual(
    e: Emitter, norm: str, x: ir.Value, sublayer: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Emit `Layer.residual`: a sublayer's output added to `x`, normed before or after the sum."""
    if e.config.norm_position == "pre":
        return e.op.Add(x, sublayer(emit_norm(e, norm, x)))
    return emit_norm(e, norm, e.op.Add(x, sublayer(x)))
