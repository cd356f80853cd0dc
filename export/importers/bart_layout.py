"""What BART and the families built after it share: configuration fields and tensor names."""

from collections.abc import Collection, Iterator, Mapping
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
    if options.get("forced_bos_token_id") is not None:
        options.integer("forced_bos_token_id")
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
        "tie_embeddings": options.flag("tie_word_embeddings", True),
        "head_bias": "final_logits_bias" in present,
        "logit_scale": 1.0,
    }


def static_positions(present: Collection[str]) -> dict[str, Any]:
    """Return the fields of sinusoids: computed, or read where a checkpoint brings its table.

    A table that was stored in half precision is part of the model: what it rounds to counts.
    """
    stored = f"{prefix_of(present)}encoder.embed_positions.weight" in present
    return {"position": "learned" if stored else "sinusoidal"}


def refuse_other_norm_order(options: Options, *, before: bool) -> None:
    """Refuse an old configuration whose norms do not come where its family's do.

    A norm too many or too few shows in the tensors; where in a layer it comes does not.
    """
    why = f"but the family has its norms {'before' if before else 'after'} the sublayers"
    options.refuse("normalize_before", (before, None), why)


def make_import(
    config: ModelConfig,
    present: Collection[str],
    layout: Layout = Layout(),
    experts: Mapping[str, Source] | None = None,
) -> Import:
    """Describe a checkpoint; `experts` are the tensors of its sparse feed-forward networks.

    The word table may be stored several times. Sinusoids stored as a buffer and remarks of the
    converter are ignored.
    """
    prefix = prefix_of(present)
    stacks = (f"{prefix}encoder", f"{prefix}decoder")
    tables = _word_tables(config, prefix)
    words = first_of(present, *tables)
    return Import(
        config,
        dict(_dense_tensors(config, present, layout)) | dict(experts or {}),
        ignored={f"{s}.{name}" for s in stacks for name in ("version", "embed_positions.weights")},
        copies={name: words for name in tables if name != words},
    )


def prefix_of(present: Collection[str]) -> str:
    """Return what precedes all names: nothing where a model was saved without its head."""
    return "" if "encoder.layers.0.self_attn.q_proj.weight" in present else "model."


def affine(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    """Yield weight and bias of a projection or a norm."""
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", same(f"{theirs}.{part}")


def _dense_tensors(
    config: ModelConfig, present: Collection[str], layout: Layout
) -> Iterator[tuple[str, Source]]:
    """Yield all tensors but those of sparse feed-forward networks."""
    prefix = prefix_of(present)
    yield "embedding.weight", same(first_of(present, *_word_tables(config, prefix)))
    if not config.tie_embeddings:
        yield "lm_head.weight", same("lm_head.weight")
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


def _word_tables(config: ModelConfig, prefix: str) -> tuple[str, ...]:
    """Return the names that the one word table may have, the one in use first."""
    shared, *own = (
        f"{prefix}{owner}.weight"
        for owner in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    # An untied model runs the tables of its stacks, and may have left the shared one behind.
    return (shared, *own, "lm_head.weight") if config.tie_embeddings else (*own, shared)


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
