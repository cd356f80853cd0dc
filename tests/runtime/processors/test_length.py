"""Minimum lengths and the length penalty against transformers'."""

import numpy as np
import pytest
from transformers import (
    ExponentialDecayLengthPenalty,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
)

from drl.runtime.processors.length import ExponentialDecay, MinLength, MinNewTokens
from tests.runtime.processors.states import Row, assert_same_over_many, make_state

ENDS = (1, 7)


@pytest.mark.parametrize("length", [2, 5, 100])
def test_ends_are_barred_below_the_minimum_as_in_transformers(length: int) -> None:
    assert_same_over_many(
        MinLength(length, ENDS), lambda row: MinLengthLogitsProcessor(length, list(ENDS))
    )


@pytest.mark.parametrize("count", [2, 5, 100])
def test_ends_are_barred_from_the_first_new_tokens_as_in_transformers(count: int) -> None:
    assert_same_over_many(
        MinNewTokens(count, ENDS),
        lambda row: MinNewTokensLengthLogitsProcessor(row.prompt, count, list(ENDS)),
    )


def test_the_start_token_counts_for_the_length_and_not_for_the_new_tokens() -> None:
    state = make_state([Row([0, 3, 3]), Row([0, 3, 3], prompt=2)])
    scores = np.zeros((2, 2), np.float32)
    assert np.isneginf(MinLength(3, (1,))(state, scores.copy())[:, 1]).tolist() == [False, False]
    assert np.isneginf(MinLength(4, (1,))(state, scores.copy())[:, 1]).tolist() == [True, True]
    assert np.isneginf(MinNewTokens(2, (1,))(state, scores.copy())[:, 1]).tolist() == [False, True]


@pytest.mark.parametrize(("start", "factor"), [(0, 1.01), (2, 1.5), (4, 0.8), (1, 3.0)])
def test_ends_grow_likelier_as_in_transformers(start: int, factor: float) -> None:
    assert_same_over_many(
        ExponentialDecay(start, factor, ENDS),
        lambda row: ExponentialDecayLengthPenalty((start, factor), list(ENDS), row.prompt),
    )


def test_the_reward_raises_positive_and_negative_scores() -> None:
    scores = np.array([[2.0, -2.0, 2.0]], np.float32)
    found = ExponentialDecay(1, 2.0, (0, 1))(make_state([Row([0, 5, 5, 5])]), scores)
    assert found.tolist() == [[8.0, 4.0, 2.0]]  # 2 + 2 (2^2 - 1), -2 + 2 (2^2 - 1)


def test_an_enormous_reward_stays_finite_and_barred_ends_stay_barred() -> None:
    scores = np.array([[2.0, -np.inf, 0.0]], np.float32)
    found = ExponentialDecay(0, 1e30, (0, 1, 2))(make_state([Row([5] * 90)]), scores)
    assert found[0, 0] == np.finfo(np.float32).max
    assert found[0, 1:].tolist() == [-np.inf, 0.0]


def test_ends_outside_the_vocabulary_are_ignored() -> None:
    state = make_state([Row([0, 2])])
    scores = np.ones((1, 3), np.float32)
    for processor in (MinLength(9, (1, 8)), MinNewTokens(9, (1, 8))):
        assert processor(state, scores.copy()).tolist() == [[1.0, -np.inf, 1.0]]
    assert ExponentialDecay(0, 2.0, (1, 8))(state, scores.copy()).tolist() == [[1.0, 2.0, 1.0]]
