"""A backend out of plain graph calls, which tells more than the runtime's and can be told more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drl.export.passes.force_routes import route_inputs
from drl.export.passes.tap_layers import STATES
from drl.export.verification.graph_runner import GraphRunner
from drl.runtime.arrays import Array, BackendArray, Float32, Int32, Int64
from drl.runtime.backends import CrossAttention, Encoding, StepInputs, StepOutputs
from drl.runtime.backends.memory import HOST, HostRules
from drl.runtime.errors import BackendError
from drl.runtime.manifest import Manifest

Routes = Mapping[str, tuple[Int32, Float32]]
"""Expert ids and gates `[B, T, k]` by the name of the layer, such as `decoder.layers.1`."""


class GraphBackend(HostRules):
    """`Backend` over graphs that are called with arrays of the host, for comparisons.

    Nothing is bound and every step copies its cache, so it is slow. It runs graphs for all paths
    and graphs for one path each, which are called `bridge.<path>` and `decoder.<path>`; and graphs
    with passes run over them: states that they tell are kept, routes can be forced.

    Args:
        manifest: Of the bundle that the graphs were made from.
        runner: Runs them.
        specialised: Whether there is a graph for every path.
        cache_dtype: Type of keys and values.
        capacity: Positions of the cache where the graphs fix them.

    Attributes:
        states: What the last call told of states, fp32 `[B, T, d]` by place.
        routes: What the next calls shall take in the place of their own routes.
    """

    ranks = False

    def __init__(
        self,
        manifest: Manifest,
        runner: GraphRunner,
        *,
        specialised: bool = False,
        cache_dtype: Any = np.float32,
        capacity: int | None = None,
    ) -> None:
        super().__init__(cache_dtype)
        self._manifest = manifest
        self._runner = runner
        self._specialised = specialised
        self.capacity = capacity
        self.states: dict[str, Float32] = {}
        self.routes: Routes = {}

    @property
    def name(self) -> str:
        """The library and device."""
        return self._runner.name

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        """See `Backend.encode`."""
        feeds: dict[str, Any] = {
            "source_tokens": tokens,
            "source_lengths": lengths,
            "budget": budget,
        }
        outputs = self._run("encoder", feeds)
        logits = outputs.get("path_logits")
        return Encoding(
            states=outputs["encoder_states"],
            lengths=lengths,
            saliency=outputs.get("saliency"),
            path_logits=None if logits is None else logits.astype(np.float32),
            experts=_experts(outputs, "encoder") if with_experts else {},
        )

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        """See `Backend.bridge`."""
        feeds = {
            "encoder_states": encoding.states,
            "source_lengths": encoding.lengths,
            "saliency": encoding.saliency,
            "path": np.array(path, np.int64),
        }
        outputs = self._run(self._graph("bridge", path), feeds)
        rows, cache = len(encoding.lengths), self._manifest.cache
        nothing = np.zeros((rows, cache.kv_heads, 0, cache.head_dim), self.cache_dtype)
        keys, values = (
            tuple(
                outputs.get(f"cross_{side}.{layer}", nothing)
                for layer in range(cache.decoder_layers)
            )
            for side in "kv"
        )
        return CrossAttention(outputs["cross_bias"], outputs["kept_lengths"], keys, values)

    def step(self, inputs: StepInputs) -> StepOutputs:
        """See `Backend.step`."""
        feeds: dict[str, Any] = {
            "tokens": inputs.tokens,
            "lengths": inputs.lengths,
            "new_lengths": inputs.new_lengths,
            "candidates": np.zeros(1, np.int64),
            "path": np.array(inputs.path, np.int64),
            "cross_bias": inputs.cross_bias,
        }
        blocks = {
            "cross_k": inputs.cross_keys,
            "cross_v": inputs.cross_values,
            "past_k": inputs.past_keys,
            "past_v": inputs.past_values,
        }
        for name, arrays in blocks.items():
            feeds |= {f"{name}.{layer}": array for layer, array in enumerate(arrays)}
        outputs = self._run(self._graph("decoder", inputs.path), feeds)
        for layer in self._manifest.paths[inputs.path].layers:
            inputs.past_keys[layer][...] = outputs[f"present_k.{layer}"]
            inputs.past_values[layer][...] = outputs[f"present_v.{layer}"]
        experts = _experts(outputs, "decoder") if inputs.with_experts else {}
        return StepOutputs(
            outputs["logits"].astype(np.float32),
            outputs["normalisers"].astype(np.float32),
            {layer: ids for layer, ids in experts.items() if ids.size},
        )

    def release(self, path: int, width: int) -> None:
        """See `Backend.release`; nothing is bound."""

    def close(self) -> None:
        """See `Backend.close`."""
        self._runner.close()

    def _graph(self, kind: str, path: int) -> str:
        return f"{kind}.{self._manifest.paths[path].name}" if self._specialised else kind

    def _run(self, graph: str, feeds: Mapping[str, BackendArray | None]) -> dict[str, Array]:
        """Feed a graph what it has inputs for, and keep what it tells of states."""
        given = dict(feeds)
        for layer, (ids, gates) in self.routes.items():
            given |= dict(zip(route_inputs(layer), (ids, gates), strict=True))
        wanted: dict[str, Array] = {}
        for name, dtype in self._runner.inputs(graph).items():
            array = given.get(name)
            if array is None:
                if not name.startswith("routes."):
                    raise BackendError(f"{self.name} has {graph} with an unknown input {name}")
                array = np.zeros((0, 0, 0), dtype)  # of a layer that the path skips
            wanted[name] = np.asarray(HOST.to_host(array), dtype, order="C")
        outputs = self._runner.run(graph, wanted)
        self.states = {
            name.removeprefix(STATES): array.astype(np.float32)
            for name, array in outputs.items()
            if name.startswith(STATES) and array.size
        }
        return outputs


def graph_files(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Return the paths of graph files by the names of their graphs."""
    return {name: folder / file for name, file in names.items()}


def _experts(outputs: Mapping[str, Array], stack: str) -> dict[int, Int32]:
    prefix = f"{stack}_experts."
    return {
        int(name.removeprefix(prefix)): ids
        for name, ids in outputs.items()
        if name.startswith(prefix)
    }
