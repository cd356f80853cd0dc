"""Engines and event loops: batches across tasks and threads, and a loop that never waits."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import Engine, GenerationResult, Piece, RequestError
from tests.runtime.comparing import assert_idle, assert_same, hooked, random_prompts
from tests.runtime.toy import toy_engine

LONG: dict[str, Any] = {"min_new_tokens": 40, "path": "full"}


async def largest_gap(work: Coroutine[Any, Any, Any], gaps: list[float]) -> Any:
    """Run something while a task ticks; append the longest time without a tick."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.002)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        return await work
    finally:
        await asyncio.sleep(0.004)  # or the end of the work would not show
        ticker.cancel()
        gaps.append(longest)


async def collect(engine: Engine, prompt: Any, **options: Any) -> list[Piece]:
    return [piece async for piece in engine.astream(prompt, **options)]


def test_many_tasks_share_batches(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=25)
    backend.before_step = lambda step: time.sleep(0.001)
    prompts = random_prompts(50)
    options: dict[str, Any] = {"path": "full", "min_new_tokens": 20, "max_new_tokens": 20}
    expected = engine.generate(prompts, **options)
    backend.stepped_rows.clear()

    async def all_at_once() -> list[list[GenerationResult]]:
        return await asyncio.gather(*(engine.agenerate([p], **options) for p in prompts))

    found = asyncio.run(all_at_once())
    for (ours,), theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    assert len(backend.stepped_rows) < 4 * 20  # and not 50 * 20
    assert_idle(engine)


def test_a_step_does_not_block_the_loop(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    backend.before_step = lambda step: time.sleep(0.4)  # whoever waited for a step would show it
    gaps: list[float] = []

    async def use() -> None:
        first = asyncio.create_task(collect(engine, "ab", max_new_tokens=4, min_new_tokens=4))
        second = asyncio.create_task(engine.agenerate(["cd"] * 6, max_new_tokens=2))
        await asyncio.sleep(0.5)
        second.cancel()  # in the middle of a step
        left = engine.astream("xy", min_new_tokens=40)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(anext(left), timeout=0.1)
        await left.aclose()  # type: ignore[attr-defined]
        with pytest.raises(RequestError):
            await engine.agenerate(["ab"], num_beams=0)
        await first

    asyncio.run(largest_gap(use(), gaps))
    assert gaps[0] < 0.3
    assert_idle(engine)


def test_long_lists_and_texts_do_not_block_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = toy_engine(tmp_path)
    gaps: list[float] = []
    begin, text = engine._begin, "drl.runtime.decoding.sequence.Sequence.whole_text"

    def slow_begin(*arguments: Any) -> Any:
        time.sleep(0.04)
        return begin(*arguments)

    def slow_text(sequence: Any) -> str:
        time.sleep(0.04)
        return "text"

    monkeypatch.setattr(engine, "_begin", slow_begin)
    monkeypatch.setattr(text, slow_text)
    (*_, last) = asyncio.run(largest_gap(engine.agenerate(["ab"] * 12, max_new_tokens=1), gaps))
    assert last.text == "text"
    assert gaps[0] < 0.3


def test_a_long_list_is_queued_a_little_at_a_time(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=4)
    waiting: list[int] = []
    backend.before_step = lambda step: waiting.append(engine._service.scheduler.waiting)
    found = asyncio.run(engine.agenerate(random_prompts(100), path="fast", max_new_tokens=2))
    assert len(found) == 100
    assert max(waiting) <= 8  # every step looks at each


def test_two_loops_in_two_threads(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, max_batch_size=8)
    prompts = random_prompts(24)
    expected = engine.generate(prompts)
    found: dict[int, GenerationResult] = {}

    async def use(part: int) -> None:
        async def one(index: int) -> None:
            (found[index],) = await engine.agenerate([prompts[index]])

        await asyncio.gather(*(one(index) for index in range(part, 24, 2)))

    threads = [threading.Thread(target=lambda p=p: asyncio.run(use(p))) for p in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for index, result in enumerate(expected):
        assert_same(found[index], result)
    assert_idle(engine)


def test_a_synchronous_call_finishes_while_tasks_go_on(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=8)
    backend.before_step = lambda step: time.sleep(0.002)
    (expected,) = engine.generate(["ab"])
    ended: list[bool] = []

    async def use() -> None:
        async def load() -> None:
            while not ended:
                await engine.agenerate([[5, 6]], max_new_tokens=20, min_new_tokens=20)

        tasks = [asyncio.create_task(load()) for _ in range(4)]
        results = await asyncio.wait_for(asyncio.to_thread(engine.generate, ["ab"] * 3), 20)
        assert not any(task.done() for task in tasks)
        ended.append(True)
        await asyncio.gather(*tasks)
        for result in results:
            assert_same(result, expected)

    asyncio.run(use())
    assert_idle(engine)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_meanwhile_is_noticed(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, tokenizer=False)  # a piece for each token
    backend.before_step = lambda step: time.sleep(0.005)
    loop = asyncio.new_event_loop()
    task = loop.create_task(engine.agenerate([[5, 6]], max_new_tokens=10, path="full"))
    stream = engine.astream([7], **LONG)
    loop.run_until_complete(anext(stream))
    loop.close()
    assert_idle(engine)
    assert len(backend.stepped_rows) < 35  # of the 40 that the stream asked for
    assert len(engine.generate([[5]])) == 1
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task, stream
    gc.collect()  # what asyncio has to say of tasks that nobody awaited, it says here


def test_a_loop_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    backend.before_step = lambda step: time.sleep(0.002)

    async def use() -> None:
        unfinished = asyncio.create_task(engine.agenerate([[5, 6]] * 2, **LONG))
        stream = engine.astream([7], **LONG)
        await anext(stream)
        assert not unfinished.done()

    asyncio.run(use())  # cancels the task and closes the stream
    assert_idle(engine)
    assert len(backend.stepped_rows) < 40
