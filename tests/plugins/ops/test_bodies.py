"""The ONNX body of every operator gives what its NumPy reference gives, on both engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxscript
import pytest

from drl.plugins.ops import functions_for
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.cases import all_cases
from tests.plugins.ops.engines import (
    one_node_model,
    run_evaluator,
    run_onnxruntime,
    session,
    to_ort,
)
from tests.plugins.ops.linear_cases import linear_cases, projections_cases
from tests.plugins.ops.quantized_cases import quantized_cases

CASES = all_cases()
# ONNX Runtime 1.31.1 has no bfloat16 kernel on the CPU for MatMul (RoutedFFN and its halves), for
# Where (SelectStates, CachedAttention with bias) and for Mul (CachedAttention). Routing is fp32 and
# runs.
NO_BFLOAT16 = (
    "RoutedFFN",
    "RoutedFFNInner",
    "RoutedFFNCombine",
    "SelectStates",
    "CachedAttention",
)


def assert_same(actual: dict[str, Array], case: Case) -> None:
    expected = case.expected()
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        assert actual[name].dtype == right.dtype, name
        assert actual[name].shape == right.shape, name
        if right.dtype.kind in "ib":
            np.testing.assert_array_equal(actual[name], right, err_msg=name)
        else:
            np.testing.assert_allclose(
                actual[name].astype(np.float32),
                right.astype(np.float32),
                rtol=case.tolerance,
                atol=case.tolerance,
                err_msg=name,
            )


def engine_params() -> list[Any]:
    params = []
    for case in CASES:
        params.append(pytest.param(run_evaluator, case, id=f"evaluator-{case}"))
        unsupported = case.precision == "bf16" and case.operator.name in NO_BFLOAT16
        marks = (
            [
                pytest.mark.xfail(
                    strict=True,
                    raises=ort.capi.onnxruntime_pybind11_state.NotImplemented,
                    reason="ONNX Runtime has no bfloat16 kernels for this body on the CPU",
                )
            ]
            if unsupported
            else []
        )
        params.append(pytest.param(run_onnxruntime, case, id=f"ort-{case}", marks=marks))
    return params


@pytest.mark.parametrize(("run", "case"), engine_params())
def test_body_equals_reference(
    run: Callable[[onnx.ModelProto, dict[str, Array]], dict[str, Array]], case: Case
) -> None:
    model = one_node_model(case.operator, case.inputs, case.attributes)
    assert_same(run(model, case.inputs), case)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if "CachedAttention" in c.operator.name and c.precision != "bf16"],
    ids=str,
)
def test_cached_attention_may_write_the_cache_in_place(case: Case) -> None:
    """Past and present are bound to the same memory."""
    running = session(one_node_model(case.operator, case.inputs, case.attributes))
    binding = running.io_binding()
    values = {name: to_ort(array.copy()) for name, array in case.inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("present_k", values["past_k"])
    binding.bind_ortvalue_output("present_v", values["past_v"])
    output = to_ort(np.zeros_like(case.inputs["q"]))
    binding.bind_ortvalue_output("output", output)
    running.run_with_iobinding(binding)
    results = {
        "output": output,
        "present_k": values["past_k"],
        "present_v": values["past_v"],
    }
    assert_same({name: value.numpy() for name, value in results.items()}, case)


# Inputs that differ from call to call.
FEEDS = ("x", "hidden", "expert_ids", "gates", "residual", "candidates", "tokens")
ORDERED = [*linear_cases(), *projections_cases(), *quantized_cases()]


@pytest.mark.parametrize("case", ORDERED, ids=str)
def test_constant_weights_are_unpacked_at_load(case: Case, tmp_path: Path) -> None:
    """What brings weights into order is gone before the first call, and results stay."""
    constants = [name for name in case.inputs if name not in FEEDS]
    model = one_node_model(case.operator, case.inputs, case.attributes, constants)
    inputs = {name: array for name, array in case.inputs.items() if name not in constants}
    assert_same(run_onnxruntime(model, inputs), case)
    saved = tmp_path / "optimised.onnx"
    session(model, saved)
    left = {node.op_type for node in ir.load(saved).graph.all_nodes()}
    assert not left & {"Transpose", "BitShift", "BitwiseAnd"}
    names = " ".join(case.inputs)
    whole = "scale" in names and "multiplier" not in names  # numbers of int8, not in blocks
    if whole and case.operator.name != "QuantizedGather":
        assert any(name.startswith("MatMulInteger") for name in left)


def test_cases_have_distinct_names() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("run", [run_evaluator, run_onnxruntime])
def test_bodies_run_inside_branches(
    run: Callable[[onnx.ModelProto, dict[str, Array]], dict[str, Array]],
) -> None:
    """Two layers in an `If` each, as in a decoder that skips layers: one taken, one skipped."""
    case = next(case for case in CASES if case.name == "some_slots_unused")
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="layers")
    builder = onnxscript.GraphBuilder(graph)
    values = [
        builder.input(name, ir.DataType.from_numpy(array.dtype), array.shape)
        for name, array in case.inputs.items()
    ]
    x = values[0]
    for layer in range(3):
        taken = builder.input(f"taken.{layer}", ir.DataType.BOOL, [])

        def on(op: onnxscript.OpBuilder, x: ir.Value = x) -> Any:
            return case.operator.emit(op, x, *values[1:], **case.attributes)

        def off(op: onnxscript.OpBuilder, x: ir.Value = x) -> Any:
            return op.Identity(x)

        x = builder.op.If(
            taken,
            then_branch=builder.subgraph(on, [], [ir.val(f"on.{layer}")], name=f"on.{layer}"),
            else_branch=builder.subgraph(off, [], [ir.val(f"off.{layer}")], name=f"off.{layer}"),
        )
        x.type, x.shape = values[0].type, values[0].shape
    builder.add_output(x, "output")
    model = ir.Model(graph, ir_version=11)
    for function in functions_for(graph.all_nodes()):
        model.functions[function.identifier()] = function

    flags = {f"taken.{layer}": np.array(layer != 1) for layer in range(3)}
    actual = run(ir.to_proto(model), {**case.inputs, **flags})
    expected = case.inputs["hidden"]
    for _ in range(2):
        arrays = {**case.inputs, "hidden": expected}
        expected = case.operator.reference(**arrays, **case.attributes)
    np.testing.assert_allclose(actual["output"], expected, rtol=1e-4, atol=1e-4)
