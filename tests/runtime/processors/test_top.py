"""The largest scores against a stable sort; log-sum-exp against double precision."""

import numpy as np
import pytest

from drl.runtime.processors.top import largest, log_sum_exp


def reference(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def check(scores: np.ndarray, count: int) -> None:
    before = scores.copy()
    ids, values = largest(scores, count)
    expected = reference(scores, count)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))
    assert ids.dtype == np.int64
    assert values.dtype == np.float32
    assert scores.tobytes() == before.tobytes()


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 64, 100, 1000, 5003])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 50, 256, 10_000])
def test_the_largest_come_in_order(vocab_size: int, count: int) -> None:
    random = np.random.default_rng(vocab_size * count)
    for rows in (1, 3, 17):
        check(random.normal(size=(rows, vocab_size)).astype(np.float32), count)


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_ties_come_by_id(count: int) -> None:
    random = np.random.default_rng(count)
    for kinds in (1, 2, 5, 60):
        scores = random.integers(-kinds, kinds + 1, (6, 3001)).astype(np.float32)
        check(scores, count)
        check(scores * 0, count)
        for zeros in (scores, scores[:, :70]):
            check(zeros * np.float32(-0.0), count)  # of both signs


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_barred_tokens_come_last_and_by_id(count: int) -> None:
    random = np.random.default_rng(count)
    for allowed in (0, 1, 2, 7, 39, 2000):
        scores = np.full((5, 3001), -np.inf, np.float32)
        for row in scores:
            row[random.choice(3001, allowed, replace=False)] = random.normal(size=allowed)
        check(scores, count)
    scores[2, [5, 1700]] = np.inf
    scores[3] = np.finfo(np.float32).max
    check(scores, count)


@pytest.mark.parametrize("vocab_size", [32_128, 250_000])
def test_large_vocabularies(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    scores = random.normal(size=(3, vocab_size)).astype(np.float32)
    for count in (8, 256, 5000):
        check(scores, count)
        check(np.round(scores, 1), count)
    scores[:, :-9] = -np.inf
    check(scores, 16)


def test_a_row_does_not_depend_on_the_others() -> None:
    scores = np.random.default_rng(2).integers(0, 400, (9, 2000)).astype(np.float32)
    together = largest(scores, 12)
    for row in range(9):
        alone = largest(scores[row : row + 1], 12)
        assert alone[0].tolist() == together[0][row : row + 1].tolist()


def test_no_rows_have_no_largest() -> None:
    ids, values = largest(np.empty((0, 500), np.float32), 4)
    assert ids.shape == values.shape == (0, 4)


@pytest.mark.parametrize("vocab_size", [1, 17, 5000, 100_000])
def test_log_sum_exp_is_exact_and_a_rows_own(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    logits = (random.normal(size=(7, vocab_size)) * 9).astype(np.float32)
    found = log_sum_exp(logits, np.empty_like(logits))
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(found, np.log(np.exp(wide).sum(1)), rtol=1e-6, atol=1e-6)
    for row in range(7):
        one = slice(row, row + 1)
        alone = log_sum_exp(logits[one], np.empty_like(logits[one]))
        assert alone.tobytes() == found[one].tobytes()


def test_log_sum_exp_of_extremes() -> None:
    inf = np.inf
    logits = np.array([[3e38, -3e38, 0], [-inf, -inf, -inf], [-inf, 2, -inf], [-3e38] * 3])
    logits = logits.astype(np.float32)
    found = log_sum_exp(logits, np.empty_like(logits))
    np.testing.assert_array_equal(found, np.array([3e38, -inf, 2, -3e38], np.float32))
