"""Scores added to tokens that would complete given sequences; bad words get minus infinity."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.errors import RequestError
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState
from drl.runtime.processors.ragged import last_tokens

Biases = tuple[tuple[tuple[int, ...], float], ...]


@dataclass(frozen=True)
class _Group:
    """Sequences of equal length, of two tokens or more.

    Attributes:
        beginnings: `[n, length - 1]` tokens that must come last in a row.
        columns: `[n]` where the sequences' last tokens stand in `SequenceBias._tokens`.
        biases: `[n]`.
    """

    beginnings: Int64
    columns: Int64
    biases: Float32


@dataclass(frozen=True)
class SequenceBias(BuiltInProcessor):
    """Adds a bias to the last token of each sequence where a row ends with the tokens before it.

    A sequence of one token is biased everywhere. Biases of the same token add up.

    Attributes:
        biases: Pairs (sequence, bias); of equal sequences the last one counts.

    Raises:
        RequestError: When called: a sequence has a token outside the vocabulary.
    """

    biases: Biases
    _tokens: Int64 = field(init=False, repr=False, compare=False)
    _always: Float32 = field(init=False, repr=False, compare=False)
    _groups: tuple[_Group, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        biases = dict(self.biases)
        tokens = sorted({sequence[-1] for sequence in biases})
        column = {token: place for place, token in enumerate(tokens)}
        always = np.zeros(len(tokens), np.float32)
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for sequence, bias in biases.items():
            if len(sequence) == 1:
                always[column[sequence[0]]] = bias
            else:
                by_length.setdefault(len(sequence), []).append(sequence)
        groups = tuple(
            _Group(
                np.array([sequence[:-1] for sequence in group], np.int64),
                np.array([column[sequence[-1]] for sequence in group], np.int64),
                np.array([biases[sequence] for sequence in group], np.float32),
            )
            for group in by_length.values()
        )
        object.__setattr__(self, "_tokens", np.array(tokens, np.int64))
        object.__setattr__(self, "_always", always)
        object.__setattr__(self, "_groups", groups)

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        self._check(scores.shape[1])
        # First the sum of the biases and then the score, as in transformers: it rounds otherwise.
        sums = np.tile(self._always, (len(scores), 1))
        for group in self._groups:
            rows, sequences = self._matches(group, state)
            # A row ends with one beginning of a length at most per token: no place comes twice.
            sums[rows, group.columns[sequences]] += group.biases[sequences]
        rows, columns = np.nonzero(sums)
        scores[rows, self._tokens[columns]] += sums[rows, columns]
        return scores

    def _matches(self, group: _Group, state: DecodingState) -> tuple[Int64, Int64]:
        """Rows, and sequences of the group whose beginnings the rows end with."""
        count = group.beginnings.shape[1]
        if count > state.tokens.shape[1]:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        ends = last_tokens(state.tokens, state.lengths, count)
        matches = ends[:, None, 0] == group.beginnings[:, 0]
        for place in range(1, count):
            matches &= ends[:, None, place] == group.beginnings[:, place]
        rows, sequences = np.nonzero(matches)
        return rows, sequences

    def _check(self, vocab_size: int) -> None:
        largest = int(self._tokens.max(initial=0))
        for group in self._groups:
            largest = max(largest, int(group.beginnings.max(initial=0)))
        if largest >= vocab_size:
            raise RequestError(
                f"sequence_bias or bad_words_ids has token id {largest}; "
                f"the vocabulary is 0 to {vocab_size - 1}"
            )


def bar_words(words: Sequence[Sequence[int]], ends: Sequence[int]) -> SequenceBias | None:
    """Bar the last token of each word where a row ends with the tokens before it.

    A word that is nothing but an end token is left out, as in transformers: generation could not
    end. None if no word is left.
    """
    barred = [tuple(word) for word in words if len(word) != 1 or word[0] not in ends]
    return SequenceBias(tuple((word, float("-inf")) for word in barred)) if barred else None
