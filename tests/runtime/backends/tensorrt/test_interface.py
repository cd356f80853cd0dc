"""The calls that the backend makes are those that the real library has; no GPU is needed to see."""

import ast
from pathlib import Path
from typing import Any

import pytest

import drl.runtime.backends.tensorrt.contexts as contexts
import drl.runtime.backends.tensorrt.runtime_cache as runtime_cache

trt: Any = pytest.importorskip("tensorrt_rtx")

USED = {
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
    "ICudaEngine": {
        "create_execution_context",
        "create_runtime_config",
        "device_memory_size_v2",
        "get_tensor_name",
        "get_weight_streaming_automatic_budget",
        "num_io_tensors",
        "num_optimization_profiles",
        "weight_streaming_budget_v2",
    },
    "IExecutionContext": {
        "execute_async_v3",
        "get_tensor_shape",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    },
    "IRuntimeConfig": {
        "create_runtime_cache",
        "cuda_graph_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    },
    "IRuntimeCache": {"deserialize", "serialize"},
    "ExecutionContextAllocationStrategy": {"USER_MANAGED"},
    "CudaGraphStrategy": {"WHOLE_GRAPH_CAPTURE"},
}


@pytest.mark.parametrize("kind", USED)
def test_the_library_has_what_is_used(kind: str) -> None:
    assert USED[kind] <= set(dir(getattr(trt, kind)))


def test_nothing_else_of_the_library_is_used() -> None:
    """Every attribute in these files that looks like the library's is in the list above."""
    listed = set().union(*USED.values())
    every = {name for kind in USED for name in dir(getattr(trt, kind)) if not name.startswith("_")}
    for module in (contexts, runtime_cache):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        ours = {"logger", "name"}  # of drl's own objects as well
        assert (found & every) - ours <= listed
