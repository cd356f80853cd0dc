"""Tokens as ONNX nodes: where they stand, and which of them are real."""

import onnx_ir as ir

from drl.export.graph.emitter import BOOL, INT64, Emitter
from drl.export.model.attention import MASKED


def emit_steps(e: Emitter, tokens: ir.Value) -> ir.Value:
    """Emit 0 … T−1 for `tokens` `[B, T]`: int64 `[T]`."""
    width = e.op.Squeeze(e.op.Shape(tokens, start=1, end=2))
    return e.op.Range(0, width, 1)


def emit_valid(e: Emitter, steps: ir.Value, lengths: ir.Value) -> ir.Value:
    """Emit which of a row's tokens are real: bool `[B, T]` from `[T]` and int32 `[B]`."""
    valid = e.op.Less(steps, e.op.Unsqueeze(e.op.Cast(lengths, to=INT64), [1]))
    valid.type = ir.TensorType(BOOL)
    return valid


def emit_padding_bias(e: Emitter, valid: ir.Value) -> ir.Value:
    """Emit 0 for real tokens and -1e4 for padding: fp32 of the shape of `valid`."""
    return e.op.Where(valid, 0.0, MASKED)
