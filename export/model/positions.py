"""Positions: rotary embeddings and bucketed relative biases."""

import math

import torch
from torch import Tensor, nn

from drl.export.model.config import ModelConfig


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angles at `positions` int64 `[..., T]`, fp32 `[..., T, h/2]`.

    Position t turns pair i by t · theta^(-2i / head_dim) (RoFormer, Su et al., 2021). The angles
    are computed in fp64 so that far positions lose nothing.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None] * theta ** (-pairs / head_dim)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` `[B, T, H, h]` by the angles of its positions, `cos` and `sin` `[B|1, T, h/2]`.

    The first half of a head pairs with the second half, as in ONNX's `RotaryEmbedding` with
    `interleaved=0`.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def sinusoids(positions: Tensor, d_model: int, width: int) -> Tensor:
    """Return the fixed embeddings of `positions` int64 `[..., T]`, fp32 `[..., T, d]`.

    sin(t · 10000^(-2i / width)) for the first half of the dimensions, cos for the second (Vaswani
    et al., 2017, with the halves apart instead of interleaved).
    """
    pairs = torch.arange(0, d_model, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None] * 10_000.0 ** (-pairs / width)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


def relative_bucket(
    relative: Tensor, *, bidirectional: bool, buckets: int, max_distance: int
) -> Tensor:
    """Map relative positions (key − query) to buckets, as T5 does (Raffel et al., 2020).

    Half of the buckets hold one distance each, the rest grow logarithmically up to
    `max_distance`, beyond which all distances share the last bucket. With `bidirectional`, one
    half of all buckets is for keys after the query; without, such keys count as distance 0.
    """
    offset = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    # in this order: a distance where two buckets meet must round as it did in training
    grown = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    coarse = exact + (grown * (buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, coarse.clamp(max=buckets - 1))


class RelativePositionBias(nn.Module):
    """A learned bias per head and bucket of relative position, shared by all layers of a stack."""

    def __init__(self, heads: int, *, buckets: int, max_distance: int, bidirectional: bool) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.zeros(buckets, heads))

    def by_distance(self) -> Tensor:
        """Return the bias of every relative position that differs, `[R, H]`.

        Row i is relative position i − `max_distance` (keys before the query first); positions
        beyond either end share the end's row. R is 2·max_distance + 1, or max_distance + 1 where
        keys after the query do not occur.
        """
        last = self.max_distance if self.bidirectional else 0
        relative = torch.arange(-self.max_distance, last + 1, device=self.weight.device)
        bucket = relative_bucket(
            relative,
            bidirectional=self.bidirectional,
            buckets=self.weight.shape[0],
            max_distance=self.max_distance,
        )
        return self.weight[bucket]

    def forward(self, positions: Tensor, key_length: int) -> Tensor:
        """Return the bias of queries at `positions` int64 `[B, T]` for the first keys.

        Returns:
            `[B, H, T, key_length]`.
        """
        relative = torch.arange(key_length, device=positions.device) - positions[..., None]
        table = self.by_distance()
        row = (relative + self.max_distance).clamp(0, table.shape[0] - 1)
        return table[row].permute(0, 3, 1, 2)


def make_position_bias(config: ModelConfig, *, bidirectional: bool) -> RelativePositionBias:
    """Return the relative position bias that the configuration describes."""
    return RelativePositionBias(
        config.num_heads,
        buckets=config.position_buckets,
        max_distance=config.position_max_distance,
        bidirectional=bidirectional,
    )


class AbsolutePositions(nn.Module):
    """An embedding added per position: learned, or sinusoids of a fixed form."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        self.offset = config.position_offset
        self.d_model = config.d_model
        self.width = config.d_model if config.sinusoid_width is None else config.sinusoid_width
        self.weight = (
            nn.Parameter(torch.zeros(length + self.offset, config.d_model))
            if config.position == "learned"
            else None
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Return the embeddings of `positions` int64 `[B or 1, T]`, `[B or 1, T, d]`."""
        rows = positions + self.offset
        if self.weight is None:
            return sinusoids(rows, self.d_model, self.width)
        return self.weight[rows]
