"""The references of the linears with float weights, by hand and against plain arithmetic in fp64.

And their schema: which weights in panels fit the attributes.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops import LINEAR, PROJECTIONS, OperatorError, functions_for
from drl.plugins.ops.activations import GATED, activate
from drl.plugins.ops.panels import pack_panels
from tests.plugins.ops.case import Array, Maker
from tests.plugins.ops.values import FP32, dims, new_builder, value


def linear(x: Array, inputs: dict[str, Any], columns: int, activation: str = "none") -> Array:
    result: Array = LINEAR.reference(
        x, **inputs, columns=columns, activation=activation, epsilon=0.5
    )
    return result


def test_linear_by_hand() -> None:
    """Products 1·3 + 2·1 and 1·1 − 2·2; with the bias 4 and −5, ReLU, and 10 and 20 on top."""
    x = np.array([[[1, 2]]], np.float32)
    inputs = {
        "weight": pack_panels(np.array([[[3, 1], [1, -2]]], np.float32)),
        "bias": np.array([-1, -2], np.float32),
        "residual": np.array([[[10, 20]]], np.float32),
    }
    y = linear(x, inputs, 2, "relu")
    np.testing.assert_array_equal(y, [[[14, 20]]])
    assert y.dtype == np.float32


def test_a_gated_linear_by_hand() -> None:
    """The first matrix is the gate: silu(2 · 3 + 1) · (2 · 5 − 4)."""
    x = np.array([[[2]]], np.float32)
    inputs = {
        "weight": pack_panels(np.array([[[3]], [[5]]], np.float32)),
        "bias": np.array([1, -4], np.float32),
    }
    np.testing.assert_allclose(
        linear(x, inputs, 1, "silu_glu"), [[[7 / (1 + np.exp(-7)) * 6]]], rtol=1e-6
    )


def test_the_norm_by_hand() -> None:
    """The mean of 1 and 6 squared is 18.5; with the epsilon the root is √19."""
    inputs = {
        "weight": pack_panels(np.array([[[1, 0], [1, 1]]], np.float32)),
        "norm": np.array([2, 3], np.float32),
    }
    y = linear(np.array([[[1, 6]]], np.float32), inputs, 2)
    np.testing.assert_allclose(y, [[[2 / np.sqrt(19), 20 / np.sqrt(19)]]], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.integers(1, 150),
    depth=st.integers(1, 60),
    activation=st.sampled_from(["none", *GATED]),
    optional=st.sets(st.sampled_from(["norm", "bias", "residual"])),
)
def test_linear_is_the_plain_product(
    seed: int, columns: int, depth: int, activation: str, optional: set[str]
) -> None:
    make, matrices = Maker(str(seed), "fp32"), 2 if GATED.get(activation) else 1
    weights = make.f32(matrices, columns, depth, scale=depth**-0.5)
    x, every = make.f32(2, 3, depth), make.f32(matrices, columns)
    drawn = {
        "norm": make.f32(depth),
        "bias": every.reshape(-1),
        "residual": make.f32(2, 3, columns),
    }
    inputs = {name: drawn[name] for name in optional}
    rows = x.astype(np.float64)
    if "norm" in optional:
        rows = rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + 0.5) * drawn["norm"]
    sides = [rows @ matrix.T for matrix in weights]
    if "bias" in optional:
        sides = [side + own for side, own in zip(sides, every, strict=True)]
    expected = activate(activation, sides[0].astype(np.float32)).astype(np.float64)
    if matrices == 2:
        expected = expected * sides[1]
    if "residual" in optional:
        expected = expected + drawn["residual"]
    y = linear(x, {"weight": pack_panels(weights), **inputs}, columns, activation)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


def test_projections_are_the_columns_of_one_linear() -> None:
    make = Maker("projections", "fp32")
    inputs = {
        "weight": pack_panels(make.f32(1, 90, 37)),
        "norm": make.f32(37),
        "bias": make.f32(90),
    }
    x = make.f32(2, 3, 37)
    parts = PROJECTIONS.reference(x, **inputs, query_columns=50, kv_columns=20, epsilon=0.5)
    assert [part.shape[-1] for part in parts] == [50, 20, 20]
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), linear(x, inputs, 90))


def panel_inputs(matrices: int = 1, *rest: int) -> list[ir.Value]:
    """x of depth 37 and matrices of 77 columns; `rest` replaces the other sizes of the panels."""
    shape = rest or (2, 37, 64)
    return [value("x", FP32, "B", "T", 37), value("weight", FP32, matrices, *shape)]


def attributes(activation: str = "none") -> dict[str, Any]:
    return {"columns": 77, "activation": activation, "epsilon": 0.0}


@pytest.mark.parametrize(("activation", "matrices"), [("none", 1), ("relu", 1), ("gelu_glu", 2)])
def test_a_linear_has_as_many_columns_as_it_says(activation: str, matrices: int) -> None:
    inputs = [*panel_inputs(matrices), None, value("bias", FP32, matrices * 77)]
    y = LINEAR.emit(new_builder().op, *inputs, **attributes(activation))
    assert dims(y) == ["B", "T", 77]
    assert y.dtype == FP32


def test_projections_have_as_many_columns_as_they_say() -> None:
    sizes: dict[str, Any] = {"query_columns": 37, "kv_columns": 20, "epsilon": 0.0}
    q, k, v = PROJECTIONS.emit(new_builder().op, *panel_inputs(), **sizes)
    assert [dims(part)[-1] for part in (q, k, v)] == [37, 20, 20]
    with pytest.raises(OperatorError, match="weight"):
        PROJECTIONS.emit(new_builder().op, *panel_inputs(2), **sizes)


def test_every_form_has_a_function_of_its_own() -> None:
    builder = new_builder()
    x, weight = panel_inputs()
    for activation in ("none", "relu", "none"):
        LINEAR.emit(builder.op, x, weight, **attributes(activation))
    sizes: dict[str, Any] = {"query_columns": 37, "kv_columns": 20, "epsilon": 0.0}
    PROJECTIONS.emit(builder.op, x, weight, value("norm", FP32, 37), **sizes)
    assert sorted(f.identifier() for f in functions_for(builder.graph.all_nodes())) == [
        ("drl", "Linear", "x,weight,activation=none"),
        ("drl", "Linear", "x,weight,activation=relu"),
        ("drl", "Projections", "x,weight,norm"),
    ]


@pytest.mark.parametrize(
    "weight", [(2, 2, 37, 64), (1, 1, 37, 64), (1, 2, 36, 64), (1, 2, 37, 32), (1, 77, 37)], ids=str
)
def test_weights_that_do_not_fit_are_refused(weight: tuple[int, ...]) -> None:
    with pytest.raises(OperatorError, match="Linear: input 'weight' must be"):
        LINEAR.emit(new_builder().op, *panel_inputs(*weight), **attributes())


def test_a_gated_activation_takes_two_matrices() -> None:
    with pytest.raises(OperatorError, match="Linear: input 'weight' must be"):
        LINEAR.emit(new_builder().op, *panel_inputs(1), **attributes("silu_glu"))
