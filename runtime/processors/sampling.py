"""Random choice of tokens: temperature, top-k, top-p and min-p in one pass over sorted logits.

Every row's token depends on that row alone, to the last bit: which rows share its batch changes
neither the order of the sums nor, through ties, the order of the tokens (equal logits are ordered
by token id).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drl.runtime.arrays import Float32, Int64

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Enough for nearly every truncated distribution; a row that needs more has its logits fully sorted.
_FIRST_LOOK = 512


@dataclass(frozen=True)
class SamplingParameters:
    """Per-row parameters, each `[B]`. Truncations that are off hold V, 1 and 0."""

    temperature: Float32
    top_k: Int64
    top_p: Float64
    min_p: Float64

    def take(self, rows: Int64 | Bool) -> "SamplingParameters":
        """The parameters of some rows."""
        return SamplingParameters(
            self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows]
        )

    def truncates(self, vocab_size: int) -> Bool:
        """`[B]`: whether the row samples from less than the whole vocabulary."""
        return (self.top_k < vocab_size) | (self.top_p < 1.0) | (self.min_p > 0.0)


def sample(logits: Float32, parameters: SamplingParameters, draws: Float64) -> Int64:
    """Choose a token per row by inverting the cumulative distribution at a random number.

    Args:
        logits: `[B, V]`; left as they are.
        parameters: Of the B rows.
        draws: `[B]` uniform numbers in [0, 1).

    Returns:
        `[B]` token ids.
    """
    # The largest logit goes first: a tiny temperature must not make infinities that cancel to NaN.
    # From here on a weight is a probability times a positive factor of its row.
    centred = logits - logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        weights: Float32 = np.exp(centred / parameters.temperature[:, None])
    tokens = np.empty(len(logits), np.int64)
    truncated = parameters.truncates(logits.shape[1])
    whole = ~truncated
    if whole.any():
        tokens[whole] = _invert(np.cumsum(weights[whole], axis=1, dtype=np.float64), draws[whole])
    if truncated.any():
        tokens[truncated] = _sample_truncated(
            weights[truncated], parameters.take(truncated), draws[truncated]
        )
    return tokens


def _sample_truncated(weights: Float32, parameters: SamplingParameters, draws: Float64) -> Int64:
    vocab_size = weights.shape[1]
    tokens = np.empty(len(weights), np.int64)
    waiting = np.arange(len(weights))
    for depth in sorted({min(_FIRST_LOOK, vocab_size), vocab_size}):
        order = _descending(weights[waiting], depth)
        sorted_weights = np.take_along_axis(weights[waiting], order, axis=1).astype(np.float64)
        totals = weights[waiting].astype(np.float64).sum(axis=1)
        kept = _keep(sorted_weights, totals, parameters.take(waiting))
        # If the last one looked at is kept, those behind it might be kept as well.
        settled = ~kept[:, -1] | (depth == vocab_size)
        ranks = _invert(np.cumsum(sorted_weights * kept, axis=1), draws[waiting])
        tokens[waiting[settled]] = order[settled, ranks[settled]]
        waiting = waiting[~settled]
        if not waiting.size:
            break
    return tokens


def _descending(weights: Float32, depth: int) -> Int64:
    """`[B, depth]` ids of the largest weights, largest first, ties by id.

    Non-negative floats order like their bits, so weight and id make one integer key: keys are
    unique, which leaves no tie to the sorting algorithm.
    """
    bits = weights.view(np.uint32).astype(np.uint64)
    keys = ((np.uint64(0xFFFFFFFF) - bits) << np.uint64(32)) | np.arange(
        weights.shape[1], dtype=np.uint64
    )
    if depth < keys.shape[1]:
        keys = np.partition(keys, depth - 1, axis=1)[:, :depth]
    keys.sort(axis=1)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _keep(sorted_weights: Float64, totals: Float64, parameters: SamplingParameters) -> Bool:
    """`[B, depth]`: which of the sorted tokens may be drawn. The first one always may."""
    depth = sorted_weights.shape[1]
    cumulative = np.cumsum(sorted_weights, axis=1)
    kept: Bool = np.arange(depth) < parameters.top_k[:, None]
    # top-p counts within what top-k left. A sum over more than was looked at is the row's total.
    last = np.minimum(parameters.top_k, depth) - 1
    within = np.where(
        parameters.top_k <= depth, cumulative[np.arange(len(cumulative)), last], totals
    )
    before = cumulative - sorted_weights
    # Rounding may keep a sum just under its whole, so top_p = 1 is taken by its word.
    kept &= (before < parameters.top_p[:, None] * within[:, None]) | (parameters.top_p >= 1.0)[
        :, None
    ]
    kept &= sorted_weights >= parameters.min_p[:, None] * sorted_weights[:, :1]
    kept[:, 0] = True
    return kept


def _invert(cumulative: Float64, draws: Float64) -> Int64:
    """`[B]`: the first place of each row where the cumulative weight exceeds the draw's share."""
    targets = draws * cumulative[:, -1]
    places: Int64 = (cumulative <= targets[:, None]).sum(axis=1)
    # draw * total can round up to the total, which would lie behind the last place of any weight.
    ends: Int64 = np.argmax(cumulative >= cumulative[:, -1:], axis=1)
    np.minimum(places, ends, out=places)
    return places
