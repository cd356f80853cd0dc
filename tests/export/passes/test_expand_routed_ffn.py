import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from drl.export.passes import ExpandRoutedFFN
from tests.export.passes.one_node import check, domains, one_node, run
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import routed_ffn_cases

CASES = [case for case in routed_ffn_cases() if case.precision == "fp32"]
WEIGHTS = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")


def _expanded(case: Case, *, gather: bool) -> ir.Model:
    width = case.inputs["hidden"].shape[2]
    k = case.inputs["expert_ids"].shape[2]
    dims: dict[str, list[int | str]] = {"hidden": ["B", "T", width], "gates": ["B", "T", k]}
    model = one_node(case, dims | {"expert_ids": ["B", "T", k]}, WEIGHTS)
    assert ExpandRoutedFFN(gather=gather)(model).modified
    return model


@pytest.mark.parametrize("gather", [False, True], ids=["every expert", "experts in use"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_expanded_experts_are_the_routed_ffn(case: Case, gather: bool) -> None:
    model = _expanded(case, gather=gather)
    assert domains(model) == {""}
    check(case, run(model, case.inputs))
    assert not ExpandRoutedFFN(gather=gather)(model).modified


@pytest.mark.parametrize("gather", [False, True])
def test_no_operator_has_a_size_that_depends_on_data(gather: bool) -> None:
    operators = {node.op_type for node in _expanded(CASES[0], gather=gather).graph}
    assert not operators & {"NonZero", "Unique", "Compress", "Loop", "If", "ScatterND"}


def test_a_step_of_one_token_reads_the_experts_that_it_chose_and_no_other() -> None:
    case = next(case for case in CASES if case.name == "one_token_k2")
    unused = np.setdiff1d(np.arange(4), case.inputs["expert_ids"])
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    for name in WEIGHTS:
        if name in inputs:
            inputs[name][unused] = np.nan
    poisoned = dataclasses.replace(case, inputs=inputs)
    check(case, run(_expanded(poisoned, gather=True), inputs))


@pytest.mark.parametrize("gather", [False, True])
def test_an_expert_that_overflows_on_a_token_of_another_does_not_reach_it(gather: bool) -> None:
    case = next(case for case in CASES if case.name == "k1")
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    inputs["expert_ids"][:] = 1
    inputs["expert_ids"][0, 0] = 0
    inputs["hidden"][0, 0] = 0.0  # the only token of expert 0, which the others overflow
    inputs["up"][0] = 3e38
    poisoned = dataclasses.replace(case, inputs=inputs)
    with np.errstate(over="ignore"):
        outputs = run(_expanded(poisoned, gather=gather), inputs)
    assert np.isfinite(outputs["output"]).all()
    check(poisoned, outputs)


def test_experts_of_unknown_size_are_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="experts of an unknown size"):
        ExpandRoutedFFN(gather=True)(one_node(CASES[0]))
