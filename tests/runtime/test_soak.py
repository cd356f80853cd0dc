"""Thousands of requests of every kind, by threads and tasks at once, leave nothing behind."""

import asyncio
import gc
import itertools
import os
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.runtime import DecodingState, DrlError, Engine, GenerationResult, RequestError
from drl.runtime.decoding import SequenceGroup
from drl.runtime.decoding.beam_search import BeamSearch, Node
from drl.runtime.decoding.sequence import Sequence
from drl.runtime.request import Request
from tests.runtime.comparing import MODES, assert_idle, assert_same, random_prompts
from tests.runtime.quick_toy import quick_engine

KINDS: list[dict[str, Any]] = [
    {},
    {"path": "auto", "logprobs": False},
    {"prefix": [9, 8, 7], "top_logprobs": 2},
    {"temperature": 1.0, "top_k": 20, "seed": 3},
    {"temperature": 0.9, "seed": 5, "num_return_sequences": 3},
    {"path": "auto", "num_beams": 2},
    {"num_beams": 3, "repetition_penalty": 1.3},
    {"num_beams": 4, "num_return_sequences": 3, "prefix": [20], "return_experts": True},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"stop_strings": [*"etaoinshrdlu"], "no_repeat_ngram_size": 2, "max_new_tokens": 5},
    {"num_beams": 2, "stop_strings": [*"etaoinshrdlu"]},
]


def broken(state: DecodingState, scores: np.ndarray) -> np.ndarray:
    if state.lengths.max() > 2:
        raise ValueError("of mine")
    return scores


class Soak:
    """Users of one engine who know what they must get."""

    def __init__(self, engine: Engine, requests: int) -> None:
        self.engine = engine
        self.requests = requests
        self.seen: Counter[str] = Counter()
        kinds = itertools.cycle([{"path": "fast", **kind} for kind in KINDS])
        self._pool = list(zip(random_prompts(44, seed=11), kinds, strict=False))
        self._expected = [
            next(engine.run([engine.request(prompt, **kind)]))[1] for prompt, kind in self._pool
        ]

    def check(self, index: int, result: GenerationResult) -> None:
        self.seen[result.finish_reason] += 1
        if result.finish_reason not in ("time", "cancelled"):
            expected = self._expected[index]
            if not {"time", "cancelled"} & {each.finish_reason for each in result.alternatives}:
                assert_same(result, expected)

    def request(self, index: int, **options: Any) -> Request:
        prompt, kind = self._pool[index]
        return self.engine.request(prompt, **{**kind, **options})

    def indices(self, count: int, seed: int) -> Iterator[int]:
        for index in np.random.default_rng(seed).integers(0, len(self._pool), count):
            yield int(index)

    def run_many(self) -> None:
        """A long run, in which some have little time and some a broken processor."""
        drawn: list[int] = []

        def requests() -> Iterator[Request]:
            for number, index in enumerate(self.indices(self.requests * 5 // 10, 0)):
                drawn.append(index)
                if number % 9 == 4:
                    yield self.request(index, max_time=0.002 * (number % 5) + 1e-5)
                elif number % 17 == 3:
                    yield self.request(index, processors=[broken])
                else:
                    yield self.request(index)

        def on_error(number: int, error: DrlError) -> None:
            assert isinstance(error, RequestError)
            self.seen["failed"] += 1

        for number, result in self.engine.run(requests(), on_error=on_error):
            self.check(drawn[number], result)

    def stream_and_leave(self) -> None:
        for number, index in enumerate(self.indices(self.requests * 2 // 10, 1)):
            stream = self.engine.stream_request(self.request(index))
            for count, piece in enumerate(stream):
                if piece.result and not piece.index:
                    self.check(index, piece.result)
                if count == number % 4:
                    self.seen["left"] += 1
                    break

    def cancel(self) -> None:
        for number, index in enumerate(self.indices(self.requests // 10, 2)):
            event = threading.Event()
            timer = threading.Timer(0.001 * (number % 4) ** 3, event.set)
            timer.start()
            group = [self.request(index), self.request(index)]
            for _, result in self.engine.run(group, cancel=event):
                self.check(index, result)
            timer.join()

    def tasks(self) -> None:
        async def one(number: int, index: int) -> None:
            prompt, kind = self._pool[index]
            options = {key: value for key, value in kind.items() if key != "prefix"}
            prefixes = [kind.get("prefix")]
            if number % 3 == 0:
                async for _ in self.engine.astream(prompt, prefix=kind.get("prefix"), **options):
                    if number % 2:
                        self.seen["left"] += 1
                        break
                return
            limit = 0.002 if number % 7 == 1 else 60.0
            try:
                async with asyncio.timeout(limit):
                    (result,) = await self.engine.agenerate([prompt], prefixes=prefixes, **options)
                self.check(index, result)
            except TimeoutError:
                self.seen["timed out"] += 1

        async def all_of_them() -> None:
            numbered = enumerate(self.indices(self.requests * 2 // 10, 3))
            while batch := list(itertools.islice(numbered, 40)):
                await asyncio.gather(*(one(*each) for each in batch))

        asyncio.run(all_of_them())

    def go(self) -> None:
        errors: list[BaseException] = []

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        works = (self.run_many, self.stream_and_leave, self.cancel, self.tasks)
        threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
            assert not thread.is_alive()
        if errors:
            raise errors[0]
        assert_idle(self.engine)


def living() -> Counter[str]:
    gc.collect()
    kinds = (SequenceGroup, Sequence, BeamSearch, Node, Request, GenerationResult)
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in kinds)


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    engine, backend = quick_engine(tmp_path)
    first, second = Soak(engine, 9_200), Soak(engine, 800)
    before = living()
    started = time.monotonic()
    first.go()
    tracemalloc.start()  # which takes its time, so not for all of them
    second.go()
    seconds = time.monotonic() - started
    records = backend.stepped_rows, backend.candidates, backend.encoded_rows, backend.released
    for record in records:
        record.clear()
    after = living()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kinds = {"eos", "stop", "length", "time", "cancelled", "failed", "left", "timed out"}
    assert set(first.seen) == set(second.seen) == kinds
    assert after == before
    assert grown < 160 << 10  # two hundred bytes for each request
    for lane in engine._service.scheduler.lanes:
        assert lane.cache.nbytes <= (1 << 20 if lane.cache.width == 1 else 0)
    assert threading.active_count() < 20
    assert seconds < 60


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", ["tiny_bundle", "dense_bundle"])
def test_a_real_bundle_s_memory_settles(name: str, request: pytest.FixtureRequest) -> None:
    """A cache row of these is some 50 KB, so that one left by each request would be seen."""
    prompts = [
        [2 + (7 * index + place) % 50 for place in range(1 + index % 40)] for index in range(40)
    ]

    def use(engine: Engine, rounds: int) -> int:
        for number in range(rounds):
            mode = [*MODES.values()][number % len(MODES)]
            engine.generate(prompts, max_new_tokens=6, path=0, **mode)
            stream = engine.stream(prompts[number % 40], **mode)
            next(stream)
            del stream
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    with Engine.from_bundle(request.getfixturevalue(name), threads=1) as engine:
        settled = use(engine, 2 * len(MODES))
        assert use(engine, 4 * len(MODES)) - settled < 24 << 20
        assert_idle(engine)
