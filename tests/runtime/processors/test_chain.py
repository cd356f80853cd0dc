"""The order of processors against transformers' own chain, and checks of users' processors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig as TheirConfig
from transformers import T5Config, T5ForConditionalGeneration

from drl.runtime import GenerationConfig, RequestError
from drl.runtime.processors import apply_processors, build_processors, processor_name
from drl.runtime.processors.protocol import DecodingState
from tests.runtime.processors.states import Row, make_state, random_rows, random_scores

EOS = 1
VOCAB_SIZE = 16

OPTIONS: dict[str, Any] = {
    "sequence_bias": [[[3], 1.5], [[2, 4], -2.0]],
    "encoder_repetition_penalty": 1.4,
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[6], [3, 2], [EOS]],
    "min_length": 4,
    "min_new_tokens": 2,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": EOS,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (2, 1.3),
    "suppress_tokens": [8, 9],
    "begin_suppress_tokens": [10, 11],
}


@pytest.fixture(scope="module")
def model() -> T5ForConditionalGeneration:
    sizes = {"vocab_size": VOCAB_SIZE, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, num_layers=1, num_decoder_layers=1))


def their_scores(
    model: T5ForConditionalGeneration, options: dict[str, Any], row: Row, scores: np.ndarray
) -> np.ndarray:
    config = TheirConfig(**options, max_length=row.max_length)
    config._eos_token_tensor = torch.tensor([EOS, 7])
    chain = model._get_logits_processor(config, row.prompt, torch.tensor([row.source]))
    tokens = torch.tensor([row.tokens])
    return chain(tokens, torch.from_numpy(scores.copy())).numpy()


def check_chain(model: T5ForConditionalGeneration, options: dict[str, Any], seed: int) -> None:
    chain = build_processors(GenerationConfig(**options, stop_token_ids=[7]), EOS)
    random = np.random.default_rng(seed)
    rows = random_rows(random, 8, 5, 7)
    scores = random_scores(random, 8, VOCAB_SIZE)
    found = apply_processors(chain, make_state(rows), scores.copy())
    for place, row in enumerate(rows):
        expected = their_scores(model, options, row, scores[place : place + 1])
        # They let the length penalty overflow; a probability could not be made of that.
        expected = np.minimum(expected, np.finfo(np.float32).max)
        np.testing.assert_array_equal(found[place : place + 1], expected)
        alone = apply_processors(chain, make_state([row]), scores[place : place + 1].copy())
        assert alone.tobytes() == found[place].tobytes()


@pytest.mark.parametrize("seed", range(10))
def test_all_options_together_do_what_transformers_does(
    model: T5ForConditionalGeneration, seed: int
) -> None:
    check_chain(model, OPTIONS, seed)


@pytest.mark.parametrize("seed", range(20))
def test_random_options_do_what_transformers_does(
    model: T5ForConditionalGeneration, seed: int
) -> None:
    random = np.random.default_rng(seed)
    chosen = [name for name in OPTIONS if random.random() < 0.4]
    check_chain(model, {name: OPTIONS[name] for name in chosen}, seed)


def test_no_option_needs_a_processor_by_default() -> None:
    assert build_processors(GenerationConfig(), EOS) == ()


def test_chains_of_equal_options_are_equal_and_hashable() -> None:
    one, same = (build_processors(GenerationConfig(**OPTIONS), EOS) for _ in range(2))
    other = build_processors(GenerationConfig(**OPTIONS | {"min_length": 5}), EOS)
    assert one == same != other
    assert hash(one) == hash(same)
    assert one != build_processors(GenerationConfig(**OPTIONS), EOS + 1)


def test_forced_decoder_ids_come_after_the_options_and_before_users_processors() -> None:
    seen = []

    def note(state: DecodingState, scores: np.ndarray) -> np.ndarray:
        seen.append(scores.copy())
        return scores

    config = GenerationConfig(forced_decoder_ids=[(1, 3)], suppress_tokens=[3])
    chain = build_processors(config, EOS, [note])
    apply_processors(chain, make_state([Row([0])]), np.ones((1, 5), np.float32))
    np.testing.assert_array_equal(seen[0], np.array([[-np.inf] * 3 + [0.0, -np.inf]], np.float32))


def test_renormalisation_is_left_to_the_search() -> None:
    assert build_processors(GenerationConfig(renormalize_logits=True), EOS) == ()


@dataclass
class Returning:
    """A processor that returns what it is told to. It compares by value and has no hash."""

    result: Any

    def __call__(self, state: DecodingState, scores: np.ndarray) -> Any:
        return self.result(scores) if callable(self.result) else self.result


def run(processor: Any) -> np.ndarray:
    chain = build_processors(GenerationConfig(), EOS, [processor])
    return apply_processors(chain, make_state([Row([0]), Row([0, 2])]), np.ones((2, 5), np.float32))


def test_a_users_processor_may_write_in_place_or_return_a_new_array() -> None:
    def bar(state: DecodingState, scores: np.ndarray) -> np.ndarray:
        scores[:, 2] = -np.inf
        return scores

    assert np.isneginf(run(bar)[:, 2]).all()
    assert (run(Returning(lambda scores: scores * 2)) == 2).all()
    # unchecked by build_processors
    found = apply_processors([bar], make_state([Row([0])]), np.ones((1, 5), np.float32))
    assert np.isneginf(found[0, 2])


def test_an_array_that_cannot_be_written_to_is_copied() -> None:
    frozen = np.broadcast_to(np.float32(3), (2, 5))
    found = run(Returning(frozen))
    assert found.flags.writeable
    assert (found == 3).all()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, r"processor Returning returned None; return the \[R, V\] scores, a NumPy array of"),
        (lambda s: s[:, :4], r"returned scores of shape \[2, 4\]; they must keep their shape"),
        (lambda s: s[0], r"returned scores of shape \[5\]; they must keep their shape \[2, 5\]"),
        (lambda s: s.astype(float), "returned float64 scores; return float32, such as scores.ast"),
        (lambda s: s * np.float32(np.nan), "processor Returning returned NaN; return a number"),
        (lambda s: s.nope, "processor Returning failed with AttributeError: 'numpy.ndarray' obj"),
        (lambda s: 1 / 0, "processor Returning failed with ZeroDivisionError"),
        (lambda s: int("a\nb"), "processor Returning failed with ValueError"),
    ],
)
def test_a_wrong_result_is_refused_in_one_line(result: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        run(Returning(result))
    assert "\n" not in str(error.value)


def test_a_single_nan_among_barred_tokens_is_found() -> None:
    def spoil(state: DecodingState, scores: np.ndarray) -> np.ndarray:
        scores[:] = -np.inf
        scores[1, 3] = np.nan
        return scores

    with pytest.raises(RequestError, match="processor spoil returned NaN"):
        run(spoil)


def test_the_cause_of_a_failure_is_kept_and_a_request_error_passes() -> None:
    with pytest.raises(RequestError) as error:
        run(Returning(lambda scores: {}["x"]))
    assert isinstance(error.value.__cause__, KeyError)

    def refuse(state: DecodingState, scores: np.ndarray) -> np.ndarray:
        raise RequestError("no such word")

    with pytest.raises(RequestError, match=r"^no such word$"):
        run(refuse)


def test_users_processors_are_equal_only_if_they_are_the_same() -> None:
    mine, like_mine = Returning(1), Returning(1)
    chain = build_processors(GenerationConfig(), EOS, [mine])
    assert chain == build_processors(GenerationConfig(), EOS, [mine])
    assert chain != build_processors(GenerationConfig(), EOS, [like_mine])
    assert len({chain, build_processors(GenerationConfig(), EOS, [mine])}) == 1
    assert processor_name(chain[0]) == "Returning"


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(RequestError, match=r"must be callable with \(state, scores\), not 'no'"):
        build_processors(GenerationConfig(), EOS, ["no"])  # type: ignore[list-item]
