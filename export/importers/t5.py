"""T5, T5 v1.1, Flan-T5, mT5 (`t5`, `mt5`) and UMT5 (`umt5`: a position bias per layer)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from drl.export.importers.mapping import Import, Source, first_of, same
from drl.export.importers.options import Options
from drl.export.model import ModelConfig, PathConfig

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "gated-gelu": "gelu_glu",
    "gated-silu": "silu_glu",
}
# The relative bias goes on for ever; this is as far as tables and caches are laid out.
LONGEST = 4096


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of the T5 family."""
    options = Options(values, "T5")
    fields = common_fields(options)
    activation = options.choice("feed_forward_proj", ACTIVATIONS, "relu")
    per_layer = values.get("model_type") == "umt5"
    options.finish()
    config = ModelConfig(activation=activation, position_bias_per_layer=per_layer, **fields)
    tensors = dict(shared_tensors(config, present))
    for stack, place in (("encoder", 1), ("decoder", 2)):
        for i in range(getattr(config, f"{stack}_layers")):
            theirs = f"{stack}.block.{i}.layer.{place}.DenseReluDense"
            tensors |= dense_tensors(config, f"{stack}.layers.{i}.ffn", theirs)
    return Import(config, tensors, tied_copies(present))


def common_fields(options: Options) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that T5 and Switch name alike."""
    layers = options.integer("num_layers")
    decoder_layers = options.integer("num_decoder_layers", layers)
    tied = options.flag("tie_word_embeddings", True)
    scaled = options.flag("scale_decoder_outputs", tied)
    d_model = options.integer("d_model")
    heads = options.integer("num_heads")
    return {
        "vocab_size": options.integer("vocab_size"),
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": decoder_layers,
        "num_heads": heads,
        "kv_heads": heads,
        "head_dim": options.integer("d_kv"),
        "d_ff": options.integer("d_ff"),
        "paths": (PathConfig("full", tuple(range(decoder_layers))),),
        "pad_token_id": options.integer("pad_token_id", 0),
        "eos_token_id": options.integer("eos_token_id", 1),
        "decoder_start_token_id": options.integer(
            "decoder_start_token_id", options.integer("pad_token_id", 0)
        ),
        "max_source_length": LONGEST,
        "max_target_length": LONGEST,
        "norm_eps": options.number("layer_norm_epsilon", 1e-6),
        "attention_scale": 1.0,
        "tie_embeddings": tied,
        "logit_scale": d_model**-0.5 if scaled else 1.0,
        "position": "t5_bias",
        "position_buckets": options.integer("relative_attention_num_buckets", 32),
        "position_max_distance": options.integer("relative_attention_max_distance", 128),
    }


def shared_tensors(config: ModelConfig, present: Collection[str]) -> Iterator[tuple[str, Source]]:
    """Yield everything but the feed-forward networks, which T5 and Switch name alike."""
    embeddings = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    yield "embedding.weight", same(first_of(present, *embeddings))
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


def tied_copies(present: Collection[str]) -> set[str]:
    """Return the embedding under its other names; a tied head may be stored as well."""
    copies = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    return copies | {"lm_head.weight"} & set(present)


def _attention(ours: str, theirs: str, kind: str) -> Iterator[tuple[str, Source]]:
    yield f"{ours}_norm.weight", same(f"{theirs}.layer_norm.weight")
    for side in "qkvo":
        yield f"{ours}.{side}.weight", same(f"{theirs}.{kind}.{side}.weight")
