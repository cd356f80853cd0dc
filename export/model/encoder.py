"""The encoder: self-attention and feed-forward layers over the whole source."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from drl.export.model.attention import MASKED, SelfAttention, SelfAttentionInput
from drl.export.model.config import ModelConfig
from drl.export.model.experts import Route, SparseFeedForward
from drl.export.model.feed_forward import FeedForward
from drl.export.model.group_router import GroupChoice
from drl.export.model.norms import make_norm
from drl.export.model.positions import AbsolutePositions, make_position_bias, rotary_angles


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention and feed-forward network."""

    def __init__(
        self, config: ModelConfig, name: str, *, sparse: bool, bidirectional: bool
    ) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "pre"
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config, bidirectional=bidirectional)
        self.ffn_norm = make_norm(config)
        self.ffn: FeedForward | SparseFeedForward = (
            SparseFeedForward(config, name) if sparse else FeedForward(config, config.d_ff)
        )

    def residual(self, norm: nn.Module, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a sublayer's output to `x` `[B, T, d]`, with the norm before it or after the sum."""
        if self.norm_first:
            return x + sublayer(norm(x))
        return norm(x + sublayer(x))

    def feed_forward(
        self,
        x: Tensor,
        groups: GroupChoice | None,
        token_mask: Tensor,
        k: int,
        routes: list[Route],
        capacity: int | None = None,
    ) -> Tensor:
        """Add the feed-forward network's output to `x` `[B, T, d]`; a route goes to `routes`."""
        ffn = self.ffn
        if isinstance(ffn, FeedForward):
            return self.residual(self.ffn_norm, x, ffn)
        assert groups is not None  # a model with sparse layers has level-1 routing

        def routed(normed: Tensor) -> Tensor:
            output, route = ffn(normed, groups, token_mask, k, capacity)
            routes.append(route)
            return output

        return self.residual(self.ffn_norm, x, routed)


class Stack(nn.Module):
    """What the encoder's and the decoder's stacks share: positions, and the norms at its ends."""

    def __init__(self, config: ModelConfig, length: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.config = config
        self.positions = (
            AbsolutePositions(config, length)
            if config.position in ("sinusoidal", "learned")
            else None
        )
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.norm = make_norm(config) if config.has_final_norm else None
        self.position_bias = (
            make_position_bias(config, bidirectional=bidirectional)
            if config.position == "t5_bias" and not config.position_bias_per_layer
            else None
        )

    def place(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Scale word embeddings `[B, T, d]` and add those of their positions int64 `[B, T]`."""
        x = embedded * self.config.embedding_scale
        if self.positions is not None:
            x = x + self.positions(positions)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def finish(self, x: Tensor) -> Tensor:
        """Apply the norm that ends the stack, if it has one."""
        return x if self.norm is None else self.norm(x)

    def attention_input(self, positions: Tensor, visible: Tensor) -> SelfAttentionInput:
        """Prepare what all layers share.

        Args:
            positions: int64 `[B, T]`.
            visible: bool `[B, T or 1, L]`, which keys a query may see.
        """
        bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, MASKED)
        bias = bias[:, None]
        if self.position_bias is not None:
            bias = bias + self.position_bias(positions, visible.shape[-1])
        rotary = None
        if self.config.position == "rope":
            rotary = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        return SelfAttentionInput(positions, bias, rotary)


class Encoder(Stack):
    """Maps embedded source tokens to encoder states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.max_source_length, bidirectional=True)
        self.layers = nn.ModuleList(
            Layer(
                config,
                f"encoder.layers.{i}",
                sparse=i in config.encoder_sparse_layers,
                bidirectional=True,
            )
            for i in range(config.encoder_layers)
        )

    def forward(
        self, embedded: Tensor, source_mask: Tensor, groups: GroupChoice | None
    ) -> tuple[Tensor, list[Route]]:
        """Encode `embedded` `[B, S, d]` under `source_mask` bool `[B, S]`.

        Returns:
            The states `[B, S, d]`, and the routes of the sparse layers.
        """
        positions = torch.arange(embedded.shape[1], device=embedded.device)[None]
        shared = self.attention_input(positions, source_mask[:, None])
        x, routes = self.place(embedded, positions), list[Route]()
        k, capacity = self.config.experts_per_token, self.config.expert_capacity
        for layer in self.layers:
            assert isinstance(layer, Layer)
            attention = partial(layer.self_attention, shared=shared)
            x = layer.residual(layer.self_attention_norm, x, attention)
            x = layer.feed_forward(x, groups, source_mask, k, routes, capacity)
        return self.finish(x), routes
