"""The decoder with weights in panels."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drl.export.checkpoint import load_checkpoint
from drl.plugins.ops.panels import PANEL, unpack_panels
from drl.runtime.errors import ExportError
from tests.export.graph.test_quantized import (
    MISTAKES,
    experts_in_disorder,
    make,
    operators,
    tensors,
)
from tests.export.test_exporter import executed_nodes
from tests.models import DENSE, TINY

OTHERS = [each for each in MISTAKES if each is not experts_in_disorder]


def test_a_dense_layer_is_four_linears_beside_attention(tmp_path: Path) -> None:
    make(tmp_path, "fp32", **DENSE)
    found, layers = operators(tmp_path / "bundle", "decoder"), 4
    # The output of both attentions, the queries of one, up (with its gate) and down.
    assert found["drl.Linear"] == 5 * layers
    assert found["drl.Projections"] == layers
    assert found["drl.Head"] == 1
    assert found["MatMul"] == found["Gemm"] == 0
    # The head cannot do its norm.
    assert found["RMSNormalization"] == 1


def test_only_the_dense_matrices_of_the_decoder_are_in_panels(tmp_path: Path) -> None:
    make(tmp_path, "fp32")
    names = {graph: tensors(tmp_path / "bundle", graph) for graph in ("encoder", "decoder")}
    assert not any(name.endswith(".panels") for name in names["encoder"])
    kinds = Counter(
        re.sub(r".*layers\.\d+\.", "", name)
        for name in names["decoder"]
        if name.endswith(".panels")
    )
    sparse = len(TINY.decoder_sparse_layers)
    dense = TINY.decoder_layers - sparse
    shared = sparse if TINY.d_shared else 0
    assert kinds == Counter(
        {
            "self_attention.qkv.panels": 4,
            "self_attention.o.weight.panels": 4,
            "cross_attention.q.weight.panels": 4,
            "cross_attention.o.weight.panels": 4,
            "ffn.gate_up.panels": dense,
            "ffn.down.weight.panels": dense,
            "ffn.shared.gate_up.panels": shared,
            "ffn.shared.down.weight.panels": shared,
        }
    )


def test_panels_hold_the_matrices_of_the_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, "fp32")
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    model = onnx.load(tmp_path / "bundle" / "decoder.onnx")
    arrays = {
        each.name: numpy_helper.to_array(each)
        for each in model.graph.initializer
        if each.name.endswith(".panels")
    }
    attention = "decoder.layers.0.self_attention"
    parts = [checkpoint.tensor(f"{attention}.{side}.weight").numpy() for side in "qkv"]
    columns = sum(len(part) for part in parts)
    found = arrays[f"{attention}.qkv.panels"]
    assert found.shape == (1, -(-columns // PANEL), TINY.d_model, PANEL)
    np.testing.assert_array_equal(unpack_panels(found, columns)[0], np.concatenate(parts))
    ffn = "decoder.layers.0.ffn"
    sides = [checkpoint.tensor(f"{ffn}.{side}.weight").numpy() for side in ("gate", "up")]
    stacked = unpack_panels(arrays[f"{ffn}.gate_up.panels"], len(sides[0]))
    np.testing.assert_array_equal(stacked, np.stack(sides))


def test_a_skipped_layer_does_no_work(tmp_path: Path) -> None:
    make(tmp_path, "fp32")
    products = []
    for path in range(3):
        names = executed_nodes(tmp_path / "bundle", path, tmp_path)
        turned = {re.findall(r"layers\.(\d)", name)[0] for name in names if "Rotary" in name}
        assert turned == {str(layer) for layer in TINY.paths[path].layers}
        products.append(sum("Linear_" in name and "MatMul" in name for name in names))
    fast, balanced, full = products
    assert 0 < fast < balanced < full


@pytest.mark.parametrize("mistake", OTHERS, ids=lambda mistake: mistake.__name__)
def test_a_graph_with_a_mistake_is_refused(
    mistake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(ExportError, match="does not reproduce the model"):
        make(tmp_path, "fp32", **MISTAKES[mistake])
    assert not (tmp_path / "bundle").exists()
