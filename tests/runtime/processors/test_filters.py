"""Which tokens the sampling filters leave, against transformers'."""

from typing import Any

import numpy as np
import pytest

from drl.runtime import GenerationConfig
from drl.runtime.processors.sampling import Sampler
from tests.runtime.processors.warpers import expected_probabilities

SINGLE: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    *({"top_k": value} for value in (1, 5, 255, 256, 300, 5000, 9999)),
    *({"top_p": value} for value in (1e-9, 0.3, 0.9, 0.99, 1.0)),
    *({"min_p": value} for value in (0.0, 0.01, 0.3, 1.0)),
    *({"typical_p": value} for value in (0.01, 0.2, 0.7, 0.95, 1.0)),
    *({"epsilon_cutoff": value} for value in (1e-5, 3e-4, 0.02, 0.9)),
    *({"eta_cutoff": value} for value in (1e-5, 3e-4, 0.02, 0.9)),
]
VALUES: dict[str, list[Any]] = {
    "temperature": [0.5, 1.0, 1.9],
    "top_k": [None, 3, 40, 700],
    "top_p": [None, 0.4, 0.95],
    "min_p": [None, 0.01, 0.2],
    "typical_p": [None, 0.3, 0.9],
    "epsilon_cutoff": [0.0, 1e-4, 0.02],
    "eta_cutoff": [0.0, 1e-3, 0.05],
}


def found_probabilities(scores: np.ndarray, configs: list[GenerationConfig], least: int) -> Any:
    ids, probabilities = Sampler(configs, least).candidates(scores, np.empty_like(scores))
    found = np.zeros(scores.shape)
    for row, tokens in enumerate(ids):
        # padding has the id 0, which may be a token as well
        np.add.at(found[row], tokens, probabilities[row])
    return found


# Sums over whole vocabularies are in single precision: of random scores, a token that lies on a
# limit to the seventh digit may come out either way. No seed here draws one.
def check(scores: np.ndarray, configs: list[GenerationConfig], least: int) -> None:
    found = found_probabilities(scores, configs, least)
    for row, config in enumerate(configs):
        expected = expected_probabilities(scores[row], config, least)
        assert np.flatnonzero(found[row]).tolist() == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


@pytest.mark.parametrize("options", SINGLE)
@pytest.mark.parametrize("least", [1, 3])
def test_each_filter_leaves_what_transformers_leaves(options: dict[str, Any], least: int) -> None:
    config = GenerationConfig(do_sample=True, **options)
    random = np.random.default_rng(6)
    for vocab_size in (2, 40, 300, 6000):
        for spread in (0.05, 1.0, 5.0):  # nearly uniform: many tokens to look at
            scores = (random.normal(size=(3, vocab_size)) * spread).astype(np.float32)
            check(scores, [config] * 3, least)


@pytest.mark.parametrize("seed", range(25))
def test_filters_together_leave_what_transformers_leaves(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = 12
    configs = [
        GenerationConfig(
            do_sample=True,
            **{name: values[random.integers(len(values))] for name, values in VALUES.items()},
        )
        for _ in range(rows)
    ]
    spreads = random.choice([0.05, 1.0, 5.0], (rows, 1))
    scores = (random.normal(size=(rows, 1500)) * spreads).astype(np.float32)
    check(scores, configs, int(random.integers(1, 4)))


@pytest.mark.parametrize("options", SINGLE)
@pytest.mark.parametrize("least", [1, 3])
def test_ties_are_kept_or_barred_as_in_transformers(options: dict[str, Any], least: int) -> None:
    # Which of equally likely tokens top-p keeps is a matter of sorting; how many is not.
    config = GenerationConfig(do_sample=True, **options)
    random = np.random.default_rng(2)
    for vocab_size in (40, 900):
        scores = np.round(random.normal(size=(2, vocab_size)) * 2, 1).astype(np.float32)
        scores[:, random.integers(0, vocab_size, 9)] = -np.inf
        found = found_probabilities(scores, [config] * 2, least)
        for row in range(2):
            expected = expected_probabilities(scores[row], config, least)
            np.testing.assert_allclose(np.sort(found[row]), np.sort(expected), rtol=1e-9)


def test_candidates_come_best_first_with_padding_behind() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(3, 500)).astype(np.float32)
    configs = [
        GenerationConfig(do_sample=True, top_k=4),
        GenerationConfig(do_sample=True),
        GenerationConfig(do_sample=True, typical_p=0.2),
    ]
    ids, probabilities = Sampler(configs).candidates(scores, np.empty_like(scores))
    assert ids.shape == probabilities.shape == (3, 500)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.count_nonzero(probabilities[0]) == 4
    for row in range(3):
        likely = probabilities[row] > 0
        assert (np.diff(probabilities[row][likely]) <= 0).all()
        assert (np.diff(scores[row, ids[row][likely]]) <= 0).all()
    assert ids[1].tolist() == np.argsort(-scores[1], kind="stable").tolist()


@pytest.mark.parametrize("seed", range(8))
def test_candidates_of_a_row_do_not_depend_on_the_others(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = 7
    configs = [
        GenerationConfig(
            do_sample=True,
            **{name: values[random.integers(len(values))] for name, values in VALUES.items()},
        )
        for _ in range(rows)
    ]
    spreads = random.choice([0.01, 1.0, 8.0], (rows, 1))
    scores = np.round(random.normal(size=(rows, 5000)) * spreads, 2).astype(np.float32)
    ids, probabilities = Sampler(configs).candidates(scores, np.empty_like(scores))
    for row, config in enumerate(configs):
        one = scores[row : row + 1]
        own_ids, own = Sampler([config]).candidates(one, np.empty_like(one))
        depth = own.shape[1]
        assert own_ids[0].tolist() == ids[row, :depth].tolist()
        assert own[0].tobytes() == probabilities[row, :depth].tobytes()
        assert not probabilities[row, depth:].any()


@pytest.mark.parametrize("options", SINGLE)
def test_a_row_without_allowed_tokens_has_no_candidates_and_an_infinite_score_wins(
    options: dict[str, Any],
) -> None:
    scores = np.zeros((2, 400), np.float32)
    scores[0] = -np.inf
    scores[1, 7] = np.inf
    configs = [GenerationConfig(do_sample=True, **options)] * 2
    ids, probabilities = Sampler(configs).candidates(scores, np.empty_like(scores))
    assert not probabilities[0].any()
    assert (ids[1, 0], probabilities[1, 0]) == (7, 1.0)
    tokens = Sampler(configs).sample(scores, np.array([0.9, 0.9]), np.empty_like(scores))
    assert tokens.tolist() == [0, 7]
