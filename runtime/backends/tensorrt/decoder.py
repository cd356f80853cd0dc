"""The decoder of one path: what it reads and writes beside the cache, and how a step runs."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import BackendArray, Float32
from drl.runtime.backends.protocol import StepInputs
from drl.runtime.backends.tensorrt.contexts import Context, LoadedEngine, Shape
from drl.runtime.backends.tensorrt.graphs import StepGraphs
from drl.runtime.backends.tensorrt.pieces import Piece, cut
from drl.runtime.backends.tensorrt.plan import Contexts, Plan
from drl.runtime.backends.tensorrt.staging import ALIGNMENT, Fields, Staged
from drl.runtime.backends.tensorrt.tensors import by_name, numpy_dtype, shape_of
from drl.runtime.manifest import PathInfo, expert_outputs

_FROM_HOST = ("tokens", "lengths", "new_lengths")
_TO_HOST = ("normalisers", "top_values", "top_ids")


class StepBuffers:
    """What a decoder reads and writes beside the cache, for so many rows and new tokens.

    Attributes:
        inputs: Tokens and lengths.
        outputs: All that is copied to the host in every step: no logits.
        logits: `[B, T, V]`, which stay on the device unless they are asked for.
    """

    def __init__(
        self,
        plan: Plan,
        engine: LoadedEngine,
        shapes: Mapping[str, Shape],
        logits: BackendArray | None = None,
    ) -> None:
        self._device = plan.device
        tensors = by_name((*engine.info.inputs, *engine.info.outputs))
        experts = expert_outputs(engine.info.outputs, "decoder").values()
        count, new = shapes["tokens"]
        rows = f"a step of {count} rows with {new} tokens"

        def fields(names: Iterable[str]) -> Fields:
            return {name: (shapes[name], numpy_dtype(tensors[name])) for name in names}

        self.inputs = Staged(plan.device, fields(_FROM_HOST), rows)
        self.outputs = Staged(plan.device, fields((*_TO_HOST, *experts)), rows)
        if logits is None:
            logits = plan.device.empty(shapes["logits"], np.float32, f"logits of {rows}")
        self.logits = logits
        self._host_logits: Float32 | None = None
        # Rows that nobody owns: any token at the first place.
        self.inputs.host["tokens"][:] = 0
        self.inputs.host["lengths"][:] = 0
        self.inputs.host["new_lengths"][:] = 1

    @property
    def addresses(self) -> dict[str, int]:
        """Of all tensors."""
        logits = {"logits": self._device.address(self.logits)}
        return self.inputs.addresses | self.outputs.addresses | logits

    def fetch_logits(self, rows: int) -> Float32:
        """The first rows' logits, in memory that the next call overwrites."""
        if self._host_logits is None:
            self._host_logits = self._device.pinned(self.logits.shape, np.float32)
        self._device.download(self.logits[:rows], self._host_logits[:rows])
        self._device.synchronize()
        return self._host_logits[:rows]


@dataclass(frozen=True, eq=False)
class Bound:
    """A piece of a step with its memory.

    Attributes:
        piece: The part of the step.
        buffers: What it reads and writes beside the cache.
        shapes, addresses: Of what is bound to the engine.
        key: All that a CUDA graph of it depends on.
        profile: Which the engine runs in.
        copied: What does not begin where TensorRT takes it, and the copies that are bound instead.
    """

    piece: Piece
    buffers: StepBuffers
    shapes: dict[str, Shape]
    addresses: dict[str, int]
    key: Hashable
    profile: int
    copied: tuple[tuple[BackendArray, BackendArray], ...]

    def fill(self, inputs: StepInputs) -> None:
        """Write tokens and lengths to the host's side. Nothing may be copying from it."""
        piece, host = self.piece, self.buffers.inputs.host
        count, start = piece.rows.stop - piece.rows.start, piece.tokens.start
        host["tokens"][:count] = inputs.tokens[piece.rows, piece.tokens]
        np.add(inputs.lengths[piece.rows], start, out=host["lengths"][:count])
        if piece.new > 1:
            # A row that has ended before this piece goes on with padding, behind all that it has.
            left = inputs.new_lengths[piece.rows] - start
            np.clip(left, 1, piece.new, out=host["new_lengths"])
        elif count < piece.padded_rows:
            host["lengths"][count:] = 0


class Decoder:
    """The decoder of one path.

    Args:
        plan: The device and its memory.
        engine: Of the path.
        path: Which layers run.
        graphs: Of all decoders.
        logits: Logits of single-token steps by rows, which all decoders share.
    """

    def __init__(
        self,
        plan: Plan,
        engine: LoadedEngine,
        path: PathInfo,
        graphs: StepGraphs,
        logits: dict[int, BackendArray],
    ) -> None:
        self._plan = plan
        self._contexts = Contexts(plan, engine)
        self._engine = engine
        self._layers = path.layers
        self._graphs = graphs
        self._logits = logits
        self._step_buffers: dict[int, StepBuffers] = {}  # of one token, by rows

    def bind(self, inputs: StepInputs, padded_sources: int) -> list[Bound]:
        """Settle what a step reads and writes.

        Args:
            inputs: The step.
            padded_sources: How many sources to run if it is one token.

        Raises:
            BackendError: The step has more kept states than the engine takes, or the device has no
                memory.
        """
        return [
            self._bind(inputs, piece) for piece in cut(inputs, self._engine.info, padded_sources)
        ]

    def enqueue(self, bound: Bound) -> None:
        """Put a filled piece on the stream: inputs, engine, outputs."""
        for source, target in bound.copied:
            self._plan.device.copy(source, target)
        plain = self._work(self._contexts.of(bound.profile), bound)
        if bound.piece.new > 1:
            plain()
            return
        self._graphs.run(
            bound.key, plain, lambda: self._work(self._contexts.new(bound.profile), bound)
        )

    def clear(self) -> None:
        """Drop contexts and buffers."""
        self._contexts.clear()
        self._step_buffers.clear()

    def _work(self, context: Context, bound: Bound) -> Callable[[], None]:
        def work() -> None:
            context.set_shapes(bound.shapes)
            context.set_addresses(bound.addresses)
            bound.buffers.inputs.upload()
            context.enqueue()
            bound.buffers.outputs.download()

        return work

    def _bind(self, inputs: StepInputs, piece: Piece) -> Bound:
        kept_states = inputs.cross_bias.shape[1]
        dims = {
            "B": piece.padded_rows,
            "T": piece.new,
            "R": piece.padded_sources,
            "K": kept_states,
        }
        profile = self._contexts.profile(dims)
        shapes = {item.name: shape_of(item, dims) for item in self._engine.info.inputs}
        buffers = self._buffers(profile, shapes)
        addresses, copied = self._cache_addresses(inputs, piece)
        addresses |= buffers.addresses
        key = self._engine.name, tuple(shapes.values()), tuple(addresses.values())
        return Bound(piece, buffers, shapes, addresses, key, profile, copied)

    def _buffers(self, profile: int, shapes: dict[str, Shape]) -> StepBuffers:
        """Those of single-token steps stay; others are made for the step."""
        rows, new = shapes["tokens"]
        if new == 1 and rows in self._step_buffers:
            return self._step_buffers[rows]
        context = self._contexts.of(profile)
        context.set_shapes(shapes)
        outputs = {item.name: context.shape(item.name) for item in self._engine.info.outputs}
        if new > 1:
            return StepBuffers(self._plan, self._engine, shapes | outputs)
        buffers = StepBuffers(self._plan, self._engine, shapes | outputs, self._logits.get(rows))
        self._logits[rows] = buffers.logits
        self._step_buffers[rows] = buffers
        return buffers

    def _cache_addresses(
        self, inputs: StepInputs, piece: Piece
    ) -> tuple[dict[str, int], tuple[tuple[BackendArray, BackendArray], ...]]:
        device = self._plan.device
        bias = inputs.cross_bias[piece.sources]
        copied: tuple[tuple[BackendArray, BackendArray], ...] = ()
        addresses = {"cross_bias": device.address(bias)}
        if addresses["cross_bias"] % ALIGNMENT:
            copy = device.empty(bias.shape, bias.dtype, "cross-attention biases")
            addresses["cross_bias"] = device.address(copy)
            copied = ((bias, copy),)
        for part, cross, past in (
            ("k", inputs.cross_keys, inputs.past_keys),
            ("v", inputs.cross_values, inputs.past_values),
        ):
            for layer in self._layers:
                memory = device.address(past[layer][piece.rows])
                addresses[f"past_{part}.{layer}"] = addresses[f"present_{part}.{layer}"] = memory
                addresses[f"cross_{part}.{layer}"] = device.address(cross[layer][piece.sources])
        return addresses, copied
