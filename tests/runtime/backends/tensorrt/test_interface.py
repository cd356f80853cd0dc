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
        "num_io_tensors",
        "num_optimization_profiles",
        "streamable_weights_size",
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


# What the files call objects of the library.
NAMES = {
    "self._runtime": "Runtime",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
    "module.ExecutionContextAllocationStrategy": "ExecutionContextAllocationStrategy",
    "module.CudaGraphStrategy": "CudaGraphStrategy",
    "module": "module",
}


def used() -> dict[str, set[str]]:
    """Attributes in these files by what they are attributes of."""
    found: dict[str, set[str]] = {}
    for module in (contexts, runtime_cache):
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (kind := NAMES.get(ast.unparse(node.value))):
                found.setdefault(kind, set()).add(node.attr)
    return found


@pytest.mark.parametrize("kind", USED)
def test_the_library_has_what_is_used(kind: str) -> None:
    assert USED[kind] <= set(dir(getattr(trt, kind)))


def test_nothing_else_is_asked_of_the_library() -> None:
    """A call that is misspelt is none of those above, nor is one that has gone."""
    found = used()
    assert found.pop("module") <= set(dir(trt))
    assert found == USED
