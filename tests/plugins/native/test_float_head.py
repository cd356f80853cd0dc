"""The head with float weights: products summed in a fixed order, sorted, and their exponentials."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ParallelFor
from tests.plugins.native import arithmetic
from tests.plugins.native.arithmetic import Float32, largest, normalizers, same_bits
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.native.weights import draw

pytestmark = needs_library


def spread(*shape: int, seed: int) -> Float32:
    """Numbers of very different size, so that every order of addition rounds in its own way."""
    random = np.random.default_rng([seed, *shape])
    size = np.float32(2) ** random.integers(-12, 12, shape)
    return np.asarray(random.standard_normal(shape) * size, np.float32)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(0, 20),
    columns=st.integers(1, 300),
    depth=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_every_instruction_set_computes_the_documented_bits(
    data: st.DataObject, rows: int, columns: int, depth: int, seed: int
) -> None:
    k = data.draw(st.integers(0, columns))
    # Few different columns, so that logits tie to the last bit.
    weight = spread(1 + columns // 3, depth, seed=seed)
    weight = weight[np.random.default_rng(seed).integers(0, len(weight), columns)]
    bias = draw(columns, seed=seed) if data.draw(st.booleans()) else None
    factor = data.draw(st.sampled_from([1.0, 0.04419417, 1e-4]))
    x = spread(rows, depth, seed=seed + 1)
    logits = arithmetic.float_head(x, weight, bias, factor=factor)
    expected, places = largest(logits, k)
    for isa, native in all_kernels().items():
        found = native.float_head(x, weight, k, bias, factor=factor, logits=True)
        assert found.logits is not None
        assert same_bits(found.logits, logits), isa
        assert same_bits(found.values, expected), isa
        assert np.array_equal(found.ids, places), isa
        assert same_bits(found.normalisers, normalizers(logits)), isa
        alone = native.float_head(x, weight, k, bias, factor=factor)
        assert alone.logits is None
        assert same_bits(alone.values, expected), isa
        assert np.array_equal(alone.ids, places), isa
        assert same_bits(alone.normalisers, found.normalisers), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run", [None, backwards, on_threads])
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("k", [0, 1, 7, 2100])
def test_threads_and_their_order_change_nothing(
    isa: str, run: ParallelFor | None, rows: int, k: int
) -> None:
    # Every logit stands in 42 columns, so that tasks have the same candidates.
    weight, x = np.tile(draw(50, 260), (42, 1)), draw(rows, 260, seed=1)
    found = kernels(isa, run).float_head(x, weight, k, logits=True)
    alone = kernels(isa).float_head(x, weight, logits=True)
    assert found.logits is not None
    assert alone.logits is not None
    assert same_bits(found.logits, alone.logits)
    expected, places = largest(alone.logits, k)
    assert same_bits(found.values, expected)
    assert np.array_equal(found.ids, places)
    assert same_bits(found.normalisers, normalizers(alone.logits))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("depth", [96, 100, 600, 1200])
def test_a_row_does_not_depend_on_its_batch(isa: str, depth: int) -> None:
    native, weight, x = kernels(isa), draw(301, depth), draw(33, depth, seed=1)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 33):
        together = native.float_head(x[:rows], weight, 4, logits=True)
        assert together.logits is not None
        for row in range(rows):
            alone = native.float_head(x[row : row + 1], weight, 4, logits=True)
            assert alone.logits is not None
            assert same_bits(alone.logits[0], together.logits[row])
            assert same_bits(alone.values[0], together.values[row])
            assert np.array_equal(alone.ids[0], together.ids[row])
            assert same_bits(alone.normalisers, together.normalisers[row : row + 1])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_logits_are_the_products(isa: str) -> None:
    weight, bias, x = draw(3000, 517), draw(3000), draw(9, 517, seed=1)
    found = kernels(isa).float_head(x, weight, 0, bias, factor=0.125, logits=True)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) * 0.125 + bias
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, exact, rtol=2e-6, atol=2e-6)
    top = exact.max(axis=1)
    normalisers = top + np.log(np.exp(exact - top[:, None]).sum(axis=1))
    np.testing.assert_allclose(found.normalisers, normalisers, rtol=1e-6)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_row_with_nan_gives_nan_and_touches_no_other(isa: str, rows: int) -> None:
    native, weight, x = kernels(isa), draw(2100, 260), draw(rows, 260, seed=1)
    expected = native.float_head(x, weight, 4)
    x[rows // 2, 259] = np.nan
    found = native.float_head(x, weight, 4)
    assert np.isnan(found.values[rows // 2]).all()
    assert found.ids[rows // 2].tolist() == [0, 1, 2, 3]
    assert np.isnan(found.normalisers[rows // 2])
    others = [row for row in range(rows) if row != rows // 2]
    assert same_bits(found.values[others], expected.values[others])
    assert same_bits(found.normalisers[others], expected.normalisers[others])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("depth", [5, 16, 37])
def test_infinity_goes_where_arithmetic_takes_it(isa: str, depth: int) -> None:
    weight, x = np.abs(draw(300, depth)) + 1, draw(3, depth, seed=1)
    weight[7, 0], weight[9] = 0, -weight[9]
    x[1, 0] = np.inf
    found = kernels(isa).float_head(x, weight, 300, logits=True)
    assert found.logits is not None
    assert np.isnan(found.logits[1, 7])
    assert found.logits[1, 9] == -np.inf
    assert (np.delete(found.logits[1], [7, 9]) == np.inf).all()
    assert found.ids[1].tolist() == [*(i for i in range(300) if i not in (7, 9)), 9, 7]
    assert np.isfinite(found.logits[[0, 2]]).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("places", [slice(None), slice(7, 8), slice(130, 290)])
def test_logits_that_are_not_finite_are_ranked_and_summed_as_such(
    isa: str, value: float, places: slice
) -> None:
    native, weight, x = kernels(isa), draw(300, 8), draw(3, 8, seed=1)
    bias = np.zeros(300, np.float32)
    bias[places] = value
    found = native.float_head(x, weight, 300, bias, logits=True)
    assert found.logits is not None
    expected, order = largest(found.logits, 300)
    assert same_bits(found.values, expected)
    assert np.array_equal(found.ids, order)
    assert same_bits(found.normalisers, normalizers(found.logits))


def test_k_must_be_within_the_columns() -> None:
    for k in (-1, 6):
        with pytest.raises(NativeLibraryError, match=r"k must be in \[0, 5\]"):
            Kernels().float_head(draw(2, 7), draw(5, 7), k)


def test_arrays_must_fit() -> None:
    native = Kernels()
    with pytest.raises(NativeLibraryError, match=r"x must be \(2, 7\), got \(2, 6\)"):
        native.float_head(draw(2, 6), draw(5, 7))
    with pytest.raises(NativeLibraryError, match=r"bias must be \(5,\), got \(4,\)"):
        native.float_head(draw(2, 7), draw(5, 7), bias=draw(4))
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        native.float_head(draw(2, 0), draw(5, 0))
