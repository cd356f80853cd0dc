"""What BART and the families built after it share: configuration fields and tensor names."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from drl.export.importers.mapping import Import, Source, first_of, flat, same
from drl.export.importers.options import Options
from drl.export.model import ModelConfig, PathConfig

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Defaults:
    """What a family's configuration means where it leaves an option out."""

    pad: int
    eos: int
    start: int | None
    activation: str = "gelu"
    scale_embedding: bool = False


@dataclass(frozen=True)
class Layout:
    """Names of a layer's tensors in which the families differ."""

    cross_attention: str = "encoder_attn"
    ffn_norm: str = "final_layer_norm"
    ffn: str = ""


def common_fields(options: Options, defaults: Defaults, present: Collection[str]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that all these families name alike."""
    d_model = options.integer("d_model")
    heads = _same_in_both_stacks(options, "attention_heads")
    if heads <= 0 or d_model % heads:
        options.problem(f"`d_model` is {d_model}, not a multiple of the {heads} attention heads")
    decoder_layers = options.integer("decoder_layers")
    scaled = options.flag("scale_embedding", defaults.scale_embedding)
    longest = options.integer("max_position_embeddings", 1024)
    bos = options.get("bos_token_id")
    why = "which gives encoder, decoder and head a word table each; one for all is supported"
    options.refuse("tie_word_embeddings", (True, None), why)
    return {
        "vocab_size": options.integer("vocab_size"),
        "d_model": d_model,
        "encoder_layers": options.integer("encoder_layers"),
        "decoder_layers": decoder_layers,
        "num_heads": heads,
        "kv_heads": heads,
        "head_dim": d_model // max(heads, 1),
        "d_ff": _same_in_both_stacks(options, "ffn_dim"),
        "paths": (PathConfig("full", tuple(range(decoder_layers))),),
        "pad_token_id": options.integer("pad_token_id", defaults.pad),
        "eos_token_id": options.integer("eos_token_id", defaults.eos),
        "decoder_start_token_id": options.integer(
            "decoder_start_token_id", bos if defaults.start is None else defaults.start
        ),
        "max_source_length": longest,
        "max_target_length": longest,
        "activation": options.choice("activation_function", ACTIVATIONS, defaults.activation),
        "norm": "layer",
        "norm_eps": 1e-5,
        "bias": True,
        "embedding_scale": d_model**0.5 if scaled else 1.0,
        "head_bias": "final_logits_bias" in present,
        "logit_scale": 1.0,
    }


def static_positions(present: Collection[str]) -> dict[str, Any]:
    """Return the fields of sinusoids: computed, or read where a checkpoint brings its table.

    A table that was stored in half precision is part of the model: what it rounds to counts.
    """
    stored = f"{prefix_of(present)}encoder.embed_positions.weight" in present
    return {"position": "learned" if stored else "sinusoidal"}


def refuse_other_norms(options: Options, *, before: bool, embedding: bool) -> None:
    """Refuse old configurations that ask for norms in places where their family has none."""
    where = "before" if before else "after"
    has = "has" if embedding else "has not"
    norms = f"but the family has its norms {where} the sublayers"
    options.refuse("normalize_before", (before, None), norms)
    options.refuse("add_final_layer_norm", (before, None), norms)
    options.refuse("normalize_embedding", (embedding, None), f"but the family {has} that norm")


def forced_first_token(options: Options) -> int | None:
    """Return the token that generation must begin with, such as a language, or None."""
    if options.get("forced_bos_token_id") is None:
        return None
    return options.integer("forced_bos_token_id")


def common_tensors(
    config: ModelConfig, present: Collection[str], layout: Layout = Layout()
) -> Iterator[tuple[str, Source]]:
    """Yield all tensors but those of sparse feed-forward networks."""
    prefix = prefix_of(present)
    yield "embedding.weight", same(first_of(present, *_word_tables(prefix), "lm_head.weight"))
    if config.head_bias:
        yield "head_bias", flat("final_logits_bias")
    for stack, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        theirs = f"{prefix}{stack}"
        if config.position == "learned":
            yield f"{stack}.positions.weight", same(f"{theirs}.embed_positions.weight")
        if config.embedding_norm:
            yield from affine(f"{stack}.embedding_norm", f"{theirs}.layernorm_embedding")
        if config.has_final_norm:
            yield from affine(f"{stack}.norm", f"{theirs}.layer_norm")
        sparse: tuple[int, ...] = getattr(config, f"{stack}_sparse_layers")
        for i in range(layers):
            ours, layer = f"{stack}.layers.{i}", f"{theirs}.layers.{i}"
            yield from _layer(ours, layer, layout, decoder=stack == "decoder")
            if i not in sparse:
                yield from affine(f"{ours}.ffn.up", f"{layer}.{layout.ffn}fc1")
                yield from affine(f"{ours}.ffn.down", f"{layer}.{layout.ffn}fc2")


def not_needed(present: Collection[str]) -> set[str]:
    """Return copies of the word table, sinusoids as buffers, and remarks of the converter."""
    prefix = prefix_of(present)
    stacks = [f"{prefix}{stack}" for stack in ("encoder", "decoder")]
    spare = {
        f"{stack}.{name}" for stack in stacks for name in ("version", "embed_positions.weights")
    }
    return spare | {*_word_tables(prefix), "lm_head.weight"}


def describe_with(config: ModelConfig, options: Options, present: Collection[str]) -> Import:
    """Describe a checkpoint that has no tensors but the common ones."""
    tensors = dict(common_tensors(config, present))
    return Import(config, tensors, not_needed(present), forced_first_token(options))


def prefix_of(present: Collection[str]) -> str:
    """Return what precedes all names: nothing where a model was saved without its head."""
    return "" if "encoder.layers.0.self_attn.q_proj.weight" in present else "model."


def affine(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    """Yield weight and bias of a projection or a norm."""
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", same(f"{theirs}.{part}")


def _word_tables(prefix: str) -> tuple[str, ...]:
    owners = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    return tuple(f"{prefix}{owner}.weight" for owner in owners)


def _layer(
    ours: str, theirs: str, layout: Layout, *, decoder: bool
) -> Iterator[tuple[str, Source]]:
    """Yield the attention and the norms of a layer."""
    attention = {"self_attention": "self_attn"}
    norms = {"self_attention_norm": "self_attn_layer_norm", "ffn_norm": layout.ffn_norm}
    if decoder:
        attention["cross_attention"] = layout.cross_attention
        norms["cross_attention_norm"] = f"{layout.cross_attention}_layer_norm"
    for own, name in attention.items():
        for side, projection in zip(
            "qkvo", ("q_proj", "k_proj", "v_proj", "out_proj"), strict=True
        ):
            yield from affine(f"{ours}.{own}.{side}", f"{theirs}.{name}.{projection}")
    for own, name in norms.items():
        yield from affine(f"{ours}.{own}", f"{theirs}.{name}")


def _same_in_both_stacks(options: Options, name: str) -> int:
    """Return a size that encoder and decoder share; refuse two different ones."""
    size = options.integer(f"encoder_{name}")
    why = f"and `encoder_{name}` is {size}; stacks of different widths are not supported"
    options.refuse(f"decoder_{name}", (size, None), why)
    return size
