"""The int8 linear: the same bits for every instruction set, batch and number of threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ACTIVATIONS, ParallelFor
from drl.plugins.ops.activations import activate
from tests.plugins.native import arithmetic
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

SHAPES = [
    # M, N, K: tiles of 12, 4 and 1 rows, panels of 32 columns, quads of 4, chunks of 64
    (1, 1, 1),
    (1, 32, 4),
    (2, 33, 5),
    (3, 31, 63),
    (4, 64, 64),
    (5, 65, 65),
    (12, 96, 128),
    (13, 40, 130),
    (25, 7, 257),
    (130, 100, 36),
    (7, 512, 2048),
]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Float32:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape) * scale
    return values.astype(np.float32)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_a_linear_is_the_integer_product_times_the_scales(
    isa: str, shape: tuple[int, int, int], biased: bool
) -> None:
    rows, columns, depth = shape
    native = kernels(isa)
    packed = native.pack(draw(columns, depth))
    (weights,), (scales,) = native.unpack(packed)
    x, bias = draw(rows, depth, seed=1), draw(columns, seed=2) if biased else None
    expected = arithmetic.linear(x, weights, scales, bias)
    assert same_bits(native.linear(x, packed, bias), expected)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 130),
    depth=st.integers(1, 300),
    exponent=st.integers(-40, 30),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_instruction_set_computes_the_same_bits(
    rows: int, columns: int, depth: int, exponent: int, activation: str, biased: bool, seed: int
) -> None:
    found = all_kernels()
    scalar = found.pop("scalar")
    packed = scalar.pack(draw(columns, depth, seed=seed))
    x = draw(rows, depth, seed=seed, scale=10.0**exponent)
    bias = draw(columns, seed=seed) if biased else None
    expected = scalar.linear(x, packed, bias, activation)
    if activation == "none":
        (weights,), (scales,) = scalar.unpack(packed)
        assert same_bits(expected, arithmetic.linear(x, weights, scales, bias))
    for isa, native in found.items():
        assert same_bits(native.linear(x, packed, bias, activation), expected), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_row_does_not_depend_on_its_batch(isa: str) -> None:
    native = kernels(isa)
    packed = native.pack(draw(70, 100))
    x = draw(40, 100, seed=1)
    alone = [native.linear(row[None], packed)[0] for row in x]
    for rows in (*range(1, 27), 40):
        together = native.linear(x[:rows], packed)
        assert all(same_bits(a, b) for a, b in zip(alone, together, strict=False)), rows


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run", [backwards, on_threads])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_threads_and_their_order_change_nothing(isa: str, run: ParallelFor, rows: int) -> None:
    serial, parallel = kernels(isa), kernels(isa, run)
    packed = serial.pack(draw(2100, 260))
    x = draw(rows, 260, seed=1)
    expected = serial.linear(x, packed, activation="gelu")
    assert same_bits(parallel.linear(x, packed, activation="gelu"), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_are_those_of_the_operators(isa: str, activation: str) -> None:
    native = kernels(isa)
    # The identity times 127: what goes in comes out, to within the quantisation of one row.
    packed = native.pack_int8(np.array([[127]], np.int8), np.ones(1, np.float32) / 127)
    x = np.concatenate([np.linspace(-30, 30, 2001), [0.0, -87.5, 88.5, -1e4, 1e4]])
    x = x.astype(np.float32)[:, None]
    got = native.linear(x, packed, activation=activation)
    plain = native.linear(x, packed)
    np.testing.assert_allclose(plain, x, rtol=3e-7)
    expected = plain if activation == "none" else activate(activation, plain)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
def test_a_row_that_is_not_finite_gives_nan_and_spoils_no_other(
    isa: str, activation: str, value: float, place: int
) -> None:
    native = kernels(isa)
    packed, bias = native.pack(draw(40, 70)), draw(40, seed=2)
    x = draw(15, 70, seed=1)
    expected = native.linear(x, packed, bias, activation)
    x[4, place] = value
    expected[4] = np.nan
    assert same_bits(native.linear(x, packed, bias, activation), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_rows_of_zeros_and_of_the_smallest_numbers_give_the_bias(isa: str) -> None:
    native = kernels(isa)
    packed, bias = native.pack(draw(40, 70)), draw(40, seed=2)
    x = np.zeros((3, 70), np.float32)
    x[1] = 1e-38
    x[2] = np.finfo(np.float32).smallest_subnormal
    assert same_bits(native.linear(x, packed), np.zeros((3, 40), np.float32))
    assert same_bits(native.linear(x, packed, bias), np.tile(bias, (3, 1)))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 3e37])
def test_huge_and_tiny_rows_keep_their_accuracy(isa: str, scale: float) -> None:
    native = kernels(isa)
    weights, x = draw(40, 70), draw(5, 70, seed=1)
    x *= np.float32(scale / np.abs(x).max())
    got = native.linear(x, native.pack(weights)).astype(np.float64)
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_largest_sums_do_not_overflow(isa: str) -> None:
    native = kernels(isa)
    depth = 131072
    packed = native.pack_int8(np.full((1, depth), -127, np.int8), np.ones(1, np.float32))
    y = native.linear(np.full((1, depth), 127, np.float32), packed)
    assert y.item() == np.float32(-127 * 127 * depth)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_rows_give_no_rows(isa: str) -> None:
    native = kernels(isa)
    assert native.linear(np.empty((0, 7), np.float32), native.pack(draw(5, 7))).shape == (0, 5)


def test_arrays_that_do_not_fit_are_refused() -> None:
    native = Kernels()
    packed = native.pack(draw(5, 7))
    with pytest.raises(NativeLibraryError, match=r"x must be \(2, 7\), got \(2, 8\)"):
        native.linear(draw(2, 8), packed)
    with pytest.raises(NativeLibraryError, match=r"bias must be \(5,\), got \(7,\)"):
        native.linear(draw(2, 7), packed, draw(7))
    with pytest.raises(NativeLibraryError, match="shapes of the packed weights"):
        native.linear(draw(2, 7), native.pack(draw(2, 5, 7)))
