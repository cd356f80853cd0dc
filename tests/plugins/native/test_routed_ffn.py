"""The routed feed-forward layer in int8, against its linears and against the operator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ParallelFor, RoutedWeights
from drl.plugins.ops import ROUTED_FFN
from tests.plugins.native.arithmetic import Float32, same_bits
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.cases import routed_ffn_cases

pytestmark = needs_library

# Of the operator's activations, which one the kernel applies.
APPLIED = {"silu_glu": "silu", "gelu_glu": "gelu_tanh"}
CASES = [case for case in routed_ffn_cases() if case.precision == "fp32"]


def pack(native: Kernels, inputs: dict[str, Array]) -> RoutedWeights:
    """The weights of a case, whose matrices are [in, out]."""
    packed = {
        name: native.pack(inputs[name].swapaxes(1, 2))
        for name in ("up", "down", "gate")
        if name in inputs
    }
    return RoutedWeights(**packed, **{n: a for n, a in inputs.items() if n.endswith("bias")})


def run(native: Kernels, inputs: dict[str, Array], weights: RoutedWeights, kind: str) -> Float32:
    hidden, ids, gates = (inputs[name] for name in ("hidden", "expert_ids", "gates"))
    flat = hidden.reshape(-1, hidden.shape[-1])
    choices = len(flat), ids.shape[-1]
    activation = APPLIED.get(kind, kind)
    return native.routed_ffn(
        flat, ids.reshape(choices), gates.reshape(choices), weights, activation
    ).reshape(hidden.shape)


def by_linears(
    native: Kernels, inputs: dict[str, Array], weights: RoutedWeights, kind: str
) -> Float32:
    """The same layer out of linears, one token and expert at a time."""
    activation = APPLIED.get(kind, kind)

    def linear(x: Float32, name: str, expert: int, then: str = "none") -> Float32:
        values, scales = native.unpack(getattr(weights, name))
        bias = getattr(weights, f"{name}_bias")
        packed = native.pack_int8(values[expert], scales[expert])
        return native.linear(x, packed, None if bias is None else bias[expert], then)

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
    return output


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_is_its_linears_to_the_last_bit(isa: str, case: Case) -> None:
    native, kind = kernels(isa), case.attributes["activation"]
    weights = pack(native, case.inputs)
    expected = by_linears(native, case.inputs, weights, kind)
    assert same_bits(run(native, case.inputs, weights, kind), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_is_near_the_operator_in_fp32(case: Case) -> None:
    native = Kernels()
    got = run(native, case.inputs, pack(native, case.inputs), case.attributes["activation"])
    expected = ROUTED_FFN.reference(**case.inputs, **case.attributes)
    largest = np.abs(expected).max()
    # These layers are tiny: a row has 16 and 24 values, so their rounding hardly averages out.
    assert np.abs(got - expected).max() <= 0.04 * largest


def layer(
    seed: int, tokens: int, width: int, inner: int, experts: int, choices: int, gated: bool
) -> dict[str, Array]:
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return np.asarray(random.standard_normal(shape) * shape[1] ** -0.5, np.float32)

    inputs = {
        "hidden": np.asarray(random.standard_normal((1, tokens, width)), np.float32),
        "expert_ids": random.integers(-1, experts, (1, tokens, choices)).astype(np.int32),
        "gates": random.random((1, tokens, choices), np.float32),
        "up": weights(experts, width, inner),
        "down": weights(experts, inner, width),
    }
    return inputs | ({"gate": weights(experts, width, inner)} if gated else {})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(0, 40),
    width=st.integers(1, 70),
    inner=st.integers(1, 100),
    experts=st.integers(1, 9),
    choices=st.integers(0, 3),
    gated=st.booleans(),
)
def test_every_instruction_set_computes_the_same_bits(
    seed: int, tokens: int, width: int, inner: int, experts: int, choices: int, gated: bool
) -> None:
    inputs = layer(seed, tokens, width, inner, experts, choices, gated)
    found = all_kernels()
    weights = pack(found["scalar"], inputs)
    expected = run(found.pop("scalar"), inputs, weights, "silu_glu" if gated else "gelu")
    assert np.isfinite(expected).all()
    for isa, native in found.items():
        got = run(native, inputs, weights, "silu_glu" if gated else "gelu")
        assert same_bits(got, expected), isa


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("parallel_for", [backwards, on_threads])
@pytest.mark.parametrize("tokens", [1, 60])
def test_threads_and_their_order_change_nothing(
    isa: str, parallel_for: ParallelFor, tokens: int
) -> None:
    inputs = layer(1, tokens, 260, 600, 5, 2, gated=True)
    serial, parallel = kernels(isa), kernels(isa, parallel_for)
    weights = pack(serial, inputs)
    expected = run(serial, inputs, weights, "gelu_glu")
    assert same_bits(run(parallel, inputs, weights, "gelu_glu"), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_token_does_not_depend_on_the_others(isa: str) -> None:
    inputs = layer(2, 50, 48, 80, 4, 2, gated=True)
    native = kernels(isa)
    weights = pack(native, inputs)
    together = run(native, inputs, weights, "silu_glu")
    for token in range(50):
        own = {n: inputs[n][:, token : token + 1] for n in ("hidden", "expert_ids", "gates")}
        assert same_bits(run(native, own, weights, "silu_glu")[:, 0], together[:, token])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_token_that_is_not_finite_spoils_no_other(isa: str) -> None:
    inputs = layer(3, 20, 48, 80, 4, 2, gated=True)
    native = kernels(isa)
    weights = pack(native, inputs)
    inputs["expert_ids"][0, 5] = [2, 1]
    expected = run(native, inputs, weights, "silu_glu")
    inputs["hidden"][0, 5, 7] = np.nan
    expected[0, 5] = np.nan
    assert same_bits(run(native, inputs, weights, "silu_glu"), expected)


@pytest.mark.parametrize("expert", [-2, 4, 2**31 - 1, -(2**31)])
def test_an_expert_that_does_not_exist_is_refused(expert: int) -> None:
    inputs = layer(4, 3, 8, 8, 4, 2, gated=False)
    inputs["expert_ids"][0, 1, 1] = expert
    with pytest.raises(NativeLibraryError, match=r"outside of \[-1, experts\)"):
        run(Kernels(), inputs, pack(Kernels(), inputs), "relu")


def test_weights_that_do_not_fit_each_other_are_refused() -> None:
    inputs = layer(4, 3, 8, 12, 4, 2, gated=True)
    native = Kernels()
    fit = pack(native, inputs)
    for up, down, gate in (
        (fit.up, fit.up, fit.gate),
        (fit.up, fit.down, fit.down),
        (fit.up, native.pack(np.ones((3, 8, 12), np.float32)), None),
    ):
        with pytest.raises(NativeLibraryError, match="do not fit each other"):
            run(native, inputs, RoutedWeights(up, down, gate), "silu_glu")
