"""Attention as ONNX nodes."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.export.graph.emitter import Emitter, States
from drl.export.graph.kv_cache import INT8_CACHE
from drl.export.graph.positions import Rotary, bias_table, emit_position_bias
from drl.plugins.ops import ENCODER_ATTENTION, QUANTIZE_STATES


@dataclass(frozen=True)
class SelfAttentionValues:
    """What all self-attention layers of a graph share.

    Attributes:
        rotary: Rotary tables, or None.
        bias: Added to the scores, or None: `[B, H or 1, S, S]` in the encoder, where it is the
            padding mask too; `[B, H, T, L]` in the decoder, where the cache does the masking.
        bias_rows: Rows of the layers' own bias tables, int64 `[B or 1, T, L]`, or None.
        lengths: Tokens in the cache, int32 `[B]`; None in the encoder.
    """

    rotary: Rotary | None
    bias: ir.Value | None
    bias_rows: ir.Value | None
    lengths: ir.Value | None = None

    def layer_bias(self, e: Emitter, *, bidirectional: bool) -> ir.Value | None:
        """Emit the bias of the attention in scope: the shared one and the layer's own."""
        if self.bias_rows is None:
            return self.bias
        own = emit_position_bias(e, self.bias_rows, bidirectional=bidirectional)
        if own is None or self.bias is None:
            return self.bias if own is None else own
        return e.op.Add(own, self.bias)


@dataclass(frozen=True)
class EncoderAttentionValues:
    """What all layers of an encoder share that attend by an operator of ours.

    Attributes:
        rotary: Rotary tables, or None.
        lengths: Tokens of a source, int32 `[B]`.
        bias: Added to the scores by distance, `[D, H]`, or None.
    """

    rotary: Rotary | None
    lengths: ir.Value
    bias: ir.Value | None


def emit_encoder_attention(
    e: Emitter, name: str, x: States, residual: ir.Value, shared: EncoderAttentionValues
) -> ir.Value:
    """Emit the encoder's `SelfAttention` called `name`, and the sum with `residual` `[B, S, d]`.

    It is one operator; what it gives for padding is 0.
    """
    with e.scope(name):
        own = bias_table(e, bidirectional=True)
        mixed = ENCODER_ATTENTION.emit(
            e.op,
            *_project(e, x, shared.rotary),
            shared.lengths,
            shared.bias if own is None else own,
            num_heads=e.config.num_heads,
            scale=e.config.softmax_scale,
        )
        return e.linear("o", mixed, residual=residual)


def emit_self_attention(
    e: Emitter, name: str, x: States, residual: ir.Value, shared: SelfAttentionValues
) -> ir.Value:
    """Emit the encoder's `SelfAttention` called `name` in standard operators, and the same sum."""
    config = e.config
    with e.scope(name):
        query, key, value = _project(e, x, shared.rotary)
        mixed = e.op.Attention(
            query,
            key,
            value,
            shared.layer_bias(e, bidirectional=True),
            q_num_heads=config.num_heads,
            kv_num_heads=config.kv_heads,
            scale=config.softmax_scale,
        )
        return e.linear("o", mixed, residual=residual)


def emit_cached_attention(
    e: Emitter,
    name: str,
    x: States,
    residual: ir.Value,
    shared: SelfAttentionValues,
    past: tuple[ir.Value, ir.Value],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Emit the decoder's `SelfAttention` called `name`, over the cache and the new tokens.

    Returns:
        The sum of output and `residual`, `[B, T, d]`, and the caches with the new keys and values,
        `[B, N, C, h]`, or wider as `CacheForm` says.
    """
    with e.scope(name):
        query, key, value = _project(e, x, shared.rotary)
        mixed, keys, values = e.cache.cached_attention.emit(
            e.op,
            query,
            key,
            value,
            *past,
            shared.lengths,
            shared.layer_bias(e, bidirectional=False),
            num_heads=e.config.num_heads,
            scale=e.config.softmax_scale,
        )
        return e.linear("o", mixed, residual=residual), keys, values


def emit_cross_projection(e: Emitter, name: str, states: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit the keys and values of `CrossAttention` `name` for `[B, K, d]`: `[B, N, K, h]` each.

    They have the form of the cache.
    """
    with e.scope(name):
        keys, values = (_as_cached(e, e.linear(side, states)) for side in ("k", "v"))
        return keys, values


def emit_cross_attention(
    e: Emitter,
    name: str,
    x: States,
    residual: ir.Value,
    memory: tuple[ir.Value, ir.Value],
    bias: ir.Value,
) -> ir.Value:
    """Emit the `CrossAttention` called `name`, and the sum with `residual`.

    Args:
        e: The graph under construction.
        name: The module's name.
        x: `[B, T, d]`, the W rows of a source side by side.
        residual: `[B, T, d]`.
        memory: Keys and values of the sources, `[R, N, K, h]`, in the form of the cache.
        bias: Added to the scores, `[R, K]`.
    """
    with e.scope(name):
        mixed = e.cache.cross_attention.emit(
            e.op,
            e.linear("q", x),
            *memory,
            bias,
            num_heads=e.config.num_heads,
            scale=e.config.softmax_scale,
        )
        return e.linear("o", mixed, residual=residual)


def _project(e: Emitter, x: States, rotary: Rotary | None) -> tuple[ir.Value, ir.Value, ir.Value]:
    query, key, value = e.projections(x)
    if rotary is not None:
        query = rotary.turn(e, query, e.config.num_heads)
        key = rotary.turn(e, key, e.config.kv_heads)
    return query, key, value


def _as_cached(e: Emitter, x: ir.Value) -> ir.Value:
    """Turn keys or values `[B, K, N·h]` into `[B, N, K, h]`, in the form of the cache."""
    config = e.config
    if e.cache is INT8_CACHE:
        rows: ir.Value = QUANTIZE_STATES.emit(
            e.op, x, kv_heads=config.kv_heads, head_dim=config.head_dim
        )
        return rows
    split = e.op.Reshape(x, [0, 0, config.kv_heads, config.head_dim])
    return e.op.Transpose(split, perm=[0, 2, 1, 3])
