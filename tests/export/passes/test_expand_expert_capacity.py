import numpy as np
import onnx_ir as ir
import onnxscript
import pytest

from drl.export.passes import ExpandExpertCapacity, InlineBodies
from drl.plugins.ops import EXPERT_CAPACITY
from tests.export.passes.one_node import domains, one_node, run
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import expert_capacity_cases, expert_route_cases

ROUTES = [case for case in expert_route_cases() if case.precision == "fp32"]


def _behind_a_router(case: Case, capacity: int) -> ir.Model:
    """The router of a case, and a capacity for what it chooses."""
    model = one_node(case, constants=("weight", "k"))
    ids, gates = model.graph.outputs
    builder = onnxscript.GraphBuilder(model.graph)
    kept = EXPERT_CAPACITY.emit(builder.op, ids, gates, capacity=capacity)
    for value, name in zip(kept, ("kept_ids", "kept_gates"), strict=True):
        builder.add_output(value, name)
    return model


@pytest.mark.parametrize("capacity", [1, 2, 99])
@pytest.mark.parametrize("case", ROUTES, ids=str)
def test_the_first_tokens_of_a_row_keep_their_experts(case: Case, capacity: int) -> None:
    model = _behind_a_router(case, capacity)
    assert ExpandExpertCapacity()(model).modified
    assert not ExpandExpertCapacity()(model).modified
    InlineBodies(["ExpertRoute"])(model)
    assert domains(model) == {""}
    outputs = run(model, case.inputs)
    ids, gates = EXPERT_CAPACITY.reference(
        outputs["expert_ids"], outputs["gates"], capacity=capacity
    )
    np.testing.assert_array_equal(outputs["kept_ids"], ids)
    np.testing.assert_array_equal(outputs["kept_gates"], gates)


def test_nothing_has_a_size_that_depends_on_data() -> None:
    model = _behind_a_router(ROUTES[0], 1)
    ExpandExpertCapacity()(model)
    operators = {node.op_type for node in model.graph}
    assert not operators & {"Range", "ReduceMax", "NonZero", "Unique"}


def test_choices_that_come_from_no_router_are_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"must come from drl\.ExpertRoute"):
        ExpandExpertCapacity()(one_node(next(expert_capacity_cases())))
