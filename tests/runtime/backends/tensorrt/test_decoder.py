"""What a decoder step reads from the host, on the host's side of its buffers."""

from pathlib import Path
from typing import Any

import numpy as np

from drl.runtime.backends.protocol import StepInputs
from drl.runtime.cache import KVCache
from tests.runtime.backends.tensorrt.fake_engines import Opened, open_fake

PATH = 0


def step(opened: Opened, new_lengths: list[int], new: int, **options: Any) -> StepInputs:
    """A step over so many sources, whose encoder states do not matter."""
    backend, manifest = opened.backend, opened.bundle.manifest
    rows = len(new_lengths)
    sources = np.full((rows, 4), 5, np.int64)
    encoding = backend.encode(sources, np.full(rows, 4, np.int32), np.ones(rows, np.float32))
    cache = KVCache(manifest.cache, manifest.paths[PATH].layers, rows, 16, rules=backend)
    cache.append(backend.bridge(encoding, PATH))
    cache.reserve(new)
    past_keys, past_values = cache.past()
    bias, cross_keys, cross_values = cache.cross()
    return StepInputs(
        path=PATH,
        tokens=np.arange(rows * new).reshape(rows, new) + 3,
        lengths=cache.lengths[:rows],
        new_lengths=np.array(new_lengths, np.int32),
        cross_bias=bias,
        cross_keys=cross_keys,
        cross_values=cross_values,
        past_keys=past_keys,
        past_values=past_values,
        **options,
    )


def filled(opened: Opened, inputs: StepInputs, padded: int) -> list[dict[str, list[Any]]]:
    """The host's side of every piece of a step, where it is filled."""
    decoder = opened.backend._decoders[PATH]
    found = []
    with opened.device.arrays.ordered():
        for bound in decoder.bind(inputs, padded):
            bound.fill(inputs)
            host = bound.buffers.inputs.host
            found.append(
                {name: host[name].tolist() for name in ("tokens", "lengths", "new_lengths")}
            )
    return found


def test_rows_that_nobody_owns_hold_a_token_at_the_first_place(tiny_engines: Path) -> None:
    opened = open_fake(tiny_engines)
    four = step(opened, [1, 1, 1, 1], 1)
    four.lengths[:] = [4, 5, 6, 7]
    assert filled(opened, four, 4)[0]["lengths"] == [4, 5, 6, 7]
    three = step(opened, [1, 1, 1], 1)
    three.lengths[:] = [1, 2, 3]
    (host,) = filled(opened, three, 4)
    assert host["lengths"] == [1, 2, 3, 0]  # and not what the four left there
    assert host["new_lengths"] == [1, 1, 1, 1]
    assert host["tokens"][:3] == [[3], [4], [5]]


def test_tokens_that_come_in_parts_go_on_where_the_part_before_ended(small_engines: Path) -> None:
    """Engines of three new tokens at a time; a row that has ended is padded behind its end."""
    opened = open_fake(small_engines)
    first, second, third = filled(opened, step(opened, [8, 2], 8), 2)
    assert [first["lengths"], second["lengths"], third["lengths"]] == [[0, 0], [3, 3], [6, 6]]
    assert first["new_lengths"] == [3, 2]
    assert second["new_lengths"] == [3, 1]
    assert third["new_lengths"] == [2, 1]
    assert third["tokens"] == [[9, 10], [17, 18]]
    assert second["tokens"] == [[6, 7, 8], [14, 15, 16]]


def test_the_same_memory_is_bound_once(tiny_engines: Path) -> None:
    opened = open_fake(tiny_engines)
    inputs = step(opened, [1, 1], 1)
    backend = opened.backend
    backend.step(inputs)
    with opened.device.arrays.ordered():
        bound = backend._pieces(inputs)
        assert backend._pieces(inputs) is bound
        assert backend._pieces(step(opened, [1, 1], 1)) is not bound
    backend.release(PATH, 1)
    assert not backend._bound


def test_outputs_stay_when_the_next_step_runs(tiny_engines: Path) -> None:
    opened = open_fake(tiny_engines)
    inputs = step(opened, [1, 1], 1, candidates=3, with_experts=True)
    outputs = opened.backend.step(inputs)
    assert outputs.top is not None
    arrays = [outputs.normalisers, outputs.top.values, outputs.top.ids, *outputs.experts.values()]
    before = [array.copy() for array in arrays]
    inputs.tokens[:] = 40
    inputs.lengths[:] = 1
    opened.backend.step(inputs)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
