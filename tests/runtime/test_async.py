"""Tasks of `asyncio`: the results of threads, errors for their own task, cancellation."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import BackendError, DrlError, Engine, GenerationResult, Piece, RequestError
from tests.runtime.comparing import (
    MODES,
    assert_idle,
    assert_same,
    cache_bytes,
    hooked,
    random_prompts,
)
from tests.runtime.toy import toy_engine

LONG: dict[str, Any] = {"min_new_tokens": 40, "path": "full"}


async def collect(engine: Engine, prompt: Any, **options: Any) -> list[Piece]:
    return [piece async for piece in engine.astream(prompt, **options)]


@pytest.mark.parametrize("mode", MODES)
def test_agenerate_gives_what_generate_gives(tmp_path: Path, mode: str) -> None:
    engine = toy_engine(tmp_path)
    prompts = random_prompts(30)
    options = {**MODES[mode], "prefixes": [[9, 8]] * 30, "return_experts": True, "budget": 0.7}
    expected = engine.generate(prompts, **options)
    found = asyncio.run(engine.agenerate(prompts, **options))
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    assert asyncio.run(engine.agenerate([])) == []
    assert_idle(engine)


@pytest.mark.parametrize("mode", MODES)
def test_astream_gives_the_pieces_of_stream(tmp_path: Path, mode: str) -> None:
    engine = toy_engine(tmp_path)
    (expected,) = engine.generate(["ab"], **MODES[mode])
    pieces = asyncio.run(collect(engine, "ab", **MODES[mode]))
    for index, whole in enumerate((expected, *expected.alternatives)):
        own = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in own) == whole.text
        assert [token for piece in own for token in piece.tokens] == whole.tokens
    assert_idle(engine)


def test_a_task_that_is_cancelled_frees_its_rows(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=6)
    (expected,) = engine.generate([[5, 6]], **LONG)
    backend.before_step = lambda step: time.sleep(0.005)
    rows: list[int] = []

    async def use() -> GenerationResult:
        kept = asyncio.create_task(engine.agenerate([[5, 6]], **LONG))
        doomed = [
            asyncio.create_task(engine.agenerate([[7]] * 4, **LONG)),
            asyncio.create_task(collect(engine, "xy", num_beams=2, **LONG)),
        ]
        await asyncio.sleep(0.05)
        for task in doomed:
            task.cancel()
        for task in doomed:
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.05)
        rows.append(engine._service.scheduler.running)
        rows.append(engine._service.scheduler.waiting)
        return (await kept)[0]

    assert_same(asyncio.run(use()), expected)
    assert rows == [1, 0]
    assert_idle(engine)


@pytest.mark.parametrize("close", [True, False])
def test_a_stream_that_is_left_early_frees_its_rows(tmp_path: Path, close: bool) -> None:
    engine, _ = hooked(tmp_path)

    async def use() -> None:
        stream = engine.astream([5, 6], temperature=1.0, num_return_sequences=3, **LONG)
        async for _ in stream:
            break
        if close:
            await stream.aclose()  # type: ignore[attr-defined]
        del stream
        await asyncio.sleep(0.01)

    asyncio.run(use())
    assert_idle(engine)
    assert cache_bytes(engine) == 0


def test_a_timeout_ends_a_task_as_asyncio_says(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    backend.before_step = lambda step: time.sleep(0.01)

    async def use() -> None:
        async with asyncio.timeout(0.1):
            await engine.agenerate(random_prompts(20), **LONG)

    with pytest.raises(TimeoutError):
        asyncio.run(use())
    assert_idle(engine)


def test_errors_reach_their_own_task_only(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, max_batch_size=8)
    expected = engine.generate([[5, 6]], **LONG)

    def broken(state: object, scores: object) -> Any:
        raise ValueError("of mine")

    async def use() -> list[Any]:
        return await asyncio.gather(
            engine.agenerate([[5, 6]], **LONG),
            engine.agenerate(["ab", "cd"], num_bems=2),
            engine.agenerate([[7], [8]], processors=[broken], **LONG),
            collect(engine, "ab", path="no"),
            collect(engine, "ab", processors=[broken]),
            engine.agenerate([[5, 6]], **LONG),
            return_exceptions=True,
        )

    first, option, processor, path, stream, last = asyncio.run(use())
    assert_same(first[0], expected[0])
    assert_same(last[0], expected[0])
    for error, message in (
        (option, "unknown generation option 'num_bems'"),
        (processor, "prompt 0: processor broken failed with ValueError: of mine"),
        (path, "no path 'no'"),
        (stream, "processor broken failed"),
    ):
        assert isinstance(error, RequestError)
        assert message in str(error)
    assert_idle(engine)


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1), MemoryError()])
def test_a_failed_step_fails_the_tasks_and_the_next_ones_go_on(
    tmp_path: Path, error: BaseException
) -> None:
    engine, backend = hooked(tmp_path)

    async def use() -> list[Any]:
        backend.fail_at_step = error
        failed = await asyncio.gather(
            engine.agenerate([[5]], **LONG), collect(engine, "ab", **LONG), return_exceptions=True
        )
        return [*failed, await asyncio.wait_for(engine.agenerate([[5]]), 20)]

    first, second, after = asyncio.run(use())
    for failure in (first, second):
        # Only one of them need have been there.
        if isinstance(failure, BaseException):
            assert isinstance(failure, DrlError)
            assert "generation was cut short" in str(failure)
    assert isinstance(first, DrlError) or isinstance(second, DrlError)
    assert len(after) == 1
    assert_idle(engine)


def test_an_engine_that_is_closed_meanwhile_says_so(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    backend.before_step = lambda step: time.sleep(0.01)

    async def use() -> list[Any]:
        tasks = [
            asyncio.create_task(engine.agenerate(random_prompts(20), **LONG)),
            asyncio.create_task(collect(engine, "ab", **LONG)),
        ]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        late = asyncio.create_task(engine.agenerate([[5]]))
        return await asyncio.gather(*tasks, late, return_exceptions=True)

    for failure in asyncio.run(use()):
        assert isinstance(failure, BackendError)
        assert "the engine is closed" in str(failure)
    assert_idle(engine)
    assert cache_bytes(engine) == 0
