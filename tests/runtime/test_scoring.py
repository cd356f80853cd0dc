"""`score`: log-probabilities of given targets, as generation reports them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.runtime import BackendError, Engine, RequestError
from tests.runtime.comparing import assert_same, hooked, random_prompts
from tests.runtime.toy import EOS, VOCAB_SIZE, toy_engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return toy_engine(tmp_path, max_batch_size=8)


@pytest.mark.parametrize("path", ["auto", "fast", "mid", "full"])
def test_scores_are_the_log_probabilities_of_generation(engine: Engine, path: str) -> None:
    prompts = random_prompts(12)
    results = engine.generate(prompts, path=path, max_new_tokens=20)
    kept = [index for index, result in enumerate(results) if result.tokens]
    scores = engine.score(
        [prompts[index] for index in kept],
        [results[index].tokens for index in kept],
        path=path,
        end=False,
    )
    assert len(kept) > 8
    for index, score in zip(kept, scores, strict=True):
        assert score.tokens == results[index].tokens
        assert score.path == results[index].path
        np.testing.assert_allclose(score.logprobs, results[index].logprobs, rtol=1e-6)
        assert score.total == pytest.approx(sum(score.logprobs))
        assert score.perplexity == pytest.approx(np.exp(-np.mean(score.logprobs)))


def test_the_end_is_scored_where_it_is_asked_for(engine: Engine) -> None:
    (without,) = engine.score([[5, 6]], [[7, 8]], end=False)
    (with_end,) = engine.score([[5, 6]], [[7, 8]])
    (given,) = engine.score([[5, 6]], [[7, 8, EOS]])
    assert with_end.tokens == given.tokens == [7, 8, EOS]
    assert with_end.logprobs == given.logprobs
    assert with_end.logprobs[:2] == without.logprobs
    (beam,) = engine.generate([[5, 6]], num_beams=2, length_penalty=0.0)
    (score,) = engine.score([[5, 6]], [beam.tokens], path=beam.path)
    assert beam.finish_reason == "eos"
    assert beam.score == pytest.approx(score.total, rel=1e-5)


def test_an_empty_target_has_an_end_to_score(engine: Engine) -> None:
    for empty in ("", []):
        (score,) = engine.score([[5, 6]], [empty])
        assert score.tokens == [EOS]
        assert len(score.logprobs) == 1
        with pytest.raises(RequestError, match="target 0 is empty; give it at least one token"):
            engine.score([[5, 6]], [empty], end=False)


def test_probabilities_of_every_first_token_sum_to_one(engine: Engine) -> None:
    targets = [[token] for token in range(VOCAB_SIZE)]
    scores = engine.score([[5, 6, 7]] * VOCAB_SIZE, targets, end=False)
    assert sum(np.exp(score.total) for score in scores) == pytest.approx(1.0, rel=1e-5)


def test_ragged_batches_score_as_each_pair_alone(tmp_path: Path) -> None:
    sources, targets = random_prompts(30), random_prompts(30, seed=1)
    engine, backend = hooked(tmp_path, max_batch_size=1)
    expected = [engine.score([s], [t])[0] for s, t in zip(sources, targets, strict=True)]
    engine, backend = hooked(tmp_path, max_batch_size=7)
    found = engine.score(sources, targets)
    assert found == expected
    assert sum(rows for _, rows in backend.stepped_rows) == 30
    assert len(backend.encoded_rows) == 5
    assert engine.score([], []) == []


def test_many_logits_are_made_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, targets = random_prompts(9), [[6] * (index + 1) for index in range(9)]
    engine, backend = hooked(tmp_path, max_batch_size=8)
    expected = engine.score(sources, targets)
    monkeypatch.setattr("drl.runtime.scoring._MOST_LOGITS", 10 * VOCAB_SIZE)
    backend.encoded_rows.clear()
    assert engine.score(sources, targets) == expected
    assert backend.encoded_rows == [2, 2, 1, 1, 1, 1, 1]  # of 2 to 10 tokens


def test_text_is_scored_behind_the_language_that_the_model_forces(tmp_path: Path) -> None:
    with toy_engine(tmp_path, generation={"forced_bos_token_id": 9}) as engine:
        assert engine.tokenizer is not None
        ids = engine.tokenizer.encode("ab", special_tokens=False)
        (text,) = engine.score(["x"], ["ab"])
        (tokens,) = engine.score(["x"], [ids])
    assert text.tokens == [9, *ids, EOS]
    assert tokens.tokens == [*ids, EOS]


def test_options_of_generation_change_no_score(tmp_path: Path) -> None:
    generation = {"repetition_penalty": 2.0, "temperature": 3.0, "suppress_tokens": [6]}
    with toy_engine(tmp_path) as plain, toy_engine(tmp_path, generation=generation) as changed:
        assert plain.score([[5]], [[6, 6]]) == changed.score([[5]], [[6, 6]])


@pytest.mark.parametrize(
    ("sources", "targets", "options", "message"),
    [
        ([[5]], [[5] * 49], {}, "target 0 has 49 tokens and the model reads 48"),
        ([[5]], [[5] * 48], {}, "target 0 has 49 tokens with its end and the model reads 48"),
        ([[5], [6]], [[5]], {}, "1 targets for 2 sources; give one each"),
        ("ab", ["ab"], {}, "sources must be a list, not str"),
        (["ab"], "ab", {}, "targets must be a list, not str"),
        (["ab"], None, {}, "targets must be a list, not NoneType"),
        ([[]], [[5]], {}, "source 0 is empty"),
        ([[5], [5]], [[5], [VOCAB_SIZE]], {}, f"target 1 has token id {VOCAB_SIZE}"),
        ([[5]], [[5]], {"path": "no"}, "no path 'no'"),
        ([[5]], [[5]], {"budget": 2}, "budget must be a number from 0 to 1"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(
    engine: Engine, sources: Any, targets: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        engine.score(sources, targets, **options)


def test_the_longest_target_is_scored(engine: Engine) -> None:
    (score,) = engine.score([[5]], [[6] * 47])
    assert len(score.logprobs) == 48


def test_scoring_beside_generation_disturbs_neither(engine: Engine) -> None:
    (expected,) = engine.generate(["ab"], min_new_tokens=20)
    score = engine.score([[5]], [[6, 7]])
    for path in ("auto", "full"):
        stream = engine.stream("ab", min_new_tokens=20)
        pieces = [next(stream)]
        for piece in stream:
            pieces.append(piece)
            assert engine.score([[5]], [[6, 7]], path=path)[0].tokens == [6, 7, EOS]
        assert pieces[-1].result is not None
        assert_same(pieces[-1].result, expected)
    assert engine.score([[5]], [[6, 7]]) == score


def test_scoring_keeps_no_memory(tmp_path: Path) -> None:
    engine, backend = hooked(tmp_path)
    engine.score(random_prompts(6), random_prompts(6, seed=1), path="full")
    assert backend.released == [(2, 1)] * 2
    backend.fail_at_step = RuntimeError("broken")
    backend.released.clear()
    with pytest.raises(RuntimeError, match="broken"):
        engine.score([[5]], [[6]], path="full")
    assert backend.released == [(2, 1)]
    assert engine.score([[5]], [[6]])


def test_a_closed_engine_scores_nothing(engine: Engine) -> None:
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.score([[5]], [[6]])
