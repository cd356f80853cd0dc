"""The language model's head: a linear's values, sorted, and the logarithm of their exponentials."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ParallelFor, RmsNorm
from drl.plugins.ops.packing import Format
from tests.plugins.native import arithmetic
from tests.plugins.native.arithmetic import largest, normalizers, same_bits
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.native.weights import FORMATS, PACK, draw, filled

pytestmark = needs_library


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(0, 30),
    columns=st.integers(1, 400),
    depth=st.integers(1, 70),
    format=st.sampled_from(FORMATS),
    seed=st.integers(0, 1000),
)
def test_every_instruction_set_computes_the_documented_bits(
    data: st.DataObject, rows: int, columns: int, depth: int, format: Format, seed: int
) -> None:
    k = data.draw(st.integers(0, columns))
    # Few different weights, so that logits tie to the last bit.
    steps = np.random.default_rng(seed).integers(-1, 2, (columns, depth)).astype(np.float32)
    weights = PACK[format](steps)
    bias = draw(columns, seed=seed) if data.draw(st.booleans()) else None
    norm = RmsNorm(draw(depth, seed=seed)) if data.draw(st.booleans()) else None
    factor = data.draw(st.sampled_from([1.0, 0.04419417, 30.0]))
    x = draw(rows, depth, seed=seed)
    logits = arithmetic.linear(x, weights, bias, norm=norm, factor=factor)
    expected, places = largest(logits, k)
    for isa, native in all_kernels().items():
        found = native.head(x, weights, k, bias, factor=factor, norm=norm, logits=True)
        assert found.logits is not None
        assert same_bits(found.logits, logits), isa
        assert same_bits(found.values, expected), isa
        assert np.array_equal(found.ids, places), isa
        assert same_bits(found.normalisers, normalizers(logits)), isa
        alone = native.head(x, weights, k, bias, factor=factor, norm=norm)
        assert alone.logits is None
        assert same_bits(alone.values, expected), isa
        assert np.array_equal(alone.ids, places), isa
        assert same_bits(alone.normalisers, found.normalisers), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("run", [None, backwards, on_threads])
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("k", [0, 1, 7, 2100])
def test_threads_and_their_order_change_nothing(
    isa: str, format: Format, run: ParallelFor | None, rows: int, k: int
) -> None:
    # Every logit stands in 42 columns, so that tasks have the same candidates.
    weights, x = PACK[format](np.tile(draw(50, 260), (42, 1))), draw(rows, 260, seed=1)
    found, logits = kernels(isa, run).head(x, weights, k), kernels(isa).linear(x, weights)
    expected, places = largest(logits, k)
    assert same_bits(found.values, expected)
    assert np.array_equal(found.ids, places)
    assert same_bits(found.normalisers, normalizers(logits))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_batch(isa: str, format: Format) -> None:
    native, weights, x = kernels(isa), filled(format, 1, 300, 100), draw(40, 100, seed=1)
    together = native.head(x, weights, 4, logits=True)
    assert together.logits is not None
    for row in range(40):
        alone = native.head(x[row : row + 1], weights, 4, logits=True)
        assert alone.logits is not None
        assert same_bits(alone.logits[0], together.logits[row])
        assert same_bits(alone.values[0], together.values[row])
        assert np.array_equal(alone.ids[0], together.ids[row])
        assert same_bits(alone.normalisers, together.normalisers[row : row + 1])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_normalisers_are_the_logarithm_of_the_sum_of_exponentials(isa: str, scale: float) -> None:
    weights, x = PACK["int8"](draw(5000, 64) * np.float32(scale)), draw(6, 64, seed=1)
    found = kernels(isa).head(x, weights, logits=True)
    assert found.logits is not None
    logits = found.logits.astype(np.float64)
    top = logits.max(axis=1)
    exact = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    np.testing.assert_allclose(found.normalisers, exact, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_gives_nan_and_the_first_columns(isa: str, value: float) -> None:
    native, weights, x = kernels(isa), filled("int8", 1, 2100, 260), draw(3, 260, seed=1)
    expected = native.head(x, weights, 4)
    x[1, 5] = value
    found = native.head(x, weights, 4)
    assert np.isnan(found.values[1]).all()
    assert found.ids[1].tolist() == [0, 1, 2, 3]
    assert np.isnan(found.normalisers[1])
    for row in (0, 2):
        assert same_bits(found.values[row], expected.values[row])
        assert found.normalisers[row] == expected.normalisers[row]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_bias_of_minus_infinity_bars_a_column(isa: str) -> None:
    native, weights, x = kernels(isa), filled("int8", 1, 400, 8), draw(3, 8, seed=1)
    bias = np.where(np.arange(400) % 2, 0, -np.inf).astype(np.float32)
    bias[128:256] = -np.inf  # all columns of a chunk
    found = native.head(x, weights, 100, bias, logits=True)
    assert found.logits is not None
    assert np.isfinite(found.values).all()
    assert (found.ids % 2 == 1).all()
    assert same_bits(found.normalisers, normalizers(found.logits))
    assert np.isfinite(found.normalisers).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("places", [slice(None), slice(7, 8), slice(130, 290)])
def test_logits_that_are_not_finite_are_ranked_and_summed_as_such(
    isa: str, value: float, places: slice
) -> None:
    native, weights, x = kernels(isa), filled("int8", 1, 300, 8), draw(3, 8, seed=1)
    bias = np.zeros(300, np.float32)
    bias[places] = value
    found = native.head(x, weights, 300, bias, logits=True)
    assert found.logits is not None
    expected, order = largest(found.logits, 300)
    assert same_bits(found.values, expected)
    assert np.array_equal(found.ids, order)
    assert same_bits(found.normalisers, normalizers(found.logits))


@pytest.mark.parametrize("k", [-1, 6])
def test_k_must_be_within_the_columns(k: int) -> None:
    with pytest.raises(NativeLibraryError, match=r"k must be in \[0, 5\]"):
        Kernels().head(draw(2, 7), filled("int8", 1, 5, 7), k)


def test_weights_of_several_matrices_are_refused() -> None:
    with pytest.raises(NativeLibraryError, match="do not fit each other"):
        Kernels().head(draw(2, 7), filled("int8", 2, 5, 7))
