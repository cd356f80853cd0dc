from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from drl.export.passes import AppendFunctionBodies, SpecialisePath
from drl.runtime.bundle import Bundle
from tests.models import TINY

PATHS = list(enumerate(TINY.paths))


def _load(bundle: Path, graph: str) -> ir.Model:
    return ir.load(Bundle.load(bundle, verify_hashes=False).canonical_file(graph))


def _specialised(bundle: Path, graph: str, path: int) -> ir.Model:
    model = _load(bundle, graph)
    assert SpecialisePath(path, TINY.paths[path].layers)(model).modified
    return model


def _session(model: ir.Model, folder: Path) -> onnxruntime.InferenceSession:
    AppendFunctionBodies()(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(folder))
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def _feeds(layers: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A first call of two rows, over caches of 8 slots for the layers that run."""
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {
        "tokens": random.integers(0, TINY.vocab_size, (2, 3)),
        "lengths": np.zeros(2, np.int32),
        "new_lengths": np.array([3, 2], np.int32),
        "cross_bias": random.standard_normal((2, 5)).astype(np.float32),
        "encoder_states": random.standard_normal((2, 5, TINY.d_model)).astype(np.float32),
        "source_lengths": np.array([5, 3], np.int32),
        "saliency": random.standard_normal((2, 5)).astype(np.float32),
    }
    for layer in range(TINY.decoder_layers):
        for kind, length in (("cross", 5), ("past", 8)):
            size = length if layer in layers else 0
            for side in "kv":
                shape = (2, TINY.kv_heads, size, TINY.head_dim)
                feeds[f"{kind}_{side}.{layer}"] = random.standard_normal(shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize("graph", ["bridge", "decoder"])
@pytest.mark.parametrize(("path", "config"), PATHS)
def test_a_specialised_graph_computes_what_the_path_does(
    path: int, config: object, graph: str, tiny_bundle: Path
) -> None:
    layers = TINY.paths[path].layers
    feeds = _feeds(layers)
    whole = _session(_load(tiny_bundle, graph), tiny_bundle)
    own = _session(_specialised(tiny_bundle, graph, path), tiny_bundle)
    names = [each.name for each in own.get_outputs()]
    inputs = [each.name for each in whole.get_inputs()]
    given = {**feeds, "path": np.array(path)}
    expected = whole.run(names, {name: given[name] for name in inputs})
    results = own.run(names, {each.name: feeds[each.name] for each in own.get_inputs()})
    for name, result, wanted in zip(names, results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("path", "config"), PATHS)
def test_nothing_of_a_skipped_layer_is_left(path: int, config: object, tiny_bundle: Path) -> None:
    skipped = set(range(TINY.decoder_layers)) - set(TINY.paths[path].layers)
    model = _specialised(tiny_bundle, "decoder", path)
    graph = model.graph
    names = [value.name or "" for value in (*graph.inputs, *graph.outputs)]
    assert "path" not in names
    numbers = {int(name.rsplit(".", 1)[1]) for name in names if "." in name}
    assert numbers == set(TINY.paths[path].layers)
    left = [n.op_type for n in graph for i in skipped if f"layers.{i}/" in (n.name or "")]
    assert set(left) <= {"Identity"}  # of the states that the layer hands on
    assert all(node.op_type != "If" for node in graph.all_nodes())


def test_the_number_of_experts_is_a_constant(tiny_bundle: Path) -> None:
    for path, config in PATHS:
        model = _specialised(tiny_bundle, "decoder", path)
        routers = [node for node in model.graph if node.op_type == "ExpertRoute"]
        assert routers
        for node in routers:
            k = node.inputs[6]
            assert k is not None
            assert k.const_value is not None
            assert k.const_value.numpy().tolist() == [config.experts_per_token]


def test_sizes_are_those_of_every_layer(tiny_bundle: Path) -> None:
    graph = _specialised(tiny_bundle, "decoder", 1).graph
    sizes = {str(dim) for v in graph.inputs if v.shape is not None for dim in v.shape}
    assert {size for size in sizes if not size.isdigit()} == {"B", "T", "R", "K", "C"}


@pytest.mark.parametrize("graph", ["bridge", "decoder"])
def test_a_second_run_and_a_graph_without_paths_stay_as_they_are(
    graph: str, tiny_bundle: Path, dense_bundle: Path
) -> None:
    model = _specialised(tiny_bundle, graph, 0)
    assert not SpecialisePath(0, TINY.paths[0].layers)(model).modified
    assert not SpecialisePath(0, (0, 1, 2, 3))(_load(dense_bundle, graph)).modified


def test_a_path_that_is_no_number_is_refused(tiny_bundle: Path) -> None:
    model = _load(tiny_bundle, "decoder")
    (path,) = [value for value in model.graph.inputs if value.name == "path"]
    path.shape = ir.Shape([1])
    with pytest.raises(ir.passes.PreconditionError, match="no int64 scalar"):
        SpecialisePath(0, (0, 3))(model)


def test_a_skipped_layer_that_something_reads_is_found(tiny_bundle: Path) -> None:
    # told to leave out layer 2, on a path whose graph runs it
    with pytest.raises(
        ir.passes.PostconditionError, match=r"a skipped layer reads (past|cross)_[kv]\.2"
    ):
        SpecialisePath(1, (0, 3))(_load(tiny_bundle, "decoder"))
