"""The encoder: self-attention and feed-forward layers over the whole source."""

import torch
from torch import Tensor, nn

from drl.export.model.attention import MASKED, SelfAttention, SelfAttentionInput
from drl.export.model.config import ModelConfig
from drl.export.model.experts import Route, SparseFeedForward
from drl.export.model.feed_forward import FeedForward
from drl.export.model.group_router import GroupChoice
from drl.export.model.norms import RMSNorm
from drl.export.model.positions import RelativePositionBias, rotary_angles


class Layer(nn.Module):
    """What encoder and decoder layers share: pre-norm self-attention and feed-forward network."""

    def __init__(self, config: ModelConfig, name: str, *, sparse: bool) -> None:
        super().__init__()
        self.self_attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attention = SelfAttention(config)
        self.ffn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ffn: FeedForward | SparseFeedForward = (
            SparseFeedForward(config, name)
            if sparse
            else FeedForward(config.d_model, config.d_ff, config.activation)
        )

    def feed_forward(
        self,
        x: Tensor,
        groups: GroupChoice | None,
        token_mask: Tensor,
        k: int,
        routes: list[Route],
    ) -> Tensor:
        """Add the feed-forward network's output to `x` `[B, T, d]`; a route goes to `routes`."""
        if isinstance(self.ffn, FeedForward):
            return x + self.ffn(self.ffn_norm(x))
        assert groups is not None  # the configuration gives every sparse layer a group router
        output, route = self.ffn(self.ffn_norm(x), groups, token_mask, k)
        routes.append(route)
        return x + output


class Stack(nn.Module):
    """What the encoder's and the decoder's stacks share: positions and the final norm."""

    def __init__(self, config: ModelConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.config = config
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.position_bias = (
            RelativePositionBias(
                config.num_heads,
                buckets=config.position_buckets,
                max_distance=config.position_max_distance,
                bidirectional=bidirectional,
            )
            if config.position == "t5_bias"
            else None
        )

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
        super().__init__(config, bidirectional=True)
        self.layers = nn.ModuleList(
            Layer(config, f"encoder.layers.{i}", sparse=i in config.encoder_sparse_layers)
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
        x, routes = embedded, list[Route]()
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = x + layer.self_attention(layer.self_attention_norm(x), shared)
            k = self.config.experts_per_token
            x = layer.feed_forward(x, groups, source_mask, k, routes)
        return self.norm(x), routes
