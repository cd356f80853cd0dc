from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.passes import SpecialisePath, StaticCache
from drl.runtime.bundle import Bundle
from tests.models import DENSE, TINY, random_model, tiny_config


def _decoder(bundle: Path) -> ir.Model:
    model = ir.load(Bundle.load(bundle, verify_hashes=False).canonical_file("decoder"))
    SpecialisePath(0, TINY.paths[0].layers)(model)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["shared bias", "a bias per layer"])
def biased_decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle whose decoder has relative position biases."""
    folder = tmp_path_factory.mktemp("biased")
    config = tiny_config(**DENSE, position="t5_bias", position_bias_per_layer=request.param)
    save_checkpoint(folder / "checkpoint", random_model(config))
    export(folder / "checkpoint", folder / "bundle", ExportOptions(verify=False))
    return folder / "bundle"


def _capacities(model: ir.Model) -> set[object]:
    values = (*model.graph.inputs, *model.graph.outputs)
    caches = [v for v in values if (v.name or "").startswith(("past_", "present_"))]
    assert caches
    return {value.shape[2] for value in caches if value.shape is not None}


def test_every_cache_gets_the_capacity(tiny_bundle: Path) -> None:
    model = _decoder(tiny_bundle)
    assert StaticCache(24)(model).modified
    assert _capacities(model) == {24}
    assert not StaticCache(24)(model).modified


def test_biases_span_all_slots(biased_decoder: Path) -> None:
    model = _decoder(biased_decoder)
    lengths = next(value for value in model.graph.inputs if value.name == "lengths")
    before = [node.op_type for node in lengths.consumers()]
    assert "ReduceMax" in before
    StaticCache(24)(model)
    attention = [node for node in model.graph if node.op_type == "CachedAttention"]
    assert all(len(node.inputs) == 7 for node in attention)
    constants = [
        value.const_value.numpy()
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.shape == (24,)
    ]
    assert any(np.array_equal(array, np.arange(24)) for array in constants)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert "ReduceMax" not in [node.op_type for node in lengths.consumers()]
    assert not StaticCache(24)(model).modified


def test_a_graph_without_a_cache_is_refused(tiny_bundle: Path) -> None:
    model = ir.load(Bundle.load(tiny_bundle, verify_hashes=False).canonical_file("encoder"))
    with pytest.raises(ir.passes.PreconditionError, match="no cache"):
        StaticCache(24)(model)
