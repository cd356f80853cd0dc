"""The linear with float weights: products are summed in a fixed order, then finished."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ACTIVATIONS, ParallelFor, RmsNorm
from drl.plugins.ops import LINEAR
from drl.plugins.ops.activations import GATED, activate
from drl.plugins.ops.panels import PANEL, pack_panels
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
from tests.plugins.native.weights import draw
from tests.plugins.ops.case import Case
from tests.plugins.ops.linear_cases import linear_cases

pytestmark = needs_library

# Of the operator's activations, which one the kernel applies.
APPLIED = {"silu_glu": "silu", "gelu_glu": "gelu_tanh"}
SHAPES = [
    # rows, N, K: panels of 64 columns, blocks of 128 of the depth and of 96 rows
    (1, 1, 1),
    (1, 64, 128),
    (1, 65, 2048),
    (2, 63, 127),
    (3, 31, 129),
    (5, 130, 5),
    (7, 200, 257),
    (8, 128, 64),
    (13, 1, 300),
    (14, 70, 1),
    (33, 96, 256),
    (95, 20, 130),
    (96, 64, 33),
    (97, 66, 140),
    (193, 5, 40),
    (200, 129, 70),
]


def run(
    native: Kernels,
    x: Float32,
    weights: Float32,
    bias: Float32 | None = None,
    activation: str = "none",
    *,
    norm: RmsNorm | None = None,
    residual: Float32 | None = None,
) -> Float32:
    """The kernel, with its columns in a single output."""
    panels, columns = pack_panels(weights), (weights.shape[1],)
    (y,) = native.float_linear(x, panels, columns, bias, activation, norm=norm, residual=residual)
    return y


def spread(*shape: int, seed: int, scale: float = 1.0) -> Float32:
    """Numbers of very different size, so that every order of addition rounds in its own way."""
    random = np.random.default_rng([seed, *shape])
    size = np.float32(2) ** random.integers(-12, 12, shape) * np.float32(scale)
    return np.asarray(random.standard_normal(shape) * size, np.float32)


def bias_of(matrices: int, columns: int, seed: int = 2) -> Float32:
    return draw(*([2] if matrices == 2 else []), columns, seed=seed)


@cache
def call(
    shape: tuple[int, int, int], matrices: int, dressed: bool
) -> tuple[dict[str, Any], Float32]:
    """Arguments of `run`, with all that is optional if dressed, and what comes of them."""
    rows, columns, depth = shape
    arguments: dict[str, Any] = {
        "x": spread(rows, depth, seed=1),
        "weights": spread(matrices, columns, depth, seed=2),
    }
    if dressed:
        arguments |= {
            "bias": bias_of(matrices, columns),
            "activation": "relu",
            "norm": RmsNorm(draw(depth, seed=4), 1e-3),
            "residual": draw(rows, columns, seed=3),
        }
    return arguments, arithmetic.float_linear(**arguments)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("matrices", [1, 2], ids=["plain", "gated"])
@pytest.mark.parametrize("dressed", [False, True], ids=["bare", "dressed"])
def test_a_linear_is_a_chain_of_fused_multiply_adds(
    isa: str, shape: tuple[int, int, int], matrices: int, dressed: bool
) -> None:
    arguments, y = call(shape, matrices, dressed)
    assert same_bits(run(kernels(isa), **arguments), y)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.one_of(st.integers(0, 30), st.integers(90, 100)),
    columns=st.integers(1, 140),
    depth=st.one_of(st.integers(1, 20), st.integers(120, 135)),
    exponent=st.integers(-40, 34),
    matrices=st.integers(1, 2),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    biased=st.booleans(),
    normed=st.booleans(),
    added=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_instruction_set_computes_the_documented_bits(
    rows: int,
    columns: int,
    depth: int,
    exponent: int,
    matrices: int,
    activation: str,
    biased: bool,
    normed: bool,
    added: bool,
    seed: int,
) -> None:
    found = all_kernels()
    x = spread(rows, depth, seed=seed, scale=10.0**exponent)
    weights = spread(matrices, columns, depth, seed=seed)
    bias = bias_of(matrices, columns, seed) if biased else None
    norm = RmsNorm(draw(depth, seed=seed)) if normed else None
    residual = draw(rows, columns, seed=seed) if added else None
    more: dict[str, Any] = {"norm": norm, "residual": residual}
    y = run(found.pop("scalar"), x, weights, bias, activation, **more)
    if activation in ("none", "relu"):
        assert same_bits(y, arithmetic.float_linear(x, weights, bias, activation, **more))
    for isa, native in found.items():
        assert same_bits(run(native, x, weights, bias, activation, **more), y), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", list(linear_cases()), ids=str)
def test_the_kernel_gives_what_the_operator_gives(isa: str, case: Case) -> None:
    x, columns = case.inputs["x"], case.attributes["columns"]
    bias, residual = case.inputs.get("bias"), case.inputs.get("residual")
    activation, norm = case.attributes["activation"], case.inputs.get("norm")
    if bias is not None and GATED.get(activation):
        bias = bias.reshape(2, columns)
    (found,) = kernels(isa).float_linear(
        x.reshape(-1, x.shape[-1]),
        case.inputs["weight"],
        (columns,),
        bias,
        APPLIED.get(activation, activation),
        norm=None if norm is None else RmsNorm(norm, case.attributes["epsilon"]),
        residual=None if residual is None else residual.reshape(-1, columns),
    )
    with np.errstate(all="ignore"):
        right = LINEAR.reference(**case.inputs, **case.attributes)
    np.testing.assert_allclose(found.reshape(right.shape), right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("matrices", [1, 2])
def test_a_row_does_not_depend_on_its_batch(isa: str, matrices: int) -> None:
    """All sizes of groups of rows, up to blocks of many."""
    native, norm = kernels(isa), RmsNorm(draw(260, seed=3))
    x, weights = spread(200, 260, seed=1), spread(matrices, 130, 260, seed=2)
    whole = run(native, x, weights, None, "silu", norm=norm)
    for rows in (*range(1, 27), 95, 96, 97, 191, 192, 193, 199):
        part = run(native, x[:rows], weights, None, "silu", norm=norm)
        assert same_bits(part, whole[:rows]), rows
    for row in range(0, 200, 7):
        alone = run(native, x[row : row + 1], weights, None, "silu", norm=norm)
        assert same_bits(alone, whole[row : row + 1]), row


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("order", [backwards, on_threads])
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize("matrices", [1, 2])
def test_threads_and_their_order_change_nothing(
    isa: str, order: ParallelFor, rows: int, matrices: int
) -> None:
    counts = []

    def counted(count: int, task: Callable[[int], None]) -> None:
        counts.append(count)
        order(count, task)

    x, weights = draw(rows, 260, seed=1), draw(matrices, 2100, 260)
    norm, bias, residual = RmsNorm(draw(260)), bias_of(matrices, 2100), draw(rows, 2100)
    more: dict[str, Any] = {"norm": norm, "residual": residual}
    alone = run(kernels(isa), x, weights, bias, "gelu", **more)
    shared = run(kernels(isa, counted), x, weights, bias, "gelu", **more)
    assert same_bits(shared, alone)
    assert max(counts) > 1


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    "columns",
    [
        *((192,), (64, 64, 64), (5, 187), (128, 64), (63, 65, 64), (130, 1, 61), (1, 190, 1)),
        *((100, 0, 92), (0, 192)),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 14, 100])
@pytest.mark.parametrize("matrices", [1, 2])
def test_columns_are_split_where_they_are_asked_to_be(
    isa: str, columns: tuple[int, ...], rows: int, matrices: int
) -> None:
    native, weights = kernels(isa), draw(matrices, 192, 50)
    x, bias, norm = draw(rows, 50, seed=1), bias_of(matrices, 192), RmsNorm(draw(50, seed=3))
    parts = native.float_linear(x, pack_panels(weights), columns, bias, "silu", norm=norm)
    assert [part.shape[1] for part in parts] == list(columns)
    whole = run(native, x, weights, bias, "silu", norm=norm)
    assert same_bits(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_are_those_of_the_operators(isa: str, activation: str) -> None:
    native, one = kernels(isa), np.ones((1, 1, 1), np.float32)
    x = np.concatenate([np.linspace(-30, 30, 2001), [0.0, -87.5, 88.5, -1e4, 1e4]])
    x = x.astype(np.float32)[:, None]
    assert same_bits(run(native, x, one), x)
    right = x if activation == "none" else activate(activation, x)
    got = run(native, x, one, None, activation)
    np.testing.assert_allclose(got, right, rtol=1e-6, atol=2e-6)
    gated = run(native, x, np.stack([one[0], 3 * one[0]]), None, activation)
    assert same_bits(gated, got * (3 * x))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("rows", [1, 3, 15, 100])
@pytest.mark.parametrize("columns", [1, 40, 65, 130])
@pytest.mark.parametrize("matrices", [1, 2])
def test_what_is_beyond_the_last_column_never_counts(
    isa: str, rows: int, columns: int, matrices: int
) -> None:
    x, weights = draw(rows, 70, seed=1), draw(matrices, columns, 70)
    bias, residual = bias_of(matrices, columns), draw(rows, columns, seed=3)
    panels = pack_panels(weights)
    panels[:, -1, :, columns % PANEL :] = np.nan
    (found,) = kernels(isa).float_linear(x, panels, (columns,), bias, "relu", residual=residual)
    assert same_bits(found, arithmetic.float_linear(x, weights, bias, "relu", residual=residual))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 127, 128, 139])
@pytest.mark.parametrize("normed", [False, True])
def test_what_is_not_finite_goes_where_arithmetic_takes_it_and_spoils_no_other_row(
    isa: str, activation: str, value: float, place: int, normed: bool
) -> None:
    native, weights, bias = kernels(isa), draw(2, 70, 140), bias_of(2, 70)
    norm = RmsNorm(draw(140, seed=3)) if normed else None
    x = draw(15, 140, seed=1)
    before = run(native, x, weights, bias, activation, norm=norm)
    x[4, place] = value
    after = run(native, x, weights, bias, activation, norm=norm)
    assert same_bits(after, arithmetic.float_linear(x, weights, bias, activation, norm=norm))
    assert same_bits(np.delete(after, 4, 0), np.delete(before, 4, 0))
    assert not np.isfinite(after[4]).any()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_weight_that_is_not_finite_spoils_no_other_column(isa: str) -> None:
    x, weights = draw(15, 140, seed=1), draw(1, 70, 140)
    before = run(kernels(isa), x, weights)
    weights[0, 64, 139] = np.nan
    after = run(kernels(isa), x, weights)
    assert np.isnan(after[:, 64]).all()
    assert same_bits(np.delete(after, 64, 1), np.delete(before, 64, 1))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_rows_of_zeros_give_the_bias(isa: str) -> None:
    native, weights, bias = kernels(isa), draw(1, 70, 40), draw(70, seed=2)
    x = np.zeros((3, 40), np.float32)
    assert same_bits(run(native, x, weights), np.zeros((3, 70), np.float32))
    norm = RmsNorm(draw(40, seed=3))
    assert same_bits(run(native, x, weights, bias, norm=norm), np.tile(bias, (3, 1)))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1e20, 1e37, 3e38])
def test_the_smallest_and_largest_numbers_are_numbers_like_others(isa: str, scale: float) -> None:
    """Sums of the first are subnormal, and some of the last are infinite."""
    x = np.clip(draw(5, 70, seed=1).astype(np.float64), -1, 1) * scale
    weights = draw(1, 40, 70)
    found = run(kernels(isa), x.astype(np.float32), weights)
    assert same_bits(found, arithmetic.float_linear(x.astype(np.float32), weights))
    assert found.any()
    assert np.isinf(found).any() == (scale > 1e38)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_norm_is_that_of_the_mean_square(isa: str) -> None:
    x, weights, norm = draw(5, 300, seed=1), draw(1, 40, 300), RmsNorm(draw(300, seed=2), 0.25)
    mean = (x.astype(np.float64) ** 2).mean(axis=1, keepdims=True)
    exact = (x * norm.weight / np.sqrt(mean + 0.25)) @ weights[0].T.astype(np.float64)
    found = run(kernels(isa), x, weights, norm=norm)
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-5)


def moved(array: Float32, distance: int) -> Float32:
    """The array, so many bytes behind an address that is a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    first = -memory.ctypes.data % 64 + distance
    copy = memory[first : first + array.nbytes].view(np.float32).reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % 64 == distance
    return copy


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("distance", [4, 20, 60])
@pytest.mark.parametrize("rows", [1, 9])
def test_numbers_may_lie_at_every_multiple_of_four_bytes(
    isa: str, distance: int, rows: int
) -> None:
    x, weights, norm = draw(rows, 130, seed=1), draw(2, 100, 130), draw(130, seed=3)
    bias, residual = bias_of(2, 100), draw(rows, 100, seed=4)
    right = arithmetic.float_linear(x, weights, bias, norm=RmsNorm(norm), residual=residual)
    panels, bias, residual = (
        moved(array, distance) for array in (pack_panels(weights), bias, residual)
    )
    x, norm = moved(x, distance), moved(norm, distance)
    native, columns = kernels(isa), (100,)
    (found,) = native.float_linear(x, panels, columns, bias, norm=RmsNorm(norm), residual=residual)
    assert same_bits(found, right)


def test_weights_at_other_addresses_are_refused() -> None:
    panels = moved(pack_panels(draw(1, 5, 7)), 2)
    with pytest.raises(NativeLibraryError, match="a pointer is"):
        Kernels().float_linear(draw(2, 7), panels, (5,))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_rows_give_no_rows(isa: str) -> None:
    found = run(kernels(isa), np.empty((0, 7), np.float32), draw(1, 5, 7), norm=RmsNorm(draw(7)))
    assert found.shape == (0, 5)


def test_an_activation_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "none such", 5)
    for matrices in (1, 2):
        with pytest.raises(NativeLibraryError, match="an enum has no such value"):
            run(Kernels(), draw(2, 7), draw(matrices, 5, 7), activation="none such")


def test_arrays_that_do_not_fit_are_refused() -> None:
    native, x, weights = Kernels(), draw(2, 7), draw(1, 70, 7)
    with pytest.raises(NativeLibraryError, match=r"x must be \(2, 7\), got \(2, 8\)"):
        run(native, draw(2, 8), weights)
    with pytest.raises(NativeLibraryError, match=r"bias must be \(70,\), got \(7,\)"):
        run(native, x, weights, draw(7))
    with pytest.raises(NativeLibraryError, match=r"bias must be \(2, 70\), got \(140,\)"):
        run(native, x, draw(2, 70, 7), draw(140))
    with pytest.raises(NativeLibraryError, match=r"norm must be \(7,\), got \(5,\)"):
        run(native, x, weights, norm=RmsNorm(draw(5)))
    with pytest.raises(NativeLibraryError, match=r"residual must be \(2, 70\), got \(1, 70\)"):
        run(native, x, weights, residual=draw(1, 70))
    panels = pack_panels(weights)
    for columns, needed in ((64, 1), (129, 3)):
        message = rf"panels must be \(1, {needed}, 7, 64\), got \(1, 2, 7, 64\)"
        with pytest.raises(NativeLibraryError, match=message):
            native.float_linear(x, panels, (columns,))
    with pytest.raises(NativeLibraryError, match="at most 3 outputs, got 4"):
        native.float_linear(x, panels, (1, 1, 1, 67))
    with pytest.raises(NativeLibraryError, match="do not fit each other"):
        run(native, x, draw(3, 70, 7))
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        native.float_linear(draw(2, 0), panels[:, :, :0], (70,))
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        native.float_linear(x, panels[:, :0], (0,))


def test_a_residual_needs_a_single_output() -> None:
    native, x, residual = Kernels(), draw(2, 7), draw(2, 70)
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        native.float_linear(x, pack_panels(draw(1, 70, 7)), (30, 40), residual=residual)
