"""Outputs that begin with a given prefix: the decoder reads it in one pass and goes on from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.runtime import Engine, GenerationConfig, GenerationResult, RequestError
from tests.runtime.comparing import MODES, assert_idle, assert_same, random_prompts
from tests.runtime.toy import EOS, VOCAB_SIZE, ToyBackend, toy_bundle, toy_engine

pytestmark = pytest.mark.usefixtures("ranking")

PREFIXES: list[Any] = [None, [9], [], list(range(30, 50)), "ab c", [7, 8, 9], np.array([5, 5])]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return toy_engine(tmp_path)


def generated(result: GenerationResult) -> list[int]:
    return result.tokens[result.prefix_tokens :]


def test_a_generation_goes_on_from_its_own_beginning(engine: Engine) -> None:
    for prompt in random_prompts(6):
        options: dict[str, Any] = {"path": "full", "return_experts": True, "top_logprobs": 2}
        (whole,) = engine.generate([prompt], min_new_tokens=12, **options)
        for cut in (1, 5, 11):
            (found,) = engine.generate(
                [prompt], prefixes=[whole.tokens[:cut]], min_length=13, **options
            )
            assert found.prefix_tokens == cut
            assert found.tokens == whole.tokens
            assert found.text == whole.text
            assert found.finish_reason == whole.finish_reason
            np.testing.assert_allclose(found.logprobs, whole.logprobs, rtol=1e-6)
            assert found.timings.steps == whole.timings.steps - cut
            assert found.experts is not None
            assert whole.experts is not None
            for layer, ids in whole.experts.decoder.items():
                np.testing.assert_array_equal(found.experts.decoder[layer], ids)


@pytest.mark.parametrize("mode", MODES)
def test_ragged_prefixes_in_a_batch_give_what_each_gives_alone(tmp_path: Path, mode: str) -> None:
    options: dict[str, Any] = {"return_experts": True, "top_logprobs": 2, **MODES[mode]}
    prompts = random_prompts(len(PREFIXES), seed=3)
    with toy_engine(tmp_path) as lone:
        expected = [
            lone.generate([prompt], prefixes=[prefix], **options)[0]
            for prompt, prefix in zip(prompts, PREFIXES, strict=True)
        ]
    with toy_engine(tmp_path, max_batch_size=17) as engine:
        found = engine.generate(prompts, prefixes=PREFIXES, **options)
        assert_idle(engine)
    for ours, theirs, prefix in zip(found, expected, PREFIXES, strict=True):
        assert_same(ours, theirs)
        given = 0 if prefix is None else 2 if isinstance(prefix, str) else len(prefix)
        assert ours.prefix_tokens == given or isinstance(prefix, str)


def test_a_prefix_that_joins_others_under_way_disturbs_nobody(tmp_path: Path) -> None:
    prompts = random_prompts(20, seed=8)
    random = np.random.default_rng(0)
    prefixes = [random.integers(2, VOCAB_SIZE, random.integers(0, 20)).tolist() for _ in prompts]
    with toy_engine(tmp_path, max_batch_size=1) as lone:
        expected = lone.generate(prompts, prefixes=prefixes)
    with toy_engine(tmp_path, max_batch_size=5) as engine:
        for ours, theirs in zip(engine.generate(prompts, prefixes=prefixes), expected, strict=True):
            assert_same(ours, theirs)


def test_a_text_prefix_is_part_of_the_text(engine: Engine) -> None:
    assert engine.tokenizer is not None
    prefix = "ab 中国: "
    ids = engine.tokenizer.encode(prefix, special_tokens=False)
    (text,) = engine.generate(["x y"], prefixes=[prefix])
    (tokens,) = engine.generate(["x y"], prefixes=[ids])
    assert_same(text, tokens)
    assert text.prefix_tokens == len(ids)
    assert text.text.startswith("ab 中国:")
    assert EOS not in ids


@pytest.mark.parametrize("mode", MODES)
def test_the_tokens_of_a_prefix_score_as_the_scorer_says(engine: Engine, mode: str) -> None:
    prefix = [20, 30, 40, 50]
    (found,) = engine.generate([[5, 6, 7]], prefixes=[prefix], path="full", **MODES[mode])
    (score,) = engine.score([[5, 6, 7]], [prefix], path="full", end=False)
    for result in (found, *found.alternatives):
        assert result.tokens[:4] == prefix
        assert result.logprobs is not None
        assert len(result.logprobs) == len(result.tokens)
        np.testing.assert_allclose(result.logprobs[:4], score.logprobs, rtol=1e-6)


def test_the_score_of_beams_leaves_the_prefix_out(engine: Engine) -> None:
    config = GenerationConfig(num_beams=3, min_new_tokens=5, max_new_tokens=5)
    (found,) = engine.generate([[5, 6]], config, prefixes=[[9, 8, 7]])
    assert found.logprobs is not None
    assert found.score == pytest.approx(sum(found.logprobs[3:]) / 5, rel=1e-5)


def test_samples_of_a_prefix_differ_behind_it(engine: Engine) -> None:
    (found,) = engine.generate(
        ["ab"], prefixes=[[9, 8]], temperature=2.0, seed=1, num_return_sequences=4
    )
    results = (found, *found.alternatives)
    assert {tuple(result.tokens[:2]) for result in results} == {(9, 8)}
    assert len({tuple(result.tokens) for result in results}) > 2
    assert all(result.prefix_tokens == 2 for result in results)


@pytest.mark.parametrize("mode", MODES)
def test_experts_are_those_of_every_token_read(tmp_path: Path, mode: str) -> None:
    prefix = [20, 30, 40]
    bundle = toy_bundle(tmp_path)
    start = bundle.manifest.tokens.start
    with Engine(bundle, ToyBackend(bundle.manifest), max_batch_size=8) as engine:
        (found,) = engine.generate(
            ["ab"],
            prefixes=[prefix],
            path="full",
            return_experts=True,
            min_new_tokens=4,
            max_new_tokens=4,
            **MODES[mode],
        )
    for result in (found, *found.alternatives):
        assert result.experts is not None
        read = [start, *result.tokens[:-1]]
        for layer, ids in result.experts.decoder.items():
            expected = np.stack([np.array(read) % 7, np.array(read) % 2], -1) + layer
            np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("mode", ["greedy", "samples", "beams"])
def test_a_stop_string_of_the_prefix_stops_nothing(engine: Engine, mode: str) -> None:
    options = {**MODES[mode], "min_new_tokens": 12, "max_new_tokens": 12}
    (free,) = engine.generate(["x"], prefixes=["ab. c"], **options)
    stops = [". c", "b.", ". c and more"]
    (found,) = engine.generate(["x"], prefixes=["ab. c"], stop_strings=stops, **options)
    assert "ab. c" in free.text
    assert_same(found, free)


@pytest.mark.parametrize("mode", ["greedy", "samples", "beams"])
def test_a_stop_string_may_begin_in_the_prefix(engine: Engine, mode: str) -> None:
    assert engine.tokenizer is not None
    prefix, (z,) = "ab. c", engine.tokenizer.encode("z", special_tokens=False)
    behind = 1 + len(engine.tokenizer.encode(prefix, special_tokens=False))
    (found,) = engine.generate(
        ["x"],
        prefixes=[prefix],
        stop_strings=[" cz"],
        forced_decoder_ids=[(behind, z)],
        **MODES[mode],
    )
    for result in (found, *found.alternatives):
        assert result.finish_reason == "stop"
        assert result.text == "ab."
        assert generated(result) == [z]


def test_lengths_count_the_prefix_where_they_say_so(engine: Engine) -> None:
    prefix = list(range(20, 30))

    def count(**options: Any) -> int:
        (result,) = engine.generate([[5]], prefixes=[prefix], min_new_tokens=1, **options)
        return len(generated(result))

    assert count(max_new_tokens=3) <= 3
    assert count(max_length=14) <= 3
    assert count(min_length=14) >= 3
    (result,) = engine.generate([[5]], prefixes=[prefix], min_length=48)
    assert len(result.tokens) >= 47
    (result,) = engine.generate([[5]], prefixes=[prefix], min_new_tokens=38)
    assert len(result.tokens) == 48
    assert result.finish_reason == "length"


@pytest.mark.parametrize(
    ("prefix", "options", "message"),
    [
        ([5] * 49, {}, "the prefix of prompt 0 has 49 tokens and the model reads 48"),
        ([5] * 48, {}, "a prefix of 48 tokens leaves no room in the model's cache"),
        ([5] * 40, {"max_new_tokens": 9}, "max_new_tokens 9 exceeds .* 48 behind a prefix of 40"),
        ([5] * 9, {"max_length": 10}, "max_length 10 leaves no room .* a prefix of 9"),
        ([5] * 9, {"max_length": 50}, "max_length 50 exceeds the model's cache of 48"),
        ([5] * 40, {"min_new_tokens": 9}, "min_new_tokens 9 exceeds the 8 tokens .* prefix of 40"),
        ([VOCAB_SIZE], {}, f"the prefix of prompt 0 has token id {VOCAB_SIZE}"),
        ([1.5], {}, "the prefix of prompt 0 holds 1.5"),
        (7, {}, "the prefix of prompt 0 must be a string or a list"),
        ("\ud800", {}, "the prefix of prompt 0: the text is not valid Unicode"),
    ],
)
def test_prefixes_that_cannot_be_served_are_refused(
    engine: Engine, prefix: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate([[4]], prefixes=[prefix], **options)
    with pytest.raises(RequestError):
        engine.stream([4], prefix=prefix, **options)


def test_there_is_a_prefix_for_each_prompt(engine: Engine) -> None:
    with pytest.raises(RequestError, match="2 prefixes for 1 prompts; give one each"):
        engine.generate([[4]], prefixes=["a", "b"])
    with pytest.raises(RequestError, match="prefixes must be a list, one for each prompt, not str"):
        engine.generate([[4]], prefixes="a")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"'prefix' is no option .* give prefixes"):
        engine.generate([[4]], prefix="a")


def test_prefixes_are_read_in_turns_where_logits_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, prefixes = random_prompts(6), [[9] * count for count in (4, 0, 6, 1, 6, 3)]
    with toy_engine(tmp_path, max_batch_size=6) as engine:
        expected = engine.generate(prompts, prefixes=prefixes, path="full")
    monkeypatch.setattr("drl.runtime.lane._PREFILL_LOGITS", 2 * 6 * VOCAB_SIZE)
    bundle = toy_bundle(tmp_path)
    backend = ToyBackend(bundle.manifest)
    with Engine(bundle, backend, max_batch_size=6) as engine:
        found = engine.generate(prompts, prefixes=prefixes, path="full")
    assert [rows for _, rows in backend.stepped_rows[:4]] == [2, 2, 2, 6]
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["tiny_bundle", "dense_bundle"])
@pytest.mark.parametrize("mode", ["greedy", "samples", "n-best"])
def test_ragged_prefixes_of_a_real_bundle(
    name: str, mode: str, request: pytest.FixtureRequest
) -> None:
    prompts = [[5, 6, 7], [9] * 20, [30, 31], [12, 40, 2, 7]]
    prefixes = [None, [20, 21, 22, 23, 24], [33], [8] * 30]
    options: dict[str, Any] = {"max_new_tokens": 8, "path": 0, **MODES[mode]}
    with Engine.from_bundle(request.getfixturevalue(name), threads=1) as engine:
        expected = [
            engine.generate([prompt], prefixes=[prefix], **options)[0]
            for prompt, prefix in zip(prompts, prefixes, strict=True)
        ]
        found = engine.generate(prompts, prefixes=prefixes, **options)
        scores = engine.score(prompts, [each.tokens or [5] for each in found], path=0, end=False)
    for ours, theirs, score in zip(found, expected, scores, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.finish_reason == theirs.finish_reason
        assert ours.logprobs is not None
        assert np.isfinite(ours.logprobs).all()
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
        if ours.tokens:
            np.testing.assert_allclose(ours.logprobs, score.logprobs, atol=1e-4)
