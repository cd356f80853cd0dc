"""The choice of tokens for the beams of a batch."""

import numpy as np
import pytest

from drl.runtime import GenerationConfig
from drl.runtime.decoding import BeamSelector, TokenHistory
from tests.runtime.decoding.test_token_selector import START, asked, random_logits, slot_of

pytestmark = pytest.mark.usefixtures("ranking")


def test_nan_fails_its_own_search_alone() -> None:
    slots = [slot_of(GenerationConfig(num_beams=2)) for _ in range(2)]
    history = TokenHistory()
    history.append([[START]] * 4)
    selector = BeamSelector(2)
    selector.set_slots(slots)
    logits = random_logits(4)
    logits[2, 3] = np.nan
    choice = selector.choose(asked(selector, history, logits), history)
    assert choice is not None
    assert choice.ended == [1]
    assert slots[0].group.failure is None
    assert "logits hold NaN" in str(slots[1].group.failure)


def test_scores_are_the_same_whether_or_not_another_request_has_processors() -> None:
    logits = random_logits(4, 2000)
    plain, penalised = (
        GenerationConfig(num_beams=2),
        GenerationConfig(num_beams=2, repetition_penalty=1.3),
    )
    scores = []
    for configs in ([plain, plain], [plain, penalised]):
        slots = [slot_of(config) for config in configs]
        history = TokenHistory()
        history.append([[START]] * 4)
        selector = BeamSelector(2)
        selector.set_slots(slots)
        for _ in range(3):
            choice = selector.choose(asked(selector, history, logits.copy()), history)
            assert choice is not None
            for source, target in choice.copies:
                history.copy(source, target)
            history.push(choice.tokens)
        assert slots[0].group.beams is not None
        scores.append(slots[0].group.beams.searches[0].scores)
    assert scores[0] == scores[1]
