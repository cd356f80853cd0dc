"""The KV cache against plain lists of slots and their rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.runtime.backends import CrossAttention, HostRules, MemoryRules
from drl.runtime.backends.cuda import CudaDevice
from drl.runtime.cache import KVCache
from drl.runtime.manifest import CacheInfo
from tests.runtime.backends.fake_cupy import FakeCupy

HEADS, WIDTH, LAYERS = 2, 3, 3
INFO = CacheInfo(LAYERS, HEADS, WIDTH, "float32")


class Rules(HostRules):
    """What a backend may ask for beside what is needed: bound memory, and more slots than used."""

    def __init__(self, device: bool, capacity: int | None = None, fewest: int = 1) -> None:
        super().__init__(np.float32)
        self.reads_behind = device
        if device:
            self.arrays = CudaDevice(FakeCupy(), 0).arrays
        self.capacity = capacity
        self.shrinks = capacity is None
        self.kept_multiple = 8 if capacity is None else 16
        self._fewest = fewest

    def bucket(self, slots: int, width: int) -> int:
        return max(slots, self._fewest)


def on_host(cache: KVCache, block: Any) -> np.ndarray:
    return cache._arrays.to_host(block)


def on_device(cross: CrossAttention, rules: MemoryRules) -> CrossAttention:
    def move(array: Any) -> Any:
        return rules.arrays.from_host(array, "a test")

    blocks = (tuple(map(move, blocks)) for blocks in (cross.keys, cross.values))
    return CrossAttention(move(cross.bias), cross.lengths, *blocks, rules.arrays)


def make_cross(lengths: list[int], layers: tuple[int, ...], padding: int = 0) -> CrossAttention:
    """Random keys and values; the padding holds numbers that must not be read."""
    random = np.random.default_rng(sum(lengths) + len(lengths))
    rows, kept = len(lengths), max(lengths) + padding
    bias = np.full((rows, kept), -1e4, np.float32)
    shapes = [(rows, HEADS, kept if i in layers else 0, WIDTH) for i in range(LAYERS)]
    keys, values = (
        tuple(random.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(2)
    )
    for row, length in enumerate(lengths):
        bias[row, :length] = -random.random(length)
    return CrossAttention(bias, np.array(lengths, np.int32), keys, values)


@dataclass
class Slot:
    """What the cache must hold for a slot; `past` has an array per block, for each of its rows."""

    bias: np.ndarray
    cross: list[np.ndarray]
    past: list[list[np.ndarray]]

    @property
    def length(self) -> int:
        return self.past[0][0].shape[1]


def slots_of(cross: CrossAttention, layers: tuple[int, ...], width: int) -> list[Slot]:
    return [
        Slot(
            cross.bias[slot, :length],
            [
                block[layer][slot, :, :length]
                for layer in layers
                for block in (cross.keys, cross.values)
            ],
            [
                [np.zeros((HEADS, 0, WIDTH), np.float32) for _ in layers for _ in range(2)]
                for _ in range(width)
            ],
        )
        for slot, length in enumerate(cross.lengths)
    ]


def write_step(cache: KVCache, slots: list[Slot], layers: tuple[int, ...], seed: int) -> None:
    """What a decoder step does: an entry per row at its own length."""
    random = np.random.default_rng(seed)
    cache.reserve(int(cache.lengths[: cache.rows].max()) + 1)
    keys, values = cache.past()
    blocks = [block[layer] for layer in layers for block in (keys, values)]
    for index, past in enumerate(past for slot in slots for past in slot.past):
        place = int(cache.lengths[index])
        for number, block in enumerate(blocks):
            entry = random.normal(size=(HEADS, WIDTH)).astype(np.float32)
            with cache._arrays.ordered():
                block[index, :, place : place + 1] = cache._arrays.from_host(entry[:, None], "")
            past[number] = np.concatenate([past[number], entry[:, None]], axis=1)
    cache.lengths[: cache.rows] += 1


def assert_holds(cache: KVCache, slots: list[Slot], layers: tuple[int, ...]) -> None:
    assert cache.slots == len(slots)
    assert cache.rows == len(slots) * cache.width
    keys, values = cache.past()
    bias, cross_keys, cross_values = cache.cross()
    for layer in range(LAYERS):
        shapes = {block[layer].shape for block in (keys, values)}
        cross_shapes = {block[layer].shape for block in (cross_keys, cross_values)}
        used = layer in layers
        assert shapes == {(cache.rows, HEADS, cache.capacity if used else 0, WIDTH)}
        assert cross_shapes == {(len(slots), HEADS, cache.kept if used else 0, WIDTH)}
    assert bias.shape == (len(slots), cache.kept)
    for block in (bias, *keys, *values, *cross_keys, *cross_values):
        assert block.flags.c_contiguous
    bias = on_host(cache, bias)
    keys, values, cross_keys, cross_values = (
        [on_host(cache, block) for block in blocks]
        for blocks in (keys, values, cross_keys, cross_values)
    )
    for block in (bias, *keys, *values, *cross_keys, *cross_values):
        assert np.isfinite(block).all()
    for index, slot in enumerate(slots):
        kept = len(slot.bias)
        np.testing.assert_array_equal(bias[index, :kept], slot.bias)
        assert (bias[index, kept:] == -1e4).all()
        blocks = [b[layer] for layer in layers for b in (cross_keys, cross_values)]
        for block, expected in zip(blocks, slot.cross, strict=True):
            np.testing.assert_array_equal(block[index, :, :kept], expected)
        blocks = [b[layer] for layer in layers for b in (keys, values)]
        for row, past in enumerate(slot.past, index * cache.width):
            assert cache.lengths[row] == slot.length
            for block, expected in zip(blocks, past, strict=True):
                np.testing.assert_array_equal(block[row, :, : slot.length], expected)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(1, 40), min_size=1, max_size=4)),
        st.tuples(st.just("step"), st.integers(1, 30)),
        st.tuples(st.just("copy"), st.integers(0, 2**16)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 11), min_size=1, max_size=6)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=16,
)


class Script:
    """A cache and what it must hold, changed together."""

    def __init__(self, layers: tuple[int, ...], width: int, rules: MemoryRules) -> None:
        self.layers = layers
        self.rules = rules
        self.cache = KVCache(INFO, layers, 12, 100, width, rules)
        self.slots: list[Slot] = []

    def append(self, lengths: list[int], number: int) -> None:
        if lengths := lengths[: 12 - len(self.slots)]:
            cross = make_cross(lengths, self.layers, padding=number % 3)
            self.cache.append(on_device(cross, self.rules))
            self.slots += slots_of(cross, self.layers, self.cache.width)

    def step(self, count: int, number: int) -> None:
        for turn in range(count if self.slots else 0):
            if max(slot.length for slot in self.slots) < 100:
                write_step(self.cache, self.slots, self.layers, seed=number * 100 + turn)

    def copy(self, choice: int, number: int) -> None:
        """Some rows go on from others of their slots, as beams do between two steps."""
        random, width = np.random.default_rng(choice), self.cache.width
        for index, slot in enumerate(self.slots):
            parents = random.integers(0, width, width).tolist()
            for row, parent in enumerate(parents):
                if parent != row and row not in parents:
                    self.cache.copy_rows([(index * width + parent, index * width + row)])
                    slot.past[row] = list(slot.past[parent])

    def remove(self, wanted: list[int], number: int) -> None:
        gone = sorted({slot for slot in wanted if slot < len(self.slots)})
        for source, target in self.cache.remove(gone):
            self.slots[target] = self.slots[source]
        del self.slots[self.cache.slots :]

    def clear(self, nothing: int, number: int) -> None:
        self.cache.clear()
        self.slots = []


@pytest.mark.parametrize(
    ("device", "capacity", "fewest"),
    [(False, None, 1), (True, None, 1), (True, 100, 5)],
    ids=["host", "device", "fixed"],
)
@settings(deadline=None)
@given(actions, st.sampled_from([(0,), (0, 2), (0, 1, 2)]), st.integers(1, 4))
def test_slots_keep_their_contents_through_every_change(
    device: bool,
    capacity: int | None,
    fewest: int,
    actions: list[tuple[str, Any]],
    layers: tuple[int, ...],
    width: int,
) -> None:
    script = Script(layers, width, Rules(device, capacity, fewest))
    for number, (action, argument) in enumerate(actions):
        getattr(script, action)(argument, number)
        assert_holds(script.cache, script.slots, layers)


def test_a_row_is_copied_only_where_it_differs() -> None:
    cache = KVCache(INFO, (0,), max_slots=1, max_capacity=64, width=3)
    cache.append(make_cross([3], (0,)))
    slots = slots_of(make_cross([3], (0,)), (0,), 3)
    write_step(cache, slots, (0,), seed=0)
    cache.copy_rows([(0, 1), (0, 2)])
    write_step(cache, slots, (0,), seed=1)
    keys, _ = cache.past()
    keys[0][2, :, 0] = 7.0  # where rows 1 and 2 are known to be equal
    cache.copy_rows([(1, 2)])
    assert (keys[0][2, :, 0] == 7.0).all()
    np.testing.assert_array_equal(keys[0][2, :, 1], keys[0][1, :, 1])


def test_memory_is_given_back_when_most_slots_are_free() -> None:
    cache = KVCache(INFO, (0, 1), max_slots=32, max_capacity=1000)
    cache.append(make_cross([8] * 32, (0, 1)))
    cache.reserve(1000)
    full = cache.nbytes
    cache.remove(list(range(8, 32)))
    assert cache.nbytes < full / 8
    cache.remove(list(range(1, 8)))
    assert cache.nbytes < full / 100


def test_removal_moves_no_more_slots_than_it_must() -> None:
    cache = KVCache(INFO, (0,), max_slots=8, max_capacity=64)
    cache.append(make_cross([3] * 6, (0,)))
    assert cache.remove([5]) == []
    assert cache.remove([1, 3, 4]) == [(2, 1)]
    assert cache.remove([0, 1]) == []
    assert cache.rows == 0


def test_memory_grows_with_the_rows_and_their_lengths() -> None:
    cache = KVCache(INFO, (0, 2), max_slots=32, max_capacity=1000)
    assert cache.nbytes == 0
    cache.append(make_cross([5], (0, 2)))
    one = cache.nbytes
    assert cache.capacity == 64
    assert cache.kept == 8
    assert one == 2 * 2 * HEADS * (64 + 8) * WIDTH * 4
    assert not cache.reserve(64)
    assert cache.reserve(65)
    assert cache.capacity == 128
    cache.append(make_cross([5, 5], (0, 2)))
    assert cache.nbytes == 4 * 2 * 2 * HEADS * (128 + 8) * WIDTH * 4
    cache.reserve(1000)
    assert cache.capacity == 1000
    cache.clear()
    assert cache.nbytes == 0


def test_short_sources_do_not_shrink_the_memory_of_a_long_one_until_half_is_free() -> None:
    cache = KVCache(INFO, (0,), max_slots=8, max_capacity=64)
    cache.append(make_cross([40], (0,)))
    assert cache.kept == 40
    cache.remove([0])
    cache.append(make_cross([30], (0,)))
    assert cache.kept == 40
    cache.remove([0])
    cache.append(make_cross([9], (0,)))
    assert cache.kept == 16


def test_more_slots_than_fit_are_a_mistake_of_the_caller() -> None:
    cache = KVCache(INFO, (0,), max_slots=2, max_capacity=64)
    with pytest.raises(ValueError, match="3 slots do not fit"):
        cache.append(make_cross([3] * 3, (0,)))


def test_a_backend_may_fix_the_number_of_positions() -> None:
    cache = KVCache(INFO, (0,), 8, 100, rules=Rules(False, capacity=80))
    cache.append(make_cross([3], (0,)))
    assert cache.capacity == 80
    assert cache.kept == 16
    assert not cache.reserve(80)
    with pytest.raises(ValueError, match="81 positions do not fit into a cache of 80"):
        cache.reserve(81)


@pytest.mark.parametrize("width", [1, 3])
def test_behind_the_rows_lies_memory_for_those_that_a_step_may_run_beside(width: int) -> None:
    class Doubling(Rules):
        def bucket(self, slots: int, width: int) -> int:
            return 1 << (slots - 1).bit_length()

    cache = KVCache(INFO, (0, 1), 5, 64, width, Doubling(False))
    for slots in range(1, 6):
        cache.append(make_cross([3], (0, 1)))
        run = cache._rules.bucket(slots, width)
        bias, _, cross_values = cache.cross()
        _, values = cache.past()  # those of the last layer come last
        for view, entries in ((values[1], run * width), (cross_values[1], run), (bias, run)):
            whole = view
            while whole.base is not None:
                whole = whole.base
            behind = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
            stride = view.strides[0]
            assert behind + entries * stride <= whole.nbytes
        assert np.isfinite(cache._memory).all()
        assert np.isfinite(cache._bias).all()


def test_a_cache_that_does_not_shrink_keeps_its_addresses() -> None:
    cache = KVCache(INFO, (0,), 32, 100, rules=Rules(False, capacity=100))
    cache.append(make_cross([8] * 32, (0,)))
    before = cache._memory, cache._cross, cache._bias
    cache.remove(list(range(1, 32)))
    cache.append(make_cross([8] * 20, (0,)))
    assert all(
        a is b for a, b in zip((cache._memory, cache._cross, cache._bias), before, strict=True)
    )


@pytest.mark.parametrize("width", [1, 2])
def test_what_a_sequence_leaves_behind_does_not_reach_the_next(width: int) -> None:
    """Where a step reads all positions: 0 * NaN is NaN, so none may be left in the memory."""
    layers = (0, 1)
    cache = KVCache(INFO, layers, 4, 64, width, Rules(True))
    cache.append(on_device(make_cross([3] * 3, layers), cache._rules))
    slots = slots_of(make_cross([3] * 3, layers), layers, width)
    write_step(cache, slots, layers, seed=0)
    for layer in layers:  # the first and the last slot overflow
        for blocks in cache.past():
            with cache._arrays.ordered():
                blocks[layer][:width] = np.nan
                blocks[layer][-width:] = np.inf
    cache.remove([0])  # the last moves into the gap
    cache.remove([0])
    assert cache.slots == 1
    assert_holds(cache, slots[1:2], layers)
    cache.append(on_device(make_cross([5, 2], layers), cache._rules))
    slots = [slots[1], *slots_of(make_cross([5, 2], layers), layers, width)]
    assert_holds(cache, slots, layers)


def test_a_slot_that_moves_leaves_nothing_of_the_one_that_was_there() -> None:
    cache = KVCache(INFO, (0,), 4, 64, rules=Rules(True))
    cache.append(on_device(make_cross([3, 3], (0,)), cache._rules))
    slots = slots_of(make_cross([3, 3], (0,)), (0,), 1)
    write_step(cache, slots, (0,), seed=0)
    for blocks in cache.past():
        with cache._arrays.ordered():
            blocks[0][:1] = np.nan
    cache.remove([0])
    assert_holds(cache, slots[1:], (0,))
