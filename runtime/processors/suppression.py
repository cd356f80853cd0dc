"""Tokens that are barred everywhere, or as the first token."""

from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState
from drl.runtime.processors.ragged import within


@dataclass(frozen=True)
class SuppressTokens(BuiltInProcessor):
    """Bars tokens at every position."""

    tokens: tuple[int, ...]

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        scores[:, within(self.tokens, scores.shape[1])] = -np.inf
        return scores


@dataclass(frozen=True)
class SuppressAtBegin(BuiltInProcessor):
    """Bars tokens as the first that is free: after the prompt, or after a forced first token.

    Attributes:
        tokens: The tokens to bar.
        after_forced: A first token is forced where the prompt is nothing but the start token.
    """

    tokens: tuple[int, ...]
    after_forced: bool

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        begins = state.prompt_lengths
        if self.after_forced:
            begins = begins + (begins <= 1)
        (rows,) = np.nonzero(state.lengths == begins)
        if rows.size:
            scores[np.ix_(rows, within(self.tokens, scores.shape[1]))] = -np.inf
        return scores
