"""What a logits processor is given and must return."""

from dataclasses import dataclass
from typing import Protocol

from drl.runtime.arrays import Float32, Int64


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
