"""How a foreign checkpoint generates by default: what of it the runtime can do, and what not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl.runtime.errors import ConfigError

GENERATION_FILE = "generation_config.json"

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_SAME_NAME = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "forced_bos_token_id")
# What transformers takes for granted; an option at this value asks for nothing.
_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_eos_token_id": None,
    "forced_decoder_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": None,
    "renormalize_logits": False,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """Generation defaults of a checkpoint.

    Attributes:
        options: Fields of the runtime's `GenerationConfig`.
        left_out: What the checkpoint asks for and the runtime cannot do, as `name=value`.
    """

    options: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def read_generation_defaults(folder: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """Read `generation_config.json`, or where there is none the model's `config.json`.

    Args:
        folder: The checkpoint.
        config: Its parsed `config.json`, where older checkpoints keep these options.

    Raises:
        ConfigError: The file is no JSON object.
    """
    path = folder / GENERATION_FILE
    values: Any = config
    if path.exists():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON ({error}); write it again") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, not an object of options")
    left_out = tuple(
        f"{name}={values[name]}"
        for name, neutral in _NEUTRAL.items()
        if values.get(name, neutral) not in (neutral, None, [])
    )
    return GenerationDefaults(_options(values), left_out)


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: values[name] for name in _SAME_NAME if values.get(name) is not None}
    # Lengths without `new` count the start token too.
    for old, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if values.get(old) and new not in options:
            options[new] = max(int(values[old]) - 1, 0)
    if values.get("do_sample"):
        options["do_sample"] = True
        options |= {name: values[name] for name in _SAMPLING if values.get(name) is not None}
    ends = values.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        options["stop_token_ids"] = ends[1:]
    return {name: value for name, value in options.items() if value != 0}
