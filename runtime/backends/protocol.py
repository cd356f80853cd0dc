"""What the runtime asks of an inference library: encode, bridge, step.

Notation: B rows, R sources, S source length, K kept states, T new tokens, V vocabulary, d model
width, N kv heads, h head width, C cache capacity, P paths, k experts per token, c candidates. A
source has B / R rows, which are adjacent: one, or as many as a beam search has beams.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from drl.runtime.arrays import Array, Float32, Int32, Int64


@dataclass(frozen=True, eq=False)
class Encoding:
    """Sources after the encoder.

    Attributes:
        states: `[B, S, d]` encoder states; rows are right-padded.
        lengths: `[B]` valid states per row.
        saliency: `[B, S]`, with a path router.
        path_logits: `[B, P]`, with a path router.
        experts: Expert ids `[B, S, k]` per sparse encoder layer, where asked for.
    """

    states: Float32
    lengths: Int32
    saliency: Float32 | None
    path_logits: Float32 | None
    experts: Mapping[int, Int32]

    def take(self, rows: list[int]) -> "Encoding":
        """Some of the rows, without the padding that only the others needed."""
        if rows == list(range(len(self.lengths))):
            return self
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        return Encoding(
            states=np.ascontiguousarray(self.states[rows, :longest]),
            lengths=lengths,
            saliency=None if self.saliency is None else self.saliency[rows, :longest].copy(),
            path_logits=None if self.path_logits is None else self.path_logits[rows],
            experts={layer: ids[rows, :longest] for layer, ids in self.experts.items()},
        )


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """What the decoder attends to: keys and values of the kept states of each source.

    Attributes:
        bias: `[R, K]`, log sigmoid of the saliency; -1e4 at padding.
        lengths: `[R]` kept states per source.
        keys, values: `[R, N, K, h]` for every decoder layer; K = 0 where the path skips it.
    """

    bias: Float32
    lengths: Int32
    keys: tuple[Array, ...]
    values: tuple[Array, ...]

    def take(self, rows: list[int]) -> "CrossAttention":
        """Some of the sources, or some of them several times."""
        if rows == list(range(len(self.lengths))):
            return self
        return CrossAttention(
            bias=self.bias[rows],
            lengths=self.lengths[rows],
            keys=tuple(block[rows] for block in self.keys),
            values=tuple(block[rows] for block in self.values),
        )


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The buffers of one decoder step. All rows take one path, and sources have as many rows each.

    A backend binds these very arrays. Between steps their contents change and the object stays;
    a new shape needs a new object, by whose identity the backend knows that it must bind again.

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
    """

    path: int
    tokens: Int64
    lengths: Int32
    new_lengths: Int32
    cross_bias: Float32
    cross_keys: tuple[Array, ...]
    cross_values: tuple[Array, ...]
    past_keys: tuple[Array, ...]
    past_values: tuple[Array, ...]
    with_experts: bool = False
    candidates: int = 0

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


class Backend(Protocol):
    """An inference library with a bundle's three graphs loaded. Not thread-safe."""

    @property
    def name(self) -> str:
        """The library and device, for people."""

    @property
    def ranks(self) -> bool:
        """Whether a step can give candidates in the place of logits."""

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
