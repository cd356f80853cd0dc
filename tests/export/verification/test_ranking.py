from collections.abc import Callable

import numpy as np
import pytest

from drl.export.verification.ranking import RankingCheck
from drl.runtime.backends.protocol import Ranking, StepOutputs

LOGITS = np.array([[[4.0, 1.0, 3.0, 2.0, 0.0, -1.0], [0.0, 5.0, 5.0, 1.0, 2.0, 9.0]]], np.float32)


def whole() -> StepOutputs:
    sums = np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=-1))
    return StepOutputs(LOGITS.copy(), sums.astype(np.float32), {})


def ranked() -> StepOutputs:
    ids = np.argsort(-LOGITS, axis=-1, kind="stable")[..., :4]
    values = np.take_along_axis(LOGITS, ids, axis=-1)
    nothing = np.zeros((1, 2, 0), np.float32)
    return StepOutputs(nothing, whole().normalisers, {}, Ranking(values, ids.astype(np.int32)))


def check(one: StepOutputs, two: StepOutputs) -> float:
    found = RankingCheck(ranks=True)
    found.add(one)
    assert found.candidates == 4
    found.compare(0, two)
    return found.largest


def test_candidates_of_the_same_logits_do_not_differ() -> None:
    assert check(whole(), ranked()) < 1e-6


def test_equal_logits_may_change_places() -> None:
    outputs = ranked()
    assert outputs.top is not None
    outputs.top.ids[0, 1, 1:3] = outputs.top.ids[0, 1, 2:0:-1].copy()
    assert check(whole(), outputs) < 1e-6


def exchanged(outputs: StepOutputs) -> None:
    assert outputs.top is not None
    outputs.top.ids[0, 0, :2] = outputs.top.ids[0, 0, 1::-1].copy()


def repeated(outputs: StepOutputs) -> None:
    assert outputs.top is not None
    outputs.top.ids[0, 1, 2] = outputs.top.ids[0, 1, 1]


def of_no_token(outputs: StepOutputs) -> None:
    assert outputs.top is not None
    outputs.top.ids[0, 1, 0] = 6


def another_value(outputs: StepOutputs) -> None:
    assert outputs.top is not None
    outputs.top.values[0, 0, 3] += 0.5


def not_a_number(outputs: StepOutputs) -> None:
    assert outputs.top is not None
    outputs.top.values[0, 0, 3] = np.nan


def another_normaliser(outputs: StepOutputs) -> None:
    outputs.normalisers[0, 1] += 0.5


@pytest.mark.parametrize(
    "damage", [exchanged, repeated, of_no_token, another_value, not_a_number, another_normaliser]
)
def test_what_is_wrong_with_candidates_is_seen(damage: Callable[[StepOutputs], None]) -> None:
    outputs = ranked()
    damage(outputs)
    assert check(whole(), outputs) > 0.04


@pytest.mark.parametrize("ranks", [True, False])
def test_logits_that_are_no_numbers_are_seen(ranks: bool) -> None:
    outputs = whole()
    outputs.logits[0, 1, 3] = np.nan
    found = RankingCheck(ranks)
    found.add(outputs)
    assert found.largest == float("inf")


def test_a_backend_that_does_not_rank_is_asked_for_no_candidates() -> None:
    found = RankingCheck(ranks=False)
    outputs = whole()
    outputs.normalisers[:] += 1
    found.add(outputs)
    assert found.candidates == 0
    assert found.largest > 0.04
