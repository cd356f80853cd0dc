"""Generation options that contradict each other, or do nothing beside each other."""

import pytest

from drl.runtime import GenerationConfig, RequestError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 4, "max_length": 9},
            "max_length contradicts max_new_tokens; give one of them",
        ),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens 5 exceeds max_new_tokens 4"),
        ({"max_length": 4, "min_length": 5}, "min_length 5 exceeds max_length 4"),
        (
            {"max_length": 4, "min_new_tokens": 4},
            "min_new_tokens 4 exceeds max_length 4, which counts the start token",
        ),
        (
            {"do_sample": True, "temperature": 0},
            "do_sample=True contradicts temperature 0, which is greedy",
        ),
        ({"do_sample": False, "temperature": 1.0}, "do_sample=False contradicts temperature 1.0"),
        (
            {"top_k": 5, "top_p": 0.5},
            "top_k, top_p need do_sample=True or a temperature",
        ),
        ({"typical_p": 0.5}, "typical_p needs do_sample=True or a temperature"),
        (
            {"do_sample": False, "min_p": 0.1, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1},
            "do_sample=False contradicts min_p, epsilon_cutoff, eta_cutoff",
        ),
        ({"length_penalty": 2.0}, "length_penalty needs num_beams of at least 2"),
        (
            {"early_stopping": "never", "num_beam_groups": 2, "diversity_penalty": 0.1},
            "num_beam_groups, diversity_penalty, early_stopping need num_beams of at least 2",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0},
            "num_beams 4 is no multiple of num_beam_groups 3",
        ),
        (
            {"num_beams": 2, "num_beam_groups": 4, "diversity_penalty": 1.0},
            "num_beams 2 is no multiple of num_beam_groups 4",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2},
            "num_beam_groups needs a diversity_penalty above 0",
        ),
        (
            {"num_beams": 4, "diversity_penalty": 0.5},
            "diversity_penalty needs num_beam_groups of at least 2",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "do_sample": True},
            "num_beam_groups contradicts sampling; leave out do_sample and temperature",
        ),
        (
            {"num_return_sequences": 2},
            "num_return_sequences 2 needs sampling or as many num_beams; "
            "greedy decoding has one result",
        ),
        (
            {"num_return_sequences": 5, "num_beams": 4},
            "num_return_sequences 5 exceeds num_beams 4",
        ),
        (
            {"num_return_sequences": 5, "num_beams": 4, "do_sample": True},
            "num_return_sequences 5 exceeds num_beams 4",
        ),
        (
            {"regex": "a", "grammar": "start: A", "json_schema": {}},
            "json_schema, regex, grammar exclude each other; give one of them",
        ),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs needs logprobs=True"),
    ],
)
def test_a_contradiction(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig.from_options(options)
    assert str(caught.value) == f"generation options: {message}"


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 3, "min_length": 9},
        {"min_new_tokens": 3, "max_length": 4},
        {"min_length": 56, "max_new_tokens": 20},  # a prefix may make up the rest
        {"temperature": 0, "top_k": 5},
        {"num_beams": 4, "top_k": 5, "do_sample": True},
        {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
        {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 0.5},
        {"num_beams": 4, "num_return_sequences": 4},
        {"do_sample": True, "num_return_sequences": 40},
        {"length_penalty": 1.0, "early_stopping": False, "num_beam_groups": 1},
    ],
)
def test_what_is_no_contradiction(options: dict[str, object]) -> None:
    GenerationConfig.from_options(options)
