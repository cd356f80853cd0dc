"""ONNX Runtime on the CPU."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drl.runtime.arrays import Array, Float32, Int32, Int64
from drl.runtime.backends.memory import HOST, HostRules
from drl.runtime.backends.native import native_operators, other_layout
from drl.runtime.backends.protocol import (
    CrossAttention,
    Encoding,
    Ranking,
    StepInputs,
    StepOutputs,
)
from drl.runtime.backends.threads import choose_threads
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, BundleError
from drl.runtime.manifest import REPAIR, GraphInfo

_INSTALL = 'install it with `pip install "drl[cpu]"` or, for NVIDIA GPUs, `pip install "drl[cuda]"`'
_FATAL_ONLY = 4  # errors come as exceptions, and need no line of the library's own beside them
_KEPT_LOGITS = 4 << 20
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_NEEDED = "1.25"  # the first version with all operators that bundles use


def import_onnxruntime() -> Any:
    """The `onnxruntime` module. Raises `BackendError` if it is missing or broken."""
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise BackendError(f"ONNX Runtime is incomplete ({error}); {_INSTALL}") from error
        raise BackendError(f"ONNX Runtime is not installed; {_INSTALL}") from None
    except ImportError as error:
        raise BackendError(f"ONNX Runtime does not load ({error}); {_INSTALL}") from error


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
        self._operators = native_operators(bundle.manifest, self._ort.__version__)
        self._manifest = bundle.manifest
        self._encoder, self._bridge, self._decoder = (
            self._open(bundle.graph_file(name), bundle.manifest.graphs[name])
            for name in ("encoder", "bridge", "decoder")
        )
        self._step_inputs = _names(bundle.manifest.graphs["decoder"].inputs)
        self._ranks = "candidates" in self._step_inputs
        self._check_sizes()
        self._layers = range(bundle.manifest.cache.decoder_layers)
        self._encoder_experts = _expert_outputs(bundle.manifest.graphs["encoder"], "encoder")
        self._decoder_experts = _expert_outputs(bundle.manifest.graphs["decoder"], "decoder")
        # By path and rows per source, and for each of them by number of candidates.
        self._bindings: dict[tuple[int, int], dict[int, _Binding]] = {}
        self._logits = np.empty(0, np.float32)

    @property
    def name(self) -> str:
        """Library, version, device and threads."""
        return f"ONNX Runtime {self._ort.__version__}, CPU, {self._threads}"

    @property
    def ranks(self) -> bool:
        """Whether the decoder has the input `candidates`."""
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
        results = _run(self._encoder.run, [*wanted, *experts.values()], feeds)
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
        names = ["cross_bias", "kept_lengths"]
        names += [f"cross_{part}.{layer}" for part in "kv" for layer in self._layers]
        bias, lengths, *blocks = _run(self._bridge.run, names, feeds)
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
        _run(self._decoder.run_with_iobinding, bound.handle)
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
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads.count
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        spin = "1" if self._threads.spin else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spin)
        # Threads that spun on after a step would burn a core each while the engine is idle.
        options.add_session_config_entry("session.force_spinning_stop", spin)
        try:
            if self._operators is not None:
                options.register_custom_ops_library(str(self._operators))
            session = self._ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library has a class per status code, without a root
            message = " ".join(str(error).split())
            if "NOT_IMPLEMENTED" in message:
                raise BackendError(
                    f"{path.name} needs ONNX Runtime {_NEEDED} or newer, and this is "
                    f"{self._ort.__version__} ({message}); upgrade with "
                    f'`pip install --upgrade "onnxruntime>={_NEEDED}"`'
                ) from error
            if refusal := other_layout(message):
                raise BackendError(f"{path.name} has {refusal}") from error
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} cannot load {path.name}: {message}; "
                "run `drl-export` again, and `drl-doctor` to see what this machine supports"
            ) from error
        for kind, found, expected in (
            ("inputs", session.get_inputs(), contract.inputs),
            ("outputs", session.get_outputs(), contract.outputs),
        ):
            if _names(found) != _names(expected):
                raise BundleError(
                    f"{path.name} has other {kind} than bundle.json says; run `drl-export` again"
                )
        return session

    def _check_sizes(self) -> None:
        """Hold what the manifest says about sizes to the graphs, before memory is bound to them."""
        cache, limits = self._manifest.cache, self._manifest.limits
        routes = "path_logits" in _names(self._encoder.get_outputs())
        if routes != (self._manifest.path_router is not None):
            has = "path logits and bundle.json no" if routes else "no path logits and bundle.json a"
            raise BundleError(f"the encoder has {has} path_router; {REPAIR}")
        past = [item for item in self._decoder.get_inputs() if item.name.startswith("past_")]
        layers, expected = len(past) // 2, (cache.kv_heads, cache.head_dim, cache.dtype)
        found = {(item.shape[1], item.shape[3], _DTYPES.get(item.type)) for item in past}
        if layers != cache.decoder_layers or found != {expected}:
            sizes = " or ".join(
                f"{n} heads of {h} {dtype}" for n, h, dtype in sorted(found, key=str)
            )
            raise BundleError(
                f"bundle.json: cache is not the decoder's, {layers} layers with {sizes}; {REPAIR}"
            )
        outputs = {item.name: item for item in self._decoder.get_outputs()}
        for name in ("normalisers", *(("top_values", "top_ids") if self._ranks else ())):
            if name not in outputs:
                raise BundleError(f"the decoder is an earlier version's, without {name}; {REPAIR}")
        # One that ranks may leave its logits out, so their dimension is called "32128 or 0".
        count = str(outputs["logits"].shape[-1]).removesuffix(" or 0")
        if count != str(limits.vocab_size):
            raise BundleError(
                f"bundle.json: limits.vocab_size is {limits.vocab_size} and the decoder has "
                f"{count} logits; {REPAIR}"
            )

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


def _run(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a session. Raises `BackendError` where a graph cannot be run."""
    try:
        return run(*arguments)
    except Exception as error:  # the library has a class per status code, without a root
        message = " ".join(str(error).split())
        raise BackendError(f"ONNX Runtime cannot run the bundle's graph: {message}") from error


def _names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


def _expert_outputs(graph: GraphInfo, stack: str) -> dict[int, str]:
    """Sparse layer number to the name of the output with its expert ids."""
    prefix = f"{stack}_experts."
    return {
        int(tensor.name.removeprefix(prefix)): tensor.name
        for tensor in graph.outputs
        if tensor.name.startswith(prefix)
    }
