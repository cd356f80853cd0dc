"""The k largest outputs of a linear: its own values, sorted, ties by column."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ParallelFor
from tests.plugins.native.arithmetic import Float32, same_bits
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)

pytestmark = needs_library


def largest(y: Float32, k: int) -> tuple[Float32, NDArray[np.int32]]:
    order = np.argsort(np.where(np.isnan(y), np.inf, -y), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(y, order, axis=1), order.astype(np.int32)


def draw(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rows=st.integers(0, 30), columns=st.integers(1, 300))
def test_they_are_the_largest_of_the_linear(data: st.DataObject, rows: int, columns: int) -> None:
    k = data.draw(st.integers(1, columns))
    seed = data.draw(st.integers(0, 1000))
    # Few different weights, so that outputs tie to the last bit.
    weights = np.random.default_rng(seed).integers(-1, 2, (columns, 3)).astype(np.int8)
    bias = draw(columns, seed=seed) if data.draw(st.booleans()) else None
    x = draw(rows, 3, seed=seed)
    for isa, native in all_kernels().items():
        packed = native.pack_int8(weights, np.ones(columns, np.float32))
        values, ids = native.top_k(x, packed, k, bias)
        expected, places = largest(native.linear(x, packed, bias), k)
        assert same_bits(values, expected), isa
        assert np.array_equal(ids, places), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run", [None, backwards, on_threads])
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("k", [1, 7, 2100])
def test_threads_and_their_order_change_nothing(
    isa: str, run: ParallelFor | None, rows: int, k: int
) -> None:
    native = kernels(isa, run)
    packed, x = native.pack(draw(2100, 260)), draw(rows, 260, seed=1)
    values, ids = native.top_k(x, packed, k)
    expected, places = largest(native.linear(x, packed), k)
    assert same_bits(values, expected)
    assert np.array_equal(ids, places)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_row_that_is_not_finite_gives_nan_and_the_first_columns(isa: str) -> None:
    native = kernels(isa)
    packed, x = native.pack(draw(2100, 260)), draw(3, 260, seed=1)
    x[1, 5] = np.inf
    values, ids = native.top_k(x, packed, 4)
    assert np.isnan(values[1]).all()
    assert ids[1].tolist() == [0, 1, 2, 3]
    assert np.isfinite(values[[0, 2]]).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_bias_of_minus_infinity_bars_a_column(isa: str) -> None:
    native = kernels(isa)
    packed, x = native.pack(draw(40, 8)), draw(3, 8, seed=1)
    bias = np.where(np.arange(40) % 2, 0, -np.inf).astype(np.float32)
    values, ids = native.top_k(x, packed, 20, bias)
    assert np.isfinite(values).all()
    assert (ids % 2 == 1).all()


@pytest.mark.parametrize("k", [0, 6])
def test_k_must_be_within_the_columns(k: int) -> None:
    with pytest.raises(NativeLibraryError, match=r"k must be in \[1, 5\]"):
        Kernels().top_k(draw(2, 7), Kernels().pack(draw(5, 7)), k)
