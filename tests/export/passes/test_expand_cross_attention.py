import onnx_ir as ir
import pytest

from drl.export.passes import ExpandCrossAttention
from tests.export.passes.one_node import check, domains, one_node, run
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import cross_attention_cases

CASES = list(cross_attention_cases())


def _model(case: Case) -> ir.Model:
    _, heads, _, width = case.inputs["k"].shape
    dims: list[int | str] = ["R", heads, "K", width]
    return one_node(case, {"k": dims, "v": dims, "q": ["B", "T", case.inputs["q"].shape[2]]})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_expanded_attention_is_cross_attention(case: Case) -> None:
    model = _model(case)
    assert ExpandCrossAttention()(model).modified
    assert domains(model) == {""}
    check(case, run(model, case.inputs))
    assert not ExpandCrossAttention()(model).modified


def test_keys_are_read_once_for_all_rows_of_a_source() -> None:
    model = _model(CASES[0])
    ExpandCrossAttention()(model)
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    assert [value.name for value in attention.inputs[1:3] if value is not None] == ["k", "v"]


def test_heads_of_unknown_number_are_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="heads of k must be known"):
        ExpandCrossAttention()(one_node(CASES[0]))
