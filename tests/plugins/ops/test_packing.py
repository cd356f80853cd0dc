"""Packed weights: where every value lies, how far it is from the weight, and what is refused."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops.packing import (
    BLOCK,
    PackedWeights,
    pack_int4,
    pack_int8,
    pack_int8_block,
    packed_shapes,
    quantize_rows,
    unpack,
    unpack_multipliers,
    unpack_values,
)
from tests.plugins.ops.case import Array

PACK = {"int8": pack_int8, "int4": pack_int4, "int8-block": pack_int8_block}
BLOCKED = {"int4": 7, "int8-block": 127}  # the largest values of formats with multipliers
SIZES = [(1, 1, 1), (1, 32, 32), (2, 33, 31), (3, 5, 100), (1, 70, 4), (2, 31, 65)]

formats = pytest.mark.parametrize("format", PACK)
blocked = pytest.mark.parametrize("format", BLOCKED)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
random_sizes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70))
seeds = st.integers(0, 2**32 - 1)


def draw(*shape: int) -> Array:
    """Weights whose columns and blocks differ widely in size, some being zero."""
    random = np.random.default_rng(list(shape))
    weights = random.standard_normal(shape)
    weights *= 10.0 ** random.integers(-6, 3, (*shape[:-1], 1))
    weights *= 10.0 ** random.integers(-3, 1, shape[-1])
    weights[random.random(shape[:-1]) < 0.1] = 0
    return weights.astype(np.float32)


def stored_value(packed: PackedWeights, matrix: int, column: int, k: int) -> int:
    """A value where the layout says that it lies."""
    panel, c = divmod(column, 32)
    if packed.multipliers is None:
        return int(packed.values[matrix][panel][k // 4][c][k % 4]) - 128
    block, within = divmod(k, 32)
    if packed.format == "int8-block":
        return int(packed.values[matrix][panel][block][within // 4][c][within % 4]) - 128
    high, place = divmod(within, 16)
    byte = int(packed.values[matrix][panel][block][place // 4][c][place % 4])
    return (byte >> 4 if high else byte & 15) - 8


def step(packed: PackedWeights, matrix: int, column: int, k: int) -> float:
    """What one unit of a value is worth."""
    panel, c = divmod(column, 32)
    scale = float(packed.scales[matrix][column])
    if packed.multipliers is None:
        return scale
    return int(packed.multipliers[matrix][panel][k // 32][c]) * scale


@formats
@sizes
def test_every_value_lies_where_the_layout_says(format: str, size: tuple[int, int, int]) -> None:
    packed = PACK[format](draw(*size))
    assert (packed.format, packed.matrices, packed.columns, packed.depth) == (format, *size)
    values, weights = unpack_values(packed), unpack(packed)
    assert (values.shape, values.dtype) == (size, np.int8)
    assert (weights.shape, weights.dtype) == (size, np.float32)
    for place in np.ndindex(size):
        stored = stored_value(packed, *place)
        assert values[place] == stored
        assert weights[place] == pytest.approx(stored * step(packed, *place), rel=1e-6)


@formats
@sizes
def test_padding_is_zero(format: str, size: tuple[int, int, int]) -> None:
    packed = PACK[format](draw(*size))
    whole = PackedWeights(
        packed.values,
        packed.scales,
        packed.multipliers,
        packed.matrices,
        columns=packed.scales.shape[1],
        depth=packed.values.shape[2] * (4 if format == "int8" else 32),
    )
    values = unpack_values(whole).copy()
    values[:, : packed.columns, : packed.depth] = 0
    assert not values.any()
    assert not whole.scales[:, packed.columns :].any()
    if whole.multipliers is not None:
        assert not unpack_multipliers(whole)[:, packed.columns :].any()


@formats
@sizes
def test_shapes_are_known_without_values(format: Any, size: tuple[int, int, int]) -> None:
    packed, shapes = PACK[format](draw(*size)), packed_shapes(format, *size)
    assert (packed.values.shape, packed.scales.shape) == (shapes.values, shapes.scales)
    multipliers = None if packed.multipliers is None else packed.multipliers.shape
    assert multipliers == shapes.multipliers
    arrays = [a for a in (packed.values, packed.scales, packed.multipliers) if a is not None]
    assert packed.nbytes == sum(array.nbytes for array in arrays)
    assert all(array.flags.c_contiguous for array in arrays)


def test_one_matrix_needs_no_leading_dimension() -> None:
    weights = draw(40, 33)
    for pack in PACK.values():
        one, stacked = pack(weights), pack(weights[None])
        assert one.matrices == 1
        np.testing.assert_array_equal(one.values, stacked.values)
        np.testing.assert_array_equal(one.scales, stacked.scales)


@settings(max_examples=50, deadline=None)
@given(random_sizes, seeds)
def test_int8_is_off_by_half_a_step_at_most(size: tuple[int, int, int], seed: int) -> None:
    weights = draw(*size) * np.float32(np.random.default_rng(seed).uniform(0.1, 10))
    packed = pack_int8(weights)
    scales = packed.scales[:, : size[1], None]
    np.testing.assert_allclose(scales[..., 0] * 127, np.abs(weights).max(axis=-1), rtol=1e-6)
    assert (np.abs(unpack(packed) - weights) <= scales * np.float32(0.50002)).all()


@blocked
@settings(max_examples=50, deadline=None)
@given(size=random_sizes, seed=seeds)
def test_blocks_are_off_by_half_a_step_at_most(
    format: str, size: tuple[int, int, int], seed: int
) -> None:
    weights = draw(*size) * np.float32(np.random.default_rng(seed).uniform(0.1, 10))
    packed, most = PACK[format](weights), BLOCKED[format]
    padded = np.zeros((*size[:2], -(-size[2] // BLOCK) * BLOCK), np.float32)
    padded[..., : size[2]] = np.abs(weights)
    largest = padded.reshape(*size[:2], -1, BLOCK).max(axis=-1)
    multipliers = unpack_multipliers(packed)
    scales = packed.scales[:, : size[1], None]
    # A step reaches a 7th or 127th of its block's largest magnitude, with less than one scale to
    # spare.
    steps = multipliers * scales
    assert (steps >= largest / most * np.float32(0.99999)).all()
    assert (steps <= largest / most + scales * np.float32(1.001)).all()
    np.testing.assert_array_equal(multipliers == 0, largest == 0)
    error = np.abs(unpack(packed) - weights)
    assert (error <= np.repeat(steps, BLOCK, axis=-1)[..., : size[2]] * np.float32(0.50002)).all()


@settings(max_examples=30, deadline=None)
@given(random_sizes, seeds)
def test_what_is_on_the_grid_comes_back_as_it_was(size: tuple[int, int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = 2.0 ** random.integers(-20, 20, (*size[:2], 1))
    values = random.integers(-127, 128, size)
    values[..., 0] = 127
    weights = (values * scales).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack_int8(weights)), weights)
    blocks = -(-size[2] // BLOCK)
    multipliers = random.integers(1, 256, (*size[:2], blocks))
    multipliers[..., 0] = 255
    steps = np.repeat(multipliers, BLOCK, axis=-1)[..., : size[2]]
    for format, most in BLOCKED.items():
        values = random.integers(-most, most + 1, size)
        values[..., ::BLOCK] = most
        weights = (values * steps * scales).astype(np.float32)
        np.testing.assert_array_equal(unpack(PACK[format](weights)), weights)


def test_packing_by_hand() -> None:
    """Scale 0.5 in int8; scale 1 in the others, with multipliers 255 and 2."""
    int8 = pack_int8(np.array([[63.5, -63.5, 0.3, 0.2, -1.0]], np.float32))
    assert int8.scales[0, 0] == 0.5
    assert unpack_values(int8)[0, 0].tolist() == [127, -127, 1, 0, -2]
    row = np.zeros((1, 64), np.float32)
    row[0, :3], row[0, 32:35] = (1785, -255, 100), (14, -7, 2)
    int4 = pack_int4(row)
    assert int4.scales[0, 0] == 1
    assert unpack_multipliers(int4)[0, 0].tolist() == [255, 2]
    assert unpack_values(int4)[0, 0, [0, 1, 2, 32, 33, 34]].tolist() == [7, -1, 0, 7, -4, 1]
    row[0, :3], row[0, 32:35] = (32385, -255, 100), (254, -7, 3)
    blocks = pack_int8_block(row)
    assert blocks.scales[0, 0] == 1
    assert unpack_multipliers(blocks)[0, 0].tolist() == [255, 2]
    assert unpack_values(blocks)[0, 0, [0, 1, 2, 32, 33, 34]].tolist() == [127, -1, 0, 127, -4, 2]


@pytest.mark.parametrize(
    ("format", "peak", "most"),
    [("int8", 180, 127), ("int4", 2520, 7), ("int8-block", 45720, 127)],
)
def test_columns_of_zeros_and_of_the_smallest_numbers(format: str, peak: int, most: int) -> None:
    """Steps that float32 can hardly hold, 1.4 of its smallest number, overflow no value."""
    tiny = np.float32(1e-45)
    weights = np.array([[0.0, 0.0], [tiny, tiny], [tiny * peak, -tiny * peak]], np.float32)
    packed = PACK[format](weights)
    assert not unpack(packed)[0, :2].any()
    assert packed.scales[0, 2] == tiny
    np.testing.assert_array_equal(unpack_values(packed)[0], [[0, 0], [0, 0], [most, -most]])


@formats
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=str)
def test_every_float_type_packs_as_float32_does(format: str, dtype: Any) -> None:
    weights = draw(2, 40, 50).clip(-100, 100).astype(dtype)
    packed, expected = PACK[format](weights), PACK[format](weights.astype(np.float32))
    np.testing.assert_array_equal(packed.values, expected.values)
    np.testing.assert_array_equal(packed.scales, expected.scales)


@formats
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(format: str, value: float) -> None:
    weights = draw(2, 5, 40).astype(np.float64)
    weights[1, 3, 33] = value
    with pytest.raises(ValueError, match="NaN or infinity, first in matrix 1, column 3; repair"):
        PACK[format](weights)


@formats
@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (0, 2, 2), (1, 2, 3, 4)], ids=str)
def test_other_ranks_and_nothing_at_all_are_refused(format: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[N, K\] or \[M, N, K\] and not empty"):
        PACK[format](np.zeros(shape, np.float32))


@formats
def test_weights_stay_as_they_are(format: str) -> None:
    weights = draw(2, 33, 40)
    before = weights.copy()
    PACK[format](weights)
    np.testing.assert_array_equal(weights, before)


def test_rows_are_rounded_to_the_nearest_and_ties_to_even() -> None:
    values, scales = quantize_rows(np.array([[254.0, 1.0, 3.0, -5.0, -254.0, 100.9]], np.float32))
    assert scales.tolist() == [2.0]
    assert values.tolist() == [[127, 0, 2, -2, -127, 50]]
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)


def test_rows_that_are_tiny_count_as_zeros_and_odd_ones_have_no_scale() -> None:
    rows = np.zeros((6, 4), np.float32)
    rows[1], rows[2, 1] = 2.0**-119, np.nextafter(np.float32(2.0**-119), np.float32(0))
    rows[3, 2], rows[4, 0], rows[5, 3] = np.nan, np.inf, -np.inf
    values, scales = quantize_rows(rows)
    np.testing.assert_array_equal(scales[[0, 2]], 0)
    assert scales[1] == np.float32(2.0**-119) / np.float32(127)
    assert np.isnan(scales[3:]).all()
    assert (values[1] == 127).all()
    assert not values[[0, 2, 3, 4, 5]].any()


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 90))
def test_rounded_rows_are_off_by_half_a_step_at_most(seed: int, depth: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 2, depth)).astype(np.float32)
    values, scales = quantize_rows(x)
    assert scales.shape == (3, 2)
    assert (np.abs(values).max(axis=-1) == 127).all()
    error = np.abs(values * scales[..., None] - x)
    assert (error <= scales[..., None] * np.float32(0.50002)).all()
