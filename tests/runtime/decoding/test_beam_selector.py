"""The choice of tokens for the beams of a batch."""

from typing import Any

import numpy as np
import pytest

from drl.runtime import GenerationConfig
from drl.runtime.decoding import BeamSelector, TokenHistory
from drl.runtime.decoding.step_scores import RankedRows
from tests.runtime.decoding.test_token_selector import START, asked, random_logits, slot_of
from tests.runtime.toy import step_outputs

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


def merging_logits(order: list[int]) -> np.ndarray:
    """`[2, 99]` logits, of which token 90 is the likeliest, and then those of `order`.

    The logits of these differ in their last bits, and their log-probabilities do not.
    """
    row = np.full(99, -6, np.float32)
    row[90] = 12
    value = np.float32(0.1)
    for token in order:
        row[token] = value
        value = np.nextafter(value, np.float32(0))
    assert len({float(row[token] - np.float32(12)) for token in order}) == 1
    assert len({float(row[token]) for token in order}) == len(order)
    return np.stack([row, row])


# A search of two beams needs four tokens of a row and asks for one more.
@pytest.mark.parametrize("order", [[30, 20], [30, 20, 25], [30, 25, 22, 20], [30, 29, 28, 27, 5]])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 4, "seed": 3}])
@pytest.mark.parametrize("beside", [{}, {"top_logprobs": 9}, {"renormalize_logits": True}])
def test_logits_that_merge_into_one_log_probability_go_by_id_whoever_is_in_the_batch(
    order: list[int], options: dict[str, Any], beside: dict[str, Any]
) -> None:
    chosen = []
    for neighbours in ([], [GenerationConfig(num_beams=2, **beside)]):
        slots = [slot_of(GenerationConfig(num_beams=2, **options))]
        slots += [slot_of(config) for config in neighbours]
        history = TokenHistory()
        history.append([[START]] * 2 * len(slots))
        selector = BeamSelector(2)
        selector.set_slots(slots)
        logits = np.concatenate([merging_logits(order)] * len(slots))
        choice = selector.choose(asked(selector, history, logits.copy()), history)
        if choice is None:
            choice = selector.choose(step_outputs(logits[:, None]), history)
        assert choice is not None
        chosen.append(choice.tokens[:2].tolist())
    assert chosen[0] == chosen[1]
    if not options:
        assert chosen[0] == [90, min(order)]


def test_more_tokens_are_looked_at_only_where_one_may_be_as_likely_as_the_last() -> None:
    for order, enough in (([30, 20], True), ([30, 25, 22, 20], False)):
        logits = merging_logits(order)
        logits[:, 40:45] = np.arange(-5, 0)
        history = TokenHistory()
        history.append([[START]] * 2)
        selector = BeamSelector(2)
        selector.set_slots([slot_of(GenerationConfig(num_beams=2))])
        assert selector.candidates(history) == 5
        ranked = step_outputs(logits[:, None], candidates=5)
        assert (selector.choose(ranked, history) is not None) == enough


def test_a_token_that_is_no_candidate_has_no_log_probability() -> None:
    step = RankedRows(step_outputs(merging_logits([30, 20])[:, None], candidates=3))
    assert step.logprob(1, 90) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="token 7 is none of the step's candidates in row 1"):
        step.logprob(1, 7)
