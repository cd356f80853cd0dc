import numpy as np
import onnx_ir as ir
import pytest

from drl.export.passes import ExpandCachedAttention
from tests.export.passes.one_node import domains, one_node, run
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import cached_attention_cases

CASES = [case for case in cached_attention_cases() if case.precision == "fp32"]


def _over_all_slots(case: Case) -> Case:
    """The case with a bias over all slots; those never written hold numbers, as in an engine."""
    inputs = {name: np.nan_to_num(array, nan=7.0) for name, array in case.inputs.items()}
    if "bias" in inputs:
        missing = inputs["past_k"].shape[2] - inputs["bias"].shape[3]
        spread = [(0, 0), (0, 0), (0, 0), (0, missing)]
        inputs["bias"] = np.pad(inputs["bias"], spread, constant_values=50.0)
    return Case(case.operator, case.name, inputs, case.attributes, case.precision, case.tolerance)


def _model(case: Case, capacity: int | str | None = None) -> ir.Model:
    _, heads, slots, width = case.inputs["past_k"].shape
    dims = ["B", heads, slots if capacity is None else capacity, width]
    return one_node(case, {"past_k": dims, "past_v": dims})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_expanded_attention_is_cached_attention(case: Case) -> None:
    model = _model(case)
    assert ExpandCachedAttention()(model).modified
    assert domains(model) == {""}
    spread = _over_all_slots(case)
    outputs = run(model, spread.inputs)
    expected = Case(
        case.operator,
        case.name,
        {**spread.inputs, **{n: case.inputs[n] for n in ("bias",) if n in case.inputs}},
        case.attributes,
        case.precision,
        case.tolerance,
    ).expected()
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, atol=case.tolerance, err_msg=name)


def test_the_cache_is_scattered_into_and_read_as_it_is() -> None:
    model = _model(CASES[0])
    ExpandCachedAttention()(model)
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    written = [value.producer() for value in attention.inputs[1:3] if value is not None]
    assert [node.op_type for node in written if node is not None] == ["TensorScatter"] * 2
    assert [node.inputs[0].name for node in written] == ["past_k", "past_v"]  # type: ignore[union-attr]


def test_a_capacity_that_varies_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="static capacity; run StaticCache"):
        ExpandCachedAttention()(_model(CASES[0], "C"))


def test_a_graph_without_attention_stays() -> None:
    model = _model(CASES[0])
    ExpandCachedAttention()(model)
    assert not ExpandCachedAttention()(model).modified
