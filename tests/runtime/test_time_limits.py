"""`max_time` ends a request with what there is, wherever it is by then."""

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drl.runtime import Engine, GenerationConfig
from drl.runtime.decoding import sequence_group
from tests.runtime.comparing import (
    MODES,
    HookedBackend,
    assert_idle,
    assert_same,
    cache_bytes,
    hooked,
    random_prompts,
)

LONG = {"min_new_tokens": 40, "path": "full"}
STEP = 0.125  # seconds by the clock of these tests, which nothing but steps of the decoder moves


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def ticking(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Engine, HookedBackend]:
    """An engine whose every step takes `STEP`."""
    clock = Clock()
    engine, backend = hooked(folder, **options)

    def tick(step: int) -> None:
        clock.now += STEP

    backend.before_step = tick
    for module in ("engine", "scheduler", "decoding.sequence_group"):
        fake = SimpleNamespace(perf_counter=clock.perf_counter)
        monkeypatch.setattr(f"drl.runtime.{module}.time", fake)
    return engine, backend


@pytest.mark.parametrize("mode", MODES)
def test_the_step_after_the_limit_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    engine, _ = ticking(tmp_path, monkeypatch)
    options = {**LONG, **MODES[mode]}
    (expected,) = engine.generate(["ab c"], **{**options, "max_new_tokens": 5, "min_new_tokens": 5})
    for limit in (5 * STEP, 4.1 * STEP):
        (found,) = engine.generate(["ab c"], max_time=limit, **options)
        everything = [(found, expected)]
        everything += zip(found.alternatives, expected.alternatives, strict=True)
        for ours, theirs in everything:
            assert ours.finish_reason == "time"
            assert ours.tokens == theirs.tokens
            assert ours.score == theirs.score
        assert found.timings.total == 5 * STEP
        assert found.timings.steps == 5
    assert_idle(engine)
    assert cache_bytes(engine) == 0


def test_a_limit_that_is_not_reached_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = ticking(tmp_path, monkeypatch)
    expected = engine.generate(random_prompts(6))
    for ours, theirs in zip(
        engine.generate(random_prompts(6), max_time=1e9), expected, strict=True
    ):
        assert_same(ours, theirs)


def test_the_other_requests_of_a_batch_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = ticking(tmp_path, monkeypatch)
    prompts = random_prompts(4)
    expected = engine.generate(prompts, **LONG)
    backend.stepped_rows.clear()
    limits = (None, 3 * STEP, None, 6 * STEP)
    config = engine.configure(min_new_tokens=40)
    configs = [config.replace(max_time=limit) if limit else config for limit in limits]
    found = engine.generate(prompts, configs, path="full")
    for ours, theirs, limit in zip(found, expected, limits, strict=True):
        if limit is None:
            assert_same(ours, theirs)
        else:
            assert ours.finish_reason == "time"
            assert ours.tokens == theirs.tokens[: int(limit / STEP)]
    rows = [rows for _, rows in backend.stepped_rows]
    assert rows[:7] == [4, 4, 4, 3, 3, 3, 2]


def test_the_time_in_the_queue_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, backend = ticking(tmp_path, monkeypatch, max_batch_size=1)
    config = engine.configure(min_new_tokens=10, max_new_tokens=10)
    configs = [config, config.replace(max_time=4 * STEP), config]
    first, waiting, last = engine.generate(random_prompts(3), configs, path="full")
    assert waiting.finish_reason == "time"
    assert waiting.path == ""
    assert waiting.tokens == []
    assert first.finish_reason == last.finish_reason == "length"
    assert sum(backend.encoded_rows) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_limit_counts_from_the_call_for_all_of_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    engine, backend = ticking(tmp_path, monkeypatch, max_batch_size=2)
    prompts, build = random_prompts(25), engine._build

    def slow_build(*arguments: Any) -> Any:
        sequence_group.time.perf_counter.__self__.now += 6 * STEP  # type: ignore[attr-defined]
        return build(*arguments)

    monkeypatch.setattr(engine, "_build", slow_build)
    options = {**LONG, "min_new_tokens": 10, "max_new_tokens": 10, "max_time": 30 * STEP}
    if asynchronous:
        results = asyncio.run(engine.agenerate(prompts, **options))
    else:
        results = engine.generate(prompts, **options)
    assert len(backend.stepped_rows) == 24
    reasons = [result.finish_reason for result in results]
    if asynchronous:  # the thread may begin with the first prompt alone
        assert set(reasons) == {"length", "time"}
    else:
        assert reasons == ["length"] * 4 + ["time"] * 21
        assert [len(result.tokens) for result in results] == [10] * 4 + [4, 4] + [0] * 19
    assert_idle(engine)


def test_streams_have_limits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = ticking(tmp_path, monkeypatch)
    for mode in MODES.values():
        pieces = list(engine.stream("ab", max_time=7 * STEP, **LONG, **mode))
        finals = [piece.result for piece in pieces if piece.result]
        assert finals[0].timings.steps == 7
        for index, result in enumerate(finals):
            assert result.finish_reason == "time"
            assert result.text == "".join(piece.text for piece in pieces if piece.index == index)
    assert_idle(engine)


def test_a_reader_who_takes_long_uses_up_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = ticking(tmp_path, monkeypatch)
    stream = engine.stream([5, 6], max_time=10 * STEP, **LONG)
    next(stream)
    sequence_group.time.perf_counter.__self__.now += 99  # type: ignore[attr-defined]
    (last,) = list(stream)
    assert last.finish_reason == "time"


def test_by_the_real_clock_the_total_is_close_to_the_limit(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    backend.before_step = lambda step: time.sleep(0.02)
    started = time.perf_counter()
    results = engine.generate(random_prompts(40), max_time=0.3, **LONG)
    wall = time.perf_counter() - started
    assert 0.3 <= wall < 2.0
    assert {result.finish_reason for result in results} == {"time"}
    # The total ends with the last step before the limit; a busy machine may be late.
    assert all(0.15 <= result.timings.total < 2.0 for result in results if result.path)


def test_whichever_comes_first_ends_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = ticking(tmp_path, monkeypatch)
    cancel = threading.Event()
    tick = backend.before_step
    assert tick is not None

    def before(step: int) -> None:
        tick(step)
        if step == 2:
            cancel.set()

    backend.before_step = before
    config = GenerationConfig(min_new_tokens=40, max_time=9 * STEP)
    (found,) = engine.generate([[5, 6]], config, cancel=cancel)
    assert found.finish_reason == "cancelled"
    assert len(found.tokens) == 3
