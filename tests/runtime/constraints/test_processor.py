"""Hypotheses of one request: forks, end tokens, forced tokens, and texts that cannot go on."""

import re
from typing import Any

import numpy as np
import pytest

from drl.runtime import RequestError
from drl.runtime.arrays import Float32
from drl.runtime.constraints import ConstraintCompiler, ConstraintProcessor
from drl.runtime.generation import GenerationConfig
from drl.runtime.text import Tokenizer
from tests.runtime.constraints.test_texts import SCHEMA
from tests.runtime.constraints.vocabularies import (
    EOS,
    PAD,
    allowed,
    byte_level,
    compiler_of,
    processor,
    size_of,
    state,
    tokenizer_of,
    unigram,
)
from tests.runtime.constraints.vocabularies import compiler as new_compiler

KIND = "byte_level"
SIZE = size_of(KIND)


def made_by(**options: Any) -> ConstraintProcessor:
    return processor(KIND, GenerationConfig(**options))


def token(text: str, kind: str = KIND) -> int:
    found = tokenizer_of(kind).token_id(text)
    assert found is not None
    return found


def ids(text: str) -> list[int]:
    return [token(character) for character in text.replace(" ", "Ġ")]


def zeros(rows: int, size: int = SIZE) -> Float32:
    return np.zeros((rows, size), np.float32)


def test_beams_of_different_lengths_give_what_each_gives_alone() -> None:
    config = GenerationConfig(json_schema=SCHEMA, num_beams=4)
    together = processor(KIND, config)
    draw = np.random.default_rng(3)
    rows: list[list[int]] = [[PAD] for _ in range(4)]
    for step in range(60):
        scores = draw.normal(size=(len(rows), SIZE)).astype(np.float32)
        alone = [processor(KIND, config)(state([r]), scores[[i]]) for i, r in enumerate(rows)]
        found = together(state(rows), scores.copy())
        np.testing.assert_array_equal(found, np.concatenate(alone))
        # Rows go on from any row, at times from one that is left behind, and some wait.
        parents = draw.integers(len(rows), size=len(rows))
        following = []
        for row, parent in enumerate(parents.tolist()):
            choices = np.flatnonzero(found[parent] > -np.inf)
            choices = choices[choices != EOS]
            waits = (step + row) % 5 == 0 or not choices.size
            following.append(rows[row] if waits else [*rows[parent], int(draw.choice(choices))])
        rows = following
    assert len({len(row) for row in rows}) > 1


def test_no_more_texts_are_kept_than_the_latest_step_had() -> None:
    made = made_by(regex="[a-z]*", num_beams=3)
    rows = [[PAD, *ids(text)] for text in ("a", "b", "c")]
    for _ in range(20):
        made(state(rows), zeros(3))
        assert len(made._texts) == 3
        rows = [[*row, *ids("x")] for row in rows]


def test_a_text_that_was_forgotten_is_worked_out_again() -> None:
    made = made_by(regex="(abc|xyz)+")
    before = allowed(made, SIZE, ids("abcx"))
    allowed(made, SIZE, ids("xyzabc"))
    assert allowed(made, SIZE, ids("abcx")) == before
    assert token("y") in before


def test_equal_rows_have_equal_masks() -> None:
    made = made_by(json_schema=SCHEMA)
    scores = made(state([[PAD, *ids('{"')]] * 3), zeros(3))
    assert (scores == scores[0]).all()


def test_the_end_token_is_allowed_exactly_where_the_text_is_complete() -> None:
    made = made_by(regex="ab?(cd)?")
    complete = {text: EOS in allowed(made, SIZE, ids(text)) for text in ("a", "ab", "abc", "abcd")}
    assert complete == {"a": True, "ab": True, "abc": False, "abcd": True}
    assert EOS not in allowed(made, SIZE, [])
    assert allowed(made, SIZE, ids("abcd")) == [EOS]


def test_white_space_around_a_text_is_no_part_of_it() -> None:
    assert token("Ġ") in allowed(made_by(regex="ab"), SIZE, [])
    assert EOS not in allowed(made_by(regex="ab"), SIZE, ids(" "))
    assert allowed(made_by(regex="ab"), SIZE, ids(" ab")) == [EOS]
    assert allowed(made_by(regex="(a|b)?"), SIZE, ids(" a")) == [EOS]


def test_stop_tokens_end_like_the_end_token_and_are_no_text() -> None:
    stop = token("b")
    made = made_by(regex="ab?", stop_token_ids=[stop])
    assert stop not in allowed(made, SIZE, [])
    assert [t for t in allowed(made, SIZE, ids("a")) if t in (EOS, stop)] == [EOS, stop]
    made = made_by(regex="ab", stop_token_ids=[stop])
    with pytest.raises(RequestError, match=r"^regex cannot be met after 'a': other options"):
        allowed(made, SIZE, ids("a"))


def test_rows_that_have_ended_are_left_alone() -> None:
    made = made_by(regex="ab")
    scores = made(state([[PAD, *ids("ab"), EOS], [PAD, *ids("a")]]), zeros(2))
    assert (scores[0] == 0).all()
    assert (scores[1] == 0).sum() == 1


def test_only_generated_tokens_count() -> None:
    made = made_by(regex="ab")
    rows = state([[PAD, *ids("zzz"), *ids("a")]], prompt=4)
    scores = made(rows, zeros(1))
    assert np.flatnonzero(scores[0] == 0).tolist() == ids("b")


def test_a_forced_special_token_is_passed_over() -> None:
    made = made_by(regex="ab", forced_bos_token_id=2)
    scores = made(state([[PAD]]), zeros(1))
    assert (scores == 0).all(), "the forced token must keep its score"
    assert set(ids("a")) <= set(allowed(made, SIZE, [2]))
    assert allowed(made, SIZE, [2, *ids("a")]) == ids("b")


def test_a_forced_token_with_a_text_is_part_of_the_text() -> None:
    made = made_by(regex="ab", forced_decoder_ids=[(1, token("a"))])
    assert (made(state([[PAD]]), zeros(1)) == 0).all()
    assert allowed(made, SIZE, ids("a")) == ids("b")
    made = made_by(regex="ab", forced_decoder_ids=[(1, token("x"))])
    with pytest.raises(RequestError, match=r"^regex does not allow the token \d+ that is forced"):
        allowed(made, SIZE, ids("x"))


def test_forced_positions_are_counted_from_the_start_token() -> None:
    made = made_by(regex="abc", forced_decoder_ids=[(2, 2)])
    given = state([[PAD, 2, *ids("a")]], prompt=1)
    with pytest.raises(RequestError, match="as it was chosen"):
        made(given, zeros(1))
    assert allowed(made, SIZE, [*ids("a"), 2]) == [token("b")]


def test_a_forced_end_at_the_maximal_length_is_kept() -> None:
    made = made_by(regex="abcdef", forced_eos_token_id=EOS)
    assert (made(state([[PAD, *ids("ab")]], most=4), zeros(1)) == 0).all()
    assert (made(state([[PAD, *ids("ab")]], most=5), zeros(1)) == 0).sum() == 1


def test_beams_that_broke_the_constraint_have_no_successor() -> None:
    made = made_by(regex="ab|ac", num_beams=3)
    scores = made(state([[PAD, *ids("a")], [PAD, *ids("x")], [PAD, *ids("ab")]]), zeros(3))
    assert np.flatnonzero(scores[0] == 0).tolist() == ids("b") + ids("c")
    assert (scores[1] == -np.inf).all()
    assert np.flatnonzero(scores[2] == 0).tolist() == [EOS]
    later = made(state([[PAD, *ids("xy")], [PAD, *ids("xb")]]), zeros(2))
    assert (later == -np.inf).all()


def test_a_beam_that_cannot_go_on_is_an_error_only_if_it_is_the_last() -> None:
    options = {"regex": "ab|cd", "num_beams": 2, "stop_token_ids": [token("b")]}
    made = made_by(**options)
    scores = made(state([[PAD, *ids("a")], [PAD, *ids("c")]]), zeros(2))
    assert (scores[0] == -np.inf).all()
    assert (scores[1] == 0).sum() == 1
    with pytest.raises(RequestError, match=r"^regex cannot be met after 'a'"):
        made_by(**options)(state([[PAD, *ids("a")], [PAD, *ids("x")]]), zeros(2))


def test_beams_that_could_have_ended_before_are_no_error() -> None:
    made = made_by(regex="a(bc)?", num_beams=2, stop_token_ids=[token("c")])
    made(state([[PAD, *ids("a")], [PAD, *ids("x")]]), zeros(2))
    scores = made(state([[PAD, *ids("ab")], [PAD, *ids("xx")]]), zeros(2))
    assert (scores == -np.inf).all()


def test_a_token_that_was_barred_must_not_be_chosen() -> None:
    with pytest.raises(RequestError, match=r"^regex does not allow 'x' as it was chosen"):
        allowed(made_by(regex="ab"), SIZE, ids("x"))


def test_what_other_options_bar_stays_barred() -> None:
    made = made_by(regex="a|b")
    scores = zeros(1)
    scores[0, ids("a")] = -np.inf
    assert set(ids("b")) <= set(np.flatnonzero(made(state([[PAD]]), scores)[0] == 0).tolist())
    assert scores[0, ids("a")] == -np.inf
    scores[:] = -np.inf
    with pytest.raises(RequestError, match=r"^regex cannot be met at the beginning: other options"):
        made(state([[PAD]]), scores)


def test_an_end_before_the_minimal_length_is_an_error_where_nothing_else_may_follow() -> None:
    scores = zeros(1)
    scores[0, EOS] = -np.inf
    with pytest.raises(RequestError, match="min_new_tokens"):
        made_by(regex="ab")(state([[PAD, *ids("ab")]]), scores)


def test_a_text_that_the_vocabulary_cannot_go_on_with_is_an_error() -> None:
    compiler = compiler_of("unigram")
    size = size_of("unigram")
    tokens = tokenizer_of("unigram").encode("one", special_tokens=False)
    options: list[dict[str, Any]] = [{"regex": "oneΩ+"}, {"grammar": 'start: "one" "Ω"'}]
    for option in options:
        made = compiler.processor(GenerationConfig(**option))
        assert made is not None
        with pytest.raises(RequestError) as caught:
            allowed(made, size, tokens)
        (name,) = option
        assert str(caught.value) == (
            f"{name} cannot be met after 'one': it needs the byte 0xCE, and no token of this "
            f"model's vocabulary writes that; change the {name}, or use a model that can write it"
        )


def test_long_texts_are_shortened_in_errors() -> None:
    made = made_by(regex="a{100}b", stop_token_ids=[token("b")])
    with pytest.raises(RequestError) as caught:
        allowed(made, SIZE, ids("a" * 100))
    assert re.search(r"after '\.\.\.a{37}': ", str(caught.value))


@pytest.mark.parametrize("option", ["json_schema", "grammar", "regex"])
def test_braces_that_a_vocabulary_lacks_are_an_error_at_once(option: str) -> None:
    compiler = new_compiler(_without_braces())
    value: Any = {
        "json_schema": {"type": "object"},
        "grammar": 'start: "{" "a" "}"',
        "regex": r"\{a\}",
    }[option]
    with pytest.raises(RequestError) as caught:
        compiler.processor(GenerationConfig(**{option: value}))
    assert str(caught.value) == (
        f"{option} cannot be met at the beginning: it needs '{{', and no token of this model's "
        f"vocabulary writes that; change the {option}, or use a model that can write it"
    )


def _without_braces() -> Tokenizer:
    tokenizer = Tokenizer(unigram("one two three four five six seven eight nine ten, and more"))
    assert "{" not in tokenizer.fast.get_vocab()
    return tokenizer


def test_a_model_may_have_fewer_ids_than_its_tokenizer() -> None:
    tokenizer = Tokenizer(byte_level())
    size = token("b") + 1
    compiler = ConstraintCompiler(tokenizer, size, EOS)
    made = compiler.processor(GenerationConfig(regex="ab", stop_token_ids=[size + 3]))
    assert made is not None
    assert max(allowed(made, size, [])) < size
    assert allowed(made, size, ids("a")) == ids("b")


def test_processors_compare_by_identity() -> None:
    config = GenerationConfig(regex="ab")
    compiler = compiler_of(KIND)
    assert compiler.processor(config) != compiler.processor(config)
