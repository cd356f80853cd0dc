import json
from pathlib import Path

import pytest

from drl.export.generation_defaults import read_generation_defaults
from drl.runtime.errors import ConfigError


def _write(folder: Path, **options: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(options))
    return folder


def test_supported_options_keep_their_names_and_meanings(tmp_path: Path) -> None:
    folder = _write(
        tmp_path,
        max_length=200,
        min_length=5,
        forced_bos_token_id=7,
        repetition_penalty=1.2,
        do_sample=True,
        temperature=0.7,
        top_k=40,
        eos_token_id=[2, 3, 4],
    )
    defaults = read_generation_defaults(folder, {}, 60)
    assert defaults.left_out == ()
    assert defaults.options == {
        "max_new_tokens": 199,  # max_length counts the start token
        "min_new_tokens": 4,
        "forced_bos_token_id": 7,
        "repetition_penalty": 1.2,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
        "stop_token_ids": [3, 4],
    }


def test_sampling_options_without_sampling_are_idle(tmp_path: Path) -> None:
    folder = _write(tmp_path, do_sample=False, temperature=0.7, top_p=0.9)
    assert read_generation_defaults(folder, {}, 60).options == {}


def test_what_the_runtime_cannot_do_is_told(tmp_path: Path) -> None:
    folder = _write(tmp_path, num_beams=4, bad_words_ids=[[5]], no_repeat_ngram_size=0)
    assert read_generation_defaults(folder, {}, 60).left_out == (
        "num_beams=4",
        "bad_words_ids=[[5]]",
    )


def test_older_checkpoints_keep_the_options_in_their_configuration(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path, {"max_length": 20}, 60).options == {
        "max_new_tokens": 19
    }


@pytest.mark.parametrize("text", ["", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read_generation_defaults(tmp_path, {}, 60)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"max_length": "x"}, "max_new_tokens"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens 3 exceeds max_new_tokens 2"),
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
