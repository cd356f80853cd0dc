"""Sequence biases and bad words against transformers'."""

from typing import Any

import numpy as np
import pytest
from transformers import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from drl.runtime import RequestError
from drl.runtime.processors.bias import SequenceBias, bar_words
from tests.runtime.processors.states import (
    Row,
    assert_same_as,
    assert_same_over_many,
    make_state,
    random_rows,
    random_scores,
)

BIASES: list[dict[tuple[int, ...], float]] = [
    {(3,): 2.5},
    {(3,): -1.7, (4, 3): 0.3, (2, 3): 0.1, (1, 4, 3): 1e-3},  # all add up
    {(0, 1): 5.0, (1, 1): -5.0, (0, 0, 0): 2.0, (2, 1, 0, 3, 4): 1.0},
    {(1,): float("-inf"), (2, 2): float("-inf")},
    {tuple(range(20)): 1.0, (11,): 1.0},  # longer than every row
]


@pytest.mark.parametrize("biases", BIASES)
def test_biases_are_added_as_in_transformers(biases: dict[tuple[int, ...], float]) -> None:
    vocab_size = 20
    assert_same_over_many(
        SequenceBias(tuple(biases.items())),
        lambda row: SequenceBiasLogitsProcessor(biases),
        vocab_size=vocab_size,
    )


def test_many_random_biases() -> None:
    random = np.random.default_rng(5)
    for _ in range(10):
        lengths = random.integers(1, 5, 60)
        biases = {tuple(random.integers(0, 3, n).tolist()): random.normal() for n in lengths}
        rows = random_rows(random, 6, 3, 8)
        assert_same_as(
            lambda row, biases=biases: SequenceBiasLogitsProcessor(biases),
            SequenceBias(tuple(biases.items())),
            rows,
            random_scores(random, 6, 5),
        )


@pytest.mark.parametrize(
    "words",
    [
        [[3]],
        [[3], [2, 4], [0, 1, 2], [1, 2]],
        [[3], [3], [0, 0], [0, 0]],
        [[1], [2], [3]],  # 1 and 2 end
        [[3, 1], [3, 2], [4]],  # ends, but not alone
    ],
)
def test_bad_words_are_barred_as_in_transformers(words: list[list[int]]) -> None:
    processor = bar_words(words, (1, 2))
    assert processor is not None
    assert_same_over_many(processor, lambda row: NoBadWordsLogitsProcessor(words, [1, 2]))


def test_bad_words_that_are_all_end_tokens_bar_nothing() -> None:
    assert bar_words([[1], [2]], (1, 2)) is None
    assert bar_words((), (1,)) is None


@pytest.mark.parametrize("biases", [(((5,), 1.0),), (((9, 0), 1.0),)])
def test_a_token_outside_the_vocabulary_is_refused(biases: Any) -> None:
    with pytest.raises(RequestError, match=r"token id [59]; the vocabulary is 0 to 4") as error:
        SequenceBias(biases)(make_state([Row([0])]), np.zeros((1, 5), np.float32))
    assert "\n" not in str(error.value)


def test_equal_biases_are_equal() -> None:
    one, same, other = (SequenceBias((((1, 2), bias),)) for bias in (0.5, 0.5, 0.6))
    assert one == same != other
    assert hash(one) == hash(same)
