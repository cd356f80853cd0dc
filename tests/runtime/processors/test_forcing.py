"""Forced tokens against transformers'."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import ForcedBOSTokenLogitsProcessor, ForcedEOSTokenLogitsProcessor

from drl.runtime import RequestError
from drl.runtime.processors.forcing import ForcedBos, ForcedEos, ForcedTokens
from drl.runtime.processors.protocol import LogitsProcessor
from tests.runtime.processors.states import Row, assert_same_over_many, make_state


def test_the_first_token_is_forced_as_in_transformers() -> None:
    assert_same_over_many(ForcedBos(3), lambda row: ForcedBOSTokenLogitsProcessor(3), longest=3)


def test_the_last_token_is_forced_as_in_transformers() -> None:
    for tokens in ((3,), (3, 5)):
        assert_same_over_many(
            ForcedEos(tokens),
            lambda row, tokens=tokens: ForcedEOSTokenLogitsProcessor(row.max_length, list(tokens)),
        )


def test_no_first_token_is_forced_after_a_prefix() -> None:
    scores = np.ones((1, 4), np.float32)
    assert ForcedBos(3)(make_state([Row([0, 1], prompt=2)]), scores).tolist() == [[1.0] * 4]


def test_tokens_are_forced_at_their_positions() -> None:
    processor = ForcedTokens(((2, 3), (1, 0), (5, 1), (2, 2)))
    forced = []
    for length in range(1, 7):
        scores = np.full((1, 4), -7.0, np.float32)
        found = processor(make_state([Row([0] * length)]), scores)[0]
        if (found == -7.0).all():
            forced.append(None)
        else:
            assert np.isneginf(found).sum() == 3
            assert found.max() == 0.0
            forced.append(int(found.argmax()))
    # Position 0 is the start token. The last one given for a position counts.
    assert forced == [0, 2, None, None, 1, None]


def test_rows_at_different_positions_are_forced_each_by_its_own() -> None:
    processor = ForcedTokens(((1, 3), (2, 1)))
    rows = [Row([0, 0]), Row([0]), Row([0, 0, 0], prompt=2), Row([0, 0], prompt=2)]
    found = processor(make_state(rows), np.full((4, 4), 0.5, np.float32))
    inf = np.inf
    assert found.tolist() == [
        [-inf, 0.0, -inf, -inf],
        [-inf, -inf, -inf, 0.0],
        [0.5, 0.5, 0.5, 0.5],
        [-inf, 0.0, -inf, -inf],
    ]


@pytest.mark.parametrize(
    ("processor", "option"),
    [
        (ForcedBos(4), "forced_bos_token_id"),
        (ForcedEos((1, 4)), "forced_eos_token_id"),
        (ForcedTokens(((1, 4),)), "forced_decoder_ids"),
    ],
)
def test_a_token_outside_the_vocabulary_is_refused(processor: LogitsProcessor, option: str) -> None:
    state = make_state([Row([0], max_length=2)])
    with pytest.raises(RequestError, match=rf"^{option} has token id 4; the vocabulary is 0 to 3$"):
        processor(state, np.zeros((1, 4), np.float32))


def test_equal_pairs_are_equal() -> None:
    make: Callable[[int], ForcedTokens] = lambda token: ForcedTokens(((1, token),))  # noqa: E731
    assert make(2) == make(2) != make(3)
    assert hash(make(2)) == hash(make(2))
