"""Small random models whose generations vary, for tests of everything downstream of training."""

import dataclasses
from typing import Any

import torch

from drl.export.model import DualRouterModel, ModelConfig, PathConfig, PathRouterConfig

TINY = ModelConfig(
    vocab_size=60,
    d_model=64,
    encoder_layers=3,
    decoder_layers=4,
    num_heads=4,
    kv_heads=2,
    head_dim=16,
    d_ff=96,
    paths=(
        PathConfig("fast", layers=(0, 3), experts_per_token=1, keep_ratio=0.5),
        PathConfig("balanced", layers=(0, 2, 3), experts_per_token=1, keep_ratio=0.75),
        PathConfig("full", layers=(0, 1, 2, 3), experts_per_token=2),
    ),
    eos_token_id=1,
    decoder_start_token_id=2,
    max_source_length=48,
    max_target_length=48,
    encoder_sparse_layers=(1,),
    decoder_sparse_layers=(1, 3),
    groups=4,
    experts_per_group=2,
    top_groups=2,
    experts_per_token=2,
    d_expert=32,
    d_shared=48,
    path_router=PathRouterConfig(),
)
"""Every feature at once: three paths, two levels of routing, shared experts, rotary positions."""

DENSE: dict[str, Any] = {
    "paths": (PathConfig("full", layers=(0, 1, 2, 3)),),
    "path_router": None,
    "encoder_sparse_layers": (),
    "decoder_sparse_layers": (),
    "groups": 1,
    "experts_per_group": 1,
    "top_groups": 1,
    "experts_per_token": 1,
}
"""The fields that turn `TINY` into a plain encoder-decoder Transformer."""


def tiny_config(**changes: Any) -> ModelConfig:
    """Return `TINY` with some fields changed."""
    return dataclasses.replace(TINY, **changes)


def random_model(config: ModelConfig = TINY, seed: int = 0) -> DualRouterModel:
    """Return a random model in evaluation mode.

    Weights drawn for training would make it repeat one token for ever. Here attention is sharper,
    the layers' outputs outweigh the embedding in the residual stream, and the end token is
    likelier than others, so that generations vary and end at different steps.
    """
    torch.manual_seed(seed)
    model = DualRouterModel(config).eval()
    sharpness = 1.5 * config.head_dim**-0.5 / config.softmax_scale
    factors = {"q.weight": sharpness, "k.weight": 1.5, "o.weight": 4.0, "down.weight": 4.0}
    factors |= {"experts.down": 4.0, "saliency.weight": 3.0}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("position_bias.weight", "query")):
                parameter.normal_()
            for suffix, factor in factors.items():
                if name.endswith(suffix):
                    parameter *= factor
        head = model.embedding if model.lm_head is None else model.lm_head
        head.weight[config.eos_token_id] *= 2.0
    return model


def random_prompts(count: int, config: ModelConfig = TINY, seed: int = 0) -> list[list[int]]:
    """Return ragged token lists, from a single token to the longest source allowed."""
    generator = torch.Generator().manual_seed(seed)
    longest = config.max_source_length
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    lengths[:2] = [1, longest][:count]
    return [
        torch.randint(3, config.vocab_size, (n,), generator=generator).tolist() for n in lengths
    ]
