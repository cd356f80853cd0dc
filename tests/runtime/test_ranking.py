"""Decoders that rank: the same results as from whole rows, and whole rows only where they must be.

The toys here round their logits, so that equal ones are common.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.runtime import Engine, GenerationResult
from drl.runtime.arrays import Float32
from drl.runtime.backends import StepInputs, StepOutputs
from drl.runtime.processors import DecodingState
from tests.runtime.comparing import MODES, assert_same, random_prompts
from tests.runtime.toy import EOS, VOCAB_SIZE, ToyBackend, toy_bundle

PREFIXES: list[Any] = [None, [9], list(range(30, 40)), "ab c", [7, 8, 9], None]
TOP_K = {"temperature": 1.4, "top_k": 20, "seed": 6}

# Options, and how many candidates they take at the most; 0 where steps need whole rows.
OPTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "greedy": ({}, 1),
    "no logprobs": ({"logprobs": False}, 1),
    "top logprobs": ({"top_logprobs": 5}, 5),
    "few top logprobs": ({"top_logprobs": 1, "min_new_tokens": 9, "stop_token_ids": (3, 4)}, 4),
    "minimum": ({"min_new_tokens": 12}, 2),
    "minimal length": ({"min_length": 12, "min_new_tokens": 3, "stop_token_ids": (70, 71)}, 4),
    "suppressed": ({"suppress_tokens": list(range(40, 90)), "top_logprobs": 3}, 51),
    "many suppressed": ({"suppress_tokens": list(range(40, 110))}, 0),
    "begin": ({"begin_suppress_tokens": [EOS, *range(200, 230)]}, 32),
    "forced first": ({"forced_bos_token_id": 8, "begin_suppress_tokens": [40, 41]}, 3),
    "forced last": ({"forced_eos_token_id": [EOS, 9], "max_new_tokens": 9}, 1),
    "forced": ({"forced_decoder_ids": [(1, 5), (4, 6)], "min_new_tokens": 6}, 2),
    "decay": ({"exponential_decay_length_penalty": (9, 1.2), "min_new_tokens": 9}, 2),
    "penalty": ({"repetition_penalty": 1.3, "min_new_tokens": 5}, 0),
    "bias": ({"sequence_bias": {(5,): 1.5}}, 0),
    "valid": ({"remove_invalid_values": True}, 0),
    "stop strings": ({"stop_strings": ["a", "b c", "~"], "min_new_tokens": 4}, 2),
    "temperature": ({"temperature": 0.7, "seed": 1}, 0),
    "top-p": ({"temperature": 0.7, "top_p": 0.9, "seed": 1}, 0),
    "min-p": ({"temperature": 0.7, "min_p": 0.1, "seed": 1}, 0),
    "top-k": (TOP_K, 21),
    "top-1": ({**TOP_K, "top_k": 1, "min_new_tokens": 20}, 3),
    "top-k, minimum": ({**TOP_K, "min_new_tokens": 20, "top_logprobs": 30}, 30),
    "top-k, top-p": ({**TOP_K, "top_p": 0.8, "suppress_tokens": list(range(40, 90))}, 71),
    "top-k, min-p": ({**TOP_K, "top_p": 0.95, "min_p": 0.1}, 21),
    "top-k, typical": ({**TOP_K, "typical_p": 0.6}, 21),
    "top-k, cutoffs": ({**TOP_K, "epsilon_cutoff": 0.03, "eta_cutoff": 0.04}, 21),
    "top-k, cold": ({**TOP_K, "temperature": 1e-30}, 21),
    "top-k, hot": ({**TOP_K, "temperature": 1e30}, 21),
    "samples of top-k": ({**TOP_K, "top_p": 0.9, "num_return_sequences": 3}, 21),
    "too large a top-k": ({**TOP_K, "top_k": 257}, 0),
    "beams": ({"num_beams": 3, "top_logprobs": 2}, 7),
    "beams, stops": ({"num_beams": 3, "stop_token_ids": (40, 41), "min_new_tokens": 9}, 16),
    "n-best": ({"num_beams": 4, "num_return_sequences": 3, "early_stopping": True}, 9),
    "beams, suppressed": ({"num_beams": 2, "suppress_tokens": list(range(9, 50))}, 46),
    "beams, forced": ({"num_beams": 3, "forced_bos_token_id": 7, "forced_eos_token_id": EOS}, 7),
    "beams, penalty": ({"num_beams": 3, "no_repeat_ngram_size": 2}, 0),
    "renormalised": ({"num_beams": 3, "renormalize_logits": True, "min_new_tokens": 5}, 0),
    "sampled beams": ({"num_beams": 3, "temperature": 0.8, "seed": 2}, 0),
    "top-k beams": ({"num_beams": 3, **TOP_K, "min_new_tokens": 6, "top_logprobs": 1}, 22),
    "top-1 beams": ({"num_beams": 2, **TOP_K, "top_k": 1, "stop_token_ids": (7,)}, 4),
    "top-k beams, filters": ({"num_beams": 3, **TOP_K, "typical_p": 0.7, "top_p": 0.9}, 21),
    "top-k beams, renormalised": ({"num_beams": 3, **TOP_K, "renormalize_logits": True}, 21),
    "diverse": (MODES["diverse"], 0),
}


class RoundedBackend(ToyBackend):
    """The toy with logits that are multiples of a number."""

    step_size = 0.125

    def _row_logits(self, inputs: StepInputs, row: int, place: int) -> np.ndarray:
        logits = super()._row_logits(inputs, row, place)
        return np.round(logits / self.step_size) * self.step_size


class RankingBackend(RoundedBackend):
    ranks = True


def engine_of(folder: Path, kind: type[ToyBackend], rows: int = 12) -> tuple[Engine, ToyBackend]:
    bundle = toy_bundle(folder)
    backend = kind(bundle.manifest)
    return Engine(bundle, backend, rows), backend


def generate(engine: Engine, options: dict[str, Any]) -> list[GenerationResult]:
    options = {"return_experts": True, "path": "full", **options}
    prompts = random_prompts(len(PREFIXES), seed=5)
    return engine.generate(prompts, prefixes=PREFIXES, **options)


@pytest.mark.parametrize("step_size", [0.125, 2.0])
@pytest.mark.parametrize("name", OPTIONS)
def test_candidates_give_what_whole_rows_give(
    tmp_path: Path, name: str, step_size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoundedBackend, "step_size", step_size)
    options, most = OPTIONS[name]
    with engine_of(tmp_path, RoundedBackend)[0] as engine:
        expected = generate(engine, options)
    engine, backend = engine_of(tmp_path, RankingBackend)
    with engine:
        found = generate(engine, options)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    # A prefix of which nothing is reported takes the likeliest token and looks at none.
    unread = not options.get("logprobs", True)
    assert set(backend.candidates) <= {0, most, *([1] if unread else [])}
    assert backend.candidates.count(most) > 5


@pytest.mark.parametrize("step_size", [0.125, 2.0])
@pytest.mark.parametrize("whole", [True, False], ids=["all", "without whole rows"])
def test_mixed_requests_give_what_they_give_alone(
    tmp_path: Path, whole: bool, step_size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoundedBackend, "step_size", step_size)
    requests = [{"path": "full", **options} for options, most in OPTIONS.values() if whole or most]
    prompts = random_prompts(len(requests), seed=9)
    with engine_of(tmp_path, RoundedBackend, 4)[0] as lone:
        expected = [
            lone.generate([prompt], **options)[0]
            for prompt, options in zip(prompts, requests, strict=True)
        ]
    engine, backend = engine_of(tmp_path, RankingBackend, 9)
    with engine:
        made = (
            engine.request(prompt, **options)
            for prompt, options in zip(prompts, requests, strict=True)
        )
        found = dict(engine.run(made))
    assert len(set(backend.candidates)) > 5
    for number, theirs in enumerate(expected):
        assert_same(found[number], theirs)


@pytest.mark.parametrize(("beams", "usual"), [(1, 2), (3, 8)])
def test_a_forced_token_takes_whole_rows_for_its_step_alone(
    tmp_path: Path, beams: int, usual: int
) -> None:
    engine, backend = engine_of(tmp_path, RankingBackend)
    options = {"forced_decoder_ids": [(1, 5), (4, 6)], "min_new_tokens": 6, "max_new_tokens": 6}
    engine.generate([[5, 6]], path="full", num_beams=beams, **options)
    assert backend.candidates == [0, usual, usual, 0, usual, usual]


def test_ties_that_candidates_leave_open_are_settled_by_whole_rows(tmp_path: Path) -> None:
    """All tokens of one logit are kept where the last of top-k is one of them."""
    engine, backend = engine_of(tmp_path, RankingBackend)
    backend.head[:] = 0  # every token but the end token is as likely
    options = {"temperature": 1.0, "top_k": 3, "min_new_tokens": 30, "max_new_tokens": 30}
    (found,) = engine.generate([[5, 6]], path="full", seed=3, **options)
    assert backend.candidates == [5, 0] * 30
    assert len(set(found.tokens)) > 20
    assert found.timings.steps == 30


def test_beams_settle_ties_by_whole_rows_too(tmp_path: Path) -> None:
    results = []
    for kind in (RoundedBackend, RankingBackend):
        engine, backend = engine_of(tmp_path, kind)
        backend.head[:] = 0
        options = {"num_beams": 2, "temperature": 1.0, "top_k": 3, "seed": 3}
        results += engine.generate([[5, 6]], path="full", max_new_tokens=5, **options)
    assert 0 in backend.candidates
    assert {4} < set(backend.candidates)
    assert_same(*results)


def test_a_prefix_that_is_not_reported_takes_no_logits(tmp_path: Path) -> None:
    engine, backend = engine_of(tmp_path, RankingBackend)
    options: dict[str, Any] = {"path": "full", "max_new_tokens": 1, "suppress_tokens": [4, 5]}
    engine.generate([[5], [6]], prefixes=[[7, 8], None], logprobs=False, **options)
    engine.generate([[5], [6]], prefixes=[[7, 8], None], **options)
    assert backend.candidates == [1, 3, 0, 3]


def test_scores_take_whole_rows(tmp_path: Path) -> None:
    scores = []
    for kind in (RoundedBackend, RankingBackend):
        engine, backend = engine_of(tmp_path, kind)
        scores += engine.score([[5, 6]], [[7, 8, 9]], path="full")
    assert backend.candidates == [0]
    assert scores[0] == scores[1]


def test_a_processor_of_the_user_sees_whole_rows(tmp_path: Path) -> None:
    shapes = []

    def look(state: DecodingState, scores: Float32) -> Float32:
        shapes.append(scores.shape[1])
        return scores

    engine, backend = engine_of(tmp_path, RankingBackend)
    engine.generate([[5]], processors=[look], path="full", max_new_tokens=3)
    assert set(shapes) == {VOCAB_SIZE}
    assert set(backend.candidates) == {0}


def test_a_vocabulary_as_small_as_the_candidates_comes_whole(tmp_path: Path) -> None:
    engine, backend = engine_of(tmp_path, RankingBackend)
    (found,) = engine.generate([[5]], top_logprobs=VOCAB_SIZE, path="full", max_new_tokens=2)
    assert found.top_logprobs is not None
    assert len(found.top_logprobs[0]) == VOCAB_SIZE
    assert backend.candidates == [0, 0]


@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 3}, TOP_K, {"num_beams": 2}])
def test_nan_is_noticed_behind_the_candidates(tmp_path: Path, options: dict[str, Any]) -> None:
    class Broken(RankingBackend):
        def step(self, inputs: StepInputs) -> StepOutputs:
            outputs = super().step(inputs)
            if len(self.candidates) > 2:
                outputs.normalisers[:] = np.nan
            return outputs

    engine, _ = engine_of(tmp_path, Broken)
    with pytest.raises(Exception, match="logits hold NaN"):
        engine.generate([[5]], path="full", **options)
