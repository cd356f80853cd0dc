"""Switch Transformers (`switch_transformers`): T5 with a single expert chosen per token."""

from collections.abc import Collection, Mapping
from typing import Any

from drl.export.importers import t5
from drl.export.importers.mapping import Import, Source, same, stacked
from drl.export.importers.options import Options
from drl.export.model import ModelConfig


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a Switch checkpoint.

    The capacity of an expert counts in the encoder; a decoder that is given one token at a time
    never reaches it.
    """
    options = Options(values, "Switch")
    fields = t5.common_fields(options)
    experts = options.integer("num_experts", 8)
    tied = options.flag("tie_word_embeddings", True)
    capacity = options.integer("expert_capacity", 64)
    if capacity < 1:
        options.problem(f"`expert_capacity` is {capacity}, must be at least 1")
    fields |= {
        "activation": options.choice("dense_act_fn", t5.ACTIVATIONS, "relu"),
        "tie_embeddings": tied,
        "logit_scale": max(fields["d_model"], 1) ** -0.5 if tied else 1.0,
        "encoder_sparse_layers": _sparse_layers(options, "encoder", fields["encoder_layers"]),
        "decoder_sparse_layers": _sparse_layers(options, "decoder", fields["decoder_layers"]),
        "experts_per_group": experts,
        "d_expert": fields["d_ff"],
        "router_bias": options.flag("router_bias", False),
        "expert_capacity": capacity,
    }
    options.refuse(
        "router_dtype", ("float32",), "and routes are computed in float32 here", "float32"
    )
    why = "and only the choice of one expert by each token is supported"
    options.refuse("router_type", ("tokens_masked",), why, "tokens_masked")
    options.finish()
    config = ModelConfig(**fields)
    tensors = dict(t5.shared_tensors(config, present))
    for stack, place in (("encoder", 1), ("decoder", 2)):
        sparse = getattr(config, f"{stack}_sparse_layers")
        for i in range(getattr(config, f"{stack}_layers")):
            ours, theirs = f"{stack}.layers.{i}.ffn", f"{stack}.block.{i}.layer.{place}.mlp"
            made = _sparse_tensors if i in sparse else t5.dense_tensors
            tensors |= made(config, ours, theirs)
    return Import(config, tensors, copies=t5.copies(config, present))


def _sparse_layers(options: Options, stack: str, layers: int) -> tuple[int, ...]:
    """Return the layers with experts: every so many, from the second on; all if every one."""
    count = options.integer(f"num_sparse_{stack}_layers", 3)
    step = options.integer(f"{stack}_sparse_step", layers // count if count > 0 else layers)
    return tuple(i for i in range(layers) if step == 1 or (step > 1 and i % step == 1))


def _sparse_tensors(config: ModelConfig, ours: str, theirs: str) -> dict[str, Source]:
    experts = [f"{theirs}.experts.expert_{e}" for e in range(config.num_experts)]
    tensors = {
        f"{ours}.router.weight": same(f"{theirs}.router.classifier.weight"),
        f"{ours}.experts.up": stacked([f"{e}.wi.weight" for e in experts], transpose=True),
        f"{ours}.experts.down": stacked([f"{e}.wo.weight" for e in experts], transpose=True),
    }
    if config.router_bias:
        tensors[f"{ours}.router.bias"] = same(f"{theirs}.router.classifier.bias")
    return tensors
