"""Repetition penalties against transformers'."""

import numpy as np
import pytest
import torch
from transformers import EncoderRepetitionPenaltyLogitsProcessor, RepetitionPenaltyLogitsProcessor

from drl.runtime.processors.penalties import EncoderRepetitionPenalty, RepetitionPenalty
from tests.runtime.processors.states import Row, assert_same_over_many, make_state


@pytest.mark.parametrize("penalty", [1.3, 0.7, 50.0])
def test_tokens_of_the_row_are_penalised_as_in_transformers(penalty: float) -> None:
    assert_same_over_many(
        RepetitionPenalty(penalty), lambda row: RepetitionPenaltyLogitsProcessor(penalty)
    )


@pytest.mark.parametrize("penalty", [1.3, 0.7, 50.0])
def test_tokens_of_the_source_are_rewarded_as_in_transformers(penalty: float) -> None:
    assert_same_over_many(
        EncoderRepetitionPenalty(penalty),
        lambda row: EncoderRepetitionPenaltyLogitsProcessor(penalty, torch.tensor([row.source])),
    )


def test_a_token_that_came_twice_is_penalised_once() -> None:
    scores = np.array([[8.0, 8.0, -8.0]], np.float32)
    found = RepetitionPenalty(2.0)(make_state([Row([0, 2, 0, 2])]), scores)
    assert found.tolist() == [[4.0, 8.0, -16.0]]


def test_tokens_outside_the_vocabulary_are_ignored() -> None:
    state = make_state([Row([7, 1], source=(9, 0))])
    scores = np.ones((1, 3), np.float32)
    assert RepetitionPenalty(2.0)(state, scores.copy()).tolist() == [[1.0, 0.5, 1.0]]
    assert EncoderRepetitionPenalty(2.0)(state, scores.copy()).tolist() == [[2.0, 1.0, 1.0]]


def test_overflow_stays_finite_and_barred_tokens_stay_barred() -> None:
    scores = np.array([[3.0, -3.0, -np.inf, 0.0]], np.float32)
    state = make_state([Row([0, 1, 2, 3])])
    for penalty in (1e-38, 3e38):
        found = RepetitionPenalty(penalty)(state, scores.copy())
        assert np.isfinite(found[0, [0, 1, 3]]).all()
        assert found[0, 2] == -np.inf


def test_processors_with_equal_penalties_are_equal() -> None:
    assert RepetitionPenalty(1.5) == RepetitionPenalty(1.5) != RepetitionPenalty(1.6)
    assert len({RepetitionPenalty(1.5), RepetitionPenalty(1.5)}) == 1
    assert RepetitionPenalty(1.5) != EncoderRepetitionPenalty(1.5)
