"""The TensorRT plugins: what they tell the builder, and that its launch computes the operator.

TensorRT's own Python code for plugins runs here. Its native part is replaced, and the kernel that
the builder is given is emulated; that TensorRT loads the PTX and times the tactics is not tested.
"""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import pytest

from drl.plugins.cuda import CudaKernelError, trt
from drl.plugins.cuda.calls import Call, Output
from drl.plugins.cuda.compile import compile_ptx
from drl.plugins.cuda.kernels import (
    CombineKernel,
    ExpertRouteKernel,
    InnerKernel,
    Kernel,
)
from drl.plugins.cuda.plugin_nodes import PluginForm, use_plugins
from drl.plugins.cuda.tiling import BLOCK
from drl.plugins.ops import EXPERT_ROUTE, ROUTED_FFN_COMBINE, ROUTED_FFN_INNER, functions_for
from tests.plugins.cuda import fake_tensorrt
from tests.plugins.cuda.emulator import COMPILER, emulate
from tests.plugins.cuda.fake_tensorrt import Built, DataType
from tests.plugins.cuda.problems import Problem, assert_close
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.cases import expert_route_cases

ARCHITECTURE = 90
TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "bfloat16": DataType.BF16,
    "int32": DataType.INT32,
    "bool": DataType.BOOL,
}
NAMES = {DataType.FLOAT: "float32", DataType.INT32: "int32"}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return fake_tensorrt.install(monkeypatch)


@dataclass(frozen=True)
class _Emulated:
    """Stands for a kernel in a call."""

    source: Any
    dtype: str


def _model(operator: Any, inputs: dict[str, Array], attributes: dict[str, Any]) -> ir.Model:
    """One node over inputs; `k` is an initializer. The batch and the tokens are dynamic."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="one")
    builder = onnxscript.GraphBuilder(graph)
    values = {}
    for name, array in inputs.items():
        if name == "k":
            values[name] = builder.initializer(ir.tensor(array, name=name))
            continue
        shape: list[Any] = list(array.shape)
        if name in ("hidden", "inner", "expert_ids", "gates", "group_log_probs", "allowed"):
            shape[:2] = ["B", "T"]
        if name == "token_mask":
            shape = ["B", "T"]
        values[name] = builder.input(name, ir.DataType.from_numpy(array.dtype), shape)
    given = [values.get(argument.name) for argument in operator.inputs]
    results = operator.emit(builder.op, *given, name="node", **attributes)
    for value, argument in zip(
        results if isinstance(results, tuple) else (results,), operator.outputs, strict=True
    ):
        builder.add_output(value, argument.name)
    model = ir.Model(graph, ir_version=11)
    for function in functions_for(graph.all_nodes()):
        model.functions[function.identifier()] = function
    return model


def _build(library: ModuleType, model: ir.Model) -> tuple[ir.Node, dict[int, Built]]:
    forms = use_plugins(model)
    trt.register(library, forms, ARCHITECTURE)
    (node,) = (node for node in model.graph if node.domain == "drl")
    assert [node.op_type] == [form.name for form in forms]
    inputs = []
    for value in node.inputs:
        assert value is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape = [size if isinstance(size, int) else str(size.value) for size in value.shape]
        inputs.append((TYPES[value.dtype.numpy().name], shape))
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name != "plugin_namespace"
    }
    return node, fake_tensorrt.build(library, node.op_type, inputs, attributes)


def _kernels(node: ir.Node, dtype: str, single: bool) -> list[Kernel]:
    """All kernels that the node's plugin may have given."""
    biased = any(value is not None and "bias" in (value.name or "") for value in node.inputs)
    typed: Any = dtype
    if node.op_type.startswith("ExpertRoute"):
        return [ExpertRouteKernel(typed, biased)]
    tilings = trt._PRODUCT_TACTICS.values()
    if node.op_type.startswith("RoutedFFNInner"):
        activation = node.attributes["activation"].as_string()
        return [InnerKernel(typed, typed, activation, tiling, biased) for tiling in tilings]
    return [
        CombineKernel(typed, typed, tiling, single, biased)
        for tiling in tilings
        if single or tiling.columns <= 4 or tiling.wide
    ]


def _run(
    node: ir.Node, built: Built, arrays: dict[str, Array], dtype: str, *, single: bool = False
) -> tuple[Array, ...]:
    """Emulate what TensorRT would launch: inputs, sizes and outputs, over the sizes of arrays."""
    masks = {
        f"{name}.as_int32": a.astype(np.int32) for name, a in arrays.items() if a.dtype == bool
    }
    named = {**arrays, **masks}
    given = [named[value.name] for value in node.inputs if value is not None and value.name]
    first = next(iter(arrays.values()))
    sizes = {"B": first.shape[0], "T": first.shape[1]}
    sources = [kernel.source for kernel in _kernels(node, dtype, single)]
    (source, *_) = [s for s in sources if compile_ptx(s, ARCHITECTURE) == built.ptx]
    assert built.kernel == source.entry
    assert (built.block, built.shared) == (BLOCK, 0)
    outputs = tuple(
        Output(tuple(size.evaluate(sizes) for size in shape), NAMES.get(kind))
        for kind, shape in zip(built.types, built.shapes, strict=True)
    )
    x, y = (size.evaluate(sizes) for size in built.grid)
    numbers = tuple(size.evaluate(sizes) for size in built.sizes)
    kernel: Any = _Emulated(source, dtype)
    return emulate(Call(kernel, tuple(given), numbers, outputs, (x, y)))


needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="there is no C++ compiler to emulate a GPU with; install g++ or clang"
)


@needs_compiler
@pytest.mark.parametrize(
    "case",
    [c for c in expert_route_cases() if c.name in ("k2", "bias", "every_expert", "row_of_padding")],
    ids=str,
)
def test_expert_route_computes_the_operator(library: ModuleType, case: Case) -> None:
    node, tactics = _build(library, _model(EXPERT_ROUTE, case.inputs, case.attributes))
    assert list(tactics) == [1]
    ids, gates = _run(node, tactics[1], case.inputs, case.precision)
    expected = case.expected()
    np.testing.assert_array_equal(ids, expected["expert_ids"])
    np.testing.assert_allclose(gates, expected["gates"], atol=case.tolerance)


PROBLEMS = [
    Problem(tokens=5, k=2, activation="silu_glu", biased=True),
    Problem(tokens=20, k=1, precision="bf16", activation="gelu"),
]


@needs_compiler
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_tactic_of_inner_computes_the_operator(library: ModuleType, problem: Problem) -> None:
    arrays = problem.inner_arrays()
    attributes = {"activation": problem.activation}
    node, tactics = _build(library, _model(ROUTED_FFN_INNER, arrays, attributes))
    assert sorted(tactics) == sorted(trt._PRODUCT_TACTICS)
    for built in tactics.values():
        (actual,) = _run(node, built, arrays, problem.precision)
        assert_close(actual, problem.inner_expected(arrays), problem.tolerance)


@needs_compiler
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_tactic_of_combine_computes_the_operator(
    library: ModuleType, problem: Problem
) -> None:
    arrays = problem.combine_arrays()
    node, tactics = _build(library, _model(ROUTED_FFN_COMBINE, arrays, {}))
    for built in tactics.values():
        (actual,) = _run(node, built, arrays, problem.precision, single=problem.k == 1)
        assert_close(actual, problem.combine_expected(arrays), problem.tolerance)


def test_one_engine_serves_every_batch(library: ModuleType) -> None:
    """Grid and sizes are expressions of the dimensions that are known at run time."""
    arrays = Problem(k=2, experts=8).inner_arrays()
    _, tactics = _build(library, _model(ROUTED_FFN_INNER, arrays, {"activation": "relu"}))
    built = tactics[1]  # groups of 16 slots, 64 columns
    for tokens, groups in ((1, 2), (8, 1 + 9), (64, 8 + 9)):
        sizes = {"B": 1, "T": tokens}
        assert [size.evaluate(sizes) for size in built.grid] == [1, groups]
        assert built.sizes[0].evaluate(sizes) == tokens
        assert [size.get_constant_value() for size in built.sizes[1:]] == [2, 8, 16, 24]


def test_plugins_are_registered_once(library: ModuleType) -> None:
    form = PluginForm("RoutedFFNCombine", ("inner", "expert_ids", "gates", "down"))
    for _ in range(2):
        trt.register(library, [form], ARCHITECTURE)


def test_fp32_layers_have_no_plugin(library: ModuleType) -> None:
    arrays = replace(PROBLEMS[0], precision="fp32").inner_arrays()
    model = _model(ROUTED_FFN_INNER, arrays, {"activation": "silu_glu"})
    with pytest.raises(CudaKernelError, match=r"in fp16 or bf16, but the graph has fp32"):
        _build(library, model)


def test_more_experts_than_the_kernels_take_are_refused(library: ModuleType) -> None:
    """They would write past the end of shared memory."""
    arrays = Problem(experts=257, width=8, inner=8).inner_arrays()
    with pytest.raises(CudaKernelError, match="at most 256 experts, and the graph has 257"):
        _build(library, _model(ROUTED_FFN_INNER, arrays, {"activation": "relu"}))


def test_a_library_without_plugins_is_refused() -> None:
    with pytest.raises(CudaKernelError, match=r"nothing_such takes no plugins"):
        trt.register(ModuleType("nothing_such"), [], ARCHITECTURE)


class TestNodes:
    def test_absent_inputs_go_and_functions_too(self) -> None:
        arrays = Problem(biased=True).inner_arrays()
        model = _model(ROUTED_FFN_INNER, arrays, {"activation": "relu"})
        (form,) = use_plugins(model)
        (node,) = model.graph
        assert form.inputs == ("hidden", "expert_ids", "up", "up_bias")
        assert [value.name for value in node.inputs if value is not None] == list(form.inputs)
        assert node.op_type == form.name == "RoutedFFNInner_up_bias"
        assert node.attributes["plugin_namespace"].as_string() == "drl"
        assert not model.functions

    def test_masks_become_numbers(self) -> None:
        """TensorRT's plugins have no boolean tensors."""
        case = next(iter(expert_route_cases()))
        model = _model(EXPERT_ROUTE, case.inputs, {})
        use_plugins(model)
        casts = [node for node in model.graph if node.op_type == "Cast"]
        assert sorted(str(c.inputs[0].name) for c in casts if c.inputs[0]) == [
            "allowed",
            "token_mask",
        ]
        (node,) = (node for node in model.graph if node.domain == "drl")
        kinds = {value.dtype for value in node.inputs if value is not None}
        assert kinds == {ir.DataType.FLOAT, ir.DataType.INT32}

    def test_k_becomes_an_attribute(self) -> None:
        case = next(case for case in expert_route_cases() if case.name == "k4")
        model = _model(EXPERT_ROUTE, case.inputs, {})
        use_plugins(model)
        (node,) = (node for node in model.graph if node.domain == "drl")
        assert node.attributes["k"].as_int() == 4
        assert "k" not in [value.name for value in node.inputs if value is not None]

    def test_a_k_that_is_not_constant_is_refused(self) -> None:
        case = next(iter(expert_route_cases()))
        model = _model(EXPERT_ROUTE, case.inputs, {})
        (node,) = model.graph
        node.replace_input_with(6, ir.val("k", ir.DataType.INT64, [1]))
        with pytest.raises(CudaKernelError, match="node 'node': the number of experts is not"):
            use_plugins(model)

    def test_half_of_the_biases_is_refused(self) -> None:
        arrays = Problem(biased=True, activation="silu_glu").inner_arrays()
        del arrays["gate_bias"]
        model = _model(ROUTED_FFN_INNER, arrays, {"activation": "silu_glu"})
        with pytest.raises(CudaKernelError, match="both biases or none"):
            use_plugins(model)

    def test_other_nodes_stay(self) -> None:
        graph = ir.Graph([], [], nodes=[ir.node("Relu", [ir.val("x")])], name="other")
        assert use_plugins(ir.Model(graph, ir_version=11)) == ()
