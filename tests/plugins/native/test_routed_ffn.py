"""The routed feed-forward layer, against its linears and against the operator."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ACTIVATIONS, ParallelFor, RoutedWeights
from drl.plugins.ops import ROUTED_FFN
from drl.plugins.ops.packing import Format
from tests.plugins.native.arithmetic import Float32, same_bits
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.native.weights import FORMATS, PACK, filled, matrix_of
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.cases import routed_ffn_cases

pytestmark = needs_library

# Of the operator's activations, which one the kernel applies.
APPLIED = {"silu_glu": "silu", "gelu_glu": "gelu_tanh"}
CASES = [case for case in routed_ffn_cases() if case.precision == "fp32"]


def pack(inputs: dict[str, Array], format: Format = "int8") -> RoutedWeights:
    """The weights of a case, whose matrices are [in, out]."""
    packed = {
        name: PACK[format](inputs[name].swapaxes(1, 2))
        for name in ("up", "down", "gate")
        if name in inputs
    }
    return RoutedWeights(**packed, **{n: a for n, a in inputs.items() if n.endswith("bias")})


def run(native: Kernels, inputs: dict[str, Array], weights: RoutedWeights, kind: str) -> Float32:
    hidden, ids, gates = (inputs[name] for name in ("hidden", "expert_ids", "gates"))
    flat = hidden.reshape(-1, hidden.shape[-1])
    choices = len(flat), ids.shape[-1]
    residual = inputs.get("residual")
    return native.routed_ffn(
        flat,
        ids.reshape(choices),
        gates.reshape(choices),
        weights,
        APPLIED.get(kind, kind),
        None if residual is None else residual.reshape(flat.shape),
    ).reshape(hidden.shape)


def by_linears(
    native: Kernels, inputs: dict[str, Array], weights: RoutedWeights, kind: str
) -> Float32:
    """The same layer out of linears, one token and expert at a time."""
    activation = APPLIED.get(kind, kind)

    def linear(x: Float32, name: str, expert: int, then: str = "none") -> Float32:
        bias = getattr(weights, f"{name}_bias")
        own = matrix_of(getattr(weights, name), expert)
        return native.linear(x, own, None if bias is None else bias[expert], then)

    output = np.zeros(inputs["hidden"].shape, np.float32)
    for token in np.ndindex(output.shape[:2]):
        x, ids = inputs["hidden"][token][None], inputs["expert_ids"][token]
        for slot in np.argsort(ids, kind="stable"):
            expert = int(ids[slot])
            if expert < 0:
                continue
            if weights.gate is None:
                middle = linear(x, "up", expert, activation)
            else:
                middle = linear(x, "gate", expert, activation) * linear(x, "up", expert)
            output[token] += inputs["gates"][token][slot] * linear(middle, "down", expert)[0]
    return output + inputs["residual"] if "residual" in inputs else output


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_is_its_linears_to_the_last_bit(isa: str, format: Format, case: Case) -> None:
    native, kind = kernels(isa), case.attributes["activation"]
    weights = pack(case.inputs, format)
    inputs = case.inputs | {"residual": case.inputs["hidden"] * np.float32(3)}
    for given_inputs in (case.inputs, inputs):
        expected = by_linears(native, given_inputs, weights, kind)
        assert same_bits(run(native, given_inputs, weights, kind), expected)


# These layers are tiny: a row has 16 and 24 values, so their rounding hardly averages out.
@pytest.mark.parametrize(("format", "error"), [("int8", 0.04), ("int4", 0.3), ("int8-block", 0.04)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_is_near_the_operator_in_fp32(case: Case, format: Format, error: float) -> None:
    got = run(Kernels(), case.inputs, pack(case.inputs, format), case.attributes["activation"])
    expected = ROUTED_FFN.reference(**case.inputs, **case.attributes)
    assert np.abs(got - expected).max() <= error * np.abs(expected).max()


def layer(
    seed: int,
    tokens: int,
    width: int,
    inner: int,
    experts: int,
    choices: int,
    format: Format = "int8",
    gated: bool = True,
) -> tuple[dict[str, Array], RoutedWeights]:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Float32:
        return np.asarray(random.standard_normal(shape), np.float32)

    inputs = {
        "hidden": normal(1, tokens, width),
        "expert_ids": random.integers(-1, experts, (1, tokens, choices)).astype(np.int32),
        "gates": random.random((1, tokens, choices), np.float32),
    }
    if seed % 2:
        inputs["residual"] = normal(1, tokens, width)
    weights = RoutedWeights(
        filled(format, experts, inner, width, seed),
        filled(format, experts, width, inner, seed + 1),
        filled(format, experts, inner, width, seed + 2) if gated else None,
        normal(experts, inner) if seed % 3 == 0 else None,
        normal(experts, width) if seed % 5 == 0 else None,
        normal(experts, inner) if seed % 7 == 0 and gated else None,
    )
    return inputs, weights


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(0, 40),
    width=st.integers(1, 70),
    inner=st.integers(1, 100),
    experts=st.integers(1, 9),
    choices=st.integers(0, 4),
    format=st.sampled_from(FORMATS),
    gated=st.booleans(),
)
def test_every_instruction_set_computes_the_same_bits(
    seed: int,
    tokens: int,
    width: int,
    inner: int,
    experts: int,
    choices: int,
    format: Format,
    gated: bool,
) -> None:
    inputs, weights = layer(seed, tokens, width, inner, experts, choices, format, gated)
    kind = "silu_glu" if gated else "gelu"
    found = all_kernels()
    scalar = found.pop("scalar")
    expected = run(scalar, inputs, weights, kind)
    assert np.isfinite(expected).all()
    assert same_bits(expected, by_linears(scalar, inputs, weights, kind))
    for isa, native in found.items():
        assert same_bits(run(native, inputs, weights, kind), expected), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("parallel_for", [backwards, on_threads])
@pytest.mark.parametrize("tokens", [1, 60])
def test_threads_and_their_order_change_nothing(
    isa: str, format: Format, parallel_for: ParallelFor, tokens: int
) -> None:
    inputs, weights = layer(1, tokens, 260, 600, 5, 2, format)
    expected = run(kernels(isa), inputs, weights, "gelu_glu")
    assert same_bits(run(kernels(isa, parallel_for), inputs, weights, "gelu_glu"), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_token_does_not_depend_on_the_others(isa: str, format: Format) -> None:
    inputs, weights = layer(15, 50, 48, 80, 4, 2, format)
    together = run(kernels(isa), inputs, weights, "silu_glu")
    for token in range(50):
        own = {name: array[:, token : token + 1] for name, array in inputs.items()}
        assert same_bits(run(kernels(isa), own, weights, "silu_glu")[:, 0], together[:, token])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("choices", [1, 2, 3, 4])
@pytest.mark.parametrize("expert", [-1, 0, 3])
@pytest.mark.parametrize("tokens", [1, 30])
def test_all_tokens_may_choose_one_expert_or_none(
    isa: str, choices: int, expert: int, tokens: int
) -> None:
    inputs, weights = layer(3, tokens, 48, 80, 4, choices)
    inputs["expert_ids"][:] = expert
    expected = by_linears(kernels(isa), inputs, weights, "silu_glu")
    assert same_bits(run(kernels(isa), inputs, weights, "silu_glu"), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", ["int4", "int8-block"])
def test_up_and_down_may_have_different_formats(isa: str, format: Format) -> None:
    inputs, weights = layer(3, 20, 48, 80, 4, 2)
    mixed = dataclasses.replace(weights, down=filled(format, 4, 48, 80))
    expected = by_linears(kernels(isa), inputs, mixed, "silu_glu")
    assert same_bits(run(kernels(isa), inputs, mixed, "silu_glu"), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_token_that_is_not_finite_spoils_no_other(isa: str, format: Format, value: float) -> None:
    inputs, weights = layer(3, 20, 48, 80, 4, 2, format)
    inputs["expert_ids"][0, 5] = [2, 1]
    expected = run(kernels(isa), inputs, weights, "silu_glu")
    inputs["hidden"][0, 5, 7] = value
    expected[0, 5] = np.nan
    assert same_bits(run(kernels(isa), inputs, weights, "silu_glu"), expected)


@pytest.mark.parametrize("expert", [-2, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_an_expert_that_does_not_exist_is_refused(expert: int, tokens: int) -> None:
    inputs, weights = layer(4, tokens, 8, 8, 4, 1, gated=False)
    inputs["expert_ids"][0, -1, 0] = expert
    with pytest.raises(NativeLibraryError, match=r"outside of \[-1, experts\)"):
        run(Kernels(), inputs, weights, "relu")


def test_an_activation_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "none such", 5)
    inputs, weights = layer(4, 3, 8, 8, 4, 1, gated=False)
    x, ids, gates = (inputs[name][0] for name in ("hidden", "expert_ids", "gates"))
    with pytest.raises(NativeLibraryError, match="an enum has no such value"):
        Kernels().routed_ffn(x, ids, gates, weights, "none such")


def test_expert_ids_of_another_rank_are_refused() -> None:
    inputs, weights = layer(4, 3, 8, 8, 4, 1, gated=False)
    x, ids, gates = (inputs[name][0] for name in ("hidden", "expert_ids", "gates"))
    with pytest.raises(NativeLibraryError, match=r"must be \(3, choices\), got \(3,\)"):
        Kernels().routed_ffn(x, ids[:, 0], gates[:, 0], weights, "relu")


def test_weights_that_do_not_fit_each_other_are_refused() -> None:
    inputs, fit = layer(4, 3, 8, 12, 4, 2)
    for odd in (
        dataclasses.replace(fit, down=fit.up),
        dataclasses.replace(fit, gate=fit.down),
        dataclasses.replace(fit, gate=filled("int4", 4, 12, 8)),
        dataclasses.replace(fit, down=filled("int8", 3, 8, 12)),
    ):
        with pytest.raises(NativeLibraryError, match="do not fit each other"):
            run(Kernels(), inputs, odd, "silu_glu")
