"""Engines generate what ONNX Runtime does on the CPU, whatever is asked for and in any batch."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.runtime import Engine, RequestError
from drl.runtime.cache import KVCache
from drl.runtime.errors import BackendError
from tests.models import random_prompts
from tests.runtime.backends.tensorrt.agreement import assert_greedy_agrees, share_alike
from tests.runtime.backends.tensorrt.fake_engines import Opened, open_fake
from tests.runtime.backends.tensorrt.fake_tensorrt import CudaGraphs
from tests.runtime.comparing import MODES

PROMPTS = [prompt[:20] for prompt in random_prompts(12)]


@pytest.fixture(scope="module")
def exact(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine.from_bundle(tiny_bundle, threads=1) as engine:
        yield engine


@pytest.fixture
def opened(tiny_engines: Path) -> Opened:
    return open_fake(tiny_engines)


@pytest.fixture
def small(small_engines: Path) -> Opened:
    return open_fake(small_engines)


@pytest.mark.parametrize("path", ["fast", "balanced", "full", "auto"])
def test_greedy_tokens_are_the_cpus_on_every_path(opened: Opened, exact: Engine, path: str) -> None:
    assert_greedy_agrees(exact, opened.engine(), PROMPTS, path=path, max_new_tokens=24)
    assert opened.device.launches > 0


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_a_sequence_does_not_depend_on_how_many_run_beside_it(
    opened: Opened, exact: Engine, batch: int
) -> None:
    found = assert_greedy_agrees(exact, opened.engine(batch), PROMPTS, max_new_tokens=16)
    wide = open_fake(opened.bundle.folder).engine(32).generate(PROMPTS, max_new_tokens=16)
    assert share_alike(found, wide) == 1


@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_search_agrees_with_the_cpu(opened: Opened, exact: Engine, mode: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "path": "full", **MODES[mode]}
    found = opened.engine().generate(PROMPTS, **options)
    assert share_alike(found, exact.generate(PROMPTS, **options)) >= 0.75
    again = open_fake(opened.bundle.folder).engine(5).generate(PROMPTS, **options)
    assert share_alike(again, found) >= 0.9


def test_prefixes_scores_and_what_is_reported_agree_with_the_cpu(
    opened: Opened, exact: Engine
) -> None:
    prefixes = [PROMPTS[-1 - i][: i + 1] for i in range(len(PROMPTS))]
    options: dict[str, Any] = {
        "prefixes": prefixes,
        "max_new_tokens": 6,
        "path": "full",
        "logprobs": True,
        "top_logprobs": 3,
        "return_experts": True,
    }
    engine = opened.engine(5)
    assert_greedy_agrees(exact, engine, PROMPTS, prefixes=prefixes, max_new_tokens=6)
    found, expected = (each.generate(PROMPTS, **options) for each in (engine, exact))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.experts is not None
        assert theirs.experts is not None
        assert ours.experts.decoder.keys() == theirs.experts.decoder.keys()
        assert ours.experts.encoder.keys() == theirs.experts.encoder.keys()
        np.testing.assert_allclose(ours.path_logits, theirs.path_logits, atol=0.02)
        if ours.tokens == theirs.tokens:
            assert ours.logprobs is not None
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=0.05)
            for layer, ids in theirs.experts.decoder.items():
                assert (ours.experts.decoder[layer] == ids).mean() > 0.9
    scores, wanted = (
        each.score(PROMPTS, [prompt[::-1] for prompt in PROMPTS], path="balanced")
        for each in (engine, exact)
    )
    for one, two in zip(scores, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=0.05)


def test_prefixes_of_one_token_leave_the_rows_beside_them_alone(
    opened: Opened, exact: Engine
) -> None:
    """Three rows behind one that is being decoded: a fourth beside them is another one's memory."""
    engine = opened.engine()
    expected = exact.generate(PROMPTS[:1], path="full", max_new_tokens=20)[0]
    stream = engine.stream(PROMPTS[0], path="full", max_new_tokens=20)
    pieces = [next(stream)]
    options = {"prefixes": [[7], [8], [9]], "path": "full", "max_new_tokens": 8}
    assert_greedy_agrees(exact, engine, PROMPTS[1:4], **options)
    pieces += stream
    assert [token for piece in pieces for token in piece.tokens] == expected.tokens


def test_streams_give_what_generate_gives(opened: Opened) -> None:
    engine = opened.engine(4)
    expected = engine.generate(PROMPTS[:3], max_new_tokens=12)
    for prompt, result in zip(PROMPTS[:3], expected, strict=True):
        pieces = list(engine.stream(prompt, max_new_tokens=12))
        assert [token for piece in pieces for token in piece.tokens] == result.tokens


def test_more_than_the_engines_take_at_a_time_is_done_in_parts(
    small: Opened, exact: Engine
) -> None:
    """Two sources, four rows and three new tokens at a time, of which none shows outside."""
    prompts, prefixes = PROMPTS[:7], [prompt[:7] for prompt in PROMPTS[:7]]
    engine = small.engine()
    assert_greedy_agrees(exact, engine, prompts, prefixes=prefixes, max_new_tokens=6)
    beams = {"num_beams": 2, "max_new_tokens": 6, "path": "fast"}
    found, expected = (each.generate(prompts, **beams) for each in (engine, exact))
    assert share_alike(found, expected) >= 0.8
    targets = [prompt[:14] for prompt in PROMPTS[:7]]
    scores, wanted = (each.score(prompts, targets, path="full") for each in (engine, exact))
    for one, two in zip(scores, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=0.05)
    running = [context for context in small.library.contexts if context.shapes]
    assert (
        max(context.shapes["tokens"][0] for context in running if "tokens" in context.shapes) <= 4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 5}, r"max_batch_size of 4; build larger engines: .*--batch MIN,OPT,MAX"),
        ({"max_new_tokens": 17}, r"cache of 16; .*--cache POSITIONS"),
        ({"prompts": [[5] * 21]}, r"has 21 tokens and the model reads 20; .*--source MIN,OPT,MAX"),
    ],
)
def test_what_exceeds_the_engines_is_refused_before_any_work(
    small: Opened, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        small.engine().generate(**{"prompts": PROMPTS[:1], **options})
    assert not small.library.executions


def test_several_engines_and_threads_share_a_process(opened: Opened, tiny_engines: Path) -> None:
    expected = opened.engine(4).generate(PROMPTS, max_new_tokens=10)
    engines = [open_fake(tiny_engines).engine(4) for _ in range(2)]
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        engine = engines[number % 2]
        results[number] = engine.generate(PROMPTS[number::4], max_new_tokens=10)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert share_alike(results[number], expected[number::4]) == 1


def test_candidates_come_without_logits_and_further_ones_are_ranked_on_the_device(
    opened: Opened,
) -> None:
    """Engines tell 8 tokens: some of them say enough; with more the device ranks whole rows."""
    engine = opened.engine()
    device, ranked = opened.device, []
    rank = device.rank
    device.rank = lambda logits, count: ranked.append(count) or rank(logits, count)  # type: ignore
    engine.generate(PROMPTS[:2], max_new_tokens=8, temperature=1.2, top_k=5, seed=1)
    assert not ranked
    engine.generate(PROMPTS[:2], max_new_tokens=8, temperature=1.2, top_k=20, seed=1)
    assert ranked


def test_nothing_is_allocated_while_the_same_requests_come_again(opened: Opened) -> None:
    engine = opened.engine()
    for _ in range(4):
        engine.generate(PROMPTS[:4], max_new_tokens=8, path="fast")
    device = opened.device
    before = device.memory.allocated, device.captures, len(opened.library.contexts)
    engine.generate(PROMPTS[:4], max_new_tokens=8, path="fast")
    allocated = device.memory.allocated - before[0]
    assert (device.captures, len(opened.library.contexts)) == before[1:]
    engine.generate(PROMPTS[:4], max_new_tokens=2, path="fast")
    steps = device.memory.allocated - before[0] - allocated
    assert steps == allocated  # sources only: not one more for six more steps


def test_a_failure_tells_what_tensorrt_logged_and_the_engine_goes_on(opened: Opened) -> None:
    engine = opened.engine()
    expected = engine.generate(PROMPTS[:2], max_new_tokens=6, path="fast")
    for name in ("encoder", "bridge.fast", "decoder.fast"):
        fresh = open_fake(opened.bundle.folder)
        engine = fresh.engine()
        fresh.library.fail.add(name)
        with pytest.raises(BackendError, match=rf"engine of {name} cannot be run: .*Cuda Runtime"):
            engine.generate(PROMPTS[:2], max_new_tokens=6, path="fast")
        again = engine.generate(PROMPTS[:2], max_new_tokens=6, path="fast")
        assert share_alike(again, expected) == 1


def test_where_steps_cannot_be_captured_they_run_without_and_one_is_told(
    opened: Opened, exact: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(work: object) -> None:
        raise BackendError("capturing a CUDA graph failed: not permitted")

    monkeypatch.setattr(opened.device, "capture", refuse)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs, .*: capturing .* not permitted"):
        assert_greedy_agrees(exact, opened.engine(), PROMPTS[:4], max_new_tokens=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.engine().generate(PROMPTS[:4], max_new_tokens=12)
    assert opened.device.launches == 0


def test_a_closed_engine_gives_its_memory_back(opened: Opened) -> None:
    engine = opened.engine()
    engine.generate(PROMPTS[:4], max_new_tokens=12)
    assert opened.device.memory.blocks
    engine.close()
    assert opened.device.closed
    assert not opened.library.contexts
    assert not opened.library.alive
    assert not any(opened.device.memory.blocks.values())
    assert engine is not None  # the application may hold it for as long as it likes


def test_the_flavour_that_captures_by_itself_has_a_context_for_every_step_that_comes_up_often(
    rtx_engines: Path, exact: Engine
) -> None:
    opened = open_fake(rtx_engines, flavour="tensorrt-rtx")
    prefixes = [prompt[:3] for prompt in PROMPTS]
    engine = opened.engine(4)
    for prompts, start in ((PROMPTS, prefixes), (PROMPTS[:2], prefixes[:2])):
        assert_greedy_agrees(exact, engine, prompts, prefixes=start, max_new_tokens=12)
    assert opened.device.captures == 0
    capturing = [
        context
        for context in opened.library.contexts
        if context.config.cuda_graph_strategy is CudaGraphs.WHOLE_GRAPH_CAPTURE
    ]
    assert {context.shapes["tokens"] for context in capturing} >= {(4, 1), (2, 1)}
    assert all(context.shapes["tokens"][1] == 1 for context in capturing)
    assert all(len(context.bindings) == 1 for context in capturing), "it would capture anew"


def test_contexts_get_the_memory_that_is_only_kept_for_reuse(opened: Opened) -> None:
    opened.library.contexts_fit = 1
    opened.engine().generate(PROMPTS[:2], max_new_tokens=4)
    assert opened.device.trims == 1


def test_requests_go_on_where_there_is_no_memory_for_graphs(opened: Opened, exact: Engine) -> None:
    engine = opened.engine()
    engine.generate(PROMPTS[:4], max_new_tokens=2, path="fast")  # too few steps for a graph
    opened.library.contexts_fit = 1000
    with pytest.warns(RuntimeWarning, match="without CUDA graphs, .* context of decoder.fast"):
        assert_greedy_agrees(exact, engine, PROMPTS[:4], path="fast", max_new_tokens=12)
    assert opened.device.launches == 0
    opened.library.contexts_fit = 0


def test_what_an_overflow_leaves_in_the_cache_reaches_no_other_sequence(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "path": "fast"}
    expected = open_fake(opened.bundle.folder).engine(2).generate(PROMPTS[:6], **options)
    remove = KVCache.remove

    def overflowed(cache: KVCache, slots: list[int]) -> list[tuple[int, int]]:
        for slot in slots:
            cache._memory[:, :, slot * cache.width : (slot + 1) * cache.width] = np.nan
        return remove(cache, slots)

    monkeypatch.setattr(KVCache, "remove", overflowed)
    assert share_alike(opened.engine(2).generate(PROMPTS[:6], **options), expected) == 1
