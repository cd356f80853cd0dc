"""The key/value memory of the sequences that take one path: slots of common blocks.

A sequence has one slot and, as `width` says, one or more rows: a beam search keeps a row per beam.
Rows have self-attention keys and values of their own; the cross-attention ones, which depend on the
source alone, are stored once per slot. Slots lie without gaps from 0, so that a batch is a leading
slice of every buffer and costs no copy. Layers that the path skips have no memory.
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
# Memory is given back once this share of the slots is in use, or less.
_IDLE_SHARE = 4


class KVCache:
    """Self- and cross-attention keys and values of up to `max_slots` sequences.

    Attributes:
        width: Rows per slot, W; row `r` belongs to slot `r // W`.
        slots: How many slots are in use.
        capacity: Cache positions per row, C; it doubles up to `max_capacity` as rows grow.
        kept: Cross-attention states per slot, K; the padding of shorter ones is biased away.
        lengths: `[rows and more]` int32, tokens in the cache, per row.
    """

    def __init__(
        self,
        info: CacheInfo,
        layers: tuple[int, ...],
        max_slots: int,
        max_capacity: int,
        width: int = 1,
    ) -> None:
        self.width = width
        self._info = info
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._max_slots = max_slots
        self._max_capacity = max_capacity
        self._dtype = np.dtype(info.dtype)
        self.clear()

    def clear(self) -> None:
        """Drop all slots and give the memory back."""
        self.slots = self.capacity = self.kept = self._allocated = 0
        self.lengths: Int32 = np.zeros(0, np.int32)
        # How many leading positions a row has in common with each row of its slot.
        self._common: Int32 = np.zeros((0, self.width), np.int32)
        self._kept_lengths: Int32 = np.zeros(0, np.int32)
        self._bias: Float32 = np.zeros((0, 0), np.float32)
        self._memory = self._block(0, 0)
        self._cross = self._block(0, 0)

    @property
    def rows(self) -> int:
        """How many rows are in use, B."""
        return self.slots * self.width

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self._memory.nbytes + self._cross.nbytes

    def past(self, slots: slice = slice(None)) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Views `[rows, N, C, h]` of the keys and values of every decoder layer, of some slots."""
        first, last, _ = slots.indices(self.slots)
        return self._views(self._memory, first * self.width, last * self.width)

    def cross(
        self, slots: slice = slice(None)
    ) -> tuple[Float32, tuple[Array, ...], tuple[Array, ...]]:
        """Views of the bias `[slots, K]` and `[slots, N, K, h]` keys and values of every layer."""
        first, last, _ = slots.indices(self.slots)
        return self._bias[first:last], *self._views(self._cross, first, last)

    def append(self, cross: CrossAttention) -> None:
        """Add slots, whose rows have an empty past, behind the present ones."""
        old, new = self.slots, self.slots + len(cross.lengths)
        if new > self._max_slots:
            raise ValueError(f"{new} slots do not fit into a cache of {self._max_slots}")
        longest = max(int(cross.lengths.max()), int(self._kept_lengths[:old].max(initial=0)))
        self._lay_out(slots=new, kept=longest, capacity=1)
        self.lengths[old * self.width : new * self.width] = 0
        self._common[old * self.width : new * self.width] = 0
        self._kept_lengths[old:new] = cross.lengths
        # The bridge pads to its own longest row. What it kept fits, but its padding may not.
        width = min(cross.bias.shape[1], self.kept)
        self._bias[old:new] = _PADDING_BIAS
        self._bias[old:new, :width] = cross.bias[:, :width]
        for layer, place in self._places.items():
            for part, source in enumerate((cross.keys[layer], cross.values[layer])):
                block = self._cross[part, place, old:new]
                block[:, :, :width] = source[:, :, :width]
                block[:, :, width:] = 0
        self.slots = new

    def reserve(self, capacity: int) -> bool:
        """Make room for `capacity` positions per row; say whether the buffers changed."""
        if capacity <= self.capacity:
            return False
        self._lay_out(slots=self.slots, kept=self.kept, capacity=capacity)
        return True

    def copy_row(self, source: int, target: int) -> None:
        """Make a row equal to another of its slot, which has as many tokens.

        Beams of one search differ in their last few tokens; only those are copied.
        """
        first = source - source % self.width
        own, other = source - first, target - first
        start, end = int(self._common[target, own]), int(self.lengths[source])
        self._memory[:, :, target, :, start:end] = self._memory[:, :, source, :, start:end]
        group = self._common[first : first + self.width]
        group[other] = group[own]
        group[:, other] = group[:, own]
        group[own, other] = group[other, own] = group[own, own] = group[other, other] = end

    def remove(self, slots: list[int]) -> list[tuple[int, int]]:
        """Free slots; move the last ones into the gaps. Returns the moves as (from, to)."""
        gone = set(slots)
        left = self.slots - len(gone)
        gaps = [slot for slot in sorted(gone) if slot < left]
        movers = [slot for slot in range(left, self.slots) if slot not in gone]
        moves = list(zip(movers, gaps, strict=True))
        for source, target in moves:
            self._move(source, target)
        self.slots = left
        if left and left * _IDLE_SHARE <= self._allocated:
            self._shrink()
        return moves

    def _move(self, source: int, target: int) -> None:
        """Copy a slot over another one, as far as it is filled."""
        old = slice(source * self.width, (source + 1) * self.width)
        new = slice(target * self.width, (target + 1) * self.width)
        length = int(self.lengths[old].max())
        self._memory[:, :, new, :, :length] = self._memory[:, :, old, :, :length]
        self._cross[:, :, target] = self._cross[:, :, source]
        for rows in (self.lengths, self._common):
            rows[new] = rows[old]
        for vector in (self._kept_lengths, self._bias):
            vector[target] = vector[source]

    def _lay_out(self, slots: int, kept: int, capacity: int) -> None:
        """Bring the buffers to the needed shape, if they do not have it, and keep the rows."""
        if slots > self._allocated or capacity > self.capacity:
            slots = self._grown(slots, self._allocated, 1, self._max_slots)
            capacity = self._grown(capacity, self.capacity, _FIRST_CAPACITY, self._max_capacity)
            self._reallocate(slots, capacity)
        kept = -(-kept // _KEPT_MULTIPLE) * _KEPT_MULTIPLE
        # Shrink only by half or more: a copy for every long source that comes and goes is no gain.
        if self.kept // 2 < kept < self.kept:
            kept = self.kept
        if kept != self.kept or self._allocated != len(self._bias):
            self._reallocate_cross(kept)

    def _shrink(self) -> None:
        """Give back the memory of slots and positions that are no longer in use."""
        longest = int(self.lengths[: self.rows].max()) + 1
        capacity = self._grown(longest, 0, _FIRST_CAPACITY, self._max_capacity)
        self._reallocate(self._grown(2 * self.slots, 0, 1, self._max_slots), capacity)
        self._reallocate_cross(self.kept)

    @staticmethod
    def _grown(needed: int, present: int, first: int, limit: int) -> int:
        """The size to grow to: doubled, so that growing one by one copies little in total."""
        size = max(present, first)
        while size < needed:
            size *= 2
        return max(present, min(size, limit))

    def _reallocate(self, slots: int, capacity: int) -> None:
        rows, filled = self.rows, int(self.lengths[: self.rows].max(initial=0))
        memory = self._block(slots * self.width, capacity)
        memory[:, :, :rows, :, :filled] = self._memory[:, :, :rows, :, :filled]
        self._memory = memory
        self.lengths = _resized(self.lengths, rows, slots * self.width)
        self._common = _resized(self._common, rows, slots * self.width)
        self._kept_lengths = _resized(self._kept_lengths, self.slots, slots)
        self._allocated, self.capacity = slots, capacity

    def _reallocate_cross(self, kept: int) -> None:
        slots, width = self.slots, min(kept, self.kept)
        cross = self._block(self._allocated, kept)
        cross[:, :, :slots, :, :width] = self._cross[:, :, :slots, :, :width]
        bias = np.full((self._allocated, kept), _PADDING_BIAS, np.float32)
        bias[:slots, :width] = self._bias[:slots, :width]
        self._cross, self._bias, self.kept = cross, bias, kept

    def _block(self, entries: int, length: int) -> Array:
        """Keys and values of the layers on the path, `[2, layers, entries, N, length, h]`.

        Zeroed: a masked position counts nothing only as long as it holds a finite number.
        """
        heads, width = self._info.kv_heads, self._info.head_dim
        return np.zeros((2, len(self._places), entries, heads, length, width), self._dtype)

    def _views(
        self, block: Array, first: int, last: int
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Entries of the keys and of the values of every layer; length 0 where it is skipped."""
        nothing = np.zeros((last - first, *block.shape[3:4], 0, *block.shape[5:]), self._dtype)

        def of(part: int) -> tuple[Array, ...]:
            return tuple(
                block[part, self._places[layer], first:last] if layer in self._places else nothing
                for layer in range(self._info.decoder_layers)
            )

        return of(0), of(1)


def _resized(vector: Int32, used: int, size: int) -> Int32:
    new = np.zeros((size, *vector.shape[1:]), np.int32)
    new[:used] = vector[:used]
    return new
