"""A bundle's TensorRT engines behind the `Backend` protocol."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from drl.runtime.arrays import BackendArray, Float32, Int32, Int64
from drl.runtime.backends.limits import BackendLimits
from drl.runtime.backends.memory import ArrayLibrary
from drl.runtime.backends.protocol import (
    CrossAttention,
    Encoding,
    Ranking,
    StepInputs,
    StepOutputs,
)
from drl.runtime.backends.tensorrt.contexts import captures_itself
from drl.runtime.backends.tensorrt.decoder import Bound, Decoder
from drl.runtime.backends.tensorrt.engines import Engines
from drl.runtime.backends.tensorrt.graphs import StepGraphs
from drl.runtime.backends.tensorrt.library import title
from drl.runtime.backends.tensorrt.pieces import joined
from drl.runtime.backends.tensorrt.ranking import rank
from drl.runtime.backends.tensorrt.sizes import kept_multiple
from drl.runtime.backends.tensorrt.sources import Bridge, Encoder
from drl.runtime.backends.tensorrt.tensors import by_name, numpy_dtype
from drl.runtime.errors import BackendError
from drl.runtime.manifest import expert_outputs


class TensorRTBackend:
    """Runs the engines of all paths of a bundle on one GPU.

    A call returns when the device has done what it was asked for, so whatever a call reads from the
    host may be written to after it.

    Args:
        engines: Loaded for a bundle.
        graphs: Captures decoder steps; by default as the flavour calls for.
    """

    def __init__(self, engines: Engines, graphs: StepGraphs | None = None) -> None:
        plan, manifest = engines.plan, engines.manifest
        self._engines = engines
        self._device = plan.device
        self._manifest = manifest
        self._described = plan.folder.manifest
        if graphs is None:
            by_context = captures_itself(self._described.flavour)
            graphs = StepGraphs(self._device, by_context=by_context)
        self._graphs = graphs
        self._encoder = Encoder(plan, engines.encoder)
        self._bridges = [
            Bridge(plan, engine, path, manifest.cache)
            for engine, path in zip(engines.bridges, manifest.paths, strict=True)
        ]
        logits: dict[int, BackendArray] = {}
        self._decoders = [
            Decoder(plan, engine, path, graphs, logits)
            for engine, path in zip(engines.decoders, manifest.paths, strict=True)
        ]
        self._experts = [
            expert_outputs(engine.info.outputs, "decoder") for engine in engines.decoders
        ]
        self._bound: dict[tuple[int, int], tuple[StepInputs, list[Bound]]] = {}
        past = by_name(engines.decoders[0].info.inputs)[f"past_k.{manifest.paths[0].layers[0]}"]
        self._cache_dtype = numpy_dtype(past)

    @property
    def name(self) -> str:
        """Library, version, device and precision."""
        found = self._described
        return (
            f"{title(found.flavour)} {found.library_version}, {self._device.name}, "
            f"{found.precision}"
        )

    @property
    def ranks(self) -> bool:
        """Always: engines tell the largest logits."""
        return True

    @property
    def limits(self) -> BackendLimits:
        """What the engines take."""
        return self._engines.limits

    @property
    def arrays(self) -> ArrayLibrary:
        """The device's."""
        return self._device.arrays

    @property
    def cache_dtype(self) -> "np.dtype[Any]":
        """Of the engines' cache."""
        return self._cache_dtype

    @property
    def capacity(self) -> int | None:
        """The positions that the engines were built for."""
        return self._described.capacity

    @property
    def shrinks(self) -> bool:
        """Never: addresses are what graphs are found by."""
        return False

    @property
    def reads_behind(self) -> bool:
        """Always: attention goes over all positions, with a mask."""
        return True

    @property
    def kept_multiple(self) -> int:
        """See `kept_multiple`."""
        return kept_multiple(self._manifest.cache.kv_heads, self._manifest.cache.head_dim)

    def bucket(self, slots: int, width: int) -> int:
        """The next power of two, as far as engines go: few shapes, so few CUDA graphs."""
        return self._engines.sizes.bucket(slots, width)

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        """See `Backend.encode`."""
        with self._turn():
            return self._encoder.encode(tokens, lengths, budget, with_experts)

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        """See `Backend.bridge`."""
        with self._turn():
            return self._bridges[path].prepare(encoding)

    def step(self, inputs: StepInputs) -> StepOutputs:
        """See `Backend.step`."""
        with self._turn():
            pieces = self._pieces(inputs)
            if len(pieces) == 1:
                return self._run(pieces[0], inputs)
            return joined(inputs, ((bound.piece, self._run(bound, inputs)) for bound in pieces))

    def release(self, path: int, width: int) -> None:
        """See `Backend.release`."""
        self._bound.pop((path, width), None)

    def close(self) -> None:
        """See `Backend.close`."""
        self._bound.clear()
        self._graphs.clear()
        # The application may hold this object for long, and engines are freed with what holds them.
        del self._encoder
        self._bridges.clear()
        self._decoders.clear()
        self._engines.close()
        self._device.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Enter the stream, and do not leave with work under way that failed in the middle.

        Copies may still go on from memory that is given back once the failure has been told.
        """
        with self.arrays.ordered():
            try:
                yield
            except BaseException:
                with contextlib.suppress(BackendError):  # the failure under way says more
                    self._device.synchronize()
                raise

    def _pieces(self, inputs: StepInputs) -> list[Bound]:
        """What a step runs, the same as for the last one on this memory."""
        place = inputs.path, inputs.width
        found = self._bound.get(place)
        if found is not None and _same_memory(found[0], inputs):
            return found[1]
        slots = len(inputs.cross_bias)
        padded = slots if inputs.exact else self.bucket(slots, inputs.width)
        pieces = self._decoders[inputs.path].bind(inputs, padded)
        self._bound[place] = inputs, pieces
        return pieces

    def _run(self, bound: Bound, inputs: StepInputs) -> StepOutputs:
        """Run a piece of a step and bring its results to the host."""
        bound.fill(inputs)
        self._decoders[inputs.path].enqueue(bound)
        self._device.synchronize()
        rows = bound.piece.rows.stop - bound.piece.rows.start
        host = bound.buffers.outputs.host
        normalisers = host["normalisers"][:rows].copy()
        experts: dict[int, Int32] = {}
        if inputs.with_experts:
            names = self._experts[inputs.path]
            experts = {layer: host[name][:rows].copy() for layer, name in names.items()}
        if not inputs.candidates:
            return StepOutputs(bound.buffers.fetch_logits(rows), normalisers, experts)
        top = self._rank(bound, inputs, rows, normalisers)
        nothing = np.empty((*normalisers.shape, 0), np.float32)
        return StepOutputs(nothing, normalisers, experts, top)

    def _rank(self, bound: Bound, inputs: StepInputs, rows: int, normalisers: Float32) -> Ranking:
        """The candidates, from those that the engine told if they suffice."""
        host, piece = bound.buffers.outputs.host, bound.piece
        values, ids = host["top_values"][:rows], host["top_ids"][:rows]
        real = inputs.new_lengths[piece.rows] - piece.tokens.start
        vocab_size = self._manifest.limits.vocab_size
        top = rank(values, ids, normalisers, inputs.candidates, real, vocab_size)
        if top is not None:
            return top
        logits = bound.buffers.logits[:rows]
        best, tokens = self._device.rank(logits, inputs.candidates)
        return Ranking(self.arrays.to_host(best), self.arrays.to_host(tokens))


def _same_memory(one: StepInputs, other: StepInputs) -> bool:
    """Whether steps differ in no more than their number of candidates, and in what lies there."""
    return one is other or (
        one.past_keys is other.past_keys
        and one.past_values is other.past_values
        and one.cross_keys is other.cross_keys
        and one.cross_values is other.cross_values
        and one.cross_bias is other.cross_bias
        and one.tokens.shape == other.tokens.shape
        and one.exact == other.exact
    )
