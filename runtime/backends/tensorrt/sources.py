"""Encoder and bridges: sources to encoder states, and these to what a decoder attends to.

They run once per source. More sources than an engine takes are run in several parts.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from drl.runtime.arrays import Array, BackendArray, Float32, Int32, Int64
from drl.runtime.backends.protocol import CrossAttention, Encoding
from drl.runtime.backends.tensorrt.contexts import LoadedEngine
from drl.runtime.backends.tensorrt.plan import Contexts, Plan
from drl.runtime.backends.tensorrt.staging import Fields, Staged
from drl.runtime.backends.tensorrt.tensors import by_name, numpy_dtype, shape_of
from drl.runtime.manifest import CacheInfo, PathInfo, expert_outputs


class SourceGraph:
    """An engine that runs once per source."""

    def __init__(self, plan: Plan, engine: LoadedEngine) -> None:
        self._plan = plan
        self._contexts = Contexts(plan, engine)
        self._inputs = by_name(engine.info.inputs)
        self._outputs = by_name(engine.info.outputs)

    def clear(self) -> None:
        """Drop the contexts."""
        self._contexts.clear()

    def parts(self, count: int) -> Iterator[slice]:
        """So many sources, as many at a time as the engine takes."""
        most = max(profile.dims["B"][2] for profile in self._contexts.engine.info.profiles)
        for first in range(0, count, most):
            yield slice(first, min(first + most, count))

    def run(
        self,
        dims: dict[str, int],
        host: dict[str, Array],
        device: dict[str, BackendArray],
        wanted: tuple[str, ...],
    ) -> tuple[dict[str, BackendArray], dict[str, Array]]:
        """Run the engine once, and wait for it.

        Args:
            dims: Sizes of the inputs' named dimensions.
            host: Inputs from the host.
            device: Inputs that lie on the device.
            wanted: Outputs that come to the host.

        Returns:
            The outputs that stay on the device, and those for the host in memory of their own.

        Raises:
            BackendError: The engine does not take such sizes, or cannot be run.
        """
        plan, name = self._plan, self._contexts.engine.name
        context = self._contexts.get(dims)
        given: Fields = {key: (array.shape, array.dtype) for key, array in host.items()}
        inputs = Staged(plan.device, given, f"inputs of {name}")
        for key, array in host.items():
            inputs.host[key][...] = array
        bound = {key: plan.aligned(array, f"inputs of {name}") for key, array in device.items()}
        context.set_shapes({key: shape_of(item, dims) for key, item in self._inputs.items()})
        shapes = {key: context.shape(key) for key in self._outputs}
        staged = Staged(
            plan.device,
            {key: (shapes[key], numpy_dtype(self._outputs[key])) for key in wanted},
            f"outputs of {name}",
        )
        kept = {
            key: plan.device.empty(shapes[key], numpy_dtype(item), f"{key} of {name}")
            for key, item in self._outputs.items()
            if key not in wanted
        }
        context.set_addresses(inputs.addresses | staged.addresses)
        context.set_addresses({key: address for key, (address, _) in bound.items()})
        context.set_addresses({key: plan.device.address(array) for key, array in kept.items()})
        inputs.upload()
        context.enqueue()
        if wanted:
            staged.download()
        plan.device.synchronize()
        return kept, {key: staged.host[key].copy() for key in wanted}

    def _joined(self, parts: Sequence[Mapping[str, BackendArray]], name: str) -> BackendArray:
        """An output of all parts together. They have all but the number of sources in common."""
        arrays = [part[name] for part in parts]
        if len(arrays) == 1:
            return arrays[0]
        shape = sum(map(len, arrays)), *arrays[0].shape[1:]
        whole = self._plan.device.arrays.zeros(shape, arrays[0].dtype, name)
        start = 0
        for array in arrays:
            whole[start : start + len(array)] = array
            start += len(array)
        return whole


class Encoder(SourceGraph):
    """The encoder."""

    def __init__(self, plan: Plan, engine: LoadedEngine) -> None:
        super().__init__(plan, engine)
        self._experts = expert_outputs(engine.info.outputs, "encoder")

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool
    ) -> Encoding:
        """See `Backend.encode`."""
        given: dict[str, Array] = {
            "source_tokens": tokens,
            "source_lengths": lengths,
            "budget": budget,
        }
        host: dict[str, Array] = {n: array for n, array in given.items() if n in self._inputs}
        experts = self._experts if with_experts else {}
        wanted = [name for name in ("path_logits",) if name in self._outputs]
        wanted += experts.values()
        on_device, on_host = [], []
        for part in self.parts(len(tokens)):
            own = {name: array[part] for name, array in host.items()}
            dims = {"B": part.stop - part.start, "S": tokens.shape[1]}
            kept, fetched = self.run(dims, own, {}, tuple(wanted))
            on_device.append(kept)
            on_host.append(fetched)
        together = {name: np.concatenate([part[name] for part in on_host]) for name in wanted}
        states = self._joined(on_device, "encoder_states")
        return Encoding(
            states=states,
            lengths=lengths,
            saliency=self._joined(on_device, "saliency") if "saliency" in self._outputs else None,
            path_logits=together.get("path_logits"),
            experts={layer: together[name] for layer, name in experts.items()},
            arrays=self._plan.device.arrays,
        )


class Bridge(SourceGraph):
    """The bridge of one path.

    Args:
        plan: The device and its memory.
        engine: Of the path.
        path: Which decoder layers need keys and values.
        cache: What the model's cache looks like.
    """

    def __init__(self, plan: Plan, engine: LoadedEngine, path: PathInfo, cache: CacheInfo) -> None:
        super().__init__(plan, engine)
        self._layers = path.layers
        self._cache = cache

    def prepare(self, encoding: Encoding) -> CrossAttention:
        """See `Backend.bridge`."""
        on_device, lengths = [], []
        for part in self.parts(len(encoding.lengths)):
            given = {"encoder_states": encoding.states[part]}
            if "saliency" in self._inputs and encoding.saliency is not None:
                given["saliency"] = encoding.saliency[part]
            dims = {"B": part.stop - part.start, "S": encoding.states.shape[1]}
            host: dict[str, Array] = {"source_lengths": encoding.lengths[part]}
            kept, fetched = self.run(dims, host, given, ("kept_lengths",))
            on_device.append(kept)
            lengths.append(fetched["kept_lengths"])
        keys, values = (self._blocks(on_device, name) for name in ("cross_k", "cross_v"))
        return CrossAttention(
            bias=self._joined(on_device, "cross_bias"),
            lengths=np.concatenate(lengths),
            keys=keys,
            values=values,
            arrays=self._plan.device.arrays,
        )

    def _blocks(
        self, parts: Sequence[Mapping[str, BackendArray]], name: str
    ) -> tuple[BackendArray, ...]:
        """Of every decoder layer; K = 0 where the path skips it."""
        rows = sum(len(part["cross_bias"]) for part in parts)
        shape = rows, self._cache.kv_heads, 0, self._cache.head_dim
        dtype = numpy_dtype(self._outputs[f"{name}.{self._layers[0]}"])
        nothing = self._plan.device.arrays.zeros(shape, dtype, "nothing")
        return tuple(
            self._joined(parts, f"{name}.{layer}") if layer in self._layers else nothing
            for layer in range(self._cache.decoder_layers)
        )
