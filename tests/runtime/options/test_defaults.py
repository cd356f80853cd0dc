"""Options over a bundle's defaults: half of two ways to search is neither."""

from typing import Any

import numpy as np
import pytest

from drl.runtime import GenerationConfig
from drl.runtime.options.defaults import merge

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 3}
# As summarising checkpoints have it.
BEAMS = {
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "forced_bos_token_id": 0,
}
LENGTHS = {"max_length": 142, "min_length": 56}
REST = {"no_repeat_ngram_size": 3, "forced_bos_token_id": 0}


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        (SAMPLING, {"temperature": 0}, {"temperature": 0}),
        (SAMPLING, {"do_sample": True}, {"do_sample": True}),
        (SAMPLING, {"do_sample": False}, {"do_sample": False}),
        (SAMPLING, {"seed": 1}, {**SAMPLING, "seed": 1}),
        (SAMPLING, {"num_beams": 4}, {"num_beams": 4}),
        (SAMPLING, {"num_beams": 1}, {**SAMPLING, "num_beams": 1}),
        (
            SAMPLING,
            {"num_beams": 4, "do_sample": True},
            {"num_beams": 4, "do_sample": True},
        ),
        (BEAMS, {"do_sample": True}, {**LENGTHS, **REST, "do_sample": True}),
        (BEAMS, {"temperature": 0.5}, {**LENGTHS, **REST, "temperature": 0.5}),
        (BEAMS, {"do_sample": False}, {**BEAMS, "do_sample": False}),
        (BEAMS, {"do_sample": True, "num_beams": 2}, {**BEAMS, "do_sample": True, "num_beams": 2}),
        (BEAMS, {"num_beams": 1}, {**LENGTHS, **REST, "num_beams": 1}),
        (BEAMS, {"num_beams": None}, {**LENGTHS, **REST, "num_beams": None}),
        (BEAMS, {"num_beams": 8}, {**BEAMS, "num_beams": 8}),
        (BEAMS, {"length_penalty": 1.0}, {**BEAMS, "length_penalty": 1.0}),
        (BEAMS, {"num_return_sequences": 4}, {**BEAMS, "num_return_sequences": 4}),
        (
            {**BEAMS, "num_return_sequences": 3},
            {"num_beams": 2},
            {**BEAMS, "num_beams": 2},
        ),
        (
            {**BEAMS, "num_return_sequences": 3},
            {"do_sample": True},
            {**LENGTHS, **REST, "do_sample": True, "num_return_sequences": 3},
        ),
        (
            {**SAMPLING, "num_return_sequences": 3},
            {"temperature": 0},
            {"temperature": 0},
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
            {"num_beams": 3},
            {"num_beams": 3},
        ),
        (
            {"num_beams": 4, **SAMPLING},
            {"num_beam_groups": 2, "diversity_penalty": 0.5},
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        ),
    ],
)
def test_what_goes_before_what(
    defaults: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = dict(defaults)
    assert merge(defaults, given) == expected
    assert defaults == before
    GenerationConfig.from_defaults(defaults, given)


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ({"max_length": 20}, {"max_new_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_new_tokens": 5}, {"max_length": 20}, {"max_length": 20}),
        ({"min_length": 20}, {"min_new_tokens": 5}, {"min_new_tokens": 5}),
        ({"min_new_tokens": 5}, {"min_length": 20}, {"min_length": 20}),
        (LENGTHS, {"max_length": 30}, {"max_length": 30, "min_length": 30}),
        (LENGTHS, {"max_new_tokens": 30}, {"max_new_tokens": 30, "min_length": 31}),
        (LENGTHS, {"max_new_tokens": 90}, {"max_new_tokens": 90, "min_length": 56}),
        ({"min_new_tokens": 9}, {"max_new_tokens": 4}, {"max_new_tokens": 4, "min_new_tokens": 4}),
        ({"min_new_tokens": 9}, {"max_length": 4}, {"max_length": 4, "min_new_tokens": 3}),
        ({"min_new_tokens": 9}, {"max_length": None}, {"max_length": None, "min_new_tokens": 9}),
        (LENGTHS, {"max_new_tokens": None}, {"max_new_tokens": None, "min_length": 56}),
    ],
)
def test_a_length_that_is_given_goes_before_all_default_lengths(
    defaults: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merge(defaults, given) == expected
    GenerationConfig.from_defaults(defaults, given)


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ({"regex": "a"}, {"json_schema": "{}"}, {"json_schema": "{}"}),
        ({"grammar": "a"}, {"regex": None}, {"regex": None}),
        (REST, {"json_schema": "{}"}, {**REST, "json_schema": "{}"}),
        ({"logprobs": False}, {"top_logprobs": 2}, {"top_logprobs": 2}),
        ({"logprobs": False}, {"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}),
        ({"top_logprobs": 2}, {"logprobs": False}, {"logprobs": False}),
    ],
)
def test_a_constraint_replaces_the_others_and_reports_agree(
    defaults: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merge(defaults, given) == expected
    GenerationConfig.from_defaults(defaults, given)


def test_wrong_types_are_left_to_the_checks() -> None:
    wrong = {"num_beams": "4", "num_return_sequences": [], "max_length": "x", "do_sample": "y"}
    assert merge({}, wrong) == wrong
    merge(wrong, {"max_new_tokens": "3", "num_beams": None, "top_logprobs": "x"})
    array = np.arange(3)
    merge({}, dict.fromkeys(GenerationConfig.__dataclass_fields__, array))


def test_numbers_of_numpy_count_as_numbers() -> None:
    assert merge(BEAMS, {"num_beams": np.int64(8)}) == {**BEAMS, "num_beams": 8}
    assert merge(LENGTHS, {"max_length": np.int32(30)})["min_length"] == 30
    assert "num_beams" not in merge(BEAMS, {"temperature": np.float32(0.5)})
    assert "num_beams" not in merge(BEAMS, {"do_sample": np.True_})
