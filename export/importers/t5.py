"""T5, T5 v1.1, Flan-T5 (`t5`), mT5 (`mt5`) and UMT5 (`umt5`: a position bias per layer)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from drl.export.importers.mapping import Import, Source, first_of, same
from drl.export.importers.options import Options
from drl.export.model import ModelConfig, PathConfig

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
GATED_ACTIVATIONS = {
    "gelu_new": "gelu_glu",
    "gelu_fast": "gelu_glu",
    "gelu_pytorch_tanh": "gelu_glu",
    "silu": "silu_glu",
    "swish": "silu_glu",
}
PROJECTIONS = {
    **ACTIVATIONS,
    **{f"gated-{name}": ours for name, ours in GATED_ACTIVATIONS.items()},
    "gated-gelu": "gelu_glu",
}
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The relative bias goes on for ever; this is as far as tables and caches are laid out.
LONGEST = 4096
# The first T5 checkpoints hold a bias that no model reads.
_UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of the T5 family."""
    options = Options(values, "T5")
    fields = common_fields(options)
    fields |= _head(options, fields["d_model"], present)
    kind = values.get("model_type")
    activation = _activation(options, "relu" if kind == "t5" else "gated-gelu")
    options.finish()
    config = ModelConfig(activation=activation, position_bias_per_layer=kind == "umt5", **fields)
    tensors = dict(shared_tensors(config, present))
    for stack, place in (("encoder", 1), ("decoder", 2)):
        for i in range(getattr(config, f"{stack}_layers")):
            theirs = f"{stack}.block.{i}.layer.{place}.DenseReluDense"
            tensors |= dense_tensors(config, f"{stack}.layers.{i}.ffn", theirs)
    return Import(config, tensors, _UNREAD, copies(config, present))


def common_fields(options: Options) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that T5 and Switch name alike; the head is not in it."""
    _refuse_half_models(options)
    layers = options.integer("num_layers")
    decoder_layers = options.integer("num_decoder_layers", layers)
    heads = options.integer("num_heads")
    pad = options.integer("pad_token_id", 0)
    return {
        "vocab_size": options.integer("vocab_size"),
        "d_model": options.integer("d_model"),
        "encoder_layers": layers,
        "decoder_layers": decoder_layers,
        "num_heads": heads,
        "kv_heads": heads,
        "head_dim": options.integer("d_kv"),
        "d_ff": options.integer("d_ff"),
        "paths": (PathConfig("full", tuple(range(decoder_layers))),),
        "pad_token_id": pad,
        "eos_token_id": options.integer("eos_token_id", 1),
        "decoder_start_token_id": options.integer("decoder_start_token_id", pad),
        "max_source_length": LONGEST,
        "max_target_length": LONGEST,
        "norm_eps": options.number("layer_norm_epsilon", 1e-6),
        "attention_scale": 1.0,
        "position": "t5_bias",
        "position_buckets": options.integer("relative_attention_num_buckets", 32),
        "position_max_distance": options.integer("relative_attention_max_distance", 128),
    }


def shared_tensors(config: ModelConfig, present: Collection[str]) -> Iterator[tuple[str, Source]]:
    """Yield everything but the feed-forward networks, which T5 and Switch name alike."""
    yield "embedding.weight", same(first_of(present, *EMBEDDINGS))
    if not config.tie_embeddings:
        yield "lm_head.weight", same("lm_head.weight")
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        yield f"{stack}.norm.weight", same(f"{stack}.final_layer_norm.weight")
        bias = "SelfAttention.relative_attention_bias.weight"
        if not config.position_bias_per_layer:
            yield f"{stack}.position_bias.weight", same(f"{stack}.block.0.layer.0.{bias}")
        for i in range(layers):
            ours, theirs = f"{stack}.layers.{i}", f"{stack}.block.{i}.layer"
            yield from _attention(f"{ours}.self_attention", f"{theirs}.0", "SelfAttention")
            if config.position_bias_per_layer:
                yield f"{ours}.self_attention.position_bias.weight", same(f"{theirs}.0.{bias}")
            if stack == "decoder":
                yield from _attention(f"{ours}.cross_attention", f"{theirs}.1", "EncDecAttention")
            last = 2 if stack == "decoder" else 1
            yield f"{ours}.ffn_norm.weight", same(f"{theirs}.{last}.layer_norm.weight")


def dense_tensors(config: ModelConfig, ours: str, theirs: str) -> dict[str, Source]:
    """Return a dense feed-forward network."""
    if config.activation.endswith("_glu"):
        names = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    else:
        names = {"up": "wi", "down": "wo"}
    return {f"{ours}.{own}.weight": same(f"{theirs}.{name}.weight") for own, name in names.items()}


def copies(config: ModelConfig, present: Collection[str]) -> dict[str, str]:
    """Return the embedding under its other names; a tied head may be stored as well."""
    original = first_of(present, *EMBEDDINGS)
    names = (*EMBEDDINGS, "lm_head.weight") if config.tie_embeddings else EMBEDDINGS
    return {name: original for name in names if name != original}


def _head(options: Options, d_model: int, present: Collection[str]) -> dict[str, Any]:
    """Tell whether the head is tied and its logits are scaled by d_model^-½.

    Up to version 4, transformers writes what is meant. Version 5 writes `tie_word_embeddings` as
    true, and a head that differs all the same; `scale_decoder_outputs` keeps what it replaced.
    """
    tied = options.flag("tie_word_embeddings", True)
    kind = options.get("model_type")
    if kind == "t5":
        scaled = options.flag("scale_decoder_outputs", tied)
        tied = tied and (scaled or "lm_head.weight" not in present)
    else:
        tied = tied and "lm_head.weight" not in present
        scaled = tied and kind == "umt5"
    return {"tie_embeddings": tied, "logit_scale": max(d_model, 1) ** -0.5 if scaled else 1.0}


def _activation(options: Options, default: str) -> Any:
    """Return the activation: the two newer options, which follow from the older one by default."""
    if options.get("dense_act_fn") is None:
        return options.choice("feed_forward_proj", PROJECTIONS, default)
    projection = str(options.get("feed_forward_proj", default))
    gated = options.flag("is_gated_act", projection.startswith("gated"))
    return options.choice("dense_act_fn", GATED_ACTIVATIONS if gated else ACTIVATIONS)


def _refuse_half_models(options: Options) -> None:
    listed = options.get("architectures")
    for name in map(str, listed if isinstance(listed, list) else ()):
        if "Encoder" in name or not name.endswith(("ForConditionalGeneration", "Model")):
            options.problem(f"`architectures` names {name}, which does not generate text")


def _attention(ours: str, theirs: str, kind: str) -> Iterator[tuple[str, Source]]:
    yield f"{ours}_norm.weight", same(f"{theirs}.layer_norm.weight")
    for side in "qkvo":
        yield f"{ours}.{side}.weight", same(f"{theirs}.{kind}.{side}.weight")
