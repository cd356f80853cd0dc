"""How a foreign checkpoint generates by default: what of it the runtime can do, and what not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl.runtime.errors import ConfigError, RequestError
from drl.runtime.generation import GenerationConfig

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


def read_generation_defaults(
    folder: Path, config: Mapping[str, Any], vocab_size: int
) -> GenerationDefaults:
    """Read `generation_config.json`, or where there is none the model's `config.json`.

    Args:
        folder: The checkpoint.
        config: Its parsed `config.json`, where older checkpoints keep these options.
        vocab_size: Tokens of the model.

    Raises:
        ConfigError: The file is no JSON object, or a value is one that the runtime refuses.
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
    options = _options(values)
    try:
        _check(options, vocab_size)
    except RequestError as error:
        source = path if path.exists() else folder / "config.json"
        raise ConfigError(f"{source}: {error}") from None
    return GenerationDefaults(options, left_out)


def _check(options: Mapping[str, Any], vocab_size: int) -> None:
    """Raise `RequestError` for what no bundle could be loaded with."""
    config = GenerationConfig.from_options(options)
    tokens = [*config.stop_token_ids]
    if config.forced_bos_token_id is not None:
        tokens.append(config.forced_bos_token_id)
    if outside := [token for token in tokens if token >= vocab_size]:
        raise RequestError(f"token id {outside[0]} is outside the vocabulary of {vocab_size}")


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: values[name] for name in _SAME_NAME if values.get(name) is not None}
    # Lengths without `new` count the start token too.
    for old, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if values.get(old) and new not in options:
            length = values[old]
            options[new] = max(length - 1, 0) if type(length) is int else length
    if values.get("do_sample"):
        options["do_sample"] = values["do_sample"]
        options |= {name: values[name] for name in _SAMPLING if values.get(name) is not None}
    ends = values.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        options["stop_token_ids"] = ends[1:]
    return {name: value for name, value in options.items() if value != 0}
