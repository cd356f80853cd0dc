from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir.passes.common import IdentityEliminationPass

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.graph import emit_decoder, emit_encoder
from drl.export.passes import AppendFunctionBodies
from drl.export.passes.tap_layers import TapLayers
from drl.export.verification.eager_states import EagerStates
from drl.export.weights import WeightPlan
from tests.export.graph.test_parity import VARIANTS
from tests.models import TINY, random_model, tiny_config

ENCODER = [
    "encoder.embedding",
    *(f"encoder.layers.{i}.{part}" for i in range(3) for part in ("self_attention", "ffn")),
]


def outputs(model: ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.outputs]


def run_encoder(folder: Path, model: ir.Model) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    ir.save(model, folder / "tapped.onnx")
    onnx.checker.check_model(folder / "tapped.onnx", full_check=True)
    session = onnxruntime.InferenceSession(folder / "tapped.onnx")
    tokens = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    feeds = {
        "source_tokens": tokens.numpy(),
        "source_lengths": np.array([7, 7], np.int32),
        "budget": np.ones(2, np.float32),
    }
    wanted = {item.name for item in session.get_inputs()}
    names = [item.name for item in session.get_outputs()]
    found = session.run(names, {name: feeds[name] for name in wanted})
    return dict(zip(names, found, strict=True)), tokens


@pytest.mark.parametrize("variant", ["every feature", "post-norm, biases, learned positions"])
def test_states_are_those_of_the_eager_model(variant: str, tmp_path: Path) -> None:
    model = random_model(tiny_config(**VARIANTS[variant]))
    save_checkpoint(tmp_path / "checkpoint", model)
    export(tmp_path / "checkpoint", tmp_path / "b", ExportOptions("portable", verify=False))
    graph = ir.load(tmp_path / "b" / "encoder.onnx")
    plain = outputs(graph)
    result = TapLayers(ENCODER)(graph)
    assert result.modified
    assert outputs(graph) == [*plain, *(f"states.{place}" for place in ENCODER)]
    found, tokens = run_encoder(tmp_path / "b", graph)
    eager = EagerStates()
    with torch.inference_mode(), eager.watching(model):
        encoded = model.encode(tokens, torch.tensor([7, 7]))
    for place in ENCODER:
        expected = eager.told[place].numpy()
        np.testing.assert_allclose(found[f"states.{place}"], expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found["encoder_states"], encoded.states, atol=1e-4, rtol=1e-4)


def test_a_branch_tells_nothing_where_it_is_skipped(tiny_bundle: Path, tmp_path: Path) -> None:
    graph = ir.load(tiny_bundle / "decoder.canonical.onnx")
    places = [f"decoder.layers.{i}.cross_attention" for i in range(4)]
    TapLayers(places)(graph)
    shapes = {str(value.name): value.shape for value in graph.graph.outputs}
    assert str(shapes["states.decoder.layers.0.cross_attention"]) == "[B,T,64]"
    assert str(shapes["states.decoder.layers.1.cross_attention"]) == "[B.1,T.1,64]"
    branches = [node for node in graph.graph if node.name == "decoder.layers.1"]
    for name in ("then_branch", "else_branch"):
        last = branches[0].attributes[name].as_graph().outputs[-1]
        assert (last.producer() or branches[0]).op_type == (
            "Identity" if name == "then_branch" else "Constant"
        )


def test_only_the_places_asked_for_are_told_and_those_of_other_graphs_passed_over() -> None:
    graph = emit_decoder(TINY, WeightPlan())
    before = len(outputs(graph))
    assert not TapLayers(["encoder.layers.0.ffn"])(graph).modified
    TapLayers(["decoder.layers.3.ffn", "encoder.layers.0.ffn"])(graph)
    assert outputs(graph)[before:] == ["states.decoder.layers.3.ffn"]


def test_a_second_run_changes_nothing_more() -> None:
    graph = emit_encoder(TINY, WeightPlan())
    TapLayers(ENCODER)(graph)
    once = outputs(graph)
    assert not TapLayers(ENCODER)(graph).modified
    assert outputs(graph) == once


def test_an_output_of_the_graph_keeps_its_name_where_copies_are_removed() -> None:
    """Without a final norm the states of the last layer are an output already."""
    graph = emit_encoder(tiny_config(norm_position="post", norm="layer"), WeightPlan())
    assert outputs(graph)[0] == "encoder_states"
    TapLayers(ENCODER)(graph)
    AppendFunctionBodies()(graph)
    IdentityEliminationPass()(graph)
    assert outputs(graph)[0] == "encoder_states"
    assert "states.encoder.layers.2.ffn" in outputs(graph)


def test_a_graph_without_layers_tells_nothing() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="encoder")
    assert not TapLayers(ENCODER)(ir.Model(graph, ir_version=11)).modified


def test_nodes_that_nobody_reads_are_a_mistake_of_the_graph() -> None:
    graph = emit_encoder(TINY, WeightPlan())
    last = [n for n in graph.graph if n.metadata_props.get("namespace") == "encoder/layers.2/ffn"]
    source = last[-1].inputs[0]
    assert source is not None
    last[-1].outputs[0].replace_all_uses_with(source)
    with pytest.raises(ir.passes.PreconditionError, match=r"encoder\.layers\.2\.ffn"):
        TapLayers(["encoder.layers.2.ffn"]).call(graph)
