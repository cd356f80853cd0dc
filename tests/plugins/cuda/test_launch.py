"""The kernels on a GPU, launched from Python, against the references."""

from typing import Any

import numpy as np
import pytest

from drl.plugins.cuda import CudaKernelError, launch
from drl.plugins.cuda.calls import Call, expert_route_call
from drl.plugins.cuda.launch import Launcher, missing
from tests.plugins.cuda.problems import COMBINE_PROBLEMS, INNER_PROBLEMS, Problem, assert_close
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.cases import expert_route_cases

MISSING = missing()
on_a_gpu = pytest.mark.skipif(
    bool(MISSING),
    reason=f"{MISSING}: pytest -q tests/plugins/cuda/test_launch.py (benchmarks/gpu/README.md)",
)


def _launched(call: Call, dtype: Any) -> list[Array]:
    """Send a call's arrays to the GPU, launch, and fetch; bfloat16 travels as its bits."""
    import cupy

    def send(array: Array) -> Any:
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        return cupy.asarray(np.ascontiguousarray(bits))

    on_device = Call(
        call.kernel, tuple(send(a) for a in call.inputs), call.sizes, call.outputs, call.grid
    )
    results = [cupy.asnumpy(array) for array in Launcher()(on_device)]
    return [
        array if output.dtype else array.view(dtype)
        for array, output in zip(results, call.outputs, strict=True)
    ]


@on_a_gpu
@pytest.mark.parametrize("case", list(expert_route_cases()), ids=str)
def test_expert_route(case: Case) -> None:
    call = expert_route_call(**{**case.inputs, "k": int(case.inputs["k"][0])})
    ids, gates = _launched(call, case.inputs["hidden"].dtype)
    expected = case.expected()
    np.testing.assert_array_equal(ids, expected["expert_ids"])
    np.testing.assert_allclose(gates, expected["gates"], atol=case.tolerance)


@on_a_gpu
@pytest.mark.parametrize("problem", INNER_PROBLEMS, ids=str)
def test_inner(problem: Problem) -> None:
    arrays = problem.inner_arrays()
    (actual,) = _launched(problem.inner_call(arrays), arrays["hidden"].dtype)
    assert_close(actual, problem.inner_expected(arrays), problem.tolerance)


@on_a_gpu
@pytest.mark.parametrize("problem", COMBINE_PROBLEMS, ids=str)
def test_combine(problem: Problem) -> None:
    arrays = problem.combine_arrays()
    (actual,) = _launched(problem.combine_call(arrays), arrays["inner"].dtype)
    assert_close(actual, problem.combine_expected(arrays), problem.tolerance)


@on_a_gpu
def test_a_launch_goes_to_the_current_stream() -> None:
    import cupy

    arrays = Problem(tokens=40, width=256, inner=512).inner_arrays()
    problem = Problem(tokens=40, width=256, inner=512)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        (actual,) = _launched(problem.inner_call(arrays), np.float16)
        stream.synchronize()
    assert_close(actual, problem.inner_expected(arrays), problem.tolerance)


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "missing", lambda: "there is no NVIDIA GPU; run on one")
    with pytest.raises(CudaKernelError, match="there is no NVIDIA GPU"):
        Launcher()


def test_a_missing_cupy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    assert missing() == "CuPy is not installed; pip install 'drl[cuda]'"
