"""Packed weights: int8 and int4 matrices in the order in which the CPU kernels read them.

A matrix is the `W [N, K]` of `y = x · Wᵀ`; M of them are stacked. Columns (the N outputs) stand in
panels of 32, and the depth (K) in groups of 4, which one dot-product instruction reads. In int4
and int8-block the depth is cut into blocks of 32, each with a multiplier of its own. See
docs/native.md.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Format = Literal["int8", "int4", "int8-block"]
Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LAYOUT = 2
"""The number of the layout that is written here: the attribute `layout` of the operators."""
PANEL = 32
"""Columns of a panel."""
GROUP = 4
"""Depth of a group."""
BLOCK = 32
"""Depth of a block that shares a multiplier."""
INT8_ZERO, INT4_ZERO = 128, 8
"""What stands for the value 0."""

_INT8_MOST, _INT4_MOST, _MULTIPLIER_MOST = 127, 7, 255
_BITS_AXIS = 3  # of the values where there are multipliers: its size is the bits of a value
# Below this a row counts as zeros: 127 divided by anything smaller would overflow.
SMALLEST = np.float32(2.0**-119)


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """M matrices `[columns, depth]` in packed form.

    Attributes:
        values: uint8. In int8 `[M, ⌈N/32⌉, ⌈K/4⌉, 32, 4]`; in int8-block
            `[M, ⌈N/32⌉, ⌈K/32⌉, 8, 32, 4]`; in int4 `[M, ⌈N/32⌉, ⌈K/32⌉, 4, 32, 4]`, two values to
            a byte.
        scales: float32 `[M, ⌈N/32⌉·32]`.
        multipliers: uint8 `[M, ⌈N/32⌉, ⌈K/32⌉, 32]`; None in int8.
        matrices: M.
        columns: N.
        depth: K.
    """

    values: Bytes
    scales: Float32
    multipliers: Bytes | None
    matrices: int
    columns: int
    depth: int

    @property
    def format(self) -> Format:
        """The format of the values."""
        if self.multipliers is None:
            return "int8"
        return "int4" if self.values.shape[_BITS_AXIS] == 4 else "int8-block"

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        multipliers = 0 if self.multipliers is None else self.multipliers.nbytes
        return self.values.nbytes + self.scales.nbytes + multipliers


@dataclass(frozen=True)
class PackedShapes:
    """The shapes of the arrays of `PackedWeights`."""

    values: tuple[int, ...]
    scales: tuple[int, ...]
    multipliers: tuple[int, ...] | None


def packed_shapes(format: Format, matrices: int, columns: int, depth: int) -> PackedShapes:
    """The shapes that matrices of this size have when they are packed."""
    panels = -(-columns // PANEL)
    scales = (matrices, panels * PANEL)
    if format == "int8":
        groups = -(-depth // GROUP)
        return PackedShapes((matrices, panels, groups, PANEL, GROUP), scales, None)
    blocks = -(-depth // BLOCK)
    bits = 4 if format == "int4" else 8
    values = (matrices, panels, blocks, bits, PANEL, GROUP)
    return PackedShapes(values, scales, (matrices, panels, blocks, PANEL))


def pack_int8(weights: NDArray[Any]) -> PackedWeights:
    """Round to int8 with one scale per column: weight ≈ q · scale, scale = max|column| / 127.

    The error of a weight is at most half its column's scale.

    Args:
        weights: `[N, K]` or `[M, N, K]`, of any float type.

    Raises:
        ValueError: The weights have another rank, no elements, or hold NaN or infinity.
    """
    stacked = _stacked(weights)
    matrices, columns, depth = stacked.shape
    scales = _largest(stacked) / np.float32(_INT8_MOST)
    values = _round(stacked, scales[..., None], _INT8_MOST)
    shapes = packed_shapes("int8", *stacked.shape)
    _, panels, groups, _, _ = shapes.values
    filled = np.full((matrices, panels * PANEL, groups * GROUP), INT8_ZERO, np.uint8)
    np.add(values, INT8_ZERO, out=filled[:, :columns, :depth], casting="unsafe")
    # A group moves as one word: [M, P, 32, Q] becomes [M, P, Q, 32].
    words = filled.view(np.uint32).reshape(matrices, panels, PANEL, groups).swapaxes(2, 3)
    packed = np.ascontiguousarray(words).view(np.uint8).reshape(shapes.values)
    return PackedWeights(packed, _padded_scales(scales, shapes), None, *stacked.shape)


def pack_int4(weights: NDArray[Any]) -> PackedWeights:
    """Round to int4 in blocks of 32 along the depth: weight ≈ q · multiplier · scale.

    A block's step, multiplier · scale, is at least a seventh of the block's largest magnitude and
    exceeds it by less than one scale, which is 1/255 of the column's largest step. The error of a
    weight is at most half its block's step.

    Args:
        weights: `[N, K]` or `[M, N, K]`, of any float type.

    Raises:
        ValueError: The weights have another rank, no elements, or hold NaN or infinity.
    """
    rounded = _round_blocks(_stacked(weights), _INT4_MOST)
    filled = rounded.bytes(INT4_ZERO)
    low, high = filled[..., : BLOCK // 2], filled[..., BLOCK // 2 :]
    return rounded.packed("int4", low | (high << np.uint8(4)))


def pack_int8_block(weights: NDArray[Any]) -> PackedWeights:
    """Round to int8 in blocks of 32 along the depth: weight ≈ q · multiplier · scale.

    As `pack_int4`, with 127 in the place of 7: a block's step is at least a 127th of the block's
    largest magnitude.

    Args:
        weights: `[N, K]` or `[M, N, K]`, of any float type.

    Raises:
        ValueError: The weights have another rank, no elements, or hold NaN or infinity.
    """
    rounded = _round_blocks(_stacked(weights), _INT8_MOST)
    return rounded.packed("int8-block", rounded.bytes(INT8_ZERO))


def unpack(packed: PackedWeights) -> Float32:
    """The weights that the packed ones stand for, float32 `[M, N, K]`."""
    values = unpack_values(packed).astype(np.float32)
    scales = packed.scales[:, : packed.columns, None]
    if packed.multipliers is None:
        return values * scales
    multipliers = unpack_multipliers(packed).astype(np.float32)
    steps = np.repeat(multipliers * scales, BLOCK, axis=-1)
    return values * steps[..., : packed.depth]


def unpack_values(packed: PackedWeights) -> NDArray[np.int8]:
    """The integers of packed weights, `[M, N, K]`."""
    if packed.multipliers is None:
        matrices, panels, groups, _, _ = packed.values.shape
        ordered = packed.values.transpose(0, 1, 3, 2, 4)
        integers = (ordered ^ np.uint8(INT8_ZERO)).view(np.int8)
        whole = integers.reshape(matrices, panels * PANEL, groups * GROUP)
    else:
        matrices, panels, blocks, bits, _, _ = packed.values.shape
        ordered = packed.values.transpose(0, 1, 4, 2, 3, 5)
        if bits == 4:
            nibbles = np.stack([ordered & np.uint8(15), ordered >> np.uint8(4)], axis=4)
            integers = nibbles.view(np.int8) - np.int8(INT4_ZERO)
        else:
            integers = (ordered ^ np.uint8(INT8_ZERO)).view(np.int8)
        whole = integers.reshape(matrices, panels * PANEL, blocks * BLOCK)
    return whole[:, : packed.columns, : packed.depth]


def unpack_multipliers(packed: PackedWeights) -> Bytes:
    """The multipliers of weights in blocks by column, `[M, N, ⌈K/32⌉]`."""
    assert packed.multipliers is not None, "int8 weights have no multipliers"
    matrices, panels, blocks, _ = packed.multipliers.shape
    by_column = packed.multipliers.swapaxes(2, 3).reshape(matrices, panels * PANEL, blocks)
    return by_column[:, : packed.columns]


def quantize_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], Float32]:
    """Round every row to int8: scale = max|x| / 127, q = x · (127 / max|x|), ties to even.

    A row whose largest magnitude is below 2⁻¹¹⁹ counts as zeros. One that holds NaN or infinity
    has scale NaN, so that its products are NaN.

    Args:
        x: `[..., K]`.

    Returns:
        Integers `[..., K]` and scales `[...]`.
    """
    largest = np.abs(x).max(axis=-1, initial=0)
    finite = np.isfinite(largest)
    used = finite & (largest >= SMALLEST)
    safe = np.where(used, largest, np.float32(1)).astype(np.float32)
    rows = np.where(used[..., None], x, np.float32(0))
    values = np.rint(rows * (np.float32(127) / safe)[..., None]).astype(np.int8)
    scales = np.where(used, safe / np.float32(127), np.where(finite, 0, np.nan))
    return values, scales.astype(np.float32)


def _stacked(weights: NDArray[Any]) -> Float32:
    if weights.ndim not in (2, 3) or weights.size == 0:
        raise ValueError(
            f"weights to pack must be [N, K] or [M, N, K] and not empty, got {list(weights.shape)}"
        )
    with np.errstate(over="ignore"):  # float64 that float32 cannot hold is refused as infinity
        single = weights.astype(np.float32, copy=False)
    return single[None] if single.ndim == 2 else single


def _largest(weights: Float32) -> Float32:
    """The largest magnitude along the last axis; refuses what is not finite."""
    # The largest of both ends, because np.abs would copy the weights.
    largest: Float32 = np.maximum(weights.max(axis=-1), -weights.min(axis=-1))
    odd = ~np.isfinite(largest)
    if odd.any():
        matrix, column = np.argwhere(odd)[0][:2]
        raise ValueError(
            f"weights to pack hold NaN or infinity, first in matrix {matrix}, column {column}; "
            "repair the checkpoint, or keep this layer in fp32"
        )
    return largest


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Matrices rounded in blocks of 32: weight ≈ value · multiplier · scale.

    Attributes:
        values: Whole numbers `[M, N, ⌈K/32⌉, 32]`, 0 beyond K.
        multipliers: Whole numbers `[M, N, ⌈K/32⌉]`.
        scales: `[M, N]`.
        depth: K.
    """

    values: Float32
    multipliers: Float32
    scales: Float32
    depth: int

    def bytes(self, zero: int) -> Bytes:
        """The values, each a byte with `zero` added, with columns in whole panels."""
        matrices, columns, blocks, _ = self.values.shape
        panels = -(-columns // PANEL)
        filled = np.full((matrices, panels * PANEL, blocks, BLOCK), zero, np.uint8)
        np.add(self.values, zero, out=filled[:, :columns], casting="unsafe")
        return filled

    def packed(self, format: Format, values: Bytes) -> PackedWeights:
        """Packed weights of bytes `[M, ⌈N/32⌉·32, ⌈K/32⌉, 32 or 16]`."""
        matrices, columns, blocks, _ = self.values.shape
        shapes = packed_shapes(format, matrices, columns, self.depth)
        panels = shapes.values[1]
        # A group moves as one word: [M, P, 32, Kb, G] becomes [M, P, Kb, G, 32].
        words = np.ascontiguousarray(values).view(np.uint32)
        words = words.reshape(matrices, panels, PANEL, blocks, -1).transpose(0, 1, 3, 4, 2)
        by_column = np.zeros((matrices, panels * PANEL, blocks), np.uint8)
        by_column[:, :columns] = self.multipliers
        by_block = by_column.reshape(matrices, panels, PANEL, blocks).swapaxes(2, 3)
        return PackedWeights(
            np.ascontiguousarray(words).view(np.uint8).reshape(shapes.values),
            _padded_scales(self.scales, shapes),
            np.ascontiguousarray(by_block),
            *(matrices, columns, self.depth),
        )


def _round_blocks(stacked: Float32, most: int) -> _Blocks:
    """Round to whole numbers from -most to most, with a multiplier of 8 bits for every block."""
    matrices, columns, depth = stacked.shape
    blocks = -(-depth // BLOCK)
    blocked: Float32 = np.zeros((matrices, columns, blocks * BLOCK), np.float32)
    blocked[..., :depth] = stacked
    blocked = blocked.reshape(matrices, columns, blocks, BLOCK)
    largest = _largest(blocked)
    scales = largest.max(axis=-1) / np.float32(most * _MULTIPLIER_MOST)
    steps = np.ceil(_divide(largest, np.float32(most) * scales[..., None]))
    empty = (largest == 0) | (scales[..., None] == 0)
    multipliers = np.where(empty, np.float32(0), np.clip(steps, 1, _MULTIPLIER_MOST))
    values = _round(blocked, (scales[..., None] * multipliers)[..., None], most)
    return _Blocks(values, multipliers, scales, depth)


def _divide(x: Float32, by: Float32) -> Float32:
    """x / by, and 0 where `by` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Float32 = np.where(by == 0, np.float32(0), x / by)
    return result


def _round(weights: Float32, steps: Float32, most: int) -> Float32:
    """Whole numbers of steps, from -most to most; 0 where a step is 0."""
    values = _divide(weights, steps)
    np.rint(values, out=values)
    # Beyond `most` only where a step is so small that rounding it changed it much.
    return np.clip(values, -most, most, out=values)


def _padded_scales(scales: Float32, shapes: PackedShapes) -> Float32:
    padded = np.zeros(shapes.scales, np.float32)
    padded[:, : scales.shape[1]] = scales
    return padded
