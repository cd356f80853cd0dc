"""Grouped-query attention, for self-attention with or without a cache and cross-attention."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl.export.model.config import ModelConfig
from drl.export.model.positions import RelativePositionBias, make_position_bias, rotate

MASKED = -1e4
"""Added to the score of a key that must not be seen; its softmax weight underflows to 0."""


@dataclass
class LayerCache:
    """Keys and values of one layer, each `[B, N, C, h]`; row b holds `lengths[b]` positions."""

    keys: Tensor
    values: Tensor

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Store `[B, T, N, h]` keys and values at `slots` int64 `[B, T]`."""
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        self.keys[rows, :, slots] = keys
        self.values[rows, :, slots] = values


@dataclass(frozen=True)
class SelfAttentionInput:
    """What all self-attention layers of one call share.

    Attributes:
        positions: int64 `[B, T]`, the slot of each new token.
        bias: `[B, H or 1, T, L]`, added to the scores: position bias and mask.
        rotary: cos and sin at `positions`, each `[B, T, h/2]`, or None.
    """

    positions: Tensor
    bias: Tensor
    rotary: tuple[Tensor, Tensor] | None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return softmax(query·keyᵀ·scale + bias)·value (Vaswani et al., 2017), grouped by key heads.

    Args:
        query: `[B, T, H, h]`.
        key: `[B, N, L, h]`; head i of the query reads key head i // (H / N).
        value: `[B, N, L, h]`.
        bias: `[B, H or 1, T or 1, L]`.
        scale: Factor of the scores.

    Returns:
        `[B, T, H·h]`.
    """
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key,
        value,
        attn_mask=bias.to(query.dtype),
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[1],
    )
    return mixed.transpose(1, 2).flatten(2)


class _Projections(nn.Module):
    """The four projections that both kinds of attention own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_heads,
            config.kv_heads,
            config.head_dim,
        )
        self.scale = config.softmax_scale
        inner, inner_kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q = nn.Linear(config.d_model, inner, bias=config.bias)
        self.k = nn.Linear(config.d_model, inner_kv, bias=config.bias)
        self.v = nn.Linear(config.d_model, inner_kv, bias=config.bias)
        self.o = nn.Linear(inner, config.d_model, bias=config.bias)

    def split(self, x: Tensor, heads: int) -> Tensor:
        """Split `[B, T, heads·h]` into `[B, T, heads, h]`."""
        return x.unflatten(-1, (heads, self.head_dim))


class SelfAttention(_Projections):
    """Attention of a sequence to itself, with a position bias of its own where layers have one."""

    def __init__(self, config: ModelConfig, *, bidirectional: bool) -> None:
        super().__init__(config)
        self.position_bias: RelativePositionBias | None = (
            make_position_bias(config, bidirectional=bidirectional)
            if config.position_bias_per_layer
            else None
        )

    def forward(
        self, x: Tensor, shared: SelfAttentionInput, cache: LayerCache | None = None
    ) -> Tensor:
        """Map `x` `[B, T, d]` to `[B, T, d]`; with `cache`, new keys and values go there first."""
        query = self.split(self.q(x), self.heads)
        key, value = self.split(self.k(x), self.kv_heads), self.split(self.v(x), self.kv_heads)
        if shared.rotary is not None:
            query, key = rotate(query, *shared.rotary), rotate(key, *shared.rotary)
        bias, seen = shared.bias, shared.bias.shape[-1]
        if self.position_bias is not None:
            bias = bias + self.position_bias(shared.positions, seen)
        if cache is None:
            keys, values = key.transpose(1, 2), value.transpose(1, 2)
        else:
            cache.write(key, value, shared.positions)
            keys, values = cache.keys[:, :, :seen], cache.values[:, :, :seen]
        return self.o(attend(query, keys, values, bias, self.scale))


class CrossAttention(_Projections):
    """Attention of the decoder to the encoder states it was given."""

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of `states` `[B, K, d]`, each `[B, N, K, h]`."""
        keys = self.split(self.k(states), self.kv_heads).transpose(1, 2)
        return keys, self.split(self.v(states), self.kv_heads).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Map `x` `[B, T, d]` to `[B, T, d]`, with `bias` `[B, 1, 1, K]`."""
        query = self.split(self.q(x), self.heads)
        return self.o(attend(query, keys, values, bias, self.scale))
