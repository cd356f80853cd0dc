"""Requests of several threads on one engine, in common batches, through errors and closing."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drl.runtime import BackendError, DrlError, Engine, GenerationConfig, GenerationResult
from drl.runtime.errors import RequestError
from drl.runtime.request import Request
from tests.runtime.comparing import (
    MODES,
    assert_idle,
    assert_same,
    cache_bytes,
    hooked,
    random_prompts,
    rows_in_use,
)
from tests.runtime.toy import ToyBackend, toy_bundle, toy_engine

pytestmark = pytest.mark.usefixtures("ranking")


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return toy_engine(tmp_path)


def in_threads(*works: Callable[[], object]) -> None:
    """Run all, and raise what the first of them raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_threads_share_the_engine(tmp_path: Path) -> None:
    modes = [*MODES.values()] * 4
    count = len(modes)
    prompts = random_prompts(count)
    with toy_engine(tmp_path) as lone:
        expected = [
            lone.generate([prompt], **mode)[0] for prompt, mode in zip(prompts, modes, strict=True)
        ]
    found: dict[int, GenerationResult] = {}
    with toy_engine(tmp_path, max_batch_size=8) as engine:

        def work(start: int) -> None:
            for index in range(start, count, 4):
                found[index] = engine.generate([prompts[index]], **modes[index])[0]

        in_threads(*(lambda start=start: work(start) for start in range(4)))
        assert_idle(engine)
    for index, result in enumerate(expected):
        assert_same(found[index], result)


def test_threads_decode_in_common_steps(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=4)
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait()
        engine.generate([[5, number]], min_new_tokens=30, max_new_tokens=30, path="full")

    backend.before_step = lambda step: time.sleep(0.002)
    in_threads(*(lambda number=number: work(number) for number in range(4)))
    assert len(backend.stepped_rows) < 2 * 30


def test_run_reads_requests_as_places_become_free(engine: Engine) -> None:
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for prompt in random_prompts(50):
            taken += 1
            yield engine.request(prompt, path="fast")

    results = engine.run(requests())
    next(results)
    assert taken <= 8
    assert len(list(results)) == 49
    assert taken == 50


def test_run_that_is_left_early_gives_its_places_back(engine: Engine) -> None:
    requests = (engine.request(prompt) for prompt in random_prompts(50))
    for _ in engine.run(requests):
        break
    assert_idle(engine)
    assert cache_bytes(engine) == 0


def test_an_error_of_whoever_makes_the_requests_is_theirs(engine: Engine) -> None:
    def requests() -> Iterator[Request]:
        for prompt in random_prompts(10):
            yield engine.request(prompt)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(engine.run(requests()))
    assert_idle(engine)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken"), SystemExit(3)])
def test_an_interrupted_engine_is_usable_again(tmp_path: Path, error: BaseException) -> None:
    engine, backend = hooked(tmp_path)
    prompts = random_prompts(5)
    for mode in (MODES["greedy"], MODES["n-best"]):
        expected = engine.generate(prompts, **mode)
        backend.fail_at_step = error
        with pytest.raises(type(error)):
            engine.generate(prompts, **mode)
        assert_idle(engine)
        assert cache_bytes(engine) == 0
        for ours, theirs in zip(engine.generate(prompts, **mode), expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("graph", ["encode", "bridge"])
def test_a_failed_encoder_fails_its_requests(
    tmp_path: Path, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = hooked(tmp_path)
    running = engine.stream([5, 6, 7], min_new_tokens=40)
    next(running)
    with monkeypatch.context() as patched:
        patched.setattr(backend, graph, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate([[8, 9]])
    with pytest.raises(DrlError, match="cut short: ZeroDivisionError"):
        list(running)
    assert_idle(engine)
    assert len(engine.generate([[8, 9]])) == 1


def test_a_failed_step_fails_the_requests_of_others(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    running = engine.stream([5, 6, 7], GenerationConfig(min_new_tokens=40))
    next(running)
    backend.fail_at_step = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[8, 9]])
    with pytest.raises(DrlError, match="cut short: interrupted; send the request again"):
        list(running)


def test_an_interruption_while_a_request_is_dropped_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = hooked(tmp_path)
    streams = [engine.stream([5, number], min_new_tokens=40, path="full") for number in (6, 7)]
    for stream in streams:
        next(stream)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("drl.runtime.cache.KVCache._move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            streams[0].close()  # type: ignore[attr-defined]
    with pytest.raises(DrlError, match="cut short: interrupted"):
        list(streams[1])
    assert_idle(engine)
    assert engine.generate([[5]])


def test_a_closed_engine_says_so(engine: Engine) -> None:
    running = engine.stream([5], min_new_tokens=40)
    next(running)
    results = engine.run([engine.request([5])] * 20)
    next(results)
    engine.close()
    engine.close()
    assert cache_bytes(engine) == 0
    message = "the engine is closed; open one with Engine.from_bundle"
    for use in (
        lambda: engine.generate([[4]]),
        lambda: list(engine.stream([4])),
        lambda: engine.score([[4]], [[5]]),
        lambda: list(running),
        lambda: list(results),
    ):
        with pytest.raises(BackendError, match=message):
            use()
    assert_idle(engine)


def test_closing_waits_for_the_step_in_progress_and_no_longer(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    engine = Engine(bundle, backend, max_batch_size=4)
    inside, step = threading.Event(), backend.step
    closed_in_step: list[bool] = []

    def slow(inputs):  # type: ignore[no-untyped-def]
        inside.set()
        time.sleep(0.05)
        closed_in_step.append(backend.closed)
        return step(inputs)

    backend.step = slow  # type: ignore[method-assign]
    failures: list[DrlError] = []

    def generate() -> None:
        try:
            engine.generate(random_prompts(50), min_new_tokens=40)
        except DrlError as error:
            failures.append(error)

    def close() -> None:
        inside.wait()
        engine.close()

    started = time.monotonic()
    in_threads(generate, close)
    assert time.monotonic() - started < 5
    assert "the engine is closed" in str(failures[0])
    assert backend.closed
    assert not any(closed_in_step)


def test_results_come_in_the_order_in_which_they_complete(engine: Engine) -> None:
    lengths = [30, 5, 20, 10]
    requests = [
        engine.request([5], min_new_tokens=count, max_new_tokens=count) for count in lengths
    ]
    assert [number for number, _ in engine.run(requests)] == [1, 3, 2, 0]


def test_run_goes_on_behind_a_request_that_failed(engine: Engine) -> None:
    class Broken:
        def __call__(self, state: object, scores: object) -> None:
            raise ValueError("of mine")

    prompts = random_prompts(20)
    expected = engine.generate(prompts)
    requests = [
        engine.request(prompt, processors=[Broken()] if number % 3 == 1 else [])
        for number, prompt in enumerate(prompts)
    ]
    failures: dict[int, DrlError] = {}
    results = dict(engine.run(requests, on_error=failures.__setitem__))
    assert sorted(failures) == list(range(1, 20, 3))
    assert sorted([*failures, *results]) == list(range(20))
    for number, result in results.items():
        assert_same(result, expected[number])
    with pytest.raises(RequestError, match="processor Broken failed with ValueError: of mine"):
        dict(engine.run(requests))
    assert rows_in_use(engine) == 0
    assert_idle(engine)
