"""ONNX Runtime on the CPU."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drl.runtime.arrays import Array, Float32, Int32, Int64
from drl.runtime.backends.memory import HOST, HostRules
from drl.runtime.backends.native import native_operators
from drl.runtime.backends.ort_session import (
    check_names,
    check_sizes,
    import_onnxruntime,
    names,
    open_session,
    run_session,
    session_options,
)
from drl.runtime.backends.protocol import (
    CrossAttention,
    Encoding,
    Ranking,
    StepInputs,
    StepOutputs,
)
from drl.runtime.backends.threads import choose_threads
from drl.runtime.bundle import Bundle
from drl.runtime.manifest import GRAPHS, GraphInfo, expert_outputs

_KEPT_LOGITS = 4 << 20
_HERE = "this machine"


@dataclass(frozen=True, eq=False)
class _Binding:
    """Buffers bound to the decoder. Addresses keep nothing alive, so the arrays are held here."""

    inputs: StepInputs
    outputs: StepOutputs
    handle: Any
    sources: dict[str, Array]


class OrtBackend(HostRules):
    """A bundle's graphs in three ONNX Runtime sessions.

    The decoder runs on buffers bound by address: past and present of the cache are one memory, and
    a step allocates nothing. Binding happens again only when the caller brings new `StepInputs`;
    those that differ from the last ones in their number of candidates alone are bound beside them.

    Args:
        bundle: A loaded bundle.
        threads: Threads per graph; None leaves them to `choose_threads`.

    Raises:
        BackendError: ONNX Runtime is missing, or cannot load a graph.
        BundleError: A graph's inputs or outputs are not those of the manifest.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle.manifest.cache.dtype)
        self._threads = choose_threads(threads)
        self._ort = import_onnxruntime()
        self._operators = native_operators(bundle.manifest)
        # Bodies of operators multiply by masked entries, which kernels leave out.
        bodies = self._operators is None and bundle.manifest.quantised
        self.reads_behind = bundle.manifest.target == "portable" or bodies
        self._manifest = bundle.manifest
        self._encoder, self._bridge, self._decoder = (
            self._open(bundle.graph_file(name), bundle.manifest.graphs[name]) for name in GRAPHS
        )
        self._step_inputs = names(bundle.manifest.graphs["decoder"].inputs)
        told = "candidates" in self._step_inputs
        check_sizes(bundle.manifest, self._encoder, self._decoder, ranks=told)
        # Without the kernels ONNX Runtime's own operators rank no faster than the host does, and
        # fp32 products are as fast as ever.
        self._ranks = told and (self._operators is not None or bundle.manifest.quantised)
        self._layers = range(bundle.manifest.cache.decoder_layers)
        graphs = bundle.manifest.graphs
        self._encoder_experts = expert_outputs(graphs["encoder"].outputs, "encoder")
        self._decoder_experts = expert_outputs(graphs["decoder"].outputs, "decoder")
        # By path and rows per source, and for each of them by number of candidates.
        self._bindings: dict[tuple[int, int], dict[int, _Binding]] = {}
        self._logits = np.empty(0, np.float32)

    @property
    def name(self) -> str:
        """Library, version, device and threads."""
        return f"ONNX Runtime {self._ort.__version__}, CPU, {self._threads}"

    @property
    def ranks(self) -> bool:
        """Whether the decoder has the input `candidates`, and is fast with it."""
        return self._ranks

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
        results = run_session(
            "encoder", _HERE, self._encoder.run, [*wanted, *experts.values()], feeds
        )
        return Encoding(
            states=results[0],
            lengths=lengths,
            saliency=results[1] if router else None,
            path_logits=results[2] if router else None,
            experts=dict(zip(experts, results[len(wanted) :], strict=True)),
        )

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        """See `Backend.bridge`."""
        feeds: dict[str, Array] = {
            "encoder_states": HOST.to_host(encoding.states),
            "source_lengths": encoding.lengths,
        }
        if encoding.saliency is not None:
            feeds["saliency"] = HOST.to_host(encoding.saliency)
        if len(self._manifest.paths) > 1:
            feeds["path"] = np.array(path, np.int64)
        wanted = ["cross_bias", "kept_lengths"]
        wanted += [f"cross_{part}.{layer}" for part in "kv" for layer in self._layers]
        bias, lengths, *blocks = run_session("bridge", _HERE, self._bridge.run, wanted, feeds)
        half = len(self._layers)
        return CrossAttention(bias, lengths, tuple(blocks[:half]), tuple(blocks[half:]))

    def step(self, inputs: StepInputs) -> StepOutputs:
        """See `Backend.step`."""
        place = inputs.path, inputs.width
        bindings = self._bindings.get(place)
        bound = bindings.get(inputs.candidates) if bindings else None
        if bound is None or bound.inputs is not inputs:
            bound = self._bind(inputs)
            beside = {
                candidates: other
                for candidates, other in (bindings or {}).items()
                if other.inputs.past_keys is inputs.past_keys
            }
            self._bindings[place] = {**beside, inputs.candidates: bound}
        run_session("decoder", _HERE, self._decoder.run_with_iobinding, bound.handle)
        return bound.outputs

    def release(self, path: int, width: int) -> None:
        """See `Backend.release`."""
        self._bindings.pop((path, width), None)

    def close(self) -> None:
        """See `Backend.close`."""
        self._bindings.clear()
        self._logits = np.empty(0, np.float32)
        self._encoder = self._bridge = self._decoder = None

    def _open(self, path: Path, contract: GraphInfo) -> Any:
        options = session_options(self._ort, self._threads)
        providers = ["CPUExecutionProvider"]
        session = open_session(self._ort, path, options, providers, self._operators)
        check_names(session, path, contract)
        return session

    def _bind(self, inputs: StepInputs) -> "_Binding":
        handle = self._decoder.io_binding()
        sources = self._named_inputs(inputs)
        outputs = self._make_outputs(inputs)
        targets: dict[str, Array] = {"normalisers": outputs.normalisers}
        if outputs.top is None:
            targets["logits"] = outputs.logits
        else:
            targets |= {"top_values": outputs.top.values, "top_ids": outputs.top.ids}
        for layer in self._manifest.paths[inputs.path].layers:
            targets[f"present_k.{layer}"] = sources[f"past_k.{layer}"]
            targets[f"present_v.{layer}"] = sources[f"past_v.{layer}"]
        targets |= {self._decoder_experts[layer]: ids for layer, ids in outputs.experts.items()}
        for name in self._step_inputs:
            array = sources[name]
            handle.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in targets.items():
            handle.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return _Binding(inputs, outputs, handle, sources)

    def _named_inputs(self, inputs: StepInputs) -> dict[str, Array]:
        arrays: dict[str, Array] = {
            "tokens": inputs.tokens,
            "lengths": inputs.lengths,
            "new_lengths": inputs.new_lengths,
            "candidates": np.array([inputs.candidates], np.int64),
            "path": np.array(inputs.path, np.int64),
            "cross_bias": HOST.to_host(inputs.cross_bias),
        }
        for name, blocks in (
            ("cross_k", inputs.cross_keys),
            ("cross_v", inputs.cross_values),
            ("past_k", inputs.past_keys),
            ("past_v", inputs.past_values),
        ):
            arrays |= {f"{name}.{layer}": HOST.to_host(block) for layer, block in enumerate(blocks)}
        return arrays

    def _make_outputs(self, inputs: StepInputs) -> StepOutputs:
        rows, new = inputs.tokens.shape
        path = self._manifest.paths[inputs.path]
        experts = {
            layer: np.empty((rows, new, path.experts_per_token), np.int32)
            for layer in self._decoder_experts
            if inputs.with_experts and layer in path.layers
        }
        normalisers = np.empty((rows, new), np.float32)
        if inputs.candidates:
            shape = rows, new, inputs.candidates
            top = Ranking(np.empty(shape, np.float32), np.empty(shape, np.int32))
            return StepOutputs(np.empty((rows, new, 0), np.float32), normalisers, experts, top)
        return StepOutputs(self._logits_of(rows, new), normalisers, experts)

    def _logits_of(self, rows: int, new: int) -> Float32:
        """Memory for `[B, T, V]` logits."""
        shape = rows, new, self._manifest.limits.vocab_size
        size = math.prod(shape)
        # A prefix or a score takes logits for many tokens at once, and then for a long time few.
        if not size <= self._logits.size <= max(_KEPT_LOGITS, 4 * size):
            self._logits = np.empty(size, np.float32)
        return self._logits[:size].reshape(shape)
