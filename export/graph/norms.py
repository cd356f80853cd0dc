"""Normalisation layers as ONNX nodes."""

import onnx_ir as ir

from drl.export.graph.emitter import Emitter


def emit_norm(e: Emitter, name: str, x: ir.Value) -> ir.Value:
    """Emit the `RMSNorm` called `name`: `[..., d]` to `[..., d]`."""
    with e.scope(name):
        return e.op.RMSNormalization(x, e.weight("weight"), axis=-1, epsilon=e.config.norm_eps)
