import pytest

from drl.export.passes import InlineBodies
from drl.export.passes.tracing import PRECISION
from tests.export.passes.one_node import check, domains, one_node, run
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import expert_route_cases, group_route_cases, path_score_cases

NAMES = ["GroupRoute", "ExpertRoute", "PathScore"]
CASES = [
    case
    for cases in (group_route_cases(), expert_route_cases(), path_score_cases())
    for case in cases
    if case.precision == "fp32"
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_inlined_body_is_the_operator(case: Case) -> None:
    model = one_node(case)
    assert InlineBodies(NAMES)(model).modified
    assert domains(model) == {""}
    check(case, run(model, case.inputs))
    assert not InlineBodies(NAMES)(model).modified


def test_other_operators_stay() -> None:
    model = one_node(CASES[0])
    assert not InlineBodies(["PathScore"])(model).modified
    assert domains(model) == {"drl"}


def test_inlined_nodes_ask_for_the_precision_given_and_know_their_module() -> None:
    model = one_node(CASES[0])
    model.graph[0].metadata_props["namespace"] = "encoder/router"
    InlineBodies(NAMES, "float32")(model)
    for node in model.graph:
        assert node.metadata_props == {"namespace": "encoder/router", PRECISION: "float32"}
