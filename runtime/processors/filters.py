"""Which of a row's tokens may be drawn: top-k, top-p, min-p, typical-p, epsilon and eta cutoff.

The filters apply in this order, transformers' order, each to what the one before left. They see a
row's tokens from the likeliest to the least likely; mostly a few hundred of them settle the matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drl.runtime.arrays import Float64, Int64
from drl.runtime.generation import GenerationConfig

Bool = NDArray[np.bool_]

EVERYTHING = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Filters:
    """What each of R rows asks for, `[R, 1]`; a limit that is off has a value that bars nothing.

    Attributes:
        top_k: Bars what is less likely than the k-th likeliest; off at the largest integer.
        top_p: Keeps the fewest likeliest tokens whose probabilities reach it. Source: Holtzman et
            al. 2020, "The Curious Case of Neural Text Degeneration". Off at 1.
        min_p: Bars tokens less likely than so many times the likeliest. Source: Nguyen et al. 2024,
            "Turning Up the Heat: Min-p Sampling". Off at 0.
        typical_p: Keeps the tokens whose information is closest to the expected information, until
            their probabilities reach it. Source: Meister et al. 2023, "Locally Typical Sampling".
            Off at 1.
        epsilon: Bars tokens that are less likely than it. Off at 0.
        eta: Bars tokens that are less likely than the smaller of it and
            `sqrt(eta) exp(-entropy)`. Source of both: Hewitt et al. 2022, "Truncation Sampling as
            Language Model Desmoothing". Off at 0.
    """

    top_k: Int64
    top_p: Float64
    min_p: Float64
    typical_p: Float64
    epsilon: Float64
    eta: Float64

    @classmethod
    def from_configs(cls, configs: Sequence[GenerationConfig], least: int) -> Self:
        """The filters of some rows, none of which may leave fewer tokens than `least`."""

        def column(values: list[float]) -> Float64:
            return np.array(values, np.float64).reshape(-1, 1)

        top_k = [max(c.top_k, least) if c.top_k else EVERYTHING for c in configs]
        return cls(
            np.array(top_k, np.int64).reshape(-1, 1),
            column([1.0 if c.top_p is None else min(c.top_p, 1.0) for c in configs]),
            column([c.min_p or 0.0 for c in configs]),
            column([c.typical_p or 1.0 for c in configs]),
            column([_cutoff(c.epsilon_cutoff) for c in configs]),
            column([_cutoff(c.eta_cutoff) for c in configs]),
        )

    @cached_property
    def on(self) -> dict[str, Bool]:
        """`[R, 1]` for each filter that any row asks for: which rows do."""
        on = {
            "top_k": self.top_k < EVERYTHING,
            "top_p": self.top_p < 1,
            "min_p": self.min_p > 0,
            "typical_p": self.typical_p < 1,
            "epsilon": self.epsilon > 0,
            "eta": self.eta > 0,
        }
        return {name: rows for name, rows in on.items() if rows.any()}

    def of(self, rows: Int64) -> Self:
        """The filters of some of the rows."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def active(self) -> Bool:
        """`[R]`: the rows of which something may be barred."""
        active: Bool = self._bars_by_rank | self._bars_by_probability
        return active[:, 0]

    @property
    def needs_totals(self) -> Bool:
        """`[R]`: the rows whose first filter depends on the probabilities of all tokens."""
        later = (self.min_p == 0) & self._bars_by_probability
        first: Bool = (self.top_k == EVERYTHING) & ((self.top_p < 1) | later)
        return first[:, 0]

    @property
    def needs_products(self) -> Bool:
        """`[R]`: the rows whose first filter may depend on the entropy of all tokens."""
        return self.needs_totals & ((self.typical_p < 1) | (self.eta > 0))[:, 0]

    @property
    def _bars_by_rank(self) -> Bool:
        return (self.top_k < EVERYTHING) | (self.min_p > 0)

    @property
    def _bars_by_probability(self) -> Bool:
        return (self.top_p < 1) | (self.typical_p < 1) | (self.epsilon > 0) | (self.eta > 0)


@dataclass(frozen=True, eq=False)
class Totals:
    """`[R, 1]` sums over all tokens of rows whose likeliest token has the weight 1.

    They are of no account where no filter needs them.

    Attributes:
        weights: Sum of the tokens' weights, exp(x).
        products: Sum of weight times x.
    """

    weights: Float64
    products: Float64

    def of(self, rows: Int64) -> Self:
        """The sums of some of the rows."""
        return type(self)(self.weights[rows], self.products[rows])


class Look:
    """The filters at work on the D likeliest tokens of each of R rows.

    Args:
        logarithms: `[R, D]` x, the logarithms of the tokens' weights, largest first; the likeliest
            token's is 0. A weight is a probability times a positive factor of its row.
        filters: Of the rows.
        totals: Over all tokens, including those not looked at.
        least: How many tokens every filter keeps.

    Attributes:
        weights: `[R, D]`, 0 where a filter bars the token.
        settled: `[R]`: rows of which no other token than these D can be kept.
    """

    def __init__(self, logarithms: Float64, filters: Filters, totals: Totals, least: int) -> None:
        self._logarithms = logarithms
        self._filters = filters
        self._least = least
        self._totals = totals
        self.weights = np.exp(logarithms)
        self._kept: Bool = self.weights > 0
        # Rows that no filter has touched still have the totals of all their tokens.
        self._touched = np.zeros((len(logarithms), 1), bool)
        # Rows whose last filter kept the last of these tokens, and so perhaps others behind it.
        self._open = self._kept[:, -1:].copy()
        # Rows of which a filter had to know what lies behind.
        self._unsure = np.zeros((len(logarithms), 1), bool)
        # A row without a token that is allowed has no probabilities.
        with np.errstate(divide="ignore", invalid="ignore"):
            self._apply()
        self.weights *= self._kept
        self.settled: Bool = ~(self._open | self._unsure)[:, 0]

    def _apply(self) -> None:
        filters, on = self._filters, self._filters.on
        if "top_k" in on:
            self._bar(self._less_than_top_k(), on["top_k"])
        if "top_p" in on:
            self._bar(self._behind_top_p(), on["top_p"], by_sums=True)
        if "min_p" in on:
            barred = self.weights < filters.min_p
            barred[:, : self._least] = False
            self._bar(barred, on["min_p"])
        if "typical_p" in on:
            self._bar(self._untypical(), on["typical_p"], by_sums=True)
        if "epsilon" in on:
            self._bar(self._less_likely_than(filters.epsilon), on["epsilon"], by_sums=True)
        if "eta" in on:
            limits = np.minimum(filters.eta, np.sqrt(filters.eta) * np.exp(-self._entropy()))
            self._bar(self._less_likely_than(limits), on["eta"], by_sums=True)

    def _bar(self, barred: Bool, active: Bool, by_sums: bool = False) -> None:
        """Bar `[R, D]` tokens of the `[R, 1]` rows for which the filter is on."""
        if by_sums:
            self._unsure |= active & self._touched & self._open
        self._kept &= ~(barred & active)
        self._open = np.where(active, self._kept[:, -1:], self._open)
        self._touched |= active

    def _less_than_top_k(self) -> Bool:
        rows, depth = self._logarithms.shape
        last = np.minimum(self._filters.top_k, depth) - 1
        barred: Bool = self._logarithms < self._logarithms[np.arange(rows)[:, None], last]
        return barred

    def _behind_top_p(self) -> Bool:
        sums = np.cumsum(self.weights * self._kept, axis=1)
        barred = np.zeros(sums.shape, bool)
        goal = self._filters.top_p * self._left(self._totals.weights, self.weights)
        # Keeps up to and including the token that reaches the goal.
        np.greater_equal(sums[:, :-1], goal, out=barred[:, 1:])
        barred[:, : self._least] = False
        return barred

    def _untypical(self) -> Bool:
        weights = self._left(self._totals.weights, self.weights)
        expected = self._expected_logarithm(weights)
        distances = np.abs(self._logarithms - expected)
        distances[~self._kept] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")
        rows = np.arange(len(order))[:, None]
        sums = np.cumsum((self.weights * self._kept)[rows, order], axis=1)
        reached = (sums < self._filters.typical_p * weights).sum(axis=1, keepdims=True)
        last = order[rows, np.minimum(reached, sums.shape[1] - 1)]
        barred = distances > distances[rows, last]
        barred[rows, order[:, : self._least]] = False
        return np.asarray(barred, np.bool_)

    def _less_likely_than(self, limits: Float64) -> Bool:
        barred = self.weights < limits * self._left(self._totals.weights, self.weights)
        first = self._kept & (np.cumsum(self._kept, axis=1) <= self._least)
        least = np.where(first, self._logarithms, np.inf).min(axis=1, keepdims=True)
        barred &= self._logarithms < least
        return barred

    def _entropy(self) -> Float64:
        weights = self._left(self._totals.weights, self.weights)
        entropy: Float64 = np.log(weights) - self._expected_logarithm(weights)
        return entropy

    def _expected_logarithm(self, weights: Float64) -> Float64:
        """`[R, 1]` mean of x over the distribution that is left, whose weights sum to `weights`."""
        finite = np.where(self._kept, self._logarithms, 0.0)
        products = self._left(self._totals.products, self.weights * finite)
        return products / weights

    def _left(self, totals: Float64, values: Float64) -> Float64:
        """`[R, 1]` sum of values over the tokens that are left."""
        if not self._touched.any():
            return totals
        # A cumulative sum adds from left to right, whatever lies beside it in memory.
        sums = np.cumsum(values * self._kept, axis=1)[:, -1:]
        return np.where(self._touched, sums, totals)


def _cutoff(value: float | None) -> float:
    """A cutoff, or 0 for one that is off: those of 1 and more are, as in transformers."""
    return value if value is not None and 0.0 < value < 1.0 else 0.0
