"""Keys and values as rows of int8: by hand, how far they are off, and what is not finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops.state_rows import SCALE_BYTES, dequantize_states, quantize_states


def test_by_hand() -> None:
    """127 has the scale 1, and 381 the scale 3 = 2 · (1 + 128/256)."""
    rows = quantize_states(np.array([[127.0, -2.4, 0.5, 1.5], [381.0, -3.0, 4.4, 4.6]], np.float32))
    assert rows.dtype == np.int8
    assert rows[0].tolist() == [127, -2, 0, 2, 0, 127]
    assert rows[1].tolist() == [127, -1, 1, 2, 128 - 256, 128 - 256]
    np.testing.assert_array_equal(dequantize_states(rows), [[127, -2, 0, 2], [381, -3, 3, 6]])


def test_a_scale_is_rounded_up_so_that_no_value_leaves_its_range() -> None:
    """128 / 127 is 1 + 2.01/256: the mantissa is 3."""
    rows = quantize_states(np.array([[128.0, -128.0]], np.float32))
    assert rows.tolist() == [[127, -127, 3, 127]]
    assert np.abs(dequantize_states(rows)).max() == pytest.approx(127 * (1 + 3 / 256))


def test_bytes_of_zero_are_zeros() -> None:
    """As the memory of a cache is before anything is written."""
    assert not dequantize_states(np.zeros((2, 3, 8 + SCALE_BYTES), np.int8)).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(-30, 35))
def test_a_value_is_off_by_half_a_step_at_most(seed: int, width: int, exponent: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((2, 3, 5, width)) * 10.0**exponent).astype(np.float32)
    rows = quantize_states(x)
    assert rows.shape == (2, 3, 5, width + SCALE_BYTES)
    values = rows[..., :width].astype(int)
    assert np.abs(values).max() <= 127
    largest = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    # A scale has 8 bits of mantissa, so it is up to 1/256 larger than it must be.
    limit = largest / 127 / 2 * (1 + 1 / 256) * 1.00001
    assert (np.abs(dequantize_states(rows).astype(np.float64) - x) <= limit).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_on_the_grid_comes_back_as_it_was(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-127, 128, (7, 16))
    values[:, 3] = 127
    scales = 2.0 ** random.integers(-100, 100, (7, 1)) * (1 + random.integers(0, 256, (7, 1)) / 256)
    x = (values * scales).astype(np.float32)
    np.testing.assert_array_equal(dequantize_states(quantize_states(x)), x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(value: float) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    clean = quantize_states(x)
    x[1, 5] = value
    with np.errstate(invalid="ignore"):
        rows = quantize_states(x)
    assert np.isnan(dequantize_states(rows)[1]).all()
    np.testing.assert_array_equal(rows[[0, 2]], clean[[0, 2]])


def test_what_is_tiny_counts_as_zeros() -> None:
    least = np.float32(2.0**-119)
    x = np.array([[0, 0], [np.nextafter(least, np.float32(0)), 0], [least, 0]], np.float32)
    rows = quantize_states(x)
    assert not rows[:2].any()
    assert rows[2, 0] == 127
    np.testing.assert_allclose(dequantize_states(rows)[2, 0], least, rtol=0.004)
