"""Generation options: usual names, one form for equal options, all mistakes at once."""

import json

import numpy as np
import pytest

from drl.runtime import GenerationConfig, RequestError


def test_greedy_is_the_default() -> None:
    config = GenerationConfig()
    assert not config.samples
    assert config.width == 1
    assert repr(config) == "GenerationConfig()"
    assert list(config.token_ids()) == []


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"temperature": 0.7}, True),
        ({"temperature": 0}, False),
        ({"do_sample": True}, True),
        ({"do_sample": False}, False),
        ({"do_sample": True, "temperature": 0.2, "top_k": 4}, True),
        ({"temperature": 0, "top_k": 4}, False),
        ({"do_sample": False, "top_p": 1.0, "top_k": 0}, False),
        ({"num_beams": 3}, False),
        ({"num_beams": 3, "temperature": 0.7}, True),
    ],
)
def test_when_tokens_are_drawn(options: dict[str, object], samples: bool) -> None:
    assert GenerationConfig.from_options(options).samples is samples


def test_a_beam_search_is_as_wide_as_its_beams() -> None:
    assert GenerationConfig(num_beams=6, num_return_sequences=2).width == 6
    assert GenerationConfig(do_sample=True, num_return_sequences=2).width == 1


def test_all_mistakes_are_reported_at_once() -> None:
    wrong: dict[str, object] = dict.fromkeys(GenerationConfig.__dataclass_fields__, "?")
    wrong |= {"stop_strings": [""], "regex": "", "grammar": 3}
    with pytest.raises(RequestError) as caught:
        GenerationConfig(**wrong)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    mistakes = message.removeprefix("generation options: ").split("; ")
    assert [mistake.split()[0] for mistake in mistakes] == list(wrong)


def test_contradictions_are_reported_beside_wrong_values() -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig(top_p=3, min_new_tokens=5, max_new_tokens=4, num_return_sequences=2)
    for part in ("top_p must be", "min_new_tokens 5 exceeds", "num_return_sequences 2 needs"):
        assert part in str(caught.value)


def test_nothing_is_said_about_what_depends_on_a_wrong_value() -> None:
    with pytest.raises(RequestError) as caught:
        GenerationConfig(num_beams=0, length_penalty=2.0, num_return_sequences=3)
    assert str(caught.value) == (
        "generation options: num_beams must be an integer of at least 1, not 0"
    )


def test_every_option_is_checked_and_normalised() -> None:
    """None is every option's default, as in transformers."""
    names = GenerationConfig.__dataclass_fields__
    assert GenerationConfig(**dict.fromkeys(names)) == GenerationConfig()  # type: ignore[arg-type]


def test_numpy_numbers_lists_and_a_single_stop_string_are_taken() -> None:
    config = GenerationConfig(
        max_new_tokens=np.int64(5),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        do_sample=np.True_,  # type: ignore[arg-type]
        stop_token_ids=np.array([3, 4]),  # type: ignore[arg-type]
        bad_words_ids=np.array([[3, 4], [5, 6]]),  # type: ignore[arg-type]
        stop_strings="stop",
    )
    assert config == GenerationConfig(
        max_new_tokens=5,
        temperature=0.5,
        do_sample=True,
        stop_token_ids=(3, 4),
        bad_words_ids=((3, 4), (5, 6)),
        stop_strings=("stop",),
    )
    assert type(config.max_new_tokens) is int
    assert type(config.do_sample) is bool


def test_equal_options_give_equal_configs_however_they_are_written() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    one = GenerationConfig(
        sequence_bias={(3,): 1, (1, 2): -np.inf},
        forced_decoder_ids=[[2, 9], [1, 8]],  # type: ignore[list-item]
        exponential_decay_length_penalty=[3, 1],  # type: ignore[arg-type]
        forced_eos_token_id=[4],
        json_schema=schema,
    )
    other = GenerationConfig(
        sequence_bias=[([1, 2], -np.inf), ([3], 1.0)],
        forced_decoder_ids=((1, 8), (2, 9)),
        exponential_decay_length_penalty=(3, 1.0),
        forced_eos_token_id=4,
        json_schema=json.dumps(schema, indent=2),
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one.sequence_bias == (((1, 2), -np.inf), ((3,), 1.0))
    assert one.forced_decoder_ids == ((1, 8), (2, 9))
    assert one.json_schema == '{"type":"object","properties":{"b":{},"a":{}}}'
    assert one != GenerationConfig(json_schema={"properties": {"a": {}, "b": {}}})


def test_a_config_shows_what_is_not_the_default() -> None:
    config = GenerationConfig(num_beams=4, early_stopping="never", stop_token_ids=[7])
    assert repr(config) == (
        "GenerationConfig(num_beams=4, early_stopping='never', stop_token_ids=(7,))"
    )


def test_every_token_id_is_told_with_its_option() -> None:
    config = GenerationConfig(
        bad_words_ids=[[1], [2, 3]],
        sequence_bias={(4, 5): -1.0},
        forced_decoder_ids=[(1, 6), (2, 7)],
        stop_token_ids=[8],
        suppress_tokens=[9],
        begin_suppress_tokens=[10],
        forced_bos_token_id=11,
        forced_eos_token_id=[12, 13],
    )
    assert sorted(config.token_ids(), key=lambda pair: pair[1]) == [
        ("bad_words_ids", 1),
        ("bad_words_ids", 2),
        ("bad_words_ids", 3),
        ("sequence_bias", 4),
        ("sequence_bias", 5),
        ("forced_decoder_ids", 6),
        ("forced_decoder_ids", 7),
        ("stop_token_ids", 8),
        ("suppress_tokens", 9),
        ("begin_suppress_tokens", 10),
        ("forced_bos_token_id", 11),
        ("forced_eos_token_id", 12),
        ("forced_eos_token_id", 13),
    ]


def test_given_options_go_before_the_bundle_s_defaults() -> None:
    defaults = {"max_new_tokens": 9, "forced_bos_token_id": 4}
    config = GenerationConfig.from_defaults(defaults, {"max_new_tokens": 5})
    assert (config.max_new_tokens, config.forced_bos_token_id) == (5, 4)


def test_options_are_replaced_as_they_go_over_defaults() -> None:
    config = GenerationConfig(num_beams=4, length_penalty=2.0, forced_bos_token_id=4)
    assert config.replace(num_beams=2) == GenerationConfig(
        num_beams=2, length_penalty=2.0, forced_bos_token_id=4
    )
    assert config.replace(do_sample=True) == GenerationConfig(do_sample=True, forced_bos_token_id=4)
    assert config.replace(length_penalty=None).length_penalty == 1.0
    with pytest.raises(RequestError, match="did you mean 'num_beams'"):
        config.replace(num_beam=2)


def test_values_can_be_checked_before_the_defaults_are_known() -> None:
    GenerationConfig.check_values({"length_penalty": 2.0, "num_return_sequences": 3})
    with pytest.raises(RequestError, match="length_penalty must be a finite number"):
        GenerationConfig.check_values({"length_penalty": "x", "num_return_sequences": 3})
    with pytest.raises(RequestError, match="unknown generation option 'lenght_penalty'"):
        GenerationConfig.check_values({"lenght_penalty": 1.0})
