"""What the decoder said of the next token of every row: all logits, or the likeliest of them."""

from typing import NamedTuple, Protocol

import numpy as np

from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.backends.protocol import StepOutputs
from drl.runtime.decoding.reports import likeliest
from drl.runtime.processors import largest
from drl.runtime.results import TopLogprobs


class Likeliest(NamedTuple):
    """Some of the likeliest tokens of each row.

    Attributes:
        tokens: `[n, c]`, the largest logit first, equal ones by token id.
        values: `[n, c]` their logits, in memory that the caller may write to.
        floors: `[n]`: other tokens have this logit or a lower one.
    """

    tokens: Int64
    values: Float32
    floors: Float32


class StepScores(Protocol):
    """The logits of a step, and the log-probabilities that results report."""

    @property
    def normalisers(self) -> Float32:
        """`[B]` logarithm of the sum of all logits' exponentials."""

    def likeliest(self, rows: Int64 | slice, count: int) -> Likeliest:
        """The `count` likeliest tokens of some rows, or all that a step has ranked."""

    def logprob(self, row: int, token: int) -> float:
        """The log-probability of a token in one row."""

    def top(self, row: int, count: int) -> TopLogprobs:
        """The `count` likeliest tokens of a row, best first, ties by token id."""


def step_scores(outputs: StepOutputs) -> StepScores:
    """What a step of a token per row has given."""
    return WholeRows(outputs) if outputs.top is None else RankedRows(outputs)


class WholeRows:
    """`StepScores` of whole rows.

    Attributes:
        logits: `[B, V]`.
        normalisers: See `StepScores`.
    """

    def __init__(self, outputs: StepOutputs) -> None:
        self.logits: Float32 = outputs.logits[:, 0]
        self.normalisers: Float32 = outputs.normalisers[:, 0]

    def likeliest(self, rows: Int64 | slice, count: int) -> Likeliest:
        """See `StepScores`."""
        tokens, values = largest(self.logits[rows], count)
        rest = count < self.logits.shape[1]
        return Likeliest(tokens, values, values[:, -1].copy() if rest else _nothing(values))

    def logprob(self, row: int, token: int) -> float:
        """See `StepScores`."""
        return float(self.logits[row, token] - self.normalisers[row])

    def top(self, row: int, count: int) -> TopLogprobs:
        """See `StepScores`."""
        return likeliest(self.logits[row], count, float(self.normalisers[row]))


class RankedRows:
    """`StepScores` of the likeliest tokens. Of others it knows nothing.

    Attributes:
        ids: `[B, c]` tokens.
        values: `[B, c]` their logits.
        normalisers: See `StepScores`.
    """

    def __init__(self, outputs: StepOutputs) -> None:
        assert outputs.top is not None
        self.ids: Int32 = outputs.top.ids[:, 0]
        self.values: Float32 = outputs.top.values[:, 0]
        self.normalisers: Float32 = outputs.normalisers[:, 0]

    def likeliest(self, rows: Int64 | slice, count: int) -> Likeliest:
        """See `StepScores`."""
        values = np.array(self.values[rows])
        return Likeliest(self.ids[rows].astype(np.int64), values, values[:, -1].copy())

    def logprob(self, row: int, token: int) -> float:
        """See `StepScores`."""
        columns = np.flatnonzero(self.ids[row] == token)
        if not len(columns):
            raise ValueError(f"token {token} is none of the step's candidates in row {row}")
        return float(self.values[row, columns[0]] - self.normalisers[row])

    def top(self, row: int, count: int) -> TopLogprobs:
        """See `StepScores`."""
        normaliser = float(self.normalisers[row])
        pairs = zip(self.ids[row, :count].tolist(), self.values[row, :count].tolist(), strict=True)
        return [(token, value - normaliser) for token, value in pairs]


def _nothing(values: Float32) -> Float32:
    """`[n]` floors where there are no other tokens."""
    return np.full(len(values), -np.inf, np.float32)
