"""Requests that somebody cancels end at the next step, with what there is, and leave nothing."""

import threading
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import Engine, GenerationConfig, GenerationResult, Piece
from tests.runtime.comparing import (
    MODES,
    assert_idle,
    assert_same,
    cache_bytes,
    hooked,
    random_prompts,
)

LONG = {"min_new_tokens": 40}


def set_by_another_thread(event: threading.Event) -> None:
    thread = threading.Thread(target=event.set)
    thread.start()
    thread.join()


def cancelled_before_step(
    engine: Engine, number: int, prompts: list[Any], **options: Any
) -> list[GenerationResult]:
    """Results of a generation that is cancelled while its step `number` (from 0) is computed."""
    cancel = threading.Event()
    backend: Any = engine.backend
    first = len(backend.stepped_rows)
    backend.before_step = lambda step: (
        set_by_another_thread(cancel) if step - first == number else None
    )
    try:
        return engine.generate(prompts, cancel=cancel, **options)
    finally:
        backend.before_step = None


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_request_ends_with_the_step_in_progress(tmp_path: Path, mode: str) -> None:
    engine, backend = hooked(tmp_path)
    options = {**LONG, **MODES[mode], "path": "full"}
    (expected,) = engine.generate(["ab c"], **{**options, "max_new_tokens": 5, "min_new_tokens": 5})
    taken = len(backend.stepped_rows)
    (found,) = cancelled_before_step(engine, 4, ["ab c"], **options)
    assert len(backend.stepped_rows) - taken == 5
    assert found.timings.steps == 5
    everything = [(found, expected), *zip(found.alternatives, expected.alternatives, strict=True)]
    for ours, theirs in everything:
        assert ours.finish_reason == "cancelled"
        assert ours.tokens == theirs.tokens
        assert len(ours.tokens) == 5
        assert ours.text == theirs.text
        assert ours.score == theirs.score
        assert ours.logprobs == theirs.logprobs
    assert_idle(engine)
    assert cache_bytes(engine) == 0


@pytest.mark.parametrize("mode", MODES)
def test_what_is_cancelled_before_it_begins_costs_nothing(tmp_path: Path, mode: str) -> None:
    engine, backend = hooked(tmp_path)
    cancel = threading.Event()
    cancel.set()
    results = engine.generate(random_prompts(20), cancel=cancel, **MODES[mode])
    assert len(results) == 20
    for result in results:
        assert result.finish_reason == "cancelled"
        assert result.tokens == []
        assert result.text == result.path == ""
        assert result.path_logits is None
        assert result.timings.steps == 0
    assert backend.encoded_rows == []
    assert backend.stepped_rows == []
    pieces = list(engine.stream("ab", cancel=cancel, **MODES[mode]))
    assert {piece.finish_reason for piece in pieces} == {"cancelled"}
    assert "".join(piece.text for piece in pieces) == ""
    assert_idle(engine)


def test_waiting_requests_are_cancelled_too(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=2)
    options = {**LONG, "path": "full"}
    expected = engine.generate(random_prompts(2), max_new_tokens=4, path="full", min_new_tokens=4)
    backend.encoded_rows.clear()
    found = cancelled_before_step(engine, 3, random_prompts(9), **options)
    assert [result.finish_reason for result in found] == ["cancelled"] * 9
    assert [result.tokens for result in found] == [*(each.tokens for each in expected), *[[]] * 7]
    assert [result.path for result in found] == ["full", "full", *[""] * 7]
    assert sum(backend.encoded_rows) == 2
    assert_idle(engine)
    assert cache_bytes(engine) == 0


@pytest.mark.parametrize("mode", MODES)
def test_others_are_not_affected(tmp_path: Path, mode: str) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=16)
    options = {**LONG, **MODES[mode], "path": "full"}
    prompts = random_prompts(4)
    alone = [engine.generate([prompt], **options)[0] for prompt in prompts]
    events = [threading.Event() for _ in prompts]
    groups = [
        engine._begin(engine.request(prompt, **options), False, event)
        for prompt, event in zip(prompts, events, strict=True)
    ]
    backend.stepped_rows.clear()
    # From the middle, so that rows have to move.
    backend.before_step = lambda step: (
        set_by_another_thread(events[step // 7]) if (step in (7, 14)) else None
    )
    found = dict(engine._service.run(iter(groups), None, None))
    for number in (0, 3):
        assert_same(found[number], alone[number])
    for number in (1, 2):
        assert found[number].finish_reason == "cancelled"
        assert found[number].timings.steps == 7 * number + 1
    rows = [rows for _, rows in backend.stepped_rows]
    width = rows[0] // 4
    assert rows[:8] == [4 * width] * 8
    assert rows[8:15] == [3 * width] * 7
    assert set(rows[15:40]) == {2 * width}
    assert_idle(engine)


def test_memory_follows_the_rows_that_are_left(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=16)
    cancel = threading.Event()
    request = engine.request([5, 6], path="full", **LONG)
    sizes: list[int] = []

    def watch(step: int) -> None:
        sizes.append(cache_bytes(engine))
        if step == 9:
            cancel.set()

    backend.before_step = watch
    groups = [engine._begin(request, False, cancel if number else None) for number in range(16)]
    found = dict(engine._service.run(iter(groups), None, None))
    assert len(found) == 16
    assert len(sizes) >= 40
    assert set(sizes[:10]) == {sizes[0]}
    assert max(sizes[10:]) * 6 < sizes[0]


def test_samples_that_have_ended_keep_their_ends(tmp_path: Path) -> None:
    engine, _ = hooked(tmp_path)
    options = {"temperature": 3.0, "num_return_sequences": 4, "path": "full"}
    for seed in range(50):
        (whole,) = engine.generate(["ab"], seed=seed, **options)
        lengths = [whole.timings.steps] + [len(each.tokens) for each in whole.alternatives]
        ends = [each.finish_reason for each in (whole, *whole.alternatives)]
        if min(lengths) <= 6 < max(lengths) and "eos" in ends:
            break
    (found,) = cancelled_before_step(engine, 6, ["ab"], seed=seed, **options)
    for ours, theirs in zip(
        (found, *found.alternatives), (whole, *whole.alternatives), strict=True
    ):
        assert ours.tokens == theirs.tokens[:7]
        ended = len(theirs.tokens) < 7
        assert ours.finish_reason == (theirs.finish_reason if ended else "cancelled")


def test_a_complete_hypothesis_may_beat_the_beams_that_are_cut(tmp_path: Path) -> None:
    engine, _ = hooked(tmp_path)
    options = {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"}
    reasons = set()
    for number, prompt in enumerate(random_prompts(24)):
        (result,) = cancelled_before_step(engine, number, [prompt], path="full", **options)
        assert result.score is not None
        assert len(result.tokens) <= number + 1
        reasons.add(result.finish_reason)
    assert reasons >= {"eos", "cancelled"}


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_stream_ends_with_its_result(tmp_path: Path, mode: str) -> None:
    engine, backend = hooked(tmp_path)
    cancel = threading.Event()
    backend.before_step = lambda step: cancel.set() if step == 20 else None
    pieces = list(engine.stream("ab", cancel=cancel, **LONG, **MODES[mode]))
    finals = [piece for piece in pieces if piece.result]
    assert {piece.finish_reason for piece in finals} == {"cancelled"}
    for final in finals:
        assert final.result is not None
        text = "".join(piece.text for piece in pieces if piece.index == final.index)
        assert text == final.result.text
        assert len(final.result.tokens) == 21
    assert_idle(engine)


def test_a_callback_may_cancel_what_it_follows(tmp_path: Path) -> None:
    engine, _ = hooked(tmp_path, max_batch_size=2)
    cancel = threading.Event()
    pieces: list[tuple[int, Piece]] = []

    def on_piece(number: int, piece: Piece) -> None:
        pieces.append((number, piece))
        if len(pieces) > 8:
            cancel.set()

    results = engine.generate(["one", "two", "six"], cancel=cancel, on_piece=on_piece, **LONG)
    assert {result.finish_reason for result in results} == {"cancelled"}
    for number, result in enumerate(results):
        own = [piece for index, piece in pieces if index == number]
        assert "".join(piece.text for piece in own) == result.text
        assert [piece.result for piece in own if piece.result] != []
    assert results[2].path == ""


def test_a_cancelled_request_without_a_tokenizer_reports_its_tokens(tmp_path: Path) -> None:
    engine, _ = hooked(tmp_path, tokenizer=False)
    config = GenerationConfig(**LONG, top_logprobs=2)
    (result,) = cancelled_before_step(
        engine, 2, [[5, 6]], config=config, return_experts=True, path="full"
    )
    assert result.text == ""
    assert len(result.tokens) == len(result.logprobs or []) == len(result.top_logprobs or []) == 3
    assert result.experts is not None
    assert all(ids.shape == (3, 2) for ids in result.experts.decoder.values())


def test_run_cancels_what_it_has_not_read_yet(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path, max_batch_size=2)
    cancel = threading.Event()
    requests = (engine.request(prompt, **LONG) for prompt in random_prompts(30))
    backend.before_step = lambda step: cancel.set() if step == 2 else None
    results = dict(engine.run(requests, cancel=cancel))
    assert len(results) == 30
    assert {result.finish_reason for result in results.values()} == {"cancelled"}
    assert len(backend.stepped_rows) <= 2 * 3  # each path that is taken steps by itself


@pytest.mark.parametrize("mode", MODES)
def test_a_real_backend_lets_go_as_well(tiny_bundle: Path, mode: str) -> None:
    with Engine.from_bundle(tiny_bundle, threads=1, max_batch_size=8) as engine:
        options = {**MODES[mode], "min_new_tokens": 40, "path": "full"}
        pieces: list[Piece] = []
        cancel = threading.Event()
        step = engine.backend.step

        def counted(inputs: Any) -> Any:
            if int(inputs.lengths.max()) == 9:
                set_by_another_thread(cancel)
            return step(inputs)

        engine.backend.step = counted  # type: ignore[method-assign]
        pieces += engine.stream([5, 6, 7], cancel=cancel, **options)
        (whole,) = [piece.result for piece in pieces if piece.result and not piece.index]
        assert whole.finish_reason == "cancelled"
        assert len(whole.tokens) == 10
        assert cache_bytes(engine) == 0
        assert engine.backend._bindings == {}  # type: ignore[attr-defined]
        assert_idle(engine)
