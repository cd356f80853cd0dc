"""The KV cache against a plain list of rows."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.runtime.backends import CrossAttention
from drl.runtime.cache import KVCache
from drl.runtime.manifest import CacheInfo

HEADS, WIDTH, LAYERS = 2, 3, 3
INFO = CacheInfo(LAYERS, HEADS, WIDTH, "float32")


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
class Row:
    """What the cache must hold for a row."""

    bias: np.ndarray
    cross: list[np.ndarray]
    past: list[np.ndarray]


def rows_of(cross: CrossAttention, layers: tuple[int, ...]) -> list[Row]:
    return [
        Row(
            cross.bias[row, :length],
            [
                block[layer][row, :, :length]
                for layer in layers
                for block in (cross.keys, cross.values)
            ],
            [np.zeros((HEADS, 0, WIDTH), np.float32) for _ in layers for _ in range(2)],
        )
        for row, length in enumerate(cross.lengths)
    ]


def write_step(cache: KVCache, rows: list[Row], layers: tuple[int, ...], seed: int) -> None:
    """What a decoder step does: an entry per row at its own length."""
    random = np.random.default_rng(seed)
    cache.reserve(int(cache.lengths[: cache.rows].max()) + 1)
    keys, values = cache.past()
    for index, row in enumerate(rows):
        place = cache.lengths[index]
        for number, block in enumerate([b[layer] for layer in layers for b in (keys, values)]):
            entry = random.normal(size=(HEADS, WIDTH)).astype(np.float32)
            block[index, :, place] = entry
            row.past[number] = np.concatenate([row.past[number], entry[:, None]], axis=1)
    cache.lengths[: cache.rows] += 1


def assert_holds(cache: KVCache, rows: list[Row], layers: tuple[int, ...]) -> None:
    assert cache.rows == len(rows)
    keys, values = cache.past()
    bias, cross_keys, cross_values = cache.cross()
    for layer in range(LAYERS):
        shapes = {block[layer].shape for block in (keys, values)}
        cross_shapes = {block[layer].shape for block in (cross_keys, cross_values)}
        used = layer in layers
        assert shapes == {(len(rows), HEADS, cache.capacity if used else 0, WIDTH)}
        assert cross_shapes == {(len(rows), HEADS, cache.kept if used else 0, WIDTH)}
    assert bias.shape == (len(rows), cache.kept)
    for block in (bias, *keys, *values, *cross_keys, *cross_values):
        assert block.flags.c_contiguous
        assert np.isfinite(block).all()
    for index, row in enumerate(rows):
        kept = len(row.bias)
        np.testing.assert_array_equal(bias[index, :kept], row.bias)
        assert (bias[index, kept:] == -1e4).all()
        blocks = [b[layer] for layer in layers for b in (cross_keys, cross_values)]
        for block, expected in zip(blocks, row.cross, strict=True):
            np.testing.assert_array_equal(block[index, :, :kept], expected)
        blocks = [b[layer] for layer in layers for b in (keys, values)]
        for block, expected in zip(blocks, row.past, strict=True):
            length = expected.shape[1]
            assert cache.lengths[index] == length
            np.testing.assert_array_equal(block[index, :, :length], expected)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(1, 40), min_size=1, max_size=4)),
        st.tuples(st.just("step"), st.integers(1, 30)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 11), min_size=1, max_size=6)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(actions, st.sampled_from([(0,), (0, 2), (0, 1, 2)]))
def test_rows_keep_their_contents_through_every_change(
    script: list[tuple[str, object]], layers: tuple[int, ...]
) -> None:
    cache = KVCache(INFO, layers, max_rows=12, max_capacity=100)
    rows: list[Row] = []
    for number, (action, argument) in enumerate(script):
        if action == "append":
            assert isinstance(argument, list)
            lengths = argument[: 12 - len(rows)]
            if lengths:
                cross = make_cross(lengths, layers, padding=number % 3)
                cache.append(cross)
                rows += rows_of(cross, layers)
        elif action == "step" and rows:
            assert isinstance(argument, int)
            for turn in range(argument):
                if max(row.past[0].shape[1] for row in rows) < 100:
                    write_step(cache, rows, layers, seed=number * 100 + turn)
        elif action == "remove":
            assert isinstance(argument, list)
            gone = sorted({row for row in argument if row < len(rows)})
            moves = cache.remove(gone)
            for source, target in moves:
                rows[target] = rows[source]
            del rows[cache.rows :]
        elif action == "clear":
            cache.clear()
            rows = []
        assert_holds(cache, rows, layers)


def test_removal_moves_no_more_rows_than_it_must() -> None:
    cache = KVCache(INFO, (0,), max_rows=8, max_capacity=64)
    cache.append(make_cross([3] * 6, (0,)))
    assert cache.remove([5]) == []
    assert cache.remove([1, 3, 4]) == [(2, 1)]
    assert cache.remove([0, 1]) == []
    assert cache.rows == 0


def test_memory_grows_with_the_rows_and_their_lengths() -> None:
    cache = KVCache(INFO, (0, 2), max_rows=32, max_capacity=1000)
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
    cache = KVCache(INFO, (0,), max_rows=8, max_capacity=64)
    cache.append(make_cross([40], (0,)))
    assert cache.kept == 40
    cache.remove([0])
    cache.append(make_cross([30], (0,)))
    assert cache.kept == 40
    cache.remove([0])
    cache.append(make_cross([9], (0,)))
    assert cache.kept == 16


def test_more_rows_than_fit_are_a_mistake_of_the_caller() -> None:
    cache = KVCache(INFO, (0,), max_rows=2, max_capacity=64)
    with pytest.raises(ValueError, match="3 rows do not fit"):
        cache.append(make_cross([3] * 3, (0,)))
