"""What processors say of themselves, so that steps can do without whole rows."""

import numpy as np
import pytest

from drl.runtime.processors.forcing import ForcedBos, ForcedEos, ForcedTokens
from drl.runtime.processors.length import ExponentialDecay, MinLength, MinNewTokens
from drl.runtime.processors.protocol import BarringProcessor, OccasionalProcessor
from drl.runtime.processors.suppression import SuppressAtBegin, SuppressTokens
from tests.runtime.processors.states import Row, make_state

ROWS = [
    Row([0] * length, prompt, 9) for length in range(1, 9) for prompt in (1, 2) if prompt <= length
]


@pytest.mark.parametrize(
    "processor",
    [
        ForcedBos(3),
        ForcedEos((1, 5)),
        ForcedTokens(((2, 3), (5, 1))),
        ExponentialDecay(3, 1.5, (1, 2)),
    ],
)
def test_an_occasional_processor_acts_where_it_changes_something(
    processor: OccasionalProcessor,
) -> None:
    found = []
    for row in ROWS:
        scores = np.full((1, 6), -2.0, np.float32)
        state = make_state([row])
        acts = processor.acts(state)
        assert acts == (processor(state, scores.copy()) != scores).any()
        found.append(acts)
    assert set(found) == {False, True}
    assert processor.acts(make_state(ROWS))


@pytest.mark.parametrize(
    "processor",
    [
        MinLength(4, (1, 5)),
        MinNewTokens(3, (2,)),
        SuppressTokens((4, 5, 40)),
        SuppressAtBegin((0, 3), False),
        SuppressAtBegin((0, 3), True),
    ],
)
def test_a_barring_processor_bars_its_tokens_in_its_span_and_nothing_else(
    processor: BarringProcessor,
) -> None:
    state = make_state(ROWS)
    expected = np.zeros((len(ROWS), 6), np.float32)
    for row, each in enumerate(ROWS):
        first, end = processor.span(each.prompt)
        if first <= len(each.tokens) < end:
            expected[row, [token for token in processor.barred if token < 6]] = -np.inf
    assert expected.any()
    found = processor(state, np.zeros((len(ROWS), 6), np.float32))
    np.testing.assert_array_equal(found, expected)
