"""Ranks come in the promised order whatever order an engine gives to equal values."""

import numpy as np
import pytest

from drl.runtime.backends.tensorrt.ranking import rank

VOCABULARY = 30


def expected(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order by definition, one token after the other."""
    ids = [
        sorted(range(len(row)), key=lambda t, row=row: (np.isnan(row[t]), -row[t], t))[:count]
        for row in logits
    ]
    return np.take_along_axis(logits, np.array(ids), 1), np.array(ids)


def told(
    logits: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The largest, equal ones in any order and any of them where not all fit, as TensorRT may."""
    noise = random.random(logits.shape)
    ids = np.lexsort((noise, -logits), axis=-1)[:, :count].astype(np.int32)
    return np.take_along_axis(logits, ids.astype(np.int64), 1), ids


def call(
    logits: np.ndarray, wide: int, count: int, random: np.random.Generator, real: object = True
) -> tuple[np.ndarray, np.ndarray] | None:
    values, ids = told(logits, wide, random)
    normalisers = logits.sum(axis=1)  # all that matters is whether a row has NaN
    tokens = np.broadcast_to(np.array(real), (len(logits),)).astype(np.int32)
    found = rank(values[:, None], ids[:, None], normalisers[:, None], count, tokens, VOCABULARY)
    return None if found is None else (found.values[:, 0], found.ids[:, 0])


@pytest.mark.parametrize("levels", [4, 12, 1000])
@pytest.mark.parametrize("wide", [1, 5, 12, VOCABULARY])
def test_an_answer_is_the_order_by_definition_and_there_is_one_unless_ties_hide_it(
    levels: int, wide: int
) -> None:
    random = np.random.default_rng(levels + wide)
    answers = 0
    for _ in range(60):
        logits = random.integers(0, levels, (3, VOCABULARY)).astype(np.float32)
        for count in range(1, wide + 1):
            found = call(logits, wide, count, random)
            last = -np.sort(-logits, axis=1)
            hidden = wide < VOCABULARY and (last[:, count - 1] == last[:, wide - 1]).any()
            assert (found is None) == hidden
            if found is not None:
                answers += 1
                values, ids = expected(logits, count)
                np.testing.assert_array_equal(found[0], values)
                np.testing.assert_array_equal(found[1], ids)
    few_ties = wide == VOCABULARY or (levels == 1000 and wide > 1)
    assert answers or not few_ties


def test_more_than_was_told_is_not_known() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, VOCABULARY)).astype(np.float32)
    assert call(logits, 5, 6, random) is None
    assert call(logits, 6, 5, random) is not None


def test_a_row_with_nan_is_not_known_unless_it_is_padding() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(2, VOCABULARY)).astype(np.float32)
    logits[1, 7] = np.nan
    assert call(logits, 8, 2, random) is None
    found = call(logits, 8, 2, random, real=[True, False])
    assert found is not None
    np.testing.assert_array_equal(found[1][0], expected(logits[:1], 2)[1][0])


def test_ties_of_padding_hide_nothing() -> None:
    random = np.random.default_rng(2)
    logits = random.normal(size=(2, VOCABULARY)).astype(np.float32)
    logits[0] = 0
    assert call(logits, 8, 3, random) is None
    assert call(logits, 8, 3, random, real=[False, True]) is not None


def test_answers_stay_when_the_engines_buffers_are_written_to_again() -> None:
    values, ids = np.array([[[3.0, 2.0]]], np.float32), np.array([[[4, 9]]], np.int32)
    found = rank(values, ids, np.zeros((1, 1), np.float32), 1, np.ones(1, np.int32), VOCABULARY)
    values[:], ids[:] = 0, 0
    assert found is not None
    assert found.values.tolist() == [[[3.0]]]
    assert found.ids.tolist() == [[[4]]]
