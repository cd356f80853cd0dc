"""The linear: the same bits for every instruction set, batch and number of threads."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ACTIVATIONS, ParallelFor, RmsNorm
from drl.plugins.ops.activations import activate
from drl.plugins.ops.packing import Format, PackedWeights, unpack
from tests.plugins.native import arithmetic
from tests.plugins.native.arithmetic import same_bits
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

SHAPES = [
    # M, N, K: tiles of 12, 4 and 1 rows, panels of 32 columns, quads of 4, blocks of 32
    (1, 1, 1),
    (1, 32, 4),
    (2, 33, 5),
    (3, 31, 63),
    (4, 64, 64),
    (5, 65, 65),
    (6, 30, 31),
    (7, 34, 33),
    (12, 96, 128),
    (13, 40, 130),
    (25, 7, 257),
    (130, 100, 36),
    (7, 512, 2048),
]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("matrices", [1, 2], ids=["plain", "gated"])
@pytest.mark.parametrize("dressed", [False, True], ids=["bare", "dressed"])
def test_a_linear_is_the_integer_product_times_the_scales(
    isa: str, format: Format, shape: tuple[int, int, int], matrices: int, dressed: bool
) -> None:
    rows, columns, depth = shape
    weights = filled(format, matrices, columns, depth)
    x, norm, bias, residual = draw(rows, depth, seed=1), None, None, None
    if dressed:
        norm = RmsNorm(draw(depth, seed=4), 1e-5)
        bias = draw(*([2] if matrices == 2 else []), columns, seed=2)
        residual = draw(rows, columns, seed=3)
    expected = arithmetic.linear(x, weights, bias, norm=norm, residual=residual)
    got = kernels(isa).linear(x, weights, bias, norm=norm, residual=residual)
    assert same_bits(got, expected)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 130),
    depth=st.integers(1, 300),
    exponent=st.integers(-40, 30),
    format=st.sampled_from(FORMATS),
    matrices=st.integers(1, 2),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    biased=st.booleans(),
    normed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_instruction_set_computes_the_same_bits(
    rows: int,
    columns: int,
    depth: int,
    exponent: int,
    format: Format,
    matrices: int,
    activation: str,
    biased: bool,
    normed: bool,
    seed: int,
) -> None:
    found = all_kernels()
    weights = filled(format, matrices, columns, depth, seed)
    x = draw(rows, depth, seed=seed, scale=10.0**exponent)
    bias = draw(*([2] if matrices == 2 else []), columns, seed=seed) if biased else None
    norm = RmsNorm(draw(depth, seed=seed)) if normed else None
    expected = found.pop("scalar").linear(x, weights, bias, activation, norm=norm)
    if activation == "none":
        assert same_bits(expected, arithmetic.linear(x, weights, bias, norm=norm))
    for isa, native in found.items():
        assert same_bits(native.linear(x, weights, bias, activation, norm=norm), expected), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_batch(isa: str, format: Format) -> None:
    native, weights, norm = kernels(isa), filled(format, 1, 70, 100), RmsNorm(draw(100, seed=2))
    x = draw(40, 100, seed=1)
    alone = [native.linear(row[None], weights, norm=norm)[0] for row in x]
    for rows in (*range(1, 27), 40):
        together = native.linear(x[:rows], weights, norm=norm)
        assert all(same_bits(a, b) for a, b in zip(alone, together, strict=False)), rows


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("run", [backwards, on_threads])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_threads_and_their_order_change_nothing(
    isa: str, format: Format, run: ParallelFor, rows: int
) -> None:
    weights, norm = filled(format, 1, 2100, 260), RmsNorm(draw(260, seed=2))
    x = draw(rows, 260, seed=1)
    expected = kernels(isa).linear(x, weights, None, "gelu", norm=norm)
    assert same_bits(kernels(isa, run).linear(x, weights, None, "gelu", norm=norm), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "columns", [(64, 32, 32), (40, 1, 87), (5, 123), (128,), (31, 33, 64), (64, 40, 24)]
)
@pytest.mark.parametrize("rows", [1, 14])
def test_columns_are_split_where_they_are_asked_to_be(
    isa: str, format: Format, columns: tuple[int, ...], rows: int
) -> None:
    native, weights = kernels(isa), filled(format, 1, 128, 50)
    x, bias, norm = draw(rows, 50, seed=1), draw(128, seed=2), RmsNorm(draw(50, seed=3))
    parts = native.split_linear(x, weights, columns, bias, norm=norm)
    assert [part.shape[1] for part in parts] == list(columns)
    assert same_bits(np.concatenate(parts, axis=1), native.linear(x, weights, bias, norm=norm))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_are_those_of_the_operators(isa: str, activation: str) -> None:
    native = kernels(isa)
    # The identity times 127: what goes in comes out, to within the quantisation of one row.
    weights = PACK["int8"](np.ones((1, 1), np.float32))
    x = np.concatenate([np.linspace(-30, 30, 2001), [0.0, -87.5, 88.5, -1e4, 1e4]])
    x = x.astype(np.float32)[:, None]
    plain = native.linear(x, weights)
    np.testing.assert_allclose(plain, x, rtol=3e-7)
    expected = plain if activation == "none" else activate(activation, plain)
    got = native.linear(x, weights, activation=activation)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6)
    gated = native.linear(x, PACK["int8"](np.ones((2, 1, 1), np.float32)), None, activation)
    assert same_bits(gated, got * plain)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
@pytest.mark.parametrize("normed", [False, True])
def test_a_row_that_is_not_finite_gives_nan_and_spoils_no_other(
    isa: str, format: Format, activation: str, value: float, place: int, normed: bool
) -> None:
    native, weights, bias = kernels(isa), filled(format, 1, 40, 70), draw(40, seed=2)
    norm = RmsNorm(draw(70, seed=3)) if normed else None
    x = draw(15, 70, seed=1)
    expected = native.linear(x, weights, bias, activation, norm=norm)
    x[4, place] = value
    expected[4] = np.nan
    assert same_bits(native.linear(x, weights, bias, activation, norm=norm), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_zeros_and_of_the_smallest_numbers_give_the_bias(isa: str, format: Format) -> None:
    native, weights, bias = kernels(isa), filled(format, 1, 40, 70), draw(40, seed=2)
    x = np.zeros((3, 70), np.float32)
    x[1] = 1e-38
    x[2] = np.finfo(np.float32).smallest_subnormal
    assert same_bits(native.linear(x, weights), np.zeros((3, 40), np.float32))
    assert same_bits(native.linear(x, weights, bias), np.tile(bias, (3, 1)))
    norm = RmsNorm(draw(70, seed=3))
    assert same_bits(native.linear(x[:1], weights, norm=norm), np.zeros((1, 40), np.float32))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 3e37])
def test_huge_and_tiny_rows_keep_their_accuracy(isa: str, format: Format, scale: float) -> None:
    weights = PACK[format](draw(40, 70))
    x = draw(5, 70, seed=1)
    x *= np.float32(scale / np.abs(x).max())
    got = kernels(isa).linear(x, weights).astype(np.float64)
    exact = x.astype(np.float64) @ unpack(weights)[0].T.astype(np.float64)
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", ["int4", "int8-block"])
@pytest.mark.parametrize("scale", [1e-38, 1e30])
def test_huge_and_tiny_scales_of_the_weights_are_only_factors(
    isa: str, format: Format, scale: float
) -> None:
    weights, x = filled(format, 1, 40, 70), draw(5, 70, seed=1)
    scaled = PackedWeights(
        weights.values,
        weights.scales * np.float32(scale),
        weights.multipliers,
        *(weights.matrices, weights.columns, weights.depth),
    )
    assert same_bits(kernels(isa).linear(x, scaled), arithmetic.linear(x, scaled))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_norm_is_that_of_the_mean_square(isa: str, format: Format) -> None:
    weights, x, norm = filled(format, 1, 40, 300), draw(5, 300, seed=1), RmsNorm(draw(300, seed=2))
    mean = (x.astype(np.float64) ** 2).mean(axis=1, keepdims=True)
    normed = (x * norm.weight / np.sqrt(mean + norm.epsilon)).astype(np.float32)
    got, expected = kernels(isa).linear(x, weights, norm=norm), kernels(isa).linear(normed, weights)
    # A value near the middle of two steps may be rounded either way.
    assert np.abs(got - expected).max() < 0.002 * np.abs(expected).max()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_largest_sums_do_not_overflow(isa: str) -> None:
    depth = 131072
    weights = PACK["int8"](np.full((1, depth), -127, np.float32))
    y = kernels(isa).linear(np.full((1, depth), 127, np.float32), weights)
    assert y.item() == np.float32(-127 * 127 * depth)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_of_int4_are_exact(isa: str, sign: int) -> None:
    weights = filled("int4", 1, 32, 64)
    assert weights.multipliers is not None
    weights.values[:] = 0x00 if sign < 0 else 0xFF
    weights.multipliers[:] = 255
    weights.scales[:] = 1
    y = kernels(isa).linear(np.full((1, 64), 127, np.float32), weights)
    assert (y == np.float32(64 * 127 * 255 * (-8 if sign < 0 else 7))).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_of_int8_blocks_are_rounded_once_a_block(isa: str, sign: int) -> None:
    """A block's sum times its multiplier has up to 27 bits, three more than float32 holds."""
    weights = filled("int8-block", 1, 32, 96)
    assert weights.multipliers is not None
    weights.values[:] = 1 if sign < 0 else 255
    weights.values[..., 0, :, 0] = 128  # so that the sum is odd
    weights.multipliers[:] = 255
    weights.scales[:] = 1
    y = kernels(isa).linear(np.full((1, 96), 127, np.float32), weights)
    exact = sign * 31 * 127 * 127 * 255
    block = np.float32(exact)
    assert float(block) != exact
    assert (y == block + block + block).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_rows_give_no_rows(isa: str) -> None:
    assert kernels(isa).linear(np.empty((0, 7), np.float32), filled("int8", 1, 5, 7)).shape == (
        0,
        5,
    )


def test_an_activation_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "none such", 5)
    for matrices in (1, 2):
        with pytest.raises(NativeLibraryError, match="an enum has no such value"):
            Kernels().linear(draw(2, 7), filled("int8", matrices, 5, 7), activation="none such")


def test_what_parallel_for_raises_is_raised_after_the_call() -> None:
    weights, x = filled("int8", 1, 3000, 300), draw(33, 300, seed=1)

    def failing(count: int, task: Callable[[int], None]) -> None:
        task(0)
        raise RuntimeError("no threads left")

    native = Kernels(parallel_for=failing)
    with pytest.raises(RuntimeError, match="no threads left"):
        native.linear(x, weights)
    with pytest.raises(RuntimeError, match="no threads left"):
        native.head(x, weights, 20)
    few = filled("int8", 1, 5, 7)
    assert same_bits(native.linear(x[:1, :7], few), Kernels().linear(x[:1, :7], few))


def test_arrays_that_do_not_fit_are_refused() -> None:
    native, weights = Kernels(), filled("int8", 1, 5, 7)
    with pytest.raises(NativeLibraryError, match=r"x must be \(2, 7\), got \(2, 8\)"):
        native.linear(draw(2, 8), weights)
    with pytest.raises(NativeLibraryError, match=r"bias must be \(5,\), got \(7,\)"):
        native.linear(draw(2, 7), weights, draw(7))
    with pytest.raises(NativeLibraryError, match=r"norm must be \(7,\), got \(5,\)"):
        native.linear(draw(2, 7), weights, norm=RmsNorm(draw(5)))
    with pytest.raises(NativeLibraryError, match=r"residual must be \(2, 5\), got \(1, 5\)"):
        native.linear(draw(2, 7), weights, residual=draw(1, 5))
    with pytest.raises(NativeLibraryError, match="do not fit each other"):
        native.linear(draw(2, 7), filled("int8", 3, 5, 7))
    with pytest.raises(NativeLibraryError, match="do not fit each other"):
        native.split_linear(draw(2, 7), weights, (3, 1))
    with pytest.raises(NativeLibraryError, match="at most 3 outputs, got 4"):
        native.split_linear(draw(2, 7), weights, (1, 1, 1, 2))
