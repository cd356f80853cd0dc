"""The decoder graph: every step, new tokens to logits, over a cache updated in place."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.export.graph.attention import (
    SelfAttentionValues,
    emit_cached_attention,
    emit_cross_attention,
)
from drl.export.graph.emitter import FLOAT, INT32, INT64, BranchOutput, Dims, Emitter, States
from drl.export.graph.feed_forward import RoutingValues, emit_feed_forward
from drl.export.graph.group_router import emit_group_router
from drl.export.graph.norms import emit_norm_of_input, emit_residual
from drl.export.graph.paths import PathSwitch
from drl.export.graph.positions import (
    emit_bias_rows,
    emit_placed,
    emit_position_bias,
    emit_rotary,
)
from drl.export.graph.precision import open_emitter
from drl.export.graph.tokens import emit_steps, emit_valid
from drl.export.model import ModelConfig
from drl.export.options import KvCache, Precision
from drl.export.weights import WeightPlan


@dataclass(frozen=True)
class _LayerInputs:
    """What one layer reads: caches `[B, N, C, h]`, sources `[R, N, K, h]`, and shared values."""

    past: tuple[ir.Value, ir.Value]
    cross: tuple[ir.Value, ir.Value]
    attention: SelfAttentionValues
    cross_bias: ir.Value
    routing: RoutingValues | None


def emit_decoder(
    config: ModelConfig,
    weights: WeightPlan,
    precision: Precision = "fp32",
    kv_cache: KvCache = "fp32",
    *,
    panels: bool = False,
) -> ir.Model:
    """Emit the graph from `tokens` to `logits`.

    Inputs: `tokens` int64 `[B, T]`, `lengths` int32 `[B]` (tokens in the cache), `new_lengths`
    int32 `[B]` (how many of T are real), if the graph ranks `candidates` int64 `[1]`, with several
    paths `path` int64 `[]`, `cross_bias` `[R, K]`, per layer `cross_k.{i}`, `cross_v.{i}`
    `[R, N, K, h]` and `past_k.{i}`, `past_v.{i}` `[B, N, C, h]`. Outputs: `logits` `[B, T, V]`,
    their `normalisers` `[B, T]`, if the graph ranks `top_values` and `top_ids` `[B, T, c]`, per
    layer `present_k.{i}` and `present_v.{i}` (the same buffers as the past), and
    `decoder_experts.{i}` int32 `[B, T, k]` per sparse layer. A layer that the path skips hands on
    its empty caches. Keys and values of int8 have two more bytes behind h.

    A graph of a quantised precision, or with weights in panels, ranks: for c > 0 `candidates` it
    tells the c largest logits, and `logits` is `[B, T, 0]`.

    There are R sources and W = B/R rows for each, side by side: row b reads source b // W.
    """
    e = open_emitter("decoder", config, weights, precision, kv_cache, panels=panels)
    tokens = e.input("tokens", INT64, ["B", "T"])
    lengths = e.input("lengths", INT32, ["B"])
    new_lengths = e.input("new_lengths", INT32, ["B"])
    candidates = e.input("candidates", INT64, [1]) if e.ranks else None
    switch = PathSwitch(e)
    cross_bias = e.input("cross_bias", FLOAT, ["R", "K"])
    cross = [_layer_pair(e, "cross", i, "R", "K") for i in range(config.decoder_layers)]
    past = [_layer_pair(e, "past", i, "B", "C") for i in range(config.decoder_layers)]

    steps = emit_steps(e, tokens)
    groups = emit_group_router(e, tokens, config.target_embedding)
    embedded = e.embedding(config.target_embedding, tokens)
    presents, experts = [], {}
    with e.scope("decoder"):
        begun = e.op.Unsqueeze(e.op.Cast(lengths, to=INT64), [1])
        positions = e.op.Add(begun, steps)
        x = emit_placed(e, embedded, positions, config.max_target_length)
        attention = _attention_values(e, tokens, positions, lengths)
        routing = None
        if groups is not None and config.decoder_sparse_layers:
            k = switch.number([path.experts_per_token for path in config.paths])
            routing = RoutingValues(groups, emit_valid(e, steps, new_lengths), k)
        for i in range(config.decoder_layers):
            inputs = _LayerInputs(past[i], cross[i], attention, cross_bias, routing)
            x, *rest = _emit_layer(e, i, x, inputs, switch.runs(i))
            presents.append(rest[:2])
            if i in config.decoder_sparse_layers:
                experts[i] = rest[2]
        states = emit_norm_of_input(e, "norm", x) if config.has_final_norm else x
    head = e.head(states, candidates)
    size = config.vocab_size
    e.output("logits", head.logits, ["B", "T", f"{size} or 0" if e.ranks else size])
    e.output("normalisers", head.normalisers, ["B", "T"])
    if head.top is not None:
        e.output("top_values", head.top[0], ["B", "T", "c"])
        e.output("top_ids", head.top[1], ["B", "T", "c"], INT32)
    for i, pair in enumerate(presents):
        for side, value in zip("kv", pair, strict=True):
            e.output(f"present_{side}.{i}", value, _layer_dims(e, i, "B", "C"), e.cache.dtype)
    for i, ids in experts.items():
        e.output(f"decoder_experts.{i}", ids, _expert_dims(config, i), INT32)
    return e.model()


def _layer_dims(e: Emitter, layer: int, rows: str, length: str) -> Dims:
    """Return the dimensions of a layer's keys; a skippable layer has a length of its own."""
    config = e.config
    name = f"{length}.{layer}" if layer in config.skippable_layers else length
    return [rows, config.kv_heads, name, e.cache.row_width(config)]


def _expert_dims(config: ModelConfig, layer: int) -> Dims:
    widths = {p.experts_per_token if layer in p.layers else 0 for p in config.paths}
    return ["B", "T", widths.pop() if len(widths) == 1 else f"k.{layer}"]


def _layer_pair(
    e: Emitter, kind: str, layer: int, rows: str, length: str
) -> tuple[ir.Value, ir.Value]:
    dims = _layer_dims(e, layer, rows, length)
    return (
        e.input(f"{kind}_k.{layer}", e.cache.dtype, dims),
        e.input(f"{kind}_v.{layer}", e.cache.dtype, dims),
    )


def _attention_values(
    e: Emitter, tokens: ir.Value, positions: ir.Value, lengths: ir.Value
) -> SelfAttentionValues:
    op = e.op
    rotary = emit_rotary(e, positions)
    if e.config.position != "t5_bias":
        return SelfAttentionValues(rotary, bias=None, bias_rows=None, lengths=lengths)
    longest = op.Cast(op.ReduceMax(lengths, keepdims=0), to=INT64)
    slots = op.Add(longest, op.Squeeze(op.Shape(tokens, start=1, end=2)))
    rows = emit_bias_rows(e, positions, op.Range(0, slots, 1), bidirectional=False)
    assert rows is not None
    bias = emit_position_bias(e, rows, bidirectional=False)
    own = rows if e.config.position_bias_per_layer else None
    return SelfAttentionValues(rotary, bias, own, lengths)


def _emit_layer(
    e: Emitter, layer: int, x: ir.Value, inputs: _LayerInputs, condition: ir.Value | None
) -> list[ir.Value]:
    """Emit one layer, under `If` where some path skips it.

    Returns:
        The states `[B, T, d]`, both caches, and for a sparse layer the experts chosen.
    """
    config = e.config
    sparse = layer in config.decoder_sparse_layers

    def run() -> list[ir.Value]:
        present: list[ir.Value] = []

        def attend(normed: States, residual: ir.Value) -> ir.Value:
            output, *present[:] = emit_cached_attention(
                e, "self_attention", normed, residual, inputs.attention, inputs.past
            )
            return output

        def attend_source(normed: States, residual: ir.Value) -> ir.Value:
            return emit_cross_attention(
                e, "cross_attention", normed, residual, inputs.cross, inputs.cross_bias
            )

        y = emit_residual(e, "self_attention_norm", x, attend)
        y = emit_residual(e, "cross_attention_norm", y, attend_source)
        y, experts = emit_feed_forward(e, y, inputs.routing if sparse else None)
        return [y, *present] if experts is None else [y, *present, experts]

    def skip() -> list[ir.Value]:
        kept = [e.op.Identity(value) for value in (x, *inputs.past)]
        none = e.op.ConstantOfShape([0, 0, 0], value=ir.tensor([0], dtype=INT32))
        return [*kept, none] if sparse else kept

    with e.scope(f"layers.{layer}"):
        if condition is None:
            return run()
        cache = _layer_dims(e, layer, "B", "C")
        outputs: list[BranchOutput] = [
            ("states", FLOAT, ["B", "T", config.d_model]),
            ("present_k", e.cache.dtype, cache),
            ("present_v", e.cache.dtype, cache),
        ]
        if sparse:
            outputs.append(("experts", INT32, [None, None, None]))
        return list(e.branch(condition, run, skip, outputs, name=f"decoder.layers.{layer}"))
