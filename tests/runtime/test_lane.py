"""A lane's memory: what it holds while sequences run, and what it keeps when they are gone."""

from pathlib import Path

import numpy as np
import pytest

from drl.runtime import Engine
from drl.runtime.decoding.scratch import Scratch
from drl.runtime.lane import Lane
from tests.runtime.comparing import MODES, assert_idle, cache_bytes, hooked, random_prompts
from tests.runtime.toy import toy_engine

pytestmark = pytest.mark.usefixtures("ranking")


def scratch_bytes(lane: Lane) -> int:
    kept = vars(lane._selector).values()
    return sum(item._buffer.nbytes for item in kept if isinstance(item, Scratch))


def test_skipped_layers_own_no_memory(tmp_path: Path) -> None:
    with toy_engine(tmp_path) as engine:
        engine.generate(random_prompts(4), path="fast")
        engine.generate(random_prompts(4), path="full")
        fast, full = (lane.cache.nbytes for lane in engine._service.scheduler.lanes)
    assert full > 2 * fast > 0


def test_an_idle_lane_keeps_a_little_for_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=16)
    engine.generate(random_prompts(40), path="full")
    kept = cache_bytes(engine)
    assert kept > 0
    assert backend.released == []
    monkeypatch.setattr("drl.runtime.lane._KEPT_BYTES", kept - 1)
    engine.generate(random_prompts(16), path="full")
    assert cache_bytes(engine) < kept
    monkeypatch.setattr("drl.runtime.lane._KEPT_BYTES", 0)
    engine.generate(random_prompts(16), path="full")
    assert cache_bytes(engine) == 0
    assert backend.released[-1] == (2, 1)
    (lane,) = engine._service.scheduler.lanes
    assert scratch_bytes(lane) == 0
    assert lane._history._tokens.nbytes == 0


@pytest.mark.parametrize("mode", [mode for mode, each in MODES.items() if "num_beams" in each])
def test_beams_keep_nothing(tmp_path: Path, mode: str) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=16)
    engine.generate(random_prompts(20), path="full", repetition_penalty=1.2, **MODES[mode])
    (lane,) = engine._service.scheduler.lanes
    assert lane.cache.nbytes == 0
    assert scratch_bytes(lane) == 0
    assert backend.released == [(2, MODES[mode]["num_beams"])]
    assert_idle(engine)


def test_closing_frees_what_lanes_keep(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=8)
    engine.generate(random_prompts(8), repetition_penalty=1.2)
    assert cache_bytes(engine) > 0
    engine.close()
    assert cache_bytes(engine) == 0
    assert all(scratch_bytes(lane) == 0 for lane in engine._service.scheduler.lanes)
    assert backend.closed


def test_the_cache_grows_with_the_longest_row_and_shrinks_with_the_batch(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=16, max_target_length=200)
    backend.positions = np.resize(backend.positions, (256, backend.positions.shape[1]))
    capacities: list[int] = []

    def look(step: int) -> None:
        (lane,) = engine._service.scheduler.lanes
        capacities.append(lane.cache.capacity)
        assert lane.cache.slots <= lane.cache._allocated <= 16
        if lane.cache.slots * 4 <= 16 and lane.cache.slots < last[0]:
            assert lane.cache._allocated <= 2 * lane.cache.slots
        last[0] = lane.cache.slots

    last = [0]
    backend.before_step = look
    requests = [
        engine.request([5, 6], path="full", min_new_tokens=count, max_new_tokens=count)
        for count in (150, *[20] * 15)
    ]
    list(engine.run(requests))
    assert sorted(set(capacities)) == [64, 128, 200]


def test_a_longer_source_that_comes_and_goes_costs_memory_for_its_time_only(
    tmp_path: Path,
) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=2)
    kept: list[int] = []
    backend.before_step = lambda step: kept.append(engine._service.scheduler.lanes[0].cache.kept)
    for prompt in ([5] * 4, [5] * 40, [5] * 4):
        engine.generate([prompt], path="full", max_new_tokens=2)
    assert kept[0] == kept[-1] < max(kept) == 40


def test_each_request_is_named_once_however_many_rows_it_has(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=8)
    seen: list[tuple[int, int]] = []

    def look(step: int) -> None:
        (lane,) = engine._service.scheduler.lanes
        seen.append((len(lane.groups), len(lane.slots)))

    backend.before_step = look
    options = {"temperature": 1.0, "num_return_sequences": 4, "min_new_tokens": 5}
    (first, second) = engine.generate([[5], [6]], path="full", max_new_tokens=5, **options)
    assert set(seen) == {(2, 8)}
    assert first.timings.steps == second.timings.steps == 5


def test_rows_take_the_experts_they_ask_for_and_no_others(tmp_path: Path) -> None:
    engine: Engine
    engine, _ = hooked(tmp_path, max_batch_size=4)
    requests = [
        engine.request(prompt, return_experts=number % 2 == 1, path="full")
        for number, prompt in enumerate(random_prompts(8))
    ]
    for number, result in engine.run(requests):
        assert (result.experts is not None) == (number % 2 == 1)


def test_a_selector_that_never_chooses_is_an_error_and_not_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drl.runtime.decoding.TokenSelector.choose", lambda *_: None)
    engine, _ = hooked(tmp_path, max_batch_size=1)
    with pytest.raises(RuntimeError, match="whole rows did not suffice"):
        engine.generate([[5]], path="full")
