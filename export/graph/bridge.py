"""The bridge graph: once per source and path, encoder states to the decoder's cross-attention."""

import onnx_ir as ir

from drl.export.graph.attention import emit_cross_projection
from drl.export.graph.emitter import FLOAT, INT32, INT64, Dims, Emitter
from drl.export.graph.paths import PathSwitch
from drl.export.graph.precision import open_emitter
from drl.export.graph.tokens import emit_padding_bias, emit_steps, emit_valid
from drl.export.model import ModelConfig
from drl.export.model.config import KEEP_DENOMINATOR
from drl.export.options import KvCache, Precision
from drl.export.weights import WeightPlan
from drl.plugins.ops import SELECT_STATES


def emit_bridge(
    config: ModelConfig,
    weights: WeightPlan,
    precision: Precision = "fp32",
    kv_cache: KvCache = "fp32",
) -> ir.Model:
    """Emit the graph from `encoder_states` to keys and values.

    Inputs: `encoder_states` `[B, S, d]`, `source_lengths` int32 `[B]`, with a path router
    `saliency` `[B, S]`, with several paths `path` int64 `[]`. Outputs: `cross_bias` `[B, K]`,
    `kept_lengths` int32 `[B]`, and per decoder layer `cross_k.{i}` and `cross_v.{i}`
    `[B, N, K, h]`, with K = 0 for a layer that is not on the path; a cache of int8 has two more
    bytes behind h.
    """
    e = open_emitter("bridge", config, weights, precision, kv_cache)
    states = e.input("encoder_states", FLOAT, ["B", "S", config.d_model])
    lengths = e.input("source_lengths", INT32, ["B"])
    routed = config.path_router is not None
    saliency = e.input("saliency", FLOAT, ["B", "S"]) if routed else None
    switch = PathSwitch(e)
    kept, kept_lengths, bias = _emit_selection(e, states, saliency, lengths, switch)
    e.output("cross_bias", bias, ["B", "K"])
    e.output("kept_lengths", kept_lengths, ["B"], INT32)
    for i in range(config.decoder_layers):
        keys, values = _emit_layer(e, i, kept, switch.runs(i))
        dims = _cross_dims(e, i)
        e.output(f"cross_k.{i}", keys, dims, e.cache.dtype)
        e.output(f"cross_v.{i}", values, dims, e.cache.dtype)
    return e.model()


def _cross_dims(e: Emitter, layer: int) -> Dims:
    """Return the dimensions of a layer's keys; K is 0 where a path skips the layer."""
    config = e.config
    kept = f"K.{layer}" if layer in config.skippable_layers else "K"
    return ["B", config.kv_heads, kept, e.cache.row_width(config)]


def _emit_selection(
    e: Emitter,
    states: ir.Value,
    saliency: ir.Value | None,
    lengths: ir.Value,
    switch: PathSwitch,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Emit the states that the path keeps, how many there are per row, and their bias."""
    op = e.op
    if saliency is None:
        valid = emit_valid(e, emit_steps(e, states), lengths)
        return states, op.Identity(lengths), emit_padding_bias(e, valid)
    with e.scope("path_router"):
        thousandths = switch.number([path.keep_thousandths for path in e.config.paths])
        scaled = op.Mul(op.Cast(lengths, to=INT64), thousandths)
        counts = op.Div(op.Add(scaled, KEEP_DENOMINATOR - 1), KEEP_DENOMINATOR)
        selected: tuple[ir.Value, ir.Value, ir.Value] = SELECT_STATES.emit(
            op, states, saliency, lengths, op.Cast(counts, to=INT32)
        )
        return selected


def _emit_layer(
    e: Emitter, layer: int, kept: ir.Value, condition: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Emit one decoder layer's keys and values, under `If` where some path skips the layer."""
    config = e.config

    def project() -> tuple[ir.Value, ir.Value]:
        return emit_cross_projection(e, "cross_attention", kept)

    def nothing() -> tuple[ir.Value, ir.Value]:
        batch = e.op.Shape(kept, start=0, end=1)
        shape = e.op.Concat(batch, [config.kv_heads, 0, e.cache.row_width(config)], axis=0)
        zero = ir.tensor([0], dtype=e.cache.dtype)
        return e.op.ConstantOfShape(shape, value=zero), e.op.ConstantOfShape(shape, value=zero)

    with e.scope("decoder", f"layers.{layer}"):
        if condition is None:
            return project()
        dims = _cross_dims(e, layer)
        outputs = [("cross_k", e.cache.dtype, dims), ("cross_v", e.cache.dtype, dims)]
        name = f"decoder.layers.{layer}.bridge"
        keys, values = e.branch(condition, project, nothing, outputs, name=name)
        return keys, values
