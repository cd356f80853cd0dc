"""Which arrays a call takes, and which tiling it chooses."""

from typing import Any

import numpy as np
import pytest

from drl.plugins.cuda import CudaKernelError
from drl.plugins.cuda.calls import (
    expert_route_call,
    routed_ffn_combine_call,
    routed_ffn_inner_call,
)
from drl.plugins.cuda.kernels import InnerKernel
from drl.plugins.cuda.tiling import choose_tiling
from tests.plugins.cuda.problems import Problem
from tests.plugins.ops.cases import expert_route_cases

GATED = Problem(activation="silu_glu", biased=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up": np.zeros((4, 17, 24), np.float16)}, r"'up' must be \[E, d, f\], not \[4, 17, 24\]"),
        ({"expert_ids": np.zeros((1, 5, 1), np.int64)}, "expert_ids must be int32, not int64"),
        ({"gate_bias": np.zeros((4, 24), np.float32)}, "gate_bias must be float16, not float32"),
        ({"gate_bias": None}, "biases of up and gate together"),
        ({"gate": None}, "gate_bias without gate"),
        ({"hidden": np.zeros((5, 16), np.float16)}, r"'hidden' must be \[B, T, d\]"),
        ({"up_scale": np.ones((4, 24), np.float32)}, "up must be int8, not float16"),
    ],
)
def test_inner_refuses_arrays_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    arrays = GATED.inner_arrays() | changes
    with pytest.raises(CudaKernelError, match=message):
        routed_ffn_inner_call(**arrays, activation="silu_glu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": np.zeros((1, 5, 1))}, "gates must be float32, not float64"),
        ({"down_scale": np.ones((4, 15), np.float32)}, r"must be float32 \[4, 16\]"),
        ({"down": np.zeros((4, 24, 16), np.int8), "down_scale": None}, "must be float16, not int8"),
    ],
)
def test_combine_refuses_arrays_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    arrays = Problem(int8=True).combine_arrays() | changes
    with pytest.raises(CudaKernelError, match=message):
        routed_ffn_combine_call(**arrays)


def test_expert_route_refuses_what_does_not_fit() -> None:
    inputs = next(iter(expert_route_cases())).inputs
    for changes, message in (
        ({"k": 9}, "chooses 9 of 8"),
        ({"k": 1, "weight": np.zeros((16, 257), np.float32)}, "at most 256 experts, not 257"),
        ({"k": 1, "weight": np.zeros((16, 6), np.float32)}, "6 experts do not make 4 equal groups"),
        ({"k": 1, "hidden": np.zeros((3, 5, 16))}, "states must be float32|must be float64"),
    ):
        with pytest.raises(CudaKernelError, match=message):
            expert_route_call(**{**inputs, **changes})


def test_products_in_fp32_are_refused() -> None:
    arrays = Problem(precision="fp32").inner_arrays()
    with pytest.raises(CudaKernelError, match="convert"):
        routed_ffn_inner_call(**arrays, activation="relu")


def test_the_order_of_sums_does_not_depend_on_the_batch() -> None:
    """Only wide tilings have another order, and the batch does not decide about them."""
    for steps in (1, 63, 64, 500):
        wide = {
            choose_tiling(batch * steps * 2, 8, 512, steps=steps).wide for batch in (1, 16, 4096)
        }
        assert wide == {steps >= 64}


def test_few_rows_get_as_many_blocks_as_there_can_be() -> None:
    def columns(slots: int, width: int) -> int:
        return choose_tiling(slots, 8, width).columns

    assert (columns(1, 512), columns(1, 2048), columns(1, 4096)) == (2, 4, 8)
    assert columns(8, 512) == 8
    call = routed_ffn_inner_call(**Problem().inner_arrays(), activation="relu")
    assert isinstance(call.kernel, InnerKernel)
    assert call.kernel.tiling.columns == 2
