"""The encoder graph: once per source, tokens to states, saliency and path logits."""

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from drl.export.graph.attention import (
    EncoderAttentionValues,
    SelfAttentionValues,
    emit_encoder_attention,
    emit_self_attention,
)
from drl.export.graph.emitter import FLOAT, INT32, INT64, Emitter, States
from drl.export.graph.feed_forward import RoutingValues, emit_feed_forward
from drl.export.graph.group_router import GroupValues, emit_group_router
from drl.export.graph.norms import emit_norm, emit_residual
from drl.export.graph.positions import (
    Rotary,
    bias_table,
    emit_bias_rows,
    emit_placed,
    emit_position_bias,
    emit_rotary,
)
from drl.export.graph.precision import open_emitter
from drl.export.graph.tokens import emit_padding_bias, emit_steps, emit_valid
from drl.export.model import ModelConfig
from drl.export.options import Precision
from drl.export.weights import WeightPlan
from drl.plugins.ops import PATH_SCORE


def emit_encoder(
    config: ModelConfig, weights: WeightPlan, precision: Precision = "fp32"
) -> ir.Model:
    """Emit the graph from `source_tokens` to `encoder_states`.

    Inputs: `source_tokens` int64 `[B, S]`, `source_lengths` int32 `[B]`, and with a path router
    `budget` fp32 `[B]`. Outputs: `encoder_states` `[B, S, d]`; with a path router `saliency`
    `[B, S]` and `path_logits` `[B, P]`; `encoder_experts.{i}` int32 `[B, S, k]` per sparse layer.
    """
    e = open_emitter("encoder", config, weights, precision)
    tokens = e.input("source_tokens", INT64, ["B", "S"])
    lengths = e.input("source_lengths", INT32, ["B"])
    steps = emit_steps(e, tokens)
    valid = emit_valid(e, steps, lengths)
    groups = emit_group_router(e, tokens)
    embedded = e.embedding("embedding", tokens)
    with e.scope("encoder"):
        row = e.op.Unsqueeze(steps, [0])
        x = emit_placed(e, embedded, row, config.max_source_length)
        attend = _attention(e, tokens, row, lengths, valid)
        routing = None
        if groups is not None:
            k = e.op.Constant(value_ints=[config.experts_per_token])
            routing = RoutingValues(groups, valid, k, config.expert_capacity)
        experts = {}
        for i in range(config.encoder_layers):
            with e.scope(f"layers.{i}"):
                x = emit_residual(e, "self_attention_norm", x, attend)
                sparse = i in config.encoder_sparse_layers
                x, chosen = emit_feed_forward(e, x, routing if sparse else None)
                if chosen is not None:
                    experts[i] = chosen
        states = emit_norm(e, "norm", x) if config.has_final_norm else x
    e.output("encoder_states", states, ["B", "S", config.d_model])
    if groups is not None and config.path_router is not None:
        _emit_path_router(e, states, valid, groups)
    for i, ids in experts.items():
        e.output(f"encoder_experts.{i}", ids, ["B", "S", config.experts_per_token], INT32)
    return e.model()


def _attention(
    e: Emitter, tokens: ir.Value, row: ir.Value, lengths: ir.Value, valid: ir.Value
) -> Callable[[States, ir.Value], ir.Value]:
    """Return what emits the self-attention of the layer in scope, and the sum with a residual."""
    rotary = emit_rotary(e, e.op.Expand(row, e.op.Shape(tokens)))
    if e.fuses:
        values = EncoderAttentionValues(rotary, lengths, bias_table(e, bidirectional=True))
        return partial(emit_encoder_attention, e, "self_attention", shared=values)
    shared = _attention_values(e, tokens, row, valid, rotary)
    return partial(emit_self_attention, e, "self_attention", shared=shared)


def _attention_values(
    e: Emitter, tokens: ir.Value, row: ir.Value, valid: ir.Value, rotary: Rotary | None
) -> SelfAttentionValues:
    op = e.op
    bias = op.Unsqueeze(emit_padding_bias(e, valid), [1, 2])
    rows = emit_bias_rows(e, row, row, bidirectional=True)
    relative = None if rows is None else emit_position_bias(e, rows, bidirectional=True)
    if relative is None:
        # ONNX Runtime's CPU kernel does not broadcast the query dimension of a mask.
        width = op.Shape(tokens, start=1, end=2)
        bias = op.Expand(bias, op.Concat([1, 1], width, [1], axis=0))
    else:
        bias = op.Add(relative, bias)
    own = rows if e.config.position_bias_per_layer else None
    return SelfAttentionValues(rotary, bias, own)


def _emit_path_router(e: Emitter, states: ir.Value, valid: ir.Value, groups: GroupValues) -> None:
    """Emit the `PathRouter`, and with it the outputs `saliency` and `path_logits`."""
    config = e.config
    assert config.path_router is not None
    attention = config.path_router.head == "attention"
    budget = e.input("budget", FLOAT, ["B"])
    with e.scope("path_router"):
        saliency, logits = PATH_SCORE.emit(
            e.op,
            states,
            valid,
            groups.log_probs,
            budget,
            e.weight_as("saliency.weight", (config.d_model,)),
            e.weight_as("saliency.bias", ()),
            e.matrix("hidden.weight"),
            e.weight("hidden.bias"),
            e.matrix("output.weight"),
            e.weight("output.bias"),
            e.weight("query") if attention else None,
            pooling="attention" if attention else "saliency",
            max_source_length=config.max_source_length,
        )
    e.output("saliency", saliency, ["B", "S"])
    e.output("path_logits", logits, ["B", len(config.paths)])
