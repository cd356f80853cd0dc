"""Generation with a toy backend: what a batch, a queue or a thread gives, a lone run gives too."""

from dataclasses import replace
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
from tests.runtime.comparing import MODES, assert_same, random_prompts
from tests.runtime.toy import EOS, VOCAB_SIZE, toy_engine

pytestmark = pytest.mark.usefixtures("ranking")


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


@pytest.mark.parametrize("mode", MODES)
def test_every_search_is_independent_of_the_batch(tmp_path: Path, mode: str) -> None:
    prompts = random_prompts(14, seed=6)
    options = {**MODES[mode], "top_logprobs": 2, "return_experts": True}
    with toy_engine(tmp_path) as lone:
        expected = [lone.generate([prompt], **options)[0] for prompt in prompts]
    with toy_engine(tmp_path, max_batch_size=13) as engine:
        for ours, theirs in zip(engine.generate(prompts, **options), expected, strict=True):
            assert_same(ours, theirs)


def test_searches_of_all_kinds_share_an_engine(tmp_path: Path) -> None:
    prompts = random_prompts(3 * len(MODES), seed=7)
    with toy_engine(tmp_path) as lone:
        modes = [lone.configure(**mode) for mode in MODES.values()] * 3
        expected = [lone.generate([prompts[i]], mode)[0] for i, mode in enumerate(modes)]
    with toy_engine(tmp_path, max_batch_size=9) as engine:
        for ours, theirs in zip(engine.generate(prompts, modes), expected, strict=True):
            assert_same(ours, theirs)


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
