"""The decoder: runs the layers of one path over new tokens, with or without a KV cache."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from drl.export.model.attention import CrossAttention, LayerCache
from drl.export.model.config import ModelConfig, PathConfig
from drl.export.model.encoder import Layer, Stack
from drl.export.model.experts import Route
from drl.export.model.group_router import GroupChoice
from drl.export.model.norms import make_norm


@dataclass(frozen=True)
class CrossMemory:
    """What the decoder reads of the source, for the layers of one path.

    Attributes:
        path: The path.
        bias: fp32 `[B, K]`, added to cross-attention scores.
        keys: Layer index to keys `[B, N, K, h]`.
        values: Layer index to values `[B, N, K, h]`.
    """

    path: PathConfig
    bias: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]


@dataclass
class KVCache:
    """Self-attention keys and values of a path's layers; row b holds `lengths[b]` positions."""

    lengths: Tensor
    layers: dict[int, LayerCache]


class DecoderLayer(Layer):
    """A layer with cross-attention between self-attention and feed-forward network."""

    def __init__(self, config: ModelConfig, name: str, *, sparse: bool) -> None:
        super().__init__(config, name, sparse=sparse, bidirectional=False)
        self.cross_attention_norm = make_norm(config)
        self.cross_attention = CrossAttention(config)


class Decoder(Stack):
    """Maps embedded target tokens to the states that predict their successors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.max_target_length, bidirectional=False)
        self.layers = nn.ModuleList(
            DecoderLayer(config, f"decoder.layers.{i}", sparse=i in config.decoder_sparse_layers)
            for i in range(config.decoder_layers)
        )

    def memory(self, states: Tensor, bias: Tensor, path: PathConfig) -> CrossMemory:
        """Project the kept encoder states `[B, K, d]` for the layers of `path`."""
        keys, values = {}, {}
        for i in path.layers:
            keys[i], values[i] = self._layer(i).cross_attention.project(states)
        return CrossMemory(path, bias, keys, values)

    def forward(
        self,
        embedded: Tensor,
        new_lengths: Tensor,
        groups: GroupChoice | None,
        memory: CrossMemory,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, list[Route]]:
        """Run the path's layers over `embedded` `[B, T, d]`.

        Args:
            embedded: New tokens, right-padded.
            new_lengths: How many of a row's T tokens are real, `[B]`.
            groups: Their level-1 routing, if the model routes.
            memory: What the bridge made of the source.
            cache: Positions already decoded; new ones are stored and the lengths advanced.

        Returns:
            States `[B, T, d]`, and the routes of the sparse layers that ran.
        """
        steps = torch.arange(embedded.shape[1], device=embedded.device)
        start = torch.zeros_like(new_lengths) if cache is None else cache.lengths
        positions = start.long()[:, None] + steps
        seen = torch.arange(int(positions.max()) + 1, device=embedded.device)
        shared = self.attention_input(positions, seen <= positions[..., None])
        token_mask = steps < new_lengths[:, None]
        cross_bias = memory.bias[:, None, None]
        x, routes = self.place(embedded, positions), list[Route]()
        for i in memory.path.layers:
            layer = self._layer(i)
            kept = None if cache is None else cache.layers[i]
            attention = partial(layer.self_attention, shared=shared, cache=kept)
            x = layer.residual(layer.self_attention_norm, x, attention)
            source = {"keys": memory.keys[i], "values": memory.values[i], "bias": cross_bias}
            x = layer.residual(
                layer.cross_attention_norm, x, partial(layer.cross_attention, **source)
            )
            x = layer.feed_forward(x, groups, token_mask, memory.path.experts_per_token, routes)
        if cache is not None:
            cache.lengths = cache.lengths + new_lengths
        return self.finish(x), routes

    def empty_cache(self, batch: int, capacity: int, path: PathConfig) -> KVCache:
        """Return a cache of `capacity` positions for the layers of `path`."""
        like = next(self.parameters())
        shape = (batch, self.config.kv_heads, capacity, self.config.head_dim)
        layers = {i: LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for i in path.layers}
        return KVCache(torch.zeros(batch, dtype=torch.long, device=like.device), layers)

    def _layer(self, index: int) -> DecoderLayer:
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        return layer
