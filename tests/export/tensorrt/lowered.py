"""Lowered graphs run by ONNX Runtime on the CPU, called as engines would be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime

from drl.runtime.manifest import Manifest, PathInfo

Array = np.ndarray[Any, np.dtype[Any]]


class Session:
    """One graph; feeds are cast to the types that it declares."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(file, options)
        types = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
        types |= {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
        self.inputs = {each.name: types[each.type] for each in self._session.get_inputs()}
        self.outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        typed = {name: feeds[name].astype(kind) for name, kind in self.inputs.items()}
        return dict(zip(self.outputs, self._session.run(None, typed), strict=True))


class LoweredModel:
    """All graphs of one lowered bundle."""

    def __init__(self, folder: Path, paths: Sequence[PathInfo], kv_shape: tuple[int, int, int]):
        self.paths = paths
        self.encoder = Session(folder / "encoder.onnx")
        self.bridges = [Session(folder / f"bridge.{path.name}.onnx") for path in paths]
        self.decoders = [Session(folder / f"decoder.{path.name}.onnx") for path in paths]
        self._kv_shape = kv_shape

    @property
    def capacity(self) -> int:
        """C of the decoders' caches."""
        return self._kv_shape[1]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, capacity: int | None = None) -> Self:
        """Open the graphs that a bundle was lowered to in `folder`."""
        cache, limits = manifest.cache, manifest.limits
        slots = capacity or limits.max_target_length
        return cls(folder, manifest.paths, (cache.kv_heads, slots, cache.head_dim))

    def encode(self, sources: Sequence[Sequence[int]], budget: float = 0.5) -> dict[str, Array]:
        """Run the encoder on token lists, padded to the longest."""
        lengths = np.array([len(source) for source in sources], np.int32)
        tokens = np.zeros((len(sources), lengths.max()), np.int64)
        for row, source in enumerate(sources):
            tokens[row, : len(source)] = source
        budgets = np.full(len(sources), budget, np.float32)
        given = {"source_tokens": tokens, "source_lengths": lengths, "budget": budgets}
        return {**self.encoder(given), "source_lengths": lengths}

    def bridge(self, encoded: Mapping[str, Array], path: int) -> dict[str, Array]:
        """Run a path's bridge on what `encode` gave."""
        return self.bridges[path](encoded)

    def decoding(self, cross: Mapping[str, Array], path: int, width: int = 1) -> "Decoding":
        """Begin to decode, `width` rows to a source."""
        return Decoding(self.decoders[path], cross, self.paths[path], width, self._kv_shape)


class Decoding:
    """Rows being decoded: their cache, and how far it is filled."""

    def __init__(
        self,
        decoder: Session,
        cross: Mapping[str, Array],
        path: PathInfo,
        width: int,
        kv_shape: tuple[int, int, int],
    ) -> None:
        self._decoder = decoder
        self._cross = cross
        rows = len(cross["cross_bias"]) * width
        heads, capacity, size = kv_shape
        self.lengths = np.zeros(rows, np.int32)
        self.cache = {
            f"past_{side}.{layer}": np.zeros((rows, heads, capacity, size), np.float32)
            for layer in path.layers
            for side in "kv"
        }

    def step(self, tokens: Array, new: Array | None = None) -> dict[str, Array]:
        """Decode `tokens` `[B, T]`, of which `new` `[B]` are real."""
        given = np.full(len(tokens), tokens.shape[1], np.int32) if new is None else new
        feeds = {"tokens": tokens, "lengths": self.lengths, "new_lengths": given}
        outputs = self._decoder({**feeds, **self._cross, **self.cache})
        for name in self.cache:
            self.cache[name] = outputs[name.replace("past", "present")]
        self.lengths = self.lengths + given
        return outputs
