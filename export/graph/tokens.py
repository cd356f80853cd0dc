"""Tokens as ONNX nodes: embedding, which of them are real, and the head that predicts them."""

import onnx_ir as ir

from drl.export.graph.emitter import BOOL, INT64, Emitter
from drl.export.model.attention import MASKED


def emit_embedding(e: Emitter, tokens: ir.Value, table: str = "embedding") -> ir.Value:
    """Emit the lookup of `tokens` int64 `[B, T]` in the embedding `table`: `[B, T, d]`."""
    with e.scope(table):
        return e.op.Gather(e.weight("weight"), tokens)


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


def emit_head(e: Emitter, states: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit the logits of `states` `[B, T, d]`, and what turns them into log-probabilities.

    The head is used as it is stored, [V, d], so that a tied one is stored once.

    Returns:
        Logits `[B, T, V]`, and the logarithm of the sum of their exponentials, `[B, T]`.
    """
    op, config = e.op, e.config
    with e.scope(config.target_embedding if config.tie_embeddings else "lm_head"):
        head = e.weight("weight")
    with e.scope("head"):
        rows = op.Reshape(states, [-1, config.d_model])
        bias = [e.weight_of("head_bias")] if config.head_bias else []
        logits = op.Gemm(rows, head, *bias, transB=1, alpha=config.output_scale)
        # Runtimes have a fast LogSoftmax and a slow ReduceLogSumExp. The likeliest token tells by
        # how much it shifts a row.
        likeliest = op.ReduceMax(op.LogSoftmax(logits, axis=-1), [-1], keepdims=0)
        shifts = op.Sub(op.ReduceMax(logits, [-1], keepdims=0), likeliest)
        places = op.Shape(states, start=0, end=2)
        shape = op.Concat(places, [config.vocab_size], axis=0)
        return op.Reshape(logits, shape), op.Reshape(shifts, places)
