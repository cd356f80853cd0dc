"""The choice of tokens by rows of their own: greedy and sampled, with log-probabilities."""

from dataclasses import dataclass

import numpy as np
import pytest

from drl.runtime import GenerationConfig
from drl.runtime.backends import StepOutputs
from drl.runtime.decoding import Selector, SequenceGroup, Slot, TokenHistory, TokenSelector
from drl.runtime.processors import build_processors
from drl.runtime.request import Request
from drl.runtime.results import TopLogprobs
from tests.runtime.toy import ToyBackend, step_outputs

EOS, START = 1, 0
pytestmark = pytest.mark.usefixtures("ranking")


@dataclass
class Selected:
    """What was chosen for each row, and what was reported of it."""

    tokens: list[int]
    logprobs: list[list[float]]
    top_logprobs: list[list[TopLogprobs]]


def slot_of(config: GenerationConfig) -> Slot:
    processors = build_processors(config, EOS)
    group = SequenceGroup(Request((5, 6), config, 40, None, 1.0, processors=processors), EOS, None)
    return Slot(group, group.sequences[0])


def asked(selector: Selector, history: TokenHistory, logits: np.ndarray) -> StepOutputs:
    """What a toy decoder with `[B, V]` logits gives if a selector asks."""
    candidates = selector.candidates(history) if ToyBackend.ranks else 0
    return step_outputs(
        logits[:, None], candidates=candidates if candidates < logits.shape[1] else 0
    )


def select(
    logits: np.ndarray,
    configs: list[GenerationConfig],
    histories: list[list[int]] | None = None,
) -> Selected:
    """A step; the histories stand for what was generated before."""
    slots = [slot_of(config) for config in configs]
    history = TokenHistory()
    history.append([[START, *generated] for generated in histories or [[]] * len(configs)])
    selector = TokenSelector()
    selector.set_slots(slots)
    choice = selector.choose(asked(selector, history, logits), history)
    if choice is None:
        choice = selector.choose(step_outputs(logits[:, None]), history)
    assert choice is not None
    sequences = [slot.sequence for slot in slots]
    return Selected(
        choice.tokens.tolist(),
        [sequence.logprobs for sequence in sequences],
        [sequence.top_logprobs for sequence in sequences],
    )


def random_logits(rows: int, vocab_size: int = 40) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(rows, vocab_size)).astype(np.float32) * 3


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.array([[0, 2, 5, 5], [7, 7, 1, 0]], np.float32)
    assert select(logits, [GenerationConfig()] * 2).tokens == [2, 0]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = random_logits(3)
    configs = [
        GenerationConfig(top_logprobs=4),
        GenerationConfig(temperature=0.5, top_k=2, seed=0),
        GenerationConfig(repetition_penalty=5.0, min_new_tokens=9, top_logprobs=1),
    ]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    selection = select(logits, configs, [[4], [5], [int(logits[2].argmax())]])
    chosen = expected[np.arange(3), selection.tokens]
    np.testing.assert_allclose(np.ravel(selection.logprobs), chosen, atol=1e-5)
    assert [len(tops) for tops in selection.top_logprobs] == [1, 0, 1]
    tokens, values = zip(*selection.top_logprobs[0][0], strict=True)
    assert list(tokens) == np.argsort(-logits[0], kind="stable")[:4].tolist()
    np.testing.assert_allclose(values, expected[0, list(tokens)], atol=1e-5)
    assert selection.top_logprobs[2][0][0][0] == logits[2].argmax()


def test_logprobs_are_left_out_where_no_row_wants_them() -> None:
    assert select(random_logits(1), [GenerationConfig(logprobs=False)]).logprobs == [[]]


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4, 3e4]], np.float32)
    selection = select(logits, [GenerationConfig()])
    assert selection.logprobs == [[0.0]]


def test_more_top_logprobs_than_tokens_give_all() -> None:
    selection = select(random_logits(1, 5), [GenerationConfig(top_logprobs=50)])
    assert len(selection.top_logprobs[0][0]) == 5


def test_equal_logits_are_reported_in_the_order_of_their_ids() -> None:
    logits = np.zeros((1, 9), np.float32)
    logits[0, 7] = 1.0
    selection = select(logits, [GenerationConfig(top_logprobs=3)])
    assert [token for token, _ in selection.top_logprobs[0][0]] == [7, 0, 1]


def test_the_end_and_stop_tokens_are_barred_until_the_minimum() -> None:
    logits = np.array([[0, 9, 8, 7, 1]] * 4, np.float32)
    config = GenerationConfig(min_new_tokens=2, stop_token_ids=(2,))
    selection = select(logits, [config, config, config, GenerationConfig()], [[], [4], [4, 4], []])
    assert selection.tokens == [3, 3, 1, 1]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    config = GenerationConfig(repetition_penalty=2.0)
    logits = np.array([[3.0, -9, 2.0, 1.4]], np.float32)
    assert select(logits, [config], [[0]]).tokens == [2]
    assert select(logits, [config], [[0, 2, 0, 2]]).tokens == [0]
    logits = np.array([[-1.0, -9, -1.5, -9]], np.float32)
    assert select(logits, [config], [[0]]).tokens == [2]


def test_a_barred_token_stays_barred_under_a_penalty() -> None:
    config = GenerationConfig(repetition_penalty=2.0, min_new_tokens=5, stop_token_ids=(2,))
    logits = np.array([[0, 9, 8, 1]], np.float32)
    assert select(logits, [config], [[2, 1]]).tokens == [3]


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
        assert together.logprobs[row] == alone.logprobs[0]
        assert together.top_logprobs[row] == alone.top_logprobs[0]


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_row_of_nan_fails_alone(logprobs: bool) -> None:
    slots = [slot_of(GenerationConfig(logprobs=logprobs)) for _ in range(2)]
    history = TokenHistory()
    history.append([[START], [START]])
    selector = TokenSelector()
    selector.set_slots(slots)
    logits = random_logits(2)
    logits[1, 3] = np.nan
    choice = selector.choose(asked(selector, history, logits), history)
    assert choice is not None
    assert choice.ended == [1]
    assert slots[0].group.failure is None
    assert "logits hold NaN" in str(slots[1].group.failure)
