import onnx_ir as ir

from drl.export.passes import AppendFunctionBodies
from drl.plugins.ops import DOMAIN


def _model(node: ir.Node) -> ir.Model:
    graph = ir.Graph([], [], nodes=[node], opset_imports={"": 24, "drl": 1}, name="one")
    return ir.Model(graph, ir_version=11)


def _attention(domain: str = DOMAIN) -> ir.Node:
    past = ir.val("past", ir.DataType.FLOAT, ["B", 2, 8, 16])
    inputs = [ir.val(name) for name in ("q", "k", "v")] + [past, past, ir.val("lengths")]
    attributes = {"num_heads": 4, "scale": 0.25}
    return ir.node("CachedAttention", inputs, attributes, domain=domain, num_outputs=3)


def test_every_operator_in_use_gets_one_body_those_in_branches_too() -> None:
    for node in (
        _attention(),
        ir.node(
            "If", [None], {"then_branch": ir.Graph([], [], nodes=[_attention(), _attention()])}
        ),
    ):
        result = AppendFunctionBodies()(_model(node))
        assert result.modified
        assert [(f.domain, f.name) for f in result.model.functions.values()] == [
            (DOMAIN, "CachedAttention")
        ]


def test_a_second_run_adds_no_second_body() -> None:
    model = AppendFunctionBodies()(_model(_attention())).model
    assert len(AppendFunctionBodies()(model).model.functions) == 1


def test_a_graph_of_other_operators_is_left_alone() -> None:
    for node in (ir.node("Relu", [ir.val("x")]), _attention("elsewhere")):
        result = AppendFunctionBodies()(_model(node))
        assert not result.modified
        assert not result.model.functions
