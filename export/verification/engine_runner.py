"""Runs TensorRT engines with arrays of the host, whatever inputs and outputs they have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from drl.runtime.arrays import Array
from drl.runtime.backends.tensorrt.contexts import LoadedEngine
from drl.runtime.backends.tensorrt.engines import Engines
from drl.runtime.backends.tensorrt.plan import Contexts
from drl.runtime.backends.tensorrt.staging import Staged
from drl.runtime.backends.tensorrt.tensors import by_name, numpy_dtype

_PRESENT, _PAST = "present_", "past_"


class EngineRunner:
    """`GraphRunner` of engines. Every call copies all inputs to the device and all outputs back.

    Args:
        engines: Loaded; for every path of the bundle.
        name: The library and device, for people.
    """

    def __init__(self, engines: Engines, name: str) -> None:
        self.name = name
        self._engines = engines
        loaded = (engines.encoder, *engines.bridges, *engines.decoders)
        self._contexts = {engine.name: Contexts(engines.plan, engine) for engine in loaded}

    def inputs(self, graph: str) -> Mapping[str, np.dtype[Any]]:
        """See `GraphRunner.inputs`; bfloat16 is kept as its bits."""
        info = self._contexts[graph].engine.info
        return {tensor.name: numpy_dtype(tensor) for tensor in info.inputs}

    def run(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `GraphRunner.run`. What is present has the memory of what is past."""
        plan, contexts = self._engines.plan, self._contexts[graph]
        outputs = by_name(contexts.engine.info.outputs)
        with plan.device.arrays.ordered():
            context = contexts.get(_sizes(contexts.engine, feeds))
            given = {name: (array.shape, array.dtype) for name, array in feeds.items()}
            inputs = Staged(plan.device, given, f"inputs of {graph}")
            for name, array in feeds.items():
                inputs.host[name][...] = array
            context.set_shapes({name: array.shape for name, array in feeds.items()})
            told = Staged(
                plan.device,
                {
                    name: (context.shape(name), numpy_dtype(tensor))
                    for name, tensor in outputs.items()
                    if not name.startswith(_PRESENT)
                },
                f"outputs of {graph}",
            )
            kept = {name: name.replace(_PRESENT, _PAST) for name in outputs.keys() - told.host}
            context.set_addresses(inputs.addresses | told.addresses)
            context.set_addresses({name: inputs.addresses[past] for name, past in kept.items()})
            inputs.upload()
            context.enqueue()
            inputs.download()
            told.download()
            plan.device.synchronize()
        found = {name: array.copy() for name, array in told.host.items()}
        return found | {name: inputs.host[past].copy() for name, past in kept.items()}

    def close(self) -> None:
        """See `GraphRunner.close`."""
        self._contexts.clear()
        self._engines.close()


def _sizes(engine: LoadedEngine, feeds: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes of the named dimensions."""
    return {
        str(label): size
        for tensor in engine.info.inputs
        for label, size in zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        if not isinstance(label, int)
    }
