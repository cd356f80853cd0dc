"""The operators in ONNX Runtime give what their NumPy references give, however they are run."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from drl.plugins.ops import CACHED_ATTENTION, EXPERT_ROUTE
from tests.plugins.native.operator_graphs import (
    OPSETS,
    Node,
    graph_model,
    run,
    same_bits,
    session,
)
from tests.plugins.native.operator_nodes import (
    PANELS,
    all_nodes,
    cached_attention,
    cross_attention,
    encoder_attention,
    expert_route,
    float_head,
    float_routed_ffn,
    head,
    linear,
    of_every_operator,
    projections,
    quantized_states,
    rounded,
    routed_ffn,
)
from tests.plugins.native.sets import needs_library
from tests.plugins.ops.case import Array
from tests.plugins.ops.cases import all_cases
from tests.plugins.ops.engines import one_node_model

pytestmark = needs_library

# Sums of floats come in another order than NumPy's; a value may round to the other int8.
TOLERANCE = 2e-5


def assert_close(actual: list[Array], expected: list[Array]) -> None:
    for got, right in zip(actual, expected, strict=True):
        assert (got.shape, got.dtype) == (right.shape, right.dtype)
        if right.dtype.kind == "f":
            np.testing.assert_allclose(got, right, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("node", list(all_nodes()), ids=str)
def test_an_operator_gives_what_its_reference_gives(node: Node) -> None:
    assert_close(run(node), node.expected())


LARGE = [
    linear("int8", "silu_glu", (1, 40), 1030, 260, ("norm", "bias", "residual")),
    linear("int4", "gelu", (3, 7), 1030, 260, ("bias",)),
    projections("int8", (2, 60), ("norm",)),
    linear(PANELS, "silu_glu", (1, 40), 1030, 260, ("norm", "bias", "residual")),
    linear(PANELS, "gelu", (1, 1), 1030, 260, ("bias",)),
    linear(PANELS, "none", (3, 100), 200, 260, ("norm",)),
    projections(PANELS, (2, 600), ("norm",)),
    routed_ffn("int4", "silu_glu", (3, 40), (), 132, 300),
    head("int8", (4, 1), 16, columns=5000),
    head("int8", (4, 3), 0, columns=5000),
    float_routed_ffn("silu_glu", (3, 40), (), 132, 300),
    float_routed_ffn("relu", (1, 1), (), 132, 300),
    float_head((4, 1), 16, columns=5000),
    float_head((4, 9), 0, columns=5000, depth=300),
    cached_attention((5, 3), heads=8, kv_heads=4, width=64, longest=130),
    cross_attention((12, 3), 4, heads=8, width=64),
    encoder_attention((3, 200), 65, heads=8, kv_heads=4, width=64),
    rounded(cached_attention((5, 3), heads=8, kv_heads=4, width=64, longest=500)),
    rounded(cross_attention((12, 3), 4, heads=8, width=64)),
    quantized_states((3, 300), heads=4, width=64),
    expert_route((3, 70), depth=300),
]


@pytest.mark.parametrize("node", LARGE, ids=str)
def test_the_number_of_threads_changes_no_bit(node: Node) -> None:
    alone = run(node, threads=1)
    assert_close(alone, node.expected())
    assert same_bits(run(node, threads=2), alone)
    assert same_bits(run(node, threads=3), alone)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("node", of_every_operator(), ids=str)
def test_threads_may_run_one_session_at_once(node: Node, threads: int) -> None:
    shared, alone = session(node.model(), threads), run(node)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(shared.run, node.outputs, node.inputs) for _ in range(60)]
    assert all(same_bits(job.result(), alone) for job in jobs)


@pytest.mark.parametrize("form", ["int8", PANELS])
def test_sizes_may_change_between_runs_of_a_session(form: str) -> None:
    node = linear(form, "gelu", optional=("norm", "bias"))
    shared = session(node.model())
    for shape in ((1, 1), (2, 40), (0, 1), (1, 3)):
        feeds = {**node.inputs, "x": linear(shape=shape).inputs["x"]}
        expected = node.operator.reference(**feeds, **node.attributes)
        assert_close(shared.run(["y"], feeds), [expected])


@pytest.mark.parametrize("node", of_every_operator(), ids=str)
def test_sessions_do_not_share_anything(node: Node) -> None:
    first, second = session(node.model()), session(node.model())
    kept = first.run(node.outputs, node.inputs)
    del first
    assert same_bits(second.run(node.outputs, node.inputs), kept)
    assert same_bits(kept, run(node))


@pytest.mark.parametrize("node", of_every_operator(), ids=str)
def test_an_operator_runs_inside_a_branch(node: Node) -> None:
    """Inputs come from the graph around it, as weights of a decoder that skips layers do."""
    zeros = [
        helper.make_node(
            "ConstantOfShape",
            ["no_dims"],
            [name],
            value=helper.make_tensor(
                "zero", helper.np_dtype_to_tensor_dtype(array.dtype), [1], [0]
            ),
        )
        for name, array in zip(node.outputs, node.expected(), strict=True)
    ]
    no_dims = helper.make_node(
        "Constant", [], ["no_dims"], value=helper.make_tensor("none", TensorProto.INT64, [0], [])
    )
    branches = {"then_branch": [node.proto()], "else_branch": [no_dims, *zeros]}
    inner = {
        branch: helper.make_graph(
            nodes, branch, [], [helper.make_empty_tensor_value_info(name) for name in node.outputs]
        )
        for branch, nodes in branches.items()
    }
    choose = helper.make_node("If", ["taken"], node.outputs, **inner)
    taken = helper.make_tensor_value_info("taken", TensorProto.BOOL, [])
    running = session(graph_model(node, [choose], values=[taken]))
    got = running.run(node.outputs, {**node.inputs, "taken": np.array(True)})
    assert same_bits(got, run(node))
    skipped = running.run(node.outputs, {**node.inputs, "taken": np.array(False)})
    assert [array.shape for array in skipped] == [()] * len(node.outputs)


@pytest.mark.parametrize("node", of_every_operator(), ids=str)
def test_an_operator_runs_inside_a_function(node: Node) -> None:
    names = list(node.inputs)
    function = helper.make_function("other", "Layer", names, node.outputs, [node.proto()], OPSETS)
    call = helper.make_node("Layer", names, node.outputs, domain="other")
    model = graph_model(node, [call], [function])
    model.opset_import.append(helper.make_opsetid("other", 1))
    assert same_bits(session(model).run(node.outputs, node.inputs), run(node))


def bound(model: onnx.ModelProto, inputs: dict[str, Array], outputs: dict[str, Array]) -> Any:
    """Run on memory bound by address, as the runtime does."""
    running = session(model)
    binding = running.io_binding()
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    running.run_with_iobinding(binding)


CACHES = [cached_attention((2, 3), bias_rows=1), rounded(cached_attention((2, 3), bias_rows=1))]


@pytest.mark.parametrize("node", CACHES, ids=str)
def test_the_cache_is_written_in_place_where_past_and_present_are_one_memory(node: Node) -> None:
    inputs = {name: array.copy() for name, array in node.inputs.items()}
    before = inputs["past_k"].copy(), inputs["past_v"].copy()
    output = np.empty_like(inputs["q"])
    outputs = {
        "output": output,
        "present_k": inputs["past_k"],
        "present_v": inputs["past_v"],
    }
    bound(node.model(), inputs, outputs)
    assert_close([output, inputs["past_k"], inputs["past_v"]], node.expected())
    assert not same_bits([inputs["past_k"], inputs["past_v"]], before)


@pytest.mark.parametrize("node", CACHES, ids=str)
def test_a_cache_of_its_own_is_a_copy_and_the_past_stays(node: Node) -> None:
    inputs = {name: array.copy() for name, array in node.inputs.items()}
    expected = node.expected()
    outputs = {
        name: np.full_like(array, np.nan if array.dtype.kind == "f" else 99)
        for name, array in zip(node.outputs, expected, strict=True)
    }
    bound(node.model(), inputs, outputs)
    assert_close(list(outputs.values()), expected)
    assert same_bits(list(inputs.values()), list(node.inputs.values()))


@pytest.mark.parametrize("node", CACHES, ids=str)
def test_keys_may_be_in_place_and_values_a_copy(node: Node) -> None:
    inputs = {name: array.copy() for name, array in node.inputs.items()}
    output, values = np.empty_like(inputs["q"]), np.empty_like(inputs["past_v"])
    outputs = {"output": output, "present_k": inputs["past_k"], "present_v": values}
    bound(node.model(), inputs, outputs)
    assert_close([output, inputs["past_k"], values], node.expected())


HALVES = [
    case
    for case in all_cases()
    if case.operator in (CACHED_ATTENTION, EXPERT_ROUTE) and case.precision == "fp16"
]


@pytest.mark.parametrize("case", HALVES, ids=str)
def test_float16_takes_the_body_in_the_graph(case: Any) -> None:
    """There is a kernel for float32 alone, and a node of another type must still load."""
    model = one_node_model(case.operator, case.inputs, case.attributes)
    names = [output.name for output in model.graph.output]
    results = dict(zip(names, session(model).run(names, case.inputs), strict=True))
    for name, right in case.expected().items():
        assert results[name].dtype == right.dtype
        np.testing.assert_allclose(
            results[name].astype(np.float32),
            right.astype(np.float32),
            rtol=case.tolerance,
            atol=case.tolerance,
        )


def test_a_kernel_goes_before_the_body_in_the_graph() -> None:
    """A body that gives something else is not taken."""
    node = cross_attention()
    wrong = helper.make_function(
        "drl",
        "CrossAttention",
        list(node.inputs),
        ["output"],
        [helper.make_node("Neg", ["q"], ["output"])],
        OPSETS,
        ["num_heads", "scale"],
    )
    model = graph_model(node, [node.proto()], [wrong])
    assert same_bits(session(model).run(node.outputs, node.inputs), run(node))
