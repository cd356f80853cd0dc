"""The references of operators with packed weights, by hand and against plain arithmetic in fp64."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops import (
    CROSS_ATTENTION,
    QUANTIZED_GATHER,
    QUANTIZED_HEAD,
    QUANTIZED_LINEAR,
    QUANTIZED_PROJECTIONS,
    QUANTIZED_ROUTED_FFN,
    ROUTED_FFN,
)
from drl.plugins.ops.activations import GATED, activate
from drl.plugins.ops.packing import LAYOUT, pack_int8, quantize_rows, unpack
from tests.plugins.ops.case import Array, Maker
from tests.plugins.ops.quantized_cases import PACK, packed

formats = pytest.mark.parametrize("format", PACK)
seeds = st.integers(0, 2**32 - 1)


def linear(x: Array, inputs: dict[str, Array], columns: int, **kwargs: Any) -> Array:
    attributes = {"activation": "none", "epsilon": 0.0, "layout": LAYOUT, **kwargs}
    result: Array = QUANTIZED_LINEAR.reference(x, **inputs, columns=columns, **attributes)
    return result


def plain(x: Array, weights: Array) -> Array:
    """Rounded rows times the weights that packed ones stand for, in fp64."""
    values, scales = quantize_rows(x)
    rows = values.astype(np.float64) * scales[..., None]
    return np.asarray(rows @ weights.astype(np.float64).T)


def test_linear_by_hand() -> None:
    """x has scale 2 and rounds to 127, 2; the columns have scales 1/127 and 3."""
    weights = np.array([[1.0, -1.0], [381.0, 3.0]], np.float32)
    x = np.array([[[254.0, 3.0]]], np.float32)
    y = linear(
        x,
        {
            **packed(weights, "int8"),
            "bias": np.array([1.0, -10.0], np.float32),
            "residual": np.array([[[0.5, 0.25]]], np.float32),
        },
        columns=2,
        activation="relu",
    )
    np.testing.assert_allclose(y, [[[254 - 4 + 1.5, 254 * 381 + 12 - 9.75]]], rtol=1e-6)


def test_linear_in_int4_by_hand() -> None:
    """Two blocks: one of step 255 with 7, one of step 2 with -4, each against x = 127."""
    weights = np.zeros((1, 40), np.float32)
    weights[0, 0], weights[0, 39], weights[0, 38] = 1785, -7, 14
    x = np.zeros((1, 1, 40), np.float32)
    x[..., 0] = x[..., 39] = 127
    y = linear(x, packed(weights, "int4"), columns=1)
    assert y.item() == 127 * (7 * 255 - 4 * 2)


def test_linear_in_blocks_of_int8_by_hand() -> None:
    """Two blocks: one of step 255 with 127, one of step 2 with -64, each against x = 127."""
    weights = np.zeros((1, 40), np.float32)
    weights[0, 0], weights[0, 39], weights[0, 38] = 32385, -128, 254
    x = np.zeros((1, 1, 40), np.float32)
    x[..., 0] = x[..., 39] = 127
    y = linear(x, packed(weights, "int8-block"), columns=1)
    assert y.item() == 127 * (127 * 255 - 64 * 2)


def test_gated_linear_by_hand() -> None:
    """The first matrix is the gate, and the bias holds its part first."""
    weights = np.array([[[2.0]], [[3.0]]], np.float32)
    inputs = {**packed(weights, "int8"), "bias": np.array([-3.0, 100.0], np.float32)}
    y = linear(np.ones((1, 1, 1), np.float32), inputs, columns=1, activation="silu_glu")
    assert y.item() == pytest.approx(-1 / (1 + math.e) * 103, rel=1e-6)


def test_norm_by_hand() -> None:
    """3 and 4 have the mean square 12.5; with epsilon 12.5 the root is 5."""
    x = np.array([[[3.0, 4.0]]], np.float32)
    inputs = {**packed(np.eye(2, dtype=np.float32), "int8")}
    y = linear(x, {**inputs, "norm": np.array([10.0, 5.0], np.float32)}, columns=2, epsilon=12.5)
    # 6 and 4; the second is 84.67 steps of 6/127.
    np.testing.assert_allclose(y, [[[6.0, 85 * 6 / 127]]], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(sorted(PACK)), st.sampled_from(["none", *GATED]))
def test_linear_is_the_product_of_what_the_integers_stand_for(
    seed: int, format: str, activation: str
) -> None:
    make = Maker(str(seed), "fp32")
    columns, depth = (int(n) for n in make.random.integers(1, 100, 2))
    matrices = 2 if GATED.get(activation) else 1
    pack = PACK[format](make.f32(matrices, columns, depth, scale=depth**-0.5))
    x, bias = make.f32(2, 3, depth), make.f32(matrices * columns)
    residual = make.f32(2, 3, columns)
    inputs: dict[str, Any] = {
        "weight": pack.values,
        "scale": pack.scales,
        "multiplier": pack.multipliers,
        "bias": bias,
        "residual": residual,
    }
    y = linear(x, inputs, columns, activation=activation)
    sides = [
        plain(x, weights) + own
        for weights, own in zip(unpack(pack), bias.reshape(matrices, -1), strict=True)
    ]
    expected = activate(activation, sides[0].astype(np.float32))
    if matrices == 2:
        expected = expected * sides[1]
    np.testing.assert_allclose(y, expected + residual, rtol=2e-5, atol=2e-5)


@formats
def test_linear_is_near_the_one_it_stands_for(format: str) -> None:
    """Relative to the size of the outputs: about 1 % for 8 bits, 10 % for int4."""
    make = Maker("near", "fp32")
    weights, x = make.f32(64, 512, scale=512**-0.5), make.f32(2, 8, 512)
    y, exact = linear(x, packed(weights, format), columns=64), x @ weights.T
    error = np.sqrt(np.square(y - exact).mean() / np.square(exact).mean())
    assert error < {"int8": 0.02, "int8-block": 0.015, "int4": 0.15}[format]


@formats
@pytest.mark.parametrize("row", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_itself_alone(format: str, row: float) -> None:
    make = Maker("odd", "fp32")
    inputs = {**packed(make.f32(2, 9, 40), format), "bias": make.f32(18)}
    x = make.f32(1, 3, 40)
    expected = linear(x, inputs, columns=9, activation="gelu_glu")
    x[0, 1, 7] = row
    with np.errstate(invalid="ignore"):
        y = linear(x, inputs, columns=9, activation="gelu_glu")
    assert np.isnan(y[0, 1]).all()
    np.testing.assert_array_equal(y[0, [0, 2]], expected[0, [0, 2]])


@formats
def test_projections_are_the_columns_of_one_linear(format: str) -> None:
    make = Maker("projections", "fp32")
    inputs = {**packed(make.f32(45, 37), format), "norm": make.f32(37), "bias": make.f32(45)}
    x = make.f32(2, 3, 37)
    parts = QUANTIZED_PROJECTIONS.reference(
        x, **inputs, query_columns=25, kv_columns=10, epsilon=1e-6, layout=LAYOUT
    )
    assert [part.shape[-1] for part in parts] == [25, 10, 10]
    whole = linear(x, inputs, columns=45, epsilon=1e-6)
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)


def head(x: Array, inputs: dict[str, Array], count: int, columns: int) -> tuple[Array, ...]:
    result: tuple[Array, ...] = QUANTIZED_HEAD.reference(
        x,
        **inputs,
        candidates=np.array([count]),
        columns=columns,
        factor=0.25,
        epsilon=0.0,
        layout=LAYOUT,
    )
    return result


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(sorted(PACK)), st.integers(1, 60))
def test_head_ranks_its_own_logits(seed: int, format: str, columns: int) -> None:
    make = Maker(str(seed), "fp32")
    weights = np.repeat(make.f32(-(-columns // 2), 20), 2, axis=0)[:columns]  # ties in pairs
    inputs, x = (
        {**packed(weights, format), "bias": np.ones(columns, np.float32)},
        make.f32(2, 3, 20),
    )
    logits, no_values, no_ids, normalisers = head(x, inputs, 0, columns)
    assert (no_values.shape, no_ids.shape) == ((2, 3, 0), (2, 3, 0))
    scaled = 0.25 * linear(x, packed(weights, format), columns) + 1
    np.testing.assert_allclose(logits, scaled, rtol=1e-6)
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
    np.testing.assert_allclose(normalisers, exact, rtol=1e-6, atol=1e-6)

    count = int(make.random.integers(1, columns + 1))
    no_logits, values, ids, same_normalisers = head(x, inputs, count, columns)
    assert no_logits.shape == (2, 3, 0)
    np.testing.assert_array_equal(same_normalisers, normalisers)
    for place in np.ndindex(2, 3):
        row = logits[place]
        ranked = sorted(range(columns), key=lambda i: (-row[i], i))[:count]
        np.testing.assert_array_equal(ids[place], ranked)
        np.testing.assert_array_equal(values[place], row[ranked])
    assert (ids.dtype, values.dtype, normalisers.dtype) == (np.int32, np.float32, np.float32)


def test_head_puts_nan_below_every_number() -> None:
    bias = np.array([0, np.nan, -np.inf, 2, np.nan], np.float32)
    inputs = {**packed(np.zeros((5, 4), np.float32), "int8"), "bias": bias}
    _, values, ids, normalisers = head(np.ones((1, 1, 4), np.float32), inputs, 5, 5)
    np.testing.assert_array_equal(ids, [[[3, 0, 2, 1, 4]]])
    np.testing.assert_array_equal(values, [[[2, 0, -np.inf, np.nan, np.nan]]])
    assert np.isnan(normalisers).all()


def test_gather_gives_the_rows_that_a_head_multiplies_by() -> None:
    pack = pack_int8(Maker("gather", "fp32").f32(45, 37))
    tokens = np.array([[44, 0], [31, 32]])
    rows = QUANTIZED_GATHER.reference(tokens, pack.values, pack.scales, depth=37, layout=LAYOUT)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, unpack(pack)[0][tokens])


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(sorted(PACK)), st.sampled_from(sorted(GATED)))
def test_routed_layer_is_the_weighted_sum_of_linears(
    seed: int, format: str, activation: str
) -> None:
    make = Maker(str(seed), "fp32")
    experts, inner, width = 3, 45, 37
    up, gate = make.f32(2, experts, inner, width, scale=width**-0.5)
    down = make.f32(experts, width, inner, scale=inner**-0.5)
    x, gates = make.f32(1, 4, width), make.random.random((1, 4, 2)).astype(np.float32)
    ids = make.random.permuted(np.tile(np.arange(-1, 3), (1, 4, 1)), axis=-1)[..., :2]
    up_bias, gate_bias, down_bias = make.f32(3, inner), make.f32(3, inner), make.f32(3, width)
    residual = make.f32(1, 4, width)
    inputs = {**packed(up, format, "up"), **packed(down, format, "down")}
    if GATED[activation]:
        inputs |= {**packed(gate, format, "gate"), "gate_bias": gate_bias}
    y = QUANTIZED_ROUTED_FFN.reference(
        hidden=x,
        expert_ids=ids.astype(np.int32),
        gates=gates,
        **inputs,
        up_bias=up_bias,
        down_bias=down_bias,
        residual=residual,
        activation=activation,
        inner=inner,
        layout=LAYOUT,
    )
    expected = residual.astype(np.float64)
    for place in np.ndindex(ids.shape):
        expert, token = int(ids[place]), x[:, place[1] : place[1] + 1]
        if expert < 0:
            continue
        if GATED[activation]:
            stacked = np.stack([gate[expert], up[expert]])
            biases = np.concatenate([gate_bias[expert], up_bias[expert]])
        else:
            stacked, biases = up[expert], up_bias[expert]
        first = {**packed(stacked, format), "bias": biases}
        middle = linear(token, first, inner, activation=activation)
        second = {**packed(down[expert], format), "bias": down_bias[expert]}
        expected[:, place[1]] += gates[place] * linear(middle, second, width)[:, 0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@formats
def test_routed_layer_is_near_the_one_it_stands_for(format: str) -> None:
    make = Maker("near", "fp32")
    up, gate = make.f32(2, 4, 256, 128, scale=128**-0.5)
    down, x = make.f32(4, 128, 256, scale=256**-0.5), make.f32(2, 8, 128)
    ids = make.random.integers(0, 4, (2, 8, 1)).astype(np.int32)
    gates = np.ones((2, 8, 1), np.float32)
    sides = [packed(w, format, name) for w, name in ((up, "up"), (down, "down"), (gate, "gate"))]
    inputs = sides[0] | sides[1] | sides[2]
    y = QUANTIZED_ROUTED_FFN.reference(
        x, ids, gates, **inputs, activation="silu_glu", inner=256, layout=LAYOUT
    )
    turned = [np.swapaxes(w, 1, 2) for w in (up, down, gate)]
    exact = ROUTED_FFN.reference(x, ids, gates, *turned, activation="silu_glu")
    error = np.sqrt(np.square(y - exact).mean() / np.square(exact).mean())
    assert error < {"int8": 0.03, "int8-block": 0.03, "int4": 0.25}[format]


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_cross_attention_head_by_head(seed: int, sources: int, width: int, kv_heads: int) -> None:
    random, heads, head = np.random.default_rng(seed), 4, 8
    batch, steps, states = sources * width, 2, 5
    q = random.standard_normal((batch, steps, heads * head)).astype(np.float32)
    k, v = random.standard_normal((2, sources, kv_heads, states, head)).astype(np.float32)
    bias = random.standard_normal((sources, states)).astype(np.float32)
    y = CROSS_ATTENTION.reference(q, k, v, bias, num_heads=heads, scale=0.3)
    for row, step, index in np.ndindex(batch, steps, heads):
        mine = slice(index * head, (index + 1) * head)
        source, shared = row // width, index * kv_heads // heads
        powers = np.exp(0.3 * k[source, shared] @ q[row, step, mine] + bias[source])
        expected = powers @ v[source, shared] / powers.sum()
        np.testing.assert_allclose(y[row, step, mine], expected, rtol=1e-4, atol=1e-5)
