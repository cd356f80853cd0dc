from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import pytest

from drl.export.tensorrt import magnitudes
from drl.export.tensorrt.magnitudes import measure
from drl.export.tensorrt.sample_run import Opener
from drl.runtime.manifest import Manifest

FLOAT = ir.DataType.FLOAT
WEIGHT = np.array([[2.0, -3.0], [0.5, 1.0]], np.float32)


def _model() -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="encoder")
    builder = onnxscript.GraphBuilder(graph)
    x = builder.input("x", FLOAT, ["B", 2])
    product = builder.op.MatMul(x, builder.initializer(ir.tensor(WEIGHT, name="weight")))
    product.name = "product"
    precise = builder.op.Softmax(product, axis=-1)
    precise.name = "precise"
    builder.add_output(precise, "y")
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("calls", [[3.0, 1.0], [1.0, 3.0], [-3.0]])
def test_the_largest_magnitude_of_all_calls_is_kept(
    calls: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_sample(open_by_name: Opener, manifest: Manifest, capacity: int) -> None:
        graph = open_by_name("encoder")
        for factor in calls:
            x = factor * np.array([[1.0, 0.0]], np.float32)
            outputs = graph({"x": x, "another": x})
            assert outputs.keys() == {"y"}

    monkeypatch.setattr(magnitudes, "run_sample", run_sample)
    nothing: Any = None
    model = _model()
    found = measure({"encoder": model}, nothing, tmp_path, 1)
    # the product alone would be half; the softmax is float32
    assert found == {"encoder": {"product": 9.0}}
    assert [node.op_type for node in model.graph] == ["MatMul", "Softmax"]  # left as it was
