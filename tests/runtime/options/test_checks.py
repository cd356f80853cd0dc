"""Wrong values of generation options: one line that names the option and what it may be."""

import numpy as np
import pytest

from drl.runtime import GenerationConfig, RequestError

HUGE = 10**400
TOKENS = "must be token ids, such as [3, 4], not "
LISTS = "must be lists of token ids, such as [[3], [4, 5]], not "
BIASES = "must map token sequences to numbers, such as {(3, 4): -2.5} or [[[3, 4], -2.5]], not "
FORCED = "must be pairs of a position and a token id, such as [[1, 5], [2, 9]], not "
DECAY = "must be a start and a factor, such as [15, 1.1], not "


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_new_tokens", 0, "must be an integer of at least 1, not 0"),
        ("max_new_tokens", True, "must be an integer of at least 1, not True"),
        ("max_new_tokens", 4.0, "must be an integer of at least 1, not 4.0"),
        ("max_new_tokens", "4", "must be an integer of at least 1, not '4'"),
        ("max_new_tokens", 2**63, "must be at most 9223372036854775807, not 9223372036854775808"),
        ("max_length", 1, "must be an integer of at least 2, not 1"),
        ("min_new_tokens", -1, "must be an integer of at least 0, not -1"),
        ("min_length", [3], "must be an integer of at least 0, not [3]"),
        ("max_time", 0, "must be a number above 0 and at most 3.40282e+38, not 0"),
        ("num_beams", 0, "must be an integer of at least 1, not 0"),
        ("num_beam_groups", -2, "must be an integer of at least 1, not -2"),
        (
            "diversity_penalty",
            -0.5,
            "must be a number at least 0 and at most 3.40282e+38, not -0.5",
        ),
        ("length_penalty", np.nan, "must be a finite number, not nan"),
        ("length_penalty", -np.inf, "must be a finite number, not -inf"),
        ("early_stopping", "always", "must be true, false or \"never\", not 'always'"),
        ("early_stopping", 1, 'must be true, false or "never", not 1'),
        ("num_return_sequences", 0, "must be an integer of at least 1, not 0"),
        ("do_sample", 1, "must be true or false, not 1"),
        ("temperature", np.nan, "must be a number at least 0 and at most 3.40282e+38, not nan"),
        ("temperature", True, "must be a number at least 0 and at most 3.40282e+38, not True"),
        ("temperature", 1e39, "must be a number at least 0 and at most 3.40282e+38, not 1e+39"),
        ("temperature", 1e-300, "must be 0 or at least 1.17549e-38, not 1e-300"),
        ("top_k", -1, "must be an integer of at least 0, not -1"),
        ("top_p", 0.0, "must be a number above 0 and at most 1, not 0.0"),
        ("top_p", 1e-300, "must be at least 1.17549e-38, not 1e-300"),
        ("min_p", 1.5, "must be a number at least 0 and at most 1, not 1.5"),
        ("typical_p", 0, "must be a number above 0 and at most 1, not 0"),
        ("epsilon_cutoff", 1.0, "must be a number at least 0 and below 1, not 1.0"),
        ("eta_cutoff", 1, "must be a number at least 0 and below 1, not 1"),
        ("seed", -1, "must be an integer of at least 0, not -1"),
        ("repetition_penalty", 0, "must be a number above 0 and at most 3.40282e+38, not 0"),
        ("encoder_repetition_penalty", "1", "must be a number above 0 and at most 3.40282e+38"),
        ("no_repeat_ngram_size", -1, "must be an integer of at least 0, not -1"),
        ("encoder_no_repeat_ngram_size", 2.5, "must be an integer of at least 0, not 2.5"),
        ("bad_words_ids", [3, 4], LISTS + "[3, 4]"),
        ("bad_words_ids", [[]], LISTS + "[[]]"),
        ("bad_words_ids", [[3], [-1]], LISTS + "[[3], [-1]]"),
        ("bad_words_ids", ["ab"], LISTS + "['ab']"),
        ("bad_words_ids", 3, LISTS + "3"),
        ("suppress_tokens", 3, TOKENS + "3"),
        ("suppress_tokens", [3, -1], TOKENS + "[3, -1]"),
        ("begin_suppress_tokens", [True], TOKENS + "[True]"),
        ("begin_suppress_tokens", {"3": 1}, TOKENS + "{'3': 1}"),
        ("sequence_bias", 3, BIASES + "3"),
        ("sequence_bias", {3: 1.0}, BIASES + "{3: 1.0}"),
        ("sequence_bias", {"3": 1.0}, BIASES + "{'3': 1.0}"),
        ("sequence_bias", {(): 1.0}, BIASES + "{(): 1.0}"),
        ("sequence_bias", [[[3], "x"]], BIASES + "[[[3], 'x']]"),
        ("sequence_bias", [[[3], np.inf]], BIASES + "[[[3], inf]]"),
        ("sequence_bias", [[[3]]], BIASES + "[[[3]]]"),
        ("sequence_bias", [[[3], 1.0], [[3], 2.0]], "gives [3] two biases"),
        ("exponential_decay_length_penalty", 3, DECAY + "3"),
        ("exponential_decay_length_penalty", [3], DECAY + "[3]"),
        (
            "exponential_decay_length_penalty",
            [-1, 1.5],
            "has a start that must be an integer of at least 0, not -1",
        ),
        (
            "exponential_decay_length_penalty",
            [1, 0.0],
            "has a factor that must be a number above 0 and at most 3.40282e+38, not 0.0",
        ),
        ("forced_bos_token_id", -1, "must be an integer of at least 0, not -1"),
        ("forced_eos_token_id", [], "must be a token id or several, not []"),
        ("forced_eos_token_id", "x", "must be a token id or several, not 'x'"),
        ("forced_decoder_ids", [3, 4], FORCED + "[3, 4]"),
        ("forced_decoder_ids", [[1, None]], FORCED + "[[1, None]]"),
        (
            "forced_decoder_ids",
            [[0, 3]],
            "must have positions of at least 1; position 0 is the start token",
        ),
        ("forced_decoder_ids", [[1, 3], [1, 4]], "forces two tokens at position 1"),
        ("renormalize_logits", "no", "must be true or false, not 'no'"),
        ("remove_invalid_values", 0, "must be true or false, not 0"),
        ("json_schema", "{", "is not valid JSON: Expecting property name"),
        ("json_schema", "[1]", "must be an object of JSON, not '[1]'"),
        ("json_schema", 3, "must be an object of JSON, not 3"),
        ("json_schema", dict, "must be a schema, not a class; give its .model_json_schema()"),
        ("json_schema", {"enum": {1}}, "cannot be written as JSON: Object of type set"),
        ("json_schema", {"maximum": np.inf}, "cannot be written as JSON: Out of range"),
        ("regex", " ", "must be a string that is not empty, not ' '"),
        ("regex", "a\ud83d", "is not valid Unicode at character 1"),
        ("grammar", ["a"], "must be a string that is not empty, not ['a']"),
        ("stop_token_ids", 3, TOKENS + "3"),
        ("stop_token_ids", [1.5], TOKENS + "[1.5]"),
        ("stop_strings", [3], "must be strings that are not empty"),
        ("stop_strings", ["ok", ""], "must be strings that are not empty"),
        ("logprobs", "yes", "must be true or false, not 'yes'"),
        ("top_logprobs", -1, "must be an integer of at least 0, not -1"),
    ],
)
def test_a_wrong_value(name: str, value: object, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig(**{name: value})  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith(f"generation options: {name} {message}")
    assert "\n" not in text
    assert text.count(";") == message.count(";")


@pytest.mark.parametrize("name", sorted(GenerationConfig.__dataclass_fields__))
@pytest.mark.parametrize(
    "value",
    [object(), HUGE, -HUGE, {1: object()}, "", b"x", np.array(3.5), np.zeros((2, 2, 2)), [None]],
)
def test_no_value_is_too_odd_for_a_clean_mistake(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"^generation options: {name} ") as caught:
        GenerationConfig(**{name: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_number_of_thousands_of_digits_is_not_written_out() -> None:
    with pytest.raises(RequestError, match=r"seed must be at most .* thousands of digits"):
        GenerationConfig(seed=10**5000)
