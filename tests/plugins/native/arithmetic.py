"""What the kernels compute, to the last bit, in NumPy."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl.plugins.native.kernels import RmsNorm
from drl.plugins.ops.packing import (
    BLOCK,
    PackedWeights,
    quantize_rows,
    unpack_multipliers,
    unpack_values,
)

Float32 = NDArray[np.float32]
_LANES = 64  # of a sum of squares
_PRODUCT_LANES = 16  # of a sum of products of floats
_CHUNK = 128  # columns whose exponentials are added up together


def normalize(x: Float32, norm: RmsNorm) -> Float32:
    """`x · weight / sqrt(mean(x²) + epsilon)` for x `[M, K]`; squares are added up in lanes."""
    with np.errstate(all="ignore"):
        lanes = np.zeros((len(x), _LANES), np.float32)
        for first in range(0, x.shape[1], _LANES):
            part = x[:, first : first + _LANES]
            lanes[:, : part.shape[1]] += part * part
        mean = _tree(lanes) / np.float32(x.shape[1])
        factor = np.float32(1) / np.sqrt(mean + np.float32(norm.epsilon))
        result: Float32 = x * factor[:, None] * norm.weight
    return result


def linear(
    x: Float32,
    weights: PackedWeights,
    bias: Float32 | None = None,
    *,
    norm: RmsNorm | None = None,
    residual: Float32 | None = None,
    factor: float = 1.0,
) -> Float32:
    """A linear without an activation, of one matrix or gated of two."""
    with np.errstate(all="ignore"):
        values, row_scale = quantize_rows(x if norm is None else normalize(x, norm))
        results = []
        for matrix in range(weights.matrices):
            scales = row_scale[:, None] * weights.scales[matrix, : weights.columns]
            y = _totals(values, weights, matrix) * scales * np.float32(factor)
            results.append(y if bias is None else y + bias.reshape(-1, weights.columns)[matrix])
        y = results[0] if len(results) == 1 else results[0] * results[1]
        return y if residual is None else y + residual


def float_linear(
    x: Float32,
    weights: Float32,
    bias: Float32 | None = None,
    activation: str = "none",
    *,
    norm: RmsNorm | None = None,
    residual: Float32 | None = None,
) -> Float32:
    """The linear of float weights [M, N, K], with ReLU or nothing."""
    with np.errstate(all="ignore"):
        normed = x if norm is None else normalize(x, norm)
        biases = None if bias is None else bias.reshape(len(weights), -1)
        by_depth = weights.swapaxes(1, 2)
        sides = [_product(normed, by_depth, biases, matrix) for matrix in range(len(weights))]
        y = sides[0]
        if activation == "relu":
            y = np.where(y < 0, np.float32(0), y)
        if len(sides) == 2:
            y = y * sides[1]
        return y if residual is None else y + residual


def float_head(
    x: Float32, weight: Float32, bias: Float32 | None = None, *, factor: float = 1.0
) -> Float32:
    """Logits of x `[M, K]` and float weights `[N, K]`: products are added up in lanes, fused."""
    with np.errstate(all="ignore"):
        lanes = np.zeros((len(x), len(weight), _PRODUCT_LANES), np.float32)
        for first in range(0, x.shape[1], _PRODUCT_LANES):
            part = slice(first, first + _PRODUCT_LANES)
            rows, columns = x[:, None, part], weight[None, :, part]
            width = rows.shape[-1]
            lanes[..., :width] = _multiply_add(rows, columns, lanes[..., :width])
            lanes[..., width:] += np.float32(0)
        totals = _tree(lanes.reshape(-1, _PRODUCT_LANES)).reshape(len(x), len(weight))
        logits = totals * np.float32(factor)
        return logits if bias is None else logits + bias


def float_routed_ffn(
    x: Float32,
    expert_ids: NDArray[np.int32],
    gates: Float32,
    up: Float32,
    down: Float32,
    gate: Float32 | None = None,
    up_bias: Float32 | None = None,
    down_bias: Float32 | None = None,
    gate_bias: Float32 | None = None,
) -> Float32:
    """The routed layer of float weights with ReLU: experts are added up in ascending order."""
    with np.errstate(all="ignore"):
        y = np.zeros_like(x)
        for expert in range(len(up)):
            for token, choice in np.argwhere(expert_ids == expert):
                row = x[token : token + 1]
                raised = _product(row, up, up_bias, expert)
                opened = raised if gate is None else _product(row, gate, gate_bias, expert)
                inner = np.where(opened < 0, np.float32(0), opened)
                inner = inner if gate is None else inner * raised
                y[token] += gates[token, choice] * _product(inner, down, down_bias, expert)[0]
        return y


def largest(y: Float32, k: int) -> tuple[Float32, NDArray[np.int32]]:
    """The k largest of every row, equal ones by column, NaN last."""
    order = np.argsort(np.where(np.isnan(y), np.inf, -y), axis=1, kind="stable")
    # NaN counted as -inf above, so that columns of -inf may stand among them.
    order = np.take_along_axis(
        order, np.argsort(np.isnan(np.take_along_axis(y, order, 1)), axis=1, kind="stable"), 1
    )[:, :k]
    return np.take_along_axis(y, order, axis=1), order.astype(np.int32)


def normalizers(logits: Float32) -> Float32:
    """log Σ exp of every row: sums of every chunk of columns, then of the chunks in order."""
    return np.array([_normalizer(row) for row in logits], np.float32)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two float32 arrays hold the same bits, NaN being NaN whatever its payload."""
    if a.shape != b.shape or a.dtype != np.float32 or b.dtype != np.float32:
        return False
    both = np.isnan(a) & np.isnan(b)
    return bool(((a.view(np.int32) == b.view(np.int32)) | both).all())


def _product(x: Float32, weight: Float32, bias: Float32 | None, expert: int) -> Float32:
    """x `[M, K]` times `[K, N]` of an expert, one fused multiply-add after the other, and bias."""
    total = np.zeros((len(x), weight.shape[2]), np.float32)
    for k in range(x.shape[1]):
        total = _multiply_add(x[:, k, None], weight[expert, k], total)
    return total if bias is None else total + bias[expert]


def _totals(values: NDArray[np.int8], weights: PackedWeights, matrix: int) -> Float32:
    integers = unpack_values(weights)[matrix].astype(np.int64)
    if weights.multipliers is None:
        return (values.astype(np.int64) @ integers.T).astype(np.float32)
    multipliers = unpack_multipliers(weights)[matrix].astype(np.float32)
    totals = np.zeros((len(values), weights.columns), np.float32)
    for block in range(multipliers.shape[1]):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        sums = values[:, part].astype(np.int64) @ integers[:, part].T
        totals += sums.astype(np.float32) * multipliers[:, block]
    return totals


def _normalizer(row: Float32) -> float:
    if np.isnan(row).any():
        return math.nan
    top = row.max()
    if np.isinf(top):
        return float(top)
    total = 0.0
    for first in range(0, len(row), _CHUNK):
        chunk = np.full(_CHUNK, -np.inf, np.float32)
        chunk[: len(row) - first] = row[first : first + _CHUNK]
        most = chunk.max()
        powers = _exponential(chunk - (most if np.isfinite(most) else np.float32(0)))
        total += float(_tree(powers[None])[0]) * float(_exponential(most[None] - top)[0])
    return float(top) + math.log(total)


def _multiply_add(a: Float32, b: Float32, c: Float32) -> Float32:
    """a · b + c, rounded once.

    The product is exact in float64. Their sum is rounded to the neighbour whose last bit is 1, so
    that the rounding to float32 that follows sees on which side of a tie it was (Boldo and
    Melquiond, 2008).
    """
    product, addend = np.float64(a) * np.float64(b), np.broadcast_to(np.float64(c), c.shape)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (lost != 0) & (bits % 2 == 0)
    away = (lost > 0) == (total > 0)
    odd = np.where(inexact, bits + np.where(away, 1, -1), bits)
    return odd.view(np.float64).astype(np.float32)


def _tree(values: Float32) -> Float32:
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


def _exponential(x: Float32) -> Float32:
    """Cephes' expf within [-87, 88], as `exponential.h` has it."""
    rounder = np.float32(12582912)
    x = np.clip(x, np.float32(-87), np.float32(88))
    n = (x * np.float32(1.44269504) + rounder) - rounder
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.full_like(r, 1.9875691500e-4)
    for coefficient in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        p = p * r + np.float32(coefficient)
    p = p * (r * r) + r + np.float32(1)
    return np.ldexp(p, n.astype(np.int32)).astype(np.float32)
