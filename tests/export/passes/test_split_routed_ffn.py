from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest

from drl.export.passes import AppendFunctionBodies, SplitRoutedFFN
from drl.plugins.ops import ROUTED_FFN
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import routed_ffn_cases

CASES = [case for case in routed_ffn_cases() if case.precision == "fp32"]


def _model(case: Case, *, branch: bool = False) -> ir.Model:
    """One routed layer over graph inputs; `branch` puts it into an `If`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="layer")
    builder = onnxscript.GraphBuilder(graph)
    values = {
        name: builder.input(name, ir.DataType.from_numpy(array.dtype), array.shape)
        for name, array in case.inputs.items()
    }
    given = [values.get(argument.name) for argument in ROUTED_FFN.inputs]

    def layer(op: onnxscript.OpBuilder) -> Any:
        return ROUTED_FFN.emit(op, *given, name="ffn", **case.attributes)

    if branch:
        taken = builder.input("taken", ir.DataType.BOOL, [])
        output = builder.op.If(
            taken,
            then_branch=builder.subgraph(layer, [], [ir.val("on")], name="on"),
            else_branch=builder.subgraph(
                lambda op: op.Identity(values["hidden"]), [], [ir.val("off")], name="off"
            ),
        )
        output.type, output.shape = values["hidden"].type, values["hidden"].shape
    else:
        output = layer(builder.op)
    builder.add_output(output, "output")
    return ir.Model(graph, ir_version=11)


def _run(model: ir.Model, feeds: dict[str, Any]) -> Any:
    proto = ir.to_proto(AppendFunctionBodies()(model).model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(["output"], feeds)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_two_halves_compute_what_the_layer_does(case: Case) -> None:
    result = SplitRoutedFFN()(_model(case))
    assert result.modified
    kinds = [node.op_type for node in result.model.graph if node.domain == "drl"]
    assert kinds == ["RoutedFFNInner", "RoutedFFNCombine"]
    np.testing.assert_allclose(
        _run(result.model, case.inputs), case.expected()["output"], atol=case.tolerance, rtol=1e-4
    )


def test_types_and_shapes_of_the_inner_values_are_known() -> None:
    case = next(case for case in CASES if case.name == "silu_glu")
    inner, combine = SplitRoutedFFN()(_model(case)).model.graph
    assert (inner.name, combine.name) == ("ffn/RoutedFFNInner", "ffn/RoutedFFNCombine")
    assert inner.outputs[0].dtype == ir.DataType.FLOAT
    assert inner.outputs[0].shape == ir.Shape([2, 5, 2, 24])
    assert combine.outputs[0].name == "output"
    assert combine.outputs[0].shape == ir.Shape([2, 5, 16])


def test_optional_inputs_keep_their_places() -> None:
    case = next(case for case in CASES if case.name == "biased_ungated")
    inner, combine = SplitRoutedFFN()(_model(case)).model.graph
    names = [[None if v is None else v.name for v in node.inputs] for node in (inner, combine)]
    assert names[0] == ["hidden", "expert_ids", "up", None, "up_bias"]
    assert names[1] == ["output.inner", "expert_ids", "gates", "down", "down_bias"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_layer_inside_a_branch_is_split_there(taken: bool) -> None:
    case = next(case for case in CASES if case.name == "k2")
    model = SplitRoutedFFN()(_model(case, branch=True)).model
    assert [node.op_type for node in model.graph] == ["If"]
    actual = _run(model, {**case.inputs, "taken": np.array(taken)})
    expected = case.expected()["output"] if taken else case.inputs["hidden"]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_second_run_changes_nothing() -> None:
    model = SplitRoutedFFN()(_model(CASES[0])).model
    assert not SplitRoutedFFN()(model).modified


def test_an_operator_of_another_domain_is_left_alone() -> None:
    model = _model(CASES[0])
    for node in model.graph:
        node.domain = "elsewhere"
    assert not SplitRoutedFFN()(model).modified


def test_a_layer_whose_weights_have_no_shape_is_refused() -> None:
    model = _model(CASES[0])
    up = next(value for value in model.graph.inputs if value.name == "up")
    up.shape = None
    with pytest.raises(ir.passes.PreconditionError, match="node 'ffn': 'up' has no known shape"):
        SplitRoutedFFN()(model)
