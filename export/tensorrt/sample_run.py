"""Run lowered float32 graphs on sample inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.manifest import Manifest, PathInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """What to run on: random tokens, the same at every call.

    Attributes:
        source_lengths: Tokens of each source; longer ones than the model takes are cut.
        prefix: Random tokens that decoding begins with, after the start token.
        steps: Tokens decoded greedily after those, as the bundle's generation defaults do.
        seed: Of the draws.
    """

    source_lengths: tuple[int, ...] = (4, 12, 32, 64)
    prefix: int = 7
    steps: int = 8
    seed: int = 6


SAMPLE = Sample()


class Graph(Protocol):
    """Something that runs a graph on those of the feeds that it reads."""

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name."""
        ...


class Opener(Protocol):
    """Opens the graph called `encoder`, `bridge.<path>` or `decoder.<path>`."""

    def __call__(self, name: str) -> Graph:
        """Return the graph, ready to run."""
        ...


def open_graph(model: ir.Model, folder: Path) -> Graph:
    """Load a graph of fp32 into ONNX Runtime, on the CPU.

    Args:
        model: The graph.
        folder: Where its weights file lies.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")  # weights stay mapped
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(folder))
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        results = session.run(None, {name: feeds[name] for name in inputs})
        return dict(zip(outputs, results, strict=True))

    return run


def run_sample(
    open_by_name: Opener, manifest: Manifest, capacity: int, sample: Sample = SAMPLE
) -> None:
    """Encode, bridge and decode on every path.

    Args:
        open_by_name: Opens the graphs, one at a time.
        manifest: Of the bundle.
        capacity: C, of the decoders' caches.
        sample: What to run on.
    """
    random = np.random.default_rng(sample.seed)
    sources = _draw_sources(manifest, sample, random)
    encoded = {**sources, **open_by_name("encoder")(sources)}
    rows = len(sources["source_lengths"])
    prefix = random.integers(0, manifest.limits.vocab_size, (rows, sample.prefix + 1))
    prefix[:, 0] = manifest.tokens.start
    for path in manifest.paths:
        cross = open_by_name(f"bridge.{path.name}")(encoded)
        cache = _empty_cache(manifest, path, rows, capacity)
        feeds = {**cross, **cache}
        _decode(open_by_name(f"decoder.{path.name}"), feeds, prefix[:, :capacity], capacity, sample)


def _draw_sources(
    manifest: Manifest, sample: Sample, random: np.random.Generator
) -> dict[str, Array]:
    longest = manifest.limits.max_source_length
    lengths = np.array([min(length, longest) for length in sample.source_lengths], np.int32)
    tokens = random.integers(0, manifest.limits.vocab_size, (len(lengths), lengths.max()))
    tokens[np.arange(lengths.max()) >= lengths[:, None]] = manifest.tokens.pad
    budget = np.linspace(0, 1, len(lengths), dtype=np.float32)
    return {"source_tokens": tokens, "source_lengths": lengths, "budget": budget}


def _empty_cache(manifest: Manifest, path: PathInfo, rows: int, capacity: int) -> dict[str, Array]:
    shape = rows, manifest.cache.kv_heads, capacity, manifest.cache.head_dim
    names = [f"past_{side}.{layer}" for layer in path.layers for side in "kv"]
    return {name: np.zeros(shape, np.float32) for name in names}


def _decode(
    decoder: Graph, feeds: dict[str, Array], tokens: Array, capacity: int, sample: Sample
) -> None:
    """Decode the prefix at once, and then a token at a time while there is room in the cache."""
    lengths = np.zeros(len(tokens), np.int32)
    for _ in range(sample.steps + 1):
        if lengths[0] + tokens.shape[1] > capacity:
            return
        new = np.full_like(lengths, tokens.shape[1])
        outputs = decoder({**feeds, "tokens": tokens, "lengths": lengths, "new_lengths": new})
        for name in feeds:
            if name.startswith("past_"):
                feeds[name] = outputs[name.replace("past_", "present_")]
        lengths = lengths + new
        tokens = outputs["top_ids"][:, -1:, 0].astype(np.int64)
