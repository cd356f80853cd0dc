"""The key/value memory of the sequences that take one path: slots of common blocks.

A sequence has one slot and, as `width` says, one or more rows: a beam search keeps a row per beam.
Rows have self-attention keys and values of their own; the cross-attention ones, which depend on the
source alone, are stored once per slot. Slots lie without gaps from 0, so that a batch is a leading
slice of every buffer and costs no copy. Layers that the path skips have no memory.

Keys, values and biases lie in the memory of the backend's array library; how many tokens and states
a row has is known to the host.
"""

from collections.abc import Iterable

import numpy as np

from drl.runtime.arrays import BackendArray, Int32
from drl.runtime.backends.memory import HostRules, MemoryRules
from drl.runtime.backends.protocol import CrossAttention
from drl.runtime.manifest import CacheInfo

_FIRST_CAPACITY = 64
_PADDING_BIAS = -1e4
# Memory is given back once this share of the slots is in use, or less.
_IDLE_SHARE = 4


class KVCache:
    """Self- and cross-attention keys and values of up to `max_slots` sequences.

    Args:
        info: The shape of the cache.
        layers: Decoder layers on the path, one at least.
        max_slots: Most slots at a time.
        max_capacity: Most tokens of a row.
        width: Rows per slot.
        rules: What the backend asks of the memory; by default what one on the host does.

    Attributes:
        width: Rows per slot, W; row `r` belongs to slot `r // W`.
        slots: How many slots are in use.
        capacity: Cache positions per row, C; it doubles up to `max_capacity` as rows grow, unless
            the backend has fixed it.
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
        rules: MemoryRules | None = None,
    ) -> None:
        self.width = width
        self._info = info
        self._rules = HostRules(info.dtype) if rules is None else rules
        self._arrays = self._rules.arrays
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._max_slots = max_slots
        self._max_capacity = max_capacity
        self.clear()

    def clear(self) -> None:
        """Drop all slots and give the memory back."""
        self.slots = self.capacity = self.kept = self._allocated = 0
        self.lengths: Int32 = np.zeros(0, np.int32)
        # How many leading positions a row has in common with each row of its slot.
        self._common: Int32 = np.zeros((0, self.width), np.int32)
        self._kept_lengths: Int32 = np.zeros(0, np.int32)
        with self._arrays.ordered():
            self._bias = self._arrays.zeros((0, 0), np.float32, "nothing")
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

    def past(
        self, slots: slice = slice(None)
    ) -> tuple[tuple[BackendArray, ...], tuple[BackendArray, ...]]:
        """Views `[rows, N, C, h]` of the keys and values of every decoder layer, of some slots."""
        first, last, _ = slots.indices(self.slots)
        return self._views(self._memory, first * self.width, last * self.width)

    def cross(
        self, slots: slice = slice(None)
    ) -> tuple[BackendArray, tuple[BackendArray, ...], tuple[BackendArray, ...]]:
        """Views of the bias `[slots, K]` and `[slots, N, K, h]` keys and values of every layer."""
        first, last, _ = slots.indices(self.slots)
        return self._bias[first:last], *self._views(self._cross, first, last)

    def append(self, cross: CrossAttention) -> None:
        """Add slots, whose rows have an empty past, behind the present ones."""
        old, new = self.slots, self.slots + len(cross.lengths)
        if new > self._max_slots:
            raise ValueError(f"{new} slots do not fit into a cache of {self._max_slots}")
        longest = max(int(cross.lengths.max()), int(self._kept_lengths[:old].max(initial=0)))
        with self._arrays.ordered():
            self._lay_out(slots=new, kept=longest, capacity=1)
            self._copy_cross(cross, old, new)
            if self._rules.reads_behind:
                # An earlier owner may have left infinities or NaN, and 0 * NaN is NaN.
                self._memory[:, :, old * self.width : new * self.width] = 0
        self.lengths[old * self.width : new * self.width] = 0
        self._common[old * self.width : new * self.width] = 0
        self._kept_lengths[old:new] = cross.lengths
        self.slots = new

    def _copy_cross(self, cross: CrossAttention, old: int, new: int) -> None:
        """Fill the cross-attention blocks of the slots from `old` to `new`."""
        # The bridge pads to its own longest row. What it kept fits, but its padding may not.
        width = min(cross.bias.shape[1], self.kept)
        self._bias[old:new] = _PADDING_BIAS
        self._bias[old:new, :width] = cross.bias[:, :width]
        for layer, place in self._places.items():
            for part, source in enumerate((cross.keys[layer], cross.values[layer])):
                block = self._cross[part, place, old:new]
                block[:, :, :width] = source[:, :, :width]
                block[:, :, width:] = 0

    def reserve(self, capacity: int) -> bool:
        """Make room for `capacity` positions per row; say whether the buffers changed."""
        if capacity <= self.capacity:
            return False
        with self._arrays.ordered():
            self._lay_out(slots=self.slots, kept=self.kept, capacity=capacity)
        return True

    def copy_rows(self, moves: Iterable[tuple[int, int]]) -> None:
        """Make rows equal to others of their slots, which have as many tokens.

        Beams of one search differ in their last few tokens; only those are copied.

        Args:
            moves: Pairs of a row and the row that becomes its copy, one after the other.
        """
        with self._arrays.ordered():
            for source, target in moves:
                self._copy_row(source, target)

    def _copy_row(self, source: int, target: int) -> None:
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
        with self._arrays.ordered():
            for source, target in moves:
                self._move(source, target)
            self.slots = left
            if left and left * _IDLE_SHARE <= self._allocated and self._rules.shrinks:
                self._shrink()
        return moves

    def _move(self, source: int, target: int) -> None:
        """Copy a slot over another one, as far as it is filled."""
        old = slice(source * self.width, (source + 1) * self.width)
        new = slice(target * self.width, (target + 1) * self.width)
        length = int(self.lengths[old].max())
        self._memory[:, :, new, :, :length] = self._memory[:, :, old, :, :length]
        if self._rules.reads_behind:
            self._memory[:, :, new, :, length:] = 0
        self._cross[:, :, target] = self._cross[:, :, source]
        for rows in (self.lengths, self._common):
            rows[new] = rows[old]
        for vector in (self._kept_lengths, self._bias):
            vector[target] = vector[source]

    def _lay_out(self, slots: int, kept: int, capacity: int) -> None:
        """Bring the buffers to the needed shape, if they do not have it, and keep the rows."""
        if slots > self._allocated or capacity > self.capacity:
            slots = self._grown(slots, self._allocated, 1, self._max_slots)
            self._reallocate(slots, self._grown_capacity(capacity, self.capacity))
        multiple = self._rules.kept_multiple
        kept = -(-kept // multiple) * multiple
        # Shrink only by half or more: a copy for every long source that comes and goes is no gain.
        if self.kept // 2 < kept < self.kept:
            kept = self.kept
        if kept != self.kept or self._allocated != len(self._bias):
            self._reallocate_cross(kept)

    def _shrink(self) -> None:
        """Give back the memory of slots and positions that are no longer in use."""
        longest = int(self.lengths[: self.rows].max()) + 1
        slots = self._grown(2 * self.slots, 0, 1, self._max_slots)
        self._reallocate(slots, self._grown_capacity(longest, 0))
        self._reallocate_cross(self.kept)

    def _grown_capacity(self, needed: int, present: int) -> int:
        """The positions to grow to: the backend's, if it has a fixed number of them."""
        fixed = self._rules.capacity
        if fixed is None:
            return self._grown(needed, present, _FIRST_CAPACITY, self._max_capacity)
        if needed > fixed:
            raise ValueError(f"{needed} positions do not fit into a cache of {fixed}")
        return fixed

    @staticmethod
    def _grown(needed: int, present: int, first: int, limit: int) -> int:
        """The size to grow to: doubled, so that growing one by one copies little in total."""
        size = max(present, first)
        while size < needed:
            size *= 2
        return max(present, min(size, limit))

    def _reallocate(self, slots: int, capacity: int) -> None:
        """Lay keys and values out anew, for what a step over so many slots runs."""
        slots = self._rules.bucket(slots, self.width)
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
        shape = self._allocated, kept
        bias = self._arrays.full(shape, _PADDING_BIAS, np.float32, "cross-attention biases")
        bias[:slots, :width] = self._bias[:slots, :width]
        self._cross, self._bias, self.kept = cross, bias, kept

    def _block(self, entries: int, length: int) -> BackendArray:
        """Keys and values of the layers on the path, `[2, layers, entries, N, length, row_width]`.

        Zeroed: a masked position counts nothing only as long as it holds a finite number.
        """
        heads, width = self._info.kv_heads, self._info.row_width
        shape = 2, len(self._places), entries, heads, length, width
        purpose = f"keys and values of {entries} sequences with {length} positions"
        return self._arrays.zeros(shape, self._rules.cache_dtype, purpose)

    def _views(
        self, block: BackendArray, first: int, last: int
    ) -> tuple[tuple[BackendArray, ...], tuple[BackendArray, ...]]:
        """Entries of the keys and of the values of every layer; length 0 where it is skipped."""
        nothing = block[0, 0, first:last, :, :0]

        def of(part: int) -> tuple[BackendArray, ...]:
            return tuple(
                block[part, self._places[layer], first:last] if layer in self._places else nothing
                for layer in range(self._info.decoder_layers)
            )

        return of(0), of(1)


def _resized(vector: Int32, used: int, size: int) -> Int32:
    new = np.zeros((size, *vector.shape[1:]), np.int32)
    new[:used] = vector[:used]
    return new
