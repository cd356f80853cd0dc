"""NLLB-MoE (`nllb-moe`): a dense NLLB model whose every n-th layer has two experts a token."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from drl.export.importers.bart_layout import (
    Layout,
    affine,
    common_fields,
    make_import,
    prefix_of,
)
from drl.export.importers.m2m_100 import DEFAULTS, fairseq_positions
from drl.export.importers.mapping import Import, Source, same, stacked
from drl.export.importers.options import Options
from drl.export.model import ModelConfig, PathConfig

LAYOUT = Layout(cross_attention="cross_attention", ffn_norm="ff_layer_norm", ffn="ffn.")
EXPERTS_PER_TOKEN = 2


def describe(values: Mapping[str, Any], present: Collection[str]) -> Import:
    """Describe a checkpoint of NLLB-MoE."""
    options = Options(values, "NLLB-MoE")
    fields = common_fields(options, DEFAULTS, present) | fairseq_positions(options)
    fields |= _routing(options, fields)
    options.finish()
    config = ModelConfig(**fields)
    experts: dict[str, Source] = {}
    for stack in ("encoder", "decoder"):
        for i in getattr(config, f"{stack}_sparse_layers"):
            theirs = f"{prefix_of(present)}{stack}.layers.{i}.ffn"
            experts |= dict(_experts(config, f"{stack}.layers.{i}.ffn", theirs))
    return make_import(config, present, LAYOUT, experts)


def _routing(options: Options, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the sparse layers; refuse what would make them drop tokens.

    With room for all tokens in every expert, neither the order in which they are placed
    (`batch_prioritized_routing`) nor when gates are normalised changes anything.
    """
    room = options.number("moe_eval_capacity_token_fraction", 1.0)
    if room < 1:
        options.problem(
            f"`moe_eval_capacity_token_fraction` is {room}, so experts drop tokens depending on "
            "the others of the batch; only 1 and above is supported"
        )
    policy = "but a second expert drawn at random is not supported; `all` is"
    options.refuse("second_expert_policy", ("all", None), policy)
    options.refuse("router_dtype", ("float32", None), "but routing here is always fp32")
    return {
        "experts_per_group": options.integer("num_experts", 128),
        "experts_per_token": EXPERTS_PER_TOKEN,
        "d_expert": fields["d_ff"],
        "gates": "normalized",
        "router_bias": options.flag("router_bias", False),
        "expert_output_scale": 1.0 - options.number("moe_token_dropout", 0.2),
        "encoder_sparse_layers": _every(options, "encoder", fields),
        "decoder_sparse_layers": _every(options, "decoder", fields),
        "paths": (PathConfig("full", fields["paths"][0].layers, EXPERTS_PER_TOKEN),),
    }


def _every(options: Options, stack: str, fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return every n-th layer, the n-th first; none with a step of 0."""
    step = options.integer(f"{stack}_sparse_step", 4)
    return tuple(range(step - 1, fields[f"{stack}_layers"], step)) if step > 0 else ()


def _experts(config: ModelConfig, ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    """Yield the router and the experts of a sparse layer."""
    router = f"{theirs}.router.classifier"
    if config.router_bias:
        yield from affine(f"{ours}.router", router)
    else:
        yield f"{ours}.router.weight", same(f"{router}.weight")
    experts = [f"{theirs}.experts.expert_{i}" for i in range(config.num_experts)]
    for own, name in (("up", "fc1"), ("down", "fc2")):
        weights = [f"{expert}.{name}.weight" for expert in experts]
        biases = [f"{expert}.{name}.bias" for expert in experts]
        yield f"{ours}.experts.{own}", stacked(weights, transpose=True)
        yield f"{ours}.experts.{own}_bias", stacked(biases, transpose=False)
