"""Generation with a toy backend: what a batch, a queue or a thread gives, a lone run gives too."""

import gc
import threading
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from drl.runtime import (
    BackendError,
    DrlError,
    Engine,
    GenerationConfig,
    GenerationResult,
)
from drl.runtime.backends import StepInputs, StepOutputs
from tests.runtime.toy import EOS, VOCAB_SIZE, ToyBackend, toy_bundle, toy_engine


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(2, VOCAB_SIZE, random.integers(1, 40)).tolist() for _ in range(count)]


def assert_same(found: GenerationResult, expected: GenerationResult) -> None:
    assert found.tokens == expected.tokens
    assert found.text == expected.text
    assert found.path == expected.path
    assert found.finish_reason == expected.finish_reason
    assert found.top_logprobs == expected.top_logprobs
    if expected.logprobs is not None:
        np.testing.assert_array_equal(found.logprobs, expected.logprobs)
    if expected.path_logits is not None:
        np.testing.assert_array_equal(found.path_logits, expected.path_logits)
    if expected.experts is not None:
        assert found.experts is not None
        for side in ("encoder", "decoder"):
            ours, theirs = getattr(found.experts, side), getattr(expected.experts, side)
            assert ours.keys() == theirs.keys()
            for layer in theirs:
                np.testing.assert_array_equal(ours[layer], theirs[layer])


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return toy_engine(tmp_path)


@pytest.mark.parametrize("path", ["auto", "fast", "mid", "full"])
@pytest.mark.parametrize("max_batch_size", [1, 3, 16])
def test_a_ragged_batch_gives_what_each_prompt_gives_alone(
    tmp_path: Path, path: str, max_batch_size: int
) -> None:
    prompts = random_prompts(13)
    with toy_engine(tmp_path, max_batch_size=1) as lone:
        expected = [
            lone.generate([prompt], path=path, return_experts=True)[0] for prompt in prompts
        ]
    with toy_engine(tmp_path, max_batch_size=max_batch_size) as engine:
        found = engine.generate(prompts, path=path, return_experts=True)
    assert len({len(result.tokens) for result in expected}) > 4  # lengths really are ragged
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_every_mixture_of_options_is_independent_of_the_batch(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    prompts = random_prompts(24, seed=2)
    configs = [
        GenerationConfig(
            max_new_tokens=int(random.integers(3, 48)),
            min_new_tokens=int(random.integers(0, 3)),
            temperature=float(random.choice([0.0, 0.7, 1.3])),
            top_k=int(random.choice([0, 5])),
            top_p=float(random.choice([0.8, 1.0])),
            min_p=float(random.choice([0.0, 0.05])),
            repetition_penalty=float(random.choice([1.0, 1.4])),
            seed=int(random.integers(1000)),
            stop_token_ids=random.integers(2, VOCAB_SIZE, 6).tolist(),
            top_logprobs=int(random.choice([0, 3])),
        )
        for _ in prompts
    ]
    with toy_engine(tmp_path, max_batch_size=1) as lone:
        expected = [
            lone.generate([prompt], config)[0]
            for prompt, config in zip(prompts, configs, strict=True)
        ]
    with toy_engine(tmp_path, max_batch_size=7) as engine:
        found = engine.generate(prompts, configs)
        again = engine.generate(prompts[::-1], configs[::-1])[::-1]
    for ours, more, theirs in zip(found, again, expected, strict=True):
        assert_same(ours, theirs)
        assert_same(more, theirs)
    assert {result.finish_reason for result in expected} == {"eos", "stop", "length"}
    assert len({result.path for result in expected}) == 3


def test_waiting_requests_are_admitted_while_others_run(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    with Engine(bundle, backend, max_batch_size=4) as engine:
        engine.generate(random_prompts(30), path="full")
    assert sum(backend.encoded_rows) == 30
    assert len(backend.encoded_rows) > 8  # not in whole batches of four
    assert max(rows for _, rows in backend.stepped_rows) == 4
    full = sum(rows == 4 for _, rows in backend.stepped_rows)
    assert full > 0.7 * len(backend.stepped_rows)


def test_run_reads_requests_as_places_become_free(engine: Engine) -> None:
    taken = 0

    def requests():  # type: ignore[no-untyped-def]
        nonlocal taken
        for prompt in random_prompts(50):
            taken += 1
            yield engine.request(prompt, path="fast")

    results = engine.run(requests())
    next(results)
    assert taken <= 8
    assert len(list(results)) == 49
    assert taken == 50


def test_results_say_what_happened(engine: Engine) -> None:
    prompt = random_prompts(1)[0]
    config = GenerationConfig(max_new_tokens=5, min_new_tokens=5, top_logprobs=2)
    (result,) = engine.generate([prompt], config, path=2, return_experts=True)
    assert result.path == "full"
    assert len(result.tokens) == 5
    assert EOS not in result.tokens
    assert result.finish_reason == "length"
    assert result.prompt_tokens == len(prompt)
    assert result.logprobs is not None
    assert all(value <= 0 for value in result.logprobs)
    assert result.top_logprobs is not None
    assert [len(top) for top in result.top_logprobs] == [2] * 5
    for token, logprob, top in zip(
        result.tokens, result.logprobs, result.top_logprobs, strict=True
    ):
        assert top[0][1] >= top[1][1]
        likeliest = dict(top)
        assert token == EOS or likeliest.get(token, logprob) == pytest.approx(logprob)
    assert result.path_logits is not None
    assert result.path_logits.shape == (3,)
    assert result.experts is not None
    assert result.experts.encoder[1].shape == (len(prompt), 2)
    assert sorted(result.experts.decoder) == [0, 1, 2]
    assert all(ids.shape == (5, 2) for ids in result.experts.decoder.values())
    assert result.timings.steps == 5
    assert 0 < result.timings.encode < result.timings.total
    assert result.timings.first_token <= result.timings.total


def test_what_is_not_asked_for_is_not_reported(engine: Engine) -> None:
    (result,) = engine.generate([[5, 6]], GenerationConfig(logprobs=False))
    assert result.logprobs is None
    assert result.top_logprobs is None
    assert result.experts is None


def test_text_prompts_take_the_tokenizers_special_tokens(engine: Engine) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode("abc 中国")
    assert ids[-1] == EOS
    (text,), (tokens,) = engine.generate(["abc 中国"]), engine.generate([ids])
    assert_same(text, tokens)
    assert text.prompt_tokens == len(ids)


def test_numpy_arrays_and_tuples_are_prompts(engine: Engine) -> None:
    ids = [3, 9, 4]
    expected = engine.generate([ids])[0]
    for prompt in (tuple(ids), np.array(ids), np.array(ids, np.uint16), [np.int32(3), 9, 4]):
        assert_same(engine.generate([prompt])[0], expected)  # type: ignore[list-item]


def test_no_prompts_give_no_results(engine: Engine) -> None:
    assert engine.generate([]) == []


def test_the_budget_bounds_the_path_that_auto_takes(engine: Engine) -> None:
    prompts = random_prompts(40)
    taken = {
        budget: {result.path for result in engine.generate(prompts, budget=budget)}
        for budget in (0.0, 0.5, 0.7, 1.0)
    }
    assert taken[0.0] == taken[0.5] == {"fast"}
    assert taken[0.7] == {"fast", "mid"}
    assert taken[1.0] == {"fast", "mid", "full"}


def a_long_sampled_result(engine: Engine) -> tuple[GenerationConfig, GenerationResult]:
    for seed in range(100):
        config = GenerationConfig(temperature=3.0, seed=seed)
        (result,) = engine.generate(["stop here"], config)
        if len(result.tokens) > 20 and len(result.text) > 12:
            return config, result
    raise AssertionError("no seed gives a long text")


def test_a_stop_token_ends_a_sequence_and_is_not_part_of_it(engine: Engine) -> None:
    config, whole = a_long_sampled_result(engine)
    stop = whole.tokens[9]
    (result,) = engine.generate(["stop here"], replace(config, stop_token_ids=[stop]))
    assert result.finish_reason == "stop"
    assert result.tokens == whole.tokens[: whole.tokens.index(stop)]
    assert result.timings.steps == len(result.tokens) + 1


def test_a_stop_string_ends_a_sequence_and_is_cut_off_the_text(engine: Engine) -> None:
    config, whole = a_long_sampled_result(engine)
    stop = next(text for i in range(6, 12) if (text := whole.text[i : i + 2]).split() == [text])
    (result,) = engine.generate(["stop here"], replace(config, stop_strings=[stop]))
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)].rstrip()
    assert len(result.tokens) < len(whole.tokens)
    assert result.tokens == whole.tokens[: len(result.tokens)]


def test_streams_join_to_the_text_of_generate(engine: Engine) -> None:
    for seed in range(20):
        config = GenerationConfig(temperature=2.0, seed=seed, stop_strings=["q", "zz"])
        (expected,) = engine.generate(["ab ab"], config)
        pieces = list(engine.stream("ab ab", config))
        assert "".join(piece.text for piece in pieces) == expected.text
        assert [token for piece in pieces for token in piece.tokens] == expected.tokens
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].result is not None
        assert_same(pieces[-1].result, expected)


def test_streams_may_be_interleaved_and_left_early(engine: Engine) -> None:
    config = GenerationConfig(min_new_tokens=20)
    expected = [engine.generate([text], config)[0].text for text in ("one", "two")]
    streams = [engine.stream(text, config) for text in ("one", "two")]
    pieces = zip_longest(*streams)
    texts = ["".join(piece.text for piece in side if piece) for side in zip(*pieces, strict=True)]
    assert texts == expected
    abandoned = engine.stream("three", config)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert engine._scheduler.running == 0


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_stream_that_others_advance_gives_every_token(tmp_path: Path, tokenizer: bool) -> None:
    config = GenerationConfig(min_new_tokens=30, max_new_tokens=30)
    with toy_engine(tmp_path, tokenizer=tokenizer) as engine:
        (expected,) = engine.generate([[5, 6]], config)
        pieces = []
        for piece in engine.stream([5, 6], config):
            pieces.append(piece)
            engine.generate([[7]], GenerationConfig(max_new_tokens=3))
    assert [token for piece in pieces for token in piece.tokens] == expected.tokens
    assert "".join(piece.text for piece in pieces) == expected.text
    assert len(pieces) > 3


def test_a_stream_forgotten_during_a_step_is_dropped_at_the_next(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    engine = Engine(bundle, backend)
    forgotten = [engine.stream([5, 6], GenerationConfig(min_new_tokens=40))]
    next(forgotten[0])
    step = backend.step

    def collect(inputs: StepInputs) -> StepOutputs:
        forgotten.clear()
        gc.collect()
        return step(inputs)

    backend.step = collect  # type: ignore[method-assign]
    found: list[GenerationResult] = []
    thread = threading.Thread(target=lambda: found.extend(engine.generate([[7]])), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert_same(found[0], engine.generate([[7]])[0])
    assert engine._scheduler.running == 0


def test_threads_share_the_engine(tmp_path: Path) -> None:
    prompts = random_prompts(24)
    with toy_engine(tmp_path, max_batch_size=1) as lone:
        expected = [lone.generate([prompt])[0] for prompt in prompts]
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    found: dict[int, GenerationResult] = {}
    with Engine(bundle, backend, max_batch_size=8) as engine:

        def work(start: int) -> None:
            for index in range(start, 24, 4):
                found[index] = engine.generate([prompts[index]])[0]

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, result in enumerate(expected):
        assert_same(found[index], result)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
def test_an_interrupted_engine_is_usable_again(tmp_path: Path, error: BaseException) -> None:
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    with Engine(bundle, backend, max_batch_size=4) as engine:
        prompts = random_prompts(9)
        expected = engine.generate(prompts)
        backend.fail_at_step = error
        with pytest.raises(type(error)):
            engine.generate(prompts)
        assert engine._scheduler.running == engine._scheduler.waiting == 0
        for ours, theirs in zip(engine.generate(prompts), expected, strict=True):
            assert_same(ours, theirs)


def test_a_failed_step_fails_the_sequences_of_others(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    with Engine(bundle, backend) as engine:
        other = engine.stream([5, 6, 7], GenerationConfig(min_new_tokens=40))
        next(other)
        backend.fail_at_step = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            engine.generate([[8, 9]])
        with pytest.raises(DrlError, match="cut short: interrupted"):
            list(other)


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.generate([[4]])


def test_skipped_layers_own_no_memory(tmp_path: Path) -> None:
    with toy_engine(tmp_path) as engine:
        engine.generate(random_prompts(4), path="fast")
        fast, mid, full = (lane.cache.nbytes for lane in engine._scheduler.lanes)
        assert mid == full == 0
        engine.generate(random_prompts(4), path="full")
        full = engine._scheduler.lanes[2].cache.nbytes
    assert full > 2 * fast > 0


def test_a_batch_size_is_a_positive_number(tmp_path: Path) -> None:
    for wrong in (0, -1, True, None, "4", 2.5):
        with pytest.raises(BackendError, match="max_batch_size must be at least 1"):
            toy_engine(tmp_path, max_batch_size=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [3, None, b"bundle"])
def test_a_bundle_is_named_by_a_path(wrong: object) -> None:
    with pytest.raises(DrlError, match="must be given as the path of its folder"):
        Engine.from_bundle(wrong)  # type: ignore[arg-type]


def test_extreme_options_that_single_precision_holds_are_served(engine: Engine) -> None:
    for penalty in (1.2e-38, 3e38):
        config = GenerationConfig(
            repetition_penalty=penalty, temperature=1.2e-38, seed=1, min_new_tokens=20
        )
        with np.errstate(invalid="raise"):  # no NaN
            engine.generate([[5, 6, 7]], config)
    largest = GenerationConfig(temperature=3e38, top_k=2**63 - 1, seed=2**63 - 1)
    engine.generate([[5]], largest)


def test_the_backend_lets_go_of_a_cache_that_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drl.runtime.lane._KEPT_BYTES", 0)
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    with Engine(bundle, backend) as engine:
        engine.generate([[5]], path="mid")
    assert backend.released[0] == 1


@pytest.mark.parametrize("head", ["attention", "greedy", None])
def test_other_path_routers_work_in_batches(tmp_path: Path, head: str | None) -> None:
    prompts = random_prompts(8)
    with toy_engine(tmp_path, max_batch_size=1, head=head) as lone:
        expected = [lone.generate([prompt])[0] for prompt in prompts]
    with toy_engine(tmp_path, head=head) as engine:
        for ours, theirs in zip(engine.generate(prompts), expected, strict=True):
            assert_same(ours, theirs)


def test_a_forced_first_token_comes_first_and_only_first(tmp_path: Path) -> None:
    prompts = random_prompts(6)
    with toy_engine(tmp_path) as engine:
        free = engine.generate(prompts, GenerationConfig(max_new_tokens=6))
        for options in ({}, {"temperature": 5.0, "seed": 3, "top_p": 0.5}):
            config = GenerationConfig(max_new_tokens=6, forced_bos_token_id=7, **options)
            forced = engine.generate(prompts, config)
            assert {result.tokens[0] for result in forced} == {7}
            assert any(set(result.tokens[1:]) - {7} for result in forced)
        assert {result.tokens[0] for result in free if result.tokens} != {7}


def test_a_bundle_s_defaults_hold_where_nothing_else_is_asked(tmp_path: Path) -> None:
    generation = {"max_new_tokens": 3, "forced_bos_token_id": 5}
    with toy_engine(tmp_path, generation=generation) as engine:
        (result,) = engine.generate([[4, 5, 6]])
        assert len(result.tokens) <= 3
        assert result.tokens[0] == 5
        assert engine.configure(max_new_tokens=4).forced_bos_token_id == 5
        (free,) = engine.generate([[4, 5, 6]], GenerationConfig(max_new_tokens=4))
        assert free.tokens[:1] != [5]


def test_a_token_is_found_by_its_text_or_its_id(tmp_path: Path) -> None:
    with toy_engine(tmp_path) as engine:
        token = engine.tokenizer.token(9) if engine.tokenizer else None
        assert token is not None
        assert engine.token_id(token) == 9
        assert engine.token_id("9") == 9 or token == "9"
        with pytest.raises(DrlError, match="no token 'xx_XX'"):
            engine.token_id("xx_XX")


def test_defaults_that_are_no_options_are_a_damaged_bundle(tmp_path: Path) -> None:
    with pytest.raises(DrlError, match=r"bundle\.json: generation: unknown generation option"):
        toy_engine(tmp_path, generation={"num_bems": 3})
