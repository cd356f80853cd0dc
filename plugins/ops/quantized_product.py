"""The product of quantised rows and packed weights, for NumPy and for graphs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.packing import (
    BLOCK,
    INT8_ZERO,
    LAYOUT,
    PANEL,
    SMALLEST,
    PackedWeights,
    quantize_rows,
    unpack_multipliers,
    unpack_values,
)
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]

LAYOUT_ATTRIBUTE = Attribute("layout", int, only=LAYOUT)
"""The attribute of every operator with packed weights that says how they are packed."""


def weight_arguments(
    prefix: str, dims: tuple[str, str, str], *, optional: bool = False
) -> tuple[Argument, Argument, Argument]:
    """The arguments that packed weights of the size `dims`, such as M, N and K, are given by.

    Args:
        prefix: "" for `weight`, `scale` and `multiplier`; else the name of the weight, which the
            other two start with.
        dims: Matrices, columns and depth.
        optional: Whether values and scales are optional. Multipliers are: int8 has none. Where they
            are given, the fourth dimension of the values is the bits of a value.
    """
    matrices, columns, depth = dims
    name, start = prefix or "weight", f"{prefix}_" if prefix else ""
    panels, blocks = f"{columns}/{PANEL}", f"{depth}/{BLOCK}"
    values = Argument(
        name,
        ir.DataType.UINT8,
        (matrices, panels, f"{depth}/4", "32", "4"),
        optional,
        {f"{start}multiplier": (matrices, panels, blocks, "4|8", "32", "4")},
    )
    scales = Argument(f"{start}scale", ir.DataType.FLOAT, (matrices, f"{panels}*{PANEL}"), optional)
    multipliers = Argument(
        f"{start}multiplier",
        ir.DataType.UINT8,
        (matrices, panels, blocks, "32"),
        optional=True,
        beside=name,
    )
    return values, scales, multipliers


def packed_weights(
    weight: NDArray[np.uint8],
    scale: Float32,
    multiplier: NDArray[np.uint8] | None,
    columns: int,
    depth: int,
) -> PackedWeights:
    """Packed weights as a node has them."""
    return PackedWeights(weight, scale, multiplier, len(weight), columns, depth)


def rms_norm(x: Float32, norm: Float32 | None, epsilon: float) -> Float32:
    """x · norm / sqrt(mean(x²) + epsilon), row by row (Zhang and Sennrich, 2019).

    Args:
        x: `[..., K]`.
        norm: `[K]`, or None, which leaves x as it is.
        epsilon: Added to the mean.
    """
    if norm is None:
        return x
    mean = np.square(x).mean(axis=-1, keepdims=True, dtype=np.float32)
    result: Float32 = x / np.sqrt(mean + np.float32(epsilon)) * norm
    return result


def product(x: Float32, packed: PackedWeights, matrix: int = 0) -> Float32:
    """x · Wᵀ with one matrix W `[N, K]`, every row of x being rounded to int8 first.

    Sums over int8 are exact. Where the weights have multipliers, those over a block of 32 are;
    sum · multiplier is rounded to float32, and blocks are added up in float32, in ascending order.

    Args:
        x: `[..., K]`; a row with NaN or infinity gives NaN.
        packed: Weights of M matrices.
        matrix: The one that is meant.

    Returns:
        `[..., N]`.
    """
    values, row_scales = quantize_rows(x)
    weights = unpack_values(packed)[matrix].astype(np.float64)
    rows = values.astype(np.float64)
    if packed.multipliers is None:
        total = (rows @ weights.T).astype(np.float32)
    else:
        multipliers = unpack_multipliers(packed)[matrix].astype(np.float32)
        total = np.zeros((*x.shape[:-1], packed.columns), np.float32)
        for block in range(multipliers.shape[1]):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            sums = (rows[..., part] @ weights[:, part].T).astype(np.float32)
            total += sums * multipliers[:, block]
    scales = packed.scales[matrix, : packed.columns]
    result: Float32 = total * (row_scales[..., None] * scales)
    return result


def trace_rms_norm(
    op: onnxscript.OpBuilder, x: ir.Value, norm: ir.Value | None, epsilon: ir.Value
) -> Any:
    """Add `rms_norm` to a graph."""
    if norm is None:
        return x
    mean = op.ReduceMean(op.Mul(x, x), [-1], keepdims=1)
    return op.Mul(op.Div(x, op.Sqrt(op.Add(mean, epsilon))), norm)


@dataclass(frozen=True)
class TracedRows:
    """Quantised rows in a graph: whole numbers `[R, K]` and scales `[R, 1]`, all float32."""

    values: ir.Value
    scales: ir.Value

    def gather(self, op: onnxscript.OpBuilder, rows: ir.Value) -> "TracedRows":
        """Some of the rows."""
        return TracedRows(op.Gather(self.values, rows), op.Gather(self.scales, rows))


def trace_rows(op: onnxscript.OpBuilder, x: ir.Value) -> TracedRows:
    """Add `quantize_rows` of x `[R, K]` to a graph."""
    # 0 for a finite row, else NaN. Maxima and comparisons do not agree on NaN, sums do.
    poison = op.ReduceSum(op.Sub(x, x), [-1], keepdims=1)
    finite = op.Where(op.IsNaN(poison), 0.0, x)
    largest = op.ReduceMax(op.Abs(finite), [-1], keepdims=1)
    used = op.GreaterOrEqual(largest, float(SMALLEST))
    divisor = op.Where(used, largest, 1.0)
    rows = op.Where(used, finite, 0.0)
    values = op.Round(op.Mul(rows, op.Div(127.0, divisor)))
    return TracedRows(values, op.Where(used, op.Div(divisor, 127.0), poison))


@dataclass(frozen=True)
class TracedWeights:
    """Packed weights in a graph, in the order that matrix products of standard operators take.

    It depends on nothing but the weights, so an engine works it out once where they are constant.

    Attributes:
        values: `[M, K', N']`, depth and columns being padded: uint8 as they are stored in int8;
            float32, times their multipliers, in the other formats.
        scales: float32 `[M, N']`.
        columns: N, int64 `[1]`.
        whole: Whether the values are uint8.
    """

    values: ir.Value
    scales: ir.Value
    columns: ir.Value
    whole: bool

    def product(self, op: onnxscript.OpBuilder, rows: TracedRows, matrix: Any = 0) -> Any:
        """Add the product of rows with one matrix, an int64 scalar: float32 `[R, N]`."""
        weights = op.Gather(self.values, matrix, axis=0)
        missing = op.Sub(op.Shape(weights, end=1), op.Shape(rows.values, start=1))
        padded = op.Pad(rows.values, op.Concat([0, 0, 0], missing, axis=0), 0.0)
        if self.whole:
            # Both factors are unsigned: for those ONNX Runtime's products are exact on every
            # processor, while signed weights saturate on AVX2 without VNNI.
            zero = op.Constant(value=ir.tensor(np.array(INT8_ZERO, np.uint8)))
            stored = op.Cast(op.Add(padded, float(INT8_ZERO)), to=ir.DataType.UINT8)
            sums = op.MatMulInteger(stored, weights, zero, zero)
            total = op.Cast(sums, to=ir.DataType.FLOAT)
        else:
            total = op.MatMul(padded, weights)
        scales = op.Gather(self.scales, matrix, axis=0)
        return op.Slice(op.Mul(total, op.Mul(rows.scales, scales)), [0], self.columns, [1])


def trace_weights(
    op: onnxscript.OpBuilder,
    weight: ir.Value,
    scale: ir.Value,
    multiplier: ir.Value | None,
    columns: Any,
) -> TracedWeights:
    """Add the unpacking of weights of `columns`, an int64 scalar or `[1]`, to a graph."""
    values = (
        _trace_int8(op, weight) if multiplier is None else _trace_blocks(op, weight, multiplier)
    )
    return TracedWeights(values, scale, op.Reshape(columns, [1]), whole=multiplier is None)


def _padded_columns(op: onnxscript.OpBuilder, weight: ir.Value) -> Any:
    return op.Mul(op.Shape(weight, start=1, end=2), [PANEL])


def _trace_int8(op: onnxscript.OpBuilder, weight: ir.Value) -> Any:
    by_depth = op.Transpose(weight, perm=[0, 2, 4, 1, 3])
    return op.Reshape(by_depth, op.Concat([0, -1], _padded_columns(op, weight), axis=0))


def _trace_blocks(op: onnxscript.OpBuilder, weight: ir.Value, multiplier: ir.Value) -> Any:
    columns = _padded_columns(op, weight)
    bits = op.Shape(weight, start=3, end=4)
    shifts = op.Cast(op.Range(0, 8, op.Squeeze(bits)), to=ir.DataType.UINT8)
    mask = op.Cast(op.Sub(op.Pow(2, bits), 1), to=ir.DataType.UINT8)
    # Values of 4 bits lie two to a byte: the low ones are the first half of a block.
    shifted = op.BitShift(
        op.Unsqueeze(weight, [3]), op.Unsqueeze(shifts, [1, 2, 3]), direction="RIGHT"
    )
    parts = op.BitwiseAnd(shifted, mask)
    by_depth = op.Transpose(parts, perm=[0, 2, 3, 4, 6, 1, 5])
    blocks = op.Reshape(by_depth, op.Concat([0, 0, BLOCK], columns, axis=0))
    zero = op.Cast(op.Pow(2, op.Sub(bits, 1)), to=ir.DataType.FLOAT)
    values = op.Sub(op.Cast(blocks, to=ir.DataType.FLOAT), zero)
    by_block = op.Transpose(multiplier, perm=[0, 2, 1, 3])
    steps = op.Reshape(by_block, op.Concat([0, 0, 1], columns, axis=0))
    scaled = op.Mul(values, op.Cast(steps, to=ir.DataType.FLOAT))
    return op.Reshape(scaled, op.Concat([0, -1], columns, axis=0))
