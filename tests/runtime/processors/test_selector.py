"""The choice of tokens: penalties, bars, log-probabilities."""

import numpy as np
import pytest

from drl.runtime import GenerationConfig
from drl.runtime.processors import Selection, TokenSelector

EOS = 1


def select(
    logits: np.ndarray,
    configs: list[GenerationConfig],
    histories: list[list[int]] | None = None,
) -> Selection:
    selector = TokenSelector(EOS)
    generators = [np.random.default_rng(c.seed) if c.samples else None for c in configs]
    selector.set_rows(configs, generators)
    return selector.select(logits, histories or [[] for _ in configs])


def random_logits(rows: int, vocab_size: int = 40) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(rows, vocab_size)).astype(np.float32) * 3


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.array([[0, 2, 5, 5], [7, 7, 1, 0]], np.float32)
    assert select(logits, [GenerationConfig()] * 2).tokens.tolist() == [2, 0]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = random_logits(3)
    configs = [
        GenerationConfig(top_logprobs=4),
        GenerationConfig(temperature=0.5, top_k=2, seed=0),
        GenerationConfig(repetition_penalty=5.0, min_new_tokens=9, top_logprobs=1),
    ]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    selection = select(logits, configs, [[4], [5], [int(logits[2].argmax())]])
    assert selection.logprobs is not None
    np.testing.assert_allclose(
        selection.logprobs, expected[np.arange(3), selection.tokens], atol=1e-5
    )
    assert sorted(selection.top_logprobs) == [0, 2]
    tokens, values = zip(*selection.top_logprobs[0], strict=True)
    assert list(tokens) == np.argsort(-logits[0], kind="stable")[:4].tolist()
    np.testing.assert_allclose(values, expected[0, list(tokens)], atol=1e-5)
    assert selection.top_logprobs[2][0][0] == logits[2].argmax()


def test_logprobs_are_left_out_where_no_row_wants_them() -> None:
    assert select(random_logits(1), [GenerationConfig(logprobs=False)]).logprobs is None


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4, 3e4]], np.float32)
    selection = select(logits, [GenerationConfig()])
    assert selection.logprobs is not None
    assert selection.logprobs.tolist() == [0.0]


def test_more_top_logprobs_than_tokens_give_all() -> None:
    selection = select(random_logits(1, 5), [GenerationConfig(top_logprobs=50)])
    assert len(selection.top_logprobs[0]) == 5


def test_equal_logits_are_reported_in_the_order_of_their_ids() -> None:
    logits = np.zeros((1, 9), np.float32)
    logits[0, 7] = 1.0
    selection = select(logits, [GenerationConfig(top_logprobs=3)])
    assert [token for token, _ in selection.top_logprobs[0]] == [7, 0, 1]


def test_the_end_and_stop_tokens_are_barred_until_the_minimum() -> None:
    logits = np.array([[0, 9, 8, 7, 1]] * 4, np.float32)
    config = GenerationConfig(min_new_tokens=2, stop_token_ids=(2,))
    selection = select(logits, [config, config, config, GenerationConfig()], [[], [4], [4, 4], []])
    assert selection.tokens.tolist() == [3, 3, 1, 1]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    config = GenerationConfig(repetition_penalty=2.0)
    logits = np.array([[3.0, -9, 2.0, 1.4]], np.float32)
    assert select(logits, [config], [[0]]).tokens.tolist() == [2]
    assert select(logits, [config], [[0, 2, 0, 2]]).tokens.tolist() == [0]
    logits = np.array([[-1.0, -9, -1.5, -9]], np.float32)
    assert select(logits, [config], [[0]]).tokens.tolist() == [2]


def test_a_barred_token_stays_barred_under_a_penalty() -> None:
    config = GenerationConfig(repetition_penalty=2.0, min_new_tokens=5, stop_token_ids=(2,))
    logits = np.array([[0, 9, 8, 1]], np.float32)
    assert select(logits, [config], [[2, 1]]).tokens.tolist() == [3]


def test_logits_are_restored() -> None:
    logits = random_logits(2)
    before = logits.copy()
    configs = [
        GenerationConfig(repetition_penalty=2.0, min_new_tokens=5),
        GenerationConfig(temperature=1.0, repetition_penalty=0.5, seed=0),
    ]
    select(logits, configs, [[3, 4, 3, EOS], [7]])
    np.testing.assert_array_equal(logits, before)


def test_a_seed_fixes_the_draws_and_no_seed_does_not() -> None:
    logits = np.zeros((1, 1000), np.float32)
    seeded = [
        select(logits, [GenerationConfig(temperature=1.0, seed=7)]).tokens[0] for _ in range(3)
    ]
    assert len(set(seeded)) == 1
    free = [select(logits, [GenerationConfig(temperature=1.0)]).tokens[0] for _ in range(8)]
    assert len(set(free)) > 1


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_logprobs_of_a_row_do_not_depend_on_the_others(rows: int) -> None:
    logits = random_logits(33, 5000)
    together = select(logits[:rows], [GenerationConfig(top_logprobs=2)] * rows)
    for row in range(rows):
        alone = select(logits[row : row + 1], [GenerationConfig(top_logprobs=2)])
        assert together.logprobs is not None
        assert alone.logprobs is not None
        assert together.logprobs[row] == alone.logprobs[0]
        assert together.top_logprobs[row] == alone.top_logprobs[0]
