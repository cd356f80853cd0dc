"""Positions as ONNX nodes: rotary tables and relative biases, looked up by position."""

from dataclasses import dataclass

import onnx_ir as ir
import torch

from drl.export.checkpoint import Checkpoint
from drl.export.graph.emitter import FLOAT, Emitter
from drl.export.model.positions import RelativePositionBias, rotary_angles
from drl.export.weights import constant


@dataclass(frozen=True)
class Rotary:
    """Tables of cos and sin, fp32 `[positions, h/2]`, and the rows to use, int64 `[B, T]`."""

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value

    def turn(self, e: Emitter, x: ir.Value, heads: int) -> ir.Value:
        """Rotate `x` `[B, T, heads·h]`."""
        return e.op.RotaryEmbedding(x, self.cos, self.sin, self.positions, num_heads=heads)


def emit_rotary(e: Emitter, positions: ir.Value) -> Rotary | None:
    """Emit the rotary tables for tokens at `positions` int64 `[B, T]`, if the model turns any."""
    config = e.config
    if config.position != "rope":
        return None
    longest = max(config.max_source_length, config.max_target_length)
    tables = rotary_angles(torch.arange(longest), config.head_dim, config.rope_theta)
    cos, sin = (
        e.tensor(f"rotary.{name}", FLOAT, tuple(table.shape), constant(table))
        for name, table in zip(("cos", "sin"), tables, strict=True)
    )
    return Rotary(cos, sin, positions)


def emit_position_bias(
    e: Emitter, stack: str, positions: ir.Value, keys: ir.Value
) -> ir.Value | None:
    """Emit the relative position bias of a stack, `[B or 1, H, T, L]`, if the model has one.

    The buckets are folded into a table of the bias at every distance, so a step costs one gather.

    Args:
        e: The graph under construction.
        stack: `encoder` or `decoder`.
        positions: Positions of the queries, int64 `[B or 1, T]`.
        keys: Positions of the keys, int64 `[L]`.
    """
    if e.config.position != "t5_bias":
        return None
    op, config = e.op, e.config
    bidirectional = stack == "encoder"
    rows = config.position_max_distance * (2 if bidirectional else 1) + 1

    def by_distance(checkpoint: Checkpoint) -> torch.Tensor:
        bias = RelativePositionBias(
            config.num_heads,
            buckets=config.position_buckets,
            max_distance=config.position_max_distance,
            bidirectional=bidirectional,
        )
        bias.load_state_dict({"weight": checkpoint.tensor(f"{stack}.position_bias.weight")})
        return bias.by_distance()

    name = f"{stack}.position_bias.by_distance"
    table = e.tensor(name, FLOAT, (rows, config.num_heads), by_distance)
    relative = op.Sub(keys, op.Unsqueeze(positions, [-1]))
    row = op.Clip(op.Add(relative, config.position_max_distance), 0, rows - 1)
    return op.Transpose(op.Gather(table, row), perm=[0, 3, 1, 2])
