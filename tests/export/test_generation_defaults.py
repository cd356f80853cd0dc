"""Defaults of foreign checkpoints: carried over, dropped as idle, or told as left out."""

import json
from pathlib import Path

import pytest

from drl.export.generation_defaults import GenerationDefaults, read_generation_defaults
from drl.runtime import GenerationConfig
from drl.runtime.errors import ConfigError


def _write(folder: Path, **options: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(options))
    return folder


def _options(folder: Path, **options: object) -> dict[str, object]:
    defaults = read_generation_defaults(_write(folder, **options), {}, 60)
    GenerationConfig.from_defaults(defaults.options, {})
    return dict(defaults.options)


def test_options_keep_their_names_and_meanings(tmp_path: Path) -> None:
    same = {
        "max_length": 200,
        "min_length": 5,
        "max_time": 30.0,
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "length_penalty": 2.0,
        "early_stopping": True,
        "num_return_sequences": 2,
        "repetition_penalty": 1.2,
        "encoder_repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 4,
        "bad_words_ids": [[5], [6, 7]],
        "suppress_tokens": [8],
        "begin_suppress_tokens": [9],
        "sequence_bias": [[[3, 4], -2.5]],
        "exponential_decay_length_penalty": [15, 1.1],
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 0,
        "forced_decoder_ids": [[1, 50], [2, 51]],
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "stop_strings": ["\n"],
    }
    folder = _write(tmp_path, **same, eos_token_id=[2, 3, 4], transformers_version="5.23.0")
    defaults = read_generation_defaults(folder, {}, 60)
    assert defaults.left_out == ()
    assert defaults.options == same | {"stop_token_ids": [3, 4]}
    GenerationConfig.from_defaults(defaults.options, {})


def test_sampling_is_carried_over(tmp_path: Path) -> None:
    same = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "epsilon_cutoff": 0.001,
        "eta_cutoff": 0.002,
    }
    assert _options(tmp_path, **same) == same


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 50), ({"top_k": None}, 50), ({"top_k": 0}, None)]
)
def test_sampling_is_among_50_tokens_where_transformers_would(
    tmp_path: Path, given: dict[str, object], expected: int | None
) -> None:
    assert _options(tmp_path, do_sample=True, **given).get("top_k") == expected


@pytest.mark.parametrize(
    "idle",
    [
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "typical_p": 0.5},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
        {"early_stopping": "never", "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": None, "max_length": None, "bad_words_ids": None, "forced_bos_token_id": None},
        {"min_length": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": -1},
        {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1, "num_return_sequences": 1},
        {"suppress_tokens": [], "begin_suppress_tokens": [], "sequence_bias": {}},
        {"forced_decoder_ids": [[1, None]], "renormalize_logits": False},
        {"eos_token_id": [1], "pad_token_id": 0, "decoder_start_token_id": 0, "use_cache": True},
        {"guidance_scale": 1.0, "penalty_alpha": 0.0, "token_healing": False, "top_h": None},
    ],
)
def test_what_transformers_ignores_is_dropped(tmp_path: Path, idle: dict[str, object]) -> None:
    assert read_generation_defaults(_write(tmp_path, **idle), {}, 60) == GenerationDefaults({})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"num_beams": 4, "early_stopping": False, "length_penalty": 1.0, "num_beam_groups": 1},
            {"num_beams": 4},
        ),
        ({"num_beams": 4, "diversity_penalty": 0.5}, {"num_beams": 4}),
        (
            {"do_sample": True, "temperature": 1.0, "top_k": 9, "top_p": 1.2, "typical_p": 1.0},
            {"do_sample": True, "top_k": 9},
        ),
        (
            {"do_sample": True, "top_k": 9, "epsilon_cutoff": 1.0, "eta_cutoff": 0.0, "min_p": 0},
            {"do_sample": True, "top_k": 9},
        ),
        ({"max_new_tokens": 9, "max_length": 20}, {"max_new_tokens": 9}),
        ({"min_new_tokens": 0, "min_length": 20}, {}),
        ({"max_length": 20, "min_length": 30}, {"max_length": 20, "min_length": 20}),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, {"max_new_tokens": 2, "min_new_tokens": 2}),
        ({"forced_decoder_ids": [[1, None], [2, 5]]}, {"forced_decoder_ids": [[2, 5]]}),
        ({"forced_eos_token_id": [2, 3]}, {"forced_eos_token_id": [2, 3]}),
    ],
)
def test_of_two_options_the_one_that_transformers_goes_by_is_kept(
    tmp_path: Path, given: dict[str, object], expected: dict[str, object]
) -> None:
    assert _options(tmp_path, **given) == expected


def test_what_the_runtime_cannot_do_is_told(tmp_path: Path) -> None:
    folder = _write(tmp_path, num_beams=4, guidance_scale=1.5, top_h=0.4, force_words_ids=[[5]])
    assert read_generation_defaults(folder, {}, 60).left_out == (
        "guidance_scale=1.5",
        "top_h=0.4",
        "force_words_ids=[[5]]",
    )


def test_older_checkpoints_keep_the_options_in_their_configuration(tmp_path: Path) -> None:
    config = {
        "max_length": 142,
        "min_length": 56,
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "d_model": 16,
        "task_specific_params": {"summarization": {"num_beams": 6, "max_length": 999}},
    }
    expected = {name: config[name] for name in list(config)[:6]}
    assert read_generation_defaults(tmp_path, config, 60).options == expected


def test_the_oldest_ones_force_their_first_token_by_another_name(tmp_path: Path) -> None:
    config = {"force_bos_token_to_be_generated": True, "bos_token_id": 0}
    options = {"forced_bos_token_id": 0}
    assert read_generation_defaults(tmp_path, config, 60).options == options
    config["forced_bos_token_id"] = 7
    assert read_generation_defaults(tmp_path, config, 60).options == {"forced_bos_token_id": 7}


@pytest.mark.parametrize("text", ["", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read_generation_defaults(tmp_path, {}, 60)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"max_length": "x"}, "max_length"),
        ({"num_beams": "four"}, "num_beams"),
        ({"num_beams": 4, "early_stopping": "always"}, "early_stopping"),
        ({"num_return_sequences": 3}, "num_return_sequences 3 needs sampling"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups needs a diversity_penalty"),
        ({"bad_words_ids": [3]}, "bad_words_ids"),
        ({"bad_words_ids": [[3, 60]]}, "bad_words_ids: token id 60 is outside the vocabulary"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"do_sample": True, "temperature": "hot"}, "temperature"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"repetition_penalty": -3}, "repetition_penalty"),
        ({"forced_bos_token_id": 60}, "token id 60 is outside the vocabulary of 60"),
        ({"eos_token_id": [1, 99]}, "token id 99 is outside the vocabulary of 60"),
        ({"eos_token_id": [1, "end"]}, "stop_token_ids"),
    ],
)
def test_a_value_that_the_runtime_refuses_is_refused_with_its_file(
    tmp_path: Path, options: dict[str, object], fragment: str
) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: .*{fragment}") as caught:
        read_generation_defaults(_write(tmp_path, **options), {}, 60)
    assert "\n" not in str(caught.value)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ConfigError, match=rf"/config\.json: .*{fragment}"):
        read_generation_defaults(tmp_path, options, 60)
