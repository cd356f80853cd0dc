from pathlib import Path

import numpy as np
import pytest

from drl.export.passes import TapLayers
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import OrtRunner, OrtSettings
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError


def test_a_graph_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"no graph")
    runner = OrtRunner({"encoder": tmp_path / "encoder.onnx"}, OrtSettings("CPU"))
    with pytest.raises(BackendError, match=r"^ONNX Runtime .*, CPU cannot load encoder: "):
        runner.inputs("encoder")


def test_a_graph_that_does_not_run_is_named(tiny_bundle: Path) -> None:
    runner = OrtRunner({"encoder": tiny_bundle / "encoder.onnx"}, OrtSettings("CPU"))
    feeds = {"source_tokens": np.zeros((1, 2), np.int64)}
    with pytest.raises(BackendError, match=r"^ONNX Runtime .*, CPU cannot run encoder: "):
        runner.run("encoder", feeds)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_graph_that_would_run_elsewhere_is_refused(tiny_bundle: Path) -> None:
    providers = (("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {}))
    settings = OrtSettings("CUDA", providers=providers)
    runner = OrtRunner({"encoder": tiny_bundle / "encoder.onnx"}, settings)
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider did not start for the encoder"):
        runner.inputs("encoder")


def test_weights_stay_where_they_are_when_passes_run(tiny_bundle: Path) -> None:
    passes = [TapLayers(["encoder.layers.0.ffn"])]
    runner = OrtRunner({"encoder": tiny_bundle / "encoder.onnx"}, OrtSettings("CPU"), passes)
    backend = GraphBackend(Bundle.load(tiny_bundle).manifest, runner)
    tokens = np.array([[5, 6, 7]], np.int64)
    encoding = backend.encode(tokens, np.array([3], np.int32), np.ones(1, np.float32))
    assert encoding.states.shape == (1, 3, 64)
    assert backend.states["encoder.layers.0.ffn"].shape == (1, 3, 64)
    assert encoding.experts == {}
    backend.close()


def test_an_input_that_nobody_knows_is_refused(tiny_bundle: Path) -> None:
    files = {"encoder": tiny_bundle / "decoder.onnx"}
    backend = GraphBackend(Bundle.load(tiny_bundle).manifest, OrtRunner(files, OrtSettings("CPU")))
    tokens = np.array([[5]], np.int64)
    with pytest.raises(BackendError, match="has encoder with an unknown input"):
        backend.encode(tokens, np.array([1], np.int32), np.ones(1, np.float32))
