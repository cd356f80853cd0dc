"""Random choice of tokens.

Every row's token depends on that row alone, to the last bit: which rows share its batch changes
neither the order of the sums nor, through ties, the order of the tokens (equally likely tokens are
ordered by id).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from drl.runtime.arrays import Float32, Float64, Int64
from drl.runtime.generation import GenerationConfig
from drl.runtime.processors.filters import EVERYTHING, Filters, Look, Totals
from drl.runtime.processors.top import LOWEST, largest

# How many tokens to look at. Nearly every filtered distribution lies within the first few; a row
# that needs more is looked at again.
_DEPTHS = (256, 4096)
_BLOCK = 256
# Where top-k leaves more tokens than this, whole rows are looked at.
_MOST_CANDIDATES = 256
_HIGHEST = np.finfo(np.float32).max
# exp(x) is 0 in single precision long before; 0 times -inf would be NaN.
_NOTHING = np.float32(-1e4)


class _Looked(NamedTuple):
    """`[r]` rows whose filters are settled, `[r, D]` tokens, likeliest first, and their weights."""

    rows: Int64
    tokens: Int64
    weights: Float64


class Sampler:
    """Draws a token for each of a fixed set of rows.

    The rows' options temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff and eta_cutoff
    apply in this order, each to what the one before left.

    Args:
        configs: One per row; each samples.
        min_tokens_to_keep: How many tokens every filter leaves.
    """

    def __init__(self, configs: Sequence[GenerationConfig], min_tokens_to_keep: int = 1) -> None:
        self._least = min_tokens_to_keep
        self._temperatures = np.array([[c.temperature or 1.0] for c in configs], np.float64)
        self._filters = Filters.from_configs(configs, min_tokens_to_keep)
        active = self._filters.active
        (self._filtered,) = np.nonzero(active)
        (self._whole,) = np.nonzero(~active)
        (self._summed,) = np.nonzero(self._filters.needs_totals)
        self._products = self._filters.needs_products
        # What top-k leaves must lie within the look, and one more to tell that it does. Without a
        # filter nothing settles a row but all its tokens.
        top_k = self._filters.top_k[:, 0]
        needed = np.maximum(np.where(top_k < EVERYTHING, top_k, 0), min_tokens_to_keep) + 1
        self._needed = np.where(active, needed, EVERYTHING)
        self._top_k = np.minimum(np.maximum(top_k, min_tokens_to_keep), _MOST_CANDIDATES)
        self._ranks = bool((top_k <= _MOST_CANDIDATES).all())

    @property
    def candidates_needed(self) -> int | None:
        """How many of the likeliest tokens `weigh` needs, or None if it takes all tokens."""
        return int(self._needed.max()) if self._ranks else None

    def sample(self, scores: Float32, draws: Float64, scratch: Float32) -> Int64:
        """Choose a token per row by inverting its cumulative distribution at a random number.

        Args:
            scores: `[R, V]` logits or log-probabilities; left as they are.
            draws: `[R]` uniform numbers in [0, 1).
            scratch: `[R, V]` to work in.

        Returns:
            `[R]` token ids. A row without a single token that is allowed gets 0, as from argmax.
        """
        tokens = np.empty(len(scores), np.int64)
        for row in self._whole.tolist():
            tokens[row] = _draw(self._weights(scores, row, scratch), float(draws[row]))
        for rows, ids, weights in self._looks(scores, self._filtered, scratch):
            tokens[rows] = ids[np.arange(len(rows)), choose_places(weights, draws[rows])]
        return tokens

    def weigh(self, scores: Float32, floors: Float32) -> Float64 | None:
        """How likely each of the likeliest tokens is to be drawn.

        The weights are those that `sample` and `candidates` have found among all tokens, to the
        last bit.

        Args:
            scores: `[R, c]` the largest logits or log-probabilities, largest first; c is at least
                `candidates_needed`, not counting tokens that are barred.
            floors: `[R]`: all other tokens have this score or a lower one.

        Returns:
            `[R, c]` weights, in proportion to the probabilities; 0 for what the filters bar. None
            if other tokens may equal the last one that top-k leaves: all tokens must be looked at.
        """
        count, width = scores.shape
        every = np.arange(count)
        logarithms = self._logarithms(np.append(scores, floors[:, None], axis=1), every)
        behind = logarithms[:, -1]
        last = logarithms[every, np.minimum(self._top_k, width) - 1]
        if not ((behind < last) | (np.exp(behind) == 0)).all():
            return None
        nothing = np.zeros((count, 1))  # top-k comes first, and needs no sums
        totals = Totals(nothing, nothing)
        return Look(logarithms[:, :-1], self._filters, totals, self._least).weights

    def candidates(self, scores: Float32, scratch: Float32) -> tuple[Int64, Float64]:
        """The tokens of each row that may be drawn, and how likely each is.

        Args:
            scores: `[R, V]` logits or log-probabilities; left as they are.
            scratch: `[R, V]` to work in.

        Returns:
            `[R, D]` token ids, the likeliest first, and their `[R, D]` probabilities: 0 for those
            that the filters bar and for padding. The last of D is above 0 in one of the rows.
        """
        looks = list(self._looks(scores, np.arange(len(scores)), scratch))
        depth = max((look.tokens.shape[1] for look in looks), default=0)
        tokens = np.zeros((len(scores), depth), np.int64)
        probabilities = np.zeros((len(scores), depth), np.float64)
        for rows, ids, weights in looks:
            tokens[rows, : ids.shape[1]] = ids
            probabilities[rows, : ids.shape[1]] = to_probabilities(weights)
        return drawable(tokens, probabilities)

    def _looks(self, scores: Float32, rows: Int64, scratch: Float32) -> Iterator[_Looked]:
        """Filter some of the rows, looking at more tokens only where a row needs them.

        How many are looked at is a matter of the row alone: it may change the last bits of sums.
        """
        if not rows.size:
            return
        vocab_size = scores.shape[1]
        totals = self._sum(scores, scratch)
        for depth in (*(depth for depth in _DEPTHS if depth < vocab_size), vocab_size):
            last = depth == vocab_size
            deeper = (self._needed[rows] > depth) & (not last)
            now = rows[~deeper]
            if not now.size:
                continue
            everything = len(now) == len(scores)
            ids, best = largest(scores if everything else scores[now], depth)
            filters = self._filters if everything else self._filters.of(now)
            look = Look(self._logarithms(best, now), filters, totals.of(now), self._least)
            done = look.settled | last
            yield _Looked(now[done], ids[done], look.weights[done])
            rows = np.sort(np.concatenate([rows[deeper], now[~done]]))
            if not rows.size:
                return

    def _logarithms(self, best: Float32, rows: Int64) -> Float64:
        """`[r, D]` logarithms of the weights of the best scores, of which the first gets 0."""
        values = np.minimum(best, _HIGHEST).astype(np.float64)
        # -inf from -inf would be NaN
        values -= np.maximum(values[:, :1], LOWEST)
        values /= self._temperatures[rows]
        return values

    def _sum(self, scores: Float32, scratch: Float32) -> Totals:
        """Sums over all tokens of the rows that need them."""
        totals = Totals(np.ones((len(scores), 1)), np.zeros((len(scores), 1)))
        for row in self._summed.tolist():
            weights = self._weights(scores, row, scratch)
            totals.weights[row] = weights.sum()
            if self._products[row]:
                logarithms = self._scaled(scores, row, np.empty_like(weights))
                np.maximum(logarithms, _NOTHING, out=logarithms)
                totals.products[row] = np.dot(logarithms, weights)
        return totals

    def _weights(self, scores: Float32, row: int, scratch: Float32) -> Float32:
        """`[V]` weights of all tokens of a row, of which the likeliest has 1."""
        weights = self._scaled(scores, row, scratch[row])
        np.exp(weights, out=weights)
        return weights

    def _scaled(self, scores: Float32, row: int, out: Float32) -> Float32:
        """`[V]` logarithms of all weights of a row."""
        values = scores[row]
        highest = values.max()
        if highest > _HIGHEST:
            values, highest = np.minimum(values, _HIGHEST), _HIGHEST
        # The largest goes first: a tiny temperature must not make infinities that cancel to NaN.
        with np.errstate(over="ignore"):
            np.subtract(values, max(highest, LOWEST), out=out)
            temperature = np.float32(self._temperatures[row, 0])
            if temperature != 1:
                out /= temperature
        return out


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


def to_probabilities(weights: Float64) -> Float64:
    """`[R, n]` weights over their sums; all 0 where they are."""
    sums = np.cumsum(weights, axis=1)[:, -1:]
    return weights / np.where(sums > 0, sums, 1)


def drawable(tokens: Int64, probabilities: Float64) -> tuple[Int64, Float64]:
    """`[R, n]` tokens and probabilities without the last columns in which all are 0.

    What is left does not depend on how many tokens have been looked at.
    """
    used = 1 + int(np.flatnonzero(probabilities.any(axis=0)).max(initial=-1))
    return tokens[:, :used], probabilities[:, :used]


def choose_places(weights: Float64, draws: Float64) -> Int64:
    """`[R]` places in `[R, n]` weights, by inverting their cumulative distributions at `[R]` draws.

    In each row it is what `_place` finds.
    """
    sums = np.cumsum(weights, axis=1)
    ends = sums[:, -1:]
    before = (sums <= draws[:, None] * ends) & (sums < ends)
    places: Int64 = before.sum(axis=1)
    return places
