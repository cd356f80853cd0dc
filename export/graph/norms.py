"""Normalisation layers as ONNX nodes, and where a layer puts them."""

from collections.abc import Callable

import onnx_ir as ir

from drl.export.graph.emitter import Emitter, Normed, States

Sublayer = Callable[[States, ir.Value], ir.Value]
"""Emits a module over its input, and the sum with a residual `[B, T, d]`."""


def emit_norm(e: Emitter, name: str, x: ir.Value) -> ir.Value:
    """Emit the norm called `name`: `[..., d]` to `[..., d]`."""
    with e.scope(name):
        if e.config.norm == "rms":
            return _rms(e, x, e.weight("weight"))
        weight, bias = e.weight("weight"), e.weight("bias")
        return e.op.LayerNormalization(x, weight, bias, axis=-1, epsilon=e.config.norm_eps)


def emit_norm_of_input(e: Emitter, name: str, x: ir.Value) -> States:
    """Emit the norm called `name`, or leave it to the products that read it."""
    if not e.fuses or e.config.norm != "rms":
        return emit_norm(e, name, x)
    with e.scope(name):
        return Normed(x, e.weight("weight"))


def emit_normed(e: Emitter, x: States) -> ir.Value:
    """Emit the norm that was left to the readers of `x`, for those that cannot do it."""
    return _rms(e, x.x, x.weight) if isinstance(x, Normed) else x


def emit_residual(e: Emitter, norm: str, x: ir.Value, sublayer: Sublayer) -> ir.Value:
    """Emit `Layer.residual`: a sublayer's output added to `x`, normed before or after the sum.

    The sublayer adds `x` itself, since its last product can do so in passing.
    """
    if e.config.norm_position == "pre":
        return sublayer(emit_norm_of_input(e, norm, x), x)
    return emit_norm(e, norm, sublayer(x, x))


def _rms(e: Emitter, x: ir.Value, weight: ir.Value) -> ir.Value:
    return e.op.RMSNormalization(x, weight, axis=-1, epsilon=e.config.norm_eps)
