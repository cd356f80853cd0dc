import numpy as np
import pytest

from drl.export.passes import ExpandSelectStates
from tests.export.passes.one_node import domains, one_node, run
from tests.plugins.ops import case as cases_module
from tests.plugins.ops.cases import select_states_cases

CASES = [case for case in select_states_cases() if case.precision == "fp32"]
Array = cases_module.Array


def _counts(lengths: Array, keep: int) -> Array:
    """⌈ρ·S⌉ of every row."""
    return np.asarray(-(-lengths * keep // 1000), np.int32)


@pytest.mark.parametrize("keep", [1, 250, 500, 999, 1000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_expanded_selection_keeps_the_same_states(case: cases_module.Case, keep: int) -> None:
    inputs = dict(case.inputs)
    inputs["keep_counts"] = _counts(inputs["source_lengths"], keep)
    model = one_node(case)
    assert ExpandSelectStates(keep)(model).modified
    assert domains(model) == {""}
    outputs = run(model, inputs)
    states, counts, bias = case.operator.reference(**inputs)
    most = counts.max()
    padded = -(-inputs["saliency"].shape[1] * keep // 1000)
    assert outputs["kept_states"].shape[1] == outputs["cross_bias"].shape[1] == padded
    np.testing.assert_array_equal(outputs["kept_lengths"], counts)
    np.testing.assert_array_equal(outputs["kept_states"][:, :most], states)
    np.testing.assert_allclose(outputs["cross_bias"][:, :most], bias, atol=case.tolerance)
    # what the padding adds is hidden
    assert (outputs["cross_bias"][:, most:] == -1e4).all()
    assert (outputs["kept_states"][:, most:] == 0).all()


@pytest.mark.parametrize("keep", [500, 1000])
def test_no_operator_sorts_or_has_a_size_that_depends_on_data(keep: int) -> None:
    model = one_node(CASES[0])
    ExpandSelectStates(keep)(model)
    assert not {node.op_type for node in model.graph} & {"TopK", "NonZero", "Compress"}
    assert not ExpandSelectStates(keep)(model).modified


@pytest.mark.parametrize("keep", [500, 1000])
def test_states_at_padding_may_be_anything(keep: int) -> None:
    case = CASES[0]
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    inputs["keep_counts"] = _counts(inputs["source_lengths"], keep)
    padding = np.arange(7) >= inputs["source_lengths"][:, None]
    inputs["encoder_states"][padding] = np.nan
    model = one_node(case)
    ExpandSelectStates(keep)(model)
    assert np.isfinite(run(model, inputs)["kept_states"]).all()
