"""The routed feed-forward layer with float weights: products are summed in a fixed order."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ACTIVATIONS, ParallelFor
from drl.plugins.ops import ROUTED_FFN
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
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.cases import routed_ffn_cases

pytestmark = needs_library

# Of the operator's activations, which one the kernel applies.
APPLIED = {"silu_glu": "silu", "gelu_glu": "gelu_tanh"}
CASES = [case for case in routed_ffn_cases() if case.precision == "fp32"]


def layer(
    tokens: int,
    width: int,
    inner: int,
    experts: int,
    choices: int,
    *,
    gated: bool = True,
    biased: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """Inputs of a layer; ids are -1 here and there."""
    random = np.random.default_rng([seed, tokens, experts])
    inputs: dict[str, Array] = {
        "x": draw(tokens, width, seed=seed),
        "expert_ids": random.integers(-1, experts, (tokens, choices)).astype(np.int32),
        "gates": draw(tokens, choices, seed=seed + 1),
        "up": draw(experts, width, inner, seed=seed + 2),
        "down": draw(experts, inner, width, seed=seed + 3),
    }
    if gated:
        inputs["gate"] = draw(experts, width, inner, seed=seed + 4)
    if biased:
        inputs["up_bias"] = draw(experts, inner, seed=seed + 5)
        inputs["down_bias"] = draw(experts, width, seed=seed + 6)
    if biased and gated:
        inputs["gate_bias"] = draw(experts, inner, seed=seed + 7)
    return inputs


def run(native: Kernels, inputs: dict[str, Array], activation: str = "silu") -> Float32:
    arguments: dict[str, Any] = dict(inputs)
    return native.float_routed_ffn(**arguments, activation=activation)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 14),
    width=st.integers(1, 80),
    inner=st.integers(1, 80),
    experts=st.integers(1, 5),
    choices=st.integers(0, 4),
    gated=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_instruction_set_computes_the_documented_bits(
    tokens: int,
    width: int,
    inner: int,
    experts: int,
    choices: int,
    gated: bool,
    biased: bool,
    seed: int,
) -> None:
    inputs = layer(tokens, width, inner, experts, choices, gated=gated, biased=biased, seed=seed)
    expected = arithmetic.float_routed_ffn(**inputs)
    for isa, native in all_kernels().items():
        assert same_bits(run(native, inputs, "relu"), expected), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_gives_what_the_operator_gives(isa: str, case: Case) -> None:
    names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
    hidden, ids, gates = (case.inputs[name] for name in ("hidden", "expert_ids", "gates"))
    tokens = hidden.shape[0] * hidden.shape[1]
    activation = case.attributes["activation"]
    found = kernels(isa).float_routed_ffn(
        hidden.reshape(tokens, -1),
        ids.reshape(tokens, ids.shape[-1]),
        gates.reshape(tokens, ids.shape[-1]),
        **{name: case.inputs[name] for name in names if name in case.inputs},
        activation=APPLIED.get(activation, activation),
    )
    expected = ROUTED_FFN.reference(**case.inputs, **case.attributes)
    np.testing.assert_allclose(found.reshape(hidden.shape), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run_tasks", [None, backwards, on_threads])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("gated", [False, True])
def test_threads_and_their_order_change_nothing(
    isa: str, run_tasks: ParallelFor | None, tokens: int, gated: bool
) -> None:
    inputs = layer(tokens, 300, 700, 4, 2, gated=gated, biased=True)
    expected = run(kernels("scalar"), inputs)
    assert same_bits(run(kernels(isa, run_tasks), inputs), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("choices", [1, 2])
def test_a_token_does_not_depend_on_its_batch(isa: str, choices: int) -> None:
    """All sizes of groups of rows, up to blocks of many."""
    inputs = layer(230, 130, 260, 2, choices)
    whole = run(kernels(isa), inputs)
    tokens = ("x", "expert_ids", "gates")
    for first, last in ((0, 1), (1, 3), (3, 10), (10, 23), (0, 120), (117, 230)):
        part = {n: a[first:last] if n in tokens else a for n, a in inputs.items()}
        assert same_bits(run(kernels(isa), part), whole[first:last])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("expert", [-1, 0, 3])
def test_all_tokens_may_choose_one_expert_or_none(isa: str, expert: int) -> None:
    inputs = layer(20, 48, 80, 4, 2)
    inputs["expert_ids"][:] = expert
    found = run(kernels(isa), inputs, "relu")
    assert same_bits(found, arithmetic.float_routed_ffn(**inputs))
    assert found.any() == (expert >= 0)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_token_that_is_not_finite_spoils_no_other(isa: str, value: float) -> None:
    inputs = layer(20, 48, 80, 4, 2)
    inputs["expert_ids"][5] = [2, 1]
    expected = run(kernels(isa), inputs)
    inputs["x"][5, 7] = value
    found = run(kernels(isa), inputs)
    assert not np.isfinite(found[5]).any()
    assert same_bits(np.delete(found, 5, 0), np.delete(expected, 5, 0))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_an_expert_that_nobody_chose_is_not_read(isa: str) -> None:
    inputs = layer(9, 48, 80, 4, 2)
    inputs["expert_ids"][inputs["expert_ids"] == 2] = 1
    expected = run(kernels(isa), inputs)
    for name in ("up", "down", "gate"):
        inputs[name][2] = np.nan
    assert same_bits(run(kernels(isa), inputs), expected)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_instruction_set_has_every_activation(activation: str) -> None:
    for gated in (False, True):
        inputs = layer(7, 48, 80, 3, 2, gated=gated, biased=True)
        expected = run(kernels("scalar"), inputs, activation)
        for isa, native in all_kernels().items():
            assert same_bits(run(native, inputs, activation), expected), isa


def test_what_does_not_fit_is_refused() -> None:
    inputs = layer(3, 8, 12, 4, 2, biased=True)
    for name in inputs:
        wrong = {**inputs, name: inputs[name][..., :-1]}
        with pytest.raises(NativeLibraryError, match="must be"):
            run(Kernels(), wrong)
    inputs["expert_ids"][1, 1] = 4
    with pytest.raises(NativeLibraryError, match="expert"):
        run(Kernels(), inputs)
