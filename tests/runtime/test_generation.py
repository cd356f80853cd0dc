"""Generation options: usual meanings, all mistakes at once."""

import numpy as np
import pytest

from drl.runtime import GenerationConfig, RequestError


def test_greedy_is_the_default() -> None:
    assert not GenerationConfig().samples


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"temperature": 0.7}, True),
        ({"temperature": 0}, False),
        ({"do_sample": True}, True),
        ({"do_sample": False}, False),
        ({"do_sample": True, "temperature": 0.2, "top_k": 4}, True),
        ({"temperature": 0, "top_k": 4}, False),
        ({"do_sample": False, "top_p": 0.5}, False),
    ],
)
def test_when_tokens_are_drawn(options: dict[str, object], samples: bool) -> None:
    assert GenerationConfig.from_options(options).samples is samples


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig(
            max_new_tokens=0,
            min_new_tokens=-1,
            do_sample=1,  # type: ignore[arg-type]
            temperature=-0.5,
            top_k=-3,
            top_p=0.0,
            min_p=1.5,
            repetition_penalty=0,
            seed=-1,
            forced_bos_token_id=-1,
            stop_token_ids=[1.5],  # type: ignore[list-item]
            stop_strings=["ok", ""],
            logprobs="yes",  # type: ignore[arg-type]
            top_logprobs=-1,
        )
    message = str(caught.value)
    for name in GenerationConfig.__dataclass_fields__:
        assert name in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": True}, "max_new_tokens must be an integer of at least 1, not True"),
        ({"max_new_tokens": 4.0}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": "4"}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens 5 exceeds max_new_tokens 4"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": float("inf")}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"do_sample": True, "temperature": 0}, "contradicts temperature 0"),
        ({"do_sample": False, "temperature": 1.0}, "do_sample=False contradicts"),
        ({"top_k": 5, "top_p": 0.5}, "top_k, top_p needs do_sample=True or a temperature"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs needs logprobs=True"),
        ({"temperature": 1e-300}, "temperature must be 0 or at least 1.17549e-38, not 1e-300"),
        ({"temperature": 1e39}, "temperature must be a number at least 0 and at most 3.4"),
        ({"temperature": 10**400}, "temperature must be a number at least 0 and at most"),
        ({"repetition_penalty": 1e300}, "repetition_penalty must be a number above 0"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be at least 1.17549e-38"),
        ({"top_k": 2**63, "temperature": 1}, "top_k must be at most 9223372036854775807"),
        ({"seed": 10**5000}, "seed must be at most .* not a number of thousands of digits"),
        ({"max_new_tokens": -(10**400)}, r"max_new_tokens must be .* not -1000.*\.\.\.$"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"stop_strings": [3]}, "stop_strings"),
        ({"repetition_penalty": None}, "repetition_penalty must be a number above 0"),
    ],
)
def test_a_mistake(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GenerationConfig.from_options(options)


def test_unknown_options_are_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(RequestError, match=r"'max_tokens' \(did you mean 'max_new_tokens'\?\)"):
        GenerationConfig.from_options({"max_tokens": 3})
    with pytest.raises(RequestError, match="unknown generation option 'xyz', 'topk'"):
        GenerationConfig.from_options({"xyz": 3, "topk": 1})


def test_numpy_numbers_lists_and_a_single_stop_string_are_taken() -> None:
    config = GenerationConfig(
        max_new_tokens=np.int64(5),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        stop_token_ids=np.array([3, 4]),  # type: ignore[arg-type]
        stop_strings="stop",
    )
    assert config == GenerationConfig(
        max_new_tokens=5, temperature=0.5, stop_token_ids=(3, 4), stop_strings=("stop",)
    )
    assert hash(config)


def test_given_options_go_before_the_bundle_s_defaults() -> None:
    defaults = {"max_new_tokens": 9, "forced_bos_token_id": 4}
    config = GenerationConfig.from_defaults(defaults, {"max_new_tokens": 5})
    assert (config.max_new_tokens, config.forced_bos_token_id) == (5, 4)


def test_a_sampling_option_replaces_all_defaults_of_sampling() -> None:
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 3}
    assert not GenerationConfig.from_defaults(defaults, {"temperature": 0}).samples
    assert GenerationConfig.from_defaults(defaults, {"do_sample": True}).top_k is None
    assert GenerationConfig.from_defaults(defaults, {"seed": 1}).top_k == 3
