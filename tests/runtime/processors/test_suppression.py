"""Suppressed tokens against transformers'."""

import numpy as np
from transformers import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor

from drl.runtime.processors.suppression import SuppressAtBegin, SuppressTokens
from tests.runtime.processors.states import Row, assert_same_over_many, make_state

TOKENS = (2, 3, 9, 9, 40)  # 40 is outside the vocabulary


def test_tokens_are_suppressed_as_in_transformers() -> None:
    assert_same_over_many(SuppressTokens(TOKENS), lambda row: SuppressTokensLogitsProcessor(TOKENS))


def test_tokens_are_suppressed_at_the_beginning_as_in_transformers() -> None:
    for forced in (False, True):
        assert_same_over_many(
            SuppressAtBegin(TOKENS, forced),
            # where transformers' generate places the beginning
            lambda row, forced=forced: SuppressTokensAtBeginLogitsProcessor(
                TOKENS, row.prompt + (forced and row.prompt == 1)
            ),
            longest=4,
        )


def test_a_forced_first_token_moves_the_beginning_unless_a_prefix_takes_its_place() -> None:
    rows = [Row([0]), Row([0, 5]), Row([0, 5], prompt=2), Row([0, 5, 5], prompt=2)]
    found = SuppressAtBegin((1,), True)(make_state(rows), np.zeros((4, 2), np.float32))
    assert np.isneginf(found[:, 1]).tolist() == [False, True, True, False]
    found = SuppressAtBegin((1,), False)(make_state(rows), np.zeros((4, 2), np.float32))
    assert np.isneginf(found[:, 1]).tolist() == [True, False, True, False]
