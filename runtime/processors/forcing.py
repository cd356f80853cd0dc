"""Positions at which the token is given, whatever the model says.

The given token gets the score 0 and all others -inf.
"""

from dataclasses import dataclass, field

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.errors import RequestError
from drl.runtime.processors.protocol import DecodingState, OccasionalProcessor


@dataclass(frozen=True)
class ForcedBos(OccasionalProcessor):
    """Forces the token after the start token, unless a prefix gives it."""

    token: int

    def acts(self, state: DecodingState) -> bool:
        """See `OccasionalProcessor`."""
        return bool((state.lengths == 1).any())

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`; `RequestError` if the token is outside the vocabulary."""
        (rows,) = np.nonzero(state.lengths == 1)
        if rows.size:
            _check("forced_bos_token_id", self.token, scores)
            scores[rows] = -np.inf
            scores[rows, self.token] = 0.0
        return scores


@dataclass(frozen=True)
class ForcedEos(OccasionalProcessor):
    """Allows nothing but the given tokens at the last position before a row's maximum length."""

    tokens: tuple[int, ...]

    def acts(self, state: DecodingState) -> bool:
        """See `OccasionalProcessor`."""
        return bool((state.lengths == state.max_lengths - 1).any())

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`; `RequestError` if a token is outside the vocabulary."""
        (rows,) = np.nonzero(state.lengths == state.max_lengths - 1)
        if rows.size:
            _check("forced_eos_token_id", max(self.tokens), scores)
            scores[rows] = -np.inf
            scores[np.ix_(rows, np.array(self.tokens, np.int64))] = 0.0
        return scores


@dataclass(frozen=True)
class ForcedTokens(OccasionalProcessor):
    """Forces tokens at given positions; the start token has position 0.

    Attributes:
        pairs: Pairs (position, token); of equal positions the last one counts.
    """

    pairs: tuple[tuple[int, int], ...]
    _positions: Int64 = field(init=False, repr=False, compare=False)
    _tokens: Int64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = sorted(dict(self.pairs).items())
        object.__setattr__(self, "_positions", np.array([pair[0] for pair in pairs], np.int64))
        object.__setattr__(self, "_tokens", np.array([pair[1] for pair in pairs], np.int64))

    def acts(self, state: DecodingState) -> bool:
        """See `OccasionalProcessor`."""
        return bool((self._positions[self._places(state)] == state.lengths).any())

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`; `RequestError` if a token is outside the vocabulary."""
        places = self._places(state)
        (rows,) = np.nonzero(self._positions[places] == state.lengths)
        if rows.size:
            _check("forced_decoder_ids", int(self._tokens.max()), scores)
            scores[rows] = -np.inf
            scores[rows, self._tokens[places[rows]]] = 0.0
        return scores

    def _places(self, state: DecodingState) -> Int64:
        """`[R]`: of which pair the position is a row's, if it is any's."""
        last = len(self._positions) - 1
        places: Int64 = np.minimum(np.searchsorted(self._positions, state.lengths), last)
        return places


def _check(option: str, token: int, scores: Float32) -> None:
    if token >= scores.shape[1]:
        raise RequestError(
            f"{option} has token id {token}; the vocabulary is 0 to {scores.shape[1] - 1}"
        )
