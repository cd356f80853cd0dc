from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from drl.export.graph import emit_decoder, emit_encoder
from drl.export.passes import SplitRoutedFFN
from drl.export.passes.force_routes import ForceRoutes, route_inputs
from drl.export.weights import WeightPlan
from drl.plugins.ops import ROUTED_FFN
from tests.models import DENSE, TINY, tiny_config


def inputs(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for value in model.graph.inputs}


def test_experts_run_as_told_and_routers_go_on_telling_their_choice(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_bytes((tiny_bundle / "weights.bin").read_bytes())
    plain = ir.load(tiny_bundle / "encoder.onnx")
    ir.save(plain, tmp_path / "plain.onnx")
    assert ForceRoutes()(plain).modified
    ir.save(plain, tmp_path / "forced.onnx")
    onnx.checker.check_model(tmp_path / "forced.onnx", full_check=True)
    feeds = {
        "source_tokens": np.array([[5, 9, 11, 30]], np.int64),
        "source_lengths": np.array([4], np.int32),
        "budget": np.ones(1, np.float32),
    }
    names = ["encoder_states", "encoder_experts.1"]
    states, chosen = onnxruntime.InferenceSession(tmp_path / "plain.onnx").run(names, feeds)
    forced = onnxruntime.InferenceSession(tmp_path / "forced.onnx")
    ids, gates = route_inputs("encoder.layers.1")
    none = feeds | {
        ids: np.full_like(chosen, -1),
        gates: np.zeros(chosen.shape, np.float32),
    }
    other, same = forced.run(names, none)
    assert np.abs(other - states).max() > 0.01
    np.testing.assert_array_equal(same, chosen)  # it comes before the experts


def test_every_sparse_layer_gets_inputs_those_in_branches_too() -> None:
    graph = emit_decoder(TINY, WeightPlan())
    before = set(inputs(graph))
    ForceRoutes()(graph)
    new = inputs(graph).keys() - before
    assert new == {*route_inputs("decoder.layers.1"), *route_inputs("decoder.layers.3")}
    readers = [node for node in graph.graph.all_nodes() if node.op_type == ROUTED_FFN.name]
    names = [{value.name for value in node.inputs if value is not None} for node in readers]
    assert [read & new for read in names] == [
        set(route_inputs("decoder.layers.1")),
        set(route_inputs("decoder.layers.3")),
    ]


def test_types_are_those_of_a_route_and_sizes_those_of_the_experts_told() -> None:
    graph = emit_encoder(TINY, WeightPlan())
    ForceRoutes()(graph)
    ids, gates = (inputs(graph)[name] for name in route_inputs("encoder.layers.1"))
    assert (ids.dtype, gates.dtype) == (ir.DataType.INT32, ir.DataType.FLOAT)
    assert str(ids.shape) == str(gates.shape) == "[B,S,2]"


def test_a_route_is_what_comes_after_the_capacity() -> None:
    graph = emit_encoder(tiny_config(expert_capacity=2), WeightPlan())
    ForceRoutes()(graph)
    (capacity,) = (node for node in graph.graph if node.op_type == "ExpertCapacity")
    assert not capacity.outputs[1].uses()
    assert capacity.outputs[0].is_graph_output()


def test_both_halves_of_a_split_layer_read_one_route() -> None:
    graph = emit_encoder(TINY, WeightPlan())
    SplitRoutedFFN()(graph)
    ForceRoutes()(graph)
    ids, gates = (inputs(graph)[name] for name in route_inputs("encoder.layers.1"))
    assert len({use.node for use in ids.uses()}) == 2
    assert len(gates.uses()) == 1


def test_a_second_run_changes_nothing_more() -> None:
    graph = emit_decoder(TINY, WeightPlan())
    ForceRoutes()(graph)
    names = list(inputs(graph))
    assert not ForceRoutes()(graph).modified
    assert list(inputs(graph)) == names


def test_a_dense_graph_is_left_alone() -> None:
    assert not ForceRoutes()(emit_decoder(tiny_config(**DENSE), WeightPlan())).modified


def test_experts_of_an_unknown_layer_are_refused() -> None:
    graph = emit_encoder(TINY, WeightPlan())
    for node in graph.graph:
        node.metadata_props.clear()
    with pytest.raises(ir.passes.PreconditionError, match="does not say of which layer"):
        ForceRoutes().call(graph)
