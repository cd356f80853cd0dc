"""Bars against saying the same words twice, or those of the source."""

from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState
from drl.runtime.processors.ragged import last_tokens, places_of


@dataclass(frozen=True)
class NoRepeatNGram(BuiltInProcessor):
    """Bars every token that would complete a sequence of `size` tokens which the row has already.

    Start token and prefix belong to the row. Source: Paulus et al. 2017, "A Deep Reinforced Model
    for Abstractive Summarization", section 2.5.
    """

    size: int

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        return _bar(state.tokens, state, scores, self.size)


@dataclass(frozen=True)
class EncoderNoRepeatNGram(BuiltInProcessor):
    """Bars every token that would complete a sequence of `size` tokens which the source has."""

    size: int

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        return _bar(state.sources, state, scores, self.size)


def _bar(texts: Int64, state: DecodingState, scores: Float32, size: int) -> Float32:
    """Bar tokens that complete the ends of the rows to n-grams of `[R, n]` texts."""
    windows = texts.shape[1] - size + 1
    if windows < 1 or size - 1 > state.tokens.shape[1]:
        return scores
    completions = texts[:, size - 1 :]
    # What follows the end of a row itself is padding, which is never barred; nor does the end of
    # a row that is too short, which begins with padding, match anything else.
    matches = np.ones(completions.shape, bool)
    if size > 1:
        ends = last_tokens(state.tokens, state.lengths, size - 1)
        for place in range(size - 1):
            matches &= texts[:, place : place + windows] == ends[:, place, None]
    scores[places_of(completions, matches, scores.shape[1])] = -np.inf
    return scores
