"""The kernels of the layer of experts, emulated on the host, against the references."""

from dataclasses import replace

import numpy as np
import pytest

from drl.plugins.cuda.calls import routed_ffn_combine_call, routed_ffn_inner_call
from drl.plugins.cuda.tiling import WIDE, Tiling
from drl.plugins.ops import ROUTED_FFN_INNER
from tests.plugins.cuda.emulator import COMPILER, emulate
from tests.plugins.cuda.problems import (
    COMBINE_PROBLEMS,
    INNER_PROBLEMS,
    NARROW,
    Problem,
    assert_close,
)
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import routed_ffn_combine_cases, routed_ffn_inner_cases

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="there is no C++ compiler to emulate a GPU with; install g++ or clang"
)
HALF_PRECISION = [
    case
    for case in (*routed_ffn_inner_cases(), *routed_ffn_combine_cases())
    if case.precision != "fp32"
]


@pytest.mark.parametrize("case", HALF_PRECISION, ids=str)
def test_the_kernels_pass_the_cases_of_their_operators(case: Case) -> None:
    inner = case.operator is ROUTED_FFN_INNER
    call = routed_ffn_inner_call if inner else routed_ffn_combine_call
    (actual,) = emulate(call(**case.inputs, **case.attributes))
    (expected,) = case.expected().values()
    assert_close(actual, expected, case.tolerance)


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("problem", INNER_PROBLEMS, ids=str)
def test_inner_equals_the_reference(problem: Problem, aligned: bool) -> None:
    arrays = problem.inner_arrays()
    (actual,) = emulate(problem.inner_call(arrays), aligned=aligned)
    assert_close(actual, problem.inner_expected(arrays), problem.tolerance)


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("problem", COMBINE_PROBLEMS, ids=str)
def test_combine_equals_the_reference(problem: Problem, aligned: bool) -> None:
    arrays = problem.combine_arrays()
    (actual,) = emulate(problem.combine_call(arrays), aligned=aligned)
    assert_close(actual, problem.combine_expected(arrays), problem.tolerance)


def test_ids_beyond_the_experts_count_as_none() -> None:
    problem = Problem(tokens=4, k=2)
    arrays = problem.inner_arrays()
    arrays["expert_ids"] = np.array([[[0, 4], [-7, 1], [2**31 - 1, 3], [2, -(2**31)]]], np.int32)
    (actual,) = emulate(problem.inner_call(arrays))
    known = arrays["expert_ids"].copy()
    known[(known < 0) | (known > 3)] = -1
    expected = problem.inner_expected({**arrays, "expert_ids": known})
    assert_close(actual, expected, problem.tolerance)


SEVERAL = Problem(tokens=21, k=2, experts=3, width=40, inner=72, activation="silu_glu")
ONE = replace(SEVERAL, k=1)


@pytest.mark.parametrize("problem", [ONE, SEVERAL], ids=["k1", "k2"])
def test_a_row_does_not_depend_on_its_batch_mates(problem: Problem) -> None:
    """To the last bit, whatever else is in the batch and whether it has NaN."""
    arrays = problem.inner_arrays()
    arrays["hidden"][0, -1] = np.nan
    (inner,) = emulate(problem.inner_call(arrays))
    combine = problem.combine_arrays()
    combine |= {"inner": inner, "expert_ids": arrays["expert_ids"]}
    (output,) = emulate(problem.combine_call(combine))
    for token in (0, 7, 19):
        row = np.s_[:, token : token + 1]
        alone = {**arrays, "hidden": arrays["hidden"][row], "expert_ids": arrays["expert_ids"][row]}
        (raised,) = emulate(problem.inner_call(alone))
        np.testing.assert_array_equal(raised, inner[row])
        mine = {name: combine[name][row] for name in ("inner", "expert_ids", "gates")}
        (lowered,) = emulate(problem.combine_call({**combine, **mine}))
        np.testing.assert_array_equal(lowered, output[row])
    assert np.isnan(output[0, -1]).all()
    assert np.isfinite(output[0, :-1]).all()


@pytest.mark.parametrize("problem", [ONE, SEVERAL], ids=["k1", "k2"])
def test_tilings_that_are_not_wide_give_the_same_bits(problem: Problem) -> None:
    tilings = [NARROW, Tiling(4, 4), Tiling(2, 2), *([Tiling(8, 2)] if problem.k == 1 else [])]
    arrays, combine = problem.inner_arrays(), problem.combine_arrays()
    first, second = (
        [emulate(call(replace(problem, tiling=tiling), given))[0] for tiling in tilings]
        for call, given in ((Problem.inner_call, arrays), (Problem.combine_call, combine))
    )
    for outputs in (first, second):
        for other in outputs[1:]:
            np.testing.assert_array_equal(other.view(np.uint16), outputs[0].view(np.uint16))


@pytest.mark.parametrize("tiling", [NARROW, WIDE], ids=["narrow", "wide"])
def test_the_order_of_threads_changes_nothing(tiling: Tiling) -> None:
    problem = replace(SEVERAL, tiling=tiling)
    arrays, combine = problem.inner_arrays(), problem.combine_arrays()
    for call in (problem.inner_call(arrays), problem.combine_call(combine)):
        outputs = [emulate(call, seed=seed)[0] for seed in range(4)]
        for other in outputs[1:]:
            np.testing.assert_array_equal(other, outputs[0])


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh", "silu_glu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 6e4])
def test_values_that_are_not_finite_come_out_as_in_the_reference(
    activation: str, value: float
) -> None:
    problem = Problem(tokens=6, k=2, activation=activation)
    arrays = problem.inner_arrays()
    arrays["hidden"][0, 2, 3] = value
    arrays["up"][1, 5, 7] = value
    (actual,) = emulate(problem.inner_call(arrays))
    expected = problem.inner_expected(arrays)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    combine = problem.combine_arrays()
    combine["inner"][0, 1, 0, 4] = value
    (lowered,) = emulate(problem.combine_call(combine))
    assert_close(lowered, problem.combine_expected(combine), problem.tolerance)


def test_results_beyond_fp16_become_infinite() -> None:
    problem = Problem(tokens=1, experts=1, width=16)
    arrays = problem.inner_arrays()
    arrays["hidden"][...], arrays["up"][...] = 100, 100
    (actual,) = emulate(problem.inner_call(arrays))
    assert np.isposinf(actual).all()
