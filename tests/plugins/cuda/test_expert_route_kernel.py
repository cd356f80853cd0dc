"""The kernel of `ExpertRoute`, emulated on the host, against the reference."""

from typing import Any

import numpy as np
import pytest

from drl.plugins.cuda.calls import Call, expert_route_call
from drl.plugins.ops import EXPERT_ROUTE
from tests.plugins.cuda.emulator import COMPILER, emulate
from tests.plugins.ops.case import ROUTING_TOLERANCE, Array, Case, Maker
from tests.plugins.ops.cases import expert_route_cases

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="there is no C++ compiler to emulate a GPU with; install g++ or clang"
)


def _call(inputs: dict[str, Array]) -> Call:
    return expert_route_call(**{**inputs, "k": int(inputs["k"][0])})


def _assert_route(actual: tuple[Array, ...], expected: Any) -> None:
    ids, gates = expected
    np.testing.assert_array_equal(actual[0], ids)
    np.testing.assert_allclose(actual[1], gates, atol=ROUTING_TOLERANCE, rtol=ROUTING_TOLERANCE)
    assert (actual[0].dtype, actual[1].dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("case", list(expert_route_cases()), ids=str)
def test_the_kernel_passes_the_cases_of_its_operator(case: Case, aligned: bool) -> None:
    _assert_route(emulate(_call(case.inputs), aligned=aligned), case.expected().values())


def _inputs(
    *, width: int, experts: int, groups: int, k: int, precision: str = "fp16", tokens: int = 3
) -> dict[str, Array]:
    make = Maker(f"{width}-{experts}-{groups}", precision)
    log_probs = make.f32(1, tokens, groups)
    return {
        "hidden": make.ft(1, tokens, width),
        "weight": make.ft(width, experts, scale=4 * width**-0.5),
        "prior_scale": np.array(0.7, np.float32),
        "group_log_probs": log_probs,
        "allowed": make.top_groups(log_probs, max(1, groups // 2)),
        "token_mask": np.array([[True] * (tokens - 1) + [False]]),
        "k": np.array([k]),
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("width", "experts", "groups", "k"),
    [
        (1, 1, 1, 1),
        (37, 7, 7, 3),
        (300, 100, 10, 8),
        (64, 256, 16, 8),
        (515, 24, 3, 2),
        (2048, 8, 4, 1),
        (40, 33, 1, 33),
    ],
)
def test_sizes_that_fit_no_block(
    precision: str, width: int, experts: int, groups: int, k: int
) -> None:
    inputs = _inputs(width=width, experts=experts, groups=groups, k=k, precision=precision)
    _assert_route(emulate(_call(inputs)), EXPERT_ROUTE.reference(**inputs))


def test_a_token_does_not_depend_on_its_batch_mates() -> None:
    inputs = _inputs(width=130, experts=24, groups=4, k=3, tokens=6)
    inputs["hidden"][0, 3] = np.nan
    ids, gates = emulate(_call(inputs))
    names = ("hidden", "group_log_probs", "allowed", "token_mask")
    for token in (0, 2, 4, 5):
        row = np.s_[:, token : token + 1]
        alone = emulate(_call(inputs | {name: inputs[name][row] for name in names}), seed=token)
        np.testing.assert_array_equal(alone[0], ids[row])
        np.testing.assert_array_equal(alone[1], gates[row])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_token_that_is_not_finite_has_gates_that_are_not(value: float) -> None:
    inputs = _inputs(width=16, experts=8, groups=4, k=3)
    inputs["hidden"][0, :, 5] = value
    ids, gates = emulate(_call(inputs))
    with np.errstate(all="ignore"):
        expected_ids, expected_gates = EXPERT_ROUTE.reference(**inputs)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(gates, expected_gates)
    assert np.isnan(gates[0, :-1]).all()
    np.testing.assert_array_equal(gates[0, -1], 0)
