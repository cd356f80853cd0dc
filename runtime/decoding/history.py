"""The tokens of all rows of a lane, side by side, as logits processors read them."""

from collections.abc import Sequence

import numpy as np

from drl.runtime.arrays import Int64

_FIRST_CAPACITY = 32
_NOTHING = -1


class TokenHistory:
    """What the decoder of each row has been given: start token, prefix, generated tokens.

    Attributes:
        rows: How many rows are in use; they lie without gaps from 0.
        lengths: `[rows and more]` int64, tokens per row.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop all rows and give the memory back."""
        self.rows = 0
        self.lengths: Int64 = np.zeros(0, np.int64)
        self._longest = 0
        self._tokens: Int64 = np.zeros((0, 0), np.int64)

    @property
    def tokens(self) -> Int64:
        """A view `[rows, L]` of the tokens, right-padded with -1 to the longest row."""
        return self._tokens[: self.rows, : self._longest]

    def append(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add a row for each list of tokens."""
        old, new = self.rows, self.rows + len(prompts)
        self._reserve(new, max(len(prompt) for prompt in prompts))
        self._tokens[old:new] = _NOTHING
        for row, prompt in enumerate(prompts, old):
            self._tokens[row, : len(prompt)] = prompt
            self.lengths[row] = len(prompt)
        self.rows = new
        self._measure()

    def push(self, tokens: Int64) -> None:
        """Add a token to each row."""
        self._reserve(self.rows, self._longest + 1)
        lengths = self.lengths[: self.rows]
        self._tokens[np.arange(self.rows), lengths] = tokens
        lengths += 1
        self._longest += 1

    def copy(self, source: int, target: int) -> None:
        """Make a row equal to another."""
        self._tokens[target] = self._tokens[source]
        if self.lengths[target] != self.lengths[source]:
            self.lengths[target] = self.lengths[source]
            self._measure()

    def truncate(self, rows: int) -> None:
        """Keep the first rows."""
        self.rows = rows
        self._measure()

    def _measure(self) -> None:
        """Note the length of the longest row, which every step asks for."""
        self._longest = int(self.lengths[: self.rows].max(initial=0))

    def _reserve(self, rows: int, length: int) -> None:
        slots, capacity = self._tokens.shape
        if rows <= slots and length <= capacity:
            return
        shape = max(slots, 2 * rows), max(capacity, 2 * length, _FIRST_CAPACITY)
        tokens = np.full(shape, _NOTHING, np.int64)
        tokens[:slots, :capacity] = self._tokens
        self._tokens = tokens
        lengths = np.zeros(shape[0], np.int64)
        lengths[:slots] = self.lengths
        self.lengths = lengths
