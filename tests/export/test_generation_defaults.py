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
    defaults = read_generation_defaults(folder, {})
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
    assert read_generation_defaults(folder, {}).options == {}


def test_what_the_runtime_cannot_do_is_told(tmp_path: Path) -> None:
    folder = _write(tmp_path, num_beams=4, bad_words_ids=[[5]], no_repeat_ngram_size=0)
    assert read_generation_defaults(folder, {}).left_out == ("num_beams=4", "bad_words_ids=[[5]]")


def test_older_checkpoints_keep_the_options_in_their_configuration(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path, {"max_length": 20}).options == {"max_new_tokens": 19}


@pytest.mark.parametrize("text", ["", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read_generation_defaults(tmp_path, {})
