"""The reference of the head with float weights, by hand and against plain arithmetic in fp64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops import HEAD
from tests.plugins.ops.case import Array, Maker


def head(x: Array, inputs: dict[str, Array], count: int, factor: float = 0.25) -> tuple[Array, ...]:
    result: tuple[Array, ...] = HEAD.reference(
        x, **inputs, candidates=np.array([count]), factor=factor
    )
    return result


def test_head_by_hand() -> None:
    """Logits 2·(1·3 + 2·1) − 1, 2·(−3) + 2 and 0 + 9; the last two change places by the bias."""
    x = np.array([[[1.0, 2.0]]], np.float32)
    weight = np.array([[3, 1], [1, -2], [0, 0]], np.float32)
    bias = np.array([-1, 2, 9], np.float32)
    logits, values, ids, normalisers = head(x, {"weight": weight, "bias": bias}, 0, 2.0)
    np.testing.assert_array_equal(logits, [[[9, -4, 9]]])
    assert (values.shape, ids.shape) == ((1, 1, 0), (1, 1, 0))
    np.testing.assert_allclose(normalisers, [[9 + np.log(2 + np.exp(-13))]], rtol=1e-6)
    logits, values, ids, same = head(x, {"weight": weight, "bias": bias}, 2, 2.0)
    assert logits.shape == (1, 1, 0)
    np.testing.assert_array_equal(values, [[[9, 9]]])
    np.testing.assert_array_equal(ids, [[[0, 2]]])
    np.testing.assert_array_equal(same, normalisers)
    assert (ids.dtype, values.dtype, same.dtype) == (np.int32, np.float32, np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_head_ranks_the_products(seed: int, columns: int) -> None:
    make = Maker(str(seed), "fp32")
    # Whole numbers: products are exact and tie often.
    x, weight = np.round(make.f32(2, 3, 20)), np.round(make.f32(columns, 20))
    exact = 0.25 * x.astype(np.float64) @ weight.T.astype(np.float64)
    logits, *_, normalisers = head(x, {"weight": weight}, 0)
    np.testing.assert_array_equal(logits, exact)
    np.testing.assert_allclose(normalisers, np.log(np.exp(exact).sum(axis=-1)), rtol=1e-6)
    count = int(make.random.integers(1, columns + 1))
    _, values, ids, _ = head(x, {"weight": weight}, count)
    for place in np.ndindex(2, 3):
        row = exact[place]
        ranked = sorted(range(columns), key=lambda i: (-row[i], i))[:count]
        np.testing.assert_array_equal(ids[place], ranked)
        np.testing.assert_array_equal(values[place], row[ranked])


def test_head_puts_nan_below_every_number() -> None:
    bias = np.array([0, np.nan, -np.inf, 2, np.nan], np.float32)
    inputs = {"weight": np.zeros((5, 4), np.float32), "bias": bias}
    _, values, ids, normalisers = head(np.ones((1, 1, 4), np.float32), inputs, 5)
    np.testing.assert_array_equal(ids, [[[3, 0, 2, 1, 4]]])
    np.testing.assert_array_equal(values, [[[2, 0, -np.inf, np.nan, np.nan]]])
    assert np.isnan(normalisers).all()
