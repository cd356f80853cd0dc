"""ONNX Runtime on a device: states, caches and logits stay there, and few numbers come back.

It runs a bundle's canonical graphs, since the lowered ones of target `ort-cpu` hold operators that
other execution providers lack. Everything happens on one stream, which is the sessions' too.
"""

from typing import Any

import numpy as np

from drl.runtime.arrays import Array, Float32, Int32, Int64
from drl.runtime.backends.memory import ArrayLibrary, HostRules
from drl.runtime.backends.ort_bound_step import BoundStep
from drl.runtime.backends.ort_placement import check_placement, record_placement
from drl.runtime.backends.ort_session import (
    check_names,
    check_sizes,
    open_session,
    session_options,
)
from drl.runtime.backends.ort_target import OrtTarget
from drl.runtime.backends.protocol import CrossAttention, Encoding, StepInputs, StepOutputs
from drl.runtime.backends.threads import Threads
from drl.runtime.bundle import Bundle
from drl.runtime.manifest import GRAPHS, expert_outputs


class OrtDeviceBackend(HostRules):
    """A bundle's canonical graphs in three sessions of one execution provider.

    As in `OrtBackend`, the decoder runs on buffers bound by address, past and present of the cache
    are one memory, and binding happens again only when the caller brings new `StepInputs`. Tokens
    and lengths are copied to the device in each step. Of its results the host gets normalisers and
    the candidates that were asked for, or else the logits.

    Args:
        bundle: A loaded bundle with canonical graphs.
        onnxruntime: The module.
        target: Where to run.
        threads: Threads for what runs on the host.

    Raises:
        BackendError: ONNX Runtime cannot load a graph, or runs parts of it elsewhere.
        BundleError: A graph's inputs or outputs are not those of the manifest.
    """

    shrinks = False
    reads_behind = True

    def __init__(
        self, bundle: Bundle, onnxruntime: Any, target: OrtTarget, threads: int = 1
    ) -> None:
        super().__init__(bundle.manifest.cache.dtype)
        self.arrays: ArrayLibrary = target.device.arrays
        self._manifest = bundle.manifest
        self._version = onnxruntime.__version__
        self._target = target
        self._device = target.device
        sessions = self._open(bundle, onnxruntime, threads)
        check_placement(sessions, target.provider, self._version)
        self._encoder, self._bridge, self._decoder = (sessions[name] for name in GRAPHS)
        check_sizes(bundle.manifest, self._encoder, self._decoder, ranks=False)
        self._layers = range(bundle.manifest.cache.decoder_layers)
        graphs = bundle.manifest.graphs
        self._encoder_experts = expert_outputs(graphs["encoder"].outputs, "encoder")
        self._decoder_experts = expert_outputs(graphs["decoder"].outputs, "decoder")
        # By path and rows per source, and for each of them by number of candidates.
        self._bindings: dict[tuple[int, int], dict[int, BoundStep]] = {}

    @property
    def name(self) -> str:
        """Library, version, provider and device."""
        provider = self._target.provider.removesuffix("ExecutionProvider")
        return f"ONNX Runtime {self._version}, {provider}, {self._device.name}"

    @property
    def ranks(self) -> bool:
        """Tokens are ranked on the device."""
        return True

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        """See `Backend.encode`."""
        router = self._manifest.path_router is not None
        feeds: dict[str, Array] = {"source_tokens": tokens, "source_lengths": lengths}
        wanted = ["encoder_states"]
        if router:
            feeds["budget"] = budget
            wanted += ["saliency", "path_logits"]
        experts = self._encoder_experts if with_experts else {}
        run = self._target.run_freely
        with self.arrays.ordered():
            sources = {name: self.arrays.from_host(x, "sources") for name, x in feeds.items()}
            wanted += experts.values()
            results = run("encoder", self._encoder, sources, {}, wanted)
            return Encoding(
                states=results["encoder_states"],
                lengths=lengths,
                saliency=results["saliency"] if router else None,
                path_logits=self.arrays.to_host(results["path_logits"]) if router else None,
                experts={
                    layer: self.arrays.to_host(results[name]) for layer, name in experts.items()
                },
                arrays=self.arrays,
            )

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        """See `Backend.bridge`."""
        keys, values = ([f"cross_{part}.{layer}" for layer in self._layers] for part in "kv")
        with self.arrays.ordered():
            lengths = self.arrays.from_host(encoding.lengths, "lengths of sources")
            feeds = {"encoder_states": encoding.states, "source_lengths": lengths}
            if encoding.saliency is not None:
                feeds["saliency"] = encoding.saliency
            choice = {"path": np.array(path, np.int64)} if len(self._manifest.paths) > 1 else {}
            wanted = ["cross_bias", "kept_lengths", *keys, *values]
            results = self._target.run_freely("bridge", self._bridge, feeds, choice, wanted)
            return CrossAttention(
                bias=results["cross_bias"],
                lengths=self.arrays.to_host(results["kept_lengths"]),
                keys=tuple(results[name] for name in keys),
                values=tuple(results[name] for name in values),
                arrays=self.arrays,
            )

    def step(self, inputs: StepInputs) -> StepOutputs:
        """See `Backend.step`."""
        place = inputs.path, inputs.width
        bindings = self._bindings.get(place)
        bound = bindings.get(inputs.candidates) if bindings else None
        with self.arrays.ordered():
            if bound is None or bound.inputs is not inputs:
                beside = {
                    candidates: other
                    for candidates, other in (bindings or {}).items()
                    if other.inputs.past_keys is inputs.past_keys
                }
                bound = self._bind(inputs)
                self._bindings[place] = {**beside, inputs.candidates: bound}
            outputs = bound.run()
        self._device.synchronize()
        return outputs

    def release(self, path: int, width: int) -> None:
        """See `Backend.release`."""
        self._bindings.pop((path, width), None)

    def close(self) -> None:
        """See `Backend.close`."""
        self._bindings.clear()
        self._encoder = self._bridge = self._decoder = None
        self._device.close()

    def _open(self, bundle: Bundle, onnxruntime: Any, threads: int) -> dict[str, Any]:
        sessions = {}
        for name in GRAPHS:
            path = bundle.canonical_file(name)
            options = session_options(onnxruntime, Threads(threads, spin=False))
            record_placement(options)
            providers = [(self._target.provider, dict(self._target.options))]
            sessions[name] = open_session(onnxruntime, path, options, providers)
            contract = bundle.manifest.graphs[name]
            if path.name == contract.file:
                check_names(sessions[name], path, contract)
        return sessions

    def _bind(self, inputs: StepInputs) -> BoundStep:
        path = self._manifest.paths[inputs.path]
        experts, size = self._decoder_experts, self._manifest.limits.vocab_size
        return BoundStep(self._target, self._decoder, path, experts, size, inputs)
