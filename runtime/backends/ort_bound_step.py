"""A decoder step bound to the memory that it works on, on a device and on the host."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from drl.runtime.arrays import Array, BackendArray
from drl.runtime.backends.ort_session import names
from drl.runtime.backends.ort_target import OrtTarget, bind_host_input
from drl.runtime.backends.protocol import Ranking, StepInputs, StepOutputs
from drl.runtime.manifest import PathInfo


class BoundStep:
    """Runs a decoder on the same buffers again and again.

    Addresses keep nothing alive, so all arrays are held here.

    Args:
        target: Where the decoder runs.
        session: The decoder.
        path: The path that `inputs` takes.
        experts: Sparse layer number to the name of the output with its expert ids.
        vocab_size: V.
        inputs: What to bind. Its arrays on the host are copied to the device in every step.

    Attributes:
        inputs: The same.
        outputs: The results, on the host.
    """

    def __init__(
        self,
        target: OrtTarget,
        session: Any,
        path: PathInfo,
        experts: Mapping[int, str],
        vocab_size: int,
        inputs: StepInputs,
    ) -> None:
        self.inputs = inputs
        self._target = target
        self._device = target.device
        self._session = session
        self._experts = {
            layer: name
            for layer, name in experts.items()
            if inputs.with_experts and layer in path.layers
        }
        self._staged = {
            name: (host, self._device.empty(host.shape, host.dtype, "tokens and lengths"))
            for name, host in (
                ("tokens", inputs.tokens),
                ("lengths", inputs.lengths),
                ("new_lengths", inputs.new_lengths),
            )
        }
        self._path = np.array(inputs.path, np.int64)
        self._results = self._make_results(path, vocab_size)
        self.outputs = self._make_outputs()
        self._handle = self._bind(path)

    def run(self) -> StepOutputs:
        """Take a step; the results are there once the device has been waited for."""
        for host, staged in self._staged.values():
            self._device.upload(host, staged)
        self._target.run("decoder", self._session, self._handle)
        self._fetch()
        return self.outputs

    def _bind(self, path: PathInfo) -> Any:
        handle = self._session.io_binding()
        sources = _blocks(self.inputs) | {name: at for name, (_, at) in self._staged.items()}
        for name in names(self._session.get_inputs()):
            if name == "path":
                bind_host_input(handle, name, self._path)
            else:
                self._target.bind_input(handle, name, sources[name])
        present = {
            f"present_{part}.{layer}": sources[f"past_{part}.{layer}"]
            for layer in path.layers
            for part in "kv"
        }
        for name, array in (self._results | present).items():
            self._target.bind_output(handle, name, array)
        return handle

    def _make_results(self, path: PathInfo, vocab_size: int) -> dict[str, BackendArray]:
        """Memory on the device, by name of the output."""
        rows, new = self.inputs.tokens.shape
        make = self._device.empty
        results = {
            "logits": make((rows, new, vocab_size), np.float32, f"logits of {rows} x {new} tokens"),
            "normalisers": make((rows, new), np.float32, "normalisers"),
        }
        shape = rows, new, path.experts_per_token
        return results | {
            name: make(shape, np.int32, "expert ids") for name in self._experts.values()
        }

    def _make_outputs(self) -> StepOutputs:
        """Memory on the host."""
        pinned, count = self._device.pinned, self.inputs.candidates
        logits = self._results["logits"]
        rows, new, _ = logits.shape
        normalisers: Array = pinned((rows, new), np.float32)
        experts: dict[int, Array] = {
            layer: pinned(self._results[name].shape, np.int32)
            for layer, name in self._experts.items()
        }
        if not count:
            return StepOutputs(pinned(logits.shape, np.float32), normalisers, experts)
        shape = rows, new, count
        top = Ranking(pinned(shape, np.float32), pinned(shape, np.int32))
        return StepOutputs(np.empty((rows, new, 0), np.float32), normalisers, experts, top)

    def _fetch(self) -> None:
        """Let the host's part of the results be copied."""
        outputs, device = self.outputs, self._device
        logits = self._results["logits"]
        if outputs.top is None:
            device.download(logits, outputs.logits)
        else:
            values, ids = device.rank(logits, self.inputs.candidates)
            device.download(values, outputs.top.values)
            device.download(ids, outputs.top.ids)
        device.download(self._results["normalisers"], outputs.normalisers)
        for layer, host in outputs.experts.items():
            device.download(self._results[self._experts[layer]], host)


def _blocks(inputs: StepInputs) -> dict[str, BackendArray]:
    """What a step reads on the device, by name of the input."""
    blocks = {"cross_bias": inputs.cross_bias}
    for name, arrays in (
        ("cross_k", inputs.cross_keys),
        ("cross_v", inputs.cross_values),
        ("past_k", inputs.past_keys),
        ("past_v", inputs.past_values),
    ):
        blocks |= {f"{name}.{layer}": block for layer, block in enumerate(arrays)}
    return blocks
