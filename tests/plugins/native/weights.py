"""Weights and activations for the kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl.plugins.ops.packing import (
    Format,
    PackedWeights,
    pack_int4,
    pack_int8,
    pack_int8_block,
    packed_shapes,
)
from tests.plugins.native.arithmetic import Float32

FORMATS: tuple[Format, ...] = ("int8", "int4", "int8-block")
PACK: dict[str, Callable[[NDArray[Any]], PackedWeights]] = {
    "int8": pack_int8,
    "int4": pack_int4,
    "int8-block": pack_int8_block,
}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Float32:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape) * scale
    return values.astype(np.float32)


def filled(format: Format, matrices: int, columns: int, depth: int, seed: int = 0) -> PackedWeights:
    """Weights of all values there are, the extremes among them, and noise where padding lies."""
    random = np.random.default_rng([seed, matrices, columns, depth])
    shapes = packed_shapes(format, matrices, columns, depth)
    values = random.integers(1, 256, shapes.values, np.uint8)
    values[random.random(shapes.values) < 0.1] = 255
    multipliers = None
    if shapes.multipliers is not None:
        multipliers = random.integers(0, 256, shapes.multipliers, np.uint8)
        multipliers[random.random(shapes.multipliers) < 0.2] = 255
    scales = (random.random(shapes.scales, np.float32) + np.float32(0.5)) * np.float32(0.01)
    return PackedWeights(values, scales, multipliers, matrices, columns, depth)


def matrix_of(weights: PackedWeights, index: int) -> PackedWeights:
    """One of several matrices."""
    own = slice(index, index + 1)
    multipliers = None if weights.multipliers is None else weights.multipliers[own]
    return PackedWeights(
        weights.values[own], weights.scales[own], multipliers, 1, weights.columns, weights.depth
    )
