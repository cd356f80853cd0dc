"""The key/value memory of the sequences that take one path: a slot per sequence, in one block.

Rows lie without gaps from slot 0, so that a batch is a leading slice of every buffer and costs no
copy. Layers that the path skips have no memory.
"""

import numpy as np

from drl.runtime.arrays import Array, Float32, Int32
from drl.runtime.backends.protocol import CrossAttention
from drl.runtime.manifest import CacheInfo

# Longest kept-state dimensions are rounded up to this, so that sources of about the same length
# enter and leave without the cross-attention buffers being laid out again.
_KEPT_MULTIPLE = 8
_FIRST_CAPACITY = 64
_PADDING_BIAS = -1e4


class KVCache:
    """Self- and cross-attention keys and values of up to `max_rows` rows.

    Attributes:
        rows: How many slots are in use.
        capacity: Cache positions per row, C; it doubles up to `max_capacity` as rows grow.
        kept: Cross-attention states per row, K; the padding of shorter rows is biased away.
        lengths: `[slots]` int32, tokens in the cache, per row.
    """

    def __init__(
        self, info: CacheInfo, layers: tuple[int, ...], max_rows: int, max_capacity: int
    ) -> None:
        self._info = info
        self._layers = frozenset(layers)
        self._max_rows = max_rows
        self._max_capacity = max_capacity
        self._dtype = np.dtype(info.dtype)
        self.clear()

    def clear(self) -> None:
        """Drop all rows and give the memory back."""
        self.rows = self.capacity = self.kept = self._slots = 0
        self.lengths: Int32 = np.zeros(0, np.int32)
        self._kept_lengths: Int32 = np.zeros(0, np.int32)
        self._bias: Float32 = np.zeros((0, 0), np.float32)
        self._keys = self._blocks(0, 0)
        self._values = self._blocks(0, 0)
        self._cross_keys = self._blocks(0, 0)
        self._cross_values = self._blocks(0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        blocks = (*self._keys, *self._values, *self._cross_keys, *self._cross_values)
        return sum(block.nbytes for block in blocks)

    def past(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Views `[rows, N, C, h]` of the keys and the values of every decoder layer."""
        return self._views(self._keys), self._views(self._values)

    def cross(self) -> tuple[Float32, tuple[Array, ...], tuple[Array, ...]]:
        """Views of the bias `[rows, K]` and `[rows, N, K, h]` keys and values of every layer."""
        keys, values = self._views(self._cross_keys), self._views(self._cross_values)
        return self._bias[: self.rows], keys, values

    def append(self, cross: CrossAttention) -> None:
        """Add rows with an empty past behind the present ones."""
        old, new = self.rows, self.rows + len(cross.lengths)
        if new > self._max_rows:
            raise ValueError(f"{new} rows do not fit into a cache of {self._max_rows}")
        longest = max(int(cross.lengths.max()), int(self._kept_lengths[:old].max(initial=0)))
        self._lay_out(slots=new, kept=longest, capacity=1)
        self.lengths[old:new] = 0
        self._kept_lengths[old:new] = cross.lengths
        # The bridge pads to its own longest row. What it kept fits, but its padding may not.
        width = min(cross.bias.shape[1], self.kept)
        self._bias[old:new] = _PADDING_BIAS
        self._bias[old:new, :width] = cross.bias[:, :width]
        for layer in self._layers:
            for block, part in (
                (self._cross_keys[layer], cross.keys[layer]),
                (self._cross_values[layer], cross.values[layer]),
            ):
                block[old:new, :, :width] = part[:, :, :width]
                block[old:new, :, width:] = 0
        self.rows = new

    def reserve(self, capacity: int) -> bool:
        """Make room for `capacity` positions per row; say whether the buffers changed."""
        if capacity <= self.capacity:
            return False
        self._lay_out(slots=self.rows, kept=self.kept, capacity=capacity)
        return True

    def remove(self, rows: list[int]) -> list[tuple[int, int]]:
        """Free rows; move the last rows into the gaps. Returns the moves as (from, to)."""
        gone = set(rows)
        left = self.rows - len(gone)
        gaps = [row for row in sorted(gone) if row < left]
        movers = [row for row in range(left, self.rows) if row not in gone]
        moves = list(zip(movers, gaps, strict=True))
        for source, target in moves:
            self._move(source, target)
        self.rows = left
        return moves

    def _move(self, source: int, target: int) -> None:
        """Copy a row over another one, as far as it is filled."""
        length = self.lengths[source]
        for layer in self._layers:
            for block in (self._keys[layer], self._values[layer]):
                block[target, :, :length] = block[source, :, :length]
            for block in (self._cross_keys[layer], self._cross_values[layer]):
                block[target] = block[source]
        for vector in (self.lengths, self._kept_lengths, self._bias):
            vector[target] = vector[source]

    def _lay_out(self, slots: int, kept: int, capacity: int) -> None:
        """Bring the buffers to the needed shape, if they do not have it, and keep the rows."""
        if slots > self._slots or capacity > self.capacity:
            slots = self._grown(slots, self._slots, 1, self._max_rows)
            capacity = self._grown(capacity, self.capacity, _FIRST_CAPACITY, self._max_capacity)
            self._reallocate(slots, capacity)
        kept = -(-kept // _KEPT_MULTIPLE) * _KEPT_MULTIPLE
        # Shrink only by half or more: a copy for every long source that comes and goes is no gain.
        if self.kept // 2 < kept < self.kept:
            kept = self.kept
        if kept != self.kept or self._slots != len(self._bias):
            self._reallocate_cross(kept)

    @staticmethod
    def _grown(needed: int, present: int, first: int, limit: int) -> int:
        """The size to grow to: doubled, so that growing one by one copies little in total."""
        size = max(present, first)
        while size < needed:
            size *= 2
        return max(present, min(size, limit))

    def _reallocate(self, slots: int, capacity: int) -> None:
        filled = int(self.lengths[: self.rows].max(initial=0))

        def refill(old: tuple[Array, ...]) -> tuple[Array, ...]:
            new = self._blocks(slots, capacity)
            for layer in self._layers:
                new[layer][: self.rows, :, :filled] = old[layer][: self.rows, :, :filled]
            return new

        self._keys, self._values = refill(self._keys), refill(self._values)
        self.lengths = _enlarged(self.lengths, slots)
        self._kept_lengths = _enlarged(self._kept_lengths, slots)
        self._slots, self.capacity = slots, capacity

    def _reallocate_cross(self, kept: int) -> None:
        width = min(kept, self.kept)

        def refill(old: tuple[Array, ...]) -> tuple[Array, ...]:
            new = self._blocks(self._slots, kept)
            for layer in self._layers:
                new[layer][: self.rows, :, :width] = old[layer][: self.rows, :, :width]
            return new

        self._cross_keys, self._cross_values = refill(self._cross_keys), refill(self._cross_values)
        bias = np.full((self._slots, kept), _PADDING_BIAS, np.float32)
        bias[: self.rows, :width] = self._bias[: self.rows, :width]
        self._bias, self.kept = bias, kept

    def _blocks(self, slots: int, length: int) -> tuple[Array, ...]:
        """`[slots, N, length, h]` for every layer; length 0 where the path skips it.

        Zeroed: a masked position counts nothing only as long as it holds a finite number.
        """
        heads, width = self._info.kv_heads, self._info.head_dim
        return tuple(
            np.zeros((slots, heads, length if layer in self._layers else 0, width), self._dtype)
            for layer in range(self._info.decoder_layers)
        )

    def _views(self, blocks: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(block[: self.rows] for block in blocks)


def _enlarged(vector: Int32, size: int) -> Int32:
    new = np.zeros(size, np.int32)
    new[: len(vector)] = vector
    return new
