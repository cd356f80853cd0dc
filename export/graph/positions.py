"""Positions as ONNX nodes: rotary tables and relative biases, looked up by position."""

from dataclasses import dataclass

import onnx_ir as ir
import torch

from drl.export.checkpoint import Checkpoint
from drl.export.graph.emitter import FLOAT, Emitter
from drl.export.graph.norms import emit_norm
from drl.export.model.positions import make_position_bias, rotary_angles, sinusoids
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


def emit_position_bias(e: Emitter, rows: ir.Value, *, bidirectional: bool) -> ir.Value | None:
    """Emit the `position_bias` of the module in scope, `[B or 1, H, T, L]`, if it has one.

    Args:
        e: The graph under construction.
        rows: What `emit_bias_rows` gives.
        bidirectional: Whether keys after the query occur.
    """
    table = bias_table(e, bidirectional=bidirectional)
    return None if table is None else e.op.Transpose(e.op.Gather(table, rows), perm=[0, 3, 1, 2])


def bias_table(e: Emitter, *, bidirectional: bool) -> ir.Value | None:
    """Return the `position_bias` of the module in scope at every distance, `[R, H]`, if it has one.

    The buckets are folded into it, so that a step costs one gather.
    """
    if not e.has("position_bias.weight"):
        return None
    config = e.config
    source = e.path("position_bias.weight")

    def by_distance(checkpoint: Checkpoint) -> torch.Tensor:
        bias = make_position_bias(config, bidirectional=bidirectional)
        bias.load_state_dict({"weight": checkpoint.tensor(source)})
        return bias.by_distance()

    shape = (_bias_rows(e, bidirectional=bidirectional), config.num_heads)
    return e.tensor(e.path("position_bias.by_distance"), FLOAT, shape, by_distance)


def emit_bias_rows(
    e: Emitter, positions: ir.Value, keys: ir.Value, *, bidirectional: bool
) -> ir.Value | None:
    """Emit the row of a bias table for every query and key, int64 `[B or 1, T, L]`.

    Args:
        e: The graph under construction.
        positions: Positions of the queries, int64 `[B or 1, T]`.
        keys: Positions of the keys, int64 `[L]` or `[1, L]`.
        bidirectional: Whether keys after the query occur.
    """
    if e.config.position != "t5_bias":
        return None
    op = e.op
    relative = op.Sub(keys, op.Unsqueeze(positions, [-1]))
    last = _bias_rows(e, bidirectional=bidirectional) - 1
    return op.Clip(op.Add(relative, e.config.position_max_distance), 0, last)


def _bias_rows(e: Emitter, *, bidirectional: bool) -> int:
    return e.config.position_max_distance * (2 if bidirectional else 1) + 1


def emit_placed(e: Emitter, embedded: ir.Value, positions: ir.Value, length: int) -> ir.Value:
    """Emit `Stack.place`: word embeddings `[B, T, d]` scaled, with positions added and normed.

    Args:
        e: The graph under construction.
        embedded: Word embeddings.
        positions: int64 `[B or 1, T]`.
        length: Positions that the stack may see.
    """
    op, config = e.op, e.config
    x = embedded
    if config.embedding_scale != 1.0:
        x = op.Mul(x, config.embedding_scale)
    if config.position in ("sinusoidal", "learned"):
        x = op.Add(x, op.Gather(_position_table(e, length), positions))
    return emit_norm(e, "embedding_norm", x) if config.embedding_norm else x


def _position_table(e: Emitter, length: int) -> ir.Value:
    """Return the embedding of every position, fp32 `[length, d]`."""
    config, offset = e.config, e.config.position_offset
    shape = (length, config.d_model)
    if config.position == "learned":
        source = e.path("positions.weight")
        name = e.path("positions.by_position")
        return e.tensor(name, FLOAT, shape, lambda c: c.tensor(source)[offset:])
    width = config.d_model if config.sinusoid_width is None else config.sinusoid_width
    longest = max(config.max_source_length, config.max_target_length)
    table = sinusoids(torch.arange(longest) + offset, config.d_model, width)
    return e.tensor("sinusoids", FLOAT, (longest, config.d_model), constant(table))
