"""Rows of the decoder that share a source compute what they compute with a copy of it each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.model import ModelConfig
from drl.export.parity import TOLERANCE
from tests.models import DENSE, random_model, tiny_config

VARIANTS: dict[str, dict[str, Any]] = {
    "rotary, skippable layers, grouped heads": {},
    "relative bias, skippable layers, own heads": {"position": "t5_bias", "kv_heads": 4},
    "one path, a relative bias per layer": DENSE
    | {"position": "t5_bias", "position_bias_per_layer": True},
}
KINDS = {
    "portable": ExportOptions(target="portable", verify=False),
    "ort-cpu": ExportOptions(target="ort-cpu", verify=False),
    "int8": ExportOptions(precision="int8", verify=False),
}
SOURCES = np.array([1, 9, 24], np.int32)
CAPACITY = 8
FAR = 0.1
"""Logits of other sources differ by more."""
Arrays = dict[str, np.ndarray]
Spread = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Graphs:
    """The graphs of a bundle in plain sessions, so that nothing stands between them and a test.

    Attributes:
        folder: The bundle.
        config: The model's configuration.
        tolerance: Of logits that should be equal.
    """

    folder: Path
    config: ModelConfig
    tolerance: float = TOLERANCE

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(self.folder / f"{graph}.onnx", options)

    def cross(self, path: int) -> Arrays:
        """What the bridge makes of `SOURCES`, under the names of the decoder's inputs."""
        generator = np.random.default_rng(1)
        shape = (len(SOURCES), SOURCES.max())
        tokens = generator.integers(3, self.config.vocab_size, shape)
        budget = np.ones(len(SOURCES), np.float32)
        feeds = {"source_tokens": tokens, "source_lengths": SOURCES, "budget": budget}
        feeds |= {"path": np.array(path)}
        for graph in ("encoder", "bridge"):
            feeds |= _run(self.session(graph), feeds)
        return {name: array for name, array in feeds.items() if name.startswith("cross_")}


def _run(session: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    wanted = {each.name: feeds[each.name] for each in session.get_inputs()}
    return dict(zip(names, session.run(None, wanted), strict=True))


class Decoder:
    """The decoder graph over a cache that it fills in place."""

    def __init__(self, graphs: Graphs) -> None:
        self._session = graphs.session("decoder")
        self._config = graphs.config

    def run(self, path: int, cross: Arrays, calls: list[Arrays]) -> list[np.ndarray]:
        """The logits `[B, T, V]` of one call after another."""
        config = self._config
        past = {}
        for layer in range(config.decoder_layers):
            length = CAPACITY if layer in config.paths[path].layers else 0
            shape = (len(calls[0]["tokens"]), config.kv_heads, length, config.head_dim)
            past |= {f"past_{side}.{layer}": np.zeros(shape, np.float32) for side in "kv"}
        return [self._call({"path": np.array(path)} | cross | past | call) for call in calls]

    def _call(self, feeds: Arrays) -> np.ndarray:
        binding = self._session.io_binding()
        for name in (each.name for each in self._session.get_inputs()):
            array = feeds[name]
            place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            binding.bind_input(name, *place)
            if name.startswith("past_") and array.size:
                binding.bind_output(name.replace("past", "present"), *place)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        logits: np.ndarray = binding.get_outputs()[-1].numpy()
        return logits


@pytest.fixture(
    scope="module",
    params=[(variant, kind) for variant in VARIANTS for kind in KINDS],
    ids=lambda parameters: " ".join(parameters),
)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    variant, kind = request.param
    config = tiny_config(**VARIANTS[variant])
    folder = tmp_path_factory.mktemp("shared")
    save_checkpoint(folder / "checkpoint", random_model(config))
    export(folder / "checkpoint", folder / "bundle", KINDS[kind])
    # In int8 a value between two steps may fall to either side.
    return Graphs(folder / "bundle", config, 0.2 if kind == "int8" else TOLERANCE)


def paths(config: ModelConfig) -> range:
    return range(len(config.paths))


def calls(rows: int, new: int, vocabulary: int) -> list[Arrays]:
    """`new` tokens for every row over an empty cache, then as many over a ragged one."""
    generator = np.random.default_rng(2)
    ragged = 1 + np.arange(rows) % new
    return [
        {
            "tokens": generator.integers(3, vocabulary, (rows, new)),
            "lengths": lengths.astype(np.int32),
            "new_lengths": np.full(rows, new, np.int32),
            "candidates": np.zeros(1, np.int64),
        }
        for lengths in (np.zeros(rows), ragged)
    ]


def spread(cross: Arrays, over: Spread) -> Arrays:
    return {name: np.ascontiguousarray(over(array)) for name, array in cross.items()}


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_rows_that_share_a_source_compute_what_rows_with_copies_do(
    graphs: Graphs, width: int, new: int
) -> None:
    decoder, config = Decoder(graphs), graphs.config
    script = calls(len(SOURCES) * width, new, config.vocab_size)
    for path in paths(config):
        cross = graphs.cross(path)
        copies = spread(cross, lambda array: array.repeat(width, axis=0))
        shared, expected = (decoder.run(path, each, script) for each in (cross, copies))
        for ours, theirs in zip(shared, expected, strict=True):
            assert ours.shape == (len(SOURCES) * width, new, config.vocab_size)
            np.testing.assert_allclose(ours, theirs, atol=graphs.tolerance, rtol=0)


@pytest.mark.parametrize("new", [1, 3])
def test_rows_of_a_source_stand_side_by_side(graphs: Graphs, new: int) -> None:
    """With the same tokens everywhere, only its source tells a row from the others."""
    width, config = 2, graphs.config
    decoder, path = Decoder(graphs), len(graphs.config.paths) - 1
    cross = graphs.cross(path)
    (alone, *_) = calls(1, new, config.vocab_size)
    together = calls(len(SOURCES) * width, new, config.vocab_size)[0] | {
        "tokens": alone["tokens"].repeat(len(SOURCES) * width, axis=0)
    }
    (logits,) = decoder.run(path, cross, [together])
    expected = [
        decoder.run(path, spread(cross, lambda array, row=row: array[row : row + 1]), [alone])[0]
        for row in range(len(SOURCES))
    ]
    for row, found in enumerate(logits):
        for source, theirs in enumerate(expected):
            difference = abs(found - theirs[0]).max()
            same = source == row // width
            assert difference <= graphs.tolerance if same else difference > FAR


@pytest.mark.parametrize("new", [1, 3])
def test_interleaved_rows_are_something_else(graphs: Graphs, new: int) -> None:
    """Else the tests above would not notice that rows find their sources in another order."""
    decoder, path = Decoder(graphs), len(graphs.config.paths) - 1
    cross = graphs.cross(path)
    script = calls(len(SOURCES) * 2, new, graphs.config.vocab_size)
    interleaved = spread(cross, lambda array: np.concatenate([array, array]))
    for ours, theirs in zip(
        decoder.run(path, cross, script), decoder.run(path, interleaved, script), strict=True
    ):
        differs = abs(ours - theirs).max(axis=(1, 2)) > max(graphs.tolerance, FAR)
        assert differs.tolist() == [False, True, True, True, True, False]


def test_sources_have_a_dimension_of_their_own(graphs: Graphs) -> None:
    for each in graphs.session("decoder").get_inputs():
        if each.shape and each.name != "candidates":
            assert each.shape[0] == ("R" if each.name.startswith("cross_") else "B"), each.name


def test_sources_are_read_as_they_are(graphs: Graphs) -> None:
    manifest = json.loads((graphs.folder / "bundle.json").read_text(encoding="utf-8"))
    operators = manifest["graphs"]["decoder"]["operators"]
    assert operators["drl.CrossAttention"] == 4
    assert "Attention" not in operators
