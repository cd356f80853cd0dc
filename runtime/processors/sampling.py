"""Random choice of tokens: temperature, top-k, top-p and min-p over logits sorted once.

Every row's token depends on that row alone, to the last bit: which rows share its batch changes
neither the order of the sums nor, through ties, the order of the tokens (equally likely tokens are
ordered by id).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drl.runtime.arrays import Float32, Int64
from drl.runtime.generation import GenerationConfig

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

# How many tokens to sort at first. Nearly every truncated distribution lies within; a row that
# needs more has all its tokens sorted.
_FIRST_LOOK = 256
_BLOCK = 256
_PORTION = 1 << 16


class Sampler:
    """Draws a token for each of a fixed set of rows.

    Args:
        configs: One per row; each samples.
    """

    def __init__(self, configs: Sequence[GenerationConfig]) -> None:
        everything = np.iinfo(np.int64).max
        self._temperatures = np.array([[c.temperature or 1.0] for c in configs], np.float32)
        top_k = np.array([c.top_k or everything for c in configs], np.int64)
        top_p = np.array([1.0 if c.top_p is None else c.top_p for c in configs], np.float64)
        min_p = np.array([c.min_p or 0.0 for c in configs], np.float64)
        truncated = (top_k < everything) | (top_p < 1.0) | (min_p > 0.0)
        (self._whole,) = np.nonzero(~truncated)
        (self._truncated,) = np.nonzero(truncated)
        self._truncation = _Truncation(top_k[truncated], top_p[truncated], min_p[truncated])

    def sample(self, logits: Float32, draws: Float64, scratch: Float32) -> Int64:
        """Choose a token per row by inverting its cumulative distribution at a random number.

        Args:
            logits: `[R, V]`; left as they are.
            draws: `[R]` uniform numbers in [0, 1).
            scratch: `[R, V]` to work in.

        Returns:
            `[R]` token ids.
        """
        # The largest logit goes first: a tiny temperature must not make infinities that cancel to
        # NaN. A weight is a probability times a positive factor of its row.
        weights = np.subtract(logits, logits.max(axis=1, keepdims=True), out=scratch)
        with np.errstate(over="ignore"):
            weights /= self._temperatures
        np.exp(weights, out=weights)
        if not self._whole.size:
            return self._truncation.sample(weights, draws)
        tokens = np.empty(len(logits), np.int64)
        whole, truncated = self._whole, self._truncated
        for row in whole.tolist():
            tokens[row] = _draw(weights[row], float(draws[row]))
        if truncated.size:
            tokens[truncated] = self._truncation.sample(weights[truncated], draws[truncated])
        return tokens


class _Truncation:
    """Sampling from the likeliest tokens. Limits `[R]` that are off are huge, 1 and 0."""

    def __init__(self, top_k: Int64, top_p: Float64, min_p: Float64) -> None:
        self._top_k, self._top_p, self._min_p = top_k[:, None], top_p[:, None], min_p[:, None]
        self._uses_top_p = bool((top_p < 1.0).any())
        self._uses_min_p = bool((min_p > 0.0).any())
        self._keys = np.empty((0, 0), np.int64)

    def sample(self, weights: Float32, draws: Float64) -> Int64:
        """Draw from `[R, V]` weights; looks at more tokens only where it must."""
        vocab_size = weights.shape[1]
        # At least every top-k: of what it leaves, the sum must be known.
        top_k = self._top_k[self._top_k < vocab_size].max(initial=0)
        depth = min(max(_FIRST_LOOK, int(top_k)), vocab_size)
        tokens, settled = self._sample_within(weights, draws, depth)
        if depth < vocab_size and not settled.all():
            (rows,) = np.nonzero(~settled)
            rest = _Truncation(self._top_k[rows, 0], self._top_p[rows, 0], self._min_p[rows, 0])
            tokens[rows], _ = rest._sample_within(weights[rows], draws[rows], vocab_size)
        return tokens

    def _sample_within(self, weights: Float32, draws: Float64, depth: int) -> tuple[Int64, Bool]:
        """Draw from the `depth` likeliest tokens; also say which rows need no more of them."""
        rows = np.arange(len(weights))
        order = self._descending(weights, depth)
        ordered = weights[rows[:, None], order].astype(np.float64)
        kept = np.arange(depth) < self._top_k
        if self._uses_top_p:
            cumulative = np.cumsum(ordered, axis=1)
            # Within what top-k left, keep up to and including the token that reaches top-p.
            # Rounding may keep a sum just under its whole: top_p = 1 is taken by its word.
            goal = self._top_p * self._left_by_top_k(weights, cumulative, rows)
            kept &= (cumulative - ordered < goal) | (self._top_p >= 1.0)
        if self._uses_min_p:
            kept &= ordered >= self._min_p * ordered[:, :1]
        kept[:, 0] = True
        ordered *= kept
        sums = np.cumsum(ordered, axis=1)
        places = [_place(*pair) for pair in zip(sums, draws * sums[:, -1], strict=True)]
        tokens = order[rows, places]
        # If the last token looked at is kept, those behind it might be kept as well.
        return tokens, ~kept[:, -1]

    def _descending(self, weights: Float32, depth: int) -> Int64:
        """`[R, depth]` ids of the largest weights, largest first, ties by id.

        Non-negative floats order like their bits, so weight and id make one integer key: keys are
        unique, which leaves no tie to the sorting algorithm. Rows go in portions whose keys stay
        in the processor's cache.
        """
        rows, vocab_size = weights.shape
        portion = max(1, _PORTION // vocab_size)
        if self._keys.shape != (min(portion, rows), vocab_size):
            self._keys = np.empty((min(portion, rows), vocab_size), np.int64)
        ids = np.arange(vocab_size)
        order = np.empty((rows, depth), np.int64)
        for start in range(0, rows, portion):
            bits = weights[start : start + portion].view(np.int32)
            keys = self._keys[: len(bits)]
            np.negative(bits, out=keys)
            keys <<= 32
            keys += ids
            if depth < vocab_size:
                keys.partition(depth - 1, axis=1)
            order[start : start + portion] = keys[:, :depth]
        order.sort(axis=1)
        order &= 0xFFFFFFFF
        return order

    def _left_by_top_k(self, weights: Float32, cumulative: Float64, rows: Int64) -> Float64:
        """`[R, 1]`: the weight of the top-k tokens, of which top-p is a share."""
        depth = cumulative.shape[1]
        last = np.minimum(self._top_k[:, 0], depth) - 1
        within: Float64 = cumulative[rows, last][:, None]
        if (self._top_k <= depth).all():
            return within
        totals: Float64 = weights.astype(np.float64).sum(axis=1, keepdims=True)
        return np.where(self._top_k <= depth, within, totals)


def _draw(weights: Float32, draw: float) -> int:
    """A place of `[V]` weights, each with a chance in proportion to its weight.

    The block is found first and the place within it second: one cumulative sum over a whole
    vocabulary would take longer than everything else.
    """
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).astype(np.float64)
    sums = np.cumsum(blocks)
    block = _place(sums, draw * float(sums[-1]))
    remainder = draw * float(sums[-1]) - float(sums[block] - blocks[block])
    start = block * _BLOCK
    within = np.cumsum(weights[start : start + _BLOCK].astype(np.float64))
    return start + _place(within, remainder)


def _place(sums: Float64, target: float) -> int:
    """The first place where `[n]` ascending sums exceed the target, or where they reach their end.

    The end counts only if rounding has brought the target there.
    """
    place = sums.searchsorted(target, side="right")
    return int(min(place, sums.searchsorted(sums[-1])))
