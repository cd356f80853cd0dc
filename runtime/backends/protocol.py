"""What the runtime asks of an inference library: encode, bridge, step.

Notation: B rows, R sources, S source length, K kept states, T new tokens, V vocabulary, d model
width, N kv heads, h head width, C cache capacity, P paths, k experts per token, c candidates. A
source has B / R rows, which are adjacent: one, or as many as a beam search has beams.

Memory. What is large lies where the backend computes and is allocated by its array library
(`Backend.arrays`): encoder states, saliency, cross-attention blocks and the KV cache. What the host
decides with is NumPy's: tokens, lengths, path logits, expert ids and all of `StepOutputs`.

- `Encoding` and `CrossAttention` are made by the backend and belong to the caller, who copies from
  them and drops them. Nothing else may write to their memory.
- The KV cache and the cross-attention blocks in `StepInputs` belong to the caller
  (`drl.runtime.cache.KVCache`). The backend writes new entries in place during `step`, and may read
  them in no other call.
- Addresses and shapes of all arrays in a `StepInputs` stay while the object does. What a backend
  derives from addresses (bindings, captured CUDA graphs) is valid for every `StepInputs` whose
  device arrays have the same addresses and shapes: a cache that neither grew nor shrank gives the
  same again, as its rows start at the beginning of its blocks. After `release`, and before a step
  with other addresses, the caller may have freed the memory: a graph must not be replayed for it.
- In a step of a token per row the views begin at the cache's first row, and each block goes on
  behind them for as many slots as `Backend.bucket` says. Rows there belong to nobody and hold
  finite numbers: a step may read and write them. A step of several tokens, or one that is `exact`,
  may begin at any row, and what lies behind its rows must not be touched.
- Bookkeeping arrays (`tokens`, `lengths`, `new_lengths`) change between steps in place, on the
  host. A backend on a device copies them to buffers of its own in each step, on its stream.
- `StepOutputs` are complete when `step` returns: the backend has waited for what it copies to the
  host. What it leaves running on its stream is ordered before everything that the caller does
  inside `Backend.arrays.ordered()`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from drl.runtime.arrays import BackendArray, Float32, Int32, Int64
from drl.runtime.backends.limits import BackendLimits
from drl.runtime.backends.memory import HOST, ArrayLibrary, MemoryRules


@dataclass(frozen=True, eq=False)
class Encoding:
    """Sources after the encoder.

    Attributes:
        states: `[B, S, d]` encoder states; rows are right-padded.
        lengths: `[B]` valid states per row.
        saliency: `[B, S]`, with a path router.
        path_logits: `[B, P]`, with a path router.
        experts: Expert ids `[B, S, k]` per sparse encoder layer, where asked for.
        arrays: The library of `states` and `saliency`.
    """

    states: BackendArray
    lengths: Int32
    saliency: BackendArray | None
    path_logits: Float32 | None
    experts: Mapping[int, Int32]
    arrays: ArrayLibrary = HOST

    def take(self, rows: list[int]) -> "Encoding":
        """Some of the rows, without the padding that only the others needed."""
        if rows == list(range(len(self.lengths))):
            return self
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        with self.arrays.ordered():
            states = self.arrays.gather(self.states[:, :longest], rows)
            saliency = self.saliency
            if saliency is not None:
                saliency = self.arrays.gather(saliency[:, :longest], rows)
        return Encoding(
            states=states,
            lengths=lengths,
            saliency=saliency,
            path_logits=None if self.path_logits is None else self.path_logits[rows],
            experts={layer: ids[rows, :longest] for layer, ids in self.experts.items()},
            arrays=self.arrays,
        )


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """What the decoder attends to: keys and values of the kept states of each source.

    Attributes:
        bias: `[R, K]`, log sigmoid of the saliency; -1e4 at padding.
        lengths: `[R]` kept states per source.
        keys, values: `[R, N, K, h]` for every decoder layer; K = 0 where the path skips it.
        arrays: The library of all but `lengths`.
    """

    bias: BackendArray
    lengths: Int32
    keys: tuple[BackendArray, ...]
    values: tuple[BackendArray, ...]
    arrays: ArrayLibrary = HOST

    def take(self, rows: list[int]) -> "CrossAttention":
        """Some of the sources, or some of them several times."""
        if rows == list(range(len(self.lengths))):
            return self
        gather = self.arrays.gather
        with self.arrays.ordered():
            return CrossAttention(
                bias=gather(self.bias, rows),
                lengths=self.lengths[rows],
                keys=tuple(gather(block, rows) for block in self.keys),
                values=tuple(gather(block, rows) for block in self.values),
                arrays=self.arrays,
            )


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The buffers of one decoder step. All rows take one path, and sources have as many rows each.

    A backend binds these very arrays, or on a device copies of the host's. Between steps their
    contents change and the object stays; a new shape needs a new object, by whose identity the
    backend knows that it must bind again.

    Attributes:
        path: Index of the path.
        tokens: `[B, T]` new tokens, right-padded.
        lengths: `[B]` tokens that each row has in the cache.
        new_lengths: `[B]` how many of the T tokens are real.
        cross_bias, cross_keys, cross_values: See `CrossAttention`.
        past_keys, past_values: `[B, N, C, h]` for every decoder layer (C = 0 where the path skips
            it). The step writes the new tokens' entries in place.
        with_experts: Whether the outputs shall hold expert ids.
        candidates: How many of the likeliest tokens the outputs shall hold in the place of the
            logits; 0 for the logits. Others only where `Backend.ranks`, and below V.
        exact: Whether rows behind these must not be touched even if there is a token per row.
    """

    path: int
    tokens: Int64
    lengths: Int32
    new_lengths: Int32
    cross_bias: BackendArray
    cross_keys: tuple[BackendArray, ...]
    cross_values: tuple[BackendArray, ...]
    past_keys: tuple[BackendArray, ...]
    past_values: tuple[BackendArray, ...]
    with_experts: bool = False
    candidates: int = 0
    exact: bool = False

    @property
    def width(self) -> int:
        """Rows per source."""
        return len(self.tokens) // len(self.cross_bias)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The likeliest tokens: the largest logit first, equal ones by token id, NaN last.

    Attributes:
        values: `[B, T, c]` logits.
        ids: `[B, T, c]` the tokens that they are of.
    """

    values: Float32
    ids: Int32


@dataclass(frozen=True, eq=False)
class StepOutputs:
    """Results of one decoder step, in buffers that the next step of the same path overwrites.

    Attributes:
        logits: `[B, T, V]`, or `[B, T, 0]` where candidates were asked for; the caller may write
            to it.
        normalisers: `[B, T]` logarithm of the sum of all logits' exponentials.
        experts: Expert ids `[B, T, k]` per sparse decoder layer on the path, where asked for.
        top: The candidates, where asked for.
    """

    logits: Float32
    normalisers: Float32
    experts: Mapping[int, Int32]
    top: Ranking | None = None


class Backend(MemoryRules, Protocol):
    """An inference library with a bundle's three graphs loaded. Not thread-safe.

    It may be called from several threads, one at a time.
    """

    @property
    def name(self) -> str:
        """The library and device, for people."""

    @property
    def ranks(self) -> bool:
        """Whether a step can give candidates in the place of logits."""

    @property
    def limits(self) -> BackendLimits:
        """What it holds, where that is less than what the bundle and the caller allow."""

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        """Run the encoder on sources `[B, S]`, right-padded; lengths and budgets are `[B]`."""

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        """Prepare encoded sources for the decoder layers of a path."""

    def step(self, inputs: StepInputs) -> StepOutputs:
        """Run the decoder on new tokens and extend the cache in place."""

    def release(self, path: int, width: int) -> None:
        """Let go of the buffers of the last step of a path with `width` rows per source.

        The next one brings new `StepInputs`.
        """

    def close(self) -> None:
        """Give back what the library holds. The backend is of no use afterwards."""
