"""What a logits processor is given and must return."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.processors.ragged import within

Lengths = TypeVar("Lengths", int, Int64)


@dataclass(frozen=True, eq=False)
class DecodingState:
    """The rows of one decoding step. A row is one hypothesis and knows nothing of the others.

    Rows of one call may belong to several requests, hence their different lengths.

    Attributes:
        tokens: `[R, L]` decoder tokens so far: start token, given prefix, generated tokens; padded
            on the right with -1.
        lengths: `[R]` number of tokens of each row.
        prompt_lengths: `[R]` how many of them were not generated: start token and prefix.
        max_lengths: `[R]` length at which generation ends, counted like `lengths`.
        sources: `[R, S]` tokens the encoder read, padded on the right with -1.
        source_lengths: `[R]` number of tokens of each source.
    """

    tokens: Int64
    lengths: Int64
    prompt_lengths: Int64
    max_lengths: Int64
    sources: Int64
    source_lengths: Int64


class LogitsProcessor(Protocol):
    """Changes the scores from which the next token of every row is chosen."""

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """Return the `[R, V]` scores to choose from.

        Args:
            state: The rows so far; its arrays must not be written to.
            scores: `[R, V]` logits, or log-probabilities under beam search. They may be changed in
                place and returned, or left alone and a new array of the same shape returned. A
                token with the score -inf is never chosen.
        """
        ...


class BuiltInProcessor:
    """Marks the processors of this package: their results need no check.

    They are frozen dataclasses that compare by value, so that rows of requests with equal options
    are processed together.
    """


class BarringProcessor(BuiltInProcessor, ABC):
    """Bars a few tokens, always the same ones, while a row has some length; changes nothing else.

    So the likeliest tokens of a row do for it, if they are as many more as it may bar.
    """

    @property
    @abstractmethod
    def barred(self) -> tuple[int, ...]:
        """The tokens; those outside the vocabulary cannot be chosen anyway."""

    @abstractmethod
    def span(self, prompt: Lengths) -> tuple[Lengths, Lengths]:
        """From which length of a row on they are barred, and from which on not any more.

        Args:
            prompt: How many of a row's tokens are not generated, of one row or of several.
        """

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        first, end = self.span(state.prompt_lengths)
        (rows,) = np.nonzero((first <= state.lengths) & (state.lengths < end))
        if rows.size:
            scores[np.ix_(rows, within(self.barred, scores.shape[1]))] = -np.inf
        return scores


class OccasionalProcessor(BuiltInProcessor, ABC):
    """Leaves most steps as they are."""

    @abstractmethod
    def acts(self, state: DecodingState) -> bool:
        """Whether it changes anything in this step."""
